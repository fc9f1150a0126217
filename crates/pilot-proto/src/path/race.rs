//! When the addresses of a peer are probed: a race of all of them, and its repetition (RECORDS of the field: the first
//! attempt decides, so it is the best informed, and later ones are rare).

use std::time::{Duration, Instant};

/// Distances before each round of probes. The other side begins up to half a round trip later, and its NAT lets in nothing
/// before that.
const ROUNDS_MS: [u64; 6] = [0, 100, 200, 300, 400, 1_000];
/// Rounds of a race that is decided: the others have had their chance.
const DECIDED: usize = 3;
/// Distances of races while the relay is all there is, in seconds; the last repeats.
const AGAIN_SECS: [u64; 6] = [2, 4, 8, 15, 15, 30];
/// Distance of looks for a better way while there is a direct one.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A race under way.
#[derive(Debug, Clone, Copy)]
pub struct Race {
    round: usize,
    /// Next round.
    pub next: Instant,
}

impl Race {
    /// All rounds.
    pub fn new(now: Instant) -> Race {
        Race { round: 0, next: now }
    }

    /// Begins after `wait`.
    pub fn after(now: Instant, wait: Duration) -> Race {
        Race { next: now + wait, ..Race::new(now) }
    }

    /// One round only: is there anything better?
    pub fn look(now: Instant) -> Race {
        Race { round: ROUNDS_MS.len() - 1, ..Race::new(now) }
    }

    /// A round is sent. False: it was the last.
    pub fn sent(&mut self, now: Instant, decided: bool) -> bool {
        self.round += 1;
        match ROUNDS_MS.get(self.round) {
            Some(ms) if !decided || self.round < DECIDED => {
                self.next = now + Duration::from_millis(*ms);
                true
            }
            _ => false,
        }
    }
}

/// Distance of the race after this many that failed.
pub fn again(failed: u32) -> Duration {
    let index = (failed as usize).min(AGAIN_SECS.len() - 1);
    Duration::from_secs(AGAIN_SECS[index])
}
