//! Client of data exchange: sends one message on a stream to port 1001 and learns what became of it.
//!
//! No I/O: do what [`SendMessage::step`] says until it says [`Step::Done`]. Over any stream of bytes:
//!
//! ```
//! # use pilot_proto::service::{frame::*, message::*, send::*};
//! # struct Stream; impl Stream { fn write(&mut self, _: bytes::Bytes) {}
//! # fn read(&mut self, _: std::time::Duration) -> Option<bytes::Bytes> {
//! #   Some(text_frame("ACK TEXT 5 bytes")) } }
//! # let mut stream = Stream;
//! let tag = Tag { message_id: Some(new_id([7; 16])), reply_to: None };
//! let mut send = SendMessage::new(Content::text("hello"), Some(tag), DEFAULT_MAX_FRAME)?;
//! let result = loop {
//!     match send.step() {
//!         Step::Write(bytes) => stream.write(bytes),
//!         Step::Read(patience) => match stream.read(patience) {
//!             Some(bytes) => send.input(bytes),
//!             None => send.end(),
//!         },
//!         Step::Done(result) => break result,
//!     }
//! };
//! assert_eq!(result.map(|delivered| delivered.ack), Ok("ACK TEXT 5 bytes".to_owned()));
//! # Ok::<(), SendError>(())
//! ```
//!
//! Old receivers do not know tagged frames and say so; the message then goes again, untagged, on the same stream,
//! and [`Delivered::tagged`] is false. Likewise a traced message goes again untraced. The stream stays usable for
//! another message after a result other than [`SendError::Closed`] and [`SendError::Protocol`].

use super::frame::{Decoder, FrameType, header};
use super::message::{self, Tag, TraceAck};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// How long to wait for an acknowledgement unless the user says otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);
/// Largest acknowledgement accepted, bytes.
pub const MAX_ACK: u32 = 64 * 1024;

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Type.
    pub ty: FrameType,
    /// Sent before the data (the name of a file).
    prefix: Bytes,
    /// Data.
    pub data: Bytes,
    /// Ask for time stamps; the send time, Unix nanoseconds.
    pub traced: Option<u64>,
}

impl Content {
    /// A message of type TEXT, BINARY or JSON.
    pub fn message(ty: FrameType, data: impl Into<Bytes>) -> Content {
        Content { ty, prefix: Bytes::new(), data: data.into(), traced: None }
    }

    /// A text.
    pub fn text(text: impl Into<String>) -> Content {
        Content::message(FrameType::TEXT, text.into())
    }

    /// A whole file in one frame, for receivers that know no transfers. The name is cut to 255 bytes.
    pub fn file(name: &str, data: impl Into<Bytes>) -> Content {
        let name = super::names::cut(name, message::MAX_FILE_NAME);
        let prefix = message::file_prefix(name).unwrap_or_default();
        Content { ty: FrameType::FILE, prefix, data: data.into(), traced: None }
    }

    /// Asks for time stamps.
    pub fn traced(self, sent_ns: u64) -> Content {
        Content { traced: Some(sent_ns), ..self }
    }
}

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It does not fit a frame.
    #[error("message of {len} bytes exceeds the frame limit of {max} bytes; send it as a file")]
    TooLarge {
        /// Payload, bytes.
        len: usize,
        /// Limit, bytes.
        max: u32,
    },
    /// An id is not 1 to 128 of the allowed characters.
    #[error("message id {0:?} is not 1 to 128 characters of A-Z a-z 0-9 - _ . :")]
    BadId(String),
    /// The receiver could not store it; its text.
    #[error("{0}")]
    Refused(String),
    /// The stream ended first. The message may or may not have been stored.
    #[error("connection closed before the acknowledgement")]
    Closed,
    /// No acknowledgement in time. The message may or may not have been stored.
    #[error("no acknowledgement in time")]
    TimedOut,
    /// The answer is not one.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The receiver's text. It ends in ` (duplicate)` if the receiver had the message already.
    pub ack: String,
    /// The ids arrived with it.
    pub tagged: bool,
    /// Time stamps, if asked for and supported.
    pub trace: Option<TraceAck>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write these bytes.
    Write(Bytes),
    /// Read and pass what came to `input`; at the end of the stream call `end`, after this long without any byte
    /// `timed_out`.
    Read(Duration),
    /// The end.
    Done(Result<Delivered, SendError>),
}

/// One message on its way.
#[derive(Debug)]
pub struct SendMessage {
    content: Content,
    tag: Option<Tag>,
    max_frame: u32,
    patience: Duration,
    writes: VecDeque<Bytes>,
    decoder: Decoder,
    result: Option<Result<Delivered, SendError>>,
}

impl SendMessage {
    /// `tag`: `None` sends untagged; so does a tagged message that would not fit a frame.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] or [`SendError::BadId`].
    pub fn new(content: Content, tag: Option<Tag>, max_frame: u32) -> Result<SendMessage, SendError> {
        if let Some(tag) = &tag
            && let Some(id) =
                [&tag.message_id, &tag.reply_to].into_iter().flatten().find(|id| !message::is_valid_id(id))
        {
            return Err(SendError::BadId(id.clone()));
        }
        let mut send = SendMessage {
            content,
            tag,
            max_frame,
            patience: DEFAULT_PATIENCE,
            writes: VecDeque::new(),
            decoder: Decoder::new(MAX_ACK),
            result: None,
        };
        if !send.enqueue() {
            send.tag = None;
            if !send.enqueue() {
                let len = send.content.prefix.len() + send.content.data.len();
                return Err(SendError::TooLarge { len, max: max_frame });
            }
        }
        Ok(send)
    }

    /// Waits this long for the acknowledgement.
    pub fn patience(self, patience: Duration) -> SendMessage {
        SendMessage { patience, ..self }
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        if let Some(result) = &self.result {
            return Step::Done(result.clone());
        }
        match self.writes.pop_front() {
            Some(bytes) => Step::Write(bytes),
            None => Step::Read(self.patience),
        }
    }

    /// Bytes came.
    pub fn input(&mut self, bytes: Bytes) {
        if self.result.is_some() {
            return;
        }
        self.decoder.push(bytes);
        match self.decoder.next_frame() {
            Ok(None) => {}
            Ok(Some(frame)) if frame.ty == FrameType::JSON && self.content.traced.is_some() => {
                match serde_json::from_slice::<TraceAck>(&frame.payload) {
                    Ok(trace) => self.acknowledged(trace.inner_ack.clone(), Some(trace)),
                    Err(error) => {
                        self.result = Some(Err(SendError::Protocol(format!("trace answer: {error}"))))
                    }
                }
            }
            Ok(Some(frame)) if frame.ty == FrameType::TEXT => {
                self.acknowledged(String::from_utf8_lossy(&frame.payload).into_owned(), None);
            }
            Ok(Some(frame)) => {
                self.result = Some(Err(SendError::Protocol(format!("frame of type {}", frame.ty.name()))));
            }
            Err(error) => self.result = Some(Err(SendError::Protocol(error.to_string()))),
        }
    }

    /// The stream ended, or a write failed.
    pub fn end(&mut self) {
        self.result.get_or_insert(Err(SendError::Closed));
    }

    /// The patience ran out.
    pub fn timed_out(&mut self) {
        self.result.get_or_insert(Err(SendError::TimedOut));
    }

    fn acknowledged(&mut self, text: String, trace: Option<TraceAck>) {
        let unknown = |ty: FrameType| {
            let name = format!(" UNKNOWN({})", ty.0);
            text.strip_prefix("ACK").or(text.strip_prefix("ERR")).is_some_and(|rest| rest.starts_with(&name))
        };
        if self.tag.is_some() && unknown(FrameType::TAGGED) {
            self.tag = None;
            self.enqueue();
        } else if self.content.traced.is_some() && unknown(FrameType::TRACE) {
            self.content.traced = None;
            self.enqueue();
        } else if text.starts_with("ERR ") || text.starts_with("ACK UNKNOWN(") {
            self.result = Some(Err(SendError::Refused(text)));
        } else if text.starts_with("ACK ") {
            self.result = Some(Ok(Delivered { ack: text, tagged: self.tag.is_some(), trace }));
        } else {
            self.result = Some(Err(SendError::Protocol(text)));
        }
    }

    /// Queues the frame; `false` if it exceeds the limit.
    fn enqueue(&mut self) -> bool {
        let Content { ty, prefix, data, traced } = &self.content;
        let mut ty = *ty;
        let mut parts = vec![prefix.clone(), data.clone()];
        if let Some(sent_ns) = traced {
            // Receivers store the payload of a traced file as it is; its name would become part of the contents.
            parts.insert(0, Bytes::copy_from_slice(&message::trace_prefix(ty, *sent_ns)));
            ty = FrameType::TRACE;
        }
        if let Some(tag) = &self.tag {
            parts.insert(0, message::tag_prefix(tag, ty));
            ty = FrameType::TAGGED;
        }
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len > self.max_frame as usize {
            return false;
        }
        // Header and prefixes go in one write with the data if that is small, so that a short message is one segment.
        let mut head = header(ty, len).to_vec();
        let small = parts.iter().take_while(|part| part.len() <= 4096).count();
        let rest = parts.split_off(small);
        head.extend(parts.iter().flatten());
        self.writes.push_back(head.into());
        self.writes.extend(rest);
        true
    }
}
