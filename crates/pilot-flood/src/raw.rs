//! UDP from spoofed IPv4 addresses through a raw socket.

use crate::Outcome;
use crate::options::{Options, Random};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// The clock is read once per so many datagrams.
const ROUND: usize = 64;

#[derive(Clone, Copy)]
pub enum Kind {
    /// 136 bytes: magic, node id, X25519 key, Ed25519 key, signature; every second one names `--node`, if given.
    Pila,
    /// A Discover with an invented node id.
    Discover,
}

/// Sends to `--to` from random addresses of `--from` (a network of `--bits` host bits).
pub fn flood(options: &Options, kind: Kind) -> Outcome {
    let to: SocketAddrV4 = options.get("to")?;
    let from: Ipv4Addr = options.get("from")?;
    let host_mask = (1u64 << options.get::<u32>("bits")?.min(24)) - 1;
    let node: u32 = options.or("node", 0)?;
    let limit = options.secs()?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))
        .map_err(|e| format!("raw socket (root?): {e}"))?;
    let _ = socket.set_send_buffer_size(4 << 20);
    let mut random = Random::new(0x5EED);
    let body = match kind {
        Kind::Pila => 136,
        Kind::Discover => 5,
    };
    let mut packet = vec![0; HEADERS + body];
    let length = packet.len() as u16;
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    let destination = to.into();
    let (mut sent, mut refused) = (0u64, 0u64);
    let began = Instant::now();
    while began.elapsed() < limit {
        for _ in 0..ROUND {
            let source = u64::from(from.to_bits()) + (random.next() & host_mask);
            packet[12..16].copy_from_slice(&(source as u32).to_be_bytes());
            packet[20..22].copy_from_slice(&(1024 + (random.next() % 60_000) as u16).to_be_bytes());
            match kind {
                Kind::Pila => {
                    packet[HEADERS..HEADERS + 4].copy_from_slice(b"PILA");
                    random.fill(&mut packet[HEADERS + 4..]);
                    let claimed = if node != 0 && random.next().is_multiple_of(2) {
                        node
                    } else {
                        1 + (random.next() as u32 >> 12)
                    };
                    packet[HEADERS + 4..HEADERS + 8].copy_from_slice(&claimed.to_be_bytes());
                }
                Kind::Discover => {
                    packet[HEADERS] = 1;
                    packet[HEADERS + 1..].copy_from_slice(&(1 + (random.next() as u32 >> 12)).to_be_bytes());
                }
            }
            // The kernel fills in the checksum of the IP header; that of UDP is optional.
            match socket.send_to(&packet, &destination) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    let secs = began.elapsed().as_secs_f64();
    Ok(json!({"sent": sent, "refused": refused, "per_second": sent as f64 / secs}))
}
