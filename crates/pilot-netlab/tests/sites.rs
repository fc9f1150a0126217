//! Every ready-made place lets through what it says, and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use common::Udp;
use pilot_netlab::{Lab, Link, Place, Site};
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a connection that nothing answers is tried.
const BRIEF: Duration = Duration::from_millis(100);

#[test]
fn every_place_lets_out_what_it_says() {
    let lab = Lab::with_seed(51).expect("root");
    let public = lab.host("public").on(lab.internet(), Link::new()).start().unwrap();
    let (v4, v6): (IpAddr, IpAddr) = (public.v4().into(), public.v6().into());
    let _listeners = [v4, v6].map(|a| public.run(|| TcpListener::bind((a, 443))).unwrap().unwrap());
    for (site, number) in Site::ALL.into_iter().zip(0..) {
        let name = site.name();
        let place = Place::new(&lab, site, name, number, Link::new()).unwrap();
        let host = &place.host;
        let addrs = host.addrs();
        let wanted = match site {
            Site::V6Only => (false, true),
            Site::DualStack => (true, true),
            _ => (true, false),
        };
        assert_eq!((addrs.iter().any(IpAddr::is_ipv4), addrs.iter().any(IpAddr::is_ipv6)), wanted, "{name}");
        for addr in addrs {
            let to = if addr.is_ipv4() { v4 } else { v6 };
            let (at_host, at_public) = (Udp::bind(host, addr, 0), Udp::bind(&public, to, 0));
            let udp = !matches!(site, Site::UdpBlocked | Site::ProxyOnly);
            at_host.send(at_public.addr(), b"question");
            if udp {
                let (from, _) = at_public.recv();
                assert_eq!(from.ip() == addr, site == Site::Public || addr.is_ipv6(), "{name}: {from}");
                at_public.send(from, b"answer");
                assert_eq!(at_host.recv().1, b"answer", "{name}");
            } else {
                assert_eq!(at_public.waiting(), [], "{name}");
            }
            let limit = if site == Site::ProxyOnly { BRIEF } else { common::PATIENCE };
            let tcp = host.run(|| TcpStream::connect_timeout(&(to, 443).into(), limit)).unwrap();
            let expected = if site == Site::ProxyOnly { Err(ErrorKind::TimedOut) } else { Ok(()) };
            assert_eq!(tcp.map(drop).map_err(|e| e.kind()), expected, "{name}");
        }
    }
}
