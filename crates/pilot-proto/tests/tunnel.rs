//! Two engines and what happens between them: contact, loss, restarts, attacks (spec 02, spec 04 sections 8 to 13).
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use pilot_proto::Addr;
use pilot_proto::engine::Event;
use pilot_proto::path::Candidate;
use support::*;

fn send(net: &mut Net, from: u32, to: u32, payload: &[u8]) {
    let now = net.now;
    net.engine(from).send_datagram(now, Addr::backbone(to), 9000, payload).unwrap();
}

fn established(events: &[Event]) -> Vec<(bool, bool)> {
    let one = |e: &Event| match e {
        Event::TunnelEstablished { relay, rekeyed, .. } => Some((*relay, *rekeyed)),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}

#[test]
fn first_contact_costs_one_exchange_and_delivers_in_order() {
    let mut net = Net::plain_pair();
    for n in 0..10u8 {
        send(&mut net, 1, 2, &[n]);
    }
    net.run(ms(100));
    assert_eq!(net.datagrams(2), (0..10u8).map(|n| vec![n]).collect::<Vec<_>>());
    let mut kinds = net.sent_by(1);
    kinds.dedup();
    assert_eq!(kinds, ["PILA", "PILS"]);
    assert_eq!(net.sent_by(2), ["PILA"]);
    assert!(net.drops(1).is_empty(), "{:?}", net.drops(1));
    assert_eq!(net.drops(2), [("duplicate_exchange", 1)], "each side answers the exchange it installed");
}

#[test]
fn a_lost_first_key_exchange_is_repeated_after_250_ms_with_a_key_request() {
    let mut net = Net::plain_pair();
    let mut lost = 0;
    net.filter = Box::new(move |s| {
        let lose = s.from == addr_of(1) && lost < 1;
        lost += usize::from(lose);
        !lose
    });
    send(&mut net, 1, 2, b"x");
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"x"]);
    assert_eq!(net.times(1, "PILA"), [0, 250, 270]);
    assert_eq!(net.times(1, "PILK"), [250]);
}

#[test]
fn both_sides_starting_at_once_agree_on_one_session() {
    let mut net = Net::plain_pair();
    send(&mut net, 1, 2, b"a");
    send(&mut net, 2, 1, b"b");
    net.run(SECOND);
    assert_eq!(net.datagrams(1), [b"b"]);
    assert_eq!(net.datagrams(2), [b"a"]);
    assert_eq!(net.sent_by(1).iter().filter(|k| *k == "PILA").count(), 2);
}

#[test]
fn ping_is_answered() {
    let mut net = Net::pair();
    let now = net.now;
    net.engine(1).ping(now, 2, b"hello").unwrap();
    net.run(SECOND);
    let pongs: Vec<_> = net.take_events(1).into_iter().filter(|e| matches!(e, Event::Pong { .. })).collect();
    assert_eq!(pongs, [Event::Pong { node: 2, payload: bytes::Bytes::from_static(b"hello") }]);
}

#[test]
fn a_peer_that_restarts_is_rekeyed_and_salvaged() {
    let mut net = Net::plain_pair();
    send(&mut net, 1, 2, b"one");
    net.run(6 * SECOND);
    net.take_events(1);
    net.add(2, plain(7));
    send(&mut net, 1, 2, b"two");
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"two"], "lost in the old session, repeated in the new one");
    assert_eq!(established(&net.take_events(1)), [(false, true)]);
    send(&mut net, 2, 1, b"three");
    net.run(SECOND);
    assert_eq!(net.datagrams(1), [b"three"]);
}

#[test]
fn a_relayed_pair_becomes_direct_without_losing_a_packet() {
    let mut net = Net::pair_with_beacon();
    // Until 5 s nothing gets through directly.
    let opens = net.now + 5 * SECOND;
    net.filter = Box::new(move |s| s.at >= opens || s.from == beacon_addr() || s.to == beacon_addr());
    send(&mut net, 1, 2, b"0");
    net.run(ms(100));
    assert_eq!(net.datagrams(2), [b"0"], "one exchange through the relay, no timer");
    assert_eq!(net.relayed(1, 2), Some(true));
    for n in 1..40u8 {
        send(&mut net, 1, 2, &[n]);
        net.run(ms(500));
    }
    let got: Vec<_> = net.datagrams(2);
    assert_eq!(got, (1..40u8).map(|n| vec![n]).collect::<Vec<_>>());
    assert_eq!(net.relayed(1, 2), Some(false));
    assert_eq!(net.relayed(2, 1), Some(false));
}

#[test]
fn a_dead_direct_path_falls_back_to_the_relay_within_six_seconds() {
    let mut net = Net::pair_with_beacon();
    send(&mut net, 1, 2, b"0");
    net.run(SECOND);
    assert_eq!(net.relayed(1, 2), Some(false));
    net.datagrams(2);
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    for _ in 0..60 {
        send(&mut net, 1, 2, b"x");
        send(&mut net, 2, 1, b"y");
        net.run(ms(100));
    }
    assert_eq!(net.relayed(1, 2), Some(true));
    assert_eq!(net.relayed(2, 1), Some(true));
    net.datagrams(2);
    send(&mut net, 1, 2, b"again");
    net.run(ms(100));
    assert_eq!(net.datagrams(2), [b"again"]);
}

/// Only packets from addresses a host has sent to reach it: port-restricted NATs on both sides.
fn port_restricted(net: &mut Net) {
    let mut holes = std::collections::BTreeSet::new();
    net.filter = Box::new(move |s| {
        if s.from == beacon_addr() || s.to == beacon_addr() {
            return true;
        }
        holes.insert((s.from, s.to));
        holes.contains(&(s.to, s.from))
    });
}

#[test]
fn two_port_restricted_nats_are_punched_within_half_a_second() {
    let mut net = Net::plain_pair().with_beacon();
    port_restricted(&mut net);
    send(&mut net, 1, 2, b"0");
    net.run(ms(60));
    assert_eq!(net.datagrams(2), [b"0"], "the first packet takes the relay and waits for nothing");
    net.run(ms(440));
    assert_eq!((net.relayed(1, 2), net.relayed(2, 1)), (Some(false), Some(false)));
    net.log.clear();
    send(&mut net, 1, 2, b"1");
    net.run(ms(50));
    assert_eq!(net.sent_by(1), ["PILS"]);
    assert_eq!(net.datagrams(2), [b"1"]);
}

#[test]
fn a_stale_registry_address_is_corrected_by_the_punch() {
    let mut net = Net::pair_with_beacon();
    net.routes.get_mut(&2).unwrap().direct = vec![Candidate::guessed(addr_of(222))];
    port_restricted(&mut net);
    send(&mut net, 1, 2, b"0");
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"0"]);
    assert_eq!((net.relayed(1, 2), net.relayed(2, 1)), (Some(false), Some(false)));
}

#[test]
fn an_unpunchable_pair_stays_on_the_relay_and_loses_nothing() {
    let mut net = Net::pair_with_beacon();
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    for n in 0..120u8 {
        send(&mut net, 1, 2, &[n]);
        net.run(ms(500));
    }
    assert_eq!(net.datagrams(2), (0..120u8).map(|n| vec![n]).collect::<Vec<_>>());
    let punches = net.times(1, "beacon 3");
    assert!(punches.windows(2).skip(1).all(|w| w[1] - w[0] >= 14_990), "one attempt in 15 s: {punches:?}");
}

#[test]
fn a_peer_that_changes_its_address_is_followed_at_its_first_packet() {
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"0");
    send(&mut net, 2, 1, b"0");
    net.run(SECOND);
    send(&mut net, 2, 1, b"1");
    net.run(SECOND);
    net.hosts.get_mut(&2).unwrap().addr = addr_of(22);
    send(&mut net, 2, 1, b"2");
    net.run(ms(20));
    net.datagrams(2);
    send(&mut net, 1, 2, b"3");
    net.run(ms(20));
    assert_eq!(net.datagrams(2), [b"3"]);
}

#[test]
fn three_undeliverable_sends_move_a_peer_to_the_relay() {
    let mut net = Net::pair_with_beacon();
    send(&mut net, 1, 2, b"0");
    net.run(SECOND);
    for n in 1..=3 {
        let now = net.now;
        net.engine(1).handle_unreachable(now, addr_of(2));
        assert_eq!(net.relayed(1, 2), Some(n == 3));
    }
}

#[test]
fn a_side_that_lost_its_session_asks_and_is_answered() {
    let mut net = Net::plain_pair();
    send(&mut net, 1, 2, b"0");
    net.run(10 * SECOND);
    let now = net.now;
    net.engine(2).forget_peer(now, 1);
    net.datagrams(2);
    net.log.clear();
    send(&mut net, 1, 2, b"1");
    net.run(SECOND);
    // 2 cannot read it and asks with PILA and PILK; its key is a fresh one, so 1 repeats the datagram for the new session.
    assert_eq!(net.sent_by(2)[..2], ["PILA", "PILK"]);
    assert_eq!(net.datagrams(2), [b"1"]);
    send(&mut net, 1, 2, b"2");
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"2"]);
    // The datagram, and the probe of a path on which ten seconds of sending went unanswered; another one crossed 2's
    // exchange and was still sealed for the session before.
    assert_eq!(net.drops(2), [("duplicate_exchange", 3), ("no_session", 2), ("decrypt_failed", 1)]);
}

#[test]
fn one_side_may_derive_its_half_again_and_again() {
    let mut net = Net::plain_pair();
    send(&mut net, 1, 2, b"0");
    net.run(SECOND);
    // Every restart of one side's half under the same keys opens an epoch at the other.
    for n in 0..4u8 {
        let now = net.now;
        net.engine(1).forget_peer(now, 2);
        send(&mut net, 1, 2, &[n]);
        net.run(7 * SECOND);
    }
    assert_eq!(net.datagrams(2).len(), 5);
    assert!(net.drops(2).iter().all(|(cause, _)| *cause == "duplicate_exchange"), "{:?}", net.drops(2));
}
