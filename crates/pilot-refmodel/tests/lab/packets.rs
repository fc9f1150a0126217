//! The scripted peers' packets and frames.

use pilot_proto::Addr;
use pilot_proto::crypto::{Identity, SessionKey, TunnelSecret};
use pilot_proto::wire::frame::{self, Pils};
use pilot_proto::wire::packet::{Header, Packet, flags, protocol};

pub const SYN: u8 = flags::SYN;
pub const ACK: u8 = flags::ACK;
pub const FIN: u8 = flags::FIN;
pub const RST: u8 = flags::RST;

/// A scripted peer's keys and its side of the session.
pub struct Peer {
    pub node: u32,
    pub identity: Identity,
    pub secret: TunnelSecret,
    /// The key shared with the node under test, once it has shown its own.
    pub session: Option<SessionKey>,
    /// The node's X25519 key in that session.
    pub subject: Option<[u8; 32]>,
    pub prefix: [u8; 4],
    pub counter: u64,
    /// Nonce prefixes of the node under test, in order of appearance.
    pub epochs: Vec<[u8; 4]>,
}

impl Peer {
    pub fn new(node: u32) -> Peer {
        let seed = [node as u8; 32];
        Peer {
            node,
            identity: Identity::from_seed(seed).expect("any seed will do"),
            secret: TunnelSecret::from_bytes(&[node as u8 ^ 0x5A; 32]).expect("32 bytes"),
            session: None,
            subject: None,
            prefix: [node as u8, 1, 2, 3],
            counter: 0,
            epochs: Vec::new(),
        }
    }

    /// The node's key became known: agree.
    pub fn agree(&mut self, subject: &[u8; 32]) {
        self.session = self.secret.session_key(subject);
        self.subject = Some(*subject);
    }

    /// Takes another tunnel key, as after a restart.
    pub fn restart(&mut self, secret: u8) {
        self.secret = TunnelSecret::from_bytes(&[secret; 32]).expect("32 bytes");
        self.prefix[3] = self.prefix[3].wrapping_add(1);
        self.counter = 0;
        if let Some(subject) = self.subject {
            self.agree(&subject);
        }
    }

    pub fn pila(&self) -> Vec<u8> {
        self.pila_as(&self.identity)
    }

    /// A PILA that claims, and is signed by, another identity.
    pub fn pila_as(&self, identity: &Identity) -> Vec<u8> {
        let public = self.secret.public_key();
        let signature = identity.sign(&frame::pila_signed(self.node, public));
        frame::pila(self.node, public, identity.public_key(), &signature).to_vec()
    }

    pub fn pilk(&self) -> Vec<u8> {
        frame::pilk(self.node, self.secret.public_key()).to_vec()
    }

    /// Seals a packet with the next counter.
    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        self.counter += 1;
        self.seal_as(packet, self.counter)
    }

    pub fn seal_as(&self, packet: &[u8], counter: u64) -> Vec<u8> {
        let header = Pils { node: self.node, prefix: self.prefix, counter };
        let key = self.session.as_ref().expect("the session is agreed");
        let mut out = header.header().to_vec();
        out.extend_from_slice(packet);
        let tag = key.seal(header.nonce(), &self.node.to_be_bytes(), &mut out[20..]).expect("sealed");
        out.extend_from_slice(&tag);
        out
    }

    /// Opens a frame of the node; the packet.
    pub fn open(&mut self, header: Pils, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut text = bytes.get(20..)?.to_vec();
        let key = self.session.as_ref()?;
        let packet = key.open(header.nonce(), &header.node.to_be_bytes(), &mut text)?.to_vec();
        if !self.epochs.contains(&header.prefix) {
            self.epochs.push(header.prefix);
        }
        Some(packet)
    }
}

/// A packet of a peer under construction.
#[derive(Debug, Clone)]
pub struct Pkt {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Pkt {
    pub fn new(proto: u8, flags: u8, src_port: u16, dst_port: u16) -> Pkt {
        let header = Header { flags, protocol: proto, src_port, dst_port, window: 512, ..Header::default() };
        Pkt { header, payload: Vec::new() }
    }

    pub fn stream(flags: u8, src_port: u16, dst_port: u16) -> Pkt {
        Pkt::new(protocol::STREAM, flags, src_port, dst_port)
    }

    pub fn control(flags: u8, src_port: u16, dst_port: u16) -> Pkt {
        Pkt::new(protocol::CONTROL, flags, src_port, dst_port).window(0)
    }

    pub fn seq(mut self, seq: u32) -> Pkt {
        self.header.seq = seq;
        self
    }

    pub fn ack(mut self, ack: u32) -> Pkt {
        self.header.ack = ack;
        self
    }

    pub fn window(mut self, window: u16) -> Pkt {
        self.header.window = window;
        self
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Pkt {
        self.payload = data.as_ref().to_vec();
        self
    }

    pub fn from(mut self, src: Addr) -> Pkt {
        self.header.src = src;
        self
    }

    pub fn to(mut self, dst: Addr) -> Pkt {
        self.header.dst = dst;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.header.emit(&self.payload, &mut out).expect("small enough");
        out
    }
}

fn flag_names(bits: u8) -> String {
    let names = [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "-".to_owned() } else { set.join("+") }
}

fn sack_blocks(payload: &[u8], base: u32) -> Option<String> {
    let count = usize::from(*payload.get(4)?);
    if !payload.starts_with(b"SACK") || payload.len() != 5 + 8 * count {
        return None;
    }
    let number = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
    let blocks = payload[5..]
        .chunks_exact(8)
        .map(|b| format!(" {}-{}", number(b).wrapping_sub(base), number(&b[4..]).wrapping_sub(base)));
    Some(format!("sack{}", blocks.collect::<String>()))
}

/// Describes a packet of the node; the window apart. Acknowledgements are told from `base` on. `port` renames the node's ephemeral ports.
pub fn describe(
    packet: &Packet<'_>,
    base: u32,
    mut port: impl FnMut(u16) -> String,
) -> (String, Option<u16>) {
    let h = &packet.header;
    let kind = match h.protocol {
        protocol::STREAM => "stream",
        protocol::DATAGRAM => "datagram",
        protocol::CONTROL => "control",
        _ => "?",
    };
    let payload = if packet.payload.is_empty() {
        String::new()
    } else if let Some(sack) = sack_blocks(packet.payload, base) {
        format!(" {sack}")
    } else {
        format!(" {} bytes {:08x}", packet.payload.len(), crc32fast::hash(packet.payload))
    };
    let text = format!(
        "{kind} {} {}>{} seq {} ack {}{payload}",
        flag_names(h.flags),
        port(h.src_port),
        h.dst_port,
        h.seq,
        h.ack.wrapping_sub(base)
    );
    (text, Some(h.window))
}
