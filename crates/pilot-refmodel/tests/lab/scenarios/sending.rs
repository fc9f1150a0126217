//! Sending data (spec 03 sections 8, 12, 13).

use super::{Scenario, Timer};
use crate::lab::App;
use crate::lab::packets::{ACK, Pkt, RST};
use crate::lab::script::{Script, noise};
use std::time::Duration;

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "short_writes_wait_for_the_acknowledgement_of_the_one_before_or_40_milliseconds",
            |s| {
                let port = s.accept_dial_after_exchange();
                s.app(App::Send(0, b"one".to_vec()));
                s.wait(10);
                s.app(App::Send(0, b"two".to_vec()));
                s.wait(5);
                s.app(App::Send(0, b"three".to_vec()));
                s.wait(120);
                ack(s, port, 12);
                s.wait(50);
                s.app(App::Send(0, b"four".to_vec()));
                s.wait(10);
                s.app(App::Send(0, b"five".to_vec()));
                s.wait(10);
                ack(s, port, 16);
                s.wait(200);
            },
        ),
        Scenario::new("write_of_4096_bytes_leaves_as_three_full_segments_and_the_rest", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(4096)));
            s.wait(100);
            ack(s, port, 4097);
            s.wait(100);
        }),
        Scenario::new("first_flight_of_a_bulk_write_is_36_segments", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(100_000)));
            s.wait(300);
            ack(s, port, 1 + 4 * 1152);
            s.wait(100);
            ack(s, port, 1 + 36 * 1152);
            s.wait(100);
            ack(s, port, 100_001);
            s.wait(100);
        }),
        Scenario::new("peer_window_counts_segments", |s| {
            let port = s.accept_dial_after_exchange_with(3);
            s.app(App::Send(0, noise(10_000)));
            s.wait(300);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(1153).window(2));
            s.wait(100);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(1 + 3 * 1152).window(512));
            s.wait(100);
            ack(s, port, 10_001);
            s.wait(100);
        }),
        Scenario::new("closed_window_is_probed_by_empty_acks_at_growing_distances", |s| {
            let port = s.accept_dial_after_exchange_with(0);
            s.app(App::Send(0, noise(3_000)));
            s.wait(8_000);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(1).window(512));
            s.wait(200);
        })
        .takes(9),
        Scenario::new("zero_window_in_the_syn_stops_the_echo", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(crate::lab::packets::SYN, 50_008, 7).seq(100).window(0));
            s.wait(50);
            s.send(0, Pkt::stream(ACK, 50_008, 7).seq(101).ack(1).window(0).data("12345"));
            s.wait(1_800);
            s.send(0, Pkt::stream(ACK, 50_008, 7).seq(106).ack(1).window(1));
            s.wait(200);
        })
        .takes(3),
        Scenario::new("segment_nobody_acknowledges_is_sent_eight_times_and_the_connection_reset", |s| {
            s.accept_dial_after_exchange();
            s.app(App::Send(0, b"is anybody there".to_vec()));
            // Signs of life, so that the path is not given up: when that happens depends on the timers' jitter.
            for _ in 0..18 {
                s.wait(3_000);
                s.send(0, Pkt::control(0, 0, 0));
            }
            s.expect_within("the reset", Duration::from_secs(30), |g| g.header.flags == RST);
            s.wait(300);
        })
        .takes(60)
        .timers(&[Timer::Keepalive, Timer::Upgrade])
        .within(600, 26),
        Scenario::new("three_duplicate_acks_repeat_the_first_segment", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(12 * 1152)));
            s.wait(50);
            for _ in 0..5 {
                ack(s, port, 1153);
                s.wait(10);
            }
            s.wait(30);
            ack(s, port, 1 + 12 * 1152);
            s.wait(300);
        }),
        Scenario::new("sack_tells_which_segments_to_skip_and_one_is_repeated_per_ack", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(12 * 1152)));
            s.wait(50);
            let at = |n: u32| 1 + n * 1152;
            ack(s, port, at(2));
            s.wait(5);
            sack(s, port, at(2), &[(at(3), at(5))]);
            sack(s, port, at(2), &[(at(3), at(5)), (at(6), at(8))]);
            sack(s, port, at(2), &[(at(3), at(5)), (at(6), at(9))]);
            s.wait(20);
            sack(s, port, at(5), &[(at(6), at(9))]);
            s.wait(20);
            sack(s, port, at(9), &[]);
            s.wait(20);
            ack(s, port, at(12));
            s.wait(300);
        }),
        Scenario::new("lost_tail_is_repeated_by_the_timeout", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(1152)));
            s.wait(20);
            ack(s, port, 1153);
            s.wait(20);
            s.app(App::Send(0, noise(3 * 1152)));
            s.wait(1_500);
            ack(s, port, 1 + 4 * 1152);
            s.wait(200);
        })
        .within(300, 10),
        Scenario::new("ack_beyond_what_was_sent_is_believed", |s| {
            let port = s.accept_dial_after_exchange();
            ack(s, port, 50_000);
            s.wait(20);
            s.app(App::Send(0, b"hello".to_vec()));
            s.wait(100);
            ack(s, port, 6);
            s.wait(1_500);
        })
        .takes(3)
        .within(300, 10),
        Scenario::new("old_ack_changes_the_window_all_the_same", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(1152)));
            s.wait(30);
            ack(s, port, 1153);
            s.wait(30);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(1).window(0));
            s.wait(30);
            s.app(App::Send(0, noise(1152)));
            s.wait(700);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(1).window(10));
            s.wait(50);
            ack(s, port, 1 + 2 * 1152);
            s.wait(200);
        }),
    ]
}

fn ack(s: &mut Script<'_>, port: u16, ack: u32) {
    s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(ack));
}

fn sack(s: &mut Script<'_>, port: u16, ack: u32, blocks: &[(u32, u32)]) {
    let mut list = b"SACK".to_vec();
    list.push(blocks.len() as u8);
    for (left, right) in blocks {
        list.extend_from_slice(&left.to_be_bytes());
        list.extend_from_slice(&right.to_be_bytes());
    }
    let list = if blocks.is_empty() { Vec::new() } else { list };
    s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(ack).data(list));
    s.wait(3);
}
