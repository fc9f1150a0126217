//! Faults at work, and the bounds that hold in spite of them.

use crate::beacon::Beacon;
use crate::check::{MAX_IN_TRANSIT, MAX_PIECES, MAX_UNACKED, Sabotage, Violation};
use crate::net::SECOND;
use crate::plan::Fault;
use crate::world::{Happening, Reading, World};

/// Between two checks of the bounds, in turns of a node.
const BOUNDS_EVERY: u32 = 64;

impl World {
    /// A fault begins.
    pub(crate) fn begin(&mut self, i: usize) -> Result<(), Violation> {
        let fault = self.plan.faults[i].2.clone();
        self.report.fired[fault.kind()] += 1;
        match fault {
            Fault::Loss(n, ppm) => self.net.links[n].burst_loss = ppm,
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
            Fault::Restart(n) => self.stop(n),
            Fault::BeaconRestart => self.beacon = None,
            Fault::DirectoryOutage => self.directory_up = false,
            Fault::ClockJump(n, by) => {
                self.nodes[n].ahead += by;
                self.nodes[n].slept |= by > 60 * SECOND;
                let now = self.clock(n);
                if let Some(engine) = self.nodes[n].engine.as_mut() {
                    engine.handle_timeout(now);
                }
                self.drive(n)?;
            }
            Fault::SlowReader(n) => {
                self.nodes[n].reading = Reading::Slow;
                self.at(self.now, Happening::Read(n));
            }
            Fault::StuckReader(n) => self.nodes[n].reading = Reading::Stuck,
            Fault::AddressChange(n) => self.net.nats[n].renumber(),
        }
        Ok(())
    }

    /// A fault ends. One that another of its kind has overlapped ends with the first of them.
    pub(crate) fn mend(&mut self, i: usize) -> Result<(), Violation> {
        match self.plan.faults[i].2.clone() {
            Fault::Loss(n, _) => self.net.links[n].burst_loss = 0,
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
            Fault::Restart(n) if self.nodes[n].engine.is_none() => self.start(n)?,
            Fault::BeaconRestart if self.beacon.is_none() => self.beacon = Some(Beacon::default()),
            Fault::DirectoryOutage => self.directory_up = true,
            Fault::SlowReader(n) | Fault::StuckReader(n) => {
                self.nodes[n].reading = Reading::Fast;
                self.read_all(n, usize::MAX)?;
            }
            Fault::Restart(_) | Fault::BeaconRestart | Fault::ClockJump(..) | Fault::AddressChange(_) => {}
        }
        Ok(())
    }

    /// Tables and queues of a node stay within their bounds.
    pub(crate) fn check_bounds(&mut self, n: usize) -> Result<(), Violation> {
        self.nodes[n].turns += 1;
        if !self.nodes[n].turns.is_multiple_of(BOUNDS_EVERY) {
            return Ok(());
        }
        let node = n as u32 + 1;
        let Some(engine) = self.nodes[n].engine.as_ref() else { return Ok(()) };
        let bound = |what, count: u64, bound: u64| match count > bound {
            true => Err(Violation::TooMuch { node, what, count, bound }),
            false => Ok(()),
        };
        let sizes = engine.sizes();
        let mine = self.streams.iter().filter(|s| s.plan.client == n || s.plan.server == n).count();
        bound("peers", sizes.peers as u64, self.nodes.len() as u64)?;
        bound("connections", sizes.connections as u64, mine as u64)?;
        bound("pieces out of order", sizes.pieces, MAX_PIECES)?;
        bound("unacknowledged segments", sizes.unacked, MAX_UNACKED)?;
        let conns: Vec<(u32, usize)> = self.nodes[n].conns.values().copied().collect();
        for (id, side) in conns {
            let sides = &self.streams[id as usize].sides;
            let waiting = sides[side].written.saturating_sub(sides[1 - side].delivered);
            bound("bytes between two applications", waiting, MAX_IN_TRANSIT)?;
        }
        Ok(())
    }
}
