//! Formats of the UDP wire.

use crate::input::Input;
use pilot_proto::crypto::Identity;
use pilot_proto::registry::record::{MAX_ENDPOINTS, NodeRecord, Place, RecordError};
use pilot_proto::wire::addr::{Addr, SocketAddr};
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::capability::{self, Trailing};
use pilot_proto::wire::frame::Frame;
use pilot_proto::wire::packet::Packet;

/// Text forms: what parses prints canonically and parses back to itself.
pub fn address(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(addr) = text.parse::<Addr>() {
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }
}

/// What decodes encodes to the same bytes, trailing ones apart.
pub fn packet(input: &[u8]) {
    if let Ok(packet) = Packet::parse(input) {
        let mut out = Vec::new();
        packet.header.emit(packet.payload, &mut out).expect("a decoded payload fits");
        assert_eq!(out, input[..out.len()]);
    }
}

/// Classification never panics, and keeps the promises its types make.
pub fn frame(input: &[u8]) {
    if let Ok(Frame::Pils(pils)) = Frame::parse(input) {
        assert!(input.len() >= 36, "a PILS frame has room for header and tag");
        assert_eq!(pils.header(), input[..20]);
    }
    match Frame::parse(input) {
        Ok(Frame::Pilu(pilu)) => {
            assert!(input.len() >= 36, "a PILU frame has room for header and tag");
            assert_eq!(pilu.header(), input[..20]);
        }
        Ok(Frame::Pila(pila)) => {
            assert!(input.starts_with(&pila.bytes()) && input.starts_with(&pila.to_vec()));
            if let Trailing::Block(block) = capability::parse(pila.trailing) {
                assert!(pila.trailing.starts_with(block.signed) && block.signed.ends_with(block.body));
                assert_eq!(block.body.len(), block.kind.body_len());
            }
        }
        _ => {}
    }
}

/// What decodes encodes to something that decodes to the same message.
pub fn beacon(input: &[u8]) {
    if let Ok(message) = Message::parse(input) {
        let mut out = Vec::new();
        message.emit(&mut out);
        let again = Message::parse(&out).expect("our own encoding decodes");
        let mut twice = Vec::new();
        again.emit(&mut twice);
        assert_eq!(out, twice);
    }
}

/// A capability block holds exactly the bytes its kind says, and its signature covers all that is used.
pub fn capability(input: &[u8]) {
    if let Trailing::Block(block) = capability::parse(input) {
        let end = capability::HEADER_LEN + block.kind.body_len();
        assert_eq!(block.signed, &input[..end]);
        assert_eq!(block.body, &input[capability::HEADER_LEN..end]);
        assert_eq!(block.signature[..], input[end..end + capability::SIGNATURE_LEN]);
        let _ = capability::Terms::parse_greeting(block.body);
    }
}

/// A node record as it stands, and one that is made of the input: it opens to what was signed, and not if a bit of it
/// changed.
pub fn node_record(input: &[u8]) {
    let _ = NodeRecord::open(input);
    let mut input = Input::new(input);
    let identity = Identity::from_seed([5; 32]).expect("every seed is a key");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let place = (input.u8() & 1 != 0).then(|| Place {
        relay_only: input.u8() & 1 != 0,
        endpoints: (0..usize::from(input.u8()) % (MAX_ENDPOINTS + 4)).map(|_| text(input.short())).collect(),
    });
    let record = NodeRecord {
        registry: text(input.short()),
        node: u32::from(input.u16()),
        key: *identity.public_key(),
        generation: u32::from(input.u16()),
        sequence: u64::from(input.u16()),
        expires: u64::from(input.u16()),
        place,
    };
    let mut bytes = record.clone().sign(&identity);
    let opened = NodeRecord::open(&bytes).expect("what we sign we can open");
    assert_eq!((opened.node, opened.key, opened.sequence), (record.node, record.key, record.sequence));
    let (Some(at), bits) = (usize::from(input.u16()).checked_rem(bytes.len()), input.u8()) else { return };
    if bits != 0 {
        bytes[at] ^= bits;
        let refused = NodeRecord::open(&bytes);
        assert!(matches!(refused, Err(RecordError::Format | RecordError::Signature)), "{refused:?}");
    }
}
