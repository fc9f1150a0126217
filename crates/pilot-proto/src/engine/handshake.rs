//! Key exchange: PILA and PILK in and out, sessions installed, peers' keys looked up (spec 02 sections 6, 7, 11).

use super::admit::RECHECK_EVERY;
use super::peer::{CONFIRM, Peer, Previous, ROUTE_FRESH, ROUTE_PATIENCE, RouteState};
use super::{Engine, Event, MAX_DISPUTED, MAX_KEYS, MAX_PEERS, Origin};
use crate::NodeId;
use crate::crypto;
use crate::path::Choice;
use crate::stream::DialError;
use crate::tunnel::exchange::{ANSWER_EVERY, DUPLICATE, Exchange, MAX_ABANDONED, Pace, SILENT};
use crate::tunnel::session::Session;
use crate::wire::beacon::{Message, relay_header};
use crate::wire::frame::{self, Frame, Pila, Pilk};
use rand_core::Rng as _;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Nodes whose keys may be looked up at the same time.
pub(super) const MAX_LOOKUPS: usize = 256;
/// Of those, what is left for peers we want to reach.
const RESERVED_LOOKUPS: usize = 64;
/// Frames held per node until its key is known.
const MAX_HELD: usize = 8;
/// Largest frame held (bytes).
const MAX_HELD_LEN: usize = 2048;
/// A lookup the driver never answered is forgotten after this time.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A failed lookup is remembered for this long.
const FAILED_LOOKUP: Duration = Duration::from_secs(3);
/// The signature of a disputed key is checked at most this often per node.
const DISPUTE_EVERY: Duration = Duration::from_millis(500);
/// A key exchange that would gain by the peer's key waits this long for it.
const KEY_PATIENCE: Duration = Duration::from_millis(10);
/// Direct addresses that get the first key exchange.
const MAX_FIRST_CONTACT: usize = 3;

/// A key lookup under way and the frames that wait for it, in order.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) asked: Instant,
    held: VecDeque<(Origin, Vec<u8>)>,
}

impl Engine {
    /// Steps 4 to 8 of spec 02 section 6. `ask`: the registry may be asked; false when it just was.
    pub(super) fn receive_pila(&mut self, now: Instant, pila: &Pila<'_>, origin: Origin, ask: bool) {
        let node = pila.node;
        if self.lookups.contains_key(&node) && ask {
            return self.hold(node, origin, &pila.to_vec());
        }
        let perhaps_rotated = match self.keys.get(&node) {
            Some(known) if known == pila.ed25519 => false,
            // The known one stays valid until the registry has spoken.
            Some(_) if ask && self.limits.rechecks.once(node, now, RECHECK_EVERY) => true,
            Some(_) => {
                self.drops.key_mismatch += 1;
                return self.other_key(now, pila);
            }
            None if ask && !self.limits.failed_lookups.active(node, now) => true,
            None => return self.drops.key_unknown += 1,
        };
        if perhaps_rotated {
            if !self.may_look_up(now, node, origin) {
                return self.drops.lookups_limited += 1;
            }
            self.look_up(now, node, MAX_LOOKUPS - RESERVED_LOOKUPS);
            return self.hold(node, origin, &pila.to_vec());
        }
        let seen = (*pila.ed25519, *pila.x25519, *pila.signature);
        let repeated = match self.peers.get(&node) {
            Some(peer) if peer.abandoned.contains(pila.x25519) => return self.drops.abandoned_key += 1,
            Some(peer) => peer.verified == Some(seen),
            None => false,
        };
        if self.receive_capable(now, pila, origin) {
            return;
        }
        let signed = || frame::pila_signed(node, pila.x25519);
        if !repeated && !crypto::verify(pila.ed25519, &signed(), pila.signature) {
            return self.drops.bad_signature += 1;
        }
        if self.insists(node) {
            return self.refuse_downgrade(now, node, "PILA", true);
        }
        if let Some(upgrade) = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut()) {
            // A handshake under way goes on: anybody can repeat a key exchange with its block cut off.
            upgrade.fallback = None;
        }
        self.accept_exchange(now, node, pila.x25519, Some(pila.ed25519), origin);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.verified = Some(seen);
        }
    }

    /// Reports that somebody holds the key which the registry names for a node bound to another, once in a while. Dials to
    /// the node are pointless then: whoever answers is not whom they are for.
    fn other_key(&mut self, now: Instant, pila: &Pila<'_>) {
        let node = pila.node;
        let Some((key, reason)) = self.disputed.get(&node) else { return };
        if key != pila.ed25519
            || !self.limits.disputes.once(node, now, DISPUTE_EVERY)
            || !crypto::verify(pila.ed25519, &frame::pila_signed(node, pila.x25519), pila.signature)
        {
            return;
        }
        if self.peers.get(&node).is_some_and(|peer| !peer.linked(now)) {
            let reason = reason.clone();
            self.streams.fail_dials(now, node, DialError::Resolve { node, reason });
        }
        self.emit(Event::OtherKeyProven { node, key: *pila.ed25519 });
    }

    pub(super) fn key_disputed(&mut self, node: NodeId, key: [u8; 32], reason: String) {
        if self.disputed.len() >= MAX_DISPUTED && !self.disputed.contains_key(&node) {
            self.disputed.pop_first();
        }
        self.disputed.insert(node, (key, reason));
    }

    /// Spec 02 section 7.
    pub(super) fn receive_pilk(&mut self, now: Instant, pilk: &Pilk<'_>, origin: Origin, ask: bool) {
        let node = pilk.node;
        if self.lookups.contains_key(&node) && ask {
            return self.hold(node, origin, &frame::pilk(node, pilk.x25519));
        }
        if self.keys.contains_key(&node) {
            return self.answer_key_request(now, node, origin);
        }
        if ask && !self.limits.failed_lookups.active(node, now) {
            if !self.may_look_up(now, node, origin) {
                return self.drops.lookups_limited += 1;
            }
            self.look_up(now, node, MAX_LOOKUPS - RESERVED_LOOKUPS);
            return self.hold(node, origin, &frame::pilk(node, pilk.x25519));
        }
        let authenticated =
            self.peers.get(&node).and_then(|p| p.session.as_ref()).is_some_and(|s| s.authenticated);
        if authenticated || !self.config.allow_anonymous.contains(&node) {
            return self.drops.anonymous_refused += 1;
        }
        if self.insists(node) {
            return self.refuse_downgrade(now, node, "PILK", false);
        }
        self.accept_exchange(now, node, pilk.x25519, None, origin);
    }

    /// A registered peer lost its half of the session: it gets our PILA. A peer we want to reach gets it until it answers;
    /// for others nothing is remembered, because nothing proves that the question was genuine.
    fn answer_key_request(&mut self, now: Instant, node: NodeId, origin: Origin) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| !peer.linked(now)) {
            if let Origin::Direct(from) = origin
                && !self.config.relay_only
            {
                peer.path.learn(from);
            }
            if peer.exchange.is_none() && !peer.in_cooldown(now) {
                let mut exchange = Exchange::new(Pace::Calm, now);
                exchange.sent(now);
                peer.exchange = Some(exchange);
                self.exchanging += 1;
                self.touch(node);
            }
        }
        let pila = self.half(node).hello.clone();
        self.answer(origin, node, pila);
    }

    /// An exchange whose sender is settled: install, replace or confirm the session.
    pub(super) fn accept_exchange(
        &mut self,
        now: Instant,
        node: NodeId,
        x25519: &[u8; 32],
        proven: Option<&[u8; 32]>,
        origin: Origin,
    ) {
        let authenticated = proven.is_some();
        if let Some(peer) = self.peers.get_mut(&node) {
            if peer.abandoned.contains(x25519) {
                return self.drops.abandoned_key += 1;
            }
            if let Some(session) = peer.session.as_mut().filter(|s| s.peer_key == *x25519) {
                session.authenticated |= authenticated;
                return self.same_key_exchange(now, node, authenticated, origin);
            }
        }
        let back = self
            .peers
            .get(&node)
            .and_then(|peer| peer.previous.as_ref())
            .is_some_and(|previous| previous.session.peer_key == *x25519);
        let known = self.peers.contains_key(&node);
        if !self.enter(now, node) {
            return;
        }
        let key = if back { None } else { self.half(node).session_key(x25519) };
        if !back && key.is_none() {
            if !known {
                self.remove_peer(node);
            }
            return self.drops.low_order_key += 1;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let rekeyed = peer.session.is_some();
        let Some(key) = key else {
            // The key that was replaced a moment ago: nothing has shown yet which of the two is the peer's.
            if let (Some(previous), Some(session)) = (&mut peer.previous, &mut peer.session) {
                std::mem::swap(&mut previous.session, session);
            }
            return self.established(now, node, proven, rekeyed, origin);
        };
        let mut prefix = [0; 4];
        self.rng.fill_bytes(&mut prefix);
        let session = Session::new(key, *x25519, authenticated, prefix, now);
        if let Some(replaced) = peer.session.replace(session) {
            let direct = peer.path.direct().filter(|_| peer.path.proven());
            // If the session replaced now was itself never confirmed, the one before it stays.
            peer.previous.get_or_insert(Previous { session: replaced, direct });
        }
        self.established(now, node, proven, rekeyed, origin);
    }

    /// The effects of an installed session.
    fn established(
        &mut self,
        now: Instant,
        node: NodeId,
        proven: Option<&[u8; 32]>,
        rekeyed: bool,
        origin: Origin,
    ) {
        let pila = self.half(node).hello.clone();
        self.answer(origin, node, pila);
        self.put_to_use(now, node, proven, rekeyed, origin);
    }

    /// Our own exchange with this peer is over.
    pub(super) fn settle_exchange(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.exchange.take().is_some()
        {
            self.exchanging = self.exchanging.saturating_sub(1);
            self.touch(node);
        }
    }

    /// There is a session with a peer: what waited for it is sent, and the rest is told.
    pub(super) fn put_to_use(
        &mut self,
        now: Instant,
        node: NodeId,
        proven: Option<&[u8; 32]>,
        rekeyed: bool,
        origin: Origin,
    ) {
        self.settle_exchange(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.last_in = now;
        peer.cooldown = None;
        peer.unreadable = false;
        peer.recovery.restarted(now);
        peer.last_app.get_or_insert(now);
        match origin {
            Origin::Direct(from) if !self.config.relay_only => peer.path.contacted_directly(now, from),
            _ => {
                if rekeyed {
                    peer.path.reset();
                }
                peer.path.contacted_by_relay(now);
            }
        }
        peer.calls.forget();
        let salvaged = peer.salvage.take(now);
        let pending = peer.pending.take();
        if !pending.is_empty() {
            self.pending_peers = self.pending_peers.saturating_sub(1);
        }
        let relay = matches!(origin, Origin::Relay(..));
        self.publish_established(node, proven.is_some(), relay, rekeyed);
        if let Some(key) = proven {
            self.emit(Event::PeerKeyProven { node, key: *key });
        }
        if rekeyed && !salvaged.is_empty() {
            let fields = serde_json::json!({ "peer_node_id": node, "replayed": salvaged.len() });
            self.emit(Event::Publish("tunnel.desync_salvage", fields));
        }
        if rekeyed {
            for packet in salvaged {
                self.send_now(now, node, &packet, None);
            }
        }
        if rekeyed || self.peers.get(&node).is_some_and(|peer| !peer.same_process() && !peer.is_ours(now)) {
            // The answer confirms the new session to both sides.
            self.send_watch_probe(now, node);
        }
        for packet in pending {
            self.send_first(now, node, &packet);
        }
        self.call_first(now, node);
        self.touch(node);
        self.streams.path_changed(now, node);
    }

    /// An exchange with the key already in use (spec 02 section 6): the session stays as it is.
    fn same_key_exchange(&mut self, now: Instant, node: NodeId, authenticated: bool, origin: Origin) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(session) = &peer.session else { return };
        let pending = peer.exchange.take().is_some();
        if pending {
            self.exchanging = self.exchanging.saturating_sub(1);
        }
        if now.saturating_duration_since(session.installed) < DUPLICATE {
            self.drops.duplicate_exchange += 1;
            self.touch(node);
            return;
        }
        peer.cooldown = None;
        // PILA has no freshness: where it came from is worth a probe, never a change of address by itself.
        if let Origin::Direct(from) = origin
            && !self.config.relay_only
            && peer.path.direct() != Some(from)
        {
            peer.path.learn(from);
            if !peer.path.proven() || peer.path.silent_for(now, SILENT) {
                peer.path.race(now);
            }
        }
        let silent = now.saturating_duration_since(session.heard()) > SILENT;
        let may_answer = peer.answered.is_none_or(|at| now.saturating_duration_since(at) >= ANSWER_EVERY);
        let answer = authenticated && silent && may_answer;
        if answer {
            peer.answered = Some(now);
        }
        let waiting = peer.pending.take();
        if !waiting.is_empty() {
            self.pending_peers = self.pending_peers.saturating_sub(1);
        }
        if answer {
            let pila = self.half(node).hello.clone();
            self.answer(origin, node, pila);
            // The keepalive shows a peer that still holds the session that all is well, so that two nodes cannot
            // go on answering each other.
            self.send_keepalive(now, node, Some(origin));
        }
        for packet in waiting {
            self.send_first(now, node, &packet);
        }
        self.publish_established(node, authenticated, matches!(origin, Origin::Relay(..)), false);
        self.touch(node);
    }

    /// The replaced session still opens fresh frames, and its replacement has opened none: somebody repeated an
    /// exchange the peer made long ago. Take the replacement back.
    pub(super) fn restore_replaced(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let doubtful = peer
            .session
            .as_ref()
            .is_some_and(|s| s.decrypted.is_none() && now.saturating_duration_since(s.installed) > CONFIRM);
        if !doubtful {
            return;
        }
        let Some(previous) = peer.previous.take() else { return };
        if let Some(bogus) = peer.session.replace(previous.session) {
            Self::abandon(&mut peer.abandoned, bogus.peer_key);
        }
        if let Some(direct) = previous.direct {
            peer.path.contacted_directly(now, direct);
        }
        self.streams.path_changed(now, node);
        self.touch(node);
    }

    pub(super) fn abandon(abandoned: &mut VecDeque<[u8; 32]>, key: [u8; 32]) {
        if abandoned.contains(&key) {
            return;
        }
        if abandoned.len() >= MAX_ABANDONED {
            abandoned.pop_front();
        }
        abandoned.push_back(key);
    }

    fn publish_established(&mut self, node: NodeId, authenticated: bool, relay: bool, rekeyed: bool) {
        let mut fields =
            serde_json::json!({ "authenticated": authenticated, "relay": relay, "rekeyed": rekeyed });
        if self.gate.trusted.contains(&node) {
            fields["peer_node_id"] = node.into();
        }
        self.emit(Event::TunnelEstablished { node, authenticated, relay, rekeyed });
        self.emit(Event::Publish("tunnel.established", fields));
    }

    // ---- key lookups ---------------------------------------------------------------------------------------

    /// Asks the driver for a node's key, unless it is known, asked for, or failed a moment ago.
    pub(super) fn want_key(&mut self, now: Instant, node: NodeId) {
        let failed = self.limits.failed_lookups.active(node, now);
        if self.config.encrypt && !failed && !self.keys.contains_key(&node) {
            self.look_up(now, node, MAX_LOOKUPS);
        }
    }

    /// Asks the driver for a node's key, if fewer than `most` are asked for.
    fn look_up(&mut self, now: Instant, node: NodeId, most: usize) {
        if self.lookups.contains_key(&node) || self.lookups.len() >= most {
            return;
        }
        self.lookups.insert(node, Lookup { asked: now, held: VecDeque::new() });
        self.emit(Event::NeedKey(node));
    }

    /// Keeps a frame until its sender's key is known.
    fn hold(&mut self, node: NodeId, origin: Origin, frame: &[u8]) {
        match self.lookups.get_mut(&node) {
            Some(lookup) if lookup.held.len() < MAX_HELD && frame.len() <= MAX_HELD_LEN => {
                lookup.held.push_back((origin, frame.to_vec()));
            }
            _ => self.drops.lookup_overflow += 1,
        }
    }

    /// An encrypted packet must not overtake the exchange that makes it readable.
    pub(super) fn hold_pils(&mut self, node: NodeId, origin: Origin, frame: &[u8]) -> bool {
        let readable = self.peers.get(&node).is_some_and(|p| p.session.is_some());
        let waiting = self.lookups.get(&node).is_some_and(|l| !l.held.is_empty());
        if readable || !waiting {
            return false;
        }
        self.hold(node, origin, frame);
        true
    }

    pub(super) fn key_answer(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        match key {
            Some(key) => {
                if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&node) {
                    let peers = &self.peers;
                    self.keys.retain(|node, _| peers.contains_key(node));
                }
                if self.disputed.get(&node).is_some_and(|(disputed, _)| *disputed == key) {
                    self.disputed.remove(&node);
                }
                self.keys.insert(node, key);
                self.limits.failed_lookups.clear(node);
            }
            None => {
                self.limits.failed_lookups.set(node, now, now + FAILED_LOOKUP);
            }
        }
        let Some(lookup) = self.lookups.remove(&node) else { return };
        let waits = |peer: &Peer| peer.exchange.is_some_and(|exchange| exchange.attempts == 0);
        if self.peers.get(&node).is_some_and(waits) {
            self.send_exchange(now, node);
            self.touch(node);
        }
        for (origin, mut held) in lookup.held {
            match Frame::parse(&held) {
                Ok(Frame::Pila(pila)) => self.receive_pila(now, &pila, origin, false),
                Ok(Frame::Pilk(pilk)) => self.receive_pilk(now, &pilk, origin, false),
                Ok(Frame::Pils(header)) => self.receive_pils(now, header, origin, &mut held),
                _ => {}
            }
        }
    }

    pub(super) fn expire_lookups(&mut self, now: Instant) {
        while let Some(node) = self
            .lookups
            .iter()
            .find(|(_, l)| now.saturating_duration_since(l.asked) >= LOOKUP_TIMEOUT)
            .map(|(node, _)| *node)
        {
            self.key_answer(now, node, None);
        }
    }

    // ---- reaching a peer -----------------------------------------------------------------------------------

    /// Makes sure the peer table has this node. False: it is full.
    pub(super) fn enter(&mut self, now: Instant, node: NodeId) -> bool {
        if self.peers.contains_key(&node) {
            return true;
        }
        if self.peers.len() >= MAX_PEERS {
            self.drops.peer_table_full += 1;
            return false;
        }
        let (half, taken) = self.half_for_new_peer(node);
        self.peers.insert(node, Peer::new(now, half, taken));
        self.emit(Event::Publish("tunnel.peer_added", serde_json::json!({ "peer_node_id": node })));
        self.touch(node);
        true
    }

    /// We want to talk to this node: find out where it is and agree on a key.
    pub(super) fn reach(&mut self, now: Instant, node: NodeId) {
        if node == self.node || !self.enter(now, node) {
            return;
        }
        self.want_key(now, node);
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.linked(now) {
            return;
        }
        // Through the relay the exchange needs no address: with a node known as one of ours it does not wait for the
        // directory. With others it does: the directory may refuse the way to a private node, and a reference that hears us
        // through the relay first answers there for up to 15 s (spec 04 sections 8 and 11).
        let relayed = self.beacons.chosen().is_some() && self.insists(node);
        let located = relayed || peer.path.addresses().next().is_some();
        match peer.route {
            RouteState::Known(at) if now.saturating_duration_since(at) < ROUTE_FRESH => {}
            _ => self.want_route(now, node),
        }
        if located {
            self.start_exchange(now, node);
        }
    }

    /// Asks the driver where a node is, unless it is being asked.
    pub(super) fn want_route(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let RouteState::Asked(at) = peer.route
            && now.saturating_duration_since(at) < ROUTE_PATIENCE
        {
            return;
        }
        peer.route = RouteState::Asked(now);
        self.emit(Event::NeedRoute(node));
    }

    pub(super) fn route_answer(&mut self, now: Instant, node: NodeId, route: Result<super::Route, String>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match route {
            Ok(route) => {
                peer.route = RouteState::Known(now);
                peer.path.relay_only = route.relay_only;
                let unplaced = peer.path.addresses().next().is_none();
                if !self.config.relay_only && !route.relay_only {
                    peer.path.set_routes(&route.direct);
                }
                if self.beacons.chosen().is_none() && peer.path.addresses().next().is_none() {
                    let reason = format!("node {node} has no real address");
                    return self.route_failed(now, node, reason);
                }
                if peer.linked(now) {
                    if !peer.path.proven() && !self.config.relay_only {
                        peer.path.race(now);
                        self.request_punch_of_reference(now, node);
                    }
                    return self.touch(node);
                }
                if !self.config.encrypt {
                    self.flush_pending(now, node);
                    return self.streams.path_changed(now, node);
                }
                if peer.exchange.is_none() || unplaced {
                    self.request_punch(now, node);
                }
                if unplaced {
                    self.send_exchange_straight(now, node);
                }
                self.start_exchange(now, node);
            }
            Err(reason) => self.route_failed(now, node, reason),
        }
    }

    fn route_failed(&mut self, now: Instant, node: NodeId, reason: String) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.route = RouteState::Unknown;
        // A peer that found us first can be answered without the directory.
        if peer.linked(now) || peer.path.addresses().next().is_some() {
            return;
        }
        self.streams.fail_dials(now, node, DialError::Resolve { node, reason });
        self.remove_peer(node);
    }

    /// Asks the beacon to let the peer and us punch.
    pub(super) fn request_punch(&mut self, now: Instant, node: NodeId) {
        let Some(beacon) = self.relay_for(node).filter(|_| self.punching) else { return };
        let Some(peer) = self.peers.get(&node) else { return };
        if self.config.relay_only || peer.path.relay_only || peer.path.addresses().next().is_none() {
            return;
        }
        let mut bytes = Vec::with_capacity(9);
        Message::PunchRequest { requester: self.node, target: node }.emit(&mut bytes);
        self.send_control(beacon, bytes);
        if self.punches.len() < MAX_LOOKUPS || self.punches.contains_key(&node) {
            self.punches.insert(node, now);
        }
    }

    /// Starts a key exchange at the eager pace, or speeds up the one under way.
    pub(super) fn start_exchange(&mut self, now: Instant, node: NodeId) {
        if !self.config.encrypt {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.in_cooldown(now) {
            return;
        }
        match &mut peer.exchange {
            Some(exchange) => exchange.hurry(now),
            None => {
                // Message 1 of the upgrade needs the peer's key, and a driver that knows it answers at once. What goes out
                // without costs a round trip more.
                let wait =
                    self.lookups.contains_key(&node) && self.config.session_upgrade && node > self.node;
                let first = if wait { now + KEY_PATIENCE } else { now };
                peer.exchange = Some(Exchange::new(Pace::Eager, first));
                self.exchanging += 1;
                if !wait {
                    self.send_exchange(now, node);
                }
            }
        }
        self.touch(node);
    }

    /// Sends our key to a peer, straight to its addresses and through the relay, and sets the next try.
    pub(super) fn send_exchange(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let linked = peer.linked(now);
        let Some(exchange) = &mut peer.exchange else { return };
        let ask = !linked && (exchange.attempts > 0 || peer.unreadable);
        exchange.sent(now);
        let (eager, attempt) = (exchange.eager(), exchange.attempts);
        let never_direct = self.config.relay_only || peer.path.relay_only;
        let direct: Vec<_> = match peer.path.choose(self.beacons.chosen().is_some(), never_direct) {
            _ if never_direct => Vec::new(),
            Choice::Direct(addr) if linked => vec![addr],
            _ => peer.path.addresses().take(MAX_FIRST_CONTACT).collect(),
        };
        let half = peer.half.clone();
        let pila = self.exchange_frame(now, node, eager);
        let frames: &[&[u8]] = if ask { &[&pila, &half.pilk] } else { &[&pila] };
        for frame in frames {
            for addr in &direct {
                self.send_control(*addr, frame.to_vec());
            }
            self.send_around(now, node, frame, attempt);
        }
    }

    /// The exchange under way went through the relay alone: now there are addresses, too.
    fn send_exchange_straight(&mut self, now: Instant, node: NodeId) {
        let sent = |peer: &Peer| peer.exchange.is_some_and(|exchange| exchange.attempts > 0);
        if self.config.relay_only || !self.peers.get(&node).is_some_and(|p| sent(p) && !p.path.relay_only) {
            return;
        }
        let frame = self.exchange_frame(now, node, true);
        let Some(peer) = self.peers.get(&node) else { return };
        let addresses: Vec<_> = peer.path.addresses().take(MAX_FIRST_CONTACT).collect();
        for addr in addresses {
            self.send_control(addr, frame.clone());
        }
    }

    /// A reference peer can only be punched by the beacon; our own are asked themselves.
    fn request_punch_of_reference(&mut self, now: Instant, node: NodeId) {
        if self.peers.get(&node).is_some_and(|peer| peer.session_kind(now) != "upgraded") {
            self.request_punch(now, node);
        }
    }

    /// Sends a frame back the way a frame of `node` came.
    pub(super) fn answer(&mut self, origin: Origin, node: NodeId, frame: Vec<u8>) {
        match origin {
            Origin::Direct(from) if !self.config.relay_only => self.send_control(from, frame),
            Origin::Direct(_) => self.send_relayed(node, &frame),
            Origin::Relay(_, via) => self.send_through(via, node, &frame),
        }
    }

    /// Sends a frame through the relay.
    pub(super) fn send_relayed(&mut self, node: NodeId, frame: &[u8]) {
        if let Some(beacon) = self.relay_for(node) {
            self.send_through(beacon, node, frame);
        }
    }

    /// Sends a frame that asks for an answer through the relay, the `attempt`th time (from 1). From the second time on it goes
    /// through one more beacon, each in its turn: the first may be lost, or not know the peer.
    pub(super) fn send_around(&mut self, now: Instant, node: NodeId, frame: &[u8], attempt: u32) {
        let Some(first) = self.relay_for(node) else { return };
        self.note_relayed(now, first);
        self.send_through(first, node, frame);
        let turn = self.relay_in_turn(first, attempt.saturating_sub(1) as usize);
        if let Some(other) = turn {
            self.send_through(other, node, frame);
        }
    }

    fn send_through(&mut self, beacon: SocketAddr, node: NodeId, frame: &[u8]) {
        let mut bytes = relay_header(self.node, node).to_vec();
        bytes.extend_from_slice(frame);
        self.send_control(beacon, bytes);
    }
}
