use super::{Complaint, V6State};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

/// Sets both socket buffers to `bytes`, beyond the system's limit where we may.
#[allow(unsafe_code)]
pub(crate) fn grow_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (forced, ordinary) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        for option in [forced, ordinary] {
            // SAFETY: the descriptor is open for the call, `value` is a c_int and its size is given.
            let done = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if done == 0 {
                break;
            }
        }
    }
}

/// The next entry of the socket's error queue: `Ok(Some)` if the network says something of a destination, `Ok(None)` if it
/// is something else. `Err`: the queue is empty.
#[allow(unsafe_code)]
pub(crate) fn next_error(socket: BorrowedFd<'_>) -> io::Result<Option<Complaint>> {
    /// Control data; the kernel sends one error record and its address.
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    let mut byte = [0u8; 1];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let mut found = None;
    // SAFETY: all pointers in `header` are to live, writable memory of the sizes given: `storage` is what socket2
    // lends for an address of up to `len` bytes, the rest are locals that outlive the call.
    let ((), name) = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_name = storage.cast();
            header.msg_namelen = *len;
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len();
            let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
            if libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) < 0 {
                return Err(io::Error::last_os_error());
            }
            *len = header.msg_namelen;
            let mut record = libc::CMSG_FIRSTHDR(&raw const header);
            // SAFETY: the CMSG functions walk the records the kernel wrote; data is read unaligned, and only if
            // the record is long enough.
            while let Some(r) = record.as_ref() {
                let kind = (r.cmsg_level, r.cmsg_type);
                let size = libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as libc::c_uint) as usize;
                if (kind == (libc::SOL_IP, libc::IP_RECVERR) || kind == (libc::SOL_IPV6, libc::IPV6_RECVERR))
                    && r.cmsg_len >= size
                {
                    let data = libc::CMSG_DATA(record).cast::<libc::sock_extended_err>();
                    found = Some(data.read_unaligned());
                }
                record = libc::CMSG_NXTHDR(&raw const header, record);
            }
            Ok(())
        })?
    };
    let (Some(error), Some(to)) = (found, name.as_socket()) else { return Ok(None) };
    let network = matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    Ok(match i32::try_from(error.ee_errno) {
        Ok(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN) => {
            Some(Complaint::Unreachable(to))
        }
        // Our own host says the same of datagrams that the send call has already reported.
        Ok(libc::EMSGSIZE) if network => {
            Some(Complaint::TooBig { to, mtu: usize::try_from(error.ee_info).unwrap_or(usize::MAX) })
        }
        _ => None,
    })
}

/// Gives free memory back to the system; the allocator keeps the most it ever needed otherwise. Takes milliseconds.
#[allow(unsafe_code)]
pub(crate) fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// See [`crate::tune_allocator`].
#[allow(unsafe_code)]
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets the allocator's own parameters; these values are in their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}

/// What the kernel says of the IPv6 addresses: bit by bit as in `linux/if_addr.h`.
pub(crate) fn v6_states() -> Vec<(Ipv6Addr, V6State)> {
    /// The largest file read, bytes: some thousand addresses.
    const MAX_FILE: u64 = 1024 * 1024;
    const TEMPORARY: u32 = 0x01;
    /// Duplicate, deprecated, tentative.
    const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;
    use std::io::Read as _;
    let mut text = String::new();
    let Ok(file) = std::fs::File::open("/proc/net/if_inet6") else { return Vec::new() };
    if file.take(MAX_FILE).read_to_string(&mut text).is_err() {
        return Vec::new();
    }
    let line = |line: &str| {
        // Address, index, prefix, scope, flags (hexadecimal), name.
        let mut fields = line.split_whitespace();
        let ip = u128::from_str_radix(fields.next()?, 16).ok().map(Ipv6Addr::from_bits)?;
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        match flags {
            flags if flags & UNUSABLE != 0 => Some((ip, V6State::Unusable)),
            flags if flags & TEMPORARY != 0 => Some((ip, V6State::Temporary)),
            _ => None,
        }
    };
    text.lines().filter_map(line).collect()
}

/// A socket that receives something when interfaces, addresses or routes change. It is none of UDP, but is read like
/// one.
#[allow(unsafe_code)]
pub(crate) fn network_events() -> io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, SockAddr, Socket, Type};
    const GROUPS: libc::c_int = libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE;
    let kind = Protocol::from(libc::NETLINK_ROUTE);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(kind))?;
    socket.set_nonblocking(true)?;
    // SAFETY: `storage` is zeroed memory of `len` bytes, larger than a sockaddr_nl and aligned for every address; the
    // length written is that of a sockaddr_nl.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let at = storage.cast::<libc::sockaddr_nl>();
            (*at).nl_family = libc::AF_NETLINK as libc::sa_family_t;
            (*at).nl_groups = GROUPS as u32;
            *len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            Ok(())
        })?
    };
    socket.bind(&address)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// Time since the machine was started, sleep included.
#[allow(unsafe_code)]
pub(crate) fn since_boot() -> Option<Duration> {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is a live timespec, which the call fills.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut at) };
    let (secs, nanos) = (u64::try_from(at.tv_sec).ok()?, u32::try_from(at.tv_nsec).ok()?);
    (done == 0).then(|| Duration::new(secs, nanos))
}

/// The router of the IPv4 default route.
pub(crate) fn gateway() -> Option<Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/net/route").ok()?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let line = |line: &str| {
        // Interface, destination, gateway, flags, reference count, use, metric, mask.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, to, via, flags, _, _, metric, mask, ..] = fields[..] else { return None };
        let via = hex(via)?;
        let default = hex(to)? == 0 && hex(mask)? == 0 && via != 0;
        let up = hex(flags)? & u32::from(libc::RTF_UP | libc::RTF_GATEWAY)
            == u32::from(libc::RTF_UP | libc::RTF_GATEWAY);
        // The bytes stand as in memory.
        (default && up)
            .then(|| (metric.parse::<u32>().unwrap_or(u32::MAX), Ipv4Addr::from(via.to_ne_bytes())))
    };
    table.lines().filter_map(line).min_by_key(|(metric, _)| *metric).map(|(_, via)| via)
}
