//! The ways to all peers: our own addresses, what the driver says of the network, and what users are told.

use super::{Engine, Peer, PeerStatus};
use crate::NodeId;
use crate::path::predict::PeerNat;
use crate::path::{Candidate, CandidateKind, Choice, MAX_CANDIDATES, NatClass};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// After asking the beacon for a punch, probes wait this long: it takes the beacon's word to open the other side.
const PUNCH_LEAD: Duration = Duration::from_millis(200);

impl Engine {
    /// All addresses at which we may be reached, best first; the first [`MAX_CANDIDATES`] count. They replace those given
    /// before, and peers of our own kind that are in use hear of them.
    pub fn set_local_candidates(&mut self, now: Instant, mut candidates: Vec<Candidate>) {
        candidates.truncate(MAX_CANDIDATES);
        self.local = candidates;
        self.own_addresses();
        self.offer_changed(now);
    }

    /// Our interfaces or routes changed, or the machine slept: the beacon is asked how it sees us now, and every way to
    /// every peer in use is tried anew at once.
    pub fn network_changed(&mut self, now: Instant) {
        self.beacons.start_over(now);
        self.run_beacons(now);
        self.forget_nat(now);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let connections = self.streams.connections_with(node) > 0;
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if peer.linked(now) && peer.active(now, connections) {
                peer.path.changed(now);
                self.touch(node);
                self.invite(now, node);
            }
        }
    }

    /// The user wants a direct way to a peer tried now, whatever was tried before. Nothing happens without a session.
    pub fn try_direct(&mut self, now: Instant, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.linked(now)) {
            peer.path.changed(now);
            self.touch(node);
            self.invite(now, node);
        }
    }

    /// Whether direct paths may be opened by punching. Without it no punch is asked for or obeyed, no port is guessed, and
    /// only addresses that need no hole are probed: neighbours, public, mapped and operator-given ones, and those that
    /// frames came from.
    pub fn set_punching(&mut self, on: bool) {
        self.punching = on;
    }

    /// Whether random ports of a peer are tried when its NAT gives out ports in no order: 128 of them once a minute and
    /// peer, with a chance of a few in a thousand each time. Off by default, because it looks like a scan.
    pub fn set_birthday(&mut self, on: bool) {
        self.birthday = on;
    }

    /// Packets to addresses nobody had answered from that the budget kept back.
    pub fn probes_refused(&self) -> u64 {
        self.budget.refused
    }

    /// A beacon sees our socket as `mapped`.
    pub(super) fn seen_as(&mut self, now: Instant, mapped: SocketAddr) {
        let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
        if self.reflexive.replace(mapped) != Some(mapped) {
            self.offer_changed(now);
        }
    }

    /// Asks for probes from both sides at once: one of our own by a call, a reference through the beacon.
    pub(super) fn invite(&mut self, now: Instant, node: NodeId) {
        if matches!(self.nat(), NatClass::PerDestination { .. }) {
            // Mappings that ran out meanwhile show which ports are next.
            self.refresh_nat(now);
        }
        self.call(now, node, Duration::ZERO);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.calls.heard() {
            return;
        }
        peer.path.race_after(now, PUNCH_LEAD);
        if !peer.route.fresh(now) {
            self.want_route(now, node);
        }
        self.request_punch(now, node);
    }

    /// The direct path to a peer was given up.
    pub(super) fn path_lost(&mut self, now: Instant, node: NodeId) {
        self.relay_activated(now, node);
        // It may be our own address that changed: the beacon must know it for the relay to work, and the directory may know
        // where the peer is now.
        self.ask_beacons(now);
        self.call(now, node, Duration::ZERO);
        self.request_punch(now, node);
        self.want_route(now, node);
    }

    /// Whether this address of a peer may be probed now. Where something authentic came from or an answer, always; elsewhere
    /// within the budget.
    pub(super) fn may_probe(&mut self, now: Instant, node: NodeId, addr: SocketAddr) -> bool {
        let Some(entry) = self.peers.get(&node).and_then(|peer| peer.path.book().get(addr)) else {
            return false;
        };
        if entry.heard.is_some() {
            return true;
        }
        let hole =
            matches!(entry.kind, CandidateKind::Reflexive | CandidateKind::Learnt | CandidateKind::Predicted);
        if hole && !self.punching || !self.budget.take(now, addr) {
            return false;
        }
        if entry.probed.is_none() {
            self.note_opened();
        }
        true
    }

    /// The way to a node: `direct`, `relay` or `none`.
    pub fn path_to(&self, node: NodeId) -> &'static str {
        let Some(peer) = self.peers.get(&node) else { return "none" };
        peer.path.choose(self.beacons.chosen().is_some(), self.config.relay_only).name()
    }

    /// All tunnel peers, by node id.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |(node, peer): (&NodeId, &Peer)| {
            let beacon = self.relay_for(*node);
            let choice = peer.path.choose(beacon.is_some(), self.config.relay_only);
            let endpoint = match choice {
                Choice::Direct(addr) => addr.to_string(),
                Choice::Relay => beacon.map(|b| b.to_string()).unwrap_or_default(),
                Choice::None => String::new(),
            };
            PeerStatus {
                node_id: *node,
                authenticated: peer.session_kind(self.latest) == "upgraded"
                    || peer.session.as_ref().is_some_and(|s| s.authenticated),
                encrypted: peer.linked(self.latest),
                endpoint,
                relay: choice == Choice::Relay,
                mtu: self.current_mtu(peer),
                session: peer.session_kind(self.latest),
                pinned: self.pins.contains(*node),
                downgrades_refused: peer.upgrade.as_ref().map_or(0, |upgrade| upgrade.downgrades),
                path: choice.name(),
                path_kind: match choice {
                    Choice::Direct(_) => peer.path.kind().map(CandidateKind::name),
                    Choice::Relay | Choice::None => None,
                },
                path_since: peer
                    .path
                    .since()
                    .map_or(0, |at| self.latest.saturating_duration_since(at).as_secs()),
                path_rtt_ms: match choice {
                    Choice::Direct(_) => peer.path.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
                    Choice::Relay | Choice::None => None,
                },
                path_why: self.why(peer, choice),
            }
        };
        self.peers.iter().map(status).collect()
    }

    /// Why the way to a peer is no better one.
    fn why(&self, peer: &Peer, choice: Choice) -> String {
        let (own, its) = (PeerNat::from(self.nat_class()), peer.calls.nat);
        let known = peer.path.addresses().next().is_some();
        let relayed = match (own.symmetric(), its.symmetric()) {
            _ if self.config.relay_only => "this node is set to use the relay only",
            _ if peer.path.relay_only => "the peer asks to be reached through the relay only",
            _ if !known => "no direct address of the peer is known",
            _ if peer.path.failed() => "the direct path stopped answering; it is tried again",
            _ if !self.punching => "no direct address answered; punching is off",
            (true, true) => "no direct address answered; both NATs are symmetric",
            (true, false) => "no direct address answered; our NAT is symmetric",
            (false, true) => "no direct address answered; the peer's NAT is symmetric",
            (false, false) => "no direct address answered",
        };
        match choice {
            Choice::Direct(_) => String::new(),
            Choice::Relay => relayed.to_owned(),
            Choice::None => format!("{relayed}; no beacon is known"),
        }
    }
}
