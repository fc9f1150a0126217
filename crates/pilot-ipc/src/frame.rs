//! Framing: 4-byte big-endian length, command byte, body (spec 07 section 2).

use bytes::{Buf as _, Bytes, BytesMut};
use std::io::{self, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Largest command byte plus body, bytes, in both directions.
pub const MAX_FRAME: usize = 1 << 20;
/// Most data bytes the stock client and ours put into one Send frame (1 MiB - 64).
pub const MAX_SEND: usize = MAX_FRAME - 64;
/// Longest JSON text in a reply, bytes; lists are cut to fit (spec 07 sections 2, 10, 11).
pub const MAX_JSON: usize = MAX_FRAME - 64;
/// The only error code in use (spec 07 section 6).
pub const ERROR_CODE: u16 = 1;

/// Free space made before each read from the socket, bytes.
const READ_CHUNK: usize = 256 * 1024;
/// Bodies up to this many bytes are copied out, so that a small frame kept by its reader does not keep a whole
/// read buffer alive.
const COPY_BELOW: usize = 4096;
/// Bytes of length and command.
const HEADER: usize = 5;
/// Bytes of header and fixed fields kept inline in an [`OutFrame`]; the longest is Accept's.
const HEAD_MAX: usize = HEADER + 14;

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Command byte.
    pub command: u8,
    /// Everything after it.
    pub body: Bytes,
}

/// The peer declared a frame over [`MAX_FRAME`]; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} bytes is over the limit of {MAX_FRAME}")]
pub struct Oversize(pub u32);

/// Cuts a byte stream into frames. Buffers at most one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
}

impl Decoder {
    /// Appends received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Bytes received but not yet returned as frames.
    pub fn buffered(&self) -> usize {
        self.buf.len()
    }

    /// The next complete frame. Empty frames are skipped. A length over the limit is an error before anything is
    /// allocated for it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Oversize> {
        loop {
            let Some(head) = self.buf.first_chunk::<4>() else { return Ok(None) };
            let declared = u32::from_be_bytes(*head);
            let length = declared as usize;
            if length > MAX_FRAME {
                return Err(Oversize(declared));
            }
            if length == 0 {
                self.buf.advance(4);
                continue;
            }
            if self.buf.len() < 4 + length {
                return Ok(None);
            }
            let command = self.buf[4];
            let body_len = length - 1;
            self.buf.advance(HEADER);
            let body = if body_len <= COPY_BELOW {
                let body = Bytes::copy_from_slice(&self.buf[..body_len]);
                self.buf.advance(body_len);
                body
            } else {
                self.buf.split_to(body_len).freeze()
            };
            return Ok(Some(Frame { command, body }));
        }
    }

    /// The buffer, with room for what is missing of the frame begun (bounded by [`MAX_FRAME`]) or one read.
    fn room(&mut self) -> &mut BytesMut {
        let missing = match self.buf.first_chunk::<4>() {
            Some(head) => {
                (4 + (u32::from_be_bytes(*head) as usize).min(MAX_FRAME)).saturating_sub(self.buf.len())
            }
            None => 0,
        };
        if self.buf.capacity() - self.buf.len() < missing.max(COPY_BELOW) {
            self.buf.reserve(missing.max(READ_CHUNK));
        }
        &mut self.buf
    }
}

/// Why reading frames ended.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// See [`Oversize`].
    #[error(transparent)]
    Oversize(#[from] Oversize),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads frames from a socket.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of `io`.
    pub fn new(io: R) -> FrameReader<R> {
        FrameReader { io, decoder: Decoder::default() }
    }

    /// The socket.
    pub fn get_ref(&self) -> &R {
        &self.io
    }

    /// The next frame; `None` at the end of the connection, a partial frame being discarded. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            if self.io.read_buf(self.decoder.room()).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// A frame to send: header and fixed fields inline, the rest not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutFrame {
    head: [u8; HEAD_MAX],
    head_len: u8,
    body: Bytes,
}

impl OutFrame {
    /// A frame of `command`, the fixed fields `fields` (at most 14 bytes) and `rest`. Must fit [`MAX_FRAME`]: callers
    /// split data and cut lists before.
    pub fn new(command: u8, fields: &[u8], rest: Bytes) -> OutFrame {
        let length = 1 + fields.len() + rest.len();
        debug_assert!(fields.len() <= HEAD_MAX - HEADER && length <= MAX_FRAME);
        let mut head = [0; HEAD_MAX];
        head[..4].copy_from_slice(&(length as u32).to_be_bytes());
        head[4] = command;
        head[HEADER..HEADER + fields.len()].copy_from_slice(fields);
        OutFrame { head, head_len: (HEADER + fields.len()) as u8, body: rest }
    }

    /// An Error frame. The text is cut to the frame limit.
    pub fn error(text: &str) -> OutFrame {
        let mut end = text.len().min(MAX_JSON);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = Bytes::copy_from_slice(&text.as_bytes()[..end]);
        OutFrame::new(crate::push::ERROR, &ERROR_CODE.to_be_bytes(), text)
    }

    /// Bytes on the socket.
    pub fn len(&self) -> usize {
        self.head_len as usize + self.body.len()
    }

    /// Never true: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What is left after `written` bytes, as up to two slices.
    pub(crate) fn slices(&self, written: usize) -> [IoSlice<'_>; 2] {
        let head = &self.head[..self.head_len as usize];
        if written < head.len() {
            [IoSlice::new(&head[written..]), IoSlice::new(&self.body)]
        } else {
            [IoSlice::new(&[]), IoSlice::new(&self.body[written - head.len()..])]
        }
    }

    /// All bytes, copied (for tests and small frames).
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        for slice in self.slices(0) {
            out.extend_from_slice(&slice);
        }
        out
    }
}
