//! One session: an AES-256-GCM key agreed with a peer, and what happened under it (spec 02 sections 8 to 10).

use super::replay::{Accepted, Epochs, Refused};
use crate::NodeId;
use crate::crypto::SessionKey;
use crate::wire::frame::{PILS_HEADER_LEN, Pils};
use std::time::{Duration, Instant};

/// Consecutive faults of one kind that end a session.
pub const MAX_FAULTS: u32 = 5;
/// Age below which decrypt failures do not end a session.
const DECRYPT_GRACE: Duration = Duration::from_secs(3);
/// Age below which replays and frames outside the window do not end a session.
const REPLAY_GRACE: Duration = Duration::from_secs(1);
/// Age from which a single replay or frame outside the window ends a session.
const REPLAY_FAST_AGE: Duration = Duration::from_secs(60);

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

/// A fault and its consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenError {
    /// What was wrong with the frame.
    pub fault: Fault,
    /// The session must be dropped and agreed anew.
    pub fatal: bool,
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
    epoch_start: Instant,
    decrypt_faults: u32,
    outside_faults: u32,
    replay_faults: u32,
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
            epoch_start: now,
            decrypt_faults: 0,
            outside_faults: 0,
            replay_faults: 0,
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
            self.decrypt_faults += 1;
            let old_enough = now.saturating_duration_since(self.installed) >= DECRYPT_GRACE;
            let fatal = self.decrypt_faults >= MAX_FAULTS && old_enough;
            return Err(OpenError { fault: Fault::Decrypt, fatal });
        };
        match self.epochs.check(header.prefix, header.counter) {
            Ok(accepted) => {
                (self.decrypt_faults, self.outside_faults, self.replay_faults) = (0, 0, 0);
                self.decrypted = Some(now);
                if accepted.opened {
                    self.epoch_start = now;
                }
                Ok((plain, accepted))
            }
            Err(refused) => {
                let age = now.saturating_duration_since(self.epoch_start);
                let (fault, fatal) = match refused {
                    Refused::Replay => (Fault::Replay, Self::too_many(&mut self.replay_faults, age)),
                    Refused::Outside => (Fault::Outside, Self::too_many(&mut self.outside_faults, age)),
                    Refused::OldEpoch => (Fault::OldEpoch, false),
                    Refused::TooManyEpochs => (Fault::TooManyEpochs, true),
                };
                Err(OpenError { fault, fatal })
            }
        }
    }

    fn too_many(faults: &mut u32, age: Duration) -> bool {
        *faults += 1;
        age >= REPLAY_FAST_AGE || (*faults >= MAX_FAULTS && age >= REPLAY_GRACE)
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
