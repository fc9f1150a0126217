//! The beacons a node may be reached by: it registers with each, so that losing one costs nothing, and sends through one.
//!
//! The reference uses one beacon, picked by a hash of its key, and stays there whether it answers or not (spec 04
//! section 7). Here the pick is where a node begins; then it goes where the answers come from, and to a faster one
//! when that has been clearly faster for some time.

mod entry;
#[cfg(test)]
mod tests;
mod via;

pub use entry::{Reply, State};
pub use via::Via;

use entry::{Due, Entry};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Beacons that are known.
pub const MAX_KNOWN: usize = 16;
/// Beacons we register with; the others are measured from time to time and stand in for lost ones.
pub const MAX_IN_USE: usize = 4;
/// How long, and in how many measurements, another beacon must be clearly faster.
const BETTER_FOR: (Duration, u32) = (Duration::from_secs(30), 3);
/// Least difference of round trips that counts.
const BETTER_BY: Duration = Duration::from_millis(5);
/// Copies of an urgent question after which the other beacons are asked as well.
const LOOK_AROUND: u32 = 3;
/// ... unless they were asked less than this time ago.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(5);
/// The others are measured out of turn if one is lost, at this distance.
const MEASURE_AGAIN: Duration = Duration::from_secs(30);
/// A beacon in use that left this many questions in a row unanswered makes room for one that answers.
const GIVE_UP: u32 = 3;

/// A Discover to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// To whom.
    pub to: SocketAddr,
    /// Whether it registers us there. If not, it must not carry our node id.
    pub register: bool,
}

/// One beacon, as status output shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub addr: SocketAddr,
    /// Whether it answers.
    pub state: State,
    /// Round trip, smoothed.
    pub rtt: Option<Duration>,
    /// Relayed frames and punch requests go to it.
    pub chosen: bool,
    /// We are registered with it.
    pub in_use: bool,
    /// Where it saw us last.
    pub observed: Option<SocketAddr>,
    /// Time of its last reply.
    pub replied: Option<Instant>,
}

/// The beacon a reference node with this key uses, of `count` (spec 04 section 7): FNV-1a of the key. 0 if there is none.
pub fn reference_pick(key: &[u8; 32], count: usize) -> usize {
    let hash =
        key.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash as usize).checked_rem(count).unwrap_or(0)
}

/// What became of the beacons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Another one is chosen now.
    pub chosen: bool,
    /// One that frames may have been sent through does not answer.
    pub lost: bool,
}

/// All beacons of a node.
#[derive(Debug, Default)]
pub struct Beacons {
    list: Vec<Entry>,
    /// In the order they were given in: the reference's pick counts in it.
    order: Vec<SocketAddr>,
    chosen: Option<SocketAddr>,
}

impl Beacons {
    /// These are the beacons from now on; at most [`MAX_KNOWN`] count. What is known of those that stay, stays. New ones are
    /// asked at once. `pick`: where a node with our key begins.
    pub fn set(&mut self, now: Instant, beacons: &[SocketAddr], pick: usize) {
        self.order.clear();
        for beacon in beacons {
            let beacon = SocketAddr::new(beacon.ip().to_canonical(), beacon.port());
            if self.order.len() < MAX_KNOWN && !self.order.contains(&beacon) {
                self.order.push(beacon);
            }
        }
        let order = &self.order;
        self.list.retain(|entry| order.contains(&entry.addr));
        let turned = self.order.iter().cycle().skip(pick % self.order.len().max(1)).take(self.order.len());
        for addr in turned.copied().collect::<Vec<_>>() {
            if self.entry(addr).is_none() {
                let in_use = self.list.iter().filter(|entry| entry.in_use).count() < MAX_IN_USE;
                self.list.push(Entry::new(now, addr, in_use));
            }
        }
        self.fill(now);
        self.choose(now);
    }

    /// The one to send through.
    pub fn chosen(&self) -> Option<SocketAddr> {
        self.chosen
    }

    /// The address, in canonical form, is a beacon's.
    pub fn contains(&self, addr: SocketAddr) -> bool {
        self.list.iter().any(|entry| entry.addr == addr)
    }

    /// We are registered with it, and it is not known to be lost.
    pub fn usable(&self, addr: SocketAddr) -> bool {
        self.list.iter().any(|entry| entry.addr == addr && entry.in_use && entry.state != State::Down)
    }

    /// It has left several Discovers unanswered.
    pub fn doubtful(&self, addr: SocketAddr) -> bool {
        self.list.iter().any(|entry| entry.addr == addr && entry.doubtful())
    }

    /// The beacons to try one after the other when nothing comes back: the chosen one first, then the other usable ones.
    pub fn turns(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let others = self.list.iter().filter(|e| e.in_use && e.state != State::Down).map(|e| e.addr);
        self.chosen.into_iter().chain(others.filter(|addr| Some(*addr) != self.chosen))
    }

    /// Where a reference node with this key registers, if it knows the beacons we know and that one is usable.
    pub fn picked_by(&self, key: &[u8; 32]) -> Option<SocketAddr> {
        let addr = *self.order.get(reference_pick(key, self.order.len()))?;
        self.usable(addr).then_some(addr)
    }

    /// A new question to each one in use.
    pub fn ask_all(&mut self, now: Instant) {
        self.list.iter_mut().filter(|entry| entry.in_use).for_each(|entry| entry.ask_anew(now));
    }

    /// On another network: what was asked on the one before tells nothing.
    pub fn start_over(&mut self, now: Instant) {
        self.list.iter_mut().for_each(Entry::start_over);
        self.ask_all(now);
    }

    /// A new question to one.
    pub fn ask(&mut self, now: Instant, addr: SocketAddr) {
        if let Some(entry) = self.entry(addr) {
            entry.ask_anew(now);
        }
    }

    /// The chosen one, and those not asked for a moment, are asked how they see us.
    pub fn refresh(&mut self, now: Instant) {
        for entry in self.list.iter_mut().filter(|entry| entry.in_use) {
            entry.ask(now, false);
        }
    }

    /// When [`Beacons::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(Entry::deadline).min()
    }

    /// Runs the timers. Every Discover it asks for must be sent.
    pub fn tick(&mut self, now: Instant, asks: &mut Vec<Ask>) -> Turn {
        let (mut look_around, mut lost) = (false, false);
        let ups = self.list.iter().filter(|entry| entry.state == State::Up).count();
        for entry in &mut self.list {
            let others_up = ups > usize::from(entry.state == State::Up);
            match entry.tick(now, others_up) {
                Due::Send { copies, urgent } => {
                    asks.push(Ask { to: entry.addr, register: entry.in_use });
                    look_around |= urgent && copies == LOOK_AROUND;
                }
                Due::Lost => lost |= entry.in_use,
                Due::Nothing => {}
            }
        }
        if look_around {
            for entry in
                self.list.iter_mut().filter(|entry| entry.in_use && entry.idle(now, LOOK_AROUND_EVERY))
            {
                entry.ask(now, false);
                if let Due::Send { .. } = entry.tick(now, true) {
                    asks.push(Ask { to: entry.addr, register: true });
                }
            }
        }
        if lost {
            for entry in self.list.iter_mut().filter(|entry| !entry.in_use && entry.idle(now, MEASURE_AGAIN))
            {
                entry.ask(now, false);
            }
        }
        Turn { chosen: self.choose(now), lost }
    }

    /// A DiscoverReply from this address. `None`: nobody had asked it. True: another beacon is chosen now.
    pub fn replied(&mut self, now: Instant, from: SocketAddr, observed: SocketAddr) -> Option<(Reply, bool)> {
        let reply = self.entry(from)?.replied(now, observed)?;
        self.stand_in(now);
        Some((reply, self.choose(now)))
    }

    /// A frame is sent through this beacon. True: [`Beacons::deadline`] may be another now.
    pub fn relaying(&mut self, now: Instant, through: SocketAddr) -> bool {
        self.entry(through).is_some_and(|entry| entry.relaying(now))
    }

    /// A frame came through this beacon that only its sender can have made.
    pub fn heard(&mut self, now: Instant, via: SocketAddr) {
        if let Some(entry) = self.entry(via) {
            entry.heard(now);
        }
    }

    /// The system says that nobody is at this address. It may be forged, so the beacon is asked.
    pub fn unreachable(&mut self, now: Instant, addr: SocketAddr) {
        if let Some(entry) = self.entry(addr)
            && entry.state == State::Up
        {
            entry.ask(now, true);
        }
    }

    /// All of them, in the order they were given in.
    pub fn status(&self) -> Vec<Status> {
        let status = |addr: &SocketAddr| {
            let entry = self.list.iter().find(|entry| entry.addr == *addr)?;
            Some(Status {
                addr: entry.addr,
                state: entry.state,
                rtt: entry.rtt,
                chosen: self.chosen == Some(entry.addr),
                in_use: entry.in_use,
                observed: entry.observed,
                replied: entry.replied,
            })
        };
        self.order.iter().filter_map(status).collect()
    }

    fn entry(&mut self, addr: SocketAddr) -> Option<&mut Entry> {
        self.list.iter_mut().find(|entry| entry.addr == addr)
    }

    /// As many as may be are in use.
    fn fill(&mut self, now: Instant) {
        let in_use = self.list.iter().filter(|entry| entry.in_use).count();
        let spare = MAX_IN_USE.saturating_sub(in_use);
        self.list.iter_mut().filter(|entry| !entry.in_use).take(spare).for_each(|entry| entry.take_up(now));
    }

    /// A measured beacon takes the place of one that has been lost for long, or of the slowest if it is twice as fast as
    /// the chosen one.
    fn stand_in(&mut self, now: Instant) {
        let spare =
            self.list.iter().enumerate().filter(|(_, entry)| !entry.in_use && entry.state == State::Up);
        let Some(new) = spare.min_by_key(|(_, entry)| entry.rtt).map(|(n, _)| n) else { return };
        let lost = self.list.iter().position(|entry| entry.in_use && entry.failures >= GIVE_UP);
        let fast = |rtt: Duration, than: Duration| rtt * 2 <= than && than - rtt >= BETTER_BY;
        let chosen = self.list.iter().find(|entry| Some(entry.addr) == self.chosen);
        let slowest = || {
            let rtt = self.list[new].rtt?;
            chosen.and_then(|chosen| chosen.rtt).filter(|than| fast(rtt, *than))?;
            let others = self.list.iter().enumerate();
            let others = others.filter(|(_, entry)| entry.in_use && Some(entry.addr) != self.chosen);
            // Before all were measured, nobody is the slowest.
            others.clone().all(|(_, entry)| entry.state != State::Unknown).then_some(())?;
            others.max_by_key(|(_, entry)| entry.rtt).map(|(n, _)| n)
        };
        if let Some(old) = lost.or_else(slowest) {
            self.list[old].put_down(now);
            self.list[new].take_up(now);
        }
    }

    /// True: another one is chosen now.
    fn choose(&mut self, now: Instant) -> bool {
        let up = |entry: &&Entry| entry.in_use && entry.state == State::Up;
        let current = self.list.iter().find(|entry| entry.in_use && Some(entry.addr) == self.chosen);
        let best = match current {
            Some(entry) if entry.state == State::Up => {
                let (addr, rtt) = (entry.addr, entry.rtt);
                self.faster(now, rtt).unwrap_or(addr)
            }
            _ => {
                let fastest = self.list.iter().filter(up).min_by_key(|entry| entry.rtt);
                let first = || self.list.iter().find(|entry| entry.in_use);
                let Some(entry) = fastest.or(current).or_else(first) else {
                    return self.chosen.take().is_some();
                };
                entry.addr
            }
        };
        if self.chosen == Some(best) {
            return false;
        }
        self.chosen = Some(best);
        self.list.iter_mut().for_each(|entry| entry.better = None);
        true
    }

    /// One that has been clearly faster than `rtt` for long enough.
    fn faster(&mut self, now: Instant, rtt: Option<Duration>) -> Option<SocketAddr> {
        let than = rtt?;
        let (mut found, mut comparing) = (None, false);
        for entry in
            self.list.iter_mut().filter(|e| e.in_use && e.state == State::Up && Some(e.addr) != self.chosen)
        {
            let clearly = entry.rtt.is_some_and(|rtt| rtt * 4 <= than * 3 && than - rtt >= BETTER_BY);
            if !clearly {
                entry.better = None;
                continue;
            }
            let (since, count) = *entry.better.get_or_insert((now, 0));
            if now.saturating_duration_since(since) >= BETTER_FOR.0
                && count >= BETTER_FOR.1
                && entry.settled(now)
            {
                let this = (entry.rtt, entry.addr);
                found = Some(found.map_or(this, |best: (_, _)| best.min(this)));
            } else {
                entry.compare_soon(now);
                comparing = true;
            }
        }
        if comparing && let Some(chosen) = self.chosen.and_then(|addr| self.entry(addr)) {
            chosen.compare_soon(now);
        }
        found.map(|(_, addr)| addr)
    }
}
