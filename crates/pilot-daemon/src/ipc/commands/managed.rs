//! Managed networks, policy, member tags (spec 07 section 14). This daemon runs no policy engine and says so.

use super::{labelled, with_admin_token};
use crate::ipc::hub::Hub;
use crate::ipc::json::object;
use pilot_ipc::request::Managed;
use pilot_proto::crypto::constant_time_eq;
use serde_json::{Value, json};

pub(super) async fn managed(hub: &Hub, request: Managed) -> Result<Value, String> {
    match request {
        Managed::Status { .. } | Managed::Cycle { .. } => Err("managed: no active managed networks".into()),
        Managed::Reconcile { .. } => Err("managed: no active policy runner for network".into()),
        Managed::PolicyGet { network } => Ok(object([
            ("engine", "none".into()),
            ("network_id", network.into()),
            ("type", "managed_policy_ok".into()),
        ])),
        Managed::PolicySet { token, policy, .. } => {
            if let Some(own) = &hub.config.admin_token
                && !constant_time_eq(own.expose().as_bytes(), &token)
            {
                return Err("managed policy set: invalid admin token".into());
            }
            if policy.is_empty() {
                return Err("managed policy set: missing policy JSON".into());
            }
            serde_json::from_slice::<Value>(&policy)
                .map_err(|e| format!("managed policy set: parse policy: policy: invalid JSON: {e}"))?;
            Err("managed policy set: this daemon runs no policy engine".into())
        }
        Managed::MemberTagsGet { network, node } => {
            let request = json!({"type": "get_member_tags", "network_id": network, "target_node_id": node});
            hub.node.registry_request(request).await.map_err(labelled("member-tags get"))
        }
        Managed::MemberTagsSet { network, node, tags } => {
            let tags: Option<Vec<String>> = serde_json::from_slice(&tags)
                .map_err(|e| format!("member-tags set: invalid tags JSON: {e}"))?;
            let request = json!({
                "type": "set_member_tags",
                "network_id": network,
                "node_id": hub.node.node_id(),
                "target_node_id": node,
                "tags": tags.unwrap_or_default(),
            });
            hub.node
                .registry_request(with_admin_token(hub, request))
                .await
                .map_err(labelled("member-tags set"))
        }
    }
}
