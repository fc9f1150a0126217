//! What differs between operating systems. The only unsafe code of this crate.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod macos;

#[cfg(target_os = "linux")]
pub(crate) use linux::{grow_buffers, next_error, release_memory, tune_allocator};
#[cfg(not(target_os = "linux"))]
pub(crate) use macos::{grow_buffers, next_error, release_memory, tune_allocator};

use std::net::{Ipv4Addr, SocketAddr};

/// What the network says of datagrams sent earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// This destination cannot be reached.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Unreachable(SocketAddr),
    /// A router on the way there can send on packets of up to `mtu` bytes, IP header included.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    TooBig { to: SocketAddr, mtu: usize },
}

/// Most LAN addresses told to the registry.
const MAX_LAN: usize = 16;

/// Private and link-local IPv4 addresses of the interfaces that are up and not loopback (spec 04 section 6).
#[allow(unsafe_code)]
pub(crate) fn lan_ips() -> Vec<Ipv4Addr> {
    let mut out = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes a list head into `list`, or returns non-zero and leaves nothing to free.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return out;
    }
    let mut at = list;
    while !at.is_null() && out.len() < MAX_LAN {
        // SAFETY: `at` is an element of the list getifaddrs made, which lives until freeifaddrs below.
        let entry = unsafe { &*at };
        at = entry.ifa_next;
        let flags = entry.ifa_flags as libc::c_int;
        if entry.ifa_addr.is_null() || flags & libc::IFF_UP == 0 || flags & libc::IFF_LOOPBACK != 0 {
            continue;
        }
        // SAFETY: ifa_addr is not null and points to a sockaddr, whose family says what it really is.
        if i32::from(unsafe { (*entry.ifa_addr).sa_family }) != libc::AF_INET {
            continue;
        }
        // SAFETY: an AF_INET address is a sockaddr_in; it may be unaligned.
        let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        if (ip.is_private() || ip.is_link_local()) && !out.contains(&ip) {
            out.push(ip);
        }
    }
    // SAFETY: `list` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    out
}
