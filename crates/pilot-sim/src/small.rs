//! Runs small worlds (`pilot_sim::paths`).

use crate::random_seed;
use pilot_sim::paths::{self, Outcome};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Sum {
    seeds: u64,
    worst: Outcome,
    failed: BTreeMap<u64, String>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome, result: Result<(), String>) {
        self.seeds += 1;
        if let Err(why) = result {
            println!("seed {seed}: {why}");
            self.failed.insert(seed, why);
        }
        let worst = &mut self.worst;
        worst.pairs += outcome.pairs;
        worst.direct += outcome.direct;
        worst.sent += outcome.sent;
        worst.stall = worst.stall.max(outcome.stall);
        worst.first_answer = worst.first_answer.max(outcome.first_answer);
        worst.first_direct = worst.first_direct.max(outcome.first_direct);
        worst.back = worst.back.max(outcome.back);
    }

    fn print(&self, took: Duration) {
        let Outcome { pairs, direct, stall, first_answer, first_direct, back, sent, .. } = self.worst;
        println!("{} small worlds, {} failed; {took:.1?}", self.seeds, self.failed.len());
        println!("{pairs} pairs, {direct} direct at the end; {sent} datagrams");
        println!(
            "worst, without loss: first answer after {:.2} relayed round trips",
            first_answer as f64 / 100.0
        );
        println!(
            "worst, cones without loss: direct {:.3} s after the first answer",
            first_direct as f64 / 1e6
        );
        println!(
            "worst: direct {:.1} s after the last fault, {:.1} s without an answer",
            back as f64 / 1e6,
            stall as f64 / 1e6
        );
        for (seed, why) in &self.failed {
            println!(
                "FAILED seed {seed}: {why}\n  replay: cargo run --release -p pilot-sim -- --paths --seed {seed} --trace"
            );
        }
    }
}

pub fn main(
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    time: Option<Duration>,
    (jobs, first, trace): (usize, bool, bool),
) -> ExitCode {
    if let Some(seed) = seed {
        let (outcome, result) = paths::run(seed, trace);
        println!("{outcome:#?}");
        return match result {
            Ok(()) => {
                println!("seed {seed}: holds");
                ExitCode::SUCCESS
            }
            Err(why) => {
                println!("seed {seed}: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let (from, to) = seeds.unwrap_or_else(|| (random_seed(), u64::MAX));
    println!("small worlds from seed {from} on");
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let (next, sum) = (AtomicU64::new(from), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while time.is_none_or(|time| start.elapsed() < time) && !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    let (outcome, result) = paths::run(seed, false);
                    stop.fetch_or(first && result.is_err(), Ordering::Relaxed);
                    sum.lock().unwrap_or_else(PoisonError::into_inner).add(seed, &outcome, result);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.print(start.elapsed());
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
