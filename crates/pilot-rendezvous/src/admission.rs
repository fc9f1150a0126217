//! Which connections the registry holds: places per source and network, and who gives way when all are taken.

use crate::config::Limits;
use crate::limits::{Buckets, network, source};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A connection's place in the order of use is renewed at most this often.
const RENEW: Duration = Duration::from_secs(5);

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its source or network opens too many per second.
    Rate,
    /// Its source or network holds its share.
    Share,
    /// All places are taken by connections with a better claim.
    Full,
}

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub refused_rate: u64,
    pub refused_share: u64,
    pub refused_full: u64,
    pub evicted: u64,
}

/// Whether a connection has shown that it speaks for a node. Those that have not give way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Stranger = 0,
    Proven = 1,
}

#[derive(Debug, Default)]
struct Network {
    /// Per class, least recently used first.
    held: [BTreeMap<u64, Arc<Notify>>; 2],
}

#[derive(Debug)]
struct Table {
    held: usize,
    /// Grows with every use: the order of use.
    clock: u64,
    sources: HashMap<IpAddr, usize>,
    networks: HashMap<IpAddr, Network>,
    /// Per class, networks by how many connections they hold.
    ranking: [BTreeSet<(usize, IpAddr)>; 2],
    rate: Buckets<IpAddr>,
    network_rate: Buckets<IpAddr>,
    counters: Counters,
}

/// All places.
#[derive(Debug)]
pub(crate) struct Admission {
    most: usize,
    per_source: usize,
    per_network: usize,
    table: Mutex<Table>,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    source: IpAddr,
    network: IpAddr,
    class: Class,
    /// Its position in the order of use.
    used: u64,
    renewed: Instant,
    leave: Arc<Notify>,
}

impl Table {
    fn insert(&mut self, net: IpAddr, class: Class, leave: Arc<Notify>) -> u64 {
        self.clock += 1;
        let held = &mut self.networks.entry(net).or_default().held[class as usize];
        let before = held.len();
        held.insert(self.clock, leave);
        self.ranking[class as usize].remove(&(before, net));
        self.ranking[class as usize].insert((before + 1, net));
        self.clock
    }

    fn remove(&mut self, net: IpAddr, class: Class, used: u64) -> Option<Arc<Notify>> {
        let entry = self.networks.get_mut(&net)?;
        let before = entry.held[class as usize].len();
        let leave = entry.held[class as usize].remove(&used)?;
        let ranking = &mut self.ranking[class as usize];
        ranking.remove(&(before, net));
        if before > 1 {
            ranking.insert((before - 1, net));
        }
        if entry.held.iter().all(BTreeMap::is_empty) {
            self.networks.remove(&net);
        }
        Some(leave)
    }

    fn count(&self, net: IpAddr, class: Class) -> usize {
        self.networks.get(&net).map_or(0, |n| n.held[class as usize].len())
    }

    /// Tells the connection with the weakest claim to leave. It keeps its descriptor until its task has ended, but
    /// no longer counts. False: nobody's claim is weaker than that of a newcomer from `net`.
    fn make_room(&mut self, net: IpAddr) -> bool {
        for class in [Class::Stranger, Class::Proven] {
            let Some(&(most, heaviest)) = self.ranking[class as usize].last() else { continue };
            let own = self.count(net, class);
            // A network at the top gives way to itself. A proven connection gives way only to a network that has
            // fewer of them.
            let from = if own == most { net } else { heaviest };
            if class == Class::Proven && own + 1 >= most {
                return false;
            }
            let oldest = self.networks.get(&from).and_then(|n| n.held[class as usize].keys().next().copied());
            let Some(leave) = oldest.and_then(|used| self.remove(from, class, used)) else { return false };
            leave.notify_one();
            self.held -= 1;
            self.counters.evicted += 1;
            return true;
        }
        false
    }
}

impl Admission {
    /// `most`: places in all.
    pub fn new(limits: &Limits, most: usize) -> Arc<Admission> {
        Arc::new(Admission {
            most: most.max(1),
            per_source: limits.per_source,
            per_network: limits.per_network,
            table: Mutex::new(Table {
                held: 0,
                clock: 0,
                sources: HashMap::new(),
                networks: HashMap::new(),
                ranking: [BTreeSet::new(), BTreeSet::new()],
                rate: Buckets::new(limits.connections),
                network_rate: Buckets::new(limits.network_connections),
                counters: Counters::default(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `ip`. An exempt source has no rate and no share, but gives way like others.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, exempt: bool, now: Instant) -> Result<Place, Refusal> {
        let (source, network) = (source(ip), network(ip));
        let mut table = self.lock();
        if !exempt {
            if !table.rate.take(source, now) || !table.network_rate.take(network, now) {
                table.counters.refused_rate += 1;
                return Err(Refusal::Rate);
            }
            let in_network = table.count(network, Class::Stranger) + table.count(network, Class::Proven);
            let of_source = table.sources.get(&source).copied().unwrap_or(0);
            if of_source >= self.per_source || in_network >= self.per_network {
                table.counters.refused_share += 1;
                return Err(Refusal::Share);
            }
        }
        if table.held >= self.most && !table.make_room(network) {
            table.counters.refused_full += 1;
            return Err(Refusal::Full);
        }
        let leave = Arc::new(Notify::new());
        let used = table.insert(network, Class::Stranger, leave.clone());
        table.held += 1;
        *table.sources.entry(source).or_default() += 1;
        drop(table);
        let class = Class::Stranger;
        Ok(Place { admission: self.clone(), source, network, class, used, renewed: now, leave })
    }

    /// Counters, and connections held.
    pub fn counters(&self) -> (Counters, usize) {
        let table = self.lock();
        (table.counters, table.held)
    }
}

impl Place {
    /// Resolves when somebody with a better claim needs the place.
    pub fn evicted(&self) -> Arc<Notify> {
        self.leave.clone()
    }

    /// The connection was used; `proven`: it has spoken for a node.
    pub fn used(&mut self, proven: bool, now: Instant) {
        let class = if proven { Class::Proven } else { self.class };
        if class == self.class && now.saturating_duration_since(self.renewed) < RENEW {
            return;
        }
        let mut table = self.admission.lock();
        // If it was told to leave meanwhile, it has no position any more.
        if let Some(leave) = table.remove(self.network, self.class, self.used) {
            self.used = table.insert(self.network, class, leave);
            (self.class, self.renewed) = (class, now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.admission.lock();
        if table.remove(self.network, self.class, self.used).is_some() {
            table.held -= 1;
        }
        if let Some(count) = table.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                table.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits() -> Limits {
        let free = Rate { per_second: 1e6, burst: 1e6 };
        Limits { connections: free, network_connections: free, ..Limits::default() }
    }

    async fn left(place: &Place) -> bool {
        tokio::time::timeout(Duration::ZERO, place.evicted().notified()).await.is_ok()
    }

    #[tokio::test]
    async fn a_full_house_takes_from_the_network_that_has_most_and_never_from_the_proven_first() {
        let admission = Admission::new(&limits(), 10);
        let now = Instant::now();
        let mut honest = admission.admit(ip("198.51.100.1"), false, now).unwrap();
        honest.used(true, now);
        let quiet = admission.admit(ip("192.0.2.1"), false, now).unwrap();
        let mut crowd = Vec::new();
        for i in 0..1000u32 {
            crowd.push(admission.admit(ip(&format!("203.0.113.{}", i % 250)), false, now).unwrap());
        }
        assert!(!left(&honest).await && !left(&quiet).await);
        let mut still = 0;
        for place in &crowd {
            still += usize::from(!left(place).await);
        }
        assert_eq!((still, admission.counters().1), (8, 10));
        let newcomer = admission.admit(ip("192.0.2.200"), false, now).unwrap();
        assert!(!left(&quiet).await, "the crowd makes room, not the newcomer's neighbour");
        drop((crowd, newcomer));
        assert_eq!(admission.counters().1, 2);
        assert_eq!(admission.lock().networks.len(), 2);
    }

    #[tokio::test]
    async fn among_proven_connections_only_the_greedier_network_gives_way_and_only_its_idlest() {
        let admission = Admission::new(&limits(), 4);
        let mut now = Instant::now();
        let mut held = Vec::new();
        for i in 0..4 {
            let mut place = admission.admit(ip(&format!("203.0.113.{i}")), false, now).unwrap();
            place.used(true, now);
            held.push(place);
        }
        now += RENEW;
        held[0].used(true, now);
        let mut first = admission.admit(ip("192.0.2.1"), false, now).unwrap();
        first.used(true, now);
        assert!(!left(&held[0]).await, "used a moment ago");
        assert!(left(&held[1]).await);
        let mut second = admission.admit(ip("192.0.2.2"), false, now).unwrap();
        second.used(true, now);
        assert_eq!(admission.admit(ip("192.0.2.3"), false, now).unwrap_err(), Refusal::Full);
        assert_eq!(admission.admit(ip("203.0.113.9"), false, now).unwrap_err(), Refusal::Full);
        assert_eq!(admission.counters().0, Counters { evicted: 2, refused_full: 2, ..Counters::default() });
    }

    #[test]
    fn a_source_and_its_network_have_a_rate_and_a_share_unless_exempt() {
        let now = Instant::now();
        let limits = Limits {
            connections: Rate { per_second: 1.0, burst: 3.0 },
            network_connections: Rate { per_second: 1.0, burst: 5.0 },
            ..Limits::default()
        };
        let admission = Admission::new(&limits, 100);
        let tries = |last: u8| {
            let from = ip(&format!("203.0.113.{last}"));
            (0..10).filter(|_| admission.admit(from, false, now).is_ok()).count()
        };
        assert_eq!((tries(1), tries(2), tries(3)), (3, 2, 0));
        assert_eq!(admission.counters().0.refused_rate, 25);
        let shares = Limits { per_source: 2, per_network: 3, ..self::limits() };
        let admission = Admission::new(&shares, 100);
        let take = |from: &str| admission.admit(ip(from), false, now);
        let (_a, b) = (take("203.0.113.1").unwrap(), take("203.0.113.1").unwrap());
        assert_eq!(take("203.0.113.1").unwrap_err(), Refusal::Share);
        let _c = take("203.0.113.2").unwrap();
        assert_eq!(take("203.0.113.3").unwrap_err(), Refusal::Share);
        assert!(admission.admit(ip("203.0.113.1"), true, now).is_ok(), "exempt");
        drop(b);
        assert!(take("203.0.113.1").is_ok());
    }

    #[test]
    fn an_evicted_connection_frees_its_place_once() {
        let admission = Admission::new(&limits(), 1);
        let now = Instant::now();
        let mut first = admission.admit(ip("203.0.113.1"), false, now).unwrap();
        let second = admission.admit(ip("203.0.113.2"), false, now).unwrap();
        first.used(true, now + RENEW);
        drop(first);
        assert_eq!(admission.counters().1, 1);
        drop(second);
        assert_eq!(admission.counters().1, 0);
        assert!(admission.lock().sources.is_empty() && admission.lock().networks.is_empty());
    }
}
