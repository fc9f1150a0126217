//! The beacon's UDP protocol (spec 04, sections 2 and 3).

use super::addr::NodeId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes a relayed frame grows by on its way to the beacon.
pub const RELAY_HEADER_LEN: usize = 9;

/// One message of the beacon protocol. Surplus bytes are ignored where the layout is fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// 0x01: who am I seen as? (node to beacon)
    Discover {
        /// Sender; 0 in start-up and latency probes.
        node: NodeId,
        /// The sender's Ed25519 key, which newer nodes may append.
        key: Option<&'a [u8; 32]>,
    },
    /// 0x02: the observed source address.
    DiscoverReply(SocketAddr),
    /// 0x03: please let `target` and me punch.
    PunchRequest {
        /// Sender.
        requester: NodeId,
        /// Peer to punch with.
        target: NodeId,
    },
    /// 0x04: punch towards this address, now.
    PunchCommand(SocketAddr),
    /// 0x05: deliver this frame to `to`.
    Relay {
        /// Claimed sender.
        from: NodeId,
        /// Destination.
        to: NodeId,
        /// The tunnel frame.
        frame: &'a [u8],
    },
    /// 0x06: a relayed frame.
    RelayDeliver {
        /// Claimed sender, unauthenticated.
        from: NodeId,
        /// The tunnel frame.
        frame: &'a [u8],
    },
    /// 0x07: a beacon announces the nodes it serves; four bytes per id.
    Sync {
        /// Beacon number.
        beacon: u32,
        /// Concatenated big-endian node ids.
        nodes: &'a [u8],
    },
    /// 0x08: like Discover, asks for 0x09 deliveries.
    DiscoverEx {
        /// Sender.
        node: NodeId,
    },
    /// 0x09: a relayed frame that names its destination.
    RelayDeliverDest {
        /// Claimed sender.
        from: NodeId,
        /// Destination.
        to: NodeId,
        /// The tunnel frame.
        frame: &'a [u8],
    },
    /// 0x0A: something waits for you at the registry.
    Notify {
        /// What; 1 is a trust handshake.
        kind: u8,
    },
}

/// Kind of [`Message::Notify`]: a relayed trust handshake waits.
pub const NOTIFY_HANDSHAKE: u8 = 1;

/// Why bytes are no beacon message. All are dropped silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Shorter than the layout of its type.
    #[error("beacon message truncated")]
    Truncated,
    /// A type this version does not know.
    #[error("unknown beacon message type {0:#04x}")]
    UnknownType(u8),
    /// An IP length other than 4 or 16.
    #[error("bad IP length {0}")]
    BadIpLength(u8),
}

fn take<const N: usize>(b: &[u8], at: usize) -> Result<&[u8; N], BeaconError> {
    b.get(at..at + N).and_then(|s| s.try_into().ok()).ok_or(BeaconError::Truncated)
}

fn id(b: &[u8], at: usize) -> Result<NodeId, BeaconError> {
    take::<4>(b, at).map(|v| u32::from_be_bytes(*v))
}

fn address(b: &[u8]) -> Result<SocketAddr, BeaconError> {
    let (ip, port_at): (IpAddr, usize) = match *b.first().ok_or(BeaconError::Truncated)? {
        4 => (Ipv4Addr::from(*take::<4>(b, 1)?).into(), 5),
        16 => (Ipv6Addr::from(*take::<16>(b, 1)?).into(), 17),
        other => return Err(BeaconError::BadIpLength(other)),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(*take::<2>(b, port_at)?)))
}

fn put_address(addr: &SocketAddr, out: &mut Vec<u8>) {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(16);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

impl<'a> Message<'a> {
    /// Decodes a message.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, BeaconError> {
        let (&kind, b) = bytes.split_first().ok_or(BeaconError::Truncated)?;
        Ok(match kind {
            0x01 => Message::Discover { node: id(b, 0)?, key: take::<32>(b, 4).ok() },
            0x02 => Message::DiscoverReply(address(b)?),
            0x03 => Message::PunchRequest { requester: id(b, 0)?, target: id(b, 4)? },
            0x04 => Message::PunchCommand(address(b)?),
            0x05 => Message::Relay { from: id(b, 0)?, to: id(b, 4)?, frame: &b[8..] },
            0x06 => Message::RelayDeliver { from: id(b, 0)?, frame: &b[4..] },
            0x07 => {
                let count = usize::from(u16::from_be_bytes(*take::<2>(b, 4)?));
                let nodes = b.get(6..6 + 4 * count).ok_or(BeaconError::Truncated)?;
                Message::Sync { beacon: id(b, 0)?, nodes }
            }
            0x08 => Message::DiscoverEx { node: id(b, 0)? },
            0x09 => Message::RelayDeliverDest { from: id(b, 0)?, to: id(b, 4)?, frame: &b[8..] },
            0x0A => Message::Notify { kind: *b.first().ok_or(BeaconError::Truncated)? },
            other => return Err(BeaconError::UnknownType(other)),
        })
    }

    /// Appends the encoded message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Message::Discover { node, key } => {
                out.push(0x01);
                out.extend_from_slice(&node.to_be_bytes());
                if let Some(key) = key {
                    out.extend_from_slice(*key);
                }
            }
            Message::DiscoverReply(addr) => {
                out.push(0x02);
                put_address(addr, out);
            }
            Message::PunchRequest { requester, target } => {
                out.push(0x03);
                out.extend_from_slice(&requester.to_be_bytes());
                out.extend_from_slice(&target.to_be_bytes());
            }
            Message::PunchCommand(addr) => {
                out.push(0x04);
                put_address(addr, out);
            }
            Message::Relay { from, to, frame } => {
                out.extend_from_slice(&relay_header(*from, *to));
                out.extend_from_slice(frame);
            }
            Message::RelayDeliver { from, frame } => {
                out.push(0x06);
                out.extend_from_slice(&from.to_be_bytes());
                out.extend_from_slice(frame);
            }
            Message::Sync { beacon, nodes } => {
                out.push(0x07);
                out.extend_from_slice(&beacon.to_be_bytes());
                out.extend_from_slice(&((nodes.len() / 4) as u16).to_be_bytes());
                out.extend_from_slice(nodes);
            }
            Message::DiscoverEx { node } => {
                out.push(0x08);
                out.extend_from_slice(&node.to_be_bytes());
            }
            Message::RelayDeliverDest { from, to, frame } => {
                out.push(0x09);
                out.extend_from_slice(&from.to_be_bytes());
                out.extend_from_slice(&to.to_be_bytes());
                out.extend_from_slice(frame);
            }
            Message::Notify { kind } => out.extend_from_slice(&[0x0A, *kind]),
        }
    }
}

/// The nine bytes in front of a frame sent through the relay.
pub fn relay_header(from: NodeId, to: NodeId) -> [u8; RELAY_HEADER_LEN] {
    let (f, t) = (from.to_be_bytes(), to.to_be_bytes());
    [0x05, f[0], f[1], f[2], f[3], t[0], t[1], t[2], t[3]]
}
