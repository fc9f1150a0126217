//! Path MTU discovery against any order of events: traffic, answers late and forged, doubts, routers, the system.

use crate::input::Input;
use pilot_proto::path::Mtu;
use std::time::{Duration, Instant};

/// Operations of one input.
const MAX_OPS: usize = 500;
/// Probes in one go.
const MAX_PROBES: usize = 12;
/// Runs of the timer at one time.
const MAX_RUNS: usize = 10;
/// Timers until a path comes to rest.
const MAX_TIMERS: usize = 100;

struct Rig {
    now: Instant,
    path: Mtu,
    floor: usize,
    tokens: u64,
    /// Probes sent, newest last.
    asked: Vec<(usize, u64)>,
    /// Sizes in use that are justified: where it began, and what was answered for.
    proven: Vec<usize>,
}

impl Rig {
    fn run_timers(&mut self) {
        let mut runs = 0;
        while self.path.deadline().is_some_and(|at| at <= self.now) {
            let tokens = &mut self.tokens;
            let due = self.path.tick(self.now, || {
                *tokens += 1;
                *tokens
            });
            assert!(due.probes.len() <= MAX_PROBES, "{due:?}");
            assert!(due.probes.iter().all(|(size, _)| *size > self.floor), "{due:?}");
            assert!(!due.fell || self.path.size() == self.floor, "it falls to the floor");
            self.asked.extend(due.probes);
            runs += 1;
            assert!(runs < MAX_RUNS, "the timer runs all the time");
        }
        assert!(self.proven.contains(&self.path.size()), "{} was never answered for", self.path.size());
        assert!(self.path.most() >= self.path.size());
    }
}

/// A series of operations on one path.
pub fn mtu(input: &[u8]) {
    play(input);
}

/// The target; returns the largest size that was in use.
fn play(input: &[u8]) -> usize {
    let mut input = Input::new(input);
    let now = Instant::now();
    let kind = input.u8();
    let floor = if kind & 1 == 0 { 1222 } else { 1231 };
    let headers = if kind & 2 == 0 { 28 } else { 48 };
    let path = match kind & 4 {
        0 => Mtu::new(now, floor, headers),
        _ => Mtu::known(now, floor, headers, 61_510),
    };
    let proven = vec![floor, path.size()];
    let mut rig = Rig { now, path, floor, tokens: 0, asked: Vec::new(), proven };
    let mut largest = 0;
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        let before = rig.path.size();
        let op = input.u8();
        match op % 8 {
            0 => drop(rig.path.sent(rig.now, rig.path.size())),
            1 => rig.now += Duration::from_millis(u64::from(input.u8()) * 4),
            2 => {
                let back = usize::from(input.u8()) + 1;
                if let Some((size, token)) = rig.asked.len().checked_sub(back).map(|at| rig.asked[at]) {
                    rig.proven.push(size);
                    rig.path.answered(rig.now, token);
                }
            }
            3 => drop(rig.path.doubt(rig.now, Duration::from_millis(input.u8().into()))),
            4 => drop(rig.path.hint(rig.now, input.u16().into())),
            5 => drop(rig.path.refuse(rig.now, input.u16().into())),
            6 => drop(rig.path.revisit(rig.now)),
            _ => {
                rig.path.answered(rig.now, u64::MAX - u64::from(input.u8()));
                rig.now += Duration::from_secs(u64::from(input.u8()) * 4);
            }
        }
        assert!(op % 8 == 2 || rig.path.size() <= before, "only an answer raises the size");
        rig.run_timers();
        largest = largest.max(rig.path.size());
    }
    for _ in 0..MAX_TIMERS {
        let Some(at) = rig.path.deadline() else { return largest };
        rig.now = rig.now.max(at);
        rig.run_timers();
    }
    panic!("a search has no end");
}

#[cfg(test)]
mod tests {
    use super::play;

    #[test]
    fn the_corpus_reaches_the_sizes_it_is_about() {
        let seed =
            |name| std::fs::read(format!("{}/../../fuzz/corpus/mtu/{name}", env!("CARGO_MANIFEST_DIR")));
        for (name, largest) in [
            ("ethernet", 1472),
            ("jumbo", 8972),
            ("black-hole", 1472),
            ("router", 1372),
            ("loopback", 61_510),
        ] {
            assert_eq!(play(&seed(name).expect("seed")), largest, "{name}");
        }
    }
}
