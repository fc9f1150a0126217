//! One `Streams` against hand-built packets of a reference peer.

use pilot_proto::stream::{Config, ConnId, Handled, Ingress, PathInfo, StreamEvent, Streams};
use pilot_proto::wire::packet::{Header, Packet, flags, protocol};
use pilot_proto::{Addr, NodeId};
use std::time::{Duration, Instant};

pub const US: Addr = Addr { network: 0, node: 1 };
pub const PEER: Addr = Addr { network: 0, node: 901 };
pub const ACK: u8 = flags::ACK;
pub const SYN: u8 = flags::SYN;
pub const FIN: u8 = flags::FIN;
pub const RST: u8 = flags::RST;

/// A packet, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkt {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Pkt {
    pub fn parse(bytes: &[u8]) -> Pkt {
        let packet = Packet::parse(bytes).expect("valid packet");
        Pkt { header: packet.header, payload: packet.payload.to_vec() }
    }

    /// The blocks of a SACK list.
    pub fn sack(&self) -> Option<Vec<(u32, u32)>> {
        let n = usize::from(*self.payload.get(4)?);
        if !self.payload.starts_with(b"SACK") || !(1..=4).contains(&n) || self.payload.len() != 5 + 8 * n {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"));
        Some((0..n).map(|i| (word(5 + 8 * i), word(9 + 8 * i))).collect())
    }

    pub fn is_data(&self) -> bool {
        self.header.flags == ACK && !self.payload.is_empty() && self.sack().is_none()
    }
}

/// The streams under test, a clock and one tuple.
pub struct Script {
    pub streams: Streams,
    pub now: Instant,
    pub port: u16,
    pub peer_port: u16,
    pub events: Vec<StreamEvent>,
    pub ready: bool,
    /// See [`PathInfo::same_process`].
    pub same_process: bool,
}

impl Script {
    pub fn new(config: Config) -> Script {
        let mut streams = Streams::new(config, [7; 32]);
        streams.listen(7);
        Script {
            streams,
            now: Instant::now(),
            port: 7,
            peer_port: 50_000,
            events: Vec::new(),
            ready: true,
            same_process: true,
        }
    }

    pub fn header(&self, bits: u8, seq: u32, ack: u32, window: u16) -> Header {
        Header {
            flags: bits,
            protocol: protocol::STREAM,
            src: PEER,
            dst: US,
            src_port: self.peer_port,
            dst_port: self.port,
            seq,
            ack,
            window,
        }
    }

    pub fn feed(&mut self, header: Header, payload: &[u8]) -> Handled {
        let ingress = Ingress { node: header.src.node, admitted: true };
        self.streams.handle_packet(self.now, ingress, Packet { header, payload })
    }

    /// Sends one packet and returns the answers.
    pub fn send(&mut self, bits: u8, seq: u32, ack: u32, window: u16, payload: &[u8]) -> Vec<Pkt> {
        self.feed(self.header(bits, seq, ack, window), payload);
        self.drain()
    }

    /// Everything that is sent at this instant.
    pub fn drain(&mut self) -> Vec<Pkt> {
        let mut all = Vec::new();
        let mut out = Vec::new();
        let (ready, same_process) = (self.ready, self.same_process);
        let path = move |_: NodeId| PathInfo { max_payload: 1152, ready, relayed: false, same_process };
        while self.streams.poll_packet(self.now, &path, &mut out).is_some() {
            all.push(Pkt::parse(&out));
            out.clear();
        }
        while let Some(event) = self.streams.poll_event() {
            self.events.push(event);
        }
        all
    }

    /// Lets time pass; returns what was sent, and when.
    pub fn wait_timed(&mut self, time: Duration) -> Vec<(Duration, Pkt)> {
        let start = self.now;
        let until = start + time;
        let mut all = Vec::new();
        loop {
            let sent = self.drain();
            all.extend(sent.into_iter().map(|pkt| (self.now - start, pkt)));
            match self.streams.next_timeout().filter(|at| *at <= until) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.streams.handle_timeout(self.now);
                }
                None => break,
            }
        }
        self.now = until;
        all
    }

    pub fn wait(&mut self, time: Duration) -> Vec<Pkt> {
        self.wait_timed(time).into_iter().map(|(_, pkt)| pkt).collect()
    }

    /// Opens a connection from the peer with sequence number `seq`; returns it and our initial sequence number.
    pub fn open(&mut self, seq: u32, window: u16) -> (ConnId, u32) {
        let answer = self.send(SYN, seq, 0, window, &[]);
        assert_eq!(answer.len(), 1, "{answer:?}");
        let header = answer[0].header;
        assert_eq!((header.flags, header.ack), (SYN | ACK, seq.wrapping_add(1)));
        let conn = self
            .events
            .iter()
            .rev()
            .find_map(|event| match event {
                StreamEvent::Incoming { conn, .. } => Some(*conn),
                _ => None,
            })
            .expect("incoming connection");
        self.streams.accepted(conn);
        (conn, header.seq)
    }

    /// Dials the peer's port 7 and answers like a reference; returns the connection and our initial number.
    pub fn dial(&mut self, peer_seq: u32, window: u16) -> (ConnId, u32) {
        let conn = self.streams.dial(self.now, US, PEER, 7).expect("dial");
        let syn = self.drain();
        assert_eq!(syn.len(), 1);
        self.port = syn[0].header.src_port;
        self.peer_port = 7;
        let seq = syn[0].header.seq;
        let third = self.send(SYN | ACK, peer_seq, seq.wrapping_add(1), window, &[]);
        assert_eq!(third.len(), 1);
        assert_eq!(third[0].header.ack, peer_seq.wrapping_add(1));
        (conn, seq)
    }

    pub fn read_all(&mut self, conn: ConnId) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.streams.read(conn) {
            self.streams.consumed(self.now, conn, bytes.len());
            all.extend_from_slice(&bytes);
        }
        all
    }

    pub fn write(&mut self, conn: ConnId, data: &[u8]) -> Vec<Pkt> {
        let rest = self.streams.write(self.now, conn, bytes::Bytes::copy_from_slice(data)).expect("writable");
        assert!(rest.is_empty());
        self.drain()
    }

    pub fn happened(&self, event: &StreamEvent) -> bool {
        self.events.contains(event)
    }
}
