//! The invariants, and the ways to break them on purpose.

use crate::net::Micros;
use pilot_proto::wire::frame::{Frame, Pils};
use std::collections::{HashMap, HashSet};

/// Bytes a direction may hold between the writing and the reading application: send buffer (2 MiB), receive window
/// (4 MiB), and one read (256 KiB).
pub const MAX_IN_TRANSIT: u64 = (6 << 20) + (256 << 10);
/// Separate pieces a receiver may hold (stream layer's bound).
pub const MAX_PIECES: u64 = 4096;
/// Segments a sender may have unacknowledged (stream layer's bound).
pub const MAX_UNACKED: u64 = 8192;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Violation {
    #[error("stream {stream} direction {direction}: bytes at {offset} are not those sent")]
    NotAPrefix { stream: u32, direction: usize, offset: u64 },
    #[error("stream {stream} direction {direction}: ended in order with {delivered} of {sent} bytes")]
    Incomplete { stream: u32, direction: usize, delivered: u64, sent: u64 },
    #[error("stream {stream}: reset at side {side}, but the other side neither aborted nor gave up")]
    UnprovokedReset { stream: u32, side: usize },
    #[error("stream {stream}: accepted twice")]
    StreamTwice { stream: u32 },
    #[error("stream {stream}: side {side} has not ended {after} s after the last fault")]
    NeverEnded { stream: u32, side: usize, after: u64 },
    #[error("stream {stream} failed in a world without faults: {cause}")]
    FailedInCalm { stream: u32, cause: String },
    #[error("nonce {prefix:02x?} {counter} of node {node} used twice")]
    NonceRepeated { node: u32, prefix: [u8; 4], counter: u64 },
    #[error("node {node} accepted a frame of node {sender} (counter {counter}) twice")]
    FrameTwice { node: u32, sender: u32, counter: u64 },
    #[error("node {node} accepted a frame nobody sent")]
    FrameForged { node: u32 },
    #[error("node {node} got datagram {id} twice")]
    DatagramTwice { node: u32, id: u32 },
    #[error("node {node} got a datagram nobody sent it")]
    DatagramAltered { node: u32 },
    #[error("node {node}: {count} {what}, bound {bound}")]
    TooMuch { node: u32, what: &'static str, count: u64, bound: u64 },
    #[error("nodes {a} and {b} still do not reach each other {after} s after the last fault")]
    Unreachable { a: u32, b: u32, after: u64 },
    #[error("node {node} never comes to rest")]
    NoRest { node: u32 },
}

/// A harness that lies in one way, to show that the invariant notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A received chunk is handed over twice.
    DeliverTwice,
    /// A received chunk is lost.
    LoseChunk,
    /// The end of a stream is reported before its last bytes.
    EarlyEnd,
    /// A frame goes out with the header of the one before.
    ReuseNonce,
    /// A repeated frame counts as accepted.
    AcceptReplay,
    /// A datagram is handed over twice.
    RepeatDatagram,
    /// A datagram is changed after decryption.
    AlterDatagram,
    /// A connection is aborted behind the application's back.
    SecretAbort,
    /// The end of a connection is not reported.
    SwallowClosed,
    /// What was received on connections that the client closes is never read.
    KeepConnections,
    /// A node stays cut off after the faults are over.
    NeverMend,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 11] = [
        Sabotage::DeliverTwice,
        Sabotage::LoseChunk,
        Sabotage::EarlyEnd,
        Sabotage::ReuseNonce,
        Sabotage::AcceptReplay,
        Sabotage::RepeatDatagram,
        Sabotage::AlterDatagram,
        Sabotage::SecretAbort,
        Sabotage::SwallowClosed,
        Sabotage::KeepConnections,
        Sabotage::NeverMend,
    ];
}

/// Byte pattern of a stream direction or a datagram: eight bytes from `block * 8` on.
fn block(tag: u64, block: u64) -> [u8; 8] {
    let mut x = tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ block.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (x ^ (x >> 29)).to_be_bytes()
}

/// `len` bytes of the pattern `tag` from `offset` on.
pub fn pattern(tag: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    let mut at = offset / 8;
    while out.len() < len + 8 {
        out.extend_from_slice(&block(tag, at));
        at += 1;
    }
    let skip = (offset % 8) as usize;
    out.drain(..skip);
    out.truncate(len);
    out
}

fn pils(datagram: &[u8]) -> Option<(Pils, &[u8])> {
    // Relayed frames: 5 = from, to, frame (to the beacon); 6 = from, frame (from it).
    let frame = match datagram.first()? {
        0x05 => datagram.get(9..)?,
        0x06 => datagram.get(5..)?,
        _ => datagram,
    };
    match Frame::parse(frame) {
        Ok(Frame::Pils(header)) => Some((header, frame)),
        _ => None,
    }
}

type Nonce = (u32, [u8; 4], u64);

/// Watches sealed frames on their way.
#[derive(Debug, Default)]
pub struct Wire {
    /// Frames sent, with a checksum of their bytes.
    sent: HashMap<Nonce, u32>,
    last: HashMap<u32, Pils>,
    /// Folded over everything that arrived: two runs of a seed must agree.
    pub trace: u64,
}

/// What one process has taken.
#[derive(Debug, Default)]
pub struct Taken {
    arrived: HashSet<Nonce>,
    accepted: HashSet<Nonce>,
    /// Frames counted as accepted beyond what the engine says (sabotage).
    pub extra: u64,
}

impl Wire {
    /// A node sends. `reuse`: pretend it used its previous nonce again.
    pub fn on_send(&mut self, datagram: &[u8], reuse: bool) -> Result<(), Violation> {
        let Some((mut header, frame)) = pils(datagram) else { return Ok(()) };
        let last = self.last.insert(header.node, header);
        if let Some(last) = last.filter(|_| reuse) {
            header = last;
        }
        let key = (header.node, header.prefix, header.counter);
        if self.sent.insert(key, crc32fast::hash(frame)).is_some() {
            let Pils { node, prefix, counter } = header;
            return Err(Violation::NonceRepeated { node, prefix, counter });
        }
        Ok(())
    }

    /// Folds an arrival into the trace.
    pub fn on_arrival(&mut self, now: Micros, place: usize, datagram: &[u8]) {
        let word = (u64::from(crc32fast::hash(datagram)) << 32) ^ (place as u64) ^ (now << 8);
        self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// What a node is about to get: the nonce, and whether a node really sent these bytes.
    pub fn genuine(&self, datagram: &[u8]) -> Option<(Nonce, bool)> {
        let (header, frame) = pils(datagram)?;
        let key = (header.node, header.prefix, header.counter);
        Some((key, self.sent.get(&key) == Some(&crc32fast::hash(frame))))
    }
}

impl Taken {
    /// A node handled a datagram; the engine's count of opened frames went from `before` to `after`.
    pub fn on_handled(
        &mut self,
        node: u32,
        frame: Option<(Nonce, bool)>,
        (before, after): (u64, u64),
    ) -> Result<(), Violation> {
        if let Some((key, genuine)) = frame {
            if genuine {
                self.arrived.insert(key);
            }
            // The frame itself is opened first; with it may come earlier ones that waited for their session.
            if after > before && !genuine {
                return Err(Violation::FrameForged { node });
            }
            if after > before && !self.accepted.insert(key) {
                return Err(Violation::FrameTwice { node, sender: key.0, counter: key.2 });
            }
        }
        if after + self.extra > self.arrived.len() as u64 {
            let (sender, _, counter) = frame.map_or((0, [0; 4], 0), |(key, _)| key);
            return Err(Violation::FrameTwice { node, sender, counter });
        }
        Ok(())
    }

    /// Whether this frame has been accepted.
    pub fn has(&self, frame: Option<(Nonce, bool)>) -> bool {
        frame.is_some_and(|(key, _)| self.accepted.contains(&key))
    }
}
