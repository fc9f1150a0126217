//! What was acknowledged is there afterwards.

mod formats;
mod powercut;
mod start;

use super::sqlite::Sqlite;
use super::{Store, StoreError, Write, writer};
use crate::registry::model::{NodeRecord, Standing};
use std::path::Path;
use std::sync::mpsc;

fn node(id: u32) -> Write {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&id.to_be_bytes());
    Write::Node(Box::new(NodeRecord {
        id,
        key,
        previous_key: Some([9; 32]),
        standing: Standing::Reaped(7),
        owner: "o@example.com".into(),
        endpoint: "203.0.113.1:4000".into(),
        lan_addrs: vec!["10.0.0.1:4000".into()],
        public: true,
        hidden: true,
        hostname: format!("node-{id}"),
        tags: vec!["a".into(), "b".into()],
        version: "1".into(),
        relay_only: true,
        sig_verified: true,
        created_at: 1,
        rotated_at: 2,
        rotate_count: 3,
        expires_at: 4,
        last_seen: 5,
        instance: Some(("0123456789abcdef".into(), 6)),
        recovery_key: Some([8; 32]),
    }))
}

fn ids(path: &Path) -> Vec<u32> {
    let mut store = Sqlite::open(path).unwrap();
    store.load().unwrap().nodes.iter().map(|n| n.id).collect()
}

/// The store's files as a crash would leave them: copied while the store is open.
fn crash_copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = |p: &Path| format!("{}{suffix}", p.display());
        if Path::new(&name(from)).exists() {
            std::fs::copy(name(from), name(to)).unwrap();
        }
    }
}

#[test]
fn a_record_reads_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let Write::Node(expected) = node(1) else { unreachable!() };
    {
        let mut store = Sqlite::open(&path).unwrap();
        store.commit(&[node(1), node(2)]).unwrap();
    }
    assert_eq!(Sqlite::open(&path).unwrap().load().unwrap().nodes[0], *expected);
}

#[tokio::test]
async fn everything_acknowledged_survives_a_crash_right_after_the_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (handle, thread) = writer::start(Box::new(Sqlite::open(&path).unwrap())).unwrap();
    for id in 1..=50 {
        handle.submit(vec![node(id)]).wait().await.unwrap();
        if id % 10 == 0 {
            let copy = dir.path().join(format!("crash-{id}.db"));
            crash_copy(&path, &copy);
            assert_eq!(ids(&copy), (1..=id).collect::<Vec<_>>());
        }
    }
    drop(handle);
    thread.join().unwrap();
    assert_eq!(ids(&path).len(), 50);
}

#[tokio::test]
async fn a_log_torn_at_any_byte_loses_only_what_came_after_the_tear() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (handle, thread) = writer::start(Box::new(Sqlite::open(&path).unwrap())).unwrap();
    let log = format!("{}-wal", path.display());
    let mut acknowledged = Vec::new();
    for id in 1..=8 {
        handle.submit(vec![node(id)]).wait().await.unwrap();
        acknowledged.push((std::fs::metadata(&log).unwrap().len(), id));
    }
    let whole = acknowledged.last().unwrap().0;
    let mut cut = acknowledged[0].0;
    while cut <= whole {
        let copy = dir.path().join(format!("torn-{cut}.db"));
        crash_copy(&path, &copy);
        let torn = std::fs::OpenOptions::new().write(true).open(format!("{}-wal", copy.display())).unwrap();
        torn.set_len(cut).unwrap();
        let expected =
            acknowledged.iter().filter(|(length, _)| *length <= cut).map(|(_, id)| *id).max().unwrap();
        assert_eq!(ids(&copy), (1..=expected).collect::<Vec<_>>(), "log cut at {cut}");
        cut += 1009;
    }
    drop(handle);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_full_disk_is_reported_and_what_failed_is_stored_once_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let store = Sqlite::open(&path).unwrap();
    store.limit_pages(40);
    let (full, freed) = (mpsc::channel(), mpsc::channel());
    /// The store, and a way to free space while the writer owns it.
    struct Disk(Sqlite, mpsc::Receiver<()>, mpsc::Sender<()>);
    impl Store for Disk {
        fn load(&mut self) -> Result<super::Snapshot, StoreError> {
            self.0.load()
        }
        fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
            if self.1.try_recv().is_ok() {
                self.0.limit_pages(1_000_000);
            }
            let outcome = self.0.commit(writes);
            if outcome.is_ok() {
                let _ = self.2.send(());
            }
            outcome
        }
    }
    let (handle, thread) = writer::start(Box::new(Disk(store, full.1, freed.0))).unwrap();
    let mut stored = 0;
    let error = loop {
        match handle.submit(vec![node(stored + 1)]).wait().await {
            Ok(()) => stored += 1,
            Err(e) => break e,
        }
    };
    assert!(error.0.contains("disk is full; free some space"), "{error}");
    assert!(stored > 0);
    assert_eq!(handle.failed(), Some(error));
    let copy = dir.path().join("full.db");
    crash_copy(&path, &copy);
    assert_eq!(ids(&copy), (1..=stored).collect::<Vec<_>>(), "what was acknowledged before is there");
    for _ in 0..stored {
        freed.1.recv().unwrap();
    }
    full.0.send(()).unwrap();
    // The writer tries again by itself.
    freed.1.recv().unwrap();
    handle.submit(vec![node(1000)]).wait().await.unwrap();
    assert_eq!(handle.failed(), None);
    drop(handle);
    thread.join().unwrap();
    let mut expected: Vec<u32> = (1..=stored + 1).collect();
    expected.push(1000);
    assert_eq!(ids(&path), expected, "the write that failed came in, in its place");
}

#[tokio::test]
async fn many_requests_share_one_commit() {
    struct Gate(Sqlite, mpsc::Receiver<()>, mpsc::Sender<usize>);
    impl Store for Gate {
        fn load(&mut self) -> Result<super::Snapshot, StoreError> {
            self.0.load()
        }
        fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
            self.1.recv().unwrap();
            self.2.send(writes.len()).unwrap();
            self.0.commit(writes)
        }
    }
    let (open, gate) = mpsc::channel();
    let (sizes, seen) = mpsc::channel();
    let (handle, _thread) = writer::start(Box::new(Gate(Sqlite::memory().unwrap(), gate, sizes))).unwrap();
    let first = handle.submit(vec![node(1)]);
    open.send(()).unwrap();
    first.wait().await.unwrap();
    assert_eq!(seen.recv().unwrap(), 1);
    let under_way = handle.submit(vec![node(0)]);
    let mut repeated = Box::pin(handle.submit(Vec::new()).wait());
    let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut repeated).await;
    assert!(early.is_err(), "a repeated request is answered when the first is durable");
    open.send(()).unwrap();
    under_way.wait().await.unwrap();
    repeated.await.unwrap();
    assert_eq!(seen.recv().unwrap(), 1);
    let commits: Vec<_> = (2..=100).map(|id| handle.submit(vec![node(id)])).collect();
    open.send(()).unwrap();
    open.send(()).unwrap();
    for commit in commits {
        commit.wait().await.unwrap();
    }
    let rest: Vec<usize> = seen.try_iter().collect();
    assert_eq!(rest.iter().sum::<usize>(), 99);
    assert!(rest.len() <= 2, "{rest:?}");
    assert_eq!(handle.commits() as usize, 2 + rest.len());
}

#[test]
fn strange_files_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Sqlite::open(path).err().unwrap().0;
    let text = dir.path().join("text");
    std::fs::write(&text, "this is a text and not a database at all, really").unwrap();
    assert!(open(&text).contains("no registry store"), "{}", open(&text));
    assert!(open(&dir.path().join("missing/registry.db")).contains("does its folder exist"));
    let newer = dir.path().join("newer.db");
    drop(Sqlite::open(&newer).unwrap());
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(open(&newer).contains("schema version 99"));
    let used = dir.path().join("used.db");
    let _held = Sqlite::open(&used).unwrap();
    assert!(open(&used).contains("another process uses this store"), "{}", open(&used));
}

#[test]
fn a_new_store_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rendezvous.db");
    let mut store = Sqlite::open(&path).unwrap();
    store.commit(&[node(1)]).unwrap();
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(files.len() > 1, "the log is a file beside it: {files:?}");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}
