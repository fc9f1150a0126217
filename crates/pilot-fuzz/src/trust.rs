//! Two trust state machines, a registry that relays between them, and a third node that forges.

use crate::input::Input;
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::trust::{
    Action, Approved, Config, Delivery, Facts, MAX_OUTGOING, MAX_PENDING, Relay, Requested, Trust,
};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Operations of one input.
const MAX_OPS: usize = 300;
/// Messages under way; more are lost.
const MAX_FLYING: usize = 64;
/// The node that the input plays.
const EVIL: NodeId = 3;
const NODES: [NodeId; 2] = [1, 2];

enum Message {
    /// Bytes on port 444, through the tunnel of the first node.
    Direct(NodeId, NodeId, Vec<u8>),
    /// From, to, text: `request_handshake`.
    Request(NodeId, NodeId, String),
    /// From, to, answer: `respond_handshake`.
    Respond(NodeId, NodeId, bool),
}

fn identity(node: NodeId) -> Identity {
    Identity::from_seed([node as u8; 32]).expect("every seed is a key")
}

struct World {
    now: u64,
    trust: [Trust; 2],
    flying: VecDeque<Message>,
    /// Whom a node has ever asked for trust or approved.
    wanted: [BTreeSet<NodeId>; 2],
    auto_approve: [bool; 2],
}

impl World {
    fn new(kind: u8) -> World {
        let auto_approve = [kind & 1 != 0, kind & 2 != 0];
        let trust = [0, 1].map(|i| {
            let mut config = Config::new(NODES[i], Arc::new(identity(NODES[i])));
            config.auto_approve = auto_approve[i];
            Trust::new(config)
        });
        let wanted = [BTreeSet::new(), BTreeSet::new()];
        World { now: 1_795_217_600, trust, flying: VecDeque::new(), wanted, auto_approve }
    }

    fn deliver(&mut self, from: NodeId, delivery: Delivery) {
        let Delivery { node, direct, relay, relay_also } = delivery;
        let relayed = direct.is_none() || relay_also;
        if let Some(bytes) = direct {
            self.flying.push_back(Message::Direct(from, node, bytes));
        }
        match relay {
            Relay::Request { justification } if relayed => {
                self.flying.push_back(Message::Request(from, node, justification));
            }
            Relay::Respond { accept } if relayed => {
                self.flying.push_back(Message::Respond(from, node, accept));
            }
            _ => {}
        }
        self.flying.truncate(MAX_FLYING);
    }

    fn settle(&mut self) {
        for (i, node) in NODES.into_iter().enumerate() {
            let mut told = None;
            while let Some(action) = self.trust[i].poll_action() {
                match action {
                    Action::Deliver(delivery) => self.deliver(node, delivery),
                    Action::BackfillKey(of) => told = Some(of),
                    Action::KeyChanged { pinned, shown, .. } => assert_ne!(pinned, shown),
                    _ => {}
                }
            }
            if let Some(of) = told {
                self.trust[i].peer_key_known(of, identity(of).public_key());
                while self.trust[i].poll_action().is_some() {}
            }
        }
    }

    /// The registry knows every key; now and then it cannot be asked about an honest sender.
    fn receive(&mut self, message: Message, registry: bool) {
        match message {
            Message::Direct(from, to, bytes) => {
                let Some(i) = NODES.iter().position(|n| *n == to) else { return };
                let Ok(incoming) = self.trust[i].examine(self.now, from, &bytes) else { return };
                let asked = registry || incoming.transport != incoming.node;
                let registry_key = asked.then(|| *identity(incoming.node).public_key());
                let facts = Facts { registry_key, shared_network: 0 };
                let _ = self.trust[i].receive_direct(self.now, incoming, facts);
            }
            Message::Request(from, to, text) => {
                if let Some(i) = NODES.iter().position(|n| *n == to) {
                    self.trust[i].receive_relayed_request(self.now, from, &text, 0);
                }
            }
            Message::Respond(from, to, accept) => {
                if let Some(i) = NODES.iter().position(|n| *n == to) {
                    self.trust[i].receive_relayed_response(self.now, from, accept);
                }
            }
        }
        self.settle();
    }

    fn check(&self) {
        for (i, trust) in self.trust.iter().enumerate() {
            for (node, record) in trust.trusted() {
                let wanted = self.wanted[i].contains(&node) || self.auto_approve[i];
                assert!(wanted, "node {} trusts {node}, which it never asked or approved", NODES[i]);
                let honest = record.key.is_none_or(|key| key == *identity(node).public_key());
                assert!(honest, "node {} trusts {node} under a key of somebody else", NODES[i]);
            }
            assert!(trust.pending().count() <= MAX_PENDING);
            assert!(MAX_OUTGOING >= (1..=EVIL).filter(|n| trust.requested_at(*n).is_some()).count());
        }
    }
}

/// A series of operations: decisions of both users, messages that arrive, are lost, repeated or changed, forged ones.
pub fn trust(input: &[u8]) {
    let mut input = Input::new(input);
    let mut world = World::new(input.u8());
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let i = usize::from(op >> 7);
        let (own, other) = (NODES[i], NODES[1 - i]);
        let peer = if op & 0x40 == 0 { other } else { EVIL };
        let now = world.now;
        match op & 0x0F {
            0 => {
                world.wanted[i].insert(peer);
                let text = String::from_utf8_lossy(input.short()).into_owned();
                if let Requested::Send(delivery) = world.trust[i].request(now, peer, &text) {
                    world.deliver(own, delivery);
                }
            }
            1 => {
                world.wanted[i].insert(peer);
                if world.trust[i].approve(now, peer) == Approved::Approved {
                    assert!(world.trust[i].is_trusted(peer));
                }
            }
            2 => drop(world.trust[i].reject(now, peer, "no")),
            3 => {
                if world.trust[i].revoke(now, peer).is_ok() {
                    assert!(!world.trust[i].is_trusted(peer));
                }
            }
            4 => drop(world.trust[i].revoked_at_registry(peer)),
            5 | 6 => {
                let registry = op & 1 == 0;
                if let Some(message) = world.flying.pop_front() {
                    world.receive(message, registry);
                }
            }
            7 => drop(world.flying.pop_front()),
            8 => world.flying.rotate_left(usize::from(!world.flying.is_empty())),
            9 => {
                // Twice, or with one byte changed.
                if let Some(Message::Direct(from, to, bytes)) = world.flying.front() {
                    let (from, to, mut bytes) = (*from, *to, bytes.clone());
                    let (at, bits) = (usize::from(input.u16()) % bytes.len().max(1), input.u8());
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bits;
                    }
                    world.receive(Message::Direct(from, to, bytes), true);
                }
            }
            10 => {
                // The third node speaks for itself or claims to be somebody else.
                let claimed = if op & 0x20 == 0 { EVIL } else { other };
                let kind = ["handshake_request", "handshake_accept", "handshake_reject", "handshake_revoke"]
                    [usize::from(input.u8()) % 4];
                let evil = identity(EVIL);
                let text = serde_json::json!({
                    "type": kind, "node_id": claimed, "public_key": evil.public_key_base64(),
                    "justification": "", "timestamp": now,
                    "signature": evil.sign_text(&format!("handshake:{claimed}:{own}")),
                });
                world.receive(Message::Direct(EVIL, own, text.to_string().into_bytes()), true);
            }
            11 => world.receive(Message::Direct(EVIL, own, input.long().to_vec()), true),
            12 => world.receive(Message::Request(EVIL, own, "please".to_owned()), true),
            13 => world.receive(Message::Respond(EVIL, own, op & 0x20 == 0), true),
            14 => {
                world.now = now.saturating_add(u64::from(input.u16()));
                world.trust[i].handle_time(world.now);
            }
            _ => {
                // A restart: what was saved is what is loaded.
                let text = world.trust[i].to_json(now);
                let before: Vec<NodeId> = world.trust[i].trusted().map(|(node, _)| node).collect();
                let mut config = Config::new(own, Arc::new(identity(own)));
                config.auto_approve = world.auto_approve[i];
                world.trust[i] = Trust::new(config);
                world.trust[i].load(now, &text).expect("what we write we can read");
                let after: Vec<NodeId> = world.trust[i].trusted().map(|(node, _)| node).collect();
                assert_eq!(before, after);
            }
        }
        world.settle();
        world.check();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_approved_makes_trust_on_both_sides() {
        let mut world = World::new(0);
        world.wanted[0].insert(2);
        if let Requested::Send(delivery) = world.trust[0].request(world.now, 2, "hello") {
            world.deliver(1, delivery);
        }
        while let Some(message) = world.flying.pop_front() {
            world.receive(message, true);
        }
        world.wanted[1].insert(1);
        assert_eq!(world.trust[1].approve(world.now, 1), Approved::Approved);
        world.settle();
        while let Some(message) = world.flying.pop_front() {
            world.receive(message, true);
        }
        assert!(world.trust[0].is_trusted(2) && world.trust[1].is_trusted(1));
        world.check();
    }
}
