//! Sequence arithmetic and the SACK codec against naive models: every case of small spaces placed across the wrap, and
//! random ones of the whole.

use super::recv::Receiver;
use super::sack::{self, Block};
use proptest::prelude::*;

/// Where small spaces are placed: both sides of zero and of the sign bit.
const BASES: [u32; 6] = [0, 1, 0x7FFF_FFF0, 0x8000_0000, u32::MAX - 9, u32::MAX];

#[test]
fn distances_are_right_everywhere_around_the_wrap() {
    for base in BASES {
        let mut receiver = Receiver::new(base, 1 << 20);
        for step in 0..40u32 {
            let expected = base.wrapping_add(step);
            assert_eq!((receiver.ack(false), receiver.ack(true)), (expected, expected.wrapping_add(1)));
            for distance in (-70_000..70_000).step_by(7).chain([i32::MIN, i32::MIN + 1, i32::MAX]) {
                assert_eq!(receiver.distance(expected.wrapping_add_signed(distance)), distance);
            }
            receiver.ingest(expected, b"x");
        }
    }
}

/// What a list must fulfil (spec 03 section 11.1), on plain numbers: offsets from the acknowledgement.
fn valid(blocks: &[(u32, u32)], span: u32) -> bool {
    let mut floor = 0;
    for &(left, right) in blocks {
        if left < floor || right <= left || right > span {
            return false;
        }
        floor = right;
    }
    true
}

fn list(base: u32, blocks: &[(u32, u32)]) -> (Vec<Block>, Vec<u8>) {
    let placed: Vec<Block> =
        blocks.iter().map(|(l, r)| (base.wrapping_add(*l), base.wrapping_add(*r))).collect();
    let mut bytes = Vec::new();
    sack::write_reference(&placed, &mut bytes);
    (placed, bytes)
}

#[test]
fn lists_are_taken_exactly_if_they_are_valid() {
    const SPAN: u32 = 6;
    let edges: Vec<(u32, u32)> = (0..=SPAN + 1).flat_map(|l| (0..=SPAN + 1).map(move |r| (l, r))).collect();
    let (mut taken, mut refused) = (0, 0);
    for base in BASES {
        for first in &edges {
            for second in edges.iter().map(Some).chain([None]) {
                let blocks: Vec<_> = [Some(first), second].into_iter().flatten().copied().collect();
                let (placed, bytes) = list(base, &blocks);
                assert_eq!(bytes.len(), sack::reference_len(blocks.len()));
                let parsed = sack::parse_reference(&bytes, base, base.wrapping_add(SPAN));
                assert_eq!(parsed, valid(&blocks, SPAN).then_some(placed), "{base:#x} {blocks:?}");
                (taken, refused) = if parsed.is_some() { (taken + 1, refused) } else { (taken, refused + 1) };
            }
        }
    }
    assert!(taken > 100 && refused > 1000, "{taken} {refused}");
}

#[test]
fn every_count_and_length_is_judged_as_a_reference_does() {
    for count in 0..=255u8 {
        for len in 0..64usize {
            let mut payload = b"SACK".to_vec();
            payload.push(count);
            payload.resize(len.max(5), 0);
            payload.truncate(len);
            let takes = (1..=4).contains(&count) && len >= 5 + 8 * usize::from(count);
            assert_eq!(sack::looks_like_list(&payload), takes, "{count} blocks in {len} bytes");
            // Data that merely looks like one: the edges are all zero, which no list has.
            assert_eq!(sack::parse_reference(&payload, 0, 1000), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_distance_from_any_base(base: u32, distance: i32) {
        prop_assert_eq!(Receiver::new(base, 1000).distance(base.wrapping_add_signed(distance)), distance);
    }

    #[test]
    fn valid_lists_round_trip_anywhere(
        base: u32, mut edges in proptest::collection::btree_set(0u32..1 << 30, 2..=8), extra in 0u32..1 << 20
    ) {
        if edges.len() % 2 == 1 {
            edges.pop_last();
        }
        let edges: Vec<u32> = edges.into_iter().collect();
        let blocks: Vec<_> = edges.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let nxt = base.wrapping_add(edges[edges.len() - 1]).wrapping_add(extra);
        let (placed, mut bytes) = list(base, &blocks);
        prop_assert_eq!(sack::parse_reference(&bytes, base, nxt), Some(placed));
        bytes.push(0);
        prop_assert_eq!(sack::parse_reference(&bytes, base, nxt), None, "the length is exact");
    }

    #[test]
    fn own_lists_round_trip_and_are_never_cut_short(
        blocks in proptest::collection::vec(any::<(u32, u32)>(), 0..=32), data in proptest::collection::vec(any::<u8>(), 0..40)
    ) {
        let mut bytes = Vec::new();
        sack::write_own(&blocks, &mut bytes);
        prop_assert_eq!(bytes.len(), sack::own_len(blocks.len()));
        for len in 0..bytes.len() {
            prop_assert_eq!(sack::split_own(&bytes[..len]), None);
        }
        bytes.extend_from_slice(&data);
        prop_assert_eq!(sack::split_own(&bytes), Some((blocks, &data[..])));
    }
}
