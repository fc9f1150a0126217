//! The receiving direction: reassembly of byte ranges and the receive window (spec 03 sections 9 and 12).

use super::ranges::RangeSet;
use super::sack::Block;
use super::sender::REFERENCE_SEGMENT;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// Largest window advertised to reference peers, segments (spec 03 section 12).
pub(super) const REFERENCE_WINDOW: u16 = 512;
/// Most out-of-order pieces kept per connection.
const MAX_PIECES: usize = 4096;
/// Largest out-of-order piece, bytes: neighbours are appended to each other up to this.
const PIECE_LIMIT: usize = 256 * 1024;
/// Bytes taken beyond the right edge of the window: a peer that counts segments cannot know it exactly.
const EDGE_SLACK: u64 = 64 * 1024;
/// Largest buffer handed to the application at once, bytes.
const READ_LIMIT: usize = 256 * 1024;
/// First allocation of a connection's read buffer, bytes; it doubles up to [`READ_LIMIT`] under load.
const FIRST_ALLOCATION: usize = 4096;

/// What became of a data segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ingest {
    /// New bytes can be read.
    InOrder,
    /// Kept behind a hole.
    OutOfOrder,
    /// Nothing new.
    Duplicate,
    /// No room.
    Refused,
}

/// The receiving direction of one connection. Offsets count data bytes from 0.
#[derive(Debug)]
pub(super) struct Receiver {
    base: u32,
    expected: u64,
    /// Received in order and not read.
    buf: BytesMut,
    allocate: usize,
    /// Everything below was consumed by the application.
    consumed: u64,
    capacity: u64,
    pieces: BTreeMap<u64, BytesMut>,
    blocks: RangeSet,
    /// In-order bytes are dropped instead of kept: the application closed.
    discard: bool,
    pub(super) bytes: u64,
    pub(super) segments: u64,
}

impl Receiver {
    pub(super) fn new(base: u32, capacity: usize) -> Receiver {
        Receiver {
            base,
            expected: 0,
            buf: BytesMut::new(),
            allocate: FIRST_ALLOCATION,
            consumed: 0,
            capacity: capacity as u64,
            pieces: BTreeMap::new(),
            blocks: RangeSet::default(),
            discard: false,
            bytes: 0,
            segments: 0,
        }
    }

    /// Sequence number of offset 0.
    pub(super) fn rebase(&mut self, base: u32) {
        debug_assert_eq!(self.expected, 0, "nothing was received");
        self.base = base;
    }

    fn seq(&self, off: u64) -> u32 {
        self.base.wrapping_add(off as u32)
    }

    /// The cumulative acknowledgement; `fin` counts the peer's FIN.
    pub(super) fn ack(&self, fin: bool) -> u32 {
        self.seq(self.expected + u64::from(fin))
    }

    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Distance of a sequence number from the next expected one; negative: before it.
    pub(super) fn distance(&self, seq: u32) -> i32 {
        seq.wrapping_sub(self.seq(self.expected)) as i32
    }

    pub(super) fn has_holes(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Out-of-order pieces, for status output.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn unread(&self) -> usize {
        self.buf.len()
    }

    /// Drops what is and will be received in order (the window stays open).
    pub(super) fn discard(&mut self) {
        self.discard = true;
        self.buf = BytesMut::new();
        self.consumed = self.expected;
    }

    /// Gives up on everything before a sequence number that is not before the expected one.
    pub(super) fn skip_to(&mut self, seq: u32) {
        let skip = u64::try_from(self.distance(seq)).unwrap_or(0);
        self.expected += skip;
        self.pieces.clear();
        self.blocks.clear();
        self.consumed = self.expected;
    }

    /// Takes the payload of a data segment.
    pub(super) fn ingest(&mut self, seq: u32, data: &[u8]) -> Ingest {
        self.segments += 1;
        let start = self.expected as i64 + i64::from(self.distance(seq));
        let end = start + data.len() as i64;
        if end <= self.expected as i64 {
            return Ingest::Duplicate;
        }
        let end = end as u64;
        if end > self.consumed + self.capacity + EDGE_SLACK {
            return Ingest::Refused;
        }
        if start <= self.expected as i64 {
            let skip = (self.expected as i64 - start) as usize;
            self.append(&data[skip..]);
            self.drain();
            return Ingest::InOrder;
        }
        self.keep(start as u64, data)
    }

    fn append(&mut self, data: &[u8]) {
        self.expected += data.len() as u64;
        self.bytes += data.len() as u64;
        if self.discard {
            self.consumed = self.expected;
            return;
        }
        if self.buf.capacity() - self.buf.len() < data.len() {
            if !self.buf.is_empty() {
                self.allocate = (self.allocate * 2).min(READ_LIMIT);
            }
            self.buf.reserve(data.len().max(self.allocate));
        }
        self.buf.extend_from_slice(data);
    }

    /// Moves pieces that have become contiguous.
    fn drain(&mut self) {
        while let Some(first) = self.pieces.first_entry() {
            if *first.key() > self.expected {
                break;
            }
            let (at, piece) = first.remove_entry();
            let skip = (self.expected - at) as usize;
            if skip < piece.len() {
                self.append(&piece[skip..]);
            }
        }
        self.blocks.remove_below(self.expected);
    }

    fn keep(&mut self, start: u64, data: &[u8]) -> Ingest {
        if self.pieces.len() >= MAX_PIECES {
            return Ingest::Refused;
        }
        let mut news = false;
        let pieces = &mut self.pieces;
        self.blocks.insert(start, start + data.len() as u64, |from, until| {
            news = true;
            let part = &data[(from - start) as usize..(until - start) as usize];
            match pieces.range_mut(..from).next_back() {
                Some((at, piece)) if at + piece.len() as u64 == from && piece.len() < PIECE_LIMIT => {
                    piece.extend_from_slice(part);
                }
                _ => {
                    pieces.insert(from, BytesMut::from(part));
                }
            }
        });
        if news { Ingest::OutOfOrder } else { Ingest::Duplicate }
    }

    /// The SACK blocks for a list of `max`: towards reference peers the highest (spec 03 section 11), with more
    /// room the lowest and the highest half.
    pub(super) fn sack_blocks(&self, max: usize) -> Vec<Block> {
        let total = self.blocks.len();
        let low = if max > super::sack::MAX_BLOCKS { (max / 2).min(total) } else { 0 };
        let high = (max - low).min(total - low);
        let mut list: Vec<Block> =
            self.blocks.iter().take(low).map(|(s, e)| (self.seq(s), self.seq(e))).collect();
        let at = list.len();
        list.extend(self.blocks.iter().rev().take(high).map(|(s, e)| (self.seq(s), self.seq(e))));
        list[at..].reverse();
        list
    }

    /// The next bytes for the application.
    pub(super) fn read(&mut self) -> Option<Bytes> {
        if self.buf.is_empty() {
            return None;
        }
        let n = self.buf.len().min(READ_LIMIT);
        Some(self.buf.split_to(n).freeze())
    }

    /// The application is done with `n` bytes it read.
    pub(super) fn consume(&mut self, n: usize) {
        let read = self.expected - self.buf.len() as u64;
        self.consumed = (self.consumed + n as u64).min(read);
    }

    /// Gives spare memory of an idle connection back.
    pub(super) fn shrink(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
            self.allocate = FIRST_ALLOCATION;
        }
    }

    /// Bytes of the window that are free.
    pub(super) fn free(&self) -> u64 {
        (self.consumed + self.capacity).saturating_sub(self.expected)
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The window field: counts of `unit` bytes, at most `max`.
    pub(super) fn window(&self, unit: u16, max: u16) -> u16 {
        (self.free() / u64::from(unit)).min(u64::from(max)) as u16
    }

    /// The window field for reference peers.
    pub(super) fn reference_window(&self) -> u16 {
        self.window(REFERENCE_SEGMENT as u16, REFERENCE_WINDOW)
    }

    /// The largest window field reference peers ever see.
    pub(super) fn full_reference_window(&self) -> u16 {
        (self.capacity / REFERENCE_SEGMENT as u64).min(u64::from(REFERENCE_WINDOW)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver() -> Receiver {
        Receiver::new(u32::MAX - 5, 1000)
    }

    fn at(off: u32) -> u32 {
        (u32::MAX - 5).wrapping_add(off)
    }

    #[test]
    fn byte_ranges_are_reassembled_across_the_wrap_whatever_their_boundaries() {
        let data: Vec<u8> = (0..40).collect();
        let mut r = receiver();
        assert_eq!(r.ingest(at(20), &data[20..30]), Ingest::OutOfOrder);
        assert_eq!(r.ingest(at(4), &data[4..12]), Ingest::OutOfOrder);
        assert_eq!(r.ingest(at(25), &data[25..28]), Ingest::Duplicate);
        assert_eq!(r.sack_blocks(4), [(at(4), at(12)), (at(20), at(30))]);
        assert_eq!(r.ingest(at(0), &data[..6]), Ingest::InOrder);
        assert_eq!(r.expected(), 12);
        assert_eq!(r.ingest(at(10), &data[10..22]), Ingest::InOrder);
        assert_eq!(r.expected(), 30);
        assert_eq!(r.ack(false), at(30));
        assert!(!r.has_holes());
        assert_eq!(r.read().as_deref(), Some(&data[..30]));
        assert_eq!(r.read(), None);
    }

    #[test]
    fn unconsumed_bytes_count_against_the_window() {
        let mut r = receiver();
        r.ingest(at(0), &[0; 600]);
        assert_eq!(r.free(), 400);
        assert_eq!(r.read().map(|b| b.len()), Some(600));
        assert_eq!(r.free(), 400, "read but not consumed");
        r.consume(600);
        assert_eq!(r.free(), 1000);
        r.consume(600);
        assert_eq!(r.free(), 1000, "more than was read does not count");
    }

    #[test]
    fn data_beyond_the_window_is_refused() {
        let mut r = receiver();
        assert_eq!(r.ingest(at(1000 + EDGE_SLACK as u32), b"x"), Ingest::Refused);
        assert_eq!(r.ingest(at(500), b"x"), Ingest::OutOfOrder);
        assert_eq!(r.pieces(), 1);
    }

    #[test]
    fn short_lists_hold_the_highest_blocks() {
        let mut r = receiver();
        for i in 1..=5 {
            r.ingest(at(i * 20), b"xxxx");
        }
        let edge = |i: u32| (at(i * 20), at(i * 20 + 4));
        assert_eq!(r.sack_blocks(4), [edge(2), edge(3), edge(4), edge(5)]);
        assert_eq!(r.sack_blocks(32), [edge(1), edge(2), edge(3), edge(4), edge(5)]);
    }
}
