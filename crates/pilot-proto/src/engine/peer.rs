//! What the engine knows about one peer.

use super::admit::Ways;
use super::calls::Calls;
use super::half::Half;
use super::mtu::Mtus;
use super::recovery::Recovery;
use crate::path::Path;
use crate::path::beacons::Via;
use crate::tunnel::exchange::Exchange;
use crate::tunnel::pending::{Queue, Salvage, Taken};
use crate::tunnel::session::Session;
use crate::tunnel::upgrade::Upgrade;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Silence after which a keepalive is sent to a peer in use, unless its direct path wants it sooner.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// Time without application traffic after which a peer without connections counts as idle.
pub(super) const IDLE: Duration = Duration::from_secs(120);
/// Time without any traffic after which a peer without connections is removed.
pub(super) const REAP: Duration = Duration::from_secs(300);
/// A peer with connections that falls silent for this long may have lost us: what it sends goes to a mapping that our NAT
/// has forgotten, and only a datagram of ours to the beacon makes another that it can learn of.
pub(super) const HUSH: Duration = Duration::from_millis(1_500);
/// Such datagrams in one silence, and the distance of the first two, which doubles: the mapping, or the address, may change after
/// the first.
const HUSHES: u8 = 3;
const HUSH_AGAIN: Duration = Duration::from_secs(1);
/// Distance of such datagrams, for all peers together.
pub(super) const HUSH_EVERY: Duration = Duration::from_secs(1);
/// Silence of a peer in use after which the watchdog probes it.
pub(super) const WATCH: Duration = Duration::from_secs(55);
/// Distance of the watchdog's probes.
pub(super) const WATCH_EVERY: Duration = Duration::from_secs(10);
/// Probes of the watchdog before it resets the path.
pub(super) const WATCH_PROBES: u32 = 3;
/// Distance of two resets by the watchdog.
pub(super) const RESET_EVERY: Duration = Duration::from_secs(120);
/// Distance of two resets because a key exchange was given up.
pub(super) const GIVE_UP_RESET_EVERY: Duration = Duration::from_secs(30);
/// How long the directory's answer is good for.
pub(super) const ROUTE_FRESH: Duration = Duration::from_secs(60);
/// How long to wait for the directory's answer before asking again.
pub(super) const ROUTE_PATIENCE: Duration = Duration::from_secs(10);
/// A replacement session that has opened nothing while the replaced one still opens fresh frames after this time
/// was no replacement.
pub(super) const CONFIRM: Duration = Duration::from_secs(2);

/// How far the question where a peer is has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteState {
    /// Never asked.
    Unknown,
    /// Asked then.
    Asked(Instant),
    /// Answered then.
    Known(Instant),
}

impl RouteState {
    /// The directory's answer is still good.
    pub(super) fn fresh(self, now: Instant) -> bool {
        matches!(self, RouteState::Known(at) if now.saturating_duration_since(at) < ROUTE_FRESH)
    }
}

/// The session a rekey replaced. It still receives, until the new one has opened a frame.
#[derive(Debug)]
pub(super) struct Previous {
    pub(super) session: Session,
    /// The proven direct address at that time.
    pub(super) direct: Option<SocketAddr>,
}

/// One tunnel peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) session: Option<Session>,
    pub(super) previous: Option<Previous>,
    /// Its tunnel key under which a frame opened last.
    pub(super) confirmed: Option<[u8; 32]>,
    /// Its upgraded sessions, once there is reason to look for one.
    pub(super) upgrade: Option<Box<Upgrade>>,
    pub(super) path: Path,
    pub(super) calls: Calls,
    /// What its paths carry, once that is worth knowing.
    pub(super) mtus: Option<Box<Mtus>>,
    pub(super) via: Via,
    /// Our tunnel key towards it.
    pub(super) half: Arc<Half>,
    pub(super) recovery: Recovery,
    pub(super) exchange: Option<Exchange>,
    /// Until then no exchange is pending and packets are refused.
    pub(super) cooldown: Option<Instant>,
    pub(super) pending: Queue,
    pub(super) salvage: Salvage,
    pub(super) taken: Taken,
    /// It sent a frame we could not read: ask for its key at the first send.
    pub(super) unreadable: bool,
    /// Budgets of its key exchanges, from its addresses and through the relay.
    pub(super) exchanges: Ways,
    /// Budgets of handshake frames that only somebody who saw ours can make.
    pub(super) awaited: Ways,
    /// Identity key, tunnel key and signature of the last key exchange that verified: a repetition need not be verified
    /// again.
    pub(super) verified: Option<([u8; 32], [u8; 32], [u8; 64])>,
    /// Last exchange sent because its frames could not be read.
    pub(super) asked: Option<Instant>,
    /// Last answer to an exchange with an unchanged key.
    pub(super) answered: Option<Instant>,
    /// Tunnel keys it has replaced, oldest first.
    pub(super) abandoned: VecDeque<[u8; 32]>,
    pub(super) route: RouteState,
    pub(super) last_in: Instant,
    pub(super) last_out: Instant,
    pub(super) last_app: Option<Instant>,
    /// The silence after this frame was taken for a lost mapping of our own, so many times.
    pub(super) hushed: (Instant, u8),
    pub(super) watch_probes: u32,
    pub(super) watch_next: Instant,
    pub(super) last_reset: Option<Instant>,
    pub(super) last_give_up_reset: Option<Instant>,
    /// When its timer is set to.
    pub(super) armed: Option<Instant>,
    /// Its timer was set without regard to keepalives because it was idle.
    pub(super) asleep: bool,
    /// Its timer must be computed anew.
    pub(super) dirty: bool,
}

impl Peer {
    pub(super) fn new(now: Instant, half: Arc<Half>, taken: Taken) -> Peer {
        Peer {
            session: None,
            previous: None,
            confirmed: None,
            upgrade: None,
            path: Path::default(),
            calls: Calls::default(),
            mtus: None,
            via: Via::default(),
            half,
            recovery: Recovery::default(),
            exchange: None,
            cooldown: None,
            pending: Queue::default(),
            salvage: Salvage::default(),
            taken,
            unreadable: false,
            exchanges: Ways::default(),
            awaited: Ways::default(),
            verified: None,
            asked: None,
            answered: None,
            abandoned: VecDeque::new(),
            route: RouteState::Unknown,
            last_in: now,
            last_out: now,
            last_app: None,
            hushed: (now, HUSHES),
            watch_probes: 0,
            watch_next: now,
            last_reset: None,
            last_give_up_reset: None,
            armed: None,
            asleep: false,
            dirty: false,
        }
    }

    /// A connection is open, or application traffic flowed in the last two minutes.
    pub(super) fn active(&self, now: Instant, connections: bool) -> bool {
        connections || self.last_app.is_some_and(|at| now.saturating_duration_since(at) < IDLE)
    }

    /// Packets wait to learn where it is.
    pub(super) fn resolving(&self) -> bool {
        matches!(self.route, RouteState::Asked(_))
            && self.session.is_none()
            && !self.pending.is_empty()
            && self.path.addresses().next().is_none()
    }

    pub(super) fn last_traffic(&self) -> Instant {
        self.last_in.max(self.last_out)
    }

    pub(super) fn in_cooldown(&self, now: Instant) -> bool {
        self.cooldown.is_some_and(|until| now < until)
    }

    /// Leaving the relay is worth a try.
    pub(super) fn may_upgrade(&self, now: Instant, connections: bool, relay_only: bool) -> bool {
        !relay_only && self.linked(now) && self.active(now, connections)
    }

    /// When its timer must run next. `connections`: streams with it exist; `relay_only`: this node only relays.
    pub(super) fn deadline(&self, now: Instant, connections: bool, relay_only: bool) -> Option<Instant> {
        let active = self.active(now, connections);
        let mut next = self.path.deadline(self.may_upgrade(now, connections, relay_only));
        let mut at_most = |at: Instant| next = Some(next.map_or(at, |n: Instant| n.min(at)));
        if let Some(exchange) = &self.exchange {
            at_most(exchange.next);
        }
        if let Some(at) = self.mtus.as_ref().and_then(|mtus| mtus.deadline()) {
            at_most(at);
        }
        if let Some(at) = self.pending.expires() {
            at_most(at);
        }
        if let Some(at) = self.recovery.due() {
            at_most(at);
        }
        if let Some(at) = self.calls.deadline() {
            at_most(at);
        }
        if let Some(at) = self.hush_due(connections).filter(|_| self.linked(now)) {
            at_most(at);
        }
        if self.exchange.is_none()
            && (connections || !self.pending.is_empty())
            && let Some(until) = self.cooldown
        {
            at_most(until);
        }
        if let Some(at) = self.upgrade.as_ref().and_then(|upgrade| upgrade.deadline(active)) {
            at_most(at);
        }
        if active && self.linked(now) {
            at_most(self.keepalive_due());
            at_most(self.watch_due());
        }
        // With connections the peer stays; look again later, because their end is not announced.
        at_most(if connections {
            (self.last_traffic() + REAP).max(now + IDLE)
        } else {
            self.last_traffic() + REAP
        });
        if let Some(at) = self.last_app.filter(|_| active && !connections) {
            at_most(at + IDLE);
        }
        next
    }

    /// When the peer's silence is long enough to ask the beacon how it sees us, a few times in each silence.
    pub(super) fn hush_due(&self, connections: bool) -> Option<Instant> {
        let (frame, asked) = self.hushed;
        let asked = if frame == self.last_in { asked } else { 0 };
        let wait = HUSH + HUSH_AGAIN * ((1 << asked) - 1);
        (connections && asked < HUSHES).then(|| self.last_in + wait)
    }

    /// It has been asked once more.
    pub(super) fn hush(&mut self) {
        let (frame, asked) = self.hushed;
        self.hushed = (self.last_in, if frame == self.last_in { asked + 1 } else { 1 });
    }

    /// When the watchdog wants to look at this peer, if it is in use.
    pub(super) fn keepalive_due(&self) -> Instant {
        self.last_out + self.path.keepalive().unwrap_or(KEEPALIVE)
    }

    pub(super) fn watch_due(&self) -> Instant {
        let silent = self.last_in + WATCH;
        if self.watch_probes == 0 {
            return self.last_reset.map_or(silent, |at| silent.max(at + RESET_EVERY));
        }
        self.watch_next.max(silent)
    }
}
