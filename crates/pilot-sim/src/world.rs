//! The world: nodes, beacon, directory and network on one clock, and the loop that runs them.

use crate::app::{PORT, Stream};
use crate::beacon::Beacon;
use crate::check::{Sabotage, Taken, Violation, Wire, pattern};
use crate::net::{Flight, Micros, Nat, Network, Place, SECOND, beacon_addr};
use crate::plan::{FAULTS_END, Plan, StreamPlan};
use crate::process::{self, Process};
use crate::report::Report;
use crate::rng::Rng;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Event, Output, Route};
use pilot_proto::stream::ConnId;
use pilot_proto::{Addr, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Every pair has exchanged a stream by this time after the last fault.
pub const CONNECTED_WITHIN: Micros = 60 * SECOND;
/// Every stream has ended by this time after the last fault: the idle time of a connection (120 s) and its three
/// keepalives, once for each of two sides in a row.
pub const ENDED_WITHIN: Micros = 360 * SECOND;
/// After that every connection is gone from every table.
const LINGER: Micros = 15 * SECOND;
/// Between two chunks of a slow reader.
const SLOW: Micros = SECOND / 2;
/// Outputs of one node in one turn.
const MAX_TURN: u32 = 200_000;
/// Turns without the clock moving.
const MAX_STILL: u32 = 100_000;
/// Datagrams carry their number in the first four bytes and this pattern.
const DATAGRAM_TAG: u64 = 1 << 40;

/// How a node's applications read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At once.
    Fast,
    /// A chunk now and then.
    Slow,
    /// Not at all.
    Stuck,
}

/// Something due at a time.
#[derive(Debug)]
pub enum Happening {
    /// A datagram arrives.
    Arrival(Flight),
    /// A node's timer, unless it was moved.
    Wake(usize),
    /// The directory answers a process about a node's key.
    Key(usize, u32, NodeId),
    /// The directory answers a process about a node's address.
    Where(usize, u32, NodeId),
    /// The directory answers a process that a node may come in.
    Admit(usize, u32, NodeId),
    /// The directory learns an address.
    Register(usize, SocketAddr),
    /// A fault begins.
    Fault(usize),
    /// A fault ends.
    Mend(usize),
    /// A node starts.
    Start(usize),
    /// A stream is opened.
    Open(u32),
    /// A stream is aborted by its application.
    Abort(u32),
    /// A datagram is sent.
    Datagram(usize),
    /// A slow reader reads.
    Read(usize),
}

/// One node.
pub struct Node {
    /// Its key pair, which survives restarts.
    pub identity: Arc<Identity>,
    /// Its process, if it runs.
    pub engine: Option<Box<dyn Process>>,
    /// Number of its process.
    pub life: u32,
    /// How far its clock is ahead.
    pub ahead: Micros,
    /// Its clock jumped by more than half the idle time of connections: it may end them without being asked.
    pub slept: bool,
    /// When its engine wants to be woken (virtual time).
    pub wake: Option<Micros>,
    /// Connections and the side of the stream they are.
    pub conns: BTreeMap<ConnId, (u32, usize)>,
    /// Accepted connections that have not said which stream they are.
    pub strangers: BTreeMap<ConnId, Vec<u8>>,
    /// How its applications read.
    pub reading: Reading,
    taken: Taken,
    datagrams: BTreeSet<u32>,
    /// Turns it had.
    pub turns: u32,
}

/// A world.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Micros,
    base: Instant,
    rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Network,
    pub(crate) beacon: Option<Beacon>,
    pub(crate) directory_up: bool,
    addresses: BTreeMap<usize, SocketAddr>,
    wire: Wire,
    pub(crate) streams: Vec<Stream>,
    queue: BTreeMap<(Micros, u64), Happening>,
    serial: u64,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) lied: bool,
    pub(crate) report: Report,
}

fn identity(rng: &mut Rng) -> Arc<Identity> {
    // Every seed is valid; the library does not fail for want of memory in a simulation.
    #[allow(clippy::expect_used)]
    Arc::new(Identity::from_seed(rng.secret()).expect("every 32 bytes are an Ed25519 seed"))
}

impl World {
    /// The world of a seed, at its beginning.
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(seed, &mut rng);
        let mut net = Network::default();
        let mut nodes = Vec::new();
        for (i, node) in plan.nodes.iter().enumerate() {
            net.nats.push(Nat::new(node.nat, i));
            net.links.push(node.link.clone());
            nodes.push(Node {
                identity: identity(&mut rng),
                engine: None,
                life: 0,
                ahead: 0,
                slept: false,
                wake: None,
                conns: BTreeMap::new(),
                strangers: BTreeMap::new(),
                reading: Reading::Fast,
                taken: Taken::default(),
                datagrams: BTreeSet::new(),
                turns: 0,
            });
        }
        let mut world = World {
            now: 0,
            base: Instant::now(),
            rng,
            nodes,
            net,
            beacon: Some(Beacon::default()),
            directory_up: true,
            addresses: BTreeMap::new(),
            wire: Wire::default(),
            streams: Vec::new(),
            queue: BTreeMap::new(),
            serial: 0,
            sabotage,
            lied: false,
            report: Report::default(),
            plan,
        };
        for i in 0..world.nodes.len() {
            let at = world.rng.range(0, SECOND / 2);
            world.at(at, Happening::Start(i));
        }
        for plan in world.plan.streams.clone() {
            world.add_stream(plan);
        }
        for i in 0..world.plan.datagrams.len() {
            world.at(world.plan.datagrams[i].at, Happening::Datagram(i));
        }
        for i in 0..world.plan.faults.len() {
            let (from, until, _) = world.plan.faults[i];
            world.at(from, Happening::Fault(i));
            world.at(until, Happening::Mend(i));
        }
        world
    }

    pub(crate) fn at(&mut self, at: Micros, what: Happening) {
        self.serial += 1;
        self.queue.insert((at, self.serial), what);
    }

    pub(crate) fn add_stream(&mut self, plan: StreamPlan) {
        let id = self.streams.len() as u32;
        self.at(plan.at, Happening::Open(id));
        self.streams.push(Stream::new(plan));
    }

    /// Whether the harness is to tell this lie now: once per world.
    pub(crate) fn lie(&self, what: Sabotage) -> bool {
        self.sabotage == Some(what) && !self.lied
    }

    /// A node's clock.
    pub(crate) fn clock(&self, n: usize) -> Instant {
        self.base + Duration::from_micros(self.now + self.nodes[n].ahead)
    }

    /// Runs to the end.
    pub fn run(mut self) -> (Report, Result<(), Violation>) {
        let result = self.run_all();
        self.report.trace = self.wire.trace;
        self.report.net = self.net.stats;
        self.report.nodes = self.nodes.len();
        self.report.streams = self.streams.len();
        self.report.complete = self.streams.iter().filter(|s| s.complete()).count();
        self.report.virtual_time = self.now;
        (self.report, result)
    }

    fn run_all(&mut self) -> Result<(), Violation> {
        self.run_until(FAULTS_END, |_| false)?;
        self.add_probes();
        let connected = FAULTS_END + CONNECTED_WITHIN;
        self.run_until(connected, |w| w.now > FAULTS_END + SECOND && w.unreached().is_none())?;
        if let Some((a, b)) = self.unreached() {
            return Err(Violation::Unreachable { a, b, after: CONNECTED_WITHIN / SECOND });
        }
        self.report.connected_after = self.now - FAULTS_END;
        self.run_until(FAULTS_END + ENDED_WITHIN, |w| w.unended().is_none())?;
        if let Some((stream, side)) = self.unended() {
            return Err(Violation::NeverEnded { stream, side, after: ENDED_WITHIN / SECOND });
        }
        self.report.ended_after = self.now - FAULTS_END;
        self.check_complete()?;
        // Strangers have no stream to wait for; they end like any idle connection.
        let end = FAULTS_END + ENDED_WITHIN;
        self.run_until(end, |w| w.nodes.iter().all(|n| n.strangers.is_empty()))?;
        self.run_until(self.now + LINGER, |_| false)?;
        for (i, node) in self.nodes.iter().enumerate() {
            let left = node.engine.as_ref().map_or(0, |e| e.sizes().connections);
            if left > 0 {
                let (node, count) = (i as u32 + 1, left as u64);
                return Err(Violation::TooMuch { node, what: "connections after the end", count, bound: 0 });
            }
        }
        Ok(())
    }

    fn run_until(&mut self, end: Micros, done: impl Fn(&World) -> bool) -> Result<(), Violation> {
        let mut still = 0;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            still = if at > self.now { 0 } else { still + 1 };
            if still > MAX_STILL {
                return Err(Violation::NoRest { node: 0 });
            }
            let second = at / SECOND > self.now / SECOND;
            self.now = self.now.max(at);
            self.happen(what)?;
            if second && done(self) {
                return Ok(());
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    fn happen(&mut self, what: Happening) -> Result<(), Violation> {
        match what {
            Happening::Arrival(flight) => self.arrive(flight),
            Happening::Wake(n) => {
                if self.nodes[n].wake != Some(self.now) {
                    return Ok(());
                }
                self.nodes[n].wake = None;
                let now = self.clock(n);
                if let Some(engine) = self.nodes[n].engine.as_mut() {
                    engine.handle_timeout(now);
                }
                self.drive(n)
            }
            Happening::Key(n, life, about) => {
                let up = self.directory_up;
                let key = self.nodes.get(about as usize - 1).filter(|_| up).map(|p| *p.identity.public_key());
                self.answer(n, life, |engine, now| engine.set_peer_key(now, about, key))
            }
            Happening::Where(n, life, about) => {
                let route = if self.directory_up {
                    let direct = self.addresses.get(&(about as usize - 1)).copied().into_iter().collect();
                    Ok(Route { direct, relay_only: false })
                } else {
                    Err("registry unreachable".to_string())
                };
                self.answer(n, life, |engine, now| engine.set_route(now, about, route))
            }
            Happening::Admit(n, life, about) => {
                let up = self.directory_up;
                self.answer(n, life, |engine, now| {
                    if up {
                        engine.admit(about, now + Duration::from_secs(60));
                    }
                })
            }
            Happening::Register(n, addr) => {
                if self.directory_up {
                    self.addresses.insert(n, addr);
                }
                Ok(())
            }
            Happening::Fault(i) => self.begin(i),
            Happening::Mend(i) => self.mend(i),
            Happening::Start(n) => self.start(n),
            Happening::Open(id) => self.start_stream(id),
            Happening::Abort(id) => self.abort_stream(id),
            Happening::Datagram(i) => self.send_datagram(i),
            Happening::Read(n) => self.slow_read(n),
        }
    }

    fn answer(
        &mut self,
        n: usize,
        life: u32,
        f: impl FnOnce(&mut dyn Process, Instant),
    ) -> Result<(), Violation> {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        match node.engine.as_mut().filter(|_| node.life == life) {
            Some(engine) => f(engine.as_mut(), now),
            None => return Ok(()),
        }
        self.drive(n)
    }

    /// Starts a node's process, with nothing but its identity.
    pub(crate) fn start(&mut self, n: usize) -> Result<(), Violation> {
        let secrets = [self.rng.secret(), self.rng.secret()];
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let plan = &self.plan.nodes[n];
        let identity = node.identity.clone();
        let start = process::Start { identity, node: n as NodeId + 1, public: plan.public, secrets };
        let mut engine = process::start(plan.kind, start, now);
        engine.listen(PORT);
        engine.set_beacon(now, beacon_addr());
        node.life += 1;
        node.engine = Some(engine);
        (node.taken, node.datagrams, node.wake) = (Taken::default(), BTreeSet::new(), None);
        self.drive(n)
    }

    /// The process dies.
    pub(crate) fn stop(&mut self, n: usize) {
        self.nodes[n].engine = None;
        self.nodes[n].wake = None;
        self.lose_streams(n);
    }

    fn arrive(&mut self, flight: Flight) -> Result<(), Violation> {
        let Some(place) = self.net.receiver(self.now, &flight) else { return Ok(()) };
        let Flight { from, mut bytes, .. } = flight;
        match place {
            Place::Beacon => {
                self.wire.on_arrival(self.now, usize::MAX, &bytes);
                let out = self.beacon.as_mut().map(|b| b.handle(from, &bytes)).unwrap_or_default();
                for (to, bytes) in out {
                    self.send(Place::Beacon, to, &bytes);
                }
                Ok(())
            }
            Place::Node(n) => {
                self.wire.on_arrival(self.now, n, &bytes);
                let frame = self.wire.genuine(&bytes);
                let now = self.clock(n);
                let lie = self.lie(Sabotage::AcceptReplay) && self.nodes[n].taken.has(frame);
                let node = &mut self.nodes[n];
                let Some(engine) = node.engine.as_mut() else { return Ok(()) };
                let before = engine.opened();
                engine.handle_datagram(now, from, &mut bytes);
                let after = engine.opened() + u64::from(lie);
                node.taken.on_handled(n as u32 + 1, frame, (before, after))?;
                self.drive(n)
            }
        }
    }

    fn send(&mut self, from: Place, to: SocketAddr, bytes: &[u8]) {
        for (at, flight) in self.net.send(self.now, &mut self.rng, from, to, bytes) {
            self.at(at.max(self.now + 1), Happening::Arrival(flight));
        }
    }

    /// Lets a node do everything it has to do now.
    pub(crate) fn drive(&mut self, n: usize) -> Result<(), Violation> {
        let mut buf = Vec::new();
        for _ in 0..MAX_TURN {
            let now = self.clock(n);
            let Some(engine) = self.nodes[n].engine.as_mut() else { return Ok(()) };
            match engine.poll_output(now, &mut buf) {
                Output::Transmit(t) => {
                    for bytes in buf.chunks(t.segment_size.unwrap_or(t.len).max(1)) {
                        let reuse = self.lie(Sabotage::ReuseNonce);
                        self.wire.on_send(bytes, reuse)?;
                        self.send(Place::Node(n), t.to, bytes);
                    }
                }
                Output::Event(event) => self.on_event(n, event)?,
                Output::Timeout(at) => {
                    self.arm(n, at);
                    return self.check_bounds(n);
                }
            }
        }
        Err(Violation::NoRest { node: n as u32 + 1 })
    }

    fn arm(&mut self, n: usize, at: Option<Instant>) {
        let Some(at) = at else {
            self.nodes[n].wake = None;
            return;
        };
        let micros = at.saturating_duration_since(self.base).as_nanos().div_ceil(1_000) as u64;
        let at = micros.saturating_sub(self.nodes[n].ahead).max(self.now);
        if self.nodes[n].wake != Some(at) {
            self.nodes[n].wake = Some(at);
            self.at(at, Happening::Wake(n));
        }
    }

    fn on_event(&mut self, n: usize, event: Event) -> Result<(), Violation> {
        let life = self.nodes[n].life;
        let soon = self.now + self.rng.range(2_000, 50_000);
        match event {
            Event::NeedKey(node) => self.at(soon, Happening::Key(n, life, node)),
            Event::NeedRoute(node) => self.at(soon, Happening::Where(n, life, node)),
            Event::Knock { node, .. } => self.at(soon, Happening::Admit(n, life, node)),
            Event::Observed(addr) => self.at(soon, Happening::Register(n, addr)),
            Event::Stream(event) => self.on_stream_event(n, event)?,
            Event::Datagram { src, payload, .. } => {
                self.on_datagram(n, src, &payload)?;
                if self.lie(Sabotage::RepeatDatagram) {
                    self.on_datagram(n, src, &payload)?;
                }
            }
            Event::TunnelEstablished { relay, rekeyed, .. } => {
                self.report.tunnels_relayed += u64::from(relay);
                self.report.tunnels_direct += u64::from(!relay);
                self.report.rekeyed += u64::from(rekeyed);
            }
            Event::PeerKeyProven { .. }
            | Event::OtherKeyProven { .. }
            | Event::Notified
            | Event::Publish(..)
            | Event::Pong { .. } => {}
        }
        Ok(())
    }

    fn send_datagram(&mut self, i: usize) -> Result<(), Violation> {
        let plan = self.plan.datagrams[i];
        let mut payload = pattern(DATAGRAM_TAG + i as u64, 0, plan.len);
        payload[..4].copy_from_slice(&(i as u32).to_be_bytes());
        let now = self.clock(plan.from);
        if let Some(engine) = self.nodes[plan.from].engine.as_mut() {
            // Refused when too many wait for a session; that is no fault.
            let sent = engine.send_datagram(now, Addr::backbone(plan.to as NodeId + 1), 9, &payload);
            self.report.datagrams_sent += u64::from(sent);
        }
        self.drive(plan.from)
    }

    fn on_datagram(&mut self, n: usize, src: Addr, payload: &[u8]) -> Result<(), Violation> {
        let node = n as u32 + 1;
        let altered = Violation::DatagramAltered { node };
        let Some(id) = payload.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Err(altered);
        };
        let Some(plan) = self.plan.datagrams.get(id as usize) else { return Err(altered) };
        let expected = pattern(DATAGRAM_TAG + u64::from(id), 0, plan.len);
        let lie = self.lie(Sabotage::AlterDatagram);
        let same = payload.len() == plan.len && payload[4..] == expected[4..] && !lie;
        if plan.to != n || src.node != plan.from as NodeId + 1 || !same {
            return Err(altered);
        }
        if !self.nodes[n].datagrams.insert(id) {
            return Err(Violation::DatagramTwice { node, id });
        }
        self.report.datagrams_received += 1;
        Ok(())
    }

    /// A slow reader takes one chunk of every connection.
    fn slow_read(&mut self, n: usize) -> Result<(), Violation> {
        if self.nodes[n].reading != Reading::Slow {
            return Ok(());
        }
        self.read_all(n, 1)?;
        self.at(self.now + SLOW, Happening::Read(n));
        Ok(())
    }

    /// Reads what the applications of a node left unread.
    pub(crate) fn read_all(&mut self, n: usize, most: usize) -> Result<(), Violation> {
        let all: Vec<(u32, usize)> = self.nodes[n].conns.values().copied().collect();
        for (id, side) in all {
            self.pump_read(n, id, side, most)?;
        }
        self.drive(n)
    }
}
