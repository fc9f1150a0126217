//! The candidate exchange (docs/extensions.md, "Candidates"): our own nodes tell each other, through the relay and sealed,
//! all addresses they may be reached at. The message is also the one trigger for probes from both sides at once: who gets a
//! call probes at once, who called when the answer comes.

use super::{Engine, Origin, Peer};
use crate::NodeId;
use crate::path::candidates::{Candidate, CandidateKind, MAX_CANDIDATES, acceptable};
use crate::path::message::{Message, PORT};
use crate::path::nat::NatClass;
use crate::path::predict::{PeerNat, Range};
use crate::wire::addr::Addr;
use crate::wire::frame::PILP;
use crate::wire::packet::{Header, protocol};
use rand_core::Rng as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Distances after the sends of a call; then it is over.
const AGAIN_MS: [u64; 5] = [300, 600, 1_200, 2_400, 0];
/// The node with the higher id waits this long for the other's call when a session begins.
const YIELD: Duration = Duration::from_millis(300);
/// A session that began directly needs no help; the lists are for later. A short contact costs nothing.
const AT_LEISURE: Duration = Duration::from_secs(2);
/// A peer's calls are answered at most this often.
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// A node says that it hears nothing of the peer directly after this silence.
const DEAF_FOR: Duration = Duration::from_millis(800);
/// Predicted ports are tried at most this often per peer.
const SPRAY_EVERY: Duration = Duration::from_secs(5);
/// The guess begins this many ports before the one that is due: destinations may have been counted twice, and after our NAT
/// has forgotten all, frames to the peer have a port before any beacon is asked.
const BACK: i32 = 8;
/// Random ports tried at a peer whose NAT cannot be predicted, on the operator's word.
const BIRTHDAY_PORTS: usize = 128;
/// Distance of such attempts per peer.
const BIRTHDAY_EVERY: Duration = Duration::from_secs(60);

/// One peer's side of the exchange.
#[derive(Debug, Default)]
pub(super) struct Calls {
    round: u32,
    /// A call nobody has answered: sends so far, and when the next is due.
    open: Option<(usize, Instant)>,
    /// Generation of the peer's list that is in its path.
    theirs: Option<u32>,
    /// The peer's NAT.
    pub(super) nat: PeerNat,
    answered: Option<Instant>,
    sprayed: Option<Instant>,
}

impl Calls {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.map(|(_, at)| at)
    }

    /// The peer has told its addresses.
    pub(super) fn heard(&self) -> bool {
        self.theirs.is_some()
    }

    /// The peer's process may be another one: its numbers begin anew.
    pub(super) fn forget(&mut self) {
        self.theirs = None;
        self.open = None;
    }
}

impl Engine {
    /// Our addresses as we tell them: what the node gave, and how beacons see us.
    pub(super) fn offer(&self) -> Vec<Candidate> {
        let mut offer = self.local.clone();
        if let Some(seen) = self.reflexive
            && !offer.iter().any(|own| own.addr == seen)
        {
            offer.truncate(MAX_CANDIDATES - 1);
            offer.push(Candidate::new(seen, CandidateKind::Reflexive));
        }
        offer.truncate(MAX_CANDIDATES);
        offer
    }

    /// Our own addresses may have changed: peers in use hear of it.
    pub(super) fn offer_changed(&mut self, now: Instant) {
        let offer = self.offer();
        if offer == self.offered {
            return;
        }
        self.offered = offer;
        self.generation = self.generation.wrapping_add(1);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let connections = self.streams.connections_with(node) > 0;
            if self.peers.get(&node).is_some_and(|peer| peer.active(now, connections)) {
                self.call(now, node, Duration::ZERO);
            }
        }
    }

    /// Whether the peer gets our addresses: one of our own kind, that may talk to us or that we talk to.
    fn may_call(&self, now: Instant, node: NodeId) -> bool {
        let welcome = self.gate.admits(now, node) || self.gate.reply.active(node, now);
        let upgraded = |peer: &Peer| peer.session_kind(now) == "upgraded" && !peer.path.relay_only;
        welcome && !self.config.relay_only && self.peers.get(&node).is_some_and(upgraded)
    }

    /// Tells a peer our addresses and asks for its own, after `wait`.
    pub(super) fn call(&mut self, now: Instant, node: NodeId, wait: Duration) {
        if !self.may_call(now, node) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.calls.round = peer.calls.round.wrapping_add(1);
            peer.calls.open = Some((0, now + wait));
            self.touch(node);
        }
        if wait.is_zero() {
            self.call_timeout(now, node);
        }
    }

    /// A session begins: one of the two calls, and if nothing comes of it the other.
    pub(super) fn call_first(&mut self, now: Instant, node: NodeId) {
        let direct = self.peers.get(&node).is_some_and(|peer| peer.path.proven());
        let wait = match self.node < node {
            _ if direct => AT_LEISURE,
            true => Duration::ZERO,
            false => YIELD,
        };
        self.call(now, node, wait);
    }

    /// Sends the call that is due.
    pub(super) fn call_timeout(&mut self, now: Instant, node: NodeId) {
        let may = self.may_call(now, node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some((sent, _)) = peer.calls.open.filter(|(_, at)| *at <= now) else { return };
        let next = AGAIN_MS.get(sent).filter(|_| may);
        let Some(ms) = next else {
            peer.calls.open = None;
            return;
        };
        peer.calls.open = Some((sent + 1, now + Duration::from_millis(*ms)));
        let round = peer.calls.round;
        if sent + 1 == AGAIN_MS.len() {
            peer.calls.open = None;
        }
        self.send_candidates(now, node, round, false);
    }

    fn send_candidates(&mut self, now: Instant, node: NodeId, round: u32, answer: bool) {
        let Some(peer) = self.peers.get(&node) else { return };
        let deaf = peer.path.failed() && peer.path.silent_for(now, DEAF_FOR);
        let message = Message {
            answer,
            deaf,
            round,
            generation: self.generation,
            nat: self.nat_class().into(),
            range: self.next_ports().filter(|_| self.punching),
            candidates: if self.config.relay_only { Vec::new() } else { self.offer() },
        };
        let header = Header {
            protocol: protocol::CONTROL,
            src: Addr::backbone(self.node),
            dst: Addr::backbone(node),
            src_port: PORT,
            dst_port: PORT,
            ..Header::default()
        };
        // Through the relay, which works whatever became of the addresses.
        let way = self.relay_way(node);
        self.send_header(now, node, &header, &message.to_bytes(), way);
    }

    /// A peer's call or answer.
    pub(super) fn receive_candidates(&mut self, now: Instant, node: NodeId, payload: &[u8]) {
        if !self.may_call(now, node) {
            return self.drops.candidates_refused += 1;
        }
        let Some(message) = Message::parse(payload) else { return self.drops.bad_candidates += 1 };
        let own = self.offer();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let stale = peer.calls.theirs.is_some_and(|known| known > message.generation);
        if !stale {
            let list: Vec<Candidate> =
                message.candidates.iter().filter(|c| acceptable(c, &own)).copied().collect();
            peer.path.set_candidates(&list);
            peer.calls.theirs = Some(message.generation);
            peer.calls.nat = message.nat;
        }
        let lost = message.deaf && peer.path.unheard(now);
        if lost {
            self.relay_activated(now, node);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if message.answer {
            if peer.calls.round != message.round || peer.calls.open.take().is_none() {
                return;
            }
        } else {
            let due = peer.calls.answered.is_none_or(|at| now.saturating_duration_since(at) >= ANSWER_EVERY);
            if !due {
                return self.drops.candidates_refused += 1;
            }
            peer.calls.answered = Some(now);
            if peer.calls.open.is_some_and(|(sent, _)| sent == 0) {
                peer.calls.open = None;
            }
            self.send_candidates(now, node, message.round, true);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.path.race(now);
            self.touch(node);
        }
        self.try_ports(now, node, &message);
    }

    /// Opens our NAT towards ports the peer's is expected to use: its probes come from one of them.
    fn try_ports(&mut self, now: Instant, node: NodeId, message: &Message) {
        if !self.punching || PeerNat::from(self.nat_class()).symmetric() {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.path.proven() {
            return;
        }
        let reflexive = message.candidates.iter().find(|c| c.kind == CandidateKind::Reflexive);
        let Some(host) = reflexive.map(|c| c.addr.ip()) else { return };
        let elapsed =
            |every: Duration| peer.calls.sprayed.is_none_or(|at| now.saturating_duration_since(at) >= every);
        let ports: Vec<u16> = match (message.nat, message.range) {
            (PeerNat::Predictable, Some(range)) if elapsed(SPRAY_EVERY) => Range::ports(range).collect(),
            (PeerNat::Random, _) if self.birthday && elapsed(BIRTHDAY_EVERY) => {
                (0..BIRTHDAY_PORTS).map(|_| 1_024 + (self.rng.next_u32() % 64_512) as u16).collect()
            }
            _ => return,
        };
        peer.calls.sprayed = Some(now);
        for port in ports {
            self.punch_at(now, host, port);
        }
    }

    /// The ports our NAT should open next. What left since for addresses that were new to it has moved it on.
    fn next_ports(&self) -> Option<Range> {
        let guess = self.own_nat.predicted()?;
        let opened = if self.opened.0 == Some(guess.since) { i32::from(self.opened.1) } else { 0 };
        let before = if guess.stride > 0 { guess.first - 1 } else { u16::MAX - guess.first };
        Range::of(guess, opened - BACK.min(i32::from(before / guess.stride.unsigned_abs())))
    }

    /// A datagram leaves for an address nothing was sent to before.
    pub(super) fn note_opened(&mut self) {
        let since = self.own_nat.predicted().map(|guess| guess.since);
        if self.opened.0 != since {
            self.opened = (since, 0);
        }
        self.opened.1 = self.opened.1.saturating_add(1);
    }

    /// What our NAT does with ports, as far as beacons have shown.
    pub(super) fn nat_class(&self) -> NatClass {
        self.own_nat.class()
    }

    fn punch_at(&mut self, now: Instant, host: IpAddr, port: u16) {
        let to = SocketAddr::new(host, port);
        if self.budget.take(now, to) {
            self.note_opened();
            self.send_control(to, PILP.to_vec());
        }
    }

    /// The way through the relay, if there is one.
    fn relay_way(&self, node: NodeId) -> Option<Origin> {
        self.relay_for(node).map(|beacon| Origin::Relay(node, beacon))
    }
}
