//! Addresses at which a node may be reached, where each is known from, and what probes have told about it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

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
    /// An address of this kind. A beacon on the same network sees the LAN address, which is what it is called then,
    /// whoever names it first.
    pub fn new(addr: SocketAddr, kind: CandidateKind) -> Candidate {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let seen = kind == CandidateKind::Reflexive && is_local(addr.ip());
        Candidate { addr, kind: if seen { CandidateKind::Lan } else { kind } }
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

/// Where an address of the book comes from; an address may come from several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The directory's answer.
    Directory = 1,
    /// The peer's own list.
    Peer = 2,
    /// A punch command or a frame.
    Frame = 4,
}

/// Addresses learnt from punches and frames, per peer.
pub const MAX_LEARNT: usize = 4;
/// Probes of one address whose answers are still waited for.
const MAX_TOKENS: usize = 4;

/// What is known of one address.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Where.
    pub addr: SocketAddr,
    /// From where it is known.
    pub kind: CandidateKind,
    sources: u8,
    tokens: [Option<(u64, Instant)>; MAX_TOKENS],
    /// Round trip of its probes, smoothed.
    pub rtt: Option<Duration>,
    /// When a probe to it was answered last.
    pub answered: Option<Instant>,
    /// When something showed last that the way to it works, or came from it.
    pub heard: Option<Instant>,
    /// When it was probed last.
    pub probed: Option<Instant>,
}

impl Entry {
    /// Of two ways that are equally fast, the one with the higher rank: neighbours need no router, and IPv6 and public
    /// addresses no mapping that a NAT may forget.
    fn rank(&self) -> u8 {
        match self.kind {
            CandidateKind::Lan => 3,
            _ if self.addr.is_ipv6() => 2,
            CandidateKind::Public | CandidateKind::Operator => 1,
            _ => 0,
        }
    }

    /// Clearly better than `other`, as measured: faster by a tenth and by 2 ms, or as fast and of higher rank. The margin
    /// keeps traffic from going back and forth.
    pub fn beats(&self, other: &Entry) -> bool {
        let (Some(own), Some(its)) = (self.rtt, other.rtt) else { return false };
        let margin = (its / 10).max(Duration::from_millis(2));
        own + margin < its || self.rank() > other.rank() && own <= its + margin
    }
}

/// The addresses of one peer.
#[derive(Debug, Default)]
pub struct Book(Vec<Entry>);

impl Book {
    /// All of them, those of the directory first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is known of an address.
    pub fn get(&self, addr: SocketAddr) -> Option<&Entry> {
        self.0.iter().find(|e| e.addr == addr)
    }

    fn get_mut(&mut self, addr: SocketAddr) -> Option<&mut Entry> {
        self.0.iter_mut().find(|e| e.addr == addr)
    }

    /// `list` takes the place of what this source named before; the first [`MAX_CANDIDATES`] count. `keep` stays in any case.
    pub fn replace(&mut self, source: Source, list: &[Candidate], keep: Option<SocketAddr>) {
        for entry in &mut self.0 {
            entry.sources &= !(source as u8);
        }
        for candidate in list.iter().take(MAX_CANDIDATES) {
            match self.get_mut(candidate.addr) {
                Some(entry) => {
                    entry.sources |= source as u8;
                    entry.kind = candidate.kind;
                }
                None => self.insert(source, *candidate),
            }
        }
        for entry in self.0.iter_mut().filter(|e| e.sources == 0 && Some(e.addr) == keep) {
            entry.sources = Source::Frame as u8;
        }
        self.0.retain(|e| e.sources != 0);
        let place = |addr: SocketAddr| list.iter().position(|c| c.addr == addr);
        if source == Source::Directory {
            self.0.sort_by_key(|e| place(e.addr).unwrap_or(MAX_CANDIDATES));
        }
        self.forget_oldest(keep);
    }

    /// An address that may be the peer's; the oldest such gives way, but never `keep`.
    pub fn learn(&mut self, addr: SocketAddr, keep: Option<SocketAddr>) {
        if self.get(addr).is_none() {
            self.insert(Source::Frame, Candidate::new(addr, CandidateKind::Learnt));
            self.forget_oldest(keep.or(Some(addr)));
        }
    }

    fn insert(&mut self, source: Source, candidate: Candidate) {
        self.0.push(Entry {
            addr: candidate.addr,
            kind: candidate.kind,
            sources: source as u8,
            tokens: [None; MAX_TOKENS],
            rtt: None,
            answered: None,
            heard: None,
            probed: None,
        });
    }

    fn forget_oldest(&mut self, keep: Option<SocketAddr>) {
        let learnt = |e: &&Entry| e.sources == Source::Frame as u8;
        while self.0.iter().filter(learnt).count() > MAX_LEARNT {
            let oldest = self.0.iter().position(|e| learnt(&e) && Some(e.addr) != keep);
            let Some(oldest) = oldest else { break };
            self.0.remove(oldest);
        }
    }

    /// A probe with this token leaves for this address.
    pub fn probed(&mut self, now: Instant, addr: SocketAddr, token: u64) {
        let Some(entry) = self.get_mut(addr) else { return };
        entry.tokens.rotate_right(1);
        entry.tokens[0] = Some((token, now));
        entry.probed = Some(now);
    }

    /// The probe with this token was answered: the address it went to. `straight`: the answer came from there, so that
    /// the time it took is the path's.
    pub fn answered(&mut self, now: Instant, token: u64, straight: Option<SocketAddr>) -> Option<SocketAddr> {
        for entry in &mut self.0 {
            let Some((_, sent)) = entry.tokens.iter().flatten().find(|(t, _)| *t == token) else { continue };
            let took = now.saturating_duration_since(*sent);
            if straight == Some(entry.addr) || entry.rtt.is_none() {
                entry.rtt = Some(entry.rtt.map_or(took, |old| (old + took) / 2));
            }
            entry.answered = Some(now);
            entry.heard = Some(now);
            return Some(entry.addr);
        }
        None
    }

    /// Something authentic came from there.
    pub fn heard(&mut self, now: Instant, addr: SocketAddr) {
        if let Some(entry) = self.get_mut(addr) {
            entry.heard = Some(now);
        }
    }

    /// Answers to the probes under way count no more.
    pub fn forget_probes(&mut self) {
        for entry in &mut self.0 {
            entry.tokens = [None; MAX_TOKENS];
        }
    }
}

/// Whether a peer may name this as an address of its own. `local`: our own addresses.
pub fn acceptable(candidate: &Candidate, local: &[Candidate]) -> bool {
    let ip = candidate.addr.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
    // Without the interface's name nobody can send there.
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if candidate.addr.port() == 0 || ip.is_multicast() || ip.is_unspecified() || broadcast || link_local {
        return false;
    }
    if local.iter().any(|own| own.addr == candidate.addr) {
        return false;
    }
    let near = |own: &Candidate| is_local(own.addr.ip()) && own.addr.is_ipv4() == candidate.addr.is_ipv4();
    if ip.is_loopback() {
        return local.iter().any(|own| own.addr.ip().is_loopback());
    }
    // A private address means our own neighbourhood or nothing; who is in none has no business there.
    !is_local(ip) || local.is_empty() || local.iter().any(near)
}
