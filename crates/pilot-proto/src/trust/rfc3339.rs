//! RFC 3339 times, as `trust.json` and the inbox carry them.

/// Year, month, day of a day number counted from 1970-01-01 (proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, u32, u32) {
    // Days are counted from 0000-03-01, so that leap days end a year; 146,097 days make 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let y = year - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = i64::from((month + 9) % 12);
    let doy = (153 * mp + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Broken-down time, for names and texts in a zone `offset_secs` east of UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Civil {
    pub year: i64,
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl Civil {
    /// The time `unix` (seconds since 1970-01-01T00:00:00Z) as clocks `offset_secs` east of UTC show it.
    pub fn at(unix: u64, offset_secs: i32) -> Civil {
        // Beyond the year 9999 RFC 3339 has no notation.
        let secs = (unix.min(253_402_300_799) as i64) + i64::from(offset_secs);
        let (year, month, day) = civil(secs.div_euclid(86_400));
        let rest = secs.rem_euclid(86_400) as u32;
        Civil { year, month, day, hour: rest / 3600, minute: rest / 60 % 60, second: rest % 60 }
    }
}

/// `2026-11-20T23:28:10Z`.
pub fn format(unix: u64) -> String {
    let t = Civil::at(unix, 0);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", t.year, t.month, t.day, t.hour, t.minute, t.second)
}

/// With nanoseconds (trailing zeros dropped) and a zone, as inbox records carry it:
/// `2026-11-20T23:28:45.606594243+01:00`.
pub fn format_nanos(unix: u64, nanos: u32, offset_secs: i32) -> String {
    let t = Civil::at(unix, offset_secs);
    let mut text =
        format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", t.year, t.month, t.day, t.hour, t.minute, t.second);
    if nanos > 0 {
        text.push('.');
        text.push_str(format!("{nanos:09}").trim_end_matches('0'));
    }
    match offset_secs {
        0 => text.push('Z'),
        _ => {
            let (sign, o) = if offset_secs < 0 { ('-', -offset_secs) } else { ('+', offset_secs) };
            text.push_str(&format!("{sign}{:02}:{:02}", o / 3600, o / 60 % 60));
        }
    }
    text
}

/// Unix seconds of an RFC 3339 time (fractions are dropped); `None` if malformed or before 1970.
pub fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = bytes.get(from..to)?;
        digits
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| digits.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0')))
    };
    let sep = |at: usize, any: &[u8]| bytes.get(at).is_some_and(|b| any.contains(b));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let seps = sep(4, b"-") && sep(7, b"-") && sep(10, b"Tt") && sep(13, b":") && sep(16, b":");
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = *last.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    if !seps || day == 0 || day > days || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    if sep(at, b".") {
        let digits = bytes[20..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        at = 20 + digits;
    }
    let offset = if sep(at, b"Zz") && bytes.len() == at + 1 {
        0
    } else if sep(at, b"+-") && bytes.len() == at + 6 && sep(at + 3, b":") {
        let (h, m) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
        if h > 23 || m > 59 {
            return None;
        }
        i64::from(h * 3600 + m * 60) * if bytes[at] == b'-' { -1 } else { 1 }
    } else {
        return None;
    };
    let secs = days_from_civil(i64::from(year), month, day) * 86_400
        + i64::from(hour * 3600 + minute * 60 + second)
        - offset;
    u64::try_from(secs).ok()
}
