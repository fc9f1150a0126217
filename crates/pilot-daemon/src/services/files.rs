//! Files that survive: names that do not collide, writes that are complete or absent.

use pilot_proto::service::names;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers everything this process stores, in the inbox and in `received`, from 1.
#[derive(Debug, Default)]
pub struct Stamps(AtomicU64);

impl Stamps {
    /// Time and number for the next name. Times are UTC, so that names sort by age whatever the zone does.
    pub fn next(&self) -> String {
        let now = since_epoch();
        names::stamp(now.as_secs(), now.subsec_millis(), 0, self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Time since 1970-01-01T00:00:00Z; zero if the clock is set before.
pub fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Creates a directory (0700) and its parents.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes renames in a directory durable, as far as the file system can.
pub fn sync_dir(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

/// Writes a file (0600) so that it is there completely or not at all, also after a power cut.
pub fn write_atomic(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    } else if let Some(dir) = path.parent() {
        sync_dir(dir);
    }
    written
}

/// Bytes a user without privileges may still write to the file system of `dir`; `None` if unknown.
pub fn free_space(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
