//! Port policy, expression policy and managed-network rules: stored and handed out (spec 05 sections 5.5 and 5.6).

use super::model::{NetworkId, Role};
use super::request::{Answer, Refused, Request, no_network};
use super::{Registry, Session};
use serde_json::{Value, json};

/// Longest policy description, bytes.
const MAX_DESCRIPTION: usize = 256;
/// Ports in a policy.
const MAX_PORTS: usize = 100;
/// Highest configurable member limit.
const MAX_MAX_MEMBERS: u64 = 10_000;
/// Longest expression policy or rules text, bytes.
const MAX_POLICY: usize = 64 * 1024;

/// Seconds of a duration text such as `1h30m` or `1.5h`. `None` if malformed or negative.
fn duration_secs(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// An object that may be sent as an object or as JSON text. `None`: absent, empty or null.
fn object(value: &Value, what: &str) -> Result<Option<Value>, Refused> {
    let parsed = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.len() > MAX_POLICY => {
            return Err(Refused(format!("{what}: too long (max {MAX_POLICY} bytes)")));
        }
        Value::String(text) if text.trim().is_empty() || text.trim() == "null" => return Ok(None),
        Value::String(text) => {
            serde_json::from_str(text).map_err(|e| Refused(format!("{what}: invalid JSON: {e}")))?
        }
        other if other.to_string().len() > MAX_POLICY => {
            return Err(Refused(format!("{what}: too long (max {MAX_POLICY} bytes)")));
        }
        other => other.clone(),
    };
    if parsed.is_object() {
        Ok(Some(parsed))
    } else {
        Err(Refused(format!("{what}: invalid JSON: not an object")))
    }
}

/// Checks the rules of a managed network.
pub(super) fn rules(value: Option<&Value>) -> Result<Option<Value>, Refused> {
    let Some(rules) = value.map(|v| object(v, "rules")).transpose()?.flatten() else { return Ok(None) };
    let count = |field: &str| rules[field].as_u64();
    let text = |field: &str| rules[field].as_str().unwrap_or("");
    let links = count("links").filter(|n| *n >= 1);
    let problem = if links.is_none() {
        "links must be at least 1, invalid"
    } else if duration_secs(text("cycle")).is_none_or(|s| s < 60.0) {
        "cycle must be a duration of at least 1m, invalid"
    } else if !rules["prune"].is_null() && count("prune").is_none_or(|n| Some(n) > links) {
        "prune must be between 0 and links, invalid"
    } else if !rules["fill"].is_null() && count("fill").is_none_or(|n| Some(n) > links) {
        "fill must be between 0 and links, invalid"
    } else if !matches!(text("prune_by"), "" | "score" | "age" | "activity") {
        "prune_by must be score, age or activity, invalid"
    } else if !matches!(text("fill_how"), "" | "random") {
        "fill_how must be random, invalid"
    } else if !rules["grace"].is_null() && duration_secs(text("grace")).is_none() {
        "grace must be a duration, invalid"
    } else {
        return Ok(Some(rules));
    };
    Err(Refused(format!("rules: {problem}")))
}

/// Checks an expression policy; `None` clears it.
pub(super) fn expr_policy(value: &Value) -> Result<Option<Value>, Refused> {
    let Some(policy) = object(value, "expr_policy")? else { return Ok(None) };
    let version = &policy["version"];
    if version.as_f64() != Some(1.0) {
        let shown = if version.is_null() { "0".to_owned() } else { version.to_string() };
        return Err(Refused(format!("invalid expr_policy: unsupported version {shown} (want 1)")));
    }
    if policy["rules"].is_null() {
        return Err("invalid expr_policy: expr_policy: at least one rule is required".into());
    }
    Ok(Some(policy))
}

impl Registry {
    /// For the backbone a policy of zeros: an error would delay every start of a 1.18.0 daemon.
    pub(super) fn get_network_policy(&mut self, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        if id == 0 {
            return Ok(json!({
                "type": "get_network_policy_ok", "network_id": 0, "max_members": 0, "allowed_ports": [],
                "description": "",
            }));
        }
        self.policy(id, "get_network_policy_ok")
    }

    fn policy(&self, id: NetworkId, kind: &str) -> Answer {
        let r = &self.networks.get(&id).ok_or_else(|| no_network(id))?.record;
        Ok(json!({
            "type": kind, "network_id": id, "max_members": r.max_members, "allowed_ports": r.allowed_ports,
            "description": r.description,
        }))
    }

    pub(super) fn set_network_policy(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        let network = self.network(id, "set a policy on")?;
        self.role(s, req, id, &[Role::Owner, Role::Admin])?;
        if !network.record.enterprise {
            return Err("enterprise feature: requires enterprise network".into());
        }
        let mut max_members = None;
        if let Some(value) = req.value("max_members") {
            let n = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=MAX_MAX_MEMBERS as f64).contains(n));
            let n = n.ok_or_else(|| Refused::from("invalid max_members (must be integer 0-10000)"))? as u32;
            let present = network.members.len();
            if n != 0 && (n as usize) < present {
                return Err(Refused(format!(
                    "cannot set max_members to {n}: network already has {present} members"
                )));
            }
            max_members = Some(n);
        }
        let mut ports = None;
        if let Some(value) = req.value("allowed_ports").filter(|v| !v.is_null()) {
            let invalid = || Refused::from("invalid port number in allowed_ports (must be integer 1-65535)");
            let given = value.as_array().ok_or_else(invalid)?;
            if given.len() > MAX_PORTS {
                return Err("too many allowed_ports (max 100)".into());
            }
            let mut list: Vec<u16> = Vec::new();
            for port in given {
                let port = port.as_f64().filter(|p| p.fract() == 0.0 && (1.0..=65535.0).contains(p));
                let port = port.ok_or_else(invalid)? as u16;
                if !list.contains(&port) {
                    list.push(port);
                }
            }
            ports = Some(list);
        }
        let description = req.has("description").then(|| req.text("description"));
        if description.is_some_and(|d| d.len() > MAX_DESCRIPTION) {
            return Err("policy description too long (max 256 chars)".into());
        }
        self.update_network(id, |r| {
            r.max_members = max_members.unwrap_or(r.max_members);
            if let Some(ports) = ports {
                r.allowed_ports = ports;
            }
            if let Some(description) = description {
                r.description = description.to_owned();
            }
        });
        self.policy(id, "set_network_policy_ok")
    }

    pub(super) fn get_expr_policy(&mut self, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        let r = &self.networks.get(&id).ok_or_else(|| no_network(id))?.record;
        let mut answer = json!({"type": "get_expr_policy_ok", "network_id": id});
        if let Some(policy) = &r.expr_policy {
            answer["expr_policy"] = policy.clone();
        }
        Ok(answer)
    }

    pub(super) fn set_expr_policy(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = req.network("network_id");
        self.network(id, "set a policy on")?;
        self.role(s, req, id, &[Role::Owner, Role::Admin])?;
        let value = req.value("expr_policy");
        let value = value.ok_or_else(|| Refused::from("invalid request: expr_policy field is required"))?;
        let policy = expr_policy(value)?;
        let mut answer = json!({"type": "set_expr_policy_ok", "network_id": id});
        if policy.is_none() {
            answer["cleared"] = json!(true);
        }
        self.update_network(id, |r| r.expr_policy = policy);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_their_unit_says() {
        assert_eq!(duration_secs("24h"), Some(86_400.0));
        assert_eq!(duration_secs("1h30m"), Some(5_400.0));
        assert_eq!(duration_secs("1.5m"), Some(90.0));
        for bad in ["", "5", "h", "1x", "-1h", "1..2h"] {
            assert_eq!(duration_secs(bad), None, "{bad}");
        }
    }

    #[test]
    fn rules_are_taken_as_text_or_object_and_checked() {
        let good = json!({"links": 3, "cycle": "24h", "prune": 1, "fill": 3, "prune_by": "age", "fill_how": "random"});
        assert_eq!(rules(Some(&good)), Ok(Some(good.clone())));
        assert_eq!(rules(Some(&json!(good.to_string()))), Ok(Some(good)));
        assert_eq!(rules(Some(&json!(""))), Ok(None));
        for bad in [
            json!({"links": 0, "cycle": "24h"}),
            json!({"links": 1, "cycle": "59s"}),
            json!({"links": 1, "cycle": "1h", "prune": 2}),
            json!("[1]"),
            json!({"links": 1, "cycle": "1h", "fill": -1}),
        ] {
            assert!(rules(Some(&bad)).unwrap_err().0.starts_with("rules: "), "{bad}");
        }
    }
}
