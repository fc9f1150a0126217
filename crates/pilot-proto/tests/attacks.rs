//! What strangers can and cannot do: every refused frame is counted under its exact cause and changes nothing.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod scripted;
mod support;

use pilot_proto::Addr;
use pilot_proto::crypto::TunnelSecret;
use pilot_proto::engine::{Engine, Event, Output};
use pilot_proto::path::Candidate;
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::frame::{self, PILS_HEADER_LEN};
use pilot_proto::wire::packet::{Header, protocol};
use scripted::{Scripted, connected, endpoint, give, world};
use std::net::SocketAddr;
use std::time::Instant;
use support::*;

#[test]
fn noise_is_dropped_by_kind() {
    let mut net = world();
    let from = addr_of(9);
    for bytes in [&b""[..], b"PIL", b"HTTP/1.1 200", &[0x50; 100]] {
        give(&mut net, from, bytes);
    }
    for (magic, len) in [("PILA", 135), ("PILK", 39), ("PILS", 35), ("PILT", 37)] {
        let mut bytes = magic.as_bytes().to_vec();
        bytes.resize(len, 0);
        give(&mut net, from, &bytes);
    }
    give(&mut net, from, b"PILP");
    give(&mut net, from, &[b"PILT".as_slice(), &[0; 34]].concat());
    assert_eq!(net.drops(1), [("unknown_frame", 4), ("short_frame", 4), ("plaintext_refused", 1)]);
    assert!(net.sent_by(1).is_empty());
}

/// A restarted process owns the port its peers still send to before the registry has said who it is.
#[test]
fn before_it_has_its_number_a_node_answers_no_peer_and_asks_nothing_about_one() {
    let mut net = world();
    let peer = Scripted::new(9, 1, net.now);
    let now = net.now;
    net.engine(1).set_identity(now, identity(1), 0);
    let mut sealed = frame::pilk(9, peer.secret.public_key()).to_vec();
    sealed[..4].copy_from_slice(b"PILS");
    for bytes in [&peer.pila()[..], &frame::pilk(9, peer.secret.public_key()), &sealed, b"PILP"] {
        give(&mut net, addr_of(9), bytes);
    }
    assert_eq!(net.drops(1), [("unregistered", 4)]);
    assert_eq!(net.take_events(1), []);
    assert!(net.sent_by(1).is_empty());
    let now = net.now;
    net.engine(1).set_identity(now, identity(1), 1);
    give(&mut net, addr_of(9), &peer.pila());
    assert!(net.take_events(1).contains(&Event::NeedKey(9)), "from then on it does");
    assert!(net.sent_by(1).contains(&"PILA".to_owned()), "{:?}", net.sent_by(1));
}

#[test]
fn only_the_beacon_may_speak_as_the_beacon() {
    let mut net = world();
    let now = net.now;
    net.engine(1).set_beacon(now, Some(beacon_addr()));
    net.run(ms(50));
    net.log.clear();
    let command = |at| {
        let mut bytes = Vec::new();
        Message::PunchCommand(at).emit(&mut bytes);
        bytes
    };
    let stranger = SocketAddr::from(([10, 9, 9, 9], 9002));
    for bytes in [
        &command(addr_of(77))[..],
        &[0x0A, 1],
        &[0x06, 0, 0, 0, 9, b'P', b'I', b'L', b'P'],
        &[2, 4, 1, 1, 1, 1, 0, 9],
    ] {
        give(&mut net, stranger, bytes);
    }
    assert_eq!(net.drops(1), [("not_the_beacon", 4)]);
    assert!(net.log.iter().all(|s| s.from != addr_of(1)));
    // The last repetition of the Discover goes out after 1.5 s.
    net.run(4 * SECOND);
    give(&mut net, beacon_addr(), &[2, 4, 1, 1, 1, 1, 0, 9]);
    assert_eq!(net.engine(1).drops().unasked_discover_reply, 1, "nobody asked within 2 s");
    give(&mut net, beacon_addr(), &[0x0A, 1]);
    give(&mut net, beacon_addr(), &[0x0A, 2]);
    give(&mut net, beacon_addr(), &[0x06, 0, 0, 0, 9]);
    assert_eq!(net.take_events(1).into_iter().filter(|e| *e == Event::Notified).count(), 1);
    assert_eq!(net.engine(1).drops().bad_beacon_message, 1);
    assert_eq!(net.engine(1).drops().empty_relay, 1);
    give(&mut net, beacon_addr(), &command(addr_of(77)));
    net.run(ms(1));
    assert_eq!(net.log.iter().filter(|s| s.to == addr_of(77) && s.bytes == b"PILP").count(), 3);
}

#[test]
fn key_exchanges_are_refused_for_the_exact_reason() {
    let mut net = world();
    let peer = Scripted::new(9, 1, net.now);
    let from = |n: u8| SocketAddr::from(([10, 1, 1, n], 5));
    let mut bad_signature = peer.pila();
    bad_signature[135] ^= 1;
    give(&mut net, from(1), &bad_signature);
    assert_eq!(net.drops(1), [("bad_signature", 1)]);

    let mut other_key = peer.pila();
    other_key[40..72].copy_from_slice(identity(8).public_key());
    give(&mut net, from(2), &other_key);
    assert_eq!(net.drops(1), [("key_mismatch", 1), ("bad_signature", 1)]);
    let asked = net.take_events(1).into_iter().filter(|e| *e == Event::NeedKey(9)).count();
    assert_eq!(asked, 2, "once for the first frame, once more because the key may have been rotated");
    give(&mut net, from(2), &other_key);
    assert!(!net.take_events(1).contains(&Event::NeedKey(9)), "not again within 3 s");

    let mut unknown = peer.pila();
    unknown[7] = 10;
    give(&mut net, from(3), &unknown);
    give(&mut net, from(4), &unknown);
    assert_eq!(net.engine(1).drops().key_unknown, 2);
    let asked = net.take_events(1).into_iter().filter(|e| *e == Event::NeedKey(10)).count();
    assert_eq!(asked, 1, "a failed lookup is remembered");
    net.run(3 * SECOND);
    give(&mut net, from(5), &unknown);
    assert!(net.take_events(1).contains(&Event::NeedKey(10)), "but only for 3 s");

    let mut zero = peer.pila();
    zero[8..40].fill(0);
    let signature = identity(9).sign(&frame::pila_signed(9, &[0; 32]));
    zero[72..].copy_from_slice(&signature);
    give(&mut net, from(6), &zero);
    assert_eq!(net.engine(1).drops().low_order_key, 1);

    let mut own = peer.pila();
    own[7] = 1;
    give(&mut net, from(7), &own);
    assert_eq!(net.engine(1).drops().own_id, 1);
    give(&mut net, from(8), &frame::pilk(11, peer.secret.public_key()));
    assert_eq!(net.engine(1).drops().anonymous_refused, 1);
    assert!(net.engine(1).peers().is_empty());
    assert!(net.sent_by(1).is_empty());
}

#[test]
fn five_key_exchange_frames_a_second_are_taken_from_one_source() {
    let (mut net, peer) = connected();
    net.run(SECOND);
    for _ in 0..20 {
        net.inject(addr_of(9), addr_of(1), &peer.pilk());
    }
    net.run(ms(11));
    assert_eq!(net.sent_by(1), ["PILA"; 5]);
    assert_eq!(net.drops(1), [("rate_limited_direct", 15)]);

    let now = net.now;
    net.engine(1).set_beacon(now, Some(beacon_addr()));
    for sender in [9u32, 9, 9, 9, 9, 9, 9, 10] {
        let mut bytes = Vec::new();
        Message::RelayDeliver { from: sender, frame: &peer.pilk() }.emit(&mut bytes);
        net.inject(beacon_addr(), addr_of(1), &bytes);
    }
    net.run(ms(11));
    assert_eq!(net.engine(1).drops().rate_limited_relay, 3, "a peer's own budget, whoever the relay names");
}

#[test]
fn a_registered_stranger_that_asks_gets_the_key_each_time_and_nothing_is_remembered() {
    let mut net = world();
    let peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pilk());
    net.run(9 * SECOND);
    assert_eq!(net.times(1, "PILA"), [10], "nothing is repeated to somebody who may not exist");
    assert!(net.engine(1).peers().is_empty());
    give(&mut net, addr_of(9), &peer.pilk());
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA", "PILA"]);
}

#[test]
fn a_key_request_under_a_peers_id_gets_an_answer_and_changes_nothing() {
    let (mut net, mut peer) = connected();
    give(&mut net, addr_of(66), &peer.pilk());
    net.run(40 * SECOND);
    let answers: Vec<_> = net.log.iter().filter(|s| s.from == addr_of(1) && s.kind() == "PILA").collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].to, addr_of(66));
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
    let gave_up = |e: &Event| matches!(e, Event::Publish("tunnel.rekey_gave_up", _));
    assert!(!net.take_events(1).iter().any(gave_up), "no exchange was under way");
    let frame = peer.datagram(b"still");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"still"]);
}

#[test]
fn a_key_request_of_a_node_we_dial_does_not_slow_the_dial_down() {
    let mut net = world();
    net.routes.insert(
        9,
        pilot_proto::engine::Route { direct: vec![Candidate::guessed(addr_of(9))], relay_only: false },
    );
    let peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pilk());
    net.run(SECOND);
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(9), 1, b"x").unwrap();
    net.run(SECOND);
    assert_eq!(net.times(1, "PILA"), [10, 1_010, 1_260, 1_760]);
}

#[test]
fn forged_replayed_and_old_packets_are_counted_and_change_nothing() {
    let (mut net, mut peer) = connected();
    let elsewhere = addr_of(66);
    let first = peer.datagram(b"1");
    give(&mut net, addr_of(9), &first);
    let second = peer.datagram(b"2");
    give(&mut net, addr_of(9), &second);
    give(&mut net, elsewhere, &second);
    let mut forged = peer.datagram(b"3");
    let last = forged.len() - 1;
    forged[last] ^= 1;
    give(&mut net, elsewhere, &forged);
    assert_eq!(net.drops(1), [("decrypt_failed", 1), ("replayed", 1)]);
    for _ in 0..300 {
        peer.datagram(b"lost");
    }
    let ahead = peer.datagram(b"4");
    give(&mut net, addr_of(9), &ahead);
    give(&mut net, elsewhere, &first);
    assert_eq!(net.drops(1), [("decrypt_failed", 1), ("replayed", 1), ("outside_window", 1)]);
    assert_eq!(net.datagrams(1), [b"1", b"2", b"4"]);
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
}

#[test]
fn a_packet_of_another_source_or_without_one_is_spoofed_except_for_the_old_keepalive() {
    let (mut net, mut peer) = connected();
    let base = Header { protocol: protocol::CONTROL, ..Header::default() };
    let keepalive = peer.seal(&base, &[]);
    give(&mut net, addr_of(9), &keepalive);
    assert!(net.drops(1).is_empty());
    let ping = peer.seal(&base, b"payload");
    give(&mut net, addr_of(9), &ping);
    let foreign = peer.seal(&Header { src: Addr::backbone(8), ..base }, &[]);
    give(&mut net, addr_of(9), &foreign);
    assert_eq!(net.drops(1), [("source_spoofed", 2)]);
    let other_network =
        Header { src: Addr { network: 5, node: 9 }, dst: Addr { network: 5, node: 0 }, ..base };
    let ping = peer.seal(&other_network, b"payload");
    give(&mut net, addr_of(9), &ping);
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILS"], "answered: only the node id counts");
    let mut bad = vec![0; PILS_HEADER_LEN];
    bad.extend_from_slice(&[0; 10]);
    assert!(peer.session.seal(9, &mut bad, 0));
    give(&mut net, addr_of(9), &bad);
    assert_eq!(net.drops(1), [("bad_packet", 1), ("source_spoofed", 2)]);
}

#[test]
fn forged_frames_never_end_a_session_and_cost_a_bounded_number_of_questions() {
    let (mut net, mut peer) = connected();
    let genuine = peer.datagram(b"before");
    give(&mut net, addr_of(9), &genuine);
    for second in 0..10 {
        for n in 0..100u8 {
            let mut forged = genuine.clone();
            let at = 20 + usize::from(n) % 40;
            forged[at] ^= 1 + n;
            net.inject(addr_of(66), addr_of(1), &forged);
        }
        net.run(SECOND);
        assert!(net.engine(1).peers()[0].encrypted, "second {second}");
    }
    assert_eq!(net.drops(1), [("decrypt_failed", 1000)]);
    // One question is a PILA and a PILK, to the peer itself and never to where the forgery came from.
    let asked = net.times(1, "PILK");
    assert!((1..=7).contains(&asked.len()) && asked.windows(2).all(|w| w[1] - w[0] >= 750), "{asked:?}");
    assert!(net.log.iter().filter(|s| s.from == addr_of(1)).all(|s| s.to == addr_of(9)));
    let frame = peer.datagram(b"after");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"before".to_vec(), b"after".to_vec()]);
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
}

#[test]
fn one_frame_under_a_new_key_makes_a_settled_session_ask_and_the_answer_replaces_it() {
    let (mut net, mut peer) = connected();
    let frame = peer.datagram(b"old");
    give(&mut net, addr_of(9), &frame);
    net.run(2 * SECOND);
    net.log.clear();
    // The peer has another tunnel key; its exchange was lost, its frames arrive.
    let mut now9 = Scripted::new(19, 1, net.now);
    let frame = now9.datagram(b"lost");
    give(&mut net, addr_of(9), &frame);
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA", "PILK"]);
    assert_eq!(net.drops(1), [("decrypt_failed", 1)]);
    give(&mut net, addr_of(9), &now9.pila());
    let frame = now9.datagram(b"new");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"old".to_vec(), b"new".to_vec()]);
}

#[test]
fn a_session_agreed_anew_refuses_what_the_one_before_has_seen() {
    let take = |net: &mut Net, peer: &mut Scripted, payload: &[u8]| {
        let frame = peer.datagram(payload);
        give(net, addr_of(9), &frame);
        frame
    };
    // The peer keeps its tunnel key; ours is a fresh one, so that recordings do not open.
    let (mut net, mut peer) = connected();
    let recorded = take(&mut net, &mut peer, b"pay 5");
    // The peer was idle and is removed:
    net.run(400 * SECOND);
    assert!(net.engine(1).peers().is_empty());
    give(&mut net, addr_of(9), &peer.pila());
    net.run(ms(1));
    peer.take_key(&net);
    assert!(net.engine(1).peers()[0].encrypted);
    give(&mut net, addr_of(66), &recorded);
    assert_eq!(net.engine(1).drops().decrypt_failed, 1);
    assert_eq!(net.datagrams(1), [b"pay 5".to_vec()], "once");
    take(&mut net, &mut peer, b"next");
    assert_eq!(net.datagrams(1), [b"next".to_vec()], "the peer itself is understood");
}

#[test]
fn replayed_frames_never_end_a_session_however_old() {
    let (mut net, mut peer) = connected();
    let one = peer.datagram(b"1");
    give(&mut net, addr_of(9), &one);
    for _ in 0..300 {
        let next = peer.datagram(b"2");
        net.inject(addr_of(9), addr_of(1), &next);
    }
    for _ in 0..4 {
        net.run(25 * SECOND);
        let alive = peer.datagram(b"3");
        give(&mut net, addr_of(9), &alive);
    }
    let last = peer.datagram(b"4");
    give(&mut net, addr_of(9), &last);
    net.log.clear();
    for _ in 0..20 {
        give(&mut net, addr_of(66), &last);
        give(&mut net, addr_of(66), &one);
    }
    assert_eq!(net.drops(1), [("replayed", 20), ("outside_window", 20)]);
    assert!(net.engine(1).peers()[0].encrypted);
    assert!(net.sent_by(1).is_empty(), "the peer sealed it, so it has the key: {:?}", net.sent_by(1));
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
}

#[test]
fn a_forged_huge_counter_poisons_nothing() {
    let (mut net, mut peer) = connected();
    let first = peer.datagram(b"1");
    give(&mut net, addr_of(9), &first);
    // The counter is the last eight bytes of the header; under the peer's own prefix and under a fresh one.
    for prefix in [None, Some([0xEE; 4])] {
        for counter in [u64::MAX, u64::MAX / 2, 1 << 32, 300] {
            let mut forged = first.clone();
            forged[12..20].copy_from_slice(&counter.to_be_bytes());
            if let Some(prefix) = prefix {
                forged[8..12].copy_from_slice(&prefix);
            }
            give(&mut net, addr_of(66), &forged);
        }
    }
    assert_eq!(net.drops(1), [("decrypt_failed", 8)]);
    for n in 2..5u8 {
        let next = peer.datagram(&[n]);
        give(&mut net, addr_of(9), &next);
    }
    assert_eq!(net.datagrams(1), [b"1".to_vec(), vec![2], vec![3], vec![4]]);
    assert_eq!(net.drops(1), [("decrypt_failed", 8)]);
}

#[test]
fn a_peer_that_derives_its_half_again_is_understood_at_once() {
    let (mut net, mut peer) = connected();
    for n in 0..5u8 {
        let frame = peer.datagram(&[n]);
        give(&mut net, addr_of(9), &frame);
    }
    let late = peer.datagram(b"late");
    // Same keys, counter from 1 under another prefix, and no word about it.
    let mut again = Scripted::with_prefix(9, 1, [0x77; 4], net.now);
    for n in 5..10u8 {
        let frame = again.datagram(&[n]);
        give(&mut net, addr_of(9), &frame);
    }
    give(&mut net, addr_of(9), &late);
    give(&mut net, addr_of(9), &late);
    assert_eq!(net.drops(1), [("old_epoch", 1)]);
    let mut expected: Vec<_> = (0..10u8).map(|n| vec![n]).collect();
    expected.push(b"late".to_vec());
    assert_eq!(net.datagrams(1), expected);
}

#[test]
fn only_fresh_packets_of_the_newest_epoch_move_a_peer() {
    let (mut net, mut peer) = connected();
    for _ in 0..2 {
        let frame = peer.datagram(b"x");
        give(&mut net, addr_of(9), &frame);
    }
    let old = peer.datagram(b"old");
    let mut again = Scripted::with_prefix(9, 1, [0x77; 4], net.now);
    let opener = again.datagram(b"opens");
    give(&mut net, addr_of(66), &opener);
    assert_eq!(
        endpoint(&mut net),
        addr_of(9).to_string(),
        "the frame that opens an epoch may be a recording"
    );
    give(&mut net, addr_of(67), &old);
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
    let next = again.datagram(b"next");
    give(&mut net, addr_of(68), &next);
    assert_eq!(endpoint(&mut net), addr_of(68).to_string());
}

#[test]
fn a_repeated_exchange_moves_nothing_and_is_answered_only_after_silence() {
    let (mut net, mut peer) = connected();
    let frame = peer.datagram(b"x");
    give(&mut net, addr_of(9), &frame);
    give(&mut net, addr_of(66), &peer.pila());
    assert_eq!(net.engine(1).drops().duplicate_exchange, 1);
    net.run(SECOND);
    give(&mut net, addr_of(66), &peer.pila());
    net.run(ms(1));
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
    assert!(net.sent_by(1).is_empty(), "heard a second ago: {:?}", net.sent_by(1));
    net.run(6 * SECOND);
    for _ in 0..3 {
        give(&mut net, addr_of(66), &peer.pila());
    }
    net.run(ms(1));
    let to_asker: Vec<_> = net.log.iter().filter(|s| s.to == addr_of(66)).map(Sent::kind).collect();
    assert_eq!(to_asker.iter().filter(|k| *k == "PILA").count(), 1, "once a second");
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
}

#[test]
fn a_recorded_exchange_of_an_earlier_process_cannot_take_a_session_over() {
    let (mut net, _) = connected();
    let recorded = Scripted::new(9, 1, net.now).pila();
    // The peer restarts with another tunnel key and is heard under it.
    net.run(SECOND);
    let mut now9 = Scripted::new(19, 1, net.now);
    give(&mut net, addr_of(9), &now9.pila());
    let frame = now9.datagram(b"new");
    give(&mut net, addr_of(9), &frame);
    give(&mut net, addr_of(66), &recorded);
    assert_eq!(net.drops(1), [("abandoned_key", 1)]);
    let frame = now9.datagram(b"still");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"new".to_vec(), b"still".to_vec()]);
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
}

#[test]
fn an_exchange_recorded_before_we_started_is_taken_back_when_the_peer_is_heard() {
    let (mut net, mut peer) = connected();
    for _ in 0..2 {
        let frame = peer.datagram(b"x");
        give(&mut net, addr_of(9), &frame);
    }
    let ancient = Scripted::new(33, 1, net.now).pila();
    give(&mut net, addr_of(66), &ancient);
    assert_eq!(endpoint(&mut net), addr_of(66).to_string(), "it looks like a restart");
    let frame = peer.datagram(b"a");
    give(&mut net, addr_of(9), &frame);
    net.run(3 * SECOND);
    let frame = peer.datagram(b"b");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"x", b"x", b"a", b"b"], "nothing is lost meanwhile");
    assert_eq!(endpoint(&mut net), addr_of(9).to_string());
    net.run(SECOND);
    give(&mut net, addr_of(66), &ancient);
    assert_eq!(net.engine(1).drops().abandoned_key, 1, "and it does not work twice");
}

#[test]
fn the_session_before_a_rekey_is_read_until_the_new_one_is_heard() {
    let (mut net, mut old) = connected();
    let frame = old.datagram(b"1");
    give(&mut net, addr_of(9), &frame);
    let in_flight = old.datagram(b"2");
    let too_late = old.datagram(b"4");
    let mut new = Scripted::new(19, 1, net.now);
    give(&mut net, addr_of(9), &new.pila());
    give(&mut net, addr_of(9), &in_flight);
    let frame = new.datagram(b"3");
    give(&mut net, addr_of(9), &frame);
    give(&mut net, addr_of(9), &too_late);
    assert_eq!(net.datagrams(1), [b"1", b"2", b"3"]);
    assert_eq!(net.drops(1), [("decrypt_failed", 1)]);
}

#[test]
fn a_rotated_identity_is_picked_up_from_the_registry() {
    let (mut net, _) = connected();
    let rotated = identity(99);
    net.keys.insert(9, *rotated.public_key());
    let secret = TunnelSecret::from_bytes(&[19; 32]).unwrap();
    let signature = rotated.sign(&frame::pila_signed(9, secret.public_key()));
    let pila = frame::pila(9, secret.public_key(), rotated.public_key(), &signature);
    give(&mut net, addr_of(9), &pila);
    assert!(net.drops(1).is_empty());
    let events = net.take_events(1);
    assert!(events.contains(&Event::NeedKey(9)));
    assert!(events.contains(&Event::PeerKeyProven { node: 9, key: *rotated.public_key() }));
}

#[test]
fn frames_wait_in_order_for_a_slow_registry() {
    let mut net = world();
    net.directory = false;
    let mut peer = Scripted::new(9, 1, net.now);
    net.inject(addr_of(9), addr_of(1), &peer.pila());
    for n in 0..10u8 {
        let frame = peer.datagram(&[n]);
        net.inject(addr_of(9), addr_of(1), &frame);
    }
    net.run(SECOND);
    assert_eq!(net.drops(1), [("lookup_overflow", 3)], "eight frames are kept");
    assert!(net.take_events(1).contains(&Event::NeedKey(9)));
    let now = net.now;
    net.engine(1).set_peer_key(now, 9, Some(*identity(9).public_key()));
    net.run(ms(1));
    assert_eq!(net.datagrams(1), (0..7u8).map(|n| vec![n]).collect::<Vec<_>>());
}

#[test]
fn unreadable_packets_of_strangers_cost_one_answer_in_three_seconds_and_no_memory() {
    let mut net = world();
    let mut peer = Scripted::new(9, 1, net.now);
    for _ in 0..10 {
        let frame = peer.datagram(b"x");
        give(&mut net, addr_of(9), &frame);
    }
    assert_eq!(net.drops(1), [("no_session", 10)]);
    assert_eq!(net.sent_by(1), ["PILA", "PILK"]);
    assert!(net.engine(1).peers().is_empty());
    net.run(3 * SECOND);
    let frame = peer.datagram(b"x");
    give(&mut net, addr_of(9), &frame);
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA", "PILK", "PILA", "PILK"]);
}

#[test]
fn anonymous_sessions_exist_only_on_the_operators_word_and_never_replace_a_proven_one() {
    let mut net = Net::new();
    let mut cfg = config(1);
    cfg.allow_anonymous = vec![9];
    net.add(1, cfg);
    let mut peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pilk());
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA"]);
    assert!(!net.engine(1).peers()[0].authenticated);
    let frame = peer.datagram(b"anon");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"anon"]);

    net.keys.insert(9, *identity(9).public_key());
    net.run(4 * SECOND);
    give(&mut net, addr_of(9), &peer.pila());
    assert!(net.engine(1).peers()[0].authenticated);
    net.keys.remove(&9);
    let now = net.now;
    net.engine(1).set_peer_key(now, 9, None);
    assert!(net.engine(1).peers()[0].authenticated);
}

#[test]
fn strict_private_nodes_are_silent_towards_strangers() {
    let mut net = Net::new();
    let mut cfg = config(1);
    (cfg.public, cfg.strict_dataplane_trust) = (false, true);
    net.add(1, cfg);
    net.keys.insert(9, *identity(9).public_key());
    let peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pila());
    give(&mut net, addr_of(9), &peer.pilk());
    let mut other = Scripted::new(9, 1, net.now);
    let frame = other.datagram(b"x");
    give(&mut net, addr_of(9), &frame);
    assert!(net.sent_by(1).is_empty());
    assert_eq!(net.drops(1), [("untrusted_exchange", 2), ("no_session", 1)]);
    net.engine(1).set_trusted(9, true);
    give(&mut net, addr_of(9), &peer.pila());
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA"]);
}

#[test]
fn a_private_node_refuses_datagrams_of_strangers_and_announces_them_once_a_second() {
    let mut net = Net::new();
    let mut cfg = config(1);
    cfg.public = false;
    net.add(1, cfg);
    net.keys.insert(9, *identity(9).public_key());
    let mut peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pila());
    for _ in 0..5 {
        let frame = peer.datagram(b"x");
        give(&mut net, addr_of(9), &frame);
    }
    let empty = peer.datagram(b"");
    give(&mut net, addr_of(9), &empty);
    let events = net.take_events(1);
    let knocks =
        events.iter().filter(|e| **e == Event::Knock { node: 9, port: 7000, datagram: true }).count();
    assert_eq!(knocks, 1);
    assert_eq!(net.drops(1), [("empty_datagram", 1), ("untrusted_datagram", 5)]);
    let until = net.now + SECOND;
    net.engine(1).admit(9, until);
    let frame = peer.datagram(b"in");
    give(&mut net, addr_of(9), &frame);
    net.run(SECOND);
    let frame = peer.datagram(b"out");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.datagrams(1), [b"in"]);
    let ping = Header {
        protocol: protocol::CONTROL,
        src: Addr::backbone(9),
        dst: Addr::backbone(1),
        ..Header::default()
    };
    let ping = peer.seal(&ping, b"?");
    net.log.clear();
    give(&mut net, addr_of(9), &ping);
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILS"], "pings are answered for everybody");
}

#[test]
fn relay_only_nodes_never_punch_and_never_send_directly() {
    let mut net = Net::new();
    let mut cfg = config(1);
    cfg.relay_only = true;
    net.add(1, cfg);
    net.add(2, config(2));
    net.beacon_up = true;
    for id in [1, 2] {
        let now = net.now;
        net.engine(id).set_beacon(now, Some(beacon_addr()));
    }
    net.run(ms(100));
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 1, b"to").unwrap();
    net.run(SECOND);
    let now = net.now;
    net.engine(2).send_datagram(now, Addr::backbone(1), 1, b"back").unwrap();
    net.run(60 * SECOND);
    assert_eq!(net.datagrams(2), [b"to"]);
    assert_eq!(net.datagrams(1), [b"back"]);
    assert!(net.log.iter().filter(|s| s.from == addr_of(1)).all(|s| s.to == beacon_addr()));
    let mut punch = Vec::new();
    Message::PunchCommand(addr_of(2)).emit(&mut punch);
    give(&mut net, beacon_addr(), &punch);
    assert_eq!(net.engine(1).drops().punch_refused, 1);
}

#[test]
fn plaintext_mode_speaks_only_plaintext() {
    let mut net = Net::new();
    for id in [1, 2] {
        let mut cfg = config(id as u8);
        cfg.encrypt = false;
        net.add(id, cfg);
    }
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 1, b"clear").unwrap();
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [b"clear"]);
    assert_eq!(net.sent_by(1), ["PILT"]);
    let mut peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pila());
    let frame = peer.datagram(b"x");
    give(&mut net, addr_of(9), &frame);
    assert_eq!(net.drops(1), [("encryption_off", 2)]);
}

#[test]
fn own_traffic_never_reaches_the_wire() {
    let mut net = world();
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(1), 5, b"me").unwrap();
    net.engine(1).ping(now, 1, b"myself").unwrap();
    net.run(SECOND);
    let events = net.take_events(1);
    assert!(
        events.iter().any(|e| matches!(e, Event::Datagram { dst_port: 5, payload, .. } if payload == "me"))
    );
    assert!(events.iter().any(|e| matches!(e, Event::Pong { node: 1, .. })));
    assert!(net.log.is_empty());
}

#[test]
fn a_session_with_1024_epochs_is_agreed_anew() {
    let (mut net, _) = connected();
    for prefix in 0..=1024u32 {
        let mut again = Scripted::with_prefix(9, 1, prefix.to_be_bytes(), net.now);
        // Each another: equal ones under several sessions are taken for one sent again.
        let frame = again.datagram(&prefix.to_be_bytes());
        give(&mut net, addr_of(9), &frame);
    }
    net.run(ms(1));
    assert_eq!(net.datagrams(1).len(), 1024);
    assert_eq!(net.drops(1), [("too_many_epochs", 1)]);
    assert!(!net.engine(1).peers()[0].encrypted);
    assert!(net.sent_by(1).contains(&"PILA".to_owned()));
}

#[test]
fn the_relays_word_for_a_sender_counts_for_nothing() {
    let mut net = world();
    let now = net.now;
    net.engine(1).set_beacon(now, Some(beacon_addr()));
    let mut peer = Scripted::new(9, 1, now);
    let deliver = |net: &mut Net, frame: &[u8]| {
        let mut bytes = Vec::new();
        Message::RelayDeliver { from: 77, frame }.emit(&mut bytes);
        give(net, beacon_addr(), &bytes);
    };
    deliver(&mut net, &peer.pila());
    net.run(ms(1));
    let answer = net.log.iter().find(|s| s.kind() == "relay PILA").unwrap();
    assert_eq!(answer.bytes[5..9], [0, 0, 0, 9], "to the signer, not to whom the relay named");
    let frame = peer.datagram(b"x");
    deliver(&mut net, &frame);
    assert_eq!(net.datagrams(1), [b"x"]);
    let peers: Vec<_> = net.engine(1).peers().iter().map(|p| (p.node_id, p.relay)).collect();
    assert_eq!(peers, [(9, true)]);
}

#[test]
fn a_punch_during_a_key_exchange_is_answered_with_the_key() {
    let mut net = world();
    let stranger = addr_of(200);
    give(&mut net, stranger, b"PILP");
    assert!(net.sent_by(1).is_empty(), "no exchange, no answer");
    net.routes.insert(
        9,
        pilot_proto::engine::Route { direct: vec![Candidate::guessed(addr_of(9))], relay_only: false },
    );
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(9), 1, b"x").unwrap();
    net.run(ms(1));
    for _ in 0..10 {
        net.inject(stranger, addr_of(1), b"PILP");
    }
    net.run(ms(11));
    assert_eq!(net.log.iter().filter(|s| s.to == stranger && s.kind() == "PILA").count(), 5, "five a second");
}

fn drain(engine: &mut Engine, now: Instant) {
    let mut buf = Vec::new();
    while !matches!(engine.poll_output(now, &mut buf), Output::Timeout(_)) {}
}

mod fuzz {
    use super::*;
    use proptest::prelude::*;

    fn frame_like() -> impl Strategy<Value = Vec<u8>> {
        let magic = prop_oneof![
            Just(b"PILA".to_vec()),
            Just(b"PILK".to_vec()),
            Just(b"PILS\0\0\0\x09".to_vec()),
            Just(b"PILT".to_vec()),
            Just(b"PILP".to_vec()),
            Just(b"\x06\0\0\0\x09PILS\0\0\0\x09".to_vec()),
            Just(b"\x06\0\0\0\x09PILA\0\0\0\x09".to_vec()),
            proptest::collection::vec(0u8..0x10, 1),
            Just(Vec::new()),
        ];
        (magic, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(mut m, tail)| {
            m.extend(tail);
            m
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever arrives, from the beacon or anybody, in either mode: no panic, and an end to every poll.
        #[test]
        fn arbitrary_datagrams_never_panic(
            frames in proptest::collection::vec((frame_like(), any::<bool>(), 0u64..4_000), 1..60),
            encrypt in any::<bool>(),
        ) {
            let mut now = Instant::now();
            let mut cfg = config(1);
            cfg.encrypt = encrypt;
            cfg.allow_anonymous = vec![9];
            let mut engine = Engine::new(cfg, identity(1), 1, now);
            engine.set_beacon(now, Some(beacon_addr()));
            let peer = Scripted::new(9, 1, now);
            engine.set_peer_key(now, 9, Some(*identity(9).public_key()));
            engine.handle_datagram(now, addr_of(9), &mut peer.pila());
            for (mut bytes, beacon, wait) in frames {
                now += ms(wait);
                let from = if beacon { beacon_addr() } else { addr_of(9) };
                engine.handle_datagram(now, from, &mut bytes);
                engine.handle_timeout(now);
                drain(&mut engine, now);
            }
        }

        /// Packets of an authenticated peer with arbitrary headers and payloads do not panic either.
        #[test]
        fn arbitrary_packets_of_a_peer_never_panic(
            packets in proptest::collection::vec(
                (any::<u8>(), 0u8..5, any::<[u16; 3]>(), any::<[u32; 2]>(), proptest::collection::vec(any::<u8>(), 0..64)),
                1..40,
            ),
        ) {
            let now = Instant::now();
            let mut engine = Engine::new(config(1), identity(1), 1, now);
            let mut peer = Scripted::new(9, 1, now);
            engine.set_peer_key(now, 9, Some(*identity(9).public_key()));
            engine.handle_datagram(now, addr_of(9), &mut peer.pila());
            engine.listen(7);
            for (flags, protocol, [src_port, port, window], [seq, ack], payload) in packets {
                let dst_port = if port % 2 == 0 { 7 } else { port };
                let header = Header {
                    flags, protocol, src: Addr::backbone(9), dst: Addr::backbone(1), src_port, dst_port, seq, ack, window,
                };
                let mut bytes = peer.seal(&header, &payload);
                engine.handle_datagram(now, addr_of(9), &mut bytes);
                drain(&mut engine, now);
            }
        }
    }
}
