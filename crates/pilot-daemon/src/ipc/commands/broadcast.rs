//! Datagrams to every member of a network (spec 07 section 9.3).

use super::with_admin_token;
use crate::ipc::hub::Hub;
use bytes::Bytes;
use pilot_proto::crypto::constant_time_eq;
use pilot_proto::{Addr, NodeId};
use serde_json::json;

pub(super) async fn broadcast(
    hub: &Hub,
    network: u16,
    port: u16,
    token: &[u8],
    data: Bytes,
) -> Result<(), String> {
    let Some(own_token) = &hub.config.admin_token else {
        return Err("broadcast: broadcast denied: daemon has no admin token configured".into());
    };
    if !constant_time_eq(own_token.expose().as_bytes(), token) {
        return Err("broadcast: broadcast denied: invalid admin token".into());
    }
    if network == 0 {
        return Err("broadcast: broadcast not permitted on backbone network".into());
    }
    let request = with_admin_token(hub, json!({"type": "list_nodes", "network_id": network}));
    let answer = hub
        .node
        .registry_request(request)
        .await
        .map_err(|e| format!("broadcast: list nodes for broadcast: {e}"))?;
    let listed = answer.get("nodes").and_then(|n| n.as_array()).map(Vec::as_slice).unwrap_or_default();
    let members: Vec<NodeId> = listed
        .iter()
        .filter_map(|m| m.get("node_id").and_then(|n| n.as_u64()).and_then(|n| NodeId::try_from(n).ok()))
        .collect();
    let own = hub.node.node_id();
    if !members.contains(&own) {
        return Err(format!("broadcast: broadcast denied: node {own} is not a member of network {network}"));
    }
    for node in members.into_iter().filter(|node| *node != own) {
        // A member that cannot be reached does not keep the others from hearing.
        if let Err(error) = hub.node.offer_datagram(Addr { network, node }, port, data.clone()).await {
            tracing::debug!(node, %error, "broadcast not sent to a member");
        }
    }
    Ok(())
}
