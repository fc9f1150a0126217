//! The beacon's task: it moves bytes between the socket and the state.

use super::socket::{mapped, transmit};
use super::{Beacon, Counters, Directory};
use crate::compat::Arrival;
use crate::server::stopped;
use pilot_proto::NodeId;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// Bytes of one receive buffer: the largest datagram, or a run of equal ones that the kernel hands over as one.
const BUFFER: usize = 65_535;
/// Receive calls before what they brought is sent on, and other work gets a turn. Many, so that frames of interleaved flows
/// find others to the same destination to leave with; a beacon that keeps up finds nothing more after one or two.
const BURST: usize = 16;
/// Batches sent before the next receive calls: what is queued when the socket was full must not stop reading.
const SENDS: usize = 1024;
/// Datagrams taken from the second port before other work gets a turn.
const PROBES: usize = 32;
/// Messages of WebSockets handled before other work gets a turn.
const ARRIVALS: usize = 64;
const SYNC_INTERVAL: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What the registry tells the beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something waits in the node's inbox.
    Handshake(NodeId),
    /// The node has registered, from this IP address.
    Registered(NodeId, Option<IpAddr>),
}

/// What reaches the beacon beside its sockets.
pub(crate) struct Inputs {
    pub hints: mpsc::Receiver<Hint>,
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// The counters, readable from outside the task.
#[derive(Debug, Default)]
pub(crate) struct SharedCounters(Mutex<Counters>);

impl SharedCounters {
    fn publish(&self, counters: Counters) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    pub fn read(&self) -> Counters {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when the socket, if there is one, has something to read.
async fn readable(socket: Option<&UdpSocket>) -> std::io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

/// Serves until stopped.
pub(crate) async fn run(
    socket: UdpSocket,
    probe: Option<UdpSocket>,
    mut beacon: Beacon,
    directory: impl Directory,
    counters: std::sync::Arc<SharedCounters>,
    Inputs { mut hints, mut arrivals }: Inputs,
    mut stop: watch::Receiver<bool>,
) {
    let state = match UdpSocketState::new(UdpSockRef::from(&socket)) {
        Ok(state) => state,
        Err(e) => return tracing::error!(error = %e, "the beacon's socket cannot be set up"),
    };
    let mut buffers = vec![0; BATCH_SIZE * BUFFER];
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    let mut sync = tokio::time::interval(SYNC_INTERVAL);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let v6 = socket.local_addr().is_ok_and(|a| a.is_ipv6());
    let mut unsent = 0;
    let mut arrived = Vec::with_capacity(ARRIVALS);
    loop {
        let mut send = |to: SocketAddr, bytes: &[u8]| {
            // A full socket buffer or an unreachable host loses the datagram, as any network may.
            if socket.try_send_to(bytes, mapped(to, v6)).is_err() {
                unsent += 1;
            }
        };
        let interest =
            if beacon.waiting() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            ready = socket.ready(interest) => {
                if let Err(e) = ready {
                    tracing::error!(error = %e, "the beacon's socket failed");
                    return;
                }
                for _ in 0..BURST {
                    let mut chunks = buffers.chunks_exact_mut(BUFFER);
                    let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                        std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
                    let received = socket.try_io(Interest::READABLE, || {
                        state.recv(UdpSockRef::from(&socket), &mut slices, &mut meta)
                    });
                    // Would block, or an ICMP error of an earlier datagram.
                    let Ok(received) = received else { break };
                    let now = Instant::now();
                    for (buffer, meta) in buffers.chunks_exact(BUFFER).zip(&meta[..received]) {
                        beacon.receive(meta.addr, &buffer[..meta.len], meta.stride, &directory, now, &mut send);
                    }
                }
            }
            Ok(()) = readable(probe.as_ref()) => {
                for _ in 0..PROBES {
                    let Some(probe) = &probe else { break };
                    // Longer ones are cut: what follows the layout is ignored.
                    let mut buffer = [0; 64];
                    let Ok((len, from)) = probe.try_recv_from(&mut buffer) else { break };
                    let mut answer = |to: SocketAddr, bytes: &[u8]| {
                        let _ = probe.try_send_to(bytes, mapped(to, v6));
                    };
                    beacon.probe(from, &buffer[..len], &directory, Instant::now(), &mut answer);
                }
            }
            n = arrivals.recv_many(&mut arrived, ARRIVALS), if !arrivals.is_closed() => {
                arrived.drain(..n).for_each(|arrival| beacon.arrived(arrival));
            }
            Some(hint) = hints.recv() => match hint {
                Hint::Handshake(node) => beacon.notify(node, Instant::now(), &mut send),
                Hint::Registered(node, ip) => beacon.registered(node, ip, Instant::now()),
            },
            _ = sync.tick() => beacon.announce(&mut send),
            _ = sweep.tick() => beacon.sweep(Instant::now()),
            _ = stopped(&mut stop) => return,
        }
        for _ in 0..SENDS {
            let Some(mut batch) = beacon.next() else { break };
            let sent = transmit(&socket, v6, &mut batch);
            beacon.sent(batch, &sent);
            if sent.full {
                break;
            }
        }
        beacon.counters.answers_unsent = unsent;
        counters.publish(beacon.counters);
        tokio::task::yield_now().await;
    }
}
