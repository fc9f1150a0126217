//! Arbitrary packets: no panic, no growth beyond the bounds.

use crate::script::{PEER, Script, US};
use pilot_proto::stream::Config;
use pilot_proto::wire::packet::{Header, protocol};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Debug, Clone)]
enum Op {
    Packet { bits: u8, seq: i32, ack: i32, window: u16, payload: Vec<u8>, to_dial: bool },
    Options(Vec<u8>),
    Wait(u32),
    Write(usize),
    Read,
    Close,
    Finish,
    Abort,
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (1u8..6, prop::collection::vec(any::<u8>(), 0..48)).prop_map(|(n, tail)| [
            b"SACK".as_slice(),
            &[n],
            &tail
        ]
        .concat()),
        (0u8..34, prop::collection::vec(any::<u8>(), 0..280))
            .prop_map(|(n, tail)| [&[n], &tail[..]].concat()),
        Just(vec![0; 1152]),
        Just(vec![0; 60_000]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let near = prop_oneof![-3000i32..3000, any::<i32>()];
    prop_oneof![
        8 => (0u8..16, near.clone(), near, any::<u16>(), payload(), any::<bool>()).prop_map(
            |(bits, seq, ack, window, payload, to_dial)| Op::Packet { bits, seq, ack, window, payload, to_dial }
        ),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(|tail| Op::Options([b"PSOP\x01\x01\x01".as_slice(), &tail].concat())),
        3 => (0u32..20_000).prop_map(Op::Wait),
        2 => (0usize..10_000).prop_map(Op::Write),
        2 => Just(Op::Read),
        1 => Just(Op::Close),
        1 => Just(Op::Finish),
        1 => Just(Op::Abort),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_packets_never_panic_and_never_exceed_the_bounds(
        ops in prop::collection::vec(op(), 1..80), own in any::<bool>()
    ) {
        let window = 200_000;
        let mut s = Script::new(Config { recv_window: window, send_buffer: 50_000, ..Config::default() });
        // One connection that the peer opened and one that we dialled, both perhaps with options.
        let options = if own { b"PSOP\x01\x01\x01\x02\x01\x01\x03\x02\xea\x60\x04\x02\x04\x00".as_slice() } else { &[] };
        let answer = s.send(crate::script::SYN, 1000, 0, 512, options);
        let in_base = answer[0].header.seq;
        s.streams.dial(s.now, US, PEER, 9).expect("dial");
        let syn = s.drain().remove(0).header;
        let conns = [pilot_proto::stream::ConnId(1), pilot_proto::stream::ConnId(2)];
        for op in ops {
            match op {
                Op::Packet { bits, seq, ack, window, payload, to_dial } => {
                    let mut header: Header = s.header(bits, 0, 0, window);
                    let base = if to_dial {
                        (header.dst_port, header.src_port) = (syn.src_port, 9);
                        syn.seq
                    } else {
                        in_base
                    };
                    header.protocol = protocol::STREAM;
                    header.seq = 1000u32.wrapping_add_signed(seq);
                    header.ack = base.wrapping_add_signed(ack);
                    s.feed(header, &payload);
                }
                Op::Options(payload) => {
                    let mut header = s.header(3, 77, syn.seq.wrapping_add(1 + 18), 512);
                    (header.dst_port, header.src_port) = (syn.src_port, 9);
                    s.feed(header, &payload);
                }
                Op::Wait(ms) => {
                    let sent = s.wait(Duration::from_millis(u64::from(ms)));
                    prop_assert!(sent.len() < 5000, "{} packets in {} ms", sent.len(), ms);
                }
                Op::Write(n) => {
                    for conn in conns {
                        let _ = s.streams.write(s.now, conn, vec![1; n].into());
                    }
                }
                Op::Read => {
                    for conn in conns {
                        s.read_all(conn);
                    }
                }
                Op::Close => s.streams.close(s.now, conns[0]),
                Op::Finish => {
                    s.streams.finish(s.now, conns[1]);
                }
                Op::Abort => s.streams.abort(s.now, conns[1]),
            }
            let sent = s.drain();
            prop_assert!(sent.len() < 2000, "{} packets at once", sent.len());
            for status in s.streams.status() {
                prop_assert!(status.recv_win <= window as u64);
                prop_assert!(status.unacked <= 8192);
                prop_assert!(status.in_flight <= 50_000);
                prop_assert!(status.ooo_buf <= 4096);
            }
        }
        // Whatever happened, everything ends.
        for conn in conns {
            s.streams.release(s.now, conn);
        }
        s.wait(Duration::from_secs(900));
        prop_assert_eq!(s.streams.status(), vec![]);
    }
}
