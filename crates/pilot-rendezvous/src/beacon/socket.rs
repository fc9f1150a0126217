//! The beacon's socket: its options, and sending many frames with one system call.

use super::queue::Batch;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Socket buffers asked for, bytes: what arrives in 60 ms at 1 Gbit/s while the beacon does something else.
const BUFFER: usize = 8 << 20;

/// Binds a UDP socket; `[::]` serves both families.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    enlarge(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Best effort: beyond the system's limits where this process may (root, `CAP_NET_ADMIN`), else up to them.
fn enlarge(socket: &Socket) {
    #[cfg(target_os = "linux")]
    let (receive, send) = {
        use rustix::net::sockopt;
        (
            sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_ok(),
            sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_ok(),
        )
    };
    #[cfg(not(target_os = "linux"))]
    let (receive, send) = (false, false);
    if !receive {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if !send {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}

/// An address as a socket of either family takes it.
pub(super) fn mapped(to: SocketAddr, v6: bool) -> SocketAddr {
    match to {
        SocketAddr::V4(a) if v6 => SocketAddr::new(a.ip().to_ipv6_mapped().into(), a.port()),
        other => other,
    }
}

/// What the socket took of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub frames: u64,
    pub bytes: u64,
    /// Frames the system refused: unreachable, or longer than the way there carries.
    pub refused: u64,
    /// The socket is full. What is left of the batch is for later.
    pub full: bool,
}

/// Sends a batch: with one system call if the system segments, else one frame at a time.
pub(super) fn transmit(socket: &UdpSocket, v6: bool, batch: &mut Batch) -> Sent {
    let to = mapped(batch.to, v6);
    let (frames, bytes) = (batch.frames() as u64, batch.bytes().len() as u64);
    if frames > 1 {
        match segmented(socket, to, batch) {
            Ok(()) => return Sent { frames, bytes, ..Sent::default() },
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Sent { full: true, ..Sent::default() },
            // No offload on this way, segments too long for it, or no way at all: the frames one by one tell.
            Err(_) => {}
        }
    }
    let mut sent = Sent::default();
    while let Some(frame) = batch.bytes().chunks(batch.segment.max(1)).next() {
        match socket.try_send_to(frame, to) {
            Ok(len) => {
                sent.frames += 1;
                sent.bytes += len as u64;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                sent.full = true;
                break;
            }
            Err(_) => sent.refused += 1,
        }
        batch.advance();
    }
    sent
}

/// One message of several segments. quinn-udp would do, but gives segmentation up for good at the first frame that is
/// longer than its way carries, which anybody can send.
#[cfg(target_os = "linux")]
fn segmented(socket: &UdpSocket, to: SocketAddr, batch: &Batch) -> std::io::Result<()> {
    use socket2::{MsgHdr, SockAddr, SockRef};
    /// `SOL_UDP`, `UDP_SEGMENT` of `linux/udp.h`.
    const SOL_UDP: i32 = 17;
    const UDP_SEGMENT: i32 = 103;
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = WORD + 8;
    let segment = u16::try_from(batch.segment).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    // A `cmsghdr`: length, level, type; then the value, padded to whole words.
    let mut control = [0u8; HEADER + WORD];
    control[..WORD].copy_from_slice(&(HEADER + 2).to_ne_bytes());
    control[WORD..WORD + 4].copy_from_slice(&SOL_UDP.to_ne_bytes());
    control[WORD + 4..HEADER].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
    control[HEADER..HEADER + 2].copy_from_slice(&segment.to_ne_bytes());
    let to = SockAddr::from(to);
    let buffers = [std::io::IoSlice::new(batch.bytes())];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control);
    socket.try_io(Interest::WRITABLE, || SockRef::from(socket).sendmsg(&message, 0)).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn segmented(_: &UdpSocket, _: SocketAddr, _: &Batch) -> std::io::Result<()> {
    Err(Error::from(ErrorKind::Unsupported))
}

/// Datagrams the kernel dropped because this socket's receive buffer was full; `None` where the system does not tell.
pub(crate) fn overflowed(addr: SocketAddr) -> Option<u64> {
    let table = if addr.is_ipv4() { "/proc/self/net/udp" } else { "/proc/self/net/udp6" };
    let text = std::fs::read_to_string(table).ok()?;
    let port = format!(":{:04X}", addr.port());
    let rows = text.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // Columns: slot, local address, remote address, state, queues, ..., drops. A port has one row per bound address.
    let drops = rows.filter(|row| row.get(1).is_some_and(|local| local.ends_with(&port)));
    drops.map(|row| row.last()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beacon::queue::Queues;
    use std::time::Duration;

    async fn receive(socket: &UdpSocket) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
        let len = received.expect("a datagram comes").unwrap();
        buffer[..len].to_vec()
    }

    fn batch(to: SocketAddr, frames: &[Vec<u8>]) -> Batch {
        let mut queues = Queues::default();
        queues.push(to, &[], frames.iter().map(Vec::as_slice), 0);
        queues.next().unwrap()
    }

    #[tokio::test]
    async fn a_batch_arrives_as_its_frames_over_either_family() {
        let local = |ip: &str| ip.parse::<SocketAddr>().unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for from in ["127.0.0.1:0", "[::]:0"] {
            let Ok(socket) = bind(local(from)) else { continue };
            let frames: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; if n == 9 { 3 } else { 1200 }]).collect();
            let mut batch = batch(receiver.local_addr().unwrap(), &frames);
            socket.writable().await.unwrap();
            let sent = transmit(&socket, from.starts_with('['), &mut batch);
            assert_eq!(sent, Sent { frames: 10, bytes: 9 * 1200 + 3, ..Sent::default() });
            for frame in &frames {
                assert_eq!(&receive(&receiver).await, frame);
            }
        }
    }

    #[tokio::test]
    async fn frames_the_system_refuses_are_counted_and_do_not_stop_the_next_batch() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.writable().await.unwrap();
        // No port 0 can be sent to.
        let mut nowhere = batch("127.0.0.1:0".parse().unwrap(), &[vec![1; 10], vec![2; 10]]);
        assert_eq!(transmit(&socket, false, &mut nowhere), Sent { refused: 2, ..Sent::default() });
        let mut good = batch(receiver.local_addr().unwrap(), &[vec![3; 10], vec![4; 10]]);
        assert_eq!(transmit(&socket, false, &mut good), Sent { frames: 2, bytes: 20, ..Sent::default() });
        assert_eq!(receive(&receiver).await, [3; 10]);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_a_full_receive_buffer_lost_is_known() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let at = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(overflowed(at), Some(0));
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], at).unwrap();
        }
        assert!(overflowed(at).unwrap() > 50);
    }
}
