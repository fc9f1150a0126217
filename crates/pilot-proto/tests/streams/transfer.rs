//! Bulk transfers: everything arrives, intact, in bounded time.

use crate::link::{Conditions, Net, pattern};
use pilot_proto::stream::{Config, CongestionKind, StreamEvent};
use std::time::Duration;

const MEGABYTE: usize = 1 << 20;

/// Time one megabyte takes from side 0 to side 1, after connecting.
fn transfer(seed: u64, configs: [Config; 2], conditions: Conditions) -> Duration {
    let mut net = Net::new(seed, configs, conditions);
    let (a, b) = net.connect();
    let start = net.now;
    let data = pattern(MEGABYTE);
    net.send(0, a, data.clone());
    net.run_until(Duration::from_secs(300), |net| net.received(1, b).len() >= data.len());
    assert!(net.received(1, b) == data, "bytes differ");
    net.now - start
}

fn reference() -> Config {
    Config { extensions: false, ..Config::default() }
}

/// Loss in each direction (per mille) and the time one megabyte may take on a path of 20 ms round trip.
const MATRIX: [(u32, Duration); 4] = [
    (0, Duration::from_millis(300)),
    (10, Duration::from_millis(1500)),
    (50, Duration::from_secs(3)),
    (200, Duration::from_secs(6)),
];

#[test]
fn a_megabyte_arrives_intact_in_bounded_time_at_every_loss_rate() {
    for (loss, bound) in MATRIX {
        for configs in [[Config::default(); 2], [reference(), Config::default()], [reference(); 2]] {
            for congestion in [CongestionKind::Cubic, CongestionKind::Aimd] {
                let configs = configs.map(|config| Config { congestion, ..config });
                let own = configs.iter().all(|config| config.extensions);
                let took =
                    transfer(u64::from(loss) + 1, configs, Conditions { loss, ..Conditions::default() });
                println!("loss {loss}/1000 own {own} {congestion:?}: {took:?}");
                assert!(took <= bound, "loss {loss}/1000 own {own} {congestion:?}: {took:?} > {bound:?}");
            }
        }
    }
}

#[test]
fn reordering_duplication_and_loss_together_change_nothing() {
    for seed in 0..4 {
        let conditions = Conditions {
            jitter: Duration::from_millis(15),
            duplicate: 100,
            loss: 20,
            ..Conditions::default()
        };
        let took = transfer(seed, [Config::default(); 2], conditions);
        assert!(took < Duration::from_secs(20), "{took:?}");
        let took = transfer(seed, [reference(); 2], conditions);
        assert!(took < Duration::from_secs(20), "reference rules: {took:?}");
    }
}

#[test]
fn a_bottleneck_with_a_small_queue_is_filled() {
    // 100 Mbit/s, 60 KB of queue, 20 ms round trip.
    let conditions = Conditions { rate: Some((12_500_000, 60_000)), ..Conditions::default() };
    let took = transfer(1, [Config::default(); 2], conditions);
    assert!(took < Duration::from_millis(600), "{took:?}");
}

#[test]
fn after_an_outage_a_whole_window_is_resent_as_fast_as_the_path_allows() {
    for congestion in [CongestionKind::Cubic, CongestionKind::Aimd] {
        // 100 Mbit/s, 250 KB of queue, 20 ms round trip.
        let conditions = Conditions { rate: Some((12_500_000, 250_000)), ..Conditions::default() };
        let config = Config { congestion, ..Config::default() };
        let mut net = Net::new(1, [config; 2], conditions);
        let (a, b) = net.connect();
        let data = pattern(8 * MEGABYTE);
        net.send(0, a, data.clone());
        net.run_until(Duration::from_secs(10), |net| net.received(1, b).len() >= data.len() / 4);
        net.conditions.loss = 1000;
        net.run_for(Duration::from_millis(1500));
        net.conditions.loss = 0;
        let (back, had) = (net.now, net.received(1, b).len());
        net.run_until(Duration::from_secs(30), |net| net.received(1, b).len() >= data.len());
        assert!(net.received(1, b) == data, "bytes differ");
        let took = net.now - back;
        println!("{congestion:?}: {} bytes in {took:?}", data.len() - had);
        assert!(took < Duration::from_secs(2), "{congestion:?}: {took:?}");
    }
}

#[test]
fn large_segments_through_a_small_receive_buffer_do_not_collapse() {
    // Loopback: 60,000-byte segments, a socket buffer of 212,992 bytes drained at 1 GB/s.
    let conditions = Conditions {
        delay: Duration::from_micros(20),
        rate: Some((1_000_000_000, 212_992)),
        max_payload: 60_000,
        ..Conditions::default()
    };
    let mut net = Net::own(1, conditions);
    let (a, b) = net.connect();
    let start = net.now;
    let data = pattern(64 * MEGABYTE);
    net.send(0, a, data.clone());
    net.run_until(Duration::from_secs(10), |net| net.received(1, b).len() >= data.len());
    assert!(net.received(1, b) == data, "bytes differ");
    let rate = data.len() as f64 / (net.now - start).as_secs_f64() / 1e6;
    println!("{rate:.0} MB/s");
    assert!(rate > 500.0, "{rate:.0} MB/s of 1000");
}

#[test]
fn both_directions_at_once() {
    let mut net = Net::own(3, Conditions { loss: 10, ..Conditions::default() });
    let (a, b) = net.connect();
    let (up, down) = (pattern(300_000), pattern(500_000));
    net.send(0, a, up.clone());
    net.send(1, b, down.clone());
    net.run_until(Duration::from_secs(30), |net| {
        net.received(1, b).len() == up.len() && net.received(0, a).len() == down.len()
    });
    assert!(net.received(1, b) == up && net.received(0, a) == down);
    assert_eq!(net.sides[0].count(&StreamEvent::Connected(a)), 1);
}
