//! Faults: what they are, and how they begin and end.

use crate::check::{Sabotage, Violation};
use crate::net::{Micros, SECOND};
use crate::world::{Happening, Reading, World};
use pilot_proto::crypto::Identity;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often each kind did something, indexed by [`Kind`].
pub type Hits = [u64; KINDS];
/// Number of kinds.
pub const KINDS: usize = 18;
/// Nodes move away from a beacon that is gone after this time.
const MOVE_AFTER: Micros = 3 * SECOND;
/// A node whose key rotation the directory could not take tries again after this time.
const ROTATE_AGAIN: Micros = 2 * SECOND;

/// Time for which a process surely knows the datagrams it has taken, should they be sent again.
const DATAGRAMS_KNOWN: Micros = 8 * SECOND;

/// Kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Loss,
    Blackout,
    Duplication,
    Corruption,
    Reordering,
    Partition,
    Cut,
    Restart,
    RestartWithMemory,
    Freeze,
    KeyRotation,
    BeaconRestart,
    BeaconLoss,
    DirectoryOutage,
    ClockJump,
    SlowReader,
    StuckReader,
    AddressChange,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Kind; KINDS] = [
        Kind::Loss,
        Kind::Blackout,
        Kind::Duplication,
        Kind::Corruption,
        Kind::Reordering,
        Kind::Partition,
        Kind::Cut,
        Kind::Restart,
        Kind::RestartWithMemory,
        Kind::Freeze,
        Kind::KeyRotation,
        Kind::BeaconRestart,
        Kind::BeaconLoss,
        Kind::DirectoryOutage,
        Kind::ClockJump,
        Kind::SlowReader,
        Kind::StuckReader,
        Kind::AddressChange,
    ];

    /// Its name, and what is counted when it does something.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Kind::Loss => ("loss", "datagrams lost"),
            Kind::Blackout => ("blackout", "datagrams lost"),
            Kind::Duplication => ("duplication", "datagrams doubled"),
            Kind::Corruption => ("corruption", "datagrams changed"),
            Kind::Reordering => ("reordering", "datagrams delayed"),
            Kind::Partition => ("partition", "datagrams stopped"),
            Kind::Cut => ("cut", "datagrams stopped"),
            Kind::Restart => ("restart without memory", "processes"),
            Kind::RestartWithMemory => ("restart with memory", "processes"),
            Kind::Freeze => ("frozen process", "processes"),
            Kind::KeyRotation => ("key rotation", "keys"),
            Kind::BeaconRestart => ("beacon restart", "beacons"),
            Kind::BeaconLoss => ("beacon loss", "beacons"),
            Kind::DirectoryOutage => ("directory outage", "requests unanswered"),
            Kind::ClockJump => ("clock jump", "jumps"),
            Kind::SlowReader => ("slow reader", "reads put off"),
            Kind::StuckReader => ("stuck reader", "reads put off"),
            Kind::AddressChange => ("address change", "addresses"),
        }
    }
}

/// Something goes wrong for a while, or at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's link loses datagrams (per million).
    Loss(usize, u32),
    /// A node's link loses everything.
    Blackout(usize),
    /// A node's link doubles datagrams (per million).
    Duplication(usize, u32),
    /// A node's link flips bits (datagrams per million).
    Corruption(usize, u32),
    /// A node's link delays datagrams at random.
    Reordering(usize, Micros),
    /// These nodes are cut off from the others; true: the beacons are with them.
    Partition(BTreeSet<usize>, bool),
    /// Two nodes reach each other through a beacon only.
    Cut(usize, usize),
    /// A node's process dies. At the end a new one starts: with what it had on its disk and at its port (true), or with
    /// its identity only (false).
    Restart(usize, bool),
    /// A node's process is stopped and goes on later; meanwhile its socket buffers.
    Freeze(usize),
    /// A node gets another identity key.
    KeyRotation(usize),
    /// A beacon is gone and comes back with an empty table.
    BeaconRestart(usize),
    /// A beacon is gone for good; its nodes move to another one.
    BeaconLoss(usize),
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

impl Fault {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Loss(..) => Kind::Loss,
            Fault::Blackout(..) => Kind::Blackout,
            Fault::Duplication(..) => Kind::Duplication,
            Fault::Corruption(..) => Kind::Corruption,
            Fault::Reordering(..) => Kind::Reordering,
            Fault::Partition(..) => Kind::Partition,
            Fault::Cut(..) => Kind::Cut,
            Fault::Restart(_, false) => Kind::Restart,
            Fault::Restart(_, true) => Kind::RestartWithMemory,
            Fault::Freeze(..) => Kind::Freeze,
            Fault::KeyRotation(..) => Kind::KeyRotation,
            Fault::BeaconRestart(..) => Kind::BeaconRestart,
            Fault::BeaconLoss(..) => Kind::BeaconLoss,
            Fault::DirectoryOutage => Kind::DirectoryOutage,
            Fault::ClockJump(..) => Kind::ClockJump,
            Fault::SlowReader(..) => Kind::SlowReader,
            Fault::StuckReader(..) => Kind::StuckReader,
            Fault::AddressChange(..) => Kind::AddressChange,
        }
    }
}

impl World {
    /// A fault did something.
    pub(crate) fn hit(&mut self, kind: Kind) {
        self.net.stats.hits[kind as usize] += 1;
    }

    /// A fault begins.
    pub(crate) fn begin(&mut self, i: usize) -> Result<(), Violation> {
        let fault = self.plan.faults[i].2.clone();
        let kind = fault.kind();
        self.note(|| format!("fault begins: {fault:?}"));
        self.report.began[kind as usize] += 1;
        match fault {
            Fault::Loss(n, ppm) => self.net.links[n].burst_loss = ppm,
            Fault::Blackout(n) => self.net.links[n].dead = true,
            Fault::Duplication(n, ppm) => self.net.links[n].burst_duplicate = ppm,
            Fault::Corruption(n, ppm) => self.net.links[n].burst_corrupt = ppm,
            Fault::Reordering(n, most) => self.net.links[n].burst_jitter = most,
            Fault::Partition(island, beacon) => {
                self.net.island = island;
                self.net.island_beacon = beacon;
            }
            Fault::Cut(a, b) => {
                self.net.cut.insert((a, b));
            }
            Fault::Restart(n, memory) => {
                if self.nodes[n].process.is_some() {
                    self.hit(kind);
                    self.stop(n, memory);
                }
            }
            Fault::Freeze(n) => {
                if self.nodes[n].process.is_some() && self.nodes[n].frozen.is_none() {
                    self.hit(kind);
                    self.nodes[n].frozen = Some(Vec::new());
                }
            }
            Fault::KeyRotation(n) => self.rotate(n)?,
            Fault::BeaconRestart(b) => {
                if self.relays[b].take().is_some() {
                    self.hit(kind);
                }
            }
            Fault::BeaconLoss(b) => {
                self.hit(kind);
                self.relays[b] = None;
                self.lost_beacon = Some(b);
                self.at(self.now + MOVE_AFTER, Happening::LeaveBeacon(b));
            }
            Fault::DirectoryOutage => self.directory_up = false,
            Fault::ClockJump(n, by) => {
                self.hit(kind);
                self.nodes[n].ahead += by;
                self.nodes[n].slept |= by > 60 * SECOND;
                self.nodes[n].forgetful |= by > DATAGRAMS_KNOWN;
                self.wake(n)?;
            }
            Fault::SlowReader(n) => {
                self.nodes[n].reading = Reading::Slow;
                self.at(self.now, Happening::Read(n));
            }
            Fault::StuckReader(n) => self.nodes[n].reading = Reading::Stuck,
            Fault::AddressChange(n) => {
                self.hit(kind);
                self.net.nats[n].renumber();
            }
        }
        Ok(())
    }

    /// A fault ends. One that another of its kind has overlapped ends with the first of them.
    pub(crate) fn mend(&mut self, i: usize) -> Result<(), Violation> {
        let fault = self.plan.faults[i].2.clone();
        self.note(|| format!("fault ends: {fault:?}"));
        match fault {
            Fault::Loss(n, _) => self.net.links[n].burst_loss = 0,
            Fault::Blackout(n) => self.net.links[n].dead = false,
            Fault::Duplication(n, _) => self.net.links[n].burst_duplicate = 0,
            Fault::Corruption(n, _) => self.net.links[n].burst_corrupt = 0,
            Fault::Reordering(n, _) => self.net.links[n].burst_jitter = 0,
            Fault::Partition(..) if self.sabotage == Some(Sabotage::NeverMend) => {}
            Fault::Partition(..) => {
                self.net.island.clear();
                self.net.island_beacon = false;
            }
            Fault::Cut(a, b) => {
                self.net.cut.remove(&(a, b));
            }
            Fault::Restart(n, memory) if self.nodes[n].process.is_none() => self.start(n, memory)?,
            Fault::Freeze(n) => {
                let waiting = self.nodes[n].frozen.take().unwrap_or_default();
                for flight in waiting {
                    self.handle(n, flight)?;
                }
                self.wake(n)?;
            }
            Fault::BeaconRestart(b) if self.relays[b].is_none() && self.lost_beacon != Some(b) => {
                self.start_beacon(b);
            }
            Fault::DirectoryOutage => self.directory_up = true,
            Fault::SlowReader(n) | Fault::StuckReader(n) => {
                self.nodes[n].reading = Reading::Fast;
                self.read_all(n, usize::MAX)?;
            }
            Fault::Restart(..)
            | Fault::BeaconRestart(_)
            | Fault::BeaconLoss(_)
            | Fault::KeyRotation(_)
            | Fault::ClockJump(..)
            | Fault::AddressChange(_) => {}
        }
        Ok(())
    }

    /// A node's operator rotates its key: the directory first, then the process.
    pub(crate) fn rotate(&mut self, n: usize) -> Result<(), Violation> {
        if !self.directory_up {
            self.at(self.now + ROTATE_AGAIN, Happening::Rotate(n));
            return Ok(());
        }
        self.hit(Kind::KeyRotation);
        let new = Arc::new(crate::world::identity(&mut self.rng));
        self.register_key(n, &new);
        self.nodes[n].identity = new;
        let (now, identity) = (self.clock(n), self.nodes[n].identity.clone());
        if let Some(process) = self.nodes[n].process.as_mut() {
            process.set_identity(now, identity, n as u32 + 1);
        }
        self.drive(n)
    }

    /// The nodes of a beacon that is gone are told to use another one.
    pub(crate) fn leave_beacon(&mut self, lost: usize) -> Result<(), Violation> {
        let count = self.plan.beacons;
        for n in 0..self.nodes.len() {
            if self.nodes[n].beacon == lost {
                self.nodes[n].beacon = (lost + 1 + n % (count - 1)) % count;
                let (now, beacon) = (self.clock(n), crate::net::beacon_addr(self.nodes[n].beacon));
                if let Some(process) = self.nodes[n].process.as_mut() {
                    process.set_beacon(now, beacon);
                }
                self.drive(n)?;
            }
        }
        Ok(())
    }

    fn register_key(&mut self, n: usize, new: &Identity) {
        let request = serde_json::json!({
            "type": "rotate_key",
            "new_public_key": new.public_key_base64(),
        });
        self.ask(n, request);
    }
}
