//! Every kind of NAT, measured from outside as RFC 4787 and RFC 5780 do: which external ports a socket gets, who
//! may send to them, and for how long.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Udp, behind, wait_until};
use pilot_netlab::{Dependence, Host, Lab, Link, Nat};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const LAN: &[&str] = &["192.168.1.0/24"];

/// Two hosts outside; three sockets: one address with two ports, and another address.
struct Outside<'a> {
    first: Udp<'a>,
    other_port: Udp<'a>,
    other_addr: Udp<'a>,
}

impl<'a> Outside<'a> {
    fn new(one: &'a Host, two: &'a Host) -> Outside<'a> {
        let first = Udp::bind(one, one.v4(), 3478);
        Outside {
            first,
            other_port: Udp::bind(one, one.v4(), 3479),
            other_addr: Udp::bind(two, two.v4(), 3478),
        }
    }
}

/// How a NAT treats one internal socket.
#[derive(Debug, PartialEq)]
struct Measured {
    mapping: Dependence,
    filtering: Dependence,
}

fn dependence(same_for_other_port: bool, same_for_other_addr: bool) -> Dependence {
    match (same_for_other_port, same_for_other_addr) {
        (true, true) => Dependence::Independent,
        (true, false) => Dependence::Address,
        (false, false) => Dependence::AddressAndPort,
        (false, true) => panic!("distinguishes ports but not addresses"),
    }
}

fn measure(inside: &Host, outside: &Outside<'_>) -> Measured {
    // Filtering, with one peer known.
    let socket = Udp::bind(inside, inside.v4(), 0);
    socket.send(outside.first.addr(), b"hello");
    let (mapped, _) = outside.first.recv();
    outside.other_port.send(mapped, b"other port");
    outside.other_addr.send(mapped, b"other address");
    let heard: Vec<_> = socket.waiting().into_iter().map(|(_, what)| what).collect();
    let filtering =
        dependence(heard.contains(&b"other port".to_vec()), heard.contains(&b"other address".to_vec()));
    outside.first.send(mapped, b"known");
    assert_eq!(socket.recv(), (outside.first.addr(), b"known".to_vec()));

    // Mapping: the external ends towards each of the three.
    socket.send(outside.other_port.addr(), b"hello");
    socket.send(outside.other_addr.addr(), b"hello");
    let (to_port, to_addr) = (outside.other_port.recv().0, outside.other_addr.recv().0);
    Measured { mapping: dependence(to_port == mapped, to_addr == mapped), filtering }
}

#[test]
fn each_kind_maps_and_filters_as_its_name_says() {
    use Dependence::{Address, AddressAndPort, Independent};
    let lab = Lab::with_seed(11).expect("root");
    let one = lab.host("one").on(lab.internet(), Link::new()).start().unwrap();
    let two = lab.host("two").on(lab.internet(), Link::new()).start().unwrap();
    let outside = Outside::new(&one, &two);
    for (name, nat, mapping, filtering) in [
        ("full cone", Nat::full_cone(), Independent, Independent),
        ("address-restricted", Nat::address_restricted(), Independent, Address),
        ("port-restricted", Nat::port_restricted(), Independent, AddressAndPort),
        ("symmetric", Nat::symmetric(), AddressAndPort, AddressAndPort),
        ("predictable", Nat::symmetric_predictable(), AddressAndPort, AddressAndPort),
    ] {
        let router = lab.router(lab.internet(), Link::new(), LAN).unwrap().nat(nat).start();
        let inside = behind(&lab, &router, "inside");
        assert_eq!(measure(&inside, &outside), Measured { mapping, filtering }, "{name}");
        // Two layers behave as the stricter of both.
        let home = lab
            .router(router.lan(), Link::new(), &["10.0.0.0/24"])
            .unwrap()
            .nat(Nat::address_restricted())
            .start();
        let deep = behind(&lab, &home, "deep");
        let filtering = if filtering == Independent { Address } else { filtering };
        assert_eq!(
            measure(&deep, &outside),
            Measured { mapping, filtering },
            "{name} over address-restricted"
        );
    }
    // Without translation the address is the host's own, and anybody may send.
    let router = lab.router(lab.internet(), Link::new(), &["198.51.100.0/24"]).unwrap();
    let router = router.firewall(pilot_netlab::Firewall::open()).start();
    let inside = behind(&lab, &router, "inside");
    assert_eq!(measure(&inside, &outside), Measured { mapping: Independent, filtering: Independent });
    let socket = Udp::bind(&inside, inside.v4(), 0);
    socket.send(outside.first.addr(), b"hello");
    assert_eq!(outside.first.recv().0, socket.addr());
}

#[test]
fn ports_are_kept_random_or_one_after_the_other() {
    let lab = Lab::with_seed(12).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let sockets: Vec<_> = (0..16).map(|i| Udp::bind(&server, server.v4(), 5000 + i)).collect();
    let ports = |nat: Nat| -> Vec<u16> {
        let router = lab.router(lab.internet(), Link::new(), LAN).unwrap().nat(nat).start();
        let inside = behind(&lab, &router, "inside");
        let socket = Udp::bind(&inside, inside.v4(), 4000);
        let seen = sockets.iter().map(|s| {
            socket.send(s.addr(), b"?");
            let (from, _) = s.recv();
            assert_eq!(from.ip(), router.v4());
            from.port()
        });
        seen.collect()
    };
    assert_eq!(ports(Nat::port_restricted()), [4000; 16]);
    let predictable = ports(Nat::symmetric_predictable());
    assert!(predictable.windows(2).all(|w| w[1] == w[0] + 1), "{predictable:?}");
    let random = ports(Nat::symmetric());
    let near = random.windows(2).filter(|w| w[0].abs_diff(w[1]) < 64).count();
    assert!(near <= 1, "{random:?}");
}

#[test]
fn a_mapping_ends_after_its_time_without_traffic() {
    let lab = Lab::with_seed(13).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let at_server = Udp::bind(&server, server.v4(), 5000);
    let nat = Nat::full_cone().timeout(Duration::from_secs(2));
    let router = lab.router(lab.internet(), Link::new(), LAN).unwrap().nat(nat).start();
    let inside = behind(&lab, &router, "inside");
    let socket = Udp::bind(&inside, inside.v4(), 4000);
    let start = Instant::now();
    socket.send(at_server.addr(), b"one");
    let (mapped, _) = at_server.recv();
    assert_eq!(router.mappings(), 1);
    wait_until("the mapping ends", || router.mappings() == 0);
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    at_server.send(mapped, b"too late");
    assert_eq!(socket.waiting(), []);
    assert_eq!(router.counts().nat, 1);
}

#[test]
fn hairpinning_works_where_it_is_on() {
    let lab = Lab::with_seed(14).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let at_server = Udp::bind(&server, server.v4(), 5000);
    for on in [true, false] {
        let nat = Nat::full_cone().hairpin(on);
        let router = lab.router(lab.internet(), Link::new(), LAN).unwrap().nat(nat).start();
        let (a, b) = (behind(&lab, &router, "a"), behind(&lab, &router, "b"));
        let (at_a, at_b) = (Udp::bind(&a, a.v4(), 4001), Udp::bind(&b, b.v4(), 4002));
        at_b.send(at_server.addr(), b"?");
        let (mapped, _) = at_server.recv();
        at_a.send(mapped, b"over the roof");
        let seen_as = SocketAddr::new(router.v4().into(), 4001);
        let expected = if on { vec![(seen_as, b"over the roof".to_vec())] } else { vec![] };
        assert_eq!(at_b.waiting(), expected, "hairpin {on}");
        // On the same network they reach each other in any case.
        at_a.send(at_b.addr(), b"next door");
        assert_eq!(at_b.recv(), (at_a.addr(), b"next door".to_vec()));
    }
}

#[test]
fn a_new_address_outside_forgets_the_old_one() {
    let lab = Lab::with_seed(15).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let at_server = Udp::bind(&server, server.v4(), 5000);
    let router = lab.router(lab.internet(), Link::new(), LAN).unwrap().nat(Nat::full_cone()).start();
    let inside = behind(&lab, &router, "inside");
    let socket = Udp::bind(&inside, inside.v4(), 4000);
    socket.send(at_server.addr(), b"one");
    let (before, _) = at_server.recv();
    router.change_address();
    at_server.send(before, b"to the old address");
    assert_eq!(socket.waiting(), []);
    socket.send(at_server.addr(), b"two");
    let (after, _) = at_server.recv();
    assert_ne!(after.ip(), before.ip());
    at_server.send(after, b"to the new one");
    assert_eq!(socket.recv().1, b"to the new one");
}

#[test]
fn a_host_gets_another_address_while_it_runs() {
    let lab = Lab::with_seed(16).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let at_server = Udp::bind(&server, server.v4(), 5000);
    let host = lab.host("host").on(lab.internet(), Link::new()).start().unwrap();
    let socket = Udp::bind(&host, std::net::Ipv4Addr::UNSPECIFIED, 4000);
    socket.send(at_server.addr(), b"one");
    let (before, _) = at_server.recv();
    host.change_address(0).unwrap();
    socket.send(at_server.addr(), b"two");
    let (after, _) = at_server.recv();
    assert_ne!(after, before);
    assert_eq!(after, SocketAddr::new(host.v4().into(), 4000));
}
