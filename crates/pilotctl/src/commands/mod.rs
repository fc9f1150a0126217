//! The command table. A command is one [`Spec`] in one of these modules; nothing else knows its name.

mod about;
mod bench;
mod config;
mod connect;
mod daemon;
mod datagram;
mod demo;
mod directory;
mod envelope;
mod events;
mod listing;
mod mailbox;
mod message;
mod network;
mod ping;
mod pins;
mod pipe;
mod proxy;
mod reach;
mod recv;
mod registry;
mod rendezvous;
mod send_file;
mod status;
mod text;
mod trust;
mod way;

use crate::args::{Spec, Tier};
use crate::error::CliError;

/// This version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every command, in the order of the help text.
const TABLE: &[&[Spec]] = &[
    about::COMMANDS,
    demo::COMMANDS,
    config::COMMANDS,
    daemon::COMMANDS,
    rendezvous::COMMANDS,
    proxy::COMMANDS,
    status::COMMANDS,
    directory::COMMANDS,
    trust::COMMANDS,
    pins::COMMANDS,
    ping::COMMANDS,
    bench::COMMANDS,
    connect::COMMANDS,
    recv::COMMANDS,
    datagram::COMMANDS,
    message::COMMANDS,
    send_file::COMMANDS,
    events::COMMANDS,
    mailbox::COMMANDS,
    network::COMMANDS,
    envelope::COMMANDS,
];

/// Every command.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    TABLE.iter().flat_map(|specs| specs.iter())
}

/// The commands whose first word is this and that have a second one.
pub fn group(first: &str) -> impl Iterator<Item = &'static Spec> {
    all().filter(move |s| s.name.split_once(' ').is_some_and(|(word, _)| word == first))
}

/// The command these words begin with, and how many words its name has. Two words win over one.
pub fn find(words: &[String]) -> Option<(&'static Spec, usize)> {
    let named = |name: &str| all().find(|s| s.name == name);
    let first = words.first()?;
    if let Some(second) = words.get(1)
        && let Some(spec) = named(&format!("{first} {second}"))
    {
        return Some((spec, 2));
    }
    named(first).map(|spec| (spec, 1))
}

/// The command a binary of this name stands for.
pub fn by_binary_name(name: &str) -> Option<&'static Spec> {
    let command = match name {
        "pilot-daemon" => "_daemon-run",
        "pilot-rendezvous" => "_rendezvous-run",
        "pilot-gateway" => "_gateway-run",
        _ => return None,
    };
    all().find(|s| s.name == command)
}

/// The error of a command that insists on `extras`.
pub fn needs_extras(spec: &Spec) -> CliError {
    let first = spec.name.split(' ').next().unwrap_or(spec.name);
    match first {
        "gateway" => CliError::invalid("gateway commands are not in the core CLI")
            .hint("use 'pilotctl extras gateway <subcommand>' or the pilot-gateway binary"),
        _ => CliError::invalid(format!("{} is not in the core CLI", spec.name))
            .hint(format!("use 'pilotctl extras {}'", spec.name)),
    }
}

/// The error for words that name no command. Exit status 2: show the overview in text mode.
pub fn unknown(words: &[String]) -> CliError {
    let first = words.first().map(String::as_str).unwrap_or_default();
    let subcommands: Vec<&str> =
        group(first).filter_map(|s| s.name.split_once(' ')).map(|(_, second)| second).collect();
    if subcommands.is_empty() {
        return CliError::invalid(format!("unknown command: {first}"))
            .hint("run 'pilotctl context' for the full command list")
            .exit(2);
    }
    match (first, words.get(1)) {
        ("daemon" | "rendezvous", None) => CliError::invalid("missing subcommand")
            .hint(format!("available: pilotctl {first} {}", subcommands.join(" | "))),
        (_, None) => CliError::invalid(format!("usage: pilotctl {first} <subcommand>"))
            .hint(format!("available: {}", subcommands.join(", "))),
        (_, Some(second)) => CliError::invalid(format!("unknown {first} subcommand: {second}"))
            .hint(format!("available: {}", subcommands.join(", "))),
    }
}

/// Names for the error text of `context`.
pub fn names() -> Vec<&'static str> {
    all().filter(|s| s.tier != Tier::Hidden).map(|s| s.name).collect()
}
