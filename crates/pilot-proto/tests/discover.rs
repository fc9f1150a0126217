//! Discovers of an engine: repeated while unanswered, signed where the registry's beacon takes proofs.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use pilot_proto::engine::{DiscoverProof, Event};
use pilot_proto::wire::discover::SignedDiscover;
use support::*;

fn world() -> Net {
    let mut net = Net::new();
    net.add(1, config(1));
    net.beacon_up = false;
    let now = net.now;
    net.engine(1).set_beacon(now, Some(beacon_addr()));
    net
}

fn reply(cookie: &[u8]) -> Vec<u8> {
    [&[2, 4, 10, 0, 0, 1, 0, 9][..], cookie].concat()
}

fn discovers(net: &Net) -> Vec<(u128, Vec<u8>)> {
    let sent = net.log.iter().filter(|s| s.from == addr_of(1) && s.to == beacon_addr());
    sent.map(|s| ((s.at - net.start).as_millis(), s.bytes.clone())).collect()
}

#[test]
fn a_discover_without_a_reply_is_repeated_four_times_and_an_answered_one_is_not() {
    let mut net = world();
    net.run(ms(12_000));
    let times: Vec<u128> = discovers(&net).into_iter().map(|(at, _)| at).collect();
    // The last repetition is waited for 1.6 s, then the silent beacon is asked again 5 s later.
    assert_eq!(times, [0, 100, 300, 700, 1500, 8_100, 8_200, 8_400, 8_800, 9_600]);
    let mut net = world();
    net.run(ms(50));
    net.inject(beacon_addr(), addr_of(1), &reply(&[]));
    net.run(ms(20_000));
    assert_eq!(discovers(&net).len(), 1);
    assert!(net.take_events(1).iter().any(|e| matches!(e, Event::Observed(_))));
}

#[test]
fn a_signed_discover_shows_the_cookie_of_the_last_reply_and_its_time_grows() {
    let mut net = world();
    net.run(ms(10));
    net.inject(beacon_addr(), addr_of(1), &reply(&[]));
    net.run(ms(10));
    net.log.clear();
    let now = net.now;
    let proof = DiscoverProof { registry: "reg".into(), clock: (now, 1_000_000) };
    net.engine(1).set_discover_proof(now, Some(proof.clone()));
    net.run(ms(10));
    net.inject(beacon_addr(), addr_of(1), &reply(&[7; 8]));
    net.run(ms(10));
    // Every reply may bring another cookie: that is no reason to go on for ever.
    net.inject(beacon_addr(), addr_of(1), &reply(&[8; 8]));
    net.run(ms(10));
    let now = net.now;
    net.engine(1).set_discover_proof(now, Some(DiscoverProof { clock: (now, 500), ..proof }));
    net.run(ms(25_000));
    let sent = discovers(&net);
    let proofs: Vec<_> = sent.iter().map(|(_, bytes)| SignedDiscover::parse(bytes).unwrap()).collect();
    assert!(proofs.iter().all(|p| p.verify("reg") && p.node == 1 && p.key == identity(1).public_key()));
    assert_eq!(proofs.iter().map(|p| p.cookie[0]).collect::<Vec<_>>()[..3], [0, 7, 8]);
    assert!(proofs.windows(2).all(|w| w[0].time < w[1].time), "even if the clock went back");
    assert_eq!(proofs[0].time, 1_000_000);
    net.log.clear();
    let now = net.now;
    net.engine(1).set_discover_proof(now, None);
    net.run(ms(10));
    assert_eq!(discovers(&net)[0].1, [1, 0, 0, 0, 1], "another registry takes none");
}
