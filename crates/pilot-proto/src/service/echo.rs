//! Echo (port 7, spec 06 section 3): what comes in goes back, except for the trace probe.

/// First bytes of a probe and of its answer.
pub const MAGIC: [u8; 4] = *b"TRCE";

/// A probe sent at `sent_ns` (Unix nanoseconds).
pub fn probe(sent_ns: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&MAGIC);
    out[4..].copy_from_slice(&sent_ns.to_be_bytes());
    out
}

/// The answer to a chunk if it is a probe (at least 12 bytes, what follows is dropped); `None`: echo the chunk.
pub fn reply(chunk: &[u8], now_ns: u64) -> Option<[u8; 20]> {
    if chunk.len() < 12 || !chunk.starts_with(&MAGIC) {
        return None;
    }
    let mut out = [0; 20];
    out[..12].copy_from_slice(&chunk[..12]);
    out[12..].copy_from_slice(&now_ns.to_be_bytes());
    Some(out)
}

/// Send time and the peer's receive time (Unix nanoseconds) of a probe's answer. `None` if it is none: versions
/// before 1.10 echo the probe.
pub fn parse_reply(bytes: &[u8]) -> Option<(u64, u64)> {
    if bytes.len() != 20 || !bytes.starts_with(&MAGIC) {
        return None;
    }
    Some((u64::from_be_bytes(super::array(bytes, 4)?), u64::from_be_bytes(super::array(bytes, 12)?)))
}
