//! Being known to the beacon: Discovers, plain or signed, and their replies (spec 04 sections 3.1 and 3.2).

use super::{Engine, Event};
use crate::wire::beacon::Message;
use crate::wire::discover::{self, Cookie};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Distance of Discovers: below the 30 s many NATs keep a mapping for (spec 04 section 21).
const DISCOVER_EVERY: Duration = Duration::from_secs(25);
/// A Discover without a reply is repeated after this time, doubling, [`REPEATS`] times.
const REPEAT: Duration = Duration::from_millis(100);
/// A beacon that answers none of them is asked again after this time: it may be back, and peers that only reach us through
/// it wait.
const SILENT_EVERY: Duration = Duration::from_secs(5);
/// Repetitions of a Discover.
const REPEATS: u32 = 4;
/// A DiscoverReply counts only this long after a Discover.
const REPLY_WITHIN: Duration = Duration::from_secs(2);

/// What goes into signed Discovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverProof {
    /// The name of the registry the beacon belongs to.
    pub registry: String,
    /// A moment on both clocks: the engine's, and Unix microseconds.
    pub clock: (Instant, u64),
}

/// The beacon in use and what it was last asked.
#[derive(Debug, Default)]
pub(super) struct Beacons {
    pub(super) addr: Option<SocketAddr>,
    /// Last Discover.
    asked: Option<Instant>,
    /// Repetitions of it so far; `None` once it is answered.
    repeats: Option<u32>,
    /// A new cookie was already answered with a Discover of its own.
    followed: bool,
    /// Next Discover.
    pub(super) next: Option<Instant>,
    proof: Option<DiscoverProof>,
    /// Time in the last proof; grows.
    time: u64,
    cookie: Cookie,
}

impl Beacons {
    /// The beacon that frames are relayed through, and punches asked of.
    pub(super) fn chosen(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Frames from this address are a beacon's. It is in canonical form.
    pub(super) fn contains(&self, from: SocketAddr) -> bool {
        self.addr == Some(from)
    }
}

impl Engine {
    /// The beacon in use. A Discover is sent to it at once, then every 25 s; every 5 s if
    /// it does not answer.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.beacons.addr = beacon.map(|b| SocketAddr::new(b.ip().to_canonical(), b.port()));
        self.beacons.asked = None;
        self.beacons.cookie = Cookie::default();
        self.beacons.followed = false;
        self.ask_beacon(now);
    }

    /// Whether, and with what, Discovers are signed from now on (docs/extensions.md). One is sent at once.
    pub fn set_discover_proof(&mut self, now: Instant, proof: Option<DiscoverProof>) {
        let same = match (&self.beacons.proof, &proof) {
            (Some(old), Some(new)) => old.registry == new.registry,
            (old, new) => old.is_none() && new.is_none(),
        };
        self.beacons.proof = proof;
        if !same && self.beacons.chosen().is_some() {
            self.ask_beacon(now);
        }
    }

    /// A new question: a Discover and its repetitions.
    pub(super) fn ask_beacon(&mut self, now: Instant) {
        self.beacons.repeats = Some(0);
        self.discover(now);
    }

    /// Asks again, because it is time to or there was no reply.
    pub(super) fn beacon_timeout(&mut self, now: Instant) {
        match self.beacons.repeats {
            None => {
                self.beacons.followed = false;
                self.ask_beacon(now);
            }
            Some(n) if n < REPEATS => {
                self.beacons.repeats = Some(n + 1);
                self.discover(now);
            }
            Some(_) => {
                self.beacons.repeats = None;
                self.beacons.next = Some(now + SILENT_EVERY);
            }
        }
    }

    fn discover(&mut self, now: Instant) {
        let Some(addr) = self.beacons.chosen() else {
            self.beacons.next = None;
            return;
        };
        let bytes = self.discover_bytes(now);
        self.send_control(addr, bytes);
        self.beacons.asked = Some(now);
        let pause = match self.beacons.repeats {
            Some(n) => REPEAT * 2u32.saturating_pow(n),
            None => DISCOVER_EVERY,
        };
        self.beacons.next = Some(now + pause);
    }

    fn discover_bytes(&mut self, now: Instant) -> Vec<u8> {
        if let Some(proof) = &self.beacons.proof
            && self.node != 0
        {
            let since = now.saturating_duration_since(proof.clock.0).as_micros();
            let time = proof.clock.1.saturating_add(u64::try_from(since).unwrap_or(u64::MAX));
            self.beacons.time = time.max(self.beacons.time.saturating_add(1));
            return discover::sign(
                &self.identity,
                &proof.registry,
                self.node,
                self.beacons.time,
                &self.beacons.cookie,
            );
        }
        let mut bytes = Vec::with_capacity(5);
        Message::Discover { node: self.node, key: None }.emit(&mut bytes);
        bytes
    }

    /// The beacon's reply: `addr` is how it sees us.
    pub(super) fn discovered(&mut self, now: Instant, addr: SocketAddr, reply: &[u8]) {
        let asked = self.beacons.asked.filter(|at| now.saturating_duration_since(*at) <= REPLY_WITHIN);
        let Some(asked) = asked else {
            self.drops.unasked_discover_reply += 1;
            return;
        };
        if self.beacons.repeats.take().is_some() {
            self.beacons.next = Some(asked + DISCOVER_EVERY);
        }
        // A new cookie: our address is new to the beacon, or the cookie old. The next Discover shows it.
        if let Some(cookie) = discover::cookie(reply)
            && self.beacons.proof.is_some()
            && cookie != self.beacons.cookie
        {
            self.beacons.cookie = cookie;
            if !std::mem::replace(&mut self.beacons.followed, true) {
                self.ask_beacon(now);
            }
        }
        self.seen_as(now, addr);
        self.emit(Event::Observed(addr));
    }
}
