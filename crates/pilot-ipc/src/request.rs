//! Typed requests: their encoding, and what is said about malformed ones (spec 07 sections 4 and 7 to 16).

use crate::command::Command;
use bytes::{BufMut as _, Bytes, BytesMut};
use pilot_proto::{Addr, NodeId};

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request {
    Bind {
        port: u16,
    },
    Unbind {
        port: u16,
    },
    Dial {
        to: Addr,
        port: u16,
    },
    Cancel,
    Send {
        conn: u32,
        data: Bytes,
    },
    Close {
        conn: u32,
    },
    Finish {
        conn: u32,
    },
    SendTo {
        to: Addr,
        port: u16,
        data: Bytes,
        confirm: bool,
    },
    Broadcast {
        network: u16,
        port: u16,
        token: Token,
        data: Bytes,
    },
    Info,
    Health,
    Handshake(Handshake),
    ResolveHostname(String),
    SetHostname(String),
    SetVisibility {
        public: bool,
    },
    SetHidden {
        hidden: bool,
    },
    /// Lists the pins of upgraded sessions, or clears one.
    Pins {
        clear: Option<NodeId>,
    },
    Deregister,
    /// JSON array of strings.
    SetTags(Bytes),
    SetWebhook(String),
    Network(Network),
    Managed(Managed),
    RotateKey,
    PreferDirect {
        node: NodeId,
    },
    /// JSON object.
    SubmitBadge(Bytes),
    /// JSON object.
    EnrollRecovery(Bytes),
    /// JSON object.
    SignEnvelope(Bytes),
    /// JSON object.
    VerifyEnvelope(Bytes),
}

/// Sub-commands of Handshake (spec 07 section 11).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Handshake {
    Send { node: NodeId, justification: String },
    Approve { node: NodeId },
    Reject { node: NodeId, reason: String },
    Pending,
    Trusted,
    Revoke { node: NodeId },
    Wait { node: NodeId, timeout_ms: u32 },
}

/// A token as it came; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Token(Bytes);

impl std::ops::Deref for Token {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Token {
    fn from(bytes: Bytes) -> Token {
        Token(bytes)
    }
}

impl From<String> for Token {
    fn from(text: String) -> Token {
        Token(text.into())
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Token {
        Token::from(text.to_owned())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "(token of {} bytes)", self.0.len())
    }
}

/// Sub-commands of Network (spec 07 section 13).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Network {
    List,
    Join { network: u16, token: Token },
    Leave { network: u16 },
    Members { network: u16 },
    Invite { network: u16, node: NodeId },
    PollInvites,
    RespondInvite { network: u16, accept: bool },
}

/// Sub-commands of Managed (spec 07 section 14). Network 0: any one active.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Managed {
    Status { network: u16 },
    Cycle { network: u16 },
    Reconcile { network: u16 },
    PolicyGet { network: u16 },
    PolicySet { network: u16, token: Token, policy: Bytes },
    MemberTagsGet { network: u16, node: NodeId },
    MemberTagsSet { network: u16, node: NodeId, tags: Bytes },
}

/// A frame that is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Answer with an error of this text.
    Answer(String),
    /// Send and SendTo are never answered.
    Silent,
}

impl From<&str> for Malformed {
    fn from(text: &str) -> Malformed {
        Malformed::Answer(text.to_owned())
    }
}

/// Reads fixed fields off the front of a body.
struct Fields(Bytes);

impl Fields {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.0.len() < N {
            return None;
        }
        let head = self.0.split_to(N);
        head[..].try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
    fn addr(&mut self) -> Option<Addr> {
        self.take::<6>().map(|b| Addr::from_slice(&b))
    }
    fn addr_port(&mut self) -> Option<(Addr, u16)> {
        if self.0.len() < 8 {
            return None;
        }
        Some((self.addr()?, self.u16()?))
    }
    /// The optional network of a managed command; absent counts as 0.
    fn network_or_zero(&mut self) -> u16 {
        self.u16().unwrap_or(0)
    }
    fn token(&mut self) -> Option<Result<Bytes, ()>> {
        let len = self.u16()? as usize;
        Some(if self.0.len() < len { Err(()) } else { Ok(self.0.split_to(len)) })
    }
    fn text(self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Request {
    /// Decodes a frame. Trailing bytes after fixed fields are ignored except where spec 07 section 3 demands exact
    /// lengths. Bytes that are not UTF-8 in a text are replaced by U+FFFD.
    pub fn parse(command: u8, body: Bytes) -> Result<Request, Malformed> {
        let Some(known) = Command::from_byte(command) else {
            return Err(Malformed::Answer(format!("unknown command: 0x{command:02X}")));
        };
        let mut f = Fields(body);
        Ok(match known {
            Command::Bind => Request::Bind { port: f.u16().ok_or("bind: missing port")? },
            Command::Unbind => {
                if f.0.len() != 2 {
                    return Err("unbind: port is required".into());
                }
                Request::Unbind { port: f.u16().ok_or("unbind: port is required")? }
            }
            Command::Dial => {
                let (to, port) = f.addr_port().ok_or("dial: missing address/port")?;
                Request::Dial { to, port }
            }
            Command::Cancel => Request::Cancel,
            Command::Send => Request::Send { conn: f.u32().ok_or(Malformed::Silent)?, data: f.0 },
            Command::Close => Request::Close { conn: f.u32().ok_or("close: missing conn_id")? },
            Command::Finish => Request::Finish { conn: f.u32().ok_or("finish: missing conn_id")? },
            Command::SendTo => {
                let (to, port) = f.addr_port().ok_or(Malformed::Silent)?;
                Request::SendTo { to, port, data: f.0, confirm: false }
            }
            Command::SendToConfirm => {
                let (to, port) = f.addr_port().ok_or("sendto: missing header")?;
                Request::SendTo { to, port, data: f.0, confirm: true }
            }
            Command::Broadcast => {
                if f.0.len() < 6 {
                    return Err("broadcast: missing header".into());
                }
                let missing = "broadcast: missing header";
                let network = f.u16().ok_or(missing)?;
                let port = f.u16().ok_or(missing)?;
                let token = f.token().ok_or(missing)?.map_err(|()| "broadcast: truncated token")?;
                Request::Broadcast { network, port, token: token.into(), data: f.0 }
            }
            Command::Info => Request::Info,
            Command::Health => Request::Health,
            Command::Handshake => Request::Handshake(Handshake::parse(f)?),
            Command::ResolveHostname => {
                if f.0.is_empty() {
                    return Err("resolve_hostname: missing hostname".into());
                }
                Request::ResolveHostname(f.text())
            }
            Command::SetHostname => Request::SetHostname(f.text()),
            Command::SetVisibility => {
                Request::SetVisibility { public: f.u8().ok_or("set_visibility: missing value")? == 1 }
            }
            Command::SetHidden => match f.u8() {
                Some(value @ (0 | 1)) => Request::SetHidden { hidden: value == 1 },
                _ => return Err("set_hidden: value must be 0 or 1".into()),
            },
            Command::Pins => match f.u8() {
                Some(0) => Request::Pins { clear: None },
                Some(1) => Request::Pins { clear: Some(f.u32().ok_or("pins: missing node id")?) },
                _ => return Err("pins: the first byte must be 0 (list) or 1 (clear)".into()),
            },
            Command::Deregister => Request::Deregister,
            Command::SetTags => Request::SetTags(f.0),
            Command::SetWebhook => Request::SetWebhook(f.text()),
            Command::Network => Request::Network(Network::parse(f)?),
            Command::Managed => Request::Managed(Managed::parse(f)?),
            Command::RotateKey => Request::RotateKey,
            Command::PreferDirect => {
                let wrong = "prefer_direct: payload must be 4 bytes (node_id)";
                if f.0.len() != 4 {
                    return Err(wrong.into());
                }
                Request::PreferDirect { node: f.u32().ok_or(wrong)? }
            }
            Command::SubmitBadge => Request::SubmitBadge(f.0),
            Command::EnrollRecovery => Request::EnrollRecovery(f.0),
            Command::SignEnvelope => Request::SignEnvelope(f.0),
            Command::VerifyEnvelope => Request::VerifyEnvelope(f.0),
        })
    }

    /// Command and body. Token lengths over 65,535 bytes do not exist on the wire: such a token is cut (and then
    /// refused by the daemon).
    pub fn encode(&self) -> (Command, Bytes) {
        let mut b = BytesMut::new();
        let command = match self {
            Request::Bind { port } => {
                b.put_u16(*port);
                Command::Bind
            }
            Request::Unbind { port } => {
                b.put_u16(*port);
                Command::Unbind
            }
            Request::Dial { to, port } => {
                put_addr(&mut b, *to, *port);
                Command::Dial
            }
            Request::Cancel => Command::Cancel,
            Request::Send { conn, data } => {
                b.put_u32(*conn);
                b.put_slice(data);
                Command::Send
            }
            Request::Close { conn } => {
                b.put_u32(*conn);
                Command::Close
            }
            Request::Finish { conn } => {
                b.put_u32(*conn);
                Command::Finish
            }
            Request::SendTo { to, port, data, confirm } => {
                put_addr(&mut b, *to, *port);
                b.put_slice(data);
                if *confirm { Command::SendToConfirm } else { Command::SendTo }
            }
            Request::Broadcast { network, port, token, data } => {
                b.put_u16(*network);
                b.put_u16(*port);
                put_token(&mut b, token);
                b.put_slice(data);
                Command::Broadcast
            }
            Request::Info => Command::Info,
            Request::Health => Command::Health,
            Request::Handshake(h) => {
                h.encode(&mut b);
                Command::Handshake
            }
            Request::ResolveHostname(name) => {
                b.put_slice(name.as_bytes());
                Command::ResolveHostname
            }
            Request::SetHostname(name) => {
                b.put_slice(name.as_bytes());
                Command::SetHostname
            }
            Request::SetVisibility { public } => {
                b.put_u8(u8::from(*public));
                Command::SetVisibility
            }
            Request::SetHidden { hidden } => {
                b.put_u8(u8::from(*hidden));
                Command::SetHidden
            }
            Request::Pins { clear } => {
                b.put_u8(u8::from(clear.is_some()));
                if let Some(node) = clear {
                    b.put_u32(*node);
                }
                Command::Pins
            }
            Request::Deregister => Command::Deregister,
            Request::SetTags(json) => {
                b.put_slice(json);
                Command::SetTags
            }
            Request::SetWebhook(url) => {
                b.put_slice(url.as_bytes());
                Command::SetWebhook
            }
            Request::Network(n) => {
                n.encode(&mut b);
                Command::Network
            }
            Request::Managed(m) => {
                m.encode(&mut b);
                Command::Managed
            }
            Request::RotateKey => Command::RotateKey,
            Request::PreferDirect { node } => {
                b.put_u32(*node);
                Command::PreferDirect
            }
            Request::SubmitBadge(json) => {
                b.put_slice(json);
                Command::SubmitBadge
            }
            Request::EnrollRecovery(json) => {
                b.put_slice(json);
                Command::EnrollRecovery
            }
            Request::SignEnvelope(json) => {
                b.put_slice(json);
                Command::SignEnvelope
            }
            Request::VerifyEnvelope(json) => {
                b.put_slice(json);
                Command::VerifyEnvelope
            }
        };
        (command, b.freeze())
    }
}

fn put_addr(b: &mut BytesMut, addr: Addr, port: u16) {
    b.put_slice(&addr.to_bytes());
    b.put_u16(port);
}

fn put_token(b: &mut BytesMut, token: &[u8]) {
    let len = token.len().min(u16::MAX as usize);
    b.put_u16(len as u16);
    b.put_slice(&token[..len]);
}

impl Handshake {
    fn parse(mut f: Fields) -> Result<Handshake, Malformed> {
        let sub = f.u8().ok_or("handshake: missing sub-command")?;
        Ok(match sub {
            0x01 => {
                let node = f.u32().ok_or("handshake request: missing node_id")?;
                Handshake::Send { node, justification: f.text() }
            }
            0x02 => Handshake::Approve { node: f.u32().ok_or("handshake approve: missing node_id")? },
            0x03 => {
                let node = f.u32().ok_or("handshake reject: missing node_id")?;
                Handshake::Reject { node, reason: f.text() }
            }
            0x04 => Handshake::Pending,
            0x05 => Handshake::Trusted,
            0x06 => Handshake::Revoke { node: f.u32().ok_or("handshake revoke: missing node_id")? },
            0x07 => {
                let wrong = "handshake wait: payload must be [nodeID(4)][timeoutMs(4)]";
                Handshake::Wait { node: f.u32().ok_or(wrong)?, timeout_ms: f.u32().ok_or(wrong)? }
            }
            other => return Err(Malformed::Answer(format!("handshake: unknown sub-command 0x{other:02X}"))),
        })
    }

    fn encode(&self, b: &mut BytesMut) {
        match self {
            Handshake::Send { node, justification } => {
                b.put_u8(0x01);
                b.put_u32(*node);
                b.put_slice(justification.as_bytes());
            }
            Handshake::Approve { node } => {
                b.put_u8(0x02);
                b.put_u32(*node);
            }
            Handshake::Reject { node, reason } => {
                b.put_u8(0x03);
                b.put_u32(*node);
                b.put_slice(reason.as_bytes());
            }
            Handshake::Pending => b.put_u8(0x04),
            Handshake::Trusted => b.put_u8(0x05),
            Handshake::Revoke { node } => {
                b.put_u8(0x06);
                b.put_u32(*node);
            }
            Handshake::Wait { node, timeout_ms } => {
                b.put_u8(0x07);
                b.put_u32(*node);
                b.put_u32(*timeout_ms);
            }
        }
    }
}

impl Network {
    fn parse(mut f: Fields) -> Result<Network, Malformed> {
        let sub = f.u8().ok_or("network: missing sub-command")?;
        Ok(match sub {
            0x01 => Network::List,
            0x02 => {
                let network = f.u16().ok_or("network join: missing network_id")?;
                Network::Join { network, token: f.text().into() }
            }
            0x03 => Network::Leave { network: f.u16().ok_or("network leave: missing network_id")? },
            0x04 => Network::Members { network: f.u16().ok_or("network members: missing network_id")? },
            0x05 => {
                let wrong = "network invite: missing network_id or target_node_id";
                Network::Invite { network: f.u16().ok_or(wrong)?, node: f.u32().ok_or(wrong)? }
            }
            0x06 => Network::PollInvites,
            0x07 => {
                let wrong = "network respond-invite: missing network_id or accept flag";
                Network::RespondInvite { network: f.u16().ok_or(wrong)?, accept: f.u8().ok_or(wrong)? == 1 }
            }
            other => return Err(Malformed::Answer(format!("network: unknown sub-command 0x{other:02X}"))),
        })
    }

    fn encode(&self, b: &mut BytesMut) {
        match self {
            Network::List => b.put_u8(0x01),
            Network::Join { network, token } => {
                b.put_u8(0x02);
                b.put_u16(*network);
                b.put_slice(token);
            }
            Network::Leave { network } => {
                b.put_u8(0x03);
                b.put_u16(*network);
            }
            Network::Members { network } => {
                b.put_u8(0x04);
                b.put_u16(*network);
            }
            Network::Invite { network, node } => {
                b.put_u8(0x05);
                b.put_u16(*network);
                b.put_u32(*node);
            }
            Network::PollInvites => b.put_u8(0x06),
            Network::RespondInvite { network, accept } => {
                b.put_u8(0x07);
                b.put_u16(*network);
                b.put_u8(u8::from(*accept));
            }
        }
    }
}

impl Managed {
    fn parse(mut f: Fields) -> Result<Managed, Malformed> {
        let sub = f.u8().ok_or("managed: missing sub-command")?;
        Ok(match sub {
            0x02 => Managed::Status { network: f.network_or_zero() },
            0x04 => Managed::Cycle { network: f.network_or_zero() },
            0x05 => return Managed::parse_policy(f),
            0x06 => return Managed::parse_member_tags(f),
            0x07 => Managed::Reconcile { network: f.network_or_zero() },
            other => return Err(Malformed::Answer(format!("managed: unknown sub-command 0x{other:02X}"))),
        })
    }

    fn parse_policy(mut f: Fields) -> Result<Managed, Malformed> {
        let missing = "managed policy: missing sub-sub-command and network_id";
        let action = f.u8().ok_or(missing)?;
        let network = f.u16().ok_or(missing)?;
        match action {
            0x00 => Ok(Managed::PolicyGet { network }),
            0x01 => {
                let token = f
                    .token()
                    .ok_or("managed policy set: missing token length")?
                    .map_err(|()| "managed policy set: truncated token")?;
                Ok(Managed::PolicySet { network, token: token.into(), policy: f.0 })
            }
            other => Err(Malformed::Answer(format!("managed policy: unknown action 0x{other:02X}"))),
        }
    }

    fn parse_member_tags(mut f: Fields) -> Result<Managed, Malformed> {
        let missing = "managed member-tags: missing action, network_id, or node_id";
        let action = f.u8().ok_or(missing)?;
        let network = f.u16().ok_or(missing)?;
        let node = f.u32().ok_or(missing)?;
        match action {
            0x00 => Ok(Managed::MemberTagsGet { network, node }),
            0x01 if f.0.is_empty() => Err("managed member-tags set: missing tags JSON".into()),
            0x01 => Ok(Managed::MemberTagsSet { network, node, tags: f.0 }),
            other => Err(Malformed::Answer(format!("managed member-tags: unknown action 0x{other:02X}"))),
        }
    }

    fn encode(&self, b: &mut BytesMut) {
        match self {
            Managed::Status { network } => {
                b.put_u8(0x02);
                b.put_u16(*network);
            }
            Managed::Cycle { network } => {
                b.put_u8(0x04);
                b.put_u16(*network);
            }
            Managed::Reconcile { network } => {
                b.put_u8(0x07);
                b.put_u16(*network);
            }
            Managed::PolicyGet { network } => {
                b.put_slice(&[0x05, 0x00]);
                b.put_u16(*network);
            }
            Managed::PolicySet { network, token, policy } => {
                b.put_slice(&[0x05, 0x01]);
                b.put_u16(*network);
                put_token(b, token);
                b.put_slice(policy);
            }
            Managed::MemberTagsGet { network, node } => {
                b.put_slice(&[0x06, 0x00]);
                b.put_u16(*network);
                b.put_u32(*node);
            }
            Managed::MemberTagsSet { network, node, tags } => {
                b.put_slice(&[0x06, 0x01]);
                b.put_u16(*network);
                b.put_u32(*node);
                b.put_slice(tags);
            }
        }
    }
}
