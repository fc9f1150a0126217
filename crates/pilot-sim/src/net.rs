//! Links and NATs. Time is in microseconds since the world began.

use crate::fault::{Hits, Kind};
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// Microseconds of virtual time.
pub type Micros = u64;
/// One second.
pub const SECOND: Micros = 1_000_000;

/// A NAT forgets a mapping or a permission unused for this long.
const NAT_TTL: Micros = 65 * SECOND;
/// UDP port of a node's first socket.
const NODE_PORT: u16 = 4000;
/// IPv4 and UDP headers.
const IP_HEADERS: usize = 28;
/// Most mappings of a NAT; the oldest goes first.
const MAX_MAPPINGS: usize = 256;

/// Where a beacon is.
pub fn beacon_addr(beacon: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, beacon as u8 + 1], 9001))
}

fn beacon_at(addr: SocketAddr, count: usize) -> Option<usize> {
    (0..count).find(|b| beacon_addr(*b) == addr)
}

/// A sender or receiver of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A node, by index.
    Node(usize),
    /// A beacon, by index.
    Beacon(usize),
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
    /// Port of the node's socket.
    socket: u16,
    next_port: u16,
    /// By destination for a symmetric NAT, else one for `None`.
    mappings: BTreeMap<Option<SocketAddr>, Mapping>,
}

impl Nat {
    /// The NAT of node `index`.
    pub fn new(kind: NatKind, index: usize) -> Nat {
        Nat {
            kind,
            node: index as u8 + 1,
            generation: 0,
            socket: NODE_PORT,
            next_port: 20_000,
            mappings: BTreeMap::new(),
        }
    }

    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.generation, self.node)
    }

    /// The provider assigns another address; all mappings are gone.
    pub fn renumber(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.mappings.clear();
    }

    /// The node opens another socket: its mappings belong to the old one.
    pub fn rebind(&mut self) {
        self.socket = self.socket.wrapping_add(1).max(NODE_PORT);
        self.mappings.clear();
    }

    /// The address the node's TCP connections come from.
    pub fn tcp(&self) -> SocketAddr {
        SocketAddr::from((self.ip(), 50_000))
    }

    fn outbound(&mut self, now: Micros, to: SocketAddr) -> SocketAddr {
        if self.kind == NatKind::None {
            return SocketAddr::from((self.ip(), self.socket));
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
            return to.port() == self.socket;
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
    /// Nothing gets through.
    pub dead: bool,
    /// When the last datagram will have left.
    pub busy_until: Micros,
    /// Largest IP packet; what is larger vanishes without a word. `None`: no limit.
    pub mtu: Option<usize>,
    /// From this time on it is that.
    pub narrows: Option<(Micros, usize)>,
}

/// What a datagram meets on its way over one or two links.
#[derive(Debug, Clone, Copy, Default)]
struct Conditions {
    delay: Micros,
    jitter: Micros,
    loss: u32,
    duplicate: u32,
    burst_loss: u32,
    burst_duplicate: u32,
    burst_corrupt: u32,
    burst_jitter: Micros,
    dead: bool,
    mtu: Option<usize>,
}

impl Conditions {
    fn and(self, other: Conditions) -> Conditions {
        Conditions {
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            loss: self.loss + other.loss,
            duplicate: self.duplicate + other.duplicate,
            burst_loss: self.burst_loss + other.burst_loss,
            burst_duplicate: self.burst_duplicate + other.burst_duplicate,
            burst_corrupt: self.burst_corrupt + other.burst_corrupt,
            burst_jitter: self.burst_jitter + other.burst_jitter,
            dead: self.dead || other.dead,
            mtu: self.mtu.into_iter().chain(other.mtu).min(),
        }
    }
}

impl Link {
    fn conditions(&self, now: Micros) -> Conditions {
        let narrow = self.narrows.filter(|(at, _)| *at <= now).map(|(_, mtu)| mtu);
        Conditions {
            mtu: narrow.or(self.mtu),
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            duplicate: self.duplicate,
            burst_loss: self.burst_loss,
            burst_duplicate: self.burst_duplicate,
            burst_corrupt: self.burst_corrupt,
            burst_jitter: self.burst_jitter,
            dead: self.dead,
        }
    }
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
    /// Datagrams each fault has hit.
    pub hits: Hits,
    pub sent: u64,
    pub lost: u64,
    pub queue_full: u64,
    pub duplicated: u64,
    pub filtered: u64,
    pub too_large: u64,
}

/// The internet between nodes and beacons.
#[derive(Debug, Default)]
pub struct Network {
    /// One NAT per node.
    pub nats: Vec<Nat>,
    /// One link per node.
    pub links: Vec<Link>,
    /// Beacons.
    pub beacons: usize,
    /// Nodes cut off from everybody outside the set.
    pub island: BTreeSet<usize>,
    /// The island includes the beacons.
    pub island_beacon: bool,
    /// Pairs (lower index first) that cannot reach each other directly.
    pub cut: BTreeSet<(usize, usize)>,
    /// Counters.
    pub stats: NetStats,
}

impl Network {
    fn owner(&self, to: SocketAddr) -> Option<Place> {
        if let Some(beacon) = beacon_at(to, self.beacons) {
            return Some(Place::Beacon(beacon));
        }
        self.nats.iter().position(|n| n.ip() == to.ip()).map(Place::Node)
    }

    /// The node that has this address.
    pub fn node_at(&self, to: SocketAddr) -> Option<usize> {
        match self.owner(to)? {
            Place::Node(n) => Some(n),
            Place::Beacon(_) => None,
        }
    }

    fn hit(&mut self, kind: Kind) {
        self.stats.hits[kind as usize] += 1;
    }

    /// Leaves the sender's own link. `None`: its queue is full.
    fn leave(&mut self, now: Micros, sender: Place, len: usize) -> Option<Micros> {
        let Place::Node(i) = sender else { return Some(now) };
        let link = &mut self.links[i];
        let start = link.busy_until.max(now);
        if (start - now) * link.rate / SECOND > link.queue {
            self.stats.queue_full += 1;
            return None;
        }
        link.busy_until = start + len as u64 * SECOND / link.rate.max(1);
        Some(link.busy_until)
    }

    /// Sends; hands on when which copies arrive.
    pub fn send(
        &mut self,
        now: Micros,
        rng: &mut Rng,
        sender: Place,
        to: SocketAddr,
        bytes: &[u8],
        mut arrive: impl FnMut(Micros, Flight),
    ) {
        self.stats.sent += 1;
        let from = match sender {
            Place::Node(i) => self.nats[i].outbound(now, to),
            Place::Beacon(b) => beacon_addr(b),
        };
        let Some(left) = self.leave(now, sender, bytes.len()) else { return };
        let Some(receiver) = self.owner(to) else { return };
        let link = |place: Place| match place {
            Place::Node(i) => self.links[i].conditions(now),
            Place::Beacon(_) => Conditions { delay: 1_000, ..Conditions::default() },
        };
        let way = link(sender).and(link(receiver));
        if way.dead {
            return self.hit(Kind::Blackout);
        }
        if way.mtu.is_some_and(|mtu| bytes.len() + IP_HEADERS > mtu) {
            return self.stats.too_large += 1;
        }
        let twice = rng.chance(way.duplicate);
        let burst = rng.chance(way.burst_duplicate);
        if burst {
            self.hit(Kind::Duplication);
        }
        self.stats.duplicated += u64::from(twice || burst);
        for _ in 0..1 + u32::from(twice || burst) {
            if rng.chance(way.burst_loss) {
                self.hit(Kind::Loss);
                self.stats.lost += 1;
                continue;
            }
            if rng.chance(way.loss) {
                self.stats.lost += 1;
                continue;
            }
            let mut bytes = bytes.to_vec();
            if rng.chance(way.burst_corrupt) {
                let bit = rng.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                self.hit(Kind::Corruption);
            }
            if way.burst_jitter > 0 {
                self.hit(Kind::Reordering);
            }
            let at = left + way.delay + rng.range(0, way.jitter + way.burst_jitter + 1);
            arrive(at, Flight { sender, from, to, bytes });
        }
    }

    fn inside(&self, place: Place) -> bool {
        match place {
            Place::Node(i) => self.island.contains(&i),
            Place::Beacon(_) => self.island_beacon,
        }
    }

    /// Who gets an arriving datagram, if anybody.
    pub fn receiver(&mut self, now: Micros, flight: &Flight) -> Option<Place> {
        let to = self.owner(flight.to)?;
        if !self.island.is_empty() && self.inside(flight.sender) != self.inside(to) {
            self.hit(Kind::Partition);
            return None;
        }
        if let (Place::Node(a), Place::Node(b)) = (flight.sender, to)
            && self.cut.contains(&(a.min(b), a.max(b)))
        {
            self.hit(Kind::Cut);
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
