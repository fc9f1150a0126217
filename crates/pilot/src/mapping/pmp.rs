//! PCP (RFC 6887) and its forerunner NAT-PMP (RFC 6886), which share a port of the router.

use super::{Granted, LIFETIME};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

const PORT: u16 = 5351;
/// How long each try waits for its answer.
const TRIES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];
/// Longest PCP message (bytes).
const MAX_MESSAGE: usize = 1100;
const PCP: u8 = 2;
const UDP: u8 = 17;
const RESPONSE: u8 = 0x80;
const PCP_MAP: u8 = 1;
const PMP_ADDRESS: u8 = 0;
const PMP_MAP_UDP: u8 = 1;

/// Which of the two the router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Pcp,
    NatPmp,
}

/// Why there is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the router does not answer")]
    Silent,
    /// Another version of the protocol.
    #[error("the router speaks another version")]
    Version,
    #[error("the router refuses (result {0})")]
    Result(u16),
    #[error("{0}")]
    Io(String),
}

/// The mapping of one port as the router knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) version: Version,
    pub(super) gateway: Ipv4Addr,
    /// Our address and port.
    pub(super) inside: SocketAddrV4,
    /// Names the mapping as ours; the same in all requests for it.
    pub(super) nonce: [u8; 12],
    /// The external port wanted; that given before.
    pub(super) port: u16,
}

/// Whether an answer counts, and as what. `None`: it belongs to something else.
type Read<T> = fn(&[u8], &Mapping) -> Option<Result<T, Refusal>>;

impl Mapping {
    /// Asks for the mapping, or to go on with it; falls back to NAT-PMP if the router knows no PCP.
    pub(super) async fn request(&mut self) -> Result<Granted, Refusal> {
        let socket = self.socket().await.map_err(|e| Refusal::Io(e.to_string()))?;
        if self.version == Version::Pcp {
            match self.ask(&socket, &self.pcp_request(LIFETIME), read_pcp).await {
                Err(Refusal::Version | Refusal::Silent) => self.version = Version::NatPmp,
                result => return result,
            }
        }
        let ip = self.ask(&socket, &[0, PMP_ADDRESS], read_address).await?;
        let (port, lifetime) = self.ask(&socket, &self.pmp_request(LIFETIME), read_pmp).await?;
        Ok(Granted { at: SocketAddr::new(ip.into(), port), lifetime })
    }

    /// Gives the mapping back. Once, without waiting long: it ends by itself.
    pub(super) async fn release(&self) {
        let Ok(socket) = self.socket().await else { return };
        let bytes = match self.version {
            Version::Pcp => self.pcp_request(0),
            Version::NatPmp => Mapping { port: 0, ..self.clone() }.pmp_request(0),
        };
        let _ = socket.send(&bytes).await;
        let mut buffer = [0; MAX_MESSAGE];
        let _ = timeout(TRIES[0], socket.recv(&mut buffer)).await;
    }

    async fn socket(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((*self.inside.ip(), 0)).await?;
        // From here on only the router is heard.
        socket.connect((self.gateway, PORT)).await?;
        Ok(socket)
    }

    async fn ask<T>(&self, socket: &UdpSocket, request: &[u8], read: Read<T>) -> Result<T, Refusal> {
        for wait in TRIES {
            // What ICMP says of an earlier try counts as silence.
            if socket.send(request).await.is_err() {
                tokio::time::sleep(wait).await;
                continue;
            }
            let answer = timeout(wait, async {
                let mut buffer = [0; MAX_MESSAGE];
                loop {
                    let Ok(n) = socket.recv(&mut buffer).await else {
                        // Nobody listens there; that does not change within a second.
                        return Err(Refusal::Silent);
                    };
                    if let Some(result) = read(&buffer[..n], self) {
                        return result;
                    }
                }
            });
            if let Ok(result) = answer.await {
                return result;
            }
        }
        Err(Refusal::Silent)
    }

    fn pcp_request(&self, lifetime: u32) -> Vec<u8> {
        let mut out = vec![PCP, PCP_MAP, 0, 0];
        out.extend(lifetime.to_be_bytes());
        out.extend(self.inside.ip().to_ipv6_mapped().octets());
        out.extend(self.nonce);
        out.extend([UDP, 0, 0, 0]);
        out.extend(self.inside.port().to_be_bytes());
        out.extend(self.port.to_be_bytes());
        out.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
        out
    }

    fn pmp_request(&self, lifetime: u32) -> Vec<u8> {
        let mut out = vec![0, PMP_MAP_UDP, 0, 0];
        out.extend(self.inside.port().to_be_bytes());
        out.extend(self.port.to_be_bytes());
        out.extend(lifetime.to_be_bytes());
        out
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An answer to a PCP MAP request.
pub(super) fn read_pcp(bytes: &[u8], mapping: &Mapping) -> Option<Result<Granted, Refusal>> {
    const UNSUPPORTED_VERSION: u8 = 1;
    let (version, op, result) = (*bytes.first()?, *bytes.get(1)?, *bytes.get(3)?);
    if op & RESPONSE == 0 {
        return None;
    }
    if version != PCP || result == UNSUPPORTED_VERSION {
        return Some(Err(Refusal::Version));
    }
    if op != RESPONSE | PCP_MAP || bytes.get(24..36)? != mapping.nonce {
        return None;
    }
    if result != 0 {
        return Some(Err(Refusal::Result(result.into())));
    }
    if *bytes.get(36)? != UDP || u16_at(bytes, 40)? != mapping.inside.port() {
        return None;
    }
    let ip: [u8; 16] = bytes.get(44..60)?.try_into().ok()?;
    let ip = IpAddr::V6(Ipv6Addr::from(ip)).to_canonical();
    let at = SocketAddr::new(ip, u16_at(bytes, 42)?);
    Some(Ok(Granted { at, lifetime: Duration::from_secs(u32_at(bytes, 4)?.into()) }))
}

/// The start of a NAT-PMP answer to this request, and its result.
fn read_head(bytes: &[u8], op: u8) -> Option<Result<(), Refusal>> {
    const UNSUPPORTED_VERSION: u16 = 1;
    if *bytes.get(1)? & RESPONSE == 0 {
        return None;
    }
    match (*bytes.first()?, u16_at(bytes, 2)?) {
        // A PCP server that has no NAT-PMP says so in its own words.
        (version, _) if version != 0 => Some(Err(Refusal::Version)),
        (_, UNSUPPORTED_VERSION) => Some(Err(Refusal::Version)),
        _ if bytes[1] != RESPONSE | op => None,
        (_, 0) => Some(Ok(())),
        (_, result) => Some(Err(Refusal::Result(result))),
    }
}

/// An answer to the question for the external address.
pub(super) fn read_address(bytes: &[u8], _: &Mapping) -> Option<Result<Ipv4Addr, Refusal>> {
    if let Err(refusal) = read_head(bytes, PMP_ADDRESS)? {
        return Some(Err(refusal));
    }
    Some(Ok(Ipv4Addr::from_bits(u32_at(bytes, 8)?)))
}

/// An answer to a NAT-PMP mapping request: external port and lifetime.
pub(super) fn read_pmp(bytes: &[u8], mapping: &Mapping) -> Option<Result<(u16, Duration), Refusal>> {
    if let Err(refusal) = read_head(bytes, PMP_MAP_UDP)? {
        return Some(Err(refusal));
    }
    if u16_at(bytes, 8)? != mapping.inside.port() {
        return None;
    }
    Some(Ok((u16_at(bytes, 10)?, Duration::from_secs(u32_at(bytes, 12)?.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Mapping {
        Mapping {
            version: Version::Pcp,
            gateway: Ipv4Addr::new(192, 168, 1, 1),
            inside: "192.168.1.7:4000".parse().unwrap(),
            nonce: [7; 12],
            port: 4000,
        }
    }

    /// The answer of RFC 6887 section 11.1 to the request.
    fn pcp_answer(request: &[u8]) -> Vec<u8> {
        let mut answer = vec![2, 0x81, 0, 0];
        answer.extend(3600u32.to_be_bytes());
        answer.extend(99u32.to_be_bytes());
        answer.extend([0; 12]);
        answer.extend(&request[24..42]);
        answer.extend(5000u16.to_be_bytes());
        answer.extend(Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().octets());
        answer
    }

    #[test]
    fn a_pcp_request_is_laid_out_as_in_the_rfc() {
        let request = mapping().pcp_request(7200);
        assert_eq!(request.len(), 60);
        assert_eq!(&request[..8], [2, 1, 0, 0, 0, 0, 0x1c, 0x20]);
        assert_eq!(&request[8..24], Ipv4Addr::new(192, 168, 1, 7).to_ipv6_mapped().octets());
        assert_eq!(&request[24..36], [7; 12]);
        assert_eq!(&request[36..44], [17, 0, 0, 0, 0x0f, 0xa0, 0x0f, 0xa0]);
    }

    #[test]
    fn pcp_answers_count_if_they_are_to_our_request() {
        let ours = mapping();
        let answer = pcp_answer(&ours.pcp_request(7200));
        let granted =
            Granted { at: "203.0.113.9:5000".parse().unwrap(), lifetime: Duration::from_secs(3600) };
        assert_eq!(read_pcp(&answer, &ours), Some(Ok(granted)));
        let changed = |at: usize, to: u8| {
            let mut answer = answer.clone();
            answer[at] = to;
            read_pcp(&answer, &ours)
        };
        assert_eq!(changed(3, 8), Some(Err(Refusal::Result(8))));
        assert_eq!(changed(3, 1), Some(Err(Refusal::Version)));
        assert_eq!(changed(0, 0), Some(Err(Refusal::Version)), "NAT-PMP");
        assert_eq!(changed(1, 1), None, "a request");
        assert_eq!(changed(1, 0x82), None, "to another request");
        assert_eq!(changed(30, 0), None, "another nonce");
        assert_eq!(changed(36, 6), None, "TCP");
        assert_eq!(changed(41, 0), None, "another port");
        for n in 4..answer.len() {
            assert_eq!(read_pcp(&answer[..n], &ours), None, "cut at {n}");
        }
    }

    #[test]
    fn nat_pmp_answers_count_if_they_are_to_our_request() {
        let ours = mapping();
        assert_eq!(ours.pmp_request(7200), [0, 1, 0, 0, 0x0f, 0xa0, 0x0f, 0xa0, 0, 0, 0x1c, 0x20]);
        let address = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 9];
        assert_eq!(read_address(&address, &ours), Some(Ok(Ipv4Addr::new(203, 0, 113, 9))));
        assert_eq!(read_pmp(&address, &ours), None, "to another request");
        let mapped = [0, 129, 0, 0, 0, 0, 0, 9, 0x0f, 0xa0, 0x13, 0x88, 0, 0, 0x0e, 0x10];
        assert_eq!(read_pmp(&mapped, &ours), Some(Ok((5000, Duration::from_secs(3600)))));
        let mut refused = mapped;
        refused[3] = 2;
        assert_eq!(read_pmp(&refused, &ours), Some(Err(Refusal::Result(2))));
        refused[3] = 1;
        assert_eq!(read_pmp(&refused, &ours), Some(Err(Refusal::Version)));
        let mut other = mapped;
        other[9] = 0;
        assert_eq!(read_pmp(&other, &ours), None, "another port");
        for n in 4..mapped.len() {
            assert_eq!(read_pmp(&mapped[..n], &ours), None, "cut at {n}");
        }
    }
}
