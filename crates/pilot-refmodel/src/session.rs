//! One session: cipher, counters, the one replay window and the fault counters (spec 02 sections 8 to 10).

use pilot_proto::NodeId;
use pilot_proto::crypto::SessionKey;
use pilot_proto::wire::frame::{PILS_HEADER_LEN, Pils};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Frames the replay window looks back.
const WINDOW: u64 = 256;
/// Decrypt failures in a row that end a session, and its least age then.
const MAX_FAILURES: (u32, Duration) = (5, Duration::from_secs(3));
/// Replays, or frames before the window, in a row that end a session, and its least age then.
const MAX_REPLAYS: (u32, Duration) = (5, Duration::from_secs(1));
/// At this age one of them is enough.
const OLD: Duration = Duration::from_secs(60);
/// Packets sent last, and for how long they may be sent again under a new key.
const SALVAGE: (usize, Duration) = (4, Duration::from_secs(5));

/// What opening a frame came to.
pub(crate) enum Opened {
    /// A packet.
    Packet(Vec<u8>),
    /// Dropped; true: the faults are too many, and the session must go.
    Fault(bool),
}

pub(crate) struct Session {
    key: SessionKey,
    /// The peer's X25519 key.
    pub(crate) peer_key: [u8; 32],
    pub(crate) installed: Instant,
    prefix: [u8; 4],
    sent: u64,
    max: u64,
    seen: [bool; WINDOW as usize],
    failures: u32,
    outside: u32,
    replays: u32,
    salvage: VecDeque<(Instant, Vec<u8>)>,
}

impl Session {
    pub(crate) fn new(key: SessionKey, peer_key: [u8; 32], prefix: [u8; 4], now: Instant) -> Session {
        Session {
            key,
            peer_key,
            installed: now,
            prefix,
            sent: 0,
            max: 0,
            seen: [false; WINDOW as usize],
            failures: 0,
            outside: 0,
            replays: 0,
            salvage: VecDeque::new(),
        }
    }

    /// Seals a packet of node `node`.
    pub(crate) fn seal(&mut self, node: NodeId, packet: &[u8]) -> Option<Vec<u8>> {
        self.sent += 1;
        let header = Pils { node, prefix: self.prefix, counter: self.sent };
        let mut frame = header.header().to_vec();
        frame.extend_from_slice(packet);
        let tag = self.key.seal(header.nonce(), &node.to_be_bytes(), &mut frame[PILS_HEADER_LEN..])?;
        frame.extend_from_slice(&tag);
        Some(frame)
    }

    /// Remembers a packet for a change of keys.
    pub(crate) fn remember(&mut self, now: Instant, packet: &[u8]) {
        if self.salvage.len() == SALVAGE.0 {
            self.salvage.pop_front();
        }
        self.salvage.push_back((now, packet.to_vec()));
    }

    /// Packets sent a moment ago, oldest first.
    pub(crate) fn salvaged(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) <= SALVAGE.1;
        self.salvage.drain(..).filter(|(at, _)| fresh(at)).map(|(_, p)| p).collect()
    }

    /// Opens a frame: cipher first, replay verdict second.
    pub(crate) fn open(&mut self, now: Instant, header: Pils, frame: &[u8]) -> Opened {
        let age = now.saturating_duration_since(self.installed);
        let mut text = frame[PILS_HEADER_LEN..].to_vec();
        let Some(packet) = self.key.open(header.nonce(), &header.node.to_be_bytes(), &mut text) else {
            self.failures += 1;
            return Opened::Fault(self.failures >= MAX_FAILURES.0 && age >= MAX_FAILURES.1);
        };
        let packet = packet.to_vec();
        let counter = header.counter;
        if self.max > 0 && counter <= self.max {
            let behind = self.max - counter;
            let faults = if behind >= WINDOW {
                &mut self.outside
            } else if self.seen[(counter % WINDOW) as usize] {
                &mut self.replays
            } else {
                self.seen[(counter % WINDOW) as usize] = true;
                return self.accept(packet);
            };
            *faults += 1;
            return Opened::Fault(age >= OLD || (*faults >= MAX_REPLAYS.0 && age >= MAX_REPLAYS.1));
        }
        if counter - self.max >= WINDOW {
            self.seen = [false; WINDOW as usize];
        } else {
            for between in self.max + 1..counter {
                self.seen[(between % WINDOW) as usize] = false;
            }
        }
        self.max = counter;
        self.seen[(counter % WINDOW) as usize] = true;
        self.accept(packet)
    }

    fn accept(&mut self, packet: Vec<u8>) -> Opened {
        (self.failures, self.outside, self.replays) = (0, 0, 0);
        Opened::Packet(packet)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(sent {}, max {})", self.sent, self.max)
    }
}
