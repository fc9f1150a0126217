//! `inbox` and `received`: what peers have sent, read from the files the daemon keeps (spec 06 section 5.5).

use super::text::{plural, preview, safe, safe_lines, unix_now};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult};
use crate::names::Peer;
use crate::output::{Ctx, Style, json as out};
use pilot_daemon::config::duration;
use pilot_proto::trust::rfc3339;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Records shown by default, in JSON mode too.
const SHOWN: u64 = 10;
/// Characters of a preview.
const PREVIEW: usize = 120;
/// Largest record read, bytes: the largest message as base64, and its keys.
const MAX_RECORD: u64 = 96 << 20;

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
        run: Run::Async(|ctx, args| Box::pin(inbox(ctx, args))),
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
        run: Run::Sync(received),
    },
];

/// The directory of received messages.
#[derive(Debug, Clone)]
pub struct Inbox {
    pub dir: PathBuf,
}

impl Inbox {
    /// This user's.
    pub fn of(ctx: &Ctx) -> Inbox {
        Inbox { dir: ctx.home().join("inbox") }
    }

    /// Ids of all records in order of arrival.
    pub fn ids(&self) -> std::io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.strip_suffix(".json").map(str::to_owned)
            })
            .collect();
        // The name is the type, then the time and a counter.
        ids.sort_by(|a, b| order_key(a).cmp(order_key(b)));
        Ok(ids)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// A record with its id; `None` if it is gone or not one.
    pub fn record(&self, id: &str) -> Option<Value> {
        if id.is_empty() || id.contains(['/', '\\']) || id.starts_with('.') {
            return None;
        }
        let mut text = Vec::new();
        let file = std::fs::File::open(self.path(id)).ok()?;
        file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        let mut record: Value = serde_json::from_slice(&text).ok()?;
        record.as_object_mut()?.insert("id".to_owned(), json!(id));
        Some(record)
    }
}

fn order_key(id: &str) -> &str {
    id.split_once('-').map_or(id, |(_, rest)| rest)
}

/// `--since`: Unix seconds before which nothing counts.
fn since(args: &Args) -> Result<Option<u64>, CliError> {
    let Some(text) = args.value("since") else { return Ok(None) };
    if let Ok(age) = duration::parse(text) {
        return Ok(Some(unix_now().saturating_sub(age.as_secs())));
    }
    rfc3339::parse(text)
        .map(Some)
        .ok_or_else(|| CliError::invalid("--since must be a duration (5m, 1h) or an RFC3339 timestamp"))
}

/// `--before`: Unix seconds after which nothing is deleted.
fn before(args: &Args) -> Result<Option<u64>, CliError> {
    let Some(text) = args.value("before") else { return Ok(None) };
    if !args.on("clear") {
        return Err(CliError::invalid("--before works only with --clear"));
    }
    match duration::parse(text) {
        Ok(age) => Ok(Some(unix_now().saturating_sub(age.as_secs()))),
        Err(_) => Err(CliError::invalid("--before must be a duration (24h, 30m)")),
    }
}

fn limit(args: &Args, default: u64) -> Result<usize, CliError> {
    match args.int("limit", default)? {
        0 => Ok(usize::MAX),
        limit => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
    }
}

fn received_at(record: &Value) -> u64 {
    record["received_at"].as_str().and_then(rfc3339::parse).unwrap_or(0)
}

async fn inbox(ctx: &Ctx, args: &Args) -> CliResult {
    let inbox = Inbox::of(ctx);
    match (args.pos(0), args.pos(1)) {
        (Some("read"), Some(id)) => return read(ctx, &inbox, id),
        (Some("read"), None) => return Err(CliError::invalid("usage: pilotctl inbox read <id>")),
        (Some(other), _) => {
            return Err(CliError::invalid(format!("unknown inbox subcommand: {other}"))
                .hint("available: read; without one, messages are listed"));
        }
        (None, _) => {}
    }
    let (since, before) = (since(args)?, before(args)?);
    let from = match args.value("from") {
        None => None,
        Some(typed) => Some(match Peer::literal(typed) {
            Some(peer) => peer.addr.to_string(),
            None => Peer::resolve(ctx, &ctx.client().await?, typed).await?.addr.to_string(),
        }),
    };
    let latest = args.on("latest");
    let shown = if latest { 1 } else { limit(args, SHOWN)? };
    let mut ids = inbox.ids().map_err(|e| CliError::io(inbox.dir.display(), &e))?;
    ids.reverse();
    // Without a filter only the records shown need reading.
    let filtered = since.is_some() || before.is_some() || from.is_some();
    let matches = |record: &Value| {
        from.as_deref().is_none_or(|from| record["from"] == from)
            && since.is_none_or(|since| received_at(record) >= since)
            && before.is_none_or(|before| received_at(record) < before)
    };
    if args.on("clear") {
        let all = ids.len();
        if filtered {
            ids.retain(|id| inbox.record(id).is_some_and(|record| matches(&record)));
        }
        let cleared = remove_all(ids.iter().map(|id| inbox.path(id)))?;
        let remaining = all - cleared;
        return ctx.emit(json!({"cleared": cleared, "remaining": remaining}), |_| {
            format!("deleted {cleared} message{}, {remaining} left", plural(cleared as u64))
        });
    }
    let (total, records) = if filtered {
        let mut records: Vec<Value> = ids.iter().filter_map(|id| inbox.record(id)).filter(matches).collect();
        let total = records.len();
        records.truncate(shown);
        (total, records)
    } else {
        (ids.len(), ids.iter().take(shown).filter_map(|id| inbox.record(id)).collect())
    };
    let full = latest || args.on("full");
    let mut data = json!({
        "total": total, "shown": records.len(),
        "messages": records.iter().map(|record| listed(record, full)).collect::<Vec<_>>(),
    });
    if inbox.dir.is_dir() {
        data["dir"] = json!(inbox.dir);
    }
    ctx.emit(data, |style| inbox_text(&records, total, full, style))
}

fn read(ctx: &Ctx, inbox: &Inbox, id: &str) -> CliResult {
    let Some(record) = inbox.record(id) else {
        return Err(CliError::not_found(format!("no message {id:?} — list ids with: pilotctl inbox")));
    };
    let text = record_text(&record, true, &ctx.style);
    ctx.emit(record, |_| text)
}

/// A record as listed: with its data, or with a preview of it.
fn listed(record: &Value, full: bool) -> Value {
    let mut listed = record.clone();
    if full {
        return listed;
    }
    if let Some(object) = listed.as_object_mut() {
        object.remove("data");
        object.remove("data_b64");
        object.remove("data_encoding");
        object.insert("preview".to_owned(), json!(preview_of(record)));
    }
    listed
}

fn preview_of(record: &Value) -> String {
    match record["data"].as_str() {
        Some(text) => preview(text, PREVIEW),
        None => format!("({} bytes, base64 in data_b64)", record["bytes"].as_u64().unwrap_or(0)),
    }
}

fn record_text(record: &Value, full: bool, style: &Style) -> String {
    let text = |key: &str| safe(record[key].as_str().unwrap_or_default()).into_owned();
    let age = Duration::from_secs(unix_now().saturating_sub(received_at(record)));
    let mut page = format!(
        "  {}\n  {} · {} · {} ago · {}\n",
        style.bold(&text("id")),
        style.cyan(&text("from")),
        text("type"),
        value::human_age(age),
        value::human_bytes(record["bytes"].as_u64().unwrap_or(0))
    );
    for key in ["message_id", "reply_to"] {
        if record[key].is_string() {
            let _ = writeln!(page, "  {}", style.dim(&format!("{key} {}", text(key))));
        }
    }
    match (full, record["data"].as_str()) {
        (true, Some(data)) => {
            for line in safe_lines(data).lines() {
                let _ = writeln!(page, "  {line}");
            }
        }
        _ => drop(writeln!(page, "  {}", safe(&preview_of(record)))),
    }
    page
}

fn inbox_text(records: &[Value], total: usize, full: bool, style: &Style) -> String {
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

fn remove_all(paths: impl Iterator<Item = PathBuf>) -> Result<usize, CliError> {
    let mut removed = 0;
    for path in paths {
        match std::fs::remove_file(&path) {
            Ok(()) => removed += 1,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(CliError::io(path.display(), &e)),
        }
    }
    Ok(removed)
}

/// A received file.
struct File {
    name: String,
    path: PathBuf,
    bytes: u64,
    modified: u64,
}

/// Regular files of a directory, newest first; a missing directory is empty.
fn files(dir: &Path) -> Result<Vec<File>, CliError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CliError::io(dir.display(), &e)),
    };
    let mut files: Vec<File> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok().filter(|meta| meta.is_file())?;
            let modified = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(File { name, path: entry.path(), bytes: meta.len(), modified })
        })
        .collect();
    files.sort_by(|a, b| (b.modified, &b.name).cmp(&(a.modified, &a.name)));
    Ok(files)
}

fn received(ctx: &Ctx, args: &Args) -> CliResult {
    let dir = ctx.home().join("received");
    let (since, before) = (since(args)?, before(args)?);
    let matches = |file: &File| {
        since.is_none_or(|since| file.modified >= since) && before.is_none_or(|before| file.modified < before)
    };
    let all = files(&dir)?;
    let all_count = all.len();
    let mut found: Vec<File> = all.into_iter().filter(matches).collect();
    let mut partial: Vec<File> = files(&dir.join(".partial"))?.into_iter().filter(matches).collect();
    if args.on("clear") {
        let cleared = remove_all(found.drain(..).map(|file| file.path))?;
        let cleared_partial = remove_all(partial.drain(..).map(|file| file.path))?;
        let data = json!({
            "cleared": cleared, "cleared_partial": cleared_partial, "remaining": all_count - cleared,
        });
        return ctx.emit(data, |_| {
            format!("deleted {cleared} file{} and {cleared_partial} unfinished", plural(cleared as u64))
        });
    }
    let total = found.len();
    found.truncate(limit(args, if ctx.json { 0 } else { SHOWN })?);
    let entry = |file: &File| {
        json!({
            "name": file.name, "path": file.path, "bytes": file.bytes,
            "modified": rfc3339::format(file.modified),
        })
    };
    let mut data = json!({
        "total": total, "shown": found.len(),
        "files": found.iter().map(entry).collect::<Vec<_>>(),
        "partial": partial.iter().map(entry).collect::<Vec<_>>(),
    });
    if dir.is_dir() {
        data["dir"] = json!(dir);
    }
    ctx.emit(data, |style| received_text(&found, &partial, total, style))
}

fn received_text(found: &[File], partial: &[File], total: usize, style: &Style) -> String {
    let mut page = match total {
        0 => "no received files\n".to_owned(),
        _ => format!("Received — {total} file(s) · showing {} newest\n", found.len()),
    };
    let now = unix_now();
    let age = |file: &File| value::human_age(Duration::from_secs(now.saturating_sub(file.modified)));
    for file in found {
        let _ = write!(
            page,
            "\n  {}\n  {} · {} ago\n  {}\n",
            style.bold(&safe(&file.name)),
            value::human_bytes(file.bytes),
            age(file),
            style.dim(&safe(&file.path.to_string_lossy()))
        );
    }
    for file in partial {
        let _ =
            write!(page, "\n  unfinished: {} so far, last {} ago", value::human_bytes(file.bytes), age(file));
    }
    page
}

/// A record the way a reply is printed: as JSON, for text mode.
pub fn pretty(record: &Value) -> String {
    out::pretty(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox_with(records: &[(&str, Value)]) -> (tempfile::TempDir, Inbox) {
        let dir = tempfile::tempdir().unwrap();
        for (id, record) in records {
            std::fs::write(dir.path().join(format!("{id}.json")), record.to_string()).unwrap();
        }
        let inbox = Inbox { dir: dir.path().to_owned() };
        (dir, inbox)
    }

    #[test]
    fn records_are_ordered_by_arrival_whatever_their_type() {
        let (_dir, inbox) = inbox_with(&[
            ("TEXT-20261120-232502.978-000015", json!({})),
            ("JSON-20261120-232501.001-000014", json!({})),
            ("BINARY-20261120-232502.978-000016", json!({})),
        ]);
        assert_eq!(
            inbox.ids().unwrap(),
            [
                "JSON-20261120-232501.001-000014",
                "TEXT-20261120-232502.978-000015",
                "BINARY-20261120-232502.978-000016"
            ]
        );
    }

    #[test]
    fn an_id_cannot_leave_the_inbox() {
        let (dir, inbox) = inbox_with(&[("TEXT-1", json!({"bytes": 2}))]);
        std::fs::write(dir.path().parent().unwrap().join("outside.json"), "{}").ok();
        assert_eq!(inbox.record("../outside"), None);
        assert_eq!(inbox.record("TEXT-1"), Some(json!({"bytes": 2, "id": "TEXT-1"})));
        assert_eq!(inbox.record("TEXT-2"), None);
    }

    #[test]
    fn a_missing_inbox_is_empty() {
        let inbox = Inbox { dir: "/nonexistent/inbox".into() };
        assert_eq!(inbox.ids().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_listing_carries_a_preview_instead_of_the_data() {
        let record =
            json!({"id": "TEXT-1", "bytes": 7, "data": "a\n  b", "data_encoding": "utf8", "type": "TEXT"});
        assert_eq!(
            listed(&record, false),
            json!({"id": "TEXT-1", "bytes": 7, "preview": "a b", "type": "TEXT"})
        );
        assert_eq!(listed(&record, true), record);
    }

    #[test]
    fn a_message_cannot_take_over_the_terminal() {
        let record = json!({"id": "TEXT-1", "from": "0:0000.0000.0002", "type": "TEXT", "bytes": 9,
            "received_at": "2026-11-20T23:25:02Z", "data": "hi\x1b[2J\nline 2"});
        let page = record_text(&record, true, &Style::default());
        assert!(page.ends_with("  hi\\u{1b}[2J\n  line 2\n"), "{page:?}");
    }
}
