//! Keys and ciphers: Ed25519 identities, X25519 agreement, AES-256-GCM sessions. All from aws-lc-rs.

use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::{aead, agreement, digest, hkdf, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Length of an Ed25519 or X25519 public key.
pub const PUBLIC_KEY_LEN: usize = 32;

/// Standard base64 with padding, as everywhere in the registry protocol.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// Decodes standard base64 of exactly `N` bytes.
pub fn unbase64<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Decodes standard base64 of any length. The caller bounds the text.
pub fn unbase64_vec(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// How people compare keys: SHA-256 of the key, `SHA256:` and 43 characters of base64.
pub fn fingerprint(public_key: &[u8; 32]) -> String {
    format!("SHA256:{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(sha256(public_key)))
}

/// A password or token: `Debug` does not show it, and its memory is erased when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself. Do not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A long-term Ed25519 identity.
pub struct Identity {
    seed: Zeroizing<[u8; 32]>,
    pair: signature::Ed25519KeyPair,
    public: [u8; 32],
}

impl Identity {
    /// The identity of a 32-byte seed. Every seed is valid; `None` only if the library fails.
    pub fn from_seed(seed: [u8; 32]) -> Option<Identity> {
        let pair = signature::Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Identity { seed: Zeroizing::new(seed), pair, public })
    }

    /// The public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public
    }

    /// The public key as the registry writes it.
    pub fn public_key_base64(&self) -> String {
        base64(self.public)
    }

    /// The secret seed, for the identity file.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Plain Ed25519 (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// Signature over a challenge text, base64.
    pub fn sign_text(&self, challenge: &str) -> String {
        base64(self.sign(challenge.as_bytes()))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.public_key_base64())
    }
}

/// Verifies an Ed25519 signature.
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public_key).verify(message, signature).is_ok()
}

/// Compares two secrets or keys without an early exit.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// A process's X25519 tunnel key (spec 02 section 4).
pub struct TunnelSecret {
    key: agreement::PrivateKey,
    public: [u8; 32],
}

impl TunnelSecret {
    /// The key of 32 secret bytes, which the caller draws from a cryptographic generator.
    pub fn from_bytes(secret: &[u8; 32]) -> Option<TunnelSecret> {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, secret).ok()?;
        let public = key.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(TunnelSecret { key, public })
    }

    /// The public half.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public
    }

    /// The X25519 secret shared with the owner of `peer`, or `None` for a low-order key.
    pub fn agree(&self, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
        agreement::agree(&self.key, peer, (), |shared| {
            if constant_time_eq(shared, &[0; 32]) {
                return Err(());
            }
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(shared);
            Ok(out)
        })
        .ok()
    }

    /// The session key shared with the owner of `peer` (spec 02 section 5), or `None` for a low-order key.
    pub fn session_key(&self, peer: &[u8; 32]) -> Option<SessionKey> {
        let shared = self.agree(peer)?;
        let mut key = Zeroizing::new([0u8; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(&shared[..])
            .expand(&[b"pilot-tunnel-v1"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key[..]))
            .ok()?;
        SessionKey::from_bytes(&key)
    }
}

impl std::fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TunnelSecret(..)")
    }
}

struct Bytes64;

impl hkdf::KeyType for Bytes64 {
    fn len(&self) -> usize {
        64
    }
}

/// Two 32-byte keys from a chaining key and fresh input: HKDF-SHA256 without info, which is the HKDF of the Noise
/// specification (section 4.3) with two outputs.
pub fn hkdf_pair(chaining_key: &[u8; 32], input: &[u8]) -> Option<[Zeroizing<[u8; 32]>; 2]> {
    let mut both = Zeroizing::new([0; 64]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, chaining_key)
        .extract(input)
        .expand(&[], Bytes64)
        .and_then(|okm| okm.fill(&mut both[..]))
        .ok()?;
    let mut out = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
    out[0].copy_from_slice(&both[..32]);
    out[1].copy_from_slice(&both[32..]);
    Some(out)
}

/// A generator of secrets that forgets: each output replaces the state by a one-way function, so that whoever reads
/// the memory later cannot compute the secrets drawn before. Deterministic for a given seed.
pub struct Ratchet(Zeroizing<[u8; 32]>);

impl Ratchet {
    /// A generator whose outputs depend on `seed` (32 secret bytes) and `label` alone.
    pub fn new(seed: &[u8; 32], label: &[u8]) -> Option<Ratchet> {
        let [state, _] = hkdf_pair(seed, label)?;
        Some(Ratchet(state))
    }

    /// The next 32 secret bytes; `None` only if the library fails.
    pub fn draw(&mut self) -> Option<Zeroizing<[u8; 32]>> {
        let [state, output] = hkdf_pair(&self.0, b"pilot ratchet")?;
        self.0 = state;
        Some(output)
    }
}

impl std::fmt::Debug for Ratchet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ratchet(..)")
    }
}

/// An AES-256-GCM key: both directions of a session of the plain tunnel, one direction of an upgraded one. The library
/// wipes it when it is dropped.
pub struct SessionKey(aead::LessSafeKey);

impl SessionKey {
    /// The key of 32 bytes.
    pub fn from_bytes(key: &[u8; 32]) -> Option<SessionKey> {
        Some(SessionKey(aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, key).ok()?)))
    }

    /// Encrypts `text` in place and returns the tag.
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Option<[u8; 16]> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts ciphertext and tag in place; the plaintext is the returned prefix of `text`.
    pub fn open<'a>(&self, nonce: [u8; 12], aad: &[u8], text: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(aead::Nonce::assume_unique_for_key(nonce), aead::Aad::from(aad), text).ok()
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(..)")
    }
}
