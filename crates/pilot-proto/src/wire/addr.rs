//! Virtual addresses (spec 01, sections 2 to 4).

use std::fmt;
use std::str::FromStr;

/// A registry-issued node number; the identity part of an address.
pub type NodeId = u32;

/// A 48-bit virtual address: network and node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr {
    /// Network number; 0 is the backbone every node belongs to.
    pub network: u16,
    /// Node number.
    pub node: NodeId,
}

/// Why an address text was refused. The texts are those of the reference (spec 01 section 3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// No colon.
    #[error("invalid address: {0:?} (expected N:XXXX.YYYY.YYYY)")]
    Shape(String),
    /// The decimal network is not a number in 0..=65535.
    #[error("invalid network ID: {text:?}: strconv.ParseUint: parsing {text:?}: {reason}")]
    Network {
        /// The left part.
        text: String,
        /// `invalid syntax` or `value out of range`.
        reason: &'static str,
    },
    /// Not three groups.
    #[error("invalid address: {0:?} (expected 3 dot-separated hex groups)")]
    Groups(String),
    /// A group is not four bytes long.
    #[error("invalid hex group: {0:?} (expected 4 digits)")]
    GroupLen(String),
    /// A group is not hexadecimal.
    #[error("invalid hex group: {0:?}: strconv.ParseUint: parsing {0:?}: invalid syntax")]
    Hex(String),
    /// The decimal and the hexadecimal network differ.
    #[error("network mismatch: decimal {decimal} != hex 0x{hex:04X}")]
    Mismatch {
        /// Network before the colon.
        decimal: u16,
        /// Network in the first group.
        hex: u16,
    },
    /// A socket address has no port.
    #[error("invalid socket address: {0:?} (no port)")]
    NoPort(String),
    /// The port is not a number in 0..=65535.
    #[error("invalid port: {text:?}: strconv.ParseUint: parsing {text:?}: {reason}")]
    Port {
        /// The right part.
        text: String,
        /// `invalid syntax` or `value out of range`.
        reason: &'static str,
    },
}

impl Addr {
    /// Length on the wire, bytes.
    pub const LEN: usize = 6;
    /// The unset address.
    pub const ZERO: Addr = Addr { network: 0, node: 0 };
    /// Node number of a broadcast address.
    pub const BROADCAST_NODE: NodeId = 0xFFFF_FFFF;

    /// The backbone address of a node.
    pub const fn backbone(node: NodeId) -> Addr {
        Addr { network: 0, node }
    }

    /// Both parts are zero.
    pub const fn is_zero(self) -> bool {
        self.network == 0 && self.node == 0
    }

    /// The node part is all ones, in any network.
    pub const fn is_broadcast(self) -> bool {
        self.node == Self::BROADCAST_NODE
    }

    /// Decodes six bytes; fewer give the zero address.
    pub fn from_slice(bytes: &[u8]) -> Addr {
        match bytes {
            [a, b, c, d, e, f, ..] => {
                Addr { network: u16::from_be_bytes([*a, *b]), node: u32::from_be_bytes([*c, *d, *e, *f]) }
            }
            _ => Addr::ZERO,
        }
    }

    /// The six wire bytes.
    pub fn to_bytes(self) -> [u8; 6] {
        let n = self.network.to_be_bytes();
        let i = self.node.to_be_bytes();
        [n[0], n[1], i[0], i[1], i[2], i[3]]
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = (self.node >> 16, self.node & 0xFFFF);
        write!(f, "{}:{:04X}.{high:04X}.{low:04X}", self.network, self.network)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_u16(text: &str) -> Result<u16, &'static str> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("invalid syntax");
    }
    let significant = text.trim_start_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    significant.parse().map_err(|_| "value out of range")
}

fn parse_hex(group: &str) -> Result<u16, AddrError> {
    if !group.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(AddrError::Hex(group.to_owned()));
    }
    u16::from_str_radix(group, 16).map_err(|_| AddrError::Hex(group.to_owned()))
}

impl FromStr for Addr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Addr, AddrError> {
        let (left, right) = text.split_once(':').ok_or_else(|| AddrError::Shape(text.to_owned()))?;
        let network =
            parse_u16(left).map_err(|reason| AddrError::Network { text: left.to_owned(), reason })?;
        let groups: Vec<&str> = right.split('.').collect();
        let [first, high, low] = groups[..] else { return Err(AddrError::Groups(right.to_owned())) };
        for group in [first, high, low] {
            if group.len() != 4 {
                return Err(AddrError::GroupLen(group.to_owned()));
            }
        }
        let hex = parse_hex(first)?;
        if hex != network {
            return Err(AddrError::Mismatch { decimal: network, hex });
        }
        let node = (u32::from(parse_hex(high)?) << 16) | u32::from(parse_hex(low)?);
        Ok(Addr { network, node })
    }
}

/// A virtual address with a port, in text form `N:NNNN.HHHH.LLLL:PORT`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketAddr {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: u16,
}

impl fmt::Display for SocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.addr, self.port)
    }
}

impl FromStr for SocketAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<SocketAddr, AddrError> {
        let (left, right) = text.rsplit_once(':').ok_or_else(|| AddrError::NoPort(text.to_owned()))?;
        let addr = left.parse()?;
        let port = parse_u16(right).map_err(|reason| AddrError::Port { text: right.to_owned(), reason })?;
        Ok(SocketAddr { addr, port })
    }
}
