//! Bulk transfers to a model of a reference 1.18.0 receiver: exact-start matching, 128 segments behind a hole, a queue of
//! 512 slots that blocks the whole node when it is overrun, no window updates, four SACK blocks (spec 03 sections 9 to 12).

use crate::link::pattern;
use crate::script::{ACK, Pkt, Script};
use pilot_proto::stream::{Config, ConnId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const SLOTS: usize = 512;
const REORDER: usize = 128;
const ONE_WAY: Duration = Duration::from_millis(10);

/// The receiver.
struct Reference {
    expected: u32,
    reorder: BTreeMap<u32, Vec<u8>>,
    queue: VecDeque<Vec<u8>>,
    delivered: Vec<u8>,
    reads: bool,
    unacked: u32,
    ack_at: Option<Instant>,
    /// Segments that arrived when the queue was full: each would stop the peer's node for a second.
    stalls: usize,
    /// Segments dropped because 128 were waiting already.
    dropped: usize,
}

impl Reference {
    fn deliver(&mut self, payload: Vec<u8>) -> bool {
        if self.queue.len() >= SLOTS {
            self.stalls += 1;
            return false;
        }
        self.expected += payload.len() as u32;
        self.queue.push_back(payload);
        true
    }

    fn take(&mut self, now: Instant, seq: u32, payload: &[u8]) -> Option<Vec<u8>> {
        if seq == self.expected {
            if self.deliver(payload.to_vec()) {
                while let Some(next) = self.reorder.remove(&self.expected) {
                    let at = self.expected;
                    if self.queue.len() >= SLOTS {
                        self.reorder.insert(at, next);
                        break;
                    }
                    self.deliver(next);
                }
                self.reorder = self.reorder.split_off(&self.expected);
            }
        } else if seq > self.expected && !self.reorder.contains_key(&seq) {
            if self.reorder.len() < REORDER {
                self.reorder.insert(seq, payload.to_vec());
            } else {
                self.dropped += 1;
            }
        }
        self.read();
        self.unacked += 1;
        if !self.reorder.is_empty() || self.unacked >= 2 || seq < self.expected - payload.len() as u32 {
            return Some(self.ack());
        }
        self.ack_at.get_or_insert(now + Duration::from_millis(5));
        None
    }

    fn read(&mut self) {
        if self.reads {
            for segment in self.queue.drain(..) {
                self.delivered.extend_from_slice(&segment);
            }
        }
    }

    /// The payload of the acknowledgement.
    fn ack(&mut self) -> Vec<u8> {
        self.unacked = 0;
        self.ack_at = None;
        let mut blocks: Vec<(u32, u32)> = Vec::new();
        for (start, payload) in &self.reorder {
            let end = start + payload.len() as u32;
            match blocks.last_mut() {
                Some(last) if last.1 == *start => last.1 = end,
                _ => blocks.push((*start, end)),
            }
        }
        let four = &blocks[blocks.len().saturating_sub(4)..];
        if four.is_empty() {
            return Vec::new();
        }
        let mut list = [b"SACK".as_slice(), &[four.len() as u8]].concat();
        for (left, right) in four {
            list.extend_from_slice(&left.to_be_bytes());
            list.extend_from_slice(&right.to_be_bytes());
        }
        list
    }
}

struct World {
    s: Script,
    conn: ConnId,
    peer: Reference,
    rng: ChaCha20Rng,
    loss: u32,
    /// In flight: true towards the peer.
    wire: BTreeMap<(Instant, u64), (bool, Pkt)>,
    serial: u64,
    pending: bytes::Bytes,
}

impl World {
    fn new(seed: u64, loss: u32) -> World {
        println!("seed {seed} loss {loss}/1000");
        let mut s = Script::new(Config::default());
        let (conn, iss) = s.dial(500, 512);
        let peer = Reference {
            expected: iss.wrapping_add(1),
            reorder: BTreeMap::new(),
            queue: VecDeque::new(),
            delivered: Vec::new(),
            reads: true,
            unacked: 0,
            ack_at: None,
            stalls: 0,
            dropped: 0,
        };
        assert!(iss < u32::MAX / 2, "the model does not wrap: choose another seed");
        let rng = ChaCha20Rng::seed_from_u64(seed);
        World { s, conn, peer, rng, loss, wire: BTreeMap::new(), serial: 0, pending: bytes::Bytes::new() }
    }

    fn send(&mut self, to_peer: bool, pkt: Pkt) {
        if self.rng.next_u32() % 1000 >= self.loss {
            self.serial += 1;
            self.wire.insert((self.s.now + ONE_WAY, self.serial), (to_peer, pkt));
        }
    }

    fn answer(&mut self, payload: Vec<u8>) {
        let window = (SLOTS - self.peer.queue.len()) as u16;
        let header = self.s.header(ACK, 501, self.peer.expected, window);
        self.send(false, Pkt { header, payload });
    }

    fn run(&mut self, limit: Duration, done: impl Fn(&World) -> bool) {
        let until = self.s.now + limit;
        while !done(self) {
            if !self.pending.is_empty() {
                let data = std::mem::take(&mut self.pending);
                self.pending = self.s.streams.write(self.s.now, self.conn, data).expect("open");
            }
            for pkt in self.s.drain() {
                self.send(true, pkt);
            }
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let next = [arrival, self.s.streams.next_timeout(), self.peer.ack_at].into_iter().flatten().min();
            let next = next.filter(|at| *at <= until).unwrap_or_else(|| {
                panic!("not done: {} bytes, {:?}", self.peer.delivered.len(), self.s.streams.status())
            });
            self.s.now = self.s.now.max(next);
            if self.peer.ack_at.is_some_and(|at| at <= self.s.now) {
                let payload = self.peer.ack();
                self.answer(payload);
            }
            while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.s.now) {
                let (to_peer, pkt) = entry.remove();
                if to_peer {
                    if pkt.is_data()
                        && let Some(payload) = self.peer.take(self.s.now, pkt.header.seq, &pkt.payload)
                    {
                        self.answer(payload);
                    }
                } else {
                    self.s.feed(pkt.header, &pkt.payload);
                }
            }
            self.s.streams.handle_timeout(self.s.now);
        }
    }
}

#[test]
fn bulk_transfers_to_a_reference_receiver_complete_without_stalling_it() {
    for (loss, bound) in [(0, 400), (10, 4000), (50, 8000), (200, 40_000)] {
        let mut world = World::new(3, loss);
        let data = pattern(2 << 20);
        world.pending = data.clone().into();
        let start = world.s.now;
        world.run(Duration::from_secs(200), |w| w.peer.delivered.len() >= 2 << 20);
        let took = world.s.now - start;
        println!("{took:?}, {} beyond the reorder buffer", world.peer.dropped);
        assert!(world.peer.delivered == data);
        assert_eq!(world.peer.stalls, 0);
        assert!(took <= Duration::from_millis(bound), "loss {loss}: {took:?}");
    }
}

#[test]
fn a_reference_receiver_whose_application_pauses_is_neither_stalled_nor_abandoned() {
    for loss in [0, 20] {
        let mut world = World::new(4, loss);
        let data = pattern(2 << 20);
        world.pending = data.clone().into();
        world.peer.reads = false;
        let end = world.s.now + Duration::from_secs(60);
        world.run(Duration::from_secs(90), |w| w.s.now >= end);
        assert!(world.peer.queue.len() >= SLOTS - 8, "{} segments", world.peer.queue.len());
        assert_eq!(world.peer.stalls, 0, "loss {loss}: the queue was never overrun");
        // The reader resumes; the reference says nothing about it unasked.
        world.peer.reads = true;
        world.peer.read();
        world.run(Duration::from_secs(60), |w| w.peer.delivered.len() >= 2 << 20);
        assert!(world.peer.delivered == data);
    }
}
