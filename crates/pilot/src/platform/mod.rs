//! What differs between operating systems. The only unsafe code of this crate.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod macos;

#[cfg(target_os = "linux")]
use linux::v6_states;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    gateway, grow_buffers, network_events, next_error, release_memory, since_boot, tune_allocator,
};
#[cfg(not(target_os = "linux"))]
use macos::v6_states;
#[cfg(not(target_os = "linux"))]
pub(crate) use macos::{
    gateway, grow_buffers, network_events, next_error, release_memory, since_boot, tune_allocator,
};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

impl Complaint {
    /// With IPv4 addresses as what they are.
    pub(crate) fn canonical(self) -> Complaint {
        match self {
            Complaint::Unreachable(to) => Complaint::Unreachable(super::socket::canonical(to)),
            Complaint::TooBig { to, mtu } => Complaint::TooBig { to: super::socket::canonical(to), mtu },
        }
    }
}

/// Most addresses of interfaces looked at; a host with more than this has them for other purposes.
const MAX_ADDRESSES: usize = 256;

/// An address of an interface that is up and not loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) ip: IpAddr,
    /// Leading bits its neighbours share.
    pub(crate) prefix: u8,
}

/// The bits of a netmask.
fn ones(mask: &[u8]) -> u8 {
    mask.iter().map(|byte| byte.count_ones() as u8).sum()
}

/// The addresses of the interfaces that are up and not loopback, without link-local IPv6 ones (they mean nothing without
/// the interface) and those the system says are not to be used.
#[allow(unsafe_code)]
pub(crate) fn interfaces() -> Vec<Interface> {
    let mut out: Vec<Interface> = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes a list head into `list`, or returns non-zero and leaves nothing to free.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return out;
    }
    let mut at = list;
    while !at.is_null() && out.len() < MAX_ADDRESSES {
        // SAFETY: `at` is an element of the list getifaddrs made, which lives until freeifaddrs below.
        let entry = unsafe { &*at };
        at = entry.ifa_next;
        let flags = entry.ifa_flags as libc::c_int;
        if entry.ifa_addr.is_null() || flags & libc::IFF_UP == 0 || flags & libc::IFF_LOOPBACK != 0 {
            continue;
        }
        // SAFETY: ifa_addr is not null and points to a sockaddr, whose family says what it really is: an AF_INET address
        // is a sockaddr_in, an AF_INET6 one a sockaddr_in6, and a netmask that is there is of the same kind; each may be
        // unaligned.
        let (ip, prefix) = unsafe {
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let bits = |at: *mut libc::sockaddr| {
                        u32::from_be(at.cast::<libc::sockaddr_in>().read_unaligned().sin_addr.s_addr)
                    };
                    let mask = if entry.ifa_netmask.is_null() { !0 } else { bits(entry.ifa_netmask) };
                    (IpAddr::V4(Ipv4Addr::from(bits(entry.ifa_addr))), ones(&mask.to_be_bytes()))
                }
                libc::AF_INET6 => {
                    let bytes = |at: *mut libc::sockaddr| {
                        at.cast::<libc::sockaddr_in6>().read_unaligned().sin6_addr.s6_addr
                    };
                    let mask = if entry.ifa_netmask.is_null() { [255; 16] } else { bytes(entry.ifa_netmask) };
                    (IpAddr::V6(Ipv6Addr::from(bytes(entry.ifa_addr))), ones(&mask))
                }
                _ => continue,
            }
        };
        let usable = match ip {
            IpAddr::V4(ip) => !ip.is_unspecified(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_unspecified() && !ip.is_loopback(),
        };
        if usable && !out.iter().any(|known| known.ip == ip) {
            out.push(Interface { ip, prefix });
        }
    }
    // SAFETY: `list` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    one_per_network(out, &v6_states())
}

/// What the system says of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum V6State {
    /// Deprecated, or not proven to be ours alone.
    Unusable,
    /// Made up for some hours, for privacy; the system sends from it.
    Temporary,
}

/// Of several IPv6 addresses in one network, all of which lead to this host, the one the system sends from: an answer from
/// another address than was asked passes no firewall.
fn one_per_network(all: Vec<Interface>, states: &[(Ipv6Addr, V6State)]) -> Vec<Interface> {
    let state = |ip: IpAddr| match ip {
        IpAddr::V6(ip) => states.iter().find(|(at, _)| *at == ip).map(|(_, state)| *state),
        IpAddr::V4(_) => None,
    };
    let usable: Vec<Interface> = all.into_iter().filter(|i| state(i.ip) != Some(V6State::Unusable)).collect();
    let mut out: Vec<Interface> = Vec::new();
    let (temporary, stable): (Vec<_>, Vec<_>) =
        usable.into_iter().partition(|i| state(i.ip) == Some(V6State::Temporary));
    for one in temporary.into_iter().chain(stable) {
        let known = one.ip.is_ipv6() && one.prefix < 128 && out.iter().any(|o| o.neighbours(one.ip));
        if !known {
            out.push(one);
        }
    }
    out
}

impl Interface {
    /// The address is in the network of this one.
    pub(crate) fn neighbours(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32u32.saturating_sub(u32::from(self.prefix));
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128u32.saturating_sub(u32::from(self.prefix));
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(ip: &str, prefix: u8) -> Interface {
        Interface { ip: ip.parse().unwrap(), prefix }
    }

    #[test]
    fn neighbours_share_the_bits_of_the_prefix() {
        let cases = [
            ("192.168.1.5", 24, "192.168.1.200", true),
            ("192.168.1.5", 24, "192.168.2.5", false),
            ("192.168.1.5", 23, "192.168.0.9", true),
            ("10.0.0.1", 32, "10.0.0.2", false),
            ("10.0.0.1", 0, "203.0.113.1", true),
            ("fd00:1::1", 64, "fd00:1::ffff", true),
            ("fd00:1::1", 64, "fd00:1:0:1::1", false),
            ("fd00:1::1", 64, "10.0.0.1", false),
        ];
        for (own, prefix, other, expected) in cases {
            assert_eq!(interface(own, prefix).neighbours(other.parse().unwrap()), expected, "{own} {other}");
        }
    }

    #[test]
    fn one_ipv6_address_per_network_the_one_that_is_sent_from() {
        let all = ["2001:db8::1", "2001:db8::aaaa", "2001:db8::bad", "2001:db8:0:1::1"];
        let mut all: Vec<_> = all.iter().map(|ip| interface(ip, 64)).collect();
        all.extend([interface("10.0.0.1", 24), interface("10.0.0.2", 24)]);
        let v6 = |ip: &str| ip.parse::<Ipv6Addr>().unwrap();
        let states = [(v6("2001:db8::aaaa"), V6State::Temporary), (v6("2001:db8::bad"), V6State::Unusable)];
        let kept: Vec<_> = one_per_network(all, &states).iter().map(|i| i.ip.to_string()).collect();
        assert_eq!(kept, ["2001:db8::aaaa", "2001:db8:0:1::1", "10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn the_interfaces_of_this_host_have_no_loopback_and_no_link_local_ipv6() {
        for one in interfaces() {
            assert!(!one.ip.is_loopback() && one.prefix <= 128, "{one:?}");
            assert!(!matches!(one.ip, IpAddr::V6(ip) if ip.is_unicast_link_local()), "{one:?}");
        }
    }
}
