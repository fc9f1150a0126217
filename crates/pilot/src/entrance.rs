//! Where nodes without UDP come in: what the registry told of it, kept beside the identity, and the use of it.

use crate::carrier::{Owner, Target, Way};
use crate::config::NodeConfig;
use crate::lock;
use crate::registry::Door;
use crate::shared::Shared;
use pilot_disk::Disk;
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// Failed attempts after which a node that has nothing else does not start.
const ATTEMPTS: u32 = 4;
const FILE: &str = "compat.json";
/// Largest file read, bytes.
const MAX_LEN: u64 = 16 * 1024;

/// The file: what which registry said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    registry: String,
    #[serde(flatten)]
    door: Door,
}

/// How the WebSocket fares.
#[derive(Debug, Clone, Default)]
struct Fate {
    open: bool,
    /// Of the last failure.
    cause: Option<String>,
    /// Failures in a row.
    failures: u32,
}

/// What is known.
#[derive(Debug)]
pub(crate) struct Entrance {
    path: Option<PathBuf>,
    disk: Disk,
    door: Mutex<Option<Door>>,
    news: Notify,
    fate: watch::Sender<Fate>,
}

impl Entrance {
    /// As kept of an earlier life, for the same registry. A file that cannot be read is as good as none: it is advice.
    pub(crate) fn load(config: &NodeConfig) -> Entrance {
        let path = config.identity_path.as_ref().map(|path| path.with_file_name(FILE));
        let text = path.as_ref().and_then(|path| {
            let small = std::fs::metadata(path).is_ok_and(|file| file.len() <= MAX_LEN);
            small.then(|| std::fs::read(path).ok()).flatten()
        });
        let kept = text.and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        let door = kept.filter(|kept| kept.registry == config.registry).and_then(|kept| kept.door.checked());
        Entrance {
            path,
            disk: config.disk.clone(),
            door: Mutex::new(door),
            news: Notify::new(),
            fate: watch::Sender::default(),
        }
    }

    pub(crate) fn door(&self) -> Option<Door> {
        lock(&self.door).clone()
    }

    /// Something a connection depends on is known now.
    pub(crate) fn changed(&self) {
        self.news.notify_one();
    }

    /// Waits for an open WebSocket, for some attempts; the error is the cause of the last failure.
    pub(crate) async fn opened(&self, limit: Duration) -> Result<(), String> {
        let mut fate = self.fate.subscribe();
        let decided = fate.wait_for(|fate| fate.open || fate.failures >= ATTEMPTS);
        let decided = timeout(limit, decided).await;
        if decided.is_ok_and(|fate| fate.is_ok_and(|fate| fate.open)) {
            return Ok(());
        }
        let cause = self.fate.borrow().cause.clone();
        Err(cause
            .unwrap_or_else(|| format!("the beacon's WebSocket is not open after {} s", limit.as_secs())))
    }
}

impl Shared {
    /// `udp` or `compat`, whichever carries datagrams now.
    pub(crate) fn transport(&self) -> &'static str {
        if self.on_websocket() { "compat" } else { "udp" }
    }

    /// Takes what `register_ok` says of it, and keeps it.
    pub(crate) fn learn_door(self: &Arc<Self>, answer: &Value) {
        let Some(door) = Door::of(answer) else { return };
        if lock(&self.entrance.door).replace(door.clone()).as_ref() == Some(&door) {
            return;
        }
        self.second_way();
        self.entrance.changed();
        let Some(path) = self.entrance.path.clone() else { return };
        let kept = Kept { registry: self.config.registry.clone(), door };
        let disk = self.entrance.disk.clone();
        tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec_pretty(&kept).unwrap_or_default();
            if let Err(error) = disk.replace(&path, &text) {
                tracing::warn!(%error, "the registry's address for networks without UDP is not kept");
            }
        });
    }

    /// Tells the registry's client of the listener with TLS.
    pub(crate) fn second_way(&self) {
        let Some(door) = self.entrance.door() else { return };
        let target = Target::find(&self.config, self.registry.host(), Some(&door)).ok().flatten();
        if let Some(target) = target.filter(Target::is_tls) {
            self.registry.set_second_way(&target.host, target.port, door.tls_fingerprint.as_deref());
        }
    }

    /// Tells registry and user when what carries datagrams changes.
    pub(crate) async fn keep_way(self: Arc<Self>) {
        let mut way = self.way.clone();
        loop {
            // The driver is gone only when the node stops.
            if way.changed().await.is_err() {
                return;
            }
            let transport = self.transport();
            match *way.borrow_and_update() {
                Way::WebSocket => tracing::warn!(
                    "the beacon does not answer over UDP; datagrams go through a WebSocket until it does"
                ),
                Way::Udp => tracing::info!("the beacon answers over UDP again"),
            }
            self.publish("transport.changed", json!({"transport": transport}));
            self.reregister.notify_one();
        }
    }
}

impl Owner for Shared {
    fn who(&self) -> Option<(Arc<Identity>, NodeId, Target)> {
        let (identity, node) = self.state(|s| (s.identity.clone(), s.node));
        let door = self.entrance.door();
        let target = Target::find(&self.config, self.registry.host(), door.as_ref());
        if let Err(problem) = &target {
            tracing::debug!(%problem, "no WebSocket");
        }
        Some((identity, node, target.ok().flatten()?)).filter(|_| node != 0)
    }

    fn network(&self) -> watch::Receiver<u64> {
        self.network.subscribe()
    }

    async fn changed(&self) {
        self.entrance.news.notified().await;
    }

    fn failed(&self, target: &Target, cause: &str) {
        let text = format!("no WebSocket to the beacon {target}: {cause}");
        tracing::warn!("{text}");
        self.entrance.fate.send_modify(|fate| {
            *fate = Fate { open: false, cause: Some(text), failures: fate.failures + 1 };
        });
    }

    fn opened(&self, target: &Target) {
        tracing::info!(%target, "WebSocket to the beacon open");
        self.entrance.fate.send_replace(Fate { open: true, ..Fate::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_said_is_known_after_a_restart_and_not_taken_for_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let identity_path = Some(dir.path().join("identity.json"));
        let config = |registry: &str| NodeConfig {
            registry: registry.into(),
            identity_path: identity_path.clone(),
            ..NodeConfig::default()
        };
        let door = Door { port: 443, tls: true, tls_fingerprint: Some("ab".repeat(32)), url: None };
        let kept = Kept { registry: "r:9000".into(), door: door.clone() };
        let write = |text: &[u8]| std::fs::write(dir.path().join(FILE), text).unwrap();
        assert_eq!(Entrance::load(&config("r:9000")).door(), None);
        write(&serde_json::to_vec(&kept).unwrap());
        assert_eq!(Entrance::load(&config("r:9000")).door(), Some(door));
        assert_eq!(Entrance::load(&config("other:9000")).door(), None);
        for broken in [
            &b"{"[..],
            b"{\"registry\":\"r:9000\",\"port\":0}",
            b"{\"registry\":\"r:9000\",\"port\":1,\"tls_fingerprint\":\"x\"}",
        ] {
            write(broken);
            assert_eq!(Entrance::load(&config("r:9000")).door(), None);
        }
    }
}
