//! An open file.

use crate::{Disk, bytes, failed, handle};
use pilot_disk::Op;
use rusqlite::ffi;
use std::ffi::{c_int, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// What SQLite assumes of disks on Unix.
const SECTOR: c_int = 4096;

/// Numbers open files for watchers, far from those of `pilot_disk`.
static FILES: AtomicU64 = AtomicU64::new(1 << 40);

/// SQLite's structure, and ours behind it.
#[repr(C)]
pub(crate) struct Handle {
    base: ffi::sqlite3_file,
    /// `None` after it was closed.
    open: Option<Box<Open>>,
}

struct Open {
    disk: &'static Disk,
    file: File,
    path: PathBuf,
    id: u64,
    /// A new log or journal, not synced yet.
    unnamed: bool,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

impl Handle {
    pub(crate) fn open(disk: &'static Disk, path: PathBuf, flags: c_int) -> io::Result<Handle> {
        let new = !path.exists();
        let create = flags & ffi::SQLITE_OPEN_CREATE != 0;
        let id = FILES.fetch_add(1, Ordering::Relaxed);
        let op = match new {
            true => Op::Create { path: &path, file: id },
            false => Op::Reopen { path: &path, file: id },
        };
        let file = disk.step(op, || {
            OpenOptions::new()
                .read(true)
                .write(flags & ffi::SQLITE_OPEN_READWRITE != 0)
                .create(create)
                .truncate(false)
                .open(&path)
        })?;
        let journal = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL;
        let unnamed = new && flags & journal != 0;
        let open = Open { disk, file, path, id, unnamed };
        Ok(Handle { base: ffi::sqlite3_file { pMethods: &raw const METHODS }, open: Some(Box::new(open)) })
    }

    fn with(&mut self, code: c_int, act: impl FnOnce(&mut Open) -> io::Result<()>) -> c_int {
        // Open until SQLite closes it.
        let Some(open) = &mut self.open else { return ffi::SQLITE_MISUSE };
        match act(open) {
            Ok(()) => ffi::SQLITE_OK,
            Err(error) => failed(&error, code),
        }
    }
}

pub(crate) unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: open until now. SQLite frees the room without dropping, so what we own is dropped here.
    unsafe { handle(file) }.open = None;
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, out: *mut c_void, len: c_int, offset: i64) -> c_int {
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: the file is open, and `len` bytes at `out` are ours to fill, which is done before they are looked at.
    let (handle, room) = unsafe {
        out.cast::<u8>().write_bytes(0, len);
        (handle(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), len))
    };
    let (mut done, whole) = (0, room.len());
    let code = handle.with(ffi::SQLITE_IOERR_READ, |open| {
        while done < whole {
            let n = open.file.read_at(&mut room[done..], offset.cast_unsigned() + done as u64)?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(())
    });
    // Beyond the end everything is zero.
    if code == ffi::SQLITE_OK && done < whole { ffi::SQLITE_IOERR_SHORT_READ } else { code }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    len: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: the file is open, and `len` bytes are at `data`.
    let (handle, data) = unsafe { (handle(file), bytes(data, len)) };
    handle.with(ffi::SQLITE_IOERR_WRITE, |open| {
        let offset = offset.cast_unsigned();
        let op = Op::Write { file: open.id, offset, data };
        open.disk.step(op, || open.file.write_all_at(data, offset))
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: the file is open.
    unsafe { handle(file) }.with(ffi::SQLITE_IOERR_TRUNCATE, |open| {
        let len = size.cast_unsigned();
        open.disk.step(Op::SetLen { file: open.id, len }, || open.file.set_len(len))
    })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe { handle(file) }.with(ffi::SQLITE_IOERR_FSYNC, |open| {
        open.disk.step(Op::Sync { file: open.id }, || Ok(()))?;
        if std::mem::take(&mut open.unnamed) { open.disk.sync_dir(&open.path) } else { Ok(()) }
    })
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    // SAFETY: the file is open, and SQLite wants the answer at `out`.
    let (handle, out) = unsafe { (handle(file), &mut *out) };
    handle.with(ffi::SQLITE_IOERR_FSTAT, |open| {
        *out = open.file.metadata()?.len().cast_signed();
        Ok(())
    })
}

unsafe extern "C" fn lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite wants the answer there.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_file: *mut ffi::sqlite3_file, _op: c_int, _arg: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    SECTOR
}

unsafe extern "C" fn device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    // As SQLite's own: a torn write changes nothing beside what is written.
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}
