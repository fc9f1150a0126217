//! Who is asking: signatures, what a connection has proven, the admin token (spec 05 section 4).

use super::model::{Key, NetworkId, Role};
use super::request::{Refused, Request, no_network, no_node};
use super::{Now, Registry, Session};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_proto::NodeId;
use pilot_proto::crypto;
use pilot_proto::registry::challenge;

/// Most identities one connection can have proven; further ones replace the oldest.
const MAX_PROVEN: usize = 64;

/// What a request must be signed with: the key of this node, over this text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub signer: NodeId,
    pub text: String,
}

/// A signature check done outside the registry's lock. Its outcome counts only for exactly these inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub key: Key,
    pub text: String,
    pub signature: Vec<u8>,
    pub good: bool,
}

impl Checked {
    /// Does the check.
    pub fn run(key: Key, text: String, signature: Vec<u8>) -> Checked {
        let good = crypto::verify(&key, text.as_bytes(), &signature);
        Checked { key, text, signature, good }
    }
}

/// The claim of a request that must or may be signed by a registered node.
pub(crate) fn claim(req: Request<'_>) -> Option<Claim> {
    let own = |field: &str, verb: &str| {
        let signer = req.node(field);
        Some(Claim { signer, text: challenge::own(verb, signer) })
    };
    let pair = |signer: &str, verb: &str, first: u32, second: u32| {
        Some(Claim { signer: req.node(signer), text: challenge::pair(verb, first, second) })
    };
    let node = req.node("node_id");
    match req.kind() {
        kind @ ("heartbeat" | "deregister" | "set_visibility" | "set_hostname" | "set_tags"
        | "poll_handshakes" | "poll_invites" | "set_key_expiry") => own("node_id", kind),
        "rotate_key" => {
            Some(Claim { signer: node, text: challenge::rotate(node, req.text("new_public_key")) })
        }
        kind @ ("report_trust" | "revoke_trust") => pair("node_id", kind, node, req.node("peer_id")),
        "request_handshake" => {
            pair("from_node_id", "handshake", req.node("from_node_id"), req.node("to_node_id"))
        }
        "respond_handshake" => pair("node_id", "respond", node, req.node("peer_id")),
        "punch" => pair("requester_id", "punch", req.node("node_a"), req.node("node_b")),
        kind @ ("join_network" | "leave_network" | "respond_invite") => {
            pair("node_id", kind, node, u32::from(req.network("network_id")))
        }
        "invite_to_network" => {
            let (inviter, target) = (req.node("inviter_id"), req.node("target_node_id"));
            Some(Claim {
                signer: inviter,
                text: challenge::invite(inviter, req.network("network_id"), target),
            })
        }
        "resolve" => pair("requester_id", "resolve", req.node("requester_id"), node),
        // Requests that 1.18.0 sends unsigned; ours may prove who asks.
        "lookup" => pair("requester_id", "lookup", req.node("requester_id"), node),
        "resolve_hostname" => own("requester_id", "resolve_hostname"),
        "list_networks" => own("requester_id", "list_networks"),
        "list_nodes" | "get_member_tags" => {
            pair("requester_id", "list_nodes", req.node("requester_id"), u32::from(req.network("network_id")))
        }
        "check_trust" => pair("requester_id", "check_trust", node, req.node("peer_id")),
        // Extensions (docs/extensions.md).
        "subscribe" => {
            Some(Claim { signer: node, text: challenge::subscribe(node, req.number("ts", u64::MAX)) })
        }
        "ack_handshakes" => {
            Some(Claim { signer: node, text: challenge::ack_handshakes(node, req.number("up_to", u64::MAX)) })
        }
        "set_hidden" => pair("node_id", "set_hidden", node, u32::from(req.flag("hidden"))),
        "enroll_recovery_key" => {
            let text = format!("enroll_recovery_key:{node}:{}", req.text("recovery_public_key"));
            Some(Claim { signer: node, text })
        }
        // Network administration by role: ours sign the request type, network and target; the reference does not.
        kind @ ("delete_network" | "rename_network" | "kick_member" | "promote_member" | "demote_member"
        | "transfer_ownership" | "set_member_tags" | "set_network_policy" | "set_expr_policy") => {
            let target =
                req.node(if kind == "transfer_ownership" { "new_owner_id" } else { "target_node_id" });
            Some(Claim {
                signer: node,
                text: format!("{kind}:{node}:{}:{target}", req.network("network_id")),
            })
        }
        _ => None,
    }
}

/// Decodes the `signature` field.
pub(crate) fn signature(req: Request<'_>, missing: &str) -> Result<Vec<u8>, Refused> {
    let text = req.text("signature");
    if text.is_empty() {
        return Err(missing.into());
    }
    STANDARD.decode(text).map_err(|e| Refused(format!("invalid signature encoding: {e}")))
}

/// Decodes a base64 public key; the error text starts with `invalid <field>: `.
pub(crate) fn public_key(field: &str, text: &str) -> Result<Key, Refused> {
    match STANDARD.decode(text) {
        Err(e) => Err(Refused(format!("invalid {field}: {e}"))),
        Ok(bytes) => {
            let n = bytes.len();
            bytes.try_into().map_err(|_| Refused(format!("invalid {field}: {n} bytes, a key has 32")))
        }
    }
}

impl Session {
    /// Checks a signature, using the outcome of an earlier check of the same inputs.
    pub fn verify(&self, key: &Key, text: &str, signature: &[u8]) -> bool {
        match &self.checked {
            Some(c) if c.key == *key && c.text == text && c.signature == signature => c.good,
            _ => crypto::verify(key, text.as_bytes(), signature),
        }
    }

    /// A heartbeat that an earlier one on this connection vouches for.
    pub fn vouched(&self, req: Request<'_>) -> bool {
        req.kind() == "heartbeat" && self.heartbeats.iter().any(|(n, ..)| *n == req.node("node_id"))
    }

    /// This connection has shown that it speaks for `node`.
    pub fn prove(&mut self, node: NodeId, key: Key) {
        if self.proven.contains(&(node, key)) {
            return;
        }
        self.proven.retain(|(n, _)| *n != node);
        if self.proven.len() >= MAX_PROVEN {
            self.proven.remove(0);
        }
        self.proven.push((node, key));
    }
}

impl Registry {
    /// What to check before the registry is locked for the request: key, text and signature.
    pub fn to_check(&self, req: Request<'_>) -> Option<(Key, String, Vec<u8>)> {
        if let Some(fresh) = self.fresh_to_check(req) {
            return Some(fresh);
        }
        let signature = STANDARD.decode(req.text("signature")).ok().filter(|s| !s.is_empty())?;
        if req.kind() == "register" {
            let key = public_key("public_key", req.text("public_key")).ok()?;
            return Some((
                key,
                challenge::register(req.text("listen_addr"), req.text("public_key")),
                signature,
            ));
        }
        let claim = claim(req)?;
        let node = self.nodes.get(&claim.signer)?;
        Some((node.record.key, claim.text, signature))
    }

    /// The generic check: the request is signed by the live node its claim names. Returns that node.
    pub fn authenticate(&self, session: &mut Session, req: Request<'_>) -> Result<NodeId, Refused> {
        self.authenticate_as(
            session,
            req,
            "signature required for authenticated node",
            "signature verification failed",
        )
    }

    /// [`Self::authenticate`] with its own texts for a missing and a wrong signature.
    pub fn authenticate_as(
        &self,
        session: &mut Session,
        req: Request<'_>,
        missing: &str,
        wrong: &str,
    ) -> Result<NodeId, Refused> {
        let claim = claim(req).ok_or_else(|| Refused(wrong.to_owned()))?;
        let key = self.live(claim.signer)?.record.key;
        if session.fresh.is_some_and(|(signer, _)| signer == key) {
            session.prove(claim.signer, key);
            return Ok(claim.signer);
        }
        let signature = signature(req, missing)?;
        if let Some(now) = session.now {
            self.plain_signature(claim.signer, now)?;
        }
        if !session.verify(&key, &claim.text, &signature) {
            return Err(wrong.into());
        }
        session.prove(claim.signer, key);
        Ok(claim.signer)
    }

    /// A valid signature, or the global admin token. Returns the node named by the claim, which exists.
    pub fn authenticate_or_admin(&self, session: &mut Session, req: Request<'_>) -> Result<NodeId, Refused> {
        let refused = match self.authenticate(session, req) {
            Ok(node) => return Ok(node),
            Err(refused) => refused,
        };
        let signer = claim(req).map_or(0, |c| c.signer);
        if self.is_admin(req) && self.live(signer).is_ok() { Ok(signer) } else { Err(refused) }
    }

    /// Whether the request carries the global admin token.
    pub fn is_admin(&self, req: Request<'_>) -> bool {
        self.admin(req).is_ok()
    }

    /// Requires the global admin token.
    pub fn admin(&self, req: Request<'_>) -> Result<(), Refused> {
        let Some(token) = self.settings.admin_token.as_deref().filter(|t| !t.is_empty()) else {
            return Err(
                "network creation is disabled: this registry was started without an admin token".into()
            );
        };
        if crypto::constant_time_eq(token.as_bytes(), req.text("admin_token").as_bytes()) {
            Ok(())
        } else {
            Err("invalid admin token".into())
        }
    }

    /// Requires the global admin token, the network's own, or a signature of a node with one of `roles`. A bare
    /// `node_id` without a signature is not enough.
    pub fn role(
        &self,
        session: &mut Session,
        req: Request<'_>,
        network: NetworkId,
        roles: &[Role],
    ) -> Result<(), Refused> {
        let found = self.networks.get(&network).ok_or_else(|| no_network(network))?;
        let given = req.text("admin_token");
        let own = found.record.admin_token.as_bytes();
        if self.is_admin(req) || (!own.is_empty() && crypto::constant_time_eq(own, given.as_bytes())) {
            return Ok(());
        }
        if !given.is_empty() {
            return Err("invalid admin token".into());
        }
        let node = req.node("node_id");
        if node == 0 {
            return Err("rbac: node_id required for role-based authorization".into());
        }
        self.authenticate_as(
            session,
            req,
            "rbac: admin_token or a signature of node_id required",
            "signature verification failed",
        )?;
        match found.members.get(&node).and_then(|m| m.role) {
            None => Err(Refused(format!("rbac: node {node} has no role in network {network}"))),
            Some(role) if roles.contains(&role) => Ok(()),
            Some(role) => {
                let names: Vec<_> = roles.iter().map(|r| r.name()).collect();
                Err(Refused(format!(
                    "rbac: node {node} has role {:?}, requires one of [{}]",
                    role.name(),
                    names.join(" ")
                )))
            }
        }
    }

    /// The nodes this connection speaks for: proven by earlier requests, or by an optional signature on this one.
    pub fn requesters(&self, session: &mut Session, req: Request<'_>) -> Vec<NodeId> {
        if req.node("requester_id") != 0 && !req.text("signature").is_empty() {
            // A wrong signature proves nothing, and the request is answered as if it had none.
            let _ = self.authenticate(session, req);
        }
        let proven = session.proven.iter();
        proven
            .filter(|(n, key)| self.live(*n).is_ok_and(|node| node.record.key == *key))
            .map(|(n, _)| *n)
            .collect()
    }

    /// Whether `requester` may learn where `target` is and what it is called.
    pub fn may_see(&self, requester: NodeId, target: NodeId) -> bool {
        requester == target || self.trusts(requester, target) || self.share_network(requester, target)
    }

    /// A node in the directory.
    pub fn live(&self, id: NodeId) -> Result<&super::model::Node, Refused> {
        self.nodes.get(&id).filter(|n| n.live()).ok_or_else(|| no_node(id))
    }

    /// Takes a token of the requester's lookup budget: that of the node the connection speaks for, else of its source. A
    /// node that is flooded asks for many keys and must not lose its turn for those of honest peers.
    pub fn limit_lookups(&mut self, session: &Session, now: Now) -> Result<(), Refused> {
        let allowed = session.exempt
            || match session.proven.last() {
                Some((node, _)) => self.node_lookups.take(*node, now.mono),
                None => self.lookups.take(crate::limits::source(session.peer.ip()), now.mono),
            };
        if allowed {
            return Ok(());
        }
        Err(Refused(format!("rate limited: too many lookups from {}", session.peer.ip())))
    }
}
