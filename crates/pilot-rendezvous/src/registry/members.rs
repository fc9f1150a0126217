//! Roles and tags of network members (spec 05 section 5.5).

use super::model::{Member, NetworkId, Role};
use super::names::clean_tags;
use super::networks::not_a_member;
use super::request::{Answer, Refused, Request, no_network};
use super::{Now, Registry, Session};
use pilot_proto::NodeId;
use serde_json::{Map, Value, json};

impl Registry {
    /// The member a role request is about, in an enterprise network.
    fn target(&self, id: NetworkId, node: NodeId, verb: &str) -> Result<Member, Refused> {
        let network = self.network(id, verb)?;
        if !network.record.enterprise {
            return Err("enterprise feature: requires enterprise network".into());
        }
        network.members.get(&node).cloned().ok_or_else(|| not_a_member(node, id))
    }

    fn set_role(&mut self, id: NetworkId, node: NodeId, role: Role) {
        let tags = self.networks.get(&id).and_then(|n| n.members.get(&node)).map(|m| m.tags.clone());
        self.set_member(id, node, Some(Member { role: Some(role), tags: tags.unwrap_or_default() }));
    }

    pub(super) fn kick_member(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        self.network(id, "kick from")?;
        self.role(s, req, id, &[Role::Owner, Role::Admin])?;
        let member = self.target(id, target, "kick from")?;
        if member.role == Some(Role::Owner) {
            return Err("cannot kick the network owner".into());
        }
        let by_token = !req.text("admin_token").is_empty();
        let kicker =
            self.networks.get(&id).and_then(|n| n.members.get(&req.node("node_id"))).and_then(|m| m.role);
        if !by_token && kicker == Some(Role::Admin) && member.role == Some(Role::Admin) {
            return Err("cannot kick: admins cannot kick other admins".into());
        }
        self.set_member(id, target, None);
        Ok(json!({"type": "kick_member_ok", "network_id": id, "target_node_id": target}))
    }

    pub(super) fn promote_member(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        self.network(id, "promote in")?;
        self.role(s, req, id, &[Role::Owner])?;
        match self.target(id, target, "promote in")?.role {
            Some(Role::Owner) => return Err("cannot promote the owner".into()),
            Some(Role::Admin) => return Err(Refused(format!("node {target} is already an admin"))),
            _ => self.set_role(id, target, Role::Admin),
        }
        Ok(json!({"type": "promote_member_ok", "network_id": id, "target_node_id": target, "role": "admin"}))
    }

    pub(super) fn demote_member(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        self.network(id, "demote in")?;
        self.role(s, req, id, &[Role::Owner])?;
        match self.target(id, target, "demote in")?.role {
            Some(Role::Owner) => return Err("cannot demote the owner".into()),
            Some(Role::Admin) => self.set_role(id, target, Role::Member),
            _ => return Err(Refused(format!("node {target} is already a member"))),
        }
        Ok(json!({"type": "demote_member_ok", "network_id": id, "target_node_id": target, "role": "member"}))
    }

    pub(super) fn transfer_ownership(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, new) = (req.network("network_id"), req.node("new_owner_id"));
        self.network(id, "transfer")?;
        self.role(s, req, id, &[Role::Owner])?;
        if new == 0 {
            return Err("new_owner_id is required".into());
        }
        let role = self.target(id, new, "transfer")?.role;
        let owner =
            self.networks.get(&id).and_then(|n| n.members.iter().find(|(_, m)| m.role == Some(Role::Owner)));
        let old = owner.map(|(node, _)| *node);
        let Some(old) = old else {
            return Err(Refused(format!("owner not found: network {id} has no owner")));
        };
        if role == Some(Role::Owner) {
            return Err(Refused(format!("node {new} is already the owner")));
        }
        self.set_role(id, old, Role::Admin);
        self.set_role(id, new, Role::Owner);
        Ok(json!({"type": "transfer_ownership_ok", "network_id": id, "old_owner": old, "new_owner": new}))
    }

    pub(super) fn get_member_role(&mut self, s: &Session, req: Request<'_>, now: Now) -> Answer {
        self.limit_lookups(s, now)?;
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        let network = self.networks.get(&id).ok_or_else(|| no_network(id))?;
        let member = network.members.get(&target).ok_or_else(|| not_a_member(target, id))?;
        let role = member.role.map_or("", Role::name);
        Ok(json!({"type": "get_member_role_ok", "network_id": id, "target_node_id": target, "role": role}))
    }

    pub(super) fn set_member_tags(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        self.network(id, "set member tags in")?;
        self.role(s, req, id, &[Role::Owner, Role::Admin])?;
        let tags = clean_tags(&req.texts("tags"), "too many member tags (max 10)")?;
        let network = self.networks.get(&id).ok_or_else(|| no_network(id))?;
        let role = network.members.get(&target).ok_or_else(|| not_a_member(target, id))?.role;
        let answer =
            json!({"type": "set_member_tags_ok", "network_id": id, "target_node_id": target, "tags": tags});
        self.set_member(id, target, Some(Member { role, tags }));
        Ok(answer)
    }

    /// Tags of one member to anybody who knows it, like its role; of all members to members and the administrator.
    pub(super) fn get_member_tags(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let (id, target) = (req.network("network_id"), req.node("target_node_id"));
        let requesters = self.requesters(s, req);
        let network = self.networks.get(&id).ok_or_else(|| no_network(id))?;
        if target != 0 {
            let tags = &network.members.get(&target).ok_or_else(|| not_a_member(target, id))?.tags;
            return Ok(json!({
                "type": "get_member_tags_ok", "network_id": id, "target_node_id": target, "tags": tags,
            }));
        }
        let member = self.is_admin(req) || requesters.iter().any(|q| network.members.contains_key(q));
        let shown = network
            .members
            .iter()
            .filter(|(node, _)| member || self.nodes.get(node).is_some_and(|n| n.live() && n.record.public));
        let members: Map<String, Value> = shown.map(|(node, m)| (node.to_string(), json!(m.tags))).collect();
        Ok(json!({"type": "get_member_tags_ok", "network_id": id, "members": members}))
    }
}
