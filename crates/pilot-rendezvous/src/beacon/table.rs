//! Which node is where: the beacon's table, and who may change an entry.
//!
//! Reference nodes prove nothing (spec 04 section 3.1), so a claim is weighed by what else is known. From strongest to
//! weakest: a signed Discover ([`SignedDiscover`]) with the cookie given to that very address; the IP address the node
//! registered from; the IP address of the present entry (a NAT that gave another port); silence of the present entry.
//! A claim with none of these does not move a live entry. It is remembered, and counts as soon as the registry agrees or
//! the present entry falls silent.

use super::Directory;
use crate::config::Rate;
use crate::limits::{Buckets, network, source};
use aws_lc_rs::hmac;
use pilot_proto::NodeId;
use pilot_proto::wire::discover::{COOKIE_LEN, Cookie, SignedDiscover};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Nodes in the table.
pub(super) const MAX_NODES: usize = 500_000;
/// Ids that the registry does not know, exempt sources apart, share this many groups, by the network they are claimed from, ...
const STRANGER_GROUPS: usize = 1024;
/// ... of this size each; in a full group the oldest gives way. So a flood of invented ids displaces its like only.
const STRANGERS: usize = 64;
/// A node not heard of for this long is forgotten.
const NODE_TTL: Duration = Duration::from_secs(10 * 60);
/// A live entry was heard of within this time: three Discovers of ours, one of a reference node and some delay.
const LIVE: Duration = Duration::from_secs(80);
/// New node ids, per source and per network.
const NEW_NODES: Rate = Rate { per_second: 10.0, burst: 500.0 };
const NETWORK_NEW_NODES: Rate = Rate { per_second: 40.0, burst: 2000.0 };
/// Unproven changes of a node's address, per node.
const MOVES: Rate = Rate { per_second: 0.1, burst: 4.0 };
/// Proofs checked, per source and per network.
const PROOFS: Rate = Rate { per_second: 20.0, burst: 1000.0 };
const NETWORK_PROOFS: Rate = Rate { per_second: 80.0, burst: 4000.0 };
/// A cookie is good for one to two of these.
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The node is at this address now.
    Held,
    /// It was not believed.
    Refused,
    /// Over a budget or a bound.
    Dropped,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub addr: SocketAddr,
    pub seen: Instant,
    /// Wants deliveries that name their destination.
    pub named: bool,
    pub notified: Option<Instant>,
    /// The address is proven by the node's key.
    pub proven: bool,
    /// Nothing vouches for the address: neither the node's key nor the IP address it registered from. Another beacon that
    /// has the node is believed rather.
    pub weak: bool,
    /// How often the address changed: cookies of before are void, so that a recorded proof cannot bring an address back.
    moves: u32,
    /// Somebody at this address claimed the id and was not believed.
    candidate: Option<SocketAddr>,
    /// The group of an id the registry does not know.
    group: Option<u16>,
}

impl Entry {
    fn move_to(&mut self, addr: SocketAddr, now: Instant) {
        self.moves = self.moves.wrapping_add(u32::from(self.addr != addr));
        (self.addr, self.seen, self.candidate) = (addr, now, None);
    }
}

pub(super) struct Table {
    nodes: HashMap<NodeId, Entry>,
    strangers: Vec<VecDeque<NodeId>>,
    hasher: RandomState,
    new_nodes: Buckets<IpAddr>,
    network_new_nodes: Buckets<IpAddr>,
    moves: Buckets<NodeId>,
    proofs: Buckets<IpAddr>,
    network_proofs: Buckets<IpAddr>,
    secret: hmac::Key,
    started: Option<Instant>,
    /// Name of the registry, which proofs are made for.
    registry: String,
}

impl Table {
    /// `secret` makes the cookies.
    pub fn new(registry: String, secret: [u8; 32]) -> Table {
        Table {
            nodes: HashMap::new(),
            strangers: vec![VecDeque::new(); STRANGER_GROUPS],
            hasher: RandomState::new(),
            new_nodes: Buckets::new(NEW_NODES),
            network_new_nodes: Buckets::new(NETWORK_NEW_NODES),
            moves: Buckets::new(MOVES),
            proofs: Buckets::new(PROOFS),
            network_proofs: Buckets::new(NETWORK_PROOFS),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            started: None,
            registry,
        }
    }

    pub fn get(&self, node: NodeId) -> Option<&Entry> {
        self.nodes.get(&node)
    }

    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut Entry> {
        self.nodes.get_mut(&node)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = (NodeId, bool)> + '_ {
        self.nodes.iter().map(|(id, entry)| (*id, entry.weak))
    }

    fn epoch(&mut self, now: Instant) -> u64 {
        let started = *self.started.get_or_insert(now);
        now.saturating_duration_since(started).as_secs() / COOKIE_LIFE.as_secs()
    }

    fn cookie_of(&self, epoch: u64, node: NodeId, addr: SocketAddr) -> Cookie {
        let mut text = epoch.to_be_bytes().to_vec();
        text.extend_from_slice(&node.to_be_bytes());
        text.extend_from_slice(&self.nodes.get(&node).map_or(0, |e| e.moves).to_be_bytes());
        match addr.ip() {
            IpAddr::V4(ip) => text.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => text.extend_from_slice(&ip.octets()),
        }
        text.extend_from_slice(&addr.port().to_be_bytes());
        let tag = hmac::sign(&self.secret, &text);
        let mut cookie = [0; COOKIE_LEN];
        // A tag has 32 bytes.
        cookie.copy_from_slice(&tag.as_ref()[..COOKIE_LEN]);
        cookie
    }

    /// The cookie of a node at an address: whoever shows it receives there, and asked after the node last moved.
    pub fn cookie(&mut self, node: NodeId, addr: SocketAddr, now: Instant) -> Cookie {
        let epoch = self.epoch(now);
        self.cookie_of(epoch, node, addr)
    }

    fn proves(
        &mut self,
        proof: &SignedDiscover<'_>,
        from: SocketAddr,
        directory: &impl Directory,
        now: Instant,
    ) -> bool {
        // From cheap to dear.
        let epoch = self.epoch(now);
        let fresh = proof.cookie == self.cookie_of(epoch, proof.node, from)
            || (epoch > 0 && proof.cookie == self.cookie_of(epoch - 1, proof.node, from));
        fresh
            && directory.find(proof.node).is_some_and(|known| known.key == *proof.key)
            && self.proofs.take(source(from.ip()), now)
            && self.network_proofs.take(network(from.ip()), now)
            && proof.verify(&self.registry)
    }

    /// Somebody at `from` says that it is `node`. Id 0 belongs to probes.
    pub fn claim(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        proof: Option<&SignedDiscover<'_>>,
        exempt: bool,
        directory: &impl Directory,
        now: Instant,
    ) -> Claim {
        if node == 0 {
            return Claim::Held;
        }
        let Some(entry) = self.nodes.get(&node).copied() else {
            return self.enter(from, node, exempt, directory, now);
        };
        let live = now.saturating_duration_since(entry.seen) < LIVE;
        if entry.addr == from && (entry.proven || proof.is_none()) {
            self.change(node, |e| e.seen = now);
            return Claim::Held;
        }
        if let Some(proof) = proof
            && self.proves(proof, from, directory, now)
        {
            self.change(node, |e| {
                e.move_to(from, now);
                (e.proven, e.weak) = (true, false);
            });
            return Claim::Held;
        }
        if entry.addr == from {
            self.change(node, |e| e.seen = now);
            return Claim::Held;
        }
        let registered = || directory.find(node).is_some_and(|known| known.ip == Some(from.ip()));
        let believed = !live || (!entry.proven && (entry.addr.ip() == from.ip() || registered()));
        if !believed {
            self.change(node, |e| e.candidate = Some(from));
            return Claim::Refused;
        }
        if !self.moves.take(node, now) {
            return Claim::Dropped;
        }
        let weak = !registered();
        self.change(node, |e| {
            e.move_to(from, now);
            (e.proven, e.weak) = (false, weak);
        });
        Claim::Held
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.nodes.get_mut(&node) {
            change(entry);
        }
    }

    fn enter(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        exempt: bool,
        directory: &impl Directory,
        now: Instant,
    ) -> Claim {
        let allowed = exempt
            || (self.new_nodes.take(source(from.ip()), now)
                && self.network_new_nodes.take(network(from.ip()), now));
        if !allowed {
            return Claim::Dropped;
        }
        let known = directory.find(node);
        let group = (!exempt && known.is_none())
            .then(|| (self.hasher.hash_one(network(from.ip())) as usize % STRANGER_GROUPS) as u16);
        if let Some(group) = group {
            let members = &mut self.strangers[usize::from(group)];
            members.push_back(node);
            if members.len() > STRANGERS
                && let Some(oldest) = members.pop_front()
                && self.nodes.get(&oldest).is_some_and(|e| e.group == Some(group))
            {
                self.nodes.remove(&oldest);
            }
        } else if self.nodes.len() >= MAX_NODES {
            return Claim::Dropped;
        }
        let entry = Entry {
            addr: from,
            seen: now,
            named: false,
            notified: None,
            proven: false,
            weak: known.and_then(|known| known.ip) != Some(from.ip()),
            moves: 0,
            candidate: None,
            group,
        };
        self.nodes.insert(node, entry);
        Claim::Held
    }

    /// The node has registered, from this IP address: a claim from there that was not believed is now.
    pub fn registered(&mut self, node: NodeId, ip: Option<IpAddr>, now: Instant) {
        let Some(entry) = self.nodes.get(&node).copied() else { return };
        if let Some(group) = entry.group {
            self.strangers[usize::from(group)].retain(|n| *n != node);
            self.change(node, |e| e.group = None);
        }
        if Some(entry.addr.ip()) == ip {
            self.change(node, |e| e.weak = false);
        }
        if let Some(candidate) = entry.candidate.filter(|c| Some(c.ip()) == ip && !entry.proven)
            && self.moves.take(node, now)
        {
            self.change(node, |e| {
                e.move_to(candidate, now);
                e.weak = false;
            });
        }
    }

    /// Forgets silent nodes.
    pub fn sweep(&mut self, now: Instant) {
        self.nodes.retain(|_, e| now.saturating_duration_since(e.seen) < NODE_TTL);
        let nodes = &self.nodes;
        for (group, members) in self.strangers.iter_mut().enumerate() {
            members.retain(|n| nodes.get(n).is_some_and(|e| e.group.map(usize::from) == Some(group)));
        }
    }
}
