//! Payloads of FILESTREAM frames (spec 06 section 5.6).

use super::array;
use super::frame::{self, FrameType};
use bytes::{BufMut as _, Bytes, BytesMut};

/// Names a transfer: the first 16 bytes of the file's SHA-256, so that a retry of the same content resumes.
pub type TransferId = [u8; 16];

/// Bytes before the body: kind and id.
pub const PREFIX: usize = 17;
/// Bytes of an INIT's body before the name.
const INIT_FIXED: usize = 46;

/// The first message of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// File size, bytes.
    pub size: u64,
    /// Of the whole file.
    pub sha256: [u8; 32],
    /// Size of the sender's chunks, bytes; informative.
    pub chunk: u32,
    /// As the sender names the file, at most 255 bytes; not yet fit for a file system.
    pub name: String,
}

/// One message of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Sender: this file follows.
    Init(Init),
    /// Sender: bytes at this offset.
    Chunk(u64, Bytes),
    /// Receiver: everything before this offset is written.
    Ack(u64),
    /// Sender: all sent.
    Done,
    /// Receiver: go on from this offset.
    InitAck(u64),
    /// Receiver: the end, with an error text or without.
    Complete(Result<(), String>),
    /// Either: give up, for this reason.
    Abort(String),
    /// A kind this version does not know; ignore it.
    Unknown(u8),
}

/// A payload that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Under 17 bytes.
    #[error("malformed stream frame")]
    Frame,
    /// The body does not have the shape of its kind, whose name this is.
    #[error("malformed {1}")]
    Body(TransferId, &'static str),
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a payload.
///
/// # Errors
/// It is too short for its kind.
pub fn parse(payload: &Bytes) -> Result<(TransferId, Message), Malformed> {
    let (Some(kind), Some(id)) = (payload.first().copied(), array(payload, 1)) else {
        return Err(Malformed::Frame);
    };
    let body = payload.slice(PREFIX..);
    let number = || array(&body, 0).map(u64::from_be_bytes);
    let message = match kind {
        1 => parse_init(&body).map(Message::Init).ok_or(Malformed::Body(id, "INIT"))?,
        2 => Message::Chunk(number().ok_or(Malformed::Body(id, "CHUNK"))?, body.slice(8..)),
        3 => Message::Ack(number().ok_or(Malformed::Body(id, "ACK"))?),
        4 => Message::Done,
        5 => Message::InitAck(number().ok_or(Malformed::Body(id, "INIT_ACK"))?),
        6 => match body.first() {
            None => return Err(Malformed::Body(id, "COMPLETE")),
            Some(0) => Message::Complete(Ok(())),
            Some(_) => Message::Complete(Err(text(&body[1..]))),
        },
        7 => Message::Abort(text(&body)),
        other => Message::Unknown(other),
    };
    Ok((id, message))
}

fn parse_init(body: &[u8]) -> Option<Init> {
    let size = u64::from_be_bytes(array(body, 0)?);
    let sha256 = array(body, 8)?;
    let chunk = u32::from_be_bytes(array(body, 40)?);
    let name_len = usize::from(u16::from_be_bytes(array(body, 44)?));
    let name = body.get(INIT_FIXED..)?;
    if name.len() != name_len || name_len > 255 {
        return None;
    }
    Some(Init { size, sha256, chunk, name: text(name) })
}

/// A whole FILESTREAM frame with a message. The name of an INIT is cut to 255 bytes.
pub fn encode(id: &TransferId, message: &Message) -> Bytes {
    let mut out = BytesMut::with_capacity(frame::HEADER + PREFIX + 64);
    out.extend_from_slice(&[0; frame::HEADER]);
    let kind = match message {
        Message::Init(_) => 1,
        Message::Chunk(..) => 2,
        Message::Ack(_) => 3,
        Message::Done => 4,
        Message::InitAck(_) => 5,
        Message::Complete(_) => 6,
        Message::Abort(_) => 7,
        Message::Unknown(kind) => *kind,
    };
    out.put_u8(kind);
    out.extend_from_slice(id);
    match message {
        Message::Init(init) => {
            let name = super::names::cut(&init.name, 255);
            out.put_u64(init.size);
            out.extend_from_slice(&init.sha256);
            out.put_u32(init.chunk);
            out.put_u16(name.len() as u16);
            out.extend_from_slice(name.as_bytes());
        }
        Message::Chunk(offset, data) => {
            out.put_u64(*offset);
            out.extend_from_slice(data);
        }
        Message::Ack(offset) | Message::InitAck(offset) => out.put_u64(*offset),
        Message::Done | Message::Unknown(_) => {}
        Message::Complete(result) => {
            out.put_u8(u8::from(result.is_err()));
            out.extend_from_slice(result.as_ref().err().map_or("", String::as_str).as_bytes());
        }
        Message::Abort(reason) => out.extend_from_slice(reason.as_bytes()),
    }
    let header = frame::header(FrameType::FILESTREAM, out.len() - frame::HEADER);
    out[..frame::HEADER].copy_from_slice(&header);
    out.freeze()
}

/// What precedes the data of a chunk: frame header, kind, id, offset. So the data itself is not copied.
pub fn chunk_prefix(id: &TransferId, offset: u64, len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(frame::HEADER + PREFIX + 8);
    out.extend_from_slice(&frame::header(FrameType::FILESTREAM, PREFIX + 8 + len));
    out.put_u8(2);
    out.extend_from_slice(id);
    out.put_u64(offset);
    out.freeze()
}
