//! From the words on the command line to flags and positionals (spec 08 section 1.1).
//!
//! The grammar is the reference's, which no argument parser speaks by itself: `-count 1` is `--count 1`, `-5` is
//! a value, flags and positionals mix, the last flag wins. So the words are first rewritten into the strict form
//! `--flag=value … -- positional …`, and clap checks that.

use super::spec::{Flag, FlagKind, Spec};
use crate::error::CliError;
use clap::builder::NonEmptyStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use std::collections::BTreeMap;

/// What an optional value left out is recorded as.
pub const NO_VALUE: &str = "default";

/// Global flags, taken off the line wherever they stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Globals {
    /// `--json`.
    pub json: bool,
    /// `--verbose`, `-v`.
    pub verbose: bool,
}

/// Takes the global flags out of the words.
pub fn take_globals(words: Vec<String>) -> (Globals, Vec<String>) {
    let mut globals = Globals::default();
    let rest = words
        .into_iter()
        .filter(|word| {
            let (name, value) = split_flag(word);
            let target = match (word.starts_with('-'), name) {
                (true, "json") => &mut globals.json,
                (true, "verbose") => &mut globals.verbose,
                (true, "v") if !word.starts_with("--") => &mut globals.verbose,
                _ => return true,
            };
            *target = value.is_none_or(is_on);
            false
        })
        .collect();
    (globals, rest)
}

/// The word asks for help.
pub fn is_help(word: &str) -> bool {
    matches!(word, "--help" | "-h" | "-help")
}

/// A switch with this value is on.
pub fn is_on(value: &str) -> bool {
    matches!(value, "true" | "1" | "")
}

fn split_flag(word: &str) -> (&str, Option<&str>) {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or(word);
    match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    }
}

/// The word is a flag: it begins with `-` and is neither `-` itself nor a number.
pub fn is_flag(word: &str) -> bool {
    match word.strip_prefix('-') {
        None | Some("") => false,
        Some(rest) => !rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'),
    }
}

/// The word can be the value of the flag before it.
fn is_value(word: &str) -> bool {
    match word.strip_prefix('-') {
        None | Some("") => true,
        Some(rest) => rest.starts_with(|c: char| c.is_ascii_digit()),
    }
}

/// Flags and positionals of one command.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Flag name to value ([`NO_VALUE`] for an optional value left out).
    pub flags: BTreeMap<&'static str, String>,
    /// Positionals in order.
    pub positionals: Vec<String>,
    /// Vendor flags that were given.
    pub vendor: Vec<&'static str>,
}

/// Parses the words after the command's name.
pub fn parse(spec: &'static Spec, words: &[String]) -> Result<Parsed, CliError> {
    let mut parsed = Parsed::default();
    let mut strict = vec!["pilotctl".to_owned()];
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if !is_flag(word) {
            parsed.positionals.push(word.clone());
            continue;
        }
        let (name, inline) = split_flag(word);
        let value = match (inline, spec.flag(name)) {
            (Some(value), _) => Some(value.to_owned()),
            (None, Some(flag)) => words.next_if(|next| takes_next(spec, flag, next)).cloned(),
            (None, None) => None,
        };
        match spec.flag(name) {
            Some(Flag { kind: FlagKind::Vendor(_), name, .. }) => parsed.vendor.push(name),
            _ => strict.push(match value {
                Some(value) => format!("--{name}={value}"),
                None => format!("--{name}"),
            }),
        }
    }
    let matches = command(spec).try_get_matches_from(strict).map_err(|e| explain(spec, &e))?;
    if spec.at_most().is_some_and(|most| parsed.positionals.len() > most) {
        let extra = &parsed.positionals[spec.args.len()];
        return Err(CliError::invalid(format!("{}: unexpected argument {extra:?}", spec.name))
            .hint(format!("usage: pilotctl {}", spec.usage())));
    }
    if parsed.positionals.len() < spec.required() {
        return Err(CliError::invalid(format!("usage: pilotctl {}", spec.usage())));
    }
    for flag in spec.flags {
        if let Some(value) = matches.try_get_one::<String>(flag.name).ok().flatten() {
            parsed.flags.insert(flag.name, value.clone());
        }
    }
    Ok(parsed)
}

fn takes_next(spec: &Spec, flag: &Flag, next: &str) -> bool {
    match flag.kind {
        // A peer may be called `1`, so a bare digit is a value only where no positional can stand.
        FlagKind::Switch => {
            matches!(next, "true" | "false") || (spec.args.is_empty() && matches!(next, "0" | "1"))
        }
        FlagKind::Value | FlagKind::Vendor(true) => is_value(next),
        FlagKind::Optional => next.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit()),
        FlagKind::Vendor(false) => matches!(next, "true" | "false"),
    }
}

/// The command for clap, in the strict form [`parse`] produces.
fn command(spec: &'static Spec) -> Command {
    let mut command = Command::new(spec.name).disable_help_flag(true).disable_version_flag(true);
    for flag in spec.flags {
        let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Set).overrides_with(flag.name);
        let arg = match flag.kind {
            FlagKind::Switch => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(["true", "1", "false", "0", ""]),
            FlagKind::Value => arg.num_args(1).require_equals(true).value_parser(clap::value_parser!(String)),
            FlagKind::Optional => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value(NO_VALUE)
                .value_parser(NonEmptyStringValueParser::new()),
            FlagKind::Vendor(_) => continue,
        };
        command = command.arg(arg);
    }
    command
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

fn explain(spec: &Spec, error: &clap::Error) -> CliError {
    let given = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let name = given.split(['=', ' ', '[']).next().unwrap_or_default().to_owned();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let known: Vec<String> = spec
                .flags
                .iter()
                .filter(|f| !matches!(f.kind, FlagKind::Vendor(_)))
                .map(|f| format!("--{}", f.name))
                .collect();
            let known = match known.is_empty() {
                true => format!("{} takes no flags", spec.name),
                false => format!("flags of {}: {}", spec.name, known.join(" ")),
            };
            let hint = match context(error, ContextKind::SuggestedArg) {
                Some(near) => format!("did you mean {near}? {known}"),
                None => known,
            };
            CliError::invalid(format!("{}: unknown flag {name}", spec.name)).hint(hint)
        }
        ErrorKind::NoEquals | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            CliError::invalid(format!("{}: {name} needs a value", spec.name))
                .hint(format!("a value that begins with '-' is written {name}=VALUE"))
        }
        ErrorKind::InvalidValue => {
            let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
            match spec.flag(name.trim_start_matches('-')).map(|f| f.kind) {
                Some(FlagKind::Switch) => {
                    CliError::invalid(format!("{}: {name} is true or false, got {value:?}", spec.name))
                }
                _ => CliError::invalid(format!("{}: {name} needs a value", spec.name))
                    .hint(format!("a value that begins with '-' is written {name}=VALUE")),
            }
        }
        _ => CliError::invalid(format!("{}: {error}", spec.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Run, Tier};
    use crate::error::Exit;

    static SPEC: Spec = Spec {
        name: "probe",
        about: "",
        args: &["<peer>", "[port]"],
        flags: &[
            Flag::value("count", "N", ""),
            Flag::value("data", "M", ""),
            Flag::switch("trace", ""),
            Flag::optional("wait", "D", ""),
            Flag::vendor("telemetry-url", true),
        ],
        returns: "",
        tier: Tier::Core,
        run: Run::Sync(|_, _| Ok(Exit::OK)),
    };

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parsed(line: &str) -> Parsed {
        parse(&SPEC, &words(line)).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    fn refused(line: &str) -> CliError {
        parse(&SPEC, &words(line)).expect_err(line)
    }

    #[test]
    fn one_dash_two_dashes_and_equals_are_the_same() {
        for line in ["h --count 3", "h -count 3", "h --count=3", "h -count=3", "--count 3 h"] {
            let parsed = parsed(line);
            assert_eq!(parsed.flags["count"], "3", "{line}");
            assert_eq!(parsed.positionals, ["h"], "{line}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        assert_eq!(parsed("h --count 1 --count 2 -count=9").flags["count"], "9");
    }

    #[test]
    fn a_value_may_begin_with_a_dash_and_a_digit_or_follow_an_equals_sign() {
        assert_eq!(parsed("h --data -5x").flags["data"], "-5x");
        assert_eq!(parsed("h --data -").flags["data"], "-");
        assert_eq!(parsed("h --data=-dash").flags["data"], "-dash");
        assert_eq!(parsed("h --data=").flags["data"], "");
        assert_eq!(parsed("h --data=a=b").flags["data"], "a=b");
    }

    #[test]
    fn a_flag_without_its_value_says_so() {
        let error = refused("h --data --trace");
        assert_eq!(error.message, "probe: --data needs a value");
        assert_eq!(error.hint.as_deref(), Some("a value that begins with '-' is written --data=VALUE"));
    }

    #[test]
    fn switches_do_not_eat_positionals() {
        let one = parsed("--trace h 7");
        assert!(is_on(&one.flags["trace"]));
        assert_eq!(one.positionals, ["h", "7"]);
        assert!(is_on(&parsed("h --trace=1").flags["trace"]));
        assert!(is_on(&parsed("h --trace true").flags["trace"]));
        assert!(!is_on(&parsed("h --trace=false").flags["trace"]));
        assert_eq!(refused("h --trace=maybe").message, "probe: --trace is true or false, got \"maybe\"");
    }

    #[test]
    fn an_optional_value_is_taken_only_if_it_begins_with_a_digit() {
        assert_eq!(parsed("--wait h").flags["wait"], NO_VALUE);
        assert_eq!(parsed("h --wait 5s").flags["wait"], "5s");
        assert_eq!(parsed("h --wait=abc").flags["wait"], "abc");
    }

    #[test]
    fn an_unknown_flag_is_named_and_a_near_one_suggested() {
        let error = refused("h --cuont 3");
        assert_eq!(error.message, "probe: unknown flag --cuont");
        let hint = error.hint.unwrap_or_default();
        assert!(hint.starts_with("did you mean --count?"), "{hint}");
        assert_eq!(refused("h --x=1").message, "probe: unknown flag --x");
    }

    #[test]
    fn vendor_flags_are_accepted_and_remembered() {
        let parsed = parsed("h --telemetry-url https://x");
        assert_eq!(parsed.vendor, ["telemetry-url"]);
        assert_eq!(parsed.positionals, ["h"]);
    }

    #[test]
    fn negative_numbers_are_positionals_and_too_many_are_refused() {
        assert_eq!(parsed("-5 -1.5").positionals, ["-5", "-1.5"]);
        assert_eq!(refused("a b c").message, "probe: unexpected argument \"c\"");
        assert_eq!(
            refused("--trace").message,
            "usage: pilotctl probe <peer> [port] [--count N] [--data M] [--trace] [--wait [D]]"
        );
    }

    #[test]
    fn global_flags_are_found_anywhere() {
        let (globals, rest) = take_globals(words("ping --count 1 --json h -v"));
        assert_eq!(globals, Globals { json: true, verbose: true });
        assert_eq!(rest, words("ping --count 1 h"));
    }
}
