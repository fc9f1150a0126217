//! What handles and tasks ask of the driver.

use crate::listener::Incoming;
use crate::stream::Stream;
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{BeaconStatus, Counters, DiscoverProof, PeerStatus, Route, SendError};
use pilot_proto::path::{Candidate, NatClass};
use pilot_proto::stream::{ConnId, ConnStatus, DialError};
use pilot_proto::{Addr, NodeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Number of a dial in flight, for cancelling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DialToken(pub(crate) u64);

pub(crate) enum Command {
    Dial {
        to: Addr,
        port: u16,
        token: DialToken,
        reply: oneshot::Sender<Result<Stream, DialError>>,
    },
    CancelDial(DialToken),
    Listen {
        port: u16,
        reply: oneshot::Sender<Option<mpsc::Receiver<Incoming>>>,
    },
    Unlisten(u16),
    Write(ConnId, Bytes),
    Consumed(ConnId, usize),
    /// The reading half is gone: discard what arrives.
    Discard(ConnId),
    Finish(ConnId),
    Close(ConnId),
    Abort(ConnId),
    /// The last handle of the connection is gone.
    Release(ConnId),
    SendDatagram {
        to: Addr,
        port: u16,
        payload: Bytes,
        reply: oneshot::Sender<Result<Delivery, SendError>>,
    },
    /// A direct way to this peer is to be tried now.
    TryDirect(NodeId),
    /// A peer of this node's earlier life, and where it was.
    Greet(NodeId, Vec<Candidate>),
    PeerKey(NodeId, Option<[u8; 32]>),
    /// The registry names this key for a node whose pinned key is another.
    DisputedKey(NodeId, [u8; 32], String),
    Route(NodeId, Result<Route, String>),
    Identity(Arc<Identity>, NodeId),
    /// Where this node may be reached.
    Local(Vec<Candidate>),
    /// The node is somewhere else, or was away.
    NetworkChanged,
    /// All beacons, in the order in which a reference node counts them.
    Beacons(Vec<SocketAddr>),
    BeaconStatus(oneshot::Sender<Vec<BeaconStatus>>),
    /// Ports to ask what our NAT does.
    NatProbes(Vec<SocketAddr>),
    DiscoverProof(Option<DiscoverProof>),
    Public(bool),
    Trusted(NodeId, bool),
    Admit(NodeId, Instant),
    ReplyWindow(NodeId),
    Forget(NodeId),
    /// Peers to insist on upgraded sessions with.
    Pins(Vec<(NodeId, [u8; 32])>),
    ClearPin(NodeId),
    Status(oneshot::Sender<EngineStatus>),
    /// Answered when what was asked before has left the node.
    Flush(oneshot::Sender<()>),
    /// Close everything in order, then stop; answered when stopped.
    Shutdown(Option<oneshot::Sender<()>>),
}

/// A snapshot of the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineStatus {
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) connections: Vec<ConnStatus>,
    pub(crate) counters: Counters,
    pub(crate) ports: usize,
    pub(crate) beacons: Vec<BeaconStatus>,
    pub(crate) nat: NatStatus,
}

/// What is known of the NAT between this node and the Internet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatStatus {
    /// What it does.
    pub class: NatClass,
    /// Whether the outside port is the inside one.
    pub keeps_port: Option<bool>,
    /// How long a mapping was seen to last without traffic from us.
    pub kept: Duration,
    /// After which silence one was seen to be gone.
    pub lost: Option<Duration>,
}

/// A datagram the engine has taken.
#[derive(Debug)]
pub struct Delivery(pub(crate) Option<oneshot::Receiver<Result<(), SendError>>>);

impl Delivery {
    /// Waits until it is known where the peer is, if it is not. `Ok` means that the datagram is on its way or waits for
    /// the key exchange.
    ///
    /// # Errors
    /// [`SendError::Resolve`].
    pub async fn resolved(self) -> Result<(), SendError> {
        match self.0 {
            // The driver is gone only when the node has stopped, and everything with it.
            Some(answer) => answer.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}

/// The way to the driver. Unbounded as a channel, bounded by its users: writes hold credit, reads are limited by
/// the window, everything else waits for its answer or is rare.
pub(crate) type Commands = mpsc::UnboundedSender<Command>;

/// What the driver passes on to the control task.
#[derive(Debug)]
pub(crate) enum Control {
    NeedKey(NodeId),
    NeedRoute(NodeId),
    Knock(NodeId),
    Notified,
    Observed(SocketAddr),
    KeyProven(NodeId, [u8; 32]),
    OtherKeyProven(NodeId, [u8; 32]),
    DowngradeRefused(NodeId),
}
