//! Durable storage behind one trait.

pub(crate) mod sqlite;
pub(crate) mod writer;

#[cfg(test)]
mod tests;

use crate::registry::model::{
    InboxRequest, InboxResponse, Invite, Member, NetworkId, NetworkRecord, NodeRecord,
};
use pilot_proto::NodeId;

/// Why the store failed, with cause and fix.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct StoreError(pub String);

/// One change. Each states the whole new value of one thing, so that repeating it changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    /// A setting of the store itself.
    Meta {
        name: &'static str,
        value: String,
    },
    Node(Box<NodeRecord>),
    /// Mutual trust, lower id first.
    Trust {
        a: NodeId,
        b: NodeId,
        present: bool,
    },
    /// `node` said it trusts `peer`; the other side has not.
    Report {
        node: NodeId,
        peer: NodeId,
        present: bool,
    },
    Request(InboxRequest),
    Response(InboxResponse),
    /// A waiting request was answered before it was delivered.
    RequestGone {
        to: NodeId,
        from: NodeId,
    },
    /// A waiting answer made room for newer ones.
    ResponseGone {
        to: NodeId,
        from: NodeId,
    },
    /// Everything in the inbox of `node` up to this sequence number was delivered.
    Delivered {
        node: NodeId,
        up_to: u64,
    },
    /// A request of `from` to `to` is unanswered since `at` (Unix seconds); `None`: no longer.
    Pending {
        to: NodeId,
        from: NodeId,
        at: Option<u64>,
    },
    Network(Box<NetworkRecord>),
    NetworkGone(NetworkId),
    Member {
        network: NetworkId,
        node: NodeId,
        member: Option<Member>,
    },
    Invite {
        to: NodeId,
        network: NetworkId,
        invite: Option<Invite>,
    },
}

/// Everything stored.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub meta: Vec<(String, String)>,
    pub nodes: Vec<NodeRecord>,
    pub trust: Vec<(NodeId, NodeId)>,
    pub reports: Vec<(NodeId, NodeId)>,
    pub requests: Vec<InboxRequest>,
    pub responses: Vec<InboxResponse>,
    /// (to, from, since)
    pub pending: Vec<(NodeId, NodeId, u64)>,
    pub networks: Vec<NetworkRecord>,
    pub members: Vec<(NetworkId, NodeId, Member)>,
    pub invites: Vec<(NodeId, Invite)>,
}

/// A store. `commit` returns only when the writes would survive a crash of the machine.
pub(crate) trait Store: Send {
    /// Reads everything.
    fn load(&mut self) -> Result<Snapshot, StoreError>;
    /// Makes all writes durable, or none.
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError>;
}
