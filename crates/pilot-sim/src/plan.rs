//! What happens in a world, drawn from its seed before it starts.

use crate::fault::{Fault, KINDS, Kind};
use crate::net::{Link, Micros, NatKind, SECOND};
use crate::process::NodeKind;
use crate::rng::Rng;
use std::collections::BTreeSet;

/// No fault lasts beyond this time.
pub const FAULTS_END: Micros = 50 * SECOND;
/// Every seed divisible by this is a world without faults and losses.
const CALM_EVERY: u64 = 8;
/// Bytes the jobs of a world carry together, at least.
const JOB_BYTES: u64 = 1_020_000;
/// Kinds of fault that always have an effect, ...
const SURE: [Kind; 5] =
    [Kind::KeyRotation, Kind::ClockJump, Kind::AddressChange, Kind::Restart, Kind::RestartWithMemory];
/// ... of which every world has this many.
const SURE_KINDS: usize = 4;
/// One world in this many has a stream that offers far more than its reader takes.
const FLOOD_EVERY: u64 = 50;
/// After this time each beacon knows the nodes of the others.
const BEACONS_KNOW: Micros = 16 * SECOND;
/// What such a stream offers.
const FLOOD: u64 = 8 << 20;

/// How a stream is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Each side ends its own direction and reads the other to its end.
    HalfClose,
    /// The client closes both directions after its last byte.
    Close,
    /// The client closes both directions when it has written and received everything: among those who have no half-close.
    Answered,
    /// This side (0 client, 1 server) aborts that long after it is connected.
    Abort(usize, Micros),
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Part of the workload, never repeated.
    Work,
    /// Shows that a pair connects after the faults; dialled again until it does.
    Probe,
    /// An attempt at a job: the server's application acknowledges what it has stored.
    Job {
        /// Which.
        job: usize,
        /// Bytes acknowledged by earlier attempts.
        from: u64,
    },
}

/// A stream to be opened.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    /// When.
    pub at: Micros,
    /// Node that dials.
    pub client: usize,
    /// Node that listens.
    pub server: usize,
    /// Bytes from client and from server; the first four of the client name the stream.
    pub bytes: [u64; 2],
    /// Its end.
    pub ending: Ending,
    /// What for.
    pub purpose: Purpose,
}

/// Bytes that must reach a server whatever happens: the client dials again after every failure and goes on after the
/// last byte the server's application acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct JobPlan {
    /// First attempt.
    pub at: Micros,
    /// Node that sends.
    pub client: usize,
    /// Node that stores.
    pub server: usize,
    /// Bytes.
    pub total: u64,
}

/// A datagram to be sent.
#[derive(Debug, Clone, Copy)]
pub struct DatagramPlan {
    /// When.
    pub at: Micros,
    /// From.
    pub from: usize,
    /// To.
    pub to: usize,
    /// Payload length, at least 4.
    pub len: usize,
}

/// A node's surroundings.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// What it runs.
    pub kind: NodeKind,
    /// Its NAT.
    pub nat: NatKind,
    /// Its link.
    pub link: Link,
    /// Open to everybody; else peers pass because they trust each other.
    pub public: bool,
    /// The beacon it uses.
    pub beacon: usize,
}

/// A whole world.
#[derive(Debug, Clone)]
pub struct Plan {
    /// No faults, no losses: everything must succeed.
    pub calm: bool,
    /// Nodes.
    pub nodes: Vec<NodePlan>,
    /// Beacons.
    pub beacons: usize,
    /// Streams.
    pub streams: Vec<StreamPlan>,
    /// Jobs.
    pub jobs: Vec<JobPlan>,
    /// Datagrams.
    pub datagrams: Vec<DatagramPlan>,
    /// Faults: from, until, what.
    pub faults: Vec<(Micros, Micros, Fault)>,
}

fn other(rng: &mut Rng, count: usize, not: usize) -> usize {
    (not + 1 + rng.index(count - 1)) % count
}

fn node(rng: &mut Rng, calm: bool, beacons: usize) -> NodePlan {
    let nat = match rng.range(0, 4) {
        0 => NatKind::None,
        1 => NatKind::FullCone,
        2 => NatKind::PortRestricted,
        _ => NatKind::Symmetric,
    };
    let dirty = |rng: &mut Rng, most: u64| if calm { 0 } else { rng.range(0, most) as u32 };
    let link = Link {
        delay: rng.range(500, 60_000),
        jitter: rng.range(0, 10_000),
        rate: rng.range(1_000_000, 12_000_000),
        queue: if calm { 4 << 20 } else { rng.range(48_000, 400_000) },
        loss: dirty(rng, 8_000),
        duplicate: dirty(rng, 3_000),
        ..Link::default()
    };
    NodePlan { kind: NodeKind::Ours, nat, link, public: rng.chance(700_000), beacon: rng.index(beacons) }
}

/// What the links carry, from a generator of its own: it changes nothing else of a world. One node in four has a narrow or a
/// wide link; in one world of three a link becomes narrow under way, without a word.
fn sizes(seed: u64, calm: bool, nodes: &mut [NodePlan]) {
    const ETHERNET: usize = 1500;
    const OTHER: [usize; 6] = [1280, 1400, 1420, 1492, 4000, 9000];
    let mut rng = Rng::new(seed ^ 0x4D54_5500_0000_0000);
    for node in nodes.iter_mut() {
        node.link.mtu = Some(if rng.chance(250_000) { OTHER[rng.index(OTHER.len())] } else { ETHERNET });
    }
    let victim = rng.index(nodes.len());
    let narrows = Some((rng.range(2 * SECOND, 40 * SECOND), rng.range(1280, 1450) as usize));
    if !calm && rng.chance(333_000) {
        nodes[victim].link.narrows = narrows;
    }
}

fn streams(rng: &mut Rng, count: usize) -> Vec<StreamPlan> {
    let mut streams = Vec::new();
    for i in 0..rng.range(8, 13) {
        let client = rng.index(count);
        let server = other(rng, count, client);
        let ending = match rng.range(0, 10) {
            0 => Ending::Abort(0, rng.range(0, 3 * SECOND)),
            1 => Ending::Abort(1, rng.range(0, 3 * SECOND)),
            2..=4 => Ending::Close,
            _ => Ending::HalfClose,
        };
        let most = if i == 0 { 300_000 } else { 50_000 };
        let bytes = [rng.range(4, most), rng.range(0, most)];
        let at = rng.range(2 * SECOND, 25 * SECOND);
        streams.push(StreamPlan { at, client, server, bytes, ending, purpose: Purpose::Work });
    }
    streams
}

fn jobs(rng: &mut Rng, count: usize) -> Vec<JobPlan> {
    let number = rng.range(3, 6);
    let mut jobs = Vec::new();
    for _ in 0..number {
        let client = rng.index(count);
        let server = other(rng, count, client);
        let total = JOB_BYTES / number + rng.range(1, 60_000);
        jobs.push(JobPlan { at: rng.range(SECOND, 20 * SECOND), client, server, total });
    }
    jobs
}

fn datagrams(rng: &mut Rng, count: usize) -> Vec<DatagramPlan> {
    let mut datagrams = Vec::new();
    for _ in 0..rng.range(10, 60) {
        let from = rng.index(count);
        let to = other(rng, count, from);
        let at = rng.range(SECOND, FAULTS_END);
        datagrams.push(DatagramPlan { at, from, to, len: rng.range(4, 1100) as usize });
    }
    datagrams
}

/// Draws faults. `victims`: nodes whose process was not yet stopped or frozen by an earlier one.
struct Faults<'a> {
    rng: &'a mut Rng,
    count: usize,
    beacons: usize,
    victims: Vec<usize>,
}

impl Faults<'_> {
    fn seconds(&mut self, low: u64, high: u64) -> Micros {
        self.rng.range(low * SECOND, high * SECOND)
    }

    fn victim(&mut self) -> usize {
        if self.victims.is_empty() {
            return self.rng.index(self.count);
        }
        let at = self.rng.index(self.victims.len());
        self.victims.swap_remove(at)
    }

    fn one(&mut self, kind: Kind) -> (Fault, Micros) {
        let node = self.rng.index(self.count);
        let beacon = self.rng.index(self.beacons);
        match kind {
            Kind::Loss => (Fault::Loss(node, self.rng.range(20_000, 600_000) as u32), self.seconds(2, 15)),
            Kind::Blackout => (Fault::Blackout(node), self.seconds(1, 20)),
            Kind::Duplication => {
                (Fault::Duplication(node, self.rng.range(50_000, 500_000) as u32), self.seconds(2, 15))
            }
            Kind::Corruption => {
                (Fault::Corruption(node, self.rng.range(10_000, 300_000) as u32), self.seconds(2, 12))
            }
            Kind::Reordering => {
                (Fault::Reordering(node, self.rng.range(20_000, 400_000)), self.seconds(2, 12))
            }
            Kind::Partition => {
                let mut island = BTreeSet::from([node]);
                for i in 0..self.count {
                    if self.rng.chance(300_000) {
                        island.insert(i);
                    }
                }
                (Fault::Partition(island, self.rng.chance(300_000)), self.seconds(1, 18))
            }
            Kind::Cut => {
                let peer = other(self.rng, self.count, node);
                (Fault::Cut(node.min(peer), node.max(peer)), self.seconds(3, 25))
            }
            Kind::Restart => (Fault::Restart(self.victim(), false), self.rng.range(50_000, 5 * SECOND)),
            Kind::RestartWithMemory => {
                (Fault::Restart(self.victim(), true), self.rng.range(50_000, 5 * SECOND))
            }
            Kind::Freeze => (Fault::Freeze(self.victim()), self.seconds(1, 20)),
            Kind::KeyRotation => (Fault::KeyRotation(node), 0),
            Kind::BeaconRestart => (Fault::BeaconRestart(beacon), self.rng.range(10_000, 8 * SECOND)),
            Kind::BeaconLoss => (Fault::BeaconLoss(beacon), self.rng.range(SECOND, 10 * SECOND)),
            Kind::DirectoryOutage => (Fault::DirectoryOutage, self.seconds(1, 15)),
            Kind::ClockJump => {
                let short = self.rng.chance(600_000);
                let by = if short { self.rng.range(100_000, 20 * SECOND) } else { self.seconds(20, 900) };
                (Fault::ClockJump(node, by), 0)
            }
            Kind::SlowReader => (Fault::SlowReader(node), self.seconds(2, 20)),
            Kind::StuckReader => (Fault::StuckReader(node), self.seconds(2, 25)),
            Kind::AddressChange => (Fault::AddressChange(node), 0),
        }
    }
}

/// Faults of at least `kinds` kinds, some of them more than once.
fn faults(rng: &mut Rng, count: usize, beacons: usize) -> Vec<(Micros, Micros, Fault)> {
    let mut kinds: Vec<Kind> = Kind::ALL.to_vec();
    kinds.retain(|kind| *kind != Kind::BeaconLoss || beacons > 1);
    for i in (1..kinds.len()).rev() {
        let j = rng.index(i + 1);
        kinds.swap(i, j);
    }
    kinds.truncate(rng.range(8, 13) as usize);
    for _ in 0..rng.range(0, 5) {
        let again = Kind::ALL[rng.index(KINDS)];
        // One beacon must stay.
        if again != Kind::BeaconLoss {
            kinds.push(again);
        }
    }
    let mut draw = Faults { rng, count, beacons, victims: (0..count).collect() };
    let mut faults = Vec::new();
    for kind in kinds {
        let (fault, lasts) = draw.one(kind);
        let at = draw.rng.range(SECOND, 26 * SECOND);
        faults.push((at, (at + lasts).min(FAULTS_END), fault));
    }
    // Some kinds do nothing when nobody uses the link or the path they hit; these always do something.
    let has = |kind: Kind, faults: &[(Micros, Micros, Fault)]| faults.iter().any(|(.., f)| f.kind() == kind);
    for kind in SURE {
        let sure = SURE.iter().filter(|kind| has(**kind, &faults)).count();
        if sure < SURE_KINDS && !has(kind, &faults) {
            let (fault, _) = draw.one(kind);
            let at = draw.rng.range(SECOND, 26 * SECOND);
            faults.push((at, at, fault));
        }
    }
    faults
}

impl Plan {
    /// The world of a seed in which some nodes are of the reference. What two of them would do with each other is left
    /// out: one of two is ours.
    pub fn mixed(seed: u64, rng: &mut Rng) -> Plan {
        let mut plan = Plan::new(seed, rng);
        let mut kinds = Rng::new(!seed);
        for node in &mut plan.nodes {
            if kinds.chance(400_000) {
                node.kind = NodeKind::Reference;
            }
        }
        let count = plan.nodes.len();
        let reference = kinds.index(count);
        let ours = other(&mut kinds, count, reference);
        plan.nodes[reference].kind = NodeKind::Reference;
        plan.nodes[ours].kind = NodeKind::Ours;
        let mut peer_of = {
            let nodes: Vec<NodeKind> = plan.nodes.iter().map(|n| n.kind).collect();
            move |client: usize, server: usize| {
                let both = nodes[client] == NodeKind::Reference && nodes[server] == NodeKind::Reference;
                let ours: Vec<usize> = (0..count).filter(|n| nodes[*n] == NodeKind::Ours).collect();
                if both { ours[kinds.index(ours.len())] } else { server }
            }
        };
        plan.streams.iter_mut().for_each(|s| s.server = peer_of(s.client, s.server));
        plan.jobs.iter_mut().for_each(|j| j.server = peer_of(j.client, j.server));
        plan.datagrams.iter_mut().for_each(|d| d.to = peer_of(d.from, d.to));
        for i in 0..plan.streams.len() {
            let StreamPlan { client, server, ending, .. } = plan.streams[i];
            plan.streams[i].ending = plan.ending(client, server, ending);
        }
        if plan.calm {
            // Excuse: a reference node is known to its own beacon only until the beacons tell each other.
            plan.streams.iter_mut().for_each(|s| s.at += BEACONS_KNOW);
            plan.jobs.iter_mut().for_each(|j| j.at += BEACONS_KNOW);
        }
        plan
    }

    /// Whether a node is of the reference.
    pub fn reference(&self, n: usize) -> bool {
        self.nodes[n].kind == NodeKind::Reference
    }

    /// How a stream between two nodes ends that is meant to end like this.
    pub fn ending(&self, a: usize, b: usize, meant: Ending) -> Ending {
        match meant {
            Ending::HalfClose if self.reference(a) || self.reference(b) => Ending::Answered,
            meant => meant,
        }
    }

    /// The world of a seed.
    pub fn new(seed: u64, rng: &mut Rng) -> Plan {
        let calm = seed.is_multiple_of(CALM_EVERY);
        let count = match rng.range(0, 20) {
            0 => rng.range(16, 31),
            1..=4 => rng.range(9, 16),
            _ => rng.range(3, 9),
        } as usize;
        let beacons = rng.range(1, 4) as usize;
        let mut nodes: Vec<NodePlan> = (0..count).map(|_| node(rng, calm, beacons)).collect();
        sizes(seed, calm, &mut nodes);
        let mut streams = streams(rng, count);
        let jobs = jobs(rng, count);
        let datagrams = datagrams(rng, count);
        let mut faults = if calm { Vec::new() } else { faults(rng, count, beacons) };
        if !calm && rng.range(0, FLOOD_EVERY) == 0 {
            let flood = &mut streams[0];
            flood.at = 3 * SECOND;
            flood.bytes = [FLOOD, 0];
            flood.ending = Ending::HalfClose;
            faults.push((SECOND, 25 * SECOND, Fault::StuckReader(flood.server)));
        }
        Plan { calm, nodes, beacons, streams, jobs, datagrams, faults }
    }
}
