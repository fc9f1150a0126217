//! Names of stored messages and files (spec 06 section 5.5).

use crate::trust::message::printable;
use crate::trust::rfc3339::Civil;

/// Longest file name written, bytes (what file systems take).
const MAX_NAME: usize = 255;

/// The part of names that tells when and in which order something was stored: `20261120-232849.926-000011`.
/// `offset_secs`: the local zone's, east of UTC.
pub fn stamp(unix: u64, millis: u32, offset_secs: i32, seq: u64) -> String {
    let t = Civil::at(unix, offset_secs);
    format!(
        "{:04}{:02}{:02}-{:02}{:02}{:02}.{millis:03}-{seq:06}",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    )
}

/// The last component of a name from the network, without characters that control a terminal or disguise the name
/// (`exe.txt` shown for `txt.exe`); `received.bin` if nothing is left.
pub fn base_name(name: &str) -> String {
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or("");
    let clean: String = last.chars().filter(|c| printable(*c)).collect();
    if clean.is_empty() || clean == "." || clean == ".." { "received.bin".to_owned() } else { clean }
}

/// `note.txt` stored: `note-20261120-232849.926-000011.txt`. The stem is shortened if the name would be too long.
pub fn stored_name(base: &str, stamp: &str) -> String {
    let dot = base.rfind('.').unwrap_or(base.len());
    let (stem, ext) = base.split_at(dot);
    let ext = cut(ext, MAX_NAME - stamp.len() - 1);
    let stem = cut(stem, MAX_NAME - stamp.len() - 1 - ext.len());
    format!("{stem}-{stamp}{ext}")
}

/// At most `max` bytes of a text, at a character boundary.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
