//! Development commands, run as `cargo xtask <command>`.

mod netlab;

use clap::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = Command::new("cargo xtask")
        .about("Development commands")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(netlab::command())
        .get_matches();
    let done = match matches.subcommand() {
        Some(("netlab", matches)) => netlab::run(matches),
        _ => return ExitCode::FAILURE,
    };
    done.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::FAILURE
    })
}
