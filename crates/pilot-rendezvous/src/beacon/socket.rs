//! The beacon's sockets: their options, and what the system says of them.

use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, UdpSocket};

/// Socket buffers asked for, bytes: what arrives in 60 ms at 1 Gbit/s while the beacon does something else.
const BUFFER: usize = 8 << 20;

/// Binds a UDP socket that does not block; `[::]` serves both families.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    enlarge(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
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

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_receive_buffer_lost_is_known() {
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
