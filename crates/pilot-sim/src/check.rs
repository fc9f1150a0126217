//! The invariants, and the ways to break them on purpose.

use crate::net::Micros;
use pilot_proto::wire::capability::{self, Trailing};
use pilot_proto::wire::frame::Frame;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

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
    #[error(
        "stream {stream} direction {direction}: {acknowledged} bytes were acknowledged, the application got {delivered}"
    )]
    AcknowledgedLost { stream: u32, direction: usize, acknowledged: u64, delivered: u64 },
    #[error("job {job}: a receipt for {receipt} bytes, {stored} are stored")]
    ReceiptFalse { job: usize, receipt: u64, stored: u64 },
    #[error("job {job} is not done {after} s after the last fault")]
    JobUndone { job: usize, after: u64 },
    #[error("a world not worth running: {kinds} kinds of fault, {streams} streams, {bytes} bytes")]
    Idle { kinds: usize, streams: usize, bytes: u64 },
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
    #[error("nonce {prefix:02x?} {counter} used twice under one key, by node {node}")]
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

impl Violation {
    /// Which invariant it breaks: the variant's name.
    pub fn name(&self) -> String {
        let debug = format!("{self:?}");
        debug.split(' ').next().unwrap_or_default().to_owned()
    }
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

/// Header of a sealed frame: magic, sender, prefix and counter, or session number and counter.
const SEALED_HEADER: usize = 20;
/// Magics of frames without such a header.
const UNSEALED: [&[u8; 4]; 4] = [b"PILA", b"PILK", b"PILP", b"PILT"];

/// What makes a sealed frame unique under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce {
    magic: [u8; 4],
    node: u32,
    prefix: [u8; 4],
    counter: u64,
    checksum: u32,
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The frame in a datagram, and the node it is meant for if that is written on it.
fn unwrap(datagram: &[u8]) -> Option<(&[u8], Option<u32>)> {
    // Relayed frames: 5 = from, to, frame (to the beacon); 6 = from, frame; 9 = from, to, frame (from it).
    Some(match datagram.first()? {
        0x05 | 0x09 => (datagram.get(9..)?, word(datagram, 5).map(u32::from_be_bytes)),
        0x06 => (datagram.get(5..)?, None),
        _ => (datagram, None),
    })
}

fn sealed(frame: &[u8]) -> Option<Nonce> {
    let magic: [u8; 4] = word(frame, 0)?;
    if !magic.starts_with(b"PIL") || UNSEALED.contains(&&magic) || frame.len() < SEALED_HEADER {
        return None;
    }
    Some(Nonce {
        magic,
        node: u32::from_be_bytes(word(frame, 4)?),
        prefix: word(frame, 8)?,
        counter: u64::from_be_bytes(word(frame, 12)?),
        checksum: crc32fast::hash(frame),
    })
}

/// A message 2 of the session upgrade: who sent it, and the initiator's number for the session it answers.
fn second_message(frame: &[u8]) -> Option<(u32, [u8; 4])> {
    let Ok(Frame::Pila(pila)) = Frame::parse(frame) else { return None };
    match capability::parse(pila.trailing) {
        Trailing::Block(block) if block.kind == capability::Kind::Second => {
            Some((pila.node, block.answers.to_be_bytes()))
        }
        _ => None,
    }
}

/// A datagram in words.
pub fn describe(datagram: &[u8]) -> String {
    let what = match unwrap(datagram) {
        Some((frame, to)) => match (sealed(frame), frame.get(..4)) {
            (Some(n), Some(magic)) => format!(
                "{} of node {}, prefix {:02x?}, counter {}{}",
                magic.escape_ascii(),
                n.node,
                n.prefix,
                n.counter,
                to.map(|to| format!(", relayed to node {to}")).unwrap_or_default()
            ),
            (None, Some(magic)) if magic.starts_with(b"PIL") => magic.escape_ascii().to_string(),
            _ => format!("beacon message {}", datagram[0]),
        },
        None => String::new(),
    };
    format!("{what} ({} bytes)", datagram.len())
}

/// A frame that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    checksum: u32,
    sender: u32,
    /// The node it was meant for, if known.
    to: Option<u32>,
    /// Checksum of the message 2 that agreed the session, if this side sent it.
    agreed: Option<u32>,
}

impl Sent {
    /// The two nodes whose key it was sealed with.
    fn pair(&self) -> Option<(u32, u32)> {
        self.to.map(|to| (self.sender.min(to), self.sender.max(to)))
    }
}

/// Watches sealed frames on their way.
#[derive(Debug, Default)]
pub struct Wire {
    /// Frames sent, by prefix and counter. Both directions of a session may share a key, so that the sender is not part
    /// of what must be unique.
    sent: HashMap<([u8; 4], u64), Sent, Quick>,
    last: HashMap<u32, Nonce>,
    /// The last message 2 by its sender and the session it agreed. An initiator repeats a message 1 until it is answered,
    /// and a peer that restarted meanwhile answers it anew: the same number, other keys.
    agreed: HashMap<(u32, [u8; 4]), u32>,
    /// Folded over everything that arrived: two runs of a seed must agree.
    pub trace: u64,
}

/// What one process has taken.
#[derive(Debug, Default)]
pub struct Taken {
    arrived: HashSet<Nonce, Quick>,
    accepted: HashSet<Nonce, Quick>,
}

impl Wire {
    /// A node sends, to node `direct` unless the frame is relayed. `reuse`: pretend it used its previous nonce again.
    pub fn on_send(&mut self, datagram: &[u8], direct: Option<u32>, reuse: bool) -> Result<(), Violation> {
        let Some((frame, to)) = unwrap(datagram) else { return Ok(()) };
        let to = to.or(direct);
        if let Some(session) = second_message(frame) {
            self.agreed.insert(session, crc32fast::hash(frame));
        }
        let Some(mut nonce) = sealed(frame) else { return Ok(()) };
        let last = self.last.insert(nonce.node, nonce);
        if let Some(last) = last.filter(|_| reuse) {
            nonce = last;
        }
        let Nonce { node, prefix, counter, checksum, .. } = nonce;
        let agreed = self.agreed.get(&(node, prefix)).copied().filter(|_| nonce.magic == *b"PILU");
        let sent = Sent { checksum, sender: node, to, agreed };
        let Some(earlier) = self.sent.insert((prefix, counter), sent) else { return Ok(()) };
        // Prefixes are random: two sessions may have the same one. A key belongs to one pair of nodes.
        let other_pair = match (sent.pair(), earlier.pair()) {
            (Some(one), Some(other)) => one != other,
            _ => sent.sender != earlier.sender,
        };
        let other_key = other_pair || sent.agreed != earlier.agreed;
        if other_key { Ok(()) } else { Err(Violation::NonceRepeated { node, prefix, counter }) }
    }

    /// Folds an arrival into the trace.
    pub fn on_arrival(&mut self, now: Micros, place: usize, datagram: &[u8]) {
        let word = (u64::from(crc32fast::hash(datagram)) << 32) ^ (place as u64) ^ (now << 8);
        self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// What a node is about to get: the nonce, and whether a node really sent these bytes.
    pub fn genuine(&self, datagram: &[u8]) -> Option<(Nonce, bool)> {
        let (frame, _) = unwrap(datagram)?;
        let nonce = sealed(frame)?;
        let sent = self.sent.get(&(nonce.prefix, nonce.counter));
        Some((nonce, sent.is_some_and(|sent| sent.checksum == nonce.checksum)))
    }
}

impl Taken {
    /// A node handled a datagram; the process's count of opened frames went from `before` to `after`. `replays`: it may
    /// accept a frame again.
    pub fn on_handled(
        &mut self,
        node: u32,
        frame: Option<(Nonce, bool)>,
        (before, after): (u64, u64),
        replays: bool,
    ) -> Result<(), Violation> {
        if let Some((nonce, genuine)) = frame {
            if genuine {
                self.arrived.insert(nonce);
            }
            // The frame itself is opened first; with it may come earlier ones that waited for their session.
            if after > before && !genuine {
                return Err(Violation::FrameForged { node });
            }
            if after > before && !self.accepted.insert(nonce) && !replays {
                return Err(Violation::FrameTwice { node, sender: nonce.node, counter: nonce.counter });
            }
        }
        if after > self.arrived.len() as u64 && !replays {
            let (sender, counter) = frame.map_or((0, 0), |(nonce, _)| (nonce.node, nonce.counter));
            return Err(Violation::FrameTwice { node, sender, counter });
        }
        Ok(())
    }

    /// Whether this frame has been accepted.
    pub fn has(&self, frame: Option<(Nonce, bool)>) -> bool {
        frame.is_some_and(|(nonce, _)| self.accepted.contains(&nonce))
    }
}

/// A quick hash for keys that nobody chooses against us.
type Quick = BuildHasherDefault<QuickHash>;

/// See [`Quick`].
#[derive(Debug, Default)]
pub struct QuickHash(u64);

impl Hasher for QuickHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let x = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = x ^ (x >> 29);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}
