//! How much this node sends to addresses nobody has answered from, to all peers together.
//!
//! Whatever peers, beacons or a registry say, this node must not be made to look like an attacker: not like a flood, and
//! not like a scan. Two bounds hold for every probe, punch and predicted port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Packets per second to unproven addresses. A race of ten addresses has ten packets a round; a range of predicted ports,
/// 64 at once.
pub const RATE: u32 = 100;
/// Packets that may leave at once.
pub const BURST: u32 = 200;
/// Hosts per [`WINDOW`]: below what scan detectors count as a sweep (commonly 100 and more hosts a minute).
pub const HOSTS: usize = 64;
/// How long a host counts.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The two bounds.
#[derive(Debug, Default)]
pub struct Budget {
    tokens: Option<(f64, Instant)>,
    hosts: BTreeMap<IpAddr, Instant>,
    /// Packets not sent because of them.
    pub refused: u64,
}

impl Budget {
    /// One packet to an unproven address. False: it must not be sent.
    pub fn take(&mut self, now: Instant, to: SocketAddr) -> bool {
        let (left, at) = self.tokens.get_or_insert((f64::from(BURST), now));
        let gained = now.saturating_duration_since(*at).as_secs_f64() * f64::from(RATE);
        *left = (*left + gained).min(f64::from(BURST));
        *at = now;
        if *left < 1.0 {
            self.refused += 1;
            return false;
        }
        if !self.hosts.contains_key(&to.ip()) {
            if self.hosts.len() >= HOSTS {
                self.hosts.retain(|_, first| now.saturating_duration_since(*first) < WINDOW);
            }
            if self.hosts.len() >= HOSTS {
                self.refused += 1;
                return false;
            }
            self.hosts.insert(to.ip(), now);
        }
        *left -= 1.0;
        true
    }

    /// Hosts that count now.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u32, port: u16) -> SocketAddr {
        SocketAddr::from((host.to_be_bytes(), port))
    }

    #[test]
    fn a_flood_is_cut_to_the_rate() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let mut sent = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            sent += u32::from(budget.take(now, at(1, 1)));
            sent += u32::from(budget.take(now, at(1, 2)));
        }
        assert!((RATE * 10..=RATE * 10 + BURST).contains(&sent), "{sent}");
    }

    #[test]
    fn a_sweep_ends_at_so_many_hosts_a_minute() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let sent =
            (0..200u32).filter(|n| budget.take(start + Duration::from_millis(20) * *n, at(*n, 1))).count();
        assert_eq!(sent, HOSTS);
        assert!(budget.take(start + Duration::from_secs(5), at(1, 7)), "known hosts go on");
        assert!(budget.take(start + Duration::from_secs(70), at(500, 1)), "later others may");
        assert!(budget.hosts() <= HOSTS);
    }
}
