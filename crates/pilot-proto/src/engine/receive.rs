//! Datagrams in: dispatch, beacon messages, opening of encrypted packets (spec 02 sections 2 and 8).

use super::deliver::PROBE;
use super::{Engine, Event, Origin};
use crate::NodeId;
use crate::path::peer::Arrival;
use crate::tunnel::exchange::UNREADABLE_EVERY;
use crate::tunnel::limits::Bucket;
use crate::tunnel::pending::Under;
use crate::tunnel::session::{Fault, OpenError, Remedy};
use crate::wire::beacon::{Message, NOTIFY_HANDSHAKE};
use crate::wire::frame::{Frame, FrameError, PILP, PILS_HEADER_LEN, Pils};
use crate::wire::packet::{Packet, port, protocol};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How a frame opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    /// Its bytes.
    pub(super) len: usize,
    /// It is fresh enough to say where the peer is.
    pub(super) may_move: bool,
    /// It belongs to a session that was replaced.
    pub(super) old: bool,
    pub(super) under: Under,
}

/// Copies of a punch.
const PUNCHES: usize = 3;
/// Punch commands obeyed per second.
const PUNCH_RATE: u32 = 10;
/// A punch command within this time of a single punch request is the answer to it.
const PUNCH_ANSWER: Duration = Duration::from_secs(2);
/// Bytes before the frame in a relay delivery: type and sender.
const DELIVER_HEADER: usize = 5;
/// Security events per second.
const SECURITY_EVENTS: u32 = 10;

impl Engine {
    pub(super) fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        match datagram.first() {
            Some(kind) if *kind < 0x10 => self.receive_beacon(now, from, datagram),
            _ => self.receive_frame(now, Origin::Direct(from), datagram),
        }
    }

    fn receive_beacon(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        if self.nat_probes.asks(from)
            && let Ok(Message::DiscoverReply(addr)) = Message::parse(datagram)
        {
            return self.probed(now, from, addr);
        }
        if !self.beacons.contains(from) {
            self.drops.not_the_beacon += 1;
            return;
        }
        match Message::parse(datagram) {
            Ok(Message::RelayDeliver { from: sender, frame }) => {
                if frame.len() < 4 {
                    self.drops.empty_relay += 1;
                    return;
                }
                self.receive_frame(now, Origin::Relay(sender, from), &mut datagram[DELIVER_HEADER..]);
            }
            Ok(Message::DiscoverReply(addr)) => self.discovered(now, from, addr, datagram),
            Ok(Message::PunchCommand(addr)) => self.punch(now, addr),
            Ok(Message::Notify { kind: NOTIFY_HANDSHAKE }) => self.emit(Event::Notified),
            _ => self.drops.bad_beacon_message += 1,
        }
    }

    fn punch(&mut self, now: Instant, addr: SocketAddr) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let bucket = self.punch_bucket.get_or_insert_with(|| Bucket::new(PUNCH_RATE, now));
        if self.config.relay_only || !self.punching || !self.config.encrypt || !bucket.take(PUNCH_RATE, now) {
            self.drops.punch_refused += 1;
            return;
        }
        for _ in 0..PUNCHES {
            if self.budget.take(now, addr) {
                self.send_control(addr, PILP.to_vec());
            }
        }
        // The command does not say whom it is about. If exactly one peer was asked for, it is that one.
        let recent = |at: &Instant| now.saturating_duration_since(*at) <= PUNCH_ANSWER;
        self.punches.retain(|_, at| recent(at));
        let single = (self.punches.len() == 1).then(|| self.punches.pop_first()).flatten();
        if let Some((node, _)) = single
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.path.learn(addr);
            if peer.linked(now) {
                peer.path.race(now);
                self.touch(node);
            } else {
                let pila = peer.half.hello.clone();
                self.send_control(addr, pila);
            }
        }
    }

    fn receive_frame(&mut self, now: Instant, origin: Origin, datagram: &mut [u8]) {
        if self.node == 0 {
            // A session of no node would be bound to nobody, and what is asked about its peer may be asked for nothing:
            // who goes on sending is greeted after the registration.
            return self.drops.unregistered += 1;
        }
        let frame = match Frame::parse(datagram) {
            Ok(frame) => frame,
            Err(FrameError::UnknownMagic) => return self.drops.unknown_frame += 1,
            Err(FrameError::TooShort { .. }) => return self.drops.short_frame += 1,
        };
        match frame {
            Frame::Beacon(_) => self.drops.bad_beacon_message += 1,
            Frame::Pila(pila) => {
                if self.contradicts(now, &pila) {
                    self.drops.key_mismatch += 1;
                } else if self.awaited(now, &pila, origin) || self.admit_exchange(now, pila.node, origin) {
                    self.receive_pila(now, &pila, origin, true);
                }
            }
            Frame::Pilk(pilk) => {
                if self.admit_exchange(now, pilk.node, origin) {
                    self.receive_pilk(now, &pilk, origin, true);
                }
            }
            Frame::Pils(header) => self.receive_pils(now, header, origin, datagram),
            Frame::Pilu(header) => self.receive_pilu(now, header, origin, datagram),
            Frame::Pilt(packet) => {
                if self.config.encrypt {
                    self.drops.plaintext_refused += 1;
                } else {
                    self.receive_plain(now, origin, packet);
                }
            }
            Frame::Pilp => self.receive_punch(now, origin),
        }
    }

    /// Somebody's punch came through: if a key exchange is under way, it may be with them.
    fn receive_punch(&mut self, now: Instant, origin: Origin) {
        let Origin::Direct(from) = origin else { return };
        let waiting = self.exchanging > 0 && !self.config.relay_only;
        if waiting && self.limits.answer(Origin::Direct(from), now) {
            let pila = self.half.hello.clone();
            self.send_control(from, pila);
        }
    }

    /// Opens an encrypted packet in place and delivers it. `datagram` is the whole frame.
    pub(super) fn receive_pils(&mut self, now: Instant, header: Pils, origin: Origin, datagram: &mut [u8]) {
        let node = header.node;
        if !self.config.encrypt {
            return self.drops.encryption_off += 1;
        }
        if node == self.node {
            return self.drops.own_id += 1;
        }
        if self.hold_pils(node, origin, datagram) {
            return;
        }
        if self.insists(node) && self.peers.get(&node).is_none_or(|peer| peer.session.is_none()) {
            self.refuse_downgrade(now, node, "PILS", false);
            return self.unreadable(now, node, origin);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return self.unreadable(now, node, origin) };
        let old = peer.previous.as_ref().is_some_and(|p| p.session.knows_prefix(header.prefix));
        let session = match &mut peer.previous {
            Some(previous) if old => Some(&mut previous.session),
            _ => peer.session.as_mut(),
        };
        let Some(session) = session else { return self.unreadable(now, node, origin) };
        let len = datagram.len();
        let opened = session.open(now, &header, &mut datagram[PILS_HEADER_LEN..]);
        let (plain, accepted) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.session_fault(now, node, header.counter, origin, old, error),
        };
        let may_move = accepted.newest && !accepted.opened && !old;
        let under = Under::Prefix(header.prefix);
        self.opened(now, node, origin, plain, Opened { len, may_move, old, under });
    }

    /// A frame opened. True: it was an empty sign of life.
    pub(super) fn opened(
        &mut self,
        now: Instant,
        node: NodeId,
        origin: Origin,
        plain: &[u8],
        opened: Opened,
    ) -> bool {
        let Opened { len, may_move, old, under } = opened;
        self.counters.encryption_success += 1;
        self.counters.pkts_recv += 1;
        self.counters.bytes_recv += len as u64;
        let packet = match Packet::parse(plain) {
            Ok(packet) => packet,
            Err(_) => {
                self.drops.bad_packet += 1;
                return false;
            }
        };
        let keepalive = packet.header.protocol == protocol::CONTROL
            && packet.header.dst_port == port::PING
            && packet.payload.is_empty();
        let source = packet.header.src.node;
        if source != node && !(keepalive && source == 0) {
            self.drops.source_spoofed += 1;
            self.publish_spoofed(now, node, source);
            return false;
        }
        let probe = packet.header.protocol == protocol::CONTROL && packet.payload.starts_with(PROBE);
        self.alive(now, node, origin, (may_move, probe), old);
        if !keepalive {
            self.deliver(now, node, under, packet, origin);
        }
        keepalive
    }

    /// A frame of this peer opened: it lives, and its half of the exchange is done.
    fn alive(&mut self, now: Instant, node: NodeId, origin: Origin, (fresh, probe): (bool, bool), old: bool) {
        let fallback = self.beacons.chosen().is_some();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.last_in = now;
        peer.cooldown = None;
        peer.unreadable = false;
        let recovered = peer.watch_probes > 0;
        let probes = std::mem::take(&mut peer.watch_probes);
        let mut touch = recovered;
        if peer.exchange.take().is_some() {
            self.exchanging = self.exchanging.saturating_sub(1);
            touch = true;
        }
        let mut rekeyed = false;
        if !old {
            peer.recovery.answered();
            if let Some(key) = peer.tunnel_key()
                && peer.confirmed != Some(key)
            {
                rekeyed = peer.confirmed.replace(key).is_some();
            }
            // The new session is confirmed; what it replaced never comes back.
            if let Some(previous) = peer.previous.take() {
                Self::abandon(&mut peer.abandoned, previous.session.peer_key);
            }
        }
        let mut moved = false;
        match origin {
            Origin::Direct(from) if !self.config.relay_only => {
                // Who sends straight does not ask for the relay any more: it has its UDP back.
                peer.path.relay_only &= !fresh;
                let probing = peer.path.deadline(true);
                moved = peer.path.direct_in(now, from, Arrival { fresh, probe, fallback });
                touch |= moved || probing != peer.path.deadline(true);
            }
            Origin::Direct(_) => {}
            Origin::Relay(..) => {
                let probing = peer.path.deadline(true);
                peer.path.relayed_in(now);
                touch |= probing != peer.path.deadline(true);
            }
        }
        if let Origin::Relay(_, via) = origin
            && fresh
        {
            self.heard_through(now, node, via);
        }
        if old {
            self.restore_replaced(now, node);
        }
        if touch {
            self.touch(node);
        }
        if moved {
            self.streams.path_changed(now, node);
        }
        if rekeyed {
            self.streams.peer_rekeyed(now, node);
        }
        if recovered {
            let fields = serde_json::json!({ "peer_node_id": node, "probes_sent": probes });
            self.emit(Event::Publish("tunnel.path_recovered", fields));
        }
    }

    fn session_fault(
        &mut self,
        now: Instant,
        node: NodeId,
        counter: u64,
        origin: Origin,
        old: bool,
        error: OpenError,
    ) {
        self.counters.encryption_failure += 1;
        match error.fault {
            Fault::Decrypt => self.drops.decrypt_failed += 1,
            Fault::Replay => self.replayed(now, node, counter),
            Fault::Outside => self.drops.outside_window += 1,
            Fault::OldEpoch => self.drops.old_epoch += 1,
            Fault::TooManyEpochs => self.drops.too_many_epochs += 1,
        }
        match error.remedy {
            Remedy::None => {}
            Remedy::Ask => self.suspect(now, node),
            // A replaced session ends when its replacement is confirmed.
            Remedy::Renew if old => {}
            Remedy::Renew => self.renew_session(now, node, origin),
        }
    }

    /// The session can take no further frames. Only frames that its key opened lead here.
    fn renew_session(&mut self, now: Instant, node: NodeId, origin: Origin) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = peer.previous.take().map(|previous| previous.session);
        let lost = before.is_none();
        peer.session = before;
        peer.salvage = Default::default();
        if lost {
            self.renew_half(node);
            self.ask_for_key(now, node, origin);
        }
    }

    /// An authentic frame came a second time.
    pub(super) fn replayed(&mut self, now: Instant, node: NodeId, counter: u64) {
        self.drops.replayed += 1;
        if self.security_event(now) {
            let fields = serde_json::json!({ "peer_hash": node_hash(node), "counter": counter });
            self.emit(Event::Publish("security.nonce_replay", fields));
        }
    }

    /// An encrypted packet came for which no key is there.
    pub(super) fn unreadable(&mut self, now: Instant, node: NodeId, origin: Origin) {
        self.drops.no_session += 1;
        if !self.gate.shuts_out(now, node) {
            self.ask_for_key(now, node, origin);
        }
    }

    /// Sends a key exchange because the peer's frames cannot be read (spec 02 section 11). For an unknown peer
    /// nothing is remembered: its frame is not authenticated, and if it goes on sending it will be asked again.
    fn ask_for_key(&mut self, now: Instant, node: NodeId, origin: Origin) {
        let Some(peer) = self.peers.get_mut(&node) else {
            if self.limits.unreadable.once(node, now, UNREADABLE_EVERY) {
                self.ask_where(now, node, origin);
            }
            return;
        };
        if peer.asked.is_some_and(|at| now.saturating_duration_since(at) < UNREADABLE_EVERY) {
            return;
        }
        peer.asked = Some(now);
        peer.unreadable = true;
        let known = match origin {
            Origin::Direct(from) => peer.path.addresses().any(|addr| addr == from),
            Origin::Relay(..) => true,
        };
        let told = known && peer.exchange.is_none() && !peer.in_cooldown(now);
        self.start_exchange(now, node);
        if !told {
            self.ask_where(now, node, origin);
        }
    }

    /// Sends our key and a key request back the way an unreadable frame came.
    fn ask_where(&mut self, now: Instant, node: NodeId, origin: Origin) {
        if self.limits.answer(origin, now) {
            let half = self.half(node);
            for frame in [half.hello.clone(), half.pilk.to_vec()] {
                self.answer(origin, node, frame);
            }
        }
    }

    fn receive_plain(&mut self, now: Instant, origin: Origin, bytes: &[u8]) {
        let packet = match Packet::parse(bytes) {
            Ok(packet) => packet,
            Err(_) => return self.drops.bad_packet += 1,
        };
        let node = packet.header.src.node;
        if node == self.node {
            return self.drops.own_id += 1;
        }
        self.counters.pkts_recv += 1;
        self.counters.bytes_recv += bytes.len() as u64 + 4;
        if !self.enter(now, node) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.last_in = now;
            if let Origin::Direct(from) = origin {
                peer.path.contacted_directly(now, from);
            }
        }
        self.deliver(now, node, Under::Nothing, packet, origin);
    }

    fn publish_spoofed(&mut self, now: Instant, node: NodeId, claimed: NodeId) {
        if self.security_event(now) {
            let fields = serde_json::json!({
                "authenticated_peer_hash": node_hash(node),
                "claimed_src_hash": node_hash(claimed),
            });
            self.emit(Event::Publish("security.src_spoofed", fields));
        }
    }

    pub(super) fn security_event(&mut self, now: Instant) -> bool {
        let bucket = self.security_bucket.get_or_insert_with(|| Bucket::new(SECURITY_EVENTS, now));
        bucket.take(SECURITY_EVENTS, now)
    }
}

/// The first eight bytes of SHA-256 of the decimal node id, in hex (spec 02 section 18).
fn node_hash(node: NodeId) -> String {
    let digest = crate::crypto::sha256(node.to_string().as_bytes());
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}
