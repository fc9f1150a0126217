//! The choice between direct and relayed path towards one peer.
//!
//! A direct address is used while it is *proven*: something authenticated came from it, or a probe sent to it was
//! answered. A pong proves the way to the peer whichever way the pong itself came. When a proven address goes
//! silent although we keep sending, it is probed, and given up for the relay if the probes stay unanswered; from
//! then on only an answered probe brings it back, so a path that works one way only cannot make traffic bounce.

use super::candidates::{Candidate, CandidateKind, MAX_CANDIDATES};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Addresses taken from the directory, per peer.
pub const MAX_ROUTES: usize = MAX_CANDIDATES;
/// Addresses learnt from punches and frames, per peer.
pub const MAX_LEARNT: usize = 4;
/// Silence of a direct path we are sending on after which it is probed.
const QUIET: Duration = Duration::from_secs(3);
/// The same when the peer's frames arrive through the relay meanwhile.
const QUIET_WHILE_RELAYED: Duration = Duration::from_secs(1);
/// Distance of the probes of a silent path.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Probes of a silent path before it is given up, one [`CHECK_EVERY`] after the last.
const CHECK_PROBES: u32 = 4;
/// Distance of attempts to leave the relay.
pub const UPGRADE_EVERY: Duration = Duration::from_secs(15);
/// Distance of the probes in one attempt.
const UPGRADE_PROBE_EVERY: Duration = Duration::from_millis(200);
/// Probes per candidate in one attempt.
const UPGRADE_PROBES: u32 = 5;
/// Undeliverable sends, nothing received between them, that end a direct path.
const MAX_UNREACHABLE: u32 = 3;

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

#[derive(Debug, Clone, Copy)]
struct Entry {
    addr: SocketAddr,
    kind: CandidateKind,
    token: Option<u64>,
}

impl Entry {
    fn learnt(&self) -> bool {
        self.kind == CandidateKind::Learnt
    }
}

#[derive(Debug, Clone, Copy)]
enum Probing {
    /// The proven address is silent.
    Check { sent: u32, next: Instant },
    /// Trying to leave the relay.
    Upgrade { sent: u32, next: Instant },
}

/// What a timer of the path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Send a probe to every address of [`Path::probe_targets`].
    Probe,
    /// Ask the beacon for a punch, then expect probes.
    Punch,
    /// The direct path was given up.
    Lost,
}

/// State of the way to one peer.
#[derive(Debug, Default)]
pub struct Path {
    direct: Option<SocketAddr>,
    proven: bool,
    /// When the way in use became what it is.
    since: Option<Instant>,
    failed: bool,
    candidates: Vec<Entry>,
    /// The peer wants to be reached by relay only.
    pub relay_only: bool,
    /// First direct send since the path last showed life.
    sending_since: Option<Instant>,
    last_direct_in: Option<Instant>,
    unreachable: u32,
    probing: Option<Probing>,
    next_upgrade: Option<Instant>,
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

    /// The direct address in use, or the best guess.
    pub fn direct(&self) -> Option<SocketAddr> {
        self.direct
    }

    /// All addresses worth a first contact.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let first = self.direct.into_iter();
        first.chain(self.candidates.iter().map(|c| c.addr).filter(|a| Some(*a) != self.direct))
    }

    /// The directory's addresses replace those it gave earlier.
    pub fn set_routes(&mut self, routes: &[Candidate]) {
        self.candidates.retain(Entry::learnt);
        for Candidate { addr, kind } in routes.iter().take(MAX_ROUTES).rev() {
            self.candidates.retain(|c| c.addr != *addr);
            self.candidates.insert(0, Entry { addr: *addr, kind: *kind, token: None });
        }
        if !self.proven {
            self.direct = routes.first().map(|c| c.addr).or(self.direct);
        }
    }

    /// Where the direct address in use is known from.
    pub fn kind(&self) -> Option<CandidateKind> {
        self.candidates.iter().find(|c| Some(c.addr) == self.direct).map(|c| c.kind)
    }

    /// An address that may be the peer's: a punch named it, or a frame claimed to come from there.
    pub fn learn(&mut self, addr: SocketAddr) {
        if self.candidates.iter().any(|c| c.addr == addr) {
            return;
        }
        if self.candidates.iter().filter(|c| c.learnt()).count() >= MAX_LEARNT
            && let Some(oldest) = self.candidates.iter().position(Entry::learnt)
        {
            self.candidates.remove(oldest);
        }
        self.candidates.push(Entry { addr, kind: CandidateKind::Learnt, token: None });
        self.direct.get_or_insert(addr);
    }

    /// A key exchange that installed a session came straight from this address.
    pub fn contacted_directly(&mut self, now: Instant, from: SocketAddr) {
        self.learn(from);
        self.prove(now, from);
        self.last_direct_in = Some(now);
    }

    /// A session was installed through the relay: see at once whether a direct way exists.
    pub fn contacted_by_relay(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        if !self.proven && !self.candidates.is_empty() {
            self.probing = Some(Probing::Upgrade { sent: 0, next: now });
        }
        self.next_upgrade = Some(now + UPGRADE_EVERY);
    }

    /// An authenticated frame came straight from `from`. `may_move`: it is fresh enough to say where the peer is
    /// now. True: the path changed.
    pub fn direct_in(&mut self, now: Instant, from: SocketAddr, may_move: bool) -> bool {
        self.last_direct_in = Some(now);
        if self.proven && self.direct == Some(from) {
            self.alive();
            return false;
        }
        if !may_move && self.proven {
            return false;
        }
        if !may_move || self.failed {
            // Perhaps a recording, perhaps a way that works in one direction only: an answered probe tells.
            self.learn(from);
            self.probe_soon(now);
            return false;
        }
        self.learn(from);
        self.prove(now, from);
        true
    }

    /// An authenticated frame came through the relay: the peer may be unable to use the direct path.
    pub fn relayed_in(&mut self, now: Instant) {
        let silent = |t: Instant| now.saturating_duration_since(t) > QUIET_WHILE_RELAYED;
        if self.proven && self.sending_since.is_some_and(silent) && self.probing.is_none() {
            self.probing = Some(Probing::Check { sent: 0, next: now });
        }
    }

    /// A frame is being sent on the direct path. True: the path has been silent for too long and a timer was set.
    pub fn sent_directly(&mut self, now: Instant) -> bool {
        let since = *self.sending_since.get_or_insert(now);
        if self.proven && self.probing.is_none() && now.saturating_duration_since(since) > QUIET {
            self.probing = Some(Probing::Check { sent: 0, next: now });
            return true;
        }
        false
    }

    /// A probe was answered. True: the path changed.
    pub fn pong(&mut self, now: Instant, token: u64) -> bool {
        let Some(addr) = self.candidates.iter().find(|c| c.token == Some(token)).map(|c| c.addr) else {
            return false;
        };
        if self.proven && self.direct == Some(addr) {
            self.alive();
            return false;
        }
        if self.proven && self.probing.is_none() {
            return false;
        }
        self.prove(now, addr);
        true
    }

    /// The socket layer could not deliver to the direct address. True: the direct path was given up.
    pub fn unreachable(&mut self, now: Instant) -> bool {
        self.unreachable += 1;
        if self.proven && self.unreachable >= MAX_UNREACHABLE {
            self.give_up(now);
            return true;
        }
        if self.proven && self.probing.is_none() {
            // One error may be stray or forged; probes tell without waiting for traffic.
            self.probing = Some(Probing::Check { sent: 0, next: now });
        }
        false
    }

    /// Forgets that the direct path works, after a reset.
    pub fn reset(&mut self) {
        let relay_only = self.relay_only;
        let candidates = std::mem::take(&mut self.candidates);
        *self = Path { relay_only, candidates, direct: self.direct, ..Path::default() };
    }

    /// Nothing came straight from the peer for longer than `quiet`.
    pub fn silent_for(&self, now: Instant, quiet: Duration) -> bool {
        self.last_direct_in.is_none_or(|at| now.saturating_duration_since(at) > quiet)
    }

    /// When [`Path::tick`] wants to be called. `active`: the peer is in use, so leaving the relay is worth a try.
    pub fn deadline(&self, active: bool) -> Option<Instant> {
        match self.probing {
            Some(Probing::Check { next, .. } | Probing::Upgrade { next, .. }) => Some(next),
            None if active && !self.proven && !self.relay_only => self.next_upgrade,
            None => None,
        }
    }

    /// Runs the timers. `fallback`: a relay exists to fall back on.
    pub fn tick(&mut self, now: Instant, active: bool, fallback: bool) -> Option<Tick> {
        match &mut self.probing {
            Some(Probing::Check { sent, next }) if *next <= now => {
                if *sent < CHECK_PROBES {
                    *sent += 1;
                    *next = now + CHECK_EVERY;
                    return Some(Tick::Probe);
                }
                if !fallback {
                    self.alive();
                    return None;
                }
                self.give_up(now);
                Some(Tick::Lost)
            }
            Some(Probing::Upgrade { sent, next }) if *next <= now => {
                *sent += 1;
                *next = now + UPGRADE_PROBE_EVERY;
                if *sent >= UPGRADE_PROBES {
                    self.probing = None;
                }
                Some(Tick::Probe)
            }
            Some(_) => None,
            None if active
                && !self.proven
                && !self.relay_only
                && self.next_upgrade.is_some_and(|n| n <= now) =>
            {
                self.next_upgrade = Some(now + UPGRADE_EVERY);
                self.probing = Some(Probing::Upgrade { sent: 0, next: now + UPGRADE_PROBE_EVERY });
                Some(Tick::Punch)
            }
            None => None,
        }
    }

    /// A punch opened the way a moment ago: probe without waiting for the next attempt.
    pub fn probe_soon(&mut self, now: Instant) {
        if self.probing.is_none() {
            self.probing = Some(Probing::Upgrade { sent: UPGRADE_PROBES - 1, next: now });
        }
    }

    /// The addresses to probe now, each with the token its pong must carry. `token` draws a fresh one.
    pub fn probe_targets(&mut self, mut token: impl FnMut() -> u64) -> Vec<(SocketAddr, u64)> {
        let only = if self.proven { self.direct } else { None };
        let wanted = |c: &&mut Entry| only.is_none_or(|addr| addr == c.addr);
        self.candidates
            .iter_mut()
            .filter(wanted)
            .map(|c| (c.addr, *c.token.get_or_insert_with(&mut token)))
            .collect()
    }

    fn prove(&mut self, now: Instant, addr: SocketAddr) {
        if !self.proven || self.direct != Some(addr) {
            self.since = Some(now);
        }
        self.direct = Some(addr);
        self.proven = true;
        self.failed = false;
        self.next_upgrade = None;
        self.alive();
    }

    fn alive(&mut self) {
        self.sending_since = None;
        self.unreachable = 0;
        self.probing = None;
    }

    fn give_up(&mut self, now: Instant) {
        self.since = Some(now);
        self.proven = false;
        self.failed = true;
        self.alive();
        // A token answered from now on must belong to a probe sent from now on.
        for candidate in &mut self.candidates {
            candidate.token = None;
        }
        self.next_upgrade = Some(now + UPGRADE_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }
    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs the timers up to `until` and returns what they asked for, with the time since `start` in ms.
    fn run(path: &mut Path, start: Instant, until: Duration) -> Vec<(u128, Tick)> {
        let mut out = Vec::new();
        while let Some(at) = path.deadline(true).filter(|at| *at <= start + until) {
            if let Some(tick) = path.tick(at, true, true) {
                out.push(((at - start).as_millis(), tick));
            }
        }
        out
    }

    #[test]
    fn a_silent_direct_path_is_probed_and_then_left_for_the_relay() {
        let t = Instant::now();
        let mut p = Path::default();
        p.contacted_directly(t, addr(1));
        assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
        assert!(!p.sent_directly(t));
        assert!(!p.sent_directly(t + QUIET));
        let start = t + QUIET + ms(1);
        assert!(p.sent_directly(start));
        let ticks = run(&mut p, start, ms(2_000));
        let probes: Vec<_> = (0..4).map(|n| (n * 500, Tick::Probe)).collect();
        assert_eq!(ticks[..4], probes[..]);
        assert_eq!(ticks[4], (2_000, Tick::Lost));
        assert_eq!(p.choose(true, false), Choice::Relay);
        assert_eq!(
            p.choose(false, false),
            Choice::Direct(addr(1)),
            "without a relay there is nothing better"
        );
    }

    #[test]
    fn an_answered_probe_keeps_the_direct_path() {
        let t = Instant::now();
        let mut p = Path::default();
        p.contacted_directly(t, addr(1));
        p.sent_directly(t);
        assert!(p.sent_directly(t + ms(3_001)));
        assert_eq!(p.tick(t + ms(3_001), true, true), Some(Tick::Probe));
        let probes = p.probe_targets(|| 77);
        assert_eq!(probes, [(addr(1), 77)]);
        assert!(!p.pong(t, 78));
        assert!(!p.pong(t, 77), "nothing changed: it stays direct");
        assert_eq!(p.deadline(true), None);
        assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
    }

    #[test]
    fn a_path_that_failed_comes_back_only_by_an_answered_probe() {
        let t = Instant::now();
        let mut p = Path::default();
        p.contacted_directly(t, addr(1));
        for _ in 0..2 {
            assert!(!p.unreachable(t));
        }
        assert!(p.unreachable(t));
        assert_eq!(p.choose(true, false), Choice::Relay);
        assert!(!p.direct_in(t, addr(1), true), "the peer's frames arrive, ours may still not");
        assert_eq!(p.choose(true, false), Choice::Relay);
        assert_eq!(p.tick(t, true, true), Some(Tick::Probe));
        p.probe_targets(|| 5);
        assert!(p.pong(t, 5));
        assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
    }

    #[test]
    fn a_relayed_peer_is_probed_at_once_and_every_15_s_on_every_address() {
        let t = Instant::now();
        let mut p = Path::default();
        p.set_routes(&[addr(1), addr(2)].map(Candidate::guessed));
        p.contacted_by_relay(t);
        let ticks = run(&mut p, t, ms(16_500));
        let mut expected: Vec<_> = (0..5).map(|n| (n * 200, Tick::Probe)).collect();
        expected.push((15_000, Tick::Punch));
        expected.extend((1..=5).map(|n| (15_000 + n * 200, Tick::Probe)));
        assert_eq!(ticks, expected);
        let mut n = 0;
        let targets = p.probe_targets(|| {
            n += 1;
            n
        });
        assert_eq!(targets, [(addr(1), 1), (addr(2), 2)]);
        assert!(p.pong(t, 2));
        assert_eq!(p.choose(true, false), Choice::Direct(addr(2)));
    }

    #[test]
    fn addresses_are_bounded_and_relay_only_never_goes_direct() {
        let mut p = Path::default();
        let many: Vec<_> = (0..20).map(|n| Candidate::guessed(addr(n))).collect();
        p.set_routes(&many);
        for n in 100..120 {
            p.learn(addr(n));
        }
        assert_eq!(p.addresses().count(), MAX_ROUTES + MAX_LEARNT);
        p.relay_only = true;
        assert_eq!(p.choose(true, false), Choice::Relay);
        assert_eq!(p.choose(false, false), Choice::None);
    }
}
