//! One small world and its loop.

use super::nat::{Nat, Site, is_inside};
use super::plan::{Fault, Plan};
use crate::check::describe;
use crate::net::{Micros, SECOND};
use crate::rng::Rng;
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Config, Engine, Event, Output, Route};
use pilot_proto::path::budget::{BURST, RATE};
use pilot_proto::path::{Candidate, CandidateKind};
use pilot_proto::stream::{ConnId, StreamEvent};
use pilot_proto::wire::beacon::Message;
use pilot_proto::{Addr, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One-way delay of the beacon's link.
pub const BEACON_DELAY: Micros = 1_000;
/// After the last fault every pair whose NATs allow it is direct within this time: the distance of tries while relayed, and
/// a race.
pub const DIRECT_WITHIN: Micros = 34 * SECOND;
/// Longest stall of a stream whose direct path is blocked.
pub const STALL: Micros = 3 * SECOND;
/// The same when the relay may not know a node's address either, because its NAT had forgotten the beacon unnoticed.
const STALL_UNKNOWN: Micros = 5 * SECOND;
/// A pair is connected after this time at the latest.
const CONNECTED: Micros = 10 * SECOND;
/// Distance of messages on a stream.
const EVERY: Micros = 250_000;
const MESSAGE: &[u8; 32] = b"the quick brown fox jumps over t";
const PORT: u16 = 7;
const MAX_TURN: u32 = 20_000;
/// Mappings a node may cause at its NAT: one for each destination of a race, a range of predicted ports, and the rest.
const MAX_MAPPINGS: usize = 400;

fn beacon(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 9_001 + port))
}

/// What came of a world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Pairs, and those that were direct on both sides at the end.
    pub pairs: u64,
    /// Direct at the end.
    pub direct: u64,
    /// Longest time without an answer on a stream.
    pub stall: Micros,
    /// Longest time from the first dial to its answer in worlds without loss, in hundredths of the relayed round trip.
    pub first_answer: u64,
    /// Longest time from there to a direct path on both sides, pairs of cones without loss.
    pub first_direct: Micros,
    /// Longest time from the last fault to the direct path.
    pub back: Micros,
    /// Datagrams sent.
    pub sent: u64,
    /// Checksum of all of them.
    pub trace: u32,
}

enum Happening {
    Arrival { to: Target, from: SocketAddr, bytes: Vec<u8> },
    Wake(usize),
    Key(usize, NodeId),
    Place(usize, NodeId),
    Talk(usize),
    Begin(usize),
    End(usize),
}

#[derive(Clone, Copy)]
enum Target {
    Beacon(u16),
    Host(usize),
}

struct Host {
    engine: Engine,
    site: usize,
    inside: SocketAddr,
    wake: Option<Micros>,
    asleep: bool,
    /// Streams it answers on.
    echoes: Vec<ConnId>,
    /// From where something came.
    heard: BTreeMap<SocketAddr, ()>,
    /// When it sent to where nothing had come from.
    blind: VecDeque<Micros>,
}

struct Pair {
    from: usize,
    to: usize,
    began: Micros,
    conn: Option<ConnId>,
    connected: bool,
    written: u64,
    echoed: u64,
    progress: Option<Micros>,
    first: Option<Micros>,
    direct: Option<Micros>,
    back: Option<Micros>,
}

pub struct World {
    plan: Plan,
    now: Micros,
    base: Instant,
    rng: Rng,
    sites: Vec<Site>,
    hosts: Vec<Host>,
    pairs: Vec<Pair>,
    queue: BTreeMap<(Micros, u64), Happening>,
    serial: u64,
    table: BTreeMap<NodeId, SocketAddr>,
    active: Vec<bool>,
    loss: u32,
    identities: Vec<Arc<Identity>>,
    traced: bool,
    outcome: Outcome,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> World {
        let mut rng = Rng::new(seed ^ 0x7061_7468_7300_0000);
        let plan = Plan::new(&mut rng);
        let base = Instant::now();
        let sites: Vec<Site> = (plan.sites.iter().enumerate())
            .map(|(n, (nat, hairpin, ttl))| Site::new(*nat, n, *hairpin, *ttl))
            .collect();
        let identities: Vec<Arc<Identity>> = plan
            .nodes
            .iter()
            .map(|_| Arc::new(Identity::from_seed(rng.secret()).expect("every seed is a key")))
            .collect();
        let hosts = plan.nodes.iter().enumerate().map(|(n, site)| {
            let config = config(&mut rng);
            let mut engine = Engine::new(config, identities[n].clone(), n as NodeId + 1, base);
            engine.listen(PORT);
            // They have met before, in a life of which they know nothing else.
            let others = identities.iter().enumerate().filter(|(other, _)| *other != n);
            engine.set_pins(others.map(|(other, id)| (other as NodeId + 1, *id.public_key())));
            let inside = inside(&sites[*site], n, 0);
            Host {
                engine,
                site: *site,
                inside,
                wake: None,
                asleep: false,
                echoes: Vec::new(),
                heard: BTreeMap::new(),
                blind: VecDeque::new(),
            }
        });
        let hosts: Vec<Host> = hosts.collect();
        let pairs = plan.pairs.iter().map(|(from, to, began)| Pair {
            from: *from,
            to: *to,
            began: *began,
            conn: None,
            connected: false,
            written: 0,
            echoed: 0,
            progress: None,
            first: None,
            direct: None,
            back: None,
        });
        let (pairs, active) = (pairs.collect(), vec![false; plan.faults.len()]);
        let mut world = World {
            loss: plan.loss,
            plan,
            now: 0,
            base,
            rng,
            sites,
            hosts,
            pairs,
            queue: BTreeMap::new(),
            serial: 0,
            table: BTreeMap::new(),
            active,
            identities,
            traced,
            outcome: Outcome::default(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        if self.traced {
            println!("{:#?}", self.plan);
        }
        let now = self.instant();
        for n in 0..self.hosts.len() {
            self.tell_addresses(n);
            let engine = &mut self.hosts[n].engine;
            engine.set_beacon(now, Some(beacon(0)));
        }
        for (n, (begin, end, _)) in self.plan.faults.clone().into_iter().enumerate() {
            self.at(begin, Happening::Begin(n));
            self.at(end, Happening::End(n));
        }
        for n in 0..self.pairs.len() {
            self.at(self.pairs[n].began, Happening::Talk(n));
        }
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    fn at(&mut self, when: Micros, what: Happening) {
        self.serial += 1;
        self.queue.insert((when, self.serial), what);
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        if self.traced {
            println!("{:>10.3} {what}", self.now as f64 / SECOND as f64);
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> (Outcome, Result<(), String>) {
        let last = self.plan.faults.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
        let quiet = last.max(CONNECTED);
        let end = quiet + DIRECT_WITHIN;
        let result = self.turn_all(end, last);
        self.outcome.pairs = self.pairs.len() as u64;
        (self.outcome, result)
    }

    fn turn_all(&mut self, end: Micros, last: Micros) -> Result<(), String> {
        for n in 0..self.hosts.len() {
            self.turn(n)?;
        }
        while let Some(((at, _), what)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            self.now = at;
            self.happen(what)?;
            self.watch(last)?;
            if self.settled(last) {
                break;
            }
        }
        self.now = self.now.max(end.min(self.now + 1));
        self.judge()
    }

    /// Everything that must come about has.
    fn settled(&self, last: Micros) -> bool {
        let well = |pair: &Pair| pair.back.is_some_and(|back| pair.progress.is_some_and(|at| at > back));
        self.now > last.max(CONNECTED) + 3 * SECOND && self.pairs.iter().all(well)
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        let now = self.instant();
        match what {
            Happening::Arrival { to: Target::Beacon(port), from, bytes } => self.beacon(port, from, &bytes),
            Happening::Arrival { to: Target::Host(n), from, mut bytes } => {
                self.note(format_args!("node {}: <- {from} {}", n + 1, describe(&bytes)));
                let host = &mut self.hosts[n];
                if host.asleep {
                    return Ok(());
                }
                host.heard.insert(from, ());
                host.engine.handle_datagram(now, from, &mut bytes);
                self.turn(n)?;
            }
            Happening::Wake(n) => {
                if self.hosts[n].wake == Some(self.now) && !self.hosts[n].asleep {
                    self.hosts[n].wake = None;
                    self.hosts[n].engine.handle_timeout(now);
                    self.turn(n)?;
                }
            }
            Happening::Key(n, about) => {
                let key = self.identities.get(about as usize - 1).map(|id| *id.public_key());
                self.hosts[n].engine.set_peer_key(now, about, key);
                self.turn(n)?;
            }
            Happening::Place(n, about) => {
                let known = self.table.get(&about).map(|at| Candidate::guessed(*at));
                let route = Route { direct: known.into_iter().collect(), relay_only: false };
                self.hosts[n].engine.set_route(now, about, Ok(route));
                self.turn(n)?;
            }
            Happening::Talk(n) => self.talk(n)?,
            Happening::Begin(n) => {
                self.active[n] = true;
                self.fault(n, true)?;
            }
            Happening::End(n) => {
                self.active[n] = false;
                self.fault(n, false)?;
            }
        }
        Ok(())
    }

    fn fault(&mut self, n: usize, begins: bool) -> Result<(), String> {
        let fault = self.plan.faults[n].2;
        self.note(format_args!("{} {fault:?}", if begins { "begins" } else { "ends" }));
        let now = self.instant();
        match fault {
            Fault::Block { .. } => {}
            Fault::Rebind(site) if begins => self.sites[site].forget(),
            Fault::Renumber(site) if begins => {
                self.sites[site].renumber();
                if self.sites[site].nat == Nat::None {
                    // Its hosts see it themselves.
                    for node in 0..self.hosts.len() {
                        if self.hosts[node].site == site {
                            self.move_host(node, n)?;
                        }
                    }
                }
            }
            Fault::Rebind(_) | Fault::Renumber(_) => {}
            Fault::Move(node) if begins => self.move_host(node, n)?,
            Fault::Move(_) => {}
            Fault::Loss(loss) => self.loss = if begins { loss } else { self.plan.loss },
            Fault::Sleep(node) => {
                let host = &mut self.hosts[node];
                host.asleep = begins;
                if !begins {
                    host.engine.network_changed(now);
                    host.engine.handle_timeout(now);
                    self.turn(node)?;
                }
            }
        }
        Ok(())
    }

    fn move_host(&mut self, node: usize, n: usize) -> Result<(), String> {
        let now = self.instant();
        let site = &self.sites[self.hosts[node].site];
        self.hosts[node].inside = inside(site, node, n + 1);
        self.tell_addresses(node);
        self.hosts[node].engine.network_changed(now);
        self.turn(node)
    }

    /// The node's driver tells what addresses its interfaces have.
    fn tell_addresses(&mut self, n: usize) {
        let now = self.instant();
        let host = &mut self.hosts[n];
        let kind = if is_inside(host.inside.ip()) { CandidateKind::Lan } else { CandidateKind::Public };
        host.engine.set_local_candidates(now, vec![Candidate::new(host.inside, kind)]);
    }

    // ---- the application -----------------------------------------------------------------------------------

    fn talk(&mut self, n: usize) -> Result<(), String> {
        let now = self.instant();
        let Pair { from, to, conn, connected, .. } = self.pairs[n];
        self.at(self.now + EVERY, Happening::Talk(n));
        if self.hosts[from].asleep {
            return Ok(());
        }
        let engine = &mut self.hosts[from].engine;
        match conn {
            None => {
                self.pairs[n].conn = engine.dial(now, Addr::backbone(to as NodeId + 1), PORT).ok();
            }
            Some(conn) if connected => {
                if engine.write(now, conn, Bytes::from_static(MESSAGE)).is_ok() {
                    self.pairs[n].written += MESSAGE.len() as u64;
                }
            }
            Some(_) => {}
        }
        self.turn(from)
    }

    fn stream_event(&mut self, n: usize, event: StreamEvent) {
        let now = self.instant();
        match event {
            StreamEvent::Incoming { conn, .. } => {
                self.hosts[n].engine.accepted(conn);
                self.hosts[n].echoes.push(conn);
            }
            StreamEvent::Connected(conn) => {
                let pair = self.pairs.iter_mut().find(|p| p.from == n && p.conn == Some(conn));
                let Some(pair) = pair else { return };
                pair.connected = true;
                if self.hosts[n].engine.write(now, conn, Bytes::from_static(MESSAGE)).is_ok() {
                    pair.written += MESSAGE.len() as u64;
                }
            }
            StreamEvent::DialFailed(conn, error) => {
                self.note(format_args!("node {}: dial failed: {error}", n + 1));
                self.hung_up(n, conn);
            }
            StreamEvent::Closed(conn, reason) => {
                self.note(format_args!("node {}: stream closed: {reason:?}", n + 1));
                self.hosts[n].engine.release(now, conn);
                self.hosts[n].echoes.retain(|c| *c != conn);
                self.hung_up(n, conn);
            }
            StreamEvent::Readable(conn) => self.readable(n, conn),
            StreamEvent::Writable(_) | StreamEvent::EndOfStream(_) => {}
        }
    }

    fn hung_up(&mut self, n: usize, conn: ConnId) {
        if let Some(pair) = self.pairs.iter_mut().find(|p| p.from == n && p.conn == Some(conn)) {
            pair.conn = None;
            pair.connected = false;
            (pair.written, pair.echoed) = (0, 0);
        }
    }

    fn readable(&mut self, n: usize, conn: ConnId) {
        let now = self.instant();
        while let Some(bytes) = self.hosts[n].engine.read(conn) {
            self.hosts[n].engine.consumed(now, conn, bytes.len());
            if self.hosts[n].echoes.contains(&conn) {
                let _ = self.hosts[n].engine.write(now, conn, bytes);
                continue;
            }
            let at = self.now;
            let Some(pair) = self.pairs.iter_mut().find(|p| p.from == n && p.conn == Some(conn)) else {
                continue;
            };
            pair.echoed += bytes.len() as u64;
            pair.first.get_or_insert(at);
            if let Some(last) = pair.progress.replace(at) {
                self.outcome.stall = self.outcome.stall.max(at - last);
            }
        }
    }

    // ---- the network ---------------------------------------------------------------------------------------

    fn turn(&mut self, n: usize) -> Result<(), String> {
        let mut buf = Vec::new();
        let now = self.instant();
        for round in 0.. {
            if round > MAX_TURN {
                return Err(format!("node {} never comes to rest", n + 1));
            }
            match self.hosts[n].engine.poll_output(now, &mut buf) {
                Output::Transmit(transmit) => {
                    let size = transmit.segment_size.unwrap_or(transmit.len).max(1);
                    for bytes in buf.clone().chunks(size) {
                        self.send(n, transmit.to, bytes)?;
                    }
                }
                Output::Event(Event::NeedKey(about)) => self.at(self.now + 100, Happening::Key(n, about)),
                Output::Event(Event::NeedRoute(about)) => {
                    if self.plan.directory {
                        let answer = self.now + 2 * self.plan.delays[n] + 5_000;
                        self.at(answer, Happening::Place(n, about));
                    }
                }
                Output::Event(Event::Stream(event)) => self.stream_event(n, event),
                Output::Event(Event::Publish(name, _)) => self.note(format_args!("node {}: {name}", n + 1)),
                Output::Event(_) => {}
                Output::Timeout(at) => {
                    let at = at.map(|at| at.saturating_duration_since(self.base).as_micros() as Micros + 1);
                    let at = at.map(|at| at.max(self.now + 1));
                    if at != self.hosts[n].wake {
                        self.hosts[n].wake = at;
                        if let Some(at) = at {
                            self.at(at, Happening::Wake(n));
                        }
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn blocked(&self, from: usize, to: usize) -> bool {
        self.plan.faults.iter().zip(&self.active).any(|((_, _, fault), active)| match fault {
            Fault::Block { from: a, to: b, one_way } if *active => {
                (*a, *b) == (from, to) || !*one_way && (*b, *a) == (from, to)
            }
            _ => false,
        })
    }

    /// A node sends: through its NAT, over its link, through the other's NAT.
    fn send(&mut self, n: usize, to: SocketAddr, bytes: &[u8]) -> Result<(), String> {
        self.outcome.sent += 1;
        self.outcome.trace = crc32fast::hash(&[&self.outcome.trace.to_be_bytes()[..], bytes].concat());
        self.note(format_args!("node {}: -> {to} {}", n + 1, describe(bytes)));
        self.spends(n, to)?;
        let (site, inside) = (self.hosts[n].site, self.hosts[n].inside);
        let delay = self.plan.delays[n] + self.rng.range(0, self.plan.jitter + 1);
        if is_inside(to.ip()) {
            // Private addresses lead nowhere but to the same site.
            let neighbour = |h: &Host| h.site == site && h.inside == to;
            if let Some(host) = self.hosts.iter().position(neighbour).filter(|m| !self.blocked(n, *m)) {
                self.deliver(1_000, Target::Host(host), inside, bytes);
            }
            return Ok(());
        }
        let from = self.sites[site].outbound(self.now, &mut self.rng, inside, to);
        if self.rng.chance(self.loss) {
            return Ok(());
        }
        if let Some(port) = [0, 1].into_iter().find(|port| beacon(*port) == to) {
            self.deliver(delay + BEACON_DELAY, Target::Beacon(port), from, bytes);
            return Ok(());
        }
        let Some(there) = self.sites.iter().position(|s| s.ip() == to.ip()) else { return Ok(()) };
        if there == site && !self.sites[site].hairpin {
            return Ok(());
        }
        let Some(inside) = self.sites[there].inbound(self.now, from, to) else { return Ok(()) };
        let Some(host) = self.hosts.iter().position(|h| h.site == there && h.inside == inside) else {
            return Ok(());
        };
        if !self.blocked(n, host) {
            let delay = delay + self.plan.delays[host];
            self.deliver(delay, Target::Host(host), from, bytes);
        }
        Ok(())
    }

    fn deliver(&mut self, delay: Micros, to: Target, from: SocketAddr, bytes: &[u8]) {
        self.at(self.now + delay, Happening::Arrival { to, from, bytes: bytes.to_vec() });
    }

    /// Counts what is sent to where nothing ever came from.
    fn spends(&mut self, n: usize, to: SocketAddr) -> Result<(), String> {
        let (now, host) = (self.now, &mut self.hosts[n]);
        if host.heard.contains_key(&to) || to.ip() == beacon(0).ip() {
            return Ok(());
        }
        host.blind.push_back(now);
        while host.blind.front().is_some_and(|at| at + SECOND <= now) {
            host.blind.pop_front();
        }
        if host.blind.len() > (BURST + RATE) as usize {
            return Err(format!("node {} sent {} packets blindly within a second", n + 1, host.blind.len()));
        }
        Ok(())
    }

    fn beacon(&mut self, port: u16, from: SocketAddr, bytes: &[u8]) {
        let mut out = Vec::new();
        match Message::parse(bytes) {
            Ok(Message::Discover { node, .. }) => {
                if port == 0 && node != 0 {
                    self.table.insert(node, from);
                }
                Message::DiscoverReply(from).emit(&mut out);
                self.answer(port, from, &out);
            }
            Ok(Message::PunchRequest { requester, target }) => {
                self.table.insert(requester, from);
                if let Some(at) = self.table.get(&target).copied() {
                    Message::PunchCommand(at).emit(&mut out);
                    self.answer(port, from, &out);
                    out.clear();
                    Message::PunchCommand(from).emit(&mut out);
                    self.answer(port, at, &out);
                }
            }
            Ok(Message::Relay { from: sender, to, frame }) => {
                if let Some(at) = self.table.get(&to).copied() {
                    Message::RelayDeliver { from: sender, frame }.emit(&mut out);
                    self.answer(port, at, &out);
                }
            }
            _ => {}
        }
    }

    /// The beacon sends.
    fn answer(&mut self, port: u16, to: SocketAddr, bytes: &[u8]) {
        let from = beacon(port);
        let Some(there) = self.sites.iter().position(|s| s.ip() == to.ip()) else { return };
        if self.rng.chance(self.loss) {
            return;
        }
        let Some(inside) = self.sites[there].inbound(self.now, from, to) else { return };
        let Some(host) = self.hosts.iter().position(|h| h.site == there && h.inside == inside) else {
            return;
        };
        let delay = BEACON_DELAY + self.plan.delays[host] + self.rng.range(0, self.plan.jitter + 1);
        self.deliver(delay, Target::Host(host), from, bytes);
    }

    // ---- what must hold ------------------------------------------------------------------------------------

    fn path(&self, from: usize, to: usize) -> &'static str {
        self.hosts[from].engine.path_to(to as NodeId + 1)
    }

    fn watch(&mut self, last: Micros) -> Result<(), String> {
        for n in 0..self.pairs.len() {
            let pair = &self.pairs[n];
            let (a, b) = (pair.from, pair.to);
            let direct = self.path(a, b) == "direct" && self.path(b, a) == "direct";
            let (first, began, was) = (pair.first.is_some(), pair.began, pair.direct.is_some());
            if direct && !was {
                self.pairs[n].direct = Some(self.now);
                self.note(format_args!("nodes {} and {} are direct", a + 1, b + 1));
            }
            if !first && self.now > CONNECTED.max(began + CONNECTED) {
                return Err(format!("nodes {} and {} are not connected within 10 s", a + 1, b + 1));
            }
            let pair = &mut self.pairs[n];
            if self.now > last.max(CONNECTED) && pair.back.is_none() && (direct || !self.plan.direct(a, b)) {
                pair.back = Some(self.now);
                if direct {
                    self.outcome.back = self.outcome.back.max(self.now - last.max(CONNECTED));
                }
            } else if !direct && self.plan.direct(a, b) {
                pair.back = None;
            }
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), String> {
        let lossless = self.plan.loss == 0 && self.plan.jitter == 0;
        for n in 0..self.pairs.len() {
            let pair = &self.pairs[n];
            let (a, b) = (pair.from, pair.to);
            let names = format!("nodes {} and {}", a + 1, b + 1);
            let direct = self.path(a, b) == "direct" && self.path(b, a) == "direct";
            self.outcome.direct += u64::from(direct);
            let Some(first) = pair.first else { return Err(format!("{names} were never connected")) };
            let took = first - pair.began;
            let rtt = self.plan.relayed_rtt(a, b);
            if lossless {
                self.outcome.first_answer = self.outcome.first_answer.max(took * 100 / rtt);
                if took > 3 * rtt + 50_000 {
                    return Err(format!(
                        "{names}: the first answer took {took} us at {rtt} us of round trip"
                    ));
                }
            }
            if lossless && self.plan.cones(a, b) && self.plan.direct(a, b) {
                let Some(at) = pair.direct else { return Err(format!("{names} were never direct")) };
                self.outcome.first_direct = self.outcome.first_direct.max(at.saturating_sub(first));
                if at > first + SECOND {
                    return Err(format!("{names} were direct {} us after the first answer", at - first));
                }
            }
            if pair.back.is_none() {
                let why: Vec<String> = [(a, b), (b, a)]
                    .map(|(from, to)| {
                        format!(
                            "{:?}",
                            self.hosts[from].engine.peers().iter().find(|p| p.node_id == to as NodeId + 1)
                        )
                    })
                    .into();
                return Err(format!(
                    "{names} are not direct {} s after the last fault: {}",
                    DIRECT_WITHIN / SECOND,
                    why.join("; ")
                ));
            }
            let since = self.now - pair.progress.unwrap_or(0);
            if since > STALL {
                return Err(format!("{names}: no answer for {since} us at the end"));
            }
        }
        if self.plan.only_blocks() && self.outcome.stall > STALL {
            return Err(format!(
                "a stream stalled for {} us while direct paths were blocked",
                self.outcome.stall
            ));
        }
        let most = if self.plan.blocks() { STALL_UNKNOWN } else { STALL };
        if self.plan.lossless() && self.outcome.stall > most {
            return Err(format!("a stream stalled for {} us while the network changed", self.outcome.stall));
        }
        for site in &self.sites {
            if site.most > MAX_MAPPINGS * self.hosts.len() {
                return Err(format!("a NAT held {} mappings", site.most));
            }
        }
        Ok(())
    }
}

fn inside(site: &Site, node: usize, move_: usize) -> SocketAddr {
    match site.nat {
        Nat::None => SocketAddr::from((site.ip(), 4_000 + move_ as u16)),
        _ => SocketAddr::from((Ipv4Addr::new(192, 168, 1, 10 + 4 * node as u8 + move_ as u8), 4_000)),
    }
}

fn config(rng: &mut Rng) -> Config {
    Config {
        tunnel_secret: rng.secret(),
        rng_seed: rng.secret(),
        encrypt: true,
        session_upgrade: true,
        allow_anonymous: Vec::new(),
        public: true,
        strict_dataplane_trust: false,
        relay_only: false,
        loopback_payload: 1152,
        idle_timeout: Duration::from_secs(120),
        user_timeout: Duration::from_secs(900),
        keepalive: Duration::from_secs(60),
        max_conns_per_port: 64,
        max_conns_total: 256,
        syn_rate_limit: 0,
        max_segments: 8,
    }
}
