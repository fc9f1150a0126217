//! Simulated power cuts: what was not synced is lost, kept or torn, in any mixture, and the store goes on from there.
//!
//! 500 cuts (`PILOT_CUTS`), five in each life of a store, the last of which is the beginning of the next.

use crate::registry::model::{
    InboxRequest, InboxResponse, Invite, Member, NetworkRecord, NodeRecord, Role, Standing,
};
use crate::store::sqlite::Sqlite;
use crate::store::{Snapshot, Store as _, Write, writer};
use pilot_disk::simulate::{Image, Random, Recorder};
use pilot_disk::{Disk, Watch};
use std::path::Path;
use std::sync::Arc;

/// Submissions in one life of a store.
const SUBMISSIONS: usize = 40;
/// Cuts of one life.
const CUTS: usize = 5;
/// Nodes and networks there are at most.
const IDS: u64 = 30;

/// A VFS that shows nothing to anybody and, like all of them, syncs nothing: for stores that are only looked at.
const PLAIN: &str = "plain";

#[derive(Debug)]
struct Nobody;

impl Watch for Nobody {}

fn numbers(seed: u64) -> (Random, usize) {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let seed = number("PILOT_SEED", seed);
    println!("PILOT_SEED={seed}");
    (Random(seed), number("PILOT_CUTS", 500) as usize)
}

fn node(random: &mut Random) -> NodeRecord {
    let id = 1 + random.below(IDS) as u32;
    let generation = random.next_u64();
    let mut key = [0; 32];
    key[..4].copy_from_slice(&id.to_be_bytes());
    key[4..12].copy_from_slice(&generation.to_be_bytes());
    NodeRecord {
        id,
        key,
        previous_key: random.chance(50).then_some([1; 32]),
        standing: if random.chance(80) { Standing::Live } else { Standing::Reaped(generation >> 32) },
        owner: "o".repeat(random.below(400) as usize),
        endpoint: format!("203.0.113.{}:4000", generation % 256),
        lan_addrs: Vec::new(),
        public: random.chance(50),
        hidden: random.chance(50),
        hostname: format!("n{generation}"),
        tags: vec!["a".into(); random.below(4) as usize],
        version: String::new(),
        relay_only: false,
        sig_verified: true,
        created_at: 1,
        rotated_at: generation >> 20,
        rotate_count: 3,
        expires_at: 4,
        last_seen: 5,
        instance: None,
        recovery_key: None,
    }
}

fn write(random: &mut Random, seq: u64) -> Write {
    let (a, b) = (1 + random.below(IDS) as u32, 1 + random.below(IDS) as u32);
    let (net, present) = (1 + random.below(4) as u16, random.chance(70));
    match random.below(12) {
        0 => Write::Trust { a: a.min(b), b: a.max(b), present },
        1 => Write::Report { node: a, peer: b, present },
        2 => {
            let justification = "w".repeat(random.below(300) as usize);
            Write::Request(InboxRequest { to: a, from: b, seq, justification, at: 7 })
        }
        3 => Write::Response(InboxResponse { to: a, from: b, seq, accept: present, at: 7 }),
        4 => Write::RequestGone { to: a, from: b },
        5 => Write::Delivered { node: a, up_to: seq / 2 },
        6 => Write::Pending { to: a, from: b, at: present.then_some(9) },
        7 => Write::Member {
            network: net,
            node: a,
            member: present.then(|| Member { role: Some(Role::Admin), tags: vec!["t".into()] }),
        },
        8 => Write::Invite {
            to: a,
            network: net,
            invite: present.then_some(Invite { network: net, inviter: b, at: 1 }),
        },
        9 if !present => Write::NetworkGone(net),
        9 => {
            let record = NetworkRecord { id: net, name: format!("net{seq}"), ..network() };
            Write::Network(Box::new(record))
        }
        _ => Write::Node(Box::new(node(random))),
    }
}

fn network() -> NetworkRecord {
    serde_json::from_str(super::formats::NETWORK).unwrap()
}

/// The store that acknowledged work went to, submission by submission.
struct Reference {
    store: Sqlite,
    /// After each submission of this life; the first is what it began with.
    states: Vec<Snapshot>,
}

impl Reference {
    fn apply(&mut self, writes: &[Write]) {
        self.store.commit(writes).unwrap();
        self.states.push(self.store.load().unwrap());
    }
}

fn load(path: &Path) -> Snapshot {
    let mut store = Sqlite::open_on(&Disk::new(), path, Some(PLAIN)).unwrap();
    assert_eq!(store.integrity(), "ok");
    store.load().unwrap()
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_in_simulated_power_cuts() {
    pilot_powercut::register(PLAIN, Arc::new(Nobody));
    let (mut random, cuts) = numbers(1);
    let random = &mut random;
    let mut image = Image::default();
    let mut reference = Reference { store: Sqlite::memory().unwrap(), states: Vec::new() };
    let mut begun_with = None;
    let (mut made, mut seq, mut lost) = (0, 1, 0);
    while made < cuts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        image.write(dir.path()).unwrap();
        let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
        let vfs = format!("cut-{made}");
        pilot_powercut::register(&vfs, recorder.clone());
        let store = Sqlite::open_on(&Disk::watched(recorder.clone()), &path, Some(&vfs)).unwrap();
        // Checkpoints in the midst of things, and sometimes at the end only.
        store.checkpoint_every(1 + random.below(60) as u32);
        reference.states = vec![reference.store.load().unwrap()];
        let (handle, thread) = writer::start(Box::new(store)).unwrap();
        // Steps made when the first so many submissions were acknowledged.
        let mut acknowledged = vec![0];
        let mut under_way = Vec::new();
        for _ in 0..SUBMISSIONS {
            let writes: Vec<Write> = (0..1 + random.below(4)).map(|n| write(random, seq + n)).collect();
            seq += 4;
            reference.apply(&writes);
            under_way.push(handle.submit(writes));
            if random.chance(40) {
                for commit in under_way.drain(..) {
                    commit.wait().await.unwrap();
                    acknowledged.push(recorder.steps());
                }
            }
        }
        for commit in under_way {
            commit.wait().await.unwrap();
            acknowledged.push(recorder.steps());
        }
        drop(handle);
        thread.join().unwrap();
        for _ in 0..CUTS {
            let at = random.below(recorder.steps() as u64 + 1) as usize;
            image = recorder.cut(at, random);
            let left = tempfile::tempdir().unwrap();
            image.write(left.path()).unwrap();
            let found = load(&left.path().join("registry.db"));
            let sure = acknowledged.iter().rposition(|steps| *steps <= at).unwrap();
            let state = reference.states.iter().skip(sure).position(|state| *state == found);
            let survived = sure
                + state.unwrap_or_else(|| {
                    panic!(
                        "cut {made} after {at} steps: {sure} submissions were acknowledged, found {found:#?}"
                    )
                });
            lost += reference.states.len() - 1 - survived;
            made += 1;
        }
        // The next life begins with what the last cut left.
        let copy = tempfile::tempdir().unwrap();
        image.write(copy.path()).unwrap();
        reference.store =
            Sqlite::open_on(&Disk::new(), &copy.path().join("registry.db"), Some(PLAIN)).unwrap();
        begun_with = Some(copy);
    }
    drop(begun_with);
    println!(
        "{made} power cuts, {} submissions, {lost} not acknowledged ones not stored",
        made / CUTS * SUBMISSIONS
    );
    assert!(lost > 0, "cuts in the midst of things lose what is not acknowledged");
}
