//! Trust pairs (spec 05 section 5.4).
//!
//! A pair exists once both sides said so: both reported it, or one asked and the other accepted. One side's word
//! alone is remembered, but gives it nothing.

use super::request::{Answer, Refused, Request};
use super::{Effect, Registry, Session};
use crate::store::Write;
use pilot_proto::NodeId;
use serde_json::json;

/// One-sided reports kept per node.
const MAX_REPORTS: usize = 1024;
/// Trusted peers per node.
const MAX_TRUSTED: usize = 65_536;

impl Registry {
    /// Whether a pair exists.
    pub(super) fn trusts(&self, a: NodeId, b: NodeId) -> bool {
        self.trust.get(&a).is_some_and(|peers| peers.contains(&b))
    }

    /// Enters a pair in memory. Returns whether it is new.
    pub(super) fn link(&mut self, a: NodeId, b: NodeId) -> bool {
        let new = self.trust.entry(a).or_default().insert(b);
        self.trust.entry(b).or_default().insert(a);
        self.trust_pairs += usize::from(new);
        new
    }

    /// Makes a pair and forgets what led to it.
    pub(super) fn make_pair(&mut self, a: NodeId, b: NodeId) -> Result<(), Refused> {
        for node in [a, b] {
            if self.trust.get(&node).is_some_and(|peers| peers.len() >= MAX_TRUSTED) && !self.trusts(a, b) {
                return Err(Refused(format!("too many trusted peers of node {node} (max {MAX_TRUSTED})")));
            }
        }
        if self.link(a, b) {
            self.writes.push(Write::Trust { a: a.min(b), b: a.max(b), present: true });
        }
        self.forget_report(a, b);
        self.forget_report(b, a);
        Ok(())
    }

    fn forget_report(&mut self, node: NodeId, peer: NodeId) -> bool {
        let Some(peers) = self.reports.get_mut(&node) else { return false };
        let found = peers.remove(&peer);
        if peers.is_empty() {
            self.reports.remove(&node);
        }
        if found {
            self.writes.push(Write::Report { node, peer, present: false });
        }
        found
    }

    pub(super) fn report_trust(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let node = self.authenticate(s, req)?;
        let peer = req.node("peer_id");
        self.live(peer)?;
        if node == peer {
            return Err("invalid peer_id: a node cannot trust itself".into());
        }
        self.report(node, peer)?;
        Ok(json!({"type": "report_trust_ok"}))
    }

    /// Notes that `node` trusts `peer`; makes the pair if the other side said so before.
    pub(super) fn report(&mut self, node: NodeId, peer: NodeId) -> Result<(), Refused> {
        if self.trusts(node, peer) {
            return Ok(());
        }
        if self.reports.get(&peer).is_some_and(|reported| reported.contains(&node)) {
            return self.make_pair(node, peer);
        }
        let mine = self.reports.entry(node).or_default();
        if mine.contains(&peer) {
            return Ok(());
        }
        if mine.len() >= MAX_REPORTS {
            return Err(Refused(format!(
                "too many trust reports of node {node} that the other side has not confirmed (max {MAX_REPORTS})"
            )));
        }
        mine.insert(peer);
        self.writes.push(Write::Report { node, peer, present: true });
        Ok(())
    }

    pub(super) fn revoke_trust(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let node = self.authenticate(s, req)?;
        let peer = req.node("peer_id");
        let withdrawn = self.forget_report(node, peer);
        self.forget_report(peer, node);
        if !self.trusts(node, peer) {
            if withdrawn {
                return Ok(json!({"type": "revoke_trust_ok"}));
            }
            return Err(Refused(format!("no trust pair between {node} and {peer}")));
        }
        for (from, other) in [(node, peer), (peer, node)] {
            if let Some(peers) = self.trust.get_mut(&from) {
                peers.remove(&other);
                if peers.is_empty() {
                    self.trust.remove(&from);
                }
            }
        }
        self.trust_pairs = self.trust_pairs.saturating_sub(1);
        self.writes.push(Write::Trust { a: node.min(peer), b: node.max(peer), present: false });
        self.effects.push(Effect::TrustRevoked { node: peer, peer: node });
        Ok(json!({"type": "revoke_trust_ok"}))
    }

    /// Answered truthfully to a connection that speaks for one of the two; to all others the answer is no.
    pub(super) fn check_trust(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (node, peer) = (req.node("node_id"), req.node("peer_id"));
        let party = self.requesters(s, req).iter().any(|q| *q == node || *q == peer);
        let trusted = party && (self.trusts(node, peer) || self.share_network(node, peer));
        Ok(json!({"type": "check_trust_ok", "trusted": trusted}))
    }
}
