//! Two nodes, a beacon and a directory on a virtual clock. Node 1 is ours; node 2 is ours too, or a model of 1.18.0.

use crate::support::{self, Sent, addr_of, beacon_addr, ms};
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{self, Engine};
use pilot_proto::path::Candidate;
use pilot_proto::stream::{CloseReason, ConnId, StreamEvent};
use pilot_proto::wire::beacon::Message;
use pilot_proto::{Addr, NodeId};
use pilot_refmodel as model;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What node 2 runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Own,
    Model,
}

/// How the two reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Relay,
}

/// What an application sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Connected(u32),
    DialFailed(u32, String),
    Incoming(u32),
    /// No bytes follow; with the reason, where there is one.
    Ended(u32, Option<CloseReason>),
}

enum Process {
    Own(Box<Engine>),
    Model(Box<model::Node>),
}

pub struct Host {
    process: Process,
    pub seen: Vec<Seen>,
    pub received: BTreeMap<u32, usize>,
    /// When bytes came last.
    pub last_byte: Option<Instant>,
    /// Everything read is written back.
    pub echoes: bool,
    /// The application does not read.
    pub paused: bool,
    unread: BTreeSet<u32>,
    /// Sessions a model dropped because of faulty frames.
    pub dropped: u32,
    outbox: BTreeMap<u32, Bytes>,
    wake: Option<Instant>,
    seed: u8,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub hosts: BTreeMap<NodeId, Host>,
    pub way: Way,
    /// Nodes of ours upgrade their sessions.
    pub upgrade: bool,
    /// Chance of loss, per mille, in each direction.
    pub loss: u32,
    /// No datagram of this node arrives any more.
    pub mute: Option<NodeId>,
    pub log: Vec<Sent>,
    pub keep_log: bool,
    rng: u64,
    beacon: BTreeMap<NodeId, SocketAddr>,
    flying: BTreeMap<(Instant, u64), Sent>,
    serial: u64,
}

pub fn identity(node: NodeId) -> Arc<Identity> {
    support::identity(node as u8)
}

impl World {
    /// Both nodes up, registered and idle. Half of the round trip takes 10 ms, 20 ms through the relay.
    pub fn new(peer: Peer, way: Way, upgrade: bool) -> World {
        let start = Instant::now();
        let mut world = World {
            now: start,
            start,
            hosts: BTreeMap::new(),
            way,
            upgrade,
            loss: 0,
            mute: None,
            log: Vec::new(),
            keep_log: true,
            rng: 1,
            beacon: BTreeMap::new(),
            flying: BTreeMap::new(),
            serial: 0,
        };
        world.boot(1, Peer::Own, 1);
        world.boot(2, peer, 2);
        world.run(ms(100));
        world
    }

    /// Starts a process for a node: the first, or another one in its place. It listens on port 80.
    pub fn boot(&mut self, node: NodeId, what: Peer, seed: u8) {
        let now = self.now;
        let process = match what {
            Peer::Own => {
                let config = engine::Config { session_upgrade: self.upgrade, ..support::config(seed) };
                let mut engine = Engine::new(config, identity(node), node, now);
                engine.set_beacon(now, Some(beacon_addr()));
                engine.listen(80);
                Process::Own(Box::new(engine))
            }
            Peer::Model => {
                let config = model::Config { public: true, ..model::Config::new([seed; 32], [seed; 32]) };
                let mut node = model::Node::new(config, &identity(node), node, now);
                node.set_beacon(now, Some(beacon_addr()));
                node.listen(80);
                Process::Model(Box::new(node))
            }
        };
        let echoes = self.hosts.get(&node).is_none_or(|h| h.echoes);
        let host = Host {
            process,
            seen: Vec::new(),
            received: BTreeMap::new(),
            last_byte: None,
            echoes,
            paused: false,
            unread: BTreeSet::new(),
            dropped: 0,
            outbox: BTreeMap::new(),
            wake: None,
            seed,
        };
        self.hosts.insert(node, host);
    }

    /// The process dies and another takes its place at the same address; ours greets the peer it knew.
    pub fn restart(&mut self, node: NodeId) {
        let host = &self.hosts[&node];
        let (seed, peer) = (host.seed + 10, 3 - node);
        let what = if matches!(host.process, Process::Own(_)) { Peer::Own } else { Peer::Model };
        self.boot(node, what, seed);
        let now = self.now;
        if let Process::Own(engine) = &mut self.host(node).process {
            engine.greet(now, peer, &[Candidate::guessed(addr_of(peer))]);
        }
    }

    pub fn host(&mut self, node: NodeId) -> &mut Host {
        self.hosts.get_mut(&node).unwrap()
    }

    /// The engine of a node of ours.
    pub fn engine(&mut self, node: NodeId) -> &mut Engine {
        match &mut self.host(node).process {
            Process::Own(engine) => engine,
            Process::Model(_) => panic!("node {node} is not ours"),
        }
    }

    pub fn dial(&mut self, from: NodeId, to: NodeId) -> u32 {
        let (now, to) = (self.now, Addr::backbone(to));
        match &mut self.host(from).process {
            Process::Own(engine) => engine.dial(now, to, 80).unwrap().0,
            Process::Model(node) => node.dial(now, to, 80).unwrap().0,
        }
    }

    /// Writes, now and whenever there is room, while the connection takes bytes.
    pub fn write(&mut self, node: NodeId, conn: u32, bytes: impl Into<Bytes>) {
        let now = self.now;
        self.host(node).write(now, conn, bytes.into());
    }

    /// The application reads again.
    pub fn resume(&mut self, node: NodeId) {
        let now = self.now;
        let host = self.host(node);
        host.paused = false;
        for conn in std::mem::take(&mut host.unread) {
            host.read(now, conn);
        }
    }

    /// Seeds the losses.
    pub fn seed(&mut self, seed: u64) {
        self.rng = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    }

    /// Puts a datagram on the wire.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let sent = Sent { at: self.now, from, to, bytes };
        self.fly(sent);
    }

    fn fly(&mut self, sent: Sent) {
        if self.keep_log {
            self.log.push(sent.clone());
        }
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lost = ((self.rng >> 33) % 1000) < u64::from(self.loss);
        let beacon = sent.from == beacon_addr() || sent.to == beacon_addr();
        let blocked = self.way == Way::Relay && !beacon;
        let mute = self.mute.is_some_and(|node| sent.from == addr_of(node));
        if !lost && !blocked && !mute {
            self.serial += 1;
            self.flying.insert((self.now + ms(10), self.serial), sent);
        }
    }

    fn poll(&mut self, node: NodeId) {
        let now = self.now;
        let mut out = Vec::new();
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let mut buf = Vec::new();
        loop {
            match &mut host.process {
                Process::Own(engine) => match engine.poll_output(now, &mut buf) {
                    engine::Output::Transmit(t) => {
                        let size = t.segment_size.unwrap_or(t.len);
                        out.extend(buf.chunks(size).map(|bytes| (t.to, bytes.to_vec())));
                    }
                    engine::Output::Event(event) => host.own_event(now, event),
                    engine::Output::Timeout(at) => {
                        host.wake = at;
                        break;
                    }
                },
                Process::Model(node) => match node.poll_output(now, &mut buf) {
                    model::Output::Transmit(to) => out.push((to, buf.clone())),
                    model::Output::Event(event) => host.model_event(now, event),
                    model::Output::Timeout(at) => {
                        host.wake = Some(at);
                        break;
                    }
                },
            }
        }
        for (to, bytes) in out {
            self.inject(addr_of(node), to, bytes);
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Lets time pass until `done`, at most `limit`. True: done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            for node in [1, 2] {
                self.poll(node);
            }
            if done(self) {
                return true;
            }
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let wake = self.hosts.values().filter_map(|h| h.wake).min();
            let Some(next) = [arrival, wake].into_iter().flatten().min().filter(|at| *at <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry().filter(|e| e.key().0 <= self.now) {
                let sent = entry.remove();
                self.arrive(sent);
            }
            let now = self.now;
            for host in self.hosts.values_mut().filter(|h| h.wake.is_some_and(|at| at <= now)) {
                match &mut host.process {
                    Process::Own(engine) => engine.handle_timeout(now),
                    Process::Model(node) => node.handle_timeout(now),
                }
            }
        }
    }

    fn arrive(&mut self, mut sent: Sent) {
        let now = self.now;
        if sent.to == beacon_addr() {
            return self.at_beacon(&sent);
        }
        let Some(node) = [1, 2].into_iter().find(|n| addr_of(*n) == sent.to) else { return };
        match &mut self.host(node).process {
            Process::Own(engine) => engine.handle_datagram(now, sent.from, &mut sent.bytes),
            Process::Model(node) => node.handle_datagram(now, sent.from, &sent.bytes),
        }
    }

    fn at_beacon(&mut self, sent: &Sent) {
        let mut replies = Vec::new();
        match Message::parse(&sent.bytes) {
            Ok(Message::Discover { node, .. }) => {
                self.beacon.insert(node, sent.from);
                replies.push((sent.from, Message::DiscoverReply(sent.from)));
            }
            Ok(Message::Relay { from, to, frame }) => {
                if let Some(at) = self.beacon.get(&to) {
                    replies.push((*at, Message::RelayDeliver { from, frame }));
                }
            }
            _ => {}
        }
        for (to, message) in replies {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            self.inject(beacon_addr(), to, bytes);
        }
    }
}

impl Host {
    fn write(&mut self, now: Instant, conn: u32, bytes: Bytes) {
        let mut all = self.outbox.remove(&conn).unwrap_or_default().to_vec();
        all.extend_from_slice(&bytes);
        self.outbox.insert(conn, all.into());
        self.flush(now, conn);
    }

    /// Bytes wait for the paused reader.
    pub fn waiting(&self, conn: u32) -> bool {
        self.unread.contains(&conn)
    }

    fn flush(&mut self, now: Instant, conn: u32) {
        let Some(bytes) = self.outbox.remove(&conn) else { return };
        let rest = match &mut self.process {
            Process::Own(engine) => engine.write(now, ConnId(conn), bytes).ok(),
            Process::Model(node) => node.write(now, model::ConnId(conn), bytes),
        };
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.outbox.insert(conn, rest);
        }
    }

    fn read(&mut self, now: Instant, conn: u32) {
        if self.paused {
            self.unread.insert(conn);
            return;
        }
        loop {
            let bytes = match &mut self.process {
                Process::Own(engine) => {
                    let bytes = engine.read(ConnId(conn));
                    engine.consumed(now, ConnId(conn), bytes.as_ref().map_or(0, Bytes::len));
                    bytes
                }
                Process::Model(node) => node.read(now, model::ConnId(conn)),
            };
            let Some(bytes) = bytes else { return };
            *self.received.entry(conn).or_default() += bytes.len();
            self.last_byte = Some(now);
            if self.echoes {
                self.write(now, conn, bytes);
            }
        }
    }

    fn own_event(&mut self, now: Instant, event: engine::Event) {
        let Process::Own(engine) = &mut self.process else { return };
        match event {
            engine::Event::NeedKey(n) => engine.set_peer_key(now, n, Some(*identity(n).public_key())),
            engine::Event::NeedRoute(n) => {
                let route = engine::Route { direct: vec![Candidate::guessed(addr_of(n))], relay_only: false };
                engine.set_route(now, n, Ok(route));
            }
            engine::Event::Stream(event) => match event {
                StreamEvent::Connected(c) => self.seen.push(Seen::Connected(c.0)),
                StreamEvent::DialFailed(c, e) => self.seen.push(Seen::DialFailed(c.0, e.to_string())),
                StreamEvent::Incoming { conn, .. } => self.seen.push(Seen::Incoming(conn.0)),
                StreamEvent::Closed(c, reason) => self.seen.push(Seen::Ended(c.0, Some(reason))),
                StreamEvent::Readable(c) => self.read(now, c.0),
                StreamEvent::Writable(c) => self.flush(now, c.0),
                StreamEvent::EndOfStream(_) => {}
            },
            _ => {}
        }
    }

    fn model_event(&mut self, now: Instant, event: model::Event) {
        let Process::Model(node) = &mut self.process else { return };
        match event {
            model::Event::NeedKey(n) => node.set_peer_key(now, n, Some(*identity(n).public_key())),
            model::Event::NeedRoute(n) => {
                node.set_route(now, n, Ok(model::Route { addr: addr_of(n), relay_only: false }));
            }
            model::Event::NeedTrust(n) => node.set_trust(now, n, true),
            model::Event::Connected(c) => self.seen.push(Seen::Connected(c.0)),
            model::Event::DialFailed(c, e) => self.seen.push(Seen::DialFailed(c.0, format!("{e:?}"))),
            model::Event::Incoming(c, _) => self.seen.push(Seen::Incoming(c.0)),
            model::Event::Ended(c) => self.seen.push(Seen::Ended(c.0, None)),
            model::Event::Dropped(_) => self.dropped += 1,
            model::Event::Readable(c) => self.read(now, c.0),
            model::Event::Writable(c) => self.flush(now, c.0),
            _ => {}
        }
    }
}
