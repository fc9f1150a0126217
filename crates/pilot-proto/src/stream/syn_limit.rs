//! Rate limits on incoming SYNs (spec 03 section 6.2).

use crate::NodeId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// SYNs one source may send at once.
const SOURCE_BURST: u32 = 64;
/// SYNs one source may send per second after that.
const SOURCE_RATE: u32 = 10;
/// Sources tracked; for a further one another is forgotten.
const MAX_SOURCES: usize = 4096;
/// A source is forgotten when its bucket was not refilled for this long.
const FORGET: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    refilled: Instant,
}

impl Bucket {
    /// Whole tokens only; the fraction left over is lost.
    fn refill(&mut self, now: Instant, rate: u32, burst: u32) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let more = (elapsed.as_secs_f64() * f64::from(rate)).min(f64::from(burst)) as u32;
        if more > 0 {
            self.tokens = (self.tokens + more).min(burst);
            self.refilled = now;
        }
    }

    fn take(&mut self) -> bool {
        let taken = self.tokens > 0;
        self.tokens -= u32::from(taken);
        taken
    }
}

/// Buckets per source and for all sources together.
#[derive(Debug)]
pub(super) struct SynLimit {
    sources: HashMap<NodeId, Bucket>,
    total: Option<Bucket>,
    rate: u32,
    swept: Option<Instant>,
}

impl SynLimit {
    /// `rate`: SYNs per second from all sources together; 0: no limit.
    pub(super) fn new(rate: u32) -> SynLimit {
        SynLimit { sources: HashMap::new(), total: None, rate, swept: None }
    }

    /// Whether a SYN of this source may be answered.
    pub(super) fn admit(&mut self, now: Instant, source: NodeId) -> bool {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1)) {
                self.swept = Some(now);
                self.sources.retain(|_, b| now.saturating_duration_since(b.refilled) < FORGET);
            }
            // Any one gives way: it gets a fresh bucket when it comes again, and the bucket of all bounds the sum.
            if self.sources.len() >= MAX_SOURCES
                && let Some(any) = self.sources.keys().next().copied()
            {
                self.sources.remove(&any);
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { tokens: SOURCE_BURST, refilled: now });
        bucket.refill(now, SOURCE_RATE, SOURCE_BURST);
        if !bucket.take() {
            return false;
        }
        if self.rate == 0 {
            return true;
        }
        let total = self.total.get_or_insert(Bucket { tokens: self.rate, refilled: now });
        total.refill(now, self.rate, self.rate);
        total.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_burst_of_64_then_10_per_second() {
        let now = Instant::now();
        let mut limit = SynLimit::new(100);
        assert_eq!((0..150).filter(|_| limit.admit(now, 1)).count(), 64);
        let later = now + Duration::from_millis(2200);
        assert_eq!((0..150).filter(|_| limit.admit(later, 1)).count(), 22);
    }

    #[test]
    fn all_sources_share_100_per_second() {
        let now = Instant::now();
        let mut limit = SynLimit::new(100);
        assert_eq!((0..300).filter(|i| limit.admit(now, i % 10)).count(), 100);
        let mut unlimited = SynLimit::new(0);
        assert_eq!((0..300).filter(|i| unlimited.admit(now, i % 10)).count(), 300);
    }

    #[test]
    fn the_table_of_sources_is_bounded_and_shuts_no_newcomer_out() {
        let now = Instant::now();
        let mut limit = SynLimit::new(0);
        for source in 0..MAX_SOURCES as u32 {
            assert!(limit.admit(now, source));
        }
        assert!(limit.admit(now, 1_000_000));
        assert_eq!(limit.sources.len(), MAX_SOURCES);
        assert!(limit.admit(now + FORGET, 2_000_000));
        assert_eq!(limit.sources.len(), 1, "idle sources are forgotten");
    }
}
