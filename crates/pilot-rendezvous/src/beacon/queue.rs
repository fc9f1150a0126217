//! What waits to be sent to each destination: bounded, in order, and served in turn.
//!
//! Frames of equal length to one destination lie one behind the other in one buffer (a [`Batch`]), as segmentation
//! offload takes them: one system call sends up to 64. Frames to one destination keep their order. Destinations take
//! turns of one batch, so a busy one delays the others by a batch, never by its queue.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::net::SocketAddr;

/// Most segments of one batch: what the kernel takes.
pub(super) const SEGMENTS: usize = 64;
/// Most bytes of a batch of several frames: an IP packet less its headers, rounded down.
pub(super) const BATCH_BYTES: usize = 65_000;
/// Bytes queued for one destination: 8 ms at 1 Gbit/s. What waits longer is late.
const DESTINATION_BYTES: usize = 1 << 20;
/// Bytes queued in all.
const TOTAL_BYTES: usize = 64 << 20;
/// Destinations with a queue at one time.
const DESTINATIONS: usize = 16_384;
/// What a frame counts for beside its bytes, so that empty ones are bounded as well.
const FRAME_OVERHEAD: usize = 64;
/// Buffers kept for reuse.
const SPARE: usize = 64;

/// Frames for one destination where they lie: each in `stride` bytes, the last one maybe in fewer, of which the first `skip`
/// are no part of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub to: SocketAddr,
    pub bytes: &'a [u8],
    pub stride: usize,
    pub skip: usize,
}

impl<'a> Run<'a> {
    pub fn frames(self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.stride.max(1)).map(move |frame| frame.get(self.skip..).unwrap_or_default())
    }
}

/// Frames for one destination.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub to: SocketAddr,
    /// Length of each frame; the last one may be shorter.
    pub segment: usize,
    bytes: Vec<u8>,
    /// Sent already.
    sent: usize,
    /// Takes no more frames: the last one is shorter.
    closed: bool,
}

impl Batch {
    /// The frames that are still to be sent.
    pub fn bytes(&self) -> &[u8] {
        // `advance` stops at the end.
        &self.bytes[self.sent..]
    }

    /// How many they are.
    pub fn frames(&self) -> usize {
        self.bytes().len().div_ceil(self.segment.max(1))
    }

    /// The same, to send them from where they lie.
    pub fn run(&self) -> Run<'_> {
        Run { to: self.to, bytes: self.bytes(), stride: self.segment, skip: 0 }
    }

    /// The first `count` of them have been dealt with.
    pub fn advance(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(self.segment.saturating_mul(count)).min(self.bytes.len());
    }

    fn takes(&self, len: usize) -> bool {
        !self.closed
            && len <= self.segment
            && self.bytes.len() + len <= BATCH_BYTES
            && self.bytes.len() < SEGMENTS * self.segment
    }

    fn cost(&self) -> usize {
        self.bytes().len() + self.frames() * FRAME_OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Cost of what waits.
    cost: usize,
}

/// The queues of all destinations.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    /// Those with something to send.
    queues: HashMap<SocketAddr, Queue>,
    /// The same, in the order in which they are served.
    turns: VecDeque<SocketAddr>,
    cost: usize,
    spare: Vec<Vec<u8>>,
}

impl Queues {
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Whether frames for `to` wait.
    pub fn holds(&self, to: SocketAddr) -> bool {
        self.queues.contains_key(&to)
    }

    /// Queues frames for `to`: each of `frames` less its first `skip` bytes, with `head` before it. Returns how many had
    /// no room.
    pub fn push<'a>(
        &mut self,
        to: SocketAddr,
        head: &[u8],
        frames: impl Iterator<Item = &'a [u8]>,
        skip: usize,
    ) -> u64 {
        let full = self.queues.len() >= DESTINATIONS;
        let queue = match self.queues.entry(to) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(_) if full => return frames.count() as u64,
            Entry::Vacant(new) => {
                self.turns.push_back(to);
                new.insert(Queue::default())
            }
        };
        let mut refused = 0;
        for frame in frames {
            let body = frame.get(skip..).unwrap_or_default();
            let len = head.len() + body.len();
            let cost = len + FRAME_OVERHEAD;
            // A share of what is free, so that busy destinations never take all of it from one that has little.
            let limit = DESTINATION_BYTES.min((TOTAL_BYTES - self.cost.min(TOTAL_BYTES)) / 2);
            if queue.cost + cost > limit {
                refused += 1;
                continue;
            }
            queue.cost += cost;
            self.cost += cost;
            let batch = match queue.batches.back_mut() {
                Some(last) if last.takes(len) => last,
                _ => {
                    let bytes = self.spare.pop().unwrap_or_default();
                    queue.batches.push_back(Batch { to, segment: len, bytes, sent: 0, closed: false });
                    // Pushed just now.
                    queue.batches.back_mut().expect("a batch")
                }
            };
            batch.bytes.extend_from_slice(head);
            batch.bytes.extend_from_slice(body);
            batch.closed = len < batch.segment;
        }
        if queue.batches.is_empty() {
            // Nothing had room, and it was new: `turns` ends with it.
            self.queues.remove(&to);
            self.turns.pop_back();
        }
        refused
    }

    /// The next batch to send. Give it back with [`Queues::done`] or [`Queues::put_back`].
    pub fn next(&mut self) -> Option<Batch> {
        let to = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&to)?;
        let batch = queue.batches.pop_front()?;
        let cost = batch.cost();
        queue.cost -= cost;
        self.cost -= cost;
        match queue.batches.is_empty() {
            true => drop(self.queues.remove(&to)),
            false => self.turns.push_back(to),
        }
        Some(batch)
    }

    /// The socket takes nothing more at present: the batch is the next one again.
    pub fn put_back(&mut self, batch: Batch) {
        if batch.bytes().is_empty() {
            return self.done(batch);
        }
        let to = batch.to;
        let cost = batch.cost();
        self.cost += cost;
        // It was at the end of the turns if more of its frames wait.
        if self.queues.contains_key(&to) {
            self.turns.retain(|other| *other != to);
        }
        self.turns.push_front(to);
        let queue = self.queues.entry(to).or_default();
        queue.cost += cost;
        queue.batches.push_front(batch);
    }

    /// The batch has been dealt with.
    pub fn done(&mut self, batch: Batch) {
        if self.spare.len() < SPARE {
            let mut bytes = batch.bytes;
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1))
    }

    fn push(q: &mut Queues, to: usize, frame: &[u8]) -> bool {
        q.push(addr(to), &[], std::iter::once(frame), 0) == 0
    }

    /// Takes everything, as (destination, frames).
    fn drain(q: &mut Queues) -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
        let mut out = Vec::new();
        while let Some(batch) = q.next() {
            out.push((batch.to, batch.bytes().chunks(batch.segment).map(<[u8]>::to_vec).collect()));
            q.done(batch);
        }
        assert_eq!((q.cost, q.queues.len(), q.turns.len()), (0, 0, 0));
        out
    }

    #[test]
    fn equal_frames_to_one_destination_leave_together_and_a_shorter_one_ends_the_batch() {
        let mut q = Queues::default();
        for frame in [&b"aa"[..], b"bb", b"c", b"dd", b"eee"] {
            assert!(push(&mut q, 1, frame));
        }
        let batches: Vec<usize> = drain(&mut q).iter().map(|(_, frames)| frames.len()).collect();
        assert_eq!(batches, [3, 1, 1]);
        for n in 0..200u8 {
            push(&mut q, 1, &[n; 1231]);
        }
        let sent = drain(&mut q);
        assert!(sent.iter().all(|(_, frames)| frames.len() <= 52), "an IP packet holds no more");
        let order: Vec<u8> = sent.iter().flat_map(|(_, frames)| frames.iter().map(|f| f[0])).collect();
        assert_eq!(order, (0..200).collect::<Vec<u8>>());
        for _ in 0..65 {
            push(&mut q, 1, &[1; 9]);
        }
        assert_eq!(drain(&mut q).iter().map(|(_, f)| f.len()).collect::<Vec<_>>(), [64, 1]);
    }

    #[test]
    fn the_head_replaces_what_is_skipped() {
        let mut q = Queues::default();
        let frames = [&b"123456789body"[..], b"123456789BODY"];
        q.push(addr(1), b"head", frames.into_iter(), 9);
        let expected = vec![b"headbody".to_vec(), b"headBODY".to_vec()];
        assert_eq!(drain(&mut q), [(addr(1), expected)]);
    }

    #[test]
    fn destinations_take_turns_whatever_each_has_queued() {
        let mut q = Queues::default();
        for n in 0..150 {
            push(&mut q, 1, &[n; 1000]);
        }
        push(&mut q, 2, b"one");
        push(&mut q, 3, b"two");
        let order: Vec<SocketAddr> = drain(&mut q).iter().map(|(to, _)| *to).collect();
        assert_eq!(order, [addr(1), addr(2), addr(3), addr(1), addr(1)]);
    }

    #[test]
    fn a_destination_holds_a_bounded_number_of_bytes_and_keeps_the_oldest() {
        let mut q = Queues::default();
        let room = DESTINATION_BYTES / (1000 + FRAME_OVERHEAD);
        let taken =
            (0..2000u16).filter(|n| push(&mut q, 1, &[&n.to_be_bytes()[..], &[0; 998]].concat())).count();
        assert_eq!(taken, room);
        assert!(push(&mut q, 2, &[0; 1000]), "the others have theirs");
        let first = q.next().unwrap();
        assert_eq!(first.bytes()[..2], [0, 0]);
        // What has left makes room.
        assert!(push(&mut q, 1, &[0; 1000]));
    }

    #[test]
    fn many_full_destinations_leave_room_for_one_that_comes_later() {
        let mut q = Queues::default();
        for n in 0..2 * TOTAL_BYTES / 1064 {
            push(&mut q, n % 500, &[0; 1000]);
        }
        assert!(q.cost <= TOTAL_BYTES);
        assert_eq!((0..40).filter(|_| push(&mut q, 9999, &[0; 1000])).count(), 40);
        // As many destinations as there may be.
        let mut q = Queues::default();
        let taken = (0..DESTINATIONS + 5).filter(|n| push(&mut q, *n, b"x")).count();
        assert_eq!(taken, DESTINATIONS);
        assert!(push(&mut q, 5, b"x"));
        assert_eq!(drain(&mut q).len(), DESTINATIONS);
    }

    #[test]
    fn a_batch_put_back_is_the_next_one_and_what_of_it_was_sent_is_not_repeated() {
        let mut q = Queues::default();
        for frame in [b"1", b"2", b"3"] {
            push(&mut q, 1, frame);
        }
        push(&mut q, 1, b"long");
        push(&mut q, 2, b"x");
        let mut batch = q.next().unwrap();
        assert_eq!(batch.frames(), 3);
        batch.advance(1);
        assert_eq!(batch.frames(), 2);
        q.put_back(batch);
        push(&mut q, 1, b"after");
        let frames: Vec<(SocketAddr, Vec<Vec<u8>>)> = drain(&mut q);
        let of = |n| {
            frames.iter().filter(|(to, _)| *to == addr(n)).flat_map(|(_, f)| f.concat()).collect::<Vec<_>>()
        };
        assert_eq!(frames[0].0, addr(1));
        assert_eq!((of(1), of(2)), (b"23longafter".to_vec(), b"x".to_vec()));
        // One that was sent to its end is gone.
        push(&mut q, 1, b"1");
        let mut batch = q.next().unwrap();
        batch.advance(1);
        q.put_back(batch);
        assert!(q.is_empty());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

        #[test]
        fn frames_of_a_destination_keep_their_order_and_none_is_lost(
            steps in proptest::collection::vec((0usize..4, 1usize..4, 0u8..8), 1..300)
        ) {
            let mut q = Queues::default();
            let mut sent: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 4];
            let mut pushed = sent.clone();
            for (n, (to, len, act)) in steps.into_iter().enumerate() {
                if act < 6 {
                    let frame = [&(n as u32).to_be_bytes()[..], &vec![0; len]].concat();
                    proptest::prop_assert!(push(&mut q, to, &frame));
                    pushed[to].push(frame);
                } else if let Some(mut batch) = q.next() {
                    let to = (0..4).find(|n| addr(*n) == batch.to).unwrap();
                    if act == 6 {
                        sent[to].push(batch.bytes().chunks(batch.segment).next().unwrap().to_vec());
                        batch.advance(1);
                        q.put_back(batch);
                    } else {
                        sent[to].extend(batch.bytes().chunks(batch.segment).map(<[u8]>::to_vec));
                        q.done(batch);
                    }
                }
            }
            for (to, frames) in drain(&mut q) {
                let to = (0..4).find(|n| addr(*n) == to).unwrap();
                sent[to].extend(frames);
            }
            proptest::prop_assert_eq!(sent, pushed);
        }
    }
}
