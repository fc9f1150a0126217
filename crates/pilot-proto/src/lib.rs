//! The Pilot Protocol as pure state machines.
//!
//! No socket, no thread, no clock and no global randomness: `now`, bytes and a random seed come in;
//! datagrams to send, the next deadline and events come out. Every behaviour is therefore a deterministic
//! test on a virtual clock.
//!
//! - [`wire`]: every binary format, as zero-copy views and plain representations.
//! - [`crypto`]: identities, key agreement and the AEAD.
//! - [`tunnel`]: key exchange, sessions, replay windows.
//! - [`path`]: how a peer is reached: direct or through the beacon's relay.
//! - [`stream`]: reliable streams on top of a tunnel.
//! - [`engine`]: all of the above behind one poll contract.
//! - [`trust`]: the handshake that makes two nodes trust each other.
//! - [`registry`]: what is signed and said between a node and its registry.
//! - [`service`]: formats and state machines of the built-in services.
#![forbid(unsafe_code)]

pub mod crypto;
pub mod engine;
pub mod path;
pub mod registry;
pub mod service;
pub mod stream;
pub mod trust;
pub mod tunnel;
pub mod wire;

pub use wire::addr::{Addr, NodeId, SocketAddr as PilotSocketAddr};
