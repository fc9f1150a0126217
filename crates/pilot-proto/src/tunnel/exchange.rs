//! When a key exchange is sent again, and when it is given up (spec 02 section 11).
//!
//! Towards a peer we want to reach, the first tries follow each other fast, still well inside the five frames
//! per second a receiver takes from one source. A peer that merely asked for our key gets it at the calm pace of
//! the reference, because nothing has proven yet that the question was genuine.

use std::time::{Duration, Instant};

/// Distance of retransmissions once the fast ones are over.
pub const RETRANSMIT: Duration = Duration::from_secs(4);
/// Sends at the calm pace before giving up.
pub const CALM_ATTEMPTS: u32 = 6;
/// Distances after the first sends at the eager pace, milliseconds.
const EAGER_MS: [u64; 4] = [250, 500, 1_000, 2_000];
/// Sends at the eager pace before giving up: four fast ones, then five four seconds apart (23.75 s in all).
pub const EAGER_ATTEMPTS: u32 = 9;
/// Sends of a greeting: 0, 0.25, 0.75 and 1.75 s. Then it is over without further consequence.
pub const GREETING_ATTEMPTS: u32 = 4;
/// After giving up, packets to the peer are refused for this long.
pub const COOLDOWN: Duration = Duration::from_secs(5);
/// An exchange with the same key within this time of the last is a copy that came another way.
pub const DUPLICATE: Duration = Duration::from_millis(250);
/// A same-key exchange is answered only if nothing was decrypted for longer than this.
pub const SILENT: Duration = Duration::from_secs(6);
/// Distance between two answers to same-key exchanges of one peer.
pub const ANSWER_EVERY: Duration = Duration::from_secs(1);
/// Distance between two exchanges sent because of unreadable frames of one peer.
pub const UNREADABLE_EVERY: Duration = Duration::from_secs(3);
/// X25519 keys remembered as abandoned by a peer; a replayed old exchange cannot bring one back.
pub const MAX_ABANDONED: usize = 8;

/// How fast an exchange is repeated, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// We want to reach the peer.
    Eager,
    /// It asked for our key, and nothing has proven that it was the one who asked.
    Calm,
    /// We have restarted and tell it, should it be there.
    Greeting,
}

/// An exchange that waits for the peer's answer.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// Sends so far.
    pub attempts: u32,
    pace: Pace,
    /// When to send again or give up.
    pub next: Instant,
}

impl Exchange {
    /// An exchange about to be sent for the first time.
    pub fn new(pace: Pace, now: Instant) -> Exchange {
        Exchange { attempts: 0, pace, next: now }
    }

    /// We want to reach this peer now: the exchange goes on at the eager pace, with the next send soon.
    pub fn hurry(&mut self, now: Instant) {
        if self.pace != Pace::Eager {
            self.pace = Pace::Eager;
            self.attempts = self.attempts.min(1);
            self.next = self.next.min(now + Duration::from_millis(EAGER_MS[0]));
        }
    }

    /// It is we who want to talk.
    pub fn eager(&self) -> bool {
        self.pace != Pace::Calm
    }

    /// Counts a send and sets the next one.
    pub fn sent(&mut self, now: Instant) {
        let fast = EAGER_MS.get(self.attempts as usize).filter(|_| self.pace != Pace::Calm);
        self.attempts = self.attempts.saturating_add(1);
        self.next = now + fast.map_or(RETRANSMIT, |ms| Duration::from_millis(*ms));
    }

    /// All sends were made.
    pub fn exhausted(&self) -> bool {
        self.attempts
            >= match self.pace {
                Pace::Eager => EAGER_ATTEMPTS,
                Pace::Calm => CALM_ATTEMPTS,
                Pace::Greeting => GREETING_ATTEMPTS,
            }
    }

    /// It only greets.
    pub fn greets(&self) -> bool {
        self.pace == Pace::Greeting
    }
}
