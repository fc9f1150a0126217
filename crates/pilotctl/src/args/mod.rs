//! Arguments: the grammar, the command table's vocabulary, and typed access to what was given.

pub mod grammar;
pub mod spec;
pub mod value;

use crate::error::CliError;
pub use spec::{Flag, Run, Spec, Tier};
use std::time::Duration;

/// What was given to a command.
#[derive(Debug, Clone)]
pub struct Args {
    parsed: grammar::Parsed,
}

impl Args {
    /// Parses the words after the command's name.
    pub fn parse(spec: &'static Spec, words: &[String]) -> Result<Args, CliError> {
        Ok(Args { parsed: grammar::parse(spec, words)? })
    }

    /// Vendor flags that were given and have no effect.
    pub fn vendor(&self) -> &[&'static str] {
        &self.parsed.vendor
    }

    /// A positional; required ones are always there.
    pub fn pos(&self, index: usize) -> Option<&str> {
        self.parsed.positionals.get(index).map(String::as_str)
    }

    /// A required positional. Empty only if the command's [`Spec`] does not require it.
    pub fn required(&self, index: usize) -> &str {
        self.pos(index).unwrap_or_default()
    }

    /// All positionals from `index` on.
    pub fn rest(&self, index: usize) -> &[String] {
        self.parsed.positionals.get(index..).unwrap_or_default()
    }

    /// A switch is on.
    pub fn on(&self, flag: &str) -> bool {
        self.value(flag).is_some_and(grammar::is_on)
    }

    /// The flag was given in any form.
    pub fn given(&self, flag: &str) -> bool {
        self.parsed.flags.contains_key(flag)
    }

    /// A flag's value.
    pub fn value(&self, flag: &str) -> Option<&str> {
        self.parsed.flags.get(flag).map(String::as_str)
    }

    /// A flag's decimal value, or `default`.
    pub fn int(&self, flag: &str, default: u64) -> Result<u64, CliError> {
        let Some(text) = self.value(flag) else { return Ok(default) };
        value::parse_int(text)
            .map_err(|why| CliError::invalid(format!("invalid integer for --{flag}: {why}")))
    }

    /// A flag's duration.
    pub fn duration(&self, flag: &str) -> Result<Option<Duration>, CliError> {
        let Some(text) = self.value(flag) else { return Ok(None) };
        value::parse_duration(text)
            .map(Some)
            .map_err(|why| CliError::invalid(format!("invalid duration for --{flag}: {why}")))
    }

    /// A flag's duration, or `default`.
    pub fn duration_or(&self, flag: &str, default: Duration) -> Result<Duration, CliError> {
        Ok(self.duration(flag)?.unwrap_or(default))
    }

    /// An optional-value flag: `None` not given, `Some(default)` given without a value.
    pub fn optional_duration(&self, flag: &str, default: Duration) -> Result<Option<Duration>, CliError> {
        match self.value(flag) {
            None => Ok(None),
            Some(grammar::NO_VALUE) => Ok(Some(default)),
            Some(_) => self.duration(flag),
        }
    }
}
