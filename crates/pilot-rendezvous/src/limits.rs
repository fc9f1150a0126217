//! Token buckets per source, in bounded tables.

use crate::config::Rate;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// Most sources one table tracks. When it is full, idle sources are forgotten; if none is idle, new sources are
/// refused: a table under attack does not grow.
const MAX_SOURCES: usize = 65_536;

/// Least time between two sweeps of a full table.
const SWEEP_SECS: f64 = 1.0;

/// The source a limit counts for: an IPv4 address or an IPv6 /64.
pub(crate) fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
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

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// One rate for many sources.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    table: HashMap<K, Bucket>,
    swept: Option<Instant>,
}

impl<K: Eq + Hash + Copy> Buckets<K> {
    pub fn new(rate: Rate) -> Buckets<K> {
        Buckets { rate, table: HashMap::new(), swept: None }
    }

    fn level(rate: Rate, bucket: Bucket, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * rate.per_second;
        (bucket.tokens + gained).min(rate.burst)
    }

    /// Takes a token of `key`; false if it has none left.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        let rate = self.rate;
        if let Some(bucket) = self.table.get_mut(&key) {
            bucket.tokens = Self::level(rate, *bucket, now);
            bucket.filled = now;
            let granted = bucket.tokens >= 1.0;
            if granted {
                bucket.tokens -= 1.0;
            }
            return granted;
        }
        if self.table.len() >= MAX_SOURCES {
            self.sweep(now);
        }
        if rate.burst < 1.0 || self.table.len() >= MAX_SOURCES {
            return false;
        }
        self.table.insert(key, Bucket { tokens: rate.burst - 1.0, filled: now });
        true
    }

    /// Forgets sources whose bucket is full again.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.saturating_duration_since(at).as_secs_f64() < SWEEP_SECS) {
            return;
        }
        self.swept = Some(now);
        let rate = self.rate;
        self.table.retain(|_, b| Self::level(rate, *b, now) < rate.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut b = Buckets::new(Rate { per_second: 2.0, burst: 3.0 });
        assert_eq!((0..5).filter(|_| b.take(1u8, start)).count(), 3);
        assert!(!b.take(1, start + Duration::from_millis(400)));
        assert!(b.take(1, start + Duration::from_millis(1000)));
        assert!(b.take(2, start), "sources are independent");
        assert_eq!(
            (0..9).filter(|_| b.take(1, start + Duration::from_secs(60))).count(),
            3,
            "never above the burst"
        );
    }

    #[test]
    fn a_full_table_refuses_new_sources_until_old_ones_are_idle() {
        let start = Instant::now();
        let mut b = Buckets::new(Rate { per_second: 1.0, burst: 2.0 });
        for source in 0..MAX_SOURCES as u32 {
            assert!(b.take(source, start));
        }
        assert!(!b.take(u32::MAX, start));
        assert!(b.take(u32::MAX, start + Duration::from_secs(2)));
        assert!(b.table.len() <= MAX_SOURCES);
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
        assert_eq!(source(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
    }
}
