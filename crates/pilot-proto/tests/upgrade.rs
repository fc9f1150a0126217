//! The session upgrade between two engines: every order of events, every lost, repeated, changed and forged frame, and
//! what a pinned pair refuses (docs/extensions.md, "Session upgrade").
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use pilot_proto::engine::{Event, SendError};
use pilot_proto::stream::{DialError, StreamEvent};
use pilot_proto::tunnel::upgrade::{GRACE, HALF_OPEN, PATIENCE};
use pilot_proto::tunnel::upgraded::{MAX_AGE, MAX_FRAMES, REKEY_AFTER, REKEY_FRAMES};
use pilot_proto::wire::capability::{self, Trailing};
use pilot_proto::wire::frame::{self, Frame, PILA_LEN};
use pilot_proto::{Addr, NodeId};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use support::*;

fn send(net: &mut Net, from: NodeId, to: NodeId, payload: &[u8]) {
    let now = net.now;
    net.engine(from).send_datagram(now, Addr::backbone(to), 9000, payload).unwrap();
}

fn session(net: &mut Net, id: NodeId, peer: NodeId) -> &'static str {
    net.engine(id).peers().into_iter().find(|p| p.node_id == peer).map_or("no peer", |p| p.session)
}

fn pinned(net: &mut Net, id: NodeId) -> Vec<NodeId> {
    net.engine(id).pins().map(|(node, _)| node).collect()
}

/// `hello`, `first`, `second`, `retry`, `plain PILA`, or the frame's magic.
fn kind(sent: &Sent) -> String {
    let Ok(Frame::Pila(pila)) = Frame::parse(&sent.bytes) else { return sent.kind() };
    match capability::parse(pila.trailing) {
        Trailing::Block(block) => format!("{:?}", block.kind).to_lowercase(),
        Trailing::None => "plain PILA".into(),
        Trailing::Malformed => "malformed".into(),
    }
}

fn kinds(net: &Net) -> Vec<(NodeId, String)> {
    let from = |s: &Sent| (1..=9).find(|n| addr_of(*n) == s.from).unwrap();
    net.log.iter().map(|s| (from(s), kind(s))).collect()
}

fn at(ms: u128, net: &Net) -> Vec<(NodeId, String)> {
    let from = |s: &Sent| (1..=9).find(|n| addr_of(*n) == s.from).unwrap();
    net.log.iter().filter(|s| (s.at - net.start).as_millis() == ms).map(|s| (from(s), kind(s))).collect()
}

/// A pair with an upgraded session, pinned both ways; the log is empty.
fn upgraded() -> Net {
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"first");
    net.run(SECOND);
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("upgraded", "upgraded"));
    assert_eq!((pinned(&mut net, 1), pinned(&mut net, 2)), (vec![2], vec![1]));
    for id in [1, 2] {
        net.take_events(id);
        assert!(net.drops(id).is_empty(), "{id}: {:?}", net.drops(id));
    }
    net.log.clear();
    net
}

/// Both directions carry datagrams.
fn assert_works(net: &mut Net) {
    net.take_events(1);
    net.take_events(2);
    send(net, 1, 2, b"there");
    send(net, 2, 1, b"back");
    net.run(ms(100));
    assert_eq!((net.datagrams(2), net.datagrams(1)), (vec![b"there".to_vec()], vec![b"back".to_vec()]));
    assert_eq!((session(net, 1, 2), session(net, 2, 1)), ("upgraded", "upgraded"));
}

fn find(net: &Net, from: NodeId, what: &str) -> Sent {
    net.log.iter().find(|s| s.from == addr_of(from) && kind(s) == what).unwrap().clone()
}

// ---- establishing ----------------------------------------------------------------------------------------------

#[test]
fn the_lower_node_has_its_data_under_way_after_one_round_trip() {
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"x");
    net.run(ms(31));
    assert_eq!(net.datagrams(2), [b"x"]);
    let expected = [(1, "first"), (2, "second"), (1, "PILU"), (1, "PILU"), (2, "PILU")];
    assert_eq!(kinds(&net), expected.map(|(id, kind)| (id, kind.to_owned())));
    assert_eq!(at(20, &net).len(), 2, "the datagram, and the sign that the session is there");
}

#[test]
fn the_higher_node_too_after_a_greeting() {
    let mut net = Net::pair();
    send(&mut net, 2, 1, b"x");
    net.run(ms(41));
    assert_eq!(net.datagrams(1), [b"x"]);
    let sent = kinds(&net);
    let expected = [(2, "hello"), (1, "first"), (2, "second"), (2, "PILU"), (1, "PILU"), (2, "PILU")];
    assert_eq!(sent, expected.map(|(id, kind)| (id, kind.to_owned())));
    assert_eq!(at(20, &net).len(), 2, "message 2 and the datagram leave together");
    assert_eq!((pinned(&mut net, 1), pinned(&mut net, 2)), (vec![2], vec![1]));
}

#[test]
fn both_starting_at_once_agree_on_one_session() {
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"a");
    send(&mut net, 2, 1, b"b");
    net.run(SECOND);
    assert_eq!((net.datagrams(2), net.datagrams(1)), (vec![b"a".to_vec()], vec![b"b".to_vec()]));
    let count = |what: &str| kinds(&net).iter().filter(|(_, k)| k == what).count();
    assert_eq!((count("first"), count("second"), count("hello")), (1, 1, 1));
    assert_works(&mut net);
}

#[test]
fn through_the_relay_alone_it_works_the_same() {
    let mut net = Net::pair_with_beacon();
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    send(&mut net, 2, 1, b"x");
    net.run(SECOND);
    assert_eq!(net.datagrams(1), [b"x"]);
    assert_works(&mut net);
    assert_eq!(net.relayed(1, 2), Some(true));
}

/// Every one of the first datagrams, of either starter, is lost, repeated at once, repeated late, or overtaken: the pair
/// converges and the application's datagram arrives once.
#[test]
fn each_frame_lost_repeated_or_late_the_pair_converges() {
    for starter in [1, 2] {
        for victim in 0..6 {
            for fate in ["lost", "twice", "late", "repeated after a second", "lost twice"] {
                let mut net = Net::pair();
                let (mut count, kept) = (0, Rc::new(RefCell::new(None)));
                let keep = kept.clone();
                net.filter = Box::new(move |s| {
                    count += 1;
                    let hit = count - 1 == victim || (fate == "lost twice" && count == victim + 3);
                    if hit && fate != "lost" && fate != "lost twice" {
                        *keep.borrow_mut() = Some(s.clone());
                    }
                    !hit || fate == "twice" || fate == "repeated after a second"
                });
                send(&mut net, starter, 3 - starter, b"x");
                for step in 0..60 {
                    net.run(ms(5));
                    let due = match fate {
                        "twice" => true,
                        "late" => step > 6,
                        _ => false,
                    };
                    let again = if due { kept.borrow_mut().take() } else { None };
                    if let Some(again) = again {
                        net.inject(again.from, again.to, &again.bytes);
                    }
                }
                net.run(2 * SECOND);
                if let Some(again) = kept.borrow_mut().take() {
                    net.inject(again.from, again.to, &again.bytes);
                }
                net.run(SECOND);
                let case = format!("node {starter} starts, datagram {victim} {fate}");
                let got = net.datagrams(3 - starter);
                assert!(
                    got.len() <= 1 && (got.len() == 1 || fate.starts_with("lost") || fate == "late"),
                    "{case}: {got:?}"
                );
                net.filter = Box::new(|_| true);
                assert_works(&mut net);
                assert_eq!((pinned(&mut net, 1), pinned(&mut net, 2)), (vec![2], vec![1]), "{case}");
            }
        }
    }
}

#[test]
fn every_bit_of_every_handshake_frame_counts() {
    // One handshake of each starter, recorded; then each frame with one bit changed, to the state it met.
    for starter in [1, 2] {
        let mut whole = Net::pair();
        send(&mut whole, starter, 3 - starter, b"x");
        whole.run(SECOND);
        let frames: Vec<Sent> = whole.log.iter().filter(|s| s.kind() == "PILA").cloned().collect();
        for (n, frame) in frames.iter().enumerate() {
            for bit in (0..frame.bytes.len() * 8).step_by(7) {
                let mut net = Net::pair();
                let mut count = 0;
                net.filter = Box::new(move |s| {
                    count += usize::from(s.kind() == "PILA");
                    count <= n
                });
                send(&mut net, starter, 3 - starter, b"x");
                net.run(ms(10 * n as u64));
                let mut changed = frame.bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                // A block that is cut or unknown leaves the plain exchange; that is the downgrade pins are for.
                let unknown = (PILA_LEN * 8..(PILA_LEN + 5) * 8).contains(&bit);
                net.filter = Box::new(|_| true);
                net.inject(frame.from, frame.to, &changed);
                net.run(ms(11));
                let node = if frame.to == addr_of(1) { 1 } else { 2 };
                let has = session(&mut net, node, 3 - node);
                assert!(has == "none" || has == "no peer" || unknown, "{n} {} bit {bit}: {has}", kind(frame));
                let caused = net.drops(node).iter().map(|(_, n)| n).sum::<u64>();
                assert!(caused > 0 || unknown, "{n} {} bit {bit}: no cause", kind(frame));
            }
        }
    }
}

// ---- replay ----------------------------------------------------------------------------------------------------

#[test]
fn a_repeated_message_1_draws_the_same_message_2_and_forks_nothing() {
    let mut net = Net::pair();
    // The confirmation does not come through, so the responder's session stays half open.
    net.filter = Box::new(|s| s.kind() != "PILU");
    send(&mut net, 1, 2, b"x");
    net.run(ms(15));
    let first = find(&net, 1, "first");
    for _ in 0..3 {
        net.inject(first.from, first.to, &first.bytes);
        net.run(ms(20));
    }
    let seconds: Vec<Vec<u8>> =
        net.log.iter().filter(|s| kind(s) == "second").map(|s| s.bytes.clone()).collect();
    assert_eq!(seconds.len(), 4);
    assert!(seconds.iter().all(|bytes| *bytes == seconds[0]));
}

#[test]
fn recorded_handshakes_disturb_nothing_and_cost_no_key_agreement() {
    let mut net = Net::pair();
    send(&mut net, 2, 1, b"x");
    net.run(SECOND);
    let recorded: Vec<Sent> = net.log.iter().filter(|s| s.kind() == "PILA").cloned().collect();
    assert_eq!(recorded.len(), 3, "hello, message 1, message 2");
    assert_works(&mut net);
    net.log.clear();
    for round in 0..20 {
        for frame in &recorded {
            net.inject(frame.from, frame.to, &frame.bytes);
        }
        net.run(ms(400));
        send(&mut net, 1, 2, &[round]);
        send(&mut net, 2, 1, &[round]);
    }
    net.run(SECOND);
    let (one, two) = (net.datagrams(1), net.datagrams(2));
    assert_eq!((one.len(), two.len()), (20, 20), "no datagram was lost");
    // A repeated greeting may make the initiator agree anew, at most once a second; nothing else has an effect.
    let made = kinds(&net).iter().filter(|(_, kind)| kind == "second").count() - 20;
    assert!(made <= 9, "{made}");
    assert_works(&mut net);
}

#[test]
fn an_old_message_1_after_the_session_has_gone_cannot_stop_the_real_one() {
    let mut net = upgraded();
    // Another life of node 1, whose message 1 is recorded.
    net.add(1, config(8));
    send(&mut net, 1, 2, b"x");
    net.run(SECOND);
    let recorded = find(&net, 1, "first");
    // Both start anew. The recording comes first, then the real thing.
    net.add(1, config(9));
    net.add(2, config(10));
    net.log.clear();
    net.inject(addr_of(1), addr_of(2), &recorded.bytes);
    net.run(ms(11));
    assert_eq!(kinds(&net).last().unwrap().1, "second", "nothing speaks against the recording yet");
    send(&mut net, 1, 2, b"real");
    net.run(ms(200));
    assert_eq!(net.datagrams(2), [b"real"]);
    assert!(
        kinds(&net).contains(&(2, "retry".into())),
        "its session stood in the way, so a challenge was asked for"
    );
    assert_works(&mut net);
}

#[test]
fn frames_of_upgraded_sessions_are_taken_once_and_only_unchanged() {
    let mut net = upgraded();
    send(&mut net, 1, 2, b"one");
    net.run(ms(20));
    let frame = find(&net, 1, "PILU");
    assert_eq!(net.datagrams(2), [b"one"]);
    net.inject(addr_of(1), addr_of(2), &frame.bytes);
    net.run(ms(20));
    assert_eq!(net.drops(2), [("replayed", 1)]);
    let mut huge = frame.bytes.clone();
    huge[12..20].copy_from_slice(&(u64::MAX - 1).to_be_bytes());
    let mut flipped = frame.bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for _ in 0..200 {
        net.inject(addr_of(1), addr_of(2), &huge);
        net.inject(addr_of(1), addr_of(2), &flipped);
        net.run(ms(50));
    }
    assert_eq!(net.engine(2).drops().decrypt_failed, 400);
    assert!(net.datagrams(2).is_empty());
    let name = &frame.bytes[8..12];
    send(&mut net, 1, 2, b"two");
    net.run(ms(20));
    assert_eq!(net.datagrams(2), [b"two"]);
    let last = net.log.iter().rev().find(|s| s.from == addr_of(1)).unwrap();
    assert_eq!(&last.bytes[8..12], name, "the session has not changed");
}

// ---- restarts --------------------------------------------------------------------------------------------------

#[test]
fn either_side_restarted_the_other_side_mends_it_at_the_first_packet() {
    for restarted in [1, 2] {
        for speaker in [1, 2] {
            let mut net = upgraded();
            net.run(5 * SECOND);
            net.add(restarted, config(7));
            net.log.clear();
            send(&mut net, speaker, 3 - speaker, b"x");
            net.run(ms(300));
            assert_eq!(net.datagrams(3 - speaker), [b"x"], "{restarted} restarted, {speaker} speaks");
            assert_works(&mut net);
        }
    }
}

#[test]
fn a_side_that_forgot_the_peer_is_mended_too() {
    for forgetful in [1, 2] {
        for speaker in [1, 2] {
            let mut net = upgraded();
            net.run(5 * SECOND);
            let now = net.now;
            net.engine(forgetful).forget_peer(now, 3 - forgetful);
            send(&mut net, speaker, 3 - speaker, b"x");
            net.run(ms(300));
            assert_eq!(net.datagrams(3 - speaker), [b"x"], "{forgetful} forgot, {speaker} speaks");
            assert_works(&mut net);
        }
    }
}

#[test]
fn frames_that_cannot_be_read_from_strangers_start_nothing_while_the_session_works() {
    let mut net = upgraded();
    for n in 0..50u8 {
        let mut forged = [b"PILU".as_slice(), &[0, 0, 0, 1, 1, 2, 3, n], &[0; 40]].concat();
        forged[19] = n;
        send(&mut net, 1, 2, b"x");
        net.run(ms(100));
        net.inject(addr_of(1), addr_of(2), &forged);
    }
    net.run(ms(50));
    assert_eq!(net.drops(2), [("no_session", 50)]);
    assert!(kinds(&net).iter().all(|(_, kind)| kind == "PILU"), "{:?}", kinds(&net));
}

// ---- rekey -----------------------------------------------------------------------------------------------------

/// Bytes of the frame of one of these datagrams.
const DATAGRAM_LEN: usize = 36 + 34 + 4;

/// Sends a numbered datagram each way every `step`, for `time`; returns how many arrived at 1 and at 2.
fn busy(net: &mut Net, time: Duration, step: Duration) -> (usize, usize, usize) {
    net.take_events(1);
    net.take_events(2);
    let (mut sent, end) = (0u32, net.now + time);
    let (mut one, mut two) = (0, 0);
    while net.now < end {
        send(net, 1, 2, &sent.to_be_bytes());
        send(net, 2, 1, &sent.to_be_bytes());
        sent += 1;
        net.run(step);
        one += net.datagrams(1).len();
        two += net.datagrams(2).len();
    }
    net.run(SECOND);
    (sent as usize, one + net.datagrams(1).len(), two + net.datagrams(2).len())
}

fn names(net: &Net, from: NodeId) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for sent in net.log.iter().filter(|s| s.from == addr_of(from) && s.kind() == "PILU") {
        if !names.iter().any(|n| **n == sent.bytes[8..12]) {
            names.push(sent.bytes[8..12].to_vec());
        }
    }
    names
}

#[test]
fn rekeys_every_two_minutes_lose_nothing() {
    let mut net = upgraded();
    let (sent, one, two) = busy(&mut net, 5 * REKEY_AFTER, ms(7));
    assert_eq!((one, two), (sent, sent));
    assert_eq!((names(&net, 1).len(), names(&net, 2).len()), (6, 6), "the first, and one every two minutes");
    assert_eq!(kinds(&net).iter().filter(|(_, kind)| kind != "PILU").count(), 2 * 5, "one round trip each");
    assert!(net.drops(1).is_empty() && net.drops(2).is_empty(), "{:?} {:?}", net.drops(1), net.drops(2));
}

/// One side used the plain session for a moment. When that ends, its next handshake comes with another X25519 key, which looks
/// like a restart to the other side alone; what that one sends again must not arrive twice.
#[test]
fn a_rekey_after_one_side_alone_had_a_plain_session_repeats_no_datagram() {
    let mut net = Net::pair();
    net.filter = Box::new(|s| kind(s) != "second");
    send(&mut net, 1, 2, b"x");
    net.run(PATIENCE + ms(15));
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("none", "compat"));
    net.filter = Box::new(|_| true);
    net.run(SECOND);
    assert_works(&mut net);
    let (sent, one, two) = busy(&mut net, REKEY_AFTER + 20 * SECOND, ms(100));
    assert_eq!((one, two), (sent, sent));
}

#[test]
fn rekeys_under_loss_and_reordering_lose_only_what_the_network_loses() {
    let mut net = upgraded();
    let lost = Rc::new(RefCell::new((0usize, 0usize)));
    let (count, mut n) = (lost.clone(), 0u64);
    net.filter = Box::new(move |s| {
        n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let lose = (n >> 33) % 10 == 0;
        if lose && s.kind() == "PILU" && s.bytes.len() == DATAGRAM_LEN {
            let mut count = count.borrow_mut();
            if s.to == addr_of(1) { count.0 += 1 } else { count.1 += 1 }
        }
        !lose
    });
    let (sent, one, two) = busy(&mut net, 4 * REKEY_AFTER, ms(7));
    let lost = *lost.borrow();
    assert_eq!((one + lost.0, two + lost.1), (sent, sent), "{:?} {:?}", net.drops(1), net.drops(2));
    assert!(names(&net, 1).len() >= 4);
}

#[test]
fn forged_key_exchanges_from_both_addresses_do_not_keep_a_rekey_from_coming_about() {
    let mut net = upgraded();
    busy(&mut net, REKEY_AFTER - 5 * SECOND, SECOND);
    let forged = |id: NodeId| frame::pila(id, &[9; 32], identity(id as u8).public_key(), &[9; 64]);
    let mut lost = 0;
    net.filter = Box::new(move |s| {
        // The first message 2 is lost, too.
        lost += u32::from(kind(s) == "second");
        kind(s) != "second" || lost > 1
    });
    for step in 0..5_000 {
        net.inject(addr_of(2), addr_of(1), &forged(2));
        net.inject(addr_of(1), addr_of(2), &forged(1));
        if step % 100 == 0 {
            send(&mut net, 1, 2, b"x");
        }
        net.run(ms(2));
    }
    assert!(net.drops(1).iter().any(|(drop, _)| *drop == "rate_limited_direct"), "{:?}", net.drops(1));
    assert_eq!((names(&net, 1).len(), names(&net, 2).len()), (2, 2));
}

#[test]
fn the_responder_starts_the_rekey_if_the_initiator_does_not() {
    let mut net = upgraded();
    // Greetings and answers pass; a message 1 passes only after the responder has asked for it.
    let mut asked = false;
    net.filter = Box::new(move |s| {
        asked |= kind(s) == "hello";
        asked || kind(s) != "first"
    });
    let (sent, one, two) = busy(&mut net, REKEY_AFTER + Duration::from_secs(15), ms(50));
    assert_eq!((one, two), (sent, sent));
    assert_eq!(names(&net, 1).len(), 2);
}

#[test]
fn a_session_is_replaced_by_volume_and_seals_nothing_beyond_its_bound() {
    for heavy in [1, 2] {
        let mut net = upgraded();
        net.engine(heavy).skip_frames(3 - heavy, REKEY_FRAMES - 3);
        let (sent, one, two) = busy(&mut net, ms(300), ms(7));
        assert_eq!((one, two), (sent, sent));
        assert_eq!(names(&net, heavy).len(), 2, "rekeyed at once");

        // With every handshake lost, the bound is a wall.
        let mut net = upgraded();
        net.filter = Box::new(|s| s.kind() == "PILU");
        net.engine(heavy).skip_frames(3 - heavy, MAX_FRAMES - 5);
        for n in 0..20 {
            let now = net.now;
            // From the sixth on they wait for a session.
            let _ = net.engine(heavy).send_datagram(now, Addr::backbone(3 - heavy), 9000, &[n]);
            net.run(ms(20));
        }
        assert_eq!(net.datagrams(3 - heavy).len(), 5);
        let highest = net.log.iter().filter(|s| s.from == addr_of(heavy) && s.kind() == "PILU");
        let highest = highest.map(|s| u64::from_be_bytes(s.bytes[12..20].try_into().unwrap())).max();
        assert_eq!(highest, Some(MAX_FRAMES - 1));
        net.filter = Box::new(|_| true);
        net.run(10 * SECOND);
        assert_eq!(net.datagrams(3 - heavy).len(), 15, "what waited was sent under the next session");
    }
}

#[test]
fn a_session_that_cannot_be_replaced_ends_at_its_age() {
    let mut net = upgraded();
    net.filter = Box::new(|s| s.kind() == "PILU");
    let until = MAX_AGE - Duration::from_secs(2);
    let (sent, one, two) = busy(&mut net, until, ms(500));
    assert_eq!((one, two), (sent, sent));
    net.run(2 * SECOND);
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("none", "none"), "never anything plain");
    net.filter = Box::new(|_| true);
    net.run(15 * SECOND);
    assert_works(&mut net);
}

#[test]
fn an_idle_session_is_not_rekeyed_and_goes_with_its_keys() {
    let mut net = upgraded();
    net.run(Duration::from_secs(250));
    assert!(kinds(&net).iter().all(|(_, kind)| kind == "PILU"), "{:?}", kinds(&net));
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("none", "none"));
    net.log.clear();
    send(&mut net, 1, 2, b"x");
    net.run(ms(50));
    assert_eq!(net.datagrams(2), [b"x"], "one round trip");
}

#[test]
fn the_responder_uses_a_new_session_only_when_the_initiator_has_shown_that_it_has_it() {
    let mut net = upgraded();
    let before = names(&net, 2);
    assert!(before.is_empty());
    send(&mut net, 2, 1, b"x");
    net.run(ms(20));
    let old = names(&net, 2)[0].clone();
    // Rekeyed, but message 2 never arrives: the responder goes on under the old session, and all arrives.
    net.filter = Box::new(|s| kind(s) != "second");
    net.engine(1).skip_frames(2, REKEY_FRAMES - 1);
    send(&mut net, 1, 2, b"y");
    net.run(2 * SECOND);
    assert!(kinds(&net).contains(&(2, "second".into())));
    net.take_events(1);
    let (sent, one, two) = busy(&mut net, 3 * SECOND, ms(50));
    assert_eq!((one, two), (sent, sent));
    assert_eq!(names(&net, 2), [old]);
}

/// The responder uses a session whose initiator has fallen silent before it could show that it has it.
#[test]
fn a_session_that_is_never_confirmed_is_asked_for_anew_when_it_ends() {
    let mut net = upgraded();
    net.run(5 * SECOND);
    let pins: Vec<_> = net.engine(2).pins().collect();
    net.add(2, config(7));
    net.engine(2).set_pins(pins);
    net.filter = Box::new(|s| matches!(&kind(s)[..], "hello" | "first"));
    send(&mut net, 2, 1, b"x");
    net.run(ms(30));
    assert_eq!(session(&mut net, 2, 1), "upgraded");
    net.filter = Box::new(|_| false);
    net.run(HALF_OPEN + SECOND);
    assert_eq!(session(&mut net, 2, 1), "none");
    net.filter = Box::new(|_| true);
    net.run(5 * SECOND);
    assert_eq!(
        (session(&mut net, 1, 2), session(&mut net, 2, 1)),
        ("upgraded", "upgraded"),
        "nobody sends anything"
    );
    assert_works(&mut net);
}

// ---- pins ------------------------------------------------------------------------------------------------------

/// Takes the block off every PILA.
fn cut(net: &mut Net) {
    let cut = Rc::new(RefCell::new(Vec::new()));
    let keep = cut.clone();
    net.filter = Box::new(move |s| {
        let block = s.kind() == "PILA" && s.bytes.len() > PILA_LEN;
        if block {
            keep.borrow_mut().push(Sent { bytes: s.bytes[..PILA_LEN].to_vec(), ..s.clone() });
        }
        !block
    });
    // Puts the rest on the wire.
    for _ in 0..400 {
        net.run(ms(5));
        let rest: Vec<Sent> = cut.borrow_mut().drain(..).collect();
        for sent in rest {
            net.inject(sent.from, sent.to, &sent.bytes);
        }
    }
    net.filter = Box::new(|_| true);
}

#[test]
fn before_the_first_upgrade_a_cut_block_leaves_the_plain_session() {
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"x");
    cut(&mut net);
    assert_eq!(net.datagrams(2), [b"x"]);
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("compat", "compat"));
    assert!(pinned(&mut net, 1).is_empty() && pinned(&mut net, 2).is_empty());
}

#[test]
fn a_cut_block_that_somebody_else_sends_does_not_keep_the_first_upgrade_from_coming() {
    for starter in [1, 2] {
        let mut other = Net::pair();
        send(&mut other, starter, 3 - starter, b"x");
        other.run(SECOND);
        let frame = other.log.iter().find(|s| s.from == addr_of(3 - starter) && s.kind() == "PILA").unwrap();
        let mut net = Net::pair();
        send(&mut net, starter, 3 - starter, b"x");
        net.run(ms(5));
        net.inject(addr_of(9), addr_of(starter), &frame.bytes[..PILA_LEN]);
        net.run(SECOND);
        assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("upgraded", "upgraded"));
        assert_works(&mut net);
        assert_eq!((pinned(&mut net, 1), pinned(&mut net, 2)), (vec![2], vec![1]), "{starter} starts");
    }
}

#[test]
fn after_it_a_cut_block_is_refused_reported_and_named_in_errors() {
    let mut net = upgraded();
    let pins: Vec<_> = net.engine(1).pins().collect();
    net.add(1, config(7));
    net.engine(1).set_pins(pins);
    let now = net.now;
    let conn = net.engine(1).dial(now, Addr::backbone(2), 7).unwrap();
    cut(&mut net);
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("none", "upgraded"));
    let events = net.take_events(1);
    let report = |frame: &str| {
        let fields = serde_json::json!({ "peer_node_id": 2, "frame": frame, "signed": true });
        Event::Publish("security.downgrade_refused", fields)
    };
    assert!(events.contains(&report("PILA")));
    let failed = Event::Stream(StreamEvent::DialFailed(conn, DialError::Downgrade(2)));
    assert!(events.contains(&failed), "{events:?}");
    let DialError::Downgrade(_) = DialError::Downgrade(2) else { unreachable!() };
    let now = net.now;
    let refused = net.engine(1).send_datagram(now, Addr::backbone(2), 7, b"x");
    assert_eq!(refused, Err(SendError::Downgrade(2)));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "node 2 no longer offers the upgraded session this node insists on: somebody on the path cuts it off, or the node \
         runs other software now; if you know the latter, run pilotctl pins clear 2"
    );
    assert!(net.engine(1).drops().downgrade_refused > 0);
    let status = net.engine(1).peers().remove(0);
    assert!(status.pinned && status.downgrades_refused > 0 && !status.encrypted);
    // The cut stops: the next attempt succeeds without anybody's help.
    net.run(10 * SECOND);
    let now = net.now;
    let _ = net.engine(1).dial(now, Addr::backbone(2), 7).unwrap();
    net.run(SECOND);
    assert_works(&mut net);
}

/// The first 136 bytes of any key exchange of a node are a valid one without a block, and they are no secret.
#[test]
fn an_old_key_exchange_without_block_repeated_by_anybody_keeps_no_datagram_from_a_pinned_peer() {
    let mut net = Net::pair();
    send(&mut net, 2, 1, b"first");
    net.run(SECOND);
    let old = find(&net, 2, "hello").bytes[..PILA_LEN].to_vec();
    let pins: Vec<_> = net.engine(1).pins().collect();
    net.add(1, config(7));
    net.engine(1).set_pins(pins);
    net.inject(addr_of(9), addr_of(1), &old);
    net.run(ms(100));
    assert_eq!(net.engine(1).drops().downgrade_refused, 1);
    assert_eq!(net.engine(1).peers().remove(0).downgrades_refused, 1);
    send(&mut net, 1, 2, b"x");
    net.inject(addr_of(9), addr_of(1), &old);
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"x"]);
    assert_works(&mut net);
}

#[test]
fn old_key_exchanges_without_block_fail_no_dial_over_a_path_of_almost_a_second() {
    let mut net = Net::pair();
    send(&mut net, 2, 1, b"first");
    net.run(SECOND);
    let old = find(&net, 2, "hello").bytes[..PILA_LEN].to_vec();
    let pins: Vec<_> = net.engine(1).pins().collect();
    net.add(1, config(7));
    net.engine(1).set_pins(pins);
    net.latency = ms(450);
    let now = net.now;
    let conn = net.engine(1).dial(now, Addr::backbone(2), 7).unwrap();
    for _ in 0..20 {
        net.inject(addr_of(9), addr_of(1), &old);
        net.run(ms(210));
    }
    let failed = Event::Stream(StreamEvent::DialFailed(conn, DialError::Downgrade(2)));
    assert!(!net.take_events(1).contains(&failed));
    assert!(net.engine(1).drops().downgrade_refused > 4);
    assert_eq!(session(&mut net, 1, 2), "upgraded");
}

#[test]
fn plain_frames_of_a_pinned_peer_are_refused_by_kind_and_change_nothing() {
    let mut net = upgraded();
    let secret = pilot_proto::crypto::TunnelSecret::from_bytes(&[2; 32]).unwrap();
    let signature = identity(2).sign(&frame::pila_signed(2, secret.public_key()));
    let pila = frame::pila(2, secret.public_key(), identity(2).public_key(), &signature);
    let mut pils = [b"PILS".as_slice(), &[0, 0, 0, 2], &[1; 60]].concat();
    pils[8] = 7;
    let pilt = [b"PILT".as_slice(), &[0; 40]].concat();
    net.inject(addr_of(2), addr_of(1), &pila);
    net.inject(addr_of(2), addr_of(1), &pils);
    net.inject(addr_of(2), addr_of(1), &pilt);
    net.run(ms(20));
    assert_eq!(net.drops(1), [("plaintext_refused", 1), ("downgrade_refused", 2), ("no_session", 1)]);
    let events = net.take_events(1);
    for (frame, signed) in [("PILA", true), ("PILS", false)] {
        let fields = serde_json::json!({ "peer_node_id": 2, "frame": frame, "signed": signed });
        assert!(events.contains(&Event::Publish("security.downgrade_refused", fields)), "{frame}");
    }
    let mut forged = pila;
    forged[80] ^= 1;
    net.inject(addr_of(2), addr_of(1), &forged);
    net.run(ms(20));
    assert_eq!(net.engine(1).drops().bad_signature, 1, "a forged one is no downgrade");
    assert_eq!(net.engine(1).drops().downgrade_refused, 2);
    // A key request is answered, as it must be among all versions, and starts nothing.
    net.log.clear();
    net.inject(addr_of(2), addr_of(1), &frame::pilk(2, secret.public_key()));
    net.run(5 * SECOND);
    assert!(
        kinds(&net).iter().filter(|(id, kind)| *id == 1 && kind != "PILU").count() <= 1,
        "{:?}",
        kinds(&net)
    );
    assert_works(&mut net);
}

#[test]
fn an_anonymous_session_cannot_replace_a_pinned_one() {
    let mut net = Net::new();
    net.add(1, pilot_proto::engine::Config { allow_anonymous: vec![2], ..config(1) });
    net.add(2, config(2));
    send(&mut net, 1, 2, b"x");
    net.run(SECOND);
    // The registry loses node 2's key, and node 1 restarts with its pins.
    let pins: Vec<_> = net.engine(1).pins().collect();
    net.add(1, pilot_proto::engine::Config { allow_anonymous: vec![2], ..config(7) });
    net.engine(1).set_pins(pins);
    net.keys.remove(&2);
    net.hosts.remove(&2);
    let secret = pilot_proto::crypto::TunnelSecret::from_bytes(&[2; 32]).unwrap();
    net.inject(addr_of(2), addr_of(1), &frame::pilk(2, secret.public_key()));
    net.run(SECOND);
    assert_eq!(net.drops(1), [("downgrade_refused", 1)]);
    assert_ne!(session(&mut net, 1, 2), "compat");
}

#[test]
fn a_cleared_pin_lets_the_other_make_in_and_its_next_upgrade_pins_again() {
    let mut net = upgraded();
    net.add(2, plain(7));
    send(&mut net, 2, 1, b"x");
    net.run(3 * SECOND);
    assert!(net.datagrams(1).is_empty());
    assert!(net.engine(1).drops().downgrade_refused > 0);
    assert!(net.engine(1).clear_pin(2));
    assert!(!net.engine(1).clear_pin(2));
    // Its greetings go on; node 1's own wish to talk brings the plain session about.
    net.run(30 * SECOND);
    send(&mut net, 1, 2, b"y");
    net.run(5 * SECOND);
    assert_eq!(net.datagrams(2), [b"y"]);
    assert_eq!(session(&mut net, 1, 2), "compat");
    net.add(2, config(8));
    net.run(5 * SECOND);
    send(&mut net, 2, 1, b"z");
    net.run(SECOND);
    assert_works(&mut net);
    net.run(GRACE + SECOND);
    assert_eq!(pinned(&mut net, 1), [2]);
    assert_works(&mut net);
}

#[test]
fn a_cleared_pin_leaves_no_open_connection_without_a_session() {
    for who in [1, 2] {
        let mut net = upgraded();
        net.run(2 * SECOND);
        assert!(net.engine(3 - who).listen(7));
        let now = net.now;
        net.engine(who).dial(now, Addr::backbone(3 - who), 7).unwrap();
        net.run(2 * SECOND);
        assert!(net.engine(who).clear_pin(3 - who));
        assert_eq!(session(&mut net, who, 3 - who), "none");
        net.run(SECOND);
        assert_eq!(
            (session(&mut net, 1, 2), session(&mut net, 2, 1)),
            ("upgraded", "upgraded"),
            "{who} cleared"
        );
    }
}

#[test]
fn pins_handed_back_after_a_restart_still_count() {
    let mut net = upgraded();
    let pins: Vec<_> = net.engine(1).pins().collect();
    assert_eq!(pins, [(2, *identity(2).public_key())]);
    let events = |net: &mut Net| {
        let all = net.take_events(1);
        all.into_iter().filter(|e| matches!(e, Event::Pinned { .. })).count()
    };
    net.add(1, config(7));
    net.engine(1).set_pins(pins);
    send(&mut net, 1, 2, b"x");
    net.run(SECOND);
    assert_eq!(events(&mut net), 0, "nothing new to store");
    // Another identity of node 2, which its registry vouches for, is stored.
    let seed = pilot_proto::crypto::Identity::from_seed([77; 32]).unwrap();
    let rotated = std::sync::Arc::new(seed);
    net.keys.insert(2, *rotated.public_key());
    let now = net.now;
    net.engine(2).set_identity(now, rotated.clone(), 2);
    net.run(REKEY_AFTER);
    let (sent, one, two) = busy(&mut net, Duration::from_secs(20), ms(100));
    assert_eq!((one, two), (sent, sent));
    let all: Vec<_> = net.engine(1).pins().collect();
    assert_eq!(all, [(2, *rotated.public_key())]);
}

// ---- identities ------------------------------------------------------------------------------------------------

#[test]
fn a_block_for_another_node_is_refused() {
    let mut net = Net::pair();
    net.add(3, config(3));
    send(&mut net, 2, 1, b"x");
    net.run(SECOND);
    let hello = find(&net, 2, "hello");
    net.inject(addr_of(2), addr_of(3), &hello.bytes);
    net.run(ms(20));
    assert_eq!(net.drops(3), [("wrong_receiver", 1)]);
    assert_eq!(session(&mut net, 3, 2), "no peer");
}

/// Node 3 announces the tunnel key of node 2 as its own: unknown key share. It can sign, but it cannot finish a handshake.
#[test]
fn who_announces_another_nodes_key_gets_no_session() {
    let mut net = Net::pair();
    net.keys.insert(3, *identity(3).public_key());
    let stolen = *pilot_proto::crypto::TunnelSecret::from_bytes(&[2; 32]).unwrap().public_key();
    let signature = identity(3).sign(&frame::pila_signed(3, &stolen));
    let pila = frame::pila(3, &stolen, identity(3).public_key(), &signature);
    let terms = capability::Terms { challenge: [1; 16], ..Default::default() };
    let hello = capability::frame(&identity(3), &pila, capability::Kind::Hello, 1, 0, &terms.greeting());
    net.inject(addr_of(3), addr_of(1), &hello);
    net.run(ms(11));
    let first = find(&net, 1, "first");
    assert_eq!(first.to, addr_of(3));
    // Node 3 passes it on to node 2, whose key it is: there it is for somebody else.
    net.inject(addr_of(3), addr_of(2), &first.bytes);
    net.run(ms(11));
    assert_eq!(net.drops(2), [("wrong_receiver", 1)]);
    // It answers itself, with a handshake of its own static key: that is not the one it announced.
    let Ok(Frame::Pila(read)) = Frame::parse(&first.bytes) else { panic!() };
    let Trailing::Block(block) = capability::parse(read.trailing) else { panic!() };
    let message = pilot_proto::tunnel::noise::Message1::parse(block.body).unwrap();
    let wanted = capability::Terms::parse(message.payload).unwrap();
    let own = pilot_proto::crypto::TunnelSecret::from_bytes(&[3; 32]).unwrap();
    let ephemeral = pilot_proto::crypto::TunnelSecret::from_bytes(&[4; 32]).unwrap();
    let (one, three) = (*identity(1).public_key(), *identity(3).public_key());
    let prologue = pilot_proto::tunnel::upgrade::prologue((1, &one), (3, &three));
    let mut body = Vec::new();
    let mine = capability::Terms { session: 5, ..Default::default() }.payload();
    pilot_proto::tunnel::noise::respond(&prologue, &own, ephemeral, &message, &mine, &mut body).unwrap();
    let second = capability::frame(&identity(3), &pila, capability::Kind::Second, 1, wanted.session, &body);
    net.inject(addr_of(3), addr_of(1), &second);
    net.run(ms(11));
    assert_eq!(net.engine(1).drops().static_mismatch, 1);
    assert_eq!(session(&mut net, 1, 3), "none");
    assert!(pinned(&mut net, 1).is_empty());
}

#[test]
fn low_order_ephemerals_are_refused_by_the_engine() {
    let mut net = Net::new();
    net.add(5, config(5));
    net.keys.insert(1, *identity(1).public_key());
    let secret = pilot_proto::crypto::TunnelSecret::from_bytes(&[1; 32]).unwrap();
    let signature = identity(1).sign(&frame::pila_signed(1, secret.public_key()));
    let pila = frame::pila(1, secret.public_key(), identity(1).public_key(), &signature);
    let terms = capability::Terms { session: 9, ..Default::default() }.payload();
    let body = [&[0; 32][..], &secret.public_key()[..], &terms].concat();
    let first = capability::frame(&identity(1), &pila, capability::Kind::First, 5, 0, &body);
    net.inject(addr_of(1), addr_of(5), &first);
    net.run(ms(11));
    assert_eq!(net.drops(5), [("low_order_key", 1)]);
    // The other way round of roles: a message 1 from the higher node is nothing anybody waits for.
    net.keys.insert(9, *identity(9).public_key());
    let signature = identity(9).sign(&frame::pila_signed(9, secret.public_key()));
    let pila = frame::pila(9, secret.public_key(), identity(9).public_key(), &signature);
    let first = capability::frame(&identity(9), &pila, capability::Kind::First, 5, 0, &body);
    net.inject(addr_of(9), addr_of(5), &first);
    let second = capability::frame(&identity(9), &pila, capability::Kind::Second, 5, 1, &[0; 118]);
    net.inject(addr_of(9), addr_of(5), &second);
    net.run(ms(11));
    assert_eq!(net.engine(5).drops().unexpected_handshake, 2);
}

// ---- compatibility ---------------------------------------------------------------------------------------------

#[test]
fn with_the_upgrade_off_on_either_side_the_plain_session_comes_without_delay() {
    for off in [1, 2] {
        for speaker in [1, 2] {
            let mut net = Net::new();
            for id in [1, 2] {
                net.add(id, if id == off { plain(id as u8) } else { config(id as u8) });
            }
            send(&mut net, speaker, 3 - speaker, b"x");
            net.run(ms(31));
            assert_eq!(net.datagrams(3 - speaker), [b"x"], "{off} has it off, {speaker} speaks");
            net.run(SECOND);
            assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("compat", "compat"));
            assert!(kinds(&net).iter().all(|(_, kind)| kind != "PILU"));
        }
    }
}

#[test]
fn a_peer_whose_handshake_never_succeeds_is_reached_by_the_plain_session_and_upgraded_later() {
    let mut net = Net::pair();
    net.filter = Box::new(|s| kind(s) != "second");
    send(&mut net, 1, 2, b"x");
    send(&mut net, 2, 1, b"y");
    net.run(PATIENCE - ms(50));
    assert!(net.datagrams(2).is_empty());
    net.run(SECOND);
    assert_eq!((net.datagrams(2), net.datagrams(1)), (vec![b"x".to_vec()], vec![b"y".to_vec()]));
    assert_eq!((session(&mut net, 1, 2), session(&mut net, 2, 1)), ("compat", "compat"));
    net.filter = Box::new(|_| true);
    net.run(30 * SECOND);
    assert_works(&mut net);
    assert_eq!((pinned(&mut net, 1), pinned(&mut net, 2)), (vec![2], vec![1]));
}
