//! How a node authenticates on the compat transport's WebSocket: three text messages of JSON (spec 04 section 17.2).

use super::addr::NodeId;
use crate::crypto::{Identity, unbase64, verify};
use serde_json::{Value, json};

/// The WebSocket's subprotocol.
pub const SUBPROTOCOL: &str = "pilot.v1";
/// Path of the endpoint.
pub const PATH: &str = "/v1/compat";
/// Longest message, bytes: what a beacon takes.
pub const MAX_MESSAGE: usize = 65_536;
/// Hexadecimal digits of a nonce.
const NONCE_LEN: usize = 64;

/// What is signed.
fn text(node: NodeId, ts: i64, nonce: &str) -> String {
    format!("compat_auth:{node}:{ts}:{nonce}")
}

/// The server's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// 64 hexadecimal digits.
    pub nonce: String,
    /// Unix seconds; 0 if the message has none.
    pub ts: i64,
}

impl Challenge {
    /// Of these random bytes.
    pub fn new(nonce: [u8; 32], ts: i64) -> Challenge {
        Challenge { nonce: nonce.iter().map(|b| format!("{b:02x}")).collect(), ts }
    }

    /// The message.
    pub fn to_text(&self) -> String {
        json!({"type": "auth_challenge", "nonce": self.nonce, "ts": self.ts}).to_string()
    }

    /// Reads the message; the error says what is wrong with it.
    pub fn parse(message: &[u8]) -> Result<Challenge, String> {
        let value = object(message, "auth_challenge")?;
        let nonce = value["nonce"].as_str().unwrap_or_default();
        if nonce.len() != NONCE_LEN || !nonce.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("the challenge's nonce is not 64 hexadecimal digits".into());
        }
        Ok(Challenge { nonce: nonce.to_owned(), ts: value["ts"].as_i64().unwrap_or(0) })
    }

    /// The answer of a node.
    pub fn answer(&self, identity: &Identity, node: NodeId) -> String {
        let signature = identity.sign_text(&text(node, self.ts, &self.nonce));
        json!({"type": "auth_reply", "node_id": node, "public_key": identity.public_key_base64(), "sig": signature})
            .to_string()
    }
}

/// A node's answer. Nothing is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who it says it is.
    pub node: NodeId,
    signature: [u8; 64],
}

impl Reply {
    /// Reads the message. Its public key is not read: the registry knows the right one.
    pub fn parse(message: &[u8]) -> Result<Reply, String> {
        let value = object(message, "auth_reply")?;
        let node = value["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok()).filter(|&id| id != 0);
        let signature = value["sig"].as_str().and_then(unbase64);
        match (node, signature) {
            (Some(node), Some(signature)) => Ok(Reply { node, signature }),
            (None, _) => Err("no node id".into()),
            (_, None) => Err("no signature".into()),
        }
    }

    /// Whether it answers this challenge with this key.
    pub fn verify(&self, challenge: &Challenge, key: &[u8; 32]) -> bool {
        verify(key, text(self.node, challenge.ts, &challenge.nonce).as_bytes(), &self.signature)
    }
}

/// The last message.
pub fn accepted() -> String {
    json!({"type": "auth_ok"}).to_string()
}

/// Whether this is it.
pub fn is_accepted(message: &[u8]) -> bool {
    object(message, "auth_ok").is_ok()
}

fn object(message: &[u8], kind: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(message).map_err(|e| format!("not JSON: {e}"))?;
    match value["type"] == kind {
        true => Ok(value),
        false => Err(format!("expected {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector() -> Value {
        let all: Value = serde_json::from_str(include_str!("../../tests/vectors/beacon.json")).unwrap();
        all["compat_auth"].clone()
    }

    #[test]
    fn the_captured_exchange_verifies() {
        let v = vector();
        let message = |name: &str| v[name].as_str().unwrap().as_bytes().to_vec();
        let challenge = Challenge::parse(&message("challenge")).unwrap();
        let reply = Reply::parse(&message("reply")).unwrap();
        assert_eq!(text(reply.node, challenge.ts, &challenge.nonce), v["signed"].as_str().unwrap());
        let said: Value = serde_json::from_slice(&message("reply")).unwrap();
        let key = unbase64(said["public_key"].as_str().unwrap()).unwrap();
        assert!(reply.verify(&challenge, &key));
        assert!(!reply.verify(&Challenge { ts: challenge.ts + 1, ..challenge }, &key));
        assert!(is_accepted(&message("ok")));
    }

    #[test]
    fn what_we_answer_we_accept_and_a_challenge_without_time_is_signed_with_zero() {
        let identity = Identity::from_seed([7; 32]).unwrap();
        let challenge = Challenge::new([9; 32], 0);
        let bare = format!(r#"{{"type":"auth_challenge","nonce":"{}"}}"#, challenge.nonce);
        assert_eq!(Challenge::parse(bare.as_bytes()), Ok(challenge.clone()));
        assert_eq!(Challenge::parse(challenge.to_text().as_bytes()), Ok(challenge.clone()));
        let reply = Reply::parse(challenge.answer(&identity, 5).as_bytes()).unwrap();
        assert!(reply.node == 5 && reply.verify(&challenge, identity.public_key()));
        assert!(is_accepted(accepted().as_bytes()));
    }

    #[test]
    fn malformed_messages_are_refused_with_their_cause() {
        assert!(Challenge::parse(b"{").unwrap_err().starts_with("not JSON"));
        assert_eq!(Challenge::parse(b"{}").unwrap_err(), "expected auth_challenge");
        assert!(
            Challenge::parse(br#"{"type":"auth_challenge","nonce":"ab"}"#).unwrap_err().contains("64 hex")
        );
        assert_eq!(Reply::parse(br#"{"type":"auth_reply","sig":""}"#).unwrap_err(), "no node id");
        assert_eq!(
            Reply::parse(br#"{"type":"auth_reply","node_id":1,"sig":"AA=="}"#).unwrap_err(),
            "no signature"
        );
        assert!(!is_accepted(b"{\"type\":\"auth_failed\"}"));
    }
}
