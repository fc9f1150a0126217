//! How far apart keepalives on a direct path are: as far as the NATs on it have shown that they remember it.

use std::time::{Duration, Instant};

/// Longest distance: below what nearly every NAT grants (RFC 4787 asks for two minutes; many give 30 s).
pub const LONGEST: Duration = Duration::from_secs(25);
/// Shortest distance.
const SHORTEST: Duration = Duration::from_secs(5);
/// Silences in a row that the path outlived, after which longer ones are tried again.
const TRUST: u32 = 20;

/// What the silences of a path have taught.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    every: Duration,
    /// When something last came or went.
    used: Option<Instant>,
    /// Something went out after so long a silence, and nothing has come since.
    asked: Option<Duration>,
    outlived: u32,
    /// The shortest silence after which the path was dead.
    fatal: Option<Duration>,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { every: LONGEST, used: None, asked: None, outlived: 0, fatal: None }
    }
}

impl Keepalive {
    /// Silence after which a keepalive is due, 5 to 25 s.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// A frame leaves on the path.
    pub fn sent(&mut self, now: Instant) {
        if let Some(used) = self.used.replace(now) {
            let silence = now.saturating_duration_since(used);
            self.asked = self.asked.or((silence >= SHORTEST).then_some(silence));
        }
    }

    /// An authentic frame, or an answer to a probe, came on it.
    pub fn heard(&mut self, now: Instant) {
        self.used = Some(now);
        if self.asked.take().is_none() {
            return;
        }
        self.outlived += 1;
        if self.outlived >= TRUST {
            self.outlived = 0;
            let longer = (self.every * 3 / 2).min(LONGEST);
            if self.fatal.is_none_or(|fatal| longer < fatal) {
                self.every = longer;
            }
        }
    }

    /// The path was given up. If it had been silent before, a NAT may have forgotten it meanwhile.
    pub fn lost(&mut self) {
        self.used = None;
        let Some(silence) = self.asked.take() else { return };
        self.outlived = 0;
        self.fatal = Some(self.fatal.map_or(silence, |fatal| fatal.min(silence)));
        self.every = (silence / 2).clamp(SHORTEST, self.every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A path with keepalives and nothing else, both answered unless the silence was longer than the NATs remember.
    fn distances(life: Duration, times: usize) -> (Vec<u64>, usize) {
        let (mut path, mut now, mut losses) = (Keepalive::default(), Instant::now(), 0);
        path.heard(now);
        let mut distances = Vec::new();
        for _ in 0..times {
            let silence = path.every();
            now += silence;
            path.sent(now);
            if silence < life {
                path.heard(now);
            } else {
                path.lost();
                losses += 1;
                // Opened anew.
                path.heard(now);
            }
            distances.push(path.every().as_secs());
        }
        (distances, losses)
    }

    #[test]
    fn a_nat_that_remembers_for_half_a_minute_changes_nothing() {
        assert_eq!(distances(30 * SECOND, 100), (vec![25; 100], 0));
    }

    #[test]
    fn a_nat_that_forgets_early_is_met_two_or_three_times_and_then_no_more() {
        let (seen, losses) = distances(15 * SECOND, 200);
        assert_eq!((seen[0], seen[199], losses), (12, 14, 2));
        let (seen, losses) = distances(8 * SECOND, 200);
        assert_eq!((seen[1], seen[199], losses), (6, 7, 3));
    }

    #[test]
    fn a_path_lost_in_the_midst_of_traffic_says_nothing_of_nats() {
        let (mut path, now) = (Keepalive::default(), Instant::now());
        path.heard(now);
        path.sent(now + SECOND);
        path.lost();
        assert_eq!(path.every(), LONGEST);
    }

    #[test]
    fn after_twenty_silences_outlived_a_longer_one_is_tried_if_it_was_not_fatal() {
        let (mut path, mut now) = (Keepalive::default(), Instant::now());
        path.heard(now);
        now += 16 * SECOND;
        path.sent(now);
        path.lost();
        assert_eq!(path.every(), 8 * SECOND);
        for _ in 0..TRUST {
            path.heard(now);
            now += path.every();
            path.sent(now);
            path.heard(now);
        }
        assert_eq!(path.every(), 12 * SECOND);
    }
}
