//! Real full and read-only disks: a small tmpfs in a mount namespace of its own. Needs root, or user namespaces.

use crate::client::{Client, Node};
use crate::load::ADMIN;
use crate::process::Process;
use crate::rendezvous::free_port;
use pilot_daemon::services::client::send_message;
use pilot_proto::Addr;
use pilot_proto::crypto::Identity;
use pilot_proto::service::port;
use pilot_proto::service::send::Content;
use pilot_rendezvous::{Config, Server};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for what should happen soon.
const SOON: Duration = Duration::from_secs(60);
/// Size of the disk: room for a program's files and no more.
const SIZE: &str = "4m";

/// A disk that only processes in its namespace see under its path.
struct Disk {
    holder: Process,
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let dir = tempfile::tempdir().expect("directory");
        let root = rustix::process::getuid().is_root();
        let script = format!(
            "mount -t tmpfs -o size={SIZE},mode=700 tmpfs \"$0\" && touch \"$0/mounted\" && exec sleep 600"
        );
        let holder = Process::spawn(
            Command::new("unshare")
                .args(if root { ["--mount"].as_slice() } else { &["--user", "--map-root-user", "--mount"] })
                .args(["sh", "-c", &script])
                .arg(dir.path()),
        );
        let mut disk = Disk { holder, dir };
        wait(|| {
            assert!(
                !disk.holder.has_ended(),
                "a mount namespace needs root or user namespaces, and util-linux"
            );
            disk.seen("mounted").exists()
        });
        disk
    }

    /// A path on the disk as its processes know it.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same file, for us.
    fn seen(&self, name: &str) -> PathBuf {
        let inside = self.path(name);
        Path::new(&format!("/proc/{}/root", self.holder.pid()))
            .join(inside.strip_prefix("/").expect("absolute"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.pid())).arg("--mount");
        if !rustix::process::getuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program).env("HOME", self.dir.path()).env("PILOT_ADMIN_TOKEN", ADMIN);
        command.env("PILOT_SOCKET", self.path("s"));
        command.stdin(Stdio::null());
        command
    }

    /// Takes all room there is.
    fn fill(&self) {
        let mut filler = File::create(self.seen("filler")).expect("a file");
        let mut size = 1 << 20;
        while size > 0 {
            match filler.write(&vec![1; size]) {
                Ok(n) if n > 0 => {}
                _ => size /= 2,
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.seen("filler")).expect("the filler is there");
    }

    fn remount(&self, how: &str) {
        let done =
            self.command("mount").args(["-o", &format!("remount,{how}")]).arg(self.dir.path()).status();
        assert!(done.expect("mount").success());
    }
}

fn wait(mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "it does not come to pass");
        thread::sleep(Duration::from_millis(10));
    }
}

fn identity(n: u64) -> Identity {
    let mut seed = [9; 32];
    seed[..8].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(seed).expect("any seed makes a key")
}

fn texts(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn a_rendezvous_on_a_full_disk_says_so_keeps_answering_and_goes_on_when_there_is_space() {
    let disk = Disk::new();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let command = || {
        let mut command = disk.command(env!("CARGO_BIN_EXE_pilotctl"));
        command.args(["rendezvous", "start", "--foreground", "--beacon-addr", "127.0.0.1:0"]);
        command.args(["--registry-addr", &addr.to_string(), "--store"]).arg(disk.path("registry.db"));
        command
    };
    let start = || {
        let mut process = Process::spawn(command().stdout(Stdio::null()).stderr(Stdio::null()));
        wait(|| {
            assert!(!process.has_ended(), "the rendezvous ended");
            Client::connect(addr).is_ok()
        });
        (process, Client::connect(addr).expect("it listens"))
    };
    let (mut process, mut client) = start();
    let mut ids = Vec::new();
    let mut register = |client: &mut Client| -> Result<(), String> {
        let key = identity(ids.len() as u64);
        let answer = client.ask(&Node::register(&key)).expect("it answers");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => {
                ids.push((answer["node_id"].as_u64().expect("an id"), key.public_key_base64()));
                Ok(())
            }
        }
    };
    for _ in 0..50 {
        register(&mut client).expect("there is room");
    }
    disk.fill();
    // The log has room in what it took before.
    let error = (0..20_000).find_map(|_| register(&mut client).err()).expect("no room in the end");
    assert!(error.contains("the disk is full; free some space"), "{error}");
    let again = register(&mut client).expect_err("no room still");
    assert!(again.contains("the disk is full; free some space"), "{again}");
    let known = client.ask(&json!({"type": "lookup", "node_id": 1})).expect("it answers");
    assert_eq!(known["node_id"], 1, "what needs no disk goes on: {known}");
    disk.free();
    wait(|| register(&mut client).is_ok());
    process.kill();
    let (mut process, mut client) = start();
    for (id, key) in &ids {
        let found = client.ask(&json!({"type": "lookup", "node_id": id})).expect("it answers");
        assert_eq!(found["public_key"], json!(key), "node {id} was acknowledged");
    }
    process.kill();
    disk.remount("ro");
    let refused = command().output().expect("it runs");
    assert!(!refused.status.success());
    let text = texts(&refused);
    assert!(text.to_lowercase().contains("read-only"), "{text}");
    disk.remount("rw");
    start().0.kill();
}

fn pilotctl(disk: &Disk, args: &[&str]) -> Output {
    disk.command(env!("CARGO_BIN_EXE_pilotctl")).arg("--json").args(args).output().expect("it runs")
}

fn data(disk: &Disk, args: &[&str]) -> Value {
    let out = pilotctl(disk, args);
    let envelope: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", texts(&out)));
    envelope["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_on_a_full_disk_refuses_with_the_cause_and_goes_on_when_there_is_space() {
    let disk = Disk::new();
    let server = Server::start(Config::loopback()).await.expect("a rendezvous");
    let config = pilot::NodeConfig {
        registry: server.registry_addr().to_string(),
        beacons: vec![server.beacon_addr().to_string()],
        listen: "127.0.0.1:0".parse().expect("an address"),
        ..pilot::NodeConfig::default()
    };
    let peer = Arc::new(pilot::Node::start(config).await.expect("a node starts"));
    let mut process = Process::spawn(
        disk.command(env!("CARGO_BIN_EXE_pilotctl"))
            .args(["daemon", "start", "--foreground", "--public", "--listen", "127.0.0.1:0"])
            .args(["--registry", &server.registry_addr().to_string()])
            .args(["--beacon", &server.beacon_addr().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    wait(|| {
        assert!(!process.has_ended(), "the daemon ended");
        pilotctl(&disk, &["health"]).status.success()
    });
    let info = data(&disk, &["info"]);
    let own = info["node_id"].as_u64().expect("an id") as u32;
    let health = || data(&disk, &["health"]);
    let approve = || pilotctl(&disk, &["approve", &peer.node_id().to_string()]);
    let mut stream = peer.dial(Addr::backbone(own), port::DATA_EXCHANGE).await.expect("it is public");
    let mut send = async |text: &str| send_message(&mut stream, Content::text(text), None, SOON).await;
    send("before").await.expect("there is room");
    assert_eq!(health()["disk_ok"], true);
    peer.handshake(own, "please").await.expect("sent");
    disk.fill();
    let refusal = send("during").await.expect_err("no room").to_string();
    assert!(refusal.contains("receiver cannot store it: the disk is full"), "{refusal}");
    let out = texts(&approve());
    assert!(out.contains("not saved and told to nobody yet") && out.contains("the disk is full"), "{out}");
    assert_eq!(health()["disk_ok"], false);
    let warnings = data(&disk, &["info"])["warnings"].to_string();
    assert!(warnings.contains("the disk is full") && warnings.contains("free some space"), "{warnings}");
    assert!(!peer.is_trusted(own));
    disk.free();
    send("after").await.expect("there is room again");
    assert_eq!(peer.wait_for_trust(own, SOON).await, pilot::TrustWait::Trusted);
    wait(|| health()["disk_ok"] == true);
    process.kill();
}
