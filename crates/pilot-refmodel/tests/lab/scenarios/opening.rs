//! Opening connections (spec 03 section 6).

use super::{Scenario, Timer};
use crate::lab::App;
use crate::lab::packets::{ACK, FIN, Pkt, RST, SYN};
use std::time::Duration;

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario::new("syn_to_a_closed_port_is_reset", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_003, 4242).seq(77));
            s.send(0, Pkt::stream(SYN, 50_003, 50_100).seq(77));
            s.wait(300);
        }),
        Scenario::new("syn_is_accepted_with_any_number_and_data_cross_the_wrap", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(u32::MAX - 15));
            s.wait(50);
            s.on_echo(u32::MAX - 14, 1, "0123456789abcdefghijklmnop");
            s.wait(100);
            s.on_echo(11, 27, "");
            s.wait(200);
        }),
        Scenario::new("syn_repeated_draws_the_same_syn_ack_with_the_current_number", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(100));
            s.wait(100);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(100));
            s.wait(100);
            s.on_echo(101, 1, "ten bytes.");
            s.wait(100);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(9_999));
            s.wait(100);
        }),
        Scenario::new("syn_with_a_payload_is_a_plain_syn", |s| {
            s.exchange(0);
            let options = b"PSOP\x01\x01\x01\x02\x01\x01\x03\x02\x04\x80\x04\x02\x04\x80";
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(100).data(options));
            s.wait(100);
            s.on_echo(101, 1, "data begin right after the SYN");
            s.wait(200);
        }),
        Scenario::new("syn_with_fin_or_rst_is_a_syn", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN | FIN, 50_001, 7).seq(100));
            s.send(0, Pkt::stream(SYN | RST, 50_002, 7).seq(100));
            s.wait(200);
        }),
        Scenario::new("packets_of_unknown_connections_are_ignored", |s| {
            s.exchange(0);
            for flags in [ACK, FIN, FIN | ACK, SYN | ACK, RST, 0] {
                s.send(0, Pkt::stream(flags, 50_099, 7).seq(5).ack(5).data("data"));
                s.send(0, Pkt::stream(flags, 50_099, 7).seq(5).ack(5));
            }
            s.wait(300);
        }),
        Scenario::new("packets_without_flags_are_ignored", |s| {
            s.echo();
            s.send(0, Pkt::stream(0, 50_001, 7).seq(101).ack(1).data("no flags"));
            s.wait(200);
            s.on_echo(101, 1, "flags");
            s.wait(200);
        }),
        Scenario::new("syn_of_a_stranger_to_a_private_node_is_ignored", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 7).seq(100));
            s.send(0, Pkt::stream(SYN, 50_001, 4242).seq(100));
            s.wait(500);
        })
        .private(),
        Scenario::new("reply_window_of_a_contact_opens_ports_444_and_1001_of_a_private_node", |s| {
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 444).seq(100));
            s.send(0, Pkt::stream(SYN, 50_002, 1001).seq(100));
            s.wait(200);
            s.accept_dial(0, 512);
            s.send(0, Pkt::stream(SYN, 50_003, 7).seq(100));
            s.wait(200);
            s.send(0, Pkt::stream(SYN, 50_001, 1001).seq(100));
            s.wait(300);
        })
        .private(),
        Scenario::new("syns_over_the_budget_of_a_source_are_ignored", |s| {
            s.exchange(0);
            for port in 0..90 {
                s.send(0, Pkt::stream(SYN, 50_000 + port, 7).seq(100));
            }
            s.wait(300);
        }),
        Scenario::new("syn_to_a_bound_port_reaches_the_application", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.open(0, 50_001, 2000);
            s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(101).ack(1).data("hello"));
            s.wait(200);
            s.app(App::Send(0, b"hello yourself".to_vec()));
            s.wait(200);
        }),
        Scenario::new("dial_is_answered_and_data_flow_both_ways", |s| {
            let port = s.accept_dial_after_exchange();
            s.app(App::Send(0, b"from the application".to_vec()));
            s.expect("the data", |g| g.payload.len() == 20);
            s.send(0, Pkt::stream(ACK, 2000, port).seq(501).ack(21).data("to the application"));
            s.wait(300);
        }),
        Scenario::new("dial_repeats_the_syn_and_moves_to_the_relay", |s| {
            s.exchange(0);
            s.app(App::Dial(0, 2000));
            s.wait(19_000);
        })
        .takes(20)
        .timers(&[Timer::Upgrade])
        .within(250, 1),
        Scenario::new("dial_refused", |s| {
            s.exchange(0);
            s.app(App::Dial(0, 2000));
            let syn = s.expect("the SYN", |g| g.header.flags == SYN);
            s.send(0, Pkt::stream(RST, 2000, syn.header.src_port).window(0));
            s.wait(200);
        }),
        Scenario::new("dial_takes_a_syn_ack_whatever_it_acknowledges", |s| {
            s.exchange(0);
            s.app(App::Dial(0, 2000));
            let syn = s.expect("the SYN", |g| g.header.flags == SYN);
            let answer = Pkt::stream(SYN | ACK, 2000, syn.header.src_port).seq(500).ack(99_999);
            s.send(0, answer.clone());
            s.wait(100);
            s.send(0, answer);
            s.wait(300);
        }),
        Scenario::new("dial_first_contact_punches_and_sends_the_exchange_both_ways", |s| {
            s.app(App::Dial(0, 2000));
            s.expect_exchanges(2, Duration::from_secs(3));
            s.exchange_quietly(0);
            let syn = s.expect("the SYN", |g| g.header.flags == SYN);
            s.send(0, Pkt::stream(SYN | ACK, 2000, syn.header.src_port).seq(500).ack(1));
            s.wait(300);
        }),
        Scenario::new("dial_of_an_unknown_node_fails_at_once", |s| {
            s.register(0, None);
            s.app(App::Dial(0, 2000));
            s.wait(500);
        }),
        Scenario::new("syn_ack_lost_is_repeated_for_the_repeated_syn_and_the_data_come_after", |s| {
            s.app(App::Bind(2000));
            s.exchange(0);
            s.send(0, Pkt::stream(SYN, 50_001, 2000).seq(100));
            s.wait(250);
            s.send(0, Pkt::stream(SYN, 50_001, 2000).seq(100));
            s.wait(250);
            s.send(0, Pkt::stream(ACK, 50_001, 2000).seq(101).ack(1).data("no third packet needed"));
            s.wait(200);
        }),
    ]
}
