//! How far the registry is believed about keys.
//!
//! The registry introduces nodes to each other, no more: once a key is pinned (by trust, or by the first session that
//! proved it), an answer that names another one is a *dispute*. It is announced (`security.key_changed`, a warning with
//! both fingerprints) and changes nothing: the pinned key goes on working, the other one opens no session. It ends when
//! the operator accepts the new key by shaking hands again, or approving the peer's request.
//!
//! If somebody also proves to hold the other key, trust in the node ends (spec 06 section 2.9).

use crate::command::Command;
use crate::registry::RegistryError;
use crate::shared::Shared;
use crate::{lock, unix_now};
use pilot_proto::NodeId;
use pilot_proto::crypto::{constant_time_eq, fingerprint, unbase64};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Disputes remembered; beyond it one gives way, and is announced again when it comes up again.
const MAX_DISPUTES: usize = 256;
/// Addresses of live peers are noted this often, and changes saved at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// A new key is saved this soon.
const SAVE_SOON: Duration = Duration::from_millis(200);

/// Nodes for which the registry names another key than the pinned one: this one.
#[derive(Debug, Default)]
pub(crate) struct Disputes(Mutex<BTreeMap<NodeId, [u8; 32]>>);

impl Disputes {
    fn get(&self, node: NodeId) -> Option<[u8; 32]> {
        lock(&self.0).get(&node).copied()
    }

    /// True: it is news.
    fn note(&self, node: NodeId, shown: [u8; 32]) -> bool {
        let mut disputes = lock(&self.0);
        if disputes.len() >= MAX_DISPUTES && !disputes.contains_key(&node) {
            disputes.pop_first();
        }
        disputes.insert(node, shown) != Some(shown)
    }

    fn settle(&self, node: NodeId) -> Option<[u8; 32]> {
        lock(&self.0).remove(&node)
    }
}

/// What the operator reads.
fn alarm(node: NodeId, pinned: &[u8; 32], shown: &[u8; 32]) -> String {
    format!(
        "the registry names another key for node {node} than the one it proved before: {} now, {} pinned; the new key is \
         refused. If the peer says that it rotated its key, and its `pilotctl info` shows the new one, accept it with \
         `pilotctl handshake {node}`; if not, the registry or the way to it is not to be trusted",
        fingerprint(shown),
        fingerprint(pinned)
    )
}

impl Shared {
    /// The key a node is bound to: by trust, else by the first session with it.
    fn pinned_key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.trust.pinned_key(node).or_else(|| self.peers.get(node).map(|known| known.key))
    }

    /// The key to believe, given what the registry says; a contradiction is announced.
    pub(crate) fn judge_key(&self, node: NodeId, answer: &Result<Value, RegistryError>) -> Option<[u8; 32]> {
        let shown = answer.as_ref().ok().and_then(|record| unbase64(record["public_key"].as_str()?));
        let Some(pinned) = self.pinned_key(node) else { return shown };
        match shown {
            Some(shown) if !constant_time_eq(&pinned, &shown) => self.dispute(node, &pinned, shown),
            Some(_) => self.dispute_over(node),
            // A registry that is away, or has forgotten the node, takes nothing from a known peer.
            None => {}
        }
        Some(pinned)
    }

    fn dispute(&self, node: NodeId, pinned: &[u8; 32], shown: [u8; 32]) {
        let text = alarm(node, pinned, &shown);
        self.command(Command::DisputedKey(node, shown, text.clone()));
        if self.disputes.note(node, shown) {
            self.warn(text);
            self.publish(
                "security.key_changed",
                json!({
                    "peer_node_id": node, "pinned": fingerprint(pinned), "shown": fingerprint(&shown), "source": "registry",
                }),
            );
        }
    }

    fn dispute_over(&self, node: NodeId) {
        if self.disputes.settle(node).is_some() {
            let start = format!("the registry names another key for node {node} ");
            self.state(|s| s.warnings.retain(|warning| !warning.starts_with(&start)));
        }
    }

    /// The registry's key for a node, as far as it is believed.
    pub(crate) async fn believed_key(&self, node: NodeId) -> Option<[u8; 32]> {
        if self.registry_away()
            && let Some(pinned) = self.pinned_key(node)
        {
            return Some(pinned);
        }
        let answer = self.lookup(node).await;
        self.judge_key(node, &answer)
    }

    /// Answers the engine's question for a key.
    pub(crate) async fn answer_key(&self, node: NodeId) {
        // A pinned key is the answer whatever the registry says: the key exchange need not wait for it.
        let pinned = self.pinned_key(node);
        if pinned.is_some() {
            self.command(Command::PeerKey(node, pinned));
        }
        let key = self.believed_key(node).await;
        if pinned.is_none() || key != pinned {
            self.command(Command::PeerKey(node, key));
        }
    }

    /// A session proved that its peer holds this key.
    pub(crate) fn key_proven(self: &Arc<Self>, node: NodeId, key: [u8; 32]) {
        self.peers.proven(unix_now(), node, &key);
        self.remember_route(node);
        self.trust_key_known(node, key);
    }

    /// Somebody holds the key the registry names for a node whose pinned key is another.
    pub(crate) fn other_key_proven(self: &Arc<Self>, node: NodeId, key: [u8; 32]) {
        // It may have been settled meanwhile.
        if self.disputes.get(node) == Some(key) {
            self.trust_key_known(node, key);
        }
    }

    /// The operator wants to deal with this node: a dispute they were told of is settled in favour of the new key. One they
    /// could not know of yet is the error.
    pub(crate) async fn consent(self: &Arc<Self>, node: NodeId) -> Result<(), String> {
        if let Some(shown) = self.disputes.get(node) {
            self.dispute_over(node);
            self.peers.accept(unix_now(), node, &shown);
            self.trust_key_known(node, shown);
            self.command(Command::PeerKey(node, Some(shown)));
            tracing::warn!(
                peer = node,
                key = fingerprint(&shown),
                "the operator accepts another key of this node"
            );
            return Ok(());
        }
        if self.pinned_key(node).is_some() {
            self.believed_key(node).await;
            if let (Some(shown), Some(pinned)) = (self.disputes.get(node), self.pinned_key(node)) {
                return Err(alarm(node, &pinned, &shown));
            }
        }
        Ok(())
    }

    /// The registry has told its name.
    pub(crate) fn registry_named(&self, name: &str) {
        let addr = self.registry.address();
        if self.peers.set_registry(name, addr) {
            self.warn(format!(
                "the registry at {addr} is another one than before: it knows none of the keys, numbers and trust of the old \
                 one. If nobody set it up anew, it is not to be trusted"
            ));
            self.publish("security.registry_changed", json!({"registry": addr, "registry_id": name}));
        }
    }

    /// Notes where live peers are, and saves what is known about peers.
    pub(crate) async fn keep_peers(self: Arc<Self>) {
        let mut look = tokio::time::interval(SAVE_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.peers.changed() => tokio::time::sleep(SAVE_SOON).await,
                _ = look.tick() => {
                    if self.note_peers().await {
                        self.peers.touch();
                    }
                    continue;
                }
            }
            self.save_peers().await;
        }
    }

    /// True: there are some.
    pub(crate) async fn note_peers(&self) -> bool {
        let now = unix_now();
        let mut any = false;
        for peer in self.engine_status().await.peers {
            if peer.authenticated {
                let direct = Some(&peer.endpoint).filter(|_| !peer.relay).and_then(|at| at.parse().ok());
                self.peers.seen(now, peer.node_id, direct);
                any = true;
            }
        }
        any
    }

    pub(crate) async fn save_peers(&self) {
        self.note_peers().await;
        if let Err(error) = self.peers.save(&self.config.disk).await {
            self.warn(format!("keys and addresses of peers could not be saved: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disputes_are_news_once_and_bounded() {
        let disputes = Disputes::default();
        assert!(disputes.note(7, [1; 32]));
        assert!(!disputes.note(7, [1; 32]));
        assert!(disputes.note(7, [2; 32]), "yet another key");
        for node in 100..100 + u32::try_from(MAX_DISPUTES).unwrap() {
            disputes.note(node, [1; 32]);
        }
        assert_eq!(lock(&disputes.0).len(), MAX_DISPUTES);
        assert_eq!(disputes.settle(100), Some([1; 32]));
        assert_eq!(disputes.settle(100), None);
    }

    #[test]
    fn the_alarm_names_both_keys_and_the_way_out() {
        let text = alarm(7, &[1; 32], &[2; 32]);
        assert!(text.contains(&fingerprint(&[1; 32])) && text.contains(&fingerprint(&[2; 32])), "{text}");
        assert!(text.contains("pilotctl handshake 7"), "{text}");
    }
}
