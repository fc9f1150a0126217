//! Two `Streams` joined by an in-memory link on a virtual clock: loss, duplication, delay, reordering, a bottleneck
//! with a queue, all from one seed.

use bytes::Bytes;
use pilot_proto::stream::{Config, ConnId, Handled, Ingress, PathInfo, StreamEvent, Streams};
use pilot_proto::wire::packet::Packet;
use pilot_proto::{Addr, NodeId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Node number of side 0; side 1 is the next one.
pub const NODE: NodeId = 10;

/// What the link does to packets, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    pub delay: Duration,
    /// Most extra delay, drawn per packet: reorders.
    pub jitter: Duration,
    /// Chances out of 1000.
    pub loss: u32,
    pub duplicate: u32,
    /// Bytes per second and queue bytes of the bottleneck.
    pub rate: Option<(u64, u64)>,
    pub max_payload: usize,
}

impl Default for Conditions {
    fn default() -> Conditions {
        Conditions {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0,
            duplicate: 0,
            rate: None,
            max_payload: 1152,
        }
    }
}

/// One end and what it saw.
pub struct Side {
    pub streams: Streams,
    pub node: NodeId,
    pub events: Vec<StreamEvent>,
    pub received: HashMap<ConnId, Vec<u8>>,
    pub incoming: Vec<ConnId>,
    /// Read and consume everything as soon as it can be read.
    pub reads: bool,
    pub ready: Cell<bool>,
    outbox: HashMap<ConnId, Bytes>,
    busy_until: Option<Instant>,
}

impl Side {
    fn new(config: Config, node: NodeId, seed: u64) -> Side {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        bytes[8..12].copy_from_slice(&node.to_be_bytes());
        Side {
            streams: Streams::new(config, bytes),
            node,
            events: Vec::new(),
            received: HashMap::new(),
            incoming: Vec::new(),
            reads: true,
            ready: Cell::new(true),
            outbox: HashMap::new(),
            busy_until: None,
        }
    }

    pub fn count(&self, wanted: &StreamEvent) -> usize {
        self.events.iter().filter(|event| *event == wanted).count()
    }

    fn pump(&mut self, now: Instant) {
        while let Some(event) = self.streams.poll_event() {
            match &event {
                StreamEvent::Incoming { conn, .. } => {
                    self.incoming.push(*conn);
                    self.streams.accepted(*conn);
                }
                StreamEvent::Readable(conn) if self.reads => self.read_all(now, *conn),
                StreamEvent::Writable(conn) => self.flush(now, *conn),
                _ => {}
            }
            self.events.push(event);
        }
    }

    pub fn read_all(&mut self, now: Instant, conn: ConnId) {
        while let Some(bytes) = self.streams.read(conn) {
            self.received.entry(conn).or_default().extend_from_slice(&bytes);
            self.streams.consumed(now, conn, bytes.len());
        }
    }

    fn flush(&mut self, now: Instant, conn: ConnId) {
        if let Some(data) = self.outbox.remove(&conn)
            && let Ok(rest) = self.streams.write(now, conn, data)
            && !rest.is_empty()
        {
            self.outbox.insert(conn, rest);
        }
    }
}

/// Decides whether a packet of a side is lost.
type Filter = Box<dyn FnMut(usize, &Packet<'_>) -> bool>;

/// The two ends, the link and the clock.
pub struct Net {
    pub now: Instant,
    pub sides: [Side; 2],
    pub conditions: Conditions,
    rng: ChaCha20Rng,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    serial: u64,
    /// Packets a test wants lost.
    pub drop: Option<Filter>,
    /// Everything that was sent: time, side, packet.
    pub log: Vec<(Instant, usize, Vec<u8>)>,
    pub keep_log: bool,
}

impl Net {
    pub fn new(seed: u64, configs: [Config; 2], conditions: Conditions) -> Net {
        println!("seed {seed}");
        let [a, b] = configs;
        let now = Instant::now();
        Net {
            now,
            sides: [Side::new(a, NODE, seed), Side::new(b, NODE + 1, seed)],
            conditions,
            rng: ChaCha20Rng::seed_from_u64(seed),
            flying: BTreeMap::new(),
            serial: 0,
            drop: None,
            log: Vec::new(),
            keep_log: false,
        }
    }

    pub fn own(seed: u64, conditions: Conditions) -> Net {
        Net::new(seed, [Config::default(), Config::default()], conditions)
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.next_u32() % 1000 < per_mille
    }

    fn transmit(&mut self, side: usize, packet: Vec<u8>) {
        let parsed = Packet::parse(&packet).expect("streams emit valid packets");
        let unwanted = self.drop.as_mut().is_some_and(|drop| drop(side, &parsed));
        if self.keep_log {
            self.log.push((self.now, side, packet.clone()));
        }
        if unwanted || self.chance(self.conditions.loss) {
            return;
        }
        let mut leave = self.now;
        if let Some((rate, queue)) = self.conditions.rate {
            let sender = &mut self.sides[side];
            let free = sender.busy_until.unwrap_or(self.now).max(self.now);
            let backlog = (free - self.now).as_secs_f64() * rate as f64;
            if backlog as u64 + packet.len() as u64 > queue {
                return;
            }
            leave = free + Duration::from_secs_f64(packet.len() as f64 / rate as f64);
            sender.busy_until = Some(leave);
        }
        let copies = 1 + usize::from(self.chance(self.conditions.duplicate));
        for _ in 0..copies {
            let jitter = self.conditions.jitter.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
            self.serial += 1;
            let at = leave + self.conditions.delay + jitter;
            self.flying.insert((at, self.serial), (1 - side, packet.clone()));
        }
    }

    /// Lets both ends send and report until neither has anything left to do at this instant.
    pub fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for side in 0..2 {
                self.sides[side].pump(self.now);
                let mut out = Vec::new();
                loop {
                    out.clear();
                    let end = &mut self.sides[side];
                    let info = PathInfo {
                        max_payload: self.conditions.max_payload,
                        ready: end.ready.get(),
                        relayed: false,
                        same_process: true,
                    };
                    if end.streams.poll_packet(self.now, &|_| info, &mut out).is_none() {
                        break;
                    }
                    quiet = false;
                    self.transmit(side, out.clone());
                }
                quiet &= self.sides[side].events.is_empty() || !self.more_events(side);
            }
            if quiet {
                return;
            }
        }
    }

    fn more_events(&mut self, side: usize) -> bool {
        let before = self.sides[side].events.len();
        self.sides[side].pump(self.now);
        self.sides[side].events.len() != before
    }

    /// Advances to the next thing that happens, if that is before `until`. False: nothing does.
    pub fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let arrival = self.flying.keys().next().map(|(at, _)| *at);
        let timers = self.sides.iter().filter_map(|side| side.streams.next_timeout()).min();
        let Some(next) = [arrival, timers].into_iter().flatten().min().filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (side, packet) = entry.remove();
            self.deliver(side, &packet);
        }
        for side in &mut self.sides {
            side.streams.handle_timeout(self.now);
        }
        self.settle();
        true
    }

    pub fn deliver(&mut self, side: usize, packet: &[u8]) -> Handled {
        let packet = Packet::parse(packet).expect("link carries valid packets");
        let ingress = Ingress { node: self.sides[1 - side].node, admitted: true };
        self.sides[side].streams.handle_packet(self.now, ingress, packet)
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done` says so; panics after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Net) -> bool) {
        let until = self.now + limit;
        while !done(self) {
            assert!(
                self.step(until) || done(self),
                "not done after {limit:?}: {:#?} {:?}",
                self.status(),
                self.sides.each_ref().map(|side| &side.events)
            );
        }
    }

    pub fn status(&self) -> Vec<pilot_proto::stream::ConnStatus> {
        self.sides.iter().flat_map(|side| side.streams.status()).collect()
    }

    pub fn addr(side: usize) -> Addr {
        Addr { network: 0, node: NODE + side as u32 }
    }

    /// Dials port 7 of side 1 from side 0 and waits for both ends.
    pub fn connect(&mut self) -> (ConnId, ConnId) {
        self.sides[1].streams.listen(7);
        let known = self.sides[1].incoming.len();
        let conn = self.dial();
        self.run_until(Duration::from_secs(60), |net| {
            net.sides[0].count(&StreamEvent::Connected(conn)) > 0 && net.sides[1].incoming.len() > known
        });
        (conn, self.sides[1].incoming[known])
    }

    pub fn dial(&mut self) -> ConnId {
        self.sides[0].streams.dial(self.now, Net::addr(0), Net::addr(1), 7).expect("dial starts")
    }

    /// Writes all of `data`, now and whenever there is room.
    pub fn send(&mut self, side: usize, conn: ConnId, data: impl Into<Bytes>) {
        let end = &mut self.sides[side];
        assert!(end.outbox.insert(conn, data.into()).is_none(), "one write at a time");
        end.flush(self.now, conn);
    }

    pub fn received(&self, side: usize, conn: ConnId) -> &[u8] {
        self.sides[side].received.get(&conn).map_or(&[], |bytes| bytes)
    }
}

/// `len` bytes that repeat nowhere soon.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7919) >> 5) as u8 ^ i as u8).collect()
}
