//! SignEnvelope and VerifyEnvelope (spec 07 section 16).

use crate::envelope::{self, Envelope};
use crate::ipc::hub::Hub;
use crate::ipc::json::object;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_proto::crypto::{sha256, unbase64, verify as verify_signature};
use serde::Deserialize;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Difference between a signer's clock and ours that is tolerated unless the caller says otherwise, seconds.
const DEFAULT_SKEW: u64 = 300;
/// A node heard of by the registry this recently is online, seconds.
const ONLINE: u64 = 180;
/// Longest wait for the registry when a key or the standing is asked for.
const LOOKUP_MAX: Duration = Duration::from_secs(8);

pub(super) fn sign(hub: &Hub, body: &[u8]) -> Result<Value, String> {
    #[derive(Deserialize)]
    struct Body {
        audience: Option<String>,
        body_hash: Option<String>,
        body_b64: Option<String>,
        nonce: Option<String>,
    }
    let labelled = |e: String| format!("sign_envelope: {e}");
    let body: Body = serde_json::from_slice(body).map_err(|e| labelled(format!("bad payload: {e}")))?;
    let audience =
        body.audience.filter(|a| !a.is_empty()).ok_or_else(|| labelled("audience required".into()))?;
    let hash = match (body.body_hash.filter(|h| !h.is_empty()), body.body_b64.filter(|b| !b.is_empty())) {
        (Some(_), Some(_)) => {
            return Err(labelled("body_hash and body_b64 are mutually exclusive".into()));
        }
        (Some(hash), None) => hash,
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text).map_err(|e| labelled(format!("body_b64 not base64: {e}")))?;
            envelope::hex(&sha256(&bytes))
        }
        (None, None) => return Err(labelled("body_hash or body_b64 required".into())),
    };
    let addr = hub.node.address();
    if addr.is_zero() {
        return Err(labelled("daemon not registered (no address)".into()));
    }
    let nonce = match body.nonce.filter(|n| !n.is_empty()) {
        Some(nonce) => nonce,
        None => {
            let mut random = [0; 8];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| labelled("no random numbers".into()))?;
            envelope::hex(&random)
        }
    };
    // Only text composed here, with our address and time, is ever signed.
    let envelope =
        Envelope::new(addr, unix_now() as i64, &nonce, &hash, &audience).map_err(labelled)?.to_string();
    Ok(object([
        ("address", addr.to_string().into()),
        ("signature", hub.node.identity().sign_text(&envelope).into()),
        ("envelope", envelope.into()),
        ("type", "sign_envelope_ok".into()),
    ]))
}

#[derive(Deserialize)]
struct VerifyBody {
    envelope: Option<String>,
    signature: Option<String>,
    max_skew_secs: Option<i64>,
    check_standing: Option<bool>,
}

pub(super) async fn verify(hub: &Hub, body: &[u8]) -> Result<Value, String> {
    let body: VerifyBody =
        serde_json::from_slice(body).map_err(|e| format!("verify_envelope: bad payload: {e}"))?;
    let (Some(text), Some(signature)) = (
        body.envelope.as_deref().filter(|t| !t.is_empty()),
        body.signature.as_deref().filter(|t| !t.is_empty()),
    ) else {
        return Err("verify_envelope: envelope and signature required".into());
    };
    Ok(check(hub, text, signature, &body).await.unwrap_or_else(|reason| {
        object([("reason", reason.into()), ("type", "verify_envelope_ok".into()), ("valid", false.into())])
    }))
}

async fn check(hub: &Hub, text: &str, signature: &str, body: &VerifyBody) -> Result<Value, String> {
    let envelope = Envelope::parse(text)?;
    let skew = match body.max_skew_secs {
        Some(secs @ 1..) => secs.unsigned_abs(),
        _ => DEFAULT_SKEW,
    };
    if envelope.unix_secs.abs_diff(unix_now() as i64) > skew {
        return Err(format!("reqsig: envelope timestamp outside ±{} window", envelope::duration_text(skew)));
    }
    let node = envelope.addr.node;
    let standing_wanted = body.check_standing.unwrap_or(false);
    let cached = known_key(hub, node).await;
    let record = if cached.is_none() || standing_wanted {
        match tokio::time::timeout(LOOKUP_MAX, hub.node.lookup(node)).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err("registry: call timed out, connection likely half-open".to_owned()),
        }
    } else {
        Err(String::new())
    };
    let (key, via) = match cached {
        Some(key) => (key, "cache"),
        None => {
            let unavailable = |why: &str| format!("public key for node {node} unavailable: {why}");
            let record = record.as_ref().map_err(|e| unavailable(e))?;
            let key = record.get("public_key").and_then(|k| k.as_str()).and_then(unbase64::<32>);
            (key.ok_or_else(|| unavailable("the registry has none"))?, "registry")
        }
    };
    let signature = STANDARD.decode(signature).map_err(|e| format!("reqsig: signature not base64: {e}"))?;
    if !verify_signature(&key, text.as_bytes(), &signature) {
        return Err("reqsig: signature verification failed".into());
    }
    let mut reply = object([
        ("address", envelope.addr.to_string().into()),
        ("node_id", node.into()),
        ("trusted", hub.node.is_trusted(node).into()),
        ("type", "verify_envelope_ok".into()),
        ("valid", true.into()),
        ("verified_via", via.into()),
    ]);
    if standing_wanted && let Ok(record) = &record {
        add_standing(&mut reply, record, envelope.addr.network);
    }
    Ok(reply)
}

/// The key of ourselves or of a trusted peer, which needs no registry.
async fn known_key(hub: &Hub, node: u32) -> Option<[u8; 32]> {
    if node == hub.node.node_id() {
        return Some(*hub.node.identity().public_key());
    }
    let trusted = hub.node.trusted().await;
    trusted.iter().find(|p| p.node_id == node).and_then(|p| unbase64(&p.public_key))
}

/// What the registry says about the signer, as far as it does.
fn add_standing(reply: &mut Value, record: &Value, network: u16) {
    if let Some(seen) = record.get("last_seen_unix").and_then(|s| s.as_u64()) {
        reply["last_seen_unix"] = seen.into();
        reply["online"] = (unix_now().abs_diff(seen) <= ONLINE).into();
    }
    if let Some(generation) = record.get("key_generation") {
        reply["key_generation"] = generation.clone();
    }
    if let Some(networks) = record.get("networks").and_then(|n| n.as_array()) {
        reply["network_member"] = networks.iter().any(|n| n.as_u64() == Some(network.into())).into();
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
