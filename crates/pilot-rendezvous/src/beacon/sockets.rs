//! Nodes that reach this beacon over a WebSocket (spec 04 section 17). They have proven their key, so nothing is weighed
//! here; they have no UDP address, so none is stored.

use super::relay::Frames;
use super::{Beacon, NOTIFY_INTERVAL, canonical};
use crate::compat::{Arrival, Outlet};
use pilot_proto::NodeId;
use pilot_proto::wire::beacon::{Message, NOTIFY_HANDSHAKE};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

#[derive(Debug)]
struct Socket {
    serial: u64,
    /// The other end of its connection: the node or its proxy.
    peer: SocketAddr,
    outlet: Outlet,
    notified: Option<Instant>,
}

/// By node. As many as there are connections.
#[derive(Debug, Default)]
pub(super) struct Sockets(HashMap<NodeId, Socket>);

impl Sockets {
    pub fn has(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.keys().copied()
    }

    /// Leaves a datagram for a node; false: there is no room.
    pub fn push(&self, node: NodeId, datagram: &[u8]) -> bool {
        self.0.get(&node).is_some_and(|socket| socket.outlet.push(datagram))
    }

    fn say(&self, node: NodeId, message: &Message<'_>) -> bool {
        let mut out = Vec::with_capacity(32);
        message.emit(&mut out);
        self.push(node, &out)
    }

    /// Something waits for the node at the registry.
    pub fn notify(&mut self, node: NodeId, now: Instant) {
        let Some(socket) = self.0.get_mut(&node) else { return };
        if socket.notified.is_none_or(|at| now.saturating_duration_since(at) >= NOTIFY_INTERVAL) {
            socket.notified = Some(now);
            self.say(node, &Message::Notify { kind: NOTIFY_HANDSHAKE });
        }
    }
}

impl Beacon {
    /// Takes what a WebSocket brings.
    pub fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Joined { node, serial, peer, outlet } => {
                let socket = Socket { serial, peer: canonical(peer), outlet, notified: None };
                // The one before is dropped, which closes its connection.
                self.sockets.0.insert(node, socket);
                self.routes.remove(&node);
            }
            Arrival::Left { node, serial } => {
                if self.sockets.0.get(&node).is_some_and(|socket| socket.serial == serial) {
                    self.sockets.0.remove(&node);
                }
            }
            Arrival::Datagram { node, serial, bytes } => {
                if self.sockets.0.get(&node).is_some_and(|socket| socket.serial == serial) {
                    self.datagram_of_socket(node, &bytes);
                }
            }
        }
        self.counters.sockets = self.sockets.0.len() as u64;
    }

    fn datagram_of_socket(&mut self, node: NodeId, datagram: &[u8]) {
        match Message::parse(datagram) {
            Ok(Message::Discover { .. } | Message::DiscoverEx { .. }) => {
                if let Some(peer) = self.sockets.0.get(&node).map(|socket| socket.peer) {
                    self.sockets.say(node, &Message::DiscoverReply(peer));
                }
            }
            // There is nothing to punch with.
            Ok(Message::PunchRequest { .. }) => {}
            // Here it is known who sends.
            Ok(Message::Relay { from, to, .. }) if from == node => {
                self.forward(false, node, to, Frames { bytes: datagram, stride: datagram.len() });
            }
            _ => self.counters.garbage += 1,
        }
    }
}
