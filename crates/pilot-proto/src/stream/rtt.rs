//! Round-trip time estimation and the retransmission timeout (spec 03 section 13).

use std::time::{Duration, Instant};

/// Timeout before the first sample.
const INITIAL_RTO: Duration = Duration::from_secs(1);
/// Smallest timeout.
const MIN_RTO: Duration = Duration::from_millis(200);
/// Largest timeout.
pub(super) const MAX_RTO: Duration = Duration::from_secs(10);
/// Smallest share of the variance in the timeout.
const GRANULARITY: Duration = Duration::from_millis(10);
/// How long a minimum is believed before a newer one replaces it.
const MIN_WINDOW: Duration = Duration::from_secs(10);

/// Smoothed round-trip time of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rtt {
    srtt: Option<Duration>,
    rttvar: Duration,
    min: Duration,
    window: Option<(Instant, Duration)>,
}

impl Rtt {
    /// Takes a sample from a packet that was sent once.
    pub(super) fn sample(&mut self, now: Instant, rtt: Duration) {
        if rtt > MAX_RTO && self.srtt.is_some() {
            // A machine slept in between.
            return;
        }
        let rtt = rtt.clamp(Duration::from_micros(1), MAX_RTO);
        match self.srtt {
            None => {
                self.srtt = Some(rtt);
                self.rttvar = rtt / 2;
                self.min = rtt;
            }
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
                self.srtt = Some((srtt * 7 + rtt) / 8);
            }
        }
        self.min = self.min.min(rtt);
        match &mut self.window {
            Some((start, low)) if now.saturating_duration_since(*start) < MIN_WINDOW => {
                *low = (*low).min(rtt)
            }
            Some((_, low)) => {
                self.min = (*low).min(rtt);
                self.window = Some((now, rtt));
            }
            None => self.window = Some((now, rtt)),
        }
    }

    /// The smoothed value, if there was a sample.
    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    pub(super) fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// The smallest recent sample; zero before the first.
    pub(super) fn min(&self) -> Duration {
        self.min
    }

    /// SRTT + max(10 ms, 4 x RTTVAR), from 200 ms to 10 s; 1 s before the first sample.
    pub(super) fn rto(&self) -> Duration {
        match self.srtt {
            None => INITIAL_RTO,
            Some(srtt) => (srtt + GRANULARITY.max(self.rttvar * 4)).clamp(MIN_RTO, MAX_RTO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_follows_the_formula_and_its_bounds() {
        let now = Instant::now();
        let mut rtt = Rtt::default();
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        rtt.sample(now, Duration::from_millis(1));
        assert_eq!(rtt.rto(), Duration::from_millis(200));
        let mut rtt = Rtt::default();
        rtt.sample(now, Duration::from_millis(400));
        assert_eq!(rtt.rto(), Duration::from_millis(1200));
        rtt.sample(now, Duration::from_secs(9));
        assert_eq!(rtt.rto(), Duration::from_secs(10));
    }

    #[test]
    fn the_sleep_of_a_machine_is_no_round_trip() {
        let now = Instant::now();
        let mut rtt = Rtt::default();
        rtt.sample(now, Duration::from_millis(20));
        rtt.sample(now, Duration::from_secs(600));
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(20)));
    }

    #[test]
    fn an_old_minimum_is_replaced() {
        let start = Instant::now();
        let mut rtt = Rtt::default();
        rtt.sample(start, Duration::from_millis(5));
        for second in 1..30 {
            rtt.sample(start + Duration::from_secs(second), Duration::from_millis(50));
        }
        assert_eq!(rtt.min(), Duration::from_millis(50));
    }
}
