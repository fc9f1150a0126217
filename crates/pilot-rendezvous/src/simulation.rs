//! The pure state cores for simulations of whole networks: no sockets, no disk, clocks passed in.

use crate::beacon::{Beacon, Directory as _, Known, Settings};
use crate::clock::Now;
use crate::config::Config;
use crate::registry::request::Request;
use crate::registry::{Checked, Registry, Session};
use pilot_proto::NodeId;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Wall clock at the beginning of every simulation, microseconds since 1970.
const BEGINNING: u64 = 1_795_217_600_000_000;

/// The registry's name, 32 times.
const NAME: &str = "0";

/// The registry's state core and one connection per client.
pub struct Directory {
    registry: Registry,
    sessions: BTreeMap<u32, Session>,
    began: Instant,
}

impl Directory {
    /// An empty registry.
    pub fn new(beacon: SocketAddr, now: Instant) -> Directory {
        let clock = Now { unix_us: BEGINNING, mono: now };
        let registry = Registry::load(&Config::default(), beacon, Default::default(), NAME.repeat(32), clock);
        Directory { registry, sessions: BTreeMap::new(), began: now }
    }

    /// A client connects from `peer`; its earlier connection is closed.
    pub fn connect(&mut self, client: u32, peer: SocketAddr) {
        let session = Session::new(peer, IpAddr::V4(Ipv4Addr::LOCALHOST), false);
        self.sessions.insert(client, session);
    }

    /// Answers a request of a client. A signature with no bytes but zeros counts as the right one: the check is done
    /// ahead, as the server does it, by somebody who knows that the client is honest. All others are checked.
    pub fn request(&mut self, client: u32, request: &Map<String, Value>, now: Instant) -> Value {
        let clock = Now {
            unix_us: BEGINNING + now.saturating_duration_since(self.began).as_micros() as u64,
            mono: now,
        };
        let Some(session) = self.sessions.get_mut(&client) else {
            return serde_json::json!({"type": "error", "error": "not connected"});
        };
        session.checked = self.registry.to_check(Request(request)).map(|(key, text, signature)| {
            if signature == [0; 64] {
                return Checked { key, text, signature, good: true };
            }
            Checked::run(key, text, signature)
        });
        let (answer, _) = self.registry.handle(session, request, clock);
        self.registry.take_writes();
        self.registry.take_effects();
        answer
    }
}

impl crate::beacon::Directory for Directory {
    fn find(&self, node: NodeId) -> Option<Known> {
        self.registry.known(node)
    }

    fn reached(&self, ip: IpAddr) -> bool {
        self.sessions.values().any(|session| session.peer.ip() == ip)
    }
}

/// The beacon's state core.
pub struct Relay {
    beacon: Beacon,
    swept: Instant,
}

/// Between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl Relay {
    /// A beacon with an empty table that exchanges its nodes with `peers`.
    pub fn new(id: u32, peers: Vec<SocketAddr>, now: Instant) -> Relay {
        let (registry, secret) = (NAME.repeat(32), [id as u8; 32]);
        let settings = Settings { id, peers, registry, secret, ..Settings::default() };
        Relay { beacon: Beacon::new(settings), swept: now }
    }

    /// Handles a datagram and hands what it causes to `send`.
    pub fn handle(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        directory: &Directory,
        now: Instant,
        mut send: impl FnMut(SocketAddr, &[u8]),
    ) {
        self.beacon.receive(from, datagram, datagram.len(), directory, now, &mut send);
        self.beacon.flush(&mut send);
    }

    /// A node has registered.
    pub fn registered(&mut self, node: NodeId, directory: &Directory, now: Instant) {
        let ip = directory.find(node).and_then(|known| known.ip);
        self.beacon.registered(node, ip, now);
    }

    /// What the server does every ten seconds.
    pub fn maintain(&mut self, now: Instant, mut send: impl FnMut(SocketAddr, &[u8])) {
        self.beacon.announce(&mut send);
        if now.saturating_duration_since(self.swept) >= SWEEP_EVERY {
            self.beacon.sweep(now);
            self.swept = now;
        }
    }
}
