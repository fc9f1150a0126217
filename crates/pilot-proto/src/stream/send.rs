//! The send buffer: what the application wrote and the peer has not acknowledged, as chunks that are never
//! copied until they are written into a packet.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Writes shorter than this (bytes) are gathered so that a million tiny writes do not become a million chunks.
const GATHER_BELOW: usize = 1024;
/// Gathered bytes become a chunk at this size.
const GATHER_CHUNK: usize = 16 * 1024;

/// Bytes `start()..end()` of a stream.
#[derive(Debug)]
pub(super) struct SendBuffer {
    chunks: VecDeque<(u64, Bytes)>,
    /// Small writes at the end, after all chunks.
    tail: BytesMut,
    start: u64,
    end: u64,
    capacity: usize,
    /// A write was cut short: the application waits for room.
    blocked: bool,
}

impl SendBuffer {
    pub(super) fn new(capacity: usize) -> SendBuffer {
        SendBuffer {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            start: 0,
            end: 0,
            capacity,
            blocked: false,
        }
    }

    /// Offset after the last byte written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Takes what fits; returns the rest.
    pub(super) fn push(&mut self, mut data: Bytes) -> Bytes {
        let room = self.capacity.saturating_sub(self.len());
        let rest = data.split_off(room.min(data.len()));
        if !rest.is_empty() {
            self.blocked = true;
        }
        if data.is_empty() {
            return rest;
        }
        if data.len() < GATHER_BELOW {
            self.tail.extend_from_slice(&data);
            self.end += data.len() as u64;
            if self.tail.len() >= GATHER_CHUNK {
                self.seal_tail();
            }
        } else {
            self.seal_tail();
            let at = self.end;
            self.end += data.len() as u64;
            self.chunks.push_back((at, data));
        }
        rest
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let at = self.end - self.tail.len() as u64;
            self.chunks.push_back((at, self.tail.split().freeze()));
        }
    }

    /// Whether a blocked writer should be told that there is room (a quarter of the buffer); tells it once.
    pub(super) fn take_writable(&mut self) -> bool {
        let wake = self.blocked && self.len() <= self.capacity - self.capacity / 4;
        if wake {
            self.blocked = false;
        }
        wake
    }

    /// Forgets everything below `offset`.
    pub(super) fn release(&mut self, offset: u64) {
        let offset = offset.min(self.end);
        if offset <= self.start {
            return;
        }
        self.start = offset;
        while let Some((at, chunk)) = self.chunks.front() {
            if at + chunk.len() as u64 > offset {
                break;
            }
            self.chunks.pop_front();
        }
        if offset == self.end {
            self.tail = BytesMut::new();
        } else if self.chunks.is_empty() {
            let tail_at = self.end - self.tail.len() as u64;
            if offset > tail_at {
                let _ = self.tail.split_to((offset - tail_at) as usize);
            }
        }
    }

    /// Forgets everything from `offset` on and takes nothing more.
    pub(super) fn truncate(&mut self, offset: u64) {
        let offset = offset.clamp(self.start, self.end);
        self.seal_tail();
        while let Some((at, chunk)) = self.chunks.back_mut() {
            if *at >= offset {
                self.chunks.pop_back();
                continue;
            }
            chunk.truncate((offset - *at) as usize);
            break;
        }
        self.end = offset;
        self.blocked = false;
    }

    /// Calls `take` with the slices that make up `offset..offset + len` (clipped to what is there).
    fn slices(&self, offset: u64, len: usize, mut take: impl FnMut(&[u8])) {
        let stop = (offset + len as u64).min(self.end);
        let mut at = offset.max(self.start);
        let first = self.chunks.partition_point(|(start, chunk)| start + chunk.len() as u64 <= at);
        for (start, chunk) in self.chunks.range(first..) {
            if at >= stop {
                return;
            }
            let from = (at - start) as usize;
            let until = chunk.len().min((stop - start) as usize);
            take(&chunk[from..until]);
            at = start + until as u64;
        }
        if at < stop {
            let tail_at = self.end - self.tail.len() as u64;
            take(&self.tail[(at - tail_at) as usize..(stop - tail_at) as usize]);
        }
    }

    /// Appends `offset..offset + len` to `out`.
    pub(super) fn copy_to(&self, offset: u64, len: usize, out: &mut Vec<u8>) {
        self.slices(offset, len, |slice| out.extend_from_slice(slice));
    }

    /// The first bytes at `offset`, up to five, and how many they are.
    pub(super) fn peek(&self, offset: u64) -> ([u8; 5], usize) {
        let mut head = [0; 5];
        let mut n = 0;
        self.slices(offset, 5, |slice| {
            let take = slice.len().min(5 - n);
            head[n..n + take].copy_from_slice(&slice[..take]);
            n += take;
        });
        (head, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_range_reads_back_what_was_written(
            writes in proptest::collection::vec(0usize..3000, 1..40),
            release in 0usize..20_000,
            at in 0usize..30_000,
            len in 0usize..5000,
        ) {
            let mut buffer = SendBuffer::new(1 << 20);
            let mut model = Vec::new();
            for n in writes {
                let data: Vec<u8> = (0..n).map(|i| ((model.len() + i) * 7 % 251) as u8).collect();
                model.extend_from_slice(&data);
                proptest::prop_assert!(buffer.push(Bytes::from(data)).is_empty());
            }
            let release = release.min(model.len());
            buffer.release(release as u64);
            let from = at.clamp(release, model.len());
            let until = (from + len).min(model.len());
            let mut out = Vec::new();
            buffer.copy_to(from as u64, until - from, &mut out);
            proptest::prop_assert_eq!(&out, &model[from..until]);
            let (head, n) = buffer.peek(from as u64);
            proptest::prop_assert_eq!(&head[..n], &model[from..model.len().min(from + 5)]);
            buffer.truncate(until as u64);
            let mut out = Vec::new();
            buffer.copy_to(from as u64, usize::MAX / 2, &mut out);
            proptest::prop_assert_eq!(&out, &model[from..until]);
        }
    }

    #[test]
    fn a_full_buffer_returns_the_rest_and_says_when_there_is_room() {
        let mut buffer = SendBuffer::new(1000);
        assert_eq!(buffer.push(Bytes::from(vec![1; 1500])).len(), 500);
        buffer.release(100);
        assert!(!buffer.take_writable());
        buffer.release(250);
        assert!(buffer.take_writable());
        assert!(!buffer.take_writable(), "told once");
    }
}
