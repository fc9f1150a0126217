//! Reliable streams over the tunnel (spec 03), for all connections of one node.
//!
//! Skeleton of the public surface; see ARCHITECTURE.md.

use crate::wire::addr::{Addr, NodeId};
use crate::wire::packet::Packet;
use bytes::Bytes;
use std::time::Instant;

/// Number of a connection, unique for the life of the process (spec 07 section 8.1). Starts at 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u32);

/// What the sender may assume about the way to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// Largest stream payload one packet may carry on every path in use (1,152 unless known better).
    pub max_payload: usize,
    /// The tunnel can take packets now (a session exists and the send queue is not full).
    pub ready: bool,
    /// Frames go through the relay.
    pub relayed: bool,
}

/// Why a dial failed. Texts are those of spec 03 section 17.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The peer answered RST.
    #[error("connection refused")]
    Refused,
    /// Nobody answered.
    #[error("dial timeout")]
    Timeout,
    /// No session key was ever agreed.
    #[error("dial timeout: key exchange with peer did not complete")]
    KeyExchange,
    /// All 16,384 local ports are in use.
    #[error("ephemeral ports exhausted")]
    PortsExhausted,
    /// Too many connections.
    #[error("too many connections (max {0})")]
    TooMany(usize),
    /// The caller gave up.
    #[error("context canceled")]
    Cancelled,
    /// The peer's address could not be found out; the text names the cause.
    #[error("resolve node {node}: {reason}")]
    Resolve {
        /// The peer.
        node: NodeId,
        /// The registry's answer.
        reason: String,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Both directions were closed in order.
    #[error("closed")]
    Closed,
    /// The peer sent RST.
    #[error("connection reset by peer")]
    Reset,
    /// This side aborted.
    #[error("connection aborted")]
    Aborted,
    /// The peer acknowledged nothing for too long.
    #[error("peer stopped answering")]
    DeadPeer,
    /// Nothing happened for the idle time.
    #[error("idle timeout")]
    Idle,
}

/// Events of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// A dial succeeded.
    Connected(ConnId),
    /// A dial failed; the connection is gone.
    DialFailed(ConnId, DialError),
    /// A peer opened a connection to a listening port.
    Incoming {
        /// The new connection.
        conn: ConnId,
        /// Local port.
        port: u16,
        /// Address the peer dialled.
        local: Addr,
        /// Peer address.
        remote: Addr,
        /// Peer port.
        remote_port: u16,
    },
    /// Bytes can be read.
    Readable(ConnId),
    /// The send buffer has room again after it had none.
    Writable(ConnId),
    /// No bytes will follow those already received.
    EndOfStream(ConnId),
    /// The connection is over in both directions; reads of buffered bytes still work until `release`.
    Closed(ConnId, CloseReason),
}

/// The identity of an inbound packet's carrier, established by the tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// Authenticated sender.
    pub node: NodeId,
    /// Whether a private node may take a SYN from this sender (trust gate, spec 03 section 6.2 row 3). The
    /// engine computes it for the SYN's destination port.
    pub admitted: bool,
}

/// What happened to a handled packet, for the engine's bookkeeping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// Taken.
    Accepted,
    /// A SYN was refused by the trust gate (the engine may ask the registry and publish `syn.rejected`).
    Untrusted,
    /// Dropped for another reason, which the counter of that reason records.
    Dropped,
}

/// The packet a call to [`Streams::poll_packet`] wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketOut {
    /// Destination node.
    pub node: NodeId,
}

/// Status of one connection: exactly the fields of spec 07 section 10.1 `conn_list`.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct ConnStatus {
    pub bytes_recv: u64,
    pub bytes_sent: u64,
    pub cong_win: u64,
    pub dup_acks: u64,
    pub fast_retx: u64,
    pub id: u32,
    pub in_flight: u64,
    pub in_recovery: bool,
    pub local_port: u16,
    pub ooo_buf: u64,
    pub peer_recv_win: i64,
    pub recv_win: u64,
    pub remote_addr: String,
    pub remote_port: u16,
    pub retransmits: u64,
    pub rttvar_ms: f64,
    pub sack_recv: u64,
    pub sack_sent: u64,
    pub segs_recv: u64,
    pub segs_sent: u64,
    pub srtt_ms: f64,
    pub ssthresh: u64,
    pub state: &'static str,
    pub unacked: u64,
}

/// Settings of the streams of one node.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Config {
    pub idle_timeout: std::time::Duration,
    pub keepalive: std::time::Duration,
    pub max_conns_per_port: usize,
    pub max_conns_total: usize,
    pub syn_rate_limit: u32,
    pub extensions: bool,
}

/// Marker so that the skeleton compiles; the real state machine replaces it.
#[derive(Debug)]
pub struct Streams {
    _private: (),
}

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Streams {
    pub fn new(config: Config, seed: [u8; 32]) -> Streams {
        todo!()
    }
    /// Takes a packet of protocol 1. `ingress` was established by the tunnel.
    pub fn handle_packet(&mut self, now: Instant, ingress: Ingress, packet: Packet<'_>) -> Handled {
        todo!()
    }
    /// Binds a port. False: already bound.
    pub fn listen(&mut self, port: u16) -> bool {
        todo!()
    }
    pub fn unlisten(&mut self, port: u16) {
        todo!()
    }
    pub fn is_listening(&self, port: u16) -> bool {
        todo!()
    }
    /// Starts a dial from `local` (destination's network, own node). The outcome is an event.
    pub fn dial(&mut self, now: Instant, local: Addr, remote: Addr, port: u16) -> Result<ConnId, DialError> {
        todo!()
    }
    /// An ephemeral port for one datagram.
    pub fn ephemeral_port(&mut self) -> Option<u16> {
        todo!()
    }
    /// Hands bytes to a connection; takes all of them or, when the send buffer is full, a prefix. The rest is
    /// returned. An error means the connection takes no more bytes.
    pub fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason> {
        todo!()
    }
    /// The next received bytes, if any. They count against the window until [`Streams::consumed`].
    pub fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        todo!()
    }
    /// The application is done with `bytes` it read: opens the window and may send an update.
    pub fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize) {
        todo!()
    }
    /// No more bytes from us (half-close, extension); towards reference peers the same as `close`.
    /// False: half-close was not negotiated and nothing was done.
    pub fn finish(&mut self, now: Instant, conn: ConnId) -> bool {
        todo!()
    }
    /// Whether half-close was negotiated on this connection.
    pub fn half_close(&self, conn: ConnId) -> bool {
        todo!()
    }
    /// Orderly close of both directions: everything written is flushed, then FIN.
    pub fn close(&mut self, now: Instant, conn: ConnId) {
        todo!()
    }
    /// RST.
    pub fn abort(&mut self, now: Instant, conn: ConnId) {
        todo!()
    }
    /// A dial's peer could not be resolved: the dial fails with this.
    pub fn fail_dials(&mut self, now: Instant, node: NodeId, error: DialError) {
        todo!()
    }
    /// The tunnel to `node` became ready, or its path changed.
    pub fn path_changed(&mut self, now: Instant, node: NodeId) {
        todo!()
    }
    /// Our id or every tunnel changed identity: all connections of `node` end.
    pub fn reset_node(&mut self, now: Instant, node: NodeId) {
        todo!()
    }
    /// Appends the next packet to send (header, payload) to `out`. `path` answers what the tunnel to a node
    /// can take; connections whose path is not ready are skipped and keep their turn.
    pub fn poll_packet(
        &mut self,
        now: Instant,
        path: &dyn Fn(NodeId) -> PathInfo,
        out: &mut Vec<u8>,
    ) -> Option<PacketOut> {
        todo!()
    }
    pub fn poll_event(&mut self) -> Option<StreamEvent> {
        todo!()
    }
    pub fn next_timeout(&self) -> Option<Instant> {
        todo!()
    }
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }
    pub fn status(&self) -> Vec<ConnStatus> {
        todo!()
    }
    /// Live connections with `node` (for idle and reaping rules of the tunnel).
    pub fn connections_with(&self, node: NodeId) -> usize {
        todo!()
    }
}
