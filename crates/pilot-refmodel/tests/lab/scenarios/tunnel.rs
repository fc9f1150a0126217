//! Key exchange, sessions, control packets (spec 02).

use super::{Scenario, Timer};
use crate::lab::App;
use crate::lab::packets::{ACK, Pkt, SYN};
use crate::lab::script::{Script, Via};
use pilot_proto::Addr;
use pilot_proto::crypto::Identity;
use pilot_proto::wire::beacon::Message;
use std::time::Duration;

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario::new("pila_direct_is_answered_directly", |s| {
            s.exchange(0);
            s.wait(500);
        }),
        Scenario::new("pila_relayed_is_answered_through_the_relay", |s| {
            s.via = Via::Relay;
            s.exchange(0);
            ping(s, 7, b"relayed");
            s.wait(500);
        }),
        Scenario::new("pila_repeated_is_not_answered", |s| {
            s.exchange(0);
            let pila = s.peers[0].pila();
            s.raw(0, &pila);
            s.wait(1_000);
            s.raw(0, &pila);
            s.wait(7_000);
            s.raw(0, &pila);
            s.wait(500);
        })
        .takes(9),
        Scenario::new("pila_duplicated_at_once_is_answered_once", |s| {
            let pila = s.peers[0].pila();
            s.raw(0, &pila);
            s.raw(0, &pila);
            s.wait(600);
        }),
        Scenario::new("pila_with_a_new_key_replaces_the_session_and_sends_the_last_packets_again", |s| {
            s.exchange(0);
            ping(s, 1, b"before");
            s.open(0, 50_001, 7);
            s.on_echo(101, 1, "salvage me");
            s.wait(200);
            s.peers[0].restart(0x77);
            s.exchange(0);
            ping(s, 2, b"after");
            s.wait(300);
        }),
        Scenario::new("pila_with_trailing_bytes_is_accepted", |s| {
            let mut pila = s.peers[0].pila();
            pila.extend_from_slice(b"bytes after the 136th");
            s.raw(0, &pila);
            s.expect_exchanges(1, Duration::from_secs(3));
            s.wait(300);
            ping(s, 3, b"there");
            s.wait(200);
        }),
        Scenario::new("pila_with_a_key_the_registry_does_not_know_is_ignored", |s| {
            let wrong = Identity::from_seed([0xEE; 32]).expect("any seed will do");
            let forged = s.peers[0].pila_as(&wrong);
            s.raw(0, &forged);
            s.wait(500);
            s.exchange(0);
            s.raw(0, &forged);
            s.wait(500);
            ping(s, 4, b"unharmed");
            s.wait(200);
        }),
        Scenario::new("pila_with_a_bad_signature_is_ignored", |s| {
            let mut pila = s.peers[0].pila();
            pila[135] ^= 1;
            s.raw(0, &pila);
            s.wait(500);
        }),
        Scenario::new("pila_of_an_unregistered_node_is_ignored", |s| {
            s.register(0, None);
            let pila = s.peers[0].pila();
            s.raw(0, &pila);
            s.wait(500);
        }),
        Scenario::new("pila_with_a_rotated_identity_is_accepted", |s| {
            s.exchange(0);
            let rotated = Identity::from_seed([0x44; 32]).expect("any seed will do");
            s.register(0, Some(*rotated.public_key()));
            s.peers[0].identity = rotated;
            s.peers[0].restart(0x78);
            s.exchange(0);
            ping(s, 5, b"rotated");
            s.wait(200);
        }),
        Scenario::new("exchanges_over_five_per_second_are_ignored", |s| {
            for key in 0..12 {
                s.peers[0].restart(0x30 + key);
                let pila = s.peers[0].pila();
                s.raw(0, &pila);
                s.wait(10);
            }
            s.wait(300);
        }),
        Scenario::new("pilk_of_a_registered_node_that_is_not_in_the_peer_table_is_not_answered", |s| {
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.wait(500);
            s.raw(0, &pilk);
            s.wait(9_000);
        })
        .takes(11),
        Scenario::new("pilk_relayed_of_a_node_that_is_not_in_the_peer_table_is_not_answered", |s| {
            s.via = Via::Relay;
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.wait(500);
            s.raw(0, &pilk);
            s.wait(9_000);
        })
        .takes(11),
        Scenario::new("pilk_of_a_known_node_without_a_session_is_answered_by_pila_and_pilk", |s| {
            unreadable(s);
            s.expect_exchanges(3, Duration::from_secs(3));
            s.wait(300);
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.wait(200);
            let pila = s.peers[0].pila();
            s.raw(0, &pila);
            s.wait(5_000);
        })
        .takes(6)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("pilk_leaves_an_existing_session_alone", |s| {
            s.exchange(0);
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.wait(300);
            ping(s, 6, b"still here");
            s.wait(300);
        }),
        Scenario::new("pilk_that_is_not_followed_by_anything_moves_the_peer_to_the_relay", |s| {
            s.exchange(0);
            ping(s, 1, b"direct");
            s.via = Via::Relay;
            ping(s, 2, b"still direct");
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.expect_exchanges(3, Duration::from_secs(9));
            ping(s, 3, b"relayed");
            s.wait(300);
        })
        .takes(10)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("pilk_of_an_unregistered_node_makes_an_anonymous_session", |s| {
            s.register(0, None);
            let pilk = s.peers[0].pilk();
            s.raw(0, &pilk);
            s.expect_exchanges(1, Duration::from_secs(3));
            s.wait(300);
            ping(s, 8, b"nobody knows me");
            s.open(0, 50_001, 7);
            s.on_echo(101, 1, "hello");
            s.wait(300);
        }),
        Scenario::new("unreadable_frame_is_answered_by_pila_and_pilk_once_in_three_seconds", |s| {
            unreadable(s);
            s.wait(1_000);
            unreadable(s);
            s.wait(2_500);
            s.exchange(0);
            ping(s, 9, b"readable");
            s.wait(300);
        })
        .takes(5)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("unreadable_frame_through_the_relay_is_answered_there", |s| {
            s.via = Via::Relay;
            unreadable(s);
            s.wait(800);
            s.exchange(0);
            s.wait(200);
        })
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("replayed_frame_is_ignored", |s| {
            s.exchange(0);
            let ping = s.addressed(0, Pkt::control(0, 5, 0).seq(1).data("once")).bytes();
            let frame = s.peers[0].seal(&ping);
            for _ in 0..4 {
                s.raw(0, &frame);
                s.wait(100);
            }
            s.wait(300);
        }),
        Scenario::new("five_replays_end_a_session_older_than_a_second", |s| {
            s.exchange(0);
            s.wait(1_200);
            let ping = s.addressed(0, Pkt::control(0, 5, 0).seq(1).data("once")).bytes();
            let frame = s.peers[0].seal(&ping);
            for _ in 0..7 {
                s.raw(0, &frame);
                s.wait(20);
            }
            s.wait(500);
        })
        .takes(3)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("five_forged_tags_end_a_session_older_than_three_seconds", |s| {
            s.exchange(0);
            forge(s, 7);
            ping(s, 1, b"young sessions live on");
            s.wait(3_200);
            forge(s, 4);
            ping(s, 2, b"four are nothing");
            s.wait(100);
            forge(s, 5);
            s.wait(500);
        })
        .takes(6)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("replay_window_is_256_frames_whatever_the_prefix", |s| {
            s.exchange(0);
            counted(s, 1_000, 1);
            counted(s, 745, 2);
            counted(s, 744, 3);
            counted(s, 745, 4);
            s.peers[0].prefix[0] ^= 0xFF;
            counted(s, 1_001, 5);
            counted(s, 1_000, 6);
            s.wait(300);
        }),
        Scenario::new("session_set_up_anew_by_the_peer_with_the_same_key_is_taken_for_replays", |s| {
            s.exchange(0);
            for n in 0..6 {
                ping(s, n, b"first life");
            }
            s.wait(1_200);
            s.peers[0].prefix[1] ^= 0xFF;
            s.peers[0].counter = 0;
            for n in 10..14 {
                ping(s, n, b"taken for a replay");
                s.wait(20);
            }
            s.wait(200);
            for n in 14..18 {
                ping(s, n, b"the fifth ends the session");
                s.wait(20);
            }
            s.wait(500);
        })
        .takes(4)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("garbage_and_short_frames_are_ignored", |s| {
            s.exchange(0);
            for bytes in [
                &b"PIL"[..],
                b"PILX1234567890",
                b"PILA",
                b"PILKxxxxyyyy",
                b"PILSxxxx",
                b"\xFF\xFF\xFF\xFF\xFF",
            ] {
                s.raw(0, bytes);
            }
            let plain =
                [&b"PILT"[..], &s.addressed(0, Pkt::control(0, 5, 0).seq(1).data("plain")).bytes()].concat();
            s.raw(0, &plain);
            s.wait(300);
            ping(s, 1, b"unharmed");
            s.wait(200);
        }),
        Scenario::new("packet_naming_another_source_node_is_ignored", |s| {
            s.exchange(0);
            let other = Addr::backbone(4711);
            s.send(0, Pkt::control(0, 5, 0).seq(1).data("spoofed").from(other));
            let network = Addr { network: 9, node: 100 };
            s.send(0, Pkt::control(0, 5, 0).seq(2).data("other network").from(network));
            s.wait(300);
        }),
        Scenario::new("keepalive_and_pong_are_not_answered_and_ping_is", |s| {
            s.exchange(0);
            s.send(0, Pkt::control(0, 0, 0));
            s.send(0, Pkt::control(ACK, 0, 0).seq(10).data("a pong"));
            s.send(0, Pkt::control(0, 0, 1).seq(11).data("port 1"));
            s.send(0, Pkt::new(9, 0, 5, 7).data("protocol 9"));
            s.wait(200);
            s.send(0, Pkt::control(SYN, 5555, 0).seq(12).data("pathprobe.v1"));
            s.send(0, Pkt::control(0, 5556, 0).seq(13).data("to nobody").to(Addr { network: 3, node: 0 }));
            s.send(0, Pkt::control(0, 5557, 0).seq(14).data("to another").to(Addr { network: 3, node: 77 }));
            s.wait(300);
        }),
        Scenario::new("punch_command_is_obeyed_and_a_punch_ignored", |s| {
            let to = s.address(0);
            s.beacon(&Message::PunchCommand(to));
            s.wait(200);
            s.raw(0, b"PILP");
            s.wait(300);
        }),
        Scenario::new("idle_tunnel_sends_a_keepalive_after_25_seconds", |s| {
            s.exchange(0);
            s.open(0, 50_001, 7);
            s.on_echo(101, 1, "x");
            s.wait(100);
            s.on_echo(102, 2, "");
            s.wait(33_000);
        })
        .takes(34)
        .timers(&[Timer::Keepalive])
        .within(450, 0),
        Scenario::new("silent_peer_is_probed_three_times_and_its_path_reset", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(101).ack(1).data("the last word"));
            s.expect_exchanges(4, Duration::from_secs(110));
            s.wait(500);
        })
        .takes(106)
        .timers(&[Timer::Watchdog, Timer::Keepalive, Timer::Sweep, Timer::Upgrade])
        .within(450, 0),
        Scenario::new("dial_of_a_silent_node_repeats_the_exchange_through_the_relay", |s| {
            s.app(App::Dial(0, 2000));
            s.expect_exchanges(4, Duration::from_secs(14));
            s.wait(300);
        })
        .takes(12)
        .timers(&[Timer::Exchange])
        .within(450, 0),
        Scenario::new("datagram_waits_for_the_key_exchange", |s| {
            s.app(App::Datagram(0, 4242, b"first".to_vec()));
            s.app(App::Datagram(0, 4242, b"second".to_vec()));
            s.expect_exchanges(1, Duration::from_secs(3));
            s.exchange(0);
            s.wait(300);
        }),
        Scenario::new("datagram_reaches_every_client_and_an_empty_one_nobody", |s| {
            s.exchange(0);
            s.send(0, Pkt::new(2, 0, 50_000, 4242).data("for nobody in particular").window(0));
            s.send(0, Pkt::new(2, 0, 50_000, 4242).window(0));
            s.wait(300);
        }),
        Scenario::new("datagram_to_a_private_node_is_ignored_and_a_ping_answered", |s| {
            s.exchange(0);
            s.send(0, Pkt::new(2, 0, 50_000, 4242).data("stranger").window(0));
            s.wait(200);
            ping(s, 5, b"ping");
            s.wait(300);
        })
        .private(),
    ]
}

fn ping(s: &mut Script<'_>, seq: u32, data: &[u8]) {
    s.send(0, Pkt::control(0, 5, 0).seq(seq).data(data));
    s.wait(20);
}

/// A frame for which the node has no session.
fn unreadable(s: &mut Script<'_>) {
    let mut frame = b"PILS".to_vec();
    frame.extend_from_slice(&s.peers[0].node.to_be_bytes());
    frame.extend_from_slice(&[9; 60]);
    s.raw(0, &frame);
}

/// Frames with a wrong tag and fresh counters.
fn forge(s: &mut Script<'_>, count: u64) {
    for n in 0..count {
        let ping = s.addressed(0, Pkt::control(0, 5, 0).seq(1).data("forged")).bytes();
        let mut frame = s.peers[0].seal_as(&ping, 10_000 + n);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        s.raw(0, &frame);
        s.wait(10);
    }
}

fn counted(s: &mut Script<'_>, counter: u64, seq: u32) {
    let ping = s.addressed(0, Pkt::control(0, 5, 0).seq(seq).data("counted")).bytes();
    let frame = s.peers[0].seal_as(&ping, counter);
    s.raw(0, &frame);
    s.wait(20);
}
