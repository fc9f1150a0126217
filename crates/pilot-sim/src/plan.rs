//! What happens in a world, drawn from its seed before it starts.

use crate::net::{Link, Micros, NatKind, SECOND};
use crate::process::NodeKind;
use crate::rng::Rng;
use std::collections::BTreeSet;

/// No fault lasts beyond this time.
pub const FAULTS_END: Micros = 50 * SECOND;
/// Every seed divisible by this is a world without faults and losses.
const CALM_EVERY: u64 = 8;

/// Something goes wrong for a while (`until`), or at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's link loses datagrams (per million).
    Loss(usize, u32),
    /// A node's link doubles datagrams.
    Duplication(usize, u32),
    /// A node's link flips bits.
    Corruption(usize, u32),
    /// A node's link delays datagrams at random.
    Reordering(usize, Micros),
    /// These nodes are cut off from the others; true: the beacon is with them.
    Partition(BTreeSet<usize>, bool),
    /// Two nodes reach each other through the beacon only.
    Cut(usize, usize),
    /// A node's process dies; a new one that remembers its identity only starts at the end.
    Restart(usize),
    /// The beacon is gone and comes back with an empty table.
    BeaconRestart,
    /// The directory answers nothing useful.
    DirectoryOutage,
    /// A node's clock jumps forward (a laptop woke up).
    ClockJump(usize, Micros),
    /// A node's applications read one chunk per half second.
    SlowReader(usize),
    /// A node's applications read nothing.
    StuckReader(usize),
    /// A node's provider gives it another address.
    AddressChange(usize),
}

/// Names of the faults, in the order of [`Fault::kind`].
pub const FAULT_NAMES: [&str; 13] = [
    "loss",
    "duplication",
    "corruption",
    "reordering",
    "partition",
    "cut",
    "restart",
    "beacon-restart",
    "directory-outage",
    "clock-jump",
    "slow-reader",
    "stuck-reader",
    "address-change",
];

impl Fault {
    /// Index into [`FAULT_NAMES`].
    pub fn kind(&self) -> usize {
        match self {
            Fault::Loss(..) => 0,
            Fault::Duplication(..) => 1,
            Fault::Corruption(..) => 2,
            Fault::Reordering(..) => 3,
            Fault::Partition(..) => 4,
            Fault::Cut(..) => 5,
            Fault::Restart(..) => 6,
            Fault::BeaconRestart => 7,
            Fault::DirectoryOutage => 8,
            Fault::ClockJump(..) => 9,
            Fault::SlowReader(..) => 10,
            Fault::StuckReader(..) => 11,
            Fault::AddressChange(..) => 12,
        }
    }
}

/// How a stream is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Each side ends its own direction and reads the other to its end.
    HalfClose,
    /// The client closes both directions after its last byte.
    Close,
    /// This side (0 client, 1 server) aborts that long after it is connected.
    Abort(usize, Micros),
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
    /// Bytes from client and from server.
    pub bytes: [u64; 2],
    /// Its end.
    pub ending: Ending,
    /// It tests that a pair connects after the faults.
    pub probe: bool,
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
    /// Open to everybody; else peers pass because the directory vouches for them.
    pub public: bool,
}

/// A whole world.
#[derive(Debug, Clone)]
pub struct Plan {
    /// No faults, no losses: everything must succeed.
    pub calm: bool,
    /// Nodes.
    pub nodes: Vec<NodePlan>,
    /// Streams.
    pub streams: Vec<StreamPlan>,
    /// Datagrams.
    pub datagrams: Vec<DatagramPlan>,
    /// Faults: from, until, what.
    pub faults: Vec<(Micros, Micros, Fault)>,
}

fn other(rng: &mut Rng, count: usize, not: usize) -> usize {
    (not + 1 + rng.index(count - 1)) % count
}

fn node(rng: &mut Rng, calm: bool) -> NodePlan {
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
    NodePlan { kind: NodeKind::Ours, nat, link, public: rng.chance(700_000) }
}

fn fault(rng: &mut Rng, count: usize) -> (Fault, Micros) {
    let node = rng.index(count);
    let second = |rng: &mut Rng, low, high| rng.range(low * SECOND, high * SECOND);
    match rng.range(0, FAULT_NAMES.len() as u64) {
        0 => (Fault::Loss(node, rng.range(20_000, 600_000) as u32), second(rng, 1, 15)),
        1 => (Fault::Duplication(node, rng.range(50_000, 500_000) as u32), second(rng, 1, 15)),
        2 => (Fault::Corruption(node, rng.range(10_000, 300_000) as u32), second(rng, 1, 12)),
        3 => (Fault::Reordering(node, rng.range(20_000, 400_000)), second(rng, 1, 12)),
        4 => {
            let mut island = BTreeSet::from([node]);
            for i in 0..count {
                if rng.chance(300_000) {
                    island.insert(i);
                }
            }
            (Fault::Partition(island, rng.chance(300_000)), second(rng, 1, 18))
        }
        5 => {
            let peer = other(rng, count, node);
            (Fault::Cut(node.min(peer), node.max(peer)), second(rng, 3, 25))
        }
        6 => (Fault::Restart(node), rng.range(50_000, 5 * SECOND)),
        7 => (Fault::BeaconRestart, rng.range(10_000, 8 * SECOND)),
        8 => (Fault::DirectoryOutage, second(rng, 1, 15)),
        9 => {
            let short = rng.chance(600_000);
            let by = if short { rng.range(100_000, 20 * SECOND) } else { second(rng, 20, 900) };
            (Fault::ClockJump(node, by), 0)
        }
        10 => (Fault::SlowReader(node), second(rng, 2, 20)),
        11 => (Fault::StuckReader(node), second(rng, 2, 25)),
        _ => (Fault::AddressChange(node), 0),
    }
}

impl Plan {
    /// The world of a seed.
    pub fn new(seed: u64, rng: &mut Rng) -> Plan {
        let calm = seed.is_multiple_of(CALM_EVERY);
        let count = rng.range(3, 13) as usize;
        let nodes = (0..count).map(|_| node(rng, calm)).collect();
        let mut streams = Vec::new();
        for i in 0..rng.range(10, 16) {
            let client = rng.index(count);
            let server = other(rng, count, client);
            let ending = match rng.range(0, 10) {
                0 => Ending::Abort(0, rng.range(0, 3 * SECOND)),
                1 => Ending::Abort(1, rng.range(0, 3 * SECOND)),
                2..=4 => Ending::Close,
                _ => Ending::HalfClose,
            };
            let most = if i == 0 { 600_000 } else { 120_000 };
            let bytes = [rng.range(4, most), rng.range(0, most)];
            let at = rng.range(2 * SECOND, 25 * SECOND);
            streams.push(StreamPlan { at, client, server, bytes, ending, probe: false });
        }
        let mut datagrams = Vec::new();
        for _ in 0..rng.range(10, 60) {
            let from = rng.index(count);
            let to = other(rng, count, from);
            let at = rng.range(SECOND, FAULTS_END);
            datagrams.push(DatagramPlan { at, from, to, len: rng.range(4, 1100) as usize });
        }
        let mut faults = Vec::new();
        for _ in 0..if calm { 0 } else { rng.range(5, 14) } {
            let (fault, lasts) = fault(rng, count);
            let at = rng.range(SECOND, 30 * SECOND);
            faults.push((at, (at + lasts).min(FAULTS_END), fault));
        }
        Plan { calm, nodes, streams, datagrams, faults }
    }
}
