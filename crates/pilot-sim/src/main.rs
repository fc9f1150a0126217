//! Runs seeds: `pilot-sim --seed N` one, in detail; `pilot-sim --seeds FROM..TO` many.

use pilot_sim::{FAULT_NAMES, Report, SECOND, run};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: pilot-sim --seed N | --seeds FROM..TO   (TO is not run)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["--seed", n] => match n.parse() {
            Ok(seed) => one(seed),
            Err(error) => wrong(&format!("--seed {n}: {error}")),
        },
        ["--seeds", range] => {
            let parsed = range.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            match parsed {
                Some((from, to)) if from < to => many(from, to),
                _ => wrong(&format!("--seeds {range}: not FROM..TO with FROM below TO")),
            }
        }
        _ => wrong("nothing to run"),
    }
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("pilot-sim: {why}\n{USAGE}");
    ExitCode::from(2)
}

fn one(seed: u64) -> ExitCode {
    let start = Instant::now();
    let (report, result) = run(seed);
    println!("{report:#?}");
    println!("{:?} of real time", start.elapsed());
    match result {
        Ok(()) => {
            println!("seed {seed}: holds");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Sum {
    fired: [u64; FAULT_NAMES.len()],
    ends: BTreeMap<String, u64>,
    bytes: u64,
    streams: u64,
    complete: u64,
    datagrams: u64,
    sent: u64,
    relayed: u64,
    direct: u64,
    connected: u64,
    ended: u64,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        for (sum, n) in self.fired.iter_mut().zip(report.fired) {
            *sum += n;
        }
        for (reason, n) in &report.ends {
            *self.ends.entry(reason.clone()).or_default() += n;
        }
        self.bytes += report.bytes;
        self.streams += report.streams as u64;
        self.complete += report.complete as u64;
        self.datagrams += report.datagrams_received;
        self.sent += report.net.sent;
        self.relayed += report.tunnels_relayed;
        self.direct += report.tunnels_direct;
        self.connected = self.connected.max(report.connected_after);
        self.ended = self.ended.max(report.ended_after);
    }
}

fn many(from: u64, to: u64) -> ExitCode {
    let (start, mut slowest, mut sum, mut failed) =
        (Instant::now(), (Duration::ZERO, from), Sum::default(), 0);
    for seed in from..to {
        let begun = Instant::now();
        let (report, result) = run(seed);
        slowest = slowest.max((begun.elapsed(), seed));
        sum.add(&report);
        if let Err(violation) = result {
            failed += 1;
            println!("seed {seed}: {violation}\n  replay: cargo run -p pilot-sim -- --seed {seed}");
        }
    }
    let count = to - from;
    let took = start.elapsed();
    println!("{count} seeds, {failed} failed; {took:.1?}, {:.1?} a seed", took / count.max(1) as u32);
    println!("slowest: seed {} with {:.1?}", slowest.1, slowest.0);
    println!("streams {} ({} complete), {} bytes delivered", sum.streams, sum.complete, sum.bytes);
    println!("datagrams delivered {}, UDP datagrams {}", sum.datagrams, sum.sent);
    println!("sessions: {} direct, {} through the beacon", sum.direct, sum.relayed);
    println!(
        "after the last fault, at most: pairs connected {} s, streams ended {} s",
        sum.connected / SECOND,
        sum.ended / SECOND
    );
    for (name, n) in FAULT_NAMES.iter().zip(sum.fired) {
        println!("fault {name}: {n}");
    }
    for (reason, n) in &sum.ends {
        println!("end '{reason}': {n}");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
