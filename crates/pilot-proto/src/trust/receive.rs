//! What other nodes say, directly or through the registry (spec 06 sections 2.3, 2.5, 2.6, 2.8).

use super::message::{self, CONFIRM, Incoming, Kind, Refusal};
use super::{
    Action, Facts, MAX_PENDING, MAX_PENDING_PER_SOURCE, MAX_REJECTIONS, Outcome, Pending, Received,
    Rejection, Relay, Trust, evict_oldest,
};
use crate::crypto::constant_time_eq;
use crate::{NodeId, crypto};
use serde_json::json;

impl Trust {
    /// The checks of a direct message that need no registry, in the order of spec 06 section 2.3. `transport` is
    /// the node the stream came from, `bytes` all that was read so far.
    ///
    /// # Errors
    /// [`Refusal::Incomplete`]: read on, up to [`message::MAX_MESSAGE`] bytes or 10 s. Else: drop it.
    pub fn examine(&self, now_unix: u64, transport: NodeId, bytes: &[u8]) -> Result<Incoming, Refusal> {
        let incoming = message::examine(self.config.node, now_unix, transport, bytes)?;
        match self.replays.contains(&incoming.replay_key) {
            true => Err(Refusal::Replay),
            false => Ok(incoming),
        }
    }

    /// Takes an examined message, given what the registry says about its sender.
    ///
    /// # Errors
    /// The message contradicts the registry, or was taken meanwhile.
    pub fn receive_direct(
        &mut self,
        now_unix: u64,
        message: Incoming,
        facts: Facts,
    ) -> Result<Received, Refusal> {
        if self.replays.contains(&message.replay_key) {
            return Err(Refusal::Replay);
        }
        let bound = match (&message.key, &facts.registry_key) {
            (Some(claimed), Some(registered)) if constant_time_eq(claimed, registered) => true,
            (Some(_), Some(_)) => return Err(Refusal::KeyMismatch),
            (None, Some(_)) => return Err(Refusal::Unsigned),
            (_, None) => false,
        };
        self.replays.record(now_unix, message.node, message.replay_key);
        Ok(match message.kind {
            Kind::Request => self.direct_request(now_unix, message, bound, facts.shared_network),
            Kind::Accept => self.direct_accept(now_unix, message),
            Kind::Reject => self.rejected(now_unix, message.node, message.reason),
            Kind::Revoke => {
                if self.revoked_by_peer(message.node) {
                    self.push(Action::RevokeTrust(message.node));
                }
                Received::Revoked
            }
        })
    }

    fn direct_request(
        &mut self,
        now_unix: u64,
        message: Incoming,
        bound: bool,
        shared_network: u16,
    ) -> Received {
        let node = message.node;
        self.publish_request("handshake.received", node, &message.justification);
        // The claim is true: the registry or the tunnel vouches for it. A forger's claim must not end or win trust.
        let proven = bound || message.transport == node;
        if self.trusted.contains_key(&node) && proven && self.check_key(node, message.key.as_ref()) {
            let text = if self.trusted.get(&node).is_some_and(|record| record.mutual) { "" } else { CONFIRM };
            let accept = self.delivery(now_unix, node, Kind::Accept, text);
            self.push(Action::Deliver(accept));
            return Received::AlreadyTrusted;
        }
        if self.trusted.contains_key(&node) {
            return Received::Dropped;
        }
        let agent = self.agent(node, message.key.as_ref());
        let (reason, agent, mutual, network) = if bound && self.outgoing.contains_key(&node) {
            ("mutual", None, true, 0)
        } else if bound && shared_network != 0 {
            ("same_network", None, false, shared_network)
        } else if bound && agent.is_some() {
            ("trusted_agent", agent, false, 0)
        } else if proven && self.config.auto_approve {
            ("auto_approve", None, false, 0)
        } else {
            let (key, source) = (message.key, message.transport);
            return self.queue(
                now_unix,
                node,
                Pending { key, justification: message.justification, received_at: now_unix, source },
                bound,
            );
        };
        if !self.grant(now_unix, node, message.key, mutual, network) {
            return Received::Dropped;
        }
        self.publish_auto_approved(node, reason, agent.as_deref());
        self.push(Action::ReportTrust(node));
        let text = if mutual { "" } else { CONFIRM };
        let accept = self.delivery(now_unix, node, Kind::Accept, text);
        self.push(Action::Deliver(accept));
        Received::Trusted(reason)
    }

    fn direct_accept(&mut self, now_unix: u64, message: Incoming) -> Received {
        let node = message.node;
        if self.cooling_down(now_unix, node) {
            self.forget_request(node);
            return Received::Ignored;
        }
        if self.trusted.contains_key(&node) {
            // Trusted in another way since we asked, or an accept in return for ours. A record that is bound to a
            // key needs a message signed with it.
            self.forget_request(node);
            if !self.check_key(node, message.key.as_ref()) {
                return Received::KeyChanged;
            }
            self.mark_mutual(node);
            if message.justification == CONFIRM {
                self.confirm(now_unix, node);
            }
            return Received::AlreadyTrusted;
        }
        if !self.outgoing.contains_key(&node) || !self.grant(now_unix, node, message.key, true, 0) {
            return Received::Ignored;
        }
        self.publish_changed(node, "granted", "accepted", None);
        self.push(Action::ReportTrust(node));
        if message.justification == CONFIRM {
            self.confirm(now_unix, node);
        }
        Received::Trusted("accepted")
    }

    /// Answers an accept that asks for one.
    fn confirm(&mut self, now_unix: u64, node: NodeId) {
        let mut accept = self.delivery(now_unix, node, Kind::Accept, "");
        accept.relay = Relay::None;
        accept.relay_also = false;
        self.push(Action::Deliver(accept));
    }

    fn mark_mutual(&mut self, node: NodeId) {
        if let Some(record) = self.trusted.get_mut(&node)
            && !record.mutual
        {
            record.mutual = true;
            self.save();
        }
    }

    fn forget_request(&mut self, node: NodeId) {
        if self.outgoing.remove(&node).is_some() {
            self.save();
        }
    }

    fn rejected(&mut self, now_unix: u64, node: NodeId, reason: String) -> Received {
        if self.outgoing.remove(&node).is_none() {
            return Received::Ignored;
        }
        self.rejections.insert(node, Rejection { reason: reason.clone(), at: now_unix });
        evict_oldest(&mut self.rejections, MAX_REJECTIONS, |rejection| rejection.at);
        self.publish("handshake.rejected_by_peer", json!({"peer_node_id": node, "reason": reason}));
        self.push(Action::Wake(node, Outcome::Rejected { reason }));
        self.save();
        Received::Rejected
    }

    /// A request the registry relayed. It authenticated the sender, but names no key.
    pub fn receive_relayed_request(
        &mut self,
        now_unix: u64,
        node: NodeId,
        justification: &str,
        shared_network: u16,
    ) -> Received {
        if node == 0 || node == self.config.node || node == crate::Addr::BROADCAST_NODE {
            return Received::Ignored;
        }
        let justification = message::clean(justification);
        self.publish_request("handshake.received", node, &justification);
        let respond = Action::Deliver(super::Delivery {
            node,
            direct: None,
            relay: Relay::Respond { accept: true },
            relay_also: false,
        });
        if self.trusted.contains_key(&node) {
            self.push(respond);
            return Received::AlreadyTrusted;
        }
        let agent = self.agent(node, None);
        let (reason, agent, mutual, network, published) = if self.outgoing.contains_key(&node) {
            ("mutual", None, true, 0, false)
        } else if shared_network != 0 {
            ("same_network", None, false, shared_network, false)
        } else if agent.is_some() {
            ("trusted_agent_relayed", agent, false, 0, true)
        } else if self.config.auto_approve {
            ("auto_approve_relayed", None, false, 0, true)
        } else {
            let entry = Pending { key: None, justification, received_at: now_unix, source: node };
            return self.queue(now_unix, node, entry, true);
        };
        if !self.grant(now_unix, node, None, mutual, network) {
            return Received::Dropped;
        }
        if published {
            self.publish_auto_approved(node, reason, agent.as_deref());
        }
        self.push(respond);
        if !mutual {
            self.push(Action::ReportTrust(node));
        }
        self.push(Action::BackfillKey(node));
        Received::Trusted(reason)
    }

    /// An answer the registry relayed.
    pub fn receive_relayed_response(&mut self, now_unix: u64, node: NodeId, accept: bool) -> Received {
        if !accept {
            return self.rejected(now_unix, node, String::new());
        }
        if self.trusted.contains_key(&node) {
            self.forget_request(node);
            self.mark_mutual(node);
            return Received::AlreadyTrusted;
        }
        if self.cooling_down(now_unix, node)
            || !self.outgoing.contains_key(&node)
            || !self.grant(now_unix, node, None, true, 0)
        {
            return Received::Ignored;
        }
        self.publish_changed(node, "granted", "accepted", None);
        self.push(Action::BackfillKey(node));
        Received::Trusted("accepted")
    }

    fn queue(&mut self, now_unix: u64, node: NodeId, mut entry: Pending, proven: bool) -> Received {
        let proven = proven || entry.source == node;
        match self.pending.get(&node) {
            Some(before) if before.source == node && !proven => return Received::Dropped,
            Some(before) if before.source == node && entry.key.is_none() => entry.key = before.key,
            Some(_) => {}
            None => {
                let of_source = self.pending.values().filter(|p| p.source == entry.source).count();
                if self.pending.len() >= MAX_PENDING || of_source >= MAX_PENDING_PER_SOURCE {
                    tracing::debug!(
                        node,
                        source = entry.source,
                        now_unix,
                        "handshake request dropped: too many wait"
                    );
                    return Received::Dropped;
                }
            }
        }
        self.publish_request("handshake.pending", node, &entry.justification.clone());
        self.pending.insert(node, entry);
        self.save();
        Received::Pending
    }

    /// Name of a listed agent that a sender with this key matches.
    fn agent(&self, node: NodeId, key: Option<&[u8; 32]>) -> Option<String> {
        let agent = self.config.agents.iter().find(|agent| agent.node == node)?;
        let matches = match (&agent.key, key) {
            (None, _) => true,
            (Some(pin), Some(key)) => crypto::constant_time_eq(pin, key),
            (Some(_), None) => false,
        };
        matches.then(|| agent.hostname.clone())
    }

    fn publish_request(&mut self, name: &'static str, node: NodeId, justification: &str) {
        self.publish(name, json!({"peer_node_id": node, "justification": justification}));
    }

    fn publish_auto_approved(&mut self, node: NodeId, reason: &str, agent: Option<&str>) {
        let mut data = json!({"peer_node_id": node, "reason": reason});
        if let Some(agent) = agent {
            data["agent"] = agent.into();
        }
        self.publish("handshake.auto_approved", data);
        self.publish_changed(node, "granted", reason, agent);
    }
}
