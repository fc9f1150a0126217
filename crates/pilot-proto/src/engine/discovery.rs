//! Being known to the beacons: Discovers, plain or signed, and their replies (spec 04 sections 3.1 and 3.2).

use super::{Engine, Event};
use crate::path::beacons::Ask;
use crate::wire::beacon::Message;
use crate::wire::discover::{self, Cookie};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A cookie that changes with every reply is shown at once at most this often.
const FOLLOW_EVERY: Duration = Duration::from_secs(20);
/// Bytes of a Discover that registers nobody: longer than any reply, so that no beacon that answers it amplifies, and too
/// short to carry a key.
const MEASURE_LEN: usize = 32;

/// What goes into signed Discovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverProof {
    /// The name of the registry the beacon belongs to.
    pub registry: String,
    /// A moment on both clocks: the engine's, and Unix microseconds.
    pub clock: (Instant, u64),
}

/// What a beacon gave us to show that we receive where we send from.
#[derive(Debug)]
struct Given {
    by: SocketAddr,
    cookie: Cookie,
    /// When a new cookie was answered with a Discover of its own.
    followed: Option<Instant>,
}

/// What signed Discovers are made of.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    proof: Option<DiscoverProof>,
    /// Time in the last proof; grows.
    time: u64,
    /// One for each beacon at most.
    given: Vec<Given>,
}

impl Proofs {
    /// Forgets the beacons that are not among these.
    pub(super) fn retain(&mut self, known: impl Fn(SocketAddr) -> bool) {
        self.given.retain(|given| known(given.by));
    }

    /// Takes the cookie of a reply. True: the beacon should see it at once, because our address is new to it, or the
    /// cookie before was old.
    fn take(&mut self, now: Instant, by: SocketAddr, cookie: Cookie) -> bool {
        let given = match self.given.iter_mut().position(|given| given.by == by) {
            Some(at) => &mut self.given[at],
            None => {
                self.given.push(Given { by, cookie: Cookie::default(), followed: None });
                let last = self.given.len() - 1;
                &mut self.given[last]
            }
        };
        if given.cookie == cookie {
            return false;
        }
        given.cookie = cookie;
        let follows = given.followed.is_none_or(|at| now.saturating_duration_since(at) >= FOLLOW_EVERY);
        if follows {
            given.followed = Some(now);
        }
        follows
    }
}

impl Engine {
    /// Whether, and with what, Discovers are signed from now on (docs/extensions.md). One is sent at once to every beacon.
    pub fn set_discover_proof(&mut self, now: Instant, proof: Option<DiscoverProof>) {
        let same = match (&self.proofs.proof, &proof) {
            (Some(old), Some(new)) => old.registry == new.registry,
            (old, new) => old.is_none() && new.is_none(),
        };
        self.proofs.proof = proof;
        if !same {
            self.ask_beacons(now);
        }
    }

    /// A new question to every beacon: how do you see us?
    pub(super) fn ask_beacons(&mut self, now: Instant) {
        self.beacons.ask_all(now);
        self.run_beacons(now);
    }

    /// The silence of a peer may mean that we have another address now: those who relay must know it.
    pub(super) fn refresh_beacons(&mut self, now: Instant) {
        self.beacons.refresh(now);
        self.run_beacons(now);
    }

    /// Sends the Discovers that are due.
    pub(super) fn run_beacons(&mut self, now: Instant) {
        let mut asks = Vec::new();
        let changed = self.beacons.tick(now, &mut asks);
        for Ask { to, register } in asks {
            let bytes = if register { self.discover_bytes(now, to) } else { anonymous() };
            self.send_control(to, bytes);
        }
        if changed {
            self.beacon_changed(now);
        }
    }

    fn discover_bytes(&mut self, now: Instant, to: SocketAddr) -> Vec<u8> {
        let proofs = &mut self.proofs;
        if let Some(proof) = &proofs.proof
            && self.node != 0
        {
            let since = now.saturating_duration_since(proof.clock.0).as_micros();
            let time = proof.clock.1.saturating_add(u64::try_from(since).unwrap_or(u64::MAX));
            proofs.time = time.max(proofs.time.saturating_add(1));
            let cookie = proofs.given.iter().find(|given| given.by == to).map(|given| given.cookie);
            let cookie = cookie.unwrap_or_default();
            return discover::sign(&self.identity, &proof.registry, self.node, proofs.time, &cookie);
        }
        let mut bytes = Vec::with_capacity(5);
        Message::Discover { node: self.node, key: None }.emit(&mut bytes);
        bytes
    }

    /// A beacon's reply: `observed` is how it sees us.
    pub(super) fn discovered(&mut self, now: Instant, from: SocketAddr, observed: SocketAddr, bytes: &[u8]) {
        let Some((reply, changed)) = self.beacons.replied(now, from, observed) else {
            return self.drops.unasked_discover_reply += 1;
        };
        if let Some(cookie) = discover::cookie(bytes)
            && self.proofs.proof.is_some()
            && self.proofs.take(now, from, cookie)
        {
            self.beacons.ask(now, from);
        }
        self.seen_at(now, from, observed, reply);
        if changed {
            self.beacon_changed(now);
        } else if self.beacons.chosen() == Some(from) {
            // What the others see is for those who ask: behind some NATs each sees another port, and an address that
            // changes with whoever answered last would be told to everybody again and again.
            self.seen_as(now, observed);
            self.emit(Event::Observed(observed));
        }
        self.run_beacons(now);
    }
}

/// A Discover that registers nobody: node ids begin at 1.
pub(super) fn anonymous() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MEASURE_LEN);
    Message::Discover { node: 0, key: None }.emit(&mut bytes);
    bytes.resize(MEASURE_LEN, 0);
    bytes
}
