//! Runs seeds: one in detail, many, or as many as fit a time.

mod small;

use pilot_sim::{KINDS, Kind, Report, SECOND, Violation, run, run_mixed, run_traced};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: pilot-sim --seed N [--trace]              one world, in detail; --trace prints its events
       pilot-sim --seeds FROM..TO [--jobs N] [--first]
                                                 many (TO is not run), on N threads; --first stops at the first failure
       pilot-sim --for SECONDS[s] [--from SEED] [--jobs N]
                                                 as many as fit, from a random seed on
--mixed with any of them: some nodes are models of the reference 1.18.0
--paths with any of them: the small worlds for the way between nodes";

/// Seeds tried before the random ones by `--for`: those that once found something are in the tests.
const FIXED: u64 = 100;
/// Random first seeds are below this.
const RANDOM: u64 = 1 << 40;

#[derive(Default)]
struct Args {
    seed: Option<u64>,
    trace: bool,
    first: bool,
    mixed: bool,
    paths: bool,
    seeds: Option<(u64, u64)>,
    time: Option<Duration>,
    from: Option<u64>,
    jobs: Option<usize>,
}

fn parse() -> Result<Args, String> {
    let mut args = Args::default();
    let mut given = std::env::args().skip(1);
    while let Some(option) = given.next() {
        if option == "--trace" {
            args.trace = true;
            continue;
        }
        if option == "--first" {
            args.first = true;
            continue;
        }
        if option == "--paths" {
            args.paths = true;
            continue;
        }
        if option == "--mixed" {
            args.mixed = true;
            continue;
        }
        let value = given.next().ok_or_else(|| format!("{option}: a value is missing"))?;
        let wrong = || format!("{option} {value}: not understood");
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{option} {value}: {e}"));
        match option.as_str() {
            "--seed" => args.seed = Some(number(&value)?),
            "--from" => args.from = Some(number(&value)?),
            "--jobs" => args.jobs = Some(number(&value)?.clamp(1, 256) as usize),
            "--for" => {
                args.time = Some(Duration::from_secs(number(value.strip_suffix('s').unwrap_or(&value))?));
            }
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or_else(wrong)?;
                let range = (number(from)?, number(to)?);
                args.seeds = Some(range).filter(|(from, to)| from < to);
                args.seeds.ok_or_else(wrong)?;
            }
            _ => return Err(format!("{option}: unknown option")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(why) => {
            eprintln!("pilot-sim: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let jobs = args.jobs.unwrap_or(1);
    if args.paths {
        let seeds = args.seeds.or(args.from.map(|from| (from, u64::MAX)));
        return small::main(args.seed, seeds, args.time, (jobs, args.first, args.trace));
    }
    match (args.seed, args.seeds, args.time) {
        (Some(seed), None, None) => one(seed, args.trace, args.mixed),
        (None, Some((from, to)), None) => many(&[(from, to)], None, jobs, &args),
        (None, None, Some(time)) => {
            let from = args.from.unwrap_or_else(random_seed);
            println!("seeds 0..{FIXED}, then from {from} on for {} s", time.as_secs());
            many(&[(0, FIXED), (from, u64::MAX)], Some(time), jobs, &args)
        }
        _ => {
            eprintln!("pilot-sim: one of --seed, --seeds and --for is needed\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// The clock is random enough to choose other worlds each time.
fn random_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) % RANDOM
}

fn one(seed: u64, trace: bool, mixed: bool) -> ExitCode {
    let start = Instant::now();
    let (report, result) = match (mixed, trace) {
        (true, trace) => run_mixed(seed, trace),
        (false, true) => run_traced(seed),
        (false, false) => run(seed),
    };
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

/// Processor time of this thread: what else runs on the machine is not in it. Wall time where the system does not tell.
fn processor_time(start: Instant) -> Duration {
    let used = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let used = used.and_then(|text| text.split(' ').next()?.parse().ok());
    used.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    busy: Duration,
    slowest: (Duration, u64),
    failed: BTreeMap<u64, Violation>,
    nodes: u64,
    began: [u64; KINDS],
    worlds: [u64; KINDS],
    hits: [u64; KINDS],
    ends: BTreeMap<String, u64>,
    bytes: u64,
    streams: u64,
    complete: u64,
    datagrams: u64,
    sent: u64,
    relayed: u64,
    direct: u64,
    connected: (u64, u64),
    done: (u64, u64),
    ended: (u64, u64),
}

impl Sum {
    fn add(&mut self, seed: u64, took: Duration, report: &Report, result: Result<(), Violation>) {
        self.seeds += 1;
        self.busy += took;
        self.slowest = self.slowest.max((took, seed));
        if let Err(violation) = result {
            println!("seed {seed}: {violation}");
            self.failed.insert(seed, violation);
        }
        for kind in 0..KINDS {
            self.began[kind] += report.began[kind];
            self.hits[kind] += report.net.hits[kind];
            self.worlds[kind] += u64::from(report.net.hits[kind] > 0);
        }
        for (reason, n) in &report.ends {
            *self.ends.entry(reason.clone()).or_default() += n;
        }
        self.nodes += report.nodes as u64;
        self.bytes += report.bytes;
        self.streams += report.streams as u64;
        self.complete += report.complete as u64;
        self.datagrams += report.datagrams_received;
        self.sent += report.net.sent;
        self.relayed += report.tunnels_relayed;
        self.direct += report.tunnels_direct;
        self.connected = self.connected.max((report.connected_after, seed));
        self.done = self.done.max((report.done_after, seed));
        self.ended = self.ended.max((report.ended_after, seed));
    }

    fn print(&self, took: Duration, jobs: usize, mixed: bool) {
        let seeds = self.seeds.max(1);
        println!(
            "{} seeds, {} failed; {:.1?} on {jobs} threads, {:.1?} of processor time a seed",
            self.seeds,
            self.failed.len(),
            took,
            self.busy / seeds as u32
        );
        println!("slowest: seed {} with {:.1?}", self.slowest.1, self.slowest.0);
        println!(
            "a seed: {:.1} nodes, {:.1} streams, {} bytes delivered, {} UDP datagrams",
            self.nodes as f64 / seeds as f64,
            self.streams as f64 / seeds as f64,
            self.bytes / seeds,
            self.sent / seeds
        );
        println!(
            "in all: {} nodes, {} streams ({} complete), {} bytes, {} datagrams delivered",
            self.nodes, self.streams, self.complete, self.bytes, self.datagrams
        );
        println!("sessions: {} direct, {} through a beacon", self.direct, self.relayed);
        for (what, (most, seed)) in
            [("pairs connected", self.connected), ("jobs done", self.done), ("streams ended", self.ended)]
        {
            println!("{what} within {:.1} s of the last fault (seed {seed})", most as f64 / SECOND as f64);
        }
        for kind in Kind::ALL {
            let (name, effect) = kind.describe();
            let i = kind as usize;
            println!(
                "fault {name}: {} times, {} {effect}, in {} worlds",
                self.began[i], self.hits[i], self.worlds[i]
            );
        }
        for (reason, n) in &self.ends {
            println!("end '{reason}': {n}");
        }
        for (seed, violation) in &self.failed {
            println!(
                "FAILED seed {seed}: {violation}\n  replay: cargo run --release -p pilot-sim -- --seed {seed}{}",
                if mixed { " --mixed" } else { "" }
            );
        }
    }
}

/// Runs ranges of seeds one after the other, for at most `time`, as `args` say.
fn many(ranges: &[(u64, u64)], time: Option<Duration>, jobs: usize, args: &Args) -> ExitCode {
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    for (from, to) in ranges {
        let next = AtomicU64::new(*from);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while time.is_none_or(|time| start.elapsed() < time) && !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= *to {
                            break;
                        }
                        let begun = processor_time(start);
                        let (report, result) = if args.mixed { run_mixed(seed, false) } else { run(seed) };
                        if args.first
                            && let Err(violation) = &result
                        {
                            println!("FIRST {seed} {} {violation}", violation.name());
                            stop.store(true, Ordering::Relaxed);
                        }
                        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                        sum.add(seed, processor_time(start).saturating_sub(begun), &report, result);
                    }
                });
            }
        });
    }
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.print(start.elapsed(), jobs, args.mixed);
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
