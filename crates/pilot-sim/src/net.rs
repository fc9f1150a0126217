//! Links and NATs. Time is in microseconds since the world began.

use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// Microseconds of virtual time.
pub type Micros = u64;
/// One second.
pub const SECOND: Micros = 1_000_000;

/// A NAT forgets a mapping or a permission unused for this long.
const NAT_TTL: Micros = 65 * SECOND;
/// UDP port of every node's socket.
const NODE_PORT: u16 = 4000;
/// Most mappings of a NAT; the oldest goes first.
const MAX_MAPPINGS: usize = 256;

/// Where the beacon is.
pub fn beacon_addr() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 9001))
}

/// A sender or receiver of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A node, by index.
    Node(usize),
    /// The beacon.
    Beacon,
}

/// Behaviour of the NAT in front of a node (RFC 4787 terms in the docs of each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// A public address.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    used: Micros,
    /// Who may answer, and until when we last sent there.
    peers: BTreeMap<SocketAddr, Micros>,
}

/// The NAT of one node.
#[derive(Debug)]
pub struct Nat {
    kind: NatKind,
    node: u8,
    generation: u8,
    next_port: u16,
    /// By destination for a symmetric NAT, else one for `None`.
    mappings: BTreeMap<Option<SocketAddr>, Mapping>,
}

impl Nat {
    /// The NAT of node `index`.
    pub fn new(kind: NatKind, index: usize) -> Nat {
        Nat { kind, node: index as u8 + 1, generation: 0, next_port: 20_000, mappings: BTreeMap::new() }
    }

    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.generation, self.node)
    }

    /// The provider assigns another address; all mappings are gone.
    pub fn renumber(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.mappings.clear();
    }

    fn outbound(&mut self, now: Micros, to: SocketAddr) -> SocketAddr {
        if self.kind == NatKind::None {
            return SocketAddr::from((self.ip(), NODE_PORT));
        }
        self.mappings.retain(|_, m| m.used + NAT_TTL > now);
        let key = (self.kind == NatKind::Symmetric).then_some(to);
        if !self.mappings.contains_key(&key) {
            let oldest = self.mappings.iter().min_by_key(|(_, m)| m.used).map(|(k, _)| *k);
            if let Some(oldest) = oldest.filter(|_| self.mappings.len() >= MAX_MAPPINGS) {
                self.mappings.remove(&oldest);
            }
            self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
        }
        let port = self.next_port;
        let mapping =
            self.mappings.entry(key).or_insert_with(|| Mapping { port, used: now, peers: BTreeMap::new() });
        mapping.used = now;
        mapping.peers.insert(to, now);
        let port = mapping.port;
        SocketAddr::from((self.ip(), port))
    }

    fn admits(&self, now: Micros, from: SocketAddr, to: SocketAddr) -> bool {
        if to.ip() != self.ip() {
            return false;
        }
        if self.kind == NatKind::None {
            return to.port() == NODE_PORT;
        }
        let live = |at: Micros| at + NAT_TTL > now;
        let Some(mapping) = self.mappings.values().find(|m| m.port == to.port() && live(m.used)) else {
            return false;
        };
        self.kind == NatKind::FullCone || mapping.peers.get(&from).is_some_and(|at| live(*at))
    }
}

/// The access link of a node, both ways.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// One-way delay.
    pub delay: Micros,
    /// Random part of the delay; what is below it is reordered.
    pub jitter: Micros,
    /// Bytes per second upwards.
    pub rate: u64,
    /// Bytes that may wait for the link.
    pub queue: u64,
    /// Datagrams lost per million.
    pub loss: u32,
    /// Datagrams doubled per million.
    pub duplicate: u32,
    /// Trouble on top of the above while a fault lasts: loss.
    pub burst_loss: u32,
    /// Duplication.
    pub burst_duplicate: u32,
    /// One flipped bit.
    pub burst_corrupt: u32,
    /// Random delay.
    pub burst_jitter: Micros,
    /// When the last datagram will have left.
    pub busy_until: Micros,
}

/// A datagram under way.
#[derive(Debug, Clone)]
pub struct Flight {
    /// Who sent it.
    pub sender: Place,
    /// Source address as seen outside.
    pub from: SocketAddr,
    /// Destination address.
    pub to: SocketAddr,
    /// Content.
    pub bytes: Vec<u8>,
}

/// What the network did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NetStats {
    pub sent: u64,
    pub lost: u64,
    pub queue_full: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub partitioned: u64,
    pub filtered: u64,
}

/// The internet between nodes and beacon.
#[derive(Debug, Default)]
pub struct Network {
    /// One NAT per node.
    pub nats: Vec<Nat>,
    /// One link per node.
    pub links: Vec<Link>,
    /// Nodes cut off from everybody outside the set.
    pub island: BTreeSet<usize>,
    /// The island includes the beacon.
    pub island_beacon: bool,
    /// Pairs (lower index first) that cannot reach each other directly.
    pub cut: BTreeSet<(usize, usize)>,
    /// Counters.
    pub stats: NetStats,
}

impl Network {
    fn link(&self, place: Place) -> Link {
        match place {
            Place::Node(i) => self.links[i].clone(),
            Place::Beacon => Link { delay: 1_000, ..Link::default() },
        }
    }

    fn owner(&self, to: SocketAddr) -> Option<Place> {
        if to == beacon_addr() {
            return Some(Place::Beacon);
        }
        self.nats.iter().position(|n| SocketAddr::from((n.ip(), to.port())) == to).map(Place::Node)
    }

    /// Sends; returns when which copies arrive.
    pub fn send(
        &mut self,
        now: Micros,
        rng: &mut Rng,
        sender: Place,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Vec<(Micros, Flight)> {
        self.stats.sent += 1;
        let from = match sender {
            Place::Node(i) => self.nats[i].outbound(now, to),
            Place::Beacon => beacon_addr(),
        };
        let mut left = now;
        if let Place::Node(i) = sender {
            let link = &mut self.links[i];
            let start = link.busy_until.max(now);
            if (start - now) * link.rate / SECOND > link.queue {
                self.stats.queue_full += 1;
                return Vec::new();
            }
            link.busy_until = start + bytes.len() as u64 * SECOND / link.rate.max(1);
            left = link.busy_until;
        }
        let Some(receiver) = self.owner(to) else { return Vec::new() };
        let (up, down) = (self.link(sender), self.link(receiver));
        let copies = 1 + u32::from(
            rng.chance(up.duplicate + up.burst_duplicate + down.duplicate + down.burst_duplicate),
        );
        self.stats.duplicated += u64::from(copies - 1);
        let mut out = Vec::new();
        for _ in 0..copies {
            if rng.chance(up.loss + up.burst_loss) || rng.chance(down.loss + down.burst_loss) {
                self.stats.lost += 1;
                continue;
            }
            let mut bytes = bytes.to_vec();
            if rng.chance(up.burst_corrupt + down.burst_corrupt) {
                let bit = rng.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                self.stats.corrupted += 1;
            }
            let jitter = up.jitter + up.burst_jitter + down.jitter + down.burst_jitter;
            let at = left + up.delay + down.delay + rng.range(0, jitter + 1);
            out.push((at, Flight { sender, from, to, bytes }));
        }
        out
    }

    fn inside(&self, place: Place) -> bool {
        match place {
            Place::Node(i) => self.island.contains(&i),
            Place::Beacon => self.island_beacon,
        }
    }

    /// Who gets an arriving datagram, if anybody.
    pub fn receiver(&mut self, now: Micros, flight: &Flight) -> Option<Place> {
        let to = self.owner(flight.to)?;
        let apart = !self.island.is_empty() && self.inside(flight.sender) != self.inside(to);
        let cut = match (flight.sender, to) {
            (Place::Node(a), Place::Node(b)) => self.cut.contains(&(a.min(b), a.max(b))),
            _ => false,
        };
        if apart || cut {
            self.stats.partitioned += 1;
            return None;
        }
        if let Place::Node(i) = to
            && !self.nats[i].admits(now, flight.from, flight.to)
        {
            self.stats.filtered += 1;
            return None;
        }
        Some(to)
    }
}
