//! Durations, numbers and sizes as the command line writes them (spec 08 section 1.5).

use crate::error::CliError;
use pilot_daemon::config::duration;
use std::time::Duration;

/// A duration: Go form (`300ms`, `2m5s`) or a bare decimal number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-') => {
            Duration::try_from_secs_f64(seconds).map_err(|_| format!("time: invalid duration {text:?}"))
        }
        _ => duration::parse(text),
    }
}

/// A decimal number, with the reference's words when it is none.
pub fn parse_int(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e: std::num::ParseIntError| match e.kind() {
        std::num::IntErrorKind::PosOverflow => {
            format!("strconv.Atoi: parsing {text:?}: value out of range")
        }
        _ => format!("strconv.Atoi: parsing {text:?}: invalid syntax"),
    })
}

/// A port, 0 to 65535.
pub fn parse_port(text: &str) -> Result<u16, CliError> {
    parse_u16(text).map_err(|why| {
        CliError::invalid(format!("invalid port {text:?}: strconv.ParseUint: parsing {text:?}: {why}"))
    })
}

/// A network number, 0 to 65535.
pub fn parse_network(text: &str) -> Result<u16, CliError> {
    parse_u16(text).map_err(|why| {
        CliError::invalid(format!("invalid network ID {text:?}: strconv.ParseUint: parsing {text:?}: {why}"))
    })
}

fn parse_u16(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|e: std::num::ParseIntError| match e.kind() {
        std::num::IntErrorKind::PosOverflow => "value out of range",
        _ => "invalid syntax",
    })
}

/// Bytes for people: 1024-based, one decimal (`512 B`, `4.8 MB`).
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Counts for people: from 10,000 on 1000-based with one decimal (`65.9K`).
pub fn human_count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1}K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", count as f64 / 1e6),
        _ => format!("{:.1}B", count as f64 / 1e9),
    }
}

/// Ages for people, whole seconds: `5s`, `2m5s`, `1h4m`, `2d3h`.
pub fn human_age(age: Duration) -> String {
    let seconds = (age + Duration::from_millis(500)).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_form_or_seconds() {
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m5s"), Ok(Duration::from_secs(125)));
        assert_eq!(parse_duration("abc"), Err("time: invalid duration \"abc\"".to_owned()));
        assert_eq!(parse_duration("-3"), Err("time: invalid duration \"-3\"".to_owned()));
        assert_eq!(parse_duration("nan"), Err("time: invalid duration \"nan\"".to_owned()));
    }

    #[test]
    fn sizes_counts_and_ages_read_as_the_reference_prints_them() {
        assert_eq!(human_bytes(512), "512 B");
        assert_eq!(human_bytes(1024), "1.0 KB");
        assert_eq!(human_bytes(5_033_165), "4.8 MB");
        assert_eq!(human_count(9_999), "9999");
        assert_eq!(human_count(65_900), "65.9K");
        assert_eq!(human_age(Duration::from_secs(125)), "2m5s");
        assert_eq!(human_age(Duration::from_secs(3840)), "1h4m");
        assert_eq!(human_age(Duration::from_secs(183_600)), "2d3h");
    }

    #[test]
    fn a_port_out_of_range_says_so() {
        let error = parse_port("70000").unwrap_err();
        assert_eq!(
            error.message,
            "invalid port \"70000\": strconv.ParseUint: parsing \"70000\": value out of range"
        );
    }
}
