//! Names of stored files that do not collide, and room for them.

use pilot_disk::DiskError;
use pilot_proto::service::names;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a message or file was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not fit.
    #[error("{0}")]
    Full(String),
    /// The disk does not take it. The text is for the operator.
    #[error("{0}")]
    Disk(#[from] DiskError),
}

impl StoreError {
    /// The text for the sender, who need not know our paths.
    pub fn for_sender(&self) -> String {
        match self {
            StoreError::Full(text) => text.clone(),
            StoreError::Disk(error) => for_sender(error),
        }
    }
}

/// A disk's error for the sender of what was to be stored.
pub fn for_sender(error: &DiskError) -> String {
    format!("receiver cannot store it: {}", error.cause())
}

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

/// Bytes a user without privileges may still write to the file system of `dir`; `None` if unknown.
pub fn free_space(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
