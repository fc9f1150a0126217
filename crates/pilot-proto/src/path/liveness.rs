//! Whether the direct path in use still works: what is sent on it wants signs of life, and silence is probed. Who only listens
//! notices when a flow breaks off.

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

    /// A probe has been sent, and not been answered.
    pub fn sent(&self) -> bool {
        self.sent > 0
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

/// Frames without a longer pause than [`LULL`] that make a flow.
const FLOW: u32 = 16;
/// Silence that ends a flow. The sender, who hears nothing of us, leaves a dead path a second later: by then the relay should
/// know where we are.
pub const LULL: Duration = Duration::from_millis(600);

/// What the peer sends without pause. If it breaks off, that may be our own doing: with a new address we are not where its
/// frames go, and with nothing to send we would never notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flow {
    /// Frames since the last pause.
    frames: u32,
    last: Option<Instant>,
    /// When a flow is looked at again.
    pub next: Option<Instant>,
}

impl Flow {
    /// A frame came.
    pub fn heard(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > LULL) {
            self.frames = 0;
        }
        self.last = Some(now);
        self.frames = self.frames.saturating_add(1);
        if self.frames >= FLOW && self.next.is_none() {
            self.next = Some(now + LULL);
        }
    }

    /// Whether a flow has broken off.
    pub fn tick(&mut self, now: Instant) -> bool {
        let Some(last) = self.last.filter(|_| self.next.is_some_and(|at| at <= now)) else { return false };
        let over = last + LULL;
        self.next = Some(over).filter(|at| *at > now);
        let broken = self.next.is_none();
        if broken {
            self.frames = 0;
        }
        broken
    }
}
