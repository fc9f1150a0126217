//! The beacon's state: datagrams in, datagrams out (spec 04 sections 2 to 5). No I/O; the clock is passed in.

mod link;
mod pace;
mod queue;
mod relay;
pub(crate) mod socket;
mod sockets;
mod table;
pub(crate) mod task;
#[cfg(test)]
mod tests;
pub(crate) mod transmit;

use crate::config::Rate;
use crate::limits::{Buckets, Meter, network, source};
use pilot_proto::NodeId;
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::discover::SignedDiscover;
use queue::{Batch, Queues};
use sockets::Sockets;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use table::{Claim, Table};
use transmit::Sent;

/// Routes to nodes of other beacons.
const MAX_ROUTES: usize = 500_000;
/// Routes of a beacon that is silent for this long are dropped.
const ROUTE_TTL: Duration = Duration::from_secs(90);
/// Least time between two Notify messages to one node.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(2);
/// Node ids in one Sync: what a datagram carries.
const MAX_SYNC: usize = 16_000;
/// Shortest Discover answered at the second port: the longest reply. So that port never sends more than it receives.
const PROBE_LEN: usize = 20;
/// Discoveries answered, per source and per network.
const DISCOVERS: Rate = Rate { per_second: 100.0, burst: 1000.0 };
const NETWORK_DISCOVERS: Rate = Rate { per_second: 1000.0, burst: 10_000.0 };
/// Discoveries answered to addresses nothing vouches for, in all: spoofed ones may not take a processor.
const STRANGE_DISCOVERS: Rate = Rate { per_second: 10_000.0, burst: 10_000.0 };
/// Punch requests, per source and per network.
const PUNCHES: Rate = Rate { per_second: 5.0, burst: 20.0 };
const NETWORK_PUNCHES: Rate = Rate { per_second: 50.0, burst: 200.0 };
/// Punch commands sent to one target.
const PUNCHED: Rate = Rate { per_second: 5.0, burst: 20.0 };
/// Frames relayed for a node from its address, per address and port, in units of [`RELAY_UNIT`]: 160 MB/s for one that has
/// proven where it is, which is more than 1 Gbit/s; 40 MB/s for another. Half a second of it at once.
const PROVEN_RELAYS: Rate = Rate { per_second: 2_500_000.0, burst: 1_250_000.0 };
const RELAYS: Rate = Rate { per_second: 625_000.0, burst: 312_500.0 };
/// Bytes.
const RELAY_UNIT: usize = 64;
/// What a frame counts for at least, bytes: the work of a small one is not less. So 39,000 frames/s of any size to one that
/// has proven nothing.
const RELAY_LEAST: usize = 1024;
/// Frames relayed for senders whose address is not that of the node they name: per network, and per destination.
const STRANGE_RELAYS: Rate = Rate { per_second: 1000.0, burst: 2000.0 };
const STRANGE_DELIVERIES: Rate = Rate { per_second: 200.0, burst: 400.0 };

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub nodes: u64,
    /// Frames relayed, and their bytes on the way out.
    pub relayed: u64,
    pub relayed_bytes: u64,
    /// Frames not relayed: destination unknown.
    pub dropped: u64,
    /// Frames not relayed: over a budget.
    pub relay_limited: u64,
    /// Frames not relayed: too many wait for their destination, or in all.
    pub relay_overrun: u64,
    /// Frames the system refused to send: no way there, or too long for it.
    pub relay_unsent: u64,
    /// Answers the system did not take.
    pub answers_unsent: u64,
    pub punches: u64,
    /// Punch requests over a budget, or of a sender that is not where it says.
    pub punch_refused: u64,
    /// Discovers without an answer: over a budget.
    pub discover_limited: u64,
    /// Claims to a node that is at another address.
    pub claims_refused: u64,
    /// Claims over a budget or beyond the table.
    pub claims_dropped: u64,
    /// Datagrams that are no message to a beacon.
    pub garbage: u64,
    /// Nodes with a WebSocket.
    pub sockets: u64,
    /// Frames not relayed: the receiver's WebSocket takes them too slowly.
    pub slow_dropped: u64,
}

/// What the registry knows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub key: [u8; 32],
    /// Where it registered from.
    pub ip: Option<IpAddr>,
}

/// What the beacon asks the registry.
pub(crate) trait Directory {
    /// A registered node.
    fn find(&self, node: NodeId) -> Option<Known>;
    /// Whether the registry has or lately had a TCP connection from there: such an address is not spoofed.
    fn reached(&self, ip: IpAddr) -> bool;
}

/// Settings of a beacon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub id: u32,
    pub peers: Vec<SocketAddr>,
    pub exempt: Vec<(IpAddr, u8)>,
    pub exempt_loopback: bool,
    /// Name of the registry, which signed Discovers are made for.
    pub registry: String,
    /// Makes the cookies.
    pub secret: [u8; 32],
}

/// The beacon.
pub(crate) struct Beacon {
    settings: Settings,
    table: Table,
    sockets: Sockets,
    routes: HashMap<NodeId, SocketAddr>,
    /// When each peer beacon was last heard of.
    heard: HashMap<SocketAddr, Instant>,
    discovers: Buckets<IpAddr>,
    network_discovers: Buckets<IpAddr>,
    strange_discovers: Meter,
    punches: Buckets<IpAddr>,
    network_punches: Buckets<IpAddr>,
    punched: Buckets<NodeId>,
    relays: Buckets<SocketAddr>,
    proven_relays: Buckets<SocketAddr>,
    strange_relays: Buckets<IpAddr>,
    strange_deliveries: Buckets<NodeId>,
    queues: Queues,
    /// The socket took nothing more when it was last tried.
    full: bool,
    pub counters: Counters,
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl Beacon {
    pub fn new(mut settings: Settings) -> Beacon {
        settings.peers.iter_mut().for_each(|p| *p = canonical(*p));
        Beacon {
            table: Table::new(settings.registry.clone(), settings.secret),
            settings,
            sockets: Sockets::default(),
            routes: HashMap::new(),
            heard: HashMap::new(),
            discovers: Buckets::new(DISCOVERS),
            network_discovers: Buckets::new(NETWORK_DISCOVERS),
            strange_discovers: Meter::new(STRANGE_DISCOVERS),
            punches: Buckets::new(PUNCHES),
            network_punches: Buckets::new(NETWORK_PUNCHES),
            punched: Buckets::new(PUNCHED),
            relays: Buckets::new(RELAYS),
            proven_relays: Buckets::new(PROVEN_RELAYS),
            strange_relays: Buckets::new(STRANGE_RELAYS),
            strange_deliveries: Buckets::new(STRANGE_DELIVERIES),
            queues: Queues::default(),
            full: false,
            counters: Counters::default(),
        }
    }

    fn exempt(&self, ip: IpAddr) -> bool {
        (self.settings.exempt_loopback && ip.is_loopback())
            || self.settings.exempt.iter().any(|(net, prefix)| crate::limits::contains(*net, *prefix, ip))
    }

    /// The next frames to send; say with [`Beacon::sent`] what became of them.
    pub fn next(&mut self) -> Option<Batch> {
        self.queues.next()
    }

    /// What became of a batch. If the socket was full, what is left of it comes next again.
    pub fn sent(&mut self, batch: Batch, sent: &Sent) {
        self.count(sent);
        self.full = sent.full;
        match sent.full {
            true => self.queues.put_back(batch),
            false => self.queues.done(batch),
        }
    }

    fn count(&mut self, sent: &Sent) {
        self.counters.relayed += sent.frames;
        self.counters.relayed_bytes += sent.bytes;
        self.counters.relay_unsent += sent.refused;
    }

    /// Whether frames wait to be sent.
    pub fn waiting(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Hands all frames that wait to `send`, as a socket would that is never full.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub fn flush(&mut self, send: &mut impl FnMut(SocketAddr, &[u8])) {
        while let Some(batch) = self.next() {
            for frame in batch.bytes().chunks(batch.segment.max(1)) {
                send(batch.to, frame);
            }
            let sent =
                Sent { frames: batch.frames() as u64, bytes: batch.bytes().len() as u64, ..Sent::default() };
            self.sent(batch, &sent);
        }
    }

    /// Handles a datagram.
    fn handle(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let from = canonical(from);
        match Message::parse(datagram) {
            Ok(Message::Discover { node, .. }) => {
                let proof = SignedDiscover::parse(datagram);
                self.discover(from, node, proof.as_ref(), directory, now, send);
            }
            Ok(Message::DiscoverEx { node }) => {
                self.discover(from, node, None, directory, now, send);
                if let Some(entry) = self.table.get_mut(node).filter(|e| e.addr == from) {
                    entry.named = true;
                }
            }
            Ok(Message::PunchRequest { requester, target }) => {
                self.punch(from, requester, target, directory, now, send);
            }
            Ok(Message::Sync { nodes, .. }) => self.sync(from, nodes, now),
            // Messages a beacon sends, unknown types and broken ones: dropped without an answer.
            _ => self.counters.garbage += 1,
        }
    }

    fn discover(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        proof: Option<&SignedDiscover<'_>>,
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let exempt = self.exempt(from.ip());
        if !exempt && !self.answers(from, node, directory, now) {
            return;
        }
        self.claim(from, node, proof, exempt, directory, now);
        // Only who asks with more than the reply gets the longer one.
        let cookie = proof.map(|_| self.table.cookie(node, from, now));
        let mut out = Vec::with_capacity(32);
        Message::DiscoverReply(from).emit(&mut out);
        out.extend_from_slice(cookie.as_ref().map_or(&[], |c| &c[..]));
        send(from, &out);
    }

    /// Whether a Discover from there is within the budgets.
    fn answers(&mut self, from: SocketAddr, node: NodeId, directory: &impl Directory, now: Instant) -> bool {
        let known = self.table.get(node).is_some_and(|e| e.addr == from) || directory.reached(from.ip());
        let allowed = self.discovers.take(source(from.ip()), now)
            && self.network_discovers.take(network(from.ip()), now)
            && (known || self.strange_discovers.charge(1, now, Duration::ZERO).is_ok());
        self.counters.discover_limited += u64::from(!allowed);
        allowed
    }

    /// Handles a datagram at the second port, where a Discover is answered and nothing is remembered: a node behind a
    /// NAT that maps per destination has another address there, at which nothing else reaches it.
    pub fn probe(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let from = canonical(from);
        let node = match Message::parse(datagram) {
            Ok(Message::Discover { node, .. }) if datagram.len() >= PROBE_LEN => node,
            _ => return self.counters.garbage += 1,
        };
        if self.exempt(from.ip()) || self.answers(from, node, directory, now) {
            reply(&Message::DiscoverReply(from), from, send);
        }
    }

    /// Takes note of where a node says it is; false if that is not where it is taken to be.
    fn claim(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        proof: Option<&SignedDiscover<'_>>,
        exempt: bool,
        directory: &impl Directory,
        now: Instant,
    ) -> bool {
        let claim = self.table.claim(from, node, proof, exempt, directory, now);
        self.counters.nodes = self.table.len() as u64;
        match claim {
            Claim::Held => {}
            Claim::Refused => self.counters.claims_refused += 1,
            Claim::Dropped => self.counters.claims_dropped += 1,
        }
        claim == Claim::Held
    }

    fn punch(
        &mut self,
        from: SocketAddr,
        requester: NodeId,
        target: NodeId,
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let exempt = self.exempt(from.ip());
        let ip = from.ip();
        let allowed =
            exempt || (self.punches.take(source(ip), now) && self.network_punches.take(network(ip), now));
        // Punch commands name addresses: only that of a node that is known to be there.
        if !allowed || requester == 0 || !self.claim(from, requester, None, exempt, directory, now) {
            self.counters.punch_refused += 1;
            return;
        }
        // A node with a WebSocket has no UDP to punch with.
        let reachable = self.table.get(target).filter(|_| !self.sockets.has(target));
        let Some(target_addr) = reachable.map(|e| e.addr) else {
            tracing::trace!(requester, target, "punch target is not at this beacon");
            return;
        };
        // Both commands to one address would be two datagrams for one.
        if target_addr == from || (!exempt && !self.punched.take(target, now)) {
            self.counters.punch_refused += 1;
            return;
        }
        // To observed addresses only: the request itself names none.
        reply(&Message::PunchCommand(target_addr), from, send);
        reply(&Message::PunchCommand(from), target_addr, send);
        self.counters.punches += 1;
    }

    fn sync(&mut self, from: SocketAddr, nodes: &[u8], now: Instant) {
        if !self.settings.peers.contains(&from) {
            self.counters.garbage += 1;
            return;
        }
        self.heard.insert(from, now);
        self.routes.retain(|_, via| *via != from);
        for id in nodes.as_chunks::<4>().0 {
            let id = u32::from_be_bytes(*id);
            let ours = self.sockets.has(id) || self.table.get(id).is_some_and(|entry| !entry.weak);
            if !ours && self.routes.len() < MAX_ROUTES {
                self.routes.insert(id, from);
            }
        }
    }

    /// A node has registered, from this IP address.
    pub fn registered(&mut self, node: NodeId, ip: Option<IpAddr>, now: Instant) {
        self.table.registered(node, ip, now);
    }

    /// Tells a node that something waits for it at the registry.
    pub fn notify(&mut self, node: NodeId, now: Instant, send: &mut impl FnMut(SocketAddr, &[u8])) {
        if self.sockets.has(node) {
            return self.sockets.notify(node, now);
        }
        let Some(entry) = self.table.get_mut(node) else { return };
        if entry.notified.is_some_and(|at| now.saturating_duration_since(at) < NOTIFY_INTERVAL) {
            return;
        }
        entry.notified = Some(now);
        reply(&Message::Notify { kind: pilot_proto::wire::beacon::NOTIFY_HANDSHAKE }, entry.addr, send);
    }

    /// Forgets silent nodes and routes of silent beacons. Call it about once a minute.
    pub fn sweep(&mut self, now: Instant) {
        self.table.sweep(now);
        self.counters.nodes = self.table.len() as u64;
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < ROUTE_TTL);
        self.routes.retain(|_, via| self.heard.contains_key(via));
    }

    /// Tells the peer beacons which nodes are here. Call it every 10 s.
    pub fn announce(&self, send: &mut impl FnMut(SocketAddr, &[u8])) {
        if self.settings.peers.is_empty() {
            return;
        }
        let by_udp = self.table.ids().filter(|(id, weak)| !weak || !self.routes.contains_key(id));
        let by_udp = by_udp.map(|(id, _)| id).filter(|id| !self.sockets.has(*id));
        let nodes: Vec<u8> =
            self.sockets.ids().chain(by_udp).take(MAX_SYNC).flat_map(NodeId::to_be_bytes).collect();
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
