//! `trust.json`: nothing about trust is told to anybody before it is on the disk.
//!
//! The state machine changes memory at once. What follows from a change (messages, reports to the registry, the answer to
//! the user) waits for [`Shared::trust_durable`] or [`Shared::trust_kept`]. A save that fails is repeated until it
//! succeeds.

use crate::lock;
use crate::shared::Shared;
use crate::unix_now;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Format of `trust.json`. Files without the key `version`, as other versions write them, have this one.
const VERSION: u64 = 1;
/// Pause after a save that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How far the file is.
#[derive(Debug, Default)]
struct Saved {
    /// All changes up to this one are durable.
    durable: u64,
    /// The last save included this change.
    tried: u64,
    /// Why it failed, if it did.
    error: Option<String>,
}

/// What is on the disk of the changes so far.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// `None`: nothing is kept.
    pub(crate) path: Option<PathBuf>,
    dirty: Notify,
    /// Changes so far. Counted while the machine is locked.
    changes: AtomicU64,
    /// One save at a time, so that an older state never replaces a newer one.
    saving: tokio::sync::Mutex<()>,
    saved: watch::Sender<Saved>,
}

impl Keeper {
    pub(crate) fn new(path: Option<PathBuf>) -> Keeper {
        Keeper {
            path,
            dirty: Notify::new(),
            changes: AtomicU64::new(0),
            saving: tokio::sync::Mutex::default(),
            saved: watch::Sender::new(Saved::default()),
        }
    }

    /// Something changed. The machine is locked.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.dirty.notify_one();
    }
}

/// The file's format, if it is one that this program does not know.
pub(crate) fn newer(text: &str) -> Option<u64> {
    let file: serde_json::Value = serde_json::from_str(text).ok()?;
    file.get("version")?.as_u64().filter(|version| *version > VERSION)
}

impl Shared {
    /// Saves after changes; those that come while a save runs are saved together.
    pub(crate) async fn keep_saving(self: std::sync::Arc<Self>) {
        loop {
            self.trust.keeper.dirty.notified().await;
            while self.save_trust().await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Saves now.
    ///
    /// # Errors
    /// The file, the cause and what to do.
    pub(crate) async fn save_trust(&self) -> Result<(), String> {
        let keeper = &self.trust.keeper;
        let Some(path) = keeper.path.clone() else { return Ok(()) };
        let _one = keeper.saving.lock().await;
        let (text, tried) = {
            let machine = lock(&self.trust.machine);
            (machine.to_json(unix_now()), keeper.changes.load(Ordering::Relaxed))
        };
        let disk = self.config.disk.clone();
        let written = tokio::task::spawn_blocking(move || {
            disk.replace(&path, text.as_bytes()).map_err(|e| e.to_string())
        });
        let written = written.await.unwrap_or_else(|error| Err(error.to_string()));
        keeper.saved.send_modify(|saved| {
            if let Err(error) = &written
                && saved.error.as_ref() != Some(error)
            {
                // It stays in the status for as long as it is so.
                tracing::warn!(%error, "trust could not be saved; trying again");
            }
            saved.tried = tried;
            saved.error = written.clone().err();
            if written.is_ok() {
                saved.durable = tried;
            }
        });
        written
    }

    /// Changes so far, all actions of each included.
    fn trust_changes(&self) -> Option<u64> {
        self.trust.keeper.path.as_ref()?;
        let _machine = lock(&self.trust.machine);
        Some(self.trust.keeper.changes.load(Ordering::Relaxed))
    }

    /// Waits until all that changed so far is on the disk, however long that takes.
    pub(crate) async fn trust_durable(&self) {
        if let Some(want) = self.trust_changes() {
            // The sender lives as long as `self`.
            let _ = self.trust.keeper.saved.subscribe().wait_for(|saved| saved.durable >= want).await;
        }
    }

    /// The same for someone who waits for an answer.
    ///
    /// # Errors
    /// It could not be saved; that is tried again, and what follows from the change waits for it.
    pub(crate) async fn trust_kept(&self) -> Result<(), String> {
        let Some(want) = self.trust_changes() else { return Ok(()) };
        let mut saved = self.trust.keeper.saved.subscribe();
        let done = |saved: &Saved| saved.durable >= want || (saved.tried >= want && saved.error.is_some());
        match saved.wait_for(done).await {
            Ok(saved) if saved.durable < want => {
                let error = saved.error.as_deref().unwrap_or_default();
                Err(format!("done here, but not saved and told to nobody yet: {error}"))
            }
            // The sender lives as long as `self`.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_formats_to_come_are_newer() {
        for known in ["{\"trusted\":[]}", "{\"version\":1}", "{\"version\":\"1.18.0\"}", "not JSON", "[]"] {
            assert_eq!(newer(known), None, "{known}");
        }
        assert_eq!(newer("{\"trusted\":[],\"version\":2}"), Some(2));
    }
}
