//! A behavioural model of a node of the reference version 1.18.0: what it puts on the wire, and when, given what it
//! receives. Development only: the simulation runs our nodes against it, so that faults between the two are found without
//! the reference's programs.
//!
//! It is written from the protocol documents (spec 01 to 04) alone and shares nothing with our own node but the codec
//! and the ciphers (`pilot_proto::wire`, `pilot_proto::crypto`). Whether it is right is decided by
//! `tests/scenarios`: scripts of which the recorded datagrams of the real daemon must be the model's as well.
//!
//! - `tunnel`: key exchange, sessions, retransmission. `session`: one session and its replay window.
//! - `path`: direct or relayed, upgrade, keepalive, watchdog.
//! - `worker`: the one handler of decoded packets, and what blocks it. `service`: the echo service and local clients.
//! - `stream`: connections.
//!
//! Not modelled: the registry's side (the driver answers [`Event::NeedKey`] and the like), plaintext mode, `-relay-only`,
//! the secure channel, the WebSocket transport, beacon choice, address and receive watchdogs, network policies, and
//! ICMP errors.
//!
//! The contract is that of our own engine: datagrams, commands and times in; datagrams, events and the next deadline out,
//! through [`Node::poll_output`]. Everything is deterministic, given [`Config::rng_seed`].

#![forbid(unsafe_code)]

mod bucket;
mod node;
mod path;
mod service;
mod session;
mod stream;
mod ticks;
mod tunnel;
mod worker;

pub use node::Node;
pub use path::Route;
pub use ticks::Phases;

use bytes::Bytes;
use pilot_proto::{Addr, NodeId};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The process's X25519 key.
    pub tunnel_secret: [u8; 32],
    /// Seed of nonce prefixes and jitter.
    pub rng_seed: [u8; 32],
    /// Anyone may open streams and send datagrams.
    pub public: bool,
    /// When the periodic timers tick for the first time.
    pub phases: Phases,
    /// Segments that wait between the 512 slots and the application that reads them: the daemon's queue and the buffers
    /// of the local socket (351 full segments were seen).
    pub client_buffer: usize,
    /// A local client that reads nothing for this long while something waits for it is dropped (10 s).
    pub client_stall: Duration,
    /// First ephemeral port.
    pub first_port: u16,
}

impl Config {
    /// The settings of a daemon without flags, with these secrets.
    pub fn new(tunnel_secret: [u8; 32], rng_seed: [u8; 32]) -> Config {
        Config {
            tunnel_secret,
            rng_seed,
            public: false,
            phases: Phases::default(),
            client_buffer: 351,
            client_stall: Duration::from_secs(10),
            first_port: 49_152,
        }
    }
}

/// Number of a connection, unique for the life of the process. Starts at 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u32);

/// Why a dial failed (spec 03 section 17).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// The peer answered RST.
    Refused,
    /// Nobody answered.
    Timeout,
    /// No session key was ever agreed.
    KeyExchange,
    /// All local ports are in use.
    PortsExhausted,
    /// The peer's address could not be found out.
    Resolve(String),
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer's FIN, everything before it delivered.
    Fin,
    /// The peer's FIN, after 15 s without what was missing before it.
    EarlyFin,
    /// The own FIN was answered.
    Own,
    /// The own FIN was not answered.
    Unanswered,
    /// The connection was closed as idle.
    Idle,
    /// The peer's RST.
    Reset,
    /// The peer acknowledged nothing, or kept its window closed, for too long.
    GaveUp,
    /// The peer opened a new connection in its place.
    Replaced,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The registry is asked for a node's Ed25519 key; answer with [`Node::set_peer_key`]. Until then no datagram is
    /// handled.
    NeedKey(NodeId),
    /// The registry is asked for a node's address; answer with [`Node::set_route`].
    NeedRoute(NodeId),
    /// The registry is asked whether this node trusts that one; answer with [`Node::set_trust`]. Until then no packet is
    /// handled.
    NeedTrust(NodeId),
    /// A dial succeeded.
    Connected(ConnId),
    /// A dial failed.
    DialFailed(ConnId, DialError),
    /// A peer opened a connection to a port the application listens on.
    Incoming(ConnId, u16),
    /// There is something to read.
    Readable(ConnId),
    /// All writes so far are through.
    Writable(ConnId),
    /// What is there to read is all: the peer's FIN or RST, giving up, idle or the own close look the same.
    Ended(ConnId),
    /// The connection is over. Applications of the reference do not learn why; those who judge a simulation do.
    Over(ConnId, End),
    /// The peer will see an end that the application did not make, or before its last bytes: the FIN did not wait for them
    /// any longer (spec 03 section 16.2), or the connection was closed as idle.
    CutShort(ConnId),
    /// The local client did not read and was dropped: its connections are closed, its ports released.
    ClientDropped,
    /// A datagram arrived.
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
    /// The beacon sees our socket at this address.
    Observed(SocketAddr),
    /// The beacon says something waits at the registry.
    Notified,
    /// A session was installed.
    Established {
        /// Peer.
        node: NodeId,
        /// The exchange came through the relay.
        relay: bool,
        /// It replaced an earlier session.
        rekeyed: bool,
    },
    /// A session was dropped because of faulty frames.
    Dropped(NodeId),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send the buffer to this address.
    Transmit(SocketAddr),
    /// Something happened.
    Event(Event),
    /// Nothing until then, or until there is input.
    Timeout(Instant),
}
