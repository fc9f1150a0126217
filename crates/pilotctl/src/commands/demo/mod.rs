//! `demo`: a rendezvous and two agents on this machine, and everything they can do together, measured.

mod lab;
mod steps;

use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult};
use crate::output::Ctx;
use lab::Lab;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Size of the file the demo sends, MiB.
const FILE_MIB: u64 = 64;
/// Largest file the demo makes, MiB.
const FILE_MIB_MAX: u64 = 4096;

pub const COMMANDS: &[Spec] = &[Spec {
    name: "demo",
    about: "two agents and a rendezvous on this machine, step by step; leaves nothing behind",
    args: &[],
    flags: &[
        Flag::switch("keep", "leave everything running and say how to use it"),
        Flag::value("file-mb", "N", "size of the file sent, MiB (64)"),
    ],
    returns: "steps[]{step, result, ms}, total_ms, directory (with --keep)",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(demo(ctx, args))),
}];

/// What is shown while the demo runs, and kept for JSON.
struct Report<'a> {
    ctx: &'a Ctx,
    steps: RefCell<Vec<Value>>,
}

impl Report<'_> {
    /// One finished step: what, how it came out, how long it took.
    fn step(&self, what: &str, took: Duration, result: &str) -> Result<(), CliError> {
        let ms = (took.as_secs_f64() * 1e4).round() / 10.0;
        self.steps.borrow_mut().push(json!({"step": what, "result": result, "ms": ms}));
        if self.ctx.json {
            return Ok(());
        }
        let style = self.ctx.style;
        let time = style.dim(&format!("{:>8.1} ms", took.as_secs_f64() * 1e3));
        self.ctx.line(&format!("{} {:<12} {time}  {result}", style.green("✓"), what))
    }
}

async fn demo(ctx: &Ctx, args: &Args) -> CliResult {
    let file_mib = args.int("file-mb", FILE_MIB)?;
    if !(1..=FILE_MIB_MAX).contains(&file_mib) {
        return Err(CliError::invalid(format!("--file-mb must be 1 to {FILE_MIB_MAX}, got {file_mib}")));
    }
    let begun = Instant::now();
    let lab = Lab::new()?;
    let report = Report { ctx, steps: RefCell::default() };
    if !ctx.json {
        ctx.line("A rendezvous and two agents, each a process with a home of its own; TCP and UDP on loopback only.")?;
    }
    let result = tokio::select! {
        result = steps::run(ctx, &lab, &report, file_mib) => result,
        result = interrupted() => result,
    };
    if args.on("keep") && result.is_ok() {
        return keep(ctx, lab, &report, begun);
    }
    let cleaning = Instant::now();
    let cleaned = lab.clean().await;
    result?;
    cleaned?;
    report.step("clean-up", cleaning.elapsed(), "processes stopped, folder removed")?;
    let total = begun.elapsed();
    let steps = report.steps.take();
    ctx.emit(json!({"steps": steps, "total_ms": total.as_millis() as u64}), |style| {
        format!("{} in {:.1} s", style.bold("All of it"), total.as_secs_f64())
    })
}

/// Ends when the user wants to stop.
async fn interrupted() -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(|e| CliError::io("listen for signals", &e));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Err(CliError::internal("interrupted; everything was stopped and removed"))
}

fn keep(ctx: &Ctx, mut lab: Lab, report: &Report<'_>, begun: Instant) -> CliResult {
    lab.keep();
    let dir = lab.dir().to_owned();
    let steps = report.steps.take();
    let data = json!({
        "steps": steps,
        "total_ms": begun.elapsed().as_millis() as u64,
        "directory": dir,
    });
    ctx.emit(data, |style| {
        let at = |home: &str, command: &str| {
            format!("  {}\n", style.cyan(&format!("HOME={}/{home} pilotctl {command}", dir.display())))
        };
        let mut out = format!("\nEverything keeps running in {}. Try:\n", dir.display());
        out.push_str(&at("alice", "info"));
        out.push_str(&at("alice", "ping bob"));
        out.push_str(&at("alice", "send-message bob --data hello"));
        out.push_str(&at("bob", "inbox"));
        out.push_str("When you are done:\n");
        out.push_str(&at("alice", "daemon stop"));
        out.push_str(&at("bob", "daemon stop"));
        out.push_str(&at("rendezvous", "rendezvous stop"));
        out.push_str(&format!("  {}", style.cyan(&format!("rm -r {}", dir.display()))));
        out
    })
}
