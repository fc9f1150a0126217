//! IP packets as bytes: reading headers, checksums, and the ICMP errors a router sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
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

/// Changes 16-bit words under a checksum (RFC 1624, equation 3).
fn adjust(sum: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut total = u32::from(!sum);
    for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        total += u32::from(!u16::from_be_bytes([old[0], old[1]]))
            + u32::from(u16::from_be_bytes([new[0], new[1]]));
    }
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    !(total as u16)
}

/// Overwrites bytes at `at` and keeps the checksum stored at `sum_at` right, if that lies within the packet.
fn patch(p: &mut [u8], at: usize, new: &[u8], sum_at: &[usize]) {
    for &sum in sum_at {
        if sum + 2 <= p.len() {
            let adjusted = adjust(be16(p, sum), &p[at..at + new.len()], new);
            p[sum..sum + 2].copy_from_slice(&adjusted.to_be_bytes());
        }
    }
    p[at..at + new.len()].copy_from_slice(new);
}

/// One less hop to go; `false` if there was none left.
pub(crate) fn take_hop(p: &mut [u8]) -> bool {
    let Some(head) = head(p) else { return false };
    if head.ttl <= 1 {
        return false;
    }
    match head.src {
        IpAddr::V4(_) => patch(p, 8, &[head.ttl - 1, head.protocol], &[10]),
        IpAddr::V6(_) => p[7] = head.ttl - 1,
    }
    true
}

/// Both ends of a flow, as the packet shows them. ICMP echo has its identifier as the port of whoever asked, and
/// port 0 for who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub protocol: u8,
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// The flow of a TCP, UDP or ICMP echo packet; `None` for anything else.
pub(crate) fn flow(p: &[u8], head: &Head) -> Option<Flow> {
    let at = head.payload;
    if head.later_fragment || p.len() < at + 8 {
        return None;
    }
    let (src, dst) = match (head.protocol, p[at]) {
        (TCP | UDP, _) => (be16(p, at), be16(p, at + 2)),
        (ICMP, 8) | (ICMP6, 128) => (be16(p, at + 4), 0),
        (ICMP, 0) | (ICMP6, 129) => (0, be16(p, at + 4)),
        _ => return None,
    };
    Some(Flow {
        protocol: head.protocol,
        src: SocketAddr::new(head.src, src),
        dst: SocketAddr::new(head.dst, dst),
    })
}

/// The packet an ICMP error quotes, if this is one and quotes enough: where it begins, its header and its flow.
pub(crate) fn quoted(p: &[u8], head: &Head) -> Option<(usize, Head, Flow)> {
    if !is_icmp_error(p, head) || head.later_fragment {
        return None;
    }
    let at = head.payload + ICMP_HEADER;
    // What is quoted is usually shorter than its header says.
    let quote = p.get(at..)?;
    let version = quote.first()? >> 4;
    let inner = match version {
        4 if quote.len() >= IPV4_HEADER => {
            let payload = usize::from(quote[0] & 15) * 4;
            let (src, dst) = (IpAddr::V4(v4(quote, 12)), IpAddr::V4(v4(quote, 16)));
            let later_fragment = be16(quote, 6) & 0x1fff != 0;
            Head { src, dst, protocol: quote[9], payload, later_fragment, dont_fragment: true, ttl: quote[8] }
        }
        6 => self::head(quote)?,
        _ => return None,
    };
    flow(quote, &inner).map(|flow| (at, inner, flow))
}

/// Which end of a packet to rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Src,
    Dst,
}

/// Rewrites an address and port of an IPv4 TCP, UDP or ICMP echo packet (or the beginning of one) and keeps its
/// checksums right.
pub(crate) fn rewrite(p: &mut [u8], head: &Head, end: End, to: SocketAddrV4) {
    let at = head.payload;
    let sum = match head.protocol {
        TCP => Some(at + 16),
        // A checksum of zero means there is none.
        UDP if p.len() >= at + 8 && be16(p, at + 6) != 0 => Some(at + 6),
        _ => None,
    };
    let ip_at = if end == End::Src { 12 } else { 16 };
    match sum {
        Some(sum) => patch(p, ip_at, &to.ip().octets(), &[10, sum]),
        None => patch(p, ip_at, &to.ip().octets(), &[10]),
    }
    let port = to.port().to_be_bytes();
    match head.protocol {
        // The identifier belongs to whoever asked, whichever way the packet goes.
        ICMP => patch(p, at + 4, &port, &[at + 2]),
        _ => {
            let port_at = if end == End::Src { at } else { at + 2 };
            match sum {
                Some(sum) => patch(p, port_at, &port, &[sum]),
                None => patch(p, port_at, &port, &[]),
            }
        }
    }
    if head.protocol == UDP && sum.is_some() && be16(p, at + 6) == 0 {
        p[at + 6..at + 8].copy_from_slice(&[0xff, 0xff]);
    }
}

/// Rewrites the packet an ICMPv4 error quotes, and the error's own address at `outer` (its other end is kept).
pub(crate) fn rewrite_error(
    p: &mut [u8],
    head: &Head,
    quote_at: usize,
    inner: &Head,
    end: End,
    to: SocketAddrV4,
) {
    rewrite(&mut p[quote_at..], inner, end, to);
    // The error travels against the packet it quotes.
    let outer_at = if end == End::Src { 16 } else { 12 };
    patch(p, outer_at, &to.ip().octets(), &[10]);
    let at = head.payload;
    p[at + 2..at + 4].fill(0);
    let sum = checksum(0, &p[at..]);
    p[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 UDP packet without payload, checksums right.
    pub(crate) fn udp(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
        let mut segment = Vec::new();
        for word in [from.port(), to.port(), 8, 0] {
            segment.extend_from_slice(&word.to_be_bytes());
        }
        let mut p = ipv4(*from.ip(), *to.ip(), UDP, &segment);
        let sum = transport_sum(&p);
        p[26..28].copy_from_slice(&sum.to_be_bytes());
        p
    }

    /// The checksum over pseudo header and segment: what belongs into the field if that is zero, zero if right.
    fn transport_sum(p: &[u8]) -> u16 {
        let pseudo = u32::from(!checksum(0, &p[12..20])) + u32::from(p[9]) + (p.len() - 20) as u32;
        checksum(pseudo, &p[20..])
    }

    #[test]
    fn rewriting_keeps_checksums_right() {
        let mut p = udp("192.168.1.2:4000", "203.0.113.9:5000");
        for (end, to) in
            [(End::Src, "203.0.113.2:61000"), (End::Dst, "10.0.0.255:65535"), (End::Src, "0.0.0.0:0")]
        {
            let h = head(&p).unwrap();
            rewrite(&mut p, &h, end, to.parse().unwrap());
            assert_eq!((checksum(0, &p[..20]), transport_sum(&p)), (0, 0), "{to}");
        }
        let h = head(&p).unwrap();
        let f = flow(&p, &h).unwrap();
        assert_eq!((f.src, f.dst), ("0.0.0.0:0".parse().unwrap(), "10.0.0.255:65535".parse().unwrap()));
        // No checksum stays no checksum.
        p[26..28].fill(0);
        rewrite(&mut p, &h, End::Dst, "1.2.3.4:5".parse().unwrap());
        assert_eq!(p[26..28], [0, 0]);
    }

    #[test]
    fn a_hop_is_taken_until_none_is_left() {
        let mut p = udp("1.1.1.1:1", "2.2.2.2:2");
        for _ in 0..ICMP_TTL - 1 {
            assert!(take_hop(&mut p));
            assert_eq!(checksum(0, &p[..20]), 0);
        }
        assert!(!take_hop(&mut p));
    }

    #[test]
    fn an_error_finds_its_way_back_through_a_translation() {
        let mut sent = udp("192.168.1.2:4000", "203.0.113.9:5000");
        sent[6] = 0x40;
        let h = head(&sent).unwrap();
        rewrite(&mut sent, &h, End::Src, "203.0.113.2:61000".parse().unwrap());
        let mut error = too_big(&sent, "203.0.113.1".parse().unwrap(), 1280).unwrap();
        let h = head(&error).unwrap();
        let (at, inner, flow) = quoted(&error, &h).unwrap();
        assert_eq!(flow.src, "203.0.113.2:61000".parse().unwrap());
        rewrite_error(&mut error, &h, at, &inner, End::Src, "192.168.1.2:4000".parse().unwrap());
        let h = head(&error).unwrap();
        assert_eq!(h.dst, "192.168.1.2".parse::<IpAddr>().unwrap());
        assert_eq!(quoted(&error, &h).unwrap().2.src, "192.168.1.2:4000".parse().unwrap());
        assert_eq!(be16(&error, 26), 1280);
        assert_eq!((checksum(0, &error[..20]), checksum(0, &error[20..])), (0, 0));
        assert_eq!(too_big(&error, "203.0.113.1".parse().unwrap(), 100), None, "no error about an error");
    }

    #[test]
    fn nonsense_is_no_packet() {
        for p in [&[][..], &[0x45], &[0x60; 39], &[0x4f; 30], &[0x10; 60]] {
            assert_eq!(head(p), None);
        }
    }
}
