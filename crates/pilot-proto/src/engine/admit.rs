//! What frames of unproven origin must pass before they cost a key look-up, a signature check, an agreement or an answer.
//!
//! The order (docs/security.md has the table): length and magic, own id, gate, key equal to the known one, then budgets. A
//! peer in the table has budgets of its own for frames from its addresses and through the relay, so that a flood under
//! another address, or under another id, takes nothing from it. Everybody else passes a bucket per source, then one per
//! network, then one for all strangers, and those of the direct way and of the relay are apart: our own newcomers send both
//! ways.

use super::{Engine, Origin};
use crate::NodeId;
use crate::tunnel::limits::{Budget, EXCHANGE_RATE, PREFIX_RATE, Recent, Sources, prefix};
use crate::tunnel::noise::Message1;
use crate::wire::capability::{self, Kind, Terms, Trailing};
use crate::wire::frame::Pila;
use std::time::{Duration, Instant};

/// Key exchanges of strangers taken per second and way. A signature check costs about 50 us.
const STRANGERS: u32 = 1000;
/// Key exchanges of trusted nodes that are not in the peer table taken per second and way when strangers have used up theirs.
const TRUSTED: u32 = 200;
/// Key look-ups for strangers per second and way.
const STRANGER_LOOKUPS: u32 = 200;
/// Answers per second and way to frames that nobody vouches for.
const STRANGER_ANSWERS: u32 = 200;
/// A key that contradicts the known one is looked up again at most this often per node.
pub(super) const RECHECK_EVERY: Duration = Duration::from_secs(3);

/// What a source is counted under.
const EXCHANGE: u8 = 0;
const EXCHANGE_NETWORK: u8 = 1;
const ANSWER: u8 = 2;

/// One budget for frames that come directly and one for those that come through the relay.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ways {
    direct: Budget,
    relayed: Budget,
}

impl Ways {
    fn take(&mut self, origin: Origin, rate: u32, now: Instant) -> bool {
        match origin {
            Origin::Direct(_) => self.direct.take(rate, now),
            Origin::Relay(..) => self.relayed.take(rate, now),
        }
    }
}

/// Budgets of frames whose sender is not proven.
#[derive(Debug)]
pub(super) struct Limits {
    sources: Sources,
    strangers: Ways,
    trusted: Ways,
    lookups: Ways,
    answers: Ways,
    /// Exchanges sent because of unreadable frames, per stranger.
    pub(super) unreadable: Recent<NodeId>,
    /// Nodes whose failed look-up is remembered.
    pub(super) failed_lookups: crate::tunnel::limits::Marks<NodeId>,
    pub(super) rechecks: Recent<NodeId>,
    pub(super) disputes: Recent<NodeId>,
}

impl Limits {
    /// `seed`: secret random bytes.
    pub(super) fn new(seed: u64) -> Limits {
        Limits {
            sources: Sources::new(seed),
            strangers: Ways::default(),
            trusted: Ways::default(),
            lookups: Ways::default(),
            answers: Ways::default(),
            unreadable: Recent::new(seed),
            failed_lookups: Default::default(),
            rechecks: Recent::new(seed),
            disputes: Recent::new(seed),
        }
    }

    /// Five frames per second and source of what is counted under `kind`.
    fn source(&mut self, kind: u8, origin: Origin, now: Instant) -> bool {
        match origin {
            Origin::Direct(from) => self.sources.allow((kind, from.ip()), EXCHANGE_RATE, now),
            Origin::Relay(sender, _) => self.sources.allow((kind, sender), EXCHANGE_RATE, now),
        }
    }

    /// An answer to a frame that nobody vouches for may be sent.
    pub(super) fn answer(&mut self, origin: Origin, now: Instant) -> bool {
        self.source(ANSWER, origin, now) && self.answers.take(origin, STRANGER_ANSWERS, now)
    }
}

impl Engine {
    /// The cheap checks of spec 02 section 6, steps 1 to 3.
    pub(super) fn admit_exchange(&mut self, now: Instant, node: NodeId, origin: Origin) -> bool {
        if !self.config.encrypt {
            self.drops.encryption_off += 1;
            return false;
        }
        if node == self.node {
            self.drops.own_id += 1;
            return false;
        }
        if self.gate.shuts_out(now, node) {
            self.drops.untrusted_exchange += 1;
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            let own = match origin {
                Origin::Direct(from) => peer.path.addresses().any(|known| known == from),
                Origin::Relay(..) => true,
            };
            if own {
                return peer.exchanges.take(origin, EXCHANGE_RATE, now) || self.rate_limited(origin);
            }
        }
        let mut passed = self.limits.source(EXCHANGE, origin, now);
        if let Origin::Direct(from) = origin {
            let network = (EXCHANGE_NETWORK, prefix(from.ip()));
            passed = passed && self.limits.sources.allow(network, PREFIX_RATE, now);
        }
        if !passed {
            return self.rate_limited(origin);
        }
        let taken = self.limits.strangers.take(origin, STRANGERS, now)
            || (self.gate.trusted.contains(&node) && self.limits.trusted.take(origin, TRUSTED, now));
        self.drops.strangers_limited += u64::from(!taken);
        taken
    }

    /// A handshake frame that names what only somebody who saw our last frame can know: our session id, or our challenge. It
    /// has a budget of its own, so that forged key exchanges of a peer cannot keep its rekeys from coming about.
    pub(super) fn awaited(&mut self, now: Instant, pila: &Pila<'_>, origin: Origin) -> bool {
        if !self.upgrades() || self.gate.shuts_out(now, pila.node) {
            return false;
        }
        let Trailing::Block(block) = capability::parse(pila.trailing) else { return false };
        let Some(peer) = self.peers.get_mut(&pila.node) else { return false };
        let Some(upgrade) = &peer.upgrade else { return false };
        let terms = || Terms::parse(Message1::parse(block.body).ok()?.payload);
        let fits = match block.kind {
            Kind::Hello => false,
            Kind::First => terms().is_some_and(|terms| upgrade.awaits(now, &terms.challenge)),
            Kind::Second | Kind::Retry => upgrade.pending.as_ref().is_some_and(|p| p.local == block.answers),
        };
        fits && peer.awaited.take(origin, EXCHANGE_RATE, now)
    }

    /// Counts; always false.
    fn rate_limited(&mut self, origin: Origin) -> bool {
        match origin {
            Origin::Direct(_) => self.drops.rate_limited_direct += 1,
            Origin::Relay(..) => self.drops.rate_limited_relay += 1,
        }
        false
    }

    /// The frame carries another key than the one known for its node, and the registry was asked about that a moment ago.
    pub(super) fn contradicts(&self, now: Instant, pila: &Pila<'_>) -> bool {
        let node = pila.node;
        self.keys.get(&node).is_some_and(|known| known != pila.ed25519)
            && !self.lookups.contains_key(&node)
            && self.disputed.get(&node).is_none_or(|(key, _)| key != pila.ed25519)
            && self.limits.rechecks.active(node, now, RECHECK_EVERY)
    }

    /// The registry may be asked for a key because of this frame.
    pub(super) fn may_look_up(&mut self, now: Instant, node: NodeId, origin: Origin) -> bool {
        self.lookups.contains_key(&node)
            || self.peers.contains_key(&node)
            || self.limits.lookups.take(origin, STRANGER_LOOKUPS, now)
            || (self.gate.trusted.contains(&node) && self.limits.trusted.take(origin, TRUSTED, now))
    }
}
