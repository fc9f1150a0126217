//! Rate limits and bounded tables with expiry.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Entries of any table here (spec 02 section 17).
pub const TRACKED: usize = 4096;
/// Key exchange frames accepted per source: burst and refill per second.
pub const EXCHANGE_RATE: u32 = 5;
/// A source idle for this long may be forgotten when its table is full.
const IDLE: Duration = Duration::from_secs(10);
/// A full table is searched for stale entries at most this often, so that a flood cannot buy a scan per packet.
const SWEEP: Duration = Duration::from_millis(500);

/// A token bucket that starts full and is refilled in whole tokens.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: u32,
    refilled: Instant,
}

impl Bucket {
    /// A full bucket of `rate` tokens.
    pub fn new(rate: u32, now: Instant) -> Bucket {
        Bucket { tokens: rate, refilled: now }
    }

    /// Takes a token, if there is one. `rate` is both the capacity and the refill per second.
    pub fn take(&mut self, rate: u32, now: Instant) -> bool {
        let step = Duration::from_secs(1) / rate.max(1);
        let elapsed = now.saturating_duration_since(self.refilled);
        let whole = u32::try_from(elapsed.as_nanos() / step.as_nanos().max(1)).unwrap_or(u32::MAX);
        if whole > 0 {
            self.tokens = self.tokens.saturating_add(whole).min(rate);
            self.refilled = if self.tokens == rate { now } else { self.refilled + step * whole };
        }
        let taken = self.tokens > 0;
        self.tokens -= u32::from(taken);
        taken
    }
}

/// A bucket of [`EXCHANGE_RATE`] per source, for at most [`TRACKED`] sources; further sources are refused.
#[derive(Debug)]
pub struct RateTable<K> {
    buckets: BTreeMap<K, Bucket>,
    swept: Option<Instant>,
}

impl<K> Default for RateTable<K> {
    fn default() -> Self {
        RateTable { buckets: BTreeMap::new(), swept: None }
    }
}

impl<K: Ord + Copy> RateTable<K> {
    /// Whether one more frame of this source may be processed.
    pub fn allow(&mut self, source: K, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.take(EXCHANGE_RATE, now);
        }
        if self.buckets.len() >= TRACKED && due(&mut self.swept, now) {
            self.buckets.retain(|_, b| now.saturating_duration_since(b.refilled) < IDLE);
        }
        if self.buckets.len() >= TRACKED {
            return false;
        }
        let mut bucket = Bucket::new(EXCHANGE_RATE, now);
        let allowed = bucket.take(EXCHANGE_RATE, now);
        self.buckets.insert(source, bucket);
        allowed
    }
}

fn due(swept: &mut Option<Instant>, now: Instant) -> bool {
    if swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
        return false;
    }
    *swept = Some(now);
    true
}

/// Keys that are marked until an instant; at most [`TRACKED`] of them.
#[derive(Debug)]
pub struct Marks<K> {
    until: BTreeMap<K, Instant>,
    swept: Option<Instant>,
}

impl<K> Default for Marks<K> {
    fn default() -> Self {
        Marks { until: BTreeMap::new(), swept: None }
    }
}

impl<K: Ord + Copy> Marks<K> {
    /// The key's mark has not expired.
    pub fn active(&self, key: K, now: Instant) -> bool {
        self.until.get(&key).is_some_and(|until| now < *until)
    }

    /// Marks a key until then. False: the table is full of unexpired marks and this one was not recorded.
    pub fn set(&mut self, key: K, now: Instant, until: Instant) -> bool {
        if !self.until.contains_key(&key) && self.until.len() >= TRACKED {
            if due(&mut self.swept, now) {
                self.until.retain(|_, until| now < *until);
            }
            if self.until.len() >= TRACKED {
                return false;
            }
        }
        self.until.insert(key, until);
        true
    }

    /// Once per `every` and key: true and marked, or false if too early or the table is full.
    pub fn once(&mut self, key: K, now: Instant, every: Duration) -> bool {
        !self.active(key, now) && self.set(key, now, now + every)
    }

    /// Removes a key's mark.
    pub fn clear(&mut self, key: K) {
        self.until.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_five_at_once_and_one_more_every_200_ms() {
        let t = Instant::now();
        let mut table = RateTable::default();
        assert_eq!((0..20).filter(|_| table.allow(1u32, t)).count(), 5);
        assert!(!table.allow(1, t + Duration::from_millis(199)));
        assert!(table.allow(1, t + Duration::from_millis(200)));
        assert!(!table.allow(1, t + Duration::from_millis(399)));
        assert!(table.allow(1, t + Duration::from_millis(400)));
        assert_eq!((0..20).filter(|_| table.allow(1, t + Duration::from_secs(60))).count(), 5);
    }

    #[test]
    fn the_4097th_source_is_refused_until_others_are_idle() {
        let t = Instant::now();
        let mut table = RateTable::default();
        for source in 0..TRACKED {
            assert!(table.allow(source, t));
        }
        assert!(!table.allow(TRACKED, t + Duration::from_secs(9)));
        assert!(table.allow(TRACKED, t + Duration::from_secs(10)));
    }

    #[test]
    fn marks_expire_and_are_bounded() {
        let t = Instant::now();
        let mut marks = Marks::default();
        let second = Duration::from_secs(1);
        assert!(marks.once(0usize, t, second));
        assert!(!marks.once(0, t + second / 2, second));
        assert!(marks.once(0, t + second, second));
        for key in 1..TRACKED {
            assert!(marks.set(key, t, t + 3 * second));
        }
        assert!(!marks.set(TRACKED, t + second, t + 3 * second));
        assert!(marks.set(TRACKED, t + 3 * second, t + 4 * second));
    }
}
