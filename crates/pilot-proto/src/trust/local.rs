//! What the user of this node decides (spec 06 section 2.7).

use super::message::{CONFIRM, Kind, clean};
use super::{
    Action, Approved, COOL_DOWN_SECS, MAX_OUTGOING, MAX_REVOKED, MAX_TRUSTED, NotTrusted, Requested, Trust,
    evict_oldest,
};
use crate::NodeId;
use serde_json::json;

impl Trust {
    /// Asks a peer for trust. The caller delivers the message and tells the user how that went.
    ///
    /// A peer that we trust but that is not known to trust us (it approved nothing yet, or our key changed since) is
    /// asked as well.
    pub fn request(&mut self, now_unix: u64, node: NodeId, justification: &str) -> Requested {
        let mutual = |node| self.trusted.get(&node).is_none_or(|t| t.mutual);
        if self.is_trusted(node) && mutual(node) {
            return Requested::AlreadyTrusted;
        }
        self.revoked.remove(&node);
        self.rejections.remove(&node);
        self.outgoing.insert(node, now_unix);
        evict_oldest(&mut self.outgoing, MAX_OUTGOING, |at| *at);
        self.save();
        Requested::Send(self.delivery(now_unix, node, Kind::Request, &clean(justification)))
    }

    /// Grants a waiting request.
    pub fn approve(&mut self, now_unix: u64, node: NodeId) -> Approved {
        if self.is_trusted(node) {
            return Approved::AlreadyTrusted;
        }
        let Some(entry) = self.pending.get(&node) else { return Approved::NothingPending };
        if self.trusted.len() >= MAX_TRUSTED {
            return Approved::Full;
        }
        let key = entry.key;
        // Both sides asked: the peer's request is the evidence that it wants trust, ours that it will find it.
        let mutual = self.outgoing.contains_key(&node);
        self.grant(now_unix, node, key, mutual, 0);
        self.publish("handshake.approved", json!({"peer_node_id": node}));
        self.publish_changed(node, "granted", "approved", None);
        self.push(Action::ReportTrust(node));
        let mut accept = self.delivery(now_unix, node, Kind::Accept, CONFIRM);
        // The request may have come by the registry, which then waits for the answer.
        accept.relay_also = true;
        self.push(Action::Deliver(accept));
        self.push(Action::BackfillKey(node));
        Approved::Approved
    }

    /// Refuses a waiting request. `false`: none waits, nothing was done.
    pub fn reject(&mut self, now_unix: u64, node: NodeId, reason: &str) -> bool {
        if self.pending.remove(&node).is_none() {
            return false;
        }
        let reason = clean(reason);
        self.publish("handshake.rejected", json!({"peer_node_id": node, "reason": reason}));
        let mut reject = self.delivery(now_unix, node, Kind::Reject, &reason);
        reject.relay_also = true;
        self.push(Action::Deliver(reject));
        self.save();
        true
    }

    /// Ends trust in a peer and tells it. The peer's late approvals are ignored for five minutes.
    ///
    /// # Errors
    /// The peer was not trusted; then nothing changes, so that an approval on its way still counts.
    pub fn revoke(&mut self, now_unix: u64, node: NodeId) -> Result<(), NotTrusted> {
        if self.trusted.remove(&node).is_none() {
            return Err(NotTrusted(node));
        }
        self.pending.remove(&node);
        self.outgoing.remove(&node);
        self.revoked.insert(node, now_unix + COOL_DOWN_SECS);
        evict_oldest(&mut self.revoked, MAX_REVOKED, |until| *until);
        self.push(Action::SetTrusted(node, false));
        self.publish("trust.revoked", json!({"peer_node_id": node}));
        self.publish_changed(node, "revoked", "local", None);
        self.save();
        let mut revoke = self.delivery(now_unix, node, Kind::Revoke, "trust revoked");
        // A revoke has no relayed form: `revoke_trust` takes its place.
        revoke.relay_also = false;
        self.push(Action::Deliver(revoke));
        self.push(Action::TearDown(node));
        self.push(Action::RevokeTrust(node));
        Ok(())
    }

    /// The registry says that the peer ended trust (push `trust_revoked`). `false`: it was not trusted.
    pub fn revoked_at_registry(&mut self, node: NodeId) -> bool {
        self.revoked_by_peer(node)
    }

    /// Deletes everything about a peer that revoked; `true` if it was trusted.
    pub(super) fn revoked_by_peer(&mut self, node: NodeId) -> bool {
        let trusted = self.trusted.remove(&node).is_some();
        let waiting = self.pending.remove(&node).is_some() | self.outgoing.remove(&node).is_some();
        if trusted {
            self.push(Action::SetTrusted(node, false));
            self.publish("trust.revoked_by_peer", json!({"peer_node_id": node}));
            self.publish_changed(node, "revoked", "by_peer", None);
            self.push(Action::TearDown(node));
        }
        if trusted || waiting {
            self.save();
        }
        trusted
    }
}
