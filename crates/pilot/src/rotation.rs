//! Key rotation (spec 02 section 16) that a crash at any point does not turn into a lost identity.
//!
//! The new key is written to `identity.json.new`, durably, before the registry is asked, and becomes `identity.json` once the
//! registry has it. Whoever finds the file later does not know which key is in force; the registry does. A rotation that it
//! has not made is made then. Until it answers both keys are kept.

use crate::command::Command;
use crate::identity;
use crate::registry::RegistryError;
use crate::shared::Shared;
use pilot_disk::{Disk, DiskError};
use pilot_proto::NodeId;
use pilot_proto::crypto::{self, Identity};
use pilot_proto::registry::challenge;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A rotation that was begun and whose outcome is not known yet.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    fresh: Arc<Identity>,
    previous: Arc<Identity>,
    node: NodeId,
}

/// What `identity.json.new` says beside the keys of an identity file.
#[derive(Serialize, Deserialize)]
struct Journal {
    node_id: NodeId,
    previous_public_key: String,
}

/// Which key the registry has for the node.
enum Known {
    New,
    Previous,
    /// The node is not in the directory.
    Absent,
    /// Another one: this is not the registry of the rotation.
    Other,
}

fn journal(identity: &Path) -> PathBuf {
    let mut name = identity.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

impl Rotation {
    /// The rotation that was under way when an earlier process ended.
    pub(crate) fn load(
        disk: &Disk,
        path: &Path,
        current: &Arc<Identity>,
    ) -> Result<Option<Rotation>, String> {
        let file = journal(path);
        let Some(bytes) = disk.read(&file, identity::MAX_FILE).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(bytes);
        let broken = |why: &str| {
            format!(
                "{}: {why}; restore it from a backup, or remove it to stay with {}",
                file.display(),
                path.display()
            )
        };
        let text = std::str::from_utf8(&bytes).map_err(|e| broken(&e.to_string()))?;
        let fresh = Arc::new(identity::parse(text).map_err(|e| broken(&e))?);
        let Journal { node_id, previous_public_key } =
            serde_json::from_str(text).map_err(|e| broken(&e.to_string()))?;
        if fresh.public_key() == current.public_key() {
            // It was done but for this.
            disk.remove(&file).map_err(|e| e.to_string())?;
            return Ok(None);
        }
        if previous_public_key != current.public_key_base64() {
            return Err(broken("it holds the rotation of another identity"));
        }
        Ok(Some(Rotation { fresh, previous: current.clone(), node: node_id }))
    }

    /// Whether a rotation lies beside an identity file that is missing.
    pub(crate) fn orphaned(path: &Path) -> Option<String> {
        let file = journal(path);
        let orphaned = !path.exists() && file.exists();
        orphaned.then(|| {
            format!(
                "identity file {} is missing, but {} holds the new key of a rotation that was under way; restore the \
                 file from a backup, rename the other one to it, or remove that",
                path.display(),
                file.display()
            )
        })
    }

    fn save(&self, disk: &Disk, path: &Path) -> Result<(), DiskError> {
        let keys = identity::text(&self.fresh);
        // One JSON object made of two; both are ours.
        let mut whole: Value = serde_json::from_slice(&keys).unwrap_or_default();
        whole["node_id"] = self.node.into();
        whole["previous_public_key"] = self.previous.public_key_base64().into();
        let text = Zeroizing::new(format!("{whole:#}"));
        disk.replace(&journal(path), text.as_bytes())
    }
}

impl Shared {
    /// Runs `write` on a thread that may block.
    async fn on_disk(
        &self,
        write: impl FnOnce(&Disk, &Path) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<(), String> {
        let Some(path) = self.config.identity_path.clone() else { return Ok(()) };
        let disk = self.config.disk.clone();
        let written = tokio::task::spawn_blocking(move || write(&disk, &path).map_err(|e| e.to_string()));
        written.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Makes a new key, has the registry bind the node to it, and uses it from then on.
    pub(crate) async fn rotate(self: &Arc<Self>) -> Result<Value, RegistryError> {
        let mut pending = self.rotation.lock().await;
        self.settle(&mut pending).await?;
        if pending.is_some() {
            return Err(RegistryError::Refused(
                "an earlier rotation is not settled yet: see the warnings of `pilotctl info`".into(),
            ));
        }
        let fresh = Arc::new(identity::generate().map_err(RegistryError::Unreachable)?);
        let (node, previous) = self.state(|s| (s.node, s.identity.clone()));
        let rotation = Rotation { fresh, previous, node };
        let saved = rotation.clone();
        let unsaved = |e| {
            RegistryError::Unreachable(format!("the new key cannot be kept, so nothing was changed: {e}"))
        };
        self.on_disk(move |disk, path| saved.save(disk, path)).await.map_err(unsaved)?;
        *pending = Some(rotation.clone());
        let error = match self.ask_rotation(&rotation).await {
            Ok(answer) => {
                self.adopt(&mut pending).await;
                return Ok(answer);
            }
            Err(error) => error,
        };
        // No answer, or one to a request that was repeated: the registry's record tells.
        match (self.known(&rotation).await, &error) {
            (Ok(Known::New), _) => {
                self.adopt(&mut pending).await;
                Ok(json!({
                    "type": "rotate_key_ok",
                    "node_id": node,
                    "address": pilot_proto::Addr::backbone(node).to_string(),
                    "public_key": rotation.fresh.public_key_base64(),
                }))
            }
            (Ok(Known::Previous), RegistryError::Refused(_)) => {
                self.abandon(&mut pending).await;
                Err(error)
            }
            _ => {
                self.warn(format!(
                    "the registry did not answer a key rotation ({error}); it is finished when the registry answers"
                ));
                Err(error)
            }
        }
    }

    /// Finds out which key is in force if a rotation was interrupted.
    ///
    /// # Errors
    /// The registry does not answer. Nothing has changed then.
    pub(crate) async fn settle_rotation(self: &Arc<Self>) -> Result<(), RegistryError> {
        self.settle(&mut *self.rotation.lock().await).await
    }

    async fn settle(self: &Arc<Self>, pending: &mut Option<Rotation>) -> Result<(), RegistryError> {
        let Some(rotation) = pending.clone() else { return Ok(()) };
        let known = match self.known(&rotation).await? {
            Known::Absent => self.bring_back(&rotation).await?,
            known => known,
        };
        match known {
            Known::New => self.adopt(pending).await,
            Known::Previous => match self.ask_rotation(&rotation).await {
                Ok(_) => self.adopt(pending).await,
                // Perhaps the first request was only slow.
                Err(RegistryError::Refused(text)) => match self.known(&rotation).await? {
                    Known::New => self.adopt(pending).await,
                    _ => {
                        self.warn(format!("an interrupted key rotation was given up: {text}"));
                        self.abandon(pending).await;
                    }
                },
                Err(error) => return Err(error),
            },
            Known::Absent | Known::Other => self.warn(format!(
                "a key rotation was interrupted, and registry {} knows node {} with neither key; start once with the \
                 registry of the rotation, or remove the file with the name of the identity file and .new",
                self.registry.address(),
                rotation.node
            )),
        }
        Ok(())
    }

    async fn ask_rotation(&self, rotation: &Rotation) -> Result<Value, RegistryError> {
        let key = rotation.fresh.public_key_base64();
        let signature = rotation.previous.sign_text(&challenge::rotate(rotation.node, &key));
        self.registry.set_signer(rotation.previous.clone(), rotation.node);
        let request = json!({
            "type": "rotate_key",
            "node_id": rotation.node,
            "new_public_key": key,
            "signature": signature,
        });
        self.registry.request(request).await
    }

    async fn known(&self, rotation: &Rotation) -> Result<Known, RegistryError> {
        let record = match self.registry.request(json!({"type": "lookup", "node_id": rotation.node})).await {
            Ok(record) => record,
            Err(RegistryError::Refused(_)) => return Ok(Known::Absent),
            Err(error) => return Err(error),
        };
        let key = record["public_key"].as_str().and_then(crypto::unbase64);
        Ok(match key {
            Some(key) if key == *rotation.fresh.public_key() => Known::New,
            Some(key) if key == *rotation.previous.public_key() => Known::Previous,
            _ => Known::Other,
        })
    }

    /// A node that is not in the directory keeps its id for its key: registering shows whose it is. The wrong key gets an
    /// id of its own, which is given back.
    async fn bring_back(&self, rotation: &Rotation) -> Result<Known, RegistryError> {
        for (identity, known) in [(&rotation.previous, Known::Previous), (&rotation.fresh, Known::New)] {
            let (request, _) = self.registration(identity);
            let answer = self.registry.request(request).await?;
            if answer["node_id"] == rotation.node {
                return Ok(known);
            }
            if let Some(id) = answer["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok()) {
                let signature = identity.sign_text(&challenge::own("deregister", id));
                let request = json!({"type": "deregister", "node_id": id, "signature": signature});
                let _ = self.registry.request(request).await;
            }
        }
        Ok(Known::Absent)
    }

    /// The new key is in force.
    async fn adopt(self: &Arc<Self>, pending: &mut Option<Rotation>) {
        let Some(Rotation { fresh, node, .. }) = pending.clone() else { return };
        let registered = self.state(|s| {
            s.identity = fresh.clone();
            s.key_generation = s.key_generation.saturating_add(1);
            s.node != 0
        });
        if registered {
            self.registry.set_signer(fresh.clone(), node);
            self.command(Command::Identity(fresh.clone(), node));
            self.trust_identity(node, fresh.clone());
        }
        let key = fresh.public_key_base64();
        let promoted = self.on_disk(move |disk, path| {
            identity::save(disk, path, &fresh)?;
            disk.remove(&journal(path)).map(|_| ())
        });
        match promoted.await {
            Ok(()) => *pending = None,
            Err(error) => self.warn(format!(
                "the new key is in force and could not be moved to its place yet, do not remove the file beside it: \
                 {error}"
            )),
        }
        if registered {
            self.renew_record(true).await;
        }
        self.publish("key.rotated", json!({"node_id": node, "public_key": key}));
    }

    /// The old key stays in force.
    async fn abandon(&self, pending: &mut Option<Rotation>) {
        match self.on_disk(|disk, path| disk.remove(&journal(path)).map(|_| ())).await {
            Ok(()) => *pending = None,
            Err(error) => self.warn(format!("a refused key rotation is kept: {error}")),
        }
    }
}
