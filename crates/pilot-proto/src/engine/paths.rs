//! The ways to all peers: our own addresses, what the driver says of the network, and what users are told.

use super::{Engine, Peer, PeerStatus};
use crate::NodeId;
use crate::path::{Candidate, CandidateKind, Choice, MAX_CANDIDATES};
use std::time::Instant;

impl Engine {
    /// All addresses at which we may be reached, best first; the first [`MAX_CANDIDATES`] count. They replace those given
    /// before.
    pub fn set_local_candidates(&mut self, _now: Instant, candidates: Vec<Candidate>) {
        self.local = candidates;
        self.local.truncate(MAX_CANDIDATES);
    }

    /// Our interfaces or routes changed, or the machine slept: the beacon is asked how it sees us now, and every way to
    /// every peer in use is tried anew at once.
    pub fn network_changed(&mut self, now: Instant) {
        if self.beacons.chosen().is_some() {
            self.ask_beacon(now);
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if peer.linked(now) {
                peer.path.probe_soon(now);
                self.touch(node);
                self.request_punch(now, node);
            }
        }
    }

    /// Whether direct paths may be opened by punching: requests to the beacon, and packets to addresses it names.
    pub fn set_punching(&mut self, on: bool) {
        self.punching = on;
    }

    /// All tunnel peers, by node id.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let beacon = self.beacons.chosen();
        let status = |(node, peer): (&NodeId, &Peer)| {
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
                session: peer.session_kind(self.latest),
                pinned: self.pins.contains(*node),
                downgrades_refused: peer.upgrade.as_ref().map_or(0, |upgrade| upgrade.downgrades),
                path: match choice {
                    Choice::Direct(_) => "direct",
                    Choice::Relay => "relay",
                    Choice::None => "none",
                },
                path_kind: match choice {
                    Choice::Direct(_) => peer.path.kind().map(CandidateKind::name),
                    Choice::Relay | Choice::None => None,
                },
                path_since: peer
                    .path
                    .since()
                    .map_or(0, |at| self.latest.saturating_duration_since(at).as_secs()),
                path_rtt_ms: None,
                path_why: self.why(peer, choice),
            }
        };
        self.peers.iter().map(status).collect()
    }

    /// Why the way to a peer is no better one.
    fn why(&self, peer: &Peer, choice: Choice) -> String {
        let why = match choice {
            Choice::Direct(_) => "",
            _ if self.config.relay_only => "this node is set to use the relay only",
            _ if peer.path.relay_only => "the peer asks to be reached through the relay only",
            _ if peer.path.addresses().next().is_none() => "no direct address of the peer is known",
            Choice::None => "no direct address answered, and no beacon is known",
            Choice::Relay => "no direct address answered",
        };
        why.to_owned()
    }
}
