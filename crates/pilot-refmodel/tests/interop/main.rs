//! The real reference 1.18.0 daemon runs every scenario, and the model must send the same datagrams.
//!
//! Needs root (network namespaces), `ip`, `unshare`, and the reference in a Python environment named by
//! `PILOT_REFERENCE_VENV`; `scripts/test.sh` sets all of this up. The daemon only ever runs in a namespace that holds
//! nothing but loopback, with an empty HOME and its vendor services off.
//!
//! `PILOT_RECORD=1` writes what the daemon did to `tests/golden`, where the normal tests compare the model with it.
//! `PILOT_SCENARIO=text` runs the scenarios whose names contain the text.

#[path = "../lab/mod.rs"]
mod lab;
mod live_host;
mod namespace;
mod registry;

use lab::scenarios::{self, Scenario};
use lab::trace;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Daemons at a time. They mostly wait.
const AT_A_TIME: usize = 10;
/// Runs of a scenario, of which one must agree: the daemon's timers have jitter, its tasks race, and ten of them share the
/// machine. A model that does something else never agrees.
const RUNS: usize = 3;

/// Runs one scenario against the real daemon; the difference to the model, if there is one.
fn run(number: usize, scenario: &Scenario) -> Result<(), String> {
    let outcome = std::panic::catch_unwind(|| {
        let mut host = live_host::LiveHost::start(number, &scenario.setup);
        scenario.play(&mut host)
    });
    let real = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })?;
    let text = trace::to_text(&real);
    assert_eq!(trace::from_text(&text), real, "traces survive being written");
    if std::env::var_os("PILOT_RECORD").is_some() {
        let path = format!("{}/tests/golden/{}.txt", env!("CARGO_MANIFEST_DIR"), scenario.name);
        std::fs::write(&path, &text).expect("golden file written");
    }
    scenario.compare_with_model(&real).map_err(|e| format!("{e}the daemon's trace:\n{text}"))
}

#[test]
fn the_daemon_and_the_model_send_the_same_datagrams() {
    let holder = namespace::Holder::new();
    let wanted = std::env::var("PILOT_SCENARIO").unwrap_or_default();
    let mut all: Vec<Scenario> = scenarios::all().into_iter().filter(|s| s.name.contains(&wanted)).collect();
    assert!(!all.is_empty(), "no scenario is called {wanted}");
    // The long ones first.
    all.sort_by_key(|s| std::cmp::Reverse(s.seconds));
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(all.len()) {
            scope.spawn(|| {
                holder.enter();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = all.get(i) else { return };
                    let mut result = run(i, scenario);
                    for again in 2..=RUNS {
                        let Err(error) = &result else { break };
                        println!("run {again} of  {}, because of\n{error}", scenario.name);
                        result = run(i + (again - 1) * live_host::NUMBERS, scenario);
                    }
                    println!("{} {}", if result.is_ok() { "same     " } else { "DIFFERENT" }, scenario.name);
                    if let Err(error) = result {
                        failures.lock().expect("no panic").push(format!("{}:\n{error}", scenario.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), all.len(), failures.join("\n"));
}
