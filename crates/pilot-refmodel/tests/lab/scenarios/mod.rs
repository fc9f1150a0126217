//! The scenarios. Each name says the behaviour.

mod closing;
mod opening;
mod receiving;
mod sending;
mod tunnel;

use super::model_host::ModelHost;
use super::script::Script;
use super::trace::{self, Line, Tolerance};
use super::{Host, Setup};
use pilot_refmodel::Phases;
use std::time::Duration;

/// A periodic timer of the daemon that runs from its start: the scenario begins at an unknown time between two ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    Exchange,
    Sweep,
    Keepalive,
    Upgrade,
    Watchdog,
}

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub setup: Setup,
    /// About how long it takes.
    pub seconds: u32,
    pub tolerance: Tolerance,
    /// Timers whose phase is unknown: the model must agree for some phase.
    pub timers: &'static [Timer],
    script: fn(&mut Script<'_>),
}

/// Steps in which an unknown phase is searched.
const STEP: Duration = Duration::from_millis(250);

impl Scenario {
    fn new(name: &'static str, script: fn(&mut Script<'_>)) -> Scenario {
        let setup = Setup { public: true, peers: 1 };
        Scenario { name, setup, seconds: 2, tolerance: Tolerance::default(), timers: &[], script }
    }

    fn takes(mut self, seconds: u32) -> Scenario {
        self.seconds = seconds;
        self
    }

    fn private(mut self) -> Scenario {
        self.setup.public = false;
        self
    }

    fn timers(mut self, timers: &'static [Timer]) -> Scenario {
        self.timers = timers;
        self
    }

    /// Times may differ by this much, and by this part of the time passed.
    fn within(mut self, ms: u64, percent: u64) -> Scenario {
        (self.tolerance.time, self.tolerance.percent) = (Duration::from_millis(ms), percent);
        self
    }

    /// Lines that the daemon sends in some runs and in others not.
    fn either(mut self, starts: &'static [&'static str]) -> Scenario {
        self.tolerance.either = starts;
        self
    }

    fn window(mut self, slots: u16) -> Scenario {
        self.tolerance.window = slots;
        self
    }

    /// Plays the script against a host; what was seen.
    pub fn play(&self, host: &mut dyn Host) -> Vec<Line> {
        let mut script = Script::new(host, self.setup.peers);
        (self.script)(&mut script);
        script.finish()
    }

    /// What remains different when the unknown phases are those that come closest. One timer after the other is fitted;
    /// what depends on one hardly depends on another.
    pub fn compare_with_model(&self, real: &[Line]) -> Result<(), String> {
        let differ = |phases: &Phases| {
            let mut host = ModelHost::new(&self.setup, *phases);
            trace::compare(real, &self.play(&mut host), &self.tolerance).err()
        };
        let mut phases = Phases::default();
        let Some(mut best) = differ(&phases) else { return Ok(()) };
        for timer in [self.timers, self.timers].concat() {
            let period = *timer.field(&mut Phases::default());
            let mut first = STEP;
            while first <= period {
                let mut candidate = phases;
                *timer.field(&mut candidate) = first;
                match differ(&candidate) {
                    None => return Ok(()),
                    Some(d) if d.lines < best.lines => (best, phases) = (d, candidate),
                    Some(_) => {}
                }
                first += STEP;
            }
        }
        Err(best.text)
    }
}

impl Timer {
    fn field(self, phases: &mut Phases) -> &mut Duration {
        match self {
            Timer::Exchange => &mut phases.exchange,
            Timer::Sweep => &mut phases.sweep,
            Timer::Keepalive => &mut phases.keepalive,
            Timer::Upgrade => &mut phases.upgrade,
            Timer::Watchdog => &mut phases.watchdog,
        }
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    [tunnel::all(), opening::all(), receiving::all(), sending::all(), closing::all()].concat()
}
