//! Deterministic simulation of whole networks on the sans-IO core; development only.
//!
//! A world is drawn from one seed: 3 to 12 nodes (each a [`pilot_proto::engine::Engine`]) behind NATs of four kinds, a
//! beacon, a directory, links, a workload of streams and datagrams, and faults. It runs on a virtual clock; two runs
//! of a seed are equal to the byte (the report's `trace` shows it). `cargo run -p pilot-sim -- --seed N` replays one.
//!
//! What must hold at every step is in [`Violation`]; `check` says how it is observed. [`Sabotage`] breaks the
//! harness on purpose, to show that each check notices.
//!
//! - `process`: what runs at a node. `plan`: what a seed means. `world`: the event loop. `app`: streams. `fault`: faults and bounds.
//! - `net`: links and NATs. `beacon`: a model of it. `check`: invariants.

mod app;
mod beacon;
mod check;
mod fault;
mod net;
mod plan;
mod process;
mod report;
mod rng;
mod world;

pub use check::{Sabotage, Violation};
pub use net::{Micros, NetStats, SECOND};
pub use plan::FAULT_NAMES;
pub use report::Report;
pub use world::{CONNECTED_WITHIN, ENDED_WITHIN};

/// Runs the world of a seed. The report says what happened until the violation, if there is one.
pub fn run(seed: u64) -> (Report, Result<(), Violation>) {
    world::World::new(seed, None).run()
}

/// Runs the world of a seed with a harness that lies.
pub fn run_sabotaged(seed: u64, sabotage: Sabotage) -> (Report, Result<(), Violation>) {
    world::World::new(seed, Some(sabotage)).run()
}
