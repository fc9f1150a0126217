//! The beacon's socket.

use super::{Beacon, Counters};
use crate::server::stopped;
use pilot_proto::NodeId;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// Largest UDP payload, bytes.
const MAX_DATAGRAM: usize = 65_535;
/// Datagrams handled before other work gets a turn.
const BURST: usize = 256;
/// Socket buffers asked for, bytes; the system may give less.
const SOCKET_BUFFER: usize = 4 << 20;
const SYNC_INTERVAL: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The counters, readable from outside the task.
#[derive(Debug, Default)]
pub(crate) struct SharedCounters {
    nodes: AtomicU64,
    relayed: AtomicU64,
    dropped: AtomicU64,
    punches: AtomicU64,
    unsent: AtomicU64,
}

impl SharedCounters {
    fn publish(&self, c: Counters, unsent: u64) {
        self.nodes.store(c.nodes, Ordering::Relaxed);
        self.relayed.store(c.relayed, Ordering::Relaxed);
        self.dropped.store(c.dropped, Ordering::Relaxed);
        self.punches.store(c.punches, Ordering::Relaxed);
        self.unsent.store(unsent, Ordering::Relaxed);
    }

    /// Nodes, relayed frames, dropped frames, punches.
    pub fn read(&self) -> Counters {
        let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Counters {
            nodes: load(&self.nodes),
            // A datagram the system did not take was not relayed.
            relayed: load(&self.relayed).saturating_sub(load(&self.unsent)),
            dropped: load(&self.dropped) + load(&self.unsent),
            punches: load(&self.punches),
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

/// Serves until stopped.
pub(crate) async fn run(
    socket: UdpSocket,
    mut beacon: Beacon,
    counters: std::sync::Arc<SharedCounters>,
    mut notify: mpsc::Receiver<NodeId>,
    mut stop: watch::Receiver<bool>,
) {
    let mut buf = vec![0; MAX_DATAGRAM];
    let mut sync = tokio::time::interval(SYNC_INTERVAL);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let v6 = socket.local_addr().is_ok_and(|a| a.is_ipv6());
    let mut unsent = 0;
    loop {
        let mut send = |to: SocketAddr, bytes: &[u8]| {
            let to = match to {
                SocketAddr::V4(a) if v6 => SocketAddr::new(a.ip().to_ipv6_mapped().into(), a.port()),
                other => other,
            };
            // A full socket buffer or an unreachable host loses the datagram, as any network may.
            if socket.try_send_to(bytes, to).is_err() {
                unsent += 1;
            }
        };
        tokio::select! {
            ready = socket.readable() => {
                if let Err(e) = ready {
                    tracing::error!(error = %e, "the beacon's socket failed");
                    return;
                }
                let now = Instant::now();
                for _ in 0..BURST {
                    match socket.try_recv_from(&mut buf) {
                        Ok((n, from)) => beacon.handle(from, &mut buf[..n], now, &mut send),
                        // Would block, or an ICMP error of an earlier datagram.
                        Err(_) => break,
                    }
                }
                tokio::task::yield_now().await;
            }
            Some(node) = notify.recv() => beacon.notify(node, Instant::now(), &mut send),
            _ = sync.tick() => beacon.announce(&mut send),
            _ = sweep.tick() => beacon.sweep(Instant::now()),
            _ = stopped(&mut stop) => return,
        }
        counters.publish(beacon.counters, unsent);
    }
}
