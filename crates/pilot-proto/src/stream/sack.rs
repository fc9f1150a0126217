//! SACK lists: the reference's payload form (spec 03 section 11) and the one between our own nodes
//! (docs/extensions.md, "Stream options").

/// Blocks a list may have towards reference peers.
pub(super) const MAX_BLOCKS: usize = 4;
/// Blocks a list may have between our own nodes.
pub(super) const MAX_OWN_BLOCKS: usize = 32;
const MAGIC: &[u8; 4] = b"SACK";

/// One block: sequence number of the first byte held and of the first byte after it.
pub(super) type Block = (u32, u32);

/// Whether a reference peer takes this payload for a SACK list instead of data.
pub(super) fn looks_like_list(payload: &[u8]) -> bool {
    payload.len() >= 5
        && payload.starts_with(MAGIC)
        && (1..=MAX_BLOCKS).contains(&usize::from(payload[4]))
        && payload.len() >= 5 + 8 * usize::from(payload[4])
}

fn edges(bytes: &[u8]) -> impl Iterator<Item = Block> + '_ {
    bytes
        .chunks_exact(8)
        .map(|b| (u32::from_be_bytes([b[0], b[1], b[2], b[3]]), u32::from_be_bytes([b[4], b[5], b[6], b[7]])))
}

/// Parses a reference list. The exact length is required, and every block must be above `ack` (the packet's own
/// cumulative acknowledgement) and not beyond `nxt`, ascending: anything else is user data (spec 03 section 11.1).
pub(super) fn parse_reference(payload: &[u8], ack: u32, nxt: u32) -> Option<Vec<Block>> {
    if !looks_like_list(payload) || payload.len() != 5 + 8 * usize::from(payload[4]) {
        return None;
    }
    let blocks: Vec<Block> = edges(&payload[5..]).collect();
    let span = nxt.wrapping_sub(ack);
    let mut floor = 0u32;
    for &(left, right) in &blocks {
        let (l, r) = (left.wrapping_sub(ack), right.wrapping_sub(ack));
        if span > i32::MAX as u32 || l < floor || r <= l || r > span {
            return None;
        }
        floor = r;
    }
    Some(blocks)
}

/// Appends a reference list of at most four blocks.
pub(super) fn write_reference(blocks: &[Block], out: &mut Vec<u8>) {
    let blocks = &blocks[..blocks.len().min(MAX_BLOCKS)];
    out.extend_from_slice(MAGIC);
    out.push(blocks.len() as u8);
    write_edges(blocks, out);
}

/// Bytes of a reference list.
pub(super) fn reference_len(blocks: usize) -> usize {
    5 + 8 * blocks.min(MAX_BLOCKS)
}

/// Splits a payload between our own nodes into its blocks and its data. `None`: malformed.
pub(super) fn split_own(payload: &[u8]) -> Option<(Vec<Block>, &[u8])> {
    let (&count, rest) = payload.split_first()?;
    let count = usize::from(count);
    if count > MAX_OWN_BLOCKS || rest.len() < 8 * count {
        return None;
    }
    let (list, data) = rest.split_at(8 * count);
    Some((edges(list).collect(), data))
}

/// Appends the block part of a payload between our own nodes: the count and the blocks.
pub(super) fn write_own(blocks: &[Block], out: &mut Vec<u8>) {
    let blocks = &blocks[..blocks.len().min(MAX_OWN_BLOCKS)];
    out.push(blocks.len() as u8);
    write_edges(blocks, out);
}

/// Bytes of the block part between our own nodes.
pub(super) fn own_len(blocks: usize) -> usize {
    1 + 8 * blocks.min(MAX_OWN_BLOCKS)
}

fn write_edges(blocks: &[Block], out: &mut Vec<u8>) {
    for (left, right) in blocks {
        out.extend_from_slice(&left.to_be_bytes());
        out.extend_from_slice(&right.to_be_bytes());
    }
}
