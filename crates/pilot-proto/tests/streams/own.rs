//! Between our own nodes: negotiation, half-close, large segments, slow readers, fairness.

use crate::link::{Conditions, Net, pattern};
use crate::script::{ACK, FIN, RST, SYN, Script};
use bytes::Bytes;
use pilot_proto::stream::{CloseReason, Config, ConnId, DialError, StreamEvent};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn closed(conn: ConnId) -> StreamEvent {
    StreamEvent::Closed(conn, CloseReason::Closed)
}

fn wait_for(net: &mut Net, side: usize, event: StreamEvent) {
    net.run_until(120 * SECOND, |net| net.sides[side].count(&event) > 0);
}

// ---- negotiation -------------------------------------------------------------------------------------------

#[test]
fn options_are_agreed_whatever_is_lost_or_repeated_during_the_opening() {
    for seed in 0..20 {
        let conditions = Conditions { loss: 300, duplicate: 200, ..Conditions::default() };
        let mut net = Net::own(seed, conditions);
        let (a, b) = net.connect();
        assert!(net.sides[0].streams.half_close(a) && net.sides[1].streams.half_close(b));
        let data = pattern(5000);
        net.send(0, a, data.clone());
        net.send(1, b, data.clone());
        net.run_until(60 * SECOND, |net| {
            net.received(1, b).len() >= 5000 && net.received(0, a).len() >= 5000
        });
        assert!(net.received(1, b) == data && net.received(0, a) == data);
    }
}

#[test]
fn a_peer_without_extensions_gets_the_plain_protocol() {
    let plain = Config { extensions: false, ..Config::default() };
    for configs in [[Config::default(), plain], [plain, Config::default()]] {
        let mut net = Net::new(1, configs, Conditions::default());
        let (a, b) = net.connect();
        assert!(!net.sides[0].streams.half_close(a) && !net.sides[1].streams.half_close(b));
        let data = pattern(50_000);
        net.send(0, a, data.clone());
        net.run_until(10 * SECOND, |net| net.received(1, b).len() >= data.len());
        net.sides[0].streams.close(net.now, a);
        wait_for(&mut net, 0, closed(a));
        wait_for(&mut net, 1, closed(b));
        assert!(net.received(1, b) == data);
    }
}

#[test]
fn options_count_only_if_the_acknowledgement_covers_them() {
    let mut s = Script::new(Config::default());
    let conn = s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let syn = s.drain().remove(0);
    assert!(syn.payload.starts_with(b"PSOP"));
    (s.port, s.peer_port) = (syn.header.src_port, 7);
    // The peer echoes options but acknowledges only the SYN: a reference peer with a curious payload.
    s.send(SYN | ACK, 50, syn.header.seq.wrapping_add(1), 512, &syn.payload);
    assert!(s.happened(&StreamEvent::Connected(conn)) && !s.streams.half_close(conn));
    // An acknowledgement that covers them without options of its own is a stale connection's.
    let mut s = Script::new(Config::default());
    s.streams.dial(s.now, crate::script::US, crate::script::PEER, 7).expect("dial");
    let syn = s.drain().remove(0);
    (s.port, s.peer_port) = (syn.header.src_port, 7);
    let covered = syn.header.seq.wrapping_add(1 + syn.payload.len() as u32);
    let answer = s.send(SYN | ACK, 50, covered, 512, b"PSOPnonsense");
    assert_eq!(answer.iter().map(|p| p.header.flags).collect::<Vec<_>>(), [RST, SYN]);
}

#[test]
fn malformed_options_on_a_syn_mean_a_plain_connection() {
    let mut s = Script::new(Config::default());
    let answer = s.send(SYN, 100, 0, 512, b"PSOP\x01\x09");
    assert_eq!((answer[0].header.ack, answer[0].payload.len()), (101, 0));
}

#[test]
fn large_segments_are_used_up_to_what_path_and_peer_take() {
    let mut net = Net::own(1, Conditions { max_payload: 65_000, ..Conditions::default() });
    net.keep_log = true;
    let (a, b) = net.connect();
    net.send(0, a, pattern(1 << 20));
    net.run_until(10 * SECOND, |net| net.received(1, b).len() >= 1 << 20);
    let largest = net.log.iter().map(|(_, _, packet)| packet.len() - 34).max();
    assert_eq!(largest, Some(60_000));
}

#[test]
fn segments_are_cut_anew_when_the_path_shrinks() {
    let mut net = Net::own(1, Conditions { max_payload: 60_000, ..Conditions::default() });
    let (a, b) = net.connect();
    let data = pattern(1 << 20);
    net.drop = Some(Box::new(|_, packet| packet.payload.len() > 1152));
    net.send(0, a, data.clone());
    net.run_for(3 * SECOND);
    let got = net.received(1, b).len();
    assert!(got > 0 && got < data.len(), "in a black hole small packets go after each timeout: {got}");
    let peer = Net::addr(1).node;
    assert_eq!(net.sides[0].streams.take_doubt().map(|(node, _)| node), Some(peer));
    net.conditions.max_payload = 1152;
    net.sides[0].streams.shrink(net.now, peer, 1152);
    net.run_until(SECOND, |net| net.received(1, b).len() >= data.len());
    assert!(net.received(1, b) == data);
}

#[test]
fn look_alikes_of_sack_lists_arrive_intact() {
    let mut net = Net::own(5, Conditions { loss: 50, ..Conditions::default() });
    let (a, b) = net.connect();
    let data = b"SACK\x01\0\0\0\x01\0\0\0\x02".repeat(5000);
    net.send(0, a, data.clone());
    net.run_until(60 * SECOND, |net| net.received(1, b).len() >= data.len());
    assert!(net.received(1, b) == data);
}

// ---- half-close --------------------------------------------------------------------------------------------

#[test]
fn half_close_ends_one_direction_and_leaves_the_other() {
    for loss in [0, 200] {
        let mut net = Net::own(u64::from(loss), Conditions { loss, ..Conditions::default() });
        let (a, b) = net.connect();
        let request = pattern(20_000);
        net.send(0, a, request.clone());
        assert!(net.sides[0].streams.finish(net.now, a));
        wait_for(&mut net, 1, StreamEvent::EndOfStream(b));
        assert!(net.received(1, b) == request);
        let late = net.sides[0].streams.write(net.now, a, Bytes::from_static(b"x"));
        assert_eq!(late, Err(CloseReason::Closed));
        // Much later, the answer.
        net.run_for(30 * SECOND);
        let answer = pattern(300_000);
        net.send(1, b, answer.clone());
        net.run_until(120 * SECOND, |net| net.received(0, a).len() >= answer.len());
        assert!(net.received(0, a) == answer);
        assert!(net.sides[1].streams.finish(net.now, b));
        wait_for(&mut net, 0, StreamEvent::EndOfStream(a));
        wait_for(&mut net, 0, closed(a));
        wait_for(&mut net, 1, closed(b));
        net.run_for(60 * SECOND);
        assert!(net.status().is_empty(), "{:?}", net.status());
    }
}

#[test]
fn every_single_loss_while_closing_is_repaired() {
    // Closing takes a handful of packets: lose the n-th of them, for every n and each way to close.
    for way in 0..4 {
        for nth in 0..8 {
            let mut net = Net::own(nth, Conditions::default());
            let (a, b) = net.connect();
            net.run_for(SECOND);
            let mut seen = 0;
            net.drop = Some(Box::new(move |_, _| {
                seen += 1;
                seen == nth + 1
            }));
            net.send(0, a, pattern(3000));
            match way {
                0 => net.sides[0].streams.close(net.now, a),
                1 => {
                    net.sides[0].streams.close(net.now, a);
                    net.sides[1].streams.close(net.now, b);
                }
                2 => {
                    net.sides[0].streams.finish(net.now, a);
                    net.sides[1].streams.finish(net.now, b);
                }
                _ => {
                    net.sides[0].streams.finish(net.now, a);
                    net.run_for(SECOND);
                    net.sides[0].streams.close(net.now, a);
                }
            }
            wait_for(&mut net, 0, closed(a));
            wait_for(&mut net, 1, closed(b));
            if way != 1 {
                assert!(net.received(1, b) == pattern(3000), "way {way}, packet {nth}");
            }
            net.run_for(60 * SECOND);
            assert!(net.status().is_empty(), "way {way}, packet {nth}: {:?}", net.status());
        }
    }
}

#[test]
fn close_delivers_everything_written_before_it() {
    for loss in [0, 100] {
        let mut net = Net::own(9, Conditions { loss, ..Conditions::default() });
        let (a, b) = net.connect();
        let data = pattern(1_000_000);
        let rest = net.sides[0].streams.write(net.now, a, Bytes::from(data.clone())).expect("open");
        assert!(rest.is_empty());
        net.sides[0].streams.close(net.now, a);
        wait_for(&mut net, 1, closed(b));
        wait_for(&mut net, 0, closed(a));
        assert!(net.received(1, b) == data);
    }
}

#[test]
fn abort_resets_the_peer() {
    let mut net = Net::own(1, Conditions::default());
    let (a, b) = net.connect();
    net.sides[0].streams.abort(net.now, a);
    wait_for(&mut net, 1, StreamEvent::Closed(b, CloseReason::Reset));
    assert_eq!(net.sides[0].count(&StreamEvent::Closed(a, CloseReason::Aborted)), 1);
    assert!(net.status().is_empty());
}

#[test]
fn closing_a_dial_cancels_it() {
    let mut net = Net::own(1, Conditions::default());
    let conn = net.dial();
    net.sides[0].streams.close(net.now, conn);
    net.settle();
    assert_eq!(net.sides[0].count(&StreamEvent::DialFailed(conn, DialError::Cancelled)), 1);
    assert!(net.sides[0].streams.status().is_empty());
}

#[test]
fn a_peer_that_vanishes_is_noticed() {
    let mut net = Net::own(1, Conditions::default());
    let (a, _) = net.connect();
    net.drop = Some(Box::new(|_, _| true));
    net.send(0, a, pattern(5000));
    let (began, limit) = (net.now, Config::default().user_timeout);
    net.run_until(2 * limit, |net| net.sides[0].count(&StreamEvent::Closed(a, CloseReason::DeadPeer)) > 0);
    let after = net.now - began;
    assert!(after >= limit && after < limit + 15 * SECOND, "{after:?}");
}

#[test]
fn a_peer_that_vanishes_is_noticed_sooner_if_its_sleep_is_not_waited_for() {
    let config = Config { user_timeout: Duration::ZERO, ..Config::default() };
    let mut net = Net::new(1, [config, config], Conditions::default());
    let (a, _) = net.connect();
    net.drop = Some(Box::new(|_, _| true));
    net.send(0, a, pattern(5000));
    wait_for(&mut net, 0, StreamEvent::Closed(a, CloseReason::DeadPeer));
}

#[test]
fn a_silent_peer_costs_a_packet_now_and_then_until_it_is_given_up() {
    for write in [0, 5000] {
        let mut net = Net::own(1, Conditions::default());
        let (a, _) = net.connect();
        net.run_for(SECOND);
        net.drop = Some(Box::new(|_, _| true));
        net.keep_log = true;
        net.send(0, a, pattern(write));
        net.run_for(880 * SECOND);
        assert!(net.log.len() <= 2 * 2 * 100, "{} packets", net.log.len());
        assert_eq!(net.status().len(), 2);
        net.run_for(60 * SECOND);
        assert_eq!(net.sides[0].streams.status().len(), 0);
    }
}

#[test]
fn idle_connections_stay_open_and_cost_one_exchange_a_minute() {
    let mut net = Net::own(1, Conditions::default());
    let (a, b) = net.connect();
    net.run_for(SECOND);
    net.keep_log = true;
    net.run_for(600 * SECOND);
    assert!(net.log.len() <= 2 * 2 * 11, "{} packets", net.log.len());
    net.send(0, a, pattern(10));
    net.run_until(SECOND, |net| net.received(1, b).len() == 10);
}

// ---- flow control ------------------------------------------------------------------------------------------

#[test]
fn a_reader_that_resumes_after_a_minute_gets_everything() {
    let plain = Config { extensions: false, ..Config::default() };
    for config in [Config::default(), plain] {
        for loss in [0, 100] {
            let mut net = Net::new(2, [config; 2], Conditions { loss, ..Conditions::default() });
            let (a, b) = net.connect();
            net.sides[1].reads = false;
            let data = pattern(10 << 20);
            net.send(0, a, data.clone());
            net.run_for(60 * SECOND);
            let held = net.sides[1].streams.status()[0].bytes_recv;
            assert!(held <= (4 << 20) + 65_536, "{held} bytes buffered");
            assert!(held >= 3 << 20, "{held} bytes buffered");
            net.sides[1].reads = true;
            let now = net.now;
            net.sides[1].read_all(now, b);
            net.run_until(120 * SECOND, |net| net.received(1, b).len() >= data.len());
            assert!(net.received(1, b) == data, "loss {loss}");
        }
    }
}

#[test]
fn bytes_handed_out_and_not_consumed_keep_the_window_closed() {
    let mut net = Net::own(1, Conditions::default());
    let (a, b) = net.connect();
    net.sides[1].reads = false;
    net.send(0, a, pattern(8 << 20));
    let mut read = 0;
    for _ in 0..50 {
        net.run_for(SECOND / 5);
        while let Some(bytes) = net.sides[1].streams.read(b) {
            read += bytes.len();
        }
    }
    assert!(((3 << 20)..(4 << 20) + 65_536).contains(&read), "{read}");
    let now = net.now;
    net.sides[1].streams.consumed(now, b, read);
    net.sides[1].reads = true;
    net.run_until(30 * SECOND, |net| net.received(1, b).len() + read >= 8 << 20);
}

#[test]
fn a_full_send_buffer_returns_the_rest_and_reports_room() {
    let mut net = Net::own(1, Conditions::default());
    let (a, _) = net.connect();
    let rest = net.sides[0].streams.write(net.now, a, Bytes::from(vec![1; 3 << 20])).expect("open");
    assert_eq!(rest.len(), 1 << 20);
    wait_for(&mut net, 0, StreamEvent::Writable(a));
    let rest = net.sides[0].streams.write(net.now, a, rest).expect("open");
    assert!(rest.len() < 1 << 20);
}

// ---- many connections --------------------------------------------------------------------------------------

#[test]
fn connections_share_a_bottleneck_fairly_and_none_blocks_another() {
    let conditions = Conditions { rate: Some((5_000_000, 60_000)), ..Conditions::default() };
    let config = Config { syn_rate_limit: 0, ..Config::default() };
    let mut net = Net::new(4, [config; 2], conditions);
    let pairs: Vec<_> = (0..8).map(|_| net.connect()).collect();
    for (a, _) in &pairs {
        net.send(0, *a, pattern(8 << 20));
    }
    net.run_for(6 * SECOND);
    let got: Vec<f64> = pairs.iter().map(|(_, b)| net.received(1, *b).len() as f64).collect();
    let sum: f64 = got.iter().sum();
    let jain = sum * sum / (got.len() as f64 * got.iter().map(|x| x * x).sum::<f64>());
    println!("{got:?} Jain {jain:.3}");
    assert!(sum > 0.8 * 30_000_000.0, "bottleneck used: {sum}");
    assert!(jain > 0.8, "fairness {jain:.3} of {got:?}");
    // A small exchange beside the bulk transfers is not starved.
    let (small, other) = net.connect();
    net.send(0, small, pattern(100));
    net.run_until(2 * SECOND, |net| net.received(1, other).len() == 100);
}

#[test]
fn a_blocked_reader_does_not_hold_up_other_connections() {
    let mut net = Net::own(4, Conditions::default());
    let (stuck, _) = net.connect();
    let (a, b) = net.connect();
    net.sides[1].reads = false;
    net.send(0, stuck, pattern(8 << 20));
    net.run_for(10 * SECOND);
    net.send(0, a, pattern(1000));
    net.run_for(SECOND / 10);
    let now = net.now;
    net.sides[1].read_all(now, b);
    assert_eq!(net.received(1, b).len(), 1000);
}

#[test]
fn connections_to_a_node_whose_tunnel_is_down_wait_and_do_not_disturb() {
    let mut net = Net::own(4, Conditions::default());
    let (a, b) = net.connect();
    net.sides[0].ready.set(false);
    net.send(0, a, pattern(1000));
    net.run_for(5 * SECOND);
    assert_eq!(net.received(1, b).len(), 0);
    net.sides[0].ready.set(true);
    // Without being told, the scheduler notices at the next call.
    net.run_until(SECOND, |net| net.received(1, b).len() == 1000);
}

#[test]
fn a_node_that_loses_its_identity_loses_its_connections() {
    let mut net = Net::own(4, Conditions::default());
    let (a, _) = net.connect();
    let dialling = net.dial();
    let now = net.now;
    net.sides[0].streams.reset_node(now, Net::addr(1).node);
    net.settle();
    assert_eq!(net.sides[0].count(&StreamEvent::Closed(a, CloseReason::Reset)), 1);
    assert_eq!(net.sides[0].count(&StreamEvent::DialFailed(dialling, DialError::Cancelled)), 1);
    assert_eq!(net.sides[0].streams.connections_with(Net::addr(1).node), 0);
}

#[test]
fn half_close_fin_carries_its_kind_and_is_acknowledged_by_number() {
    let mut net = Net::own(4, Conditions::default());
    let (a, _) = net.connect();
    net.run_for(SECOND);
    net.keep_log = true;
    net.sides[0].streams.finish(net.now, a);
    net.run_for(SECOND);
    let parse = |bytes: &Vec<u8>| crate::script::Pkt::parse(bytes);
    let packets: Vec<_> = net.log.iter().map(|(_, side, bytes)| (*side, parse(bytes))).collect();
    assert_eq!(packets.len(), 2, "{packets:?}");
    assert_eq!(
        (packets[0].0, packets[0].1.header.flags, &packets[0].1.payload[..]),
        (0, FIN | ACK, &[0u8][..])
    );
    assert_eq!((packets[1].0, packets[1].1.header.flags), (1, ACK));
    assert_eq!(packets[1].1.header.ack, packets[0].1.header.seq.wrapping_add(1));
}

/// Opened by the script as one of our own nodes: SYN number 100 with ten bytes of options, so data begin at 111.
/// Returns the connection and the number to acknowledge.
fn open_own(s: &mut Script) -> (ConnId, u32) {
    let answer = s.send(SYN, 100, 0, 512, OPTIONS);
    let header = answer[0].header;
    assert_eq!((header.flags, header.ack), (SYN | ACK, 111));
    let incoming =
        |e: &StreamEvent| if let StreamEvent::Incoming { conn, .. } = e { Some(*conn) } else { None };
    let conn = s.events.iter().find_map(incoming).expect("incoming connection");
    assert!(s.streams.half_close(conn));
    (conn, header.seq.wrapping_add(1 + answer[0].payload.len() as u32))
}

/// Version 1, half-close.
const OPTIONS: &[u8] = b"PSOP\x01\x01\x01\x02\x01\x01";

#[test]
fn a_straggling_copy_of_the_syn_does_not_end_a_connection_whose_fin_waits_for_data() {
    let mut s = Script::new(Config::default());
    let (conn, ack) = open_own(&mut s);
    s.send(FIN | ACK, 116, ack, 512, &[0]);
    let answer = s.send(SYN, 100, 0, 512, OPTIONS);
    assert!(answer.iter().any(|p| p.header.flags == SYN | ACK && p.header.seq.wrapping_add(19) == ack));
    s.send(ACK, 111, ack, 512, b"\0hello");
    assert_eq!(s.read_all(conn), b"hello");
    assert!(s.happened(&StreamEvent::EndOfStream(conn)));
    assert!(!s.happened(&StreamEvent::Closed(conn, CloseReason::Reset)));
}

#[test]
fn a_straggling_copy_of_the_syn_opens_no_second_connection_after_the_end() {
    let mut s = Script::new(Config::default());
    let (conn, ack) = open_own(&mut s);
    let fin = s.send(FIN | ACK, 111, ack, 512, &[1]);
    s.send(ACK, 112, fin[0].header.seq.wrapping_add(1), 512, &[]);
    assert!(s.happened(&closed(conn)));
    s.send(SYN, 100, 0, 512, OPTIONS);
    assert_eq!(s.events.iter().filter(|e| matches!(e, StreamEvent::Incoming { .. })).count(), 1);
}

#[test]
fn a_fin_numbered_before_bytes_that_have_come_ends_nothing() {
    let mut s = Script::new(Config::default());
    let (conn, ack) = open_own(&mut s);
    s.send(ACK, 111, ack, 512, b"\0hello");
    s.send(FIN | ACK, 113, ack, 512, &[0]);
    assert!(!s.happened(&StreamEvent::EndOfStream(conn)));
    s.send(FIN | ACK, 116, ack, 512, &[0]);
    assert!(s.happened(&StreamEvent::EndOfStream(conn)));
    assert_eq!(s.read_all(conn), b"hello");
}

#[test]
fn an_idle_close_that_the_peer_took_and_forgot_is_still_told_as_idle() {
    let mut s = Script::new(Config { user_timeout: Duration::ZERO, ..Config::default() });
    let (conn, ack) = open_own(&mut s);
    s.send(ACK, 111, ack, 512, b"\0hello");
    assert_eq!(s.read_all(conn), b"hello");
    let sent = s.wait(110 * SECOND);
    assert!(sent.iter().any(|p| p.header.flags & FIN != 0), "{sent:?}");
    assert!(!s.events.iter().any(|e| matches!(e, StreamEvent::Closed(..))), "the FIN is repeated");
    s.send(RST, 0, 0, 0, b"PSNC");
    // What the application wrote after the FIN was refused: in order would be a lie.
    assert!(s.happened(&StreamEvent::Closed(conn, CloseReason::Idle)));
}

#[test]
fn conversations_of_any_size_end_complete_on_a_bad_path() {
    let seeds: u64 = std::env::var("PILOT_STREAM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    for seed in 0..seeds {
        let conditions = Conditions {
            loss: 100,
            duplicate: 50,
            jitter: Duration::from_millis(seed % 4 * 10),
            max_payload: [1152, 9000, 60_000][seed as usize % 3],
            ..Conditions::default()
        };
        let mut net = Net::own(seed, conditions);
        let (a, b) = net.connect();
        let up = pattern(1 + (seed as usize * 7919) % 200_000);
        let down = pattern(1 + (seed as usize * 104_729) % 300_000);
        net.send(0, a, up.clone());
        assert!(net.sides[0].streams.finish(net.now, a));
        net.send(1, b, down.clone());
        wait_for(&mut net, 1, StreamEvent::EndOfStream(b));
        if seed % 2 == 0 {
            assert!(net.sides[1].streams.finish(net.now, b));
        } else {
            net.sides[1].streams.close(net.now, b);
        }
        wait_for(&mut net, 0, closed(a));
        wait_for(&mut net, 1, closed(b));
        assert!(net.received(1, b) == up && net.received(0, a) == down);
        net.run_for(60 * SECOND);
        assert!(net.status().is_empty(), "{:?}", net.status());
    }
}

#[test]
fn what_follows_a_late_syn_from_before_a_reset_is_not_taken_for_data() {
    let mut s = Script::new(Config::default());
    let incoming = |s: &Script| {
        let mut conns = s.events.iter().rev().filter_map(|event| match event {
            StreamEvent::Incoming { conn, .. } => Some(*conn),
            _ => None,
        });
        conns.next().expect("incoming connection")
    };
    let open = |s: &mut Script| {
        let answer = s.send(SYN, 100, 0, 512, OPTIONS).remove(0);
        answer.header.seq.wrapping_add(1 + answer.payload.len() as u32)
    };
    let data = 101 + OPTIONS.len() as u32;
    let before = open(&mut s);
    s.send(RST, 0, 0, 0, &[]);
    // A copy of the SYN comes late, and with it what was sent on the connection that is over.
    let after = open(&mut s);
    assert_ne!(before, after);
    let conn = incoming(&s);
    s.send(ACK, data, before, 512, b"\0old");
    s.send(FIN | ACK, data + 3, before, 512, b"\0");
    assert_eq!(s.read_all(conn), b"");
    assert!(!s.happened(&StreamEvent::EndOfStream(conn)));
    s.send(ACK, data, after, 512, b"\0new");
    assert_eq!(s.read_all(conn), b"new");
}
