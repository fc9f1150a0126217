//! A peer written by hand against a real engine.
#![allow(dead_code, clippy::unwrap_used)] // each test uses its part; a test that cannot go on fails

use crate::support::*;
use pilot_proto::crypto::{SessionKey, TunnelSecret};
use pilot_proto::tunnel::session::Session;
use pilot_proto::wire::frame::{self, PILS_HEADER_LEN};
use pilot_proto::wire::packet::{Header, protocol};
use pilot_proto::{Addr, NodeId};
use std::net::SocketAddr;
use std::time::Instant;

/// A peer written by hand, node 9 if not said otherwise, with a key exchange and packets of its own making.
pub struct Scripted {
    pub id: NodeId,
    pub secret: TunnelSecret,
    pub session: Session,
}

impl Scripted {
    pub fn new(secret: u8, engine_secret: u8, now: Instant) -> Scripted {
        Scripted::with_prefix(secret, engine_secret, [secret; 4], now)
    }

    pub fn with_prefix(secret: u8, engine_secret: u8, prefix: [u8; 4], now: Instant) -> Scripted {
        let secret = TunnelSecret::from_bytes(&[secret; 32]).unwrap();
        let theirs = TunnelSecret::from_bytes(&[engine_secret; 32]).unwrap();
        let key: SessionKey = secret.session_key(theirs.public_key()).unwrap();
        let session = Session::new(key, *theirs.public_key(), true, prefix, now);
        Scripted { id: 9, secret, session }
    }

    /// Another node.
    pub fn of(id: NodeId, now: Instant) -> Scripted {
        Scripted { id, ..Scripted::new(id as u8, 1, now) }
    }

    /// Agrees with the key node 1 announced last.
    pub fn take_key(&mut self, net: &Net) {
        let pila = net.log.iter().rev().find(|s| s.from == addr_of(1) && s.kind() == "PILA").unwrap();
        let theirs: [u8; 32] = pila.bytes[8..40].try_into().unwrap();
        assert_ne!(theirs, self.session.peer_key, "a fresh key");
        let key = self.secret.session_key(&theirs).unwrap();
        self.session = Session::new(key, theirs, true, [77; 4], net.now);
    }

    pub fn pila(&self) -> Vec<u8> {
        let identity = identity(self.id as u8);
        let signature = identity.sign(&frame::pila_signed(self.id, self.secret.public_key()));
        frame::pila(self.id, self.secret.public_key(), identity.public_key(), &signature).to_vec()
    }

    pub fn pilk(&self) -> Vec<u8> {
        frame::pilk(self.id, self.secret.public_key()).to_vec()
    }

    pub fn seal(&mut self, header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; PILS_HEADER_LEN];
        header.emit(payload, &mut out).unwrap();
        assert!(self.session.seal(self.id, &mut out, 0));
        out
    }

    pub fn stream(&mut self, flags: u8, ports: (u16, u16), numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
        let header = Header {
            flags,
            protocol: protocol::STREAM,
            src: Addr::backbone(self.id),
            dst: Addr::backbone(1),
            src_port: ports.0,
            dst_port: ports.1,
            seq: numbers.0,
            ack: numbers.1,
            window: 512,
        };
        self.seal(&header, payload)
    }

    pub fn datagram(&mut self, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = (Addr::backbone(self.id), Addr::backbone(1));
        let header = Header {
            protocol: protocol::DATAGRAM,
            src,
            dst,
            src_port: 50_000,
            dst_port: 7000,
            ..Header::default()
        };
        self.seal(&header, payload)
    }
}

/// Node 1 alone; node 9 is registered and scripted.
pub fn world() -> Net {
    let mut net = Net::new();
    net.add(1, config(1));
    net.keys.insert(9, *identity(9).public_key());
    net
}

/// Gives node 1 one datagram and lets it act for a moment.
pub fn give(net: &mut Net, from: SocketAddr, bytes: &[u8]) {
    net.inject(from, addr_of(1), bytes);
    net.run(net.latency);
}

pub fn connected() -> (Net, Scripted) {
    let mut net = world();
    let peer = Scripted::new(9, 1, net.now);
    give(&mut net, addr_of(9), &peer.pila());
    net.run(ms(1));
    assert_eq!(net.sent_by(1), ["PILA"]);
    net.log.clear();
    net.take_events(1);
    (net, peer)
}

pub fn endpoint(net: &mut Net) -> String {
    net.engine(1).peers().into_iter().find(|p| p.node_id == 9).unwrap().endpoint
}
