//! WebSocket frames (RFC 6455 section 5), as far as the compat transport needs them (spec 04 section 17): no extensions.
//! Both ends use it; bytes come in and go out in memory.

use crate::crypto::base64;
use aws_lc_rs::digest;

/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;
/// Most bytes of header a frame has.
pub const MAX_HEADER: usize = 14;
/// The buffer is moved together when this much of its beginning is used up.
const COMPACT: usize = 64 * 1024;

/// Normal closure.
pub const CLOSE_NORMAL: u16 = 1000;
/// The other end broke the protocol.
pub const CLOSE_PROTOCOL: u16 = 1002;
/// The other end is not welcome.
pub const CLOSE_POLICY: u16 = 1008;
/// A message was too big.
pub const CLOSE_TOO_BIG: u16 = 1009;
/// No code was given.
const CLOSE_NO_CODE: u16 = 1005;

/// Which end this is. Clients mask what they send, servers must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// It was connected to.
    Server,
}

/// A message or control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text; not checked to be UTF-8.
    Text(Vec<u8>),
    /// Bytes.
    Binary(Vec<u8>),
    /// To be answered by a pong with the same bytes.
    Ping(Vec<u8>),
    /// Answer to a ping.
    Pong(Vec<u8>),
    /// The other end closes: code (1005: none) and reason.
    Close(u16, String),
}

/// What may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole text message.
    Text = 1,
    /// A whole binary message.
    Binary = 2,
    /// Close; see [`close_payload`].
    Close = 8,
    /// Ping.
    Ping = 9,
    /// Pong.
    Pong = 10,
}

/// How the other end broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Reserved bits are set: an extension nobody agreed on.
    #[error("reserved bits are set")]
    Reserved,
    /// An opcode that does not exist.
    #[error("unknown opcode {0}")]
    Opcode(u8),
    /// A client that does not mask, or a server that does.
    #[error("masked as the other end must not")]
    Masking,
    /// A control frame in pieces, or longer than 125 bytes.
    #[error("malformed control frame")]
    Control,
    /// A continuation of nothing, or a message inside another.
    #[error("fragments out of order")]
    Fragments,
    /// Longer than this end takes.
    #[error("message longer than {max} bytes")]
    TooBig {
        /// The bound.
        max: usize,
    },
}

impl FrameError {
    /// The code to close with.
    pub fn close_code(&self) -> u16 {
        match self {
            FrameError::TooBig { .. } => CLOSE_TOO_BIG,
            _ => CLOSE_PROTOCOL,
        }
    }
}

/// Cuts a stream of bytes into messages. Holds at most one message under way and what was fed beyond it.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    max: usize,
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are done.
    used: usize,
    /// Opcode and bytes of a message in pieces.
    pieces: Option<(u8, Vec<u8>)>,
}

struct Header {
    fin: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    /// Bytes of the header and of the payload.
    header: usize,
    payload: usize,
}

impl Decoder {
    /// For the end `role`; messages have at most `max` bytes.
    pub fn new(role: Role, max: usize) -> Decoder {
        Decoder { role, max, bytes: Vec::new(), used: 0, pieces: None }
    }

    /// The same with another bound.
    pub fn with_max(self, max: usize) -> Decoder {
        Decoder { max, ..self }
    }

    /// Takes bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.used == self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
        } else if self.used >= COMPACT {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        let rest = &self.bytes[self.used..];
        let &[first, second, ..] = rest else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::Reserved);
        }
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if !matches!(opcode, 0..=2 | 8..=10) {
            return Err(FrameError::Opcode(opcode));
        }
        let masked = second & 0x80 != 0;
        if masked != (self.role == Role::Server) {
            return Err(FrameError::Masking);
        }
        let short = usize::from(second & 0x7f);
        if opcode >= 8 && (!fin || short > MAX_CONTROL) {
            return Err(FrameError::Control);
        }
        let (payload, at) = match (short, &rest[2..]) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 4),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 10),
            (126 | 127, _) => return Ok(None),
            (short, _) => (short as u64, 2),
        };
        let before = self.pieces.as_ref().filter(|_| opcode < 8).map_or(0, |(_, held)| held.len());
        let too_big = FrameError::TooBig { max: self.max };
        // Checked before the bytes are waited for: a length alone makes nobody wait or reserve.
        let payload = usize::try_from(payload).map_err(|_| too_big)?;
        if opcode < 8 && payload > self.max.saturating_sub(before) {
            return Err(too_big);
        }
        let mask = match (masked, rest.get(at..at + 4)) {
            (false, _) => None,
            (true, Some(mask)) => Some([mask[0], mask[1], mask[2], mask[3]]),
            (true, None) => return Ok(None),
        };
        Ok(Some(Header { fin, opcode, mask, header: at + if masked { 4 } else { 0 }, payload }))
    }

    /// The next message, if all of it is there. After an error the connection is of no use.
    ///
    /// # Errors
    /// The other end broke the protocol.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let start = self.used + header.header;
            let Some(payload) = self.bytes.get(start..start + header.payload) else { return Ok(None) };
            let mut payload = payload.to_vec();
            self.used = start + header.payload;
            if let Some(mask) = header.mask {
                apply_mask(&mut payload, mask);
            }
            let (opcode, payload) = match (header.opcode, self.pieces.take()) {
                (8.., pieces) => {
                    self.pieces = pieces;
                    return Ok(Some(control(header.opcode, payload)?));
                }
                (0, Some((opcode, mut held))) => {
                    held.extend_from_slice(&payload);
                    (opcode, held)
                }
                (0, None) | (_, Some(_)) => return Err(FrameError::Fragments),
                (opcode, None) => (opcode, payload),
            };
            if !header.fin {
                self.pieces = Some((opcode, payload));
                continue;
            }
            return Ok(Some(match opcode {
                1 => Message::Text(payload),
                _ => Message::Binary(payload),
            }));
        }
    }
}

fn control(opcode: u8, payload: Vec<u8>) -> Result<Message, FrameError> {
    Ok(match (opcode, &payload[..]) {
        (9, _) => Message::Ping(payload),
        (10, _) => Message::Pong(payload),
        (_, []) => Message::Close(CLOSE_NO_CODE, String::new()),
        (_, [_]) => return Err(FrameError::Control),
        (_, [a, b, reason @ ..]) => {
            Message::Close(u16::from_be_bytes([*a, *b]), String::from_utf8_lossy(reason).into_owned())
        }
    })
}

fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    let wide = u32::from_ne_bytes(mask);
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// Appends a frame. A client gives a fresh, unpredictable mask with each, a server none.
pub fn encode(kind: Kind, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    out.reserve(payload.len() + MAX_HEADER);
    out.push(0x80 | kind as u8);
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        // Each cast is within the range of its arm.
        len @ 0..126 => out.push(masked | len as u8),
        len @ 126..65_536 => {
            out.push(masked | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |m| &m[..]));
    let at = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[at..], mask);
    }
}

/// The payload of a close frame. The reason is ASCII of at most 123 bytes; more is cut off.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend(reason.bytes().filter(u8::is_ascii).take(MAX_CONTROL - 2));
    payload
}

/// The server's answer to the client's `Sec-WebSocket-Key` (RFC 6455 section 4.2.2): shows that it speaks WebSocket, and
/// protects nothing.
pub fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(role: Role, bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
        let mut decoder = Decoder::new(role, 65_536);
        decoder.feed(bytes);
        let mut out = Vec::new();
        while let Some(message) = decoder.next_message()? {
            out.push(message);
        }
        Ok(out)
    }

    #[test]
    fn the_examples_of_the_standard() {
        // RFC 6455 section 5.7.
        let hello = Message::Text(b"Hello".to_vec());
        assert_eq!(decoded(Role::Client, b"\x81\x05Hello"), Ok(vec![hello.clone()]));
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(decoded(Role::Server, masked), Ok(vec![hello.clone()]));
        assert_eq!(decoded(Role::Client, b"\x01\x03Hel\x80\x02lo"), Ok(vec![hello.clone()]));
        let between = b"\x01\x03Hel\x89\x05Hello\x80\x02lo";
        assert_eq!(decoded(Role::Client, between), Ok(vec![Message::Ping(b"Hello".to_vec()), hello]));
        let mut out = Vec::new();
        encode(Kind::Text, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]), &mut out);
        assert_eq!(out, masked);
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn each_violation_has_its_name() {
        let client = |bytes: &[u8]| decoded(Role::Client, bytes).unwrap_err();
        assert_eq!(client(b"\xc2\x00"), FrameError::Reserved);
        assert_eq!(client(b"\x83\x00"), FrameError::Opcode(3));
        assert_eq!(client(b"\x82\x80\0\0\0\0"), FrameError::Masking);
        assert_eq!(decoded(Role::Server, b"\x82\x00").unwrap_err(), FrameError::Masking);
        assert_eq!(client(b"\x09\x00"), FrameError::Control);
        assert_eq!(client(b"\x89\x7e\x00\x7e"), FrameError::Control);
        assert_eq!(client(b"\x88\x01\x03"), FrameError::Control);
        assert_eq!(client(b"\x80\x00"), FrameError::Fragments);
        assert_eq!(client(b"\x02\x00\x82\x00"), FrameError::Fragments);
        let too_big = FrameError::TooBig { max: 65_536 };
        assert_eq!(client(b"\x82\x7f\0\0\0\0\0\x01\0\x01"), too_big, "before its bytes are there");
        assert_eq!(client(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), too_big);
        let mut pieces = b"\x02\x7e\xff\xff".to_vec();
        pieces.extend([0; 65_535]);
        pieces.extend(b"\x80\x02");
        assert_eq!(client(&pieces), too_big, "the sum counts");
        assert_eq!(too_big.close_code(), CLOSE_TOO_BIG);
        assert_eq!(FrameError::Masking.close_code(), CLOSE_PROTOCOL);
    }

    #[test]
    fn a_close_carries_its_code_and_reason_or_none() {
        let mut out = Vec::new();
        encode(Kind::Close, &close_payload(CLOSE_POLICY, "auth failed"), None, &mut out);
        assert_eq!(decoded(Role::Client, &out), Ok(vec![Message::Close(1008, "auth failed".into())]));
        assert_eq!(decoded(Role::Client, b"\x88\x00"), Ok(vec![Message::Close(1005, String::new())]));
        assert_eq!(close_payload(1000, &"x".repeat(300)).len(), 125);
    }

    proptest! {
        #[test]
        fn messages_come_back_however_the_stream_is_cut(
            messages in proptest::collection::vec((any::<bool>(), any::<[u8; 4]>(), 0usize..70_000), 1..5),
            cut in 1usize..5_000,
        ) {
            let (mut stream, mut wanted) = (Vec::new(), Vec::new());
            for (n, (text, mask, len)) in messages.into_iter().enumerate() {
                let payload = vec![n as u8 ^ 0x5a; len.min(65_536)];
                encode(if text { Kind::Text } else { Kind::Binary }, &payload, Some(mask), &mut stream);
                wanted.push(if text { Message::Text(payload) } else { Message::Binary(payload) });
            }
            let mut decoder = Decoder::new(Role::Server, 65_536);
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.feed(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    got.push(message);
                }
                // One message, a header, and what was read beyond.
                prop_assert!(decoder.bytes.len() <= 65_536 + MAX_HEADER + COMPACT + cut);
            }
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn arbitrary_bytes_end_in_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), server: bool) {
            let _ = decoded(if server { Role::Server } else { Role::Client }, &bytes);
        }
    }
}
