//! Help texts, made from the command table.

use crate::args::{Flag, Spec, Tier, spec::FlagKind};
use crate::commands;
use std::fmt::Write;

const GLOBAL: &str = "Global flags, anywhere on the line:\n  \
    --json              one line of JSON: {\"data\":…,\"status\":\"ok\"} on stdout, errors on stderr\n  \
    --verbose, -v       say more on stderr\n  \
    --help, -h          help on a command";

/// What `pilotctl` alone and `pilotctl help` print.
pub fn overview() -> String {
    let mut out = "Pilot Protocol: permanent addresses, trust and encrypted tunnels for agents\n\n\
                   Usage: pilotctl [global flags] <command> [subcommand] [args] [flags]\n\n"
        .to_owned();
    list(&mut out, "Commands:", Tier::Core);
    list(&mut out, "Commands for operators (also as `pilotctl extras <command>`):", Tier::Operator);
    list(&mut out, "Commands behind `pilotctl extras`:", Tier::Extras);
    out.push_str(GLOBAL);
    out.push_str("\n\nA <peer> is an address (0:0000.0000.002A), a node number (42) or a hostname.");
    out
}

/// What `pilotctl extras` prints.
pub fn extras() -> String {
    let mut out = "Usage: pilotctl extras <command> [args] [flags]\n\n".to_owned();
    list(&mut out, "Commands:", Tier::Extras);
    list(&mut out, "For operators:", Tier::Operator);
    out.trim_end().to_owned()
}

fn list(out: &mut String, title: &str, tier: Tier) {
    let specs: Vec<&Spec> = commands::all().filter(|s| s.tier == tier).collect();
    if specs.is_empty() {
        return;
    }
    let _ = writeln!(out, "{title}");
    for spec in specs {
        let _ = writeln!(out, "  {:<19} {}", spec.name, spec.about);
    }
    out.push('\n');
}

/// Help on one command.
pub fn command(spec: &Spec) -> String {
    command_as(spec, &format!("pilotctl {}", spec.name))
}

/// Help on one command under the name it was called by.
pub fn command_as(spec: &Spec, called: &str) -> String {
    let mut out = format!("{}\n\nUsage: {called}", spec.about);
    for arg in spec.args {
        let _ = write!(out, " {arg}");
    }
    let flags: Vec<&Flag> = spec.flags.iter().filter(|f| !matches!(f.kind, FlagKind::Vendor(_))).collect();
    if !flags.is_empty() {
        out.push_str(" [flags]\n\nFlags:");
    }
    let width = flags.iter().map(|f| f.usage().len()).max().unwrap_or(0);
    for flag in flags {
        let _ = write!(out, "\n  {:<width$}  {}", flag.usage(), flag.about);
    }
    if !spec.returns.is_empty() {
        let _ = write!(out, "\n\nJSON data: {}", spec.returns);
    }
    out
}

/// Help for the words before `--help`: a command, a group, or the overview.
pub fn for_words(words: &[String]) -> String {
    if let Some((spec, _)) = commands::find(words) {
        return command(spec);
    }
    let Some(first) = words.first() else { return overview() };
    let group: Vec<&Spec> = commands::group(first).collect();
    if group.is_empty() {
        return format!("No specific help for {first:?}. All commands: pilotctl help");
    }
    let mut out = format!("Usage: pilotctl {first} <subcommand>\n");
    for spec in group {
        let _ = write!(out, "\n  {:<19} {}", spec.name, spec.about);
    }
    out
}
