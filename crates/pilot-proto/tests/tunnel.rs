//! Two engines and what happens between them: contact, loss, restarts, attacks (spec 02, spec 04 sections 8 to 13).

mod support;

use pilot_proto::Addr;
use pilot_proto::engine::Event;
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
    let mut net = Net::pair();
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
    let mut net = Net::pair();
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
    let mut net = Net::pair();
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
    let mut net = Net::pair();
    send(&mut net, 1, 2, b"one");
    net.run(6 * SECOND);
    net.take_events(1);
    net.add(2, config(7));
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
