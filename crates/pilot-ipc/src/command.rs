//! Command bytes (spec 07 section 4).

/// A request a client may send. Every reply's byte is the request's plus one ([`Command::reply`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Command {
    Bind = 0x01,
    Dial = 0x03,
    /// Never answered.
    Send = 0x06,
    Close = 0x08,
    /// Never answered.
    SendTo = 0x0B,
    Info = 0x0D,
    Handshake = 0x0F,
    ResolveHostname = 0x11,
    SetHostname = 0x13,
    SetVisibility = 0x15,
    Deregister = 0x17,
    SetTags = 0x19,
    SetWebhook = 0x1B,
    Network = 0x1F,
    Health = 0x21,
    Managed = 0x23,
    RotateKey = 0x25,
    Broadcast = 0x29,
    /// Never answered.
    Cancel = 0x2B,
    PreferDirect = 0x2D,
    SubmitBadge = 0x2F,
    EnrollRecovery = 0x31,
    SignEnvelope = 0x33,
    VerifyEnvelope = 0x35,
    Unbind = 0x37,
    SendToConfirm = 0x39,
    /// Extension: ends our sending direction (docs/extensions.md).
    Finish = 0x3B,
    /// Extension: hides the node's name from strangers, or shows it (docs/extensions.md).
    SetHidden = 0x3D,
    /// Extension: peers the node insists on upgraded sessions with (docs/extensions.md).
    Pins = 0x3F,
}

/// Bytes only the daemon sends that are no reply to one particular request.
pub mod push {
    /// A peer opened a stream to a bound port.
    pub const ACCEPT: u8 = 0x05;
    /// Stream data.
    pub const RECV: u8 = 0x07;
    /// Reply to Close and, as a push, the end of a stream's receive side.
    pub const CLOSE_OK: u8 = 0x09;
    /// Any request failed.
    pub const ERROR: u8 = 0x0A;
    /// A datagram.
    pub const RECV_FROM: u8 = 0x0C;
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 29] = [
        Command::Bind,
        Command::Dial,
        Command::Send,
        Command::Close,
        Command::SendTo,
        Command::Info,
        Command::Handshake,
        Command::ResolveHostname,
        Command::SetHostname,
        Command::SetVisibility,
        Command::Deregister,
        Command::SetTags,
        Command::SetWebhook,
        Command::Network,
        Command::Health,
        Command::Managed,
        Command::RotateKey,
        Command::Broadcast,
        Command::Cancel,
        Command::PreferDirect,
        Command::SubmitBadge,
        Command::EnrollRecovery,
        Command::SignEnvelope,
        Command::VerifyEnvelope,
        Command::Unbind,
        Command::SendToConfirm,
        Command::Finish,
        Command::SetHidden,
        Command::Pins,
    ];

    /// The command of a byte.
    pub fn from_byte(byte: u8) -> Option<Command> {
        Self::ALL.into_iter().find(|c| *c as u8 == byte)
    }

    /// The byte of the reply, or `None` for commands that never get one.
    pub fn reply(self) -> Option<u8> {
        match self {
            Command::Send | Command::SendTo | Command::Cancel => None,
            other => Some(other as u8 + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_byte_is_a_reply_or_push_byte() {
        for c in Command::ALL {
            assert_eq!(Command::from_byte(c as u8), Some(c));
            if let Some(reply) = c.reply() {
                assert_eq!(Command::from_byte(reply), None, "{c:?}");
            }
        }
        for b in [push::ACCEPT, push::RECV, push::CLOSE_OK, push::ERROR, push::RECV_FROM] {
            assert_eq!(Command::from_byte(b), None);
        }
    }
}
