//! What a reference peer depends on (spec 03 section 24), row by row, and what a sender must respect towards it
//! (section 25).

use crate::link::pattern;
use crate::script::{ACK, FIN, PEER, Pkt, RST, SYN, Script};
use pilot_proto::stream::{CloseReason, Config, DialError, Handled, StreamEvent};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn script() -> Script {
    Script::new(Config::default())
}

fn flags_of(pkts: &[Pkt]) -> Vec<u8> {
    pkts.iter().map(|p| p.header.flags).collect()
}

// ---- row 1: fields -----------------------------------------------------------------------------------------

#[test]
fn every_packet_type_carries_the_fields_the_reference_expects() {
    let mut s = script();
    s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let syn = s.drain().remove(0).header;
    assert_eq!((syn.flags, syn.ack, syn.window), (SYN, 0, 512));
    assert!(syn.src_port >= 49_152);
    let iss = syn.seq;
    (s.port, s.peer_port) = (syn.src_port, 7);
    let third = s.send(SYN | ACK, 70, iss.wrapping_add(1), 512, &[]).remove(0);
    assert!(third.payload.is_empty());
    assert_eq!(
        (third.header.flags, third.header.seq, third.header.ack, third.header.window),
        (ACK, iss.wrapping_add(1), 71, 512)
    );
    let conn = pilot_proto::stream::ConnId(1);
    let data = s.write(conn, b"hello").remove(0);
    assert_eq!(
        (data.header.flags, data.header.seq, data.header.ack, data.header.window),
        (ACK, iss.wrapping_add(1), 71, 512)
    );
    assert_eq!(data.payload, b"hello");
    s.send(ACK, 71, iss.wrapping_add(6), 512, &[]);
    s.streams.close(s.now, conn);
    let fin = s.drain().remove(0);
    assert_eq!(
        (fin.header.flags, fin.header.seq, fin.header.ack, fin.header.window, fin.payload.len()),
        (FIN, iss.wrapping_add(6), 0, 0, 0)
    );
    let fin_ack = s.send(FIN | ACK, 71, iss.wrapping_add(7), 0, &[]).remove(0);
    assert_eq!(
        (fin_ack.header.flags, fin_ack.header.seq, fin_ack.header.ack, fin_ack.header.window),
        (FIN | ACK, iss.wrapping_add(7), 72, 0)
    );
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Closed)));
}

#[test]
fn initial_numbers_and_ports_are_random() {
    let first = |seed: u8| {
        let mut streams = pilot_proto::stream::Streams::new(Config::default(), [seed; 32]);
        let now = std::time::Instant::now();
        streams.dial(now, crate::script::US, crate::script::PEER, 7).expect("dial");
        let mut out = Vec::new();
        let path = |_| pilot_proto::stream::PathInfo {
            max_payload: 1152,
            ready: true,
            relayed: false,
            same_process: true,
        };
        streams.poll_packet(now, &path, &mut out).expect("SYN");
        let header = Pkt::parse(&out).header;
        (header.seq, header.src_port)
    };
    let (a, b, c) = (first(1), first(2), first(3));
    assert!(a.0 != b.0 && b.0 != c.0 && a.1 != b.1 && b.1 != c.1, "{a:?} {b:?} {c:?}");
}

#[test]
fn the_window_is_never_zero_unless_closed() {
    let mut s = Script::new(Config { recv_window: 4 * 1152, ..Config::default() });
    let (conn, iss) = s.open(100, 512);
    let mut seq = 101;
    for expected in [3, 2, 1, 0] {
        let answer = s.send(ACK, seq, iss + 1, 512, &[7; 1152]);
        seq += 1152;
        assert_eq!(answer.last().map(|p| (p.header.ack, p.header.window)), Some((seq, expected)));
    }
    assert_eq!(s.read_all(conn).len(), 4 * 1152);
    assert_eq!(s.drain().iter().map(|p| p.header.window).max(), Some(4), "the reader resumed: window update");
}

// ---- row 2: opening ----------------------------------------------------------------------------------------

#[test]
fn a_repeated_syn_draws_the_same_syn_ack_and_no_third_packet_is_needed() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    for _ in 0..3 {
        let again = s.send(SYN, 100, 0, 512, &[]);
        assert_eq!(flags_of(&again), [SYN | ACK]);
        assert_eq!((again[0].header.seq, again[0].header.ack), (iss, 101));
    }
    let sent = s.write(conn, b"first");
    assert_eq!(sent[0].payload, b"first", "established without the third packet");
    assert_eq!(s.events.iter().filter(|e| matches!(e, StreamEvent::Incoming { .. })).count(), 1);
}

#[test]
fn a_stale_syn_ack_is_reset_and_the_syn_sent_again() {
    let mut s = script();
    let conn = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let syn = s.drain().remove(0).header;
    (s.port, s.peer_port) = (syn.src_port, 7);
    let answer = s.send(SYN | ACK, 0, syn.seq.wrapping_add(27), 512, &[]);
    assert_eq!(flags_of(&answer), [RST, SYN]);
    assert_eq!(answer[1].header.seq, syn.seq);
    assert!(!s.happened(&StreamEvent::Connected(conn)));
    s.send(SYN | ACK, 9, syn.seq.wrapping_add(1), 512, &[]);
    assert!(s.happened(&StreamEvent::Connected(conn)));
}

#[test]
fn stale_syn_acks_without_end_do_not_become_a_storm() {
    let mut s = script();
    s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let syn = s.drain().remove(0).header;
    (s.port, s.peer_port) = (syn.src_port, 7);
    let sent: usize =
        (0..100).map(|_| s.send(SYN | ACK, 0, syn.seq.wrapping_add(5000), 512, &[]).len()).sum();
    assert_eq!(sent, 6, "three resets, three SYNs");
}

/// A reference process counts its ports and numbers from the beginning when it starts again.
#[test]
fn a_restarted_reference_does_not_continue_the_connection_of_its_earlier_life() {
    let mut s = script();
    let (old, iss) = s.open(0, 512);
    s.send(ACK, 1, iss.wrapping_add(1), 512, b"old");
    s.streams.peer_rekeyed(s.now, PEER.node);
    let (new, iss) = s.open(0, 512);
    assert_ne!(old, new);
    assert!(s.events.contains(&StreamEvent::Closed(old, CloseReason::PeerRestarted)), "{:?}", s.events);
    s.send(ACK, 1, iss.wrapping_add(1), 512, b"newer");
    assert_eq!(s.streams.read(old).as_deref(), Some(&b"old"[..]));
    assert_eq!(s.streams.read(old), None);
    assert_eq!(s.streams.read(new).as_deref(), Some(&b"newer"[..]));
}

/// Its next process would take an acknowledgement, a byte or an RST of the old connection for the new one's.
#[test]
fn nothing_of_a_connection_follows_a_reference_into_its_next_process() {
    let mut s = script();
    let (idle, _) = s.open(0, 512);
    s.peer_port += 1;
    let (busy, iss) = s.open(0, 512);
    s.send(ACK, 1, iss.wrapping_add(1), 512, b"unread");
    assert_eq!(s.write(busy, b"lost on the way").len(), 1);
    s.peer_port += 1;
    let (closed, iss) = s.open(0, 512);
    s.write(closed, b"all");
    s.send(ACK, 1, iss.wrapping_add(4), 512, &[]);
    s.streams.close(s.now, closed);
    assert_eq!(flags_of(&s.drain()), [FIN]);

    // There is a session with another process, of which nothing has opened yet.
    s.same_process = false;
    s.streams.path_changed(s.now, PEER.node);
    s.streams.write(s.now, idle, bytes::Bytes::from_static(b"waits")).expect("writable");
    assert_eq!(s.wait(SECOND), [], "nothing before it is known which process it is");
    s.streams.dial(s.now, crate::script::US, PEER, 7).expect("dial");
    assert_eq!(flags_of(&s.drain()), [SYN], "a new connection is for either process");

    s.streams.peer_rekeyed(s.now, PEER.node);
    s.same_process = true;
    s.streams.path_changed(s.now, PEER.node);
    let sent = s.wait(60 * SECOND);
    assert!(sent.iter().all(|p| p.header.flags == SYN), "{sent:?}");
    for (conn, reason) in [
        (idle, CloseReason::PeerRestarted),
        (busy, CloseReason::PeerRestarted),
        (closed, CloseReason::Closed),
    ] {
        assert!(s.happened(&StreamEvent::Closed(conn, reason)), "{conn:?} {:?}", s.events);
    }
    assert_eq!(s.streams.read(busy).as_deref(), Some(&b"unread"[..]));
}

#[test]
fn streams_go_on_when_a_reference_turns_out_to_be_the_same_process() {
    let mut s = script();
    let (conn, iss) = s.open(0, 512);
    s.same_process = false;
    assert_eq!(s.write(conn, b"waits"), []);
    s.same_process = true;
    let sent = s.drain();
    assert_eq!((sent[0].header.seq, &sent[0].payload[..]), (iss.wrapping_add(1), &b"waits"[..]));
}

#[test]
fn a_syn_on_time_wait_opens_a_new_connection() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    assert_eq!(flags_of(&s.send(FIN, 101, 0, 0, &[])), [FIN | ACK]);
    let (_, again) = s.open(900, 512);
    assert_ne!(iss, again);
}

#[test]
fn syns_are_sent_at_doubling_intervals_until_the_seventh_expiry() {
    let mut s = script();
    let conn = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let sent = s.wait_timed(9740 * MS);
    let times: Vec<u128> = sent.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [0, 250, 750, 1750, 3750, 5750, 7750]);
    assert!(!s.events.iter().any(|e| matches!(e, StreamEvent::DialFailed(..))), "still trying");
    s.wait(10 * MS);
    assert!(sent.iter().all(|(_, p)| p.header == sent[0].1.header), "the same SYN each time");
    assert!(s.happened(&StreamEvent::DialFailed(conn, DialError::Timeout)));
    assert_eq!(s.streams.connections_with(901), 0);
}

#[test]
fn a_dial_waits_ten_seconds_for_a_key() {
    let mut s = script();
    s.ready = false;
    let conn = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    assert_eq!(s.wait(9 * SECOND), []);
    s.ready = true;
    s.streams.path_changed(s.now, 901);
    assert_eq!(flags_of(&s.drain()), [SYN]);
    s.wait(9 * SECOND);
    assert!(!s.events.iter().any(|e| matches!(e, StreamEvent::DialFailed(..))), "still trying");

    let mut s = script();
    s.ready = false;
    let never = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    s.wait(9990 * MS);
    assert!(!s.events.iter().any(|e| matches!(e, StreamEvent::DialFailed(..))), "still trying");
    s.wait(10 * MS);
    let error = DialError::KeyExchange { node: 901, tried: String::new() };
    assert!(s.happened(&StreamEvent::DialFailed(never, error)));
    assert_eq!(conn, never);
}

// ---- rows 3 to 5: acknowledging ----------------------------------------------------------------------------

#[test]
fn every_data_segment_leads_to_an_acknowledgement_duplicates_included() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    for _ in 0..5 {
        let answer = s.send(ACK, 101, iss + 1, 512, b"same");
        assert_eq!(answer.iter().map(|p| p.header.ack).collect::<Vec<_>>(), [105]);
    }
}

#[test]
fn lone_segments_are_acknowledged_at_once_32_times_then_after_5_ms() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    // A pair is acknowledged by its second segment, so lone ones must be apart.
    let mut seq = 101;
    for n in 0..32 {
        let answer = s.send(ACK, seq, iss + 1, 512, b"x");
        seq += 1;
        assert_eq!(answer.len(), 1, "segment {n}");
    }
    assert_eq!(s.send(ACK, seq, iss + 1, 512, b"x"), []);
    let late = s.wait_timed(20 * MS);
    assert_eq!(late.len(), 1);
    assert_eq!((late[0].0, late[0].1.header.ack), (5 * MS, seq + 1));
    assert_eq!(s.send(ACK, seq + 1, iss + 1, 512, b"x").len(), 1, "budget restored");
}

#[test]
fn the_cumulative_acknowledgement_never_covers_what_did_not_arrive() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    for (seq, len) in [(201, 100), (401, 50), (151, 50), (301, 100)] {
        for answer in s.send(ACK, seq, iss + 1, 512, &vec![1; len]) {
            assert_eq!(answer.header.ack, 101);
        }
    }
    let filled = s.send(ACK, 101, iss + 1, 512, &[1; 50]);
    assert_eq!(filled.last().map(|p| p.header.ack), Some(451));
}

#[test]
fn each_out_of_order_segment_draws_its_own_sack_list_even_in_a_batch() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    for i in 1..=3u32 {
        s.feed(s.header(ACK, 101 + i * 100, iss + 1, 512), &[1; 100]);
    }
    let lists: Vec<_> = s.drain().iter().filter_map(Pkt::sack).collect();
    assert_eq!(lists, [vec![(201, 301)], vec![(201, 401)], vec![(201, 501)]]);
}

#[test]
fn misaligned_segments_are_reassembled_where_the_reference_would_drop_them() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let text = b"abcdefghijklmnopqrstuvwxyz";
    s.send(ACK, 111, iss + 1, 512, &text[10..20]);
    let answer = s.send(ACK, 101, iss + 1, 512, &text[..15]);
    assert_eq!(answer.last().map(|p| p.header.ack), Some(121));
    assert_eq!(s.send(ACK, 116, iss + 1, 512, &text[15..26]).last().map(|p| p.header.ack), Some(127));
    assert_eq!(s.read_all(conn), text);
}

// ---- row 6: look-alikes ------------------------------------------------------------------------------------

#[test]
fn data_that_looks_like_a_sack_list_is_delivered() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let payload = *b"SACK\x01xxxxxxxx";
    let answer = s.send(ACK, 101, iss + 1, 512, &payload);
    assert_eq!(answer.last().map(|p| p.header.ack), Some(114));
    assert_eq!(s.read_all(conn), payload);
}

#[test]
fn no_data_segment_parses_as_sack_on_any_transmission() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let mut data = Vec::new();
    for _ in 0..200 {
        data.extend_from_slice(b"SACK\x02SACK\x01\0\0\0\0\0\0\0\0SACK\x04");
    }
    let mut sent = s.write(conn, &data);
    sent.extend(s.wait(10 * SECOND));
    let looks =
        |p: &Pkt| p.payload.len() >= 13 && p.payload.starts_with(b"SACK") && (1..=4).contains(&p.payload[4]);
    assert!(sent.len() > 3 && !sent.iter().any(looks));
    assert!(sent.iter().any(|p| p.header.seq == iss + 1 && p.payload == b"S"));
}

// ---- rows 7 and 8: sending ---------------------------------------------------------------------------------

#[test]
fn retransmissions_keep_their_boundaries() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let data = pattern(20_000);
    let first = s.write(conn, &data);
    let edges: Vec<(u32, usize)> = first.iter().map(|p| (p.header.seq, p.payload.len())).collect();
    assert!(edges.iter().all(|(_, len)| *len <= 1152));
    s.wait(5 * MS);
    s.send(ACK, 101, iss + 1 + 1152, 512, &[]);
    for (_, again) in s.wait_timed(20 * SECOND) {
        assert!(edges.contains(&(again.header.seq, again.payload.len())), "{:?}", again.header);
    }
}

#[test]
fn the_advertised_window_bounds_the_segments_in_flight_sacked_ones_included() {
    let mut s = script();
    let (conn, iss) = s.open(100, 3);
    let sent = s.write(conn, &pattern(20_000));
    assert_eq!(sent.len(), 3);
    // SACKing the last two frees no slot.
    let list =
        [b"SACK\x01".as_slice(), &(iss + 1 + 1152).to_be_bytes(), &(iss + 1 + 3456).to_be_bytes()].concat();
    let again = s.send(ACK, 101, iss + 1, 3, &list);
    assert!(again.iter().all(|p| p.header.seq == iss + 1), "only the hole is resent: {again:?}");
    assert_eq!(s.send(ACK, 101, iss + 1 + 3456, 2, &[]).len(), 2);
}

#[test]
fn behind_a_hole_no_more_than_128_segments_are_unacknowledged() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let data = pattern(1_500_000);
    let mut high = 0;
    let mut sent = s.write(conn, &data);
    // Acknowledge everything so that the congestion window opens, then leave a hole.
    let mut una = iss + 1;
    for _ in 0..4 {
        s.now += MS * 20;
        let top = sent.iter().map(|p| p.header.seq + p.payload.len() as u32).max().unwrap_or(una);
        una = una.max(top);
        sent = s.send(ACK, 101, una, 512, &[]);
        sent.extend(s.wait(MS * 20));
    }
    let beyond = sent.len();
    assert!(beyond > 128, "a clean path carries more: {beyond}");
    // The first segment is missing; each of the following is SACKed one by one.
    let mut unacked: std::collections::BTreeSet<u32> = sent.iter().map(|p| p.header.seq).collect();
    for i in 1..100u32 {
        s.now += MS / 10;
        let list =
            [b"SACK\x01".as_slice(), &(una + 1152).to_be_bytes(), &(una + 1152 * (1 + i)).to_be_bytes()]
                .concat();
        let before = unacked.len();
        for p in s.send(ACK, 101, una, 512, &list) {
            unacked.insert(p.header.seq);
        }
        if unacked.len() > before {
            high = high.max(unacked.len());
        }
    }
    assert!(high <= 128, "{high} segments with a hole");
}

// ---- row 9, 10, 15: closing --------------------------------------------------------------------------------

#[test]
fn a_fin_is_answered_by_exactly_one_fin_ack() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    let answer = s.send(FIN, 101, 0, 0, &[]);
    assert_eq!(flags_of(&answer), [FIN | ACK]);
    assert_eq!(answer[0].header.ack, 102);
    assert!(s.happened(&StreamEvent::EndOfStream(conn)));
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Closed)));
    for _ in 0..3 {
        assert_eq!(s.send(FIN | ACK, 102, 2, 0, &[]), []);
        assert_eq!(s.send(FIN, 101, 0, 0, &[]), []);
    }
    assert_eq!(s.wait(30 * SECOND), []);
}

#[test]
fn a_fin_below_the_expected_number_counts_at_once() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    s.send(ACK, 101, iss + 1, 512, &[1; 60]);
    let answer = s.send(FIN, 107, 0, 0, &[]);
    assert_eq!((answer[0].header.flags, answer[0].header.ack), (FIN | ACK, 108));
}

#[test]
fn an_early_fin_is_held_and_its_payload_ignored() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    for _ in 0..2 {
        let held = s.send(FIN, 111, 0, 0, b"ignored");
        assert_eq!((held.len(), held[0].header.flags, held[0].header.ack), (1, ACK, 101));
    }
    let answer = s.send(ACK, 101, iss + 1, 512, b"0123456789");
    assert_eq!(flags_of(&answer), [FIN | ACK]);
    assert_eq!(answer[0].header.ack, 112);
    assert_eq!(s.read_all(conn), b"0123456789");
}

#[test]
fn an_early_fin_counts_after_15_seconds_of_silence() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    s.send(FIN, 111, 0, 0, &[]);
    let answer = s.wait_timed(20 * SECOND);
    assert_eq!(answer.len(), 1);
    assert_eq!((answer[0].0, answer[0].1.header.flags), (15 * SECOND, FIN | ACK));
    assert!(s.happened(&StreamEvent::EndOfStream(conn)));
}

#[test]
fn our_fin_waits_for_the_acknowledgement_of_all_data_but_not_longer_than_5_seconds() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.write(conn, b"data");
    s.streams.close(s.now, conn);
    assert_eq!(s.drain(), []);
    let answer = s.send(ACK, 101, iss + 5, 512, &[]);
    assert_eq!(flags_of(&answer), [FIN]);
    assert_eq!(answer[0].header.seq, iss + 5);

    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.write(conn, b"data");
    s.streams.close(s.now, conn);
    let sent = s.wait_timed(6 * SECOND);
    let fin = sent.iter().find(|(_, p)| p.header.flags == FIN).expect("FIN");
    assert_eq!((fin.0, fin.1.header.seq), (5 * SECOND, iss + 5));
}

#[test]
fn a_lost_fin_is_sent_again_until_it_is_answered() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    s.streams.close(s.now, conn);
    let sent = s.wait(9 * SECOND);
    assert!(
        sent.len() >= 3 && sent.iter().all(|p| p.header.flags == FIN && p.header == sent[0].header),
        "{sent:?}"
    );
    assert_eq!(flags_of(&s.send(FIN | ACK, 101, 0, 0, &[])), [FIN | ACK]);
    assert_eq!(s.wait(30 * SECOND), []);
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Closed)));
}

#[test]
fn a_fin_that_is_never_answered_ends_after_10_seconds() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    s.streams.close(s.now, conn);
    s.wait(30 * SECOND);
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Closed)));
    assert_eq!(s.streams.connections_with(901), 0);
}

#[test]
fn data_after_our_close_is_neither_delivered_nor_acknowledged() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.streams.close(s.now, conn);
    s.drain();
    assert_eq!(s.send(ACK, 101, iss + 2, 512, b"late"), []);
    assert_eq!(s.read_all(conn), b"");
}

#[test]
fn written_data_is_dropped_when_the_peer_ends_the_stream() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    s.write(conn, b"unacknowledged");
    assert_eq!(flags_of(&s.send(FIN, 101, 0, 0, &[])), [FIN | ACK]);
    assert_eq!(s.wait(20 * SECOND), []);
    let refused = s.streams.write(s.now, conn, bytes::Bytes::from_static(b"x"));
    assert_eq!(refused, Err(CloseReason::Closed));
}

#[test]
fn half_close_is_not_offered_to_reference_peers() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    assert!(!s.streams.half_close(conn));
    assert!(!s.streams.finish(s.now, conn));
    assert_eq!(s.drain(), []);
    assert_eq!(s.streams.status()[0].state, "ESTABLISHED");
}

// ---- row 11: RST and silence -------------------------------------------------------------------------------

#[test]
fn a_syn_to_a_closed_port_is_reset_and_an_untrusted_one_met_with_silence() {
    let mut s = script();
    s.port = 4242;
    let answer = s.send(SYN, 5, 0, 512, &[]);
    assert_eq!(answer.len(), 1);
    let header = answer[0].header;
    assert_eq!((header.flags, header.seq, header.ack, header.window), (RST, 0, 0, 0));
    s.port = 7;
    let ingress = pilot_proto::stream::Ingress { node: 901, admitted: false };
    let packet = pilot_proto::wire::packet::Packet { header: s.header(SYN, 5, 0, 512), payload: &[] };
    assert_eq!(s.streams.handle_packet(s.now, ingress, packet), Handled::Untrusted);
    assert_eq!(s.drain(), []);
}

#[test]
fn a_refused_dial_says_so() {
    let mut s = script();
    let conn = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 9).expect("dial");
    let syn = s.drain().remove(0).header;
    (s.port, s.peer_port) = (syn.src_port, 9);
    assert_eq!(s.send(RST, 0, 0, 0, &[]), []);
    assert!(s.happened(&StreamEvent::DialFailed(conn, DialError::Refused)));
}

#[test]
fn rst_is_honoured_whatever_its_numbers_and_the_tuple_is_silent_afterwards() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.send(ACK, 101, iss + 1, 512, b"kept");
    assert_eq!(s.send(RST, 12345, 999, 77, &[]), []);
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Reset)));
    assert_eq!(s.send(ACK, 105, iss + 1, 512, b"more"), []);
    assert_eq!(s.read_all(conn), b"kept", "what had arrived can be read");
}

#[test]
fn the_limits_on_connections_answer_with_rst() {
    let mut s = Script::new(Config { max_conns_per_port: 3, syn_rate_limit: 0, ..Config::default() });
    for port in 0..3 {
        s.peer_port = 50_000 + port;
        s.open(1, 512);
    }
    s.peer_port = 50_003;
    assert_eq!(flags_of(&s.send(SYN, 1, 0, 512, &[])), [RST]);
    s.peer_port = 50_000;
    s.send(RST, 0, 0, 0, &[]);
    s.peer_port = 50_004;
    s.open(1, 512);

    let mut s = Script::new(Config { syn_rate_limit: 0, ..Config::default() });
    for port in 0..64 {
        s.peer_port = 50_000 + port;
        assert_eq!(flags_of(&s.send(SYN, 1, 0, 512, &[])), [SYN | ACK]);
    }
    s.now += 10 * SECOND;
    s.peer_port = 50_064;
    assert_eq!(flags_of(&s.send(SYN, 1, 0, 512, &[])), [RST], "nobody accepts");
    assert_eq!(s.streams.counters().accept_queue_drops, 1);
}

// ---- rows 12 and 13: empty acknowledgements ----------------------------------------------------------------

#[test]
fn empty_acknowledgements_are_not_answered_except_a_keepalive_after_10_quiet_seconds() {
    let mut s = script();
    let (_, iss) = s.open(100, 512);
    for _ in 0..5 {
        s.now += SECOND;
        assert_eq!(s.send(ACK, 101, iss + 1, 512, &[]), []);
    }
    s.now += 10 * SECOND;
    let answer = s.send(ACK, 101, iss + 1, 512, &[]);
    assert_eq!((answer.len(), answer[0].header.flags, answer[0].payload.len()), (1, ACK, 0));
    assert_eq!(s.send(ACK, 101, iss + 1, 512, &[]), [], "no second answer at once");
}

#[test]
fn no_three_identical_empty_acknowledgements_without_three_data_segments() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let mut acks: Vec<(u32, u16)> = Vec::new();
    let mut seq = 101;
    for round in 0..200u32 {
        let len = 1 + round % 1152;
        acks.extend(
            s.send(ACK, seq, iss + 1, 512, &vec![0; len as usize])
                .iter()
                .filter(|p| p.payload.is_empty())
                .map(|p| (p.header.ack, p.header.window)),
        );
        seq += len;
        s.read_all(conn);
        acks.extend(s.wait(6 * MS).iter().map(|p| (p.header.ack, p.header.window)));
    }
    assert!(acks.windows(2).all(|w| w[0] != w[1]), "identical acknowledgements in a row");
}

// ---- windows -----------------------------------------------------------------------------------------------

#[test]
fn a_closed_window_is_probed_with_one_old_byte_at_doubling_intervals() {
    let mut s = script();
    let (conn, iss) = s.open(100, 0);
    assert_eq!(s.write(conn, &pattern(5000)), []);
    let probes = s.wait_timed(10 * SECOND);
    let times: Vec<u128> = probes.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [50, 150, 350, 750, 1550, 3150, 6350]);
    for (_, p) in &probes {
        assert_eq!((p.header.flags, p.header.seq, p.payload.len()), (ACK, iss, 1), "one old byte");
    }
    let opened = s.send(ACK, 101, iss + 1, 2, &[]);
    assert_eq!(opened.len(), 2);
}

#[test]
fn a_peer_that_answers_no_probe_is_given_up() {
    let mut s = script();
    let (conn, _) = s.open(100, 0);
    s.write(conn, b"stuck");
    let sent = s.wait(60 * SECOND);
    assert_eq!(sent.last().map(|p| p.header.flags), Some(RST));
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::DeadPeer)));
}

#[test]
fn a_lost_window_update_is_repeated_when_the_sender_probes() {
    let mut s = Script::new(Config { recv_window: 16 * 1152, ..Config::default() });
    let (conn, iss) = s.open(100, 512);
    for i in 0..16 {
        s.send(ACK, 101 + i * 1152, iss + 1, 512, &[0; 1152]);
    }
    let next = 101 + 16 * 1152;
    s.read_all(conn);
    let update = s.drain();
    assert_eq!(update.iter().map(|p| p.header.window).max(), Some(16));
    // The update is lost; the reference's own probe is an empty acknowledgement.
    s.now += SECOND / 2;
    let answer = s.send(ACK, next, iss + 1, 512, &[]);
    assert_eq!(answer.iter().map(|p| p.header.window).collect::<Vec<_>>(), [16]);
}

#[test]
fn a_parked_head_is_sent_again_although_it_was_sacked() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    assert_eq!(s.write(conn, &pattern(3 * 1152)).len(), 3);
    s.now += 20 * MS;
    s.send(ACK, 101, iss + 1 + 1152, 512, &[]);
    let head = iss + 1 + 1152;
    let list = [b"SACK\x01".as_slice(), &head.to_be_bytes(), &(head + 2304).to_be_bytes()].concat();
    s.now += 200 * MS;
    let again = s.send(ACK, 101, head, 512, &list);
    assert_eq!(again.first().map(|p| p.header.seq), Some(head));
}

// ---- losses ------------------------------------------------------------------------------------------------

#[test]
fn all_gaps_below_the_highest_sacked_byte_are_resent_in_one_round_trip() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    let sent = s.write(conn, &pattern(30 * 1152));
    assert_eq!(sent.len(), 30);
    s.now += 20 * MS;
    let at = |i: u32| iss + 1 + i * 1152;
    // Every third segment is missing: more holes than one list can show.
    let mut resent = std::collections::BTreeSet::new();
    let mut blocks: Vec<(u32, u32)> = Vec::new();
    for i in (0..30).filter(|i| i % 3 != 0) {
        match blocks.last_mut() {
            Some(last) if last.1 == at(i) => last.1 = at(i + 1),
            _ => blocks.push((at(i), at(i + 1))),
        }
        let four = &blocks[blocks.len().saturating_sub(4)..];
        let mut list = [b"SACK".as_slice(), &[four.len() as u8]].concat();
        for (left, right) in four {
            list.extend_from_slice(&left.to_be_bytes());
            list.extend_from_slice(&right.to_be_bytes());
        }
        resent.extend(s.send(ACK, 101, at(0), 512, &list).iter().map(|p| p.header.seq));
    }
    let missing: std::collections::BTreeSet<u32> = (0..30).filter(|i| i % 3 == 0).map(at).collect();
    assert_eq!(resent, missing, "without waiting and without one needless copy");
}

#[test]
fn a_tail_loss_is_repaired_without_the_retransmission_timeout() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.write(conn, b"warm-up");
    s.now += 20 * MS;
    s.send(ACK, 101, iss + 8, 512, &[]);
    s.write(conn, &[1; 3000]);
    let sent = s.wait_timed(150 * MS);
    assert_eq!(sent.len(), 1, "one probe: {sent:?}");
    assert!(sent[0].0 <= 60 * MS);
    assert_eq!(sent[0].1.header.seq, iss + 8 + 2304, "the last segment");
}

#[test]
fn eight_timeouts_without_an_answer_reset_the_connection() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    let mut sent = s.write(conn, b"anyone?");
    sent.extend(s.wait(100 * SECOND));
    assert_eq!(sent.iter().filter(|p| p.is_data()).count(), 8);
    assert_eq!(sent.last().map(|p| p.header.flags), Some(RST));
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::DeadPeer)));
}

#[test]
fn attempts_do_not_count_while_the_tunnel_is_down() {
    let mut s = script();
    let (conn, _) = s.open(100, 512);
    s.write(conn, b"waiting");
    s.ready = false;
    assert_eq!(s.wait(50 * SECOND), []);
    s.ready = true;
    s.streams.path_changed(s.now, 901);
    let sent = s.drain();
    assert_eq!(sent.iter().filter(|p| p.is_data()).count(), 1, "tried again at once");
    assert!(!s.events.iter().any(|e| matches!(e, StreamEvent::Closed(..))));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_ignored() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    s.write(conn, b"abc");
    s.send(ACK, 101, iss.wrapping_add(99_999), 512, &[]);
    assert_eq!(s.streams.status()[0].unacked, 1);
    s.send(ACK, 101, iss + 4, 512, &[]);
    assert_eq!(s.streams.status()[0].unacked, 0);
}

// ---- idle --------------------------------------------------------------------------------------------------

#[test]
fn an_idle_connection_lives_while_its_peer_answers_and_closes_when_it_does_not() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    for _ in 0..10 {
        let probes = s.wait_timed(61 * SECOND);
        assert_eq!(probes.len(), 1);
        assert_eq!((probes[0].1.header.seq, probes[0].1.payload.len()), (iss, 1), "an old byte");
        s.send(ACK, 101, iss + 1, 512, &[]);
    }
    assert_eq!(s.streams.status()[0].state, "ESTABLISHED");
    let end = s.wait_timed(130 * SECOND);
    let fin = end.iter().find(|(_, p)| p.header.flags == FIN).expect("FIN");
    assert_eq!(fin.0, 105 * SECOND);
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Idle)));
}

#[test]
fn packets_without_a_meaning_are_dropped_silently() {
    let mut s = script();
    let (conn, iss) = s.open(100, 512);
    assert_eq!(s.send(0, 101, iss + 1, 512, b"no flags"), []);
    assert_eq!(s.send(SYN | ACK, 101, iss + 1, 512, &[]), [], "SYN-ACK on an open connection");
    assert_eq!(s.read_all(conn), b"");
}

/// The reference is silent here (spec 03 section 3), so that the other end of a connection that died with its process
/// waits for its timers. It does honour an RST.
#[test]
fn a_packet_of_no_connection_is_answered_by_an_rst_that_says_so_and_an_rst_never() {
    let mut s = script();
    s.open(100, 512);
    s.peer_port = 50_099;
    for bits in [ACK, FIN, FIN | ACK, SYN | ACK] {
        let answers = s.send(bits, 5, 5, 512, b"data");
        assert_eq!(flags_of(&answers), [RST]);
        assert_eq!(answers[0].payload, b"PSNC");
        assert_eq!(s.send(bits, 5, 5, 512, b"data"), [], "one in 100 ms");
        s.wait(Duration::from_millis(100));
    }
    assert_eq!(s.send(RST, 5, 5, 512, b"data"), []);
    let mut plain = Script::new(Config { extensions: false, ..Config::default() });
    plain.peer_port = 50_099;
    assert_eq!(plain.send(ACK, 5, 5, 512, b"data"), [], "without extensions: as the reference");
}

#[test]
fn the_stream_of_numbers_wraps_around() {
    let mut s = script();
    let (conn, iss) = s.open(u32::MAX - 15, 512);
    let data = pattern(100);
    for (i, chunk) in data.chunks(10).enumerate() {
        s.send(ACK, (u32::MAX - 14).wrapping_add(10 * i as u32), iss + 1, 512, chunk);
    }
    assert_eq!(s.read_all(conn), data);
}
