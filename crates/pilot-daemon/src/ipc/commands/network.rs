//! Network commands (spec 07 section 13): signed and passed through to the registry.

use super::{labelled, with_admin_token};
use crate::ipc::hub::Hub;
use pilot_ipc::request::Network;
use pilot_proto::registry::challenge;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn network(hub: &Arc<Hub>, request: Network) -> Result<Value, String> {
    let node = hub.node.node_id();
    let identity = hub.node.identity();
    let sign = |text: String| identity.sign_text(&text);
    let pair = |verb: &str, network: u16| sign(challenge::pair(verb, node, network.into()));
    let mut membership_changes = false;
    let (label, request) = match request {
        Network::List => ("network list", json!({"type": "list_networks"})),
        Network::Join { network, token } => {
            membership_changes = true;
            let request = json!({
                "type": "join_network",
                "node_id": node,
                "network_id": network,
                "token": String::from_utf8_lossy(&token),
                "inviter_id": 0,
                "signature": pair("join_network", network),
            });
            ("network join", with_admin_token(hub, request))
        }
        Network::Leave { network } => {
            membership_changes = true;
            let request = json!({
                "type": "leave_network",
                "node_id": node,
                "network_id": network,
                "signature": pair("leave_network", network),
            });
            ("network leave", request)
        }
        Network::Members { network } => {
            ("network members", with_admin_token(hub, json!({"type": "list_nodes", "network_id": network})))
        }
        Network::Invite { network, node: target } => {
            let request = json!({
                "type": "invite_to_network",
                "network_id": network,
                "inviter_id": node,
                "target_node_id": target,
                "signature": sign(challenge::invite(node, network, target)),
            });
            ("network invite", with_admin_token(hub, request))
        }
        Network::PollInvites => {
            let signature = sign(challenge::own("poll_invites", node));
            let request = json!({"type": "poll_invites", "node_id": node, "signature": signature});
            ("network poll-invites", request)
        }
        Network::RespondInvite { network, accept } => {
            membership_changes = accept;
            let request = json!({
                "type": "respond_invite",
                "node_id": node,
                "network_id": network,
                "accept": accept,
                "signature": pair("respond_invite", network),
            });
            ("network respond-invite", request)
        }
    };
    let answer = hub.node.registry_request(request).await.map_err(labelled(label))?;
    if membership_changes {
        hub.refresh_networks().await;
    }
    Ok(answer)
}
