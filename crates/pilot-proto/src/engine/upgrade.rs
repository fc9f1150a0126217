//! The session upgrade among our own nodes: handshake frames in and out, sessions put to use, rekeys (docs/extensions.md,
//! "Session upgrade"; the argument is in docs/security/session-upgrade.md).
//!
//! Checks run from cheap to expensive: receiver, role and expectation, copies, signature, key agreement.

use super::peer::Peer;
use super::receive::Opened;
use super::{Engine, Event, Origin};
use crate::NodeId;
use crate::crypto::{self, TunnelSecret};
use crate::path::Choice;
use crate::tunnel::exchange::{Exchange, Pace};
use crate::tunnel::noise::{self, Initiator, Message1, NoiseError};
use crate::tunnel::pending::Under;
use crate::tunnel::upgrade::{
    Challenge, Change, Fallback, GRACE, Next, PATIENCE, Pending, RESTART_AFTER, RETRY_AFTER, Slot, Upgrade,
    prologue,
};
use crate::tunnel::upgraded::{REKEY_FRAMES, Refused, Upgraded};
use crate::wire::capability::{self, Block, Kind, Terms, Trailing};
use crate::wire::frame::{PILS_HEADER_LEN, Pila, Pilu};
use rand_core::Rng as _;
use std::time::{Duration, Instant};

/// What this version can do beyond the upgrade itself: nothing yet.
const CAPABILITIES: u16 = 0;
/// Distance of greetings sent in answer to greetings.
const GREET_EVERY: Duration = Duration::from_millis(250);
/// A session that opened a frame within this time is readable, whatever unreadable frames claim.
const READABLE: Duration = Duration::from_millis(500);
/// Sends of a rekey from which the relay is tried as well.
const RELAY_FROM: u32 = 2;

impl Engine {
    // ---- frames out ------------------------------------------------------------------------------------------

    /// The upgrade is on, and there is a node id to bind sessions to.
    pub(super) fn upgrades(&self) -> bool {
        self.config.session_upgrade && self.config.encrypt && self.node != 0
    }

    /// The key exchange frame that is to lead to a session with this peer: message 1, or as the higher node a greeting
    /// that asks for one. `eager`: we want to talk; otherwise nothing has proven yet that anybody asked, and nothing is
    /// computed.
    pub(super) fn exchange_frame(&mut self, now: Instant, node: NodeId, eager: bool) -> Vec<u8> {
        let ask_only = !self.upgrades() || !eager;
        let frame = match self.peers.get_mut(&node) {
            Some(_) if ask_only => None,
            Some(_) if node < self.node => Some(self.greeting(now, node, Kind::Hello, 0)),
            Some(peer) => {
                let upgrade = peer.upgrade.get_or_insert_default();
                let key = self.keys.get(&node);
                let ready =
                    upgrade.pending.as_ref().filter(|p| Some(&p.peer_key) == key).map(|p| p.frame.clone());
                let ticket = upgrade.ticket.unwrap_or_default();
                ready.or_else(|| self.start_handshake(now, node, ticket))
            }
            None => None,
        };
        frame.unwrap_or_else(|| self.half(node).hello.clone())
    }

    /// A greeting with a challenge for this peer.
    fn greeting(&mut self, now: Instant, node: NodeId, kind: Kind, answers: u32) -> Vec<u8> {
        let Some(peer) = self.peers.get_mut(&node) else { return self.half.hello.clone() };
        let rng = &mut self.rng;
        let challenge = peer.upgrade.get_or_insert_default().challenge(now, || {
            let mut challenge = Challenge::default();
            rng.fill_bytes(&mut challenge);
            challenge
        });
        let terms = Terms { capabilities: CAPABILITIES, session: 0, challenge };
        capability::frame(&self.identity, &peer.half.pila, kind, node, answers, &terms.greeting())
    }

    fn ephemeral(&mut self) -> Option<TunnelSecret> {
        TunnelSecret::from_bytes(&*self.ephemerals.draw()?)
    }

    /// Begins a handshake as initiator and returns its frame, which is also kept for repetition.
    fn start_handshake(&mut self, now: Instant, node: NodeId, challenge: Challenge) -> Option<Vec<u8>> {
        let peer_key = *self.keys.get(&node)?;
        let ephemeral = self.ephemeral()?;
        let rng = &mut self.rng;
        let peer = self.peers.get_mut(&node)?;
        let half = peer.half.clone();
        let upgrade = peer.upgrade.get_or_insert_default();
        let local = upgrade.free_name(|| rng.next_u32());
        let terms = Terms { capabilities: CAPABILITIES, session: local, challenge };
        let prologue = prologue((self.node, self.identity.public_key()), (node, &peer_key));
        let mut body = Vec::new();
        let noise = Initiator::start(&prologue, half.secret.clone(), ephemeral, &terms.payload(), &mut body);
        let frame = capability::frame(&self.identity, &half.pila, Kind::First, node, 0, &body);
        upgrade.pending =
            Some(Pending { noise, frame: frame.clone(), local, peer_key, challenge, started: now });
        self.touch(node);
        Some(frame)
    }

    // ---- frames in -------------------------------------------------------------------------------------------

    /// A key exchange whose key is the registry's. True: it came with a block and was dealt with here.
    pub(super) fn receive_capable(&mut self, now: Instant, pila: &Pila<'_>, origin: Origin) -> bool {
        if !self.upgrades() {
            return false;
        }
        match capability::parse(pila.trailing) {
            Trailing::None => return false,
            Trailing::Malformed => self.drops.bad_block += 1,
            Trailing::Block(block) => self.receive_block(now, pila, &block, origin),
        }
        true
    }

    fn receive_block(&mut self, now: Instant, pila: &Pila<'_>, block: &Block<'_>, origin: Origin) {
        let node = pila.node;
        let anybody = block.kind == Kind::Hello && block.receiver == 0;
        if block.receiver != self.node && !anybody {
            return self.drops.wrong_receiver += 1;
        }
        let signed = capability::signed(&pila.bytes(), block.signed);
        let digest = crypto::sha256(&[&signed[..], &block.signature[..]].concat());
        if !self.expects(now, node, block, &digest, origin) {
            return;
        }
        if !crypto::verify(pila.ed25519, &signed, block.signature) {
            return self.drops.bad_signature += 1;
        }
        if !self.enter(now, node) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let upgrade = peer.upgrade.get_or_insert_default();
        (upgrade.offered, upgrade.last_word) = (Some(now), None);
        match block.kind {
            Kind::Hello => self.receive_greeting(now, pila, block, origin),
            Kind::First => self.receive_first(now, pila, block, digest, origin),
            Kind::Second => self.receive_second(now, pila, block, origin),
            Kind::Retry => self.receive_retry(now, node, block, origin),
        }
        self.touch(node);
    }

    /// The checks that cost nothing: whether this frame has a place in what is going on.
    fn expects(
        &mut self,
        now: Instant,
        node: NodeId,
        block: &Block<'_>,
        digest: &[u8; 32],
        origin: Origin,
    ) -> bool {
        let initiator = self.node < node;
        let for_role = match block.kind {
            Kind::Hello => true,
            Kind::First => !initiator,
            Kind::Second | Kind::Retry => initiator,
        };
        let upgrade = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut());
        let (mut expected, mut copy, mut again) = (for_role, false, None);
        match (block.kind, upgrade) {
            (Kind::Hello, Some(upgrade)) => copy = upgrade.is_copy(now, digest),
            (Kind::First, Some(upgrade)) if for_role => {
                again =
                    upgrade.answered.as_ref().filter(|(of, _)| of == digest).map(|(_, frame)| frame.clone());
                copy = again.is_none() && (upgrade.spent.contains(digest) || upgrade.is_copy(now, digest));
            }
            (Kind::Second | Kind::Retry, upgrade) => {
                let pending = upgrade.and_then(|upgrade| upgrade.pending.as_ref());
                expected &= pending.is_some_and(|pending| pending.local == block.answers);
            }
            _ => {}
        }
        if !expected {
            self.drops.unexpected_handshake += 1;
            return false;
        }
        if let Some(frame) = again {
            // The same message 1 gets the same message 2: repetition can fork nothing.
            self.answer(origin, node, frame);
            return false;
        }
        self.drops.duplicate_exchange += u64::from(copy);
        !copy
    }

    fn receive_greeting(&mut self, now: Instant, pila: &Pila<'_>, block: &Block<'_>, origin: Origin) {
        let node = pila.node;
        let Some(terms) = Terms::parse_greeting(block.body) else { return self.drops.bad_block += 1 };
        self.await_upgrade(now, node, pila.x25519, origin);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let linked = peer.linked(now);
        let upgrade = peer.upgrade.get_or_insert_default();
        let live = upgrade.live(now);
        if node < self.node {
            // It wants to talk, but lacks something; our challenge lets it begin at once.
            let due = upgrade.greeted.is_none_or(|at| now.saturating_duration_since(at) >= GREET_EVERY);
            if !live && due && !(linked && block.receiver == 0) {
                upgrade.greeted = Some(now);
                let greeting = self.greeting(now, node, Kind::Hello, 0);
                self.answer(origin, node, greeting);
            }
            return;
        }
        let young = |at: Instant| now.saturating_duration_since(at) < RESTART_AFTER;
        match &upgrade.pending {
            Some(pending) if pending.challenge == terms.challenge => {
                let frame = pending.frame.clone();
                return self.answer(origin, node, frame);
            }
            // It will arrive, or be repeated.
            Some(pending) if young(pending.started) => return,
            // A greeting for anybody asks for nothing we have; one that came late asks for what has come about meanwhile.
            None if live
                && (block.receiver == 0 || upgrade.current.as_ref().is_some_and(|s| young(s.installed))) =>
            {
                return;
            }
            _ => {}
        }
        if let Some(frame) = self.start_handshake(now, node, terms.challenge) {
            self.answer(origin, node, frame);
        }
    }

    /// Message 1: answered at once if there is no session it could disturb or if it is proven fresh, else with a challenge.
    fn receive_first(
        &mut self,
        now: Instant,
        pila: &Pila<'_>,
        block: &Block<'_>,
        digest: [u8; 32],
        origin: Origin,
    ) {
        let node = pila.node;
        let parsed = Message1::parse(block.body).ok();
        let Some((first, terms)) = parsed.and_then(|m| Some((m, Terms::parse(m.payload)?))) else {
            return self.drops.bad_block += 1;
        };
        if first.remote_static != pila.x25519 || terms.session == 0 {
            return self.drops.static_mismatch += 1;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let upgrade = peer.upgrade.get_or_insert_default();
        let fresh = upgrade.knows(now, &terms.challenge);
        let live = upgrade.live(now);
        if !fresh && (live || upgrade.next.is_some()) {
            let retry = self.greeting(now, node, Kind::Retry, terms.session);
            return self.answer(origin, node, retry);
        }
        let Some(ephemeral) = self.ephemeral() else { return self.drops.handshake_failed += 1 };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let half = peer.half.clone();
        let upgrade = peer.upgrade.get_or_insert_default();
        let rng = &mut self.rng;
        let local = upgrade.free_name(|| rng.next_u32());
        let mut reserved = Challenge::default();
        rng.fill_bytes(&mut reserved);
        let mine = Terms { capabilities: CAPABILITIES, session: local, challenge: reserved };
        let prologue = prologue((node, pila.ed25519), (self.node, self.identity.public_key()));
        let mut body = Vec::new();
        let keys = noise::respond(&prologue, &half.secret, ephemeral, &first, &mine.payload(), &mut body);
        let keys = match keys {
            Ok(keys) => keys,
            Err(error) => return self.handshake_error(error),
        };
        let frame = capability::frame(&self.identity, &half.pila, Kind::Second, node, terms.session, &body);
        let session = Upgraded::new(keys, local, terms.session, *first.remote_static, now);
        let announced = fresh && !live;
        let answers = fresh.then_some(terms.challenge);
        let next = Next { session, fresh, answers, reserved, announced };
        upgrade.agreed(next, &terms.challenge, digest, frame.clone());
        if let Origin::Direct(from) = origin
            && !self.config.relay_only
            && let Some(peer) = self.peers.get_mut(&node)
            && !peer.path.proven()
        {
            peer.path.learn(from);
        }
        self.await_upgrade(now, node, pila.x25519, origin);
        self.answer(origin, node, frame);
        if announced {
            self.session_ready(now, node, Change::First, origin);
        }
    }

    fn receive_second(&mut self, now: Instant, pila: &Pila<'_>, block: &Block<'_>, origin: Origin) {
        let node = pila.node;
        let Some(upgrade) = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut()) else {
            return;
        };
        let Some(pending) = &upgrade.pending else { return };
        if pending.peer_key != *pila.ed25519 {
            // It changed its identity meanwhile, and the transcript names the old one.
            let challenge = pending.challenge;
            self.drops.handshake_failed += 1;
            if let Some(frame) = self.start_handshake(now, node, challenge) {
                self.answer(origin, node, frame);
            }
            return;
        }
        let finished = match pending.noise.finish(block.body) {
            Ok(finished) => finished,
            Err(error) => return self.handshake_error(error),
        };
        if finished.remote_static != *pila.x25519 {
            return self.drops.static_mismatch += 1;
        }
        let Some(terms) = Terms::parse(&finished.payload).filter(|terms| terms.session != 0) else {
            return self.drops.bad_block += 1;
        };
        let session = Upgraded::new(finished.keys, pending.local, terms.session, finished.remote_static, now);
        match upgrade.completed(now, session, terms.challenge) {
            Change::Rekeyed => self.session_replaced(now, node),
            change => self.session_ready(now, node, change, origin),
        }
        self.send_confirmation(now, node);
    }

    fn receive_retry(&mut self, now: Instant, node: NodeId, block: &Block<'_>, origin: Origin) {
        let Some(terms) = Terms::parse_greeting(block.body) else { return self.drops.bad_block += 1 };
        if let Some(frame) = self.start_handshake(now, node, terms.challenge) {
            self.answer(origin, node, frame);
        }
    }

    fn handshake_error(&mut self, error: NoiseError) {
        match error {
            NoiseError::LowOrder => self.drops.low_order_key += 1,
            NoiseError::TooShort | NoiseError::Tag | NoiseError::Cipher => self.drops.handshake_failed += 1,
        }
    }

    /// A peer that offers the upgrade gets a moment for it before the plain session is used.
    fn await_upgrade(&mut self, now: Instant, node: NodeId, x25519: &[u8; 32], origin: Origin) {
        let pinned = self.pins.contains(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let plain = peer.session.as_ref().is_some_and(|s| s.peer_key == *x25519);
        let upgrade = peer.upgrade.get_or_insert_default();
        if pinned || plain || upgrade.live(now) {
            return;
        }
        let (from, relayed) = match origin {
            Origin::Direct(from) => (from, false),
            Origin::Relay(_, via) => (via, true),
        };
        let at = upgrade.fallback.map_or(now + PATIENCE, |fallback| fallback.at);
        upgrade.fallback = Some(Fallback { x25519: *x25519, from, relayed, at });
    }

    // ---- sessions --------------------------------------------------------------------------------------------

    /// An upgraded session can be used that could not before, or with another process of the peer.
    fn session_ready(&mut self, now: Instant, node: NodeId, change: Change, origin: Origin) {
        self.settle_exchange(node);
        let Some(key) = self.keys.get(&node).copied() else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(upgrade) = peer.upgrade.as_mut().filter(|upgrade| upgrade.live(now)) {
            upgrade.fallback = None;
        }
        let other = peer.session.as_ref().is_some_and(|plain| {
            peer.upgrade.as_ref().is_some_and(|u| u.peer_static().is_some_and(|key| *key != plain.peer_key))
        });
        let rekeyed = other || change == Change::OtherProcess;
        if let Some(peer) = self.peers.get_mut(&node) {
            let replaced =
                peer.upgrade.as_ref().and_then(|u| u.previous.as_ref()).map(|p| p.session.peer_static);
            if let Some(key) = replaced.filter(|key| Some(*key) != peer.tunnel_key()) {
                Self::abandon(&mut peer.abandoned, key);
            }
        }
        self.put_to_use(now, node, Some(&key), rekeyed, origin);
    }

    /// A session took the place of another with the same process of the peer.
    fn session_replaced(&mut self, now: Instant, node: NodeId) {
        self.settle_exchange(node);
        // Normally nothing waits; after the old one was used up, something does.
        self.flush_pending(now, node);
        self.streams.path_changed(now, node);
    }

    /// A frame opened under the session we agreed as responder: the initiator has it.
    fn promote(&mut self, now: Instant, node: NodeId, origin: Origin) {
        let Some(upgrade) = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut()) else {
            return;
        };
        let Some((change, announced)) = upgrade.promote(now) else { return };
        if change == Change::Rekeyed || announced {
            self.session_replaced(now, node);
        } else {
            self.session_ready(now, node, change, origin);
        }
        self.confirmed(now, node);
        // So that the initiator knows it, too.
        self.send_keepalive(now, node, None);
    }

    /// Both sides have shown that they hold the session: from now on nothing less will do with this peer.
    fn confirmed(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let plain = peer.session.is_some();
        if let Some(upgrade) = &mut peer.upgrade {
            upgrade.confirmed(now);
            upgrade.fallback = None;
            if plain {
                upgrade.plain_until.get_or_insert(now + GRACE);
            }
        }
        if let Some(key) = self.keys.get(&node).copied() {
            self.pin(node, key);
        }
        self.touch(node);
    }

    /// An empty frame under the new session shows the responder that we have it.
    fn send_confirmation(&mut self, now: Instant, node: NodeId) {
        let Some(upgrade) = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut()) else {
            return;
        };
        match &mut upgrade.confirm {
            Some(confirm) if confirm.exhausted() => upgrade.confirm = None,
            Some(confirm) => {
                confirm.sent(now);
                self.send_keepalive(now, node, None);
            }
            None => {}
        }
    }

    /// No upgrade came about in time.
    fn fall_back(&mut self, now: Instant, node: NodeId, fallback: Fallback) {
        let Some(key) = self.keys.get(&node).copied() else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let mut again = Vec::new();
        if let Some(upgrade) = &mut peer.upgrade {
            upgrade.rekey_at = Some(now + RETRY_AFTER);
            if let Some(next) = upgrade.next.as_mut().filter(|next| next.fresh) {
                // It still opens frames, and still becomes the session if one comes. What it carried did not arrive.
                next.fresh = false;
                again = peer.salvage.take(now);
            }
        }
        let from = fallback.from;
        let origin = if fallback.relayed { Origin::Relay(node, from) } else { Origin::Direct(from) };
        self.accept_exchange(now, node, &fallback.x25519, Some(&key), origin);
        for packet in again {
            self.send_now(now, node, &packet, None);
        }
    }

    /// Seals under the upgraded session, if there is one.
    pub(super) fn seal_upgraded(&mut self, node: NodeId, frame: &mut Vec<u8>, at: usize) -> Option<bool> {
        let now = self.latest;
        let upgrade = self.peers.get_mut(&node)?.upgrade.as_deref_mut()?;
        let session = upgrade.sender(now)?;
        let sealed = session.seal(self.node, frame, at);
        if session.sealed() == REKEY_FRAMES {
            upgrade.rekey_at = Some(now);
            self.touch(node);
        }
        Some(sealed)
    }

    /// Opens a frame of an upgraded session in place and delivers it. `datagram` is the whole frame.
    pub(super) fn receive_pilu(&mut self, now: Instant, header: Pilu, origin: Origin, datagram: &mut [u8]) {
        let node = header.node;
        if !self.config.encrypt {
            return self.drops.encryption_off += 1;
        }
        if node == self.node {
            return self.drops.own_id += 1;
        }
        let upgrade = self.peers.get_mut(&node).and_then(|peer| peer.upgrade.as_deref_mut());
        let readable = upgrade.as_ref().is_some_and(|upgrade| {
            upgrade.live(now)
                && upgrade.heard().is_some_and(|at| now.saturating_duration_since(at) < READABLE)
        });
        let Some((slot, session)) = upgrade.and_then(|upgrade| upgrade.find(&header)) else {
            if readable {
                return self.drops.no_session += 1;
            }
            return self.unreadable(now, node, origin);
        };
        let len = datagram.len();
        let first = slot == Slot::Current && session.heard.is_none();
        let (plain, highest) = match session.open(now, &header, &mut datagram[PILS_HEADER_LEN..]) {
            Ok(opened) => opened,
            Err(refused) => return self.upgraded_fault(now, &header, refused),
        };
        match slot {
            Slot::Next => self.promote(now, node, origin),
            Slot::Current if first => self.confirmed(now, node),
            Slot::Current | Slot::Previous => {}
        }
        let opened = Opened {
            len,
            may_move: highest && slot != Slot::Previous,
            old: false,
            under: Under::Session(header.session),
        };
        let sign = self.opened(now, node, origin, plain, opened);
        if sign
            && slot == Slot::Current
            && let Some(upgrade) = self.upgrade_of(node)
        {
            // The responder's answer to our first frame. Data may have come before: it is sent at once after message 2.
            upgrade.confirm = None;
        }
    }

    /// A frame that did not open: counted, and nothing else.
    fn upgraded_fault(&mut self, now: Instant, header: &Pilu, refused: Refused) {
        self.counters.encryption_failure += 1;
        match refused {
            Refused::Tag => self.drops.decrypt_failed += 1,
            Refused::Replay => self.replayed(now, header.node, header.counter),
            Refused::Outside => self.drops.outside_window += 1,
            Refused::Expired => self.drops.no_session += 1,
        }
    }

    // ---- timers ----------------------------------------------------------------------------------------------

    pub(super) fn upgrade_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let active = peer.active(now, connections);
        let wanted = active || !peer.pending.is_empty();
        let Some(upgrade) = peer.upgrade.as_deref_mut() else { return };
        if upgrade.plain_until.is_some_and(|at| at <= now) {
            upgrade.plain_until = None;
            (peer.session, peer.previous) = (None, None);
            self.renew_half(node);
        }
        let Some(upgrade) = self.upgrade_of(node) else { return };
        if let Some(fallback) = upgrade.fallback.take_if(|fallback| fallback.at <= now)
            && !upgrade.live(now)
        {
            self.fall_back(now, node, fallback);
        }
        let Some(upgrade) = self.upgrade_of(node) else { return };
        if upgrade.expire(now) && wanted {
            self.start_exchange(now, node);
            self.streams.path_changed(now, node);
        }
        let Some(upgrade) = self.upgrade_of(node) else { return };
        if upgrade.confirm.is_some_and(|confirm| confirm.next <= now) {
            self.send_confirmation(now, node);
        }
        self.rekey_timeout(now, node, active);
    }

    fn upgrade_of(&mut self, node: NodeId) -> Option<&mut Upgrade> {
        self.peers.get_mut(&node)?.upgrade.as_deref_mut()
    }

    fn rekey_timeout(&mut self, now: Instant, node: NodeId, active: bool) {
        let Some(upgrade) = self.upgrade_of(node) else { return };
        if upgrade.drive.is_none() && active && upgrade.rekey_at.is_some_and(|at| at <= now) {
            upgrade.drive = Some(Exchange::new(Pace::Eager, now));
        }
        let Some(drive) = upgrade.drive.as_mut().filter(|drive| drive.next <= now) else { return };
        if drive.exhausted() {
            upgrade.drive = None;
            upgrade.pending = None;
            upgrade.rekey_at = Some(now + RETRY_AFTER);
            return;
        }
        drive.sent(now);
        let attempt = drive.attempts;
        let relay = attempt > RELAY_FROM;
        let frame = self.exchange_frame(now, node, true);
        let Some(peer) = self.peers.get(&node) else { return };
        match peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only) {
            Choice::Direct(to) => {
                self.send_control(to, frame.clone());
                if relay {
                    self.send_around(now, node, &frame, attempt);
                }
            }
            Choice::Relay => self.send_around(now, node, &frame, attempt),
            Choice::None => {}
        }
    }

    /// Makes the next frame to this peer the `count`th under its session; for tests of what happens at the bounds.
    #[doc(hidden)]
    pub fn skip_frames(&mut self, node: NodeId, count: u64) {
        if let Some(session) = self.upgrade_of(node).and_then(|upgrade| upgrade.current.as_mut()) {
            session.skip_to(count);
        }
    }
}

impl Peer {
    /// There is a session to seal with, of either kind.
    pub(super) fn linked(&self, now: Instant) -> bool {
        self.session.is_some() || self.upgrade.as_ref().is_some_and(|upgrade| upgrade.can_send(now))
    }

    /// There is a session of either kind, so that dropping it loses something the peer must hear of: our next exchange
    /// comes with another key.
    pub(super) fn has_state(&self) -> bool {
        self.session.is_some() || self.upgrade.as_ref().is_some_and(|upgrade| upgrade.peer_static().is_some())
    }

    /// Its X25519 key in the session in use.
    pub(super) fn tunnel_key(&self) -> Option<[u8; 32]> {
        let upgraded = self.upgrade.as_ref().and_then(|upgrade| upgrade.peer_static());
        upgraded.or(self.session.as_ref().map(|session| &session.peer_key)).copied()
    }

    /// No session is in use under another tunnel key than that under which a frame of the peer opened last. Until one opens,
    /// neither of the two keys is known to be its present one.
    pub(super) fn same_process(&self) -> bool {
        self.confirmed.is_none() || self.tunnel_key().is_none_or(|key| self.confirmed == Some(key))
    }

    /// There is an upgraded session: the peer is one of our own nodes.
    pub(super) fn is_ours(&self, now: Instant) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.can_send(now))
    }

    /// Which kind of session there is, for people.
    pub(super) fn session_kind(&self, now: Instant) -> &'static str {
        if self.is_ours(now) {
            return "upgraded";
        }
        if self.session.is_some() { "compat" } else { "none" }
    }
}

impl Event {
    /// The event that reports a refused downgrade.
    pub(super) fn downgrade(node: NodeId, frame: &'static str, signed: bool) -> Event {
        let fields = serde_json::json!({ "peer_node_id": node, "frame": frame, "signed": signed });
        Event::Publish("security.downgrade_refused", fields)
    }
}
