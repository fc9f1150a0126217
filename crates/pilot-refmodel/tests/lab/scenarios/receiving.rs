//! Receiving data (spec 03 sections 9 to 12).

use super::Scenario;
use crate::lab::App;
use crate::lab::packets::{ACK, FIN, Pkt, RST, SYN};
use crate::lab::script::{Script, noise};
use std::time::Duration;

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario::new("data_in_order_are_acknowledged_one_by_one_at_first", |s| {
            bound(s);
            for n in 0..8 {
                data(s, 101 + n * 10, "0123456789");
                s.wait(15);
            }
            s.wait(200);
        }),
        Scenario::new("lone_segments_beyond_the_32nd_are_acknowledged_after_five_milliseconds", |s| {
            bound(s);
            for n in 0..40 {
                data(s, 101 + n * 10, "0123456789");
                s.wait(30);
            }
            s.wait(200);
        })
        .takes(3),
        Scenario::new("data_out_of_order_are_acknowledged_by_the_four_highest_blocks", |s| {
            bound(s);
            for n in [1, 3, 5, 7, 9] {
                data(s, 101 + n * 10, "0123456789");
                s.wait(15);
            }
            for n in [0, 2, 4, 6, 8] {
                data(s, 101 + n * 10, "abcdefghij");
                s.wait(15);
            }
            s.wait(200);
        }),
        Scenario::new("reorder_buffer_holds_128_segments", |s| {
            bound(s);
            for n in 1..=140 {
                data(s, 101 + n * 10, "0123456789");
                s.wait(2);
            }
            s.wait(100);
            data(s, 101, "abcdefghij");
            s.wait(200);
            for n in 129..=140 {
                data(s, 101 + n * 10, "0123456789");
                s.wait(15);
            }
            s.wait(100);
        })
        .window(140),
        Scenario::new("data_seen_before_are_acknowledged_again", |s| {
            bound(s);
            data(s, 101, "0123456789");
            s.wait(20);
            data(s, 101, "0123456789");
            s.wait(20);
            data(s, 110, "9");
            s.wait(20);
            data(s, 101, "0123456789 and more");
            s.wait(20);
            data(s, 200, "ahead");
            s.wait(20);
            data(s, 200, "ahead");
            s.wait(200);
        }),
        Scenario::new("retransmission_that_ends_inside_a_held_segment_discards_it", |s| {
            bound(s);
            data(s, 111, "bcdefghijk");
            data(s, 131, "held");
            s.wait(20);
            data(s, 101, "0123456789abcde");
            s.wait(200);
        }),
        Scenario::new("empty_ack_is_never_answered", |s| {
            s.echo();
            s.on_echo(101, 1, "");
            s.on_echo(101, 1, "");
            s.wait(400);
        }),
        Scenario::new("data_that_look_like_a_sack_list_are_swallowed", |s| {
            bound(s);
            data(s, 101, b"SACK\x01xxxxxxxx");
            data(s, 101, b"SACK\x01xxxxxxxx and more");
            s.wait(100);
            data(s, 101, b"S");
            s.wait(20);
            data(s, 102, b"ACK\x01xxxxxxxx and more");
            s.wait(20);
            data(s, 126, b"SACK\x05 is data");
            s.wait(20);
            data(s, 139, b"SACK\x00");
            s.wait(20);
            data(s, 144, b"SACK\x02 too short");
            s.wait(200);
        }),
        Scenario::new("large_segments_are_accepted", |s| {
            bound(s);
            data(s, 101, noise(20_000));
            s.wait(50);
            data(s, 20_101, noise(60_000));
            s.wait(200);
        }),
        Scenario::new("reset_is_honoured_whatever_its_numbers", |s| {
            bound(s);
            data(s, 101, "0123456789");
            s.wait(50);
            s.send(0, Pkt::stream(RST, 50_001, 2000).seq(12_345).ack(999));
            s.wait(100);
            data(s, 111, "unknown now");
            s.wait(200);
        }),
        Scenario::new("third_packet_is_not_needed_and_early_data_are_taken", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(100));
            s.on_echo(101, 1, "at once");
            s.wait(200);
        }),
        Scenario::new(
            "window_shrinks_with_a_client_that_does_not_read_and_is_not_announced_when_it_opens",
            |s| {
                bound(s);
                s.expect_line("app 0 accepted on 2000");
                s.app(App::StopReading);
                s.wait(100);
                let mut seq = 101;
                while s.last_window() != Some(0) {
                    data(s, seq, [0x61; 1152]);
                    seq += 1152;
                    s.expect("the acknowledgement", |g| g.header.ack == seq);
                }
                s.forget_before(seq);
                // The first one occupies the packet worker for a second.
                for n in 0..3 {
                    data(s, seq + n * 1152, [0x61; 1152]);
                }
                s.wait(1_500);
                // An old byte draws the window.
                data(s, 101, [0x61]);
                s.wait(50);
                s.app(App::Read);
                s.wait(2_000);
                data(s, 101, [0x61]);
                s.wait(300);
            },
        )
        .takes(7)
        .window(512),
        Scenario::new("client_that_does_not_read_for_ten_seconds_is_dropped_with_its_connections", |s| {
            bound(s);
            s.open(0, 50_002, 2000);
            s.expect_line("app 1 accepted on 2000");
            s.app(App::StopReading);
            s.wait(100);
            let mut seq = 101;
            while s.last_window() != Some(0) {
                data(s, seq, [0x61; 1152]);
                seq += 1152;
                s.expect("the acknowledgement", |g| g.header.ack == seq);
            }
            s.forget_before(seq);
            s.expect_within("the FIN of the other connection", Duration::from_secs(12), |g| {
                g.header.flags == FIN && g.header.dst_port == 50_002
            });
            s.send(0, Pkt::stream(FIN | ACK, 50_002, 2000).seq(101).ack(2).window(0));
            s.wait(500);
            // The connection that was being read may be left open; it is not read.
            data(s, 101, [0x61]);
            s.wait(200);
            // The port is free.
            s.send(0, Pkt::stream(SYN, 50_003, 2000).seq(100));
            s.wait(300);
        })
        .takes(14)
        .within(3_000, 0)
        // Two tasks of the daemon race for the connection whose application does not read: it is closed in some runs and
        // left alone, and then answers, in others.
        .either(&["direct 100.0 stream FIN 2000>50001", "direct 100.0 stream ACK 2000>50001"]),
    ]
}

/// A stream from port 50001 to an application that reads and does not answer.
fn bound(s: &mut Script<'_>) {
    s.app(App::Bind(2000));
    s.exchange(0);
    s.open(0, 50_001, 2000);
}

fn data(s: &mut Script<'_>, seq: u32, data: impl AsRef<[u8]>) {
    s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(seq).ack(1).data(data));
}
