//! The beacon's state: datagrams in, datagrams out (spec 04 sections 2 to 5). No I/O; the clock is passed in.

pub(crate) mod task;
#[cfg(test)]
mod tests;

use crate::config::Rate;
use crate::limits::{Buckets, source};
use pilot_proto::NodeId;
use pilot_proto::wire::beacon::Message;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Nodes in the table.
const MAX_NODES: usize = 500_000;
/// A node not heard of for this long is forgotten.
const NODE_TTL: Duration = Duration::from_secs(10 * 60);
/// Routes to nodes of other beacons.
const MAX_ROUTES: usize = 500_000;
/// Routes of a beacon that is silent for this long are dropped.
const ROUTE_TTL: Duration = Duration::from_secs(90);
/// Least time between two Notify messages to one node.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(2);
/// Node ids in one Sync: what a datagram carries.
const MAX_SYNC: usize = 16_000;
/// Discoveries answered, per source address.
const DISCOVERS: Rate = Rate { per_second: 100.0, burst: 1000.0 };
/// New node ids, per source address.
const NEW_NODES: Rate = Rate { per_second: 10.0, burst: 500.0 };
/// Changes of a node's address, per node: a stranger that claims the id cannot do so for ever, and a node that
/// restarts a few times is not locked out.
const MOVES: Rate = Rate { per_second: 0.1, burst: 4.0 };
/// Punch requests, per source address.
const PUNCHES: Rate = Rate { per_second: 5.0, burst: 20.0 };
/// Punch commands sent to one target.
const PUNCHED: Rate = Rate { per_second: 5.0, burst: 20.0 };
/// Frames relayed, per source address and port.
const RELAYS: Rate = Rate { per_second: 20_000.0, burst: 20_000.0 };

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub nodes: u64,
    pub relayed: u64,
    pub dropped: u64,
    pub punches: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    addr: SocketAddr,
    seen: Instant,
    /// Wants deliveries that name their destination.
    named: bool,
    notified: Option<Instant>,
}

/// Settings of a beacon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub id: u32,
    pub peers: Vec<SocketAddr>,
    pub exempt: Vec<(IpAddr, u8)>,
    pub exempt_loopback: bool,
}

/// The beacon.
pub(crate) struct Beacon {
    settings: Settings,
    nodes: HashMap<NodeId, Entry>,
    routes: HashMap<NodeId, SocketAddr>,
    /// When each peer beacon was last heard of.
    heard: HashMap<SocketAddr, Instant>,
    discovers: Buckets<IpAddr>,
    new_nodes: Buckets<IpAddr>,
    moves: Buckets<NodeId>,
    punches: Buckets<IpAddr>,
    punched: Buckets<NodeId>,
    relays: Buckets<SocketAddr>,
    pub counters: Counters,
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl Beacon {
    pub fn new(mut settings: Settings) -> Beacon {
        settings.peers.iter_mut().for_each(|p| *p = canonical(*p));
        Beacon {
            settings,
            nodes: HashMap::new(),
            routes: HashMap::new(),
            heard: HashMap::new(),
            discovers: Buckets::new(DISCOVERS),
            new_nodes: Buckets::new(NEW_NODES),
            moves: Buckets::new(MOVES),
            punches: Buckets::new(PUNCHES),
            punched: Buckets::new(PUNCHED),
            relays: Buckets::new(RELAYS),
            counters: Counters::default(),
        }
    }

    fn exempt(&self, ip: IpAddr) -> bool {
        (self.settings.exempt_loopback && ip.is_loopback())
            || self.settings.exempt.iter().any(|(net, prefix)| crate::limits::contains(*net, *prefix, ip))
    }

    /// Handles a datagram and hands what it causes to `send`. The datagram is relayed in place.
    pub fn handle(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let from = canonical(from);
        match Message::parse(datagram) {
            Ok(Message::Discover { node, .. }) => self.discover(from, node, false, now, send),
            Ok(Message::DiscoverEx { node }) => self.discover(from, node, true, now, send),
            Ok(Message::PunchRequest { requester, target }) => self.punch(from, requester, target, now, send),
            Ok(Message::Relay { from: node, to, .. }) => self.relay(from, node, to, datagram, now, send),
            Ok(Message::Sync { nodes, .. }) => self.sync(from, nodes, now),
            // Messages a beacon sends, unknown types and broken ones: dropped without an answer.
            _ => {}
        }
    }

    fn discover(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        named: bool,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        if !self.exempt(from.ip()) && !self.discovers.take(source(from.ip()), now) {
            return;
        }
        self.learn(from, node, named, now);
        reply(&Message::DiscoverReply(from), from, send);
    }

    /// Stores where a node is. Id 0 belongs to probes.
    fn learn(&mut self, from: SocketAddr, node: NodeId, named: bool, now: Instant) {
        if node == 0 {
            return;
        }
        if let Some(entry) = self.nodes.get_mut(&node) {
            if entry.addr != from && !self.moves.take(node, now) {
                return;
            }
            entry.addr = from;
            entry.seen = now;
            entry.named |= named;
            return;
        }
        let allowed = self.exempt(from.ip()) || self.new_nodes.take(source(from.ip()), now);
        if allowed && self.nodes.len() < MAX_NODES {
            self.nodes.insert(node, Entry { addr: from, seen: now, named, notified: None });
            self.counters.nodes = self.nodes.len() as u64;
        }
    }

    fn punch(
        &mut self,
        from: SocketAddr,
        requester: NodeId,
        target: NodeId,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let exempt = self.exempt(from.ip());
        if !exempt && !self.punches.take(source(from.ip()), now) {
            return;
        }
        self.learn(from, requester, false, now);
        let Some(target_addr) = self.nodes.get(&target).map(|e| e.addr) else {
            tracing::debug!(requester, target, "punch target is not at this beacon");
            return;
        };
        if !exempt && !self.punched.take(target, now) {
            return;
        }
        // To observed addresses only: the request itself names none.
        reply(&Message::PunchCommand(target_addr), from, send);
        reply(&Message::PunchCommand(from), target_addr, send);
        self.counters.punches += 1;
    }

    fn relay(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        to: NodeId,
        datagram: &mut [u8],
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let peer = self.settings.peers.contains(&from);
        if !peer && !self.exempt(from.ip()) && !self.relays.take(from, now) {
            self.counters.dropped += 1;
            return;
        }
        if let Some(entry) = self.nodes.get_mut(&node).filter(|e| e.addr == from) {
            entry.seen = now;
        }
        if let Some(entry) = self.nodes.get(&to) {
            if entry.named {
                datagram[0] = 0x09;
                send(entry.addr, datagram);
            } else {
                // Type and sender move up against the frame, over the destination. `parse` saw nine bytes.
                datagram.copy_within(1..5, 5);
                datagram[4] = 0x06;
                send(entry.addr, &datagram[4..]);
            }
        } else if let Some(route) = self.routes.get(&to).filter(|_| !peer) {
            // Never from beacon to beacon to beacon: stale tables must not make frames go round.
            send(*route, datagram);
        } else {
            self.counters.dropped += 1;
            return;
        }
        self.counters.relayed += 1;
    }

    fn sync(&mut self, from: SocketAddr, nodes: &[u8], now: Instant) {
        if !self.settings.peers.contains(&from) {
            tracing::debug!(%from, "sync from a stranger ignored");
            return;
        }
        self.heard.insert(from, now);
        self.routes.retain(|_, via| *via != from);
        for id in nodes.as_chunks::<4>().0 {
            let id = u32::from_be_bytes(*id);
            if !self.nodes.contains_key(&id) && self.routes.len() < MAX_ROUTES {
                self.routes.insert(id, from);
            }
        }
    }

    /// Tells a node that something waits for it at the registry.
    pub fn notify(&mut self, node: NodeId, now: Instant, send: &mut impl FnMut(SocketAddr, &[u8])) {
        let Some(entry) = self.nodes.get_mut(&node) else { return };
        if entry.notified.is_some_and(|at| now.saturating_duration_since(at) < NOTIFY_INTERVAL) {
            return;
        }
        entry.notified = Some(now);
        reply(&Message::Notify { kind: pilot_proto::wire::beacon::NOTIFY_HANDSHAKE }, entry.addr, send);
    }

    /// Forgets silent nodes and routes of silent beacons. Call it about once a minute.
    pub fn sweep(&mut self, now: Instant) {
        self.nodes.retain(|_, e| now.saturating_duration_since(e.seen) < NODE_TTL);
        self.counters.nodes = self.nodes.len() as u64;
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < ROUTE_TTL);
        self.routes.retain(|_, via| self.heard.contains_key(via));
    }

    /// Tells the peer beacons which nodes are here. Call it every 10 s.
    pub fn announce(&self, send: &mut impl FnMut(SocketAddr, &[u8])) {
        if self.settings.peers.is_empty() {
            return;
        }
        let nodes: Vec<u8> = self.nodes.keys().take(MAX_SYNC).flat_map(|id| id.to_be_bytes()).collect();
        for peer in &self.settings.peers {
            reply(&Message::Sync { beacon: self.settings.id, nodes: &nodes }, *peer, send);
        }
    }
}

fn reply(message: &Message<'_>, to: SocketAddr, send: &mut impl FnMut(SocketAddr, &[u8])) {
    let mut out = Vec::with_capacity(32);
    message.emit(&mut out);
    send(to, &out);
}
