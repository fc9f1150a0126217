//! Path MTU discovery among our own nodes (docs/extensions.md, "Path MTU"): which path a packet takes and what that path
//! carries, probes and their answers, what the system and routers say, and black holes that streams notice.
//!
//! Only peers with an upgraded session are probed. Towards references segments stay at 1,152 bytes: their boundaries must
//! be kept (spec 03 section 9.3), so a segment in flight could not be cut for a path that carries less.

use super::peer::Peer;
use super::send::{MAX_UDP, SAFE_PAYLOAD};
use super::{Config, Engine, Origin};
use crate::NodeId;
use crate::path::{Choice, Mtu};
use crate::wire::addr::Addr;
use crate::wire::beacon::RELAY_HEADER_LEN;
use crate::wire::frame::{PILS_HEADER_LEN, PILT, TAG_LEN};
use crate::wire::packet::{HEADER_LEN, Header, protocol};
use rand_core::Rng as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the payload of a size probe starts with; eight bytes of token and zeros follow.
const PROBE: &[u8; 12] = b"mtuprobe.v1.";
/// Bytes of it that our own nodes send back.
const ANSWER_LEN: usize = PROBE.len() + 8;
/// IP and UDP headers.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// The answer to a ping: the whole payload, but of a size probe only what identifies it, because the way back may carry
/// less.
pub(super) fn pong_payload(ping: &[u8]) -> &[u8] {
    if ping.starts_with(PROBE) && ping.len() > ANSWER_LEN { &ping[..ANSWER_LEN] } else { ping }
}

/// The token of an answered size probe, whole or shortened.
pub(super) fn probe_token(pong: &[u8]) -> Option<u64> {
    let token = pong.strip_prefix(PROBE)?.first_chunk()?;
    Some(u64::from_be_bytes(*token))
}

/// Where a frame goes, and whether through the relay.
pub(super) type Way = (SocketAddr, bool);

/// What is known of the paths to one peer: one direct, one relayed. Another address is another path.
#[derive(Debug, Default)]
pub(super) struct Mtus {
    direct: Option<(SocketAddr, Mtu)>,
    relay: Option<(SocketAddr, Mtu)>,
    /// The path used last.
    active: Option<Way>,
}

impl Mtus {
    fn of(&self, (to, relay): Way) -> Option<&Mtu> {
        let entry = if relay { &self.relay } else { &self.direct };
        entry.as_ref().filter(|(addr, _)| *addr == to).map(|(_, mtu)| mtu)
    }

    fn of_mut(&mut self, (to, relay): Way) -> Option<&mut Mtu> {
        let entry = if relay { &mut self.relay } else { &mut self.direct };
        entry.as_mut().filter(|(addr, _)| *addr == to).map(|(_, mtu)| mtu)
    }

    fn both(&self) -> impl Iterator<Item = (Way, &Mtu)> {
        let direct = self.direct.iter().map(|(addr, mtu)| ((*addr, false), mtu));
        direct.chain(self.relay.iter().map(|(addr, mtu)| ((*addr, true), mtu)))
    }

    /// Makes this the path in use, as `new` if nothing is known of it.
    fn enter(&mut self, now: Instant, way: Way, new: impl FnOnce() -> Mtu) -> &mut Mtu {
        let again = self.active != Some(way);
        self.active = Some(way);
        let entry = if way.1 { &mut self.relay } else { &mut self.direct };
        if entry.as_ref().is_some_and(|(addr, _)| *addr != way.0) {
            *entry = None;
        }
        let known = entry.is_some();
        let (_, mtu) = entry.get_or_insert_with(|| (way.0, new()));
        if again && known {
            mtu.revisit(now);
        }
        mtu
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.both().filter_map(|(_, mtu)| mtu.deadline()).min()
    }
}

/// Bytes in front of and behind the payload of a packet.
pub(super) fn overhead(config: &Config, relay: bool) -> usize {
    let relay = if relay { RELAY_HEADER_LEN } else { 0 };
    let seal = if config.encrypt { PILS_HEADER_LEN + TAG_LEN } else { PILT.len() };
    relay + seal + HEADER_LEN
}

/// Bytes of UDP payload every path is trusted with: a reference's segment.
fn floor(config: &Config, relay: bool) -> usize {
    SAFE_PAYLOAD + overhead(config, relay)
}

fn fresh(config: &Config, now: Instant, (to, relay): Way) -> Mtu {
    let floor = floor(config, relay);
    let headers = if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    match is_loopback((to, relay)) {
        true => Mtu::known(now, floor, headers, loopback(config)),
        false => Mtu::new(now, floor, headers),
    }
}

/// Bytes of UDP payload towards a peer on this host.
fn loopback(config: &Config) -> usize {
    (config.loopback_payload.max(SAFE_PAYLOAD) + overhead(config, false)).min(MAX_UDP)
}

fn is_loopback((to, relay): Way) -> bool {
    !relay && to.ip().to_canonical().is_loopback()
}

impl Peer {
    /// Bytes of UDP payload that may be sent this way. A path just taken up again starts at its floor.
    pub(super) fn mtu(&self, config: &Config, way: Way) -> usize {
        let known = self.mtus.as_ref().and_then(|mtus| Some((mtus.of(way)?, mtus.active)));
        match known {
            Some((mtu, active)) if active == Some(way) => mtu.size(),
            None if is_loopback(way) => loopback(config),
            Some(_) | None => floor(config, way.1),
        }
    }

    /// A frame of `len` bytes went this way. True: its timer changed.
    pub(super) fn note_size(&mut self, config: &Config, now: Instant, way: Way, len: usize) -> bool {
        if self.mtus.is_none() && (len < floor(config, way.1) || is_loopback(way)) {
            return false;
        }
        let ours = self.is_ours(now);
        if self.mtus.is_none() && !ours {
            return false;
        }
        let mtus = self.mtus.get_or_insert_default();
        let before = mtus.deadline();
        let mtu = mtus.enter(now, way, || fresh(config, now, way));
        if ours {
            mtu.sent(now, len);
        }
        mtus.deadline() != before
    }
}

impl Engine {
    /// The path in use to a peer.
    fn way_to(&self, peer: &Peer) -> Option<Way> {
        match peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only) {
            Choice::Direct(to) => Some((to, false)),
            Choice::Relay => self.relay_of(peer).map(|beacon| (beacon, true)),
            Choice::None => None,
        }
    }

    /// Bytes of UDP payload a datagram to this peer may have; 0 without a path.
    pub(super) fn current_mtu(&self, peer: &Peer) -> usize {
        self.way_to(peer).map_or(0, |way| peer.mtu(&self.config, way))
    }

    /// Largest payload of one packet to this peer that is not known to be too large.
    pub(super) fn most_payload(&self, node: NodeId) -> usize {
        let known = self.peers.get(&node).and_then(|peer| {
            let way = self.way_to(peer)?;
            let most = peer.mtus.as_ref()?.of(way)?.most();
            Some((way.1, most))
        });
        let direct =
            self.peers.get(&node).is_some_and(|p| p.path.proven()) || self.beacons.chosen().is_none();
        let (relay, most) = known.unwrap_or((!direct, MAX_UDP));
        most.min(MAX_UDP) - overhead(&self.config, relay)
    }

    // ---- probes ----------------------------------------------------------------------------------------------

    pub(super) fn mtu_timeout(&mut self, now: Instant, node: NodeId) {
        let Some(mtus) = self.peers.get_mut(&node).and_then(|peer| peer.mtus.as_deref_mut()) else { return };
        let active = mtus.active;
        let ways: Vec<Way> = mtus.both().map(|(way, _)| way).collect();
        for way in ways {
            let rng = &mut self.rng;
            let mtus = self.peers.get_mut(&node).and_then(|peer| peer.mtus.as_deref_mut());
            let Some(mtu) = mtus.and_then(|mtus| mtus.of_mut(way)) else { continue };
            let due = mtu.tick(now, || rng.next_u64());
            if due.fell && active == Some(way) {
                self.mtu_fell(now, node, way);
            }
            for (size, token) in due.probes {
                self.send_size_probe(now, node, way, size, token);
            }
        }
    }

    /// Sends a ping in a frame of exactly `size` bytes, alone: a batch that is too large would be lost as a whole.
    fn send_size_probe(&mut self, now: Instant, node: NodeId, way: Way, size: usize, token: u64) {
        if way.1 && !self.beacons.usable(way.0) {
            return;
        }
        let Some(len) = size.checked_sub(overhead(&self.config, way.1)) else { return };
        let mut payload = vec![0; len];
        let Some(head) = payload.get_mut(..ANSWER_LEN) else { return };
        head[..PROBE.len()].copy_from_slice(PROBE);
        head[PROBE.len()..].copy_from_slice(&token.to_be_bytes());
        let header = Header {
            protocol: protocol::CONTROL,
            src: Addr::backbone(self.node),
            dst: Addr::backbone(node),
            ..Header::default()
        };
        self.counters.mtu_probes += 1;
        let origin = if way.1 { Origin::Relay(node, way.0) } else { Origin::Direct(way.0) };
        self.send_header(now, node, &header, &payload, Some(origin));
    }

    pub(super) fn size_probe_answered(&mut self, now: Instant, node: NodeId, token: u64) {
        let Some(mtus) = self.peers.get_mut(&node).and_then(|peer| peer.mtus.as_deref_mut()) else { return };
        for (_, mtu) in [&mut mtus.direct, &mut mtus.relay].into_iter().flatten() {
            mtu.answered(now, token);
        }
        self.touch(node);
    }

    // ---- what does not fit -----------------------------------------------------------------------------------

    /// What is under way in larger packets will not arrive: streams cut it anew.
    fn mtu_fell(&mut self, now: Instant, node: NodeId, way: Way) {
        let Some(peer) = self.peers.get(&node) else { return };
        let payload = peer.mtu(&self.config, way) - overhead(&self.config, way.1);
        self.streams.shrink(now, node, payload);
    }

    /// The operating system refused to send a datagram of `len` bytes there.
    pub(super) fn size_refused(&mut self, now: Instant, to: SocketAddr, len: usize) {
        let config = &self.config;
        let mut fell = Vec::new();
        let mut touched = Vec::new();
        for (node, peer) in &mut self.peers {
            if peer.mtus.is_none() && is_loopback((to, false)) && peer.path.direct() == Some(to) {
                let way = (to, false);
                peer.mtus.get_or_insert_default().enter(now, way, || fresh(config, now, way));
            }
            let Some(mtus) = &mut peer.mtus else { continue };
            for way in [(to, false), (to, true)] {
                let Some(mtu) = mtus.of_mut(way) else { continue };
                touched.push(*node);
                if mtu.refuse(now, len) && mtus.active == Some(way) {
                    fell.push((*node, way));
                }
            }
        }
        for (node, way) in fell {
            self.mtu_fell(now, node, way);
        }
        for node in touched {
            self.touch(node);
        }
    }

    /// A router says that packets of `mtu` bytes, IP header included, are the largest it can send on towards `to`.
    pub(super) fn size_hinted(&mut self, now: Instant, to: SocketAddr, mtu: usize) {
        let headers = if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
        let size = mtu.saturating_sub(headers);
        let mut touched = Vec::new();
        for (node, peer) in &mut self.peers {
            let Some(mtus) = &mut peer.mtus else { continue };
            for way in [(to, false), (to, true)] {
                if mtus.of_mut(way).is_some_and(|mtu| mtu.hint(now, size)) {
                    touched.push(*node);
                }
            }
        }
        for node in touched {
            self.touch(node);
        }
    }

    /// Examines the paths of peers whose streams lose large segments.
    pub(super) fn mtu_doubts(&mut self, now: Instant) {
        while let Some((node, rtt)) = self.streams.take_doubt() {
            self.mtu_doubted(now, node, rtt);
        }
    }

    fn mtu_doubted(&mut self, now: Instant, node: NodeId, rtt: Duration) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let ours = peer.is_ours(now);
        let Some(mtus) = peer.mtus.as_deref_mut().filter(|_| ours) else { return };
        if let Some(way) = mtus.active
            && mtus.of_mut(way).is_some_and(|mtu| mtu.doubt(now, rtt))
        {
            self.touch(node);
        }
    }
}
