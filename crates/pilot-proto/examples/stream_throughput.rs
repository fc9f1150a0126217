//! How many bytes per second the stream engine carries on one core, both ends in one thread, in memory.
//!
//! `cargo run --release -p pilot-proto --example stream_throughput [megabytes]`

use bytes::Bytes;
use pilot_proto::Addr;
use pilot_proto::stream::{Config, Ingress, PathInfo, StreamEvent, Streams};
use pilot_proto::wire::packet::Packet;
use std::time::{Duration, Instant};

/// Packets and bytes carried per step in each direction, like a batch of the socket layer.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 * 1024;
/// Virtual time per step: the clock does not slow the engine down.
const STEP: Duration = Duration::from_micros(50);

fn addr(node: u32) -> Addr {
    Addr { network: 0, node }
}

/// Moves up to a batch of packets from one end to the other.
fn carry(
    now: Instant,
    from: &mut Streams,
    to: &mut Streams,
    node: u32,
    size: usize,
    buf: &mut Vec<Vec<u8>>,
) -> usize {
    let info = PathInfo { max_payload: size, ready: true, relayed: false, same_process: true };
    let mut n = 0;
    while n < BATCH && n * size < BATCH_BYTES {
        if buf.len() == n {
            buf.push(Vec::with_capacity(size + 64));
        }
        buf[n].clear();
        if from.poll_packet(now, &|_| info, &mut buf[n]).is_none() {
            break;
        }
        n += 1;
    }
    for packet in &buf[..n] {
        let packet = Packet::parse(packet).expect("own packets are valid");
        to.handle_packet(now, Ingress { node, admitted: true }, packet);
    }
    n
}

fn measure(size: usize, total: usize, extensions: bool) -> f64 {
    let config = Config { extensions, ..Config::default() };
    let (mut a, mut b) = (Streams::new(config, [1; 32]), Streams::new(config, [2; 32]));
    let mut now = Instant::now();
    b.listen(7);
    let conn = a.dial(now, addr(1), addr(2), 7).expect("dial");
    let chunk = Bytes::from(vec![0x5A; 1 << 20]);
    let mut pending = Bytes::new();
    let (mut sent, mut received) = (0, 0);
    let mut peer = None;
    let mut buf = Vec::new();
    let start = Instant::now();
    while received < total {
        if pending.is_empty() && sent < total {
            pending = chunk.slice(..chunk.len().min(total - sent));
            sent += pending.len();
        }
        if !pending.is_empty() {
            pending = a.write(now, conn, std::mem::take(&mut pending)).expect("open");
        }
        carry(now, &mut a, &mut b, 1, size, &mut buf);
        while let Some(event) = b.poll_event() {
            if let StreamEvent::Incoming { conn, .. } = event {
                peer = Some(conn);
            }
        }
        while a.poll_event().is_some() {}
        if let Some(peer) = peer {
            while let Some(bytes) = b.read(peer) {
                received += bytes.len();
                b.consumed(now, peer, bytes.len());
            }
        }
        carry(now, &mut b, &mut a, 2, size, &mut buf);
        now += STEP;
        for end in [&mut a, &mut b] {
            if end.next_timeout().is_some_and(|at| at <= now) {
                end.handle_timeout(now);
            }
        }
    }
    total as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn main() {
    let megabytes: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2000);
    let total = megabytes << 20;
    println!("segments of  1,152 bytes, own peers:      {:6.0} MB/s", measure(1152, total / 4, true));
    println!("segments of  1,152 bytes, reference peer: {:6.0} MB/s", measure(1152, total / 4, false));
    println!("segments of 60,000 bytes, own peers:      {:6.0} MB/s", measure(60_000, total, true));
}
