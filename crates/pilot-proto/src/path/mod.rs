//! How a peer is reached: directly or through the beacon's relay (spec 04 sections 8 to 13), and how large the datagrams
//! on each way may be.

pub mod beacons;
pub mod budget;
pub mod candidates;
pub mod keepalive;
pub mod liveness;
pub mod message;
pub mod mtu;
pub mod nat;
pub mod peer;
pub mod predict;
pub mod race;

pub use candidates::{Candidate, CandidateKind, MAX_CANDIDATES};
pub use mtu::Mtu;
pub use nat::{NatClass, PortRange};
pub use peer::{Choice, Path, Tick};
