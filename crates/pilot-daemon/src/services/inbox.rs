//! The inbox: one JSON file per message (spec 06 section 5.5). [`Inbox`] stores; [`list`], [`read`] and [`clear`]
//! work on the directory alone, with or without a daemon:
//!
//! ```no_run
//! # use pilot_daemon::services::inbox::*;
//! # use std::path::Path;
//! let dir = Path::new("/home/agent/.pilot/inbox");
//! let filter = Filter { from: Some("0:0000.0000.0002".into()), ..Filter::default() };
//! for record in list(dir, &filter)?.iter().take(10) {
//!     println!("{} {} {}", record.id, record.kind(), record.preview(120));
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

use super::files::{self, Stamps, StoreError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_disk::{Disk, DiskError};
use pilot_proto::Addr;
use pilot_proto::service::frame::FrameType;
use pilot_proto::service::message::Tag;
use pilot_proto::trust::rfc3339;
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of all messages.
pub const MAX_BYTES: u64 = 256 << 20;
/// Messages.
pub const MAX_FILES: usize = 10_000;
/// The number of messages is checked once in so many saves.
const COUNT_EVERY: u64 = 64;

/// What is known of the directory without looking.
#[derive(Debug, Default)]
struct Usage {
    bytes: u64,
    /// When the directory last changed by our hand. Another time: somebody deleted messages.
    changed: Option<SystemTime>,
    saves: u64,
}

/// Stores messages.
#[derive(Debug)]
pub struct Inbox {
    disk: Disk,
    dir: PathBuf,
    stamps: Arc<Stamps>,
    max_bytes: u64,
    max_files: usize,
    base64: bool,
    usage: Mutex<Usage>,
}

impl Inbox {
    /// In `dir`, which is made when the first message comes. `base64`: store every message as base64.
    pub fn new(disk: Disk, dir: PathBuf, stamps: Arc<Stamps>, base64: bool) -> Inbox {
        Inbox {
            disk,
            dir,
            stamps,
            max_bytes: MAX_BYTES,
            max_files: MAX_FILES,
            base64,
            usage: Mutex::default(),
        }
    }

    /// With other limits than [`MAX_BYTES`] and [`MAX_FILES`].
    pub fn limits(self, max_bytes: u64, max_files: usize) -> Inbox {
        Inbox { max_bytes, max_files, ..self }
    }

    /// The byte limit.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Stores one message durably; blocks. Returns its id.
    ///
    /// # Errors
    /// It does not fit, or could not be written.
    pub fn store(&self, from: Addr, ty: FrameType, tag: &Tag, payload: &[u8]) -> Result<String, StoreError> {
        let full = |why| StoreError::Full(format!("inbox byte budget exceeded: {why}"));
        let failed = |error| DiskError::new("read folder", &self.dir, error);
        let record = self.encode(from, ty, tag, payload);
        let size = record.len() as u64;
        if size > self.max_bytes {
            let max = self.max_bytes;
            return Err(full(format!("a {size}-byte message is larger than the {max}-byte cap")));
        }
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if usage.saves == 0 {
            // What a crash interrupted was never acknowledged.
            self.disk.sweep(&self.dir)?;
        }
        if usage.changed.is_none() || usage.changed != modified(&self.dir) {
            usage.bytes = entries(&self.dir).map_err(failed)?.iter().map(|entry| entry.size).sum();
        }
        usage.saves += 1;
        let count = usage.saves.is_multiple_of(COUNT_EVERY);
        if usage.bytes + size > self.max_bytes || count {
            self.make_room(&mut usage, size).map_err(failed)?;
        }
        if usage.bytes + size > self.max_bytes {
            let (used, max) = (usage.bytes, self.max_bytes);
            return Err(full(format!("{used} + {size} > {max}")));
        }
        let (id, path) = loop {
            let id = format!("{}-{}", ty.name(), self.stamps.next());
            let path = self.dir.join(format!("{id}.json"));
            // Only another process, or this one after a restart within a millisecond, could have taken the name.
            if !path.exists() {
                break (id, path);
            }
        };
        self.disk.replace(&path, &record)?;
        usage.bytes += size;
        usage.changed = modified(&self.dir);
        Ok(id)
    }

    fn encode(&self, from: Addr, ty: FrameType, tag: &Tag, payload: &[u8]) -> Vec<u8> {
        let now = files::since_epoch();
        let mut record = json!({
            "bytes": payload.len(),
            "from": from.to_string(),
            "received_at": rfc3339::format_nanos(now.as_secs(), now.subsec_nanos(), 0),
            "type": ty.name(),
        });
        let text =
            if self.base64 || ty == FrameType::BINARY { None } else { std::str::from_utf8(payload).ok() };
        match text {
            Some(text) => {
                record["data"] = text.into();
                record["data_encoding"] = "utf8".into();
            }
            None => {
                record["data_b64"] = STANDARD.encode(payload).into();
                record["data_encoding"] = "base64".into();
            }
        }
        for (name, id) in [("message_id", &tag.message_id), ("reply_to", &tag.reply_to)] {
            if let Some(id) = id {
                record[name] = id.as_str().into();
            }
        }
        // Objects keep their keys sorted.
        record.to_string().into_bytes()
    }

    /// Removes the oldest messages: above the file limit always, and if `size` more bytes do not fit until they fill
    /// at most 90 % of the byte limit.
    fn make_room(&self, usage: &mut Usage, size: u64) -> io::Result<()> {
        let mut all = entries(&self.dir)?;
        all.sort_by_key(|entry| entry.modified);
        usage.bytes = all.iter().map(|entry| entry.size).sum();
        let goal = match usage.bytes + size > self.max_bytes {
            true => self.max_bytes / 10 * 9,
            false => self.max_bytes,
        };
        let mut left = all.len();
        for entry in all {
            if usage.bytes + size <= goal && left < self.max_files {
                break;
            }
            match fs::remove_file(&entry.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            usage.bytes -= entry.size;
            left -= 1;
        }
        Ok(())
    }
}

struct Entry {
    path: PathBuf,
    /// Name without `.json`.
    id: String,
    size: u64,
    modified: SystemTime,
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// Messages in a directory, in no order. A directory that does not exist has none.
fn entries(dir: &Path) -> io::Result<Vec<Entry>> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut found = Vec::new();
    for file in listing {
        let file = file?;
        let Ok(name) = file.file_name().into_string() else { continue };
        let Some(id) = name.strip_suffix(".json") else { continue };
        // Deleted since: not there.
        let Ok(data) = file.metadata() else { continue };
        let modified = data.modified().unwrap_or(UNIX_EPOCH);
        found.push(Entry { path: file.path(), id: id.to_owned(), size: data.len(), modified });
    }
    Ok(found)
}

/// The part of an id that orders messages by age.
fn age(id: &str) -> &str {
    id.split_once('-').map_or(id, |(_, age)| age)
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// File name without `.json`.
    pub id: String,
    /// When the file was written.
    pub modified: SystemTime,
    /// All keys of the file (spec 06 section 5.5), whoever wrote it.
    pub fields: Map<String, Value>,
}

impl Record {
    fn text(&self, key: &str) -> &str {
        self.fields.get(key).and_then(Value::as_str).unwrap_or("")
    }
    /// Sender, address text.
    pub fn from(&self) -> &str {
        self.text("from")
    }
    /// `TEXT`, `JSON`, `BINARY` or `FILE`.
    pub fn kind(&self) -> &str {
        self.text("type")
    }
    /// Payload length.
    pub fn bytes(&self) -> u64 {
        self.fields.get("bytes").and_then(Value::as_u64).unwrap_or(0)
    }
    /// Its own id, if the sender gave one.
    pub fn message_id(&self) -> Option<&str> {
        self.fields.get("message_id").and_then(Value::as_str)
    }
    /// The message it answers.
    pub fn reply_to(&self) -> Option<&str> {
        self.fields.get("reply_to").and_then(Value::as_str)
    }
    /// RFC 3339.
    pub fn received_at(&self) -> &str {
        self.text("received_at")
    }
    /// The same as a time; the file's if the text is malformed.
    pub fn received(&self) -> SystemTime {
        rfc3339::parse(self.received_at())
            .map_or(self.modified, |unix| UNIX_EPOCH + Duration::from_secs(unix))
    }
    /// The payload; `None` if the record holds none.
    pub fn data(&self) -> Option<Vec<u8>> {
        match (
            self.fields.get("data").and_then(Value::as_str),
            self.fields.get("data_b64").and_then(Value::as_str),
        ) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(text)) => STANDARD.decode(text).ok(),
            (None, None) => None,
        }
    }
    /// The beginning of a text with white space collapsed, at most `max` characters, `…` where it was cut; the base64 of
    /// other payloads likewise.
    pub fn preview(&self, max: usize) -> String {
        let text = match self.text("data") {
            "" => self.text("data_b64"),
            text => text,
        };
        // As many bytes as `max` characters and the white space between them can take.
        let head: String = text.chars().take(max.saturating_mul(8).saturating_add(1)).collect();
        let line = head.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(max) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None if head.len() < text.len() => format!("{line}…"),
            None => line,
        }
    }
}

/// Which messages are meant; by default all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Of this sender (address text).
    pub from: Option<String>,
    /// Not older than this.
    pub since: Option<SystemTime>,
    /// Older than this.
    pub before: Option<SystemTime>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    fn matches(&self, record: &Record) -> bool {
        let received = record.received();
        self.from.as_deref().is_none_or(|from| from == record.from())
            && self.since.is_none_or(|since| received >= since)
            && self.before.is_none_or(|before| received < before)
    }
}

/// Ids of all messages, newest first; reads no message.
///
/// # Errors
/// The directory cannot be read. One that does not exist is empty.
pub fn ids(dir: &Path) -> io::Result<Vec<String>> {
    let mut ids: Vec<String> = entries(dir)?.into_iter().map(|entry| entry.id).collect();
    ids.sort_by(|a, b| age(b).cmp(age(a)));
    Ok(ids)
}

/// Matching messages, newest first. Files that are no messages are left out.
///
/// # Errors
/// The directory cannot be read. One that does not exist is empty.
pub fn list(dir: &Path, filter: &Filter) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for id in ids(dir)? {
        if let Some(record) = read(dir, &id)?
            && filter.matches(&record)
        {
            records.push(record);
        }
    }
    Ok(records)
}

/// One message; `None` if there is none of that id, or the file holds no record.
///
/// # Errors
/// The file cannot be read.
pub fn read(dir: &Path, id: &str) -> io::Result<Option<Record>> {
    if id.is_empty() || id.contains(['/', '\0']) || id.starts_with('.') {
        return Ok(None);
    }
    let path = dir.join(format!("{id}.json"));
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice(&text) else { return Ok(None) };
    Ok(Some(Record { id: id.to_owned(), modified: modified(&path).unwrap_or(UNIX_EPOCH), fields }))
}

/// What [`clear`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    /// Deleted messages.
    pub cleared: usize,
    /// Messages still there.
    pub remaining: usize,
}

/// Deletes matching messages.
///
/// # Errors
/// The directory cannot be read or a file not deleted.
pub fn clear(dir: &Path, filter: &Filter) -> io::Result<Cleared> {
    let mut done = Cleared { cleared: 0, remaining: 0 };
    for entry in entries(dir)? {
        let matches =
            filter.is_empty() || read(dir, &entry.id)?.is_some_and(|record| filter.matches(&record));
        if !matches {
            done.remaining += 1;
            continue;
        }
        match fs::remove_file(&entry.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => done.cleared += 1,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(
        inbox: &Inbox,
        from: u32,
        ty: FrameType,
        tag: &Tag,
        payload: &[u8],
    ) -> Result<String, StoreError> {
        inbox.store(Addr::backbone(from), ty, tag, payload)
    }

    fn inbox(dir: &Path) -> Inbox {
        Inbox::new(Disk::new(), dir.join("inbox"), Arc::default(), false)
    }

    fn plain(inbox: &Inbox, payload: &[u8]) -> Result<String, StoreError> {
        store(inbox, 1, FrameType::TEXT, &Tag::default(), payload)
    }

    #[test]
    fn records_are_the_golden_ones() {
        let text = include_str!("../../tests/vectors/inbox.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let inbox = inbox(dir.path());
        let mut compared = 0;
        for vector in vectors["files"].as_array().unwrap() {
            let golden = vector["body"].as_str().unwrap();
            let record: Map<String, Value> = serde_json::from_str(golden).unwrap();
            let golden_record = Record { id: String::new(), modified: UNIX_EPOCH, fields: record };
            if !golden_record.fields.contains_key("data_encoding") {
                continue;
            }
            let field =
                |name: &str| golden_record.fields.get(name).and_then(Value::as_str).map(str::to_owned);
            let ty = match golden_record.kind() {
                "TEXT" => FrameType::TEXT,
                "JSON" => FrameType::JSON,
                _ => FrameType::BINARY,
            };
            let tag = Tag { message_id: field("message_id"), reply_to: field("reply_to") };
            let id = store(&inbox, 1, ty, &tag, &golden_record.data().unwrap()).unwrap();
            let ours = fs::read_to_string(dir.path().join("inbox").join(format!("{id}.json"))).unwrap();
            let time = read(&dir.path().join("inbox"), &id).unwrap().unwrap().received_at().to_owned();
            assert_eq!(ours.replace(&time, golden_record.received_at()), golden);
            // The same form of name, apart from the time.
            let shape = |name: &str| name.replace(|c: char| c.is_ascii_digit(), "#");
            assert_eq!(shape(&format!("{id}.json")), shape(vector["name"].as_str().unwrap()));
            compared += 1;
        }
        assert_eq!(compared, 5);
    }

    #[test]
    fn files_and_directory_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let id = plain(&inbox(dir.path()), b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let inbox = dir.path().join("inbox");
        assert_eq!((mode(&inbox), mode(&inbox.join(format!("{id}.json")))), (0o700, 0o600));
        assert_eq!(fs::read_dir(inbox).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn base64_can_be_forced() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::new(Disk::new(), dir.path().to_owned(), Arc::default(), true);
        let id = plain(&inbox, b"text").unwrap();
        let record = read(dir.path(), &id).unwrap().unwrap();
        assert_eq!(record.fields["data_b64"], "dGV4dA==");
        assert_eq!(record.data().unwrap(), b"text");
    }

    #[test]
    fn the_oldest_messages_give_way_to_nine_tenths_of_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = inbox(dir.path()).limits(100_000, 1000);
        let ids: Vec<String> = (0..20).map(|_| plain(&inbox, &[b'x'; 5000]).unwrap()).collect();
        let left = super::ids(&dir.path().join("inbox")).unwrap();
        assert!(!left.contains(&ids[0]) && left.contains(&ids[19]), "{left:?}");
        let bytes: u64 = entries(&dir.path().join("inbox")).unwrap().iter().map(|entry| entry.size).sum();
        assert!(bytes <= 100_000, "{bytes}");
        let error = plain(&inbox, &[b'x'; 100_000]).unwrap_err();
        assert!(error.to_string().contains("-byte message is larger than the 100000-byte cap"), "{error}");
        assert_eq!(super::ids(&dir.path().join("inbox")).unwrap(), left, "a refused message evicts nothing");
    }

    #[test]
    fn messages_deleted_by_others_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = inbox(dir.path()).limits(10_000, 1000);
        plain(&inbox, &[b'x'; 8000]).unwrap();
        clear(&dir.path().join("inbox"), &Filter::default()).unwrap();
        let id = plain(&inbox, &[b'x'; 4000]).unwrap();
        plain(&inbox, &[b'x'; 4000]).unwrap();
        assert!(read(&dir.path().join("inbox"), &id).unwrap().is_some());
    }

    #[test]
    fn the_number_of_messages_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = inbox(dir.path()).limits(MAX_BYTES, 10);
        for _ in 0..COUNT_EVERY {
            plain(&inbox, b"x").unwrap();
        }
        assert_eq!(ids(&dir.path().join("inbox")).unwrap().len(), 10);
    }

    #[test]
    fn messages_are_listed_filtered_read_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let (inbox, path) = (inbox(dir.path()), dir.path().join("inbox"));
        assert_eq!(list(&path, &Filter::default()).unwrap(), [], "no directory yet");
        let a = store(&inbox, 1, FrameType::TEXT, &Tag::default(), b"first  \n line").unwrap();
        let b = store(&inbox, 2, FrameType::BINARY, &Tag::default(), b"\xff\0").unwrap();
        fs::write(path.join("NOTE-1.json"), "not a record").unwrap();
        let listed =
            |filter: &Filter| list(&path, filter).unwrap().into_iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(listed(&Filter::default()), [b.clone(), a.clone()], "newest first");
        let from = Filter { from: Some("0:0000.0000.0001".into()), ..Filter::default() };
        assert_eq!(listed(&from), std::slice::from_ref(&a));
        let hour = Duration::from_secs(3600);
        let future = Filter { since: Some(SystemTime::now() + hour), ..Filter::default() };
        assert_eq!(listed(&future), [] as [String; 0]);
        let past = Filter { since: Some(SystemTime::now() - hour), ..Filter::default() };
        assert_eq!(listed(&past).len(), 2);
        assert_eq!(read(&path, &a).unwrap().unwrap().preview(9), "first lin…");
        assert_eq!(read(&path, &a).unwrap().unwrap().preview(10), "first line");
        assert_eq!(read(&path, &b).unwrap().unwrap().data().unwrap(), b"\xff\0");
        for bad in ["", "../inbox/x", "nothing", "NOTE-1", ".hidden"] {
            assert_eq!(read(&path, bad).unwrap(), None, "{bad}");
        }
        assert_eq!(clear(&path, &from).unwrap(), Cleared { cleared: 1, remaining: 2 });
        assert_eq!(clear(&path, &Filter::default()).unwrap(), Cleared { cleared: 2, remaining: 0 });
    }
}
