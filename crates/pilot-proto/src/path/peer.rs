//! The choice between direct and relayed path towards one peer.
//!
//! A direct address is used while it is *proven*: a probe sent to it was answered, or the key exchange came from it. A
//! pong proves the way to the peer whichever way the pong itself came. All addresses are raced; the first to answer takes
//! over, a clearly better one may follow. When a proven address goes silent although we keep sending, it is probed, and
//! given up for the relay if the probes stay unanswered; from then on only an answered probe brings it back, so a path that
//! works one way only cannot make traffic bounce.

use super::candidates::{Book, Candidate, CandidateKind, MAX_CANDIDATES, MAX_LEARNT, Source};
use super::keepalive::Keepalive;
use super::liveness::{Check, Flow, QUIET, QUIET_WHILE_RELAYED};
use super::race::{self, LOOK_EVERY, Race};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Addresses taken from one list, per peer.
pub const MAX_ROUTES: usize = MAX_CANDIDATES;
/// Addresses of one peer in all.
pub const MAX_ADDRESSES: usize = 2 * MAX_ROUTES + MAX_LEARNT;
/// Undeliverable sends, nothing received between them, that end a direct path.
const MAX_UNREACHABLE: u32 = 3;
/// A path that nothing came from for this long may be dead when another shows life.
const RECENTLY: Duration = Duration::from_millis(300);
/// Distance of races started because frames came another way than ours go.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// An address that did not answer is not tried again on every such hint.
const HINT_AGAIN: Duration = Duration::from_secs(10);

/// Where the next frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through the relay.
    Relay,
    /// No way is known.
    None,
}

impl Choice {
    /// Its name, as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Choice::Direct(_) => "direct",
            Choice::Relay => "relay",
            Choice::None => "none",
        }
    }
}

/// What an authenticated frame that came straight from the peer says about the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// It is fresh enough to say where the peer is now.
    pub fresh: bool,
    /// It is a probe: the peer tries a way, which need not be the one it uses.
    pub probe: bool,
    /// There is a relay to fall back on.
    pub fallback: bool,
}

/// What a timer of the path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Send a probe to the address in use.
    Check {
        /// The last one was not answered.
        again: bool,
    },
    /// Send a probe to every address.
    Probe,
    /// Ask the peer, or the beacon, for simultaneous probes.
    Punch,
    /// The direct path was given up.
    Lost,
    /// What came through the relay without pause breaks off.
    Lull,
}

/// State of the way to one peer.
#[derive(Debug, Default)]
pub struct Path {
    direct: Option<SocketAddr>,
    proven: bool,
    /// When the way in use became what it is.
    since: Option<Instant>,
    failed: bool,
    book: Book,
    /// The peer wants to be reached by relay only.
    pub relay_only: bool,
    /// First direct send since the path last showed life.
    sending_since: Option<Instant>,
    last_direct_in: Option<Instant>,
    unreachable: u32,
    check: Option<Check>,
    flow: Flow,
    keepalive: Keepalive,
    race: Option<Race>,
    /// When the last race began.
    raced: Option<Instant>,
    /// Races in a row that found no direct way.
    failures: u32,
    /// When to look for a direct way, or a better one.
    next_try: Option<Instant>,
}

impl Path {
    /// Where to send, given whether a beacon is known and whether this node itself only relays.
    pub fn choose(&self, beacon: bool, never_direct: bool) -> Choice {
        let never_direct = never_direct || self.relay_only;
        match self.direct {
            Some(addr) if self.proven && !never_direct => Choice::Direct(addr),
            _ if beacon => Choice::Relay,
            Some(addr) if !never_direct => Choice::Direct(addr),
            _ => Choice::None,
        }
    }

    /// Since when the way in use is what it is.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The direct address is proven.
    pub fn proven(&self) -> bool {
        self.proven
    }

    /// The direct path was given up, and nothing has answered since.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The direct address in use, or the best guess.
    pub fn direct(&self) -> Option<SocketAddr> {
        self.direct
    }

    /// All addresses worth a first contact.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let first = self.direct.into_iter();
        first.chain(self.book.iter().map(|c| c.addr).filter(|a| Some(*a) != self.direct))
    }

    /// What is known of all addresses.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The directory's addresses replace those it gave earlier.
    pub fn set_routes(&mut self, routes: &[Candidate]) {
        self.book.replace(Source::Directory, routes, self.direct.filter(|_| self.proven));
        if !self.proven {
            self.direct = routes.first().map(|c| c.addr).or(self.direct);
        }
    }

    /// The peer's own list replaces the one before.
    pub fn set_candidates(&mut self, candidates: &[Candidate]) {
        self.book.replace(Source::Peer, candidates, self.direct);
        if self.direct.is_none() {
            self.direct = candidates.first().map(|c| c.addr);
        }
    }

    /// Where the direct address in use is known from.
    pub fn kind(&self) -> Option<CandidateKind> {
        self.direct.and_then(|addr| self.book.get(addr)).map(|entry| entry.kind)
    }

    /// Round trip of the direct path in use.
    pub fn rtt(&self) -> Option<Duration> {
        self.direct.and_then(|addr| self.book.get(addr)).and_then(|entry| entry.rtt)
    }

    /// An address that may be the peer's: a punch named it, or a frame claimed to come from there.
    pub fn learn(&mut self, addr: SocketAddr) {
        self.book.learn(addr, self.direct);
        self.direct.get_or_insert(addr);
    }

    /// A key exchange that installed a session came straight from this address.
    pub fn contacted_directly(&mut self, now: Instant, from: SocketAddr) {
        self.learn(from);
        self.book.heard(now, from);
        self.prove(now, from);
        self.last_direct_in = Some(now);
    }

    /// A session was installed through the relay: see at once whether a direct way exists.
    pub fn contacted_by_relay(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        if !self.proven {
            self.race(now);
            self.next_try = Some(now + race::again(self.failures));
        }
    }

    /// An authenticated frame came straight from `from`. True: the path changed.
    pub fn direct_in(&mut self, now: Instant, from: SocketAddr, arrival: Arrival) -> bool {
        self.last_direct_in = Some(now);
        self.book.heard(now, from);
        if !arrival.probe {
            self.flow.heard(now);
        }
        if self.proven && self.direct == Some(from) {
            // That its frames arrive says nothing of ours: once in doubt, an answered probe must tell. A peer that lost the path
            // goes on probing it.
            if !arrival.probe {
                self.sending_since = None;
                self.unreachable = 0;
                self.keepalive.heard(now);
            }
            return false;
        }
        if !arrival.fresh && self.proven {
            return false;
        }
        let known = self.book.get(from).is_some();
        self.learn(from);
        // Perhaps a recording, perhaps a way that works in one direction only, perhaps one the peer merely tries: an answered
        // probe tells. Without a relay there is nothing to lose.
        let sure = !self.failed && if self.proven { !known } else { !arrival.fallback };
        if arrival.fresh && !arrival.probe && sure {
            self.prove(now, from);
            return true;
        }
        let silent = self.direct.and_then(|addr| self.book.get(addr)).is_none_or(|current| {
            current.heard.is_none_or(|at| now.saturating_duration_since(at) > RECENTLY)
        });
        let untried = self.book.get(from).is_some_and(|entry| {
            entry.answered.is_none()
                && entry.probed.is_none_or(|at| now.saturating_duration_since(at) > HINT_AGAIN)
        });
        let hinted = self.raced.is_some_and(|at| now.saturating_duration_since(at) < HINT_EVERY);
        if !self.proven || (silent || untried) && !hinted {
            self.race(now);
        }
        false
    }

    /// An authenticated frame came through the relay: the peer may be unable to use the direct path.
    pub fn relayed_in(&mut self, now: Instant) {
        self.flow.heard(now);
        let silent = |t: Instant| now.saturating_duration_since(t) > QUIET_WHILE_RELAYED;
        if self.proven && self.sending_since.is_some_and(silent) {
            self.doubt(now);
        }
    }

    /// A frame is being sent on the direct path. True: the path has been silent for too long and a timer was set.
    pub fn sent_directly(&mut self, now: Instant) -> bool {
        let since = *self.sending_since.get_or_insert(now);
        self.keepalive.sent(now);
        if self.proven && self.check.is_none() && now.saturating_duration_since(since) > QUIET {
            self.doubt(now);
            return true;
        }
        false
    }

    /// A probe was answered. `straight`: from where, unless through the relay. True: the path changed.
    pub fn pong(&mut self, now: Instant, token: u64, straight: Option<SocketAddr>) -> bool {
        let Some(addr) = self.book.answered(now, token, straight) else { return false };
        if self.proven && self.direct == Some(addr) {
            self.alive();
            self.keepalive.heard(now);
            // One that was faster has answered already.
            let Some(faster) = self.faster() else { return false };
            self.prove(now, faster);
            return true;
        }
        if self.proven && !self.better(now, addr) {
            return false;
        }
        self.prove(now, addr);
        true
    }

    /// When the probes left that are being answered now.
    fn began(&self) -> Option<Instant> {
        self.raced.max(self.check.map(|check| check.began))
    }

    /// An address that answered in this race and beats the one in use, which has answered as well.
    fn faster(&self) -> Option<SocketAddr> {
        let began = self.began()?;
        let current = self.book.get(self.direct?)?;
        let answered = self.book.iter().filter(|entry| entry.answered.is_some_and(|at| at >= began));
        answered.filter(|entry| entry.beats(current)).min_by_key(|entry| entry.rtt).map(|entry| entry.addr)
    }

    /// The address that just answered should replace the proven one.
    fn better(&self, now: Instant, addr: SocketAddr) -> bool {
        let current = self.direct.and_then(|direct| self.book.get(direct));
        let (Some(current), Some(other)) = (current, self.book.get(addr)) else { return true };
        let Some(began) = self.began() else { return other.beats(current) };
        if current.heard.is_some_and(|at| at >= began) {
            return other.beats(current);
        }
        // Both were probed. The one in use has had time enough to answer, and has not.
        let patience = current.rtt.unwrap_or_default() * 3 / 2 + Duration::from_millis(20);
        now.saturating_duration_since(began) > patience
    }

    /// The socket layer could not deliver to the direct address. True: the direct path was given up.
    pub fn unreachable(&mut self, now: Instant) -> bool {
        self.unreachable += 1;
        if self.proven && self.unreachable >= MAX_UNREACHABLE {
            self.give_up(now);
            return true;
        }
        if self.proven {
            // One error may be stray or forged; probes tell without waiting for traffic.
            self.doubt(now);
        }
        false
    }

    /// The peer says that nothing of ours reaches it directly. True: the path changed.
    pub fn unheard(&mut self, now: Instant) -> bool {
        let lost = self.proven;
        if lost {
            self.give_up(now);
        }
        lost
    }

    /// The path in use may be dead: it is probed at once, and left soon unless it answers.
    pub fn doubt(&mut self, now: Instant) {
        if self.proven && self.check.is_none() {
            self.check = Some(Check::new(now, self.rtt()));
        }
    }

    /// Forgets that the direct path works, after a reset.
    pub fn reset(&mut self) {
        let relay_only = self.relay_only;
        let book = std::mem::take(&mut self.book);
        *self = Path { relay_only, book, direct: self.direct, keepalive: self.keepalive, ..Path::default() };
    }

    /// Silence after which the direct path wants a keepalive (5 to 25 s), if it is the way in use.
    pub fn keepalive(&self) -> Option<Duration> {
        self.proven.then(|| self.keepalive.every())
    }

    /// Nothing came straight from the peer for longer than `quiet`.
    pub fn silent_for(&self, now: Instant, quiet: Duration) -> bool {
        self.last_direct_in.is_none_or(|at| now.saturating_duration_since(at) > quiet)
    }

    /// How long nothing had come straight from the peer before `now`.
    pub fn gap(&self, now: Instant) -> Option<Duration> {
        self.last_direct_in.map(|at| now.saturating_duration_since(at))
    }

    /// When [`Path::tick`] wants to be called. `active`: the peer is in use, so a better way is worth a try.
    pub fn deadline(&self, active: bool) -> Option<Instant> {
        let check = self.check.map(|check| check.next);
        let race = self.race.map(|race| race.next);
        let again = self.next_try.filter(|_| active && !self.relay_only);
        [check, race, again, self.flow.next.filter(|_| active)].into_iter().flatten().min()
    }

    /// Runs the timers; again until it returns `None`. `fallback`: a relay exists to fall back on.
    pub fn tick(&mut self, now: Instant, active: bool, fallback: bool) -> Option<Tick> {
        if active && self.flow.tick(now) {
            if !self.proven {
                return Some(Tick::Lull);
            }
            self.doubt(now);
        }
        if let Some(check) = self.check.as_mut().filter(|check| check.next <= now) {
            let again = check.sent();
            if check.probe(now) {
                return Some(Tick::Check { again });
            }
            if !fallback {
                self.alive();
                return None;
            }
            self.give_up(now);
            return Some(Tick::Lost);
        }
        if let Some(race) = self.race.as_mut().filter(|race| race.next <= now) {
            if !race.sent(now, self.proven) {
                self.race = None;
            }
            return Some(Tick::Probe);
        }
        if !active || self.relay_only || self.next_try.is_none_or(|at| at > now) {
            return None;
        }
        if self.proven {
            self.next_try = Some(now + LOOK_EVERY);
            if self.race.is_none() && self.book.iter().count() > 1 {
                self.race = Some(Race::look(now));
                self.raced = Some(now);
            }
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.next_try = Some(now + race::again(self.failures));
        Some(Tick::Punch)
    }

    /// All addresses are probed from now on; one race at a time.
    pub fn race(&mut self, now: Instant) {
        if self.book.is_empty() || self.relay_only {
            return;
        }
        // A race that has just begun is as good as another.
        let begun = self.raced.is_some_and(|at| now.saturating_duration_since(at) < RECENTLY);
        if self.race.is_none() || !begun {
            self.race = Some(Race::new(now));
            self.raced = Some(now);
        }
    }

    /// All addresses are probed after `wait`, unless they are already.
    pub fn race_after(&mut self, now: Instant, wait: Duration) {
        if self.race.is_none() && !self.book.is_empty() && !self.relay_only {
            self.race = Some(Race::after(now, wait));
            self.raced = Some(now);
        }
    }

    /// The network changed: what failed before may work now, and what worked may be gone.
    pub fn changed(&mut self, now: Instant) {
        self.failures = 0;
        self.raced = None;
        self.keepalive = Keepalive::default();
        self.race(now);
        self.doubt(now);
        if !self.proven {
            self.next_try = Some(now + race::again(0));
        }
    }

    /// The addresses to probe now. `all`: not only the one in use.
    pub fn targets(&self, all: bool) -> Vec<SocketAddr> {
        let wanted = |addr: &SocketAddr| all || self.direct == Some(*addr);
        self.book.iter().map(|entry| entry.addr).filter(wanted).collect()
    }

    /// A probe with this token leaves for one of them.
    pub fn probed(&mut self, now: Instant, addr: SocketAddr, token: u64) {
        self.book.probed(now, addr, token);
    }

    fn prove(&mut self, now: Instant, addr: SocketAddr) {
        if !self.proven || self.direct != Some(addr) {
            self.since = Some(now);
        }
        self.direct = Some(addr);
        self.proven = true;
        self.failed = false;
        self.failures = 0;
        self.next_try = Some(now + LOOK_EVERY);
        self.alive();
    }

    fn alive(&mut self) {
        self.sending_since = None;
        self.unreachable = 0;
        self.check = None;
    }

    fn give_up(&mut self, now: Instant) {
        self.since = Some(now);
        self.proven = false;
        self.failed = true;
        self.alive();
        self.keepalive.lost();
        // A token answered from now on must belong to a probe sent from now on.
        self.book.forget_probes();
        self.raced = None;
        self.race(now);
        self.next_try = Some(now + race::again(self.failures));
    }
}

#[cfg(test)]
mod tests;
