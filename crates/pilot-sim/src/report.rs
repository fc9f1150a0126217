//! What a run saw.

use crate::fault::Hits;
use crate::net::{Micros, NetStats};
use std::collections::BTreeMap;

/// What happened in one world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Nodes.
    pub nodes: usize,
    /// Streams opened, probes and their repetitions included.
    pub streams: usize,
    /// Those of which everything was delivered both ways and both sides ended in order.
    pub complete: usize,
    /// Stream bytes delivered.
    pub bytes: u64,
    /// Datagrams the engines took.
    pub datagrams_sent: u64,
    /// Datagrams delivered.
    pub datagrams_received: u64,
    /// How often each fault began; what each did is in [`NetStats::hits`].
    pub began: Hits,
    /// How sides of streams ended.
    pub ends: BTreeMap<String, u64>,
    /// Sessions installed by a key exchange that came directly.
    pub tunnels_direct: u64,
    /// Sessions installed by a key exchange that came through the beacon.
    pub tunnels_relayed: u64,
    /// Sessions that replaced another.
    pub rekeyed: u64,
    /// What the network did.
    pub net: NetStats,
    /// Every probed pair was connected this long after the last fault.
    pub connected_after: Micros,
    /// Every job was done this long after the last fault (0: before).
    pub done_after: Micros,
    /// Every stream had ended this long after the last fault.
    pub ended_after: Micros,
    /// Virtual length of the run.
    pub virtual_time: Micros,
    /// Digest of every arrival: equal for two runs of one seed.
    pub trace: u64,
}
