//! What several tests of the laboratory need.

use pilot_netlab::{Host, Lab, Link, Router};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls a condition until it holds; fails with its name.
#[track_caller]
#[allow(dead_code)]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::yield_now();
    }
}

/// A UDP socket on a host.
pub struct Udp<'a> {
    pub socket: UdpSocket,
    host: &'a Host,
}

#[allow(dead_code)]
impl<'a> Udp<'a> {
    pub fn bind(host: &'a Host, addr: impl Into<IpAddr>, port: u16) -> Udp<'a> {
        let addr = SocketAddr::new(addr.into(), port);
        let socket = host.run(|| UdpSocket::bind(addr)).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Udp { socket, host }
    }

    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Sends, and waits until the laboratory has done with the packet all there is to do on links without delay.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let before = self.host.counts(0).0.offered;
        self.socket.send_to(bytes, to).unwrap();
        wait_until("the packet is on the link", || self.host.counts(0).0.offered > before);
    }

    /// Waits for a datagram: who it is from, and what it says.
    #[track_caller]
    pub fn recv(&self) -> (SocketAddr, Vec<u8>) {
        let mut buf = [0; 2048];
        let (n, from) = self.socket.recv_from(&mut buf).expect("a datagram arrives");
        (from, buf[..n].to_vec())
    }

    /// What has arrived already, without waiting.
    pub fn waiting(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buf = [0; 2048];
        let mut all = Vec::new();
        while let Ok((n, from)) = self.socket.recv_from(&mut buf) {
            all.push((from, buf[..n].to_vec()));
        }
        self.socket.set_nonblocking(false).unwrap();
        all
    }
}

/// A host behind a router.
#[allow(dead_code)]
pub fn behind(lab: &Lab, router: &Router, name: &str) -> Host {
    lab.host(name).on(router.lan(), Link::new()).start().expect("host")
}
