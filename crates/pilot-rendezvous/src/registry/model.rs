//! What the registry knows, as kept in memory and in the store.

use pilot_proto::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Network number.
pub(crate) type NetworkId = u16;

/// An Ed25519 public key.
pub(crate) type Key = [u8; 32];

/// Whether an identity is in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Registered and heard of lately.
    Live,
    /// Not heard of for the stale threshold; since when, Unix seconds. Comes back with its settings.
    Reaped(u64),
    /// Signed off. Comes back with its id only.
    Deregistered,
}

/// The durable part of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub id: NodeId,
    pub key: Key,
    /// The key before the last rotation: lets a repeated rotation request succeed.
    pub previous_key: Option<Key>,
    pub standing: Standing,
    /// A label, never an authority.
    pub owner: String,
    /// `host:port` of its UDP socket.
    pub endpoint: String,
    pub lan_addrs: Vec<String>,
    pub public: bool,
    /// Its name is told to trusted requesters only.
    pub hidden: bool,
    pub hostname: String,
    pub tags: Vec<String>,
    pub version: String,
    pub relay_only: bool,
    /// A registration of this key carried a valid signature.
    pub sig_verified: bool,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds of the last key change, 0 if never.
    pub rotated_at: u64,
    pub rotate_count: u32,
    /// Unix seconds, 0 if the key does not expire.
    pub expires_at: u64,
    /// As of the last time the record was stored; presence itself is not stored.
    pub last_seen: u64,
    /// The process that registered last, and since when (Unix seconds).
    pub instance: Option<(String, u64)>,
    pub recovery_key: Option<Key>,
}

/// A node with its presence.
#[derive(Debug)]
pub(crate) struct Node {
    pub record: NodeRecord,
    /// Monotonic time of the last accepted registration, heartbeat or rotation.
    pub seen: Instant,
    /// The same on the wall clock, Unix seconds.
    pub seen_unix: u64,
    /// Its place in the queue of nodes that may become stale, while it is live.
    pub aging: Option<Instant>,
    /// Networks besides the backbone.
    pub networks: BTreeSet<NetworkId>,
    /// What it signed about itself.
    pub signed: Option<Box<super::records::Records>>,
    /// Its fresh requests.
    pub fresh: Option<Box<super::freshness::Freshness>>,
}

impl Node {
    pub fn live(&self) -> bool {
        self.record.standing == Standing::Live
    }
}

/// A trust request waiting for `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InboxRequest {
    pub to: NodeId,
    pub from: NodeId,
    /// Position in the inbox; grows for ever.
    pub seq: u64,
    pub justification: String,
    /// Unix seconds.
    pub at: u64,
}

/// An answer waiting for the requester `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InboxResponse {
    pub to: NodeId,
    pub from: NodeId,
    pub seq: u64,
    pub accept: bool,
    /// Unix seconds.
    pub at: u64,
}

/// What waits for one node.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// By sender: a repeated request replaces the earlier one.
    pub requests: BTreeMap<NodeId, InboxRequest>,
    pub responses: BTreeMap<NodeId, InboxResponse>,
    /// Requests not answered yet, whether polled or not: sender to Unix seconds.
    pub pending: BTreeMap<NodeId, u64>,
    /// The batch of the last poll, while its delivery is in doubt.
    pub in_doubt: Option<Batch>,
}

/// Entries removed by a poll whose connection may have broken before they arrived.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// Highest sequence number; names the batch.
    pub up_to: u64,
    pub requests: Vec<InboxRequest>,
    pub responses: Vec<InboxResponse>,
    /// When it was answered.
    pub answered: Instant,
    /// When its connection was seen broken before the client sent anything further on it.
    pub broken: Option<Instant>,
}

/// Role in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Owner,
    Admin,
    Member,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Owner => "owner",
            Role::Admin => "admin",
            Role::Member => "member",
        }
    }
}

/// Who may join a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JoinRule {
    Open,
    Token,
    Invite,
}

impl JoinRule {
    pub fn name(self) -> &'static str {
        match self {
            JoinRule::Open => "open",
            JoinRule::Token => "token",
            JoinRule::Invite => "invite",
        }
    }
}

/// The durable part of a network, its members excepted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub id: NetworkId,
    pub name: String,
    pub join_rule: JoinRule,
    pub token: String,
    /// Token that administers this network alone; empty: none.
    pub admin_token: String,
    pub enterprise: bool,
    /// Unix seconds.
    pub created: u64,
    /// 0: no limit of its own.
    pub max_members: u32,
    pub allowed_ports: Vec<u16>,
    pub description: String,
    pub rules: Option<serde_json::Value>,
    pub expr_policy: Option<serde_json::Value>,
}

impl std::fmt::Debug for NetworkRecord {
    /// What tells one record from another, without its tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NetworkRecord { id, name, join_rule, enterprise, created, max_members, .. } = self;
        f.debug_struct("NetworkRecord")
            .field("id", id)
            .field("name", name)
            .field("join_rule", join_rule)
            .field("enterprise", enterprise)
            .field("created", created)
            .field("max_members", max_members)
            .finish_non_exhaustive()
    }
}

/// One node's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// `None` after a network stopped being an enterprise one.
    pub role: Option<Role>,
    pub tags: Vec<String>,
}

/// A network with its members.
#[derive(Debug)]
pub(crate) struct Network {
    pub record: NetworkRecord,
    pub members: BTreeMap<NodeId, Member>,
}

/// An invitation into a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invite {
    pub network: NetworkId,
    pub inviter: NodeId,
    /// Unix seconds.
    pub at: u64,
}
