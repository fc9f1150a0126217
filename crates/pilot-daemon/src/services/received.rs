//! Received files (spec 06 sections 5.5 and 5.6). [`Received`] stores; [`list`] and [`clear`] work on the directory
//! alone, with or without a daemon.

use super::files::{self, Stamps, StoreError, for_sender};
use pilot_disk::{Disk, DiskError, DiskFile, is_temporary};
use pilot_proto::NodeId;
use pilot_proto::service::file_receiver::{PartialFile, PartialStore, WriteError};
use pilot_proto::service::filestream::{Init, TransferId};
use pilot_proto::service::{hex, names};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of all files, partial ones included.
pub const QUOTA: u64 = 2 << 30;
/// Finished files. Further ones are refused: empty files take no bytes of the quota, but room in the file system.
pub const MAX_FILES: usize = 10_000;
/// Partial files, live ones included. The oldest that no transfer holds gives way to a new one.
pub const MAX_PARTIAL: usize = 256;
/// Bytes kept free on the disk.
pub const RESERVE: u64 = 16 << 20;
/// Announced transfers of one peer leave this part of the quota to others: one in eight bytes.
const OTHERS: u64 = 8;
/// A transfer that wrote nothing for so long gives way to a new one of the same file, or to one that needs its room.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(10);
/// Where partial files are kept, below the directory.
const PARTIAL: &str = ".partial";
/// The file there that one-frame files are written to before they get their name. They are written one at a time.
const ONE_FRAME: &str = ".file.tmp";

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Name in the directory.
    pub name: String,
    /// Full path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// A live transfer's claim on a partial file.
#[derive(Debug)]
struct Hold {
    /// Another transfer has taken it over.
    lost: bool,
    last_write: Instant,
    /// Bytes still to come; they count against the quota.
    outstanding: u64,
    /// Who sends it.
    from: NodeId,
}

type Holds = HashMap<PathBuf, Arc<Mutex<Hold>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores files.
#[derive(Debug)]
pub struct Received {
    disk: Disk,
    dir: PathBuf,
    stamps: Arc<Stamps>,
    quota: u64,
    max_files: usize,
    take_over_after: Duration,
    swept: AtomicBool,
    private: AtomicU32,
    holds: Mutex<Holds>,
}

impl Received {
    /// In `dir`, which is made when the first file comes.
    pub fn new(disk: Disk, dir: PathBuf, stamps: Arc<Stamps>) -> Received {
        let (quota, take_over_after) = (QUOTA, TAKE_OVER_AFTER);
        Received {
            disk,
            dir,
            stamps,
            quota,
            max_files: MAX_FILES,
            take_over_after,
            swept: AtomicBool::new(false),
            private: AtomicU32::new(0),
            holds: Mutex::default(),
        }
    }

    /// With other limits than [`QUOTA`] and [`TAKE_OVER_AFTER`].
    pub fn limits(self, quota: u64, take_over_after: Duration) -> Received {
        Received { quota, take_over_after, ..self }
    }

    /// The quota, bytes.
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Stores a whole file durably; blocks.
    ///
    /// # Errors
    /// It does not fit, or could not be written.
    pub fn store(&self, name: &str, data: &[u8]) -> Result<StoredFile, StoreError> {
        let failed = |error| DiskError::new("read folder", &self.dir, error);
        self.prepare()?;
        // Held while writing, so that two files cannot both take the last room.
        let holds = lock(&self.holds);
        let used = self.used(&holds, None).map_err(failed)?;
        self.check_count()?;
        let (size, quota) = (data.len() as u64, self.quota);
        if used + size > quota {
            let text = format!("received-files quota exceeded: {used} + {size} > {quota}");
            return Err(StoreError::Full(text));
        }
        let (name, path) = self.free_name(&names::base_name(name));
        // Not beside it, where it would be listed.
        let temporary = self.dir.join(PARTIAL).join(ONE_FRAME);
        self.disk.replace_via(&temporary, &path, data)?;
        Ok(StoredFile { name, path, size })
    }

    /// Makes the directories; the first time, removes what a crash left of files that were never acknowledged.
    fn prepare(&self) -> Result<(), DiskError> {
        let partials = self.dir.join(PARTIAL);
        self.disk.create_dir(&partials)?;
        if !self.swept.swap(true, Ordering::Relaxed) {
            self.disk.sweep(&partials)?;
        }
        Ok(())
    }

    /// Bytes below the directory and bytes that live transfers will add, without the partial file `except`.
    fn used(&self, holds: &Holds, except: Option<&Path>) -> io::Result<u64> {
        let mut used = 0;
        for dir in [self.dir.clone(), self.dir.join(PARTIAL)] {
            for file in list_dir(&dir)? {
                if except != Some(&file.path) {
                    used += file.bytes;
                }
            }
        }
        let outstanding =
            holds.iter().filter(|(path, _)| except != Some(path)).map(|(_, hold)| lock(hold).outstanding);
        Ok(used + outstanding.sum::<u64>())
    }

    /// Refuses a new file when there are too many.
    fn check_count(&self) -> Result<(), StoreError> {
        // The directory of partial files is the one too many.
        let listing = fs::read_dir(&self.dir).map_err(|e| DiskError::new("read folder", &self.dir, e))?;
        match listing.count() > self.max_files {
            true => {
                let max = self.max_files;
                Err(StoreError::Full(format!("receiver disk quota exceeded: {max} files are stored")))
            }
            false => Ok(()),
        }
    }

    /// Makes room for one more partial file.
    fn bound_partials(&self, holds: &Holds, keep: &Path) -> Result<(), String> {
        let partials = self.partials().map_err(|error| for_sender(&error))?;
        if partials.len() < MAX_PARTIAL || partials.iter().any(|file| file.path == keep) {
            return Ok(());
        }
        // Newest first.
        let Some(oldest) = partials.iter().rev().find(|file| !holds.contains_key(&file.path)) else {
            return Err(format!("receiver busy: {MAX_PARTIAL} transfers are under way"));
        };
        self.disk.remove(&oldest.path).map(|_| ()).map_err(|error| for_sender(&error))
    }

    fn partials(&self) -> Result<Vec<ReceivedFile>, DiskError> {
        let dir = self.dir.join(PARTIAL);
        list_dir(&dir).map_err(|error| DiskError::new("read folder", &dir, error))
    }

    fn free_name(&self, base: &str) -> (String, PathBuf) {
        loop {
            let name = names::stored_name(base, &self.stamps.next());
            let path = self.dir.join(&name);
            if !path.exists() {
                return (name, path);
            }
        }
    }

    /// The room that is left for a file of a peer. Announced transfers that have stood still for long give theirs up when it is
    /// needed: they end, and continue from what is written when their sender tries again.
    fn available(&self, holds: &Holds, from: NodeId, size: u64, path: &Path) -> io::Result<u64> {
        let left = |used: u64| self.quota.saturating_sub(used);
        let mut available = left(self.used(holds, Some(path))?);
        if size > available {
            for (_, hold) in holds.iter().filter(|(other, _)| other.as_path() != path) {
                let mut hold = lock(hold);
                if hold.last_write.elapsed() >= self.take_over_after {
                    hold.lost = true;
                    hold.outstanding = 0;
                }
            }
            available = left(self.used(holds, Some(path))?);
        }
        let own = holds.iter().filter(|(other, hold)| other.as_path() != path && lock(hold).from == from);
        let reserved: u64 = own.map(|(_, hold)| lock(hold).outstanding).sum();
        Ok(available.min((self.quota - self.quota / OTHERS).saturating_sub(reserved)))
    }

    fn open(self: &Arc<Self>, from: NodeId, id: &TransferId, init: &Init) -> Result<Partial, String> {
        let failed = |error: DiskError| {
            tracing::warn!(%error, "file not received");
            for_sender(&error)
        };
        let partials = self.dir.join(PARTIAL);
        self.prepare().map_err(failed)?;
        let mut path = partials.join(hex(id));
        let mut holds = lock(&self.holds);
        let mut private = false;
        if let Some(hold) = holds.get(&path).cloned() {
            let mut hold = lock(&hold);
            if hold.last_write.elapsed() >= self.take_over_after {
                hold.lost = true;
                hold.outstanding = 0;
            } else {
                private = true;
                let number =
                    self.private.fetch_add(1, Ordering::Relaxed) ^ std::process::id().rotate_left(16);
                path = partials.join(format!("{}.{number:08x}", hex(id)));
            }
        }
        self.check_count().map_err(|error| error.for_sender())?;
        self.bound_partials(&holds, &path)?;
        let size = init.size;
        let available = self.available(&holds, from, size, &path);
        let available = available.map_err(|error| failed(DiskError::new("read folder", &self.dir, error)))?;
        if size > available {
            let quota = self.quota;
            return Err(format!(
                "receiver disk quota exceeded: need {size}, {available} of {quota} available"
            ));
        }
        let present = fs::metadata(&path).map_or(0, |data| data.len());
        let need = size.saturating_sub(if present > size { 0 } else { present });
        if let Some(free) = files::free_space(&partials)
            && need > free.saturating_sub(RESERVE)
        {
            return Err(format!(
                "receiver disk full: need {need} bytes, {free} free (keeping {RESERVE} in reserve)"
            ));
        }
        let mut file = self.disk.open(&path).map_err(failed)?;
        if file.len() > size {
            file.set_len(0).map_err(failed)?;
        }
        let outstanding = size.saturating_sub(file.len());
        let hold = Hold { lost: false, last_write: Instant::now(), outstanding, from };
        let hold = Arc::new(Mutex::new(hold));
        holds.insert(path.clone(), hold.clone());
        Ok(Partial { received: self.clone(), path, file, hold, private, keep: true })
    }
}

/// Gives out partial files; one per connection.
#[derive(Debug, Clone)]
pub struct Store {
    /// Where they are kept.
    pub received: Arc<Received>,
    /// Whose files they become.
    pub from: NodeId,
}

impl PartialStore for Store {
    type File = Partial;

    fn open(&mut self, id: &TransferId, init: &Init) -> Result<Partial, String> {
        self.received.open(self.from, id, init)
    }
}

/// The partial file of a live transfer.
#[derive(Debug)]
pub struct Partial {
    received: Arc<Received>,
    path: PathBuf,
    file: DiskFile,
    hold: Arc<Mutex<Hold>>,
    private: bool,
    /// The file is worth keeping when the transfer ends.
    keep: bool,
}

impl PartialFile for Partial {
    type Stored = StoredFile;

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn append(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let mut hold = lock(&self.hold);
        if hold.lost {
            return Err(WriteError::TakenOver);
        }
        if let Err(error) = self.file.append(data) {
            // What was written only takes the room that others need.
            self.keep = !error.is_full();
            tracing::warn!(%error, "file not received");
            return Err(WriteError::Failed(for_sender(&error)));
        }
        hold.outstanding = hold.outstanding.saturating_sub(data.len() as u64);
        hold.last_write = Instant::now();
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        self.file.read(each).map_err(|error| for_sender(&error))
    }

    fn corrupt(mut self) {
        if !lock(&self.hold).lost {
            let _ = self.file.set_len(0);
        }
    }

    fn finish(mut self, base: &str) -> Result<StoredFile, String> {
        let failed = |error: DiskError| {
            tracing::warn!(%error, "file not received");
            for_sender(&error)
        };
        self.file.sync().map_err(failed)?;
        let hold = lock(&self.hold);
        if hold.lost {
            return Err("a newer transfer of this file has taken it over".to_owned());
        }
        let (name, path) = self.received.free_name(base);
        self.received.disk.rename(&self.path, &path).map_err(failed)?;
        drop(hold);
        self.keep = true;
        self.private = false;
        Ok(StoredFile { name, path, size: self.file.len() })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut holds = lock(&self.received.holds);
        if holds.get(&self.path).is_some_and(|hold| Arc::ptr_eq(hold, &self.hold)) {
            holds.remove(&self.path);
            if self.private || !self.keep {
                let _ = fs::remove_file(&self.path);
            }
        }
    }
}

/// A file in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedFile {
    /// Name.
    pub name: String,
    /// Full path.
    pub path: PathBuf,
    /// Size so far.
    pub bytes: u64,
    /// Last change.
    pub modified: SystemTime,
}

/// What is in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Finished files, newest first.
    pub files: Vec<ReceivedFile>,
    /// Interrupted or running transfers, newest first.
    pub partial: Vec<ReceivedFile>,
}

fn list_dir(dir: &Path) -> io::Result<Vec<ReceivedFile>> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut found = Vec::new();
    // Elsewhere a name of that form may be a sender's.
    let in_partial = dir.ends_with(PARTIAL);
    for file in listing {
        let file = file?;
        let Ok(data) = file.metadata() else { continue };
        if data.is_file() && !(in_partial && is_temporary(&file.file_name())) {
            let name = file.file_name().to_string_lossy().into_owned();
            let modified = data.modified().unwrap_or(UNIX_EPOCH);
            found.push(ReceivedFile { name, path: file.path(), bytes: data.len(), modified });
        }
    }
    found.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| b.name.cmp(&a.name)));
    Ok(found)
}

/// Files changed at or after `since`.
///
/// # Errors
/// The directory cannot be read. One that does not exist is empty.
pub fn list(dir: &Path, since: Option<SystemTime>) -> io::Result<Listing> {
    let young = |file: &ReceivedFile| since.is_none_or(|since| file.modified >= since);
    let mut files = list_dir(dir)?;
    let mut partial = list_dir(&dir.join(PARTIAL))?;
    files.retain(young);
    partial.retain(young);
    Ok(Listing { files, partial })
}

/// What [`clear`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cleared {
    /// Deleted files.
    pub cleared: usize,
    /// Deleted partial files.
    pub cleared_partial: usize,
    /// Files still there, partial ones included.
    pub remaining: usize,
}

/// Deletes files changed before `before` (all, if `None`), partial ones too. A transfer that runs fails and starts anew.
///
/// # Errors
/// The directory cannot be read or a file not deleted.
pub fn clear(dir: &Path, before: Option<SystemTime>) -> io::Result<Cleared> {
    let mut done = Cleared::default();
    let Listing { files, partial } = list(dir, None)?;
    for (list, count) in [(files, &mut done.cleared), (partial, &mut done.cleared_partial)] {
        for file in list {
            if before.is_some_and(|before| file.modified >= before) {
                done.remaining += 1;
                continue;
            }
            match fs::remove_file(&file.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => *count += 1,
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransferId = [7; 16];

    fn init(size: u64) -> Init {
        Init { size, sha256: [0; 32], chunk: 1, name: "f".into() }
    }

    const PEER: NodeId = 7;

    fn received(dir: &Path, quota: u64) -> Arc<Received> {
        Arc::new(Received::new(Disk::new(), dir.to_owned(), Arc::default()).limits(quota, TAKE_OVER_AFTER))
    }

    #[test]
    fn live_transfers_count_in_full_against_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        let mut first = received.open(PEER, &ID, &init(600)).unwrap();
        first.append(&[0; 100]).unwrap();
        let text = "receiver disk quota exceeded: need 500, 400 of 1000 available";
        assert_eq!(received.open(PEER + 1, &[8; 16], &init(500)).unwrap_err(), text);
        let error = received.store("n", &[0; 500]).unwrap_err();
        assert!(matches!(error, StoreError::Full(_)));
        assert_eq!(error.for_sender(), "received-files quota exceeded: 600 + 500 > 1000");
        drop(first);
        // Only what is written counts now, and a resumption's own part not twice.
        assert!(received.open(PEER, &[8; 16], &init(850)).is_ok());
        assert_eq!(received.open(PEER, &ID, &init(875)).unwrap().len(), 100);
    }

    #[test]
    fn one_peer_cannot_reserve_the_room_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        let all = received.open(PEER, &ID, &init(1000)).unwrap_err();
        assert_eq!(all, "receiver disk quota exceeded: need 1000, 875 of 1000 available");
        let _most = received.open(PEER, &ID, &init(800)).unwrap();
        let more = received.open(PEER, &[8; 16], &init(100)).unwrap_err();
        assert_eq!(more, "receiver disk quota exceeded: need 100, 75 of 1000 available");
        assert!(received.open(PEER + 1, &[8; 16], &init(100)).is_ok(), "another has room");
    }

    #[test]
    fn an_announced_transfer_that_stands_still_gives_up_its_room_when_it_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let received = Received::new(Disk::new(), dir.path().to_owned(), Arc::default());
        let received = Arc::new(received.limits(1000, Duration::ZERO));
        let mut stalled = received.open(PEER, &ID, &init(800)).unwrap();
        stalled.append(&[0; 100]).unwrap();
        drop(received.open(PEER + 1, &[9; 16], &init(200)).unwrap());
        stalled.append(&[0; 100]).expect("the room was enough for both");
        let mut other = received.open(PEER + 1, &[8; 16], &init(700)).unwrap();
        assert_eq!(stalled.append(&[0; 100]), Err(WriteError::TakenOver));
        drop(stalled);
        other.append(&[1; 700]).unwrap();
        assert_eq!(
            received.open(PEER, &ID, &init(300)).unwrap().len(),
            200,
            "what was written waits for the next try"
        );
    }

    #[test]
    fn empty_files_are_bounded_in_number() {
        let dir = tempfile::tempdir().unwrap();
        let received = Received::new(Disk::new(), dir.path().to_owned(), Arc::default());
        let received = Arc::new(Received { max_files: 3, ..received });
        for _ in 0..3 {
            received.store("empty", b"").unwrap();
        }
        let text = "receiver disk quota exceeded: 3 files are stored";
        assert_eq!(received.store("empty", b"").unwrap_err().for_sender(), text);
        assert_eq!(received.open(PEER, &ID, &init(0)).unwrap_err(), text);
        clear(dir.path(), None).unwrap();
        assert!(received.store("empty", b"").is_ok());
    }

    #[test]
    fn abandoned_partial_files_are_bounded_in_number_and_the_oldest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        let id = |n: usize| -> TransferId { (n as u128).to_be_bytes() };
        let live = received.open(PEER, &id(0), &init(1)).unwrap();
        for n in 1..MAX_PARTIAL {
            drop(received.open(PEER, &id(n), &init(0)).unwrap());
            let file = fs::File::open(dir.path().join(PARTIAL).join(hex(&id(n)))).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(n as u64)).unwrap();
        }
        drop(received.open(PEER, &id(MAX_PARTIAL), &init(0)).unwrap());
        let there = |n: usize| dir.path().join(PARTIAL).join(hex(&id(n))).exists();
        assert!(there(0), "a live transfer's stays");
        assert!(!there(1), "the oldest");
        assert!(there(2) && there(MAX_PARTIAL));
        assert_eq!(list(dir.path(), None).unwrap().partial.len(), MAX_PARTIAL);
        drop(live);
    }

    #[test]
    fn a_partial_file_larger_than_announced_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        received.open(PEER, &ID, &init(100)).unwrap().append(&[0; 100]).unwrap();
        assert_eq!(received.open(PEER, &ID, &init(50)).unwrap().len(), 0);
    }

    #[test]
    fn a_corrupt_partial_file_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        let mut partial = received.open(PEER, &ID, &init(100)).unwrap();
        partial.append(&[0; 100]).unwrap();
        partial.corrupt();
        assert_eq!(received.open(PEER, &ID, &init(100)).unwrap().len(), 0);
    }

    #[test]
    fn what_was_written_is_read_back_and_appending_goes_on_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), 1000);
        let mut partial = received.open(PEER, &ID, &init(6)).unwrap();
        partial.append(b"abc").unwrap();
        let mut seen = Vec::new();
        partial.read(&mut |bytes| seen.extend_from_slice(bytes)).unwrap();
        partial.append(b"def").unwrap();
        let stored = partial.finish("f.txt").unwrap();
        assert_eq!((seen, fs::read(stored.path).unwrap()), (b"abc".to_vec(), b"abcdef".to_vec()));
    }

    #[test]
    fn more_than_the_disk_holds_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let received = received(dir.path(), u64::MAX);
        let error = received.open(PEER, &ID, &init(1 << 60)).unwrap_err();
        assert!(error.starts_with("receiver disk full: need 1152921504606846976 bytes, "), "{error}");
        assert!(error.ends_with(" free (keeping 16777216 in reserve)"), "{error}");
    }

    #[test]
    fn files_are_listed_and_cleared_with_the_partial_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        assert_eq!(list(&path, None).unwrap(), Listing::default(), "no directory yet");
        let received = received(&path, 1000);
        received.store("a.txt", b"1").unwrap();
        received.store("b.txt", b"22").unwrap();
        received.open(PEER, &ID, &init(9)).unwrap().append(b"333").unwrap();
        let listing = list(&path, None).unwrap();
        assert_eq!(listing.files.iter().map(|f| f.bytes).collect::<Vec<_>>(), [2, 1], "newest first");
        assert_eq!(
            listing.partial.iter().map(|f| (f.name.clone(), f.bytes)).collect::<Vec<_>>(),
            [(hex(&ID), 3)]
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(list(&path, Some(SystemTime::now() + hour)).unwrap(), Listing::default());
        let none = clear(&path, Some(SystemTime::now() - hour)).unwrap();
        assert_eq!(none, Cleared { cleared: 0, cleared_partial: 0, remaining: 3 });
        assert_eq!(clear(&path, None).unwrap(), Cleared { cleared: 2, cleared_partial: 1, remaining: 0 });
    }
}
