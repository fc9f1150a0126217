//! Three nodes and a beacon under arbitrary trouble. Whatever happened, once the network is whole again every node
//! reaches every other; at no time does a timer fire without end, and no datagram is ever delivered twice or changed.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use pilot_proto::path::Candidate;
use pilot_proto::{Addr, NodeId};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use support::*;

#[derive(Debug, Clone)]
enum Trouble {
    Send(NodeId, NodeId),
    Wait(u64),
    /// The process starts anew, with or without a registry entry for its new address.
    Restart(NodeId, u8),
    Forget(NodeId, NodeId),
    /// The NAT gives it another address.
    Move(NodeId, u8),
    Cut(NodeId, NodeId),
    Mend,
    Loss(u8),
    Beacon(bool),
    Unreachable(NodeId, NodeId),
}

fn node() -> impl Strategy<Value = NodeId> {
    1u32..=3
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        6 => (node(), node()).prop_map(|(a, b)| Trouble::Send(a, b)),
        6 => (1u64..8_000).prop_map(Trouble::Wait),
        1 => (node(), 10u8..200).prop_map(|(a, seed)| Trouble::Restart(a, seed)),
        1 => (node(), node()).prop_map(|(a, b)| Trouble::Forget(a, b)),
        1 => (node(), 10u8..200).prop_map(|(a, n)| Trouble::Move(a, n)),
        1 => (node(), node()).prop_map(|(a, b)| Trouble::Cut(a, b)),
        1 => Just(Trouble::Mend),
        1 => (0u8..60).prop_map(Trouble::Loss),
        1 => any::<bool>().prop_map(Trouble::Beacon),
        1 => (node(), node()).prop_map(|(a, b)| Trouble::Unreachable(a, b)),
    ]
}

#[derive(Default)]
struct Weather {
    cut: BTreeSet<(std::net::SocketAddr, std::net::SocketAddr)>,
    /// Percent of datagrams lost.
    loss: u8,
    count: u32,
}

fn join(net: &mut Net, id: NodeId) {
    let now = net.now;
    net.engine(id).set_beacon(now, Some(beacon_addr()));
}

fn check(net: &mut Net, seen: &mut BTreeSet<(NodeId, Vec<u8>)>) {
    for id in 1..=3 {
        for payload in net.datagrams(id) {
            assert_eq!(payload[0], id as u8, "delivered to the right node");
            assert!(seen.insert((id, payload.clone())), "{payload:?} delivered twice to {id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_node_reaches_every_other_once_the_network_is_whole(
        troubles in proptest::collection::vec(trouble(), 1..60),
    ) {
        let mut net = Net::new();
        net.beacon_up = true;
        for id in 1..=3 {
            net.add(id, config(id as u8));
            join(&mut net, id);
        }
        let weather = Rc::new(RefCell::new(Weather::default()));
        let sky = weather.clone();
        net.filter = Box::new(move |s| {
            let mut sky = sky.borrow_mut();
            sky.count = sky.count.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let lost = (sky.count >> 16) % 100 < u32::from(sky.loss);
            !lost && !sky.cut.contains(&(s.from, s.to))
        });
        let mut serial = 0u32;
        let mut seen = BTreeSet::new();
        for trouble in troubles {
            let now = net.now;
            match trouble {
                Trouble::Send(a, b) if a != b => {
                    serial += 1;
                    let payload = [&[b as u8][..], &serial.to_be_bytes()].concat();
                    let _ = net.engine(a).send_datagram(now, Addr::backbone(b), 1, &payload);
                }
                Trouble::Wait(time) => net.run(ms(time)),
                Trouble::Restart(a, seed) => {
                    check(&mut net, &mut seen);
                    // What the old process took may be taken again by the new one.
                    seen.retain(|(id, _)| *id != a);
                    let addr = net.hosts[&a].addr;
                    net.add(a, config(seed));
                    net.hosts.get_mut(&a).unwrap().addr = addr;
                    join(&mut net, a);
                }
                Trouble::Forget(a, b) if a != b => net.engine(a).forget_peer(now, b),
                Trouble::Move(a, n) => {
                    let addr = std::net::SocketAddr::from(([10, 0, a as u8, n], 4000));
                    net.hosts.get_mut(&a).unwrap().addr = addr;
                    net.routes.get_mut(&a).unwrap().direct = vec![Candidate::guessed(addr)];
                }
                Trouble::Cut(a, b) => {
                    let pair = (net.hosts[&a].addr, net.hosts[&b].addr);
                    weather.borrow_mut().cut.insert(pair);
                }
                Trouble::Mend => weather.borrow_mut().cut.clear(),
                Trouble::Loss(percent) => weather.borrow_mut().loss = percent,
                Trouble::Beacon(up) => net.beacon_up = up,
                Trouble::Unreachable(a, b) => {
                    let to = net.hosts[&b].addr;
                    net.engine(a).handle_unreachable(now, to);
                }
                Trouble::Send(..) | Trouble::Forget(..) => {}
            }
            net.poll(1);
            check(&mut net, &mut seen);
        }
        *weather.borrow_mut() = Weather::default();
        net.beacon_up = true;
        let mut missing: BTreeSet<(NodeId, NodeId)> =
            (1..=3).flat_map(|a| (1..=3).map(move |b| (a, b))).filter(|(a, b)| a != b).collect();
        for round in 0..25u8 {
            for (a, b) in missing.clone() {
                let now = net.now;
                let payload = [b as u8, 0xFF, a as u8, round, 0, 0];
                let _ = net.engine(a).send_datagram(now, Addr::backbone(b), 1, &payload);
            }
            net.run(SECOND);
            for id in 1..=3 {
                for payload in net.datagrams(id) {
                    assert!(seen.insert((id, payload.clone())), "{payload:?} delivered twice to {id}");
                    if payload.len() == 6 {
                        missing.remove(&(NodeId::from(payload[2]), id));
                    }
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        assert!(missing.is_empty(), "still unreachable after 25 s: {missing:?}");
    }
}
