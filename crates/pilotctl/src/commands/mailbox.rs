//! `inbox` and `received`: what peers have sent, read from the files the daemon keeps (spec 06 section 5.5).

use super::text::{plural, safe, safe_lines};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult};
use crate::names::Peer;
use crate::output::{Ctx, Style, json as out};
use pilot_daemon::config::duration;
use pilot_daemon::services::inbox::{self, Filter, Record};
use pilot_daemon::services::received::{self, ReceivedFile};
use pilot_proto::trust::rfc3339;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Records shown by default, in JSON mode too.
const SHOWN: u64 = 10;
/// Characters of a preview.
const PREVIEW: usize = 120;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "inbox",
        about: "received messages, newest first; `inbox read ID` shows one",
        args: &["[read]", "[id]"],
        flags: &[
            Flag::switch("latest", "only the newest, in full"),
            Flag::value("limit", "N", "at most N messages (10, 0: all)"),
            Flag::value("from", "PEER", "only of this peer"),
            Flag::value("since", "D|TIME", "only newer than a duration (5m) or an RFC 3339 time"),
            Flag::switch("full", "whole messages instead of previews"),
            Flag::switch("clear", "delete the messages that match"),
            Flag::value("before", "D", "with --clear: only those older than D (24h)"),
        ],
        returns: "dir, total, shown, messages[]{id, from, type, bytes, received_at, message_id, preview | data}",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(messages(ctx, args))),
    },
    Spec {
        name: "received",
        about: "received files, newest first",
        args: &[],
        flags: &[
            Flag::value("limit", "N", "at most N files (10 in text, 0: all)"),
            Flag::value("since", "D|TIME", "only newer than a duration (5m) or an RFC 3339 time"),
            Flag::switch("clear", "delete the files that match"),
            Flag::value("before", "D", "with --clear: only those older than D (24h)"),
        ],
        returns: "dir, total, shown, files[]{name, path, bytes, modified}, partial[]",
        tier: Tier::Core,
        run: Run::Sync(files),
    },
];

/// Where this user's messages are.
pub fn inbox_dir(ctx: &Ctx) -> PathBuf {
    ctx.home().join("inbox")
}

fn ago(age: Duration) -> SystemTime {
    SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH)
}

/// `--since`: nothing older counts.
fn since(args: &Args) -> Result<Option<SystemTime>, CliError> {
    let Some(text) = args.value("since") else { return Ok(None) };
    if let Ok(age) = duration::parse(text) {
        return Ok(Some(ago(age)));
    }
    rfc3339::parse(text)
        .map(|unix| Some(UNIX_EPOCH + Duration::from_secs(unix)))
        .ok_or_else(|| CliError::invalid("--since must be a duration (5m, 1h) or an RFC3339 timestamp"))
}

/// `--before`: nothing newer is deleted.
fn before(args: &Args) -> Result<Option<SystemTime>, CliError> {
    let Some(text) = args.value("before") else { return Ok(None) };
    if !args.on("clear") {
        return Err(CliError::invalid("--before works only with --clear"));
    }
    match duration::parse(text) {
        Ok(age) => Ok(Some(ago(age))),
        Err(_) => Err(CliError::invalid("--before must be a duration (24h, 30m)")),
    }
}

fn limit(args: &Args, default: u64) -> Result<usize, CliError> {
    match args.int("limit", default)? {
        0 => Ok(usize::MAX),
        limit => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
    }
}

/// How long ago, for people.
fn age(time: SystemTime) -> String {
    value::human_age(SystemTime::now().duration_since(time).unwrap_or_default())
}

/// The error of a directory that cannot be read.
pub fn unreadable(dir: &Path) -> impl Fn(std::io::Error) -> CliError + '_ {
    move |error| CliError::io(dir.display(), &error)
}

async fn messages(ctx: &Ctx, args: &Args) -> CliResult {
    let dir = inbox_dir(ctx);
    match (args.pos(0), args.pos(1)) {
        (Some("read"), Some(id)) => return read(ctx, &dir, id),
        (Some("read"), None) => return Err(CliError::invalid("usage: pilotctl inbox read <id>")),
        (Some(other), _) => {
            return Err(CliError::invalid(format!("unknown inbox subcommand: {other}"))
                .hint("available: read; without one, messages are listed"));
        }
        (None, _) => {}
    }
    let from = match args.value("from") {
        None => None,
        Some(typed) => Some(match Peer::literal(typed) {
            Some(peer) => peer.addr.to_string(),
            None => Peer::resolve(ctx, &ctx.client().await?, typed).await?.addr.to_string(),
        }),
    };
    let filter = Filter { from, since: since(args)?, before: before(args)? };
    if args.on("clear") {
        let done = inbox::clear(&dir, &filter).map_err(unreadable(&dir))?;
        let (cleared, remaining) = (done.cleared, done.remaining);
        return ctx.emit(json!({"cleared": cleared, "remaining": remaining}), |_| {
            format!("deleted {cleared} message{}, {remaining} left", plural(cleared as u64))
        });
    }
    let latest = args.on("latest");
    let shown = if latest { 1 } else { limit(args, SHOWN)? };
    let (total, records) = if filter == Filter::default() {
        // Only the records shown need reading.
        let ids = inbox::ids(&dir).map_err(unreadable(&dir))?;
        let mut records = Vec::new();
        for id in ids.iter().take(shown) {
            records.extend(inbox::read(&dir, id).map_err(unreadable(&dir))?);
        }
        (ids.len(), records)
    } else {
        let mut records = inbox::list(&dir, &filter).map_err(unreadable(&dir))?;
        let total = records.len();
        records.truncate(shown);
        (total, records)
    };
    let full = latest || args.on("full");
    let mut data = json!({
        "total": total, "shown": records.len(),
        "messages": records.iter().map(|record| listed(record, full)).collect::<Vec<_>>(),
    });
    if dir.is_dir() {
        data["dir"] = json!(dir);
    }
    ctx.emit(data, |style| inbox_text(&records, total, full, style))
}

fn read(ctx: &Ctx, dir: &Path, id: &str) -> CliResult {
    let Some(record) = inbox::read(dir, id).map_err(unreadable(dir))? else {
        return Err(CliError::not_found(format!("no message {id:?} — list ids with: pilotctl inbox")));
    };
    let text = record_text(&record, true, &ctx.style);
    ctx.emit(with_id(&record), |_| text)
}

/// A record with its id, as JSON.
pub fn with_id(record: &Record) -> Value {
    let mut fields = record.fields.clone();
    fields.insert("id".to_owned(), json!(record.id));
    Value::Object(fields)
}

/// A record as listed: with its data, or with a preview of it.
fn listed(record: &Record, full: bool) -> Value {
    let mut listed = with_id(record);
    if let (false, Some(object)) = (full, listed.as_object_mut()) {
        for key in ["data", "data_b64", "data_encoding"] {
            object.remove(key);
        }
        object.insert("preview".to_owned(), json!(record.preview(PREVIEW)));
    }
    listed
}

fn record_text(record: &Record, full: bool, style: &Style) -> String {
    let mut page = format!(
        "  {}\n  {} · {} · {} ago · {}\n",
        style.bold(&safe(&record.id)),
        style.cyan(&safe(record.from())),
        safe(record.kind()),
        age(record.received()),
        value::human_bytes(record.bytes())
    );
    for (key, id) in [("message_id", record.message_id()), ("reply_to", record.reply_to())] {
        if let Some(id) = id {
            let _ = writeln!(page, "  {}", style.dim(&format!("{key} {}", safe(id))));
        }
    }
    match record.fields.get("data").and_then(Value::as_str) {
        Some(data) if full => {
            for line in safe_lines(data).lines() {
                let _ = writeln!(page, "  {line}");
            }
        }
        Some(_) => drop(writeln!(page, "  {}", safe(&record.preview(PREVIEW)))),
        None => drop(writeln!(page, "  (binary; its base64 is in --json)")),
    }
    page
}

fn inbox_text(records: &[Record], total: usize, full: bool, style: &Style) -> String {
    if records.is_empty() {
        return "inbox is empty".to_owned();
    }
    let mut page = format!("Inbox — {total} message(s) · showing {} newest\n", records.len());
    for record in records {
        page.push('\n');
        page.push_str(&record_text(record, full, style));
    }
    page
}

fn files(ctx: &Ctx, args: &Args) -> CliResult {
    let dir = ctx.home().join("received");
    let (since, before) = (since(args)?, before(args)?);
    if args.on("clear") {
        if since.is_some() {
            return Err(CliError::invalid("--since does not work with --clear; --before does"));
        }
        let done = received::clear(&dir, before).map_err(unreadable(&dir))?;
        let data = json!({
            "cleared": done.cleared, "cleared_partial": done.cleared_partial, "remaining": done.remaining,
        });
        return ctx.emit(data, |_| {
            format!(
                "deleted {} file{} and {} unfinished, {} left",
                done.cleared,
                plural(done.cleared as u64),
                done.cleared_partial,
                done.remaining
            )
        });
    }
    let mut found = received::list(&dir, since).map_err(unreadable(&dir))?;
    let total = found.files.len();
    found.files.truncate(limit(args, if ctx.json { 0 } else { SHOWN })?);
    let entry = |file: &ReceivedFile| {
        let unix = file.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        json!({"name": file.name, "path": file.path, "bytes": file.bytes, "modified": rfc3339::format(unix)})
    };
    let mut data = json!({
        "total": total, "shown": found.files.len(),
        "files": found.files.iter().map(entry).collect::<Vec<_>>(),
        "partial": found.partial.iter().map(entry).collect::<Vec<_>>(),
    });
    if dir.is_dir() {
        data["dir"] = json!(dir);
    }
    ctx.emit(data, |style| received_text(&found.files, &found.partial, total, style))
}

fn received_text(found: &[ReceivedFile], partial: &[ReceivedFile], total: usize, style: &Style) -> String {
    let mut page = match total {
        0 => "no received files\n".to_owned(),
        _ => format!("Received — {total} file(s) · showing {} newest\n", found.len()),
    };
    for file in found {
        let _ = write!(
            page,
            "\n  {}\n  {} · {} ago\n  {}\n",
            style.bold(&safe(&file.name)),
            value::human_bytes(file.bytes),
            age(file.modified),
            style.dim(&safe(&file.path.to_string_lossy()))
        );
    }
    for file in partial {
        let size = value::human_bytes(file.bytes);
        let _ = write!(page, "\n  unfinished: {size} so far, last {} ago", age(file.modified));
    }
    page
}

/// A record the way a reply is printed in text mode.
pub fn pretty(record: &Value) -> String {
    out::pretty(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: Value) -> Record {
        let fields = fields.as_object().cloned().unwrap_or_default();
        Record { id: "TEXT-1".into(), modified: UNIX_EPOCH, fields }
    }

    #[test]
    fn a_listing_carries_a_preview_instead_of_the_data() {
        let record = record(json!({"bytes": 7, "data": "a\n  b", "data_encoding": "utf8", "type": "TEXT"}));
        assert_eq!(
            listed(&record, false),
            json!({"id": "TEXT-1", "bytes": 7, "preview": "a b", "type": "TEXT"})
        );
        assert_eq!(listed(&record, true), with_id(&record));
    }

    #[test]
    fn a_message_cannot_take_over_the_terminal() {
        let record = record(json!({"from": "0:0000.0000.0002", "type": "TEXT", "bytes": 9,
            "received_at": "2026-11-20T23:25:02Z", "data": "hi\u{1b}[2J\nline 2"}));
        let page = record_text(&record, true, &Style::default());
        assert!(page.ends_with("  hi\\u{1b}[2J\n  line 2\n"), "{page:?}");
    }
}
