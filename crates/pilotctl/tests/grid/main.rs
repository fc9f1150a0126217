//! Agents behind NATs, firewalls and proxies, real daemons in the network laboratory: which pairs connect, how soon, on which
//! path, and what becomes of a stream while the network changes under it.
#![allow(clippy::unwrap_used)]

mod agents;
mod beacons;
mod events;
mod flow;
mod kinds;
mod netcheck;
mod places;
mod probe;
mod report;

use agents::{Agent, PATIENCE};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Times are measured: one test at a time has the machine.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For the tests' clients of the daemons.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("threads")
}

/// Trust in place, no tunnel, NATs that know nothing.
fn start_anew(agents: &mut [Agent]) {
    agents.iter_mut().for_each(Agent::stop);
    agents.iter().for_each(Agent::forget_peers);
    agents.iter_mut().for_each(Agent::start);
    for agent in agents {
        assert!(agent.registers_within(PATIENCE), "{} registers", agent.name);
    }
}
