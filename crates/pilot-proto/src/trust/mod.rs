//! The trust handshake (spec 06 section 2): who this node trusts, and how that comes about.
//!
//! [`Trust`] does no I/O. Calls bring in what happened; [`Trust::poll_action`] gives out what to do, in order:
//!
//! ```
//! # use pilot_proto::trust::*;
//! # use pilot_proto::crypto::Identity;
//! # use std::sync::Arc;
//! # let identity = Arc::new(Identity::from_seed([1; 32]).ok_or("seed")?);
//! let mut trust = Trust::new(Config::new(1, identity));
//! trust.load(1_795_217_564, "{\"trusted\":null}").map_err(|_| "trust.json")?;
//! match trust.request(1_795_217_564, 2, "let us talk") {
//!     Requested::Send(delivery) => { /* deliver it, tell the user how that went */ }
//!     Requested::AlreadyTrusted => {}
//! }
//! while let Some(action) = trust.poll_action() { /* do it */ }
//! # Ok::<(), &str>(())
//! ```
//!
//! A message that came in on port 444 takes two steps, because its checks need the registry: [`Trust::examine`]
//! (pure), then a look-up of the sender's key (and, for a request of an untrusted node, of shared networks),
//! then [`Trust::receive_direct`].
//!
//! # Delivery
//!
//! A [`Delivery`] goes directly: a stream to port 444, one write, close. If that fails, or if
//! [`Delivery::relay_also`] is set, the relayed form goes through the registry. One success of either is
//! success. `relay_also` is set where a direct message alone could be lost unnoticed: the receiver silently
//! discards a message of a kind it had from us within 15 minutes.
//!
//! # Mutual trust
//!
//! The approver of a request cannot see whether the requester took the approval. Our accept therefore carries
//! the justification `confirm` (a field other versions ignore in an accept), and a node of this version that took
//! it answers with an accept of its own. An accept of a node that is trusted already makes the record mutual.

mod local;
pub mod message;
mod receive;
mod replay;
pub mod rfc3339;
mod store;
#[cfg(test)]
mod tests;

pub use message::{Incoming, Kind, Refusal};
pub use store::LoadError;

use crate::NodeId;
use crate::crypto::{self, Identity};
use replay::ReplaySet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Trusted peers. Approvals beyond it fail; it is far above what a person approves.
pub const MAX_TRUSTED: usize = 65_536;
/// Requests that wait for a person, in total.
pub const MAX_PENDING: usize = 256;
/// Requests that wait for a person, per node they came from.
pub const MAX_PENDING_PER_SOURCE: usize = 16;
/// Own requests without an answer; the oldest gives way.
pub const MAX_OUTGOING: usize = 4096;
/// Peers in the cool-down after a local revoke; the one that ends first gives way.
pub const MAX_REVOKED: usize = 4096;
/// Remembered rejections of own requests; the oldest gives way.
pub const MAX_REJECTIONS: usize = 256;
/// Remembered direct messages (for [`Delivery::relay_also`]); the oldest gives way.
pub const MAX_SENT: usize = 4096;
/// Life of pending and outgoing entries, seconds.
pub const REQUEST_LIFETIME_SECS: u64 = 30 * 86_400;
/// After a local revoke, how long the peer's approvals are ignored, seconds.
pub const COOL_DOWN_SECS: u64 = 300;
/// How long a receiver may silently discard a repeated direct message, seconds.
pub const REPLAY_WINDOW_SECS: u64 = 900;
/// How long an own request justifies fast polling, seconds (spec 06 section 2.11).
pub const FAST_POLL_SECS: u64 = 120;
/// Interval of the job that removes what is too old, seconds.
const JOB_INTERVAL_SECS: u64 = 300;

/// An agent trusted on sight (spec 06 section 2.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedAgent {
    /// Its node.
    pub node: NodeId,
    /// Its name, for events.
    pub hostname: String,
    /// If set, only a sender proven to have this key matches.
    pub key: Option<[u8; 32]>,
}

/// Settings of [`Trust`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Own node.
    pub node: NodeId,
    /// Own identity, signs direct messages.
    pub identity: Arc<Identity>,
    /// Trust everyone who asks and proves to be who they say.
    pub auto_approve: bool,
    /// Agents trusted on sight. All entries of a node that is listed twice are ignored.
    pub agents: Vec<TrustedAgent>,
    /// Name of the registry (its `registry_id`, else `host:port`). Trusted records of another registry are kept but
    /// inactive. `None`: unknown yet; every record counts.
    pub registry: Option<String>,
}

impl Config {
    /// Nobody is trusted without a person's word; registry unknown.
    pub fn new(node: NodeId, identity: Arc<Identity>) -> Config {
        Config { node, identity, auto_approve: false, agents: Vec::new(), registry: None }
    }
}

/// A trusted peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// Key the trust is bound to; `None` until one is known.
    pub key: Option<[u8; 32]>,
    /// Unix seconds.
    pub approved_at: u64,
    /// The peer is known to trust us too.
    pub mutual: bool,
    /// The shared network trust rests on; 0 if none.
    pub network: u16,
    /// Registry the node id belongs to; `None`: not known.
    pub registry: Option<String>,
}

impl Trusted {
    /// Base64, or empty.
    pub fn key_base64(&self) -> String {
        self.key.map(crypto::base64).unwrap_or_default()
    }
}

/// A request that waits for a person. No proof of identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Key claimed by the request; `None` for relayed ones.
    pub key: Option<[u8; 32]>,
    /// Cleaned text.
    pub justification: String,
    /// Unix seconds.
    pub received_at: u64,
    /// Node whose tunnel it came through (relayed: the sender, as the registry authenticated it).
    pub source: NodeId,
}

impl Pending {
    /// Base64, or empty.
    pub fn key_base64(&self) -> String {
        self.key.map(crypto::base64).unwrap_or_default()
    }
}

/// An own request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The peer's words; empty if relayed or not given.
    pub reason: String,
    /// Unix seconds.
    pub at: u64,
}

/// The relayed form of a message; the driver signs it (spec 06 section 2.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relay {
    /// `request_handshake` with this justification. The error `handshake request already pending` is success.
    Request {
        /// Cleaned text.
        justification: String,
    },
    /// `respond_handshake`.
    Respond {
        /// Granted or refused.
        accept: bool,
    },
    /// Only sent directly.
    None,
}

/// A message to bring to a peer; see the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// To whom.
    pub node: NodeId,
    /// Bytes for one write on a stream to port 444; `None`: only relayed.
    pub direct: Option<Vec<u8>>,
    /// Relayed form.
    pub relay: Relay,
    /// Relay even if the direct way worked.
    pub relay_also: bool,
}

/// How waiting for a peer's trust ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The peer is trusted now.
    Trusted,
    /// The peer refused.
    Rejected {
        /// Its words; may be empty.
        reason: String,
    },
}

/// What the driver is to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bring a message to a peer.
    Deliver(Delivery),
    /// `report_trust` at the registry. Do it before a [`Action::Deliver`] that follows: only then can the address
    /// of a private peer be resolved.
    ReportTrust(NodeId),
    /// `revoke_trust` at the registry. An error that the pair does not exist is success.
    RevokeTrust(NodeId),
    /// Look the peer's key up and pass it to [`Trust::peer_key_known`].
    BackfillKey(NodeId),
    /// Feed the engine's gates.
    SetTrusted(NodeId, bool),
    /// Forget the tunnel to this peer. A revoke that precedes it must be written first.
    TearDown(NodeId),
    /// An event for logs, webhooks and subscribers.
    Publish(&'static str, Value),
    /// Write [`Trust::to_json`] to `trust.json`; several may be merged.
    Save,
    /// End waits for trust in this peer.
    Wake(NodeId, Outcome),
    /// The peer shows another key than the one its trust was bound to; trust has ended. Tell the user.
    KeyChanged {
        /// The peer.
        node: NodeId,
        /// Key of the record.
        pinned: [u8; 32],
        /// Key shown.
        shown: [u8; 32],
    },
}

/// Result of [`Trust::request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// Nothing to do.
    AlreadyTrusted,
    /// Deliver this and report how it went.
    Send(Delivery),
}

/// Result of [`Trust::approve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approved {
    /// The peer is trusted now.
    Approved,
    /// It was before.
    AlreadyTrusted,
    /// No request of this node waits.
    NothingPending,
    /// [`MAX_TRUSTED`] is reached.
    Full,
}

/// Result of [`Trust::revoke`]: the peer was not trusted, and nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node {0} was not trusted")]
pub struct NotTrusted(pub NodeId);

/// What became of a message or relayed entry that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The peer is trusted now; the word is the reason of the event.
    Trusted(&'static str),
    /// It was trusted before.
    AlreadyTrusted,
    /// The request waits for a person.
    Pending,
    /// The request was dropped: too many wait, or it would replace one with a better claim.
    Dropped,
    /// The answer was ignored: no request of ours waits for it, or the peer was revoked just now.
    Ignored,
    /// Our request was refused.
    Rejected,
    /// The peer ended trust.
    Revoked,
    /// The peer's key is another than the pinned one; trust has ended.
    KeyChanged,
}

/// What the registry says about the sender of a direct message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its key; `None` if the look-up failed or gave none.
    pub registry_key: Option<[u8; 32]>,
    /// First network (not 0) it shares with this node; 0: none or not looked up.
    pub shared_network: u16,
}

/// The trust state machine of one node.
#[derive(Debug)]
pub struct Trust {
    config: Config,
    trusted: BTreeMap<NodeId, Trusted>,
    /// Records of other registries: stored, never used.
    foreign: Vec<(NodeId, Trusted)>,
    pending: BTreeMap<NodeId, Pending>,
    outgoing: BTreeMap<NodeId, u64>,
    revoked: BTreeMap<NodeId, u64>,
    rejections: BTreeMap<NodeId, Rejection>,
    sent: HashMap<(NodeId, Kind), u64>,
    replays: ReplaySet,
    next_job: u64,
    actions: VecDeque<Action>,
}

impl Trust {
    /// An empty state. Nothing is persisted unless the driver does so.
    pub fn new(config: Config) -> Trust {
        let mut trust = Trust {
            config,
            trusted: BTreeMap::new(),
            foreign: Vec::new(),
            pending: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            revoked: BTreeMap::new(),
            rejections: BTreeMap::new(),
            sent: HashMap::new(),
            replays: ReplaySet::default(),
            next_job: 0,
            actions: VecDeque::new(),
        };
        trust.drop_ambiguous_agents();
        trust
    }

    /// The next thing to do. Call until `None` after every other call: the queue is bounded by that alone (a call
    /// adds at most one entry per trusted peer, usually under ten).
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether a node is trusted; a node always trusts itself.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        node == self.config.node || self.trusted.contains_key(&node)
    }

    /// The key the trust in a node is bound to; `None`: not trusted, or no key is known yet.
    pub fn trusted_key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.trusted.get(&node)?.key
    }

    /// Trusted peers, by node.
    pub fn trusted(&self) -> impl Iterator<Item = (NodeId, &Trusted)> {
        self.trusted.iter().map(|(node, record)| (*node, record))
    }

    /// Requests that wait for a person, by node.
    pub fn pending(&self) -> impl Iterator<Item = (NodeId, &Pending)> {
        self.pending.iter().map(|(node, entry)| (*node, entry))
    }

    /// When this node asked that peer for trust (Unix seconds), if no answer came yet.
    pub fn requested_at(&self, node: NodeId) -> Option<u64> {
        self.outgoing.get(&node).copied()
    }

    /// The peer's refusal of our last request, if it was the last word.
    pub fn rejection(&self, node: NodeId) -> Option<&Rejection> {
        self.rejections.get(&node)
    }

    /// A request of ours waits for its answer and is young enough to poll every 2 s for it.
    pub fn awaits_answer(&self, now_unix: u64) -> bool {
        self.outgoing.values().any(|at| now_unix.saturating_sub(*at) < FAST_POLL_SECS)
    }

    /// Removes what is too old. Cheap; call it whenever a timer fires, at least every five minutes.
    pub fn handle_time(&mut self, now_unix: u64) {
        if now_unix < self.next_job {
            return;
        }
        self.next_job = now_unix + JOB_INTERVAL_SECS;
        self.replays.expire(now_unix);
        self.sent.retain(|_, at| now_unix.saturating_sub(*at) < REPLAY_WINDOW_SECS);
        let young = |at: u64| now_unix.saturating_sub(at) <= REQUEST_LIFETIME_SECS;
        let before = self.pending.len() + self.outgoing.len() + self.revoked.len();
        self.pending.retain(|_, entry| young(entry.received_at));
        self.outgoing.retain(|_, at| young(*at));
        self.revoked.retain(|_, until| *until > now_unix);
        self.rejections.retain(|_, rejection| young(rejection.at));
        if before != self.pending.len() + self.outgoing.len() + self.revoked.len() {
            self.save();
        }
    }

    /// The key a peer has proven or the registry names for it (spec 06 section 2.9).
    pub fn peer_key_known(&mut self, node: NodeId, key: &[u8; 32]) {
        self.check_key(node, Some(key));
    }

    /// Own node id and key after registration, recovery or rotation. Peers drop their trust in a key that changed
    /// (spec 06 section 2.9), so after a rotation nobody is known to trust us, and nothing was said with the new key.
    pub fn set_identity(&mut self, node: NodeId, identity: Arc<Identity>) {
        if identity.public_key() != self.config.identity.public_key() {
            self.trusted.values_mut().for_each(|trusted| trusted.mutual = false);
            self.sent.clear();
            self.save();
        }
        self.config.node = node;
        self.config.identity = identity;
    }

    /// Replaces the agents trusted on sight.
    pub fn set_agents(&mut self, agents: Vec<TrustedAgent>) {
        self.config.agents = agents;
        self.drop_ambiguous_agents();
    }

    // ---- shared by the other parts -----------------------------------------------------------------------

    fn drop_ambiguous_agents(&mut self) {
        let mut count: HashMap<NodeId, usize> = HashMap::new();
        for agent in &self.config.agents {
            *count.entry(agent.node).or_default() += 1;
        }
        self.config.agents.retain(|agent| count.get(&agent.node) == Some(&1));
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn save(&mut self) {
        if !self.actions.contains(&Action::Save) {
            self.push(Action::Save);
        }
    }

    fn publish(&mut self, name: &'static str, data: Value) {
        self.push(Action::Publish(name, data));
    }

    fn publish_changed(&mut self, node: NodeId, state: &str, reason: &str, agent: Option<&str>) {
        let mut data = json!({"peer_node_id": node, "state": state, "reason": reason});
        if let Some(agent) = agent {
            data["agent"] = agent.into();
        }
        self.publish("trust.changed", data);
    }

    /// Applies the key rule to a trusted peer's record; `true`: trusted (still). An unknown key never denies.
    fn check_key(&mut self, node: NodeId, key: Option<&[u8; 32]>) -> bool {
        let Some(record) = self.trusted.get_mut(&node) else { return false };
        let Some(shown) = key else { return true };
        match record.key {
            None => {
                record.key = Some(*shown);
                self.save();
                true
            }
            Some(pinned) if crypto::constant_time_eq(&pinned, shown) => true,
            Some(pinned) => {
                self.trusted.remove(&node);
                self.push(Action::SetTrusted(node, false));
                self.push(Action::KeyChanged { node, pinned, shown: *shown });
                self.publish_changed(node, "revoked", "key_changed", None);
                self.push(Action::TearDown(node));
                self.save();
                false
            }
        }
    }

    /// Makes a peer trusted. `false`: no room.
    fn grant(
        &mut self,
        now_unix: u64,
        node: NodeId,
        key: Option<[u8; 32]>,
        mutual: bool,
        network: u16,
    ) -> bool {
        if self.trusted.len() >= MAX_TRUSTED && !self.trusted.contains_key(&node) {
            return false;
        }
        let registry = self.config.registry.clone();
        self.trusted.insert(node, Trusted { key, approved_at: now_unix, mutual, network, registry });
        self.pending.remove(&node);
        self.outgoing.remove(&node);
        self.rejections.remove(&node);
        self.revoked.remove(&node);
        self.push(Action::SetTrusted(node, true));
        self.push(Action::Wake(node, Outcome::Trusted));
        self.save();
        true
    }

    fn cooling_down(&self, now_unix: u64, node: NodeId) -> bool {
        self.revoked.get(&node).is_some_and(|until| *until > now_unix)
    }

    /// A message to a peer, with the rule for repeated ones.
    fn delivery(&mut self, now_unix: u64, node: NodeId, kind: Kind, text: &str) -> Delivery {
        let (justification, reason) = match kind {
            Kind::Request | Kind::Accept => (text, ""),
            Kind::Reject | Kind::Revoke => ("", text),
        };
        let own = self.config.node;
        let direct = message::encode(&self.config.identity, own, node, kind, justification, reason, now_unix);
        let relay = match kind {
            Kind::Request => Relay::Request { justification: message::clean(justification) },
            Kind::Accept => Relay::Respond { accept: true },
            Kind::Reject => Relay::Respond { accept: false },
            Kind::Revoke => Relay::None,
        };
        let before = self.sent.insert((node, kind), now_unix);
        if self.sent.len() > MAX_SENT
            && let Some(oldest) = self.sent.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.sent.remove(&oldest);
        }
        let repeated = before.is_some_and(|at| now_unix.saturating_sub(at) < REPLAY_WINDOW_SECS);
        Delivery { node, direct: Some(direct), relay, relay_also: repeated }
    }
}

/// Keeps a map of times within `max` entries by removing the oldest.
fn evict_oldest<V>(map: &mut BTreeMap<NodeId, V>, max: usize, at: impl Fn(&V) -> u64) {
    while map.len() > max {
        let Some(oldest) = map.iter().min_by_key(|(_, value)| at(value)).map(|(node, _)| *node) else {
            return;
        };
        map.remove(&oldest);
    }
}
