//! Lookup, resolve, names to nodes, member lists (spec 05 sections 5.2 and 5.3).
//!
//! What is told to whom: keys, membership and presence to anybody who knows the id; names and tags of private nodes
//! to themselves, trusted nodes and members of a shared network; endpoints of private nodes only through `resolve`.

use super::model::{Node, Role, Standing};
use super::registration::key_age_days;
use super::request::{Answer, Refused, Request, no_network};
use super::{Now, Registry, Session};
use crate::clock::rfc3339;
use pilot_proto::{Addr, NodeId, crypto};
use serde_json::{Value, json};

/// Most nodes in one listing.
const LIST_LIMIT: usize = 10_000;

impl Registry {
    pub(super) fn lookup(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        self.limit_lookups(s, now)?;
        let id = req.node("node_id");
        let requesters = self.requesters(s, req);
        let node = self.live(id)?;
        let r = &node.record;
        let mut networks = vec![0];
        networks.extend(&node.networks);
        let mut answer = json!({
            "type": "lookup_ok",
            "node_id": id,
            "address": Addr::backbone(id).to_string(),
            "networks": networks,
            "public_key": crypto::base64(r.key),
            "public": r.public,
            "last_seen_unix": node.seen_unix,
            "key_generation": r.rotate_count,
        });
        if !r.version.is_empty() {
            answer["version"] = json!(r.version);
        }
        if let Some(signed) = &node.signed {
            answer["record"] = json!(signed.key);
        }
        let familiar = requesters.iter().any(|q| self.may_see(*q, id));
        if familiar || r.public {
            if !r.hostname.is_empty() && (familiar || !r.hidden) {
                answer["hostname"] = json!(r.hostname);
            }
            if !r.tags.is_empty() {
                answer["tags"] = json!(r.tags);
            }
        }
        if r.relay_only && (familiar || r.public) {
            answer["relay_only"] = json!(true);
        }
        if r.public {
            let endpoint = if r.relay_only { self.beacon_for(s) } else { r.endpoint.clone() };
            answer["real_addr"] = json!(endpoint);
            answer["endpoint"] = json!(endpoint);
        }
        Ok(answer)
    }

    pub(super) fn resolve(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        self.limit_lookups(s, now)?;
        let (requester, id) = (req.node("requester_id"), req.node("node_id"));
        if self.live(requester).is_err() {
            return Err(Refused(format!("resolve denied: requester node {requester} is not registered")));
        }
        self.authenticate(s, req)?;
        // One text for "does not exist" and "not for you".
        let denied =
            || Refused(format!("node {id}: node not found, or private and not shared with node {requester}"));
        let node = self.live(id).map_err(|_| denied())?;
        let r = &node.record;
        if !r.public && !self.may_see(requester, id) {
            return Err(denied());
        }
        let mut answer = json!({"type": "resolve_ok", "node_id": id, "key_age_days": key_age_days(r, now)});
        if r.relay_only {
            answer["real_addr"] = json!(self.beacon_for(s));
            answer["relay_only"] = json!(true);
        } else {
            answer["real_addr"] = json!(r.endpoint);
            if !r.lan_addrs.is_empty() {
                answer["lan_addrs"] = json!(r.lan_addrs);
            }
        }
        if let Some(place) = node.signed.as_ref().and_then(|s| s.place.as_ref()) {
            answer["record"] = json!(place);
        }
        Ok(answer)
    }

    pub(super) fn resolve_hostname(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        self.limit_lookups(s, now)?;
        let name = req.text("hostname");
        if name.is_empty() {
            return Err("hostname required".into());
        }
        let requesters = self.requesters(s, req);
        let unknown = || Refused(format!("hostname {name:?} not found"));
        let id = *self.by_name.get(name).ok_or_else(unknown)?;
        let node = self.live(id).map_err(|_| unknown())?;
        if node.record.hidden && !requesters.iter().any(|q| *q == id || self.trusts(*q, id)) {
            return Err(unknown());
        }
        Ok(json!({
            "type": "resolve_hostname_ok",
            "node_id": id,
            "address": Addr::backbone(id).to_string(),
            "public": node.record.public,
            "hostname": name,
            "last_seen_unix": node.seen_unix,
        }))
    }

    pub(super) fn list_nodes(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        let admin = self.is_admin(req);
        if id == 0 {
            if !admin {
                return Err("cannot list the backbone: listing backbone nodes is not permitted \
                            (use lookup with a specific node_id)"
                    .into());
            }
            let mut live: Vec<_> = self.nodes.values().filter(|n| n.live()).collect();
            live.sort_by_key(|n| n.record.id);
            let nodes: Vec<Value> = live.into_iter().take(LIST_LIMIT).map(|n| entry(n, 0, true)).collect();
            return Ok(json!({"type": "list_nodes_ok", "nodes": nodes}));
        }
        let requesters = self.requesters(s, req);
        let network = self.networks.get(&id).ok_or_else(|| no_network(id))?;
        let member = admin || requesters.iter().any(|q| network.members.contains_key(q));
        let mut nodes = Vec::new();
        for (node_id, m) in &network.members {
            let Some(node) = self.nodes.get(node_id) else { continue };
            let shown = member || (node.record.public && node.live());
            if !shown {
                continue;
            }
            let mut e = if node.live() {
                entry(node, id, member)
            } else {
                json!({"node_id": node_id, "address": address(id, *node_id), "offline": true})
            };
            if let Some(role) = m.role {
                e["role"] = json!(Role::name(role));
            }
            if !m.tags.is_empty() {
                e["member_tags"] = json!(m.tags);
            }
            nodes.push(e);
            if nodes.len() >= LIST_LIMIT {
                break;
            }
        }
        Ok(json!({"type": "list_nodes_ok", "nodes": nodes}))
    }

    /// The holder of a name, if it may keep it: not reaped for longer than names are held.
    pub(super) fn name_holder(&self, name: &str, now: Now) -> Option<NodeId> {
        let id = *self.by_name.get(name)?;
        match self.nodes.get(&id)?.record.standing {
            Standing::Live => Some(id),
            Standing::Reaped(at) if now.unix().saturating_sub(at) < super::names::NAME_HOLD => Some(id),
            Standing::Reaped(_) | Standing::Deregistered => None,
        }
    }
}

/// A node's address in a network.
pub(super) fn address(network: u16, node: NodeId) -> String {
    Addr { network, node }.to_string()
}

/// One row of a listing. Endpoints go to members and the administrator only.
fn entry(node: &Node, network: u16, member: bool) -> Value {
    let r = &node.record;
    let mut e = json!({
        "node_id": r.id,
        "address": address(network, r.id),
        "public": r.public,
        "last_seen": rfc3339(node.seen_unix),
    });
    if !r.hostname.is_empty() && (member || !r.hidden) {
        e["hostname"] = json!(r.hostname);
    }
    if !r.tags.is_empty() {
        e["tags"] = json!(r.tags);
    }
    if !r.version.is_empty() {
        e["version"] = json!(r.version);
    }
    if member && r.public && !r.relay_only {
        e["real_addr"] = json!(r.endpoint);
    }
    e
}
