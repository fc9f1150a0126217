//! Pilot Protocol in one binary: client, daemon and rendezvous.
//!
//! This crate is arguments, output and exit codes; what happens is done by the crates below it.

mod args;
mod commands;
mod error;
mod help;
mod lifecycle;
mod names;
mod output;

use args::{Args, Run, Spec, Tier, grammar};
use error::{CliError, CliResult};
use output::Ctx;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|w| w.to_string_lossy().into_owned());
    let called = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let name = Path::new(&called).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let status = match commands::by_binary_name(name) {
        Some(spec) => under_own_name(spec, name, words),
        None => pilotctl(words),
    };
    ExitCode::from(status)
}

/// Started as `pilot-daemon`, `pilot-rendezvous` or `pilot-gateway`: only flags, no command.
fn under_own_name(spec: &'static Spec, name: &str, words: Vec<String>) -> u8 {
    if words.iter().any(|w| grammar::is_help(w)) {
        println!("{}", help::command_as(spec, name));
        return 0;
    }
    if words.iter().any(|w| matches!(w.as_str(), "-version" | "--version")) {
        println!("{}", commands::VERSION);
        return 0;
    }
    let ctx = Ctx::new(false, false, false);
    // Whatever its flags are, none of them means anything to a command that takes none.
    let words = if spec.flags.is_empty() { &[] } else { &words[..] };
    finish(&ctx, execute(&ctx, spec, words))
}

fn pilotctl(words: Vec<String>) -> u8 {
    let (globals, mut words) = grammar::take_globals(words);
    let mut extras = false;
    if words.first().is_some_and(|w| w == "extras") {
        extras = true;
        words.remove(0);
        if words.is_empty() {
            println!("{}", help::extras());
            return 0;
        }
    }
    let ctx = Ctx::new(globals.json, globals.verbose, extras);
    let Some(first) = words.first() else {
        eprintln!("{}", help::overview());
        return 2;
    };
    if grammar::is_help(first) || first == "help" {
        let topic = commands::find(&words[1..]).map(|(spec, _)| help::command(spec));
        println!("{}", topic.unwrap_or_else(help::overview));
        return 0;
    }
    if matches!(first.as_str(), "--version" | "-version") {
        words[0] = "version".to_owned();
    }
    if words.iter().any(|w| grammar::is_help(w)) {
        let named: Vec<String> = words.iter().take_while(|w| !grammar::is_flag(w)).cloned().collect();
        println!("{}", help::for_words(&named));
        return 0;
    }
    let Some((spec, used)) = commands::find(&words) else {
        return unknown(&ctx, &words);
    };
    if spec.tier == Tier::Extras && !ctx.extras {
        return finish(&ctx, Err(commands::needs_extras(spec)));
    }
    finish(&ctx, execute(&ctx, spec, &words[used..]))
}

fn execute(ctx: &Ctx, spec: &'static Spec, words: &[String]) -> CliResult {
    let args = Args::parse(spec, words)?;
    for flag in args.vendor() {
        ctx.warn(&format!(
            "notice: --{flag} belongs to a vendor service of the reference; it has no effect here"
        ));
    }
    match spec.run {
        Run::Sync(run) => run(ctx, &args),
        Run::Async(run) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| CliError::io("start the runtime", &e))?;
            runtime.block_on(run(ctx, &args))
        }
    }
}

fn finish(ctx: &Ctx, result: CliResult) -> u8 {
    match result {
        Ok(exit) => exit.0,
        Err(error) => {
            ctx.error(&error);
            error.exit
        }
    }
}

/// No such command, or a group of commands without its second word.
fn unknown(ctx: &Ctx, words: &[String]) -> u8 {
    let error = commands::unknown(words);
    if ctx.json || error.exit == 1 {
        ctx.error(&error);
        return 1;
    }
    // The error last: the overview is longer than many screens.
    eprintln!("{}\n", help::overview());
    ctx.error(&error);
    error.exit
}
