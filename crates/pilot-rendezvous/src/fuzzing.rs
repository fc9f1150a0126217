//! Entry points of the fuzz targets: the pure state cores under arbitrary bytes.

use crate::beacon::transmit::Sent;
use crate::beacon::{Beacon, Directory, Known, Settings};
use crate::clock::Now;
use crate::config::Config;
use crate::registry::request::Request;
use crate::registry::{After, Registry, Session, claim};
use crate::wire::{frame, read_frame};
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Nodes that exist from the start; node n has the key of seed n.
const NODES: u8 = 4;
/// The administrator's token.
const ADMIN: &str = "adm-secret";
/// In place of a signature: the harness signs with the key of the node the digit names.
const SIGN: &str = "sign:";
/// Requests of one input.
const MAX_REQUESTS: usize = 200;
/// Longest answer to a handful of nodes, bytes.
const MAX_ANSWER: usize = 4 << 20;

fn identity(seed: u8) -> Identity {
    // Every seed is a key.
    Identity::from_seed([seed; 32]).expect("every seed is a key")
}

fn peer(last: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, last], 50_000))
}

/// Signs `request` where it asks for it.
fn sign(request: &mut Map<String, Value>) {
    let asked = request.get("signature").and_then(Value::as_str).and_then(|s| s.strip_prefix(SIGN));
    let Some(seed) = asked.and_then(|s| s.parse().ok()).filter(|seed| (1..=NODES).contains(seed)) else {
        return;
    };
    let identity = identity(seed);
    if request.get("type").is_some_and(|kind| kind == "register") {
        request.insert("public_key".into(), identity.public_key_base64().into());
    }
    let req = Request(request);
    let text = match req.kind() {
        "register" => Some(challenge::register(req.text("listen_addr"), req.text("public_key"))),
        _ => claim(req).map(|claim| claim.text),
    };
    if let Some(text) = text {
        request.insert("signature".into(), identity.sign_text(&text).into());
    }
}

/// A registry with four nodes, and one connection's bytes. A field `conn` chooses whose connection it is, `wait`
/// lets seconds pass before the request.
pub fn registry(input: &[u8]) {
    play(input);
}

/// The target; returns how many requests were granted.
fn play(input: &[u8]) -> usize {
    let mut now = Now { unix_us: 1_795_217_600_000_000, mono: Instant::now() };
    let config = Config { admin_token: Some(ADMIN.into()), ..Config::default() };
    let beacon = SocketAddr::from(([192, 0, 2, 1], 9001));
    let mut registry = Registry::load(&config, beacon, Default::default(), "0".repeat(32), now);
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut sessions: Vec<Session> =
        (0..=NODES).map(|last| Session::new(peer(last), local, last == 0)).collect();
    for seed in 1..=NODES {
        let request = json!({"type": "register", "listen_addr": "127.0.0.1:4000", "signature": format!("{SIGN}{seed}")});
        let Value::Object(mut request) = request else { return 0 };
        sign(&mut request);
        let (answer, _) = registry.handle(&mut sessions[usize::from(seed)], &request, now);
        assert_eq!(answer["node_id"], seed, "{answer}");
    }
    let (mut stream, mut body, mut granted) = (input, Vec::new(), 0);
    for _ in 0..MAX_REQUESTS {
        let read = pin!(read_frame(&mut stream, &mut body)).poll(&mut Context::from_waker(Waker::noop()));
        // A slice is always ready. An error or the end closes the connection.
        let Poll::Ready(Ok(true)) = read else { break };
        let Ok(mut request) = serde_json::from_slice::<Map<String, Value>>(&body) else { break };
        let wait = request.get("wait").and_then(Value::as_u64).unwrap_or(0).min(10_000);
        now = Now { unix_us: now.unix_us + wait * 1_000_000, mono: now.mono + Duration::from_secs(wait) };
        if wait > 3_000 {
            registry.reap(now);
        }
        sign(&mut request);
        let conn = request.get("conn").and_then(Value::as_u64).unwrap_or(0) as usize % sessions.len();
        let (answer, after) = registry.handle(&mut sessions[conn], &request, now);
        assert!(answer["type"].is_string(), "{answer}");
        granted += usize::from(answer.get("error").is_none());
        assert!(frame(&answer).len() <= MAX_ANSWER, "an answer of {} bytes", frame(&answer).len());
        if let After::Delivered { node, up_to } = after {
            registry.delivered(node, up_to, now);
            match request.get("broken") {
                Some(_) => registry.delivery_broken(node, up_to, now),
                None => registry.delivery_confirmed(node, up_to),
            }
        }
        registry.take_effects();
        let writes = registry.take_writes().len();
        assert!(writes <= 5_000, "{writes} writes for one request");
    }
    granted
}

/// A beacon's datagrams: a sender in one byte, seconds since the last one in the next, a length in two, the bytes. With
/// the length's highest bit set, the first byte is the length of each of several datagrams that came with one call. With
/// the highest bit of the seconds set, the socket is full after one frame.
pub fn beacon(input: &[u8]) {
    struct Nobody;
    impl Directory for Nobody {
        fn find(&self, node: NodeId) -> Option<Known> {
            (node < 4).then_some(Known { key: [0; 32], ip: Some(peer(1).ip()) })
        }
        fn reached(&self, _: IpAddr) -> bool {
            false
        }
    }
    let settings = Settings { id: 1, peers: vec![peer(200)], ..Settings::default() };
    let mut beacon = Beacon::new(settings);
    let mut now = Instant::now();
    let mut rest = input;
    let (mut received, mut sent, mut longest) = (0, 0, 20);
    while let Some(([from, secs, high, low], tail)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([*high & 0x7F, *low])).min(tail.len());
        let (mut bytes, next) = tail.split_at(len);
        rest = next;
        let mut stride = len;
        if high & 0x80 != 0
            && let Some((each, datagrams)) = bytes.split_first()
        {
            (stride, bytes) = (usize::from(*each).max(1), datagrams);
        }
        now += Duration::from_secs(u64::from(*secs & 0x7F));
        received += bytes.len().div_ceil(stride.max(1));
        longest = longest.max(stride);
        let mut count = |_: SocketAddr, out: &[u8]| {
            sent += 1;
            assert!(out.len() <= longest, "{} bytes, but none received had more than {longest}", out.len());
        };
        beacon.receive(peer(*from), bytes, stride, &Nobody, now, &mut count);
        if secs & 0x80 == 0 {
            beacon.flush(&mut count);
            assert!(!beacon.waiting());
        } else if let Some(mut batch) = beacon.next() {
            let (to, frames) = (batch.to, batch.frames());
            let first = batch.bytes()[..batch.segment.min(batch.bytes().len())].to_vec();
            count(to, &first);
            batch.advance(1);
            beacon.sent(batch, &Sent { frames: 1, bytes: first.len() as u64, refused: 0, full: true });
            if frames > 1 {
                let again = beacon.next().map(|batch| (batch.to, batch.frames(), beacon.sent(batch, &FULL)));
                assert_eq!(again, Some((to, frames - 1, ())), "what is left comes next");
            }
        }
        // What a spoofed sender can make us send: two datagrams for each, none much longer than its own.
        assert!(sent <= 2 * received, "{sent} datagrams for {received}");
        // The second port answers with no more than it gets.
        beacon.probe(peer(*from), bytes, &Nobody, now, &mut |to, out| {
            assert!(to == peer(*from) && out.len() <= bytes.len(), "{} bytes for {}", out.len(), bytes.len());
        });
        beacon.notify(u32::from(*from), now, &mut |_, _| {});
        if secs & 0x7F > 60 {
            beacon.sweep(now);
            beacon.announce(&mut |_, _| {});
        }
    }
    let before = beacon.counters;
    beacon.flush(&mut |_, _| {});
    assert!(beacon.counters.relayed >= before.relayed && !beacon.waiting());
}

/// The socket took nothing.
const FULL: Sent = Sent { frames: 0, bytes: 0, refused: 0, full: true };

#[cfg(test)]
mod tests {
    use super::play;

    #[test]
    fn the_corpus_reaches_granted_requests() {
        for (name, granted) in
            [("handshake", 7), ("names", 5), ("network", 9), ("reaped", 3), ("lost-poll", 4)]
        {
            let path = format!("{}/../../fuzz/corpus/registry/{name}", env!("CARGO_MANIFEST_DIR"));
            assert_eq!(play(&std::fs::read(path).expect("seed")), granted, "{name}");
        }
    }
}
