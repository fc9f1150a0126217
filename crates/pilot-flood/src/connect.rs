//! TCP connections from many addresses.

use crate::Outcome;
use crate::options::{Options, Random};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Connects to `--to` from random addresses of `--from` (a local network of `--bits` host bits) and holds the newest
/// `--hold` connections.
pub fn flood(options: &Options) -> Outcome {
    let to: SocketAddrV4 = options.get("to")?;
    let from: Ipv4Addr = options.get("from")?;
    let host_mask = (1u64 << options.get::<u32>("bits")?.min(24)) - 1;
    let hold: usize = options.or("hold", 900)?;
    let limit = options.secs()?;
    let mut random = Random::new(0xC0);
    let mut held: VecDeque<Socket> = VecDeque::new();
    let (mut opened, mut refused) = (0u64, 0u64);
    let began = Instant::now();
    while began.elapsed() < limit {
        let source = u64::from(from.to_bits()) + (random.next() & host_mask);
        let source = SocketAddrV4::new(Ipv4Addr::from_bits(source as u32), 0);
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.set_nonblocking(true)?;
            socket.bind(&source.into())?;
            match socket.connect(&to.into()) {
                // The answer is on its way.
                Err(e) if e.raw_os_error() == Some(115) => {}
                other => other?,
            }
            Ok::<_, std::io::Error>(socket)
        };
        match connect() {
            Ok(socket) => {
                opened += 1;
                held.push_back(socket);
                if held.len() > hold {
                    held.pop_front();
                }
            }
            Err(_) => refused += 1,
        }
    }
    let secs = began.elapsed().as_secs_f64();
    Ok(json!({"sent": opened, "refused": refused, "per_second": opened as f64 / secs}))
}
