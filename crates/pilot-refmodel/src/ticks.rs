//! The periodic timers: they tick from the process's start, whatever happens.

use std::time::{Duration, Instant};

/// When each periodic timer ticks for the first time, counted from the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// Retransmission of key exchanges, every 4 s.
    pub exchange: Duration,
    /// Connections: keepalive, idle, lingering, every 15 s.
    pub sweep: Duration,
    /// Tunnel keepalives and removal of idle peers, every 5 s.
    pub keepalive: Duration,
    /// Upgrade from relay to direct, every 15 s.
    pub upgrade: Duration,
    /// Path watchdog, every 10 s.
    pub watchdog: Duration,
    /// Discover, every 60 s; the first follows at once and a second after 1 s.
    pub discover: Duration,
}

impl Default for Phases {
    fn default() -> Phases {
        Phases {
            exchange: EXCHANGE,
            sweep: SWEEP,
            keepalive: KEEPALIVE,
            upgrade: UPGRADE,
            watchdog: WATCHDOG,
            discover: DISCOVER,
        }
    }
}

pub(crate) const EXCHANGE: Duration = Duration::from_secs(4);
const SWEEP: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(5);
const UPGRADE: Duration = Duration::from_secs(15);
const WATCHDOG: Duration = Duration::from_secs(10);
const DISCOVER: Duration = Duration::from_secs(60);

/// One of the timers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    next: Instant,
    every: Duration,
}

impl Tick {
    fn new(now: Instant, first: Duration, every: Duration) -> Tick {
        Tick { next: now + first, every }
    }

    /// Whether it ticks now. Ticks that were missed come once.
    fn due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        while now >= self.next {
            // After a long sleep, far behind: not one by one.
            let behind = now.saturating_duration_since(self.next).as_millis() / self.every.as_millis();
            self.next += self.every * (behind.min(u128::from(u32::MAX / 2)) as u32 + 1);
        }
        due
    }
}

/// What ticked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ticked {
    Exchange,
    Sweep,
    Keepalive,
    Upgrade,
    Watchdog,
    Discover,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticks([(Ticked, Tick); 6]);

impl Ticks {
    pub(crate) fn new(now: Instant, phases: &Phases) -> Ticks {
        Ticks([
            (Ticked::Exchange, Tick::new(now, phases.exchange, EXCHANGE)),
            (Ticked::Sweep, Tick::new(now, phases.sweep, SWEEP)),
            (Ticked::Keepalive, Tick::new(now, phases.keepalive, KEEPALIVE)),
            (Ticked::Upgrade, Tick::new(now, phases.upgrade, UPGRADE)),
            (Ticked::Watchdog, Tick::new(now, phases.watchdog, WATCHDOG)),
            (Ticked::Discover, Tick::new(now, phases.discover, DISCOVER)),
        ])
    }

    /// What ticks now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Ticked> {
        self.0.iter_mut().filter_map(|(what, tick)| tick.due(now).then_some(*what)).collect()
    }

    pub(crate) fn next(&self) -> Instant {
        let [first, rest @ ..] = &self.0;
        rest.iter().map(|(_, t)| t.next).fold(first.1.next, Instant::min)
    }
}
