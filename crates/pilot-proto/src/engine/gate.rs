//! Who may talk to this node (spec 02 section 13, spec 03 sections 6, 18 and 20).

use crate::NodeId;
use crate::tunnel::limits::Marks;
use crate::wire::packet::port;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// After we contacted a node, its SYNs to the ports of [`REPLY_PORTS`] pass for this long.
pub(super) const REPLY_WINDOW: Duration = Duration::from_secs(300);
/// Ports the reply window opens.
const REPLY_PORTS: [u16; 2] = [port::DATA_EXCHANGE, port::HANDSHAKE];
/// Distance of two knocks of one node.
const KNOCK_EVERY: Duration = Duration::from_secs(1);

/// The gates of one node.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) public: bool,
    pub(super) strict: bool,
    /// Nodes the local store trusts; as many as the store holds.
    pub(super) trusted: BTreeSet<NodeId>,
    /// Nodes the registry vouches for.
    pub(super) admitted: Marks<NodeId>,
    pub(super) reply: Marks<NodeId>,
    pub(super) knocks: Marks<NodeId>,
}

impl Gate {
    /// A public node, or a trusted or admitted peer.
    pub(super) fn admits(&self, now: Instant, node: NodeId) -> bool {
        self.public || self.trusted.contains(&node) || self.admitted.active(node, now)
    }

    /// May this node open a stream to this port?
    pub(super) fn admits_syn(&self, now: Instant, node: NodeId, port: u16) -> bool {
        self.admits(now, node) || (REPLY_PORTS.contains(&port) && self.reply.active(node, now))
    }

    /// Are this node's key exchanges and pings ignored?
    pub(super) fn shuts_out(&self, now: Instant, node: NodeId) -> bool {
        self.strict && !self.admits(now, node)
    }

    /// A refused node may be announced, once a second.
    pub(super) fn knock(&mut self, now: Instant, node: NodeId) -> bool {
        self.knocks.once(node, now, KNOCK_EVERY)
    }
}
