//! Rates per source in tables of fixed size, and what counts as one source.

use crate::config::Rate;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rates one table keeps. Sources share them by a keyed hash: a flood from very many addresses can neither grow the
/// table nor fill it and shut newcomers out; it only adds its share to whoever has the same slot by chance.
const SLOTS: usize = 65_536;
/// Slowest rate, per second: keeps times within 64 bits of nanoseconds.
const SLOWEST: f64 = 1e-6;

/// The source a limit counts for: an IPv4 address or an IPv6 /64.
pub(crate) fn source(ip: IpAddr) -> IpAddr {
    cut(ip, 32, 64)
}

/// The network a source is in: an IPv4 /24 or an IPv6 /56. What one party commonly holds many addresses of.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    cut(ip, 24, 56)
}

fn cut(ip: IpAddr, v4: u32, v6: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << (32 - v4)))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << (128 - v6)))),
    }
}

/// Whether `ip` lies in `network`/`prefix`.
pub(crate) fn contains(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    let (net, ip, width) = match (network.to_canonical(), ip.to_canonical()) {
        (IpAddr::V4(n), IpAddr::V4(i)) => (u128::from(n.to_bits()), u128::from(i.to_bits()), 32),
        (IpAddr::V6(n), IpAddr::V6(i)) => (n.to_bits(), i.to_bits(), 128),
        _ => return false,
    };
    let host_bits = width - u32::from(prefix).min(width);
    net.checked_shr(host_bits).unwrap_or(0) == ip.checked_shr(host_bits).unwrap_or(0)
}

/// A token bucket kept as one number: the time at which it will be full again (nanoseconds since the first use).
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Nanoseconds one token takes.
    token: u64,
    /// How far ahead of now a bucket may be booked.
    ahead: u64,
}

impl Pace {
    fn new(rate: Rate) -> Pace {
        let token = 1e9 / rate.per_second.max(SLOWEST);
        // Casts from floating point saturate.
        Pace { token: token as u64, ahead: (token * rate.burst) as u64 }
    }

    /// Takes `cost` tokens. If they are not there, but will be within `patience`, books them and says how long to
    /// wait; else takes none and says how long it would be.
    fn take(self, full_at: &mut u64, now: u64, cost: u32, patience: Duration) -> Result<Duration, Duration> {
        let then = (*full_at).max(now).saturating_add(self.token.saturating_mul(u64::from(cost)));
        let wait = Duration::from_nanos(then.saturating_sub(now).saturating_sub(self.ahead));
        if wait > patience {
            return Err(wait);
        }
        *full_at = then;
        Ok(wait)
    }
}

fn since(start: &mut Option<Instant>, now: Instant) -> u64 {
    // 584 years until it saturates.
    now.saturating_duration_since(*start.get_or_insert(now)).as_nanos() as u64
}

/// One rate for one source.
#[derive(Debug)]
pub(crate) struct Meter {
    pace: Pace,
    full_at: u64,
    start: Option<Instant>,
}

impl Meter {
    pub fn new(rate: Rate) -> Meter {
        Meter { pace: Pace::new(rate), full_at: 0, start: None }
    }

    /// Takes `cost` tokens; `Ok` says how long to wait first, `Err` that it would be longer than `patience`.
    pub fn charge(&mut self, cost: u32, now: Instant, patience: Duration) -> Result<Duration, Duration> {
        let now = since(&mut self.start, now);
        self.pace.take(&mut self.full_at, now, cost, patience)
    }
}

/// One rate for many sources.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    pace: Pace,
    /// Zero is a full bucket, so that memory nobody needs is never touched.
    slots: Box<[u64]>,
    hasher: RandomState,
    start: Option<Instant>,
    key: PhantomData<fn(K)>,
}

impl<K: Hash> Buckets<K> {
    pub fn new(rate: Rate) -> Buckets<K> {
        let slots = vec![0; SLOTS].into_boxed_slice();
        Buckets { pace: Pace::new(rate), slots, hasher: RandomState::new(), start: None, key: PhantomData }
    }

    /// Takes a token of `key`; false if it has none left.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        self.charge(key, 1, now, Duration::ZERO).is_ok()
    }

    /// Takes `cost` tokens of `key`; `Ok` says how long to wait first, `Err` that it would be longer than `patience`.
    pub fn charge(
        &mut self,
        key: K,
        cost: u32,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Duration> {
        let now = since(&mut self.start, now);
        let slot = self.hasher.hash_one(&key) as usize % SLOTS;
        self.pace.take(&mut self.slots[slot], now, cost, patience)
    }
}

/// IP addresses that completed a TCP connection lately: they receive what is sent to them, so they are not spoofed.
/// Approximate and of fixed size: two addresses with one slot displace each other.
#[derive(Debug)]
pub(crate) struct Reached {
    /// Upper half: hash of the address. Lower half: seconds since the start, plus one.
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    start: Instant,
}

/// How long a connection vouches for its address.
const VOUCHED: u64 = 15 * 60;

impl Reached {
    pub fn new(now: Instant) -> Reached {
        let slots = std::iter::repeat_with(AtomicU64::default).take(SLOTS).collect();
        Reached { slots, hasher: RandomState::new(), start: now }
    }

    fn slot(&self, ip: IpAddr, now: Instant) -> (&AtomicU64, u64, u64) {
        let hash = self.hasher.hash_one(ip.to_canonical());
        let secs = now.saturating_duration_since(self.start).as_secs().min(u64::from(u32::MAX) - 1) + 1;
        (&self.slots[hash as usize % SLOTS], hash & !u64::from(u32::MAX), secs)
    }

    /// A connection from there was accepted.
    pub fn note(&self, ip: IpAddr, now: Instant) {
        let (slot, tag, secs) = self.slot(ip, now);
        slot.store(tag | secs, Ordering::Relaxed);
    }

    /// Whether that was so lately.
    pub fn has(&self, ip: IpAddr, now: Instant) -> bool {
        let (slot, tag, secs) = self.slot(ip, now);
        let held = slot.load(Ordering::Relaxed);
        let at = held & u64::from(u32::MAX);
        at != 0 && held & !u64::from(u32::MAX) == tag && secs.saturating_sub(at) < VOUCHED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut b = Buckets::new(Rate { per_second: 2.0, burst: 3.0 });
        assert_eq!((0..5).filter(|_| b.take(1u8, start)).count(), 3);
        assert!(!b.take(1, start + Duration::from_millis(400)));
        assert!(b.take(1, start + Duration::from_millis(1000)));
        assert_eq!(
            (0..9).filter(|_| b.take(1, start + Duration::from_secs(60))).count(),
            3,
            "never above the burst"
        );
        let mut never = Buckets::new(Rate { per_second: 0.0, burst: 2.0 });
        assert_eq!((0..9).filter(|_| never.take(1u8, start)).count(), 2);
        assert!(!never.take(1, start + Duration::from_secs(3600)));
    }

    #[test]
    fn dear_requests_take_more_and_wait_instead_of_failing_as_long_as_patience_lasts() {
        let start = Instant::now();
        let mut m = Meter::new(Rate { per_second: 10.0, burst: 20.0 });
        let patience = Duration::from_secs(2);
        assert_eq!(m.charge(20, start, patience), Ok(NOW));
        assert_eq!(m.charge(5, start, patience), Ok(Duration::from_millis(500)));
        assert_eq!(m.charge(15, start, patience), Ok(patience));
        assert_eq!(m.charge(1, start, patience), Err(Duration::from_millis(2100)));
        // The refused one took nothing.
        assert_eq!(m.charge(1, start + Duration::from_millis(100), patience), Ok(patience));
        assert_eq!(m.charge(20, start + Duration::from_secs(60), NOW), Ok(NOW));
    }

    #[test]
    fn any_number_of_sources_neither_grows_the_table_nor_shuts_a_newcomer_out() {
        let start = Instant::now();
        let mut b = Buckets::new(Rate { per_second: 100.0, burst: 1000.0 });
        // Ten seconds of 65,536 other sources, one datagram each and second.
        for second in 0..10 {
            for source in 0..65_536u32 {
                b.take(source, start + Duration::from_secs(second));
            }
        }
        let newcomers = (100_000..101_000u32).filter(|n| b.take(*n, start + Duration::from_secs(10))).count();
        assert_eq!(newcomers, 1000);
        assert_eq!(b.slots.len(), SLOTS);
    }

    #[test]
    fn a_connection_vouches_for_its_address_for_a_quarter_of_an_hour() {
        let start = Instant::now();
        let reached = Reached::new(start);
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(!reached.has(ip("203.0.113.1"), start));
        reached.note(ip("203.0.113.1"), start);
        assert!(reached.has(ip("::ffff:203.0.113.1"), start + Duration::from_secs(VOUCHED - 1)));
        assert!(!reached.has(ip("203.0.113.2"), start));
        assert!(!reached.has(ip("203.0.113.1"), start + Duration::from_secs(VOUCHED)));
    }

    #[test]
    fn sources_and_their_networks() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(source(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(network(ip("2001:db8:1:234:3:4:5:6")), ip("2001:db8:1:200::"));
        assert_eq!(source(ip("::ffff:203.0.113.7")), ip("203.0.113.7"));
        assert_eq!(network(ip("203.0.113.7")), ip("203.0.113.0"));
    }

    #[test]
    fn prefixes_match_their_network_only() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(contains(ip("10.0.0.0"), 8, ip("10.255.1.2")));
        assert!(contains(ip("10.0.0.0"), 8, ip("::ffff:10.1.1.1")));
        assert!(!contains(ip("10.0.0.0"), 8, ip("11.0.0.1")));
        assert!(contains(ip("0.0.0.0"), 0, ip("8.8.8.8")));
        assert!(!contains(ip("0.0.0.0"), 0, ip("2001:db8::1")));
        assert!(contains(ip("2001:db8::"), 32, ip("2001:db8:1::1")));
        assert!(contains(ip("10.0.0.1"), 200, ip("10.0.0.1")), "a prefix longer than the address is exact");
    }
}
