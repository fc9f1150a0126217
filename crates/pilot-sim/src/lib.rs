//! Deterministic simulation of whole networks on the sans-IO core; development only.
//!
//! A world is drawn from one seed: 3 to 30 nodes (each a [`pilot_proto::engine::Engine`]) behind NATs of four kinds, one
//! to three beacons and a directory (the state cores of `pilot-rendezvous`), links, a workload of streams, jobs and
//! datagrams, and faults. It runs on a virtual clock; two runs of a seed are equal to the byte (the report's `trace`
//! shows it). `cargo run -p pilot-sim --bin pilot-sim -- --seed N` replays one, with `--trace` event by event.
//!
//! What must hold at every step is in [`Violation`]; `check` and `bounds` say how it is observed. [`Sabotage`] breaks the
//! harness on purpose, to show that each check notices; the broken builds of the product are in `mutants/`.
//!
//! - `plan`: what a seed means. `fault`: what goes wrong. `world`: the event loop. `process`: what runs at a node.
//! - `app`, `job`, `datagram`: the workload. `check`, `bounds`: invariants.
//! - `paths`: small worlds of another kind, for the way between nodes alone.
//! - `net`: links and NATs. `directory`: what nodes ask the registry, and the beacons' upkeep.

mod app;
mod bounds;
mod check;
mod datagram;
mod directory;
mod fault;
mod job;
pub mod mutants;
mod net;
pub mod paths;
mod plan;
mod process;
mod reference;
mod report;
mod rng;
mod world;

pub use check::{Sabotage, Violation};
pub use fault::{Hits, KINDS, Kind};
pub use net::{Micros, NetStats, SECOND};
pub use report::Report;
pub use world::{CONNECTED_WITHIN, DONE_WITHIN, ENDED_WITHIN};

/// Runs the world of a seed. The report says what happened until the violation, if there is one.
pub fn run(seed: u64) -> (Report, Result<(), Violation>) {
    world::World::new(seed, None).run()
}

/// Runs the world of a seed in which some nodes are models of reference 1.18.0 nodes.
pub fn run_mixed(seed: u64, traced: bool) -> (Report, Result<(), Violation>) {
    let mut world = world::World::mixed(seed);
    world.tracing = traced;
    world.run()
}

/// Runs the world of a seed with a harness that lies.
pub fn run_sabotaged(seed: u64, sabotage: Sabotage) -> (Report, Result<(), Violation>) {
    world::World::new(seed, Some(sabotage)).run()
}

/// Runs the world of a seed and prints what happens in it.
pub fn run_traced(seed: u64) -> (Report, Result<(), Violation>) {
    let mut world = world::World::new(seed, None);
    world.tracing = true;
    world.run()
}
