//! One node's protocol behind one poll contract: tunnels, paths, streams, datagrams, control packets.
//!
//! The driver's loop: feed datagrams and deadlines in, then call [`Engine::poll_output`] until it returns
//! [`Output::Timeout`].

use crate::NodeId;
use crate::crypto::Identity;
use crate::stream::{ConnId, ConnStatus, DialError, StreamEvent, Streams};
use crate::wire::addr::Addr;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Settings of an engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// 32 secret bytes for this process's X25519 tunnel key, from the operating system's generator.
    pub tunnel_secret: [u8; 32],
    /// Seed of the engine's own cryptographic generator (nonce prefixes, sequence numbers, ports, jitter).
    pub rng_seed: [u8; 32],
    /// Tunnel encryption; off only on the operator's word (spec 02 section 14).
    pub encrypt: bool,
    /// Peers (by the operator's word) with whom an unauthenticated session is acceptable. Empty by default.
    pub allow_anonymous: Vec<NodeId>,
    /// Anyone may open streams to us.
    pub public: bool,
    /// On a private node: ignore key exchanges and pings of untrusted nodes (spec 02 section 13).
    pub strict_dataplane_trust: bool,
    /// Never send to or learn direct addresses.
    pub relay_only: bool,
    /// Largest stream payload towards peers on this host's loopback (bytes); elsewhere 1,152.
    pub loopback_payload: usize,
    /// Idle time after which a stream is closed (default 120 s) and keepalive interval (default 60 s).
    pub idle_timeout: Duration,
    /// Keepalive interval of streams.
    pub keepalive: Duration,
    /// Connections per port (default 1,024).
    pub max_conns_per_port: usize,
    /// Connections in total (default 65,536).
    pub max_conns_total: usize,
    /// SYNs per second from all sources together (default 100; 0 = no limit).
    pub syn_rate_limit: u32,
    /// Most datagrams of equal size the socket layer takes in one batch (GSO); 1 without GSO.
    pub max_segments: usize,
}

/// Where a peer is (a `resolve` answer).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// Addresses to try directly, best first. Empty: relay only.
    pub direct: Vec<SocketAddr>,
    /// Pin the relay, do not punch.
    pub relay_only: bool,
}

/// Something to send. The bytes are in the buffer given to [`Engine::poll_output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// If set, the buffer holds several datagrams of this size (the last may be shorter).
    pub segment_size: Option<usize>,
}

/// What the engine wants from its driver.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send the buffer.
    Transmit(Transmit),
    /// Something happened.
    Event(Event),
    /// Nothing more to do until then (or until input arrives, if `None`).
    Timeout(Option<Instant>),
}

/// Events of the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Please look up the Ed25519 key of this node and answer with [`Engine::set_peer_key`].
    NeedKey(NodeId),
    /// Please resolve this node and answer with [`Engine::set_route`].
    NeedRoute(NodeId),
    /// See [`StreamEvent`].
    Stream(StreamEvent),
    /// A datagram that passed the gates.
    Datagram {
        /// Source address.
        src: Addr,
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Payload, never empty.
        payload: Bytes,
    },
    /// An untrusted node knocked on this private node. The driver may ask the registry (`check_trust`), rate
    /// limited, and answer with [`Engine::admit`]; the peer's retry then passes.
    Knock {
        /// Who.
        node: NodeId,
        /// Destination port.
        port: u16,
        /// A datagram rather than a SYN.
        datagram: bool,
    },
    /// A session was installed or confirmed by a key exchange.
    TunnelEstablished {
        /// Peer.
        node: NodeId,
        /// Its key was verified.
        authenticated: bool,
        /// The exchange came through the relay.
        relay: bool,
        /// It replaced an earlier session.
        rekeyed: bool,
    },
    /// The peer proved possession of this Ed25519 key (for trust pinning, spec 06 section 2.9).
    PeerKeyProven {
        /// Peer.
        node: NodeId,
        /// Its key.
        key: [u8; 32],
    },
    /// The beacon says something waits at the registry.
    Notified,
    /// The beacon sees our socket at this address.
    Observed(SocketAddr),
    /// An event for logs, webhooks and subscribers: name and fields of spec 02 section 18 / spec 03 section 26.
    Publish(&'static str, serde_json::Value),
    /// A pong: reply to a ping of ours.
    Pong {
        /// Peer.
        node: NodeId,
        /// The ping's payload.
        payload: Bytes,
    },
}

/// Why a datagram could not be sent; texts of spec 07 section 9.1 without the `sendto: ` prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Node 0xFFFFFFFF.
    #[error("broadcast address requires admin token: use BroadcastDatagram")]
    Broadcast,
    /// Over 65,535 bytes.
    #[error("marshal: payload too large: {0} bytes (max 65535)")]
    TooLarge(usize),
    /// More than one UDP datagram can carry.
    #[error("message too long: {0} bytes (max {1} on this path)")]
    TooLong(usize, usize),
    /// No free local port.
    #[error("ephemeral ports exhausted")]
    PortsExhausted,
    /// The peer's queue for an unfinished key exchange is full.
    #[error(
        "pending queue full: newest packet dropped to preserve ordered prefix while key exchange pending (peer_node_id={0})"
    )]
    PendingFull(NodeId),
    /// 256 peers already wait for a key exchange.
    #[error("too many pending key exchanges")]
    TooManyPending,
    /// The peer could not be resolved.
    #[error("resolve node {node}: {reason}")]
    Resolve {
        /// Peer.
        node: NodeId,
        /// Cause.
        reason: String,
    },
}

/// One tunnel peer, as `info` and `peers` show it (spec 07 section 10.1) plus what our own CLI adds.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct PeerStatus {
    pub node_id: NodeId,
    pub authenticated: bool,
    pub encrypted: bool,
    pub endpoint: String,
    pub relay: bool,
}

/// Tunnel counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub bytes_sent: u64,
    pub bytes_recv: u64,
    pub pkts_sent: u64,
    pub pkts_recv: u64,
    pub encryption_success: u64,
    pub encryption_failure: u64,
    pub accept_queue_drops: u64,
}

/// A node's protocol state.
#[derive(Debug)]
pub struct Engine {
    streams: Streams,
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Engine {
    pub fn new(config: Config, identity: Arc<Identity>, node: NodeId, now: Instant) -> Engine {
        todo!()
    }

    // ---- input -------------------------------------------------------------------------------------------

    /// One received datagram; decrypted in place. `from` is its UDP source.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        todo!()
    }
    /// The socket layer could not deliver to this address (ICMP unreachable).
    pub fn handle_unreachable(&mut self, now: Instant, to: SocketAddr) {
        todo!()
    }
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }

    // ---- output ------------------------------------------------------------------------------------------

    /// What to do next. `buf` is cleared and filled when the result is `Transmit`.
    pub fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output {
        todo!()
    }

    // ---- the directory's answers -------------------------------------------------------------------------

    /// The registry's key for a node; `None`: unknown or registry failed (remembered for 3 s).
    pub fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        todo!()
    }
    /// Where a node is; an error fails its dials and datagrams with that text.
    pub fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>) {
        todo!()
    }

    // ---- settings that change at run time ----------------------------------------------------------------

    /// After (re-)registration or key rotation.
    pub fn set_identity(&mut self, now: Instant, identity: Arc<Identity>, node: NodeId) {
        todo!()
    }
    pub fn node_id(&self) -> NodeId {
        todo!()
    }
    /// The beacon in use. A Discover is sent to it at once, then every 25 s.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        todo!()
    }
    pub fn set_public(&mut self, public: bool) {
        todo!()
    }
    /// Local trust: gates of a private node, `tunnel.established` details.
    pub fn set_trusted(&mut self, node: NodeId, trusted: bool) {
        todo!()
    }
    /// The registry vouches for a node until then (answer to [`Event::Knock`]).
    pub fn admit(&mut self, node: NodeId, until: Instant) {
        todo!()
    }
    /// We contacted this node: for 5 minutes its SYNs to ports 1001 and 444 pass (spec 03 section 6.1). Dials
    /// do this by themselves; the handshake layer calls it for relayed requests.
    pub fn open_reply_window(&mut self, now: Instant, node: NodeId) {
        todo!()
    }
    /// Forgets session, endpoint, route and key of a peer and its connections (untrust, revoke).
    pub fn forget_peer(&mut self, now: Instant, node: NodeId) {
        todo!()
    }

    // ---- streams -----------------------------------------------------------------------------------------

    pub fn listen(&mut self, port: u16) -> bool {
        self.streams.listen(port)
    }
    pub fn unlisten(&mut self, port: u16) {
        self.streams.unlisten(port)
    }
    /// Bound listeners.
    pub fn ports(&self) -> usize {
        todo!()
    }
    pub fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError> {
        todo!()
    }
    /// See [`Streams::write`].
    pub fn write(
        &mut self,
        now: Instant,
        conn: ConnId,
        data: Bytes,
    ) -> Result<Bytes, crate::stream::CloseReason> {
        self.streams.write(now, conn, data)
    }
    /// See [`Streams::read`].
    pub fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        self.streams.read(conn)
    }
    /// See [`Streams::consumed`].
    pub fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize) {
        self.streams.consumed(now, conn, bytes)
    }
    /// See [`Streams::finish`].
    pub fn finish(&mut self, now: Instant, conn: ConnId) -> bool {
        self.streams.finish(now, conn)
    }
    /// See [`Streams::half_close`].
    pub fn half_close(&self, conn: ConnId) -> bool {
        self.streams.half_close(conn)
    }
    /// See [`Streams::close`].
    pub fn close(&mut self, now: Instant, conn: ConnId) {
        self.streams.close(now, conn)
    }
    /// See [`Streams::abort`].
    pub fn abort(&mut self, now: Instant, conn: ConnId) {
        self.streams.abort(now, conn)
    }

    // ---- datagrams and control ---------------------------------------------------------------------------

    /// Sends one datagram from a fresh ephemeral port; queued while the peer is being reached.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        to: Addr,
        port: u16,
        payload: &[u8],
    ) -> Result<(), SendError> {
        todo!()
    }
    /// Sends a control ping (non-empty payload); the answer is [`Event::Pong`].
    pub fn ping(&mut self, now: Instant, node: NodeId, payload: &[u8]) -> Result<(), SendError> {
        todo!()
    }

    // ---- status ------------------------------------------------------------------------------------------

    pub fn peers(&self) -> Vec<PeerStatus> {
        todo!()
    }
    pub fn connections(&self) -> Vec<ConnStatus> {
        todo!()
    }
    pub fn counters(&self) -> Counters {
        todo!()
    }
}
