//! The command table's vocabulary. One [`Spec`] per command is the only description there is: the parser, the
//! help texts and the catalogue of `context` are all made from it.

use super::Args;
use crate::error::CliResult;
use crate::output::Ctx;
use std::future::Future;
use std::pin::Pin;

/// Where a command is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Everyday commands.
    Core,
    /// For operators of networks; works with and without the `extras` prefix.
    Operator,
    /// Needs the `extras` prefix, as in the reference.
    Extras,
    /// Works, listed nowhere.
    Hidden,
}

/// How a flag takes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagKind {
    /// On or off: `--x`, `--x=true`, `--x=1`, `--x=false`.
    Switch,
    /// Needs a value.
    Value,
    /// A value that may be left out (`--wait [D]`): taken from the next word if that begins with a digit.
    Optional,
    /// A flag of a vendor service of the reference: accepted, no effect, one notice. `true`: takes a value.
    Vendor(bool),
}

/// One flag of a command.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// How it takes its value.
    pub kind: FlagKind,
    /// What the value is called in the usage line, e.g. `N`.
    pub value: &'static str,
    /// One line of help.
    pub about: &'static str,
}

impl Flag {
    /// A flag that is on or off.
    pub const fn switch(name: &'static str, about: &'static str) -> Flag {
        Flag { name, kind: FlagKind::Switch, value: "", about }
    }

    /// A flag with a value.
    pub const fn value(name: &'static str, value: &'static str, about: &'static str) -> Flag {
        Flag { name, kind: FlagKind::Value, value, about }
    }

    /// A flag whose value may be left out.
    pub const fn optional(name: &'static str, value: &'static str, about: &'static str) -> Flag {
        Flag { name, kind: FlagKind::Optional, value, about }
    }

    /// A flag of a vendor service that does not exist here.
    pub const fn vendor(name: &'static str, takes_value: bool) -> Flag {
        Flag { name, kind: FlagKind::Vendor(takes_value), value: "", about: "" }
    }

    /// The flag as written in a usage line.
    pub fn usage(&self) -> String {
        match self.kind {
            FlagKind::Switch | FlagKind::Vendor(_) => format!("--{}", self.name),
            FlagKind::Value => format!("--{} {}", self.name, self.value),
            FlagKind::Optional => format!("--{} [{}]", self.name, self.value),
        }
    }
}

/// A future of a command; it need not be `Send`, the client runs on one thread.
pub type CommandFuture<'a> = Pin<Box<dyn Future<Output = CliResult> + 'a>>;

/// How a command is run.
#[derive(Clone, Copy)]
pub enum Run {
    /// Runs without a runtime (or builds its own).
    Sync(fn(&Ctx, &Args) -> CliResult),
    /// Runs on a single-threaded tokio runtime: `Run::Async(|ctx, args| Box::pin(ping(ctx, args)))`.
    Async(for<'a> fn(&'a Ctx, &'a Args) -> CommandFuture<'a>),
}

/// One command.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Words as typed: `ping`, `daemon start`.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Positionals in order: `<peer>` is required, `[port]` optional, `[addr...]` or `<tag...>` takes the rest.
    pub args: &'static [&'static str],
    /// Flags besides the global ones.
    pub flags: &'static [Flag],
    /// Keys of the result's `data` in JSON mode.
    pub returns: &'static str,
    /// Where it is listed.
    pub tier: Tier,
    /// What it does.
    pub run: Run,
}

impl Spec {
    /// The usage line without `pilotctl`.
    pub fn usage(&self) -> String {
        let mut line = self.name.to_owned();
        for arg in self.args {
            line.push(' ');
            line.push_str(arg);
        }
        for flag in self.flags.iter().filter(|f| !matches!(f.kind, FlagKind::Vendor(_))) {
            line.push_str(&format!(" [{}]", flag.usage()));
        }
        line
    }

    /// The flag of that name.
    pub fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.flags.iter().find(|f| f.name == name)
    }

    /// How many positionals are needed at least.
    pub fn required(&self) -> usize {
        self.args.iter().filter(|a| a.starts_with('<')).count()
    }

    /// How many positionals are taken at most; `None`: any number.
    pub fn at_most(&self) -> Option<usize> {
        match self.args.last() {
            Some(last) if last.contains("...") => None,
            _ => Some(self.args.len()),
        }
    }

    /// The `context` entry.
    pub fn catalogue_entry(&self) -> serde_json::Value {
        let flags = self.flags.iter().filter(|f| !matches!(f.kind, FlagKind::Vendor(_)));
        let args: Vec<String> = self
            .args
            .iter()
            .map(|a| (*a).to_owned())
            .chain(flags.map(|f| format!("[{}]", f.usage())))
            .collect();
        serde_json::json!({"args": args, "description": self.about, "returns": self.returns})
    }
}
