//! Handshake commands (spec 07 section 11).

use crate::ipc::hub::Hub;
use crate::ipc::json::{encode, fit, object};
use pilot::{ApproveOutcome, HandshakeSent, TrustWait};
use pilot_ipc::frame::MAX_JSON;
use pilot_ipc::request::Handshake;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for trust.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest time given to fetching relayed requests before the answer is taken from memory.
const POLL_MAX: Duration = Duration::from_secs(3);

pub(super) async fn handshake(hub: &Hub, request: Handshake) -> Result<Value, String> {
    let node = &hub.node;
    Ok(match request {
        Handshake::Send { node: peer, justification } => {
            let sent =
                node.handshake(peer, &justification).await.map_err(|e| format!("handshake request: {e}"))?;
            let status = match sent {
                // The reference says "sent" to a peer that is trusted already; `trusted` tells the difference.
                HandshakeSent::Sent | HandshakeSent::AlreadyTrusted => "sent",
                HandshakeSent::InFlight => "in_flight",
            };
            let mut reply = object([("node_id", peer.into()), ("status", status.into())]);
            if sent == HandshakeSent::AlreadyTrusted {
                reply["trusted"] = true.into();
            }
            reply
        }
        Handshake::Approve { node: peer } => {
            poll(hub).await;
            let outcome = node.approve(peer).await.map_err(|e| format!("handshake approve: {e}"))?;
            let mut reply = object([
                ("node_id", peer.into()),
                ("status", "approved".into()),
                ("pending", (outcome == ApproveOutcome::Approved).into()),
            ]);
            if outcome == ApproveOutcome::AlreadyTrusted {
                reply["trusted"] = true.into();
            }
            reply
        }
        Handshake::Reject { node: peer, reason } => {
            poll(hub).await;
            let pending = node.reject(peer, &reason).await.map_err(|e| format!("handshake reject: {e}"))?;
            object([("node_id", peer.into()), ("status", "rejected".into()), ("pending", pending.into())])
        }
        Handshake::Pending => {
            poll(hub).await;
            let pending: Vec<Value> = node
                .pending()
                .await
                .into_iter()
                .map(|p| {
                    json!({
                        "node_id": p.node_id,
                        "public_key": p.public_key,
                        "justification": p.justification,
                        "received_at": p.received_at_unix,
                    })
                })
                .collect();
            let (pending, cut) = fit(pending, MAX_JSON - 64);
            let mut reply = object([("pending", pending.into())]);
            if cut {
                reply["pending_truncated"] = true.into();
            }
            reply
        }
        Handshake::Trusted => {
            poll(hub).await;
            trusted(hub).await
        }
        Handshake::Revoke { node: peer } => {
            node.revoke(peer).await.map_err(|e| format!("handshake revoke: {e}"))?;
            object([("node_id", peer.into()), ("status", "revoked".into())])
        }
        Handshake::Wait { node: peer, timeout_ms } => {
            let limit = Duration::from_millis(timeout_ms.into()).min(WAIT_MAX);
            let outcome = node.wait_for_trust(peer, limit).await;
            let mut reply =
                object([("node_id", peer.into()), ("trusted", (outcome == TrustWait::Trusted).into())]);
            if let TrustWait::Rejected { reason } = outcome {
                reply["rejected"] = true.into();
                reply["reason"] = reason.into();
            }
            reply
        }
    })
}

/// Fetches relayed requests and answers, so that what follows sees fresh state.
async fn poll(hub: &Hub) {
    let _ = tokio::time::timeout(POLL_MAX, hub.node.poll_handshakes()).await;
}

/// The trusted peers; if they do not fit a frame, the newest.
async fn trusted(hub: &Hub) -> Value {
    let mut peers = hub.node.trusted().await;
    let entry = |p: &pilot::TrustedPeer| {
        json!({
            "node_id": p.node_id,
            "public_key": p.public_key,
            "approved_at": p.approved_at_unix,
            "mutual": p.mutual,
            "network": p.network,
        })
    };
    let reply = object([("trusted", peers.iter().map(entry).collect())]);
    if encode(&reply).len() <= MAX_JSON {
        return reply;
    }
    peers.sort_by_key(|p| std::cmp::Reverse(p.approved_at_unix));
    let (kept, _) = fit(peers.iter().map(entry).collect(), MAX_JSON - 64);
    object([("trusted", kept.into()), ("trusted_truncated", true.into())])
}
