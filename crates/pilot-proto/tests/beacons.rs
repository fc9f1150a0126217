//! Two beacons, of which one is lost, while two nodes reach each other through them only.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use pilot_proto::Addr;
use support::*;

/// Two nodes that only relay, known to both beacons, with an upgraded session.
fn world() -> Net {
    let mut net = Net::new();
    net.beacon_up = true;
    for id in [1, 2] {
        net.add(id, pilot_proto::engine::Config { relay_only: true, ..config(id as u8) });
        let now = net.now;
        net.engine(id).set_beacons(now, &[beacon_addr(), other_beacon()]);
    }
    net.run(ms(500));
    send(&mut net, 1);
    net.run(ms(2_000));
    assert_eq!(net.datagrams(2).len(), 1);
    net
}

fn send(net: &mut Net, n: u8) {
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 7, &[n]).unwrap();
}

fn chosen(net: &mut Net, id: u32) -> std::net::SocketAddr {
    net.engine(id).beacons().into_iter().find(|beacon| beacon.chosen).unwrap().addr
}

#[test]
fn relayed_traffic_goes_on_within_five_seconds_after_the_chosen_beacon_is_lost() {
    let mut net = world();
    let lost = chosen(&mut net, 1);
    net.filter = Box::new(move |sent| sent.to != lost && sent.from != lost);
    let start = net.now;
    let mut heard = None;
    for n in 2..200 {
        send(&mut net, n);
        net.run(ms(100));
        if heard.is_none() && !net.datagrams(2).is_empty() {
            heard = Some(net.now - start);
        }
    }
    let heard = heard.expect("nothing came through the other beacon");
    assert!(heard < ms(5_000), "{heard:?}");
    assert_ne!(chosen(&mut net, 1), lost);
}

#[test]
fn replies_and_frames_of_a_stranger_that_calls_itself_a_beacon_change_nothing() {
    let mut net = world();
    let before = (chosen(&mut net, 1), net.engine(1).beacons().len());
    let stranger = std::net::SocketAddr::from(([10, 6, 6, 6], 9001));
    let refused =
        |net: &Net| net.drops(1).iter().find(|(name, _)| *name == "not_the_beacon").map_or(0, |d| d.1);
    let count = refused(&net);
    net.inject(stranger, addr_of(1), &[2, 4, 1, 2, 3, 4, 0, 9]);
    net.inject(stranger, addr_of(1), &[6, 0, 0, 0, 2, b'P', b'I', b'L', b'S']);
    net.run(ms(100));
    assert_eq!(refused(&net), count + 2);
    assert_eq!((chosen(&mut net, 1), net.engine(1).beacons().len()), before);
}
