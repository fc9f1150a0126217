//! The compat transport: nodes without UDP reach the beacon over a WebSocket (spec 04 section 17), on the registry's port.
//!
//! A connection proves its node by the key the registry knows, before anything it sends reaches the beacon. One message is
//! one datagram. The beacon itself stays one thread: connections hand it what they receive ([`Arrival`]), it leaves what is for
//! them in their bounded queues.

mod connection;
mod queue;
mod sniff;

pub(crate) use connection::serve;
pub(crate) use queue::Outlet;
pub(crate) use sniff::Peeked;

use pilot_proto::NodeId;
use queue::{Inlet, Total};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// Messages under way from all connections to the beacon, up to 64 KiB each. A full queue makes connections wait, and so
/// their senders.
const ARRIVALS: usize = 256;
/// Most WebSockets at a time.
const MAX_CONNECTIONS: usize = 20_000;

/// What a connection tells the beacon.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A node's WebSocket is there.
    Joined {
        node: NodeId,
        /// Number of the connection.
        serial: u64,
        peer: SocketAddr,
        outlet: Outlet,
    },
    /// It sent a datagram.
    Datagram { node: NodeId, serial: u64, bytes: Vec<u8> },
    /// It is gone.
    Left { node: NodeId, serial: u64 },
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Compat {
    arrivals: mpsc::Sender<Arrival>,
    open: AtomicUsize,
    waiting: Total,
    serials: AtomicU64,
    /// Connections that did not prove their node.
    pub refused: AtomicU64,
}

impl Compat {
    /// With the beacon's end of the queue.
    pub fn new() -> (Compat, mpsc::Receiver<Arrival>) {
        let (arrivals, arrived) = mpsc::channel(ARRIVALS);
        let compat = Compat {
            arrivals,
            open: AtomicUsize::new(0),
            waiting: Total::default(),
            serials: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        (compat, arrived)
    }

    /// A place for one more WebSocket, if there is one.
    fn enter(&self) -> Option<Entered<'_>> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        // Counted first: dropping it takes it back.
        let entered = Entered(self);
        (before < MAX_CONNECTIONS).then_some(entered)
    }

    /// A queue for a node's WebSocket, which the beacon has the other end of. `None`: the beacon is gone.
    async fn join(&self, node: NodeId, peer: SocketAddr) -> Option<(Joined<'_>, Inlet)> {
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        let (outlet, inlet) = queue::queue(self.waiting.clone());
        self.arrivals.send(Arrival::Joined { node, serial, peer, outlet }).await.ok()?;
        Some((Joined { compat: self, node, serial }, inlet))
    }
}

struct Entered<'a>(&'a Compat);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A node's WebSocket, as long as it lives.
struct Joined<'a> {
    compat: &'a Compat,
    node: NodeId,
    serial: u64,
}

impl Joined<'_> {
    /// Hands a datagram to the beacon; false: it is gone.
    async fn arrived(&self, bytes: Vec<u8>) -> bool {
        let arrival = Arrival::Datagram { node: self.node, serial: self.serial, bytes };
        self.compat.arrivals.send(arrival).await.is_ok()
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        // If the queue is full, the beacon finds out at its next delivery.
        let _ = self.compat.arrivals.try_send(Arrival::Left { node: self.node, serial: self.serial });
    }
}
