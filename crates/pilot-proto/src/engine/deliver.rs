//! Packets in and datagrams out: streams, datagrams, control (spec 03 sections 3, 6, 18, 20).

use super::mtu::{overhead, pong_payload, probe_token};
use super::send::MAX_UDP;
use super::{Engine, Event, Ingress, Origin, SendError};
use crate::NodeId;
use crate::path::{Choice, message};
use crate::stream::Handled;
use crate::tunnel::pending::{self, Under};
use crate::wire::addr::Addr;
use crate::wire::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Packet, flags, port, protocol};
use bytes::Bytes;
use rand_core::Rng as _;
use std::time::Instant;

/// What a path probe's payload starts with; our own append a token, by which the pong is told apart.
pub(super) const PROBE: &[u8; 12] = b"pathprobe.v1";

impl Engine {
    /// Hands a packet of an established peer to its handler.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        node: NodeId,
        under: Under,
        packet: Packet<'_>,
        origin: Origin,
    ) {
        // Whoever signs another node's tunnel key as its own shares that node's session with us: what it is sent must not be
        // taken for ours. Old peers leave the destination of control packets empty.
        let to = packet.header.dst.node;
        if to != self.node && to != 0 && !packet.header.dst.is_broadcast() {
            return self.drops.misdirected += 1;
        }
        match packet.header.protocol {
            protocol::STREAM => self.deliver_stream(now, node, packet),
            protocol::DATAGRAM => self.deliver_datagram(now, node, under, packet),
            protocol::CONTROL => self.deliver_control(now, node, packet, origin),
            _ => self.drops.unknown_protocol += 1,
        }
    }

    fn deliver_stream(&mut self, now: Instant, node: NodeId, packet: Packet<'_>) {
        self.note_app(now, node);
        let dst_port = packet.header.dst_port;
        let syn = packet.header.flags & (flags::SYN | flags::ACK) == flags::SYN;
        let admitted = !syn || self.gate.admits_syn(now, node, dst_port);
        match self.streams.handle_packet(now, Ingress { node, admitted }, packet) {
            Handled::Accepted => {}
            Handled::Dropped => self.drops.stream_packet += 1,
            Handled::Untrusted => {
                self.drops.untrusted_syn += 1;
                self.knock(now, node, dst_port, false);
            }
        }
    }

    fn deliver_datagram(&mut self, now: Instant, node: NodeId, under: Under, packet: Packet<'_>) {
        let Header { src, src_port, dst_port, .. } = packet.header;
        if packet.payload.is_empty() {
            return self.drops.empty_datagram += 1;
        }
        if !self.gate.admits(now, node) {
            self.drops.untrusted_datagram += 1;
            return self.knock(now, node, dst_port, true);
        }
        if let Some(peer) = self.peers.get_mut(&node)
            && !peer.taken.take(now, (src_port, dst_port, crc32fast::hash(packet.payload)), under)
        {
            return self.drops.repeated_datagram += 1;
        }
        self.note_app(now, node);
        self.emit_datagram(src, src_port, dst_port, packet.payload);
    }

    fn emit_datagram(&mut self, src: Addr, src_port: u16, dst_port: u16, payload: &[u8]) {
        let fields = serde_json::json!({
            "src_addr": src.to_string(), "src_port": src_port, "dst_port": dst_port, "size": payload.len(),
        });
        self.emit(Event::Datagram { src, src_port, dst_port, payload: Bytes::copy_from_slice(payload) });
        self.emit(Event::Publish("data.datagram", fields));
    }

    fn knock(&mut self, now: Instant, node: NodeId, port: u16, datagram: bool) {
        if !self.gate.knock(now, node) {
            return;
        }
        let name = if datagram { "datagram.rejected" } else { "syn.rejected" };
        self.emit(Event::Publish(name, serde_json::json!({ "dst_port": port })));
        self.emit(Event::Knock { node, port, datagram });
    }

    fn deliver_control(&mut self, now: Instant, node: NodeId, packet: Packet<'_>, origin: Origin) {
        if packet.header.flags & flags::ACK != 0 {
            // A pong, or a one-way probe; never answered. A pong goes to the port the ping came from.
            return self.deliver_pong(now, node, packet.payload, origin);
        }
        if packet.header.dst_port == message::PORT {
            return self.receive_candidates(now, node, packet.payload);
        }
        if packet.header.dst_port != port::PING {
            return self.drops.control_port += 1;
        }
        if self.gate.shuts_out(now, node) {
            return self.drops.untrusted_ping += 1;
        }
        let ping = packet.header;
        let src = if ping.dst.node == 0 { Addr { node: self.node, ..ping.dst } } else { ping.dst };
        let pong = Header {
            flags: flags::ACK,
            protocol: protocol::CONTROL,
            src,
            dst: ping.src,
            src_port: port::PING,
            dst_port: ping.src_port,
            seq: ping.seq,
            ack: ping.seq.wrapping_add(1),
            window: 0,
        };
        // Old peers send pings with source node 0; the answer goes to whoever sealed the frame.
        let payload = pong_payload(packet.payload);
        self.send_header(now, node, &pong, payload, None);
        self.answer_straight(now, node, &pong, payload, origin);
    }

    fn deliver_pong(&mut self, now: Instant, node: NodeId, payload: &[u8], origin: Origin) {
        if payload.is_empty() {
            return;
        }
        if let Some(token) = probe_token(payload) {
            return self.size_probe_answered(now, node, token);
        }
        let Some(token) = payload.strip_prefix(PROBE) else {
            return self.emit(Event::Pong { node, payload: Bytes::copy_from_slice(payload) });
        };
        let Ok(token) = <[u8; 8]>::try_from(token) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if self.config.relay_only {
            return;
        }
        let straight = if let Origin::Direct(from) = origin { Some(from) } else { None };
        let changed = peer.path.pong(now, u64::from_be_bytes(token), straight);
        self.touch(node);
        if changed {
            self.streams.path_changed(now, node);
        }
    }

    /// One of our own gets the answer to a probe also on the way the probe came: that is the way it measures, and both
    /// NATs let pass. References choose themselves where their answers are to come (spec 04 section 9).
    fn answer_straight(&mut self, now: Instant, node: NodeId, pong: &Header, payload: &[u8], origin: Origin) {
        let Origin::Direct(from) = origin else { return };
        let Some(peer) = self.peers.get(&node) else { return };
        let elsewhere =
            peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only) != Choice::Direct(from);
        if elsewhere
            && payload.starts_with(PROBE)
            && peer.session_kind(now) == "upgraded"
            && !self.config.relay_only
        {
            self.send_header(now, node, pong, payload, Some(origin));
        }
    }

    /// Sends a probe to the address in use, or to every address of the peer that is worth one.
    pub(super) fn send_probes(&mut self, now: Instant, node: NodeId, all: bool) {
        let Some(peer) = self.peers.get(&node) else { return };
        if !peer.linked(now) || self.config.relay_only || peer.path.relay_only {
            return;
        }
        for addr in peer.path.targets(all) {
            if !self.may_probe(now, node, addr) {
                continue;
            }
            let token = self.rng.next_u64();
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.path.probed(now, addr, token);
            }
            let mut payload = [0; 20];
            payload[..12].copy_from_slice(PROBE);
            payload[12..].copy_from_slice(&token.to_be_bytes());
            self.send_ping(now, node, &payload, Some(Origin::Direct(addr)));
        }
    }

    pub(super) fn send_ping(&mut self, now: Instant, node: NodeId, payload: &[u8], way: Option<Origin>) {
        let header = Header {
            protocol: protocol::CONTROL,
            src: Addr::backbone(self.node),
            dst: Addr::backbone(node),
            ..Header::default()
        };
        self.send_header(now, node, &header, payload, way);
    }

    /// A plain path probe on the peer's current path, for the watchdog.
    pub(super) fn send_watch_probe(&mut self, now: Instant, node: NodeId) {
        self.send_ping(now, node, PROBE, None);
        self.note_asked(now, node);
    }

    // ---- sending -------------------------------------------------------------------------------------------

    pub(super) fn datagram_out(
        &mut self,
        now: Instant,
        to: Addr,
        dst_port: u16,
        payload: &[u8],
    ) -> Result<(), SendError> {
        if to.is_broadcast() {
            return Err(SendError::Broadcast);
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(SendError::TooLarge(payload.len()));
        }
        let most = self.most_payload(to.node);
        if payload.len() > most {
            return Err(SendError::TooLong(payload.len(), most));
        }
        let src_port = self.streams.ephemeral_port().ok_or(SendError::PortsExhausted)?;
        let src = Addr { network: to.network, node: self.node };
        if to.node == self.node {
            if !payload.is_empty() {
                self.emit_datagram(src, src_port, dst_port, payload);
            }
            return Ok(());
        }
        let header =
            Header { protocol: protocol::DATAGRAM, src, dst: to, src_port, dst_port, ..Header::default() };
        self.packet_out(now, to.node, &header, payload)
    }

    pub(super) fn ping_out(&mut self, now: Instant, node: NodeId, payload: &[u8]) -> Result<(), SendError> {
        let most = MAX_UDP - overhead(&self.config, true);
        if payload.len() > most {
            return Err(SendError::TooLong(payload.len(), most));
        }
        if node == self.node {
            self.emit(Event::Pong { node, payload: Bytes::copy_from_slice(payload) });
            return Ok(());
        }
        let (src, dst) = (Addr::backbone(self.node), Addr::backbone(node));
        let header = Header { protocol: protocol::CONTROL, src, dst, ..Header::default() };
        self.packet_out(now, node, &header, payload)
    }

    /// Sends a packet, or queues it until there is a session (spec 02 section 12).
    fn packet_out(
        &mut self,
        now: Instant,
        node: NodeId,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let mut packet = Vec::with_capacity(HEADER_LEN + payload.len());
        if header.emit(payload, &mut packet).is_err() {
            return Err(SendError::TooLarge(payload.len()));
        }
        if self.can_send(node) {
            self.send_first(now, node, &packet);
            if header.protocol == protocol::CONTROL {
                self.note_asked(now, node);
            }
            return Ok(());
        }
        if let Some(refused) = self.downgraded(now, node) {
            return Err(refused);
        }
        let new = self.peers.get(&node).is_none_or(|p| p.pending.is_empty());
        if new && self.pending_peers >= pending::MAX_PEERS {
            return Err(SendError::TooManyPending);
        }
        self.reach(now, node);
        let Some(peer) = self.peers.get_mut(&node) else { return Err(SendError::TooManyPending) };
        if peer.in_cooldown(now) || !peer.pending.push(packet, now) {
            return Err(SendError::PendingFull(node));
        }
        self.pending_peers += usize::from(new);
        self.touch(node);
        Ok(())
    }

    fn can_send(&self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get(&node) else { return false };
        let way = peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only);
        way != Choice::None && (peer.linked(self.latest) || !self.config.encrypt)
    }

    /// In plaintext mode packets only wait for the address.
    pub(super) fn flush_pending(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let waiting = peer.pending.take();
        if !waiting.is_empty() {
            self.pending_peers = self.pending_peers.saturating_sub(1);
        }
        for packet in waiting {
            self.send_first(now, node, &packet);
        }
    }
}
