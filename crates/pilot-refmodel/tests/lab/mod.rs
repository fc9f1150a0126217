//! Scripted peers against one node of the reference: the real daemon or the model.
//!
//! A scenario is short code that sends exact packets at exact times and drives the node's own applications. It runs
//! against a [`Host`]; everything the node sends, and everything its applications see, becomes a [`trace::Line`].

pub mod model_host;
pub mod packets;
pub mod scenarios;
pub mod script;
pub mod trace;

use std::net::SocketAddr;
use std::time::Duration;

/// Node id of the node under test.
pub const SUBJECT: u32 = 1;
/// A scripted peer: its number in the scenario. Its node id is 100 more.
pub type PeerId = usize;

/// The node id of a scripted peer.
pub fn node_id(peer: PeerId) -> u32 {
    100 + peer as u32
}

/// What the registry of a scenario knows about one scripted peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Ed25519 key; `None`: not registered.
    pub key: Option<[u8; 32]>,
}

/// Settings of the node under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Public node.
    pub public: bool,
    /// Scripted peers.
    pub peers: usize,
}

/// Something the applications of the node do.
#[derive(Debug, Clone)]
pub enum App {
    /// Bind a port.
    Bind(u16),
    /// Dial a peer's port; connections are numbered in the order in which they come about.
    Dial(PeerId, u16),
    /// Write to a connection.
    Send(usize, Vec<u8>),
    /// Close a connection.
    Close(usize),
    /// Send a datagram.
    Datagram(PeerId, u16, Vec<u8>),
    /// Read no more from the node.
    StopReading,
    /// Read again.
    Read,
}

/// Something the node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A datagram arrived at a peer's socket.
    Direct(PeerId, Vec<u8>),
    /// A datagram arrived at the beacon.
    Beacon(Vec<u8>),
    /// A dial succeeded: number of the connection.
    Connected(usize),
    /// A dial failed.
    Failed(String),
    /// A peer connected to a port.
    Accepted(usize, u16),
    /// Bytes of a connection.
    Data(usize, Vec<u8>),
    /// The end of a connection.
    Ended(usize),
    /// A datagram: destination port and payload.
    Datagram(u16, Vec<u8>),
}

/// The node under test with everything around it but the peers.
pub trait Host {
    /// Time since the scenario began.
    fn now(&self) -> Duration;
    /// Sends a datagram to the node from a peer's socket.
    fn send(&mut self, from: PeerId, bytes: &[u8]);
    /// Sends a datagram to the node from the beacon's socket.
    fn send_from_beacon(&mut self, bytes: &[u8]);
    /// Changes what the registry knows.
    fn set_entry(&mut self, peer: PeerId, entry: Entry);
    /// An application acts.
    fn app(&mut self, app: App);
    /// The next thing the node does until then, and when it did it.
    fn next(&mut self, until: Duration) -> Option<(Duration, Seen)>;
    /// The address of a peer's socket.
    fn address(&self, peer: PeerId) -> SocketAddr;
}
