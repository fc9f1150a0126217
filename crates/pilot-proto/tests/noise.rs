//! The Noise handshake of the session upgrade against published vectors, and the capability block's layout.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use pilot_proto::crypto::{self, Identity, Ratchet, TunnelSecret};
use pilot_proto::tunnel::noise::{self, Initiator, Message1, NoiseError, nonce};
use pilot_proto::wire::capability::{self, Kind, Terms, Trailing};
use pilot_proto::wire::frame::{self, Frame};
use serde_json::Value;
use std::sync::Arc;

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn secret(value: &Value) -> TunnelSecret {
    TunnelSecret::from_bytes(&unhex(value).try_into().unwrap()).unwrap()
}

#[test]
fn published_vectors_of_ix_are_reproduced_by_both_sides() {
    let file: Value = serde_json::from_str(include_str!("vectors/noise.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 2);
    for v in vectors {
        let (init, resp) = (secret(&v["init_static"]), secret(&v["resp_static"]));
        let prologue = unhex(&v["init_prologue"]);
        let messages = v["messages"].as_array().unwrap();
        let part = |n: usize| (unhex(&messages[n]["payload"]), unhex(&messages[n]["ciphertext"]));

        let (payload, expected) = part(0);
        let mut first = Vec::new();
        let initiator = Initiator::start(
            &prologue,
            Arc::new(secret(&v["init_static"])),
            secret(&v["init_ephemeral"]),
            &payload,
            &mut first,
        );
        assert_eq!(first, expected);
        let read = Message1::parse(&first).unwrap();
        assert_eq!((read.remote_static, read.payload), (init.public_key(), &payload[..]));

        let (payload, expected) = part(1);
        let mut second = Vec::new();
        let resp_keys =
            noise::respond(&prologue, &resp, secret(&v["resp_ephemeral"]), &read, &payload, &mut second)
                .unwrap();
        assert_eq!(second, expected);
        let done = initiator.finish(&second).unwrap();
        assert_eq!((done.remote_static, &done.payload), (*resp.public_key(), &payload));
        assert_eq!(done.keys.hash, resp_keys.hash);
        if !v["handshake_hash"].is_null() {
            assert_eq!(done.keys.hash.to_vec(), unhex(&v["handshake_hash"]));
        }

        // Transport messages: initiator, responder, and so on.
        for (n, message) in messages.iter().enumerate().skip(2) {
            let (payload, expected) = (unhex(&message["payload"]), unhex(&message["ciphertext"]));
            let (from, to) = if n % 2 == 0 { (&done.keys, &resp_keys) } else { (&resp_keys, &done.keys) };
            let counter = (n as u64 - 2) / 2;
            let mut text = payload.clone();
            let tag = from.send.seal(nonce(counter), &[], &mut text).unwrap();
            text.extend_from_slice(&tag);
            assert_eq!(text, expected, "message {n}");
            assert_eq!(to.receive.open(nonce(counter), &[], &mut text).unwrap(), payload);
        }
    }
}

fn tunnel(n: u8) -> TunnelSecret {
    TunnelSecret::from_bytes(&[n; 32]).unwrap()
}

#[test]
fn every_changed_bit_of_either_message_and_another_prologue_are_noticed() {
    let handshake = |bit1: Option<usize>, bit2: Option<usize>, other: &[u8]| {
        let mut first = Vec::new();
        let initiator = Initiator::start(b"prologue", Arc::new(tunnel(1)), tunnel(2), b"hello", &mut first);
        if let Some(bit) = bit1 {
            first[bit / 8] ^= 1 << (bit % 8);
        }
        let mut second = Vec::new();
        let read = Message1::parse(&first).unwrap();
        noise::respond(other, &tunnel(3), tunnel(4), &read, b"there", &mut second)?;
        if let Some(bit) = bit2 {
            second[bit / 8] ^= 1 << (bit % 8);
        }
        initiator.finish(&second).map(|done| done.payload)
    };
    assert_eq!(handshake(None, None, b"prologue").unwrap(), b"there");
    assert_eq!(handshake(None, None, b"prologuf"), Err(NoiseError::Tag));
    for bit in 0..69 * 8 {
        assert!(handshake(Some(bit), None, b"prologue").is_err(), "message 1, bit {bit}");
    }
    for bit in 0..101 * 8 {
        assert!(handshake(None, Some(bit), b"prologue").is_err(), "message 2, bit {bit}");
    }
}

#[test]
fn a_refused_message_2_leaves_the_initiator_ready_for_the_right_one() {
    let mut first = Vec::new();
    let initiator = Initiator::start(b"", Arc::new(tunnel(1)), tunnel(2), b"", &mut first);
    let mut second = Vec::new();
    noise::respond(b"", &tunnel(3), tunnel(4), &Message1::parse(&first).unwrap(), b"", &mut second).unwrap();
    assert_eq!(initiator.finish(&[0; 10]).unwrap_err(), NoiseError::TooShort);
    assert_eq!(initiator.finish(&[0; 96]).unwrap_err(), NoiseError::LowOrder);
    assert_eq!(initiator.finish(&[9; 96]).unwrap_err(), NoiseError::Tag);
    assert!(initiator.finish(&second).is_ok());
}

#[test]
fn low_order_keys_in_any_place_are_refused() {
    // 0, 1, and a point of order 8 (RFC 7748 section 6.1 has the zero result refused).
    let mut one = [0; 32];
    one[0] = 1;
    let eight = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ];
    let good = *tunnel(8).public_key();
    for low in [[0; 32], one, eight] {
        for (ephemeral, remote_static) in [(&low, &good), (&good, &low)] {
            let first = Message1 { ephemeral, remote_static, payload: b"" };
            let answer = noise::respond(b"", &tunnel(3), tunnel(4), &first, b"", &mut Vec::new());
            assert_eq!(answer.unwrap_err(), NoiseError::LowOrder);
        }
        let initiator = Initiator::start(b"", Arc::new(tunnel(1)), tunnel(2), b"", &mut Vec::new());
        let second = [&low[..], &[7; 64]].concat();
        assert_eq!(initiator.finish(&second).unwrap_err(), NoiseError::LowOrder);
    }
}

fn identity() -> Identity {
    Identity::from_seed([5; 32]).unwrap()
}

fn pila() -> [u8; frame::PILA_LEN] {
    let (id, key) = (identity(), *tunnel(1).public_key());
    frame::pila(7, &key, id.public_key(), &id.sign(&frame::pila_signed(7, &key)))
}

#[test]
fn a_block_is_what_the_documentation_says() {
    let terms = Terms { capabilities: 0x0102, session: 0x0304_0506, challenge: [9; 16] };
    assert_eq!(Terms::parse(&terms.payload()), Some(terms));
    assert_eq!(Terms::parse_greeting(&terms.greeting()), Some(Terms { session: 0, ..terms }));
    assert_eq!(Terms::parse(&[0; 21]), None);
    assert_eq!(Terms::parse_greeting(&[0; 17]), None);

    let bytes = capability::frame(&identity(), &pila(), Kind::Retry, 8, 0xAABB_CCDD, &terms.greeting());
    assert_eq!(bytes.len(), 136 + 14 + 18 + 64);
    assert_eq!(bytes[136..150], *b"PILC\x01\x03\x00\x00\x00\x08\xAA\xBB\xCC\xDD");
    assert_eq!(bytes[150..168], [&[1, 2][..], &[9; 16]].concat()[..]);
    let message = [b"pilot-capability-v1\0", &bytes[..168]].concat();
    assert!(crypto::verify(identity().public_key(), &message, &bytes[168..]));

    let Ok(Frame::Pila(read)) = Frame::parse(&bytes) else { panic!("no PILA") };
    assert_eq!(read.bytes(), pila());
    let Trailing::Block(block) = capability::parse(read.trailing) else { panic!("no block") };
    assert_eq!((block.kind, block.receiver, block.answers), (Kind::Retry, 8, 0xAABB_CCDD));
    assert_eq!(capability::signed(&read.bytes(), block.signed), message);
    assert_eq!(block.signature[..], bytes[168..]);
    for (kind, len) in [(Kind::Hello, 232), (Kind::First, 300), (Kind::Second, 332), (Kind::Retry, 232)] {
        let bytes = capability::frame(&identity(), &pila(), kind, 8, 0, &vec![0; kind.body_len()]);
        assert_eq!(bytes.len(), len, "{kind:?}");
        assert!(len <= capability::MAX_FRAME);
    }
}

#[test]
fn bytes_that_are_no_block_are_none_and_damaged_blocks_are_malformed() {
    let whole = capability::frame(&identity(), &pila(), Kind::Hello, 8, 0, &[0; 18]);
    let block = &whole[136..];
    assert_eq!(capability::parse(b""), Trailing::None);
    assert_eq!(capability::parse(b"PIL"), Trailing::None);
    assert_eq!(capability::parse(&[0; 300]), Trailing::None);
    assert_eq!(capability::parse(&[b"PILC\x02".as_slice(), &block[5..]].concat()), Trailing::None);
    for len in 5..block.len() {
        assert_eq!(capability::parse(&block[..len]), Trailing::Malformed, "{len} bytes");
    }
    assert_eq!(capability::parse(&[b"PILC\x01\x04".as_slice(), &block[6..]].concat()), Trailing::Malformed);
    let longer = [block, b"and more"].concat();
    assert!(
        matches!(capability::parse(&longer), Trailing::Block(b) if b.signature[..] == block[block.len() - 64..])
    );
}

#[test]
fn the_ratchet_is_deterministic_and_does_not_repeat() {
    let draws = |label: &[u8]| {
        let mut ratchet = Ratchet::new(&[1; 32], label).unwrap();
        (0..50).map(|_| *ratchet.draw().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draws(b"a"), draws(b"a"));
    let mut all = [draws(b"a"), draws(b"b")].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 100);
}
