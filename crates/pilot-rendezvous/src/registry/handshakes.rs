//! Trust requests relayed between nodes that cannot reach each other, and push (spec 05 section 5.4, spec 06 section
//! 2.8, docs/extensions.md).

use super::model::{Batch, InboxRequest, InboxResponse};
use super::registration::{superseded_text, valid_instance};
use super::request::{Answer, Refused, Request, no_node};
use super::{After, Effect, Now, Registry, Session};
use crate::config::Rate;
use crate::store::Write;
use pilot_proto::NodeId;
use serde_json::{Value, json};
use std::time::Duration;

/// Requests and answers sent per node.
pub(super) const HANDSHAKES: Rate = Rate { per_second: 2.0, burst: 60.0 };
/// Requests waiting per node.
const MAX_INBOX: usize = 100;
/// Answers waiting per node; further ones replace the oldest.
const MAX_RESPONSES: usize = 1000;
/// Unanswered requests remembered per node; further ones replace the oldest.
const MAX_PENDING: usize = 1000;
/// Longest justification, bytes.
const MAX_JUSTIFICATION: usize = 1024;
/// A batch whose delivery is in doubt is kept this long after it was answered.
const DOUBT: Duration = Duration::from_secs(30);
/// It is delivered again to a poll within this time after its connection broke.
const REDELIVER: Duration = Duration::from_secs(5);
/// Most a subscriber's clock may differ, seconds.
const MAX_CLOCK_DIFFERENCE: u64 = 60;
/// Seconds between pings on push connections.
pub(crate) const PING_SECS: u64 = 30;

impl Registry {
    /// The next inbox position. Derived from the clock so that it grows across restarts too: an old signed
    /// acknowledgement, replayed, must not reach newer entries.
    fn next_seq(&mut self, now: Now) -> u64 {
        self.last_seq = now.unix_us.max(self.last_seq + 1);
        self.last_seq
    }

    /// Each request and answer wakes its receiver.
    fn limit_handshakes(&mut self, s: &Session, from: NodeId, now: Now) -> Result<(), Refused> {
        if s.exempt || self.handshakes.take(from, now.mono) {
            return Ok(());
        }
        Err(Refused(format!("rate limited: too many handshake requests from node {from}")))
    }

    pub(super) fn request_handshake(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let to = req.node("to_node_id");
        let justification = req.text("justification");
        if justification.len() > MAX_JUSTIFICATION {
            let n = justification.len();
            return Err(Refused(format!(
                "justification too long: justification too large: {n} bytes (max {MAX_JUSTIFICATION})"
            )));
        }
        self.live(req.node("from_node_id"))?;
        self.live(to)?;
        let from = self.authenticate_as(
            s,
            req,
            "handshake request requires signature",
            "handshake request signature verification failed",
        )?;
        if from == to {
            return Err("invalid to_node_id: a node cannot ask itself for trust".into());
        }
        self.limit_handshakes(s, from, now)?;
        let seq = self.next_seq(now);
        let inbox = self.inboxes.entry(to).or_default();
        if inbox.requests.len() >= MAX_INBOX && !inbox.requests.contains_key(&from) {
            return Err(Refused(format!("too many requests: handshake inbox full for node {to}")));
        }
        if inbox.pending.len() >= MAX_PENDING
            && !inbox.pending.contains_key(&from)
            && let Some(oldest) = inbox.pending.iter().min_by_key(|(_, at)| **at).map(|(from, _)| *from)
        {
            inbox.pending.remove(&oldest);
            self.writes.push(Write::Pending { to, from: oldest, at: None });
        }
        let at = now.unix();
        // A repeated request replaces the one that waits.
        let request = InboxRequest { to, from, seq, justification: justification.to_owned(), at };
        inbox.requests.insert(from, request.clone());
        inbox.pending.insert(from, at);
        self.writes.push(Write::Request(request));
        self.writes.push(Write::Pending { to, from, at: Some(at) });
        self.effects.push(Effect::Handshake(to));
        Ok(json!({"type": "request_handshake_ok", "status": "delivered"}))
    }

    pub(super) fn poll_handshakes(
        &mut self,
        s: &mut Session,
        req: Request<'_>,
        now: Now,
        after: &mut After,
    ) -> Answer {
        let node = self.authenticate(s, req)?;
        let keep = req.flag("keep");
        let Some(inbox) = self.inboxes.get_mut(&node) else {
            return Ok(poll_answer(&[], &[], keep.then_some(0)));
        };
        inbox.in_doubt.take_if(|b| now.mono.saturating_duration_since(b.answered) >= DOUBT);
        let mut requests: Vec<InboxRequest> = inbox.requests.values().cloned().collect();
        let mut responses: Vec<InboxResponse> = inbox.responses.values().cloned().collect();
        if let Some(batch) = &inbox.in_doubt
            && batch.broken.is_some_and(|at| now.mono.saturating_duration_since(at) < REDELIVER)
        {
            requests.extend(batch.requests.iter().filter(|r| !inbox.requests.contains_key(&r.from)).cloned());
            responses
                .extend(batch.responses.iter().filter(|r| !inbox.responses.contains_key(&r.from)).cloned());
        }
        requests.sort_by_key(|r| r.seq);
        responses.sort_by_key(|r| r.seq);
        let up_to = requests.iter().map(|r| r.seq).chain(responses.iter().map(|r| r.seq)).max().unwrap_or(0);
        if !keep && up_to != 0 {
            *after = After::Delivered { node, up_to };
        }
        Ok(poll_answer(&requests, &responses, keep.then_some(up_to)))
    }

    /// The answer to a poll was written: its entries leave the inbox, but are kept while delivery is in doubt.
    pub fn delivered(&mut self, node: NodeId, up_to: u64, now: Now) {
        let Some(inbox) = self.inboxes.get_mut(&node) else { return };
        let mut batch =
            Batch { up_to, requests: Vec::new(), responses: Vec::new(), answered: now.mono, broken: None };
        if let Some(earlier) = inbox.in_doubt.take().filter(|b| b.broken.is_some() || b.up_to == up_to) {
            // It was part of this answer too.
            batch.requests = earlier.requests;
            batch.responses = earlier.responses;
        }
        inbox.requests.retain(|_, r| {
            let keep = r.seq > up_to;
            if !keep {
                batch.requests.push(r.clone());
            }
            keep
        });
        inbox.responses.retain(|_, r| {
            let keep = r.seq > up_to;
            if !keep {
                batch.responses.push(r.clone());
            }
            keep
        });
        inbox.in_doubt = Some(batch);
        self.writes.push(Write::Delivered { node, up_to });
    }

    /// The connection that carried the answer ended before the client sent anything further on it.
    pub fn delivery_broken(&mut self, node: NodeId, up_to: u64, now: Now) {
        if let Some(batch) = self.inboxes.get_mut(&node).and_then(|i| i.in_doubt.as_mut())
            && batch.up_to == up_to
        {
            batch.broken = Some(now.mono);
        }
    }

    /// The client went on using the connection: it has the answer.
    pub fn delivery_confirmed(&mut self, node: NodeId, up_to: u64) {
        if let Some(inbox) = self.inboxes.get_mut(&node) {
            inbox.in_doubt.take_if(|b| b.up_to == up_to);
            self.tidy_inbox(node);
        }
    }

    fn tidy_inbox(&mut self, node: NodeId) {
        let empty = self.inboxes.get(&node).is_some_and(|i| {
            i.requests.is_empty() && i.responses.is_empty() && i.pending.is_empty() && i.in_doubt.is_none()
        });
        if empty {
            self.inboxes.remove(&node);
        }
    }

    pub(super) fn ack_handshakes(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let node = self.authenticate(s, req)?;
        let up_to = req.number("up_to", u64::MAX);
        if let Some(inbox) = self.inboxes.get_mut(&node) {
            let before = inbox.requests.len() + inbox.responses.len();
            inbox.requests.retain(|_, r| r.seq > up_to);
            inbox.responses.retain(|_, r| r.seq > up_to);
            if inbox.requests.len() + inbox.responses.len() != before {
                self.writes.push(Write::Delivered { node, up_to: up_to.min(self.last_seq) });
            }
            self.tidy_inbox(node);
        }
        Ok(json!({"type": "ack_handshakes_ok"}))
    }

    pub(super) fn respond_handshake(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let peer = req.node("peer_id");
        let accept = req.flag("accept");
        self.live(req.node("node_id"))?;
        self.live(peer)?;
        let node = self.authenticate_as(
            s,
            req,
            "handshake response requires signature",
            "handshake response signature verification failed",
        )?;
        self.limit_handshakes(s, node, now)?;
        let answer = json!({"type": "respond_handshake_ok", "accept": accept, "peer_id": peer});
        let inbox = self.inboxes.get_mut(&node);
        let pending = inbox.is_some_and(|i| {
            if i.requests.remove(&peer).is_some() {
                self.writes.push(Write::RequestGone { to: node, from: peer });
            }
            if let Some(batch) = &mut i.in_doubt {
                batch.requests.retain(|r| r.from != peer);
            }
            i.pending.remove(&peer).is_some()
        });
        if accept && !pending && self.trusts(node, peer) {
            // 1.18.0 approves twice, and repeats a request whose answer was lost.
            return Ok(answer);
        }
        if pending {
            self.writes.push(Write::Pending { to: node, from: peer, at: None });
        }
        if accept && pending {
            self.make_pair(node, peer)?;
        } else if accept {
            // The request came through the tunnel. This is one side's word; it is passed on, since a private
            // requester may not be reachable otherwise, and the pair is made when the requester confirms it.
            self.report(node, peer)?;
        }
        self.tidy_inbox(node);
        let seq = self.next_seq(now);
        let response = InboxResponse { to: peer, from: node, seq, accept, at: now.unix() };
        let theirs = self.inboxes.entry(peer).or_default();
        if theirs.responses.len() >= MAX_RESPONSES
            && !theirs.responses.contains_key(&node)
            && let Some(oldest) = theirs.responses.values().min_by_key(|r| r.seq).map(|r| r.from)
        {
            theirs.responses.remove(&oldest);
            self.writes.push(Write::ResponseGone { to: peer, from: oldest });
        }
        theirs.responses.insert(node, response.clone());
        self.writes.push(Write::Response(response));
        self.effects.push(Effect::Handshake(peer));
        Ok(answer)
    }

    pub(super) fn subscribe(
        &mut self,
        s: &mut Session,
        req: Request<'_>,
        now: Now,
        after: &mut After,
    ) -> Answer {
        let id = req.node("node_id");
        let ts = req.number("ts", u64::MAX);
        let difference = ts.abs_diff(now.unix());
        if difference > MAX_CLOCK_DIFFERENCE {
            return Err(Refused(format!(
                "invalid ts: {difference}s from registry time (max {MAX_CLOCK_DIFFERENCE}s); correct it by the time \
                 in register_ok"
            )));
        }
        let node = self.authenticate(s, req)?;
        let instance = req.text("instance");
        let record = &self.nodes.get(&node).ok_or_else(|| no_node(id))?.record;
        if let Some((current, since)) = &record.instance
            && valid_instance(instance)
            && instance != current
        {
            return Err(Refused(superseded_text(id, *since)));
        }
        let waiting =
            self.inboxes.get(&node).is_some_and(|i| !i.requests.is_empty() || !i.responses.is_empty());
        let instance = if valid_instance(instance) { instance.to_owned() } else { String::new() };
        *after = After::Subscribed { node, instance, waiting };
        Ok(json!({"type": "subscribe_ok", "ping_secs": PING_SECS}))
    }
}

fn poll_answer(requests: &[InboxRequest], responses: &[InboxResponse], up_to: Option<u64>) -> Value {
    let requests: Vec<Value> = requests
        .iter()
        .map(|r| json!({"from_node_id": r.from, "justification": r.justification, "timestamp": r.at}))
        .collect();
    let responses: Vec<Value> = responses
        .iter()
        .map(|r| json!({"from_node_id": r.from, "accept": r.accept, "timestamp": r.at}))
        .collect();
    let mut answer = json!({"type": "poll_handshakes_ok", "requests": requests, "responses": responses});
    if let Some(up_to) = up_to {
        answer["up_to"] = json!(up_to);
    }
    answer
}
