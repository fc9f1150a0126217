//! Rate limits and bounded tables with expiry.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Marks kept of one kind (spec 02 section 17).
pub const TRACKED: usize = 4096;
/// Key exchange frames accepted per source: burst and refill per second.
pub const EXCHANGE_RATE: u32 = 5;
/// Frames of strangers taken per second from one network ([`prefix`]).
pub const PREFIX_RATE: u32 = 64;
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

/// A bucket that is made when it is first needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget(Option<Bucket>);

impl Budget {
    /// Takes a token, if there is one; see [`Bucket::take`].
    pub fn take(&mut self, rate: u32, now: Instant) -> bool {
        self.0.get_or_insert_with(|| Bucket::new(rate, now)).take(rate, now)
    }
}

/// Slots of [`Sources`] and [`Recent`].
pub const SLOTS: usize = 8192;

/// Rate limits of sources that nothing vouches for. The table has a fixed number of slots and a source falls into one by
/// a keyed hash, so that no flood can fill it: beyond the slots, sources share, and who is not flooded together with an
/// attacker finds its bucket full. A look-up costs the same whatever came before.
#[derive(Debug)]
pub struct Sources {
    seed: u64,
    /// Empty until the first source comes.
    buckets: Vec<Budget>,
}

/// The slot of a key.
fn slot(seed: u64, key: impl Hash) -> usize {
    let mut hasher = std::hash::DefaultHasher::new();
    seed.hash(&mut hasher);
    key.hash(&mut hasher);
    // Less than SLOTS.
    (hasher.finish() % SLOTS as u64) as usize
}

impl Sources {
    /// `seed` must be secret: who knows it can aim at the slot of another.
    pub fn new(seed: u64) -> Sources {
        Sources { seed, buckets: Vec::new() }
    }

    /// Whether one more frame of this source may be processed: `rate` at once and per second. What is counted apart must
    /// have keys that differ.
    pub fn allow(&mut self, source: impl Hash, rate: u32, now: Instant) -> bool {
        if self.buckets.is_empty() {
            self.buckets.resize(SLOTS, Budget::default());
        }
        let at = slot(self.seed, source);
        self.buckets.get_mut(at).is_some_and(|bucket| bucket.take(rate, now))
    }
}

/// The network of an address that one owner usually has: /24 or /56.
pub fn prefix(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => u64::from(u32::from(ip) >> 8),
        // Bit 63 tells it from a version 4 prefix.
        IpAddr::V6(ip) => ((u128::from(ip) >> 72) as u64) | 1 << 63,
    }
}

/// What was done for a key a short while ago. When two keys fall into one slot the newer one is remembered, so that no
/// flood can fill it; then something may be done too often, which a [`Budget`] must bound.
#[derive(Debug)]
pub struct Recent<K> {
    seed: u64,
    /// Empty until the first key comes.
    slots: Vec<Option<(K, Instant)>>,
}

impl<K: Hash + Eq + Copy> Recent<K> {
    /// `seed` must be secret.
    pub fn new(seed: u64) -> Recent<K> {
        Recent { seed, slots: Vec::new() }
    }

    /// Once per `every` and key: true and remembered, or false if too early.
    pub fn once(&mut self, key: K, now: Instant, every: Duration) -> bool {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, None);
        }
        if self.active(key, now, every) {
            return false;
        }
        if let Some(slot) = self.slots.get_mut(slot(self.seed, key)) {
            *slot = Some((key, now));
        }
        true
    }

    /// It was done less than `every` ago.
    pub fn active(&self, key: K, now: Instant, every: Duration) -> bool {
        let slot = self.slots.get(slot(self.seed, key)).copied().flatten();
        slot.is_some_and(|(of, at)| of == key && now.saturating_duration_since(at) < every)
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
        let mut table = Sources::new(1);
        let mut allow = |at| table.allow(1u32, EXCHANGE_RATE, at);
        assert_eq!((0..20).filter(|_| allow(t)).count(), 5);
        assert!(!allow(t + Duration::from_millis(199)));
        assert!(allow(t + Duration::from_millis(200)));
        assert!(!allow(t + Duration::from_millis(399)));
        assert!(allow(t + Duration::from_millis(400)));
        assert_eq!((0..20).filter(|_| allow(t + Duration::from_secs(60))).count(), 5);
    }

    #[test]
    fn a_flood_of_sources_takes_no_more_room_and_leaves_most_newcomers_theirs() {
        let t = Instant::now();
        let mut table = Sources::new(7);
        // As many attackers as there are slots, each sending all it can.
        for source in 0..SLOTS as u32 {
            for _ in 0..20 {
                table.allow(("flood", source), EXCHANGE_RATE, t);
            }
        }
        assert_eq!(table.buckets.len(), SLOTS);
        let served = (0..1000).filter(|n| table.allow(("new", *n), EXCHANGE_RATE, t)).count();
        // 1/e of the slots are empty when as many balls as slots were thrown.
        assert!((300..450).contains(&served), "{served}");
        let later = t + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|n| table.allow(("later", *n), 64, later)).count(), 1000);
    }

    #[test]
    fn networks_are_24_and_56_bits_wide() {
        let of = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.255"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:12ff::1"), of("2001:db8:0:1234:5::2"));
        assert_ne!(of("2001:db8:0:1200::1"), of("2001:db8:0:1300::1"));
        assert_ne!(of("::1"), of("0.0.0.0"));
    }

    #[test]
    fn recent_keys_are_refused_and_a_flood_of_others_does_not_refuse_new_ones() {
        let t = Instant::now();
        let every = Duration::from_secs(3);
        let mut recent = Recent::new(3);
        assert!(recent.once(1u32, t, every));
        assert!(!recent.once(1, t + Duration::from_millis(2_999), every));
        assert!(recent.once(1, t + every, every));
        assert_eq!((100..50_000u32).filter(|key| recent.once(*key, t + every, every)).count(), 49_900);
        assert_eq!(recent.slots.len(), SLOTS);
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
