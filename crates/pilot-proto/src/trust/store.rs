//! `trust.json` (spec 06 section 2.10).

use super::{
    Action, MAX_OUTGOING, MAX_PENDING, MAX_REVOKED, MAX_TRUSTED, Pending, REQUEST_LIFETIME_SECS, Trust,
    Trusted, rfc3339,
};
use crate::{NodeId, crypto};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct File {
    trusted: Option<Vec<TrustedEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Vec<PendingEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<Vec<RevokedEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outgoing: Option<Vec<OutgoingEntry>>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct TrustedEntry {
    node_id: NodeId,
    public_key: String,
    approved_at: String,
    mutual: bool,
    #[serde(skip_serializing_if = "is_zero")]
    network: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry: Option<String>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct PendingEntry {
    node_id: NodeId,
    #[serde(skip_serializing_if = "String::is_empty")]
    public_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    justification: String,
    received_at: String,
    #[serde(skip_serializing_if = "is_zero")]
    source: u32,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct RevokedEntry {
    node_id: NodeId,
    until: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct OutgoingEntry {
    node_id: NodeId,
    sent_at: String,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `trust.json` could not be read; the state is unchanged. Keep the file (under another name) before the next save
/// replaces it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("trust.json is not valid: {0}")]
pub struct LoadError(pub String);

/// A key as a file carries it: `Some(None)` if empty, `None` if malformed.
fn key(text: &str) -> Option<Option<[u8; 32]>> {
    match text {
        "" => Some(None),
        text => crypto::unbase64(text).map(Some),
    }
}

impl Trust {
    /// Takes over the contents of `trust.json`, at start. Returns how many entries were skipped because a time or a
    /// key in them is malformed or a table is full.
    ///
    /// # Errors
    /// The text is not JSON of the right shape.
    pub fn load(&mut self, now_unix: u64, text: &str) -> Result<usize, LoadError> {
        let file: File = serde_json::from_str(text).map_err(|error| LoadError(error.to_string()))?;
        let mut skipped = 0;
        for entry in file.trusted.unwrap_or_default() {
            let (Some(key), Some(approved_at)) = (key(&entry.public_key), rfc3339::parse(&entry.approved_at))
            else {
                skipped += 1;
                continue;
            };
            if self.trusted.len() + self.foreign.len() >= MAX_TRUSTED {
                skipped += 1;
                continue;
            }
            let TrustedEntry { node_id, mutual, network, registry, .. } = entry;
            self.foreign.push((node_id, Trusted { key, approved_at, mutual, network, registry }));
        }
        self.activate();
        for entry in file.pending.unwrap_or_default() {
            match (key(&entry.public_key), rfc3339::parse(&entry.received_at)) {
                (Some(key), Some(received_at)) if self.pending.len() < MAX_PENDING => {
                    let source = if entry.source == 0 { entry.node_id } else { entry.source };
                    let justification = super::message::clean(&entry.justification);
                    self.pending.insert(entry.node_id, Pending { key, justification, received_at, source });
                }
                _ => skipped += 1,
            }
        }
        for entry in file.revoked.unwrap_or_default() {
            match rfc3339::parse(&entry.until) {
                Some(until) if until <= now_unix => {}
                Some(until) if self.revoked.len() < MAX_REVOKED => {
                    self.revoked.insert(entry.node_id, until);
                }
                _ => skipped += 1,
            }
        }
        for entry in file.outgoing.unwrap_or_default() {
            match rfc3339::parse(&entry.sent_at) {
                Some(at) if now_unix.saturating_sub(at) > REQUEST_LIFETIME_SECS => {}
                Some(at) if self.outgoing.len() < MAX_OUTGOING => {
                    self.outgoing.insert(entry.node_id, at);
                }
                _ => skipped += 1,
            }
        }
        Ok(skipped)
    }

    /// The contents of `trust.json`: two spaces of indentation, lists ordered by node. Only unexpired cool-downs are
    /// written.
    pub fn to_json(&self, now_unix: u64) -> String {
        let some = |empty: bool| if empty { None } else { Some(()) };
        let all = self.trusted.iter().chain(self.foreign.iter().map(|(node, record)| (node, record)));
        let trusted: Vec<TrustedEntry> = all
            .map(|(node, record)| TrustedEntry {
                node_id: *node,
                public_key: record.key_base64(),
                approved_at: rfc3339::format(record.approved_at),
                mutual: record.mutual,
                network: record.network,
                registry: record.registry.clone(),
            })
            .collect();
        let pending = self.pending.iter().map(|(node, entry)| PendingEntry {
            node_id: *node,
            public_key: entry.key_base64(),
            justification: entry.justification.clone(),
            received_at: rfc3339::format(entry.received_at),
            source: entry.source,
        });
        let revoked: Vec<RevokedEntry> = self
            .revoked
            .iter()
            .filter(|(_, until)| **until > now_unix)
            .map(|(node, until)| RevokedEntry { node_id: *node, until: rfc3339::format(*until) })
            .collect();
        let outgoing = self
            .outgoing
            .iter()
            .map(|(node, at)| OutgoingEntry { node_id: *node, sent_at: rfc3339::format(*at) });
        let file = File {
            trusted: some(trusted.is_empty()).map(|()| trusted),
            pending: some(self.pending.is_empty()).map(|()| pending.collect()),
            revoked: some(revoked.is_empty()).map(|()| revoked),
            outgoing: some(self.outgoing.is_empty()).map(|()| outgoing.collect()),
        };
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }

    /// Names the registry this node is registered with. Records of another one become inactive, records of this one
    /// active; a record that names none is taken to be of this one.
    pub fn set_registry(&mut self, name: &str) {
        if self.config.registry.as_deref() == Some(name) {
            return;
        }
        self.config.registry = Some(name.to_owned());
        for (node, record) in std::mem::take(&mut self.trusted) {
            self.push(Action::SetTrusted(node, false));
            self.foreign.push((node, record));
        }
        self.activate();
        self.save();
    }

    /// Moves the records of the current registry from `foreign` to `trusted`.
    fn activate(&mut self) {
        let current = self.config.registry.clone();
        for (node, mut record) in std::mem::take(&mut self.foreign) {
            if record.registry.is_none() {
                record.registry = current.clone();
            }
            let ours = current.is_none() || record.registry == current;
            if !ours || self.trusted.contains_key(&node) {
                self.foreign.push((node, record));
                continue;
            }
            self.trusted.insert(node, record);
            // A deactivation of the same record that is still queued is void.
            match self.actions.iter().position(|action| *action == Action::SetTrusted(node, false)) {
                Some(at) => drop(self.actions.remove(at)),
                None => self.actions.push_back(Action::SetTrusted(node, true)),
            }
        }
    }
}
