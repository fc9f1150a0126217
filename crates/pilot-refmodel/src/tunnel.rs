//! Tunnel frames: key exchange, encrypted packets, retransmission (spec 02).

use crate::Event;
use crate::node::Node;
use crate::path::Pending;
use crate::session::{Opened, Session};
use crate::worker::Work;
use bytes::Bytes;
use pilot_proto::NodeId;
use pilot_proto::crypto::verify;
use pilot_proto::wire::beacon::{Message, NOTIFY_HANDSHAKE};
use pilot_proto::wire::frame::{Frame, Pila, Pilk, Pils, pila_signed};
use pilot_proto::wire::packet::{Packet, port, protocol};
use rand_core::Rng as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A same-key exchange this soon after the session's installation is a duplicate.
const DUPLICATE: Duration = Duration::from_millis(250);
/// A failed look-up is remembered this long.
const FAILED_LOOKUP: Duration = Duration::from_secs(3);
/// Retransmission of a key exchange: least distance, sends, and those of one tick.
const RESEND: Duration = Duration::from_secs(4);
const ATTEMPTS: u32 = 6;
const PER_TICK: usize = 64;
/// After giving up, no new exchange is begun for this long.
const COOLDOWN: Duration = Duration::from_secs(5);
/// Exchanges because of unreadable frames: one per peer in this time, and peers remembered.
const UNREADABLE: Duration = Duration::from_secs(3);
const MAX_UNREADABLE: usize = 4096;
/// Packets that wait for a session, per peer, and peers that have some; how long they wait.
const QUEUE: usize = 64;
const QUEUES: usize = 256;
const QUEUE_TIME: Duration = Duration::from_secs(120);
/// Datagrams that wait while the receive loop asks the registry: about what the kernel's buffer holds.
const MAX_RX: usize = 512;
/// Packets that wait for the worker.
const MAX_WORK: usize = 8192;
/// Punches per command.
const PUNCHES: usize = 3;

/// A node's Ed25519 key as the registry told it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    Known([u8; 32]),
    Failed(Instant),
}

/// A frame for which the registry is asked.
#[derive(Debug)]
pub(crate) struct RxWait {
    node: NodeId,
    from: SocketAddr,
    relayed: bool,
    frame: Vec<u8>,
}

/// How a frame came, and whether the registry was just asked for it.
#[derive(Debug, Clone, Copy)]
struct Origin {
    from: SocketAddr,
    /// The sender named by the relay.
    relay: Option<NodeId>,
    asked: bool,
}

enum Verdict {
    Go,
    Drop,
    Ask,
}

impl Node {
    // ---- the receive loop --------------------------------------------------------------------------------

    pub(crate) fn receive(&mut self, _now: Instant, from: SocketAddr, datagram: &[u8]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if self.rx.len() < MAX_RX {
            self.rx.push_back((from, datagram.to_vec()));
        }
    }

    pub(crate) fn run_rx(&mut self, now: Instant) {
        while self.rx_wait.is_none() {
            let Some((from, datagram)) = self.rx.pop_front() else { return };
            match Frame::parse(&datagram) {
                Ok(Frame::Beacon(message)) => self.on_beacon(now, from, message),
                Ok(frame) => self.on_frame(now, Origin { from, relay: None, asked: false }, frame, &datagram),
                Err(_) => {}
            }
        }
    }

    fn on_beacon(&mut self, now: Instant, from: SocketAddr, message: &[u8]) {
        let genuine = Some(from) == self.beacon;
        match Message::parse(message) {
            Ok(Message::DiscoverReply(addr)) => self.emit(Event::Observed(addr)),
            Ok(Message::PunchCommand(to)) if genuine => {
                for _ in 0..PUNCHES {
                    self.transmit(to, b"PILP".to_vec());
                }
            }
            Ok(Message::Notify { kind: NOTIFY_HANDSHAKE }) if genuine => self.emit(Event::Notified),
            Ok(Message::RelayDeliver { from: sender, frame }) if genuine => {
                let origin = Origin { from, relay: Some(sender), asked: false };
                match Frame::parse(frame) {
                    Ok(Frame::Beacon(_)) | Err(_) => {}
                    Ok(parsed) => self.on_frame(now, origin, parsed, frame),
                }
            }
            _ => {}
        }
    }

    fn on_frame(&mut self, now: Instant, origin: Origin, frame: Frame<'_>, bytes: &[u8]) {
        match frame {
            Frame::Pila(pila) => self.on_pila(now, origin, pila, bytes),
            Frame::Pilk(pilk) => self.on_pilk(now, origin, pilk, bytes),
            Frame::Pils(header) => self.on_pils(now, origin, header, bytes),
            // Plaintext, punches, and magics that came after this version.
            _ => {}
        }
    }

    /// The registry's answer: the frame that waited goes on, then those behind it.
    pub(crate) fn key_answer(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        let Some(wait) = self.rx_wait.take_if(|w| w.node == node) else { return };
        self.keys.insert(node, key.map_or(Key::Failed(now), Key::Known));
        let relay = wait.relayed.then_some(0);
        let origin = Origin { from: wait.from, relay, asked: true };
        if let Ok(frame) = Frame::parse(&wait.frame) {
            self.on_frame(now, origin, frame, &wait.frame);
        }
    }

    fn ask_key(&mut self, node: NodeId, origin: Origin, bytes: &[u8]) {
        let (from, relayed) = (origin.from, origin.relay.is_some());
        self.rx_wait = Some(RxWait { node, from, relayed, frame: bytes.to_vec() });
        self.emit(Event::NeedKey(node));
    }

    /// The rate limit of key exchanges; a frame that waited for the registry has passed it.
    fn admit_exchange(&mut self, now: Instant, origin: Origin) -> bool {
        match origin.relay {
            _ if origin.asked => true,
            Some(sender) => self.relayed_exchanges.take(now, sender),
            None => self.direct_exchanges.take(now, origin.from.ip()),
        }
    }

    // ---- key exchange, inbound ---------------------------------------------------------------------------

    /// The registry's key of a node must be the one it claims. One that is known and differs is asked for again.
    fn key_verdict(
        &mut self,
        now: Instant,
        node: NodeId,
        claimed: Option<&[u8; 32]>,
        asked: bool,
    ) -> Verdict {
        match self.keys.get(&node) {
            Some(Key::Known(key)) if claimed.is_none_or(|c| c == key) => Verdict::Go,
            Some(_) if asked => Verdict::Drop,
            Some(Key::Failed(at)) if now.saturating_duration_since(*at) < FAILED_LOOKUP => Verdict::Drop,
            _ => {
                self.keys.remove(&node);
                Verdict::Ask
            }
        }
    }

    fn on_pila(&mut self, now: Instant, origin: Origin, pila: Pila<'_>, bytes: &[u8]) {
        if !self.admit_exchange(now, origin) {
            return;
        }
        match self.key_verdict(now, pila.node, Some(pila.ed25519), origin.asked) {
            Verdict::Drop => return,
            Verdict::Ask => return self.ask_key(pila.node, origin, bytes),
            Verdict::Go => {}
        }
        if verify(pila.ed25519, &pila_signed(pila.node, pila.x25519), pila.signature) {
            self.agree(now, origin, pila.node, pila.x25519);
        }
    }

    fn on_pilk(&mut self, now: Instant, origin: Origin, pilk: Pilk<'_>, bytes: &[u8]) {
        if !self.admit_exchange(now, origin) {
            return;
        }
        match self.key_verdict(now, pilk.node, None, origin.asked) {
            Verdict::Ask => self.ask_key(pilk.node, origin, bytes),
            // A key request: answered on the path to the peer, so not at all if it is not in the table.
            Verdict::Go => self.exchange(now, pilk.node, false),
            // Nobody vouches for the sender: anonymous.
            Verdict::Drop => self.agree(now, origin, pilk.node, pilk.x25519),
        }
    }

    /// A checked key of a peer: install, replace, or leave the session alone (spec 02 section 6 step 7).
    fn agree(&mut self, now: Instant, origin: Origin, node: NodeId, x25519: &[u8; 32]) {
        let Some(key) = self.secret.session_key(x25519) else { return };
        let relayed = origin.relay.is_some();
        let known = self.peers.contains_key(&node);
        let old = self.peers.get(&node).and_then(|p| p.session.as_ref());
        let same = old.is_some_and(|s| &s.peer_key == x25519);
        let rekeyed = old.is_some() && !same;
        let age = old.map(|s| now.saturating_duration_since(s.installed));
        if same && age.is_some_and(|age| age < DUPLICATE) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.pending = None;
            }
            return;
        }
        self.enter(now, node, origin.from, relayed);
        let direct_known = known && self.has_direct(node);
        let mut salvaged = Vec::new();
        let mut prefix = [0; 4];
        if !same {
            self.rng.fill_bytes(&mut prefix);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            if !same {
                salvaged = peer.session.as_mut().map(|s| s.salvaged(now)).unwrap_or_default();
                if !rekeyed {
                    peer.app = Some(now);
                }
                peer.session = Some(Session::new(key, *x25519, prefix, now));
                peer.keyed_by_relay = relayed;
            }
            (peer.last_inbound, peer.cooldown, peer.unreadable) = (now, None, false);
            if !relayed {
                peer.addr = origin.from;
            } else if !direct_known {
                (peer.addr, peer.relay, peer.pinned) = (origin.from, true, true);
            }
        }
        if !same {
            self.emit(Event::Established { node, relay: relayed, rekeyed });
        }
        for packet in salvaged {
            self.send_packet(now, node, &packet, true);
        }
        self.flush(now, node);
        if !same {
            self.exchange(now, node, false);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.pending = None;
        }
    }

    // ---- encrypted packets -------------------------------------------------------------------------------

    fn on_pils(&mut self, now: Instant, origin: Origin, header: Pils, bytes: &[u8]) {
        let node = header.node;
        let relayed = origin.relay.is_some();
        let Some(session) = self.peers.get_mut(&node).and_then(|p| p.session.as_mut()) else {
            return self.on_unreadable(now, node, origin);
        };
        let packet = match session.open(now, header, bytes) {
            Opened::Packet(packet) => {
                self.opened += 1;
                packet
            }
            Opened::Fault(false) => return,
            Opened::Fault(true) => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.session = None;
                }
                self.emit(Event::Dropped(node));
                return self.on_unreadable(now, node, origin);
            }
        };
        let Ok(Packet { header, payload }) = Packet::parse(&packet) else { return };
        let keepalive =
            header.protocol == protocol::CONTROL && header.dst_port == port::PING && payload.is_empty();
        if header.src.node != node && !(keepalive && header.src.node == 0) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            (peer.last_inbound, peer.cooldown, peer.pending) = (now, None, None);
            if Node::is_app(&header) {
                peer.app = Some(now);
            }
        }
        self.note_path(now, node, origin.from, relayed);
        if !keepalive && self.work.len() < MAX_WORK {
            self.work.push_back(Work { sender: node, header, payload: Bytes::copy_from_slice(payload) });
        }
    }

    /// A frame of a node with which there is no session (spec 02 section 11).
    fn on_unreadable(&mut self, now: Instant, node: NodeId, origin: Origin) {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < UNREADABLE;
        if self.unreadable.get(&node).is_some_and(recent) {
            return;
        }
        if self.unreadable.len() >= MAX_UNREADABLE {
            self.unreadable.retain(|_, at| recent(at));
            if self.unreadable.len() >= MAX_UNREADABLE {
                return;
            }
        }
        self.unreadable.insert(node, now);
        let relayed = origin.relay.is_some();
        self.enter(now, node, origin.from, relayed);
        let direct = self.has_direct(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.unreadable = true;
            if relayed && !direct {
                (peer.relay, peer.pinned) = (true, true);
            }
        }
        self.exchange(now, node, true);
    }

    // ---- outbound ----------------------------------------------------------------------------------------

    /// Sends our key exchange to a peer in the table, and next to it a key request if the peer seems to have lost its
    /// half or ours (spec 02 section 11). `copy`: through the relay as well.
    pub(crate) fn exchange(&mut self, now: Instant, node: NodeId, copy: bool) {
        let (pila, pilk) = (self.pila, self.pilk);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let request =
            peer.session.is_none() && (peer.unreadable || peer.pending.is_some_and(|p| p.attempts > 0));
        let copy = copy && !peer.relay && self.beacon.is_some();
        self.send_frame(now, node, &pila);
        if copy {
            self.relay(node, &pila);
        }
        if request {
            self.send_frame(now, node, &pilk);
            if copy {
                self.relay(node, &pilk);
            }
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.cooldown.is_none_or(|until| now >= until) {
            let attempts = peer.pending.map_or(0, |p| p.attempts) + 1;
            peer.pending = Some(Pending { attempts, last: now });
        }
    }

    /// Every 4 s: key exchanges nobody answered.
    pub(crate) fn retransmit_exchanges(&mut self, now: Instant) {
        let pending: Vec<(NodeId, Pending)> =
            self.peers.iter().filter_map(|(node, p)| p.pending.map(|pending| (*node, pending))).collect();
        let mut sent = 0;
        for (node, pending) in pending {
            if pending.attempts >= ATTEMPTS {
                self.give_up(now, node);
            } else if sent < PER_TICK
                && (pending.attempts == 0 || now.saturating_duration_since(pending.last) >= RESEND)
            {
                sent += 1;
                if let Some(peer) = self.peers.get_mut(&node)
                    && pending.attempts > 0
                    && !peer.relay
                    && self.beacon.is_some()
                {
                    (peer.relay, peer.pinned) = (true, false);
                }
                self.exchange(now, node, false);
            }
        }
        for peer in self.peers.values_mut() {
            if now.saturating_duration_since(peer.queued_since) >= QUEUE_TIME {
                peer.queue.clear();
            }
        }
    }

    fn give_up(&mut self, now: Instant, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            (peer.pending, peer.cooldown) = (None, Some(now + COOLDOWN));
        }
        self.reset_given_up(now, node);
    }

    pub(crate) fn seal(&mut self, node: NodeId, packet: &[u8]) -> Option<Vec<u8>> {
        let own = self.node;
        self.peers.get_mut(&node)?.session.as_mut()?.seal(own, packet)
    }

    /// Sends a packet, or queues it until there is a session. False: refused.
    pub(crate) fn send_packet(&mut self, now: Instant, node: NodeId, packet: &[u8], app: bool) -> bool {
        let queues = self.peers.values().filter(|p| !p.queue.is_empty()).count();
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        if app {
            peer.app = Some(now);
        }
        if let Some(session) = &mut peer.session {
            session.remember(now, packet);
            if let Some(frame) = self.seal(node, packet) {
                self.send_frame(now, node, &frame);
            }
            return true;
        }
        if peer.pending.is_none() {
            self.exchange(now, node, true);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let refused = peer.cooldown.is_some_and(|until| now < until)
            || peer.queue.len() >= QUEUE
            || (peer.queue.is_empty() && queues >= QUEUES);
        if !refused {
            if peer.queue.is_empty() {
                peer.queued_since = now;
            }
            peer.queue.push_back(packet.to_vec());
        }
        !refused
    }

    /// Packets that waited for the session leave, in order.
    fn flush(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for packet in std::mem::take(&mut peer.queue) {
            self.send_packet(now, node, &packet, true);
        }
    }
}
