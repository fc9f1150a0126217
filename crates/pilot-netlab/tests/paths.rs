//! MTUs, firewalls and protocols other than UDP on the way.

#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, Udp, behind, wait_until};
use pilot_netlab::{Firewall, Host, Lab, Link, Nat};
use rustix::net::sockopt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

const LAN: &[&str] = &["192.168.1.0/24", "2001:db8:1::/64"];
/// IP and UDP headers, in bytes.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

fn lab(seed: u64, link: Link) -> (Lab, Host, pilot_netlab::Router, Host) {
    let lab = Lab::with_seed(seed).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let router = lab.router(lab.internet(), link, LAN).unwrap().nat(Nat::port_restricted()).start();
    let inside = behind(&lab, &router, "inside");
    (lab, server, router, inside)
}

/// A socket of a host connected to a server's, both of the family asked for.
fn connected<'a>(inside: &'a Host, server: &'a Host, v6: bool) -> (Udp<'a>, Udp<'a>) {
    let (here, there): (IpAddr, IpAddr) =
        if v6 { (inside.v6().into(), server.v6().into()) } else { (inside.v4().into(), server.v4().into()) };
    let (at_inside, at_server) = (Udp::bind(inside, here, 0), Udp::bind(server, there, 5000));
    at_inside.socket.connect(at_server.addr()).unwrap();
    (at_inside, at_server)
}

#[test]
fn icmp_tells_the_sender_of_a_narrower_link_beyond_the_nat() {
    let (_lab, server, router, inside) = lab(21, Link::new().mtu(1400));
    for (v6, headers) in [(false, HEADERS_V4), (true, HEADERS_V6)] {
        let (at_inside, at_server) = connected(&inside, &server, v6);
        at_inside.socket.send(&vec![7; 1400 - headers]).unwrap();
        assert_eq!(at_server.recv().1.len(), 1400 - headers);
        let too_big = router.link_counts().0.too_big;
        at_inside.socket.send(&vec![7; 1401 - headers]).unwrap();
        wait_until("the link refuses it", || router.link_counts().0.too_big == too_big + 1);
        // The kernel now knows the path's MTU: from the ICMP message, translated back to this socket.
        let learnt = || {
            let mtu =
                if v6 { sockopt::ipv6_mtu(&at_inside.socket) } else { sockopt::ip_mtu(&at_inside.socket) };
            mtu.unwrap()
        };
        wait_until("the kernel has learnt the MTU", || learnt() == 1400);
    }
}

#[test]
fn a_black_hole_swallows_large_packets_without_a_word() {
    let (_lab, server, router, inside) = lab(22, Link::new().black_hole_mtu(1280));
    for (v6, headers) in [(false, HEADERS_V4), (true, HEADERS_V6)] {
        let (at_inside, at_server) = connected(&inside, &server, v6);
        let too_big = router.link_counts().0.too_big;
        at_inside.send(at_server.addr(), &vec![7; 1281 - headers]);
        assert_eq!(router.link_counts().0.too_big, too_big + 1);
        at_inside.send(at_server.addr(), &vec![8; 1280 - headers]);
        assert_eq!(at_server.recv().1, vec![8; 1280 - headers]);
        let mtu = if v6 { sockopt::ipv6_mtu(&at_inside.socket) } else { sockopt::ip_mtu(&at_inside.socket) };
        assert_eq!(mtu.unwrap(), 1500, "nobody told");
    }
}

#[test]
fn tcp_and_ping_pass_a_nat_and_ipv6_needs_none() {
    let (_lab, server, router, inside) = lab(23, Link::new().delay(Duration::from_millis(1)));
    for addr in [IpAddr::from(server.v4()), IpAddr::from(server.v6())] {
        let listener = server.run(|| TcpListener::bind((addr, 80))).unwrap().unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let client = inside.run(|| TcpStream::connect_timeout(&(addr, 80).into(), PATIENCE)).unwrap();
        let mut client = client.expect("TCP connects");
        let writer = std::thread::spawn(move || client.write_all(&copy));
        let (mut accepted, from) = listener.accept().unwrap();
        let seen_as = if addr.is_ipv4() { router.v4().into() } else { IpAddr::from(inside.v6()) };
        assert_eq!(from.ip(), seen_as);
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).unwrap();
        writer.join().unwrap().unwrap();
        assert!(got == sent, "all bytes, in order");

        // Round trips through the lab are milliseconds; the answer comes back through the same translation.
        let at = inside.run(|| std::net::UdpSocket::bind((inside.addrs()[usize::from(addr.is_ipv6())], 0)));
        let closed = at.unwrap().unwrap();
        closed.connect(SocketAddr::new(addr, 9)).unwrap();
        closed.set_read_timeout(Some(PATIENCE)).unwrap();
        closed.send(b"anybody?").unwrap();
        let refused = closed.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "port unreachable comes back as ICMP");
    }
    assert_eq!(ping(&inside, server.v4()), server.v4());
}

/// Sends an ICMP echo request and returns who answers it.
fn ping(from: &Host, to: Ipv4Addr) -> Ipv4Addr {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
    let family = AddressFamily::INET;
    let socket =
        from.run(|| rustix::net::socket(family, SocketType::RAW, Some(ipproto::ICMP))).unwrap().unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    // Type 8, identifier 0x1234, sequence number 1, and the checksum over that.
    let request = [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrV4::new(to, 0)).unwrap();
    let mut buf = [0; 64];
    let (n, _) = rustix::net::recv(&socket, &mut buf, RecvFlags::empty()).expect("an answer");
    assert_eq!(
        buf[20..n],
        [0, 0, 0xed, 0xca, 0x12, 0x34, 0, 1],
        "an echo reply with identifier and checksum right"
    );
    Ipv4Addr::new(buf[12], buf[13], buf[14], buf[15])
}

#[test]
fn a_stateful_firewall_lets_in_ipv6_only_in_answer() {
    let (_lab, server, router, inside) = lab(24, Link::new());
    let at_inside = Udp::bind(&inside, inside.v6(), 4000);
    let at_server = Udp::bind(&server, server.v6(), 5000);
    at_server.send(at_inside.addr(), b"unasked");
    assert_eq!(at_inside.waiting(), []);
    assert_eq!(router.counts().firewall, 1);
    at_inside.send(at_server.addr(), b"question");
    assert_eq!(at_server.recv(), (at_inside.addr(), b"question".to_vec()));
    at_server.send(at_inside.addr(), b"answer");
    assert_eq!(at_inside.recv().1, b"answer");
    router.set_firewall(Firewall::open());
    let other = Udp::bind(&server, server.v6(), 5001);
    other.send(at_inside.addr(), b"unasked, but open");
    assert_eq!(at_inside.recv().1, b"unasked, but open");
}

#[test]
fn where_udp_is_blocked_tcp_passes() {
    let (_lab, server, router, inside) = lab(25, Link::new());
    router.set_firewall(Firewall::no_udp());
    let (at_inside, at_server) = connected(&inside, &server, false);
    at_inside.send(at_server.addr(), b"blocked");
    assert_eq!(at_server.waiting(), []);
    assert_eq!(router.counts().firewall, 1);
    let _listener = server.run(|| TcpListener::bind((server.v4(), 443))).unwrap().unwrap();
    let to = SocketAddr::new(server.v4().into(), 443);
    inside.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().expect("TCP passes");
}

#[test]
fn udp_of_a_blocked_address_passes_in_neither_direction() {
    let (lab, server, router, inside) = lab(27, Link::new());
    let other = lab.host("other").on(lab.internet(), Link::new()).start().unwrap();
    let at_other = Udp::bind(&other, other.v4(), 5000);
    let (at_inside, at_server) = connected(&inside, &server, false);
    at_inside.send(at_server.addr(), b"before");
    let (mapped, _) = at_server.recv();
    router.set_firewall(Firewall::stateful().block([server.v4().into()]));
    at_inside.send(at_server.addr(), b"out");
    at_server.send(mapped, b"in");
    assert_eq!((at_server.waiting(), at_inside.waiting()), (vec![], vec![]));
    assert_eq!(router.counts().firewall, 2);
    at_inside.send(at_other.addr(), b"to another");
    assert_eq!(at_other.recv().1, b"to another");
}

#[test]
fn where_only_the_proxy_gets_out_the_others_do_not() {
    let (lab, server, router, inside) = lab(26, Link::new());
    let proxy = behind(&lab, &router, "proxy");
    router.set_firewall(Firewall::only_tcp_from(proxy.v4().into(), 443));
    let _https = server.run(|| TcpListener::bind((server.v4(), 443))).unwrap().unwrap();
    let _http = server.run(|| TcpListener::bind((server.v4(), 80))).unwrap().unwrap();
    let dropped = || router.counts().firewall;
    let connect = |host: &Host, port: u16, limit: Duration| {
        let to = SocketAddr::new(server.v4().into(), port);
        host.run(|| TcpStream::connect_timeout(&to, limit)).unwrap().map(drop).map_err(|e| e.kind())
    };
    assert_eq!(connect(&proxy, 443, PATIENCE), Ok(()));
    assert_eq!(dropped(), 0);
    let brief = Duration::from_millis(100);
    assert_eq!(connect(&proxy, 80, brief), Err(ErrorKind::TimedOut));
    assert!(dropped() >= 1);
    let before = dropped();
    assert_eq!(connect(&inside, 443, brief), Err(ErrorKind::TimedOut));
    assert!(dropped() > before);
}

#[test]
fn a_cut_link_carries_nothing_until_it_is_mended() {
    let (_lab, server, router, inside) = lab(27, Link::new());
    let (at_inside, at_server) = connected(&inside, &server, false);
    router.set_link(Link::new().cut());
    at_inside.send(at_server.addr(), b"lost");
    assert_eq!(router.link_counts().0.cut, 1);
    router.set_link(Link::new());
    at_inside.send(at_server.addr(), b"found");
    assert_eq!(at_server.recv().1, b"found");
    assert_eq!(at_server.waiting(), []);
}
