//! Datagrams of the applications.

use crate::check::{Sabotage, Violation, pattern};
use crate::world::World;
use pilot_proto::{Addr, NodeId};

/// Datagrams carry their number in the first four bytes and this pattern.
const DATAGRAM_TAG: u64 = 1 << 40;
/// Port they are sent to.
const DATAGRAM_PORT: u16 = 9;

impl World {
    /// Sends a datagram of the workload.
    pub(crate) fn send_datagram(&mut self, i: usize) -> Result<(), Violation> {
        let plan = self.plan.datagrams[i];
        let mut payload = pattern(DATAGRAM_TAG + i as u64, 0, plan.len);
        payload[..4].copy_from_slice(&(i as u32).to_be_bytes());
        let now = self.clock(plan.from);
        if let Some(process) = self.nodes[plan.from].process.as_mut() {
            // Refused when too many wait for a session; that is no fault.
            let to = Addr::backbone(plan.to as NodeId + 1);
            let sent = process.send_datagram(now, to, DATAGRAM_PORT, &payload);
            self.report.datagrams_sent += u64::from(sent);
        }
        self.drive(plan.from)
    }

    /// An application gets a datagram.
    pub(crate) fn on_datagram(&mut self, n: usize, src: Addr, payload: &[u8]) -> Result<(), Violation> {
        let node = n as u32 + 1;
        let altered = Violation::DatagramAltered { node };
        let Some(id) = payload.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Err(altered);
        };
        let Some(plan) = self.plan.datagrams.get(id as usize) else { return Err(altered) };
        let expected = pattern(DATAGRAM_TAG + u64::from(id), 0, plan.len);
        let lie = self.lie(Sabotage::AlterDatagram);
        let same = payload.len() == plan.len && payload[4..] == expected[4..] && !lie;
        if plan.to != n || src.node != plan.from as NodeId + 1 || !same {
            return Err(altered);
        }
        // Excuse: every node sends its last datagrams again when the peer seems to have lost the session; the first copy may
        // have arrived, late and under the session before. Reference nodes take replays, too, see `World::handle`.
        let salvaged = self.nodes[plan.from].salvaged.get(&node).is_some_and(|at| *at >= plan.at);
        let again = self.nodes[n].forgetful || salvaged || self.plan.reference(n);
        if !self.nodes[n].datagrams.insert(id) && !again {
            return Err(Violation::DatagramTwice { node, id });
        }
        self.report.datagrams_received += 1;
        Ok(())
    }
}
