//! Closing connections (spec 03 sections 15 and 16).

use super::{Scenario, Timer};
use crate::lab::App;
use crate::lab::packets::{ACK, FIN, Pkt, SYN};
use crate::lab::script::{Script, noise};

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario::new("fin_of_the_peer_is_answered_once", |s| {
            s.echo();
            s.on_echo(101, 1, "bye");
            s.wait(50);
            s.on_echo(104, 4, "");
            s.wait(50);
            fin(s, 104);
            s.wait(100);
            s.send(0, Pkt::stream(FIN | ACK, 50_001, 7).seq(105).ack(5).window(0));
            s.wait(300);
            fin(s, 104);
            s.wait(200);
        }),
        Scenario::new("fin_ahead_of_missing_data_is_held_until_they_come", |s| {
            s.echo();
            s.on_echo(101, 1, "abc");
            s.wait(50);
            s.on_echo(104, 4, "");
            fin(s, 114);
            s.wait(100);
            fin(s, 114);
            s.wait(100);
            s.on_echo(104, 4, "0123456789");
            s.wait(100);
            s.send(0, Pkt::stream(FIN | ACK, 50_001, 7).seq(115).ack(5).window(0));
            s.wait(300);
        }),
        Scenario::new("fin_ahead_of_data_that_never_come_is_handled_after_15_seconds", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(FIN, 50_001, 2000).seq(200).window(0));
            s.wait(16_500);
        })
        .takes(18),
        Scenario::new("fin_behind_the_expected_number_is_handled_at_once", |s| {
            s.echo();
            s.on_echo(101, 1, "0123456789");
            s.wait(50);
            s.on_echo(111, 11, "");
            fin(s, 60);
            s.wait(300);
        }),
        Scenario::new("fin_with_a_payload_counts_without_it", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(FIN, 50_001, 2000).seq(101).data("lost").window(0));
            s.wait(300);
        }),
        Scenario::new("close_by_the_application_sends_a_fin_and_answers_the_fin_ack", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Close(0));
            s.expect("the FIN", |g| g.header.flags == FIN);
            s.send(0, Pkt::stream(FIN | ACK, 2000, port).seq(501).ack(2).window(0));
            s.wait(300);
            s.send(0, Pkt::stream(FIN | ACK, 2000, port).seq(501).ack(2).window(0));
            s.wait(200);
        }),
        Scenario::new("close_with_unacknowledged_data_holds_the_fin_until_they_are_acknowledged", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, b"last words".to_vec()));
            s.wait(20);
            s.app(App::Close(0));
            s.wait(300);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(11));
            s.wait(100);
            s.send(0, Pkt::stream(FIN | ACK, 2000, port).seq(501).ack(12).window(0));
            s.wait(300);
        }),
        Scenario::new("close_with_data_nobody_acknowledges_sends_the_fin_after_five_seconds", |s| {
            s.accept_dial_after_exchange();
            s.app(App::Send(0, b"last words".to_vec()));
            s.wait(20);
            s.app(App::Close(0));
            s.wait(7_000);
        })
        .takes(8)
        .within(400, 20),
        Scenario::new("fin_of_the_peer_while_the_own_fin_is_held_ends_the_wait", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, b"last words".to_vec()));
            s.wait(20);
            s.app(App::Close(0));
            s.wait(100);
            s.send(0, Pkt::stream(FIN, 2000, port).seq(501).window(0));
            s.wait(6_000);
        })
        .takes(7),
        Scenario::new("fin_wait_ends_ten_seconds_after_the_last_activity", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Close(0));
            s.wait(27_000);
            s.send(0, Pkt::stream(FIN | ACK, 2000, port).seq(501).ack(2).window(0));
            s.wait(300);
        })
        .takes(29),
        Scenario::new("close_of_both_applications_draws_a_second_fin_ack", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(FIN, 50_001, 2000).seq(101).window(0));
            s.wait(100);
            s.app(App::Close(0));
            s.wait(100);
            s.send(0, Pkt::stream(FIN | ACK, 50_001, 2000).seq(102).ack(2).window(0));
            s.wait(300);
        }),
        Scenario::new("lost_fin_is_not_repeated", |s| {
            s.accept_dial_after_exchange();
            s.app(App::Close(0));
            s.wait(6_000);
        })
        .takes(7),
        Scenario::new("data_in_fin_wait_are_neither_taken_nor_acknowledged", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Close(0));
            s.wait(50);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(2).data("too late"));
            s.wait(200);
            s.send(0, Pkt::stream(FIN, 2000, port).seq(509).window(0));
            s.wait(200);
        }),
        Scenario::new("fin_of_the_peer_ends_the_sending_of_unacknowledged_data", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, noise(5_000)));
            s.wait(50);
            s.send(0, Pkt::stream(FIN, 2000, port).seq(501).window(0));
            s.wait(1_500);
        })
        .takes(3),
        Scenario::new("syn_on_a_connection_in_time_wait_opens_a_new_one", |s| {
            s.echo();
            fin(s, 101);
            s.wait(100);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(900));
            s.wait(50);
            s.on_echo(901, 1, "new");
            s.wait(200);
        }),
        Scenario::new("syn_while_an_early_fin_is_held_opens_a_new_connection", |s| {
            s.echo();
            fin(s, 150);
            s.wait(50);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(900));
            s.wait(50);
            s.on_echo(901, 1, "new");
            s.wait(200);
        }),
        Scenario::new("data_on_a_closed_connection_are_ignored", |s| {
            s.echo();
            fin(s, 101);
            s.wait(100);
            s.on_echo(101, 1, "late");
            s.on_echo(102, 1, "later");
            s.wait(300);
        }),
        Scenario::new("idle_connection_is_probed_and_closed_by_a_fin", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(101).ack(1).data("the last"));
            s.wait_alive(125);
        })
        .takes(126)
        .timers(&[Timer::Sweep])
        .within(450, 0),
        Scenario::new("keepalive_answered_by_an_empty_ack_keeps_the_connection", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.wait_alive(70);
            s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(101).ack(1));
            s.wait_alive(55);
        })
        .takes(126)
        .timers(&[Timer::Sweep])
        .within(450, 0),
    ]
}

fn fin(s: &mut Script<'_>, seq: u32) {
    s.send(0, Pkt::stream(FIN, 50_001, 7).seq(seq).window(0));
}
