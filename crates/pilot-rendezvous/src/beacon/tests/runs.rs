//! Long runs of frames, which leave from where they were received.

use super::*;
use crate::beacon::queue::Run;

const C: &str = "198.51.100.4:6000";

/// A socket that takes so many frames, and what it took: destinations, and frames without what lies between them.
#[derive(Default)]
struct Wire {
    room: usize,
    calls: usize,
    took: Vec<(String, Vec<u8>)>,
}

impl Wire {
    fn take(&mut self, run: Run<'_>) -> Sent {
        self.calls += 1;
        let mut sent = Sent::default();
        for frame in run.frames() {
            if self.room == 0 {
                sent.full = true;
                break;
            }
            self.room -= 1;
            self.took.push((run.to.to_string(), frame.to_vec()));
            sent.frames += 1;
            sent.bytes += frame.len() as u64;
        }
        sent
    }
}

fn frames(count: u8, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| vec![n; len]).collect()
}

fn run(to: NodeId, frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| bytes(&Message::Relay { from: 1, to, frame })).collect()
}

fn delivered(frame: &[u8]) -> Vec<u8> {
    bytes(&Message::RelayDeliver { from: 1, frame })
}

impl World {
    fn take(&mut self, mut bytes: Vec<u8>, stride: usize, wire: &mut Wire) {
        let answer = &mut |to, _: &[u8]| panic!("nothing to say to {to}");
        let direct = &mut |run: Run<'_>| wire.take(run);
        self.beacon.take(addr(A), &mut bytes, stride, &self.directory, self.now, answer, direct);
    }

    fn queued(&mut self) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        self.beacon.flush(&mut |to, frame| out.push((to.to_string(), frame.to_vec())));
        out
    }
}

fn with_nodes() -> World {
    let mut w = world(Settings { exempt: vec![(addr(A).ip(), 32)], ..Settings::default() });
    w.discover(A, 1);
    w.discover(B, 2);
    w.send(C, &Message::DiscoverEx { node: 3 });
    w
}

fn wire(room: usize) -> Wire {
    Wire { room, ..Wire::default() }
}

#[test]
fn a_long_run_leaves_at_once_as_its_frames_and_a_short_one_waits_for_others() {
    let mut w = with_nodes();
    let mut open = wire(usize::MAX);
    let mut long = frames(30, 1222);
    long.push(vec![30; 5]);
    w.take(run(2, &long), 1231, &mut open);
    assert_eq!(open.calls, 1);
    let expected: Vec<_> = long.iter().map(|frame| (B.to_owned(), delivered(frame))).collect();
    assert_eq!(open.took, expected, "each with its own length");
    assert_eq!(w.beacon.counters.relayed, 31);
    assert_eq!(w.beacon.counters.relayed_bytes, 30 * 1227 + 10);
    assert!(!w.beacon.waiting());
    // Deliveries that name their destination are as long as what came.
    let mut open = wire(usize::MAX);
    w.take(run(3, &frames(30, 1222)), 1231, &mut open);
    let named = |frame: &[u8]| bytes(&Message::RelayDeliverDest { from: 1, to: 3, frame });
    let expected: Vec<_> = frames(30, 1222).iter().map(|frame| (C.to_owned(), named(frame))).collect();
    assert_eq!(open.took, expected);
    // Below the bound nothing leaves at once; nor do runs that are cut by another destination.
    let mut open = wire(usize::MAX);
    w.take(run(2, &frames(10, 1222)), 1231, &mut open);
    let mixed = [run(2, &frames(10, 1222)), run(3, &frames(10, 1222)), run(2, &frames(10, 1222))];
    w.take(mixed.concat(), 1231, &mut open);
    assert_eq!(open.calls, 0);
    assert_eq!(w.queued().len(), 40);
}

#[test]
fn what_the_socket_does_not_take_of_a_run_waits_and_nothing_overtakes_it() {
    let mut w = with_nodes();
    let mut full = wire(12);
    w.take(run(2, &frames(30, 1222)), 1231, &mut full);
    assert_eq!((full.calls, full.took.len()), (1, 12));
    // The socket is full for all, and to B something waits.
    let mut open = wire(usize::MAX);
    w.take(run(2, &frames(50, 1222)), 1231, &mut open);
    w.take(run(3, &frames(30, 1222)), 1231, &mut open);
    assert_eq!(open.calls, 0);
    // It has room again: others are not held up by what waits for B, which still is not overtaken.
    for to in [B, C] {
        let batch = w.beacon.next().unwrap();
        assert_eq!(batch.to, addr(to));
        w.beacon.sent(batch, &Sent::default());
    }
    w.take(run(2, &frames(30, 1222)), 1231, &mut open);
    assert_eq!(open.calls, 0, "B has frames that wait");
    w.take(run(3, &frames(30, 1222)), 1231, &mut open);
    assert_eq!(open.calls, 1);
}

#[test]
fn frames_to_one_destination_keep_their_order_whichever_way_they_leave() {
    let mut w = with_nodes();
    let all: Vec<Vec<u8>> = (0..90).map(|n| vec![n; 1222]).collect();
    let mut wire = wire(12);
    for part in all.chunks(30) {
        w.take(run(2, part), 1231, &mut wire);
    }
    wire.took.extend(w.queued());
    let expected: Vec<_> = all.iter().map(|frame| (B.to_owned(), delivered(frame))).collect();
    assert_eq!(wire.took, expected);
    assert_eq!((w.beacon.counters.relayed, w.beacon.counters.relay_overrun), (90, 0));
}

#[test]
fn a_run_the_socket_refuses_is_counted_and_does_not_wait() {
    let mut w = with_nodes();
    let mut bytes = run(2, &frames(30, 1222));
    let direct = &mut |_: Run<'_>| Sent { frames: 28, bytes: 28 * 1227, refused: 2, full: false };
    w.beacon.take(addr(A), &mut bytes, 1231, &w.directory, w.now, &mut |_, _| {}, direct);
    assert_eq!((w.beacon.counters.relayed, w.beacon.counters.relay_unsent), (28, 2));
    assert!(!w.beacon.waiting());
}

#[test]
fn a_runs_frames_beyond_what_a_destination_may_have_waiting_are_dropped_and_counted() {
    let mut w = with_nodes();
    let mut full = wire(0);
    // 1,227 bytes and 64 beside them each: 812 frames are a mebibyte.
    for _ in 0..20 {
        w.take(run(2, &frames(50, 1222)), 1231, &mut full);
    }
    assert_eq!(w.beacon.counters.relay_overrun, 1000 - 812);
    assert_eq!(w.queued().len(), 812);
    assert_eq!(w.beacon.counters.relayed, 812);
}

#[test]
fn a_run_beyond_its_senders_budget_is_dropped_as_a_whole() {
    let mut w = world(Settings::default());
    w.discover(A, 1);
    w.discover(B, 2);
    let mut open = wire(usize::MAX);
    // 312,500 units of 64 bytes at once, 20 for each frame of 1,231 bytes.
    for _ in 0..400 {
        w.take(run(2, &frames(50, 1222)), 1231, &mut open);
    }
    assert_eq!(open.took.len(), 312 * 50);
    assert_eq!(w.beacon.counters.relay_limited, 88 * 50);
    assert_eq!(w.beacon.counters.relayed, 312 * 50);
}
