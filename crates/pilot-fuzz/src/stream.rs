//! Streams against arbitrary packets of a peer and arbitrary wishes of the application. Stream options and SACK lists
//! are payloads of those packets.

use crate::input::Input;
use bytes::Bytes;
use pilot_proto::stream::{Config, ConnId, Ingress, PathInfo, StreamEvent, Streams};
use pilot_proto::wire::packet::{Header, Packet, flags, protocol};
use pilot_proto::{Addr, NodeId};
use std::time::{Duration, Instant};

const US: Addr = Addr { network: 0, node: 1 };
const PEER: Addr = Addr { network: 0, node: 9 };
/// Operations of one input.
const MAX_OPS: usize = 300;
/// Packets after one operation; more means that the streams talk to themselves.
const MAX_BURST: usize = 2_000;
const WINDOW: usize = 200_000;
const SEND_BUFFER: usize = 50_000;

struct Rig {
    streams: Streams,
    start: Instant,
    now: Instant,
    conns: Vec<ConnId>,
    /// Our last packet: what a peer's numbers relate to.
    last: Header,
    /// Our number and port of the latest dial.
    syn: Header,
    ready: bool,
}

impl Rig {
    fn drain(&mut self) -> usize {
        let ready = self.ready;
        let path = move |_: NodeId| PathInfo { max_payload: 1152, ready, relayed: false, same_process: true };
        let mut out = Vec::new();
        let mut count = 0;
        while self.streams.poll_packet(self.now, &path, &mut out).is_some() {
            let packet = Packet::parse(&out).expect("what we send parses");
            assert_eq!((packet.header.src, packet.header.dst), (US, PEER));
            self.last = packet.header;
            if packet.header.flags == flags::SYN {
                self.syn = packet.header;
            }
            out.clear();
            count += 1;
            assert!(count < MAX_BURST, "{count} packets at once");
        }
        while let Some(event) = self.streams.poll_event() {
            if let StreamEvent::Incoming { conn, .. } = event {
                self.conns.push(conn);
            }
        }
        count
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        let mut rounds = 0;
        loop {
            self.drain();
            let Some(at) = self.streams.next_timeout().filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            self.streams.handle_timeout(self.now);
            rounds += 1;
            assert!(rounds < 50_000, "timers run all the time at {:?}", self.now - self.start);
        }
        self.now = until;
    }

    fn conn(&self, index: u8) -> ConnId {
        match self.conns.len() {
            0 => ConnId(1),
            n => self.conns[usize::from(index) % n],
        }
    }

    fn packet(&mut self, input: &mut Input<'_>) {
        let bits = input.u8();
        let to_dial = bits & 0x80 != 0;
        let near = if to_dial { self.syn } else { self.last };
        let header = Header {
            flags: bits & 0x0F,
            protocol: protocol::STREAM,
            src: PEER,
            dst: US,
            src_port: if to_dial { near.dst_port } else { 5000 + u16::from(bits >> 4 & 3) },
            dst_port: if to_dial { near.src_port } else { 7 },
            // What the peer sends next is what we acknowledged; what it acknowledges is what we sent.
            seq: near.ack.wrapping_add_signed(input.near()),
            ack: near.seq.wrapping_add_signed(input.near()),
            window: input.u16(),
        };
        let size = input.u8();
        let big;
        let payload = match size {
            255 => {
                big = vec![0; 60_000];
                &big[..]
            }
            254 => {
                big = vec![1; 1152];
                &big[..]
            }
            n => input.bytes(n.into()),
        };
        let ingress = Ingress { node: PEER.node, admitted: bits & 0x40 == 0 };
        self.streams.handle_packet(self.now, ingress, Packet { header, payload });
    }
}

/// A series of operations: packets, times, and what an application does.
pub fn stream(input: &[u8]) {
    play(input);
}

/// The target; returns how many bytes were read and how many connections there were.
fn play(input: &[u8]) -> (usize, usize) {
    let mut input = Input::new(input);
    let config = Config {
        recv_window: WINDOW,
        send_buffer: SEND_BUFFER,
        max_conns_per_port: 8,
        max_conns_total: 12,
        extensions: input.u8() & 1 == 0,
        ..Config::default()
    };
    let mut streams = Streams::new(config, [7; 32]);
    streams.listen(7);
    let start = Instant::now();
    let none = Header::default();
    let mut rig = Rig { streams, start, now: start, conns: Vec::new(), last: none, syn: none, ready: true };
    let mut read = 0;
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        match op % 16 {
            0..=6 => rig.packet(&mut input),
            7 => {
                let time = Duration::from_millis(u64::from(input.u16()));
                rig.wait(time);
            }
            8 => {
                if let Ok(conn) = rig.streams.dial(rig.now, US, PEER, 9) {
                    rig.conns.push(conn);
                }
            }
            9 => {
                let (conn, n) = (rig.conn(input.u8()), usize::from(input.u16()));
                if let Ok(rest) = rig.streams.write(rig.now, conn, Bytes::from(vec![1; n])) {
                    assert!(rest.len() <= n);
                }
            }
            10 => {
                let conn = rig.conn(input.u8());
                while let Some(bytes) = rig.streams.read(conn) {
                    assert!(!bytes.is_empty());
                    read += bytes.len();
                    rig.streams.consumed(rig.now, conn, bytes.len());
                }
            }
            11 => rig.streams.close(rig.now, rig.conn(input.u8())),
            12 => drop(rig.streams.finish(rig.now, rig.conn(input.u8()))),
            13 => rig.streams.abort(rig.now, rig.conn(input.u8())),
            14 => rig.streams.release(rig.now, rig.conn(input.u8())),
            _ => match input.u8() {
                0 => rig.streams.unlisten(7),
                1 => drop(rig.streams.listen(7)),
                2 => rig.streams.reset_node(rig.now, PEER.node),
                n => {
                    rig.ready = n & 1 == 0;
                    rig.streams.path_changed(rig.now, PEER.node);
                }
            },
        }
        rig.drain();
        let all = rig.streams.status();
        assert!(all.len() <= 64, "{} connections", all.len());
        for status in all {
            assert!(status.recv_win <= WINDOW as u64, "{status:?}");
            assert!(status.unacked <= 8192, "{status:?}");
            assert!(status.in_flight <= SEND_BUFFER as u64, "{status:?}");
            assert!(status.ooo_buf <= 4096, "{status:?}");
        }
    }
    // Whatever happened, everything ends.
    rig.ready = true;
    rig.streams.path_changed(rig.now, PEER.node);
    for conn in rig.conns.clone() {
        rig.streams.release(rig.now, conn);
    }
    rig.wait(Duration::from_secs(900));
    assert_eq!(rig.streams.status(), vec![]);
    (read, rig.conns.len())
}

#[cfg(test)]
mod tests {
    use super::play;

    #[test]
    fn the_corpus_reaches_data_and_dials() {
        let seed = |name: &str| {
            std::fs::read(format!("{}/../../fuzz/corpus/stream/{name}", env!("CARGO_MANIFEST_DIR")))
                .expect("seed")
        };
        assert_eq!(play(&seed("own-transfer")), (5, 1));
        assert_eq!(play(&seed("reference-transfer")), (5, 1));
        assert_eq!(play(&seed("own-holes")).1, 1);
        assert_eq!(play(&seed("own-dial")).1, 1);
    }
}
