//! A node of the reference 1.18.0: its behavioural model behind the contract of [`Process`].
//!
//! What such a node cannot do is excused where it is checked, and only there; `excuse` in the code marks each place.

use crate::process::{Process, Sizes, Start};
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{self, Output, Route, Transmit};
use pilot_proto::stream::{CloseReason, ConnId, DialError, StreamEvent};
use pilot_proto::{Addr, NodeId};
use pilot_refmodel::{self as model, End, Event};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Published when a client that does not read is dropped, with all its connections (spec 07 section 18).
pub const CLIENT_DROPPED: &str = "reference.client_dropped";
/// Published with the number of a connection whose end the peer sees too early (`conn`).
pub const CUT_SHORT: &str = "reference.cut_short";
/// Published when the last packets to a node are sent again under a new key (`peer_node_id`).
pub const SALVAGED: &str = "reference.salvaged";

/// The model of a node, and the events it has not told yet.
pub struct Reference {
    node: model::Node,
    ports: Vec<u16>,
    events: VecDeque<engine::Event>,
    /// Latest time any input came with.
    now: Instant,
}

impl Reference {
    /// A process of the reference.
    pub fn new(start: &Start, now: Instant) -> Reference {
        let [tunnel_secret, rng_seed] = start.secrets;
        let config = model::Config { public: start.public, ..model::Config::new(tunnel_secret, rng_seed) };
        let node = model::Node::new(config, &start.identity, start.node, now);
        Reference { node, ports: Vec::new(), events: VecDeque::new(), now }
    }

    fn publish(&mut self, name: &'static str, fields: Value) {
        self.events.push_back(engine::Event::Publish(name, fields));
    }

    fn stream(&mut self, event: StreamEvent) {
        self.events.push_back(engine::Event::Stream(event));
    }

    fn translate(&mut self, event: Event) {
        let id = |conn: model::ConnId| ConnId(conn.0);
        match event {
            Event::NeedKey(node) => self.events.push_back(engine::Event::NeedKey(node)),
            Event::NeedRoute(node) => self.events.push_back(engine::Event::NeedRoute(node)),
            Event::NeedTrust(node) => {
                self.events.push_back(engine::Event::Knock { node, port: 0, datagram: false });
            }
            Event::Connected(conn) => self.stream(StreamEvent::Connected(id(conn))),
            Event::DialFailed(conn, why) => self.stream(StreamEvent::DialFailed(id(conn), dial_error(why))),
            Event::Incoming(conn, port) => {
                let (local, remote) = (Addr::ZERO, Addr::ZERO);
                self.stream(StreamEvent::Incoming { conn: id(conn), port, local, remote, remote_port: 0 });
            }
            Event::Readable(conn) => self.stream(StreamEvent::Readable(id(conn))),
            Event::Writable(conn) => self.stream(StreamEvent::Writable(id(conn))),
            Event::Over(conn, why) => {
                if why == End::Fin {
                    self.stream(StreamEvent::EndOfStream(id(conn)));
                }
                self.stream(StreamEvent::Closed(id(conn), reason(why)));
            }
            Event::CutShort(conn) => self.publish(CUT_SHORT, json!({"conn": conn.0})),
            Event::ClientDropped => {
                // The application starts anew, and binds its port again.
                for port in &self.ports {
                    self.node.listen(*port);
                }
                self.publish(CLIENT_DROPPED, Value::Null);
            }
            Event::Datagram { src, src_port, dst_port, payload } => {
                self.events.push_back(engine::Event::Datagram { src, src_port, dst_port, payload });
            }
            Event::Observed(addr) => self.events.push_back(engine::Event::Observed(addr)),
            Event::Notified => self.events.push_back(engine::Event::Notified),
            Event::Established { node, relay, rekeyed } => {
                if rekeyed {
                    // Its last packets are sent again under the new key.
                    self.publish(SALVAGED, json!({"peer_node_id": node}));
                }
                let authenticated = true;
                self.events.push_back(engine::Event::TunnelEstablished {
                    node,
                    authenticated,
                    relay,
                    rekeyed,
                });
            }
            Event::Ended(_) | Event::Dropped(_) => {}
        }
    }
}

fn dial_error(why: model::DialError) -> DialError {
    match why {
        model::DialError::Refused => DialError::Refused,
        model::DialError::Timeout => DialError::Timeout,
        model::DialError::KeyExchange => DialError::KeyExchange { node: 0, tried: String::new() },
        model::DialError::PortsExhausted => DialError::PortsExhausted,
        model::DialError::Resolve(reason) => DialError::Resolve { node: 0, reason },
    }
}

fn reason(why: End) -> CloseReason {
    match why {
        End::Fin | End::Own => CloseReason::Closed,
        End::EarlyFin | End::Unanswered | End::GaveUp => CloseReason::DeadPeer,
        End::Idle => CloseReason::Idle,
        End::Reset => CloseReason::Reset,
        End::Replaced => CloseReason::PeerRestarted,
    }
}

impl Process for Reference {
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        self.now = now;
        self.node.handle_datagram(now, from, datagram);
    }
    fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.node.handle_timeout(now);
    }
    fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output {
        self.now = now;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Output::Event(event);
            }
            match self.node.poll_output(now, buf) {
                model::Output::Transmit(to) => {
                    return Output::Transmit(Transmit { to, len: buf.len(), segment_size: None });
                }
                model::Output::Event(event) => self.translate(event),
                model::Output::Timeout(at) => return Output::Timeout(Some(at)),
            }
        }
    }
    fn set_beacon(&mut self, now: Instant, beacon: SocketAddr) {
        self.node.set_beacon(now, Some(beacon));
    }
    /// Its Discovers are not signed.
    fn set_registry(&mut self, _now: Instant, _registry: &str, _unix: u64) {}
    fn set_identity(&mut self, _now: Instant, identity: Arc<Identity>, _node: NodeId) {
        self.node.set_identity(&identity);
    }
    fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        self.node.set_peer_key(now, node, key);
    }
    fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>) {
        let route = route.and_then(|r| {
            let addr =
                r.direct.first().map(|c| c.addr).ok_or_else(|| format!("node {node} has no real address"))?;
            Ok(model::Route { addr, relay_only: r.relay_only })
        });
        self.node.set_route(now, node, route);
    }
    fn admit(&mut self, node: NodeId, _until: Instant) {
        let now = self.now;
        self.node.set_trust(now, node, true);
    }
    fn refuse(&mut self, node: NodeId) {
        let now = self.now;
        self.node.set_trust(now, node, false);
    }
    fn listen(&mut self, port: u16) {
        self.ports.push(port);
        self.node.listen(port);
    }
    fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError> {
        self.node.dial(now, to, port).map(|c| ConnId(c.0)).map_err(dial_error)
    }
    fn accepted(&mut self, _conn: ConnId) {}
    fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason> {
        self.node.write(now, model::ConnId(conn.0), data).ok_or(CloseReason::Closed)
    }
    fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        self.node.read(self.now, model::ConnId(conn.0))
    }
    fn consumed(&mut self, now: Instant, _conn: ConnId, _bytes: usize) {
        self.now = now;
    }
    fn finish(&mut self, _now: Instant, _conn: ConnId) -> bool {
        false
    }
    fn close(&mut self, now: Instant, conn: ConnId) {
        self.node.close(now, model::ConnId(conn.0));
    }
    fn abort(&mut self, now: Instant, conn: ConnId) {
        // Its applications can only close.
        self.node.close(now, model::ConnId(conn.0));
    }
    fn release(&mut self, now: Instant, conn: ConnId) {
        self.node.close(now, model::ConnId(conn.0));
    }
    fn send_datagram(&mut self, now: Instant, to: Addr, port: u16, payload: &[u8]) -> bool {
        self.node.send_datagram(now, to, port, payload)
    }
    fn acknowledged(&self, conn: ConnId) -> Option<u64> {
        self.node.acknowledged(model::ConnId(conn.0))
    }
    fn opened(&self) -> u64 {
        self.node.opened()
    }
    fn sizes(&self) -> Sizes {
        let (pieces, unacked) = self.node.worst_connection();
        let (peers, connections) = (self.node.peers(), self.node.connections());
        Sizes { peers, connections, pieces: pieces as u64, unacked: unacked as u64 }
    }
}
