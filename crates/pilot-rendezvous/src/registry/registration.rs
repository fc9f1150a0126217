//! Registration, heartbeats, key rotation, reaping (spec 05 sections 5.1 and 7).

use super::auth::{public_key, signature};
use super::model::{Key, Node, NodeRecord, Standing};
use super::request::{Answer, Refused, Request, no_node};
use super::{Effect, Now, Registry, Session};
use crate::clock::{parse_rfc3339, rfc3339};
use crate::limits::source;
use pilot_proto::registry::challenge;
use pilot_proto::{Addr, NodeId, crypto};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Texts a registration may carry, bytes.
const MAX_LISTEN_ADDR: usize = 261;
const MAX_OWNER: usize = 254;
const MAX_VERSION: usize = 64;
/// LAN addresses kept per node; further ones are ignored.
const MAX_LAN_ADDRS: usize = 16;
/// Longest `host:port` of a LAN address, bytes.
const MAX_LAN_ADDR: usize = 64;
/// A heartbeat verified on this connection vouches for later ones this long.
const HEARTBEAT_CACHE: Duration = Duration::from_secs(120);
/// Heartbeats remembered per connection.
const MAX_HEARTBEATS: usize = 64;
/// Key expiry is announced this long before, seconds.
const EXPIRY_WARNING: u64 = 24 * 3600;
/// Longest key lifetime, seconds.
const MAX_EXPIRY: u64 = 10 * 365 * 24 * 3600;
/// Nodes taken out of the directory in one run of the reaper.
const REAP_BATCH: usize = 10_000;

/// Host and port of `host:port` or `[v6]:port`.
fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host, port.parse().ok()?))
}

/// Whether an endpoint's host says nothing about where the node is on the Internet.
fn local_host(host: &str) -> bool {
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    match host.split('%').next().unwrap_or(host).parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => {
            ip.is_unspecified() || ip.is_private() || ip.is_loopback() || ip.is_link_local()
        }
        Ok(IpAddr::V6(ip)) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        Err(_) => false,
    }
}

/// The endpoint rule: what to store for a `listen_addr` sent from `peer`.
pub(super) fn endpoint(listen: &str, peer: SocketAddr) -> String {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if listen.is_empty() {
        return peer.to_string();
    }
    match split_host_port(listen) {
        Some((host, port)) if local_host(host) => SocketAddr::new(peer.ip(), port).to_string(),
        _ => listen.to_owned(),
    }
}

fn bounded(field: &str, text: &str, max: usize) -> Result<(), Refused> {
    if text.len() > max {
        return Err(Refused(format!("invalid {field}: too long ({} bytes, max {max})", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Refused(format!("invalid {field}: control characters")));
    }
    Ok(())
}

impl Registry {
    pub(super) fn register(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let key_text = req.text("public_key");
        if key_text.is_empty() {
            return Err("registration requires public_key".into());
        }
        let key = public_key("public_key", key_text)?;
        let listen = req.text("listen_addr");
        bounded("listen_addr", listen, MAX_LISTEN_ADDR)?;
        bounded("owner", req.text("owner"), MAX_OWNER)?;
        bounded("version", req.text("version"), MAX_VERSION)?;
        let signed = !req.text("signature").is_empty();
        let fresh_seq = s.fresh.filter(|(signer, _)| *signer == key).map(|(_, seq)| seq);
        if signed && fresh_seq.is_none() {
            let sig = signature(req, "registration: signature required")
                .map_err(|_| Refused::from("registration: invalid signature encoding"))?;
            if !s.verify(&key, &challenge::register(listen, key_text), &sig) {
                return Err("registration: signature verification failed".into());
            }
        }
        let known = self.by_key.get(&key).copied();
        if let Some(id) = known
            && !signed
            && self.nodes.get(&id).is_some_and(|n| n.record.sig_verified)
        {
            // Not only while live: otherwise a reaped node's id could be taken over without its key.
            return Err(Refused(format!(
                "node {id}: unsigned registration cannot modify a signature-verified key"
            )));
        }
        if let Some(id) = known.filter(|_| fresh_seq.is_none()) {
            self.plain_registration(id, s.peer.ip().to_canonical(), now)?;
        }
        let id = match known {
            Some(id) => id,
            None => self.admit(s, key, now)?,
        };
        let observed = endpoint(listen, s.peer);
        let fresh = self.refresh(id, req, &observed, signed, now);
        if signed {
            s.prove(id, key);
        }
        if let Some(seq) = fresh_seq {
            self.fresh_registration(id, seq, s.peer.ip().to_canonical(), now);
        }
        self.touch(id, now);
        let mut answer = json!({
            "type": "register_ok",
            "node_id": id,
            "address": Addr::backbone(id).to_string(),
            "network_id": 0,
            "public_key": key_text,
            "observed_addr": observed,
            "protocol_version": 1,
            "features": ["push", "handshake_ack", "instance", "hidden", "recovery_key", "signed_discover", "node_record", "fresh"],
            "registry_id": self.registry_id,
            "time": now.unix(),
            "beacon_port": self.settings.beacon.port(),
            "beacon_ports": self.beacon_ports(),
            "key_generation": self.nodes.get(&id).map_or(0, |n| n.record.rotate_count),
        });
        self.tell_door(&mut answer);
        if req.has("hostname") {
            match self.take_name(id, req.text("hostname"), now) {
                Ok(()) => answer["hostname"] = json!(req.text("hostname")),
                Err(Refused(text)) => {
                    let text = text.strip_prefix("invalid hostname: ").unwrap_or(&text);
                    answer["hostname_error"] = json!(text);
                }
            }
        } else if !fresh && let Some(node) = self.nodes.get(&id).filter(|n| !n.record.hostname.is_empty()) {
            answer["hostname"] = json!(node.record.hostname);
        }
        Ok(answer)
    }

    /// Gives an unknown key an id.
    fn admit(&mut self, s: &Session, key: Key, now: Now) -> Result<NodeId, Refused> {
        if !s.exempt && !self.registrations.take(source(s.peer.ip()), now.mono) {
            return Err(Refused(format!("rate limited: too many registrations from {}", s.peer.ip())));
        }
        if self.nodes.len() >= self.settings.max_nodes as usize {
            return Err("registry full: cannot take new nodes (known keys still can register)".into());
        }
        let id = self.last_node.checked_add(1).filter(|id| *id != Addr::BROADCAST_NODE);
        let id = id.ok_or_else(|| Refused::from("node ID space exhausted"))?;
        self.last_node = id;
        let record = NodeRecord {
            id,
            key,
            previous_key: None,
            standing: Standing::Deregistered,
            owner: String::new(),
            endpoint: String::new(),
            lan_addrs: Vec::new(),
            public: false,
            hidden: false,
            hostname: String::new(),
            tags: Vec::new(),
            version: String::new(),
            relay_only: false,
            sig_verified: false,
            created_at: now.unix(),
            rotated_at: 0,
            rotate_count: 0,
            expires_at: 0,
            last_seen: 0,
            instance: None,
            recovery_key: None,
        };
        self.by_key.insert(key, id);
        self.nodes.insert(
            id,
            Node {
                record,
                seen: now.mono,
                seen_unix: 0,
                aging: None,
                networks: BTreeSet::new(),
                signed: None,
                fresh: None,
            },
        );
        Ok(id)
    }

    /// Takes over what a registration says. Returns whether the node was not in the directory before.
    fn refresh(&mut self, id: NodeId, req: Request<'_>, observed: &str, signed: bool, now: Now) -> bool {
        let lan: Vec<String> = req
            .texts("lan_addrs")
            .into_iter()
            .filter(|a| !a.is_empty() && a.len() <= MAX_LAN_ADDR && a.parse::<SocketAddr>().is_ok())
            .take(MAX_LAN_ADDRS)
            .map(str::to_owned)
            .collect();
        let instance = Some(req.text("instance")).filter(|i| valid_instance(i));
        let mut superseded = None;
        let mut was = Standing::Live;
        let mut moved = false;
        self.update(id, |r| {
            was = r.standing;
            moved = r.endpoint != observed || r.lan_addrs != lan || r.relay_only != req.flag("relay_only");
            r.standing = Standing::Live;
            r.endpoint = observed.to_owned();
            r.lan_addrs = lan;
            r.relay_only = req.flag("relay_only");
            r.sig_verified |= signed;
            if r.owner.is_empty() {
                r.owner = req.text("owner").to_owned();
            }
            if !req.text("version").is_empty() {
                r.version = req.text("version").to_owned();
            }
            if let Some(new) = instance
                && r.instance.as_ref().is_none_or(|(old, _)| old != new)
            {
                r.instance = Some((new.to_owned(), now.unix()));
                superseded = Some(new.to_owned());
            }
        });
        if moved {
            self.outdate_place(id);
        }
        if let Some(by) = superseded {
            self.effects.push(Effect::Superseded { node: id, by });
        }
        if was != Standing::Live {
            self.live += 1;
        }
        was != Standing::Live
    }

    /// Marks a node as heard of now.
    fn touch(&mut self, id: NodeId, now: Now) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.seen = now.mono;
            node.seen_unix = now.unix();
            if node.aging.is_none() {
                node.aging = Some(now.mono);
                self.aging.insert((now.mono, id));
            }
        }
    }

    pub(super) fn heartbeat(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let id = req.node("node_id");
        let node = self.live(id)?;
        let key = node.record.key;
        s.heartbeats.retain(|(_, _, at)| now.mono.saturating_duration_since(*at) < HEARTBEAT_CACHE);
        if !s.heartbeats.iter().any(|(n, k, _)| *n == id && *k == key) {
            self.authenticate(s, req)?;
            if s.heartbeats.len() >= MAX_HEARTBEATS {
                s.heartbeats.remove(0);
            }
            s.heartbeats.push((id, key, now.mono));
        }
        let record = &node.record;
        if let Some((current, since)) = &record.instance
            && valid_instance(req.text("instance"))
            && req.text("instance") != current
        {
            return Err(Refused(superseded_text(id, *since)));
        }
        let expires = record.expires_at;
        if expires != 0 && expires <= now.unix() {
            return Err(Refused(format!("node {id}: key expired at {}", rfc3339(expires))));
        }
        self.touch(id, now);
        let mut answer = json!({"type": "heartbeat_ok", "time": now.unix()});
        if expires != 0 && expires - now.unix() <= EXPIRY_WARNING {
            answer["key_expiry_warning"] = json!(true);
        }
        // Only our own nodes name their instance.
        if valid_instance(req.text("instance")) && self.wants_record(id) {
            answer["want_record"] = json!(true);
        }
        Ok(answer)
    }

    pub(super) fn deregister(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let ok = Ok(json!({"type": "deregister_ok"}));
        if self.live(req.node("node_id")).is_err() {
            return ok;
        }
        let id = self.authenticate_or_admin(s, req)?;
        self.drop_memberships(id);
        self.drop_name(id);
        self.update(id, |r| {
            r.standing = Standing::Deregistered;
            r.public = false;
            r.hidden = false;
            r.tags.clear();
            r.endpoint.clear();
            r.lan_addrs.clear();
            r.instance = None;
        });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.signed = None;
        }
        self.live = self.live.saturating_sub(1);
        ok
    }

    pub(super) fn rotate_key(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let id = req.node("node_id");
        let new_text = req.text("new_public_key");
        if new_text.is_empty() {
            return Err("rotate_key requires new_public_key".into());
        }
        let new = public_key("new_public_key", new_text)?;
        let node = self.live(id)?;
        let sig = signature(req, "rotate_key requires a valid signature")?;
        let text = challenge::rotate(id, new_text);
        if node.record.key == new
            && node.record.previous_key.is_some_and(|old| crypto::verify(&old, text.as_bytes(), &sig))
        {
            // The same request again: its first answer was lost.
            return Ok(rotated("rotate_key_ok", id, new_text));
        }
        let key = node.record.key;
        let fresh = s.fresh.is_some_and(|(signer, _)| signer == key);
        if !fresh {
            self.plain_signature(id, now.mono)?;
        }
        if !fresh && !s.verify(&key, &text, &sig) {
            if crypto::verify(&key, challenge::own("rotate", id).as_bytes(), &sig) {
                return Err("signature verification failed: it must cover the new key \
                            (rotate:<node_id>:<new_public_key>); update the client"
                    .into());
            }
            return Err("signature verification failed".into());
        }
        self.replace_key(id, new, now)?;
        self.touch(id, now);
        s.prove(id, new);
        Ok(rotated("rotate_key_ok", id, new_text))
    }

    /// Binds an id to a new key.
    pub(super) fn replace_key(&mut self, id: NodeId, new: Key, now: Now) -> Result<(), Refused> {
        if self.by_key.contains_key(&new) {
            return Err("invalid new_public_key: already bound to a node".into());
        }
        let Some(old) = self.nodes.get(&id).map(|n| n.record.key) else { return Err(no_node(id)) };
        self.by_key.remove(&old);
        self.by_key.insert(new, id);
        self.update(id, |r| {
            r.previous_key = Some(old);
            r.key = new;
            r.rotated_at = now.unix();
            r.rotate_count = r.rotate_count.saturating_add(1);
            // The request was signed, so unsigned registrations of the new key stay out as well.
            r.sig_verified = true;
        });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.signed = None;
        }
        Ok(())
    }

    pub(super) fn set_key_expiry(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let id = self.authenticate_or_admin(s, req)?;
        let enterprise = self.nodes.get(&id).is_some_and(|n| {
            n.networks.iter().any(|net| self.networks.get(net).is_some_and(|net| net.record.enterprise))
        });
        if !enterprise {
            return Err("enterprise feature: key expiry requires enterprise network membership".into());
        }
        let text = req.text("expires_at");
        if text.is_empty() || text == "never" {
            self.update(id, |r| r.expires_at = 0);
            return Ok(json!({"type": "set_key_expiry_ok", "node_id": id}));
        }
        let at = parse_rfc3339(text)
            .ok_or_else(|| Refused(format!("invalid expires_at: {text:?} is no RFC 3339 time")))?;
        if at <= now.unix() {
            return Err("invalid expires_at: expires_at must be in the future".into());
        }
        if at > now.unix() + MAX_EXPIRY {
            return Err("invalid expires_at: cannot exceed 10 years".into());
        }
        self.update(id, |r| r.expires_at = at);
        Ok(json!({"type": "set_key_expiry_ok", "node_id": id, "expires_at": rfc3339(at)}))
    }

    pub(super) fn get_key_info(&mut self, s: &Session, req: Request<'_>, now: Now) -> Answer {
        self.limit_lookups(s, now)?;
        let id = req.node("node_id");
        let r = &self.live(id)?.record;
        let mut answer = json!({
            "type": "get_key_info_ok",
            "node_id": id,
            "created_at": rfc3339(r.created_at),
            "rotate_count": r.rotate_count,
            "key_age_days": key_age_days(r, now),
        });
        if r.rotated_at != 0 {
            answer["rotated_at"] = json!(rfc3339(r.rotated_at));
        }
        if r.expires_at != 0 {
            answer["expires_at"] = json!(rfc3339(r.expires_at));
        }
        Ok(answer)
    }

    /// Takes nodes out of the directory that were not heard of for the stale threshold. Returns how many.
    pub fn reap(&mut self, now: Now) -> usize {
        let mut reaped = 0;
        let stale = self.settings.stale_after;
        for _ in 0..REAP_BATCH {
            let Some(&(entered, id)) = self.aging.first() else { break };
            if now.mono.saturating_duration_since(entered) < stale {
                break;
            }
            self.aging.pop_first();
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.aging = None;
            if !node.live() {
                continue;
            }
            if now.mono.saturating_duration_since(node.seen) < stale {
                // Heard of since: it enters again where it belongs now.
                node.aging = Some(node.seen);
                self.aging.insert((node.seen, id));
                continue;
            }
            self.update(id, |r| r.standing = Standing::Reaped(now.unix()));
            self.live = self.live.saturating_sub(1);
            reaped += 1;
        }
        reaped
    }
}

/// Whole days since the key was made or rotated.
pub(super) fn key_age_days(r: &NodeRecord, now: Now) -> u64 {
    now.unix().saturating_sub(r.rotated_at.max(r.created_at)) / 86_400
}

/// 16 hex digits, drawn once per process.
pub(super) fn valid_instance(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a process hears whose identity another one took over.
pub(super) fn superseded_text(id: NodeId, since: u64) -> String {
    format!("superseded: node {id} is registered by another process since {}", rfc3339(since))
}

/// The answer to a change of key.
pub(super) fn rotated(kind: &str, id: NodeId, key: &str) -> serde_json::Value {
    json!({"type": kind, "node_id": id, "address": Addr::backbone(id).to_string(), "public_key": key})
}
