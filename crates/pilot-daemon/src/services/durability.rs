//! Messages and files that were acknowledged, and power cuts, full and read-only disks.

use super::files::{Stamps, StoreError};
use super::inbox::{self, Inbox};
use super::received::{self, Received, Store};
use pilot_disk::simulate::{Fault, Random, Recorder};
use pilot_disk::{Disk, is_temporary};
use pilot_proto::Addr;
use pilot_proto::service::file_receiver::{PartialFile as _, PartialStore as _, WriteError};
use pilot_proto::service::filestream::Init;
use pilot_proto::service::frame::FrameType;
use pilot_proto::service::message::Tag;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

const CUTS: usize = 500;

struct Home {
    inbox: Inbox,
    received: Arc<Received>,
}

fn home(disk: &Disk, path: &Path) -> Home {
    let stamps = Arc::new(Stamps::default());
    Home {
        inbox: Inbox::new(disk.clone(), path.join("inbox"), stamps.clone(), false),
        received: Arc::new(Received::new(disk.clone(), path.join("received"), stamps)),
    }
}

impl Home {
    fn message(&self, payload: &[u8]) -> Result<String, StoreError> {
        self.inbox.store(Addr::backbone(7), FrameType::TEXT, &Tag::default(), payload)
    }

    /// In pieces, as transfers come.
    fn transfer(&self, id: u8, payload: &[u8]) -> Result<(), String> {
        let init = Init { size: payload.len() as u64, sha256: [0; 32], chunk: 1, name: "t".into() };
        let mut partial = Store { received: self.received.clone(), from: 7 }.open(&[id; 16], &init)?;
        let from = partial.len() as usize;
        for piece in payload[from..].chunks(500) {
            partial.append(piece).map_err(|error| match error {
                WriteError::Failed(text) => text,
                WriteError::TakenOver => "taken over".into(),
            })?;
        }
        partial.finish("t.bin").map(|_| ())
    }
}

/// What is to be read of messages and files; none may be a part of one.
fn readable(path: &Path) -> BTreeSet<Vec<u8>> {
    let dir = path.join("inbox");
    let records = inbox::list(&dir, &inbox::Filter::default()).unwrap();
    assert_eq!(records.len(), inbox::ids(&dir).unwrap().len(), "each file is a record");
    let files = received::list(&path.join("received"), None).unwrap().files;
    let messages = records.iter().map(|record| record.data().expect("a payload"));
    messages.chain(files.iter().map(|file| fs::read(&file.path).unwrap())).collect()
}

fn payload(random: &mut Random, n: usize) -> Vec<u8> {
    let mut payload = format!("payload {n} ").into_bytes();
    payload.resize(payload.len() + random.below(3000) as usize, b'x');
    payload
}

#[test]
fn what_was_acknowledged_survives_every_power_cut_and_nothing_is_half_read() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let home = home(&Disk::watched(recorder.clone()), dir.path());
    let random = &mut Random(1);
    let (mut sent, mut acknowledged) = (BTreeSet::new(), Vec::new());
    for n in 0..60 {
        let payload = payload(random, n);
        sent.insert(payload.clone());
        match random.below(3) {
            0 => drop(home.message(&payload).unwrap()),
            1 => drop(home.received.store("f.txt", &payload).unwrap()),
            _ => home.transfer(n as u8, &payload).unwrap(),
        }
        acknowledged.push((recorder.steps(), payload));
    }
    let mut kept = BTreeSet::new();
    for cut in 0..CUTS {
        let at = random.below(recorder.steps() as u64 + 1) as usize;
        let left = tempfile::tempdir().unwrap();
        recorder.cut(at, random).write(left.path()).unwrap();
        let found = readable(left.path());
        assert!(found.is_subset(&sent), "a part of something is read after {at} steps");
        for (steps, payload) in &acknowledged {
            assert!(*steps > at || found.contains(payload), "lost after {at} steps");
        }
        kept.insert(found.len());
        // The next process goes on, and clears what the cut left.
        if cut % 10 > 0 {
            continue;
        }
        let next = self::home(&Disk::new(), left.path());
        next.message(b"new").unwrap();
        next.received.store("new.txt", b"new").unwrap();
        next.transfer(200, &[5; 1200]).unwrap();
        for dir in ["inbox", "received", "received/.partial"] {
            for entry in fs::read_dir(left.path().join(dir)).unwrap() {
                assert!(!is_temporary(&entry.unwrap().file_name()));
            }
        }
    }
    assert!(kept.len() > 30, "cuts at many points: {kept:?}");
}

#[test]
fn a_partial_file_torn_by_a_power_cut_is_taken_up_where_it_ends_and_its_hash_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let ours = home(&Disk::watched(recorder.clone()), dir.path());
    let init = Init { size: 5000, sha256: [0; 32], chunk: 1, name: "t".into() };
    let mut partial = Store { received: ours.received.clone(), from: 7 }.open(&[1; 16], &init).unwrap();
    for _ in 0..9 {
        partial.append(&[3; 500]).unwrap();
    }
    let random = &mut Random(2);
    for _ in 0..100 {
        let left = tempfile::tempdir().unwrap();
        recorder.cut(recorder.steps(), random).write(left.path()).unwrap();
        let next = home(&Disk::new(), left.path());
        let mut partial = Store { received: next.received.clone(), from: 7 }.open(&[1; 16], &init).unwrap();
        // The receiver hashes what it finds here, so what the cut made of it is noticed.
        let mut read = 0;
        partial.read(&mut |bytes| read += bytes.len() as u64).unwrap();
        assert_eq!(read, partial.len());
        assert!(read <= 4500);
    }
}

#[test]
fn a_disk_that_takes_nothing_is_a_refusal_that_names_the_cause_and_ends_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let disk = Disk::watched(fault.clone());
    let home = home(&disk, dir.path());
    home.message(b"before").unwrap();
    home.received.store("before.txt", b"before").unwrap();
    for (kind, cause) in [
        (ErrorKind::StorageFull, "the disk is full"),
        (ErrorKind::ReadOnlyFilesystem, "the disk is read-only"),
        (ErrorKind::PermissionDenied, "permission denied"),
    ] {
        fault.set(Some(kind));
        let expected = format!("receiver cannot store it: {cause}");
        let message = home.message(b"refused").unwrap_err();
        assert_eq!(message.for_sender(), expected);
        assert!(message.to_string().contains(&dir.path().display().to_string()), "the operator learns where");
        assert_eq!(home.received.store("r.txt", b"refused").unwrap_err().for_sender(), expected);
        assert_eq!(home.transfer(1, &[1; 900]).unwrap_err(), expected);
        let troubles = disk.troubles();
        assert_eq!(troubles.len(), 3, "inbox, received and partial files: {troubles:?}");
        assert!(troubles.iter().all(|text| text.contains(cause)), "{troubles:?}");
    }
    assert_eq!(readable(dir.path()), BTreeSet::from([b"before".to_vec()]));
    fault.set(None);
    home.message(b"after").unwrap();
    home.received.store("a.txt", b"after").unwrap();
    home.transfer(1, &[1; 900]).unwrap();
    assert!(disk.troubles().is_empty(), "{:?}", disk.troubles());
    assert_eq!(readable(dir.path()).len(), 3);
}
