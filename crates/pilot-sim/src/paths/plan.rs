//! What a seed means: sites, nodes, links, and what happens to them.

use super::nat::{Nat, SHORTEST_TTL};
use crate::net::{Micros, SECOND};
use crate::rng::Rng;

/// Faults begin after this time, when every pair has its best path.
pub const FAULTS_BEGIN: Micros = 6 * SECOND;
/// No fault lasts longer.
pub const FAULTS_END: Micros = 24 * SECOND;

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No datagram passes between two nodes directly, one way or both.
    Block {
        /// From or between.
        from: usize,
        /// To or between.
        to: usize,
        /// Only one way.
        one_way: bool,
    },
    /// A NAT forgets its mappings.
    Rebind(usize),
    /// A site gets another public address.
    Renumber(usize),
    /// A node moves to another address inside its site, and its system tells it.
    Move(usize),
    /// Datagrams are lost, per million, everywhere.
    Loss(u32),
    /// A node sleeps, with its clock going on; its driver tells it.
    Sleep(usize),
}

/// A world.
#[derive(Debug, Clone)]
pub struct Plan {
    /// NAT, hairpin and lifetime of mappings of each site.
    pub sites: Vec<(Nat, bool, Micros)>,
    /// The site of each node.
    pub nodes: Vec<usize>,
    /// One-way delay of each node's link.
    pub delays: Vec<Micros>,
    /// Random part of each delay; what is below it is reordered.
    pub jitter: Micros,
    /// Datagrams lost per million at all times.
    pub loss: u32,
    /// The directory answers where nodes are.
    pub directory: bool,
    /// Who talks to whom, from when on.
    pub pairs: Vec<(usize, usize, Micros)>,
    /// When what happens, and for how long.
    pub faults: Vec<(Micros, Micros, Fault)>,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(rng: &mut Rng) -> Plan {
        let count = 2 + usize::from(rng.chance(250_000)) + usize::from(rng.chance(250_000));
        let shared = rng.chance(150_000);
        let mut sites = Vec::new();
        let mut nodes = Vec::new();
        for node in 0..count {
            if node == 1 && shared {
                nodes.push(0);
                continue;
            }
            let ttl = SHORTEST_TTL + rng.range(0, 120 * SECOND);
            nodes.push(sites.len());
            sites.push((Nat::ALL[rng.index(Nat::ALL.len())], rng.chance(500_000), ttl));
        }
        if shared && sites[0].0 == Nat::None {
            sites[0].0 = Nat::PortRestricted;
        }
        let loss = if rng.chance(500_000) { rng.range(0, 30_000) as u32 } else { 0 };
        let mut pairs = vec![(0, 1, SECOND + rng.range(0, SECOND))];
        if count > 2 {
            pairs.push((count - 1, rng.index(count - 1), SECOND + rng.range(0, 2 * SECOND)));
        }
        let mut plan = Plan {
            sites,
            nodes,
            delays: (0..count).map(|_| rng.range(1_000, 60_000)).collect(),
            jitter: if rng.chance(500_000) { rng.range(0, 10_000) } else { 0 },
            loss,
            directory: rng.chance(800_000),
            pairs,
            faults: Vec::new(),
        };
        for _ in 0..rng.range(0, 4) {
            let begin = rng.range(FAULTS_BEGIN, FAULTS_END - SECOND);
            let end = rng.range(begin + SECOND / 2, FAULTS_END);
            let fault = plan.fault(rng);
            plan.faults.push((begin, end, fault));
        }
        plan
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        let (node, site) = (rng.index(self.nodes.len()), rng.index(self.sites.len()));
        match rng.range(0, 8) {
            0..3 => {
                let (a, b, _) = self.pairs[rng.index(self.pairs.len())];
                let (from, to) = if rng.chance(500_000) { (a, b) } else { (b, a) };
                Fault::Block { from, to, one_way: rng.chance(400_000) }
            }
            3 => Fault::Rebind(site),
            4 => Fault::Renumber(site),
            5 => Fault::Move(node),
            6 => Fault::Loss(rng.range(20_000, 300_000) as u32),
            _ => Fault::Sleep(node),
        }
    }

    /// All that happens is that direct paths are blocked.
    pub fn only_blocks(&self) -> bool {
        self.loss == 0 && self.faults.iter().all(|(_, _, fault)| matches!(fault, Fault::Block { .. }))
    }

    /// Direct paths are blocked, whatever else happens.
    pub fn blocks(&self) -> bool {
        self.faults.iter().any(|(_, _, fault)| matches!(fault, Fault::Block { .. }))
    }

    /// Nothing is lost but by what changes in the network.
    pub fn lossless(&self) -> bool {
        self.loss == 0 && !self.faults.iter().any(|(_, _, f)| matches!(f, Fault::Loss(_) | Fault::Sleep(_)))
    }

    /// Whether two nodes can get a direct path.
    pub fn direct(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.nodes[a], self.nodes[b]);
        a == b || self.sites[a].0.direct(self.sites[b].0)
    }

    /// Neither NAT gives each destination another port.
    pub fn cones(&self, a: usize, b: usize) -> bool {
        !self.sites[self.nodes[a]].0.symmetric() && !self.sites[self.nodes[b]].0.symmetric()
    }

    /// Round trip of two nodes through the beacon, without jitter.
    pub fn relayed_rtt(&self, a: usize, b: usize) -> Micros {
        2 * (self.delays[a] + self.delays[b]) + 4 * super::world::BEACON_DELAY
    }
}
