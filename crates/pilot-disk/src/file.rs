//! A file that grows over time.

use crate::{Disk, DiskError, FILES, Op};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// A file open for reading and appending ([`Disk::open`]).
#[derive(Debug)]
pub struct DiskFile {
    disk: Disk,
    path: PathBuf,
    file: File,
    id: u64,
    len: u64,
}

impl DiskFile {
    pub(crate) fn open(disk: Disk, path: &Path) -> io::Result<DiskFile> {
        disk.look(&Op::Open { path })?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        let id = FILES.fetch_add(1, Ordering::Relaxed);
        let opened = if len == 0 { Op::Create { path, file: id } } else { Op::Reopen { path, file: id } };
        disk.step(opened, || Ok(()))?;
        Ok(DiskFile { disk, path: path.to_owned(), file, id, len })
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; a part that was written before an error is taken back.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn append(&mut self, data: &[u8]) -> Result<(), DiskError> {
        let op = Op::Write { file: self.id, offset: self.len, data };
        let file = &mut self.file;
        let written = self.disk.step(op, || {
            file.seek(SeekFrom::End(0))?;
            file.write_all(data)
        });
        match written {
            Ok(()) => self.len += data.len() as u64,
            Err(_) => {
                let _ = self.file.set_len(self.len);
            }
        }
        self.noted(written)
    }

    /// Cuts the file to `len` bytes.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn set_len(&mut self, len: u64) -> Result<(), DiskError> {
        let file = &self.file;
        let cut = self.disk.step(Op::SetLen { file: self.id, len }, || file.set_len(len));
        if cut.is_ok() {
            self.len = len;
        }
        self.noted(cut)
    }

    /// Makes the content durable; the name is so after [`Disk::rename`].
    ///
    /// # Errors
    /// The disk could not keep what was written; do not rely on any of it.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.noted(self.disk.step(Op::Sync { file: self.id }, || self.file.sync_all()))
    }

    /// Hands all bytes, in order, to `each`.
    ///
    /// # Errors
    /// Whatever the disk refuses; a file that somebody cut.
    pub fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), DiskError> {
        let read = self.read_blocks(each);
        read.map_err(|e| DiskError::new("read", &self.path, e))
    }

    fn read_blocks(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.file.rewind()?;
        let mut block = vec![0; 1 << 20];
        let mut left = self.len;
        while left > 0 {
            let n = self.file.read(&mut block)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(&block[..n]);
            left = left.saturating_sub(n as u64);
        }
        Ok(())
    }

    fn noted(&self, result: io::Result<()>) -> Result<(), DiskError> {
        self.disk.noted(&self.path, result.map_err(|e| DiskError::new("write", &self.path, e)))
    }
}
