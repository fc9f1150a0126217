//! What a data exchange frame carries, and the texts that acknowledge it (spec 06 sections 5.1 to 5.3).

use super::frame::{Frame, FrameType};
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest message id, bytes.
pub const MAX_ID: usize = 128;
/// Longest header of a tagged frame, bytes.
pub const MAX_TAG_HEADER: usize = 1024;
/// Longest file name, bytes.
pub const MAX_FILE_NAME: usize = 255;

/// 1 to 128 of `A-Z a-z 0-9 - _ . :`.
pub fn is_valid_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed)
}

/// A fresh id of 16 random bytes.
pub fn new_id(random: [u8; 16]) -> String {
    super::hex(&random)
}

/// The ids of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tag {
    /// Names this message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Names the message this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A frame that ends the connection without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A tagged frame is too short for its header.
    #[error("tagged frame is too short")]
    TagShort,
    /// The header's length is not in 1..=1024.
    #[error("tagged frame's header has {0} bytes (allowed: 1 to {MAX_TAG_HEADER})")]
    TagLength(usize),
    /// The header is not a JSON object with string ids.
    #[error("tagged frame's header is not a JSON object of ids: {0}")]
    TagJson(String),
    /// An id has a forbidden length or character.
    #[error("message id {0:?} is not 1 to {MAX_ID} characters of A-Z a-z 0-9 - _ . :")]
    TagId(String),
    /// A tagged frame in a tagged frame.
    #[error("tagged frame within a tagged frame")]
    TagNested,
    /// The name is too long, not UTF-8, or not a plain file name.
    #[error("file name is not a plain name of at most {MAX_FILE_NAME} bytes of UTF-8")]
    FileName,
}

/// The contents of a frame without its wrappers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A message for the inbox: TEXT, BINARY or JSON, or any of types 1 to 4 within a TRACE.
    Message {
        /// Type.
        ty: FrameType,
        /// Contents.
        payload: Bytes,
    },
    /// A file.
    File {
        /// Plain name. Empty: acknowledge, do not store.
        name: String,
        /// Contents.
        data: Bytes,
    },
    /// A part of a transfer.
    Stream(Bytes),
    /// A type that cannot be stored.
    Unsupported(FrameType),
    /// A TRACE without its 12 bytes of header; its length.
    ShortTrace(usize),
}

/// A received frame, unwrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Ids; empty if untagged.
    pub tag: Tag,
    /// Send time of a TRACE (Unix nanoseconds): answer with [`trace_ack`].
    pub traced: Option<u64>,
    /// Contents.
    pub body: Body,
}

impl Incoming {
    /// Name and length for the acknowledgement.
    pub fn named(&self) -> (String, usize) {
        match &self.body {
            Body::Message { ty, payload } => (ty.name(), payload.len()),
            Body::File { data, .. } => (FrameType::FILE.name(), data.len()),
            Body::Stream(payload) => (FrameType::FILESTREAM.name(), payload.len()),
            Body::Unsupported(ty) => (ty.name(), 0),
            Body::ShortTrace(len) => (FrameType::TRACE.name(), *len),
        }
    }
}

/// Unwraps a frame.
///
/// # Errors
/// The frame breaks a rule whose breach closes the connection.
pub fn parse(frame: Frame) -> Result<Incoming, Violation> {
    let (tag, ty, payload) = match frame.ty {
        FrameType::TAGGED => parse_tagged(frame.payload)?,
        ty => (Tag::default(), ty, frame.payload),
    };
    let (traced, body) = match ty {
        FrameType::TRACE => parse_trace(payload),
        ty => (None, parse_body(ty, payload)?),
    };
    Ok(Incoming { tag, traced, body })
}

fn parse_tagged(payload: Bytes) -> Result<(Tag, FrameType, Bytes), Violation> {
    let len = usize::from(u16::from_be_bytes(super::array(&payload, 0).ok_or(Violation::TagShort)?));
    if len == 0 || len > MAX_TAG_HEADER {
        return Err(Violation::TagLength(len));
    }
    let header = payload.get(2..2 + len).ok_or(Violation::TagShort)?;
    let inner = super::array(&payload, 2 + len).ok_or(Violation::TagShort)?;
    // A JSON array would pass for a struct as well.
    if header.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Violation::TagJson("not an object".to_owned()));
    }
    let mut tag: Tag =
        serde_json::from_slice(header).map_err(|error| Violation::TagJson(error.to_string()))?;
    for id in [&mut tag.message_id, &mut tag.reply_to] {
        match id {
            Some(text) if text.is_empty() => *id = None,
            Some(text) if !is_valid_id(text) => return Err(Violation::TagId(text.clone())),
            _ => {}
        }
    }
    let inner = FrameType(u32::from_be_bytes(inner));
    if inner == FrameType::TAGGED {
        return Err(Violation::TagNested);
    }
    Ok((tag, inner, payload.slice(6 + len..)))
}

fn parse_trace(payload: Bytes) -> (Option<u64>, Body) {
    let (Some(ty), Some(sent)) = (super::array(&payload, 0), super::array(&payload, 4)) else {
        return (None, Body::ShortTrace(payload.len()));
    };
    let ty = FrameType(u32::from_be_bytes(ty));
    let body = match ty {
        FrameType(1..=4) => Body::Message { ty, payload: payload.slice(12..) },
        ty => Body::Unsupported(ty),
    };
    (Some(u64::from_be_bytes(sent)), body)
}

fn parse_body(ty: FrameType, payload: Bytes) -> Result<Body, Violation> {
    Ok(match ty {
        FrameType::TEXT | FrameType::BINARY | FrameType::JSON => Body::Message { ty, payload },
        FrameType::FILE => {
            let len = super::array(&payload, 0).map(|len| usize::from(u16::from_be_bytes(len)));
            let Some((len, name)) = len.and_then(|len| Some((len, payload.get(2..2 + len)?))) else {
                return Ok(Body::File { name: String::new(), data: payload });
            };
            if len > MAX_FILE_NAME {
                return Err(Violation::FileName);
            }
            let name = std::str::from_utf8(name).map_err(|_| Violation::FileName)?;
            if name.contains(['/', '\\']) || name == "." || name == ".." {
                return Err(Violation::FileName);
            }
            Body::File { name: name.to_owned(), data: payload.slice(2 + len..) }
        }
        FrameType::FILESTREAM => Body::Stream(payload),
        ty => Body::Unsupported(ty),
    })
}

/// What precedes the contents of a FILE: name length and name. `None`: the name is over 255 bytes.
pub fn file_prefix(name: &str) -> Option<Bytes> {
    let len = u16::try_from(name.len()).ok().filter(|len| usize::from(*len) <= MAX_FILE_NAME)?;
    let mut out = BytesMut::with_capacity(2 + name.len());
    out.put_u16(len);
    out.extend_from_slice(name.as_bytes());
    Some(out.freeze())
}

/// What precedes the contents of a TRACE: inner type and send time (Unix nanoseconds).
pub fn trace_prefix(inner: FrameType, sent_ns: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&inner.0.to_be_bytes());
    out[4..].copy_from_slice(&sent_ns.to_be_bytes());
    out
}

/// What precedes the contents of a TAGGED frame: header length, header, inner type. The ids must be valid.
pub fn tag_prefix(tag: &Tag, inner: FrameType) -> Bytes {
    // Two short strings always serialise, to less than 1,024 bytes.
    let header = serde_json::to_vec(tag).unwrap_or_default();
    let mut out = BytesMut::with_capacity(6 + header.len());
    out.put_u16(header.len() as u16);
    out.extend_from_slice(&header);
    out.put_u32(inner.0);
    out.freeze()
}

// ---- acknowledgements ------------------------------------------------------------------------------------

/// `ACK TEXT 5 bytes`.
pub fn ack(name: &str, len: usize) -> String {
    format!("ACK {name} {len} bytes")
}

/// The text for a suppressed repetition, given the first delivery's.
pub fn duplicate_ack(first: &str) -> String {
    format!("{first} (duplicate)")
}

/// `ERR TEXT save failed: <reason>`.
pub fn error(name: &str, reason: &str) -> String {
    format!("ERR {name} save failed: {reason}")
}

/// The text for a type that cannot be stored.
pub fn unsupported(ty: FrameType) -> String {
    error(&ty.name(), &format!("unsupported frame type {}", ty.0))
}

/// The text for a TRACE of `len` bytes, which is too short.
pub fn short_trace(len: usize) -> String {
    format!("ERR trace parse: trace payload too short: {len} bytes")
}

/// A TEXT frame with an acknowledgement.
pub fn text_frame(text: &str) -> Bytes {
    Frame { ty: FrameType::TEXT, payload: Bytes::copy_from_slice(text.as_bytes()) }.to_bytes()
}

/// Times in the answer to a TRACE, Unix nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAck {
    /// Receiver sent the answer.
    pub ack_sent_at_ns: u64,
    /// Receiver stored the message.
    pub inbox_written_at_ns: u64,
    /// The text the message alone would have got.
    pub inner_ack: String,
    /// Receiver had the whole frame.
    pub received_at_ns: u64,
    /// Copied from the frame.
    pub sent_at_ns: u64,
}

/// A JSON frame with the answer to a TRACE.
pub fn trace_ack(times: &TraceAck) -> Bytes {
    let value: Value = json!(times);
    Frame { ty: FrameType::JSON, payload: Bytes::from(value.to_string()) }.to_bytes()
}
