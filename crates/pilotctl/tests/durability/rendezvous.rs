//! The rendezvous under load, killed again and again.

use crate::client::Client;
use crate::load::{ADMIN, Load};
use crate::process::Process;
use crate::{Random, kills, seed};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Clients that change things at the same time.
const CLIENTS: usize = 6;
/// A start takes milliseconds; this only ends a test that hangs.
const START: Duration = Duration::from_secs(60);

struct Rendezvous {
    process: Process,
    addr: SocketAddr,
}

/// A port nobody uses now.
pub fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.local_addr().expect("bound").port()
}

impl Rendezvous {
    fn spawn(home: &Path, port: u16) -> Rendezvous {
        let log = File::options().create(true).append(true).open(home.join("log")).expect("log");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = Process::spawn(
            Command::new(env!("CARGO_BIN_EXE_pilotctl"))
                .args(["rendezvous", "start", "--foreground", "--beacon-addr", "127.0.0.1:0"])
                .args(["--registry-addr", &addr.to_string()])
                .arg("--store")
                .arg(home.join("registry.db"))
                .env_clear()
                .env("HOME", home)
                .env("PILOT_ADMIN_TOKEN", ADMIN)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("log"))
                .stderr(log),
        );
        Rendezvous { process, addr }
    }

    /// Waits until it answers; the time since `began`.
    fn ready(&mut self, home: &Path, began: Instant) -> Duration {
        loop {
            if let Ok(mut client) = Client::connect(self.addr)
                && client.ask(&json!({"type": "beacon_list"})).is_ok()
            {
                return began.elapsed();
            }
            let log = || std::fs::read_to_string(home.join("log")).unwrap_or_default();
            assert!(!self.process.has_ended(), "the rendezvous ended: {}", log());
            assert!(began.elapsed() < START, "the rendezvous does not start: {}", log());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn pause(random: &mut Random, millis: usize) {
    thread::sleep(Duration::from_micros(random.below(millis * 1000) as u64));
}

#[test]
fn a_rendezvous_killed_at_any_moment_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().expect("directory");
    let home = dir.path();
    let mut random = seed();
    let port = free_port();
    let mut loads: Vec<Load> = (0..CLIENTS).map(|name| Load::new(name, random.branch())).collect();
    let mut slowest = Duration::ZERO;
    let kills = kills(50);
    for _ in 0..kills {
        // Now and then while it starts.
        if random.below(8) == 0 {
            let mut early = Rendezvous::spawn(home, port);
            pause(&mut random, 40);
            early.process.kill();
        }
        let began = Instant::now();
        let mut rendezvous = Rendezvous::spawn(home, port);
        slowest = slowest.max(rendezvous.ready(home, began));
        let addr = rendezvous.addr;
        let mut ids = BTreeSet::new();
        for load in &mut loads {
            load.verify(addr, &mut ids);
        }
        thread::scope(|scope| {
            for load in &mut loads {
                scope.spawn(move || load.run(addr));
            }
            pause(&mut random, 300);
            rendezvous.process.kill();
        });
    }
    let began = Instant::now();
    let mut rendezvous = Rendezvous::spawn(home, port);
    slowest = slowest.max(rendezvous.ready(home, began));
    let mut ids = BTreeSet::new();
    let mut acknowledged = BTreeMap::<&str, usize>::new();
    let (mut doubts, mut nodes) = ((0, 0), 0);
    for load in &mut loads {
        load.verify(rendezvous.addr, &mut ids);
        nodes += load.verify_all(rendezvous.addr);
        for (kind, count) in &load.acknowledged {
            *acknowledged.entry(kind).or_default() += count;
        }
        doubts = (doubts.0 + load.doubts.0, doubts.1 + load.doubts.1);
    }
    println!("{kills} kills, nothing acknowledged was lost; {nodes} nodes; {acknowledged:?}");
    println!("unanswered: {} not stored, {} stored; slowest start {slowest:?}", doubts.0, doubts.1);
    assert!(nodes >= acknowledged["registrations"]);
    assert!(acknowledged.len() >= 12, "kinds of changes under load: {acknowledged:?}");
}
