//! What a disk refuses, in words.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// EIO, which has no kind of its own.
const INPUT_OUTPUT: i32 = 5;

/// A step the disk refused: what, where, why, and what to do about it.
#[derive(Debug)]
pub struct DiskError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl DiskError {
    /// `doing` completes "cannot ... PATH".
    pub fn new(doing: &'static str, path: &Path, error: io::Error) -> DiskError {
        DiskError { doing, path: path.to_owned(), error }
    }

    /// The path concerned.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the system said.
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// Whether there is no room left: on the disk, in the quota, or in one file.
    pub fn is_full(&self) -> bool {
        matches!(self.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    }

    /// The cause without path or system texts, fit for strangers.
    pub fn cause(&self) -> &'static str {
        self.words().0
    }

    fn words(&self) -> (&'static str, &'static str) {
        match self.kind() {
            ErrorKind::StorageFull => ("the disk is full", "free some space"),
            ErrorKind::QuotaExceeded => ("the disk quota is used up", "free some space or raise the quota"),
            ErrorKind::FileTooLarge => {
                ("a file may not become so large", "raise the limit (ulimit -f) or shorten the file")
            }
            ErrorKind::ReadOnlyFilesystem => {
                ("the disk is read-only", "mount it writable or name another folder")
            }
            ErrorKind::PermissionDenied => {
                ("permission denied", "give this user the right to write there, or name another folder")
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                ("a file is where a folder should be", "remove it or name another folder")
            }
            ErrorKind::IsADirectory => {
                ("a folder is where a file should be", "remove it or name another file")
            }
            ErrorKind::NotFound => ("the folder is gone", "make it again"),
            _ if self.error.raw_os_error() == Some(INPUT_OUTPUT) => {
                ("the disk reports an error", "check the disk and the system's log")
            }
            _ => ("the disk does not take it", "mend what the system names, then try again"),
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, fix) = self.words();
        let DiskError { doing, path, error } = self;
        write!(f, "cannot {doing} {}: {cause} ({error}); {fix}", path.display())
    }
}

impl std::error::Error for DiskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// For callers that know only one kind of error; the text keeps path, cause and fix.
impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}
