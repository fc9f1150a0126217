//! Addresses at which a node may be reached, and where each is known from.

use std::net::{IpAddr, SocketAddr};

/// Addresses of one node that are taken from the directory, from its own list, or from the operating system.
pub const MAX_CANDIDATES: usize = 16;

/// Where an address is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An interface's address that only neighbours reach.
    Lan,
    /// An interface's address that everybody reaches, of either family.
    Public,
    /// Seen by a beacon or the registry from outside, so behind a NAT.
    Reflexive,
    /// A port that the router maps to us on request (PCP, NAT-PMP, UPnP).
    Mapped,
    /// Given by the operator.
    Operator,
    /// A frame of the peer, or the beacon's punch command, came with it.
    Learnt,
    /// Where a NAT with predictable ports is expected to open next.
    Predicted,
}

impl CandidateKind {
    /// As `peers` shows it.
    pub fn name(self) -> &'static str {
        match self {
            CandidateKind::Lan => "lan",
            CandidateKind::Public => "public",
            CandidateKind::Reflexive => "reflexive",
            CandidateKind::Mapped => "mapped",
            CandidateKind::Operator => "operator",
            CandidateKind::Learnt => "learnt",
            CandidateKind::Predicted => "predicted",
        }
    }
}

/// One address worth a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Where; IPv4 addresses not in their IPv6 form.
    pub addr: SocketAddr,
    /// From where it is known.
    pub kind: CandidateKind,
}

impl Candidate {
    /// An address of this kind.
    pub fn new(addr: SocketAddr, kind: CandidateKind) -> Candidate {
        Candidate { addr: SocketAddr::new(addr.ip().to_canonical(), addr.port()), kind }
    }

    /// An address of which nothing is known but what it looks like.
    pub fn guessed(addr: SocketAddr) -> Candidate {
        let kind = if is_local(addr.ip()) { CandidateKind::Lan } else { CandidateKind::Reflexive };
        Candidate::new(addr, kind)
    }
}

/// The address means something to neighbours only: loopback, link-local, private, unique local, or a carrier's NAT.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local(),
    }
}
