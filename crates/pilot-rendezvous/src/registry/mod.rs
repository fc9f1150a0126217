//! The registry's state: requests in, answers and effects out. No I/O; clocks are passed in (spec 05).
//!
//! Each topic is a file with an `impl Registry`. [`Registry::handle`] changes memory and collects the [`Write`]s that
//! make the change durable; the caller stores them, in order, before it sends the answer.

mod admin;
mod auth;
mod directory;
pub(crate) mod freshness;
mod handshakes;
mod members;
pub(crate) mod model;
mod names;
mod networks;
mod policy;
mod records;
mod recovery;
mod registration;
pub(crate) mod request;
mod trust;

#[cfg(test)]
mod tests;

pub(crate) use crate::clock::Now;
pub(crate) use auth::Checked;
#[cfg(feature = "fuzzing")]
pub(crate) use auth::claim;
pub(crate) use handshakes::PING_SECS;

use crate::config::Config;
use crate::limits::Buckets;
use crate::store::{Snapshot, Write};
use model::{Inbox, Invite, Key, Network, NetworkId, Node, NodeRecord, Standing};
use pilot_proto::NodeId;
use request::{Answer, Refused, Request, error};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The settings the state core needs.
pub(crate) struct Settings {
    pub admin_token: Option<String>,
    pub max_nodes: u32,
    pub stale_after: Duration,
    /// Configured beacon address, if any.
    pub advertise_beacon: Option<String>,
    /// Where the beacon is bound.
    pub beacon: SocketAddr,
    /// Its second port.
    pub probe_port: Option<u16>,
}

/// What one connection has shown; belongs to its task and is handed in with each request.
#[derive(Debug)]
pub(crate) struct Session {
    pub peer: SocketAddr,
    /// Address the client reached us at.
    pub local: IpAddr,
    /// No rate applies to it.
    pub exempt: bool,
    /// Nodes it spoke for, with the key that proved it.
    pub proven: Vec<(NodeId, Key)>,
    /// Heartbeats verified on this connection: node, key and when.
    pub heartbeats: Vec<(NodeId, Key, Instant)>,
    /// A signature check done ahead for the request at hand.
    pub checked: Option<Checked>,
    /// The request at hand is fresh: of this key, with this number.
    pub fresh: Option<(Key, u64)>,
    /// Time of the request at hand.
    pub now: Option<Instant>,
}

impl Session {
    pub fn new(peer: SocketAddr, local: IpAddr, exempt: bool) -> Session {
        Session {
            peer,
            local,
            exempt,
            proven: Vec::new(),
            heartbeats: Vec::new(),
            checked: None,
            fresh: None,
            now: None,
        }
    }
}

/// What to tell others once a change is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Something waits in the node's inbox.
    Handshake(NodeId),
    /// `peer` no longer trusts `node`.
    TrustRevoked { node: NodeId, peer: NodeId },
    /// Another process registered the identity: the subscription of any other instance ends.
    Superseded { node: NodeId, by: String },
}

/// What follows the answer, once it was written to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    /// The inbox entries up to this number were delivered.
    Delivered {
        node: NodeId,
        up_to: u64,
    },
    /// The connection becomes a push connection of this node.
    Subscribed {
        node: NodeId,
        instance: String,
        waiting: bool,
    },
}

/// Where nodes without UDP come in (docs/extensions.md, "compat").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Door {
    pub port: u16,
    /// Of its certificate; `None`: no TLS.
    pub fingerprint: Option<String>,
    /// What the operator says instead.
    pub url: Option<String>,
}

/// The whole directory.
pub(crate) struct Registry {
    settings: Settings,
    door: Option<Door>,
    registry_id: String,
    nodes: HashMap<NodeId, Node>,
    by_key: HashMap<Key, NodeId>,
    by_name: HashMap<String, NodeId>,
    last_node: NodeId,
    live: usize,
    trust: HashMap<NodeId, BTreeSet<NodeId>>,
    trust_pairs: usize,
    reports: HashMap<NodeId, BTreeSet<NodeId>>,
    inboxes: HashMap<NodeId, Inbox>,
    last_seq: u64,
    networks: BTreeMap<NetworkId, Network>,
    last_network: NetworkId,
    invites: HashMap<NodeId, Vec<Invite>>,
    beacons: BTreeMap<u32, (String, Instant)>,
    registrations: Buckets<IpAddr>,
    lookups: Buckets<IpAddr>,
    node_lookups: Buckets<NodeId>,
    handshakes: Buckets<NodeId>,
    /// Every live node once, by a time at or before it was last heard of.
    aging: BTreeSet<(Instant, NodeId)>,
    started: u64,
    writes: Vec<Write>,
    effects: Vec<Effect>,
}

/// Requests that change something durable; refused while the store cannot be written.
pub(crate) fn changes(kind: &str) -> bool {
    !matches!(
        kind,
        "heartbeat"
            | "lookup"
            | "resolve"
            | "resolve_hostname"
            | "list_nodes"
            | "list_networks"
            | "check_trust"
            | "poll_handshakes"
            | "poll_invites"
            | "get_network_policy"
            | "get_expr_policy"
            | "get_member_role"
            | "get_member_tags"
            | "get_key_info"
            | "beacon_list"
            | "beacon_register"
            | "punch"
            | "subscribe"
            | "publish_record"
    )
}

impl Registry {
    /// Tells nodes from now on where the compat transport is.
    pub fn set_door(&mut self, door: Door) {
        self.door = Some(door);
    }

    /// The directory as stored. `registry_id` is used if the store has none yet.
    pub fn load(
        config: &Config,
        beacon: SocketAddr,
        stored: Snapshot,
        registry_id: String,
        now: Now,
    ) -> Registry {
        let settings = Settings {
            admin_token: config.admin_token.clone(),
            max_nodes: config.max_nodes,
            stale_after: config.stale_after,
            advertise_beacon: config.advertise_beacon.clone(),
            beacon,
            probe_port: None,
        };
        let mut r = Registry {
            settings,
            door: None,
            registry_id,
            nodes: HashMap::new(),
            by_key: HashMap::new(),
            by_name: HashMap::new(),
            last_node: 0,
            live: 0,
            trust: HashMap::new(),
            trust_pairs: 0,
            reports: HashMap::new(),
            inboxes: HashMap::new(),
            last_seq: 0,
            networks: BTreeMap::new(),
            last_network: 0,
            invites: HashMap::new(),
            beacons: BTreeMap::new(),
            registrations: Buckets::new(config.limits.registrations),
            lookups: Buckets::new(config.limits.lookups),
            node_lookups: Buckets::new(config.limits.node_lookups),
            handshakes: Buckets::new(handshakes::HANDSHAKES),
            aging: BTreeSet::new(),
            started: now.unix(),
            writes: Vec::new(),
            effects: Vec::new(),
        };
        r.fill(stored, now);
        r
    }

    fn fill(&mut self, stored: Snapshot, now: Now) {
        let meta = |name: &str| stored.meta.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        match meta("registry_id") {
            Some(id) => self.registry_id = id,
            None => {
                let value = self.registry_id.clone();
                self.writes.push(Write::Meta { name: "registry_id", value });
            }
        }
        self.last_network = meta("last_network").and_then(|v| v.parse().ok()).unwrap_or(0);
        for record in stored.nodes {
            let id = record.id;
            self.last_node = self.last_node.max(id);
            self.by_key.insert(record.key, id);
            if !record.hostname.is_empty() {
                self.by_name.insert(record.hostname.clone(), id);
            }
            if record.standing == Standing::Live {
                self.live += 1;
                // A grace period after a restart: presence is not stored.
                self.aging.insert((now.mono, id));
            }
            let aging = (record.standing == Standing::Live).then_some(now.mono);
            let seen_unix = record.last_seen;
            self.nodes.insert(
                id,
                Node {
                    record,
                    seen: now.mono,
                    seen_unix,
                    aging,
                    networks: BTreeSet::new(),
                    signed: None,
                    fresh: None,
                },
            );
        }
        for (a, b) in stored.trust {
            self.link(a, b);
        }
        for (node, peer) in stored.reports {
            self.reports.entry(node).or_default().insert(peer);
        }
        for q in stored.requests {
            self.last_seq = self.last_seq.max(q.seq);
            self.inboxes.entry(q.to).or_default().requests.insert(q.from, q);
        }
        for q in stored.responses {
            self.last_seq = self.last_seq.max(q.seq);
            self.inboxes.entry(q.to).or_default().responses.insert(q.from, q);
        }
        for (to, from, at) in stored.pending {
            self.inboxes.entry(to).or_default().pending.insert(from, at);
        }
        for record in stored.networks {
            self.last_network = self.last_network.max(record.id);
            self.networks.insert(record.id, Network { record, members: BTreeMap::new() });
        }
        for (network, node, member) in stored.members {
            if let (Some(n), Some(found)) = (self.nodes.get_mut(&node), self.networks.get_mut(&network)) {
                n.networks.insert(network);
                found.members.insert(node, member);
            }
        }
        for (to, invite) in stored.invites {
            self.invites.entry(to).or_default().push(invite);
        }
    }

    /// Answers one request. Afterwards [`Self::take_writes`] and [`Self::take_effects`] hold what it caused.
    pub fn handle(&mut self, session: &mut Session, body: &Map<String, Value>, now: Now) -> (Value, After) {
        let mut after = After::Nothing;
        session.now = Some(now.mono);
        self.freshen(session, Request(body), now);
        let answer = self.dispatch(session, Request(body), now, &mut after);
        match answer {
            Ok(value) => (value, after),
            Err(Refused(text)) => (error(&text), After::Nothing),
        }
    }

    fn dispatch(&mut self, s: &mut Session, req: Request<'_>, now: Now, after: &mut After) -> Answer {
        match req.kind() {
            "register" => self.register(s, req, now),
            "heartbeat" => self.heartbeat(s, req, now),
            "deregister" => self.deregister(s, req),
            "rotate_key" => self.rotate_key(s, req, now),
            "set_key_expiry" => self.set_key_expiry(s, req, now),
            "get_key_info" => self.get_key_info(s, req, now),
            "enroll_recovery_key" => self.enroll_recovery_key(s, req),
            "recover_key" => self.recover_key(s, req, now),
            "publish_record" => self.publish_record(s, req, now),
            "lookup" => self.lookup(s, req, now),
            "resolve" => self.resolve(s, req, now),
            "resolve_hostname" => self.resolve_hostname(s, req, now),
            "list_nodes" => self.list_nodes(s, req),
            "set_hostname" => self.set_hostname(s, req, now),
            "set_hidden" => self.set_hidden(s, req),
            "set_visibility" => self.set_visibility(s, req),
            "set_tags" => self.set_tags(s, req),
            "report_trust" => self.report_trust(s, req),
            "revoke_trust" => self.revoke_trust(s, req),
            "check_trust" => self.check_trust(s, req),
            "request_handshake" => self.request_handshake(s, req, now),
            "poll_handshakes" => self.poll_handshakes(s, req, now, after),
            "ack_handshakes" => self.ack_handshakes(s, req),
            "respond_handshake" => self.respond_handshake(s, req, now),
            "subscribe" => self.subscribe(s, req, now, after),
            "create_network" => self.create_network(req, now),
            "join_network" => self.join_network(s, req),
            "leave_network" => self.leave_network(s, req),
            "delete_network" => self.delete_network(s, req),
            "rename_network" => self.rename_network(s, req),
            "list_networks" => self.list_networks(req),
            "set_network_enterprise" => self.set_network_enterprise(req),
            "invite_to_network" => self.invite_to_network(s, req, now),
            "poll_invites" => self.poll_invites(s, req, now),
            "respond_invite" => self.respond_invite(s, req, now),
            "kick_member" => self.kick_member(s, req),
            "promote_member" => self.promote_member(s, req),
            "demote_member" => self.demote_member(s, req),
            "transfer_ownership" => self.transfer_ownership(s, req),
            "get_member_role" => self.get_member_role(s, req, now),
            "set_member_tags" => self.set_member_tags(s, req),
            "get_member_tags" => self.get_member_tags(s, req),
            "get_network_policy" => self.get_network_policy(req),
            "set_network_policy" => self.set_network_policy(s, req),
            "get_expr_policy" => self.get_expr_policy(req),
            "set_expr_policy" => self.set_expr_policy(s, req),
            "beacon_list" => self.beacon_list(now),
            "beacon_register" => self.beacon_register(s, req, now),
            "punch" => self.punch(s, req),
            other => Err(admin::unanswered(other)),
        }
    }

    /// The writes since the last call, to be stored in this order.
    pub fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    /// The effects since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Queues the stored form of a node.
    fn save(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.record.last_seen = node.seen_unix;
            self.writes.push(Write::Node(Box::new(node.record.clone())));
        }
    }

    /// Changes a node's record and queues it for storing if it differs. `false`: no such node or nothing changed.
    fn update(&mut self, id: NodeId, change: impl FnOnce(&mut NodeRecord)) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let before = node.record.clone();
        change(&mut node.record);
        let changed = node.record != before;
        if changed {
            self.save(id);
        }
        changed
    }

    /// The beacon answers Discovers at this port, too.
    pub fn probe_port(&mut self, port: Option<u16>) {
        self.settings.probe_port = port;
    }

    /// The UDP ports at which the beacon answers Discovers, its own first.
    fn beacon_ports(&self) -> Vec<u16> {
        [Some(self.settings.beacon.port()), self.settings.probe_port].into_iter().flatten().collect()
    }

    /// The beacon's address as this client can reach it.
    fn beacon_for(&self, session: &Session) -> String {
        if let Some(addr) = &self.settings.advertise_beacon {
            return addr.clone();
        }
        let bound = self.settings.beacon;
        let ip = if bound.ip().is_unspecified() { session.local.to_canonical() } else { bound.ip() };
        SocketAddr::new(ip, bound.port()).to_string()
    }

    /// Highest node id given out.
    pub fn last_node(&self) -> NodeId {
        self.last_node
    }

    /// The store's name.
    pub fn registry_id(&self) -> &str {
        &self.registry_id
    }

    /// What the beacon needs to know of a node in the directory.
    pub fn known(&self, id: NodeId) -> Option<crate::beacon::Known> {
        let record = &self.live(id).ok()?.record;
        let ip = record.endpoint.parse::<SocketAddr>().ok().map(|at| at.ip().to_canonical());
        Some(crate::beacon::Known { key: record.key, ip })
    }

    /// Online nodes, known identities, trust pairs, networks.
    pub fn sizes(&self) -> (usize, usize, usize, usize) {
        (self.live, self.nodes.len(), self.trust_pairs, self.networks.len())
    }
}
