//! What runs at a node: our engine, or a model of another implementation, behind one contract.

use crate::reference::Reference;
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Config, DiscoverProof, Engine, Output, Route};
use pilot_proto::stream::{CloseReason, ConnId, DialError};
use pilot_proto::{Addr, NodeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which implementation a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Our engine.
    Ours,
    /// The model of a reference 1.18.0 node.
    Reference,
}

/// How much a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Peers in its table.
    pub peers: usize,
    /// Connections in its table.
    pub connections: usize,
    /// Most separate pieces out of order of one connection.
    pub pieces: u64,
    /// Most unacknowledged segments of one connection.
    pub unacked: u64,
}

/// A process as the world drives it: input and time go in, [`Process::poll_output`] says what comes out. The methods
/// mean what those of the same name of [`Engine`] mean.
#[allow(missing_docs)]
pub trait Process {
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]);
    fn handle_timeout(&mut self, now: Instant);
    fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output;

    fn set_beacon(&mut self, now: Instant, beacon: SocketAddr);
    /// The registry's name, and the node's clock in Unix microseconds.
    fn set_registry(&mut self, now: Instant, registry: &str, unix: u64);
    fn set_identity(&mut self, now: Instant, identity: Arc<Identity>, node: NodeId);
    fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>);
    fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>);
    fn admit(&mut self, node: NodeId, until: Instant);
    /// The directory does not vouch for a node that knocked. Ours goes on as if nothing had happened.
    fn refuse(&mut self, _node: NodeId) {}

    fn listen(&mut self, port: u16);
    fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError>;
    fn accepted(&mut self, conn: ConnId);
    /// Returns what it did not take.
    fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason>;
    fn read(&mut self, conn: ConnId) -> Option<Bytes>;
    fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize);
    /// Ends the sending direction alone. False: the connection cannot do that.
    fn finish(&mut self, now: Instant, conn: ConnId) -> bool;
    fn close(&mut self, now: Instant, conn: ConnId);
    fn abort(&mut self, now: Instant, conn: ConnId);
    fn release(&mut self, now: Instant, conn: ConnId);
    /// False: refused.
    fn send_datagram(&mut self, now: Instant, to: Addr, port: u16, payload: &[u8]) -> bool;

    /// Bytes of a connection's application that the peer has acknowledged, while the connection is open.
    fn acknowledged(&self, conn: ConnId) -> Option<u64>;
    /// Encrypted frames opened and taken so far.
    fn opened(&self) -> u64;
    fn sizes(&self) -> Sizes;
}

impl Process for Engine {
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        Engine::handle_datagram(self, now, from, datagram);
    }
    fn handle_timeout(&mut self, now: Instant) {
        Engine::handle_timeout(self, now);
    }
    fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output {
        Engine::poll_output(self, now, buf)
    }
    fn set_beacon(&mut self, now: Instant, beacon: SocketAddr) {
        Engine::set_beacon(self, now, Some(beacon));
    }
    fn set_registry(&mut self, now: Instant, registry: &str, unix: u64) {
        let proof = DiscoverProof { registry: registry.to_owned(), clock: (now, unix) };
        self.set_discover_proof(now, Some(proof));
    }
    fn set_identity(&mut self, now: Instant, identity: Arc<Identity>, node: NodeId) {
        Engine::set_identity(self, now, identity, node);
    }
    fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        Engine::set_peer_key(self, now, node, key);
    }
    fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>) {
        Engine::set_route(self, now, node, route);
    }
    fn admit(&mut self, node: NodeId, until: Instant) {
        Engine::admit(self, node, until);
    }
    fn listen(&mut self, port: u16) {
        Engine::listen(self, port);
    }
    fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError> {
        Engine::dial(self, now, to, port)
    }
    fn accepted(&mut self, conn: ConnId) {
        Engine::accepted(self, conn);
    }
    fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason> {
        Engine::write(self, now, conn, data)
    }
    fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        Engine::read(self, conn)
    }
    fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize) {
        Engine::consumed(self, now, conn, bytes);
    }
    fn finish(&mut self, now: Instant, conn: ConnId) -> bool {
        Engine::finish(self, now, conn)
    }
    fn close(&mut self, now: Instant, conn: ConnId) {
        Engine::close(self, now, conn);
    }
    fn abort(&mut self, now: Instant, conn: ConnId) {
        Engine::abort(self, now, conn);
    }
    fn release(&mut self, now: Instant, conn: ConnId) {
        Engine::release(self, now, conn);
    }
    fn send_datagram(&mut self, now: Instant, to: Addr, port: u16, payload: &[u8]) -> bool {
        Engine::send_datagram(self, now, to, port, payload).is_ok()
    }
    fn acknowledged(&self, conn: ConnId) -> Option<u64> {
        Engine::acknowledged(self, conn)
    }
    fn opened(&self) -> u64 {
        self.counters().encryption_success
    }
    fn sizes(&self) -> Sizes {
        let connections = self.connections();
        Sizes {
            peers: self.peers().len(),
            connections: connections.len(),
            pieces: connections.iter().map(|c| c.ooo_buf).max().unwrap_or(0),
            unacked: connections.iter().map(|c| c.unacked).max().unwrap_or(0),
        }
    }
}

/// What a process is started with.
pub struct Start {
    /// Its key pair.
    pub identity: Arc<Identity>,
    /// Its node id.
    pub node: NodeId,
    /// Anybody may connect.
    pub public: bool,
    /// Fresh secrets: for the tunnel key, and for everything else.
    pub secrets: [[u8; 32]; 2],
}

/// Starts a process.
pub fn start(kind: NodeKind, start: Start, now: Instant) -> Box<dyn Process> {
    match kind {
        NodeKind::Ours => Box::new(engine(start, now)),
        NodeKind::Reference => Box::new(Reference::new(&start, now)),
    }
}

fn engine(start: Start, now: Instant) -> Engine {
    let [tunnel_secret, rng_seed] = start.secrets;
    let config = Config {
        tunnel_secret,
        rng_seed,
        encrypt: true,
        session_upgrade: true,
        allow_anonymous: Vec::new(),
        public: start.public,
        strict_dataplane_trust: false,
        relay_only: false,
        loopback_payload: 1152,
        idle_timeout: Duration::from_secs(120),
        user_timeout: Duration::from_secs(900),
        keepalive: Duration::from_secs(60),
        max_conns_per_port: 1024,
        max_conns_total: 65_536,
        syn_rate_limit: 100,
        max_segments: 16,
    };
    Engine::new(config, start.identity, start.node, now)
}
