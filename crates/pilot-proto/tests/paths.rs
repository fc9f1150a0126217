//! The ways between two nodes: first contact, exchange of addresses, loss and return of a direct path, switches. Behind NATs:
//! the small worlds of `pilot-sim`.

#![allow(clippy::unwrap_used)]

mod support;

use pilot_proto::engine::{Config, Output};
use pilot_proto::path::{Candidate, CandidateKind};
use pilot_proto::stream::StreamEvent;
use pilot_proto::wire::addr::Addr;
use pilot_proto::{NodeId, engine::Event};
use support::{Net, SECOND, addr_of, beacon_addr, config, identity, ms, plain};

/// Two nodes that know each other's keys, and that they are of our own kind, and nothing else of each other; a beacon relays.
fn strangers(one: Config, two: Config) -> Net {
    let mut net = Net::new();
    net.add(1, one);
    net.add(2, two);
    let mut net = net.with_beacon();
    net.directory = false;
    let now = net.now;
    for (id, other) in [(1, 2), (2, 1)] {
        let key = *identity(other as u8).public_key();
        net.engine(id).set_pins([(other, key)]);
        net.engine(id).set_peer_key(now, other, Some(key));
        net.engine(id).set_local_candidates(now, vec![Candidate::new(addr_of(id), CandidateKind::Lan)]);
    }
    net.run(ms(50));
    net.log.clear();
    net
}

fn send(net: &mut Net, from: NodeId, to: NodeId, payload: &[u8]) {
    let now = net.now;
    net.engine(from).send_datagram(now, Addr::backbone(to), 9, payload).unwrap();
}

fn path(net: &mut Net, id: NodeId, peer: NodeId) -> &'static str {
    net.engine(id).path_to(peer)
}

/// Sends a datagram each way every 50 ms until `done`; the time that took in ms.
fn talk_until(net: &mut Net, limit: u64, mut done: impl FnMut(&mut Net) -> bool) -> Option<u64> {
    for n in 0..limit / 50 {
        send(net, 1, 2, b"ping");
        send(net, 2, 1, b"pong");
        net.run(ms(50));
        if done(net) {
            return Some((n + 1) * 50);
        }
    }
    None
}

fn both(net: &mut Net, way: &str) -> bool {
    path(net, 1, 2) == way && path(net, 2, 1) == way
}

#[test]
fn the_first_contact_goes_through_the_relay_and_waits_for_no_address() {
    let mut net = strangers(config(1), config(2));
    send(&mut net, 1, 2, b"first");
    // Through the beacon one way takes 20 ms: key exchange there and back, and the datagram there.
    net.run(ms(61));
    assert_eq!(net.datagrams(2), [b"first".to_vec()]);
    let asked = net.take_events(1).into_iter().filter(|e| matches!(e, Event::NeedRoute(2))).count();
    assert_eq!(asked, 1, "the directory was asked, and its answer not waited for");
}

#[test]
fn a_node_of_unknown_kind_hears_nothing_before_the_directory_has_said_where_it_is() {
    let mut net = strangers(config(1), config(2));
    net.engine(1).set_pins([]);
    send(&mut net, 1, 2, b"first");
    net.run(SECOND);
    assert!(
        !net.sent_by(1).iter().any(|frame| frame.contains("PIL") || frame.contains("relay")),
        "{:?}",
        net.sent_by(1)
    );
    net.directory = true;
    net.run(10 * SECOND);
    send(&mut net, 1, 2, b"second");
    net.run(SECOND);
    assert!(net.datagrams(2).contains(&b"second".to_vec()));
}

#[test]
fn our_own_nodes_find_the_direct_path_without_a_directory() {
    let mut net = strangers(config(1), config(2));
    send(&mut net, 1, 2, b"first");
    net.run(ms(200));
    assert!(both(&mut net, "direct"));
    let status = net.engine(1).peers().remove(0);
    assert_eq!((status.path, status.path_kind, status.path_why.as_str()), ("direct", Some("lan"), ""));
    assert!(status.path_rtt_ms.is_some_and(|rtt| (rtt - 20.0).abs() < 1.0), "{status:?}");
}

#[test]
fn a_call_lost_on_the_way_is_repeated() {
    let mut net = strangers(config(1), config(2));
    let mut lost = 0;
    net.filter = Box::new(move |s| {
        // The first two that carry one address: 16 + 8 bytes behind the header of a packet.
        let call = s.kind().ends_with("PILU") && s.to == beacon_addr() && s.bytes.len() == 9 + 36 + 34 + 24;
        lost += u32::from(call);
        !call || lost > 2
    });
    send(&mut net, 1, 2, b"first");
    net.run(ms(250));
    assert!(both(&mut net, "relay"));
    net.run(SECOND);
    assert!(both(&mut net, "direct"));
}

#[test]
fn a_peer_without_the_upgrade_hears_no_addresses() {
    let mut net = strangers(plain(1), plain(2));
    // Nothing tells that they are of our kind, so the first contact waits for the directory.
    net.directory = true;
    send(&mut net, 1, 2, b"first");
    net.run(3 * SECOND);
    send(&mut net, 2, 1, b"back");
    net.run(3 * SECOND);
    assert_eq!(net.datagrams(1), [b"back".to_vec()]);
    for id in [1, 2] {
        let drops = net.drops(id);
        assert!(drops.iter().all(|(name, _)| !name.contains("control")), "{drops:?}");
        assert!(drops.iter().all(|(name, _)| !name.contains("candidates")), "{drops:?}");
    }
}

#[test]
fn a_private_node_tells_strangers_no_addresses() {
    let mut net = strangers(config(1), Config { public: false, ..config(2) });
    send(&mut net, 1, 2, b"first");
    net.run(10 * SECOND);
    let refused = net.drops(2).into_iter().find(|(name, _)| *name == "candidates_refused");
    assert!(refused.is_some(), "{:?}", net.drops(2));
    let to_one = net.log.iter().filter(|s| s.from == addr_of(2) && s.to == addr_of(1)).count();
    assert_eq!(to_one, 0, "nor does it probe any");
}

#[test]
fn a_direct_path_that_dies_is_left_in_two_seconds_and_taken_up_again_when_it_is_back() {
    for (there, back) in [(true, true), (true, false), (false, true)] {
        let mut net = strangers(config(1), config(2));
        assert!(talk_until(&mut net, 1_000, |net| both(net, "direct")).is_some());
        net.filter = Box::new(move |s| {
            let lost = there && s.from == addr_of(1) && s.to == addr_of(2)
                || back && s.from == addr_of(2) && s.to == addr_of(1);
            !lost
        });
        // What is dead both ways both leave; what is dead one way, its sender.
        let left = talk_until(&mut net, 5_000, |net| match (there, back) {
            (true, true) => both(net, "relay"),
            (true, false) => path(net, 1, 2) == "relay",
            _ => path(net, 2, 1) == "relay",
        });
        assert!(left.is_some_and(|ms| ms <= 2_000), "{there} {back}: {left:?}");
        net.take_events(1);
        net.take_events(2);
        send(&mut net, 1, 2, b"x");
        send(&mut net, 2, 1, b"y");
        net.run(ms(100));
        assert_eq!((net.datagrams(2).len(), net.datagrams(1).len()), (1, 1), "{there} {back}");
        net.filter = Box::new(|_| true);
        let again = talk_until(&mut net, 40_000, |net| both(net, "direct"));
        assert!(again.is_some_and(|ms| ms <= 35_000), "{there} {back}: {again:?}");
    }
}

#[test]
fn a_network_change_is_acted_on_at_once() {
    let mut net = strangers(config(1), config(2));
    assert!(talk_until(&mut net, 1_000, |net| both(net, "direct")).is_some());
    net.run(5 * SECOND);
    net.log.clear();
    let now = net.now;
    net.engine(1).network_changed(now);
    net.run(ms(1));
    let sent = net.sent_by(1);
    assert!(sent.contains(&"beacon 1".to_owned()), "how the beacon sees it now: {sent:?}");
    assert!(sent.contains(&"relay PILU".to_owned()), "a call: {sent:?}");
    assert!(sent.contains(&"PILU".to_owned()), "a probe: {sent:?}");
}

#[test]
fn an_own_address_that_changes_moves_the_path_without_a_directory() {
    let mut net = strangers(config(1), config(2));
    assert!(talk_until(&mut net, 1_000, |net| both(net, "direct")).is_some());
    let there = std::net::SocketAddr::from(([10, 0, 0, 77], 4000));
    net.hosts.get_mut(&2).unwrap().addr = there;
    let now = net.now;
    net.engine(2).set_local_candidates(now, vec![Candidate::new(there, CandidateKind::Lan)]);
    net.engine(2).network_changed(now);
    let moved = |net: &mut Net| {
        let status = net.engine(1).peers().remove(0);
        status.endpoint == there.to_string() && both(net, "direct")
    };
    let took = talk_until(&mut net, 3_000, moved);
    assert!(took.is_some_and(|ms| ms <= 1_000), "{took:?}");
}

#[test]
fn without_punching_nothing_is_punched_and_what_needs_no_hole_works() {
    let mut net = strangers(config(1), config(2));
    for id in [1, 2] {
        net.engine(id).set_punching(false);
    }
    talk_until(&mut net, 10_000, |_| false);
    assert!(both(&mut net, "direct"), "neighbours need no hole");
    for id in [1, 2] {
        let sent = net.sent_by(id);
        assert!(!sent.iter().any(|kind| kind == "PILP" || kind == "beacon 3"), "{sent:?}");
    }
    // A punch command is refused.
    let mut bytes = Vec::new();
    pilot_proto::wire::beacon::Message::PunchCommand(addr_of(9)).emit(&mut bytes);
    net.inject(beacon_addr(), addr_of(1), &bytes);
    net.run(SECOND);
    assert!(net.drops(1).contains(&("punch_refused", 1)), "{:?}", net.drops(1));
}

#[test]
fn an_idle_peer_is_left_alone() {
    let mut net = strangers(config(1), config(2));
    assert!(talk_until(&mut net, 1_000, |net| both(net, "direct")).is_some());
    // Two minutes later it counts as idle.
    net.run(130 * SECOND);
    net.log.clear();
    net.run(100 * SECOND);
    let to_peer = net.log.iter().filter(|s| s.to == addr_of(1) && s.from == addr_of(2)).count()
        + net.log.iter().filter(|s| s.to == addr_of(2) && s.from == addr_of(1)).count();
    assert_eq!(to_peer, 0);
}

#[test]
fn a_direct_path_in_use_is_quiet_when_nothing_is_sent() {
    let mut net = strangers(config(1), config(2));
    net.engine(2).listen(80);
    let now = net.now;
    net.engine(1).dial(now, Addr::backbone(2), 80).unwrap();
    net.run(10 * SECOND);
    assert!(both(&mut net, "direct"));
    net.log.clear();
    net.run(60 * SECOND);
    let between = net.log.iter().filter(|s| s.to != beacon_addr() && s.from != beacon_addr()).count();
    assert!(between <= 12, "keepalives, and one look for something better: {between}");
    let mut buf = Vec::new();
    let now = net.now;
    assert!(matches!(net.engine(1).poll_output(now, &mut buf), Output::Timeout(_)));
}

/// Both nodes are behind NATs that forget what was silent for twelve seconds.
#[test]
fn a_path_that_nats_forget_early_is_lost_at_first_and_then_kept_open() {
    let mut net = strangers(config(1), config(2));
    net.engine(2).listen(80);
    let now = net.now;
    let conn = net.engine(1).dial(now, Addr::backbone(2), 80).unwrap();
    let mut left = std::collections::BTreeMap::new();
    net.filter = Box::new(move |sent| {
        if sent.to == beacon_addr() || sent.from == beacon_addr() {
            return true;
        }
        left.insert(sent.from, sent.at);
        left.get(&sent.to).is_some_and(|at| sent.at - *at < 12 * SECOND)
    });
    net.run(10 * SECOND);
    assert!(both(&mut net, "direct"));
    let mut relayed = Vec::new();
    for round in 0..20 {
        // An application that says something now and then, fifteen seconds after a keepalive of 25 s each.
        let now = net.now;
        net.engine(1).write(now, conn, bytes::Bytes::from_static(b"tick")).unwrap();
        for _ in 0..650 {
            net.run(ms(100));
            let away = [path(&mut net, 1, 2), path(&mut net, 2, 1)].iter().any(|path| *path != "direct");
            relayed.extend(away.then_some(round));
        }
    }
    println!(
        "relayed, tenths of a second: {} in rounds {:?}",
        relayed.len(),
        relayed.iter().collect::<std::collections::BTreeSet<_>>()
    );
    assert!(!relayed.is_empty(), "they do forget");
    assert!(relayed.iter().all(|round| *round < 10), "{relayed:?}");
}

/// A laptop is closed for ten minutes in the middle of a transfer, whichever side it is.
#[test]
fn streams_outlive_ten_minutes_of_sleep_and_go_on_within_three_seconds() {
    let write = |net: &mut Net, conn, n: usize| {
        let now = net.clock(1);
        assert_eq!(net.engine(1).write(now, conn, bytes::Bytes::from(vec![7; n])), Ok(bytes::Bytes::new()));
    };
    let read = |net: &mut Net, conn| {
        let bytes = std::iter::from_fn(|| net.engine(2).read(conn)).map(|bytes| bytes.len()).sum::<usize>();
        let now = net.clock(2);
        net.engine(2).consumed(now, conn, bytes);
        bytes
    };
    for (sleeper, stands_still, relayed, busy) in
        (0..16).map(|n: u8| (1 + NodeId::from(n & 1), n & 2 > 0, n & 4 > 0, n & 8 > 0))
    {
        let case = format!(
            "node {sleeper} sleeps, its clock stands still: {stands_still}, relayed: {relayed}, busy: {busy}"
        );
        let relay = |n| pilot_proto::engine::Config { relay_only: relayed, ..config(n) };
        let mut net = strangers(relay(1), relay(2));
        net.engine(2).listen(80);
        let now = net.now;
        let a = net.engine(1).dial(now, Addr::backbone(2), 80).unwrap();
        net.run(5 * SECOND);
        let b = net.take_events(2).into_iter().find_map(|event| match event {
            Event::Stream(StreamEvent::Incoming { conn, .. }) => Some(conn),
            _ => None,
        });
        let b = b.expect("accepted");
        write(&mut net, a, 100_000);
        net.run(5 * SECOND);
        assert_eq!(read(&mut net, b), 100_000);
        if busy {
            // Half of it is under way when the lid closes.
            write(&mut net, a, 1_000_000);
            net.run(ms(60));
        }
        let before = read(&mut net, b);
        net.suspend(sleeper, 600 * SECOND, stands_still);
        let end = net.now;
        write(&mut net, a, 1_000);
        let wanted = if busy { 1_001_000 } else { 1_000 };
        let (mut got, mut first) = (before, None);
        while got < wanted && net.now - end < 60 * SECOND {
            net.run(ms(10));
            got += read(&mut net, b);
            first = first.or((got > before).then(|| net.now - end));
        }
        println!("{case}: {got} bytes, the first after {first:?}, the last after {:?}", net.now - end);
        assert_eq!(got, wanted, "{case}");
        assert!(first.is_some_and(|first| first < 3 * SECOND), "{case}: {first:?}");
    }
}

/// Peers of the node that has many.
const MANY: NodeId = 100;

/// Packets the node sent to peers, and to its beacon, and how often its timers ran, while it was left alone for so long.
fn cost(net: &mut Net, time: std::time::Duration) -> (usize, usize, usize) {
    net.log.clear();
    let woken = net.hosts[&1].wakes;
    net.run(time);
    let sent = |to_beacon: bool| {
        let own = net.log.iter().filter(|s| s.from == addr_of(1));
        own.filter(|s| (s.to == beacon_addr()) == to_beacon).count()
    };
    (sent(false), sent(true), (net.hosts[&1].wakes - woken) as usize)
}

#[test]
fn a_hundred_idle_peers_cost_what_keeps_their_nat_mappings_and_later_nothing() {
    let mut net = Net::new();
    for id in 1..=MANY + 1 {
        net.add(id, config(id as u8));
    }
    let mut net = net.with_beacon();
    let now = net.now;
    for id in 2..=MANY + 1 {
        for (id, other) in [(1, id), (id, 1)] {
            let key = *identity(other as u8).public_key();
            net.engine(id).set_peer_key(now, other, Some(key));
            net.engine(id).set_local_candidates(now, vec![Candidate::new(addr_of(id), CandidateKind::Lan)]);
        }
        net.engine(id).listen(80);
    }
    let conns: Vec<_> =
        (2..=MANY + 1).map(|id| net.engine(1).dial(now, Addr::backbone(id), 80).unwrap()).collect();
    net.run(60 * SECOND);
    for id in 2..=MANY + 1 {
        assert_eq!(path(&mut net, 1, id), "direct");
    }
    let (peers, beacon, woken) = cost(&mut net, 60 * SECOND);
    println!(
        "100 peers with an idle stream each, a minute: {peers} packets to them, {beacon} to the beacon, {woken} timers"
    );
    // A keepalive of 25 s from each side and its answer, and one look for something better a minute.
    assert!((1..=10 * MANY as usize).contains(&peers), "{peers}");
    assert!(beacon <= 6, "{beacon}");
    assert!(woken <= 10 * MANY as usize, "{woken}");

    let now = net.now;
    conns.into_iter().for_each(|conn| net.engine(1).close(now, conn));
    net.run(150 * SECOND);
    let (peers, beacon, woken) = cost(&mut net, 60 * SECOND);
    println!(
        "100 peers without streams, a minute: {peers} packets to them, {beacon} to the beacon, {woken} timers"
    );
    assert_eq!(peers, 0);
    assert!(beacon <= 6 && woken <= 20, "{beacon} {woken}");
    net.run(300 * SECOND);
    assert_eq!(net.engine(1).peers().len(), 0, "a peer that nobody uses is forgotten");
}
