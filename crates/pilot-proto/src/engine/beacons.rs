//! The beacons: which one a frame goes through, and what a change of the chosen one means for the peers.

use super::{Engine, Event, Peer};
use crate::NodeId;
use crate::path::beacons::{Status, reference_pick};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One beacon, as `info` shows it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BeaconStatus {
    /// Where it is.
    pub addr: SocketAddr,
    /// `up`, `down`, or `unknown` until the first answer or its absence.
    pub state: &'static str,
    /// Round trip, smoothed (milliseconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Relayed frames and punch requests go to it.
    pub chosen: bool,
    /// This node is registered with it; others are measured from time to time.
    pub registered: bool,
    /// Where it sees this node's socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<SocketAddr>,
    /// Time since its last answer (seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_secs_ago: Option<u64>,
}

impl Engine {
    /// The beacons of this node, in the order in which a reference node would count them; the first 16 count, and with up
    /// to four of them the node registers. New ones get a Discover at once. A beacon that answers gets one every 25 s, one that
    /// does not every 5 s, up to 60 s if another one answers.
    pub fn set_beacons(&mut self, now: Instant, beacons: &[SocketAddr]) {
        let before = self.beacons.chosen();
        self.beacons.set(now, beacons, reference_pick(self.identity.public_key(), beacons.len()));
        let known = &self.beacons;
        self.proofs.retain(|addr| known.contains(addr));
        if self.beacons.chosen() != before {
            self.beacon_changed(now);
        }
        self.run_beacons(now);
    }

    /// The same for one beacon, or none.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.set_beacons(now, beacon.as_slice());
    }

    /// All beacons, in the order they were given in.
    pub fn beacons(&self) -> Vec<BeaconStatus> {
        let now = self.latest;
        let ms = |rtt: Duration| (rtt.as_secs_f64() * 1e6).round() / 1e3;
        let status = |beacon: Status| BeaconStatus {
            addr: beacon.addr,
            state: beacon.state.name(),
            rtt_ms: beacon.rtt.map(ms),
            chosen: beacon.chosen,
            registered: beacon.in_use,
            observed: beacon.observed,
            answered_secs_ago: beacon.replied.map(|at| now.saturating_duration_since(at).as_secs()),
        };
        self.beacons.status().into_iter().map(status).collect()
    }

    /// The beacon to send frames for this peer through: the one its own frames come through, if that is not the chosen
    /// one; before anything came, where a reference node with its key registers.
    pub(super) fn relay_for(&self, node: NodeId) -> Option<SocketAddr> {
        let chosen = self.beacons.chosen();
        let Some(peer) = self.peers.get(&node) else { return chosen };
        if peer.via.through().is_some() || peer.has_state() || self.pins.contains(node) {
            return self.relay_of(peer);
        }
        self.keys.get(&node).and_then(|key| self.beacons.picked_by(key)).or(chosen)
    }

    /// The same for a peer that has been heard of.
    pub(super) fn relay_of(&self, peer: &Peer) -> Option<SocketAddr> {
        peer.via.through().filter(|through| self.beacons.usable(*through)).or(self.beacons.chosen())
    }

    /// The beacon that joins `first` in the given repetition, 0 being none: each in its turn, then none again.
    pub(super) fn relay_in_turn(&self, first: SocketAddr, repetition: usize) -> Option<SocketAddr> {
        let others = || self.beacons.turns().filter(|addr| *addr != first);
        others().nth((repetition % (others().count() + 1)).checked_sub(1)?)
    }

    /// A frame is on its way through a beacon.
    pub(super) fn note_relayed(&mut self, now: Instant, through: SocketAddr) {
        self.beacons.relaying(now, through);
    }

    /// An authentic, fresh frame of this peer came through a beacon.
    pub(super) fn heard_through(&mut self, now: Instant, node: NodeId, via: SocketAddr) {
        self.beacons.heard(now, via);
        if !self.beacons.usable(via) {
            return;
        }
        let current = self.relay_for(node);
        // Who leads does not wait for the peer to come back to a beacon that may be gone.
        let leads = self.node < node && !current.is_some_and(|current| self.beacons.doubtful(current));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.via.heard(now, via, current, leads) && !peer.path.proven() {
            self.streams.path_changed(now, node);
        }
    }

    /// Another beacon is the chosen one now.
    pub(super) fn beacon_changed(&mut self, now: Instant) {
        let current = self.beacons.chosen();
        let status = self.beacons.status();
        let chosen = status.iter().find(|beacon| beacon.chosen);
        if let Some(observed) = chosen.and_then(|beacon| beacon.observed) {
            self.seen_as(now, observed);
            self.emit(Event::Observed(observed));
        }
        let fields = serde_json::json!({ "beacon": current.map(|addr| addr.to_string()) });
        self.emit(Event::Publish("tunnel.beacon_changed", fields));
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if self.node < node && peer.via.through().is_some() {
                peer.via.lead(current);
            }
        }
        self.relayed_streams_try_again(now);
    }

    /// What was on its way through a beacon is likely lost.
    pub(super) fn relayed_streams_try_again(&mut self, now: Instant) {
        let relayed = self.peers.iter().filter(|(_, peer)| !peer.path.proven());
        let nodes: Vec<NodeId> = relayed.map(|(node, _)| *node).collect();
        nodes.into_iter().for_each(|node| self.streams.path_changed(now, node));
    }
}
