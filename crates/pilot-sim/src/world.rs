//! The world: nodes, beacons, directory and network on one clock, and the loop that runs them.

use crate::app::{PORT, Stream};
use crate::check::{Sabotage, Taken, Violation, Wire};
use crate::directory::MAINTAIN;
use crate::fault::Kind;
use crate::job::Job;
use crate::net::{Flight, Micros, Nat, Network, Place, SECOND, beacon_addr};
use crate::plan::{FAULTS_END, Plan, StreamPlan};
use crate::process::{self, Process};
use crate::reference;
use crate::report::Report;
use crate::rng::Rng;
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Event, Output};
use pilot_proto::stream::ConnId;
use pilot_rendezvous::simulation::{Directory, Relay};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Every pair that tries has exchanged a stream by this time after the last fault.
pub const CONNECTED_WITHIN: Micros = 60 * SECOND;
/// Excuse: a reference node tells its beacon its address every 60 s only, and until then nobody gets through to it (spec
/// 04 section 12); a dial may have to fail first (31.75 s).
pub const REFERENCE_CONNECTED_WITHIN: Micros = CONNECTED_WITHIN + 92 * SECOND;
/// Every job is done by this time after the last fault.
pub const DONE_WITHIN: Micros = 60 * SECOND;
/// Excuse: the same for jobs with a reference node, which cannot begin before the two are connected.
pub const REFERENCE_DONE_WITHIN: Micros = DONE_WITHIN + REFERENCE_CONNECTED_WITHIN - CONNECTED_WITHIN;
/// Every stream has ended by this time after the last fault: the idle time of a connection (120 s) and its three
/// keepalives, once for each of two sides in a row.
pub const ENDED_WITHIN: Micros = 360 * SECOND;
/// After that every connection is gone from every table.
const LINGER: Micros = 15 * SECOND;
/// Excuse: reference nodes look at their connections every 15 s, and forget those over for 10 s.
const REFERENCE_LINGER: Micros = 30 * SECOND;
/// Outputs of one node in one turn.
const MAX_TURN: u32 = 200_000;
/// Turns without the clock moving.
const MAX_STILL: u32 = 100_000;
/// Datagrams the socket of a frozen process keeps.
const SOCKET_BUFFER: usize = 150;

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
    /// The directory answers a process whether a node may come in.
    Admit(usize, u32, NodeId),
    /// A node learns its address.
    Register(usize, u32, SocketAddr),
    /// A fault begins.
    Fault(usize),
    /// A fault ends.
    Mend(usize),
    /// A node's key rotation is due.
    Rotate(usize),
    /// The nodes of a lost beacon leave it.
    LeaveBeacon(usize),
    /// A beacon's regular work.
    Maintain(usize),
    /// A node starts.
    Start(usize),
    /// A stream is opened.
    Open(u32),
    /// A job is attempted.
    Job(usize),
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
    pub process: Option<Box<dyn Process>>,
    /// Number of its process.
    pub life: u32,
    /// How far its clock is ahead.
    pub ahead: Micros,
    /// Its clock jumped by more than half the idle time of connections: it may end them without being asked.
    pub slept: bool,
    /// Its clock jumped so far that it no longer knows which datagrams it has taken a moment ago.
    pub forgetful: bool,
    /// It is stopped, and its socket holds these.
    pub frozen: Option<Vec<Flight>>,
    /// The beacon it uses.
    pub beacon: usize,
    /// Its address as the beacon saw it last.
    pub endpoint: Option<SocketAddr>,
    /// The directory has that.
    pub registered: bool,
    /// Keys of other nodes it has learnt; a restart with memory keeps them.
    pub known: BTreeMap<NodeId, [u8; 32]>,
    /// When its process wants to be woken (virtual time).
    pub wake: Option<Micros>,
    /// Connections and the side of the stream they are.
    pub conns: BTreeMap<ConnId, (u32, usize)>,
    /// Accepted connections that have not said which stream they are.
    pub strangers: BTreeMap<ConnId, Vec<u8>>,
    /// How its applications read.
    pub reading: Reading,
    /// Datagrams its applications got from this process.
    pub datagrams: BTreeSet<u32>,
    /// When it, being of the reference, last sent packets to a node again under a new key.
    pub salvaged: BTreeMap<NodeId, Micros>,
    /// Turns it had.
    pub turns: u32,
    taken: Taken,
}

/// A world.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Micros,
    pub(crate) base: Instant,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Network,
    pub(crate) relays: Vec<Option<Relay>>,
    pub(crate) lost_beacon: Option<usize>,
    pub(crate) directory: Directory,
    pub(crate) directory_up: bool,
    wire: Wire,
    pub(crate) streams: Vec<Stream>,
    pub(crate) jobs: Vec<Job>,
    queue: BTreeMap<(Micros, u64), Happening>,
    serial: u64,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) lied: bool,
    /// Events are printed.
    pub(crate) tracing: bool,
    pub(crate) report: Report,
}

/// A fresh key pair.
pub(crate) fn identity(rng: &mut Rng) -> Identity {
    // Every seed is valid; the library does not fail for want of memory in a simulation.
    #[allow(clippy::expect_used)]
    Identity::from_seed(rng.secret()).expect("every 32 bytes are an Ed25519 seed")
}

impl Node {
    fn new(identity: Identity, beacon: usize) -> Node {
        Node {
            identity: Arc::new(identity),
            process: None,
            life: 0,
            ahead: 0,
            slept: false,
            forgetful: false,
            frozen: None,
            beacon,
            endpoint: None,
            registered: false,
            known: BTreeMap::new(),
            wake: None,
            conns: BTreeMap::new(),
            strangers: BTreeMap::new(),
            reading: Reading::Fast,
            datagrams: BTreeSet::new(),
            salvaged: BTreeMap::new(),
            turns: 0,
            taken: Taken::default(),
        }
    }
}

impl World {
    /// The world of a seed, at its beginning.
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(seed, &mut rng);
        World::of_plan(plan, rng, sabotage)
    }

    /// The same with some nodes of the reference.
    pub fn mixed(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::mixed(seed, &mut rng);
        World::of_plan(plan, rng, None)
    }

    fn of_plan(plan: Plan, mut rng: Rng, sabotage: Option<Sabotage>) -> World {
        let mut net = Network { beacons: plan.beacons, ..Network::default() };
        let mut nodes = Vec::new();
        for (i, node) in plan.nodes.iter().enumerate() {
            net.nats.push(Nat::new(node.nat, i));
            net.links.push(node.link.clone());
            nodes.push(Node::new(identity(&mut rng), node.beacon));
        }
        let base = Instant::now();
        let mut world = World {
            now: 0,
            base,
            rng,
            nodes,
            net,
            relays: (0..plan.beacons).map(|_| None).collect(),
            lost_beacon: None,
            directory: Directory::new(beacon_addr(0), base),
            directory_up: true,
            wire: Wire::default(),
            streams: Vec::new(),
            jobs: plan.jobs.iter().map(|plan| Job::new(*plan)).collect(),
            queue: BTreeMap::new(),
            serial: 0,
            sabotage,
            lied: false,
            tracing: false,
            report: Report::default(),
            plan,
        };
        world.schedule();
        world
    }

    fn schedule(&mut self) {
        self.enroll();
        for b in 0..self.plan.beacons {
            self.start_beacon(b);
            self.at(MAINTAIN / 2 + b as Micros, Happening::Maintain(b));
        }
        for i in 0..self.nodes.len() {
            let at = self.rng.range(0, SECOND / 2);
            self.at(at, Happening::Start(i));
        }
        for plan in self.plan.streams.clone() {
            self.add_stream(plan);
        }
        for i in 0..self.jobs.len() {
            self.at(self.plan.jobs[i].at, Happening::Job(i));
        }
        for i in 0..self.plan.datagrams.len() {
            self.at(self.plan.datagrams[i].at, Happening::Datagram(i));
        }
        for i in 0..self.plan.faults.len() {
            let (from, until, _) = self.plan.faults[i];
            self.at(from, Happening::Fault(i));
            self.at(until, Happening::Mend(i));
        }
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

    /// Prints a line for a human who replays a seed.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>12.6} {}", self.now as f64 / SECOND as f64, line());
        }
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
        self.run_until(connected, |w| w.now > FAULTS_END + SECOND && w.unreached(true).is_none())?;
        if let Some((a, b)) = self.unreached(false) {
            return Err(Violation::Unreachable { a, b, after: CONNECTED_WITHIN / SECOND });
        }
        self.run_until(FAULTS_END + DONE_WITHIN, |w| {
            w.unreached(true).is_none() && w.undone(true).is_none()
        })?;
        if let Some(job) = self.undone(false) {
            return Err(Violation::JobUndone { job, after: DONE_WITHIN / SECOND });
        }
        self.run_until(FAULTS_END + REFERENCE_CONNECTED_WITHIN, |w| w.unreached(true).is_none())?;
        if let Some((a, b)) = self.unreached(true) {
            return Err(Violation::Unreachable { a, b, after: REFERENCE_CONNECTED_WITHIN / SECOND });
        }
        self.run_until(FAULTS_END + REFERENCE_DONE_WITHIN, |w| w.undone(true).is_none())?;
        if let Some(job) = self.undone(true) {
            return Err(Violation::JobUndone { job, after: REFERENCE_DONE_WITHIN / SECOND });
        }
        self.run_until(FAULTS_END + ENDED_WITHIN, |w| w.unended().is_none())?;
        if let Some((stream, side)) = self.unended() {
            return Err(Violation::NeverEnded { stream, side, after: ENDED_WITHIN / SECOND });
        }
        self.report.ended_after = self.now - FAULTS_END;
        // Strangers have no stream to wait for; they end like any idle connection. One may come late: a reference node sends the
        // SYN of a dial that it has given up when it agrees on a key at last (spec 02 section 12).
        let end = FAULTS_END + ENDED_WITHIN;
        let lingers = (0..self.nodes.len()).any(|n| self.plan.reference(n));
        let strangers = |w: &World| w.nodes.iter().any(|n| !n.strangers.is_empty());
        loop {
            self.run_until(end, |w| !strangers(w))?;
            self.run_until(self.now + if lingers { REFERENCE_LINGER } else { LINGER }, |_| false)?;
            if !strangers(self) || self.now >= end {
                break;
            }
        }
        self.check_end_of_world()
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
                self.wake(n)
            }
            Happening::Key(n, life, about) => self.answer_key(n, life, about),
            Happening::Where(n, life, about) => self.answer_route(n, life, about),
            Happening::Admit(n, life, about) => self.answer_knock(n, life, about),
            Happening::Register(n, life, at) => {
                if self.nodes[n].life == life && self.nodes[n].process.is_some() {
                    self.observed(n, at);
                }
                Ok(())
            }
            Happening::Fault(i) => self.begin(i),
            Happening::Mend(i) => self.mend(i),
            Happening::Rotate(n) => self.rotate(n),
            Happening::LeaveBeacon(b) => self.leave_beacon(b),
            Happening::Maintain(b) => {
                self.maintain(b);
                Ok(())
            }
            Happening::Start(n) => self.start(n, false),
            Happening::Open(id) => self.start_stream(id),
            Happening::Job(job) => {
                self.attempt(job);
                Ok(())
            }
            Happening::Abort(id) => self.abort_stream(id),
            Happening::Datagram(i) => self.send_datagram(i),
            Happening::Read(n) => self.slow_read(n),
        }
    }

    /// Starts a node's process with its identity, and with what it had on its disk if it has memory.
    pub(crate) fn start(&mut self, n: usize, memory: bool) -> Result<(), Violation> {
        self.note(|| format!("node {}: process starts, memory: {memory}", n + 1));
        let secrets = [self.rng.secret(), self.rng.secret()];
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let plan = &self.plan.nodes[n];
        let identity = node.identity.clone();
        let start = process::Start { identity, node: n as NodeId + 1, public: plan.public, secrets };
        let mut process = process::start(plan.kind, start, now);
        if !memory {
            node.known.clear();
        }
        for (peer, key) in &node.known {
            process.set_peer_key(now, *peer, Some(*key));
        }
        process.listen(PORT);
        process.set_beacon(now, beacon_addr(node.beacon));
        node.life += 1;
        node.process = Some(process);
        (node.taken, node.datagrams, node.wake) = (Taken::default(), BTreeSet::new(), None);
        self.register(n);
        self.drive(n)
    }

    /// The process dies. Without memory the next one has another port.
    pub(crate) fn stop(&mut self, n: usize, memory: bool) {
        self.sample(n);
        self.nodes[n].process = None;
        self.nodes[n].wake = None;
        self.nodes[n].frozen = None;
        if !memory {
            self.net.nats[n].rebind();
            self.nodes[n].endpoint = None;
        }
        self.lose_streams(n);
    }

    /// A node looks at its clock.
    pub(crate) fn wake(&mut self, n: usize) -> Result<(), Violation> {
        if self.nodes[n].frozen.is_some() {
            return Ok(());
        }
        let now = self.clock(n);
        if let Some(process) = self.nodes[n].process.as_mut() {
            process.handle_timeout(now);
        }
        self.drive(n)
    }

    fn arrive(&mut self, flight: Flight) -> Result<(), Violation> {
        let Some(place) = self.net.receiver(self.now, &flight) else { return Ok(()) };
        match place {
            Place::Beacon(b) => {
                let Flight { from, mut bytes, .. } = flight;
                if !matches!(flight.sender, Place::Beacon(_)) {
                    self.wire.on_arrival(self.now, usize::MAX, &bytes);
                }
                let now = self.base + Duration::from_micros(self.now);
                let mut out = Vec::new();
                if let Some(relay) = self.relays[b].as_mut() {
                    let directory = &self.directory;
                    relay
                        .handle(from, &mut bytes, directory, now, |to, bytes| out.push((to, bytes.to_vec())));
                }
                for (to, bytes) in out {
                    self.note(|| {
                        format!("beacon {b}: for {from} -> {to} {}", crate::check::describe(&bytes))
                    });
                    self.send(Place::Beacon(b), to, &bytes);
                }
                Ok(())
            }
            Place::Node(n) => {
                if let Some(buffer) = self.nodes[n].frozen.as_mut() {
                    if buffer.len() < SOCKET_BUFFER {
                        buffer.push(flight);
                    }
                    return Ok(());
                }
                self.handle(n, flight)
            }
        }
    }

    /// A process reads a datagram from its socket.
    pub(crate) fn handle(&mut self, n: usize, flight: Flight) -> Result<(), Violation> {
        let Flight { from, mut bytes, .. } = flight;
        self.wire.on_arrival(self.now, n, &bytes);
        self.note(|| format!("node {}: <- {from} {}", n + 1, crate::check::describe(&bytes)));
        let frame = self.wire.genuine(&bytes);
        let now = self.clock(n);
        let lie = self.lie(Sabotage::AcceptReplay) && self.nodes[n].taken.has(frame);
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let before = process.opened();
        process.handle_datagram(now, from, &mut bytes);
        let after = process.opened() + u64::from(lie);
        // Excuse: a reference node that lost a session agrees on the same key again, with an empty replay window.
        let replays = self.plan.reference(n);
        node.taken.on_handled(n as u32 + 1, frame, (before, after), replays)?;
        self.drive(n)
    }

    pub(crate) fn send(&mut self, from: Place, to: SocketAddr, bytes: &[u8]) {
        let (now, queue, serial) = (self.now, &mut self.queue, &mut self.serial);
        self.net.send(now, &mut self.rng, from, to, bytes, |at, flight| {
            *serial += 1;
            queue.insert((at.max(now + 1), *serial), Happening::Arrival(flight));
        });
    }

    /// Lets a node do everything it has to do now.
    pub(crate) fn drive(&mut self, n: usize) -> Result<(), Violation> {
        if self.nodes[n].frozen.is_some() {
            return Ok(());
        }
        let mut buf = Vec::new();
        let now = self.clock(n);
        for _ in 0..MAX_TURN {
            let Some(process) = self.nodes[n].process.as_mut() else { return Ok(()) };
            match process.poll_output(now, &mut buf) {
                Output::Transmit(t) => {
                    let direct = self.net.node_at(t.to).map(|n| n as u32 + 1);
                    for bytes in buf.chunks(t.segment_size.unwrap_or(t.len).max(1)) {
                        let reuse = self.lie(Sabotage::ReuseNonce);
                        self.note(|| {
                            format!("node {}: -> {} {}", n + 1, t.to, crate::check::describe(bytes))
                        });
                        self.wire.on_send(bytes, direct, reuse)?;
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
        self.note(|| format!("node {}: {event:?}", n + 1));
        match event {
            Event::NeedKey(node) => self.at(soon, Happening::Key(n, life, node)),
            Event::NeedRoute(node) => self.at(soon, Happening::Where(n, life, node)),
            Event::Knock { node, .. } => self.at(soon, Happening::Admit(n, life, node)),
            Event::Observed(addr) => self.at(soon, Happening::Register(n, life, addr)),
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
            Event::Publish(reference::SALVAGED, fields) => {
                let peer = fields["peer_node_id"].as_u64().unwrap_or(0);
                self.nodes[n].salvaged.insert(peer as NodeId, self.now);
            }
            Event::Publish(reference::CLIENT_DROPPED, _) => {
                self.drop_strangers(n);
                self.lose_streams(n);
            }
            Event::Publish(reference::CUT_SHORT, fields) => {
                let conn = ConnId(fields["conn"].as_u64().unwrap_or(0) as u32);
                if let Some((id, side)) = self.nodes[n].conns.get(&conn) {
                    self.streams[*id as usize].sides[*side].cut_short = true;
                }
            }
            Event::PeerKeyProven { .. }
            | Event::OtherKeyProven { .. }
            | Event::Pinned { .. }
            | Event::Notified
            | Event::Publish(..)
            | Event::Pong { .. } => {}
        }
        Ok(())
    }

    /// A read that a fault puts off.
    pub(crate) fn read_put_off(&mut self, n: usize) {
        match self.nodes[n].reading {
            Reading::Fast => {}
            Reading::Slow => self.hit(Kind::SlowReader),
            Reading::Stuck => self.hit(Kind::StuckReader),
        }
    }
}
