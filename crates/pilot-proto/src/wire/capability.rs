//! The capability block: what our nodes append to a PILA frame, after its 136th byte (docs/extensions.md, "Session
//! upgrade"). Other versions ignore these bytes.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic `PILC` |
//! | 1 | version: 1 |
//! | 1 | kind |
//! | 4 | receiver's node id; 0 in a greeting for anybody |
//! | 4 | kinds 2 and 3: session id of the message 1 this answers; else 0 |
//! | n | body, its length given by the kind |
//! | 64 | signature |
//!
//! The signature is Ed25519 by the identity in the PILA over [`DOMAIN`], the 136 bytes of the PILA and the block up to the
//! signature. What follows the signature is ignored.

use super::addr::NodeId;
use super::frame::PILA_LEN;
use crate::crypto::Identity;
use crate::tunnel::noise::{MESSAGE1_LEN, MESSAGE2_LEN};

/// Magic of the block.
pub const MAGIC: [u8; 4] = *b"PILC";
/// Version of the block this module reads and writes.
pub const VERSION: u8 = 1;
/// What the signature's message begins with.
pub const DOMAIN: &[u8] = b"pilot-capability-v1\0";
/// Bytes before the body.
pub const HEADER_LEN: usize = 14;
/// Length of the signature.
pub const SIGNATURE_LEN: usize = 64;
/// Length of a challenge.
pub const CHALLENGE_LEN: usize = 16;
/// Length of a handshake payload: capabilities, session id, challenge.
pub const PAYLOAD_LEN: usize = 2 + 4 + CHALLENGE_LEN;
/// Body of kinds 0 and 3: capabilities, challenge.
const GREETING_LEN: usize = 2 + CHALLENGE_LEN;
/// Largest PILA frame with a block (bytes).
pub const MAX_FRAME: usize = PILA_LEN + HEADER_LEN + MESSAGE2_LEN + PAYLOAD_LEN + SIGNATURE_LEN;

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Greeting: what the sender can do, and a challenge for the receiver's message 1.
    Hello = 0,
    /// Noise message 1.
    First = 1,
    /// Noise message 2.
    Second = 2,
    /// A greeting in reply to a message 1 without a fresh challenge: come again with this one.
    Retry = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Hello, Kind::First, Kind::Second, Kind::Retry].into_iter().find(|k| *k as u8 == byte)
    }

    /// Length of the body.
    pub fn body_len(self) -> usize {
        match self {
            Kind::Hello | Kind::Retry => GREETING_LEN,
            Kind::First => MESSAGE1_LEN + PAYLOAD_LEN,
            Kind::Second => MESSAGE2_LEN + PAYLOAD_LEN,
        }
    }
}

/// A block, as it stands in a frame; its signature is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Whom it is for; 0: anybody.
    pub receiver: NodeId,
    /// The receiver's session id this answers; 0 if it answers none.
    pub answers: u32,
    /// Body, of the kind's length.
    pub body: &'a [u8],
    /// The block up to the signature.
    pub signed: &'a [u8],
    /// Signature of the PILA's identity.
    pub signature: &'a [u8; 64],
}

/// What stands behind a PILA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailing<'a> {
    /// Nothing, or bytes that are no block of a version known here.
    None,
    /// Magic and version of a block, but not its layout.
    Malformed,
    /// A block.
    Block(Block<'a>),
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// Reads the bytes behind a PILA.
pub fn parse(trailing: &[u8]) -> Trailing<'_> {
    let known = trailing.get(..4) == Some(&MAGIC[..]) && trailing.get(4) == Some(&VERSION);
    if !known {
        return Trailing::None;
    }
    parse_known(trailing).map_or(Trailing::Malformed, Trailing::Block)
}

fn parse_known(bytes: &[u8]) -> Option<Block<'_>> {
    let kind = Kind::from_byte(*bytes.get(5)?)?;
    let end = HEADER_LEN + kind.body_len();
    let (receiver, answers) = (u32_at(bytes, 6)?, u32_at(bytes, 10)?);
    Some(Block {
        kind,
        receiver,
        answers,
        body: bytes.get(HEADER_LEN..end)?,
        signed: bytes.get(..end)?,
        signature: bytes.get(end..end + SIGNATURE_LEN)?.try_into().ok()?,
    })
}

/// The bytes a block's signature covers.
pub fn signed(pila: &[u8; PILA_LEN], block: &[u8]) -> Vec<u8> {
    [DOMAIN, pila, block].concat()
}

/// A PILA frame with a block. `body` must have the kind's length.
pub fn frame(
    identity: &Identity,
    pila: &[u8; PILA_LEN],
    kind: Kind,
    receiver: NodeId,
    answers: u32,
    body: &[u8],
) -> Vec<u8> {
    debug_assert_eq!(body.len(), kind.body_len());
    let mut out = Vec::with_capacity(MAX_FRAME);
    out.extend_from_slice(pila);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind as u8]);
    out.extend_from_slice(&receiver.to_be_bytes());
    out.extend_from_slice(&answers.to_be_bytes());
    out.extend_from_slice(body);
    let signature = identity.sign(&signed(pila, &out[PILA_LEN..]));
    out.extend_from_slice(&signature);
    out
}

/// What both sides tell each other in the payloads of the handshake, and in part in greetings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// Bits for what the sender can do beyond version 1; none is defined, unknown ones are ignored.
    pub capabilities: u16,
    /// Names the session in frames to the sender of these terms.
    pub session: u32,
    /// Message 1: the challenge of the responder it answers (zeros: none). Message 2: the challenge for the initiator's
    /// next message 1.
    pub challenge: [u8; CHALLENGE_LEN],
}

impl Terms {
    /// The payload of a handshake message.
    pub fn payload(&self) -> [u8; PAYLOAD_LEN] {
        let mut out = [0; PAYLOAD_LEN];
        out[..2].copy_from_slice(&self.capabilities.to_be_bytes());
        out[2..6].copy_from_slice(&self.session.to_be_bytes());
        out[6..].copy_from_slice(&self.challenge);
        out
    }

    /// Reads a payload.
    pub fn parse(payload: &[u8]) -> Option<Terms> {
        if payload.len() != PAYLOAD_LEN {
            return None;
        }
        Some(Terms {
            capabilities: u16::from_be_bytes(payload.get(..2)?.try_into().ok()?),
            session: u32_at(payload, 2)?,
            challenge: payload.get(6..)?.try_into().ok()?,
        })
    }

    /// The body of a greeting: capabilities and challenge.
    pub fn greeting(&self) -> [u8; GREETING_LEN] {
        let mut out = [0; GREETING_LEN];
        out[..2].copy_from_slice(&self.capabilities.to_be_bytes());
        out[2..].copy_from_slice(&self.challenge);
        out
    }

    /// Reads the body of a greeting; it names no session.
    pub fn parse_greeting(body: &[u8]) -> Option<Terms> {
        if body.len() != GREETING_LEN {
            return None;
        }
        Some(Terms {
            capabilities: u16::from_be_bytes(body.get(..2)?.try_into().ok()?),
            session: 0,
            challenge: body.get(2..)?.try_into().ok()?,
        })
    }
}
