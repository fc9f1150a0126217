//! Token buckets as the reference counts them: tokens are added in whole numbers, and the fraction of time left over
//! is lost whenever at least one is added (spec 03 section 6.2).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    tokens: u32,
    burst: u32,
    per_second: u32,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant, burst: u32, per_second: u32) -> Bucket {
        Bucket { tokens: burst, burst, per_second, filled: now }
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_micros();
        let add = (elapsed * u128::from(self.per_second) / 1_000_000).min(u128::from(u32::MAX)) as u32;
        if add > 0 {
            self.tokens = self.tokens.saturating_add(add).min(self.burst);
            self.filled = now;
        }
        let got = self.tokens > 0;
        self.tokens -= u32::from(got);
        got
    }
}

/// One bucket per source; a full table refuses new sources.
#[derive(Debug, Clone)]
pub(crate) struct Buckets<K> {
    map: BTreeMap<K, Bucket>,
    burst: u32,
    per_second: u32,
}

/// Sources a table tracks.
const MAX_SOURCES: usize = 4096;
/// A source that was quiet for this long may be forgotten.
const FORGET: Duration = Duration::from_secs(10);

impl<K: Ord> Buckets<K> {
    pub(crate) fn new(burst: u32, per_second: u32) -> Buckets<K> {
        Buckets { map: BTreeMap::new(), burst, per_second }
    }

    pub(crate) fn take(&mut self, now: Instant, source: K) -> bool {
        if !self.map.contains_key(&source) && self.map.len() >= MAX_SOURCES {
            self.map.retain(|_, b| now.saturating_duration_since(b.filled) < FORGET);
            if self.map.len() >= MAX_SOURCES {
                return false;
            }
        }
        let (burst, per_second) = (self.burst, self.per_second);
        self.map.entry(source).or_insert_with(|| Bucket::new(now, burst, per_second)).take(now)
    }
}
