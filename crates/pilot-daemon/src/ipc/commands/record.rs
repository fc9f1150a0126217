//! The node's record at the registry (spec 07 section 12).

use super::labelled;
use crate::ipc::hub::Hub;
use pilot_proto::registry::challenge;
use serde::Deserialize;
use serde_json::{Value, json};

/// Tags a node may have: the registry's limit. (The reference daemon stops at 3.)
const MAX_TAGS: usize = 10;

pub(super) async fn resolve_hostname(hub: &Hub, name: &str) -> Result<Value, String> {
    hub.node.resolve_hostname(name).await.map_err(labelled("resolve_hostname"))
}

pub(super) async fn set_hostname(hub: &Hub, name: &str) -> Result<Value, String> {
    hub.node.set_hostname(name).await.map_err(labelled("set_hostname"))
}

pub(super) async fn set_visibility(hub: &Hub, public: bool) -> Result<Value, String> {
    hub.node.set_public(public).await.map_err(labelled("set_visibility"))
}

pub(super) async fn set_hidden(hub: &Hub, hidden: bool) -> Result<Value, String> {
    hub.node.set_hidden(hidden).await.map_err(labelled("set_hidden"))
}

pub(super) async fn deregister(hub: &Hub) -> Result<Value, String> {
    hub.node.deregister().await.map_err(labelled("deregister"))
}

pub(super) async fn set_tags(hub: &Hub, body: &[u8]) -> Result<Value, String> {
    let tags: Option<Vec<String>> =
        serde_json::from_slice(body).map_err(|e| format!("set_tags: invalid JSON: {e}"))?;
    let tags = tags.unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(format!("set_tags: maximum {MAX_TAGS} tags allowed"));
    }
    hub.node.set_tags(&tags).await.map_err(labelled("set_tags"))
}

pub(super) async fn rotate_key(hub: &Hub) -> Result<Value, String> {
    hub.node.rotate_key().await.map_err(labelled("rotate_key: registry"))
}

pub(super) async fn submit_badge(hub: &Hub, body: &[u8]) -> Result<Value, String> {
    #[derive(Deserialize)]
    struct Badge {
        badge: Option<String>,
        badge_sig: Option<String>,
    }
    let body: Badge = serde_json::from_slice(body).map_err(|e| format!("submit_badge: bad payload: {e}"))?;
    let (Some(badge), Some(badge_sig)) = (filled(body.badge), filled(body.badge_sig)) else {
        return Err("submit_badge: badge and badge_sig required".into());
    };
    let node = hub.node.node_id();
    let signature =
        hub.node.identity().sign_text(&format!("{}:{badge}", challenge::own("submit_badge", node)));
    let request = json!({
        "type": "submit_badge",
        "node_id": node,
        "badge": badge,
        "badge_sig": badge_sig,
        "signature": signature,
    });
    hub.node.registry_request(request).await.map_err(labelled("submit_badge"))
}

pub(super) async fn enroll_recovery(hub: &Hub, body: &[u8]) -> Result<Value, String> {
    #[derive(Deserialize)]
    struct Enrollment {
        enrollment: Option<String>,
        enrollment_sig: Option<String>,
    }
    let body: Enrollment =
        serde_json::from_slice(body).map_err(|e| format!("enroll_recovery: bad payload: {e}"))?;
    let (Some(enrollment), Some(enrollment_sig)) = (filled(body.enrollment), filled(body.enrollment_sig))
    else {
        return Err("enroll_recovery: enrollment and enrollment_sig required".into());
    };
    let commitment = commitment(&enrollment).map_err(|e| format!("enroll_recovery: bad enrollment: {e}"))?;
    let node = hub.node.node_id();
    let text = format!("{}:{commitment}", challenge::own("enroll_recovery", node));
    let request = json!({
        "type": "enroll_recovery",
        "node_id": node,
        "enrollment": enrollment,
        "enrollment_sig": enrollment_sig,
        "signature": hub.node.identity().sign_text(&text),
    });
    hub.node.registry_request(request).await.map_err(labelled("enroll_recovery"))
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|t| !t.is_empty())
}

/// The commitment inside `pilotenroll:v1:<node_id>:<provider>:<commitment>:<issued_at>:<kid>`.
fn commitment(enrollment: &str) -> Result<&str, String> {
    let malformed = |why: String| format!("badgeverify: malformed badge: {why}");
    let fields: Vec<&str> = enrollment.split(':').collect();
    let [prefix, version, _, _, commitment, _, _] = fields[..] else {
        return Err(malformed(format!("enrollment wants 7 fields, got {}", fields.len())));
    };
    if (prefix, version) != ("pilotenroll", "v1") {
        return Err(malformed(format!("enrollment wants prefix pilotenroll:v1, got {prefix}:{version}")));
    }
    if fields.iter().any(|f| f.is_empty()) {
        return Err(malformed("enrollment has an empty field".into()));
    }
    Ok(commitment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commitment_is_the_fifth_of_seven_fields() {
        assert_eq!(commitment("pilotenroll:v1:4:github:c0ffee:1795217316:bdg-v1"), Ok("c0ffee"));
        assert_eq!(
            commitment("x").unwrap_err(),
            "badgeverify: malformed badge: enrollment wants 7 fields, got 1"
        );
        assert!(commitment("pilotbadge:v1:4:github:c0ffee:1:k").unwrap_err().contains("prefix"));
        assert!(commitment("pilotenroll:v1:4:github::1:k").unwrap_err().contains("empty field"));
    }
}
