use crate::Disk;
use crate::simulate::{Fault, Image, Random, Recorder};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_file_and_its_folders_are_made_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/file.json");
    Disk::new().replace(&path, b"text").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"text");
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn a_leftover_of_a_crash_is_overwritten_whatever_its_length_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (path, left) = (dir.path().join("f"), dir.path().join(".f.tmp"));
    fs::write(&left, "much longer than what comes now").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
    Disk::new().replace(&path, b"short").unwrap();
    assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"short".to_vec(), 0o600));
    assert!(!left.exists());
}

#[test]
fn a_leftover_that_is_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    fs::write(&other, "precious").unwrap();
    std::os::unix::fs::symlink(&other, dir.path().join(".f.tmp")).unwrap();
    assert!(Disk::new().replace(&dir.path().join("f"), b"x").is_err());
    assert_eq!(fs::read(&other).unwrap(), b"precious");
}

#[test]
fn links_stay_and_what_they_end_at_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (link, real) = (dir.path().join("link"), dir.path().join("deep/real"));
    std::os::unix::fs::symlink("deep/real", &link).unwrap();
    Disk::new().replace(&link, b"1").unwrap();
    Disk::new().replace(&link, b"2").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&real).unwrap(), b"2");
    let endless = dir.path().join("endless");
    std::os::unix::fs::symlink("endless", &endless).unwrap();
    let error = Disk::new().replace(&endless, b"1").unwrap_err().to_string();
    assert!(error.contains("too many symbolic links"), "{error}");
}

#[test]
fn names_as_long_as_a_file_system_takes_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["x".repeat(255), "ü".repeat(127)] {
        let path = dir.path().join(name);
        Disk::new().replace(&path, b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}

#[test]
fn writers_of_one_path_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = path.clone();
            // Each has a disk of its own, like another process.
            scope.spawn(move || {
                for _ in 0..25 {
                    Disk::new().replace(&path, &vec![writer; 10_000]).unwrap();
                    let read = fs::read(&path).unwrap();
                    assert!(read.len() == 10_000 && read.iter().all(|b| *b == read[0]), "a mixture");
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn leftovers_are_swept_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in [".a.json.tmp", ".tmp", "b.tmp", ".hidden"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let written = fs::File::create(dir.path().join(".busy.tmp")).unwrap();
    rustix::fs::flock(&written, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Disk::new().sweep(dir.path()).unwrap();
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".busy.tmp", ".hidden", ".tmp", "b.tmp"]);
    Disk::new().sweep(&dir.path().join("missing")).unwrap();
}

#[test]
fn errors_name_the_path_the_cause_and_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let fault = Arc::new(Fault::default());
    let disk = Disk::watched(fault.clone());
    disk.replace(&path, b"old").unwrap();
    for (kind, cause, fix, full) in [
        (ErrorKind::StorageFull, "the disk is full", "free some space", true),
        (ErrorKind::ReadOnlyFilesystem, "the disk is read-only", "mount it writable", false),
        (ErrorKind::PermissionDenied, "permission denied", "give this user the right to write", false),
        (ErrorKind::FileTooLarge, "a file may not become so large", "raise the limit (ulimit -f)", true),
    ] {
        fault.set(Some(kind));
        let error = disk.replace(&path, b"new").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot write {}: {cause} (", path.display())), "{text}");
        assert!(text.contains(&format!("); {fix}")), "{text}");
        assert_eq!((error.cause(), error.is_full(), error.kind()), (cause, full, kind));
        assert_eq!(std::io::Error::from(error).to_string(), text);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no part stays");
        assert_eq!(disk.clone().troubles(), [text]);
    }
    fault.set(None);
    disk.replace(&path, b"new").unwrap();
    assert!(disk.troubles().is_empty(), "over when a write succeeds");
    let text = Disk::new().replace(&path.join("below/a/file"), b"").unwrap_err().to_string();
    assert!(text.contains("a file is where a folder should be"), "{text}");
    fs::create_dir(dir.path().join("folder")).unwrap();
    let text = Disk::new().replace(&dir.path().join("folder"), b"").unwrap_err().to_string();
    assert!(text.contains("a folder is where a file should be"), "{text}");
}

#[test]
fn reading_is_bounded_and_a_missing_file_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (Disk::new(), dir.path().join("f"));
    assert!(disk.read(&path, 10).unwrap().is_none());
    disk.replace(&path, b"0123456789").unwrap();
    assert_eq!(disk.read(&path, 10).unwrap().unwrap(), b"0123456789");
    assert!(disk.read(&path, 9).unwrap_err().to_string().contains("more than 9 bytes"));
}

/// What of a file may be left: versions from `from` up to `to`, whole.
fn whole(image: &Image, from: usize, to: usize) -> usize {
    match image.files.get(Path::new("home/f")) {
        None => {
            assert_eq!(from, 0, "an acknowledged version is gone");
            0
        }
        Some(content) => {
            let version = content.first().map_or(0, |b| usize::from(*b));
            assert_eq!(*content, vec![version as u8; 100 * version], "a part of a file is read");
            assert!(version >= from && version <= to, "version {version}, not in {from}..={to}");
            version
        }
    }
}

#[test]
fn a_power_cut_at_every_step_leaves_the_old_content_or_the_new() {
    let mut seen = std::collections::BTreeSet::new();
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let disk = Disk::watched(recorder.clone());
    let mut acknowledged = vec![0];
    for version in 1..=4u8 {
        let path = dir.path().join("home/f");
        disk.replace(&path, &vec![version; 100 * usize::from(version)]).unwrap();
        acknowledged.push(recorder.steps());
    }
    let random = &mut Random(1);
    for at in 0..=recorder.steps() {
        let sure = acknowledged.iter().rposition(|steps| *steps <= at).unwrap();
        for _ in 0..50 {
            seen.insert(whole(&recorder.cut(at, random), sure, sure + 1));
        }
    }
    assert_eq!(seen.len(), 5, "every version was met: {seen:?}");
    assert_eq!(
        Image::read(dir.path()).unwrap(),
        recorder.cut(recorder.steps(), random),
        "nothing is unsynced"
    );
}

/// Every step left out of the right order must be noticed, or the test above proves nothing.
#[test]
fn the_model_of_a_power_cut_notices_each_missing_sync() {
    type Missed = fn(&crate::Op<'_>) -> bool;
    #[derive(Debug)]
    struct Deaf(Recorder, Missed);
    impl crate::Watch for Deaf {
        fn after(&self, op: &crate::Op<'_>) {
            if !(self.1)(op) {
                self.0.after(op);
            }
        }
    }
    let missed: [(&str, Missed); 2] = [
        ("the file's sync", |op| matches!(op, crate::Op::Sync { .. })),
        ("the directory's sync", |op| matches!(op, crate::Op::SyncDir { .. })),
    ];
    for (what, missed) in missed {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let deaf = Arc::new(Deaf(Recorder::new(dir.path()).unwrap(), missed));
        Disk::watched(deaf.clone()).replace(&dir.path().join("home/f"), b"text").unwrap();
        let random = &mut Random(2);
        let lost = (0..100).any(|_| {
            let image = deaf.0.cut(deaf.0.steps(), random);
            image.files.get(Path::new("home/f")).is_none_or(|content| content != b"text")
        });
        assert!(lost, "{what} may be left out");
    }
}

#[test]
fn a_growing_file_is_whole_once_it_is_synced_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let disk = Disk::watched(recorder.clone());
    let (partial, done) = (dir.path().join("partial/f"), dir.path().join("done"));
    let mut file = disk.open(&partial).unwrap();
    for _ in 0..5 {
        file.append(&[7; 1000]).unwrap();
    }
    drop(file);
    let mut file = disk.open(&partial).unwrap();
    assert_eq!(file.len(), 5000);
    file.set_len(4000).unwrap();
    file.append(&[8; 1000]).unwrap();
    let mut read = Vec::new();
    file.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
    assert_eq!(read, [[7; 4000].as_slice(), &[8; 1000]].concat());
    file.sync().unwrap();
    disk.rename(&partial, &done).unwrap();
    let named = recorder.steps();
    let random = &mut Random(3);
    for at in 0..=named {
        for _ in 0..50 {
            let image = recorder.cut(at, random);
            match image.files.get(Path::new("done")) {
                Some(content) => assert_eq!(*content, read),
                None => assert!(at < named),
            }
        }
    }
    assert!(disk.remove(&done).unwrap());
    assert!(!disk.remove(&done).unwrap());
}

#[test]
fn a_write_that_fails_midway_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let path = dir.path().join("f");
    let mut file = Disk::watched(fault.clone()).open(&path).unwrap();
    file.append(b"abc").unwrap();
    fault.set(Some(ErrorKind::StorageFull));
    assert_eq!(file.append(b"def").unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!((file.len(), fs::read(&path).unwrap()), (3, b"abc".to_vec()));
    fault.set(None);
    file.append(b"ghi").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abcghi");
}
