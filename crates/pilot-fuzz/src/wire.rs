//! Formats of the UDP wire.

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
