//! Durable files. [`Disk::replace`] writes a file so that after a crash or a power cut the old content is there or the
//! new one, never a part, and the new one once the call has returned:
//!
//! 1. a temporary file beside it (mode 0600, locked, name `.NAME.tmp`, which nobody reads) is written and synced,
//! 2. it is renamed over the old file,
//! 3. the directory is synced.
//!
//! Errors name the path, the cause and what to do ([`DiskError`]). Every step passes a [`Watch`], so that tests can refuse
//! it (a full disk) or record it and rebuild what a power cut would have left (`simulate`, a feature).

mod error;
mod file;
#[cfg(feature = "simulate")]
pub mod simulate;
mod watch;

#[cfg(test)]
mod tests;

pub use error::DiskError;
pub use file::DiskFile;
pub use watch::{Op, Watch};

use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most symbolic links followed for one path.
const MAX_LINKS: usize = 40;
/// Most bytes of a file's name that its temporary file's name repeats; file systems take 255 in all.
const MAX_STEM: usize = 240;
/// Directories remembered as durable. Beyond, each is synced again.
const MAX_KNOWN: usize = 256;
/// Directories whose trouble is remembered.
const MAX_TROUBLES: usize = 16;

/// Numbers open files for watchers.
static FILES: AtomicU64 = AtomicU64::new(1);

/// The way to a disk. Clones share what they know.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    watch: Option<Arc<dyn Watch>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Directories whose own entry is known to be durable.
    known: HashSet<PathBuf>,
    /// Directories whose last write failed, and why.
    troubles: BTreeMap<PathBuf, String>,
}

impl Disk {
    /// The real one.
    pub fn new() -> Disk {
        Disk::default()
    }

    /// The real one, with every step shown to `watch` first.
    pub fn watched(watch: Arc<dyn Watch>) -> Disk {
        Disk { watch: Some(watch), state: Arc::default() }
    }

    /// Replaces the file at `path` (mode 0600), durably; what a chain of symbolic links ends at is replaced, not the
    /// links. Missing directories are made (mode 0700). Concurrent writers of one path, also of other processes, take
    /// turns.
    ///
    /// # Errors
    /// Whatever the disk refuses. The old content is there still, unless only the last step, the sync of the directory,
    /// failed.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        let path = &follow(path).map_err(|e| DiskError::new("write", path, e))?;
        let mut name = OsString::from(".");
        let whole = path.file_name().unwrap_or_default();
        name.push(stem(whole));
        name.push(".tmp");
        self.replace_via(&path.with_file_name(name), path, bytes)
    }

    /// The same with a chosen temporary file, on the same file system.
    ///
    /// # Errors
    /// As [`Disk::replace`].
    pub fn replace_via(&self, temporary: &Path, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        self.noted(path, self.replace_now(temporary, path, bytes))
    }

    fn replace_now(&self, temporary: &Path, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        let fail = |e| DiskError::new("write", path, e);
        for file in [temporary, path] {
            self.create_dir(parent(file))?;
        }
        let file = self.lock_temporary(temporary).map_err(fail)?;
        let written = self.write(&file, temporary, path, bytes);
        if written.is_err() {
            // It takes room that others may need; one that stays is replaced by the next write.
            let _ = self.step(Op::Remove { path: temporary }, || fs::remove_file(temporary));
        }
        written.map_err(fail)?;
        self.sync_dir(parent(path)).map_err(fail)
    }

    fn write(&self, mut file: &File, temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let id = FILES.fetch_add(1, Ordering::Relaxed);
        // A leftover of a crash may be longer and have other permissions.
        self.step(Op::Create { path: temporary, file: id }, || {
            file.set_len(0)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))
        })?;
        self.step(Op::Write { file: id, offset: 0, data: bytes }, || file.write_all(bytes))?;
        self.step(Op::Sync { file: id }, || file.sync_all())?;
        self.step(Op::Rename { from: temporary, to: path }, || fs::rename(temporary, path))
    }

    /// Opens a temporary file and holds its lock, on the file that has the name when the lock is held: the writer before
    /// us renamed the one we opened.
    fn lock_temporary(&self, path: &Path) -> io::Result<File> {
        loop {
            self.look(&Op::Open { path })?;
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(path)?;
            match flock(&file, FlockOperation::LockExclusive) {
                // File systems without locks: one writer at a time is then up to the caller.
                Ok(())
                | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
            let held = file.metadata()?;
            match fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => return Ok(file),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }

    /// Makes a directory (mode 0700) and what it lies in, durably.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn create_dir(&self, dir: &Path) -> Result<(), DiskError> {
        let fail = |e| DiskError::new("create folder", dir, e);
        if dir.as_os_str().is_empty() {
            return Ok(());
        }
        if dir.is_dir() {
            if self.state().known.contains(dir) {
                return Ok(());
            }
            // Perhaps it was made right before a crash.
            self.sync_dir(parent(dir)).map_err(fail)?;
            let mut state = self.state();
            if state.known.len() < MAX_KNOWN {
                state.known.insert(dir.to_owned());
            }
            return Ok(());
        }
        let above = parent(dir);
        if above != dir {
            self.create_dir(above)?;
        }
        let made = self.step(Op::CreateDir { path: dir }, || fs::DirBuilder::new().mode(0o700).create(dir));
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made.map_err(fail)?,
        }
        self.sync_dir(above).map_err(fail)
    }

    /// Renames durably; what has the name `to` is replaced. Both lie on one file system.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.noted(to, self.rename_now(from, to))
    }

    fn rename_now(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let fail = |e| DiskError::new("rename to", to, e);
        self.step(Op::Rename { from, to }, || fs::rename(from, to)).map_err(fail)?;
        self.sync_dir(parent(to)).map_err(fail)?;
        match parent(from) == parent(to) {
            true => Ok(()),
            false => self.sync_dir(parent(from)).map_err(fail),
        }
    }

    /// Deletes a file durably. `false`: there was none.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn remove(&self, path: &Path) -> Result<bool, DiskError> {
        let fail = |e| DiskError::new("delete", path, e);
        match self.step(Op::Remove { path }, || fs::remove_file(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed.map_err(fail)?,
        }
        self.sync_dir(parent(path)).map_err(fail)?;
        Ok(true)
    }

    /// Reads a file of at most `max` bytes. `None`: there is none.
    ///
    /// # Errors
    /// Whatever the disk refuses, and a longer file.
    pub fn read(&self, path: &Path, max: u64) -> Result<Option<Vec<u8>>, DiskError> {
        let fail = |e| DiskError::new("read", path, e);
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(fail)?,
        };
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(fail)?;
        match bytes.len() as u64 > max {
            true => Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max} bytes")))),
            false => Ok(Some(bytes)),
        }
    }

    /// Opens a file (mode 0600), made if there is none, to append to it. It survives a power cut once it was synced and
    /// has been renamed to its final name ([`Disk::rename`]).
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn open(&self, path: &Path) -> Result<DiskFile, DiskError> {
        let opened = self
            .create_dir(parent(path))
            .and_then(|()| DiskFile::open(self.clone(), path).map_err(|e| DiskError::new("write", path, e)));
        self.noted(path, opened)
    }

    /// Makes an empty file (mode 0600) durably if there is none; its directory must exist.
    ///
    /// # Errors
    /// Whatever the disk refuses.
    pub fn touch(&self, path: &Path) -> Result<(), DiskError> {
        let fail = |e| DiskError::new("create", path, e);
        if !path.exists() {
            let id = FILES.fetch_add(1, Ordering::Relaxed);
            self.step(Op::Create { path, file: id }, || {
                OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
            })
            .map_err(fail)?;
        }
        // Also of a file that is there: perhaps it was made right before a crash.
        self.sync_dir(parent(path)).map_err(fail)
    }

    /// Deletes what interrupted writes left in a directory: files named `.NAME.tmp` that nobody writes now. One that does
    /// not exist has none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sweep(&self, dir: &Path) -> Result<(), DiskError> {
        let fail = |e| DiskError::new("read folder", dir, e);
        let listing = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listing => listing.map_err(fail)?,
        };
        for entry in listing {
            let entry = entry.map_err(fail)?;
            let path = entry.path();
            if !is_temporary(&entry.file_name()) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
            // The lock is held while it is deleted, so that no writer can begin with it.
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = self.step(Op::Remove { path: &path }, || fs::remove_file(&path));
            }
        }
        Ok(())
    }

    /// Syncs a directory, as far as its file system and our rights allow.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        self.step(Op::SyncDir { path: dir }, || {
            let handle = match File::open(dir) {
                // Readable by others only; its owner answers for it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
                handle => handle?,
            };
            match handle.sync_all() {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                synced => synced,
            }
        })
    }

    /// What could not be written lately, one text per directory; a later write there that succeeds ends it.
    pub fn troubles(&self) -> Vec<String> {
        self.state().troubles.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted<T>(&self, path: &Path, result: Result<T, DiskError>) -> Result<T, DiskError> {
        let mut state = self.state();
        match &result {
            Ok(_) => {
                state.troubles.remove(parent(path));
            }
            Err(error) if state.troubles.len() < MAX_TROUBLES => {
                state.troubles.insert(parent(path).to_owned(), error.to_string());
            }
            Err(_) => {}
        }
        result
    }

    fn look(&self, op: &Op<'_>) -> io::Result<()> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch.before(op))
    }

    /// Does one thing, if the watcher lets it, and tells the watcher that it was done.
    fn step<T>(&self, op: Op<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.look(&op)?;
        let done = act()?;
        if let Some(watch) = &self.watch {
            watch.after(&op);
        }
        Ok(done)
    }
}

/// Whether a file of this name is one that a write left or is using.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.len() > 5 && name.starts_with(b".") && name.ends_with(b".tmp")
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A name, shortened if its temporary file's would be too long.
fn stem(name: &OsStr) -> std::borrow::Cow<'_, OsStr> {
    match name.len() > MAX_STEM {
        false => name.into(),
        true => {
            let text = name.to_string_lossy();
            let mut end = MAX_STEM.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            OsString::from(&text[..end]).into()
        }
    }
}

/// The end of a chain of symbolic links, also when the last one dangles.
fn follow(path: &Path) -> io::Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    }
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().map_or_else(|| target.clone(), |parent| parent.join(&target)),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many symbolic links"))
}
