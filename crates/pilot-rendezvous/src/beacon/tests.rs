//! The beacon's rules on a clock that stands still unless told.

use super::*;
use pilot_proto::crypto::Identity;
use pilot_proto::wire::discover;
use std::cell::Cell;

mod abuse;
mod runs;

/// The registry's side of these tests.
#[derive(Default)]
struct Registered {
    nodes: HashMap<NodeId, Known>,
    reached: Vec<IpAddr>,
    /// How often it was asked for a node.
    asked: Cell<usize>,
}

impl Directory for Registered {
    fn find(&self, node: NodeId) -> Option<Known> {
        self.asked.set(self.asked.get() + 1);
        self.nodes.get(&node).copied()
    }

    fn reached(&self, ip: IpAddr) -> bool {
        self.reached.contains(&ip)
    }
}

struct World {
    beacon: Beacon,
    directory: Registered,
    now: Instant,
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn world(settings: Settings) -> World {
    World { beacon: Beacon::new(settings), directory: Registered::default(), now: Instant::now() }
}

impl World {
    fn raw(&mut self, from: &str, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut sent = Vec::new();
        let mut send = |to: SocketAddr, b: &[u8]| sent.push((to.to_string(), b.to_vec()));
        self.beacon.receive(addr(from), bytes, bytes.len(), &self.directory, self.now, &mut send);
        self.beacon.flush(&mut send);
        sent
    }

    fn send(&mut self, from: &str, message: &Message<'_>) -> Vec<(String, Vec<u8>)> {
        let mut bytes = Vec::new();
        message.emit(&mut bytes);
        self.raw(from, &bytes)
    }

    fn discover(&mut self, from: &str, node: NodeId) -> Vec<(String, Vec<u8>)> {
        self.send(from, &Message::Discover { node, key: None })
    }

    fn relay(&mut self, from: &str, node: NodeId, to: NodeId) -> Vec<(String, Vec<u8>)> {
        self.send(from, &Message::Relay { from: node, to, frame: b"PILSxyz" })
    }

    fn notify(&mut self, node: NodeId) -> usize {
        let mut sent = 0;
        self.beacon.notify(node, self.now, &mut |_, bytes| {
            assert_eq!(bytes, [0x0A, 1]);
            sent += 1;
        });
        sent
    }
}

fn bytes(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.emit(&mut out);
    out
}

const A: &str = "203.0.113.2:4000";
const B: &str = "198.51.100.3:5000";

#[test]
fn discover_tells_a_node_its_address_in_the_recorded_bytes() {
    let mut w = world(Settings::default());
    let sent = w.raw(A, &[1, 0, 0, 0, 7]);
    assert_eq!(sent, [(A.to_owned(), vec![2, 4, 0xcb, 0, 0x71, 2, 0x0f, 0xa0])]);
    let long = [&[1, 0, 0, 0, 8][..], &[9; 60]].concat();
    assert_eq!(w.raw(B, &long).len(), 1, "surplus bytes are ignored");
    assert_eq!(w.raw("[2001:db8::1]:9", &[1, 0, 0, 0, 9])[0].1.len(), 20);
    assert_eq!(w.raw("[::ffff:203.0.113.2]:4000", &[1, 0, 0, 0, 7])[0].1.len(), 8);
    assert_eq!(w.beacon.counters.nodes, 3);
    assert_eq!(w.raw(A, &[1, 0, 0, 0, 0]).len(), 1, "probes are answered");
    assert_eq!(w.beacon.counters.nodes, 3, "and not stored");
}

#[test]
fn the_second_port_tells_an_address_and_remembers_nothing() {
    let mut w = world(Settings::default());
    let probe = |w: &mut World, from: &str, bytes: &[u8]| {
        let mut sent = Vec::new();
        let mut send = |to: SocketAddr, b: &[u8]| sent.push((to.to_string(), b.to_vec()));
        w.beacon.probe(addr(from), bytes, &w.directory, w.now, &mut send);
        sent
    };
    w.discover(A, 7);
    let discover = |node: u32, len: usize| [&[1][..], &node.to_be_bytes(), &vec![0; len - 5]].concat();
    // The mapping of a NAT that gives each destination its own.
    assert_eq!(
        probe(&mut w, "203.0.113.2:4001", &discover(7, 20)),
        [("203.0.113.2:4001".to_owned(), bytes(&Message::DiscoverReply(addr("203.0.113.2:4001"))))]
    );
    assert_eq!(probe(&mut w, "[2001:db8::1]:9", &discover(0, 20))[0].1.len(), 20);
    let proof = discover::sign(&Identity::from_seed([1; 32]).unwrap(), "", 7, 1, &[0; 8]);
    assert_eq!(
        probe(&mut w, "203.0.113.2:4001", &proof)[0].1.len(),
        8,
        "no cookie: the address is not to be proven"
    );
    assert_eq!(w.relay(B, 9, 7)[0].0, A, "the entry is where it was");
    assert_eq!(w.beacon.counters.nodes, 1);
    let before = w.beacon.counters.garbage;
    assert_eq!(probe(&mut w, A, &discover(7, 19)), [], "shorter than the longest reply");
    for other in [
        Message::PunchRequest { requester: 7, target: 7 },
        Message::Relay { from: 7, to: 7, frame: &[b'x'; 30] },
        Message::DiscoverEx { node: 7 },
    ] {
        assert_eq!(probe(&mut w, A, &[&bytes(&other)[..], &[0; 20]].concat()), []);
    }
    assert_eq!(w.beacon.counters.garbage, before + 4);
    // It shares the budgets of the first one.
    while !w.discover(B, 9).is_empty() {}
    assert_eq!(probe(&mut w, B, &discover(9, 20)), []);
}

#[test]
fn a_punch_sends_both_sides_to_each_other_and_an_unknown_target_nobody() {
    let mut w = world(Settings::default());
    assert_eq!(w.send(A, &Message::PunchRequest { requester: 1, target: 2 }), []);
    w.discover(B, 2);
    let sent = w.send(A, &Message::PunchRequest { requester: 1, target: 2 });
    let expected = [
        (A.to_owned(), bytes(&Message::PunchCommand(addr(B)))),
        (B.to_owned(), bytes(&Message::PunchCommand(addr(A)))),
    ];
    assert_eq!(sent, expected);
    let back = w.send(B, &Message::PunchRequest { requester: 2, target: 1 });
    assert_eq!(back.len(), 2, "the first request made its sender known");
}

#[test]
fn punches_are_limited_per_source_and_per_target() {
    let mut w = world(Settings::default());
    w.discover(B, 2);
    let punch = Message::PunchRequest { requester: 1, target: 2 };
    let granted = (0..100).filter(|_| !w.send(A, &punch).is_empty()).count();
    assert_eq!(granted, 20);
    w.now += Duration::from_secs(1);
    assert_eq!((0..100).filter(|_| !w.send(A, &punch).is_empty()).count(), 5);
    assert_eq!(w.beacon.counters.punch_refused, 175);
    // Many sources cannot make one target punch without end either.
    w.now += Duration::from_secs(60);
    let total: usize = (0..100u32)
        .map(|i| {
            let from = format!("203.0.113.{i}:1");
            let punch = Message::PunchRequest { requester: 100 + i, target: 2 };
            usize::from(!w.send(&from, &punch).is_empty())
        })
        .sum();
    assert_eq!(total, 20);
    let mut exempt = world(Settings { exempt: vec![(addr(A).ip(), 32)], ..Settings::default() });
    exempt.discover(B, 2);
    assert_eq!((0..100).filter(|_| !exempt.send(A, &punch).is_empty()).count(), 100);
}

#[test]
fn frames_are_relayed_unchanged_and_unknown_destinations_counted() {
    let mut w = world(Settings::default());
    w.discover(B, 2);
    assert_eq!(
        w.relay(A, 1, 2),
        [(B.to_owned(), bytes(&Message::RelayDeliver { from: 1, frame: b"PILSxyz" }))]
    );
    let empty = w.send(A, &Message::Relay { from: 1, to: 2, frame: b"" });
    assert_eq!(empty, [(B.to_owned(), vec![6, 0, 0, 0, 1])]);
    let big = vec![7; 20_000];
    assert_eq!(w.send(A, &Message::Relay { from: 1, to: 2, frame: &big })[0].1.len(), 20_005);
    assert_eq!(w.relay(A, 1, 3), []);
    assert_eq!((w.beacon.counters.relayed, w.beacon.counters.dropped), (3, 1));
}

#[test]
fn a_node_that_asked_for_it_gets_deliveries_with_their_destination() {
    let mut w = world(Settings::default());
    w.send(B, &Message::DiscoverEx { node: 2 });
    let expected = bytes(&Message::RelayDeliverDest { from: 1, to: 2, frame: b"PILSxyz" });
    assert_eq!(w.relay(A, 1, 2), [(B.to_owned(), expected)]);
}

#[test]
fn relaying_has_a_budget_per_source_and_a_smaller_one_for_forged_senders() {
    let mut w = world(Settings::default());
    w.discover(B, 2);
    w.discover(A, 1);
    let relayed = (0..25_000).filter(|_| !w.relay(A, 1, 2).is_empty()).count();
    assert_eq!(relayed, 312_500 / 16, "a small frame counts for 1,024 bytes");
    assert_eq!(w.beacon.counters.relay_limited, 25_000 - relayed as u64);
    assert_eq!(w.relay("203.0.113.2:4001", 1, 2).len(), 1, "another port has its own: a NAT gave it");
    // Nobody has said that node 9 is there.
    assert_eq!((0..25_000).filter(|_| !w.relay("198.51.100.9:1", 9, 2).is_empty()).count(), 400);
    // Nor from there that it is node 1, in whatever number of networks.
    let forged =
        (0..2_000u32).filter(|i| !w.relay(&format!("10.0.{}.1:9", i % 250), 1, 2).is_empty()).count();
    assert_eq!(forged, 0, "the destination has had enough of them");
    assert_eq!(w.relay(A.replace("4000", "4002").as_str(), 1, 2).len(), 1);
}

/// Relays a second of `mbit` Mbit/s in frames of `len` bytes, 20 at a time; says how many went through of how many.
fn a_second_of(w: &mut World, mbit: usize, len: usize) -> (usize, usize) {
    let run = bytes(&Message::Relay { from: 1, to: 2, frame: &vec![7; len - 9] }).repeat(20);
    let runs = mbit * 1_000_000 / 8 / (len * 20);
    let mut relayed = 0;
    for _ in 0..runs {
        w.now += Duration::from_secs(1) / runs as u32;
        w.beacon.receive(addr(A), &run, len, &w.directory, w.now, &mut |_, _| relayed += 1);
        w.beacon.flush(&mut |_, _| relayed += 1);
    }
    (relayed, runs * 20)
}

#[test]
fn a_fast_stream_is_relayed_in_full_and_one_from_a_proven_address_at_the_speed_of_its_line() {
    let mut w = world(Settings::default());
    let key = Identity::from_seed([1; 32]).unwrap();
    w.directory.nodes.insert(1, Known { key: *key.public_key(), ip: Some(addr(A).ip()) });
    w.discover(B, 2);
    w.discover(A, 1);
    for _ in 0..5 {
        let (relayed, of) = a_second_of(&mut w, 200, 1231);
        assert_eq!(relayed, of, "200 Mbit/s without proof");
    }
    let (relayed, of) =
        (0..5).map(|_| a_second_of(&mut w, 950, 1231)).fold((0, 0), |s, n| (s.0 + n.0, s.1 + n.1));
    assert!(relayed < of / 2, "{relayed} of {of}");
    let reply = w.raw(A, &discover::sign(&key, "", 1, 1, &[0; 8]));
    let cookie = discover::cookie(&reply[0].1).unwrap();
    w.raw(A, &discover::sign(&key, "", 1, 2, &cookie));
    for _ in 0..5 {
        let (relayed, of) = a_second_of(&mut w, 950, 1231);
        assert_eq!(relayed, of, "what a gigabit line carries");
    }
}

#[test]
fn what_one_receive_call_brings_is_relayed_in_order_and_other_messages_between_are_handled() {
    let mut w = world(Settings::default());
    w.discover(B, 2);
    w.discover(A, 1);
    w.discover(A, 3);
    let relay = |to, frame: &[u8]| bytes(&Message::Relay { from: 1, to, frame });
    // Datagrams of 14 bytes, the last one of 11.
    let mut discover = bytes(&Message::Discover { node: 1, key: None });
    discover.resize(14, 0);
    let run = [
        relay(2, b"one.."),
        relay(2, b"two.."),
        discover,
        relay(3, b"three"),
        relay(2, b"4th..."[..5].as_ref()),
        relay(2, b"5."),
    ];
    let mut answers = Vec::new();
    w.beacon
        .receive(addr(A), &run.concat(), 14, &w.directory, w.now, &mut |to, _| answers.push(to.to_string()));
    assert_eq!(answers, [A]);
    let mut frames: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    let mut batches = Vec::new();
    while let Some(batch) = w.beacon.next() {
        batches.push((batch.to.to_string(), batch.frames()));
        let each = batch.bytes().chunks(batch.segment).map(|f| f[5..].to_vec());
        frames.entry(batch.to.to_string()).or_default().extend(each);
        w.beacon.sent(batch, &Sent { frames: 1, ..Sent::default() });
    }
    assert_eq!(batches, [(B.to_owned(), 4), (A.to_owned(), 1)]);
    assert_eq!(frames[B], [&b"one.."[..], b"two..", b"4th..", b"5."]);
    assert_eq!(frames[A], [b"three"]);
    // A header cut short within a run is no frame.
    let cut = [relay(2, b"one.."), relay(2, b"")[..8].to_vec()].concat();
    w.beacon.receive(addr(A), &cut, 14, &w.directory, w.now, &mut |_, _| {});
    assert_eq!(w.beacon.next().map(|b| b.frames()), Some(1));
    assert_eq!(w.beacon.counters.garbage, 1);
}

#[test]
fn a_destination_whose_frames_do_not_leave_costs_others_nothing() {
    let mut w = world(Settings { exempt: vec![(addr(A).ip(), 32)], ..Settings::default() });
    w.discover(B, 2);
    w.discover("198.51.100.4:1", 3);
    let frame = bytes(&Message::Relay { from: 1, to: 2, frame: &[0; 1200] });
    for _ in 0..2_000 {
        w.beacon.receive(addr(A), &frame, frame.len(), &w.directory, w.now, &mut |_, _| {});
    }
    let overrun = w.beacon.counters.relay_overrun;
    assert!((1_000..1_300).contains(&overrun), "{overrun}: a mebibyte waits");
    // The socket is full in the middle of a batch.
    let mut batch = w.beacon.next().unwrap();
    batch.advance(1);
    w.beacon.sent(batch, &Sent { frames: 1, bytes: 1205, refused: 0, full: true });
    let other = bytes(&Message::Relay { from: 1, to: 3, frame: b"PILSxyz" });
    w.beacon.receive(addr(A), &other, other.len(), &w.directory, w.now, &mut |_, _| {});
    let mut order = Vec::new();
    w.beacon.flush(&mut |to, _| order.push(to.to_string()));
    assert_eq!(order.iter().position(|to| to == "198.51.100.4:1"), Some(53 - 1), "after the batch before it");
    assert_eq!(order.len() as u64 + 1, 2_001 - overrun);
    assert_eq!((w.beacon.counters.relayed, w.beacon.counters.relay_overrun), (2_001 - overrun, overrun));
}

#[test]
fn silent_nodes_are_forgotten_after_ten_minutes_and_relaying_ones_are_not() {
    let mut w = world(Settings::default());
    w.discover(A, 1);
    w.discover(B, 2);
    for _ in 0..10 {
        w.now += Duration::from_secs(60);
        w.relay(A, 1, 2);
        // A claimed sender at another address refreshes nothing.
        w.relay(A, 2, 1);
        w.beacon.sweep(w.now);
    }
    assert_eq!(w.beacon.counters.nodes, 1);
    assert_eq!(w.relay(B, 2, 1).len(), 1);
    assert_eq!(w.relay(A, 1, 2), []);
}

#[test]
fn a_node_moves_a_few_times_at_once_and_then_seldom() {
    let mut w = world(Settings::default());
    w.discover(A, 1);
    let moved = |w: &mut World, port: u16| {
        let at = format!("203.0.113.2:{port}");
        assert_eq!(w.discover(&at, 1).len(), 1, "always answered");
        w.relay(B, 9, 1)[0].0 == at
    };
    assert_eq!((1..20).filter(|port| moved(&mut w, *port)).count(), 4);
    w.now += Duration::from_secs(9);
    assert!(!moved(&mut w, 100));
    w.now += Duration::from_secs(1);
    assert!(moved(&mut w, 100));
}

#[test]
fn new_ids_and_answers_are_limited_per_source() {
    let mut w = world(Settings::default());
    let known = Known { key: [0; 32], ip: None };
    w.directory.nodes = (1..2000).map(|id| (id, known)).collect();
    let answered = (1..2000).filter(|id| !w.discover(A, *id).is_empty()).count();
    assert_eq!((answered, w.beacon.counters.nodes), (1000, 500));
    // Ids the registry does not know have less room.
    let mut unknown = world(Settings::default());
    let answered = (1..2000).filter(|id| !unknown.discover(A, *id).is_empty()).count();
    assert_eq!((answered, unknown.beacon.counters.nodes), (1000, 64));
    let mut local = world(Settings { exempt_loopback: true, ..Settings::default() });
    assert_eq!((1..2000).filter(|id| !local.discover("127.0.0.1:1", *id).is_empty()).count(), 1999);
    assert_eq!(local.beacon.counters.nodes, 1999);
}

#[test]
fn sync_counts_from_configured_peers_only_and_replaces_their_routes() {
    let peer = "192.0.2.9:9001";
    let mut w = world(Settings { peers: vec![addr(peer)], ..Settings::default() });
    let ids = |ids: &[u32]| ids.iter().flat_map(|i| i.to_be_bytes()).collect::<Vec<_>>();
    w.directory.nodes.insert(2, Known { key: [0; 32], ip: Some(addr(B).ip()) });
    w.discover(B, 2);
    w.send(A, &Message::Sync { beacon: 1, nodes: &ids(&[7]) });
    assert_eq!(w.relay(A, 1, 7), []);
    w.send(peer, &Message::Sync { beacon: 1, nodes: &ids(&[7, 8, 2]) });
    assert_eq!(
        w.relay(A, 1, 7),
        [(peer.to_owned(), bytes(&Message::Relay { from: 1, to: 7, frame: b"PILSxyz" }))]
    );
    assert_eq!(w.relay(A, 1, 2)[0].0, B, "own nodes are never routed away");
    assert_eq!(w.relay(peer, 7, 2)[0].0, B);
    assert_eq!(w.relay(peer, 7, 8), [], "a frame of a peer does not go back to a peer");
    w.send(peer, &Message::Sync { beacon: 1, nodes: &ids(&[8]) });
    assert_eq!(w.relay(A, 1, 7), []);
    w.now += Duration::from_secs(90);
    w.beacon.sweep(w.now);
    assert_eq!(w.relay(A, 1, 8), []);
}

#[test]
fn a_claim_that_nothing_vouches_for_does_not_take_a_node_from_the_beacon_that_has_it() {
    let peer = "192.0.2.9:9001";
    let mut w = world(Settings { peers: vec![addr(peer)], ..Settings::default() });
    w.directory.nodes.insert(2, Known { key: [0; 32], ip: Some(addr(B).ip()) });
    // Somebody at A says it is node 2, which is at another beacon.
    w.discover(A, 2);
    w.send(peer, &Message::Sync { beacon: 1, nodes: &2u32.to_be_bytes() });
    assert_eq!(w.relay(A, 1, 2)[0].0, peer);
    let mut told = Vec::new();
    w.beacon.announce(&mut |_, bytes| told.extend_from_slice(&bytes[7..]));
    assert_eq!(told, Vec::<u8>::new(), "nor is it announced as ours");
    // Once the registry agrees, it is here.
    w.beacon.registered(2, Some(addr(A).ip()), w.now);
    assert_eq!(w.relay(A, 1, 2)[0].0, A);
}

#[test]
fn peers_are_told_which_nodes_are_here() {
    let mut w = world(Settings { id: 5, peers: vec![addr(B)], ..Settings::default() });
    w.discover(A, 0x0102_0304);
    let mut sent = Vec::new();
    w.beacon.announce(&mut |to, b| sent.push((to.to_string(), b.to_vec())));
    assert_eq!(sent, [(B.to_owned(), vec![7, 0, 0, 0, 5, 0, 1, 1, 2, 3, 4])]);
}

#[test]
fn a_notification_reaches_known_nodes_at_most_every_two_seconds() {
    let mut w = world(Settings::default());
    assert_eq!(w.notify(1), 0);
    w.discover(A, 1);
    assert_eq!((w.notify(1), w.notify(1)), (1, 0));
    w.now += Duration::from_secs(2);
    assert_eq!(w.notify(1), 1);
}

#[test]
fn short_unknown_and_server_messages_are_dropped() {
    let mut w = world(Settings::default());
    w.discover(B, 2);
    for bad in [
        &[][..],
        &[0],
        &[1, 0, 0, 0],
        &[3, 0, 0, 0, 1, 0, 0, 0],
        &[5, 0, 0, 0, 1, 0, 0, 0],
        &[7, 0, 0, 0, 1, 0, 9, 1],
        &[2, 4, 1, 2, 3, 4, 0, 1],
        &[4, 4, 1, 2, 3, 4, 0, 1],
        &[6, 0, 0, 0, 1, 9],
        &[0x0A, 1],
        &[0x0B, 1, 2],
        b"PILS1234",
    ] {
        assert_eq!(w.raw(A, bad), [], "{bad:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_datagram_panics_or_is_answered_to_a_third_party(kind in 0u8..12, body in proptest::collection::vec(0u8..4, 0..40)) {
        let mut w = world(Settings { peers: vec![addr("192.0.2.9:9001")], ..Settings::default() });
        w.discover(B, 1);
        for from in [A, B, "192.0.2.9:9001"] {
            for (to, sent) in w.raw(from, &[&[kind], &body[..]].concat()) {
                proptest::prop_assert!([from, A, B, "192.0.2.9:9001"].contains(&to.as_str()));
                // Discovery of five bytes is answered with eight: no worthwhile amplifier.
                proptest::prop_assert!(sent.len() <= body.len() + 4);
            }
        }
    }
}
