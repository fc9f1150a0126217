//! A Pilot node to embed: sockets, clocks and an async API around `pilot_proto`.
//!
//! A [`Node`] registers with a registry, is reachable under a permanent 48-bit address, and exchanges encrypted
//! streams and datagrams with other nodes. No daemon is needed. A whole agent that answers on port 7:
//!
//! ```no_run
#![doc = include_str!("../examples/echo.rs")]
//! ```
//!
//! How it works inside: one task (the driver) owns the UDP socket and the protocol engine; streams, listeners and
//! the other tasks talk to it by messages. Registry, trust and heartbeats run beside it and never delay a packet.
#![deny(unsafe_code)]

mod carrier;
mod command;
mod config;
mod directory;
mod driver;
mod endpoints;
mod entrance;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod greeting;
mod handshake;
mod identity;
mod insist;
mod keeping;
mod listener;
mod local;
mod mapping;
mod node;
mod offline;
mod peers;
mod pins;
mod platform;
mod presence;
mod proxy;
mod records;
mod registry;
mod rotation;
mod route;
mod shared;
mod socket;
mod stream;
mod trust;
mod watch;

pub use command::Delivery;
pub use config::{NodeConfig, RegistryTls, StartError, Transport};
pub use insist::SessionPin;
pub use listener::Listener;
pub use node::{Datagram, Node, NodeEvent, NodeStatus};
pub use pilot_proto;
pub use proxy::{Credentials, Proxies, ProxyChoice, ProxyUrl};
pub use registry::{RegistryError, registry_call};
pub use stream::{ReadHalf, Stream, WriteHalf};
pub use trust::{ApproveOutcome, HandshakeSent, PendingRequest, TrustWait, TrustedPeer};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For a process that is a node and little else, before it starts threads: one memory pool, whose free part a node
/// gives back to the system when it idles. A pool per thread, the default of glibc, holds on to tens of megabytes
/// after a bulk transfer and is slower for buffers that cross threads.
pub fn tune_allocator() {
    platform::tune_allocator();
}

/// Fills `out` from the operating system's generator.
fn random(out: &mut [u8]) -> Result<(), String> {
    aws_lc_rs::rand::fill(out).map_err(|_| "the operating system gives no random numbers".to_owned())
}

/// `pause` and up to half of it more, so that nodes that failed together do not come back together.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the pause is merely the same for everyone.
    let _ = random(&mut byte);
    pause + pause / 2 * u32::from(byte[0]) / 256
}

fn unix_micros() -> u64 {
    // Enough for 584,000 years.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

#[cfg(test)]
#[test]
fn secrets_of_a_node_come_from_the_operating_system() {
    // Every secret of a node is drawn by `random`. It does not fail, and never gives the same twice, not even parts of it.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let mut secret = [0; 32];
        random(&mut secret).expect("the operating system gives random numbers");
        for part in secret.chunks_exact(8) {
            assert!(seen.insert(part.to_vec()));
        }
    }
    assert_ne!(identity::generate().map(|i| *i.seed()), identity::generate().map(|i| *i.seed()));
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Locks a control-plane mutex. Its data is consistent at every point where a panic could occur.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
