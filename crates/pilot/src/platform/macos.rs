use super::V6State;
use std::os::fd::BorrowedFd;

/// Sets both socket buffers to `bytes`, or to the largest power-of-two part of it the system allows.
pub(crate) fn grow_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let socket = socket2::SockRef::from(&socket);
    let fit = |set: &dyn Fn(usize) -> std::io::Result<()>| {
        let mut size = bytes;
        while size >= 64 * 1024 && set(size).is_err() {
            size /= 2;
        }
    };
    fit(&|size| socket.set_recv_buffer_size(size));
    fit(&|size| socket.set_send_buffer_size(size));
}

/// There is no error queue here.
pub(crate) fn next_error(_socket: BorrowedFd<'_>) -> std::io::Result<Option<super::Complaint>> {
    Err(std::io::ErrorKind::WouldBlock.into())
}

/// The allocator here returns free memory by itself.
pub(crate) fn release_memory() {}

/// The allocator here needs no advice.
pub(crate) fn tune_allocator() {}

/// Nothing is known of them here.
pub(crate) fn v6_states() -> Vec<(std::net::Ipv6Addr, V6State)> {
    Vec::new()
}

/// A socket that receives something when interfaces, addresses or routes change. It is none of UDP, but is read like
/// one.
pub(crate) fn network_events() -> std::io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// The wall clock tells of sleep here.
pub(crate) fn since_boot() -> Option<std::time::Duration> {
    None
}

/// The router of the IPv4 network: a guess that holds for most homes, since asking the system takes its routing messages.
pub(crate) fn gateway() -> Option<std::net::Ipv4Addr> {
    super::interfaces().into_iter().find_map(|i| match i.ip {
        std::net::IpAddr::V4(ip) if ip.is_private() && (8..=30).contains(&i.prefix) => {
            let network = ip.to_bits() & (u32::MAX << (32 - i.prefix));
            Some(std::net::Ipv4Addr::from_bits(network + 1))
        }
        _ => None,
    })
}
