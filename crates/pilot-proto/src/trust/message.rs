//! The direct handshake message: one JSON object on a stream to port 444 (spec 06 section 2.2).

use crate::NodeId;
use crate::crypto::{self, Identity};
use crate::registry::challenge;
use serde::{Deserialize, Serialize};

/// Largest message accepted, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Largest message sent, bytes: receivers of the reference parse the first segment alone, and a segment to an
/// unprobed path holds 1,152 bytes.
pub const MAX_SENT_MESSAGE: usize = 1152;
/// Longest justification kept or shown, bytes.
pub const MAX_JUSTIFICATION: usize = 1024;
/// Oldest message accepted, seconds.
pub const MAX_AGE_SECS: i64 = 300;
/// How far ahead of our clock a message may be, seconds.
pub const MAX_AHEAD_SECS: i64 = 30;
/// `justification` of an accept that asks for one in return ([`super`], "Mutual trust").
pub(super) const CONFIRM: &str = "confirm";

/// The four kinds of message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Asks for trust.
    Request,
    /// Grants it.
    Accept,
    /// Refuses it.
    Reject,
    /// Ends it.
    Revoke,
}

impl Kind {
    /// The value of `type`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Request => "handshake_request",
            Kind::Accept => "handshake_accept",
            Kind::Reject => "handshake_reject",
            Kind::Revoke => "handshake_revoke",
        }
    }

    fn from_name(name: &str) -> Option<Kind> {
        [Kind::Request, Kind::Accept, Kind::Reject, Kind::Revoke].into_iter().find(|kind| kind.name() == name)
    }
}

/// Why a message was not acted upon. The sender never learns it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are the beginning of a JSON object: more may follow on the stream.
    #[error("handshake message is incomplete")]
    Incomplete,
    /// Over [`MAX_MESSAGE`].
    #[error("handshake message of {0} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// Not a JSON object of the right shape.
    #[error("handshake message is not valid: {0}")]
    Malformed(String),
    /// Over five minutes old, or without a timestamp.
    #[error("handshake message too old")]
    TooOld,
    /// More than 30 s ahead of our clock.
    #[error("handshake message from future")]
    FromFuture,
    /// The same kind with the same signature came lately.
    #[error("handshake replay detected")]
    Replay,
    /// A request without `public_key`.
    #[error("handshake request without a public key")]
    NoKey,
    /// `public_key` without `signature`.
    #[error("handshake message without a signature")]
    NoSignature,
    /// The registry knows another key for the claimed sender.
    #[error("pubkey mismatch with registry")]
    KeyMismatch,
    /// `public_key` is not base64 of 32 bytes.
    #[error("handshake public key is not base64 of 32 bytes")]
    BadKey,
    /// `signature` is not base64 of 64 bytes, or does not verify.
    #[error("handshake signature does not verify")]
    BadSignature,
    /// An accept, reject or revoke came over another node's tunnel.
    #[error("handshake message of node {claimed} came from node {transport}")]
    WrongTransport {
        /// `node_id` of the message.
        claimed: NodeId,
        /// Source of the stream.
        transport: NodeId,
    },
    /// Neither key nor signature, but the registry knows a key of the sender.
    #[error("unsigned handshake message of a node that has a key")]
    Unsigned,
    /// The claimed sender is no possible peer: node 0, the broadcast node or this node.
    #[error("handshake message of impossible sender {0}")]
    ImpossibleSender(NodeId),
    /// A kind this version does not know.
    #[error("unknown handshake message type")]
    UnknownType,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    node_id: NodeId,
    public_key: String,
    justification: &'a str,
    signature: String,
    reason: &'a str,
    timestamp: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    #[serde(rename = "type")]
    kind: Option<String>,
    node_id: Option<NodeId>,
    public_key: Option<String>,
    justification: Option<String>,
    signature: Option<String>,
    reason: Option<String>,
    timestamp: Option<i64>,
}

/// A message that passed every check that needs no registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Kind.
    pub kind: Kind,
    /// Claimed sender.
    pub node: NodeId,
    /// Node the stream came from.
    pub transport: NodeId,
    /// Claimed key, whose signature verified. `None`: the message is unsigned.
    pub key: Option<[u8; 32]>,
    /// Cleaned (see [`clean`]).
    pub justification: String,
    /// Cleaned.
    pub reason: String,
    pub(super) replay_key: [u8; 32],
}

/// Builds a message. `justification` is shortened so that the message fits one segment.
pub fn encode(
    identity: &Identity,
    own: NodeId,
    peer: NodeId,
    kind: Kind,
    justification: &str,
    reason: &str,
    now_unix: u64,
) -> Vec<u8> {
    let signature = identity.sign_text(&challenge::pair("handshake", own, peer));
    let mut message = Outgoing {
        kind: kind.name(),
        node_id: own,
        public_key: identity.public_key_base64(),
        justification,
        signature,
        reason,
        timestamp: now_unix,
    };
    loop {
        // Strings and numbers always serialise.
        let bytes = serde_json::to_vec(&message).unwrap_or_default();
        let excess = bytes.len().saturating_sub(MAX_SENT_MESSAGE);
        if excess == 0 || (message.justification.is_empty() && message.reason.is_empty()) {
            return bytes;
        }
        // Escapes make a character up to six bytes long, so cutting `excess / 6` never cuts too much.
        let cut = excess.div_ceil(6).max(1);
        let text =
            if message.justification.is_empty() { &mut message.reason } else { &mut message.justification };
        *text = truncate(text, text.len().saturating_sub(cut));
    }
}

/// Checks 1 to 7 of spec 06 section 2.3, except those that need the registry or the replay set. Signatures are
/// verified before the registry is asked, so that a forger cannot make this node ask it.
pub(super) fn examine(
    own: NodeId,
    now_unix: u64,
    transport: NodeId,
    bytes: &[u8],
) -> Result<Incoming, Refusal> {
    if bytes.len() > MAX_MESSAGE {
        return Err(Refusal::TooLong(bytes.len()));
    }
    let wire: Wire = serde_json::from_slice(bytes).map_err(|error| match error.is_eof() {
        true => Refusal::Incomplete,
        false => Refusal::Malformed(error.to_string()),
    })?;
    let timestamp = wire.timestamp.unwrap_or(0);
    let age = i64::try_from(now_unix).unwrap_or(i64::MAX).saturating_sub(timestamp);
    if age > MAX_AGE_SECS {
        return Err(Refusal::TooOld);
    }
    if age < -MAX_AHEAD_SECS {
        return Err(Refusal::FromFuture);
    }
    let node = wire.node_id.unwrap_or(0);
    if node == 0 || node == crate::Addr::BROADCAST_NODE || node == own {
        return Err(Refusal::ImpossibleSender(node));
    }
    let kind = Kind::from_name(wire.kind.as_deref().unwrap_or("")).ok_or(Refusal::UnknownType)?;
    let public_key = wire.public_key.unwrap_or_default();
    let signature = wire.signature.unwrap_or_default();
    if kind == Kind::Request && public_key.is_empty() {
        return Err(Refusal::NoKey);
    }
    let challenge = challenge::pair("handshake", node, own);
    let key = if public_key.is_empty() {
        None
    } else {
        if signature.is_empty() {
            return Err(Refusal::NoSignature);
        }
        let key: [u8; 32] = crypto::unbase64(&public_key).ok_or(Refusal::BadKey)?;
        let signature: [u8; 64] = crypto::unbase64(&signature).ok_or(Refusal::BadSignature)?;
        if !crypto::verify(&key, challenge.as_bytes(), &signature) {
            return Err(Refusal::BadSignature);
        }
        Some(key)
    };
    if kind != Kind::Request && transport != node {
        return Err(Refusal::WrongTransport { claimed: node, transport });
    }
    let replayed =
        [kind.name().as_bytes(), b"\0", challenge.as_bytes(), b"\0", signature.as_bytes()].concat();
    Ok(Incoming {
        kind,
        node,
        transport,
        key,
        justification: clean(&wire.justification.unwrap_or_default()),
        reason: clean(&wire.reason.unwrap_or_default()),
        replay_key: crypto::sha256(&replayed),
    })
}

/// Removes what is not printable and cuts to [`MAX_JUSTIFICATION`] bytes, at a character boundary.
pub fn clean(text: &str) -> String {
    let printable: String = text.chars().filter(|c| printable(*c)).take(MAX_JUSTIFICATION).collect();
    truncate(&printable, MAX_JUSTIFICATION).to_owned()
}

fn truncate(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Neither control, format, private-use or separator characters (other than the space), so that no text can
/// disguise another on a terminal.
pub(crate) fn printable(c: char) -> bool {
    if c.is_control() || (c.is_whitespace() && c != ' ') {
        return false;
    }
    !matches!(u32::from(c),
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x180E | 0x200B..=0x200F
        | 0x202A..=0x202E | 0x2060..=0x206F | 0xE000..=0xF8FF | 0xFDD0..=0xFDEF | 0xFEFF | 0xFFF0..=0xFFFB
        | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0x10_FFFF)
        && u32::from(c) & 0xFFFE != 0xFFFE
}
