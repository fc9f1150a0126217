//! Networks: creation, joining, leaving, invitations (spec 05 section 5.5).

use super::auth::claim;
use super::directory::address;
use super::model::{Invite, JoinRule, Member, Network, NetworkId, NetworkRecord, Role, Standing};
use super::names::{MAX_NAME, label};
use super::policy::{expr_policy, rules};
use super::request::{Answer, Refused, Request, no_network, no_node};
use super::{Now, Registry, Session};
use crate::store::Write;
use pilot_proto::{NodeId, crypto};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Networks one node can be in, the backbone aside: what a binary lookup answer may list.
const MAX_NETWORKS_PER_NODE: usize = 1023;
/// Members of a network without a limit of its own.
const MAX_MEMBERS: usize = 100_000;
/// Longest network token or administration token, bytes.
const MAX_TOKEN: usize = 1024;
/// Invitations waiting per node.
const MAX_INVITES: usize = 100;
/// Lifetime of an invitation, seconds.
const INVITE_TTL: u64 = 30 * 24 * 3600;

impl Registry {
    /// Whether two nodes share a network other than the backbone.
    pub(super) fn share_network(&self, a: NodeId, b: NodeId) -> bool {
        let (Some(a), Some(b)) = (self.nodes.get(&a), self.nodes.get(&b)) else { return false };
        a.networks.intersection(&b.networks).next().is_some()
    }

    /// A network that is not the backbone; `verb` completes "cannot ... the backbone network".
    pub(super) fn network(&self, id: NetworkId, verb: &str) -> Result<&Network, Refused> {
        if id == 0 {
            return Err(Refused(format!("cannot {verb} the backbone network")));
        }
        self.networks.get(&id).ok_or_else(|| no_network(id))
    }

    fn network_name(&self, name: &str) -> Result<(), Refused> {
        if name.is_empty() {
            return Err("invalid network name: require a name".into());
        }
        if name.len() > MAX_NAME {
            return Err("invalid network name: network name too long (max 63 chars)".into());
        }
        if !label(name) {
            return Err("invalid network name: must be lowercase alphanumeric with hyphens, start/end with \
                        alphanumeric"
                .into());
        }
        if name == "backbone" {
            return Err(
                "invalid network name: network name \"backbone\" is reserved, it cannot be used".into()
            );
        }
        if self.networks.values().any(|n| n.record.name == name) {
            return Err(Refused(format!("network {name:?} already exists")));
        }
        Ok(())
    }

    /// Changes a network's record and stores it.
    pub(super) fn update_network(&mut self, id: NetworkId, change: impl FnOnce(&mut NetworkRecord)) {
        if let Some(network) = self.networks.get_mut(&id) {
            change(&mut network.record);
            self.writes.push(Write::Network(Box::new(network.record.clone())));
        }
    }

    /// Sets or removes a membership, in memory and in the store.
    pub(super) fn set_member(&mut self, network: NetworkId, node: NodeId, member: Option<Member>) {
        let Some(found) = self.networks.get_mut(&network) else { return };
        if let Some(n) = self.nodes.get_mut(&node) {
            if member.is_some() {
                n.networks.insert(network)
            } else {
                n.networks.remove(&network)
            };
        }
        match &member {
            Some(m) => found.members.insert(node, m.clone()),
            None => found.members.remove(&node),
        };
        self.writes.push(Write::Member { network, node, member });
    }

    /// Removes a node from all networks and drops the invitations it got and gave.
    pub(super) fn drop_memberships(&mut self, id: NodeId) {
        let networks: Vec<_> =
            self.nodes.get(&id).map(|n| n.networks.iter().copied().collect()).unwrap_or_default();
        for network in networks {
            self.set_member(network, id, None);
        }
        self.drop_invites(|to, invite| to == id || invite.inviter == id);
    }

    fn may_invite(&self, network: NetworkId, node: NodeId) -> bool {
        let member = self.networks.get(&network).and_then(|n| n.members.get(&node));
        member.is_some_and(|m| matches!(m.role, Some(Role::Owner | Role::Admin)))
    }

    fn drop_invites(&mut self, gone: impl Fn(NodeId, &Invite) -> bool) {
        let writes = &mut self.writes;
        self.invites.retain(|to, list| {
            list.retain(|invite| {
                let drop = gone(*to, invite);
                if drop {
                    writes.push(Write::Invite { to: *to, network: invite.network, invite: None });
                }
                !drop
            });
            !list.is_empty()
        });
    }

    fn check_memberships(&self, node: NodeId) -> Result<(), Refused> {
        if self.nodes.get(&node).is_some_and(|n| n.networks.len() >= MAX_NETWORKS_PER_NODE) {
            return Err(Refused(format!("too many networks (max {MAX_NETWORKS_PER_NODE} per node)")));
        }
        Ok(())
    }

    /// Makes a node a member after checking the limits.
    fn admit_member(&mut self, id: NetworkId, node: NodeId, role: Role) -> Result<(), Refused> {
        let network = self.networks.get(&id).ok_or_else(|| no_network(id))?;
        if network.members.contains_key(&node) {
            return Err(Refused(format!("node {node} already in network {id}")));
        }
        let limit = match network.record.max_members {
            0 => MAX_MEMBERS,
            n => n as usize,
        };
        if network.members.len() >= limit {
            return Err(Refused(format!("cannot join: network membership limit reached ({limit})")));
        }
        self.check_memberships(node)?;
        self.set_member(id, node, Some(Member { role: Some(role), tags: Vec::new() }));
        Ok(())
    }

    pub(super) fn create_network(&mut self, req: Request<'_>, now: Now) -> Answer {
        self.admin(req)?;
        let node = req.node("node_id");
        if self.live(node).is_err() {
            return Err(Refused(format!(
                "node {node} not registered: require node_id of the network's owner"
            )));
        }
        let name = req.text("name");
        self.network_name(name)?;
        let join_rule = match req.text("join_rule") {
            "" | "open" => JoinRule::Open,
            "token" => JoinRule::Token,
            "invite" => JoinRule::Invite,
            other => return Err(Refused(format!("invalid join_rule {other:?} (open, token or invite)"))),
        };
        let enterprise = req.flag("enterprise");
        if join_rule == JoinRule::Invite && !enterprise {
            return Err("enterprise feature: invite-only networks require the enterprise flag".into());
        }
        for field in ["token", "network_admin_token"] {
            if req.text(field).len() > MAX_TOKEN {
                return Err(Refused(format!("invalid {field}: too long (max {MAX_TOKEN} bytes)")));
            }
        }
        if join_rule == JoinRule::Token && req.text("token").is_empty() {
            return Err("invalid token: networks with join rule token require one".into());
        }
        self.check_memberships(node)?;
        let rules = rules(req.value("rules"))?;
        let expr_policy = match req.value("expr_policy") {
            None => None,
            Some(value) => expr_policy(value)?,
        };
        let id = self.last_network.checked_add(1).ok_or_else(|| {
            Refused::from("network ID space exhausted: too many networks were created (max 65535)")
        })?;
        self.last_network = id;
        let record = NetworkRecord {
            id,
            name: name.to_owned(),
            join_rule,
            token: req.text("token").to_owned(),
            admin_token: req.text("network_admin_token").to_owned(),
            enterprise,
            created: now.unix(),
            max_members: 0,
            allowed_ports: Vec::new(),
            description: String::new(),
            rules,
            expr_policy,
        };
        let mut answer =
            json!({"type": "create_network_ok", "network_id": id, "name": name, "enterprise": enterprise});
        if record.rules.is_some() {
            answer["managed"] = json!(true);
        }
        self.writes.push(Write::Meta { name: "last_network", value: id.to_string() });
        self.writes.push(Write::Network(Box::new(record.clone())));
        self.networks.insert(id, Network { record, members: BTreeMap::new() });
        self.set_member(id, node, Some(Member { role: Some(Role::Owner), tags: Vec::new() }));
        Ok(answer)
    }

    pub(super) fn join_network(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        let node = req.node("node_id");
        if self.live(node).is_err() {
            return Err(Refused(format!("node {node} not registered: node not found")));
        }
        self.authenticate_or_admin(s, req)?;
        let r = &self.network(id, "join")?.record;
        match r.join_rule {
            JoinRule::Open => {}
            _ if self.is_admin(req) => {}
            JoinRule::Token => {
                if !crypto::constant_time_eq(r.token.as_bytes(), req.text("token").as_bytes()) {
                    return Err(Refused(format!("invalid token for network {id}")));
                }
            }
            JoinRule::Invite => {
                return Err("invite-only networks require invite_to_network + respond_invite flow".into());
            }
        }
        let mut answer = json!({"type": "join_network_ok", "network_id": id, "address": address(id, node)});
        if let Some(rules) = &r.rules {
            answer["rules"] = rules.clone();
        }
        if let Some(policy) = &r.expr_policy {
            answer["expr_policy"] = policy.clone();
        }
        self.admit_member(id, node, Role::Member)?;
        Ok(answer)
    }

    pub(super) fn leave_network(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let node = self.authenticate_or_admin(s, req)?;
        let id = req.network("network_id");
        let network = self.network(id, "leave")?;
        let Some(member) = network.members.get(&node) else {
            return Err(not_a_member(node, id));
        };
        if network.record.enterprise && member.role == Some(Role::Owner) {
            return Err("cannot leave network: owner must transfer ownership first".into());
        }
        let invited = self.may_invite(id, node);
        self.set_member(id, node, None);
        if invited {
            self.drop_invites(|_, i| i.network == id && i.inviter == node);
        }
        Ok(json!({"type": "leave_network_ok", "network_id": id}))
    }

    pub(super) fn delete_network(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        self.network(id, "delete")?;
        self.role(s, req, id, &[Role::Owner])?;
        if let Some(network) = self.networks.remove(&id) {
            for node in network.members.keys() {
                if let Some(n) = self.nodes.get_mut(node) {
                    n.networks.remove(&id);
                }
            }
        }
        self.drop_invites(|_, i| i.network == id);
        self.writes.push(Write::NetworkGone(id));
        Ok(json!({"type": "delete_network_ok", "network_id": id}))
    }

    pub(super) fn rename_network(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        self.network(id, "rename")?;
        self.role(s, req, id, &[Role::Owner, Role::Admin])?;
        let name = req.text("name");
        self.network_name(name)?;
        self.update_network(id, |r| r.name = name.to_owned());
        Ok(json!({"type": "rename_network_ok", "network_id": id, "name": name}))
    }

    pub(super) fn set_network_enterprise(&mut self, req: Request<'_>) -> Answer {
        if !self.is_admin(req) {
            return Err("set_network_enterprise requires admin token".into());
        }
        let id = req.network("network_id");
        self.network(id, "set enterprise on")?;
        let on = req.flag("enterprise");
        self.update_network(id, |r| r.enterprise = on);
        let members: Vec<(NodeId, Member)> = self
            .networks
            .get(&id)
            .map(|n| n.members.iter().map(|(k, m)| (*k, m.clone())).collect())
            .unwrap_or_default();
        let mut owned = members.iter().any(|(_, m)| m.role == Some(Role::Owner));
        for (node, member) in members {
            let role = match (on, member.role) {
                (false, _) => None,
                (true, Some(role)) => Some(role),
                (true, None) if !owned => {
                    owned = true;
                    Some(Role::Owner)
                }
                (true, None) => Some(Role::Member),
            };
            self.set_member(id, node, Some(Member { role, tags: member.tags }));
        }
        Ok(json!({"type": "set_network_enterprise_ok", "network_id": id, "enterprise": on}))
    }

    pub(super) fn list_networks(&mut self, req: Request<'_>) -> Answer {
        let admin = self.is_admin(req);
        let mut backbone = json!({
            "id": 0, "name": "backbone", "join_rule": "open", "enterprise": false, "created": self.started,
        });
        if admin {
            backbone["members"] = json!(self.live);
        }
        let mut networks = vec![backbone];
        for (id, n) in &self.networks {
            let r = &n.record;
            let mut e = json!({
                "id": id, "name": r.name, "join_rule": r.join_rule.name(), "enterprise": r.enterprise,
                "created": r.created,
            });
            if admin {
                e["members"] = json!(n.members.len());
            }
            if r.enterprise && r.max_members != 0 {
                e["max_members"] = json!(r.max_members);
            }
            if r.enterprise && !r.description.is_empty() {
                e["description"] = json!(r.description);
            }
            if let Some(rules) = &r.rules {
                e["managed"] = json!(true);
                e["rules"] = rules.clone();
            }
            if r.expr_policy.is_some() {
                e["has_expr_policy"] = json!(true);
            }
            networks.push(e);
        }
        Ok(json!({"type": "list_networks_ok", "networks": networks}))
    }

    pub(super) fn invite_to_network(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let (inviter, target) = (req.node("inviter_id"), req.node("target_node_id"));
        let id = req.network("network_id");
        if inviter == target {
            return Err("cannot invite yourself".into());
        }
        let network = self.network(id, "invite to")?;
        let own = network.record.admin_token.as_bytes();
        let given = req.text("admin_token");
        let administrator =
            self.is_admin(req) || (!own.is_empty() && crypto::constant_time_eq(own, given.as_bytes()));
        if !administrator {
            if self.live(inviter).is_err() {
                return Err(Refused(format!("inviter node {inviter}: node not found")));
            }
            self.authenticate(s, req)?;
        }
        if !network.record.enterprise {
            return Err("enterprise feature: requires enterprise network".into());
        }
        if network.record.join_rule != JoinRule::Invite {
            let rule = network.record.join_rule.name();
            return Err(Refused(format!("cannot invite: network {id} is not invite-only (rule: {rule})")));
        }
        if !administrator {
            match network.members.get(&inviter).map(|m| m.role) {
                None => return Err(Refused(format!("inviter {inviter} is not a member of network {id}"))),
                Some(Some(Role::Owner | Role::Admin)) => {}
                Some(role) => {
                    let role = role.map_or("none", Role::name);
                    return Err(Refused(format!(
                        "rbac: inviter {inviter} has role {role:?}, requires owner or admin"
                    )));
                }
            }
        }
        if self.live(target).is_err() {
            return Err(Refused(format!("target node {target}: node not found")));
        }
        if network.members.contains_key(&target) {
            return Err(Refused(format!("node {target} is already a member of network {id}")));
        }
        let mut answer = json!({"type": "invite_to_network_ok", "network_id": id, "target_node_id": target});
        self.expire_invites(target, now);
        let list = self.invites.entry(target).or_default();
        if list.iter().any(|i| i.network == id) {
            answer["status"] = json!("already_invited");
            return Ok(answer);
        }
        if list.len() >= MAX_INVITES {
            return Err(Refused(format!("too many invites: invite inbox full for node {target}")));
        }
        let invite = Invite { network: id, inviter, at: now.unix() };
        list.push(invite);
        self.writes.push(Write::Invite { to: target, network: id, invite: Some(invite) });
        Ok(answer)
    }

    fn expire_invites(&mut self, to: NodeId, now: Now) {
        let Some(list) = self.invites.get_mut(&to) else { return };
        let writes = &mut self.writes;
        list.retain(|i| {
            let fresh = now.unix().saturating_sub(i.at) <= INVITE_TTL;
            if !fresh {
                writes.push(Write::Invite { to, network: i.network, invite: None });
            }
            fresh
        });
        if list.is_empty() {
            self.invites.remove(&to);
        }
    }

    pub(super) fn poll_invites(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let node = self.authenticate(s, req)?;
        self.expire_invites(node, now);
        let list = self.invites.get(&node).map(Vec::as_slice).unwrap_or_default();
        let invites: Vec<Value> = list
            .iter()
            .map(|i| json!({"network_id": i.network, "inviter_id": i.inviter, "timestamp": i.at}))
            .collect();
        Ok(json!({"type": "poll_invites_ok", "invites": invites}))
    }

    pub(super) fn respond_invite(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let node = self.authenticate(s, req)?;
        let id = req.network("network_id");
        let accept = req.flag("accept");
        if !self.network(id, "accept an invite to")?.record.enterprise {
            return Err("enterprise feature: requires enterprise network".into());
        }
        let list = self.invites.get_mut(&node);
        let found = list.and_then(|l| l.iter().position(|i| i.network == id).map(|at| l.remove(at)));
        let Some(invite) = found else {
            return Err(Refused(format!(
                "invite not found: no pending invite for node {node} to network {id}"
            )));
        };
        if self.invites.get(&node).is_some_and(Vec::is_empty) {
            self.invites.remove(&node);
        }
        self.writes.push(Write::Invite { to: node, network: id, invite: None });
        if now.unix().saturating_sub(invite.at) > INVITE_TTL {
            return Err(Refused(format!("invite for node {node} to network {id} has expired")));
        }
        if accept {
            self.admit_member(id, node, Role::Member)?;
        }
        Ok(json!({"type": "respond_invite_ok", "accepted": accept, "network_id": id}))
    }

    pub(super) fn punch(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let requester = claim(req).map_or(0, |c| c.signer);
        let (a, b) = (req.node("node_a"), req.node("node_b"));
        if requester != a && requester != b {
            return Err(
                "punch denied: signature must be of a participant: requester must be participant".into()
            );
        }
        self.authenticate(s, req)?;
        let other = if requester == a { b } else { a };
        // Unlike the reference: an address is no more public here than through `resolve`.
        let visible = self.nodes.get(&other).is_some_and(|n| {
            n.record.standing == Standing::Live
                && !n.record.relay_only
                && (n.record.public || self.may_see(requester, other))
        });
        if !visible {
            return Err(no_node(other));
        }
        let addr = |id: NodeId| self.nodes.get(&id).map(|n| n.record.endpoint.clone()).unwrap_or_default();
        Ok(json!({
            "type": "punch_ok", "node_a": a, "node_a_addr": addr(a), "node_b": b, "node_b_addr": addr(b),
        }))
    }
}

/// The fixed phrase for somebody who is not in a network.
pub(super) fn not_a_member(node: NodeId, network: NetworkId) -> Refused {
    Refused(format!("node {node} is not a member of network {network}"))
}
