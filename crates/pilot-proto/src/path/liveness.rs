//! Whether the direct path in use still works: what is sent on it wants signs of life, and silence is probed.

use std::time::{Duration, Instant};

/// Silence of a direct path we are sending on after which it is probed.
pub const QUIET: Duration = Duration::from_millis(500);
/// The same when the peer's frames arrive through the relay meanwhile.
pub const QUIET_WHILE_RELAYED: Duration = Duration::from_millis(500);
/// Probes of a silent path before it is given up.
const PROBES: u32 = 3;
/// Bounds of the distance of these probes. With the shortest a dead path is left after 1.4 s, with the longest after 3.5 s,
/// which only a path slower than half a second needs.
const SHORTEST: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(1);

/// A silent path being probed.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    sent: u32,
    every: Duration,
    /// When it began.
    pub began: Instant,
    /// Next probe, or the end.
    pub next: Instant,
}

impl Check {
    /// Begins at once. `rtt`: the path's round trip, if known.
    pub fn new(now: Instant, rtt: Option<Duration>) -> Check {
        let every = rtt.map_or(SHORTEST, |rtt| rtt + rtt / 2).clamp(SHORTEST, LONGEST);
        Check { sent: 0, every, began: now, next: now }
    }

    /// What is due: another probe (true), or the path is dead (false).
    pub fn probe(&mut self, now: Instant) -> bool {
        if self.sent >= PROBES {
            return false;
        }
        self.sent += 1;
        self.next = now + self.every;
        true
    }
}
