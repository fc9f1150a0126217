//! A network in memory on a virtual clock: engines, a directory that knows their keys and addresses, a beacon.
#![allow(dead_code)]

use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Config, Engine, Event, Output, Route};
use pilot_proto::path::Candidate;
use pilot_proto::wire::beacon::Message;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const SECOND: Duration = Duration::from_secs(1);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Default UDP address of a node.
pub fn addr_of(node: NodeId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 4000))
}

pub fn beacon_addr() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 9], 9001))
}

/// A second beacon, which shares the first one's table.
pub fn other_beacon() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 8], 9001))
}

pub fn config(seed: u8) -> Config {
    Config {
        tunnel_secret: [seed; 32],
        rng_seed: [seed; 32],
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
        max_conns_per_port: 1024,
        max_conns_total: 65_536,
        syn_rate_limit: 100,
        max_segments: 64,
    }
}

/// The same without the session upgrade.
pub fn plain(seed: u8) -> Config {
    Config { session_upgrade: false, ..config(seed) }
}

pub fn identity(seed: u8) -> Arc<Identity> {
    Arc::new(Identity::from_seed([seed; 32]).unwrap())
}

/// One UDP datagram on its way, or that was.
#[derive(Debug, Clone)]
pub struct Sent {
    pub at: Instant,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Sent {
    /// `PILA`, `PILS`, ... or for frames through the beacon `relay PILA`; for beacon messages their number.
    pub fn kind(&self) -> String {
        match self.bytes.first() {
            Some(5) => format!("relay {}", String::from_utf8_lossy(&self.bytes[9..13])),
            Some(6) => format!("deliver {}", String::from_utf8_lossy(&self.bytes[5..9])),
            Some(n) if *n < 16 => format!("beacon {n}"),
            _ => String::from_utf8_lossy(&self.bytes[..4.min(self.bytes.len())]).into_owned(),
        }
    }
}

pub struct Host {
    pub id: NodeId,
    pub addr: SocketAddr,
    pub engine: Engine,
    pub events: Vec<Event>,
    /// When it wants to be woken.
    pub wake: Option<Instant>,
    pub wakes: u32,
    /// Datagrams that were larger than what the path was known to carry when they left, if that is watched.
    pub oversize: u64,
    /// The machine is suspended: nothing runs, nothing arrives.
    pub asleep: bool,
    /// How much less than ours its clock shows, because it stood still.
    pub slept: Duration,
}

type Filter = Box<dyn FnMut(&Sent) -> bool>;

pub struct Net {
    pub start: Instant,
    pub now: Instant,
    pub hosts: BTreeMap<NodeId, Host>,
    pub latency: Duration,
    /// What the registry knows.
    pub keys: BTreeMap<NodeId, [u8; 32]>,
    pub routes: BTreeMap<NodeId, Route>,
    /// The registry answers by itself.
    pub directory: bool,
    pub beacon_up: bool,
    beacon_table: BTreeMap<NodeId, SocketAddr>,
    /// False: this datagram gets lost.
    pub filter: Filter,
    flying: BTreeMap<(Instant, u64), Sent>,
    count: u64,
    pub log: Vec<Sent>,
    /// Count [`Host::oversize`].
    pub watch_sizes: bool,
}

impl Net {
    pub fn new() -> Net {
        let start = Instant::now();
        Net {
            start,
            now: start,
            hosts: BTreeMap::new(),
            latency: ms(10),
            keys: BTreeMap::new(),
            routes: BTreeMap::new(),
            directory: true,
            beacon_up: false,
            beacon_table: BTreeMap::new(),
            filter: Box::new(|_| true),
            flying: BTreeMap::new(),
            count: 0,
            log: Vec::new(),
            watch_sizes: false,
        }
    }

    /// Two public nodes, 1 and 2, without a beacon.
    pub fn pair() -> Net {
        let mut net = Net::new();
        net.add(1, config(1));
        net.add(2, config(2));
        net
    }

    /// The same without the session upgrade: what a node and a reference peer see of each other.
    pub fn plain_pair() -> Net {
        let mut net = Net::new();
        net.add(1, plain(1));
        net.add(2, plain(2));
        net
    }

    /// Two public nodes and a beacon both use.
    pub fn pair_with_beacon() -> Net {
        Net::pair().with_beacon()
    }

    /// Starts a beacon that nodes 1 and 2 use.
    pub fn with_beacon(mut self) -> Net {
        let net = &mut self;
        net.beacon_up = true;
        for id in [1, 2] {
            let now = net.now;
            net.engine(id).set_beacon(now, Some(beacon_addr()));
        }
        net.run(ms(100));
        net.log.clear();
        self
    }

    /// Registers a node and starts its engine (again).
    pub fn add(&mut self, id: NodeId, config: Config) {
        let key = identity(id as u8);
        self.keys.insert(id, *key.public_key());
        self.routes.insert(
            id,
            Route { direct: vec![Candidate::guessed(addr_of(id))], relay_only: config.relay_only },
        );
        let engine = Engine::new(config, key, id, self.now);
        let host = Host {
            id,
            addr: addr_of(id),
            engine,
            events: Vec::new(),
            wake: None,
            wakes: 0,
            oversize: 0,
            asleep: false,
            slept: Duration::ZERO,
        };
        self.hosts.insert(id, host);
    }

    pub fn engine(&mut self, id: NodeId) -> &mut Engine {
        &mut self.hosts.get_mut(&id).unwrap().engine
    }

    pub fn drops(&self, id: NodeId) -> Vec<(&'static str, u64)> {
        self.hosts[&id].engine.drops().nonzero()
    }

    pub fn take_events(&mut self, id: NodeId) -> Vec<Event> {
        std::mem::take(&mut self.hosts.get_mut(&id).unwrap().events)
    }

    /// Puts a datagram on the wire now.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let sent = Sent { at: self.now, from, to, bytes: bytes.to_vec() };
        self.fly(sent);
    }

    fn fly(&mut self, sent: Sent) {
        self.log.push(sent.clone());
        if (self.filter)(&sent) {
            self.count += 1;
            self.flying.insert((self.now + self.latency, self.count), sent);
        }
    }

    /// Suspends a machine for so long. Its clock stands still meanwhile, as Linux's does, or goes on.
    pub fn suspend(&mut self, id: NodeId, time: Duration, stands_still: bool) {
        self.hosts.get_mut(&id).unwrap().asleep = true;
        self.run(time);
        let now = self.now;
        let host = self.hosts.get_mut(&id).unwrap();
        host.asleep = false;
        if stands_still {
            host.slept += time;
        }
        // Its node notices.
        host.engine.network_changed(now - host.slept);
    }

    /// What the clock of a machine shows.
    pub fn clock(&self, id: NodeId) -> Instant {
        self.now - self.hosts[&id].slept
    }

    /// Lets an engine hand out everything it has now.
    pub fn poll(&mut self, id: NodeId) {
        let mut buf = Vec::new();
        let mut out = VecDeque::new();
        let host = self.hosts.get_mut(&id).unwrap();
        if host.asleep {
            return;
        }
        let (real, now) = (self.now, self.now - host.slept);
        for round in 0.. {
            assert!(round < 200_000, "node {id} never comes to rest");
            match host.engine.poll_output(now, &mut buf) {
                Output::Transmit(t) => {
                    assert_eq!(t.len, buf.len());
                    let size = t.segment_size.unwrap_or(t.len);
                    if self.watch_sizes && size > 1222 {
                        let peers = host.engine.peers();
                        let known = peers.iter().filter(|p| p.endpoint == t.to.to_string());
                        if known.map(|p| p.mtu).max().is_some_and(|mtu| size > mtu) {
                            assert_eq!(t.segment_size, None, "a probe leaves alone");
                            host.oversize += 1;
                        }
                    }
                    for bytes in buf.chunks(size) {
                        out.push_back(Sent { at: real, from: host.addr, to: t.to, bytes: bytes.to_vec() });
                    }
                }
                Output::Event(event) => {
                    if self.directory {
                        match event {
                            Event::NeedKey(n) => host.engine.set_peer_key(now, n, self.keys.get(&n).copied()),
                            Event::NeedRoute(n) => {
                                let unknown = || format!("node {n} not found");
                                let route = self.routes.get(&n).cloned().ok_or_else(unknown);
                                host.engine.set_route(now, n, route);
                            }
                            _ => {}
                        }
                    }
                    host.events.push(event);
                }
                Output::Timeout(at) => {
                    host.wake = at.map(|at| at + host.slept);
                    break;
                }
            }
        }
        for sent in out {
            self.fly(sent);
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let (mut same, mut last) = (0, self.now);
        loop {
            same = if last == self.now { same + 1 } else { 0 };
            last = self.now;
            assert!(same < 10_000, "the clock stands still at {:?}", self.now - self.start);
            let ids: Vec<NodeId> = self.hosts.keys().copied().collect();
            for id in &ids {
                self.poll(*id);
            }
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let wake = self.hosts.values().filter(|h| !h.asleep).filter_map(|h| h.wake).min();
            let next = [arrival, wake].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry().filter(|e| e.key().0 <= self.now) {
                let sent = entry.remove();
                self.arrive(sent);
            }
            let now = self.now;
            for host in self.hosts.values_mut().filter(|h| !h.asleep && h.wake.is_some_and(|at| at <= now)) {
                host.engine.handle_timeout(now - host.slept);
                host.wakes += 1;
            }
        }
    }

    fn arrive(&mut self, mut sent: Sent) {
        if sent.to == beacon_addr() || sent.to == other_beacon() {
            if self.beacon_up {
                self.beacon(&sent);
            }
            return;
        }
        let now = self.now;
        if let Some(host) = self.hosts.values_mut().find(|h| h.addr == sent.to && !h.asleep) {
            host.engine.handle_datagram(now - host.slept, sent.from, &mut sent.bytes);
        }
    }

    fn beacon(&mut self, sent: &Sent) {
        let mut replies = Vec::new();
        match Message::parse(&sent.bytes) {
            Ok(Message::Discover { node, .. }) => {
                self.beacon_table.insert(node, sent.from);
                replies.push((sent.from, Message::DiscoverReply(sent.from)));
            }
            Ok(Message::PunchRequest { requester, target }) => {
                self.beacon_table.insert(requester, sent.from);
                if let Some(at) = self.beacon_table.get(&target) {
                    replies.push((sent.from, Message::PunchCommand(*at)));
                    replies.push((*at, Message::PunchCommand(sent.from)));
                }
            }
            Ok(Message::Relay { from, to, frame }) => {
                if let Some(at) = self.beacon_table.get(&to) {
                    replies.push((*at, Message::RelayDeliver { from, frame }));
                }
            }
            _ => {}
        }
        for (to, message) in replies {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            self.inject(sent.to, to, &bytes);
        }
    }

    /// Kinds of everything a node sent since the log was cleared.
    pub fn sent_by(&self, id: NodeId) -> Vec<String> {
        self.log.iter().filter(|s| s.from == addr_of(id)).map(Sent::kind).collect()
    }

    /// Times (ms since the network began) at which frames of this kind left a node.
    pub fn times(&self, id: NodeId, kind: &str) -> Vec<u128> {
        let mine = self.log.iter().filter(|s| s.from == addr_of(id) && s.kind() == kind);
        mine.map(|s| (s.at - self.start).as_millis()).collect()
    }

    pub fn datagrams(&mut self, id: NodeId) -> Vec<Vec<u8>> {
        let events = self.take_events(id);
        let payload = |e| if let Event::Datagram { payload, .. } = e { Some(payload.to_vec()) } else { None };
        events.into_iter().filter_map(payload).collect()
    }

    pub fn relayed(&mut self, id: NodeId, peer: NodeId) -> Option<bool> {
        self.engine(id).peers().into_iter().find(|p| p.node_id == peer).map(|p| p.relay)
    }
}
