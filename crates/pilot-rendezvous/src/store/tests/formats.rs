//! Files of every format so far open, with everything in them; files of others stay as they are.

use super::node;
use crate::registry::model::{InboxRequest, InboxResponse, Invite, Member, Role};
use crate::store::sqlite::{MIGRATIONS, Sqlite};
use crate::store::{Snapshot, Store as _, Write};
use std::path::{Path, PathBuf};

/// A network as format 1 stores it.
pub const NETWORK: &str = r#"{"id":3,"name":"net","join_rule":"open","token":"","admin_token":"t","enterprise":true,
    "created":1,"max_members":9,"allowed_ports":[7],"description":"d","rules":null,"expr_policy":{"version":1,"rules":[]}}"#;

/// One of everything, as format 1 can hold it.
fn one_of_each() -> Vec<Write> {
    vec![
        Write::Meta { name: "registry_id", value: "0123456789abcdef".into() },
        Write::Meta { name: "last_network", value: "3".into() },
        node(1),
        node(2),
        node(70_000),
        Write::Trust { a: 1, b: 2, present: true },
        Write::Report { node: 1, peer: 70_000, present: true },
        Write::Request(InboxRequest { to: 1, from: 2, seq: 8, justification: "please, ü".into(), at: 9 }),
        Write::Response(InboxResponse { to: 2, from: 1, seq: 9, accept: true, at: 10 }),
        Write::Pending { to: 1, from: 2, at: Some(11) },
        Write::Network(Box::new(serde_json::from_str(NETWORK).unwrap())),
        Write::Member {
            network: 3,
            node: 2,
            member: Some(Member { role: Some(Role::Owner), tags: vec!["a".into()] }),
        },
        Write::Member { network: 3, node: 1, member: Some(Member { role: None, tags: vec![] }) },
        Write::Invite { to: 1, network: 3, invite: Some(Invite { network: 3, inviter: 2, at: 12 }) },
    ]
}

fn stored(writes: &[Write]) -> Snapshot {
    let mut store = Sqlite::memory().unwrap();
    store.commit(writes).unwrap();
    store.load().unwrap()
}

#[test]
fn a_file_of_each_format_so_far_opens_with_everything_in_it() {
    for version in 1..=MIGRATIONS.len() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/store-v{version}.db"));
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("registry.db");
        if !golden.exists() {
            let new = std::env::temp_dir().join(format!("store-v{version}.db"));
            let _ = std::fs::remove_file(&new);
            Sqlite::open(&new).unwrap().commit(&one_of_each()).unwrap();
            panic!(
                "format {version} has no golden file; look at {}, then put it to {}",
                new.display(),
                golden.display()
            );
        }
        std::fs::copy(&golden, &copy).unwrap();
        assert_eq!(Sqlite::open(&copy).unwrap().load().unwrap(), stored(&one_of_each()), "format {version}");
        let db = rusqlite::Connection::open(&copy).unwrap();
        let now: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(now as usize, MIGRATIONS.len(), "format {version} is brought up to date");
    }
}

fn bytes(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn refusal(path: &Path) -> String {
    let before = bytes(path);
    let refusal = Sqlite::open(path).err().expect("refused").0;
    assert_eq!(bytes(path), before, "left as it was: {refusal}");
    refusal
}

#[test]
fn a_store_of_a_newer_program_is_refused_and_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    drop(Sqlite::open(&path).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "journal_mode", "DELETE").unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let expected = "the store has schema version 99, this program knows up to 1; use a newer program";
    assert_eq!(refusal(&path), expected);
    // With a log that was not written back, as a crash leaves it.
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "journal_mode", "WAL").unwrap();
    newer.execute_batch("CREATE TABLE unheard_of (x)").unwrap();
    let crashed = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("registry.db{suffix}");
        std::fs::copy(dir.path().join(&name), crashed.path().join(&name)).unwrap();
    }
    assert_eq!(refusal(&crashed.path().join("registry.db")), expected);
}

#[test]
fn a_database_of_another_program_is_refused_and_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("photos.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE photos (x)").unwrap();
    assert_eq!(refusal(&path), "the file is a database of another program; name another file");
}
