//! Peers with which the session upgrade was had, and with which nothing less will do (docs/extensions.md, "Session
//! upgrade").
//!
//! The block that offers the upgrade can be cut off by whoever carries the frames. So a pair that has had it once insists
//! on it, until the operator says otherwise.

use super::{DialError, Engine, Event, SendError};
use crate::NodeId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Pinned peers; with further ones the upgrade works, but is not insisted on.
pub const MAX_PINS: usize = 16_384;
/// Sends of a key exchange from which refused answers count as the peer's last word, 1.75 s after the first. Before that the
/// refused frame may be an old one that somebody repeats while the peer's answer is under way.
const LAST_WORD: u32 = 4;
/// A valid block this recent shows that the peer does offer the upgrade.
const OFFERED: Duration = Duration::from_secs(2);
/// How long the last word counts; then what is sent has the peer asked anew. Longer than the pauses of an exchange.
const WORD_HOLDS: Duration = Duration::from_secs(10);

/// The pinned peers and the identity each had.
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<NodeId, [u8; 32]>);

impl Pins {
    /// This peer must come with the upgrade.
    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }
}

impl Engine {
    /// Replaces the pins by those stored; before the first contact with a peer.
    pub fn set_pins(&mut self, pins: impl IntoIterator<Item = (NodeId, [u8; 32])>) {
        self.pins = Pins(pins.into_iter().take(MAX_PINS).collect());
    }

    /// Forgets that the upgrade was had with a peer, on the operator's word. False: it was not pinned.
    pub fn clear_pin(&mut self, node: NodeId) -> bool {
        if let Some(upgrade) = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut()) {
            (upgrade.downgrades, upgrade.last_word) = (0, None);
            // Whatever the peer is now, it starts over.
            upgrade.reset();
            if self.streams.connections_with(node) > 0 {
                // They do not ask for a session by themselves.
                self.start_exchange(self.latest, node);
            }
        }
        self.pins.0.remove(&node).is_some()
    }

    /// The pinned peers and the identity each had, by node id.
    pub fn pins(&self) -> impl Iterator<Item = (NodeId, [u8; 32])> + '_ {
        self.pins.0.iter().map(|(node, key)| (*node, *key))
    }

    /// Nothing less than the upgrade is accepted from this peer: it is pinned, or has an upgraded session now.
    pub(super) fn insists(&self, node: NodeId) -> bool {
        let upgrade = self.peers.get(&node).and_then(|peer| peer.upgrade.as_ref());
        self.upgrades()
            && (self.pins.contains(node) || upgrade.is_some_and(|upgrade| upgrade.live(self.latest)))
    }

    pub(super) fn pin(&mut self, node: NodeId, key: [u8; 32]) {
        if self.pins.0.get(&node) == Some(&key) {
            return;
        }
        if self.pins.0.len() >= MAX_PINS && !self.pins.contains(node) {
            self.drops.pins_full += 1;
            return;
        }
        self.pins.0.insert(node, key);
        self.emit(Event::Pinned { node, key });
    }

    /// A frame without the upgrade came from a pinned peer. `signed`: the peer itself made it, at some time.
    pub(super) fn refuse_downgrade(&mut self, now: Instant, node: NodeId, frame: &'static str, signed: bool) {
        self.drops.downgrade_refused += 1;
        if signed && self.enter(now, node) {
            let Some(peer) = self.peers.get_mut(&node) else { return };
            let upgrade = peer.upgrade.get_or_insert_default();
            upgrade.downgrades += 1;
            let offered = upgrade.offered.is_some_and(|at| now.saturating_duration_since(at) < OFFERED);
            let insisted = peer.exchange.is_some_and(|exchange| exchange.attempts >= LAST_WORD);
            if insisted && !offered && !peer.linked(now) {
                if let Some(upgrade) = &mut peer.upgrade {
                    upgrade.last_word = Some(now);
                }
                self.streams.fail_dials(now, node, DialError::Downgrade(node));
                self.drop_pending(node);
            }
        }
        if self.security_event(now) {
            self.emit(Event::downgrade(node, frame, signed));
        }
    }

    /// Why nothing can be sent to a pinned peer that comes without the upgrade. Anybody can repeat an old frame of it, so one
    /// that we have not asked for is no reason.
    pub(super) fn downgraded(&self, now: Instant, node: NodeId) -> Option<SendError> {
        let said = self.peers.get(&node)?.upgrade.as_ref()?.last_word?;
        let holds = now.saturating_duration_since(said) < WORD_HOLDS;
        (holds && self.pins.contains(node)).then_some(SendError::Downgrade(node))
    }
}
