//! Replay protection: one window per nonce prefix of a session (spec 02 section 9, recommended form).
//!
//! A peer that drops and derives its half of a session again keeps the key but restarts its counter under a
//! fresh prefix. A window per prefix ("epoch") takes such frames and still refuses every repetition.

use std::collections::BTreeSet;

/// Counters a window remembers behind the highest one.
pub const WINDOW: u64 = 256;
/// Older epochs kept besides the newest.
pub const OLDER_EPOCHS: usize = 4;
/// Epochs in one session before it must be dropped and agreed anew.
pub const MAX_EPOCHS: u32 = 1024;

/// What a single window says about a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before; now recorded.
    Fresh,
    /// Seen before.
    Replay,
    /// Too far behind the highest counter to tell.
    Outside,
}

/// The counters seen under one nonce prefix: the highest, and a ring of bits for the 256 up to it.
#[derive(Debug, Clone, Default)]
pub struct Window {
    highest: u64,
    seen: [u64; 4],
}

impl Window {
    /// Judges an authenticated frame's counter and records it if it is fresh. While the highest counter is 0,
    /// every counter is taken: senders start at 1.
    pub fn check(&mut self, counter: u64) -> Verdict {
        if counter > self.highest {
            self.advance(counter);
        } else if self.highest == 0 {
            // Only counter 0 itself gets here; it is taken every time.
        } else if self.highest - counter >= WINDOW {
            return Verdict::Outside;
        } else if self.bit(counter) {
            return Verdict::Replay;
        }
        let at = (counter % WINDOW) as usize;
        self.seen[at / 64] |= 1 << (at % 64);
        Verdict::Fresh
    }

    fn bit(&self, counter: u64) -> bool {
        let at = (counter % WINDOW) as usize;
        self.seen[at / 64] >> (at % 64) & 1 == 1
    }

    fn advance(&mut self, counter: u64) {
        if counter - self.highest >= WINDOW {
            self.seen = [0; 4];
        } else {
            for skipped in self.highest + 1..counter {
                let at = (skipped % WINDOW) as usize;
                self.seen[at / 64] &= !(1 << (at % 64));
            }
        }
        self.highest = counter;
    }
}

/// An accepted frame's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// It belongs to the newest epoch.
    pub newest: bool,
    /// It opened that epoch.
    pub opened: bool,
}

/// Why an authenticated frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its counter was seen in the newest epoch.
    Replay,
    /// Its counter is 256 or more behind in the newest epoch.
    Outside,
    /// Refused by an older or a retired epoch; says nothing about the session's health.
    OldEpoch,
    /// It would open epoch 1,025.
    TooManyEpochs,
}

#[derive(Debug, Clone)]
struct Epoch {
    prefix: [u8; 4],
    window: Window,
    /// Order of last use, for retirement.
    used: u64,
}

/// All epochs of one session.
#[derive(Debug, Clone, Default)]
pub struct Epochs {
    newest: Option<Epoch>,
    older: Vec<Epoch>,
    retired: BTreeSet<[u8; 4]>,
    started: u32,
    uses: u64,
}

impl Epochs {
    /// Judges an authenticated frame and records it if it is fresh.
    pub fn check(&mut self, prefix: [u8; 4], counter: u64) -> Result<Accepted, Refused> {
        self.uses += 1;
        let uses = self.uses;
        if let Some(newest) = self.newest.as_mut().filter(|e| e.prefix == prefix) {
            newest.used = uses;
            return match newest.window.check(counter) {
                Verdict::Fresh => Ok(Accepted { newest: true, opened: false }),
                Verdict::Replay => Err(Refused::Replay),
                Verdict::Outside => Err(Refused::Outside),
            };
        }
        if let Some(old) = self.older.iter_mut().find(|e| e.prefix == prefix) {
            old.used = uses;
            return match old.window.check(counter) {
                Verdict::Fresh => Ok(Accepted { newest: false, opened: false }),
                Verdict::Replay | Verdict::Outside => Err(Refused::OldEpoch),
            };
        }
        if self.retired.contains(&prefix) {
            return Err(Refused::OldEpoch);
        }
        if self.started >= MAX_EPOCHS {
            return Err(Refused::TooManyEpochs);
        }
        self.open(prefix, counter);
        Ok(Accepted { newest: true, opened: true })
    }

    /// Whether frames of this prefix were accepted in this session and still are.
    pub fn knows(&self, prefix: [u8; 4]) -> bool {
        self.newest.as_ref().is_some_and(|e| e.prefix == prefix)
            || self.older.iter().any(|e| e.prefix == prefix)
    }

    fn open(&mut self, prefix: [u8; 4], counter: u64) {
        self.started += 1;
        let mut window = Window::default();
        // The first counter of an empty window is always fresh.
        window.check(counter);
        let opened = Epoch { prefix, window, used: self.uses };
        let Some(previous) = self.newest.replace(opened) else { return };
        self.older.push(previous);
        if self.older.len() > OLDER_EPOCHS {
            let least = (0..self.older.len()).min_by_key(|i| self.older[*i].used).unwrap_or(0);
            let gone = self.older.swap_remove(least);
            self.retired.insert(gone.prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_ahead_forgets_bits_of_the_ring_it_passes() {
        let mut w = Window::default();
        for c in 1..=256 {
            assert_eq!(w.check(c), Verdict::Fresh);
        }
        assert_eq!(w.check(300), Verdict::Fresh);
        assert_eq!(w.check(299), Verdict::Fresh, "299 shares its bit with 43, which was seen");
        assert_eq!(w.check(299), Verdict::Replay);
        assert_eq!(w.check(45), Verdict::Replay);
        assert_eq!(w.check(44), Verdict::Outside);
        assert_eq!(w.check(u64::MAX), Verdict::Fresh);
        assert_eq!(w.check(u64::MAX - 255), Verdict::Fresh);
        assert_eq!(w.check(u64::MAX - 256), Verdict::Outside);
    }

    #[test]
    fn a_fresh_prefix_opens_an_epoch_and_the_old_one_stays_readable() {
        let mut e = Epochs::default();
        assert_eq!(e.check([1; 4], 7), Ok(Accepted { newest: true, opened: true }));
        assert_eq!(e.check([1; 4], 7), Err(Refused::Replay));
        assert_eq!(e.check([2; 4], 1), Ok(Accepted { newest: true, opened: true }));
        assert_eq!(e.check([2; 4], 2), Ok(Accepted { newest: true, opened: false }));
        assert_eq!(e.check([1; 4], 8), Ok(Accepted { newest: false, opened: false }));
        assert_eq!(e.check([1; 4], 8), Err(Refused::OldEpoch), "faults of old epochs do not count");
    }

    #[test]
    fn the_least_recently_used_of_five_older_epochs_is_retired_for_good() {
        let mut e = Epochs::default();
        for p in 1..=5u8 {
            e.check([p; 4], 1).unwrap();
        }
        e.check([1; 4], 2).unwrap();
        e.check([6; 4], 1).unwrap();
        assert_eq!(e.check([2; 4], 99), Err(Refused::OldEpoch));
        assert!(e.check([1; 4], 3).is_ok(), "recently used, so kept");
    }

    #[test]
    fn the_1025th_epoch_is_refused() {
        let mut e = Epochs::default();
        for p in 0..MAX_EPOCHS {
            e.check(p.to_be_bytes(), 1).unwrap();
        }
        assert_eq!(e.check([0xFF; 4], 1), Err(Refused::TooManyEpochs));
    }
}
