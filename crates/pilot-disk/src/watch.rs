//! What a disk is asked to do, as tests see it.

use std::fmt::Debug;
use std::io;
use std::path::Path;

/// One step. Files are named by numbers that are never used twice, because a file may change its name while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// A directory is made.
    CreateDir {
        /// Its path.
        path: &'a Path,
    },
    /// A file is about to be opened for writing; nothing has changed yet.
    Open {
        /// Its path.
        path: &'a Path,
    },
    /// An empty file is there, new or emptied.
    Create {
        /// Its path.
        path: &'a Path,
        /// Its number.
        file: u64,
    },
    /// A file with content was opened to be continued.
    Reopen {
        /// Its path.
        path: &'a Path,
        /// Its number.
        file: u64,
    },
    /// Bytes are written.
    Write {
        /// Its number.
        file: u64,
        /// Where, bytes from the start.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// A file is cut, or extended by zeros.
    SetLen {
        /// Its number.
        file: u64,
        /// New length, bytes.
        len: u64,
    },
    /// A file's content is made durable.
    Sync {
        /// Its number.
        file: u64,
    },
    /// A file gets another name; one that had the name is gone.
    Rename {
        /// Old path.
        from: &'a Path,
        /// New path.
        to: &'a Path,
    },
    /// A file is deleted.
    Remove {
        /// Its path.
        path: &'a Path,
    },
    /// A directory's entries are made durable.
    SyncDir {
        /// Its path.
        path: &'a Path,
    },
}

/// Sees every step of a [`Disk`](crate::Disk).
pub trait Watch: Debug + Send + Sync {
    /// Before a step. An error is what the disk answers; the step is not made.
    ///
    /// # Errors
    /// Whatever the watcher wants to happen.
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        let _ = op;
        Ok(())
    }

    /// After a step that succeeded.
    fn after(&self, op: &Op<'_>) {
        let _ = op;
    }
}
