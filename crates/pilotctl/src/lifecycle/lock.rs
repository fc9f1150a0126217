//! Pid files that cannot go stale: the process holds a record lock on its pid file as long as it lives, and the
//! kernel tells anybody who asks which process that is.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A held pid file; removed and released when dropped.
#[derive(Debug)]
pub struct PidLock {
    path: PathBuf,
    // A record lock lives as long as the file is open.
    _file: File,
}

impl PidLock {
    /// Takes the pid file and writes this process's number into it. `Ok(Err(pid))`: that process holds it.
    pub fn acquire(path: &Path) -> io::Result<Result<PidLock, u32>> {
        loop {
            let file = open(path)?;
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => match holder_of(&file)? {
                    Some(pid) => return Ok(Err(pid)),
                    None => continue,
                },
                Err(e) => return Err(e.into()),
            }
            // The former holder may have removed the file between our opening and our locking it.
            let same =
                fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()));
            if !same {
                continue;
            }
            let mut file = file;
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            return Ok(Ok(PidLock { path: path.to_owned(), _file: file }));
        }
    }

    /// Waits until nobody else holds the file. For short critical sections; the file stays.
    pub fn wait(path: &Path) -> io::Result<File> {
        let file = open(path)?;
        rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// The process that holds the pid file.
    pub fn holder(path: &Path) -> io::Result<Option<u32>> {
        match File::open(path) {
            Ok(file) => holder_of(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for PidLock {
    fn drop(&mut self) {
        // Removed while still held, so nobody can have taken the name over.
        let _ = fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn holder_of(file: &File) -> io::Result<Option<u32>> {
    let question = Flock::from(FlockType::WriteLock);
    let Some(held) = fcntl_getlk(file, &question)? else { return Ok(None) };
    let pid = held.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    // In another pid namespace the kernel does not say who; the file does.
    Ok(Some(pid.unwrap_or_else(|| number_in(file))))
}

fn number_in(mut file: &File) -> u32 {
    let mut text = String::new();
    let _ = io::Seek::rewind(&mut file).and_then(|()| io::Read::read_to_string(&mut file, &mut text));
    text.trim().parse().unwrap_or(0)
}

/// A process number for the system calls; 0 and out-of-range numbers are no process.
pub fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_without_a_living_holder_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        assert_eq!(PidLock::holder(&path).unwrap(), None, "missing");
        fs::write(&path, "1").unwrap();
        assert_eq!(PidLock::holder(&path).unwrap(), None, "process 1 lives but holds nothing");
    }

    #[test]
    fn taking_and_dropping_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let lock = PidLock::acquire(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(lock);
        assert!(!path.exists());
    }
}
