//! Two engines on a virtual clock, between them a network the input rules, beside them a peer that has a session and
//! seals whatever the input says.

use crate::input::Input;
use bytes::Bytes;
use pilot_proto::crypto::{Identity, SessionKey, TunnelSecret};
use pilot_proto::engine::{Config, Engine, Event, Output, Route};
use pilot_proto::path::Candidate;
use pilot_proto::stream::{ConnId, StreamEvent};
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::frame::{self, Frame, Pils};
use pilot_proto::wire::packet::Header;
use pilot_proto::{Addr, NodeId};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Operations of one input.
const MAX_OPS: usize = 200;
/// Outputs of one engine before it comes to rest.
const MAX_OUTPUTS: usize = 50_000;
/// Datagrams under way; more are lost.
const MAX_FLYING: usize = 1_000;
/// The third node, which the input plays.
const EVIL: NodeId = 3;
const ENGINES: [NodeId; 2] = [1, 2];

fn at(node: NodeId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 4000))
}

fn beacon() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 9], 9001))
}

fn identity(node: NodeId) -> Identity {
    Identity::from_seed([node as u8; 32]).expect("every seed is a key")
}

fn config(node: NodeId, public: bool) -> Config {
    Config {
        tunnel_secret: [node as u8; 32],
        rng_seed: [node as u8; 32],
        encrypt: true,
        session_upgrade: true,
        allow_anonymous: Vec::new(),
        public,
        strict_dataplane_trust: false,
        relay_only: false,
        loopback_payload: 1152,
        idle_timeout: Duration::from_secs(120),
        user_timeout: Duration::from_secs(900),
        keepalive: Duration::from_secs(60),
        max_conns_per_port: 16,
        max_conns_total: 32,
        syn_rate_limit: 100,
        max_segments: 8,
    }
}

struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

struct Net {
    now: Instant,
    engines: [Engine; 2],
    wake: [Option<Instant>; 2],
    conns: [Vec<ConnId>; 2],
    flying: VecDeque<Datagram>,
    /// The registry answers.
    directory: bool,
    evil: [SessionKey; 2],
    evil_pila: Vec<u8>,
    evil_counter: u64,
    /// What engine 1 or 2 sent to the third node last: its numbers are worth answering.
    seen: Header,
}

impl Net {
    fn new(public: bool, relayed: bool) -> Net {
        let now = Instant::now();
        let secret = TunnelSecret::from_bytes(&[EVIL as u8; 32]).expect("32 bytes are an X25519 key");
        let evil = ENGINES.map(|node| {
            let theirs = TunnelSecret::from_bytes(&[node as u8; 32]).expect("32 bytes are an X25519 key");
            secret.session_key(theirs.public_key()).expect("not of low order")
        });
        let id = identity(EVIL);
        let signature = id.sign(&frame::pila_signed(EVIL, secret.public_key()));
        let engines = ENGINES.map(|node| {
            let mut engine = Engine::new(config(node, public), Arc::new(identity(node)), node, now);
            engine.listen(7);
            if relayed {
                engine.set_beacon(now, Some(beacon()));
            }
            engine
        });
        Net {
            now,
            engines,
            wake: [None; 2],
            conns: [Vec::new(), Vec::new()],
            flying: VecDeque::new(),
            directory: true,
            evil,
            evil_pila: frame::pila(EVIL, secret.public_key(), id.public_key(), &signature).to_vec(),
            evil_counter: 0,
            seen: Header::default(),
        }
    }

    /// Lets an engine hand out everything it has now.
    fn poll(&mut self, index: usize) {
        let (now, me) = (self.now, at(ENGINES[index]));
        let mut buf = Vec::new();
        for round in 0.. {
            assert!(round < MAX_OUTPUTS, "node {} never comes to rest", ENGINES[index]);
            let engine = &mut self.engines[index];
            match engine.poll_output(now, &mut buf) {
                Output::Transmit(t) => {
                    assert_eq!(t.len, buf.len());
                    let size = t.segment_size.unwrap_or(t.len);
                    assert!(size > 0 && size <= 65_507, "{t:?}");
                    for bytes in buf.chunks(size) {
                        self.fly(Datagram { from: me, to: t.to, bytes: bytes.to_vec() });
                    }
                }
                Output::Event(Event::NeedKey(node)) if self.directory => {
                    let key = (1..=EVIL).contains(&node).then(|| *identity(node).public_key());
                    engine.set_peer_key(now, node, key);
                }
                Output::Event(Event::NeedRoute(node)) if self.directory => {
                    let route = match node {
                        1..=EVIL => {
                            Ok(Route { direct: vec![Candidate::guessed(at(node))], relay_only: false })
                        }
                        _ => Err("not found".to_owned()),
                    };
                    engine.set_route(now, node, route);
                }
                Output::Event(Event::Stream(
                    StreamEvent::Incoming { conn, .. } | StreamEvent::Connected(conn),
                )) => self.conns[index].push(conn),
                Output::Event(_) => {}
                Output::Timeout(wake) => {
                    self.wake[index] = wake;
                    return;
                }
            }
        }
    }

    fn fly(&mut self, datagram: Datagram) {
        if datagram.to == at(EVIL) {
            self.overhear(&datagram);
        } else if self.flying.len() < MAX_FLYING {
            self.flying.push_back(datagram);
        }
    }

    /// The third node reads what is sent to it.
    fn overhear(&mut self, datagram: &Datagram) {
        let Ok(Frame::Pils(pils)) = Frame::parse(&datagram.bytes) else { return };
        let Some(index) = ENGINES.iter().position(|node| *node == pils.node) else { return };
        let mut text = datagram.bytes[frame::PILS_HEADER_LEN..].to_vec();
        if let Some(plain) = self.evil[index].open(pils.nonce(), &pils.node.to_be_bytes(), &mut text)
            && let Ok(packet) = pilot_proto::wire::packet::Packet::parse(plain)
        {
            self.seen = packet.header;
        }
    }

    fn give(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        if to == beacon() {
            return self.beacon(from, &bytes);
        }
        if let Some(index) = ENGINES.iter().position(|node| at(*node) == to) {
            self.engines[index].handle_datagram(self.now, from, &mut bytes);
            self.poll(index);
        }
    }

    /// A beacon that relays.
    fn beacon(&mut self, from: SocketAddr, bytes: &[u8]) {
        let mut out = Vec::new();
        match Message::parse(bytes) {
            Ok(Message::Discover { .. }) => {
                Message::DiscoverReply(from).emit(&mut out);
                self.fly(Datagram { from: beacon(), to: from, bytes: out });
            }
            Ok(Message::Relay { from: node, to, frame }) => {
                Message::RelayDeliver { from: node, frame }.emit(&mut out);
                self.fly(Datagram { from: beacon(), to: at(to), bytes: out });
            }
            _ => {}
        }
    }

    fn deliver_next(&mut self) {
        if let Some(next) = self.flying.pop_front() {
            self.give(next.from, next.to, next.bytes);
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        let mut rounds = 0;
        loop {
            let due = self.wake.iter().flatten().min().copied().filter(|due| *due <= until);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            for index in 0..2 {
                if self.wake[index].is_some_and(|wake| wake <= self.now) {
                    self.engines[index].handle_timeout(self.now);
                    self.poll(index);
                }
            }
            rounds += 1;
            assert!(rounds < 20_000, "timers run all the time");
        }
        self.now = until;
    }

    /// The third node seals a packet the input describes.
    fn evil_packet(&mut self, input: &mut Input<'_>, index: usize) {
        let kind = input.u8();
        let header = Header {
            flags: kind & 0x0F,
            protocol: if kind & 0x10 == 0 { 1 } else { input.u8() },
            src: Addr::backbone(if kind & 0x20 == 0 { EVIL } else { u32::from(input.u8()) }),
            dst: Addr::backbone(ENGINES[index]),
            src_port: 5000,
            dst_port: if kind & 0x40 == 0 { 7 } else { self.seen.src_port },
            seq: self.seen.ack.wrapping_add_signed(input.near()),
            ack: self.seen.seq.wrapping_add_signed(input.near()),
            window: input.u16(),
        };
        let mut packet = Vec::new();
        let payload = input.short();
        header.emit(payload, &mut packet).expect("255 bytes fit");
        if kind & 0x80 != 0 {
            // Not even a packet.
            packet = payload.to_vec();
        }
        self.evil_counter += 1;
        let pils = Pils { node: EVIL, prefix: [input.u8() & 3, 0, 0, 0], counter: self.evil_counter };
        let tag = self.evil[index].seal(pils.nonce(), &EVIL.to_be_bytes(), &mut packet).expect("sealed");
        let bytes = [&pils.header()[..], &packet, &tag].concat();
        self.give(at(EVIL), at(ENGINES[index]), bytes);
    }

    fn application(&mut self, input: &mut Input<'_>, index: usize) {
        let (now, pick) = (self.now, input.u8());
        let conns = &self.conns[index];
        let conn = conns.get(usize::from(pick) % conns.len().max(1)).copied().unwrap_or(ConnId(1));
        let other = if pick & 0x80 == 0 { ENGINES[1 - index] } else { u32::from(input.u8()) };
        let engine = &mut self.engines[index];
        match input.u8() % 16 {
            0 | 1 => drop(engine.dial(now, Addr::backbone(other), 7)),
            2 | 3 => drop(engine.write(now, conn, Bytes::from(vec![7; input.u16().into()]))),
            4 | 5 => {
                while let Some(bytes) = engine.read(conn) {
                    engine.consumed(now, conn, bytes.len());
                }
            }
            6 => engine.close(now, conn),
            7 => drop(engine.finish(now, conn)),
            8 => engine.abort(now, conn),
            9 => engine.release(now, conn),
            10 => drop(engine.send_datagram(now, Addr::backbone(other), 99, input.short())),
            11 => drop(engine.ping(now, other, input.short())),
            12 => engine.forget_peer(now, other),
            13 => match pick & 0x0C {
                4 => engine.network_changed(now),
                8 => engine.set_punching(pick & 1 == 0),
                12 => {
                    let list = (0..pick >> 4).map(|n| Candidate::guessed(at(NodeId::from(n) + 1)));
                    engine.set_local_candidates(now, list.collect());
                }
                _ => engine.set_trusted(other, pick & 1 == 0),
            },
            14 => match pick & 0x0C {
                4 => engine.handle_too_big(now, at(other), input.u16().into()),
                8 => engine.handle_mtu_hint(now, at(other), input.u16().into()),
                _ => engine.handle_unreachable(now, at(other)),
            },
            _ => {
                let beacon = (pick & 1 == 0).then(beacon);
                engine.set_beacon(now, beacon);
            }
        }
        self.poll(index);
    }
}

/// A series of operations on the network: forged, mangled, lost and repeated datagrams, packets of a peer that has a
/// session, times, and what the applications do.
pub fn engine(input: &[u8]) {
    play(input);
}

/// The target; returns how many connections the engines had.
fn play(input: &[u8]) -> [usize; 2] {
    let mut input = Input::new(input);
    let kind = input.u8();
    let mut net = Net::new(kind & 1 == 0, kind & 2 != 0);
    for index in 0..2 {
        net.poll(index);
    }
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let index = usize::from(op >> 7);
        let target = at(ENGINES[index]);
        match op & 0x0F {
            0..=2 => net.deliver_next(),
            3 => drop(net.flying.pop_front()),
            4 => {
                if let Some(next) = net.flying.pop_front() {
                    net.give(next.from, next.to, next.bytes.clone());
                    net.flying.push_back(next);
                }
            }
            5 => {
                if let Some(mut next) = net.flying.pop_front() {
                    let (place, bits) = (usize::from(input.u16()), input.u8());
                    let place = place % next.bytes.len().max(1);
                    if let Some(byte) = next.bytes.get_mut(place) {
                        *byte ^= bits;
                    }
                    net.give(next.from, next.to, next.bytes);
                }
            }
            6 => {
                let from = [beacon(), at(EVIL), at(1), at(2), at(77)][usize::from(input.u8()) % 5];
                let bytes = input.long().to_vec();
                net.give(from, target, bytes);
            }
            7 => net.give(at(EVIL), target, net.evil_pila.clone()),
            8 | 9 => net.evil_packet(&mut input, index),
            10 => net.wait(Duration::from_millis(u64::from(input.u16()))),
            11 => net.directory = !net.directory,
            _ => net.application(&mut input, index),
        }
        for (engine, conns) in net.engines.iter().zip(&net.conns) {
            assert!(engine.connections().len() <= 32 + conns.len() + 64);
            assert!(engine.peers().len() <= 260);
        }
    }
    for _ in 0..MAX_FLYING {
        net.deliver_next();
    }
    net.wait(Duration::from_secs(60));
    net.conns.map(|conns| conns.len())
}

#[cfg(test)]
mod tests {
    use super::play;

    #[test]
    fn the_corpus_reaches_connections() {
        let seed =
            |name| std::fs::read(format!("{}/../../fuzz/corpus/engine/{name}", env!("CARGO_MANIFEST_DIR")));
        for name in ["dial-and-transfer", "relayed", "lost-and-mangled"] {
            assert_eq!(play(&seed(name).expect("seed")), [1, 1], "{name}");
        }
        assert_eq!(play(&seed("evil-stream").expect("seed")), [1, 0], "the third node's connection");
    }
}
