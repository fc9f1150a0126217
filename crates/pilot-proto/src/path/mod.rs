//! How a peer is reached: directly or through the beacon's relay (spec 04 sections 8 to 13).

pub mod peer;

pub use peer::{Choice, Path, Tick};
