//! The beacon's socket: what comes is handed to the state, what the state wants sent is sent.

use super::transmit::Sender;
use super::{Beacon, Directory};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

/// Bytes of one receive buffer: the largest datagram, or a run of equal ones that the kernel hands over as one.
const BUFFER: usize = 65_535;
/// From one buffer to the next: an odd number of cache lines. At a power of two the first bytes of all, which is all a
/// small datagram has, would displace each other in the cache.
const SPACING: usize = 65_536 + 33 * 64;
/// Buffers offered to one receive call where long runs come: so that they are still in the cache when they are sent.
const NARROW: usize = 2;
/// Datagrams and runs of more bytes on average are long.
const LONG: usize = 8192;
/// Receive calls before other work gets a turn.
const BURST: usize = 64;
/// Bytes received before what waits is sent. Many, so that frames of interleaved flows find others to the same destination
/// to leave with; less than a destination may have queued, so that none of them is lost here.
const GATHERED: usize = 768 << 10;
/// Messages sent before the next receive calls: what is queued when the socket was full must not stop reading.
const SENDS: usize = 1024;

/// What came while others waited.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub datagrams: u64,
    pub bytes: u64,
    /// There was nothing more.
    pub emptied: bool,
}

/// The socket.
pub(super) struct Link {
    socket: UdpSocket,
    /// For IPv6.
    pub v6: bool,
    state: UdpSocketState,
    sender: Sender,
    buffers: Vec<u8>,
    /// Buffers offered to the next receive call.
    width: usize,
    /// Answers sent, and those the socket did not take.
    answered: u64,
    pub unsent: u64,
}

impl Link {
    pub fn new(socket: UdpSocket) -> std::io::Result<Link> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let v6 = socket.local_addr()?.is_ipv6();
        let sender = Sender::new(v6, state.max_gso_segments() > 1);
        let buffers = vec![0; BATCH_SIZE * SPACING];
        Ok(Link { socket, v6, state, sender, buffers, width: BATCH_SIZE, answered: 0, unsent: 0 })
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Size of the socket's receive buffer, bytes.
    pub fn receive_buffer(&self) -> usize {
        socket2::SockRef::from(&self.socket).recv_buffer_size().unwrap_or(0)
    }

    /// Messages handed to the socket since start.
    pub fn messages(&self) -> u64 {
        self.sender.messages + self.answered
    }

    /// Sends what it is given.
    pub fn answers(&mut self) -> impl FnMut(SocketAddr, &[u8]) {
        |to, bytes| {
            self.answered += 1;
            // A full socket buffer or an unreachable host loses the datagram, as any network may.
            if self.socket.send_to(bytes, super::socket::mapped(to, self.v6)).is_err() {
                self.unsent += 1;
            }
        }
    }

    /// Reads until there is nothing more, or others have waited long enough.
    pub fn receive(&mut self, beacon: &mut Beacon, directory: &impl Directory) -> Turn {
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut turn = Turn::default();
        let mut gathered = 0;
        for _ in 0..BURST {
            let mut chunks = buffers.chunks_exact_mut(SPACING);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().map_or(&mut [], |c| &mut c[..BUFFER])));
            let slices = &mut slices[..self.width];
            let count = match self.state.recv(UdpSockRef::from(&self.socket), slices, &mut meta) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    turn.emptied = true;
                    break;
                }
                // The ICMP error of an earlier datagram.
                Err(_) => continue,
            };
            let now = Instant::now();
            let before = turn.bytes;
            for (buffer, meta) in buffers.chunks_exact_mut(SPACING).zip(&meta[..count]) {
                turn.bytes += meta.len as u64;
                turn.datagrams += meta.len.div_ceil(meta.stride.max(1)) as u64;
                gathered += meta.len;
                self.take(beacon, &mut buffer[..meta.len], meta, directory, now);
                if gathered >= GATHERED {
                    self.flush(beacon);
                    gathered = 0;
                }
            }
            // Elsewhere a call may bring one datagram of several.
            let short = cfg!(target_os = "linux") && count < self.width;
            let long = (turn.bytes - before) as usize > LONG * count;
            self.width = if long { NARROW.min(BATCH_SIZE) } else { BATCH_SIZE };
            if short {
                turn.emptied = true;
                break;
            }
        }
        self.buffers = buffers;
        turn
    }

    fn take(
        &mut self,
        beacon: &mut Beacon,
        bytes: &mut [u8],
        meta: &RecvMeta,
        directory: &impl Directory,
        now: Instant,
    ) {
        let Link { socket, v6, sender, answered, unsent, .. } = self;
        let mut answer = |to: SocketAddr, bytes: &[u8]| {
            *answered += 1;
            if socket.send_to(bytes, super::socket::mapped(to, *v6)).is_err() {
                *unsent += 1;
            }
        };
        let mut direct = |run: super::queue::Run<'_>| sender.send(socket, run);
        beacon.take(meta.addr, bytes, meta.stride, directory, now, &mut answer, &mut direct);
    }

    /// Sends what waits, until the socket is full.
    pub fn flush(&mut self, beacon: &mut Beacon) {
        for _ in 0..SENDS {
            let Some(mut batch) = beacon.next() else { return };
            let sent = self.sender.send(&self.socket, batch.run());
            batch.advance(sent.done());
            beacon.sent(batch, &sent);
            if sent.full {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beacon::{Known, Settings};
    use pilot_proto::NodeId;
    use std::time::Duration;

    struct Nobody;

    impl Directory for Nobody {
        fn find(&self, _: NodeId) -> Option<Known> {
            None
        }

        fn reached(&self, _: std::net::IpAddr) -> bool {
            false
        }
    }

    fn node() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    /// Waits until something has come, and handles it.
    fn turn(link: &mut Link, beacon: &mut Beacon) -> Turn {
        use rustix::event::{PollFd, PollFlags, poll};
        let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        poll(&mut [PollFd::new(&link.socket, PollFlags::IN)], Some(&timeout)).unwrap();
        let turn = link.receive(beacon, &Nobody);
        link.flush(beacon);
        turn
    }

    /// With the kernel's own segmentation and coalescing, where it has them: some frames leave from where they were
    /// received, some from their queues.
    #[test]
    fn frames_of_several_senders_arrive_once_each_with_their_own_lengths() {
        let settings = Settings { exempt_loopback: true, ..Settings::default() };
        let mut beacon = Beacon::new(settings);
        let mut link =
            Link::new(crate::beacon::socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let to = link.socket.local_addr().unwrap();
        let nodes: Vec<UdpSocket> = (0..4).map(|_| node()).collect();
        for (id, node) in (1u8..).zip(&nodes) {
            node.send_to(&[1, 0, 0, 0, id], to).unwrap();
            while link.answered < u64::from(id) {
                turn(&mut link, &mut beacon);
            }
            let mut reply = [0; 64];
            assert_eq!(node.recv(&mut reply).unwrap(), 8);
        }
        // One and two send to three and four: a run of equal frames with a short one at its end.
        let frames = |from: u8| (0..40u8).map(move |n| vec![from ^ n; if n == 39 { 3 } else { 1222 }]);
        let mut datagrams = 0;
        for (from, node) in [1u8, 2].iter().zip(&nodes) {
            let head = [5, 0, 0, 0, *from, 0, 0, 0, from + 2];
            let run: Vec<u8> = frames(*from).flat_map(|frame| [&head[..], &frame].concat()).collect();
            let state = UdpSocketState::new(UdpSockRef::from(node)).unwrap();
            let most = if state.max_gso_segments() > 1 { 1231 * 40 } else { 1231 };
            for piece in run.chunks(most) {
                let transmit = quinn_udp::Transmit {
                    destination: to,
                    ecn: None,
                    contents: piece,
                    segment_size: (piece.len() > 1231).then_some(1231),
                    src_ip: None,
                };
                state.try_send(UdpSockRef::from(node), &transmit).unwrap();
            }
        }
        while datagrams < 80 {
            datagrams += turn(&mut link, &mut beacon).datagrams;
        }
        for (from, node) in [1u8, 2].iter().zip(&nodes[2..]) {
            for frame in frames(*from) {
                let mut buffer = [0; 2048];
                let len = node.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [&[6, 0, 0, 0, *from][..], &frame].concat());
            }
        }
        assert_eq!((beacon.counters.relayed, beacon.counters.relayed_bytes), (80, 2 * (39 * 1227 + 8)));
        assert_eq!((link.unsent, beacon.counters.relay_overrun, beacon.counters.relay_unsent), (0, 0, 0));
    }
}
