//! How a peer is reached: directly or through the beacon's relay (spec 04 sections 8 to 13).

pub mod budget;
pub mod candidates;
pub mod liveness;
pub mod message;
pub mod nat;
pub mod peer;
pub mod predict;
pub mod race;

pub use candidates::{Candidate, CandidateKind, MAX_CANDIDATES};
pub use nat::{NatClass, PortRange};
pub use peer::{Choice, Path, Tick};
