//! Extension: what a node says about itself, signed by its own key (docs/extensions.md, "node_record").
//!
//! A registry hands records on and cannot change them. Bytes, big-endian:
//!
//! | Size | Field |
//! |---|---|
//! | 18 | `pilot node record`, zero |
//! | 1 | version, 1 |
//! | 1, n | length and text of the registry's id |
//! | 4 | node id |
//! | 32 | Ed25519 key |
//! | 4 | key generation: how often the key was rotated |
//! | 8 | sequence: grows with every record of a node; Unix microseconds |
//! | 8 | expiry, Unix seconds |
//! | 1 | flags: bit 0 relay only, bit 1 says where the node is |
//! | 1 | number of endpoints, at most 16 |
//! | 1, n | for each: length and text `host:port`, the public one first |
//! | 64 | signature over all of the above |
//!
//! In JSON a record is the padded base64 of these bytes.

use crate::NodeId;
use crate::crypto::{self, Identity};

/// Longest record (bytes).
pub const MAX_RECORD: usize = 1024;
/// Most endpoints.
pub const MAX_ENDPOINTS: usize = 16;
/// Longest registry id (bytes).
const MAX_REGISTRY: usize = 64;
const DOMAIN: &[u8; 18] = b"pilot node record\0";
const VERSION: u8 = 1;
const RELAY_ONLY: u8 = 1;
const PLACED: u8 = 2;
const SIGNATURE: usize = 64;

/// One record. `place`: it says where the node is; without it the endpoints are empty and mean nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NodeRecord {
    pub registry: String,
    pub node: NodeId,
    pub key: [u8; 32],
    pub generation: u32,
    pub sequence: u64,
    pub expires: u64,
    pub place: Option<Place>,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// It is reached through its beacon only.
    pub relay_only: bool,
    /// `host:port`, the public one first.
    pub endpoints: Vec<String>,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not of this format, or of another version.
    #[error("no node record of a known version")]
    Format,
    /// Not signed by the key it names.
    #[error("node record with a wrong signature")]
    Signature,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(RecordError::Format)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| RecordError::Format)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.array::<1>().map(|[b]| b)
    }

    fn text(&mut self) -> Result<String, RecordError> {
        let n = self.byte()?;
        let text = std::str::from_utf8(self.take(usize::from(n))?).map_err(|_| RecordError::Format)?;
        Ok(text.to_owned())
    }
}

/// Appends length and text; text that does not fit a length byte is left out by the callers.
fn put_text(text: &str, out: &mut Vec<u8>) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

impl NodeRecord {
    fn body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        out.extend_from_slice(DOMAIN);
        out.push(VERSION);
        put_text(self.registry.get(..self.registry.len().min(MAX_REGISTRY)).unwrap_or_default(), &mut out);
        out.extend_from_slice(&self.node.to_be_bytes());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.expires.to_be_bytes());
        let place = self.place.as_ref();
        let flags = place.map_or(0, |p| PLACED | if p.relay_only { RELAY_ONLY } else { 0 });
        out.push(flags);
        let count_at = out.len();
        out.push(0);
        for endpoint in place.into_iter().flat_map(|p| &p.endpoints).take(MAX_ENDPOINTS) {
            let fits = endpoint.len() <= 255 && out.len() + 1 + endpoint.len() + SIGNATURE <= MAX_RECORD;
            if fits {
                put_text(endpoint, &mut out);
                out[count_at] += 1;
            }
        }
        out
    }

    /// The signed bytes. The key in the record is that of `identity`. Endpoints that do not fit are left out.
    pub fn sign(mut self, identity: &Identity) -> Vec<u8> {
        self.key = *identity.public_key();
        let mut out = self.body();
        let signature = identity.sign(&out);
        out.extend_from_slice(&signature);
        out
    }

    /// Decodes and verifies: the record is by the holder of the key it names. Whether that key is the node's, whether
    /// the registry is the right one and whether it is current is for the caller.
    pub fn open(bytes: &[u8]) -> Result<NodeRecord, RecordError> {
        let split = bytes.len().checked_sub(SIGNATURE).filter(|_| bytes.len() <= MAX_RECORD);
        let (body, signature) = bytes.split_at(split.ok_or(RecordError::Format)?);
        let mut r = Reader(body);
        if r.array::<18>()? != *DOMAIN || r.byte()? != VERSION {
            return Err(RecordError::Format);
        }
        let registry = r.text()?;
        let node = u32::from_be_bytes(r.array()?);
        let key = r.array()?;
        let generation = u32::from_be_bytes(r.array()?);
        let sequence = u64::from_be_bytes(r.array()?);
        let expires = u64::from_be_bytes(r.array()?);
        let flags = r.byte()?;
        let count = usize::from(r.byte()?);
        if count > MAX_ENDPOINTS || (count > 0 && flags & PLACED == 0) || registry.len() > MAX_REGISTRY {
            return Err(RecordError::Format);
        }
        let endpoints = (0..count).map(|_| r.text()).collect::<Result<Vec<_>, _>>()?;
        if !r.0.is_empty() {
            return Err(RecordError::Format);
        }
        if !crypto::verify(&key, body, signature) {
            return Err(RecordError::Signature);
        }
        let place = (flags & PLACED != 0).then_some(Place { relay_only: flags & RELAY_ONLY != 0, endpoints });
        Ok(NodeRecord { registry, node, key, generation, sequence, expires, place })
    }

    /// [`NodeRecord::open`] of the text form.
    pub fn open_text(text: &str) -> Result<NodeRecord, RecordError> {
        if text.len() > MAX_RECORD * 4 / 3 + 4 {
            return Err(RecordError::Format);
        }
        NodeRecord::open(&crypto::unbase64_vec(text).ok_or(RecordError::Format)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity::from_seed([3; 32]).unwrap()
    }

    fn record(place: Option<Place>) -> NodeRecord {
        NodeRecord {
            registry: "00112233445566778899aabbccddeeff".into(),
            node: 7,
            key: *identity().public_key(),
            generation: 2,
            sequence: 1_795_217_600_000_000,
            expires: 1_795_822_400,
            place,
        }
    }

    #[test]
    fn records_read_back_and_no_byte_of_them_can_be_changed() {
        let place =
            Place { relay_only: false, endpoints: vec!["203.0.113.7:4000".into(), "10.0.0.7:4000".into()] };
        for place in [None, Some(place), Some(Place { relay_only: true, endpoints: Vec::new() })] {
            let bytes = record(place.clone()).sign(&identity());
            assert_eq!(NodeRecord::open(&bytes), Ok(record(place)));
            assert_eq!(NodeRecord::open_text(&crypto::base64(&bytes)), NodeRecord::open(&bytes));
            for at in 0..bytes.len() {
                let mut forged = bytes.clone();
                forged[at] ^= 1;
                assert!(NodeRecord::open(&forged).is_err(), "byte {at}");
                assert!(NodeRecord::open(&bytes[..at]).is_err(), "cut at {at}");
            }
            assert!(NodeRecord::open(&[&bytes[..], b"x"].concat()).is_err());
        }
    }

    #[test]
    fn a_record_never_grows_beyond_its_bound() {
        let endpoints = (0..100).map(|i| format!("{}.example:{i}", "x".repeat(200))).collect();
        let bytes = record(Some(Place { relay_only: false, endpoints })).sign(&identity());
        assert!(bytes.len() <= MAX_RECORD);
        assert_eq!(NodeRecord::open(&bytes).unwrap().place.unwrap().endpoints.len(), 4);
        assert_eq!(NodeRecord::open(&vec![0; 1 << 20]), Err(RecordError::Format));
        assert_eq!(NodeRecord::open_text(&"A".repeat(1 << 20)), Err(RecordError::Format));
    }

    #[test]
    fn the_bytes_of_version_1() {
        let mut bytes = record(None).sign(&identity());
        bytes.truncate(bytes.len() - 64);
        let key: String = identity().public_key().iter().map(|b| format!("{b:02x}")).collect();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let expected = [
            "70696c6f74206e6f6465207265636f726400",
            "01",
            "20",
            "3030313132323333343435353636373738383939616162626363646465656666",
            "00000007",
            &key,
            "00000002",
            "000660bdab57b000",
            "000000006b0a1340",
            "00",
            "00",
        ]
        .concat();
        assert_eq!(hex, expected);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(0u8..=255, 0..300)) {
            let framed = [&DOMAIN[..], &[VERSION], &bytes].concat();
            proptest::prop_assert!(NodeRecord::open(&framed).is_err());
            proptest::prop_assert!(NodeRecord::open(&bytes).is_err());
        }
    }
}
