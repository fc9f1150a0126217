//! The queues between the driver and the WebSocket's task. Bounded; the driver never waits.

use tokio::sync::{mpsc, watch};

/// Datagrams that wait for the WebSocket; with a relayed frame of 1,200 bytes each about 600 kB.
const OUTBOUND: usize = 512;
/// Messages that wait for the driver; the WebSocket waits while it is full.
const INBOUND: usize = 256;

/// What comes from the WebSocket.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// It is open.
    Open,
    /// It is closed.
    Closed,
    /// From the beacon.
    Datagram(Vec<u8>),
}

/// The driver's end.
#[derive(Debug)]
pub(crate) struct DriverEnd {
    pub(super) inbound: mpsc::Receiver<Inbound>,
    pub(super) outbound: mpsc::Sender<Vec<u8>>,
    pub(super) wanted: watch::Sender<bool>,
}

/// The end of the WebSocket's task.
#[derive(Debug)]
pub(crate) struct SocketEnd {
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) outbound: mpsc::Receiver<Vec<u8>>,
    pub(super) wanted: watch::Receiver<bool>,
}

/// Both ends.
pub(crate) fn link() -> (DriverEnd, SocketEnd) {
    let (to_driver, inbound) = mpsc::channel(INBOUND);
    let (outbound, to_socket) = mpsc::channel(OUTBOUND);
    let (wanted, want) = watch::channel(false);
    (
        DriverEnd { inbound, outbound, wanted },
        SocketEnd { inbound: to_driver, outbound: to_socket, wanted: want },
    )
}
