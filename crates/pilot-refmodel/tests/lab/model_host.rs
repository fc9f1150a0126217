//! The model as the node under test, on a virtual clock.

use super::{App, Entry, Host, PeerId, SUBJECT, Seen, Setup, node_id};
use pilot_proto::Addr;
use pilot_proto::crypto::Identity;
use pilot_proto::wire::beacon::Message;
use pilot_refmodel::{Config, ConnId, DialError, Event, Node, Output, Phases, Route};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub struct ModelHost {
    node: Node,
    start: Instant,
    now: Duration,
    entries: Vec<Entry>,
    conns: Vec<ConnId>,
    reading: bool,
    /// The daemon closed the local socket: applications see nothing any more.
    dropped: bool,
    seen: VecDeque<(Duration, Seen)>,
    wake: Duration,
}

/// Services of the daemon that listen from the start; what they answer is not part of the model.
const SERVICES: [u16; 3] = [444, 1001, 1002];

fn beacon() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 9], 9001))
}

fn address(peer: PeerId) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 10 + peer as u8], 4000))
}

impl ModelHost {
    pub fn new(setup: &Setup, phases: Phases) -> ModelHost {
        let identity = Identity::from_seed([1; 32]).expect("any seed will do");
        let start = Instant::now();
        let config = Config { public: setup.public, phases, ..Config::new([7; 32], [8; 32]) };
        let mut node = Node::new(config, &identity, SUBJECT, start);
        node.set_beacon(start, Some(beacon()));
        SERVICES.into_iter().for_each(|port| assert!(node.listen(port)));
        let entries = vec![Entry { key: None }; setup.peers];
        let (seen, wake) = (VecDeque::new(), Duration::ZERO);
        let mut host = ModelHost {
            node,
            start,
            now: Duration::ZERO,
            entries,
            conns: vec![],
            reading: true,
            dropped: false,
            seen,
            wake,
        };
        host.drain();
        host
    }

    fn clock(&self) -> Instant {
        self.start + self.now
    }

    fn number(&mut self, conn: ConnId) -> usize {
        let known = self.conns.iter().position(|c| *c == conn);
        known.unwrap_or_else(|| {
            self.conns.push(conn);
            self.conns.len() - 1
        })
    }

    fn see(&mut self, seen: Seen) {
        if self.dropped && !matches!(seen, Seen::Direct(..) | Seen::Beacon(_)) {
            return;
        }
        self.seen.push_back((self.now, seen));
    }

    fn entry(&self, node: u32) -> Option<(PeerId, Entry)> {
        let peer = (node as usize).checked_sub(100)?;
        self.entries.get(peer).map(|e| (peer, *e))
    }

    fn drain(&mut self) {
        let mut buf = Vec::new();
        loop {
            let now = self.clock();
            match self.node.poll_output(now, &mut buf) {
                Output::Transmit(to) if to == beacon() => self.hear_beacon(&buf.clone()),
                Output::Transmit(to) => {
                    if let Some(peer) = (0..self.entries.len()).find(|p| address(*p) == to) {
                        self.see(Seen::Direct(peer, buf.clone()));
                    }
                }
                Output::Event(event) => self.on_event(event),
                Output::Timeout(at) => {
                    self.wake = at.saturating_duration_since(self.start).max(self.now);
                    return;
                }
            }
        }
    }

    fn hear_beacon(&mut self, bytes: &[u8]) {
        if let Ok(Message::Discover { .. }) = Message::parse(bytes) {
            return;
        }
        self.see(Seen::Beacon(bytes.to_vec()));
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock();
        match event {
            Event::NeedKey(node) => {
                let key = self.entry(node).and_then(|(_, e)| e.key);
                self.node.set_peer_key(now, node, key);
            }
            Event::NeedRoute(node) => {
                let known = self.entry(node).filter(|(_, e)| e.key.is_some());
                let route = known.map(|(peer, _)| Route { addr: address(peer), relay_only: false });
                self.node.set_route(
                    now,
                    node,
                    route.ok_or_else(|| format!("resolve node {node}: registry: request failed")),
                );
            }
            Event::NeedTrust(node) => self.node.set_trust(now, node, false),
            Event::Connected(conn) => {
                let n = self.number(conn);
                self.see(Seen::Connected(n));
            }
            Event::DialFailed(_, why) => {
                let text = match why {
                    DialError::Refused => "connection refused".to_owned(),
                    DialError::Timeout => "dial timeout".to_owned(),
                    DialError::KeyExchange => {
                        "dial timeout: key exchange with peer did not complete".to_owned()
                    }
                    DialError::PortsExhausted => "ephemeral ports exhausted".to_owned(),
                    DialError::Resolve(why) => why,
                };
                self.see(Seen::Failed(text));
            }
            Event::Incoming(_, port) if SERVICES.contains(&port) => {}
            Event::Incoming(conn, port) => {
                let n = self.number(conn);
                self.see(Seen::Accepted(n, port));
            }
            Event::Readable(conn) => self.read(conn),
            Event::Ended(conn) => {
                let n = self.number(conn);
                self.see(Seen::Ended(n));
            }
            Event::ClientDropped => self.dropped = true,
            Event::Datagram { dst_port, payload, .. } => self.see(Seen::Datagram(dst_port, payload.to_vec())),
            Event::Writable(_)
            | Event::Over(..)
            | Event::CutShort(_)
            | Event::Observed(_)
            | Event::Notified
            | Event::Established { .. }
            | Event::Dropped(_) => {}
        }
    }

    fn read(&mut self, conn: ConnId) {
        let n = self.number(conn);
        while self.reading {
            let now = self.clock();
            let Some(data) = self.node.read(now, conn) else { return };
            self.see(Seen::Data(n, data.to_vec()));
        }
    }

    fn feed(&mut self, from: SocketAddr, bytes: &[u8]) {
        let now = self.clock();
        self.node.handle_datagram(now, from, bytes);
        self.drain();
    }
}

impl Host for ModelHost {
    fn now(&self) -> Duration {
        self.now
    }

    fn send(&mut self, from: PeerId, bytes: &[u8]) {
        self.feed(address(from), bytes);
    }

    fn send_from_beacon(&mut self, bytes: &[u8]) {
        self.feed(beacon(), bytes);
    }

    fn set_entry(&mut self, peer: PeerId, entry: Entry) {
        self.entries[peer] = entry;
    }

    fn app(&mut self, app: App) {
        let now = self.clock();
        match app {
            App::Bind(port) => assert!(self.node.listen(port)),
            App::Dial(peer, port) => {
                self.node.dial(now, Addr::backbone(node_id(peer)), port).expect("a port is free");
            }
            App::Send(conn, data) => {
                let conn = self.conns[conn];
                if let Some(rest) = self.node.write(now, conn, data.into()) {
                    assert!(rest.is_empty(), "scenarios write less than the local socket takes");
                }
            }
            App::Close(conn) => {
                let conn = self.conns[conn];
                self.node.close(now, conn);
            }
            App::Datagram(peer, port, data) => {
                self.node.send_datagram(now, Addr::backbone(node_id(peer)), port, &data);
            }
            App::StopReading => self.reading = false,
            App::Read => {
                self.reading = true;
                self.conns.clone().into_iter().for_each(|c| self.read(c));
            }
        }
        self.drain();
    }

    fn next(&mut self, until: Duration) -> Option<(Duration, Seen)> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Some(seen);
            }
            if self.wake > until {
                self.now = self.now.max(until);
                return None;
            }
            self.now = self.now.max(self.wake);
            let now = self.clock();
            self.node.handle_timeout(now);
            self.drain();
        }
    }

    fn address(&self, peer: PeerId) -> SocketAddr {
        address(peer)
    }
}
