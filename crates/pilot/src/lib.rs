//! A Pilot node to embed: sockets, clocks and an async API around `pilot_proto`.
//!
//! Skeleton of the public surface; see ARCHITECTURE.md.

use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Counters, PeerStatus};
use pilot_proto::stream::{CloseReason, ConnStatus, DialError};
use pilot_proto::{Addr, NodeId};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How the registry's TLS certificate is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryTls {
    /// SHA-256 of the leaf certificate, 64 lower-case hex digits.
    Pinned(String),
    /// The operating system's roots.
    System,
}

/// Settings of a node.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct NodeConfig {
    /// `host:port` of the registry.
    pub registry: String,
    pub registry_tls: Option<RegistryTls>,
    /// `host:port` of beacons, first one preferred.
    pub beacons: Vec<String>,
    /// UDP listen address.
    pub listen: SocketAddr,
    /// Where the identity is kept; `None`: a fresh one, not stored. `trust.json` lies beside it.
    pub identity_path: Option<PathBuf>,
    pub email: Option<String>,
    pub hostname: Option<String>,
    pub tags: Vec<String>,
    pub public: bool,
    /// Fixed endpoint to register instead of the observed one.
    pub endpoint: Option<String>,
    pub relay_only: bool,
    pub trust_auto_approve: bool,
    pub encrypt: bool,
    pub strict_dataplane_trust: bool,
    /// Registry heartbeat interval and stream keepalive.
    pub keepalive: Duration,
    pub idle_timeout: Duration,
    pub max_conns_per_port: usize,
    pub max_conns_total: usize,
    pub syn_rate_limit: u32,
    /// Version told to the registry.
    pub version: String,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity file cannot be used; the text says how to mend it.
    #[error("{0}")]
    Identity(String),
    /// The UDP socket could not be bound.
    #[error("bind {addr}: {error}")]
    Bind {
        /// Address.
        addr: SocketAddr,
        /// Cause.
        error: std::io::Error,
    },
    /// The registry could not be reached or refused.
    #[error("register: registry: {0}")]
    Register(String),
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
}

/// A registry's answer or why there is none.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The registry answered with an error; its text.
    #[error("registry: {0}")]
    Refused(String),
    /// No connection, or it broke.
    #[error("registry: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("registry: call timed out, connection likely half-open")]
    TimedOut,
}

/// A running node. Cheap to clone; the last clone's drop stops it.
#[derive(Debug, Clone)]
pub struct Node {
    _inner: Arc<()>,
}

/// An event for logs, webhooks and subscribers.
#[derive(Debug, Clone)]
pub struct NodeEvent {
    /// Name, e.g. `conn.established`.
    pub name: &'static str,
    /// Fields.
    pub data: Value,
}

/// A received datagram.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Datagram {
    pub src: Addr,
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: Bytes,
}

/// What a node knows about itself.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct NodeStatus {
    pub node_id: NodeId,
    pub address: Addr,
    pub hostname: String,
    pub email: String,
    pub public_key: [u8; 32],
    pub identity_persisted: bool,
    pub public: bool,
    pub endpoint: String,
    pub beacon_addr: String,
    pub registry_addr: String,
    pub encrypt: bool,
    pub uptime: Duration,
    pub peers: Vec<PeerStatus>,
    pub connections: Vec<ConnStatus>,
    pub counters: Counters,
    pub ports: usize,
    pub handshake_pending: usize,
    /// Another machine runs this identity now; this node has stopped registering.
    pub superseded: bool,
    /// Registry answers heartbeats.
    pub registry_ok: bool,
    /// Problems a user should know (a refused hostname, changed keys), newest last, bounded.
    pub warnings: Vec<String>,
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Node {
    /// Binds, registers, starts. Returns when the node is registered.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        todo!()
    }
    pub fn node_id(&self) -> NodeId {
        todo!()
    }
    pub fn address(&self) -> Addr {
        todo!()
    }
    pub fn identity(&self) -> Arc<Identity> {
        todo!()
    }
    pub async fn status(&self) -> NodeStatus {
        todo!()
    }

    // streams
    pub async fn dial(&self, to: Addr, port: u16) -> Result<Stream, DialError> {
        todo!()
    }
    /// `None`: the port is already bound.
    pub async fn listen(&self, port: u16) -> Option<Listener> {
        todo!()
    }

    // datagrams: every subscriber sees every admitted datagram
    pub async fn send_datagram(
        &self,
        to: Addr,
        port: u16,
        payload: Bytes,
    ) -> Result<(), pilot_proto::engine::SendError> {
        todo!()
    }
    pub fn datagrams(&self) -> tokio::sync::broadcast::Receiver<Datagram> {
        todo!()
    }
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<NodeEvent> {
        todo!()
    }
    /// Publishes an event of a service.
    pub fn publish(&self, name: &'static str, data: Value) {
        todo!()
    }

    // directory
    /// The registry's object for a name (`resolve_hostname_ok`), cached 60 s as spec 07 section 12 says.
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, RegistryError> {
        todo!()
    }
    pub async fn lookup(&self, node: NodeId) -> Result<Value, RegistryError> {
        todo!()
    }
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, RegistryError> {
        todo!()
    }
    /// Extension: a hidden name resolves only for trusted requesters.
    pub async fn set_hidden(&self, hidden: bool) -> Result<Value, RegistryError> {
        todo!()
    }
    pub async fn set_tags(&self, tags: &[String]) -> Result<Value, RegistryError> {
        todo!()
    }
    pub async fn set_public(&self, public: bool) -> Result<Value, RegistryError> {
        todo!()
    }
    pub async fn deregister(&self) -> Result<Value, RegistryError> {
        todo!()
    }
    /// New identity key: registry first, then memory, then file (spec 02 section 16).
    pub async fn rotate_key(&self) -> Result<Value, RegistryError> {
        todo!()
    }
    /// Any registry request, passed through; `type` is in `request`. Used for network commands.
    pub async fn registry_request(&self, request: Value) -> Result<Value, RegistryError> {
        todo!()
    }

    // trust
    pub fn is_trusted(&self, node: NodeId) -> bool {
        todo!()
    }
    /// Sends a request, directly or relayed; `Err` if both failed.
    pub async fn handshake(&self, node: NodeId, justification: &str) -> Result<HandshakeSent, String> {
        todo!()
    }
    pub async fn approve(&self, node: NodeId) -> Result<ApproveOutcome, String> {
        todo!()
    }
    pub async fn reject(&self, node: NodeId, reason: &str) -> Result<bool, String> {
        todo!()
    }
    pub async fn revoke(&self, node: NodeId) -> Result<(), String> {
        todo!()
    }
    pub async fn pending(&self) -> Vec<PendingRequest> {
        todo!()
    }
    pub async fn trusted(&self) -> Vec<TrustedPeer> {
        todo!()
    }
    pub async fn wait_for_trust(&self, node: NodeId, timeout: Duration) -> TrustWait {
        todo!()
    }
    /// Fetches relayed requests and answers from the registry now (at most once per 2 s).
    pub async fn poll_handshakes(&self) {
        todo!()
    }

    /// Closes streams with FIN, saves trust, stops.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// Outcome of [`Node::handshake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HandshakeSent {
    Sent,
    AlreadyTrusted,
    InFlight,
}

/// Outcome of [`Node::approve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ApproveOutcome {
    Approved,
    AlreadyTrusted,
    NothingPending,
}

/// Outcome of [`Node::wait_for_trust`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TrustWait {
    Trusted,
    Rejected { reason: String },
    TimedOut,
}

/// A waiting request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PendingRequest {
    pub node_id: NodeId,
    pub public_key: String,
    pub justification: String,
    pub received_at_unix: u64,
}

/// A trusted peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TrustedPeer {
    pub node_id: NodeId,
    pub public_key: String,
    pub approved_at_unix: u64,
    pub mutual: bool,
    pub network: u16,
}

/// A listening port; dropping it unbinds.
#[derive(Debug)]
pub struct Listener {
    _private: (),
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Listener {
    pub fn port(&self) -> u16 {
        todo!()
    }
    /// `None` when the node has stopped.
    pub async fn accept(&mut self) -> Option<Stream> {
        todo!()
    }
}

/// One stream. Split it to read and write at once; dropping both halves closes it in order (FIN after
/// everything written was acknowledged).
#[derive(Debug)]
pub struct Stream {
    pub(crate) _private: (),
}

/// Reading half.
#[derive(Debug)]
pub struct ReadHalf {
    _private: (),
}

/// Writing half.
#[derive(Debug)]
pub struct WriteHalf {
    _private: (),
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Stream {
    /// The daemon-wide connection id (spec 07 section 8.1).
    pub fn id(&self) -> u32 {
        todo!()
    }
    pub fn remote(&self) -> Addr {
        todo!()
    }
    pub fn remote_port(&self) -> u16 {
        todo!()
    }
    pub fn local_port(&self) -> u16 {
        todo!()
    }
    /// Half-close was negotiated: [`WriteHalf::finish`] ends only our direction.
    pub fn half_close(&self) -> bool {
        todo!()
    }
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        todo!()
    }
    /// As [`ReadHalf::read`].
    pub async fn read(&mut self) -> Option<Bytes> {
        todo!()
    }
    /// As [`WriteHalf::write`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), CloseReason> {
        todo!()
    }
    /// Orderly close, not waiting.
    pub fn close(self) {
        todo!()
    }
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl ReadHalf {
    pub fn id(&self) -> u32 {
        todo!()
    }
    /// The next bytes (as much as has arrived, up to 256 KiB); `None` at the end of the stream. Reading opens
    /// the window again.
    pub async fn read(&mut self) -> Option<Bytes> {
        todo!()
    }
    /// Why the stream ended, once `read` returned `None`.
    pub fn close_reason(&self) -> Option<CloseReason> {
        todo!()
    }
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl WriteHalf {
    pub fn id(&self) -> u32 {
        todo!()
    }
    /// Waits for room, then takes all of `data`.
    pub async fn write(&mut self, data: Bytes) -> Result<(), CloseReason> {
        todo!()
    }
    /// Ends our direction if half-close was negotiated (`true`), else does nothing (`false`).
    pub fn finish(&mut self) -> bool {
        todo!()
    }
    /// Orderly close of both directions, not waiting.
    pub fn close(self) {
        todo!()
    }
    /// RST.
    pub fn abort(self) {
        todo!()
    }
}
