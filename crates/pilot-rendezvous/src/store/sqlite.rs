//! The SQLite store: write-ahead log, a sync per commit, schema migrations.

use super::{Snapshot, Store, StoreError, Write};
use crate::registry::model::{
    InboxRequest, InboxResponse, Invite, Member, NetworkRecord, NodeRecord, Role, Standing,
};
use pilot_disk::Disk;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row, params};
use std::path::Path;
use std::time::Duration;

/// One step per schema version, applied in order; `PRAGMA user_version` counts the applied ones.
pub(super) const MIGRATIONS: &[&str] = &[
    // Version 1.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE nodes (
         id INTEGER PRIMARY KEY, public_key BLOB NOT NULL UNIQUE, previous_key BLOB,
         standing INTEGER NOT NULL, reaped_at INTEGER NOT NULL, owner TEXT NOT NULL, endpoint TEXT NOT NULL,
         lan_addrs TEXT NOT NULL, public INTEGER NOT NULL, hidden INTEGER NOT NULL, hostname TEXT NOT NULL,
         tags TEXT NOT NULL, version TEXT NOT NULL, relay_only INTEGER NOT NULL, sig_verified INTEGER NOT NULL,
         created_at INTEGER NOT NULL, rotated_at INTEGER NOT NULL, rotate_count INTEGER NOT NULL,
         expires_at INTEGER NOT NULL, last_seen INTEGER NOT NULL, instance TEXT, instance_since INTEGER NOT NULL,
         recovery_key BLOB);
     CREATE TABLE trust (a INTEGER NOT NULL, b INTEGER NOT NULL, PRIMARY KEY (a, b)) WITHOUT ROWID;
     CREATE TABLE reports (node INTEGER NOT NULL, peer INTEGER NOT NULL, PRIMARY KEY (node, peer)) WITHOUT ROWID;
     CREATE TABLE requests (
         recipient INTEGER NOT NULL, sender INTEGER NOT NULL, seq INTEGER NOT NULL, justification TEXT NOT NULL,
         at INTEGER NOT NULL, PRIMARY KEY (recipient, sender)) WITHOUT ROWID;
     CREATE TABLE responses (
         recipient INTEGER NOT NULL, sender INTEGER NOT NULL, seq INTEGER NOT NULL, accept INTEGER NOT NULL,
         at INTEGER NOT NULL, PRIMARY KEY (recipient, sender)) WITHOUT ROWID;
     CREATE TABLE pending (
         recipient INTEGER NOT NULL, sender INTEGER NOT NULL, at INTEGER NOT NULL,
         PRIMARY KEY (recipient, sender)) WITHOUT ROWID;
     CREATE TABLE networks (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
     CREATE TABLE members (
         network INTEGER NOT NULL, node INTEGER NOT NULL, role TEXT, tags TEXT NOT NULL,
         PRIMARY KEY (network, node)) WITHOUT ROWID;
     CREATE TABLE invites (
         recipient INTEGER NOT NULL, network INTEGER NOT NULL, inviter INTEGER NOT NULL, at INTEGER NOT NULL,
         PRIMARY KEY (recipient, network)) WITHOUT ROWID;",
];

/// A store that a process just lets go of is waited for this long.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// The file itself, or a database in memory.
pub(crate) struct Sqlite {
    db: Connection,
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, ReadOnly,
            SystemIoFailure,
        };
        let hint = match e.sqlite_error_code() {
            Some(DiskFull) => "the disk is full; free some space",
            Some(DatabaseBusy | DatabaseLocked) => {
                "another process uses this store; stop it or name another file"
            }
            Some(NotADatabase) => "the file is no registry store; name another file",
            Some(DatabaseCorrupt) => "the file is damaged; restore a copy",
            Some(ReadOnly) => {
                "the disk or the file is read-only; make it writable for this user or name another file"
            }
            Some(SystemIoFailure) => "the disk refuses; check its free space and the system's log",
            Some(CannotOpen) => "does its folder exist and may this user write there?",
            _ => return StoreError(e.to_string()),
        };
        StoreError(format!("{e} ({hint})"))
    }
}

fn bad(what: &str) -> StoreError {
    StoreError(format!("the store holds {what}; restore a copy"))
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError(e.to_string()))
}

fn list(text: &str) -> Result<Vec<String>, StoreError> {
    if text == "[]" {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|_| bad("a malformed list"))
}

impl Sqlite {
    /// Opens or creates the file (private: it holds who trusts whom) and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Sqlite, StoreError> {
        Sqlite::open_on(&Disk::new(), path, None)
    }

    /// The same on a disk that may be watched; `vfs` is SQLite's way to it.
    pub(super) fn open_on(disk: &Disk, path: &Path, vfs: Option<&str>) -> Result<Sqlite, StoreError> {
        // SQLite makes the files beside it with the same mode, and syncs the directory for those, but not for this one. A
        // path it cannot have is its own error to tell.
        let _ = disk.touch(path);
        Sqlite::prepare(match vfs {
            None => Connection::open(path)?,
            Some(vfs) => Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs)?,
        })
    }

    /// A store that lives as long as the process.
    pub fn memory() -> Result<Sqlite, StoreError> {
        Sqlite::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut db: Connection) -> Result<Sqlite, StoreError> {
        db.busy_timeout(LOCK_WAIT)?;
        // Exclusive: two registries on one file would hand out the same ids.
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        // Before anything is written: a file we do not know is left as it is, its log included.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let found = version(&db)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // A commit returns after the log is on the disk.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "fullfsync", true)?;
        for (at, step) in MIGRATIONS.iter().enumerate().skip(found) {
            let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
            tx.execute_batch(step)?;
            tx.pragma_update(None, "user_version", at as i64 + 1)?;
            tx.commit()?;
        }
        // Take the lock now: a second process must fail at its start, not at its first write.
        db.execute_batch("BEGIN EXCLUSIVE; COMMIT;")?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(Sqlite { db })
    }

    /// Limits the file to this many pages: a full disk for tests.
    #[cfg(test)]
    pub fn limit_pages(&self, pages: u32) {
        self.db.pragma_update(None, "max_page_count", pages).unwrap();
    }

    /// Writes the log back whenever it has this many pages.
    #[cfg(test)]
    pub fn checkpoint_every(&self, pages: u32) {
        self.db.pragma_update(None, "wal_autocheckpoint", pages).unwrap();
    }

    /// SQLite's own check of the whole file; "ok" if nothing is wrong.
    #[cfg(test)]
    pub fn integrity(&self) -> String {
        self.db.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap()
    }

    fn rows<T>(
        &self,
        sql: &str,
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.db.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push(read(row)?);
        }
        Ok(out)
    }
}

/// How many migrations the file has had; refuses those of newer programs and of other ones.
fn version(db: &Connection) -> Result<usize, StoreError> {
    let found = db.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0))?;
    let known = MIGRATIONS.len();
    match usize::try_from(found) {
        Ok(0) if db.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_master)", [], |r| r.get(0))? => {
            Err(StoreError("the file is a database of another program; name another file".into()))
        }
        Ok(found) if found <= known => Ok(found),
        _ => Err(StoreError(format!(
            "the store has schema version {found}, this program knows up to {known}; use a newer program"
        ))),
    }
}

/// What [`node`] reads, in its order.
const NODES: &str = "SELECT id, public_key, previous_key, standing, reaped_at, owner, endpoint, lan_addrs, public, hidden,
    hostname, tags, version, relay_only, sig_verified, created_at, rotated_at, rotate_count, expires_at, last_seen, instance,
    instance_since, recovery_key FROM nodes ORDER BY id";

/// By numbers: to find columns by their names takes longer than all the rest of a start.
fn node(r: &Row<'_>) -> Result<NodeRecord, StoreError> {
    let standing = match r.get::<_, i64>(3)? {
        0 => Standing::Live,
        1 => Standing::Reaped(r.get(4)?),
        2 => Standing::Deregistered,
        _ => return Err(bad("an unknown standing")),
    };
    let bytes = |column: usize| r.get::<_, Option<[u8; 32]>>(column).map_err(|_| bad("a malformed key"));
    let texts = |column: usize| list(r.get_ref(column)?.as_str().map_err(|_| bad("a malformed list"))?);
    let since: u64 = r.get(21)?;
    Ok(NodeRecord {
        id: r.get(0)?,
        key: bytes(1)?.ok_or_else(|| bad("a node without a key"))?,
        previous_key: bytes(2)?,
        standing,
        owner: r.get(5)?,
        endpoint: r.get(6)?,
        lan_addrs: texts(7)?,
        public: r.get(8)?,
        hidden: r.get(9)?,
        hostname: r.get(10)?,
        tags: texts(11)?,
        version: r.get(12)?,
        relay_only: r.get(13)?,
        sig_verified: r.get(14)?,
        created_at: r.get(15)?,
        rotated_at: r.get(16)?,
        rotate_count: r.get(17)?,
        expires_at: r.get(18)?,
        last_seen: r.get(19)?,
        instance: r.get::<_, Option<String>>(20)?.map(|i| (i, since)),
        recovery_key: bytes(22)?,
    })
}

fn member(role: Option<String>, tags: &str) -> Result<Member, StoreError> {
    let role = match role.as_deref() {
        None => None,
        Some("owner") => Some(Role::Owner),
        Some("admin") => Some(Role::Admin),
        Some("member") => Some(Role::Member),
        Some(_) => return Err(bad("an unknown role")),
    };
    Ok(Member { role, tags: list(tags)? })
}

fn apply(db: &Connection, write: &Write) -> Result<(), StoreError> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> Result<(), StoreError> {
        db.prepare_cached(sql)?.execute(values)?;
        Ok(())
    };
    match write {
        Write::Meta { name, value } => {
            run("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])
        }
        Write::Node(n) => {
            let (standing, reaped_at) = match n.standing {
                Standing::Live => (0, 0),
                Standing::Reaped(at) => (1, at),
                Standing::Deregistered => (2, 0),
            };
            run(
                "INSERT INTO nodes (id, public_key, previous_key, standing, reaped_at, owner, endpoint,
                     lan_addrs, public, hidden, hostname, tags, version, relay_only, sig_verified, created_at,
                     rotated_at, rotate_count, expires_at, last_seen, instance, instance_since, recovery_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
                     ?21, ?22, ?23)
                 ON CONFLICT (id) DO UPDATE SET public_key = ?2, previous_key = ?3, standing = ?4, reaped_at = ?5,
                     owner = ?6, endpoint = ?7, lan_addrs = ?8, public = ?9, hidden = ?10, hostname = ?11,
                     tags = ?12, version = ?13, relay_only = ?14, sig_verified = ?15, created_at = ?16,
                     rotated_at = ?17, rotate_count = ?18, expires_at = ?19, last_seen = ?20, instance = ?21,
                     instance_since = ?22, recovery_key = ?23",
                params![
                    n.id,
                    &n.key[..],
                    n.previous_key.as_ref().map(|k| &k[..]),
                    standing,
                    reaped_at,
                    n.owner,
                    n.endpoint,
                    json(&n.lan_addrs)?,
                    n.public,
                    n.hidden,
                    n.hostname,
                    json(&n.tags)?,
                    n.version,
                    n.relay_only,
                    n.sig_verified,
                    n.created_at,
                    n.rotated_at,
                    n.rotate_count,
                    n.expires_at,
                    n.last_seen,
                    n.instance.as_ref().map(|(i, _)| i),
                    n.instance.as_ref().map_or(0, |(_, since)| *since),
                    n.recovery_key.as_ref().map(|k| &k[..]),
                ],
            )
        }
        Write::Trust { a, b, present: true } => {
            run("INSERT OR REPLACE INTO trust (a, b) VALUES (?1, ?2)", params![a, b])
        }
        Write::Trust { a, b, present: false } => {
            run("DELETE FROM trust WHERE a = ?1 AND b = ?2", params![a, b])
        }
        Write::Report { node, peer, present: true } => {
            run("INSERT OR REPLACE INTO reports (node, peer) VALUES (?1, ?2)", params![node, peer])
        }
        Write::Report { node, peer, present: false } => {
            run("DELETE FROM reports WHERE node = ?1 AND peer = ?2", params![node, peer])
        }
        Write::Request(q) => run(
            "INSERT OR REPLACE INTO requests (recipient, sender, seq, justification, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![q.to, q.from, q.seq, q.justification, q.at],
        ),
        Write::Response(q) => run(
            "INSERT OR REPLACE INTO responses (recipient, sender, seq, accept, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![q.to, q.from, q.seq, q.accept, q.at],
        ),
        Write::RequestGone { to, from } => {
            run("DELETE FROM requests WHERE recipient = ?1 AND sender = ?2", params![to, from])
        }
        Write::ResponseGone { to, from } => {
            run("DELETE FROM responses WHERE recipient = ?1 AND sender = ?2", params![to, from])
        }
        Write::Delivered { node, up_to } => {
            run("DELETE FROM requests WHERE recipient = ?1 AND seq <= ?2", params![node, up_to])?;
            run("DELETE FROM responses WHERE recipient = ?1 AND seq <= ?2", params![node, up_to])
        }
        Write::Pending { to, from, at: Some(at) } => run(
            "INSERT OR REPLACE INTO pending (recipient, sender, at) VALUES (?1, ?2, ?3)",
            params![to, from, at],
        ),
        Write::Pending { to, from, at: None } => {
            run("DELETE FROM pending WHERE recipient = ?1 AND sender = ?2", params![to, from])
        }
        Write::Network(n) => {
            run("INSERT OR REPLACE INTO networks (id, record) VALUES (?1, ?2)", params![n.id, json(n)?])
        }
        Write::NetworkGone(id) => {
            run("DELETE FROM networks WHERE id = ?1", params![id])?;
            run("DELETE FROM members WHERE network = ?1", params![id])?;
            run("DELETE FROM invites WHERE network = ?1", params![id])
        }
        Write::Member { network, node, member: Some(m) } => run(
            "INSERT OR REPLACE INTO members (network, node, role, tags) VALUES (?1, ?2, ?3, ?4)",
            params![network, node, m.role.map(Role::name), json(&m.tags)?],
        ),
        Write::Member { network, node, member: None } => {
            run("DELETE FROM members WHERE network = ?1 AND node = ?2", params![network, node])
        }
        Write::Invite { to, network, invite: Some(i) } => run(
            "INSERT OR REPLACE INTO invites (recipient, network, inviter, at) VALUES (?1, ?2, ?3, ?4)",
            params![to, network, i.inviter, i.at],
        ),
        Write::Invite { to, network, invite: None } => {
            run("DELETE FROM invites WHERE recipient = ?1 AND network = ?2", params![to, network])
        }
    }
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Snapshot, StoreError> {
        Ok(Snapshot {
            meta: self.rows("SELECT name, value FROM meta", |r| Ok((r.get(0)?, r.get(1)?)))?,
            nodes: self.rows(NODES, node)?,
            trust: self.rows("SELECT a, b FROM trust", |r| Ok((r.get(0)?, r.get(1)?)))?,
            reports: self.rows("SELECT node, peer FROM reports", |r| Ok((r.get(0)?, r.get(1)?)))?,
            requests: self.rows("SELECT recipient, sender, seq, justification, at FROM requests", |r| {
                Ok(InboxRequest {
                    to: r.get(0)?,
                    from: r.get(1)?,
                    seq: r.get(2)?,
                    justification: r.get(3)?,
                    at: r.get(4)?,
                })
            })?,
            responses: self.rows("SELECT recipient, sender, seq, accept, at FROM responses", |r| {
                Ok(InboxResponse {
                    to: r.get(0)?,
                    from: r.get(1)?,
                    seq: r.get(2)?,
                    accept: r.get(3)?,
                    at: r.get(4)?,
                })
            })?,
            pending: self.rows("SELECT recipient, sender, at FROM pending", |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?))
            })?,
            networks: self.rows("SELECT record FROM networks ORDER BY id", |r| {
                serde_json::from_str::<NetworkRecord>(&r.get::<_, String>(0)?)
                    .map_err(|_| bad("a malformed network"))
            })?,
            members: self.rows("SELECT network, node, role, tags FROM members", |r| {
                Ok((r.get(0)?, r.get(1)?, member(r.get(2)?, &r.get::<_, String>(3)?)?))
            })?,
            invites: self.rows("SELECT recipient, network, inviter, at FROM invites", |r| {
                Ok((r.get(0)?, Invite { network: r.get(1)?, inviter: r.get(2)?, at: r.get(3)? }))
            })?,
        })
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let tx = self.db.transaction()?;
        for write in writes {
            apply(&tx, write)?;
        }
        Ok(tx.commit()?)
    }
}
