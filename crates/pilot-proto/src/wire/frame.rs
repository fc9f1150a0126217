//! Tunnel frames: what stands in one UDP datagram (spec 02, sections 2 and 3).

use super::addr::NodeId;

/// Magic of an authenticated key exchange.
pub const PILA: [u8; 4] = *b"PILA";
/// Magic of an unauthenticated key exchange or key request.
pub const PILK: [u8; 4] = *b"PILK";
/// Magic of an encrypted packet.
pub const PILS: [u8; 4] = *b"PILS";
/// Magic of an encrypted packet under an upgraded session (docs/extensions.md).
pub const PILU: [u8; 4] = *b"PILU";
/// Magic of a plaintext packet.
pub const PILT: [u8; 4] = *b"PILT";
/// Magic of a NAT punch.
pub const PILP: [u8; 4] = *b"PILP";

/// Length of a PILA frame.
pub const PILA_LEN: usize = 136;
/// Length of a PILK frame.
pub const PILK_LEN: usize = 40;
/// Bytes before the ciphertext of a PILS or PILU frame: magic, sender, nonce or session and counter.
pub const PILS_HEADER_LEN: usize = 20;
/// AES-GCM tag length.
pub const TAG_LEN: usize = 16;
/// Bytes a PILS or PILU frame adds to a packet.
pub const PILS_OVERHEAD: usize = PILS_HEADER_LEN + TAG_LEN;

/// One datagram, classified by its first bytes. Slices borrow the datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// A beacon protocol message (first byte below 0x10).
    Beacon(&'a [u8]),
    /// Authenticated key exchange.
    Pila(Pila<'a>),
    /// Unauthenticated key exchange or key request.
    Pilk(Pilk<'a>),
    /// Encrypted packet; the whole frame has been checked to be at least 36 bytes long.
    Pils(Pils),
    /// Encrypted packet under an upgraded session; the whole frame has been checked to be at least 36 bytes long.
    Pilu(Pilu),
    /// Plaintext packet bytes.
    Pilt(&'a [u8]),
    /// NAT punch.
    Pilp,
}

/// Fields of a PILA frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pila<'a> {
    /// Sender.
    pub node: NodeId,
    /// Sender's X25519 public key.
    pub x25519: &'a [u8; 32],
    /// Sender's Ed25519 public key, as claimed.
    pub ed25519: &'a [u8; 32],
    /// Signature over [`pila_signed`].
    pub signature: &'a [u8; 64],
    /// Bytes after the 136th; ignored by every version of the reference.
    pub trailing: &'a [u8],
}

/// Fields of a PILK frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pilk<'a> {
    /// Sender.
    pub node: NodeId,
    /// Sender's X25519 public key.
    pub x25519: &'a [u8; 32],
}

/// Clear-text fields of a PILS frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pils {
    /// Sender.
    pub node: NodeId,
    /// Nonce prefix: the sender's epoch.
    pub prefix: [u8; 4],
    /// Nonce counter.
    pub counter: u64,
}

/// Clear-text fields of a PILU frame, all of them authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pilu {
    /// Sender.
    pub node: NodeId,
    /// The receiver's name for the session.
    pub session: u32,
    /// Nonce counter, from 0.
    pub counter: u64,
}

/// Why a datagram is no frame. All are dropped silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer than four bytes, or an unknown magic.
    #[error("unknown frame magic")]
    UnknownMagic,
    /// Known magic, but too short for its layout.
    #[error("{kind} frame too short: {len} bytes")]
    TooShort {
        /// Frame kind.
        kind: &'static str,
        /// Bytes present.
        len: usize,
    },
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn node_at(bytes: &[u8], at: usize) -> Option<NodeId> {
    array::<4>(bytes, at).map(|b| u32::from_be_bytes(*b))
}

impl<'a> Frame<'a> {
    /// Classifies a datagram.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        if bytes.first().is_some_and(|b| *b < 0x10) {
            return Ok(Frame::Beacon(bytes));
        }
        let magic = array::<4>(bytes, 0).ok_or(FrameError::UnknownMagic)?;
        let short = |kind| FrameError::TooShort { kind, len: bytes.len() };
        match *magic {
            PILA => Pila::parse(bytes).map(Frame::Pila).ok_or(short("PILA")),
            PILK => Pilk::parse(bytes).map(Frame::Pilk).ok_or(short("PILK")),
            PILS if bytes.len() < PILS_OVERHEAD => Err(short("PILS")),
            PILS => Pils::parse(bytes).map(Frame::Pils).ok_or(short("PILS")),
            PILU if bytes.len() < PILS_OVERHEAD => Err(short("PILU")),
            PILU => Pilu::parse(bytes).map(Frame::Pilu).ok_or(short("PILU")),
            PILT if bytes.len() < 4 + super::packet::HEADER_LEN => Err(short("PILT")),
            PILT => Ok(Frame::Pilt(&bytes[4..])),
            PILP => Ok(Frame::Pilp),
            _ => Err(FrameError::UnknownMagic),
        }
    }
}

impl<'a> Pila<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Pila<'a>> {
        Some(Pila {
            node: node_at(bytes, 4)?,
            x25519: array(bytes, 8)?,
            ed25519: array(bytes, 40)?,
            signature: array(bytes, 72)?,
            trailing: &bytes[PILA_LEN..],
        })
    }

    /// The frame with as much behind it as a capability block takes.
    pub fn to_vec(&self) -> Vec<u8> {
        let room = super::capability::MAX_FRAME - PILA_LEN;
        [&self.bytes(), &self.trailing[..self.trailing.len().min(room)]].concat()
    }

    /// The 136 bytes of the frame.
    pub fn bytes(&self) -> [u8; PILA_LEN] {
        pila(self.node, self.x25519, self.ed25519, self.signature)
    }
}

impl<'a> Pilk<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Pilk<'a>> {
        Some(Pilk { node: node_at(bytes, 4)?, x25519: array(bytes, 8)? })
    }
}

impl Pils {
    fn parse(bytes: &[u8]) -> Option<Pils> {
        Some(Pils {
            node: node_at(bytes, 4)?,
            prefix: *array(bytes, 8)?,
            counter: u64::from_be_bytes(*array::<8>(bytes, 12)?),
        })
    }

    /// The 20 clear-text bytes that precede the ciphertext.
    pub fn header(&self) -> [u8; PILS_HEADER_LEN] {
        let mut out = [0; PILS_HEADER_LEN];
        out[..4].copy_from_slice(&PILS);
        out[4..8].copy_from_slice(&self.node.to_be_bytes());
        out[8..12].copy_from_slice(&self.prefix);
        out[12..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }

    /// The AES-GCM nonce: prefix and counter.
    pub fn nonce(&self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&self.prefix);
        out[4..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }
}

impl Pilu {
    fn parse(bytes: &[u8]) -> Option<Pilu> {
        Some(Pilu {
            node: node_at(bytes, 4)?,
            session: node_at(bytes, 8)?,
            counter: u64::from_be_bytes(*array::<8>(bytes, 12)?),
        })
    }

    /// The 20 clear-text bytes that precede the ciphertext; they are its additional data.
    pub fn header(&self) -> [u8; PILS_HEADER_LEN] {
        let mut out = [0; PILS_HEADER_LEN];
        out[..4].copy_from_slice(&PILU);
        out[4..8].copy_from_slice(&self.node.to_be_bytes());
        out[8..12].copy_from_slice(&self.session.to_be_bytes());
        out[12..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }
}

/// The 40 bytes a PILA signature covers (spec 02 section 6).
pub fn pila_signed(node: NodeId, x25519: &[u8; 32]) -> [u8; 40] {
    let mut out = [0; 40];
    out[..4].copy_from_slice(b"auth");
    out[4..8].copy_from_slice(&node.to_be_bytes());
    out[8..].copy_from_slice(x25519);
    out
}

/// Builds a PILA frame.
pub fn pila(node: NodeId, x25519: &[u8; 32], ed25519: &[u8; 32], signature: &[u8; 64]) -> [u8; PILA_LEN] {
    let mut out = [0; PILA_LEN];
    out[..4].copy_from_slice(&PILA);
    out[4..8].copy_from_slice(&node.to_be_bytes());
    out[8..40].copy_from_slice(x25519);
    out[40..72].copy_from_slice(ed25519);
    out[72..].copy_from_slice(signature);
    out
}

/// Builds a PILK frame.
pub fn pilk(node: NodeId, x25519: &[u8; 32]) -> [u8; PILK_LEN] {
    let mut out = [0; PILK_LEN];
    out[..4].copy_from_slice(&PILK);
    out[4..8].copy_from_slice(&node.to_be_bytes());
    out[8..].copy_from_slice(x25519);
    out
}
