//! Strangers: claims to other nodes' ids, floods, reflection.

use super::*;

const REGISTRY: &str = "00112233445566778899aabbccddeeff";
const ELSEWHERE: &str = "192.0.2.77:6000";

fn at_registry() -> World {
    world(Settings { registry: REGISTRY.into(), secret: [9; 32], ..Settings::default() })
}

fn identity(seed: u8) -> Identity {
    Identity::from_seed([seed; 32]).unwrap()
}

impl World {
    /// Node `id` with the key of seed `id` has registered from there.
    fn register(&mut self, id: u8, from: &str) {
        let known = Known { key: *identity(id).public_key(), ip: Some(addr(from).ip()) };
        self.directory.nodes.insert(NodeId::from(id), known);
        self.beacon.registered(NodeId::from(id), known.ip, self.now);
    }

    /// A signed Discover; returns the cookie of the reply.
    fn prove(&mut self, from: &str, id: u8, signer: u8, time: u64, cookie: [u8; 8]) -> [u8; 8] {
        let bytes = discover::sign(&identity(signer), REGISTRY, NodeId::from(id), time, &cookie);
        let sent = self.raw(from, &bytes);
        assert_eq!(sent[0].0, from);
        assert!(sent[0].1.len() <= bytes.len());
        discover::cookie(&sent[0].1).expect("a signed Discover is answered with a cookie")
    }

    /// Where frames for a node go.
    fn place(&mut self, id: NodeId) -> String {
        let now = self.now;
        self.now += Duration::from_secs(1);
        let sent = self.relay("198.51.100.250:1", 99, id);
        self.now = now;
        sent.first().map_or_else(String::new, |(to, _)| to.clone())
    }
}

#[test]
fn a_strangers_claim_does_not_move_a_live_node_and_is_counted() {
    let mut w = at_registry();
    w.register(1, A);
    w.discover(A, 1);
    assert_eq!(w.discover(ELSEWHERE, 1).len(), 1, "answered as ever");
    assert_eq!(w.place(1), A);
    // Nor does a punch request in its name, and nobody is sent anywhere.
    w.discover(B, 2);
    assert_eq!(w.send(ELSEWHERE, &Message::PunchRequest { requester: 1, target: 2 }), []);
    assert_eq!((w.beacon.counters.claims_refused, w.beacon.counters.punch_refused), (2, 1));
    assert_eq!(w.place(1), A);
}

#[test]
fn a_reference_node_moves_with_its_nat_with_its_registration_and_after_silence() {
    let mut w = at_registry();
    w.register(1, A);
    w.discover(A, 1);
    // The NAT gave another port.
    w.discover("203.0.113.2:4999", 1);
    assert_eq!(w.place(1), "203.0.113.2:4999");
    // It roams: its Discover comes before its registration ...
    w.discover(ELSEWHERE, 1);
    assert_eq!(w.place(1), "203.0.113.2:4999");
    w.register(1, ELSEWHERE);
    assert_eq!(w.place(1), ELSEWHERE, "believed without another Discover");
    // ... or after it.
    w.register(1, B);
    w.discover(B, 1);
    assert_eq!(w.place(1), B);
    // The registry knows nothing of the new address, but the old one is silent.
    w.now += Duration::from_secs(79);
    w.discover(A, 1);
    assert_eq!(w.place(1), B);
    w.now += Duration::from_secs(1);
    w.discover(A, 1);
    assert_eq!(w.place(1), A);
}

#[test]
fn an_id_taken_before_its_owner_came_is_given_back() {
    let mut w = at_registry();
    w.register(1, A);
    w.register(2, B);
    w.discover(ELSEWHERE, 1);
    w.discover(ELSEWHERE, 2);
    assert_eq!(w.place(1), ELSEWHERE);
    w.discover(A, 1);
    assert_eq!(w.place(1), A, "it registered from there");
    let cookie = w.prove("10.9.9.9:1", 2, 2, 1, [0; 8]);
    w.prove("10.9.9.9:1", 2, 2, 2, cookie);
    assert_eq!(w.place(2), "10.9.9.9:1", "it has the key, wherever it is");
}

#[test]
fn a_proven_address_yields_to_proof_only() {
    let mut w = at_registry();
    w.register(1, A);
    let cookie = w.prove(A, 1, 1, 10, [0; 8]);
    assert_eq!(w.prove(A, 1, 1, 11, cookie), cookie);
    // Even from the same IP address, and from the one it registered from.
    w.discover("203.0.113.2:1", 1);
    assert_eq!(w.place(1), A);
    // A proof without the new address's cookie is not enough, whoever sends it from there ...
    let there = w.prove(ELSEWHERE, 1, 1, 12, cookie);
    assert_eq!(w.place(1), A);
    // ... nor is another key or another registry.
    w.prove(ELSEWHERE, 1, 2, 13, there);
    let foreign = discover::sign(&identity(1), "another", 1, 14, &there);
    w.raw(ELSEWHERE, &foreign);
    assert_eq!(w.place(1), A);
    assert_eq!(w.beacon.counters.claims_refused, 4);
    let good = discover::sign(&identity(1), REGISTRY, 1, 15, &there);
    w.raw(ELSEWHERE, &good);
    assert_eq!(w.place(1), ELSEWHERE);
    // A recording of it does not bring the node back later.
    let back = w.prove(A, 1, 1, 16, [0; 8]);
    w.prove(A, 1, 1, 17, back);
    w.raw(ELSEWHERE, &good);
    assert_eq!(w.place(1), A);
    // The same identity run by another program, which proves nothing, takes over once it is silent.
    w.now += Duration::from_secs(80);
    w.discover(ELSEWHERE, 1);
    assert_eq!(w.place(1), ELSEWHERE);
}

#[test]
fn a_node_whose_clock_was_set_back_proves_its_new_address_all_the_same() {
    let mut w = at_registry();
    w.register(1, A);
    let cookie = w.prove(A, 1, 1, 1_000_000, [0; 8]);
    w.prove(A, 1, 1, 1_000_001, cookie);
    let there = w.prove(ELSEWHERE, 1, 1, 10, [0; 8]);
    w.prove(ELSEWHERE, 1, 1, 11, there);
    assert_eq!(w.place(1), ELSEWHERE);
}

#[test]
fn cookies_live_for_two_to_four_minutes() {
    for (age, good) in [(239, true), (240, false)] {
        let mut w = at_registry();
        w.register(1, A);
        w.register(2, B);
        // The first use of a cookie starts the clock.
        w.discover(ELSEWHERE, 1);
        w.directory.nodes.get_mut(&1).unwrap().ip = None;
        let cookie = w.prove(A, 1, 1, 1, [0; 8]);
        w.now += Duration::from_secs(age);
        w.discover(ELSEWHERE, 1);
        w.prove(A, 1, 1, 2, cookie);
        assert_eq!(w.place(1) == A, good, "{age} s");
    }
}

#[test]
fn signatures_are_checked_for_changes_only_and_not_for_unknown_ids_keys_or_cookies() {
    let mut w = at_registry();
    for time in 1..100 {
        w.prove(A, 50, 50, time, [0; 8]);
    }
    assert_eq!(w.place(50), A, "an unknown id is where it says");
    w.register(1, A);
    let cookie = w.prove(A, 1, 1, 1, [0; 8]);
    w.prove(A, 1, 1, 2, cookie);
    let asked = w.directory.asked.get();
    for time in 3..1000 {
        w.now += Duration::from_millis(20);
        w.prove(A, 1, 1, time, cookie);
    }
    assert_eq!(w.directory.asked.get(), asked, "the steady state costs nothing");
}

#[test]
fn floods_of_invented_ids_and_spoofed_addresses_leave_the_registered_ones_alone() {
    let mut w = at_registry();
    w.register(1, A);
    w.register(2, B);
    w.directory.reached = vec![addr(B).ip()];
    w.discover(A, 1);
    let mut answered = 0;
    for i in 0..300_000u32 {
        let from = SocketAddr::from(((i.wrapping_mul(2_654_435_761) | 1 << 24).to_be_bytes(), 1000));
        if i % 100 == 0 {
            // A tenth of the rate of a real one.
            w.now += Duration::from_millis(1);
        }
        answered += w.discover(&from.to_string(), 1000 + i).len();
    }
    // Ten thousand at once and as many per second.
    assert!((39_000..41_000).contains(&answered), "{answered}");
    assert!(w.beacon.counters.nodes <= 1024 * 64 + 1);
    assert_eq!(w.place(1), A);
    // Those that have a connection to the registry are answered at once and found.
    assert_eq!(w.discover(B, 2).len(), 1);
    assert_eq!(w.place(2), B);
    assert!(w.beacon.counters.discover_limited > 250_000);
    w.now += Duration::from_secs(600);
    w.beacon.sweep(w.now);
    assert_eq!(w.beacon.counters.nodes, 0);
}

#[test]
fn no_reply_to_an_unproven_sender_is_worth_spoofing_for() {
    let mut w = at_registry();
    w.register(2, B);
    w.discover(B, 2);
    let bodies =
        [vec![], vec![0; 4], vec![0, 0, 0, 2], vec![0, 0, 0, 7, 0, 0, 0, 2], vec![0; 200], vec![4; 60]];
    // What an Ethernet frame costs: IPv4 and UDP headers, at least 46 bytes.
    let frame = |len: usize| (len + 28).max(46);
    for kind in 0..=255u8 {
        for body in &bodies {
            for from in [ELSEWHERE, "192.0.2.78:53"] {
                let request = [&[kind][..], body].concat();
                let mut to_sender = 0;
                for (to, reply) in w.raw(from, &request) {
                    assert!(
                        frame(reply.len()) <= frame(request.len()),
                        "{kind:#x}: {} for {}",
                        reply.len(),
                        request.len()
                    );
                    assert!([ELSEWHERE, "192.0.2.78:53", B].contains(&&*to), "{kind:#x}: sent to {to}");
                    to_sender += usize::from(to == from);
                }
                assert!(to_sender <= 1);
            }
        }
    }
    // Over IPv6 the shortest Discover, which reference nodes send, draws 20 bytes for 5: 68 for 53 on the wire.
    assert_eq!(w.raw("[2001:db8::1]:9", &[1, 0, 0, 0, 9])[0].1.len(), 20);
}

#[test]
fn no_message_makes_the_beacon_send_anybody_much_more_than_it_received() {
    for (a, b, header, most) in [
        (A, B, 28, 110),
        // The shortest Discover, which reference nodes send, draws 20 bytes for 5; a punch command is as long.
        ("[2001:db8::1]:4000", "[2001:db8:1::2]:5000", 48, 130),
    ] {
        let peer = "192.0.2.9:9001";
        let mut w =
            world(Settings { registry: REGISTRY.into(), peers: vec![addr(peer)], ..Settings::default() });
        w.register(1, a);
        w.discover(a, 1);
        w.discover(b, 2);
        w.send(b, &Message::DiscoverEx { node: 3 });
        w.send(peer, &Message::Sync { beacon: 1, nodes: &9u32.to_be_bytes() });
        let messages = [
            bytes(&Message::Discover { node: 1, key: None }),
            bytes(&Message::Discover { node: 0, key: None }),
            bytes(&Message::Discover { node: 1, key: Some(&[1; 32]) }),
            bytes(&Message::DiscoverEx { node: 1 }),
            discover::sign(&identity(1), REGISTRY, 1, 1, &[0; 8]).to_vec(),
            bytes(&Message::PunchRequest { requester: 1, target: 2 }),
            bytes(&Message::Relay { from: 1, to: 2, frame: b"" }),
            bytes(&Message::Relay { from: 1, to: 3, frame: b"x" }),
            bytes(&Message::Relay { from: 1, to: 9, frame: &[7; 1200] }),
            bytes(&Message::Relay { from: 1, to: 77, frame: b"" }),
            bytes(&Message::DiscoverReply(addr(b))),
            bytes(&Message::PunchCommand(addr(b))),
            bytes(&Message::RelayDeliver { from: 1, frame: b"x" }),
            bytes(&Message::RelayDeliverDest { from: 1, to: 2, frame: b"x" }),
            bytes(&Message::Sync { beacon: 1, nodes: &[0; 400] }),
            bytes(&Message::Notify { kind: 1 }),
            vec![0x0B; 40],
        ];
        let mut answered = 0;
        for message in messages {
            let mut per_destination: HashMap<String, usize> = HashMap::new();
            for (to, sent) in w.raw(a, &message) {
                *per_destination.entry(to).or_default() += header + sent.len();
            }
            answered += per_destination.len();
            for (to, sent) in per_destination {
                let received = header + message.len();
                assert!(sent * 100 <= received * most, "{message:?}: {sent} bytes to {to} for {received}");
            }
        }
        assert_eq!(answered, 5 + 2 + 3, "five Discovers, a punch, three frames");
    }
}
