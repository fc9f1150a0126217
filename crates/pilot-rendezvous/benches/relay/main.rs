//! What relaying costs, what a flood costs others, and what 100,000 nodes take:
//!
//!     cargo bench -p pilot-rendezvous --bench relay [-- --secs 3 --rounds 3 --only cost,flood,memory]
//!
//! Everything runs on loopback, relay and load in processes of their own. *cost*: relayed bytes per second of the relay's
//! processor time (all its threads, `/proc/<pid>/task/*/schedstat`), of our beacon and of a plain relay that receives and
//! sends each frame with a system call of its own, under the same load as fast as it comes: one flow whose sender and
//! receiver segment and coalesce as our nodes do, and 64 flows whose frames come one by one in turn. *flood*: a flow of
//! 100 Mbit/s while one source floods the beacon, and while it floods a socket nobody reads. *memory*: resident memory of
//! a rendezvous with 100,000 nodes registered and known to its beacon.
//!
//! Prints Markdown tables, and ends with 1 if a bound is missed.
#![allow(clippy::unwrap_used)]

mod child;
mod load;
mod memory;

use child::Child;
use load::{Flood, Load};
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of a frame to the beacon: what a segment of 1,152 bytes comes to.
const FRAME: usize = 1231;

struct Options {
    secs: Duration,
    rounds: usize,
    only: String,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = args.first().filter(|a| a.starts_with("child-")) {
        return child::run(role);
    }
    // `cargo test --benches` starts it, too.
    if !args.iter().any(|a| a == "--bench") {
        return;
    }
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let number = |name, default| value(name).map_or(default, |v| v.parse().expect("a number"));
    let options = Options {
        secs: Duration::from_secs(number("--secs", 3)),
        rounds: number("--rounds", 3) as usize,
        only: value("--only").unwrap_or_else(|| "cost,flood,memory".into()),
    };
    let mut good = true;
    if options.only.contains("cost") {
        good &= cost(&options);
    }
    if options.only.contains("flood") {
        good &= flood(&options);
    }
    if options.only.contains("memory") {
        good &= memory::run();
    }
    std::process::exit(i32::from(!good));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spread(values: &[f64], digits: usize) -> String {
    let (low, high) = values.iter().fold((f64::MAX, 0f64), |(l, h), v| (l.min(*v), h.max(*v)));
    format!("{:.digits$} ({low:.digits$} to {high:.digits$})", median(values.to_vec()))
}

fn cost(options: &Options) -> bool {
    println!(
        "| flows | relay | Mbit/s relayed | processor seconds per second | MB per processor second | µs per frame | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut good = true;
    for (flows, least) in [(1, 10.0), (64, 2.0)] {
        let mut found: [Vec<[f64; 4]>; 2] = Default::default();
        for _ in 0..options.rounds {
            for (of, role) in found.iter_mut().zip(["child-plain", "child-beacon"]) {
                let child = Child::start(role);
                let load = Load::new(child.beacon, flows, "127.0.0.1");
                let before = child.cpu();
                let got = load.run(options.secs, None);
                let cpu = child.cpu() - before;
                let secs = options.secs.as_secs_f64();
                of.push([
                    got.bytes as f64 * 8e-6 / secs,
                    cpu / secs,
                    got.bytes as f64 * 1e-6 / cpu,
                    cpu * 1e6 / got.frames as f64,
                ]);
            }
        }
        let column = |of: &[[f64; 4]], n: usize| of.iter().map(|row| row[n]).collect::<Vec<_>>();
        let ratio = median(found[1].iter().zip(&found[0]).map(|(ours, plain)| ours[2] / plain[2]).collect());
        for (name, of) in ["plain", "beacon"].iter().zip(&found) {
            let ratio = if *name == "beacon" { format!("{ratio:.1}") } else { String::new() };
            println!(
                "| {flows} | {name} | {} | {} | {} | {} | {ratio} |",
                spread(&column(of, 0), 0),
                spread(&column(of, 1), 2),
                spread(&column(of, 2), 0),
                spread(&column(of, 3), 2),
            );
        }
        if ratio < least {
            println!("\nMISSED: {ratio:.1} times with {flows} flows, wanted {least}");
            good = false;
        }
    }
    println!();
    good
}

fn flood(options: &Options) -> bool {
    println!(
        "| flood from one source | per second | a flow of 100 Mbit/s gets: unrelated socket | beacon | ratio |"
    );
    println!("|---|---|---|---|---|");
    let mut good = true;
    for (name, kind) in [
        ("relay frames of a forged sender", Flood::Forged),
        ("relay frames of its own node, 1,231 bytes", Flood::Own),
        ("Discovers of invented ids", Flood::Discover),
    ] {
        let (mut rates, mut got): (Vec<f64>, [Vec<f64>; 2]) = Default::default();
        for _ in 0..options.rounds {
            for (at_beacon, of) in got.iter_mut().enumerate() {
                let child = Child::start("child-strict");
                let sink = std::net::UdpSocket::bind("127.0.4.4:0").unwrap();
                let to: SocketAddr = if at_beacon == 1 { child.beacon } else { sink.local_addr().unwrap() };
                let load = Load::new(child.beacon, 1, "127.0.2.2");
                let flood = kind.start(child.beacon, to, options.secs + Duration::from_secs(1));
                std::thread::sleep(Duration::from_millis(500));
                let result = load.run(options.secs, Some(100));
                of.push(result.bytes as f64 * 8e-6 / options.secs.as_secs_f64());
                rates.push(flood.join().unwrap());
            }
        }
        let ratio = median(got[1].iter().zip(&got[0]).map(|(b, u)| b / u).collect());
        println!(
            "| {name} | {} | {} | {} | {ratio:.2} |",
            spread(&rates, 0),
            spread(&got[0], 1),
            spread(&got[1], 1)
        );
        if ratio < 0.9 {
            println!("\nMISSED: {name}: {ratio:.2}, wanted 0.9");
            good = false;
        }
    }
    println!();
    good
}
