//! Where a peer is reached, and the timers that look after it (spec 02 section 12, spec 04 sections 8 to 13).

use crate::Event;
use crate::node::Node;
use crate::session::Session;
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::packet::{Header, flags, port, protocol};
use pilot_proto::{Addr, NodeId};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Silence on the direct path that counts as a miss, and misses that end it.
const DIRECT_SILENCE: Duration = Duration::from_secs(8);
const MISSES: u32 = 3;
/// Direct frames that end an unpinned use of the relay.
const DIRECT_FRAMES: u32 = 3;
/// A keepalive is sent when nothing was sent for this long.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// A peer without application traffic for this long is idle.
const IDLE: Duration = Duration::from_secs(120);
/// A peer with which nothing was exchanged for this long is removed.
const REAP: Duration = Duration::from_secs(300);
/// Watchdog: silence, probes, pause between resets.
const WATCHDOG_SILENCE: Duration = Duration::from_secs(55);
const WATCHDOG_PROBES: u32 = 3;
const WATCHDOG_PAUSE: Duration = Duration::from_secs(120);
/// Payload of a path probe.
const PATH_PROBE: &[u8] = b"pathprobe.v1";
/// How long an answer of the registry about an address is used.
const ROUTE_FRESH: Duration = Duration::from_secs(60);
/// Probes of an upgrade, and the time between them.
const UPGRADE_PROBES: u32 = 5;
const UPGRADE_GAP: Duration = Duration::from_millis(200);

/// Where the registry says a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its registered address.
    pub addr: SocketAddr,
    /// It is reached through the relay only.
    pub relay_only: bool,
}

/// A pending key exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) attempts: u32,
    pub(crate) last: Instant,
}

/// A peer in the table.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its address; the beacon's as a placeholder.
    pub(crate) addr: SocketAddr,
    pub(crate) relay: bool,
    pub(crate) pinned: bool,
    pub(crate) session: Option<Session>,
    pub(crate) pending: Option<Pending>,
    /// Packets that wait for a session, and since when.
    pub(crate) queue: VecDeque<Vec<u8>>,
    pub(crate) queued_since: Instant,
    pub(crate) cooldown: Option<Instant>,
    /// It sent a frame we could not read.
    pub(crate) unreadable: bool,
    /// The session's key exchange came through the relay.
    pub(crate) keyed_by_relay: bool,
    pub(crate) last_inbound: Instant,
    pub(crate) last_sent: Option<Instant>,
    first_sent: Option<Instant>,
    last_direct: Option<Instant>,
    misses: u32,
    direct_frames: u32,
    /// Last application traffic.
    pub(crate) app: Option<Instant>,
    probes: u32,
    pub(crate) last_reset: Option<Instant>,
    last_gave_up_reset: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(now: Instant, addr: SocketAddr) -> Peer {
        Peer {
            addr,
            relay: false,
            pinned: false,
            session: None,
            pending: None,
            queue: VecDeque::new(),
            queued_since: now,
            cooldown: None,
            unreadable: false,
            keyed_by_relay: false,
            last_inbound: now,
            last_sent: None,
            first_sent: None,
            last_direct: None,
            misses: 0,
            direct_frames: 0,
            app: None,
            probes: 0,
            last_reset: None,
            last_gave_up_reset: None,
        }
    }

    /// The key came through the relay, and nothing direct ever decrypted.
    pub(crate) fn keyed_by_relay_only(&self) -> bool {
        self.keyed_by_relay && self.last_direct.is_none()
    }
}

/// A direct probe of an upgrade, to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpgradeProbe {
    node: NodeId,
    at: Instant,
    left: u32,
}

impl Node {
    /// Enters a peer, on the path its first frame came by, if it is not known.
    pub(crate) fn enter(&mut self, now: Instant, node: NodeId, from: SocketAddr, relayed: bool) {
        self.peers.entry(node).or_insert_with(|| {
            let mut peer = Peer::new(now, from);
            (peer.relay, peer.pinned) = (relayed, relayed);
            peer
        });
    }

    /// Whether a real address of a peer is known, not just the beacon's.
    pub(crate) fn has_direct(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|p| Some(p.addr) != self.beacon)
    }

    pub(crate) fn resolve(&mut self, now: Instant, node: NodeId) {
        let fresh = |at: Instant| now.saturating_duration_since(at) < ROUTE_FRESH;
        let known = self.routes.get(&node).filter(|(_, at)| fresh(*at)).map(|(r, _)| *r);
        if let Some(route) = known {
            self.set_route(now, node, Ok(route));
        } else if self.resolving.insert(node) {
            self.emit(Event::NeedRoute(node));
        }
    }

    /// First contact: punch, enter, exchange keys (spec 04 section 8).
    pub(crate) fn reach(&mut self, now: Instant, node: NodeId, route: &Route) {
        let mut peer = Peer::new(now, route.addr);
        if route.relay_only {
            (peer.relay, peer.pinned) = (true, true);
        } else {
            self.tell_beacon(&Message::PunchRequest { requester: self.node, target: node });
        }
        self.peers.insert(node, peer);
        self.exchange(now, node, true);
    }

    /// Sends a frame to a peer on its path.
    pub(crate) fn send_frame(&mut self, now: Instant, node: NodeId, frame: &[u8]) {
        let beacon = self.beacon;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.last_sent = Some(now);
        let first = *peer.first_sent.get_or_insert(now);
        if !peer.relay && beacon.is_some() {
            let since = peer.last_direct.unwrap_or(first);
            if now.saturating_duration_since(since) > DIRECT_SILENCE {
                peer.misses += 1;
                if peer.misses >= MISSES {
                    (peer.relay, peer.pinned, peer.misses) = (true, true, 0);
                    if let Some(pending) = &mut peer.pending {
                        pending.attempts = 0;
                    }
                }
            }
        }
        if peer.relay && beacon.is_some() {
            self.relay(node, frame);
        } else {
            let addr = peer.addr;
            self.transmit(addr, frame.to_vec());
        }
    }

    pub(crate) fn relay(&mut self, to: NodeId, frame: &[u8]) {
        let from = self.node;
        self.tell_beacon(&Message::Relay { from, to, frame });
    }

    /// An authenticated frame came in: bookkeeping of the path.
    pub(crate) fn note_path(&mut self, now: Instant, node: NodeId, from: SocketAddr, relayed: bool) {
        let direct_known = self.has_direct(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.misses = 0;
        if relayed {
            if !direct_known {
                peer.relay = true;
            }
            return;
        }
        (peer.addr, peer.last_direct) = (from, Some(now));
        if peer.relay && !peer.pinned {
            peer.direct_frames += 1;
            if peer.direct_frames >= DIRECT_FRAMES {
                (peer.relay, peer.direct_frames) = (false, 0);
            }
        }
    }

    fn control(&self, to: Addr, flags: u8, seq: u32) -> Header {
        let src = Addr::backbone(self.node);
        Header { protocol: protocol::CONTROL, flags, src, dst: to, seq, ..Header::default() }
    }

    fn in_use(&self, now: Instant, node: NodeId, peer: &Peer) -> bool {
        let recent = peer.app.is_some_and(|at| now.saturating_duration_since(at) < IDLE);
        recent || self.streams.open_with(node)
    }

    fn peers_in_use(&self, now: Instant, also: impl Fn(&Peer) -> bool) -> Vec<NodeId> {
        let wanted = |(node, peer): &(&NodeId, &Peer)| also(peer) && self.in_use(now, **node, peer);
        self.peers.iter().filter(wanted).map(|(node, _)| *node).collect()
    }

    /// Every 5 s: keepalives, and the end of peers with which nothing happens.
    pub(crate) fn keepalive(&mut self, now: Instant) {
        let gone = |(node, peer): &(&NodeId, &Peer)| {
            let last = peer.last_sent.map_or(peer.last_inbound, |at| at.max(peer.last_inbound));
            now.saturating_duration_since(last) >= REAP && !self.streams.open_with(**node)
        };
        let gone: Vec<NodeId> = self.peers.iter().filter(gone).map(|(node, _)| *node).collect();
        for node in gone {
            self.peers.remove(&node);
            self.keys.remove(&node);
        }
        let quiet = |p: &Peer| {
            p.session.is_some()
                && p.last_sent.is_some_and(|at| now.saturating_duration_since(at) >= KEEPALIVE)
        };
        let header = self.control(Addr::ZERO, 0, 0);
        for node in self.peers_in_use(now, quiet) {
            self.send_control(now, node, &header, b"");
        }
    }

    fn send_control(&mut self, now: Instant, node: NodeId, header: &Header, payload: &[u8]) {
        let mut packet = Vec::new();
        if header.emit(payload, &mut packet).is_ok()
            && let Some(frame) = self.seal(node, &packet)
        {
            self.send_frame(now, node, &frame);
        }
    }

    /// Every 15 s: relayed peers are tried directly.
    pub(crate) fn upgrade(&mut self, now: Instant) {
        for node in self.peers_in_use(now, |p| p.relay) {
            let fresh = |at: Instant| now.saturating_duration_since(at) < ROUTE_FRESH;
            let known = self.routes.get(&node).filter(|(_, at)| fresh(*at)).map(|(r, _)| *r);
            match known {
                Some(route) => self.start_upgrade(now, node, &route),
                None if self.resolving.insert(node) => {
                    self.upgrades.push(UpgradeProbe { node, at: now, left: 0 });
                    self.emit(Event::NeedRoute(node));
                }
                None => {}
            }
        }
    }

    /// The address an upgrade waited for.
    pub(crate) fn route_for_upgrade(&mut self, now: Instant, node: NodeId, route: &Route) {
        let waiting = |u: &UpgradeProbe| u.node == node && u.left == 0;
        if self.upgrades.iter().any(waiting) {
            self.upgrades.retain(|u| !waiting(u));
            self.start_upgrade(now, node, route);
        }
    }

    fn start_upgrade(&mut self, now: Instant, node: NodeId, route: &Route) {
        if route.relay_only {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.pinned = false;
        }
        self.tell_beacon(&Message::PunchRequest { requester: self.node, target: node });
        self.upgrades.retain(|u| u.node != node);
        self.upgrades.push(UpgradeProbe { node, at: now + UPGRADE_GAP, left: UPGRADE_PROBES });
    }

    pub(crate) fn next_upgrade_probe(&self) -> Option<Instant> {
        self.upgrades.iter().filter(|u| u.left > 0).map(|u| u.at).min()
    }

    pub(crate) fn send_upgrade_probes(&mut self, now: Instant) {
        let mut due = Vec::new();
        for probe in self.upgrades.iter_mut().filter(|u| u.left > 0 && now >= u.at) {
            due.push(probe.node);
            (probe.at, probe.left) = (now + UPGRADE_GAP, probe.left - 1);
            if probe.left == 0 {
                probe.node = 0;
            }
        }
        self.upgrades.retain(|u| u.node != 0);
        for node in due {
            let Some(to) = self.routes.get(&node).map(|(r, _)| r.addr) else { continue };
            let header = self.control(Addr::backbone(node), flags::ACK, 1);
            let mut packet = Vec::new();
            if header.emit(b"", &mut packet).is_ok()
                && let Some(frame) = self.seal(node, &packet)
            {
                self.transmit(to, frame);
            }
        }
    }

    /// Every 10 s: peers that have fallen silent are probed, then reset.
    pub(crate) fn watchdog(&mut self, now: Instant) {
        for node in self.peers_in_use(now, |p| p.session.is_some()) {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if now.saturating_duration_since(peer.last_inbound) < WATCHDOG_SILENCE {
                peer.probes = 0;
                continue;
            }
            if peer.last_reset.is_some_and(|at| now.saturating_duration_since(at) < WATCHDOG_PAUSE) {
                continue;
            }
            if peer.probes < WATCHDOG_PROBES {
                peer.probes += 1;
                let header = self.control(Addr::backbone(node), 0, 0);
                self.send_control(now, node, &header, PATH_PROBE);
            } else {
                peer.last_reset = Some(now);
                self.reset_path(now, node);
            }
        }
    }

    /// A key exchange gave up on a peer in use: its path is reset, at most once in 30 s.
    pub(crate) fn reset_given_up(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let paused = peer.last_gave_up_reset;
        let pause = Duration::from_secs(30);
        if self.in_use(now, node, peer) && paused.is_none_or(|at| now.saturating_duration_since(at) >= pause)
        {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.last_gave_up_reset = Some(now);
            }
            self.reset_path(now, node);
        }
    }

    /// Forgets session and address of a peer and starts anew; the relay flag stays, unpinned.
    pub(crate) fn reset_path(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.remove(&node) else { return };
        self.routes.remove(&node);
        let mut fresh = Peer::new(now, peer.addr);
        fresh.relay = peer.relay;
        fresh.app = peer.app;
        (fresh.last_reset, fresh.last_gave_up_reset) = (peer.last_reset, peer.last_gave_up_reset);
        (fresh.queue, fresh.queued_since) = (peer.queue, peer.queued_since);
        self.peers.insert(node, fresh);
        self.keys.remove(&node);
        self.resetting.insert(node);
        if self.resolving.insert(node) {
            self.emit(Event::NeedRoute(node));
        }
    }

    /// The address a reset waited for.
    pub(crate) fn route_for_reset(&mut self, now: Instant, node: NodeId, route: &Route) {
        if !self.resetting.remove(&node) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.addr = route.addr;
            peer.relay |= route.relay_only;
            peer.pinned |= route.relay_only;
        }
        if !route.relay_only {
            self.tell_beacon(&Message::PunchRequest { requester: self.node, target: node });
        }
        // Entering the peer sends one exchange, the reset another: the second counts as a repetition.
        self.exchange(now, node, true);
        self.exchange(now, node, true);
    }

    /// Whether a packet is application traffic: everything but control packets to port 0.
    pub(crate) fn is_app(header: &Header) -> bool {
        !(header.protocol == protocol::CONTROL && header.dst_port == port::PING)
    }
}
