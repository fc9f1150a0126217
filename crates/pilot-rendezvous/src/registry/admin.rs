//! Beacons, and the requests this registry does not do (spec 05 sections 5.7 to 5.9).

use super::request::{Answer, Refused, Request};
use super::{Now, Registry, Session};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// A beacon stays listed this long after it announced itself.
const BEACON_TTL: Duration = Duration::from_secs(60);
/// Beacons listed.
const MAX_BEACONS: usize = 1024;
/// Longest announced address, bytes.
const MAX_BEACON_ADDR: usize = 261;

impl Registry {
    pub(super) fn beacon_list(&mut self, now: Now) -> Answer {
        self.beacons.retain(|_, (_, at)| now.mono.saturating_duration_since(*at) <= BEACON_TTL);
        let beacons: Vec<Value> =
            self.beacons.iter().map(|(id, (addr, _))| json!({"id": id, "addr": addr})).collect();
        // Our own: who asks need not be registered to learn where it is (docs/extensions.md).
        let (own, ports) = (self.settings.beacon.port(), self.beacon_ports());
        let mut answer =
            json!({"type": "beacon_list_ok", "beacons": beacons, "beacon_port": own, "beacon_ports": ports});
        self.tell_door(&mut answer);
        Ok(answer)
    }

    /// Says where nodes without UDP come in (docs/extensions.md, "compat").
    pub(super) fn tell_door(&self, answer: &mut Value) {
        let Some(door) = &self.door else { return };
        answer["compat"] = json!({"port": door.port, "tls": door.fingerprint.is_some()});
        let more = [("tls_fingerprint", &door.fingerprint), ("url", &door.url)];
        for (key, value) in more.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            answer["compat"][key] = json!(value);
        }
    }

    /// Nodes send their traffic where this list says, so not everybody may add to it.
    pub(super) fn beacon_register(&mut self, s: &Session, req: Request<'_>, now: Now) -> Answer {
        if !s.peer.ip().to_canonical().is_loopback() && !self.is_admin(req) {
            return Err("beacon_register requires admin_token (or a loopback connection)".into());
        }
        let id = req.node("beacon_id");
        if id == 0 {
            return Err("invalid beacon_register: beacon_id required".into());
        }
        let addr = req.text("addr");
        if addr.is_empty() {
            return Err("invalid beacon_register: addr required".into());
        }
        let host_port = addr.rsplit_once(':').filter(|(host, port)| {
            !host.is_empty()
                && port.parse::<u16>().is_ok_and(|p| p != 0)
                && (!host.contains(':') || addr.parse::<SocketAddr>().is_ok())
                && !host.chars().any(|c| c.is_control() || c.is_whitespace())
        });
        if host_port.is_none() || addr.len() > MAX_BEACON_ADDR {
            return Err("beacon addr invalid: must be host:port".into());
        }
        self.beacons.retain(|_, (_, at)| now.mono.saturating_duration_since(*at) <= BEACON_TTL);
        if self.beacons.len() >= MAX_BEACONS && !self.beacons.contains_key(&id) {
            return Err("too many beacons".into());
        }
        self.beacons.insert(id, (addr.to_owned(), now.mono));
        Ok(json!({"type": "beacon_register_ok", "beacon_id": id}))
    }
}

/// The answer to a request without a handler.
pub(super) fn unanswered(kind: &str) -> Refused {
    match kind {
        "get_audit_log"
        | "set_webhook"
        | "get_webhook"
        | "get_webhook_dlq"
        | "set_identity_webhook"
        | "set_external_id"
        | "get_identity"
        | "set_audit_export"
        | "get_audit_export"
        | "set_idp_config"
        | "get_idp_config"
        | "validate_token"
        | "provision_network"
        | "get_provision_status"
        | "directory_sync"
        | "directory_status"
        | "submit_badge"
        | "enroll_recovery"
        | "subscribe_replication" => {
            Refused(format!("{kind} is not supported by this registry, it cannot be used here"))
        }
        "recover_identity" => {
            "recover_identity is not supported by this registry; enroll a recovery key instead \
             (enroll_recovery_key, recover_key)"
                .into()
        }
        "" => "invalid request: type missing".into(),
        other => {
            let shown: String = other.chars().take(64).collect();
            Refused(format!("unknown message type: {shown:?}"))
        }
    }
}
