//! Extension: a Discover that proves whose it is (docs/extensions.md, "signed_discover").
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 1 | 0x01, as in a plain Discover |
//! | 1 | 4 | node id |
//! | 5 | 32 | the node's Ed25519 key |
//! | 37 | 4 | `PSD1` |
//! | 41 | 8 | Unix microseconds; grows with every proof of a node |
//! | 49 | 8 | the cookie of the last reply, zero before the first |
//! | 57 | 64 | signature over [`signed`] |
//!
//! A beacon that does not know it reads the first 5 (or 37) bytes. One that does appends a cookie to its DiscoverReply,
//! which proves that the sender receives at the address it sends from. The request is longer than any reply.

use super::addr::NodeId;
use crate::crypto::{self, Identity};

/// Bytes of a signed Discover.
pub const SIGNED_LEN: usize = 121;
/// Bytes of a cookie.
pub const COOKIE_LEN: usize = 8;
/// What a beacon gives to an address.
pub type Cookie = [u8; COOKIE_LEN];

const MAGIC: &[u8; 4] = b"PSD1";
const DOMAIN: &[u8] = b"pilot signed discover 1\0";
/// Longest registry id that is signed (bytes).
const MAX_REGISTRY: usize = 64;

/// The parts of a signed Discover. Nothing is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedDiscover<'a> {
    /// The sender.
    pub node: NodeId,
    /// The key it signs with.
    pub key: &'a [u8; 32],
    /// Unix microseconds.
    pub time: u64,
    /// What the beacon gave to the sender's address.
    pub cookie: Cookie,
    signature: &'a [u8; 64],
}

/// What is signed: domain, registry id with its length, node, key, time, cookie.
pub fn signed(registry: &str, node: NodeId, key: &[u8; 32], time: u64, cookie: &Cookie) -> Vec<u8> {
    let registry = &registry.as_bytes()[..registry.len().min(MAX_REGISTRY)];
    let mut out = Vec::with_capacity(DOMAIN.len() + 1 + registry.len() + 52);
    out.extend_from_slice(DOMAIN);
    // At most MAX_REGISTRY.
    out.push(registry.len() as u8);
    out.extend_from_slice(registry);
    out.extend_from_slice(&node.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&time.to_be_bytes());
    out.extend_from_slice(cookie);
    out
}

/// A Discover of `node`, at the registry that calls itself `registry`.
pub fn sign(identity: &Identity, registry: &str, node: NodeId, time: u64, cookie: &Cookie) -> Vec<u8> {
    let key = identity.public_key();
    let mut out = Vec::with_capacity(SIGNED_LEN);
    out.push(0x01);
    out.extend_from_slice(&node.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&time.to_be_bytes());
    out.extend_from_slice(cookie);
    out.extend_from_slice(&identity.sign(&signed(registry, node, key, time, cookie)));
    out
}

impl<'a> SignedDiscover<'a> {
    /// The parts, if the datagram is a signed Discover.
    pub fn parse(bytes: &'a [u8]) -> Option<SignedDiscover<'a>> {
        let (kind, rest) = bytes.split_first()?;
        let (node, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_first_chunk::<32>()?;
        let (magic, rest) = rest.split_first_chunk::<4>()?;
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (cookie, rest) = rest.split_first_chunk::<COOKIE_LEN>()?;
        let (signature, _) = rest.split_first_chunk::<64>()?;
        (*kind == 0x01 && magic == MAGIC).then(|| SignedDiscover {
            node: u32::from_be_bytes(*node),
            key,
            time: u64::from_be_bytes(*time),
            cookie: *cookie,
            signature,
        })
    }

    /// Whether the signature is good for this registry. The caller compares the key with the one it knows.
    pub fn verify(&self, registry: &str) -> bool {
        let text = signed(registry, self.node, self.key, self.time, &self.cookie);
        crypto::verify(self.key, &text, self.signature)
    }
}

/// The cookie at the end of a DiscoverReply, if there is one.
pub fn cookie(reply: &[u8]) -> Option<Cookie> {
    let address = match reply {
        [0x02, 4, ..] => 8,
        [0x02, 16, ..] => 20,
        _ => return None,
    };
    reply.get(address..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_counts_for_its_registry_node_key_time_and_cookie_only() {
        let identity = Identity::from_seed([7; 32]).unwrap();
        let bytes = sign(&identity, "reg", 5, 99, &[1; 8]);
        assert_eq!(bytes.len(), SIGNED_LEN);
        let parsed = SignedDiscover::parse(&bytes).unwrap();
        assert_eq!((parsed.node, parsed.key, parsed.time), (5, identity.public_key(), 99));
        assert!(parsed.verify("reg"));
        assert!(!parsed.verify("other"));
        for at in 1..SIGNED_LEN {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert!(SignedDiscover::parse(&forged).is_none_or(|p| !p.verify("reg")), "byte {at}");
        }
        for len in 0..SIGNED_LEN {
            assert_eq!(SignedDiscover::parse(&bytes[..len]), None);
        }
        // Others read a plain Discover.
        let plain = super::super::beacon::Message::parse(&bytes).unwrap();
        let key = Some(identity.public_key());
        assert_eq!(plain, super::super::beacon::Message::Discover { node: 5, key });
    }

    #[test]
    fn cookies_follow_the_address_of_a_reply() {
        assert_eq!(cookie(&[2, 4, 1, 2, 3, 4, 0, 9]), None);
        let with = [&[2, 4, 1, 2, 3, 4, 0, 9][..], &[7; 8]].concat();
        assert_eq!(cookie(&with), Some([7; 8]));
        assert_eq!(cookie(&[&[2, 16][..], &[0; 18], &[8; 8]].concat()), Some([8; 8]));
        assert_eq!(cookie(&with[..15]), None);
        assert_eq!(cookie(&[4; 30]), None);
    }
}
