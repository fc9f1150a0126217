//! IP packets as bytes: reading headers, checksums, and the ICMP errors a router sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ICMP: u8 = 1;
const IGMP: u8 = 2;
pub(crate) const ICMP6: u8 = 58;

/// Where MLDv2 reports go.
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Bytes of an ICMP error before the packet it quotes.
const ICMP_HEADER: usize = 8;
/// Quoted bytes of an offending IPv4 packet (RFC 1812: as much as fits into 576 bytes).
const ICMP_QUOTE_V4: usize = 576 - IPV4_HEADER - ICMP_HEADER;
/// Quoted bytes of an offending IPv6 packet (RFC 4443: as much as fits into 1,280 bytes).
const ICMP_QUOTE_V6: usize = 1280 - IPV6_HEADER - ICMP_HEADER;
/// Hops an ICMP error may travel.
const ICMP_TTL: u8 = 64;

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Protocol of what follows the IP header. IPv6 extension headers are not followed.
    pub protocol: u8,
    /// Where that begins, in bytes.
    pub payload: usize,
    /// Not the first part of a fragmented packet.
    pub later_fragment: bool,
    /// A router must not fragment it.
    pub dont_fragment: bool,
    /// Hops it may still take.
    pub ttl: u8,
}

/// Reads the IP header; `None` if the packet is not one of IPv4 or IPv6, or shorter than its header says.
pub(crate) fn head(p: &[u8]) -> Option<Head> {
    match p.first()? >> 4 {
        4 => {
            let payload = usize::from(p[0] & 15) * 4;
            if payload < IPV4_HEADER || p.len() < payload || usize::from(be16(p, 2)) > p.len() {
                return None;
            }
            let fragment = be16(p, 6);
            Some(Head {
                src: IpAddr::V4(v4(p, 12)),
                dst: IpAddr::V4(v4(p, 16)),
                protocol: p[9],
                payload,
                later_fragment: fragment & 0x1fff != 0,
                dont_fragment: fragment & 0x4000 != 0,
                ttl: p[8],
            })
        }
        6 if p.len() >= IPV6_HEADER => Some(Head {
            src: IpAddr::V6(v6(p, 8)),
            dst: IpAddr::V6(v6(p, 24)),
            protocol: p[6],
            payload: IPV6_HEADER,
            later_fragment: false,
            dont_fragment: true,
            ttl: p[7],
        }),
        _ => None,
    }
}

pub(crate) fn be16(p: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([p[at], p[at + 1]])
}

fn v4(p: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(p[at], p[at + 1], p[at + 2], p[at + 3])
}

fn v6(p: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&p[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// The Internet checksum (RFC 1071) of some bytes, on top of a partial sum.
pub(crate) fn checksum(initial: u32, bytes: &[u8]) -> u16 {
    let mut sum = initial;
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u32::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// The message by which a router at `from` tells the sender of a packet that the next link carries `mtu` bytes
/// only: ICMP type 3 code 4 (RFC 1191) or ICMPv6 type 2 (RFC 4443). `None` if the packet may be fragmented, or
/// is such an error itself.
pub(crate) fn too_big(packet: &[u8], from: IpAddr, mtu: usize) -> Option<Vec<u8>> {
    let head = head(packet)?;
    if !head.dont_fragment || is_icmp_error(packet, &head) {
        return None;
    }
    match (from, head.src) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut icmp = vec![3, 4, 0, 0, 0, 0];
            icmp.extend_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
            icmp.extend_from_slice(&packet[..packet.len().min(ICMP_QUOTE_V4)]);
            let sum = checksum(0, &icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            Some(ipv4(from, to, ICMP, &icmp))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut icmp = vec![2, 0, 0, 0];
            icmp.extend_from_slice(&u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes());
            icmp.extend_from_slice(&packet[..packet.len().min(ICMP_QUOTE_V6)]);
            let mut out = vec![0x60, 0, 0, 0];
            out.extend_from_slice(&(icmp.len() as u16).to_be_bytes());
            out.extend_from_slice(&[ICMP6, ICMP_TTL]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            let pseudo = icmp.len() as u32 + u32::from(ICMP6);
            let sum = checksum(pseudo + u32::from(!checksum(0, &out[8..40])), &icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            out.extend_from_slice(&icmp);
            Some(out)
        }
        _ => None,
    }
}

/// Whether this is what a kernel sends by itself on a new interface: group membership (IGMP, MLD) and router
/// solicitation. Nobody in the laboratory needs it.
pub(crate) fn is_housekeeping(head: &Head) -> bool {
    match head.dst {
        IpAddr::V4(_) => head.protocol == IGMP,
        IpAddr::V6(dst) => dst == MLD_ROUTERS || dst == ALL_ROUTERS,
    }
}

/// Whether the packet is an ICMP error (which never provokes another).
pub(crate) fn is_icmp_error(packet: &[u8], head: &Head) -> bool {
    match (head.protocol, packet.get(head.payload)) {
        (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ICMP6, Some(kind)) => *kind < 128,
        _ => false,
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (IPV4_HEADER + payload.len()) as u16;
    let mut out = vec![0x45, 0];
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, ICMP_TTL, protocol, 0, 0]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    let sum = checksum(0, &out);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(payload);
    out
}
