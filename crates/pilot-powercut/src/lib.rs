//! SQLite on a watched disk (development only). [`register`] makes a VFS that does what SQLite's own one for Unix does, and
//! shows every step to a [`Watch`]: a `pilot_disk::simulate::Recorder` can then tell what a power cut would leave.
//!
//! Differences from SQLite's own: syncs are only shown, not made, so that tests are fast; there are no locks, so a file
//! must have one connection; and no shared memory, so a write-ahead log needs `locking_mode=EXCLUSIVE`, which the registry's
//! store has. As with SQLite's own, the directory of a new log or journal is synced with its first sync, and that of a new
//! database is not.
//!
//! Unsafe code: the callbacks of SQLite's C interface. It is not part of any product.
#![allow(unsafe_code)]

mod file;

use file::Handle;
use pilot_disk::{Op, Watch};
use rusqlite::ffi;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest path, bytes.
const MAX_PATH: c_int = 1024;
/// 1970-01-01T00:00:00Z in Julian days.
const EPOCH_JULIAN: f64 = 2_440_587.5;

/// What a VFS's callbacks find behind `pAppData`.
#[derive(Debug)]
pub(crate) struct Disk {
    watch: Arc<dyn Watch>,
    random: AtomicU64,
}

impl Disk {
    /// Does one thing, if the watcher lets it, and tells the watcher.
    pub(crate) fn step<T>(&self, op: Op<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.watch.before(&op)?;
        let done = act()?;
        self.watch.after(&op);
        Ok(done)
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(Op::SyncDir { path: path.parent().unwrap_or(path) }, || Ok(()))
    }
}

/// SQLite's code for an error of a step whose code is `code` otherwise.
pub(crate) fn failed(error: &io::Error, code: c_int) -> c_int {
    if error.kind() == io::ErrorKind::StorageFull { ffi::SQLITE_FULL } else { code }
}

/// Registers a VFS for `Connection::open_with_flags_and_vfs`. It lives as long as the process.
///
/// # Panics
/// SQLite does not take it, or `name` holds a zero byte.
pub fn register(name: &str, watch: Arc<dyn Watch>) {
    let name = CString::new(name).expect("a name without zero bytes").into_raw();
    let disk = Box::leak(Box::new(Disk { watch, random: AtomicU64::new(0x5EED) }));
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        iVersion: 1,
        szOsFile: size_of::<Handle>() as c_int,
        mxPathname: MAX_PATH,
        pNext: std::ptr::null_mut(),
        zName: name,
        pAppData: std::ptr::from_mut(disk).cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: None,
        xCurrentTimeInt64: None,
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }));
    // SAFETY: the structure, its name and its data are leaked, so they outlive every use; all callbacks that version 1
    // demands are there.
    let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite takes the VFS");
}

/// The disk of a VFS.
///
/// # Safety
/// `vfs` is one that [`register`] made.
unsafe fn disk<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Disk {
    // SAFETY: `pAppData` of such a VFS points to a leaked `Disk` that is only ever shared.
    unsafe { &*(*vfs).pAppData.cast::<Disk>() }
}

/// A path SQLite names.
///
/// # Safety
/// `name` is a C string.
unsafe fn path(name: *const c_char) -> PathBuf {
    // SAFETY: the caller's promise.
    PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives room for the structure; without methods it will not call them, also if we fail.
    unsafe { (*file).pMethods = std::ptr::null() };
    if name.is_null() {
        // Nothing here needs temporary files.
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: the VFS is ours and the name a C string.
    let (disk, path) = unsafe { (disk(vfs), path(name)) };
    match Handle::open(disk, path, flags) {
        Ok(handle) => {
            // SAFETY: SQLite gave `szOsFile` bytes, which is the size of a `Handle`, aligned for any structure.
            unsafe { file.cast::<Handle>().write(handle) };
            if !out_flags.is_null() {
                // SAFETY: not null, so SQLite wants to know.
                unsafe { *out_flags = flags };
            }
            ffi::SQLITE_OK
        }
        Err(error) => failed(&error, ffi::SQLITE_CANTOPEN),
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: the VFS is ours and the name a C string.
    let (disk, path) = unsafe { (disk(vfs), path(name)) };
    let removed = disk.step(Op::Remove { path: &path }, || fs::remove_file(&path));
    let synced = removed.and_then(|()| if sync_dir != 0 { disk.sync_dir(&path) } else { Ok(()) });
    match synced {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) if error.kind() == io::ErrorKind::NotFound => ffi::SQLITE_IOERR_DELETE_NOENT,
        Err(error) => failed(&error, ffi::SQLITE_IOERR_DELETE),
    }
}

unsafe extern "C" fn access(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the name is a C string.
    let path = unsafe { path(name) };
    // As SQLite's own: an empty file counts as none.
    let there = fs::metadata(&path).is_ok_and(|data| flags != ffi::SQLITE_ACCESS_EXISTS || data.len() > 0);
    // SAFETY: SQLite wants the answer there.
    unsafe { *out = there.into() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the name is a C string.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if bytes.len() > usize::try_from(room).unwrap_or(0) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: `out` has room for `room` bytes and overlaps nothing of ours.
    unsafe { out.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, room: c_int, out: *mut c_char) -> c_int {
    // SAFETY: the VFS is ours.
    let disk = unsafe { disk(vfs) };
    for at in 0..usize::try_from(room).unwrap_or(0) {
        let mut z = disk.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        // SAFETY: `at` is below `room`, and there are `room` bytes.
        unsafe { *out.add(at) = (z >> 56) as c_char };
    }
    room
}

unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, micros: c_int) -> c_int {
    std::thread::sleep(Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
    micros
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    // SAFETY: SQLite wants the answer there.
    unsafe { *out = EPOCH_JULIAN + seconds / 86_400.0 };
    ffi::SQLITE_OK
}

/// What a pointer to a file leads to.
///
/// # Safety
/// `file` is one that [`open`] filled in and [`file::close`] has not been called for; SQLite uses a file from one thread at
/// a time.
pub(crate) unsafe fn handle<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Handle {
    // SAFETY: `open` wrote a `Handle` there.
    unsafe { &mut *file.cast::<Handle>() }
}

/// Bytes of SQLite's.
///
/// # Safety
/// There are `len` bytes at `at`.
pub(crate) unsafe fn bytes<'a>(at: *const c_void, len: c_int) -> &'a [u8] {
    // SAFETY: the caller's promise; a negative length is none.
    unsafe { std::slice::from_raw_parts(at.cast(), usize::try_from(len).unwrap_or(0)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilot_disk::simulate::{Random, Recorder};
    use rusqlite::{Connection, OpenFlags};

    /// Commits ten rows with a level of synchrony; for how many of 200 cuts a row that was committed is lost.
    fn lost(name: &str, synchronous: &str) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.db");
        fs::write(&path, "").unwrap();
        let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
        register(name, recorder.clone());
        let db = Connection::open_with_flags_and_vfs(&path, OpenFlags::default(), name).unwrap();
        let set = |name: &str, value: &str| db.pragma_update(None, name, value).unwrap();
        set("locking_mode", "EXCLUSIVE");
        set("journal_mode", "WAL");
        set("synchronous", synchronous);
        db.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
        let mut committed = vec![recorder.steps()];
        for n in 0..10 {
            db.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
            committed.push(recorder.steps());
        }
        let random = &mut Random(1);
        let mut lost = 0;
        for cut in 0..200 {
            let at = committed[0] + random.below((recorder.steps() - committed[0] + 1) as u64) as usize;
            let sure = committed.iter().filter(|steps| **steps <= at).count() - 1;
            let left = dir.path().join(format!("{synchronous}-{cut}"));
            recorder.cut(at, random).write(&left).unwrap();
            let db = Connection::open(left.join("f.db")).unwrap();
            // Only looked at.
            db.pragma_update(None, "synchronous", "OFF").unwrap();
            let found = db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0));
            let whole = found.is_ok_and(|found| (sure..=sure + 1).contains(&(found as usize)));
            lost += usize::from(!whole);
        }
        lost
    }

    #[test]
    fn what_is_committed_with_full_synchrony_survives_every_cut_and_what_is_not_is_noticed() {
        assert_eq!(lost("full", "FULL"), 0);
        assert!(lost("normal", "NORMAL") > 20, "the log is not synced with each commit");
    }
}
