//! Text for people: untrusted words made harmless, times, rates.

use pilot_proto::trust::rfc3339::Civil;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Characters that can change what a terminal shows around them: control characters, line separators, and the
/// marks that reverse the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}'
            | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

fn escape(text: &str, keep: fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|c| is_unsafe(c) && !keep(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if keep(c) || !is_unsafe(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a String cannot fail.
            c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Somebody else's words on one line: hostnames, justifications, file names.
pub fn safe(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Somebody else's words over several lines: messages.
pub fn safe_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// A word for a column; `-` when there is none.
pub fn or_dash(text: &str) -> Cow<'_, str> {
    if text.is_empty() { Cow::Borrowed("-") } else { safe(text) }
}

/// A short time: `0.4ms`, `38ms`, `1.2s`.
pub fn short_time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..0.995 => format!("{ms:.2}ms"),
        ..9.95 => format!("{ms:.1}ms"),
        ..999.5 => format!("{ms:.0}ms"),
        _ => format!("{:.1}s", ms / 1e3),
    }
}

/// Milliseconds with microsecond resolution, for JSON.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Rounded to two places, for JSON.
pub fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Mebibytes per second.
pub fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / (1 << 20) as f64 / time.as_secs_f64().max(1e-9)
}

/// Megabits (10^6) per second.
pub fn mbit_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// Unix seconds now.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `2026-11-20 23:23 UTC`.
pub fn utc_minute(unix: u64) -> String {
    let Civil { year, month, day, hour, minute, .. } = Civil::at(unix, 0);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// `s` unless there is exactly one.
pub fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_shown_not_obeyed() {
        assert_eq!(safe("plain é ✓"), "plain é ✓");
        assert_eq!(safe("a\x1b[2Jb\r\nc\u{7f}"), "a\\u{1b}[2Jb\\r\\nc\\u{7f}");
        assert_eq!(safe("invoice\u{202e}gpj.exe"), "invoice\\u{202e}gpj.exe");
        assert_eq!(safe_lines("one\n\ttwo\x07"), "one\n\ttwo\\u{7}");
    }

    #[test]
    fn times_keep_two_figures() {
        assert_eq!(short_time(Duration::from_micros(412)), "0.41ms");
        assert_eq!(short_time(Duration::from_micros(2_482)), "2.5ms");
        assert_eq!(short_time(Duration::from_micros(38_200)), "38ms");
        assert_eq!(short_time(Duration::from_millis(1_240)), "1.2s");
        assert_eq!(millis(Duration::from_nanos(804_400)), 0.804);
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(utc_minute(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc_minute(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc_minute(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc_minute(1_795_216_993), "2026-11-20 23:23 UTC");
    }

    #[test]
    fn rates_have_the_units_their_names_say() {
        assert_eq!(mib_per_second(10 << 20, Duration::from_secs(2)), 5.0);
        assert_eq!(mbit_per_second(1_000_000, Duration::from_secs(1)), 8.0);
    }
}
