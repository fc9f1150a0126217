//! The node's UDP socket: batched, offloaded, non-blocking.

use crate::platform::{self, Complaint};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Receive and send buffer asked of the kernel, bytes.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;
/// Receive buffers: one `recvmmsg` fills up to this many.
const BATCH: usize = 16;
/// Bytes of each: one coalesced run of datagrams, or the largest single one.
const BUFFER: usize = 65_535;
/// Most datagrams in one send. More gain nothing and 64 is the kernel's limit.
const MAX_SEGMENTS: usize = 64;
/// Most bytes in one send: the largest UDP payload over IPv4.
const MAX_SEND: usize = 65_507;
/// ICMP errors read in one go.
const COMPLAINTS: usize = 64;

pub(crate) struct Socket {
    io: Arc<UdpSocket>,
    state: UdpSocketState,
    /// Addresses go to the kernel in their IPv6 form.
    v6: bool,
    buffers: Box<[u8]>,
    meta: [RecvMeta; BATCH],
    filled: usize,
    /// The kernel reported an error that its error queue explains.
    complained: AtomicBool,
}

/// What became of a send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Done,
    /// The kernel's buffer is full; the first `n` bytes are sent.
    Blocked(usize),
    /// The host or network cannot be reached.
    Unreachable,
    /// Datagrams of so many bytes are larger than the interface carries; those from here on are not sent.
    TooBig(usize),
    /// Refused for another reason; like a lost datagram.
    Dropped,
}

/// A socket of the standard library. The unspecified IPv6 address serves both families on one port; where the system has
/// no IPv6, IPv4 alone.
fn bound(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let both = listen.is_ipv6() && listen.ip().is_unspecified();
    let make = |at: SocketAddr| {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        if both && at.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&at.into())?;
        Ok::<_, io::Error>(socket.into())
    };
    match make(listen) {
        Err(error) if both && error.kind() != io::ErrorKind::AddrInUse => {
            tracing::debug!(%error, "no IPv6 here, so the UDP socket is an IPv4 one");
            make((std::net::Ipv4Addr::UNSPECIFIED, listen.port()).into())
        }
        result => result,
    }
}

/// An IPv4 address in its IPv6 form is written as what it is: the rest of the program compares addresses.
pub(crate) fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

impl Socket {
    pub(crate) fn bind(listen: SocketAddr) -> io::Result<Socket> {
        let io = bound(listen)?;
        io.set_nonblocking(true)?;
        platform::grow_buffers(io.as_fd(), KERNEL_BUFFER);
        let io = Arc::new(UdpSocket::from_std(io)?);
        // This forbids fragments (DF), in the network and at this host, and has the kernel ignore what routers told it.
        let state = UdpSocketState::new(UdpSockRef::from(&*io))?;
        if state.may_fragment() {
            tracing::debug!(
                "this system cannot forbid IP fragments: packets may be larger than the path carries"
            );
        }
        // Without it the kernel keeps "port unreachable" to itself and a dead address costs its full timeout.
        if let Err(error) = state.enable_transport_errors(UdpSockRef::from(&*io)) {
            tracing::debug!(%error, "no ICMP errors from the UDP socket");
        }
        let buffers = vec![0; BATCH * BUFFER].into_boxed_slice();
        let v6 = io.local_addr()?.is_ipv6();
        Ok(Socket {
            io,
            state,
            v6,
            buffers,
            meta: [RecvMeta::default(); BATCH],
            filled: 0,
            complained: AtomicBool::new(false),
        })
    }

    /// Binds `listen`; if that leaves the port open, the one used before (0: none), so that peers and NATs find the node
    /// where it was. The text says why it is another one.
    pub(crate) fn bind_again(listen: SocketAddr, port: u16) -> io::Result<(Socket, Option<String>)> {
        if listen.port() != 0 || port == 0 {
            return Ok((Socket::bind(listen)?, None));
        }
        match Socket::bind(SocketAddr::new(listen.ip(), port)) {
            Ok(socket) => Ok((socket, None)),
            Err(error) => {
                let text = format!("UDP port {port} of the last run is not free ({error})");
                Ok((Socket::bind(listen)?, Some(text)))
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Datagrams of equal size one send can take.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments().clamp(1, MAX_SEGMENTS)
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_recv_ready(cx)
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error shows at the next send.
        let _ = ready!(self.io.poll_send_ready(cx));
        Poll::Ready(())
    }

    /// Fills the buffers from the kernel; false: nothing there.
    pub(crate) fn receive(&mut self) -> bool {
        self.filled = 0;
        let (state, io, meta) = (&self.state, &self.io, &mut self.meta);
        let mut chunks = self.buffers.chunks_exact_mut(BUFFER);
        let mut slices: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        match io.try_io(Interest::READABLE, || state.recv(UdpSockRef::from(&**io), &mut slices, meta)) {
            Ok(n) => {
                self.filled = n;
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            // A pending ICMP error is reported once and gone; try again.
            Err(_) => {
                self.complained.store(true, Ordering::Relaxed);
                true
            }
        }
    }

    /// Hands every received datagram to `f`, in order.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(SocketAddr, &mut [u8])) {
        for (buffer, meta) in self.buffers.chunks_exact_mut(BUFFER).zip(&self.meta[..self.filled]) {
            let stride = meta.stride.max(1);
            let from = canonical(meta.addr);
            for datagram in buffer[..meta.len].chunks_mut(stride) {
                f(from, datagram);
            }
        }
        self.filled = 0;
    }

    /// Hands what ICMP errors say to `f`. Costs nothing while there are none.
    pub(crate) fn complaints(&self, mut f: impl FnMut(Complaint)) {
        if !self.complained.swap(false, Ordering::Relaxed) {
            return;
        }
        for _ in 0..COMPLAINTS {
            match platform::next_error(self.io.as_fd()) {
                Ok(Some(complaint)) => f(complaint.canonical()),
                Ok(None) => {}
                Err(_) => return,
            }
        }
        self.complained.store(true, Ordering::Relaxed);
    }

    /// Resolves when the kernel has an error for us.
    pub(crate) async fn complaint(io: &UdpSocket) {
        if io.ready(Interest::ERROR).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes note of errors that [`Socket::complaint`] announced.
    pub(crate) fn heard(&self) {
        let cleared: io::Result<()> =
            self.io.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
        // It always "fails": that is how the readiness is taken back.
        drop(cleared);
        self.complained.store(true, Ordering::Relaxed);
    }

    pub(crate) fn io(&self) -> Arc<UdpSocket> {
        self.io.clone()
    }

    /// Sends one datagram, or several of `segment` bytes each (the last may be shorter).
    pub(crate) fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> Sent {
        let segment = segment.filter(|&s| s > 0 && s < bytes.len());
        let destination = match to {
            SocketAddr::V4(at) if self.v6 => SocketAddr::new(at.ip().to_ipv6_mapped().into(), at.port()),
            at => at,
        };
        let mut done = 0;
        while done < bytes.len() {
            let segments = self.max_segments();
            let take = match segment {
                Some(size) => (size * segments.min(MAX_SEND / size).max(1)).min(bytes.len() - done),
                None => bytes.len(),
            };
            let part = &bytes[done..done + take];
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: part,
                segment_size: segment.filter(|&s| s < part.len()),
                src_ip: None,
            };
            let mut retried = false;
            loop {
                let sent = self.io.try_io(Interest::WRITABLE, || {
                    self.state.try_send(UdpSockRef::from(&*self.io), &transmit)
                });
                let Err(error) = sent else {
                    done += take;
                    break;
                };
                if error.kind() == io::ErrorKind::WouldBlock {
                    return Sent::Blocked(done);
                }
                if self.max_segments() < segments {
                    // The network card refused offloading; the socket layer has switched it off. Cut anew.
                    break;
                }
                if !retried {
                    // It may be the ICMP error of an earlier datagram, which the kernel reports once.
                    retried = true;
                    self.complained.store(true, Ordering::Relaxed);
                    continue;
                }
                if error.raw_os_error() == Some(libc::EMSGSIZE) {
                    return Sent::TooBig(transmit.segment_size.unwrap_or(take));
                }
                tracing::debug!(%to, %error, bytes = take, "datagram not sent");
                return match error.kind() {
                    io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::ConnectionRefused => Sent::Unreachable,
                    _ => Sent::Dropped,
                };
            }
        }
        Sent::Done
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({:?})", self.io)
    }
}

/// A socket for a few datagrams, of both families where there are both, that forbids fragments.
pub(crate) struct Plain {
    io: UdpSocket,
    v6: bool,
    port: u16,
}

impl Plain {
    pub(crate) fn bind() -> io::Result<Plain> {
        let io = bound((std::net::Ipv6Addr::UNSPECIFIED, 0).into())?;
        io.set_nonblocking(true)?;
        let io = UdpSocket::from_std(io)?;
        UdpSocketState::new(UdpSockRef::from(&io))?;
        let at = io.local_addr()?;
        Ok(Plain { io, v6: at.is_ipv6(), port: at.port() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = match to {
            SocketAddr::V4(v4) if self.v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            to => to,
        };
        self.io.send_to(bytes, to).await.map(drop)
    }

    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (len, from) = self.io.recv_from(buffer).await?;
        Ok((len, canonical(from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_batch_arrives_datagram_by_datagram() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (a, mut b) = (Socket::bind(any).unwrap(), Socket::bind(any).unwrap());
        poll_fn(|cx| a.poll_writable(cx)).await;
        let bytes: Vec<u8> = (0..70_500u32).map(|i| i as u8).collect();
        assert_eq!(a.send(b.local_addr().unwrap(), &bytes, Some(1000)), Sent::Done);
        let mut got: Vec<Vec<u8>> = Vec::new();
        while got.len() < 71 {
            poll_fn(|cx| b.poll_readable(cx)).await.unwrap();
            if b.receive() {
                b.for_each(|from, d| {
                    assert_eq!(from, a.local_addr().unwrap());
                    got.push(d.to_vec());
                });
            }
        }
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [vec![1000; 70], vec![500]].concat());
        assert_eq!(got.concat(), bytes);
    }

    #[tokio::test]
    async fn the_largest_datagram_arrives_whole() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (a, mut b) = (Socket::bind(any).unwrap(), Socket::bind(any).unwrap());
        poll_fn(|cx| a.poll_writable(cx)).await;
        assert_eq!(a.send(b.local_addr().unwrap(), &vec![7; 65_507], None), Sent::Done);
        let mut sizes = Vec::new();
        while sizes.is_empty() {
            poll_fn(|cx| b.poll_readable(cx)).await.unwrap();
            b.receive();
            b.for_each(|_, d| sizes.push(d.len()));
        }
        assert_eq!(sizes, [65_507]);
    }

    #[tokio::test]
    async fn a_datagram_larger_than_the_interface_carries_is_refused_with_its_size() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = Socket::bind(any).unwrap();
        poll_fn(|cx| socket.poll_writable(cx)).await;
        let to = socket.local_addr().unwrap();
        assert_eq!(socket.send(to, &vec![7; 65_508], None), Sent::TooBig(65_508));
    }

    #[tokio::test]
    async fn one_socket_serves_both_families_on_one_port() {
        let server = Socket::bind("[::]:0".parse().unwrap()).unwrap();
        let port = server.local_addr().unwrap().port();
        let mut server = server;
        for client in ["127.0.0.1:0", "[::1]:0"] {
            let mut client = Socket::bind(client.parse().unwrap()).unwrap();
            let at = client.local_addr().unwrap();
            poll_fn(|cx| client.poll_writable(cx)).await;
            assert_eq!(client.send(SocketAddr::new(at.ip(), port), b"there", None), Sent::Done);
            let mut from = None;
            while from.is_none() {
                poll_fn(|cx| server.poll_readable(cx)).await.unwrap();
                server.receive();
                server.for_each(|at, _| from = Some(at));
            }
            assert_eq!(from, Some(at), "as the client calls itself");
            poll_fn(|cx| server.poll_writable(cx)).await;
            assert_eq!(server.send(at, &[7; 2500], Some(1000)), Sent::Done);
            let mut sizes = Vec::new();
            while sizes.len() < 3 {
                poll_fn(|cx| client.poll_readable(cx)).await.unwrap();
                client.receive();
                client.for_each(|from, d| {
                    assert_eq!(from, SocketAddr::new(at.ip(), port));
                    sizes.push(d.len());
                });
            }
            assert_eq!(sizes, [1000, 1000, 500]);
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_closed_port_is_reported_for_both_families_on_one_socket() {
        let socket = Socket::bind("[::]:0".parse().unwrap()).unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let closed = std::net::UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
            poll_fn(|cx| socket.poll_writable(cx)).await;
            assert_eq!(socket.send(closed, b"anybody?", None), Sent::Done);
            Socket::complaint(&socket.io()).await;
            socket.heard();
            let mut dead = Vec::new();
            socket.complaints(|at| dead.push(at));
            assert_eq!(dead, [Complaint::Unreachable(closed)]);
        }
    }
}
