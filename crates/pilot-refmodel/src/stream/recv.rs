//! The receiving direction of a connection: slots, reorder buffer, acknowledgements (spec 03 sections 9 to 11).

use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Slots of the application queue: the largest window.
pub(crate) const SLOTS: usize = 512;
/// Segments of the reorder buffer.
const REORDER: usize = 128;
/// Lone segments acknowledged at once before the delay sets in.
const QUICK: u8 = 32;
/// Delay of an acknowledgement.
const DELAY: Duration = Duration::from_millis(5);
/// Blocks of a SACK list.
const BLOCKS: usize = 4;

/// How sequence number `a` stands to `b`.
pub(crate) fn diff(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// What became of a data segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Dealt with.
    Done,
    /// Next in order, but no slot is free.
    NoSlot,
}

/// The acknowledgement a segment leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckNow {
    Yes,
    Later,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) expected: u32,
    /// Segments ahead of `expected`, in order of arrival.
    reorder: Vec<(u32, Bytes)>,
    slots: VecDeque<Bytes>,
    /// What left the slots for the local client and was not read by it.
    client: VecDeque<Bytes>,
    client_buffer: usize,
    /// Since when the client's buffer has been full without a read.
    pub(crate) stalled: Option<Instant>,
    quick: u8,
    unacked: u8,
    pub(crate) delayed: Option<Instant>,
    /// A FIN ahead of missing data, and when the peer was heard last.
    pub(crate) fin: Option<(u32, Instant)>,
    /// Bytes taken in all.
    pub(crate) received: u64,
}

impl Receiver {
    pub(crate) fn new(expected: u32, client_buffer: usize) -> Receiver {
        Receiver {
            expected,
            reorder: Vec::new(),
            slots: VecDeque::new(),
            client: VecDeque::new(),
            client_buffer,
            stalled: None,
            quick: QUICK,
            unacked: 0,
            delayed: None,
            fin: None,
            received: 0,
        }
    }

    /// Free slots.
    pub(crate) fn window(&self) -> u16 {
        (SLOTS - self.slots.len()) as u16
    }

    /// Segments out of order.
    pub(crate) fn reordered(&self) -> usize {
        self.reorder.len()
    }

    /// Segments nobody has read yet.
    pub(crate) fn unread(&self) -> usize {
        self.slots.len() + self.client.len()
    }

    fn push(&mut self, now: Instant, data: Bytes) {
        self.expected = self.expected.wrapping_add(data.len() as u32);
        self.received += data.len() as u64;
        self.slots.push_back(data);
        self.feed_client(now);
    }

    /// The local client's buffer is filled from the slots.
    fn feed_client(&mut self, now: Instant) {
        while self.client.len() < self.client_buffer {
            let Some(data) = self.slots.pop_front() else { return };
            self.client.push_back(data);
        }
        if !self.slots.is_empty() && self.stalled.is_none() {
            self.stalled = Some(now);
        }
    }

    /// The application reads.
    pub(crate) fn read(&mut self, now: Instant) -> Option<Bytes> {
        let data = self.client.pop_front().or_else(|| self.slots.pop_front());
        self.stalled = None;
        self.feed_client(now);
        data
    }

    /// Whether the queue has room for a segment.
    pub(crate) fn has_slot(&self) -> bool {
        self.slots.len() < SLOTS
    }

    /// A data segment. `NoSlot`: nothing happened; it may be offered again when a slot is free.
    pub(crate) fn data(&mut self, now: Instant, seq: u32, data: &Bytes) -> Taken {
        if let Some((_, heard)) = &mut self.fin {
            *heard = now;
        }
        match diff(seq, self.expected) {
            0 if !self.has_slot() => return Taken::NoSlot,
            0 => {
                self.push(now, data.clone());
                while self.has_slot() {
                    let next = self.reorder.iter().position(|(start, _)| *start == self.expected);
                    let Some(next) = next else { break };
                    let (_, data) = self.reorder.remove(next);
                    self.push(now, data);
                }
                let expected = self.expected;
                self.reorder.retain(|(start, _)| diff(*start, expected) >= 0);
            }
            1.. => {
                let known = self.reorder.iter().any(|(start, _)| *start == seq);
                if !known && self.reorder.len() < REORDER {
                    self.reorder.push((seq, data.clone()));
                }
            }
            _ => {}
        }
        Taken::Done
    }

    /// Counts a data segment that was dealt with.
    pub(crate) fn count(&mut self, now: Instant) -> AckNow {
        self.unacked = self.unacked.saturating_add(1);
        if !self.reorder.is_empty() || self.unacked >= 2 {
            return AckNow::Yes;
        }
        if self.quick > 0 {
            self.quick -= 1;
            return AckNow::Yes;
        }
        self.delayed.get_or_insert(now + DELAY);
        AckNow::Later
    }

    /// An acknowledgement leaves, alone or with data.
    pub(crate) fn acked(&mut self) {
        self.unacked = 0;
        self.delayed = None;
    }

    /// The delay is over.
    pub(crate) fn refill_quick(&mut self) {
        self.quick = QUICK;
    }

    /// Payload of an acknowledgement: a SACK list of the highest blocks, or nothing.
    pub(crate) fn sack(&self) -> Vec<u8> {
        let mut held: Vec<(i32, u32, u32)> = Vec::new();
        for (start, data) in &self.reorder {
            let end = start.wrapping_add(data.len() as u32);
            held.push((diff(*start, self.expected), *start, end));
        }
        held.sort_unstable();
        let mut blocks: Vec<(u32, u32)> = Vec::new();
        for (_, start, end) in held {
            match blocks.last_mut() {
                Some((_, right)) if diff(start, *right) <= 0 => {
                    if diff(end, *right) > 0 {
                        *right = end;
                    }
                }
                _ => blocks.push((start, end)),
            }
        }
        if blocks.is_empty() {
            return Vec::new();
        }
        let blocks = &blocks[blocks.len().saturating_sub(BLOCKS)..];
        let mut out = b"SACK".to_vec();
        out.push(blocks.len() as u8);
        for (left, right) in blocks {
            out.extend_from_slice(&left.to_be_bytes());
            out.extend_from_slice(&right.to_be_bytes());
        }
        out
    }
}

/// The blocks of a payload, if it is taken for a SACK list: trailing bytes do not matter.
pub(crate) fn parse_sack(payload: &[u8]) -> Option<Vec<(u32, u32)>> {
    let count = usize::from(*payload.get(4)?);
    if !payload.starts_with(b"SACK") || !(1..=BLOCKS).contains(&count) {
        return None;
    }
    let list = payload.get(5..5 + 8 * count)?;
    let number = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
    Some(list.chunks_exact(8).map(|b| (number(b), number(&b[4..]))).collect())
}
