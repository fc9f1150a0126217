//! Reliable streams over the tunnel (spec 03), for all connections of one node.
//!
//! One [`Streams`] holds the connections of a node. Packets, time and the application's wishes go in; packets, events
//! and the next deadline come out. Towards reference peers the bytes on the wire are those of the specification; what
//! our own nodes agree on in the opening (half-close, larger segments and windows) is in docs/extensions.md.
//!
//! - `table`: lookup, limits, scheduling, timers ([`Streams`]).
//! - `conn`, `handshake`, `close`, `restart`, `emit`: one connection.
//! - `sender`, `send`, `rtt`, `congestion`: its sending direction.
//! - `recv`, `ack`, `sack`: its receiving direction.

mod ack;
mod close;
mod congestion;
mod conn;
mod emit;
mod handshake;
mod options;
mod ports;
#[cfg(test)]
mod proofs;
mod ranges;
mod recv;
mod restart;
mod rtt;
mod sack;
mod send;
mod sender;
mod status;
mod syn_limit;
mod table;

pub use congestion::CongestionKind;
pub use table::Streams;

use crate::wire::addr::{Addr, NodeId};
use crate::wire::packet::Packet;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Settings of [`Streams`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes a connection receives ahead of its application (4 MiB).
    pub recv_window: usize,
    /// Bytes a connection takes from its application ahead of the peer's acknowledgements (2 MiB).
    pub send_buffer: usize,
    /// Connections per local port (1,024).
    pub max_conns_per_port: usize,
    /// Connections in total (65,536).
    pub max_conns_total: usize,
    /// Connections of one peer that a listener's application may leave unaccepted (64); four times as many of all.
    pub accept_queue: usize,
    /// SYNs per second taken from all sources together (100; 0: no limit).
    pub syn_rate_limit: u32,
    /// A connection whose peer is silent for this long is closed (120 s).
    pub idle_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life (60 s).
    pub keepalive: Duration,
    /// Silence that a connection with one of our own nodes outlives in any case: that machine may be asleep (15 min; RFC 5482's
    /// user timeout). Then the same rules as for a reference node hold.
    pub user_timeout: Duration,
    /// Congestion controller of new connections.
    pub congestion: CongestionKind,
    /// Offer and accept the options of docs/extensions.md (on). Off: behave like a reference node.
    pub extensions: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            recv_window: 4 << 20,
            send_buffer: 2 << 20,
            max_conns_per_port: 1024,
            max_conns_total: 65_536,
            accept_queue: 64,
            syn_rate_limit: 100,
            idle_timeout: Duration::from_secs(120),
            keepalive: Duration::from_secs(60),
            user_timeout: Duration::from_secs(900),
            congestion: CongestionKind::default(),
            extensions: true,
        }
    }
}

/// Who a connection is with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnInfo {
    /// Local address.
    pub local: Addr,
    /// Local port.
    pub local_port: u16,
    /// Peer address.
    pub remote: Addr,
    /// Peer port.
    pub remote_port: u16,
    /// The peer dialled.
    pub incoming: bool,
}

/// Why packets were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections refused because a listener's application had not accepted the earlier ones.
    pub accept_queue_drops: u64,
    /// SYNs over the rate limits.
    pub syn_rate_limited: u64,
    /// SYNs refused because a port or the node had too many connections.
    pub too_many: u64,
    /// Packets for no connection.
    pub unknown: u64,
    /// Those of them that were answered with RST.
    pub unknown_reset: u64,
    /// Packets that named another node than their sender as source.
    pub foreign: u64,
}

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
    /// The peer's process is the one that its connections are with, as far as is known: it has not come back under another
    /// tunnel key without a frame that opened yet.
    pub same_process: bool,
}

/// Why a dial failed. Texts are those of spec 03 section 17.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The peer answered RST.
    #[error("connection refused")]
    Refused,
    /// There is a session, but nobody answered.
    #[error("dial timeout: 7 connection requests in 10 s were not answered")]
    Timeout,
    /// No session key was agreed within 10 s.
    #[error("dial timeout: key exchange with peer did not complete (no answer in 10 s{tried})")]
    KeyExchange {
        /// The peer.
        node: NodeId,
        /// Where it was tried: ` at A, B and through the relay`.
        tried: String,
    },
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
    /// A peer with which the session upgrade was had answers without it (docs/extensions.md).
    #[error(
        "node {0} no longer offers the upgraded session this node insists on: somebody on the path cuts it off, or the \
         node runs other software now; if you know the latter, run pilotctl pins clear {0}"
    )]
    Downgrade(NodeId),
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
    /// The peer's process ended and another has taken its place, which does not know the connection.
    #[error("connection reset: peer restarted")]
    PeerRestarted,
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
    /// The peer answers it, if it arrives: it opens or closes, carries data or probes.
    pub asks: bool,
}

/// Status of one connection: the fields of spec 07 section 10.1 `conn_list`, and `half_close` (docs/extensions.md).
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct ConnStatus {
    pub bytes_recv: u64,
    pub bytes_sent: u64,
    pub cong_win: u64,
    pub dup_acks: u64,
    pub fast_retx: u64,
    /// Either side can end its direction alone.
    pub half_close: bool,
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
