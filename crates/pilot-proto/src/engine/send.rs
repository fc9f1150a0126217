//! Frames out: the packet path, control frames, batches (spec 02 section 12).
//!
//! Packets are built behind room for their headers and sealed where they lie, so that the path from a stream's
//! buffer to the socket copies a payload once and allocates nothing.

use super::mtu::{Way, overhead};
use super::{Engine, Ingress, Origin, Transmit};
use crate::NodeId;
use crate::path::Choice;
use crate::stream::PathInfo;
use crate::wire::addr::Addr;
use crate::wire::beacon::{RELAY_HEADER_LEN, relay_header};
use crate::wire::frame::{PILS_HEADER_LEN, PILS_OVERHEAD, PILT, TAG_LEN};
use crate::wire::packet::{HEADER_LEN, Header, Packet, protocol};
use std::net::SocketAddr;
use std::time::Instant;

/// Control frames that may wait for the socket.
const MAX_CONTROL: usize = 1024;
/// Datagrams that may wait for the socket.
const MAX_DATA: usize = 2048;
/// Bytes of waiting datagrams.
const MAX_DATA_BYTES: usize = 8 << 20;
/// Bytes in one batch.
const MAX_BATCH: usize = 65_000;
/// Stream payload of one packet unless the path is known to carry more (spec 03 section 22).
pub(super) const SAFE_PAYLOAD: usize = 1152;
/// Packets to ourselves handled before the driver gets its turn.
const MAX_LOCAL: usize = 256;
/// Bytes of UDP payload a datagram can have (IPv4).
pub(super) const MAX_UDP: usize = 65_507;

/// Frames up to this size (UDP payload, bytes) fit every path.
const SAFE_FRAME: usize = SAFE_PAYLOAD + HEADER_LEN + PILS_OVERHEAD + RELAY_HEADER_LEN;

/// A frame ready to be sent.
#[derive(Debug)]
pub(super) struct Ready {
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// A stream packet that did not fit the batch it came after.
#[derive(Debug, Default)]
pub(super) struct Carry {
    node: Option<NodeId>,
    asks: bool,
    packet: Vec<u8>,
}

impl Engine {
    pub(super) fn send_control(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.control.len() >= MAX_CONTROL {
            return self.drops.outbox_full += 1;
        }
        self.control.push_back(Ready { to, bytes });
    }

    fn send_data(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.data.len() >= MAX_DATA || self.data_bytes + bytes.len() > MAX_DATA_BYTES {
            return self.drops.outbox_full += 1;
        }
        self.data_bytes += bytes.len();
        self.data.push_back(Ready { to, bytes });
    }

    // ---- single packets --------------------------------------------------------------------------------------

    /// Sends an application's packet for the first time: should the peer have lost the session, it is sent again.
    pub(super) fn send_first(&mut self, now: Instant, node: NodeId, packet: &[u8]) {
        if packet.get(1) == Some(&protocol::DATAGRAM)
            && self.config.encrypt
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.salvage.push(packet, now);
        }
        self.send_now(now, node, packet, None);
    }

    /// Seals a packet for a peer with a session and queues it. `way` overrides the peer's path.
    pub(super) fn send_now(&mut self, now: Instant, node: NodeId, packet: &[u8], way: Option<Origin>) {
        let Some((to, relay)) = self.way(now, node, way) else { return self.drops.no_path += 1 };
        let head = self.prefix_len(relay);
        let mut frame = Vec::with_capacity(head + packet.len() + TAG_LEN);
        frame.resize(head, 0);
        frame.extend_from_slice(packet);
        if !self.seal(node, relay, &mut frame, 0) {
            return self.drops.no_path += 1;
        }
        self.note_sent(now, node, frame.len(), way.is_none().then_some((to, relay)));
        if packet.get(1) == Some(&protocol::DATAGRAM) {
            self.note_app(now, node);
            self.send_data(to, frame);
        } else {
            self.send_control(to, frame);
        }
    }

    /// An empty control packet: a sign of life (spec 01 section 12).
    pub(super) fn send_keepalive(&mut self, now: Instant, node: NodeId, way: Option<Origin>) {
        let header =
            Header { protocol: protocol::CONTROL, src: Addr::backbone(self.node), ..Header::default() };
        self.send_header(now, node, &header, &[], way);
    }

    pub(super) fn send_header(
        &mut self,
        now: Instant,
        node: NodeId,
        header: &Header,
        payload: &[u8],
        way: Option<Origin>,
    ) {
        let mut packet = Vec::with_capacity(HEADER_LEN + payload.len());
        if header.emit(payload, &mut packet).is_ok() {
            self.send_now(now, node, &packet, way);
        }
    }

    /// Where the next frame to a peer goes, and whether it must be wrapped for the relay.
    fn way(&mut self, now: Instant, node: NodeId, way: Option<Origin>) -> Option<(SocketAddr, bool)> {
        match way {
            Some(Origin::Direct(to)) if !self.config.relay_only => return Some((to, false)),
            Some(Origin::Relay(_, via)) => return self.relayed(now, Some(via)),
            Some(Origin::Direct(_)) => return self.relayed(now, self.relay_for(node)),
            None => {}
        }
        let peer = self.peers.get_mut(&node)?;
        match peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only) {
            Choice::Direct(to) => {
                if peer.path.sent_directly(now) {
                    self.touch(node);
                }
                Some((to, false))
            }
            Choice::Relay => self.relayed(now, self.relay_for(node)),
            Choice::None => None,
        }
    }

    fn relayed(&mut self, now: Instant, through: Option<SocketAddr>) -> Option<(SocketAddr, bool)> {
        self.note_relayed(now, through?);
        Some((through?, true))
    }

    /// Bytes in front of a packet.
    fn prefix_len(&self, relay: bool) -> usize {
        let relay = if relay { RELAY_HEADER_LEN } else { 0 };
        relay + if self.config.encrypt { PILS_HEADER_LEN } else { PILT.len() }
    }

    /// Fills in the headers at `frame[start..]` and seals the packet behind them.
    fn seal(&mut self, node: NodeId, relay: bool, frame: &mut Vec<u8>, start: usize) -> bool {
        let mut at = start;
        if relay {
            let Some(room) = frame.get_mut(at..at + RELAY_HEADER_LEN) else { return false };
            room.copy_from_slice(&relay_header(self.node, node));
            at += RELAY_HEADER_LEN;
        }
        if !self.config.encrypt {
            let Some(room) = frame.get_mut(at..at + PILT.len()) else { return false };
            room.copy_from_slice(&PILT);
            return true;
        }
        if let Some(sealed) = self.seal_upgraded(node, frame, at) {
            return sealed;
        }
        let own = self.node;
        let session = self.peers.get_mut(&node).and_then(|peer| peer.session.as_mut());
        session.is_some_and(|session| session.seal(own, frame, at))
    }

    /// `way`: the path in use, unless another was asked for.
    fn note_sent(&mut self, now: Instant, node: NodeId, bytes: usize, way: Option<Way>) {
        self.counters.pkts_sent += 1;
        self.counters.bytes_sent += bytes as u64;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.last_out = now;
        if let Some(way) = way
            && peer.note_size(&self.config, now, way, bytes)
        {
            self.touch(node);
        }
    }

    /// Application traffic with this peer: it is not idle.
    pub(super) fn note_app(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.last_app = Some(now);
        if peer.asleep {
            self.touch(node);
        }
    }

    // ---- output ----------------------------------------------------------------------------------------------

    /// Takes waiting frames: one, or several of equal size to one address.
    pub(super) fn next_frames(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let data = self.control.is_empty();
        let queue = if data { &mut self.data } else { &mut self.control };
        let first = queue.pop_front()?;
        let (to, size) = (first.to, first.bytes.len());
        buf.clear();
        buf.extend_from_slice(&first.bytes);
        let mut count = 1;
        while count < self.config.max_segments.max(1)
            && let Some(next) = queue.front()
            && next.to == to
            && next.bytes.len() <= size
            // Should this size not fit, smaller frames must not be lost with it.
            && (size <= SAFE_FRAME || next.bytes.len() == size)
            && buf.len() + next.bytes.len() <= MAX_BATCH
        {
            let shorter = next.bytes.len() < size;
            buf.extend_from_slice(&next.bytes);
            queue.pop_front();
            count += 1;
            if shorter {
                break;
            }
        }
        if data {
            self.data_bytes = self.data_bytes.saturating_sub(buf.len());
        }
        Some(Transmit { to, len: buf.len(), segment_size: (count > 1).then_some(size) })
    }

    /// Builds the next batch of stream packets.
    pub(super) fn next_batch(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        buf.clear();
        let mut to = None;
        let (mut size, mut count, mut local) = (0, 0, 0);
        let mut relayed = false;
        while count < self.config.max_segments.max(1) && local < MAX_LOCAL {
            let start = buf.len();
            if count > 0 && start + size > MAX_BATCH {
                break;
            }
            let mut head = self.prefix_len(relayed);
            let Some((node, asks)) = self.next_packet(now, buf, head) else { break };
            if node == self.node {
                self.deliver_local(now, &buf[start + head..]);
                buf.truncate(start);
                local += 1;
                continue;
            }
            let Some((addr, relay)) = self.way(now, node, None) else {
                self.drops.no_path += 1;
                buf.truncate(start);
                continue;
            };
            if relay != relayed {
                let want = self.prefix_len(relay);
                if count > 0 {
                    // Another destination in any case; no need to move it into place.
                    self.carry(node, asks, buf, start, head);
                    break;
                }
                move_tail(buf, start + head, start + want);
                (head, relayed) = (want, relay);
            }
            let tag = if self.config.encrypt { TAG_LEN } else { 0 };
            let len = buf.len() - start + tag;
            if self.peers.get(&node).is_some_and(|peer| len > peer.mtu(&self.config, (addr, relay))) {
                // It was carried over from a batch that went another way.
                self.drops.cut_for_another_path += 1;
                buf.truncate(start);
                continue;
            }
            if count > 0 && (to != Some(addr) || len > size) {
                self.carry(node, asks, buf, start, head);
                break;
            }
            if !self.seal(node, relay, buf, start) {
                self.drops.no_path += 1;
                buf.truncate(start);
                continue;
            }
            self.note_sent(now, node, len, Some((addr, relay)));
            self.note_app(now, node);
            if asks {
                self.note_asked(now, node);
            }
            count += 1;
            if count == 1 {
                (to, size) = (Some(addr), len);
            } else if len < size {
                break;
            }
        }
        let to = to.filter(|_| count > 0)?;
        Some(Transmit { to, len: buf.len(), segment_size: (count > 1).then_some(size) })
    }

    /// Appends room for `head` bytes of headers and the next stream packet. Returns to whom it goes, and whether it
    /// wants an answer.
    fn next_packet(&mut self, now: Instant, buf: &mut Vec<u8>, head: usize) -> Option<(NodeId, bool)> {
        let start = buf.len();
        buf.resize(start + head, 0);
        if let Some(node) = self.carried.node.take() {
            buf.extend_from_slice(&self.carried.packet);
            return Some((node, self.carried.asks));
        }
        let (peers, own, config) = (&self.peers, self.node, &self.config);
        let beacon = self.beacons.chosen();
        let path = |node: NodeId| {
            if node == own {
                let max_payload =
                    config.loopback_payload.clamp(SAFE_PAYLOAD, MAX_UDP - overhead(config, false));
                return PathInfo { max_payload, ready: true, relayed: false, same_process: true };
            }
            let no_path =
                PathInfo { max_payload: SAFE_PAYLOAD, ready: false, relayed: false, same_process: true };
            let Some(peer) = peers.get(&node) else { return no_path };
            let way = match (peer.path.choose(beacon.is_some(), config.relay_only), beacon) {
                (Choice::Direct(to), _) => (to, false),
                (Choice::Relay, Some(beacon)) => (beacon, true),
                (Choice::Relay, None) | (Choice::None, _) => return no_path,
            };
            PathInfo {
                max_payload: peer.mtu(config, way) - overhead(config, way.1),
                ready: peer.linked(now) || !config.encrypt,
                relayed: way.1,
                same_process: peer.same_process() || peer.is_ours(now),
            }
        };
        match self.streams.poll_packet(now, &path, buf) {
            Some(out) => Some((out.node, out.asks)),
            None => {
                buf.truncate(start);
                None
            }
        }
    }

    fn carry(&mut self, node: NodeId, asks: bool, buf: &mut Vec<u8>, start: usize, head: usize) {
        self.carried.packet.clear();
        self.carried.packet.extend_from_slice(&buf[start + head..]);
        (self.carried.node, self.carried.asks) = (Some(node), asks);
        buf.truncate(start);
    }

    /// A packet to ourselves takes the short way (spec 03 section 21).
    fn deliver_local(&mut self, now: Instant, packet: &[u8]) {
        if let Ok(packet) = Packet::parse(packet) {
            self.streams.handle_packet(now, Ingress { node: self.node, admitted: true }, packet);
        }
    }
}

/// Moves `buf[from..]` so that it starts at `to`.
fn move_tail(buf: &mut Vec<u8>, from: usize, to: usize) {
    let len = buf.len();
    if to > from {
        buf.resize(len + (to - from), 0);
        buf.copy_within(from..len, to);
    } else {
        buf.copy_within(from..len, to);
        buf.truncate(len - (from - to));
    }
}
