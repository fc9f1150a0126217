//! `Noise_IX_25519_AESGCM_SHA256`, exactly as the Noise specification (revision 34) defines it, and nothing else.
//!
//! ```text
//! -> e, s
//! <- e, ee, se, s, es
//! ```
//!
//! Message 1 is 64 bytes and a payload in clear; message 2 is 96 bytes and an encrypted payload. What the session
//! upgrade puts into prologue and payloads is in docs/security/session-upgrade.md.

use crate::crypto::{SessionKey, TunnelSecret, hkdf_pair, sha256};
use crate::wire::frame::TAG_LEN;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Protocol name, which starts the transcript.
const NAME: &[u8] = b"Noise_IX_25519_AESGCM_SHA256";
/// Bytes of message 1 before its payload: ephemeral and static key.
pub const MESSAGE1_LEN: usize = 64;
/// Bytes of message 2 besides its payload: ephemeral key, sealed static key, tag of the payload.
pub const MESSAGE2_LEN: usize = 32 + 32 + TAG_LEN + TAG_LEN;

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// Too short for its keys.
    #[error("message too short")]
    TooShort,
    /// A key agreement yields zeros: a public key of low order.
    #[error("low-order public key")]
    LowOrder,
    /// A tag is wrong: another transcript, other keys, or a changed message.
    #[error("wrong tag")]
    Tag,
    /// The library refused, which needs no more memory than usual and does not happen.
    #[error("cipher failure")]
    Cipher,
}

/// The keys of a finished handshake (`Split`), as one side uses them.
#[derive(Debug)]
pub struct Keys {
    /// Seals what this side sends.
    pub send: SessionKey,
    /// Opens what this side receives.
    pub receive: SessionKey,
    /// Handshake hash: names the session, secret to nobody.
    pub hash: [u8; 32],
}

/// The nonce of message `n` under a Noise AES-GCM key: four zero bytes and the big-endian counter.
pub fn nonce(n: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[4..].copy_from_slice(&n.to_be_bytes());
    out
}

/// `SymmetricState` of the specification, section 5.2, while no cipher key is there.
#[derive(Clone)]
struct Transcript {
    hash: [u8; 32],
    chain: Zeroizing<[u8; 32]>,
}

/// `SymmetricState` once a key is there.
struct Keyed {
    at: Transcript,
    key: SessionKey,
    n: u64,
}

impl Transcript {
    fn new(prologue: &[u8]) -> Transcript {
        let mut hash = [0; 32];
        hash[..NAME.len()].copy_from_slice(NAME);
        let mut start = Transcript { hash, chain: Zeroizing::new(hash) };
        start.mix_hash(prologue);
        start
    }

    fn mix_hash(&mut self, data: &[u8]) {
        let mut bytes = Vec::with_capacity(32 + data.len());
        bytes.extend_from_slice(&self.hash);
        bytes.extend_from_slice(data);
        self.hash = sha256(&bytes);
    }

    /// MixKey with the agreement of two keys.
    fn mix_key(mut self, secret: &TunnelSecret, public: &[u8; 32]) -> Result<Keyed, NoiseError> {
        let shared = secret.agree(public).ok_or(NoiseError::LowOrder)?;
        let [chain, key] = hkdf_pair(&self.chain, &shared[..]).ok_or(NoiseError::Cipher)?;
        self.chain = chain;
        Ok(Keyed { at: self, key: SessionKey::from_bytes(&key).ok_or(NoiseError::Cipher)?, n: 0 })
    }
}

impl Keyed {
    fn mix_key(self, secret: &TunnelSecret, public: &[u8; 32]) -> Result<Keyed, NoiseError> {
        self.at.mix_key(secret, public)
    }

    fn encrypt_and_hash(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let start = out.len();
        out.extend_from_slice(plain);
        let sealed = self.key.seal(nonce(self.n), &self.at.hash, &mut out[start..]);
        out.extend_from_slice(&sealed.ok_or(NoiseError::Cipher)?);
        self.n += 1;
        self.at.mix_hash(&out[start..]);
        Ok(())
    }

    fn decrypt_and_hash(&mut self, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut text = sealed.to_vec();
        let plain = self.key.open(nonce(self.n), &self.at.hash, &mut text).ok_or(NoiseError::Tag)?.len();
        text.truncate(plain);
        self.n += 1;
        self.at.mix_hash(sealed);
        Ok(text)
    }

    /// Split: the keys of the initiator's and of the responder's sending direction.
    fn split(self) -> Result<[SessionKey; 2], NoiseError> {
        let [first, second] = hkdf_pair(&self.at.chain, &[]).ok_or(NoiseError::Cipher)?;
        let key = |bytes: &[u8; 32]| SessionKey::from_bytes(bytes).ok_or(NoiseError::Cipher);
        Ok([key(&first)?, key(&second)?])
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], NoiseError> {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or(NoiseError::TooShort)
}

/// What an initiator keeps between message 1 and message 2. Dropping it wipes the ephemeral secret and the chaining key.
pub struct Initiator {
    at: Transcript,
    own_static: Arc<TunnelSecret>,
    ephemeral: TunnelSecret,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Initiator(..)")
    }
}

/// What message 2 brought.
#[derive(Debug)]
pub struct Finished {
    /// The responder's static key, whose possession it has proven.
    pub remote_static: [u8; 32],
    /// Payload of message 2.
    pub payload: Vec<u8>,
    /// The session.
    pub keys: Keys,
}

impl Initiator {
    /// Begins a handshake and appends message 1 to `out`. `ephemeral` must be fresh.
    pub fn start(
        prologue: &[u8],
        own_static: Arc<TunnelSecret>,
        ephemeral: TunnelSecret,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Initiator {
        let mut at = Transcript::new(prologue);
        // e, s, payload: there is no key yet, so EncryptAndHash is MixHash.
        for part in [&ephemeral.public_key()[..], &own_static.public_key()[..], payload] {
            at.mix_hash(part);
            out.extend_from_slice(part);
        }
        Initiator { at, own_static, ephemeral }
    }

    /// Reads message 2. A refused message changes nothing: the right one may still come.
    ///
    /// # Errors
    /// See [`NoiseError`].
    pub fn finish(&self, message: &[u8]) -> Result<Finished, NoiseError> {
        if message.len() < MESSAGE2_LEN {
            return Err(NoiseError::TooShort);
        }
        let theirs: &[u8; 32] = array(message, 0)?;
        let mut at = self.at.clone();
        at.mix_hash(theirs);
        let keyed = at.mix_key(&self.ephemeral, theirs)?;
        let mut keyed = keyed.mix_key(&self.own_static, theirs)?;
        let remote = keyed.decrypt_and_hash(&message[32..64 + TAG_LEN])?;
        let remote_static: [u8; 32] = remote.try_into().map_err(|_| NoiseError::TooShort)?;
        let mut keyed = keyed.mix_key(&self.ephemeral, &remote_static)?;
        let payload = keyed.decrypt_and_hash(&message[64 + TAG_LEN..])?;
        let hash = keyed.at.hash;
        let [send, receive] = keyed.split()?;
        Ok(Finished { remote_static, payload, keys: Keys { send, receive, hash } })
    }
}

/// The keys and the payload of message 1. Nothing in it is proven yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message1<'a> {
    /// The initiator's ephemeral key.
    pub ephemeral: &'a [u8; 32],
    /// The initiator's static key.
    pub remote_static: &'a [u8; 32],
    /// Payload, in clear.
    pub payload: &'a [u8],
}

impl<'a> Message1<'a> {
    /// Splits message 1.
    ///
    /// # Errors
    /// [`NoiseError::TooShort`].
    pub fn parse(message: &'a [u8]) -> Result<Message1<'a>, NoiseError> {
        let (ephemeral, remote_static) = (array(message, 0)?, array(message, 32)?);
        Ok(Message1 { ephemeral, remote_static, payload: &message[MESSAGE1_LEN..] })
    }
}

/// Answers message 1: appends message 2 to `out` and returns the session. `ephemeral` must be fresh; it is gone afterwards.
///
/// # Errors
/// See [`NoiseError`].
pub fn respond(
    prologue: &[u8],
    own_static: &TunnelSecret,
    ephemeral: TunnelSecret,
    first: &Message1<'_>,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<Keys, NoiseError> {
    let mut at = Transcript::new(prologue);
    for part in [&first.ephemeral[..], &first.remote_static[..], first.payload, &ephemeral.public_key()[..]] {
        at.mix_hash(part);
    }
    out.extend_from_slice(ephemeral.public_key());
    let keyed = at.mix_key(&ephemeral, first.ephemeral)?;
    let mut keyed = keyed.mix_key(&ephemeral, first.remote_static)?;
    keyed.encrypt_and_hash(own_static.public_key(), out)?;
    let mut keyed = keyed.mix_key(own_static, first.ephemeral)?;
    keyed.encrypt_and_hash(payload, out)?;
    let hash = keyed.at.hash;
    let [receive, send] = keyed.split()?;
    Ok(Keys { send, receive, hash })
}
