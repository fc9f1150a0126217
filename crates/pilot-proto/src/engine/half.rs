//! Our half of the sessions: the X25519 key with which peers agree on session keys (spec 02 sections 1 and 4).
//!
//! One key serves all peers. A session that ends takes our send counter and the record of the frames it has seen
//! with it. Agreed anew under the same two keys it would have the same cipher key, so the peer would take our frames
//! for replays (spec 02 section 9) and we would take recordings of its frames for new ones. Therefore a peer with
//! which a session has ended gets a fresh key of ours: it sees a rekey and starts over, too.

use super::Engine;
use crate::NodeId;
use crate::crypto::{Identity, SessionKey, TunnelSecret};
use crate::tunnel::pending::Taken;
use crate::wire::capability::{self, Kind, Terms};
use crate::wire::frame::{self, PILA_LEN, PILK_LEN};
use rand_core::Rng as _;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Nodes outside the peer table with which a session has ended. One more, and all new peers get a fresh key.
const MAX_ENDED: usize = 1024;

/// A tunnel key and the frames that announce it.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) secret: Arc<TunnelSecret>,
    /// Our signed key exchange.
    pub(super) pila: [u8; PILA_LEN],
    /// The same with a greeting for anybody behind it; just the same with the session upgrade off.
    pub(super) hello: Vec<u8>,
    /// Our key request.
    pub(super) pilk: [u8; PILK_LEN],
}

impl Half {
    pub(super) fn new(secret: Arc<TunnelSecret>, identity: &Identity, node: NodeId, upgrade: bool) -> Half {
        let x25519 = *secret.public_key();
        let signature = identity.sign(&frame::pila_signed(node, &x25519));
        let pila = frame::pila(node, &x25519, identity.public_key(), &signature);
        let greeting = Terms::default().greeting();
        let hello = match upgrade {
            true => capability::frame(identity, &pila, Kind::Hello, 0, 0, &greeting),
            false => pila.to_vec(),
        };
        Half { pila, hello, pilk: frame::pilk(node, &x25519), secret }
    }

    /// The session key agreed with a peer's key; `None` if that one is of low order.
    pub(super) fn session_key(&self, peer: &[u8; 32]) -> Option<SessionKey> {
        self.secret.session_key(peer)
    }
}

impl Engine {
    /// The half for exchanges with a node.
    pub(super) fn half(&self, node: NodeId) -> &Half {
        self.peers.get(&node).map_or(&self.half, |peer| &peer.half)
    }

    fn fresh_half(&mut self) -> Arc<Half> {
        let mut bytes = Zeroizing::new([0; 32]);
        self.rng.fill_bytes(&mut bytes[..]);
        // Every 32-byte string is a valid X25519 private key (RFC 7748 section 5): only the length is checked.
        let secret = TunnelSecret::from_bytes(&bytes).expect("32 bytes are an X25519 key");
        Arc::new(Half::new(Arc::new(secret), &self.identity, self.node, self.config.session_upgrade))
    }

    /// The half for a node that enters the peer table, and what was taken from it before.
    pub(super) fn half_for_new_peer(&mut self, node: NodeId) -> (Arc<Half>, Taken) {
        match self.ended.remove(&node) {
            Some(taken) => (self.fresh_half(), taken),
            None => (self.half.clone(), Taken::default()),
        }
    }

    /// The session with a peer of the table has ended on our side.
    pub(super) fn renew_half(&mut self, node: NodeId) {
        let half = self.fresh_half();
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.half = half;
        }
    }

    /// A peer with which there was a session has left the table.
    pub(super) fn retire_half(&mut self, node: NodeId, taken: Taken) {
        if self.ended.len() >= MAX_ENDED {
            self.ended.clear();
            self.half = self.fresh_half();
        } else {
            self.ended.insert(node, taken);
        }
    }

    /// Signs all halves anew, under another identity or for another node id.
    pub(super) fn sign_halves(&mut self) {
        let (identity, node, upgrade) = (&self.identity, self.node, self.config.session_upgrade);
        let common = Arc::new(Half::new(self.half.secret.clone(), identity, node, upgrade));
        for peer in self.peers.values_mut() {
            peer.half = if Arc::ptr_eq(&peer.half, &self.half) {
                common.clone()
            } else {
                Arc::new(Half::new(peer.half.secret.clone(), identity, node, upgrade))
            };
        }
        self.half = common;
    }
}
