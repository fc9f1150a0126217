//! The overlay packet: a 34-byte header and its payload (spec 01, sections 6 to 10).

use super::addr::Addr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 34;
/// Largest payload the length field can carry.
pub const MAX_PAYLOAD: usize = 65_535;
/// Protocol version in the first header nibble.
pub const VERSION: u8 = 1;

/// Flag bits (low nibble of the first byte).
pub mod flags {
    /// Connection request.
    pub const SYN: u8 = 0x1;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x2;
    /// Close.
    pub const FIN: u8 = 0x4;
    /// Abort.
    pub const RST: u8 = 0x8;
}

/// Values of the protocol byte.
pub mod protocol {
    /// Reliable, ordered stream.
    pub const STREAM: u8 = 1;
    /// Unreliable datagram.
    pub const DATAGRAM: u8 = 2;
    /// Ping, keepalive, path probe.
    pub const CONTROL: u8 = 3;
}

/// Well-known ports (spec 01 section 5).
pub mod port {
    /// Ping and keepalive.
    pub const PING: u16 = 0;
    /// Echo service.
    pub const ECHO: u16 = 7;
    /// Trust handshake.
    pub const HANDSHAKE: u16 = 444;
    /// Standard I/O convention.
    pub const STDIO: u16 = 1000;
    /// Data exchange.
    pub const DATA_EXCHANGE: u16 = 1001;
    /// Event stream.
    pub const EVENT_STREAM: u16 = 1002;
    /// First ephemeral port.
    pub const EPHEMERAL_FIRST: u16 = 49_152;
}

/// All header fields but version, payload length and checksum, which the encoder fills in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Flag bits, see [`flags`].
    pub flags: u8,
    /// Protocol, see [`protocol`].
    pub protocol: u8,
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Receive window, in segments towards reference peers (spec 03 section 12).
    pub window: u16,
}

/// A decoded packet borrowing its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// The header.
    pub header: Header,
    /// The payload.
    pub payload: &'a [u8],
}

/// Why bytes are not a packet; texts as in spec 01 section 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer than 34 bytes.
    #[error("packet too short: {0} bytes (min 34)")]
    TooShort(usize),
    /// The length field promises more than there is.
    #[error("packet truncated: have {have} bytes, need {need}")]
    Truncated {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The CRC-32 differs.
    #[error("checksum mismatch")]
    Checksum,
    /// Not version 1.
    #[error("unsupported protocol version {0} (expected 1)")]
    Version(u8),
    /// Payload over 65,535 bytes.
    #[error("payload too large: {0} bytes (max 65535)")]
    PayloadTooLarge(usize),
}

fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..30]);
    crc.update(&[0; 4]);
    crc.update(payload);
    crc.finalize()
}

impl<'a> Packet<'a> {
    /// Decodes a packet; bytes after header and payload are ignored.
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, PacketError> {
        if bytes.len() < HEADER_LEN {
            return Err(PacketError::TooShort(bytes.len()));
        }
        let need = HEADER_LEN + usize::from(be16(bytes, 2));
        if bytes.len() < need {
            return Err(PacketError::Truncated { have: bytes.len(), need });
        }
        let payload = &bytes[HEADER_LEN..need];
        if checksum(bytes, payload) != be32(bytes, 30) {
            return Err(PacketError::Checksum);
        }
        let version = bytes[0] >> 4;
        if version != VERSION {
            return Err(PacketError::Version(version));
        }
        let header = Header {
            flags: bytes[0] & 0x0F,
            protocol: bytes[1],
            src: Addr::from_slice(&bytes[4..]),
            dst: Addr::from_slice(&bytes[10..]),
            src_port: be16(bytes, 16),
            dst_port: be16(bytes, 18),
            seq: be32(bytes, 20),
            ack: be32(bytes, 24),
            window: be16(bytes, 28),
        };
        Ok(Packet { header, payload })
    }
}

impl Header {
    /// Appends the packet made of this header and `payload` to `out`.
    pub fn emit(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), PacketError> {
        self.emit_with(payload.len(), out, |out| out.extend_from_slice(payload))
    }

    /// Appends a packet whose payload of exactly `len` bytes `write` appends, so that it is copied once.
    pub fn emit_with(
        &self,
        len: usize,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), PacketError> {
        let length = u16::try_from(len).map_err(|_| PacketError::PayloadTooLarge(len))?;
        let start = out.len();
        let mut head = [0u8; HEADER_LEN];
        head[0] = VERSION << 4 | (self.flags & 0x0F);
        head[1] = self.protocol;
        head[2..4].copy_from_slice(&length.to_be_bytes());
        head[4..10].copy_from_slice(&self.src.to_bytes());
        head[10..16].copy_from_slice(&self.dst.to_bytes());
        head[16..18].copy_from_slice(&self.src_port.to_be_bytes());
        head[18..20].copy_from_slice(&self.dst_port.to_be_bytes());
        head[20..24].copy_from_slice(&self.seq.to_be_bytes());
        head[24..28].copy_from_slice(&self.ack.to_be_bytes());
        head[28..30].copy_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&head);
        write(out);
        debug_assert_eq!(out.len(), start + HEADER_LEN + len, "payload writer kept its promise");
        let crc = checksum(&head, &out[start + HEADER_LEN..]);
        out[start + 30..start + 34].copy_from_slice(&crc.to_be_bytes());
        Ok(())
    }
}
