//! The beacon's socket.

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
/// Receive calls before other work gets a turn.
const BURST: usize = 8;
/// Datagrams taken from the second port before other work gets a turn.
const PROBES: usize = 32;
/// Socket buffers asked for, bytes; the system may give less.
const SOCKET_BUFFER: usize = 8 << 20;
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
pub(crate) struct SharedCounters(Mutex<(Counters, u64)>);

impl SharedCounters {
    fn publish(&self, counters: Counters, unsent: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (counters, unsent);
    }

    pub fn read(&self) -> Counters {
        let (counters, unsent) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Counters {
            // A datagram the system did not take was not relayed.
            relayed: counters.relayed.saturating_sub(unsent),
            dropped: counters.dropped + unsent,
            ..counters
        }
    }
}

/// Binds the socket; `[::]` serves both families.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the system's limits are the operator's business.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// An address as a socket of either family takes it.
fn mapped(to: SocketAddr, v6: bool) -> SocketAddr {
    match to {
        SocketAddr::V4(a) if v6 => SocketAddr::new(a.ip().to_ipv6_mapped().into(), a.port()),
        other => other,
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
        tokio::select! {
            ready = socket.readable() => {
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
                    for (buffer, meta) in buffers.chunks_exact_mut(BUFFER).zip(&meta[..received]) {
                        for datagram in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                            beacon.handle(meta.addr, datagram, &directory, now, &mut send);
                        }
                    }
                }
                tokio::task::yield_now().await;
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
                tokio::task::yield_now().await;
            }
            n = arrivals.recv_many(&mut arrived, ARRIVALS), if !arrivals.is_closed() => {
                arrived.drain(..n).for_each(|arrival| beacon.arrived(arrival, &mut send));
            }
            Some(hint) = hints.recv() => match hint {
                Hint::Handshake(node) => beacon.notify(node, Instant::now(), &mut send),
                Hint::Registered(node, ip) => beacon.registered(node, ip, Instant::now()),
            },
            _ = sync.tick() => beacon.announce(&mut send),
            _ = sweep.tick() => beacon.sweep(Instant::now()),
            _ = stopped(&mut stop) => return,
        }
        counters.publish(beacon.counters, unsent);
    }
}
