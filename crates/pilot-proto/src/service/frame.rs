//! Frames of data exchange: type, length, payload (spec 06 section 5.1).

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes before the payload.
pub const HEADER: usize = 8;
/// Largest payload unless set otherwise, bytes.
pub const DEFAULT_MAX_FRAME: u32 = 64 << 20;
/// Environment variable that sets the largest payload; both ends must agree.
pub const MAX_FRAME_VARIABLE: &str = "PILOT_DATAEXCHANGE_MAX_FRAME";

/// The largest payload a value of [`MAX_FRAME_VARIABLE`] asks for; the default if absent or out of
/// 65,536..2,147,483,648.
pub fn max_frame(value: Option<&str>) -> u32 {
    match value.and_then(|text| text.trim().parse().ok()) {
        Some(bytes @ 65_536..=0x7FFF_FFFF) => bytes,
        _ => DEFAULT_MAX_FRAME,
    }
}

/// Type of a frame; other numbers exist on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FrameType(pub u32);

impl FrameType {
    /// Text, UTF-8 by convention.
    pub const TEXT: FrameType = FrameType(1);
    /// Bytes.
    pub const BINARY: FrameType = FrameType(2);
    /// JSON by convention.
    pub const JSON: FrameType = FrameType(3);
    /// A whole file with its name.
    pub const FILE: FrameType = FrameType(4);
    /// A message with time stamps.
    pub const TRACE: FrameType = FrameType(5);
    /// A part of a transfer ([`super::filestream`]).
    pub const FILESTREAM: FrameType = FrameType(7);
    /// Reserved.
    pub const GOVERNED: FrameType = FrameType(8);
    /// Reserved.
    pub const GOVERNED_FILESTREAM: FrameType = FrameType(9);
    /// A message with ids.
    pub const TAGGED: FrameType = FrameType(10);

    /// The name acknowledgements and files carry.
    pub fn name(self) -> String {
        let name = match self {
            FrameType::TEXT => "TEXT",
            FrameType::BINARY => "BINARY",
            FrameType::JSON => "JSON",
            FrameType::FILE => "FILE",
            FrameType::TRACE => "TRACE",
            FrameType::FILESTREAM => "FILESTREAM",
            FrameType::GOVERNED => "GOVERNED",
            FrameType::GOVERNED_FILESTREAM => "GOVERNED_FILESTREAM",
            FrameType::TAGGED => "TAGGED",
            FrameType(other) => return format!("UNKNOWN({other})"),
        };
        name.to_owned()
    }
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Type.
    pub ty: FrameType,
    /// Payload.
    pub payload: Bytes,
}

impl Frame {
    /// The frame in one piece, for small ones.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + self.payload.len());
        out.extend_from_slice(&header(self.ty, self.payload.len()));
        out.extend_from_slice(&self.payload);
        out.freeze()
    }
}

/// The eight bytes before a payload of `len` bytes.
pub fn header(ty: FrameType, len: usize) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..4].copy_from_slice(&ty.0.to_be_bytes());
    // Senders stay below the frame limit, which is below 2^31.
    out[4..].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    out
}

/// A declared length is over the limit; close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {len} bytes exceeds the limit of {max}; both ends must set {MAX_FRAME_VARIABLE} alike")]
pub struct TooLarge {
    /// Declared.
    pub len: u32,
    /// Allowed.
    pub max: u32,
}

/// Cuts a byte stream into frames. Memory grows with what has arrived, never with what is declared, and holds at
/// most one frame and one chunk. A frame that lies within one chunk is not copied.
#[derive(Debug)]
pub struct Decoder {
    max: u32,
    /// The beginning of a frame that spans chunks.
    partial: BytesMut,
    /// What of the last chunk is not yet taken.
    chunk: Bytes,
}

impl Decoder {
    /// With payloads of at most `max` bytes.
    pub fn new(max: u32) -> Decoder {
        Decoder { max, partial: BytesMut::new(), chunk: Bytes::new() }
    }

    /// Adds what was read. Call [`Decoder::next_frame`] until `None` before adding more.
    pub fn push(&mut self, chunk: Bytes) {
        if !self.chunk.is_empty() {
            self.partial.extend_from_slice(&self.chunk);
        }
        self.chunk = chunk;
    }

    /// Bytes of a frame that is not complete.
    pub fn buffered(&self) -> usize {
        self.partial.len() + self.chunk.len()
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// The length is over the limit. The stream cannot be followed any further.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, TooLarge> {
        if self.partial.is_empty() {
            if let Some((ty, len)) = self.parse_header(&self.chunk)?
                && let Some(payload) = self.chunk.get(HEADER..).filter(|rest| rest.len() >= len)
            {
                let payload = self.chunk.slice_ref(&payload[..len]);
                self.chunk.advance(HEADER + len);
                return Ok(Some(Frame { ty, payload }));
            }
            self.partial.extend_from_slice(&std::mem::take(&mut self.chunk));
            return Ok(None);
        }
        self.fill(HEADER);
        let Some((ty, len)) = self.parse_header(&self.partial)? else { return Ok(None) };
        self.fill(HEADER + len);
        if self.partial.len() < HEADER + len {
            return Ok(None);
        }
        let mut frame = self.partial.split_to(HEADER + len);
        if self.partial.is_empty() {
            self.partial = BytesMut::new();
        }
        frame.advance(HEADER);
        Ok(Some(Frame { ty, payload: frame.freeze() }))
    }

    fn parse_header(&self, bytes: &[u8]) -> Result<Option<(FrameType, usize)>, TooLarge> {
        let (Some(ty), Some(len)) = (super::array(bytes, 0), super::array(bytes, 4)) else { return Ok(None) };
        let len = u32::from_be_bytes(len);
        if len > self.max {
            return Err(TooLarge { len, max: self.max });
        }
        Ok(Some((FrameType(u32::from_be_bytes(ty)), len as usize)))
    }

    /// Moves bytes of the chunk until `partial` holds `want` bytes.
    fn fill(&mut self, want: usize) {
        let missing = want.saturating_sub(self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..missing]);
        self.chunk.advance(missing);
    }
}
