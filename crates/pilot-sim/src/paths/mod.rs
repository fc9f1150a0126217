//! Small worlds for the way between nodes: two to four of our own, a beacon, every kind of NAT, and networks that change
//! under them. Tens of thousands of them run in minutes, one of a seed is equal to the byte.
//!
//! What must hold:
//!
//! - a pair is connected within 10 s, whatever the NATs, and without loss it has its first answer within three round
//!   trips through the beacon (key exchange, opening, data);
//! - without loss, a pair of cone NATs is direct on both sides a second after that;
//! - after the last fault, a pair whose NATs allow it is direct on both sides within [`DIRECT_WITHIN`];
//! - while direct paths are blocked, or NATs forget mappings and addresses change, without loss, no stream stalls for longer
//!   than [`STALL`];
//! - no node sends more to addresses that never answered than its budget allows, and no NAT is made to hold more mappings
//!   than that.

mod nat;
mod plan;
mod world;

pub use world::{DIRECT_WITHIN, Outcome, STALL};

/// Runs the small world of a seed; `traced` prints what happens in it.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, traced: bool) -> (Outcome, Result<(), String>) {
    world::World::new(seed, traced).run()
}
