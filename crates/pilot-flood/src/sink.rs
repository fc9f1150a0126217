//! What floods are compared against: sockets on the victim's host that do nothing.

use crate::Outcome;
use crate::options::Options;
use serde_json::json;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// Binds `--at` for UDP and TCP until `--secs` have passed.
pub fn run(options: &Options) -> Outcome {
    let at: SocketAddr = options.get("at")?;
    let limit = options.secs()?;
    let _udp = UdpSocket::bind(at).map_err(|e| format!("UDP {at}: {e}"))?;
    let tcp = TcpListener::bind(at).map_err(|e| format!("TCP {at}: {e}"))?;
    tcp.set_nonblocking(true).map_err(|e| e.to_string())?;
    let began = Instant::now();
    let mut closed = 0u64;
    while began.elapsed() < limit {
        match tcp.accept() {
            Ok((stream, _)) => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                closed += 1;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(json!({"closed": closed}))
}
