//! One session: an AES-256-GCM key agreed with a peer, and what happened under it (spec 02 sections 8 to 10).

use super::replay::{Accepted, Epochs, Refused};
use crate::NodeId;
use crate::crypto::SessionKey;
use crate::wire::frame::{PILS_HEADER_LEN, Pils};
use std::time::{Duration, Instant};

/// Frames in a row that do not open, in a session younger than [`SETTLED`], after which the peer is asked for its key.
pub const MAX_FAULTS: u32 = 5;
/// From this age on the first one is enough: what was in flight when the session was made has arrived.
pub const SETTLED: Duration = Duration::from_secs(1);

/// Why a PILS frame did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The tag is wrong.
    Decrypt,
    /// Authenticated, but the counter was used before.
    Replay,
    /// Authenticated, but 256 or more behind.
    Outside,
    /// Authenticated, but refused by an older or retired epoch.
    OldEpoch,
    /// Authenticated, but the session has seen too many epochs.
    TooManyEpochs,
}

/// What is to be done about a fault. A reference ends the session after a few (spec 02 section 10), which lets anybody who
/// forges five frames, or repeats one, end it. Nothing forged or repeated has a consequence here that costs the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the frame is dropped. A replayed frame was sealed by the peer, so it holds the key.
    None,
    /// Ask the peer for its key: perhaps it has another one. The session stays.
    Ask,
    /// Agree anew: the session can take no further frames.
    Renew,
}

/// A fault and its consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenError {
    /// What was wrong with the frame.
    pub fault: Fault,
    /// Its consequence.
    pub remedy: Remedy,
}

/// A session with one peer.
#[derive(Debug)]
pub struct Session {
    key: SessionKey,
    /// The peer's X25519 public key.
    pub peer_key: [u8; 32],
    /// The exchange was signed by the peer's registered identity.
    pub authenticated: bool,
    /// When it was derived.
    pub installed: Instant,
    /// When a frame last opened under it.
    pub decrypted: Option<Instant>,
    prefix: [u8; 4],
    counter: u64,
    epochs: Epochs,
    decrypt_faults: u32,
}

impl Session {
    /// A session that sends under `prefix`, which must be random: the counter starts at 1.
    pub fn new(
        key: SessionKey,
        peer_key: [u8; 32],
        authenticated: bool,
        prefix: [u8; 4],
        now: Instant,
    ) -> Session {
        Session {
            key,
            peer_key,
            authenticated,
            installed: now,
            decrypted: None,
            prefix,
            counter: 0,
            epochs: Epochs::default(),
            decrypt_faults: 0,
        }
    }

    /// Turns `frame[start..]`, which is 20 bytes of room and a packet, into a PILS frame: fills in the header,
    /// encrypts in place and appends the tag. False: the cipher refused (the caller drops the packet).
    pub fn seal(&mut self, node: NodeId, frame: &mut Vec<u8>, start: usize) -> bool {
        let Some(body) = frame.get_mut(start..).filter(|b| b.len() >= PILS_HEADER_LEN) else { return false };
        self.counter += 1;
        let header = Pils { node, prefix: self.prefix, counter: self.counter };
        let (head, text) = body.split_at_mut(PILS_HEADER_LEN);
        head.copy_from_slice(&header.header());
        let Some(tag) = self.key.seal(header.nonce(), &node.to_be_bytes(), text) else { return false };
        frame.extend_from_slice(&tag);
        true
    }

    /// Opens ciphertext and tag in place. The tag is judged before the counter, so that a forged frame can
    /// never be recorded as seen.
    pub fn open<'a>(
        &mut self,
        now: Instant,
        header: &Pils,
        text: &'a mut [u8],
    ) -> Result<(&'a mut [u8], Accepted), OpenError> {
        let aad = header.node.to_be_bytes();
        let Some(plain) = self.key.open(header.nonce(), &aad, text) else {
            self.decrypt_faults = self.decrypt_faults.saturating_add(1);
            let settled = now.saturating_duration_since(self.installed) >= SETTLED;
            let remedy =
                if settled || self.decrypt_faults >= MAX_FAULTS { Remedy::Ask } else { Remedy::None };
            return Err(OpenError { fault: Fault::Decrypt, remedy });
        };
        match self.epochs.check(header.prefix, header.counter) {
            Ok(accepted) => {
                self.decrypt_faults = 0;
                self.decrypted = Some(now);
                Ok((plain, accepted))
            }
            Err(refused) => {
                let (fault, remedy) = match refused {
                    Refused::Replay => (Fault::Replay, Remedy::None),
                    Refused::Outside => (Fault::Outside, Remedy::None),
                    Refused::OldEpoch => (Fault::OldEpoch, Remedy::None),
                    Refused::TooManyEpochs => (Fault::TooManyEpochs, Remedy::Renew),
                };
                Err(OpenError { fault, remedy })
            }
        }
    }

    /// Frames under this prefix belong to this session.
    pub fn knows_prefix(&self, prefix: [u8; 4]) -> bool {
        self.epochs.knows(prefix)
    }

    /// Last sign that the peer holds this session: the last opened frame, else the exchange itself.
    pub fn heard(&self) -> Instant {
        self.decrypted.unwrap_or(self.installed)
    }
}
