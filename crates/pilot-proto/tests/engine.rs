//! Streams through engines, timers, queues and batches.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use bytes::Bytes;
use pilot_proto::engine::{Event, Output, Route, SendError};
use pilot_proto::path::Candidate;
use pilot_proto::stream::{ConnId, DialError, StreamEvent};
use pilot_proto::wire::frame::PILS_OVERHEAD;
use pilot_proto::{Addr, NodeId};
use std::time::Duration;
use support::*;

fn dial(net: &mut Net, from: NodeId, to: NodeId, port: u16) -> ConnId {
    let now = net.now;
    net.engine(from).dial(now, Addr::backbone(to), port).unwrap()
}

fn stream_events(net: &mut Net, id: NodeId) -> Vec<StreamEvent> {
    let events = net.take_events(id).into_iter();
    events.filter_map(|e| if let Event::Stream(e) = e { Some(e) } else { None }).collect()
}

fn connect(net: &mut Net, from: NodeId, to: NodeId) -> (ConnId, ConnId) {
    let ours = dial(net, from, to, 7);
    for _ in 0..20 {
        net.run(ms(50));
        let incoming = stream_events(net, to).into_iter().find_map(|e| match e {
            StreamEvent::Incoming { conn, .. } => Some(conn),
            _ => None,
        });
        if let Some(theirs) = incoming {
            net.run(ms(50));
            assert!(stream_events(net, from).contains(&StreamEvent::Connected(ours)));
            return (ours, theirs);
        }
    }
    panic!("no connection within a second: {:?} {:?}", net.drops(from), net.drops(to));
}

/// Sends `data` from one end and reads it at the other; returns the time it took.
fn transfer(net: &mut Net, (from, a): (NodeId, ConnId), (to, b): (NodeId, ConnId), data: &[u8]) -> Duration {
    let start = net.now;
    let mut rest = Bytes::copy_from_slice(data);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let now = net.now;
        if !rest.is_empty() {
            rest = net.engine(from).write(now, a, rest).unwrap();
        }
        net.run(ms(5));
        let now = net.now;
        while let Some(bytes) = net.engine(to).read(b) {
            net.engine(to).consumed(now, b, bytes.len());
            got.extend_from_slice(&bytes);
        }
        assert!(net.now - start < Duration::from_secs(60), "stuck at {} bytes", got.len());
    }
    assert!(got == data, "the bytes arrive as they were sent");
    net.now - start
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn a_dial_to_a_new_peer_takes_two_round_trips_and_carries_data_both_ways() {
    let mut net = Net::pair();
    net.engine(2).listen(7);
    let conn = dial(&mut net, 1, 2, 7);
    net.run(ms(40));
    assert!(stream_events(&mut net, 1).contains(&StreamEvent::Connected(conn)), "key exchange, then SYN");
    let Some(StreamEvent::Incoming { conn: theirs, .. }) = stream_events(&mut net, 2).into_iter().next()
    else {
        panic!()
    };
    transfer(&mut net, (1, conn), (2, theirs), &noise(300_000));
    transfer(&mut net, (2, theirs), (1, conn), &noise(300_000));
}

#[test]
fn streams_survive_the_restart_of_neither_and_the_loss_of_one_session() {
    let mut net = Net::plain_pair();
    net.engine(2).listen(7);
    let (a, b) = connect(&mut net, 1, 2);
    transfer(&mut net, (1, a), (2, b), &noise(10_000));
    // Node 2 forgets the tunnel but keeps its connections: what node 1 sends is unreadable.
    net.run(4 * SECOND);
    for _ in 0..8 {
        // Frames nobody can open: the fifth ends the session, which is older than 3 s.
        let mut forged =
            net.log.iter().rev().find(|s| s.from == addr_of(1) && s.kind() == "PILS").unwrap().clone();
        *forged.bytes.last_mut().unwrap() ^= 1;
        net.inject(addr_of(1), addr_of(2), &forged.bytes);
    }
    net.run(ms(15));
    transfer(&mut net, (1, a), (2, b), &noise(200_000));
    transfer(&mut net, (2, b), (1, a), &noise(200_000));
}

#[test]
fn a_stream_moves_from_relay_to_direct_and_back_without_a_gap() {
    let mut net = Net::pair_with_beacon();
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    net.engine(2).listen(7);
    let (a, b) = connect(&mut net, 1, 2);
    assert_eq!(net.relayed(1, 2), Some(true));
    transfer(&mut net, (1, a), (2, b), &noise(100_000));
    net.filter = Box::new(|_| true);
    let mut direct_at = None;
    for n in 0..200 {
        transfer(&mut net, (1, a), (2, b), &noise(5_000));
        net.run(ms(100));
        if net.relayed(1, 2) == Some(false) && net.relayed(2, 1) == Some(false) {
            direct_at = Some(n);
            break;
        }
    }
    assert!(direct_at.is_some(), "direct within 20 s");
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    let took = transfer(&mut net, (1, a), (2, b), &noise(50_000));
    assert!(took < Duration::from_secs(10), "outage of {took:?}");
}

#[test]
fn a_call_through_the_relay_needs_no_extra_timer() {
    let mut net = Net::pair_with_beacon();
    net.filter = Box::new(|s| s.from == beacon_addr() || s.to == beacon_addr());
    net.engine(2).listen(7);
    let conn = dial(&mut net, 1, 2, 7);
    // Two hops each way, 10 ms each: PILA there and back, SYN there and back.
    net.run(ms(80));
    assert!(stream_events(&mut net, 1).contains(&StreamEvent::Connected(conn)));
}

#[test]
fn dialling_oneself_works_without_a_network() {
    let mut net = Net::pair();
    net.engine(1).listen(7);
    let (a, b) = {
        let conn = dial(&mut net, 1, 1, 7);
        net.run(ms(1));
        let events = stream_events(&mut net, 1);
        assert!(events.contains(&StreamEvent::Connected(conn)), "{events:?}");
        let incoming = events.iter().find_map(|e| match e {
            StreamEvent::Incoming { conn, .. } => Some(*conn),
            _ => None,
        });
        (conn, incoming.unwrap())
    };
    transfer(&mut net, (1, a), (1, b), &noise(3_000_000));
    assert!(net.log.is_empty());
}

#[test]
fn dials_fail_with_the_cause() {
    let mut net = Net::pair();
    let refused = dial(&mut net, 1, 2, 99);
    net.run(SECOND);
    assert!(stream_events(&mut net, 1).contains(&StreamEvent::DialFailed(refused, DialError::Refused)));
    let lost = dial(&mut net, 1, 55, 7);
    net.run(ms(1));
    let reason = "node 55 not found".to_owned();
    let expected = StreamEvent::DialFailed(lost, DialError::Resolve { node: 55, reason });
    assert!(stream_events(&mut net, 1).contains(&expected));
    net.routes.insert(56, Route { direct: vec![Candidate::guessed(addr_of(56))], relay_only: false });
    let dead = dial(&mut net, 1, 56, 7);
    net.run(Duration::from_secs(10));
    let error = DialError::KeyExchange { node: 56, tried: " at 10.0.0.56:4000".to_owned() };
    assert!(stream_events(&mut net, 1).contains(&StreamEvent::DialFailed(dead, error)));
}

#[test]
fn exchange_retries_are_eager_at_first_then_every_four_seconds_then_given_up() {
    let mut net = Net::pair();
    net.routes.insert(56, Route { direct: vec![Candidate::guessed(addr_of(56))], relay_only: false });
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(56), 1, b"x").unwrap();
    net.run(Duration::from_millis(23_740));
    let at = [0, 250, 750, 1_750, 3_750, 7_750, 11_750, 15_750, 19_750];
    assert_eq!(net.times(1, "PILA"), at);
    assert_eq!(net.times(1, "PILK"), at[1..]);
    let gave_up = |e: &Event| matches!(e, Event::Publish("tunnel.rekey_gave_up", _));
    assert!(!net.take_events(1).iter().any(gave_up));
    net.run(ms(20));
    assert!(net.take_events(1).iter().any(gave_up));
    let now = net.now;
    let refused = net.engine(1).send_datagram(now, Addr::backbone(56), 1, b"x");
    assert_eq!(refused, Err(SendError::PendingFull(56)), "cooling down");
    net.run(5 * SECOND);
    let now = net.now;
    assert_eq!(net.engine(1).send_datagram(now, Addr::backbone(56), 1, b"x"), Ok(()));
}

#[test]
fn a_private_node_takes_streams_of_the_trusted_and_replies_of_the_contacted() {
    let mut net = Net::new();
    let mut private = config(2);
    private.public = false;
    net.add(1, config(1));
    net.add(2, private);
    for port in [7, 444, 1001] {
        net.engine(2).listen(port);
    }
    let knocked =
        |net: &mut Net| net.take_events(2).into_iter().filter(|e| matches!(e, Event::Knock { .. })).count();
    dial(&mut net, 1, 2, 7);
    net.run(ms(500));
    assert_eq!(net.engine(2).drops().untrusted_syn, 2, "the SYN and its repetition");
    assert_eq!(knocked(&mut net), 1);
    // Node 2 contacts node 1: for five minutes ports 444 and 1001 answer, others do not.
    let now = net.now;
    net.engine(2).open_reply_window(now, 1);
    let (shut, open) = (dial(&mut net, 1, 2, 7), dial(&mut net, 1, 2, 1001));
    net.run(SECOND);
    let events = stream_events(&mut net, 1);
    assert!(
        events.contains(&StreamEvent::Connected(open)) && !events.contains(&StreamEvent::Connected(shut))
    );
    net.engine(2).set_trusted(1, true);
    let trusted = dial(&mut net, 1, 2, 7);
    net.run(SECOND);
    assert!(stream_events(&mut net, 1).contains(&StreamEvent::Connected(trusted)));
    net.engine(2).set_trusted(1, false);
    net.run(Duration::from_secs(300));
    let late = dial(&mut net, 1, 2, 1001);
    net.run(SECOND);
    assert!(!stream_events(&mut net, 1).contains(&StreamEvent::Connected(late)));
}

#[test]
fn keepalives_every_25_s_while_in_use_silence_when_idle_removal_after_five_minutes() {
    let mut net = Net::plain_pair();
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 1, b"x").unwrap();
    net.run(Duration::from_secs(130));
    // Sent at 20 ms; keepalives until the last application traffic is two minutes old.
    assert_eq!(net.times(1, "PILS"), [20, 25_020, 50_020, 75_020, 100_020]);
    net.log.clear();
    net.run(Duration::from_secs(269));
    assert_eq!(net.engine(1).peers().len(), 1);
    assert!(net.log.is_empty(), "{:?}", net.log);
    net.run(2 * SECOND);
    assert!(net.engine(1).peers().is_empty() && net.engine(2).peers().is_empty());
}

#[test]
fn an_idle_node_wakes_only_to_discover() {
    let mut net = Net::pair_with_beacon();
    let before = net.hosts[&1].wakes;
    net.log.clear();
    net.run(Duration::from_secs(250));
    assert_eq!(net.hosts[&1].wakes - before, 10);
    assert_eq!(net.sent_by(1), ["beacon 1"; 10]);
}

#[test]
fn discover_is_sent_at_once_and_tells_the_observed_address() {
    let mut net = Net::pair();
    net.beacon_up = true;
    let now = net.now;
    net.engine(1).set_beacon(now, Some(beacon_addr()));
    net.run(ms(50));
    assert!(net.take_events(1).contains(&Event::Observed(addr_of(1))));
    net.run(Duration::from_secs(60));
    assert_eq!(net.times(1, "beacon 1"), [0, 25_000, 50_000]);
}

#[test]
fn a_silent_peer_in_use_is_probed_three_times_and_then_reset() {
    let mut net = Net::pair();
    net.engine(2).listen(7);
    connect(&mut net, 1, 2);
    net.filter = Box::new(|_| false);
    net.take_events(1);
    net.run(Duration::from_secs(100));
    let suspect = |e: &Event| match e {
        Event::Publish("tunnel.path_suspect", fields) => Some(fields["probes_sent"].clone()),
        _ => None,
    };
    let suspected: Vec<_> = net.take_events(1).iter().filter_map(suspect).collect();
    assert_eq!(suspected, [serde_json::json!(3)]);
    net.filter = Box::new(|_| true);
    net.run(10 * SECOND);
    assert!(net.engine(1).peers()[0].encrypted, "agreed anew as soon as the way is free");
}

#[test]
fn queues_for_unfinished_exchanges_refuse_the_newest() {
    let mut net = Net::pair();
    net.routes.insert(56, Route { direct: vec![Candidate::guessed(addr_of(56))], relay_only: false });
    let now = net.now;
    for _ in 0..64 {
        assert_eq!(net.engine(1).send_datagram(now, Addr::backbone(56), 1, b"x"), Ok(()));
    }
    let full = net.engine(1).send_datagram(now, Addr::backbone(56), 1, b"x");
    assert_eq!(full, Err(SendError::PendingFull(56)));
    net.directory = false;
    for node in 1_000..1_255 {
        assert_eq!(net.engine(1).send_datagram(now, Addr::backbone(node), 1, b"x"), Ok(()));
    }
    let many = net.engine(1).send_datagram(now, Addr::backbone(2_000), 1, b"x");
    assert_eq!(many, Err(SendError::TooManyPending));
    net.run(Duration::from_secs(121));
    assert_eq!(net.engine(1).drops().pending_expired, 64 + 255);
    let now = net.now;
    assert_eq!(net.engine(1).send_datagram(now, Addr::backbone(2_000), 1, b"x"), Ok(()));
}

#[test]
fn datagrams_are_refused_by_size_and_address() {
    let mut net = Net::pair();
    let now = net.now;
    let engine = net.engine(1);
    let everybody = Addr { network: 5, node: Addr::BROADCAST_NODE };
    assert_eq!(engine.send_datagram(now, everybody, 1, b"x"), Err(SendError::Broadcast));
    let to = Addr::backbone(2);
    assert_eq!(engine.send_datagram(now, to, 1, &vec![0; 65_536]), Err(SendError::TooLarge(65_536)));
    assert_eq!(engine.send_datagram(now, to, 1, &vec![0; 65_438]), Err(SendError::TooLong(65_438, 65_437)));
    assert_eq!(engine.send_datagram(now, to, 1, &vec![0; 65_437]), Ok(()));
    net.run(SECOND);
    assert_eq!(net.datagrams(2).len(), 1);
}

#[test]
fn a_bulk_write_leaves_in_batches_of_equal_segments_without_new_allocations() {
    let mut net = Net::pair();
    net.filter = Box::new(|sent| sent.bytes.len() <= 1472);
    net.engine(2).listen(7);
    let (a, b) = connect(&mut net, 1, 2);
    transfer(&mut net, (1, a), (2, b), &noise(500_000));
    net.run(SECOND);
    let now = net.now;
    net.engine(1).write(now, a, Bytes::from(noise(100_000))).unwrap();
    let mut buf = Vec::with_capacity(70_000);
    let mut batches = Vec::new();
    while let Output::Transmit(t) = net.engine(1).poll_output(now, &mut buf) {
        assert_eq!(t.to, addr_of(2));
        assert!(t.len <= 65_507 && t.len == buf.len() && buf.capacity() == 70_000);
        if let Some(size) = t.segment_size {
            assert!(t.len > size);
            for segment in buf.chunks(size) {
                assert!(segment.starts_with(b"PILU") && segment.len() > PILS_OVERHEAD);
            }
        }
        batches.push((t.len, t.segment_size));
        for bytes in buf.chunks(t.segment_size.unwrap_or(t.len)) {
            net.inject(addr_of(1), addr_of(2), bytes);
        }
    }
    let segments: usize = batches.iter().map(|(len, size)| size.map_or(1, |s| len.div_ceil(s))).sum();
    assert!(segments >= 8, "{batches:?}");
    assert!(batches.len() <= segments / 4 + 2, "{batches:?}");
    net.run(SECOND);
    let mut got = 0;
    while let Some(bytes) = net.engine(2).read(b) {
        got += bytes.len();
    }
    assert!(got > 0);
    assert!(net.drops(2).iter().all(|(cause, _)| *cause == "duplicate_exchange"), "{:?}", net.drops(2));
}

#[test]
fn a_batch_never_exceeds_what_the_socket_takes() {
    let mut net = Net::new();
    let mut small = config(1);
    small.max_segments = 4;
    net.add(1, small);
    net.add(2, config(2));
    net.engine(2).listen(7);
    let (a, _) = connect(&mut net, 1, 2);
    let now = net.now;
    net.engine(1).write(now, a, Bytes::from(noise(50_000))).unwrap();
    let mut buf = Vec::new();
    let mut most = 0;
    while let Output::Transmit(t) = net.engine(1).poll_output(now, &mut buf) {
        most = most.max(t.segment_size.map_or(1, |size| t.len.div_ceil(size)));
    }
    assert_eq!(most, 4);
}

#[test]
fn two_streams_to_different_peers_share_the_socket_and_lose_nothing() {
    let mut net = Net::pair();
    net.add(3, config(3));
    net.engine(2).listen(7);
    net.engine(3).listen(7);
    let (a2, b2) = connect(&mut net, 1, 2);
    let (a3, b3) = connect(&mut net, 1, 3);
    let data = noise(200_000);
    let now = net.now;
    assert!(net.engine(1).write(now, a2, Bytes::from(data.clone())).unwrap().is_empty());
    assert!(net.engine(1).write(now, a3, Bytes::from(data.clone())).unwrap().is_empty());
    let mut got = [Vec::new(), Vec::new()];
    for _ in 0..200 {
        net.run(ms(10));
        let now = net.now;
        for (n, (id, conn)) in [(2, b2), (3, b3)].into_iter().enumerate() {
            while let Some(bytes) = net.engine(id).read(conn) {
                net.engine(id).consumed(now, conn, bytes.len());
                got[n].extend_from_slice(&bytes);
            }
        }
    }
    assert!(got[0] == data && got[1] == data);
}

#[test]
fn loopback_peers_get_larger_segments() {
    let mut net = Net::new();
    for id in [1u32, 2] {
        let mut cfg = config(id as u8);
        cfg.loopback_payload = 16_000;
        net.add(id, cfg);
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 4000 + id as u16));
        net.hosts.get_mut(&id).unwrap().addr = addr;
        net.routes.insert(id, Route { direct: vec![Candidate::guessed(addr)], relay_only: false });
    }
    net.engine(2).listen(7);
    let (a, b) = connect(&mut net, 1, 2);
    transfer(&mut net, (1, a), (2, b), &noise(500_000));
    let largest = net.log.iter().map(|s| s.bytes.len()).max().unwrap();
    assert_eq!(largest, 16_000 + 34 + 36);
}

#[test]
fn a_new_node_id_ends_sessions_and_is_announced_to_the_beacon() {
    let mut net = Net::pair_with_beacon();
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 1, b"x").unwrap();
    net.run(SECOND);
    let now = net.now;
    net.engine(1).set_identity(now, identity(1), 7);
    assert!(net.engine(1).peers().is_empty());
    net.log.clear();
    net.run(ms(1));
    assert_eq!(net.log[0].bytes, [1, 0, 0, 0, 7]);
}
