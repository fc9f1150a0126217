//! Getting a tunnel back that one side has lost (spec 02 sections 6, 7, 10 and 11).
//!
//! A peer that lost its half of a session cannot say so, and a reference peer does little about it. So this side
//! drives: when traffic that wants an answer has met with silence for [`SILENCE`], or frames come that do not open
//! while nothing opens, it sends PILA and PILK, straight and through the relay. A peer that holds no session installs
//! one from the PILA; one that holds another answers the PILK with its own PILA, which mends our side.
//!
//! Schedule: 0.5 s of silence, then 0.75 s, 1 s, 2 s later, every 2 s until the silence has lasted a minute, then every
//! 30 s, as long as traffic waits. That is at most two attempts, four frames, in any second and on each way: below
//! the five frames per second a receiver takes from one source (spec 02 section 6). A dead peer costs 176 bytes each
//! way and attempt, more where the key exchange carries the block of the session upgrade.

use super::Engine;
use crate::NodeId;
use crate::path::{Candidate, Choice};
use crate::stream::{DialError, StreamEvent};
use crate::tunnel::exchange::{Exchange, Pace};
use std::time::{Duration, Instant};

/// Silence after traffic that wants an answer before the first attempt.
pub(super) const SILENCE: Duration = Duration::from_millis(500);
/// Distances of the first attempts, ms.
const DISTANCES_MS: [u64; 2] = [750, 1_000];
/// Distance of further ones.
const STEADY: Duration = Duration::from_secs(2);
/// From this silence on they are rare.
const LONG: Duration = Duration::from_secs(60);
const RARE: Duration = Duration::from_secs(30);
/// Without connections attempts end this long after the last packet that wanted an answer.
const LAPSE: Duration = Duration::from_secs(10);
/// Attempt at which the directory is asked where the peer is now.
const ASK_ROUTE: u32 = 2;
/// Unproven addresses an attempt goes to.
const MAX_ADDRESSES: usize = 3;

/// One peer's silence and what was done about it.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Since when something sent has waited for an answer.
    since: Option<Instant>,
    /// When something that wants an answer was sent last.
    asked: Option<Instant>,
    attempts: u32,
    last: Option<Instant>,
}

impl Recovery {
    /// A packet that wants an answer left. True: the timer must be set.
    pub(super) fn asked(&mut self, now: Instant) -> bool {
        self.asked = Some(now);
        let first = self.since.is_none();
        self.since.get_or_insert(now);
        first
    }

    /// A frame of the peer opened: all is well. Its timer may run once in vain, which is cheaper than to move it
    /// with each packet.
    pub(super) fn answered(&mut self) {
        self.since = None;
        self.attempts = 0;
    }

    /// Another session was agreed: what waited, waits anew.
    pub(super) fn restarted(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
        self.attempts = 0;
    }

    /// When the next attempt is due, if traffic waits.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some((since + SILENCE).max(self.earliest(since)?))
    }

    /// When the next attempt may be made at the earliest.
    fn earliest(&self, since: Instant) -> Option<Instant> {
        let Some(last) = self.last else { return Some(since) };
        let distance = match DISTANCES_MS.get((self.attempts as usize).saturating_sub(1)) {
            Some(ms) => Duration::from_millis(*ms),
            None if last.saturating_duration_since(since) < LONG => STEADY,
            None => RARE,
        };
        Some(last + distance)
    }

    fn attempted(&mut self, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.last = Some(now);
    }

    fn lapsed(&self, now: Instant) -> bool {
        self.asked.is_none_or(|at| now.saturating_duration_since(at) >= LAPSE)
    }
}

impl Engine {
    /// Tells a peer of an earlier life of this node that this process exists: its session is with one that has ended.
    /// `direct` is where it was reached then. Four tries in 1.75 s; a peer that is not there costs nothing more.
    pub fn greet(&mut self, now: Instant, node: NodeId, direct: &[Candidate]) {
        if !self.config.encrypt
            || node == self.node
            || self.peers.contains_key(&node)
            || !self.enter(now, node)
        {
            return;
        }
        self.want_key(now, node);
        let relay_only = self.config.relay_only;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !relay_only {
            peer.path.set_routes(direct);
        }
        peer.exchange = Some(Exchange::new(Pace::Greeting, now));
        self.exchanging += 1;
        self.send_exchange(now, node);
        self.touch(node);
    }

    /// Adds to the error of a dial what only the tunnel knows: where the peer was tried.
    pub(super) fn explained(&self, event: StreamEvent) -> StreamEvent {
        let StreamEvent::DialFailed(conn, DialError::KeyExchange { node, .. }) = event else { return event };
        let mut tried = String::new();
        if let Some(peer) = self.peers.get(&node) {
            let direct = !self.config.relay_only && !peer.path.relay_only;
            let at: Vec<String> = peer
                .path
                .addresses()
                .filter(|_| direct)
                .take(MAX_ADDRESSES)
                .map(|at| at.to_string())
                .collect();
            if !at.is_empty() {
                tried = format!(" at {}", at.join(", "));
            }
            if self.beacons.chosen().is_some() {
                tried.push_str(if at.is_empty() { " through the relay" } else { " and through the relay" });
            }
        }
        StreamEvent::DialFailed(conn, DialError::KeyExchange { node, tried })
    }

    /// A packet that wants an answer was sent to this peer.
    pub(super) fn note_asked(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.recovery.asked(now) && peer.armed.is_none_or(|at| at > now + SILENCE) {
            self.touch(node);
        }
    }

    /// The timer of [`Recovery::due`].
    pub(super) fn recovery_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.recovery.due().is_none_or(|at| at > now) {
            return;
        }
        if !peer.linked(now) || !connections && peer.recovery.lapsed(now) {
            // Without a session the pending exchange does all there is to do.
            peer.recovery.answered();
            return;
        }
        // What waits for an answer goes that way, so that way is in doubt.
        peer.path.doubt(now);
        self.recover(now, node);
    }

    /// A frame of a peer with a session does not open. It may be forged: worth an attempt, within the budget, only
    /// if nothing opens.
    pub(super) fn suspect(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(session) = &peer.session else { return };
        if now.saturating_duration_since(session.heard()) < SILENCE {
            return;
        }
        if peer.recovery.earliest(now).is_some_and(|at| at <= now) {
            self.recover(now, node);
        }
    }

    /// Sends PILA and PILK to a peer with a session, straight and through the relay.
    fn recover(&mut self, now: Instant, node: NodeId) {
        let beacon = self.beacons.chosen().is_some();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.recovery.attempted(now);
        let attempt = peer.recovery.attempts;
        let ask_route = peer.recovery.attempts == ASK_ROUTE;
        let never_direct = self.config.relay_only || peer.path.relay_only;
        let direct: Vec<_> = match peer.path.choose(beacon, never_direct) {
            _ if never_direct => Vec::new(),
            Choice::Direct(addr) => vec![addr],
            _ => peer.path.addresses().take(MAX_ADDRESSES).collect(),
        };
        if !peer.path.proven() {
            // The relay delivers to where the beacon saw us last, and our NAT may have put us elsewhere since.
            self.ask_beacons(now);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // A peer with an upgraded session does not act on unsigned requests, and needs none: what it gets is signed.
        let ask = peer.session.is_some();
        let half = peer.half.clone();
        let mut frames = vec![self.exchange_frame(now, node, true)];
        frames.extend(ask.then(|| half.pilk.to_vec()));
        for frame in frames {
            for addr in &direct {
                self.send_control(*addr, frame.clone());
            }
            self.send_around(now, node, &frame, attempt);
        }
        if self.peers.get(&node).is_some_and(|peer| !peer.same_process() && !peer.is_ours(now)) {
            // Streams wait for the answer, and no other traffic may want one.
            self.send_watch_probe(now, node);
        }
        if ask_route {
            self.want_route(now, node);
        }
        self.touch(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of attempts in ms after traffic began, while it goes on unanswered until then.
    fn attempts(until: Duration) -> Vec<u128> {
        let start = Instant::now();
        let mut recovery = Recovery::default();
        assert!(recovery.asked(start));
        let mut out = Vec::new();
        while let Some(at) = recovery.due().filter(|at| *at <= start + until) {
            recovery.attempted(at);
            out.push((at - start).as_millis());
        }
        out
    }

    #[test]
    fn attempts_come_fast_then_every_two_seconds_then_every_thirty() {
        let times = attempts(Duration::from_secs(125));
        assert_eq!(times[..5], [500, 1_250, 2_250, 4_250, 6_250]);
        assert_eq!(times[times.len() - 3..], [60_250, 90_250, 120_250]);
        assert!(times.windows(3).all(|w| w[2] - w[0] > 1_000), "at most two in any second: {times:?}");
    }

    #[test]
    fn an_answer_ends_the_attempts_and_new_silence_starts_over_within_the_budget() {
        let start = Instant::now();
        let mut recovery = Recovery::default();
        recovery.asked(start);
        let at = recovery.due().unwrap_or(start);
        recovery.attempted(at);
        recovery.answered();
        assert_eq!(recovery.due(), None);
        recovery.asked(at);
        assert_eq!(recovery.due(), Some(at + Duration::from_millis(DISTANCES_MS[0])));
    }
}
