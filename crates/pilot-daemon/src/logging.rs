//! Log lines of a daemon, on standard error.

use crate::config::LogFormat;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Starts logging at `level` (`trace`, `debug`, `info`, `warn`, `error`; anything else counts as `info`). The variable
/// `RUST_LOG` may refine it. Does nothing if the process logs already.
pub fn init(level: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level, std::env::var("RUST_LOG").ok()))
        .with_writer(std::io::stderr);
    // Fails only if a subscriber is set already.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

fn filter(level: &str, refined: Option<String>) -> EnvFilter {
    let level = match level {
        "trace" | "debug" | "info" | "warn" | "error" => level,
        _ => "info",
    };
    match refined.filter(|text| !text.is_empty()).map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        _ => EnvFilter::new(level),
    }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn the_level_is_taken_unless_refined() {
        assert_eq!(filter("warn", None).to_string(), "warn");
        assert_eq!(filter("loud", None).to_string(), "info");
        assert_eq!(filter("warn", Some("pilot=trace".into())).to_string(), "pilot=trace");
        assert_eq!(filter("warn", Some(String::new())).to_string(), "warn");
    }
}
