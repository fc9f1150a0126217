//! The replay window and the header codec against naive models: exhaustively where the space allows, at random elsewhere.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use pilot_proto::Addr;
use pilot_proto::tunnel::replay::{Accepted, Epochs, Refused, Verdict, WINDOW, Window};
use pilot_proto::wire::packet::{HEADER_LEN, Header, Packet, PacketError};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The window as one would describe it: the highest counter and all that were seen.
#[derive(Default)]
struct Naive {
    highest: u64,
    seen: BTreeSet<u64>,
}

impl Naive {
    fn check(&mut self, counter: u64) -> Verdict {
        // While nothing above 0 was seen, everything is taken: senders start at 1.
        if self.highest > 0 && counter <= self.highest {
            if self.highest - counter >= WINDOW {
                return Verdict::Outside;
            }
            if self.seen.contains(&counter) {
                return Verdict::Replay;
            }
        }
        self.highest = self.highest.max(counter);
        self.seen.insert(counter);
        Verdict::Fresh
    }
}

#[test]
fn all_short_orders_of_the_edge_counters_are_judged_like_the_model() {
    const EDGES: [u64; 11] = [0, 1, 2, 63, 64, 255, 256, 257, 258, 512, u64::MAX];
    let mut orders = 0u32;
    let mut digits = [0usize; 5];
    'all: loop {
        let (mut window, mut naive) = (Window::default(), Naive::default());
        for digit in digits {
            let counter = EDGES[digit];
            assert_eq!(window.check(counter), naive.check(counter), "{digits:?}");
        }
        orders += 1;
        for digit in &mut digits {
            *digit += 1;
            if *digit < EDGES.len() {
                continue 'all;
            }
            *digit = 0;
        }
        break;
    }
    assert_eq!(orders, 11u32.pow(5));
}

#[test]
fn every_pair_of_counters_up_to_600_is_judged_like_the_model() {
    for first in 0..600 {
        for second in 0..600 {
            let (mut window, mut naive) = (Window::default(), Naive::default());
            for counter in [first, second, first, second] {
                assert_eq!(window.check(counter), naive.check(counter), "{first} {second}");
            }
        }
    }
}

fn counters() -> impl Strategy<Value = Vec<u64>> {
    let near = prop_oneof![
        0u64..700,
        (0u64..700).prop_map(|n| u64::MAX - n),
        (0u64..700).prop_map(|n| (1 << 40) + n)
    ];
    proptest::collection::vec(near, 1..300)
}

fn header() -> impl Strategy<Value = Header> {
    let addr = || (any::<u16>(), any::<u32>()).prop_map(|(network, node)| Addr { network, node });
    (0u8..16, any::<u8>(), addr(), addr(), any::<[u16; 3]>(), any::<[u32; 2]>()).prop_map(
        |(flags, protocol, src, dst, [src_port, dst_port, window], [seq, ack])| Header {
            flags,
            protocol,
            src,
            dst,
            src_port,
            dst_port,
            seq,
            ack,
            window,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_window_is_the_model(counters in counters()) {
        let (mut window, mut naive) = (Window::default(), Naive::default());
        for counter in counters {
            prop_assert_eq!(window.check(counter), naive.check(counter), "{}", counter);
        }
    }

    /// Whatever the order of prefixes and counters: no frame is taken twice, and none is taken under a retired prefix.
    #[test]
    fn no_frame_is_accepted_twice_in_any_epoch(
        frames in proptest::collection::vec((0u8..9, 1u64..400), 1..400)
    ) {
        let mut epochs = Epochs::default();
        let mut taken = BTreeSet::new();
        let mut newest = None;
        for (prefix, counter) in frames {
            match epochs.check([prefix; 4], counter) {
                Ok(Accepted { newest: is_newest, opened }) => {
                    prop_assert!(taken.insert((prefix, counter)), "{} {} twice", prefix, counter);
                    prop_assert!(!opened || is_newest);
                    if opened {
                        newest = Some(prefix);
                    }
                    prop_assert_eq!(is_newest, newest == Some(prefix));
                }
                Err(Refused::Replay | Refused::Outside) => prop_assert_eq!(newest, Some(prefix)),
                Err(Refused::OldEpoch) => prop_assert_ne!(newest, Some(prefix)),
                Err(Refused::TooManyEpochs) => prop_assert!(false, "nine prefixes"),
            }
        }
    }

    #[test]
    fn headers_round_trip_and_trailing_bytes_are_ignored(
        header in header(), payload in proptest::collection::vec(any::<u8>(), 0..200), tail in proptest::collection::vec(any::<u8>(), 0..9)
    ) {
        let mut bytes = Vec::new();
        header.emit(&payload, &mut bytes).unwrap();
        prop_assert_eq!(bytes.len(), HEADER_LEN + payload.len());
        for len in 0..bytes.len() {
            let error = Packet::parse(&bytes[..len]).unwrap_err();
            prop_assert!(matches!(error, PacketError::TooShort(_) | PacketError::Truncated { .. }), "{:?}", error);
        }
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(Packet::parse(&bytes), Ok(Packet { header, payload: &payload }));
    }

    #[test]
    fn every_flipped_bit_of_a_packet_is_noticed(
        header in header(), payload in proptest::collection::vec(any::<u8>(), 0..24)
    ) {
        let mut bytes = Vec::new();
        header.emit(&payload, &mut bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Packet::parse(&bytes).is_err(), "bit {}", bit);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
