//! Sites: a NAT and the hosts behind it.

use crate::net::{Micros, SECOND};
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Mappings of one NAT; the oldest gives way.
const MAX_MAPPINGS: usize = 512;

/// What a NAT does (RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nat {
    /// A public address.
    None,
    /// One port for all destinations, which everybody reaches.
    FullCone,
    /// The same, for hosts that were sent to.
    Restricted,
    /// The same, for addresses and ports that were sent to.
    PortRestricted,
    /// A port for each destination, in order.
    Predictable,
    /// A port for each destination, at random.
    Random,
}

impl Nat {
    /// All of them.
    pub const ALL: [Nat; 6] =
        [Nat::None, Nat::FullCone, Nat::Restricted, Nat::PortRestricted, Nat::Predictable, Nat::Random];

    /// Each destination sees another port.
    pub fn symmetric(self) -> bool {
        matches!(self, Nat::Predictable | Nat::Random)
    }

    /// Whether two nodes behind these must get a direct path. Ports that can be predicted may bring one towards who lets in
    /// known ports only, and mostly do; but after a lost probe or a wrong guess they may not, so none is asked for.
    pub fn direct(self, other: Nat) -> bool {
        let hopeless = |a: Nat, b: Nat| a.symmetric() && (b.symmetric() || b == Nat::PortRestricted);
        !hopeless(self, other) && !hopeless(other, self)
    }
}

struct Mapping {
    port: u16,
    inside: SocketAddr,
    used: Micros,
    peers: BTreeMap<SocketAddr, Micros>,
}

/// A place with one way out.
pub struct Site {
    /// Its NAT.
    pub nat: Nat,
    /// Frames between its own hosts through the outside address pass.
    pub hairpin: bool,
    /// The NAT forgets what is unused for this long.
    pub ttl: Micros,
    number: u8,
    generation: u8,
    next_port: u16,
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), Mapping>,
    /// Most mappings at one time.
    pub most: usize,
}

impl Site {
    /// Site `number`.
    pub fn new(nat: Nat, number: usize, hairpin: bool, ttl: Micros) -> Site {
        Site {
            nat,
            hairpin,
            ttl,
            number: number as u8 + 1,
            generation: 0,
            next_port: 20_000,
            mappings: BTreeMap::new(),
            most: 0,
        }
    }

    /// The port given last.
    pub fn next(&self) -> u16 {
        self.next_port
    }

    /// Its outside address.
    pub fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.generation, self.number)
    }

    /// The provider assigns another address.
    pub fn renumber(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.mappings.clear();
    }

    /// The NAT restarts: ports are given anew.
    pub fn forget(&mut self) {
        self.mappings.clear();
        self.next_port = self.next_port.wrapping_add(1_000).max(20_000);
    }

    /// A datagram leaves: its source as seen outside.
    pub fn outbound(&mut self, now: Micros, rng: &mut Rng, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        if self.nat == Nat::None {
            return SocketAddr::new(self.ip().into(), from.port());
        }
        let ttl = self.ttl;
        self.mappings.retain(|_, m| m.used + ttl > now);
        let key = (from, self.nat.symmetric().then_some(to));
        if !self.mappings.contains_key(&key) {
            let oldest = self.mappings.iter().min_by_key(|(_, m)| m.used).map(|(k, _)| *k);
            if let Some(oldest) = oldest.filter(|_| self.mappings.len() >= MAX_MAPPINGS) {
                self.mappings.remove(&oldest);
            }
            self.next_port = match self.nat {
                Nat::Random => loop {
                    let port = rng.range(1_024, 65_536) as u16;
                    if !self.mappings.values().any(|m| m.port == port) {
                        break port;
                    }
                },
                _ => self.next_port.checked_add(1).unwrap_or(20_000),
            };
        }
        let port = self.next_port;
        let new = || Mapping { port, inside: from, used: now, peers: BTreeMap::new() };
        let mapping = self.mappings.entry(key).or_insert_with(new);
        mapping.used = now;
        mapping.peers.insert(to, now);
        let port = mapping.port;
        self.most = self.most.max(self.mappings.len());
        SocketAddr::new(self.ip().into(), port)
    }

    /// A datagram comes from outside: who inside gets it.
    pub fn inbound(&self, now: Micros, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.nat == Nat::None {
            return Some(to);
        }
        let live = |at: Micros| at + self.ttl > now;
        let mapping = self.mappings.values().find(|m| m.port == to.port() && live(m.used))?;
        let known = |mut known: Box<dyn FnMut(&SocketAddr) -> bool>| {
            mapping.peers.iter().any(|(peer, at)| live(*at) && known(peer))
        };
        let passes = match self.nat {
            Nat::None | Nat::FullCone => true,
            Nat::Restricted => known(Box::new(move |peer| peer.ip() == from.ip())),
            Nat::PortRestricted | Nat::Predictable | Nat::Random => {
                known(Box::new(move |peer| *peer == from))
            }
        };
        passes.then_some(mapping.inside)
    }
}

/// A private address.
pub fn is_inside(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_private())
}

/// The shortest time a mapping of these worlds lasts: longer than keepalives are apart.
pub const SHORTEST_TTL: Micros = 45 * SECOND;
