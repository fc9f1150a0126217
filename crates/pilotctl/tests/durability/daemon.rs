//! A daemon that takes messages and files and changes its trust, killed again and again.

use crate::process::Process;
use crate::rendezvous::free_port;
use crate::{Random, kills, seed};
use pilot::{Node, NodeConfig};
use pilot_daemon::services::client::{send_file, send_message};
use pilot_daemon::services::{inbox, received};
use pilot_ipc::Client;
use pilot_proto::crypto::sha256;
use pilot_proto::service::port;
use pilot_proto::service::send::Content;
use pilot_proto::{Addr, NodeId};
use pilot_rendezvous::{Config, Server};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A start takes milliseconds; this only ends a test that hangs.
const START: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
/// Nodes whose trust is given and taken.
const PEERS: usize = 5;

/// What the daemon acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    messages: BTreeSet<String>,
    /// SHA-256.
    files: BTreeSet<[u8; 32]>,
    /// Whether a node is trusted; `None`: its change was not answered.
    trust: BTreeMap<NodeId, Option<bool>>,
    changes: usize,
}

type Known = Arc<Mutex<Acknowledged>>;

struct Home {
    dir: PathBuf,
    listen: u16,
    registry: String,
    beacon: String,
}

impl Home {
    fn pilot(&self, name: &str) -> PathBuf {
        self.dir.join(".pilot").join(name)
    }

    fn spawn(&self) -> Process {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect("log");
        Process::spawn(
            Command::new(env!("CARGO_BIN_EXE_pilotctl"))
                .args(["daemon", "start", "--foreground", "--public"])
                .args(["--registry", &self.registry, "--beacon", &self.beacon])
                .env_clear()
                .env("HOME", &self.dir)
                .env("PILOT_SOCKET", self.dir.join("s"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("log"))
                .stderr(log),
        )
    }

    async fn ready(&self, process: &mut Process) -> (Client, Value) {
        let began = Instant::now();
        loop {
            if let Ok(client) = Client::connect(self.dir.join("s")).await
                && let Ok(info) = client.info().await
            {
                return (client, info);
            }
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(!process.has_ended(), "the daemon ended: {}", log());
            assert!(began.elapsed() < START, "the daemon does not start: {}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn node(server: &Server) -> Node {
    let config = NodeConfig {
        registry: server.registry_addr().to_string(),
        beacons: vec![server.beacon_addr().to_string()],
        listen: "127.0.0.1:0".parse().expect("an address"),
        ..NodeConfig::default()
    };
    Node::start(config).await.expect("a node starts")
}

/// Sends messages, each with a text of its own, until it is stopped.
async fn messages(from: Node, to: Addr, life: usize, known: Known) {
    while let Ok(mut stream) = from.dial(to, port::DATA_EXCHANGE).await {
        for n in 0.. {
            let text = format!("message {n} of life {life}");
            match send_message(&mut stream, Content::text(text.clone()), None, PATIENCE).await {
                Ok(_) => known.lock().expect("lock").messages.insert(text),
                Err(_) => break,
            };
        }
    }
}

async fn files(from: Node, to: Addr, dir: PathBuf, mut random: Random, known: Known) {
    loop {
        let size = random.below(100_000);
        let content: Vec<u8> =
            std::iter::repeat_with(|| random.next_u64().to_be_bytes()).flatten().take(size).collect();
        fs::write(dir.join("sent.bin"), &content).expect("write");
        let dial = async || from.dial(to, port::DATA_EXCHANGE).await;
        if send_file(dial, &dir.join("sent.bin"), "sent.bin", PATIENCE, |_| {}).await.is_ok() {
            known.lock().expect("lock").files.insert(sha256(&content));
        }
    }
}

async fn trust(client: Client, own: NodeId, peers: Vec<Node>, known: Known) {
    let know = |peer: NodeId, trusted: Option<bool>| {
        let mut known = known.lock().expect("lock");
        known.trust.insert(peer, trusted);
        known.changes += usize::from(trusted.is_some());
    };
    loop {
        for peer in &peers {
            let id = peer.node_id();
            let before = known.lock().expect("lock").trust.get(&id).copied().flatten();
            know(id, None);
            if before == Some(true) {
                match client.handshake_revoke(id).await {
                    Ok(_) => know(id, Some(false)),
                    Err(_) => return,
                }
                continue;
            }
            let asked = peer.handshake(own, "please").await;
            let Ok(answer) = client.handshake_approve(id).await else { return };
            if answer["pending"] == true || answer["trusted"] == true {
                know(id, Some(true));
            } else if asked.is_err() {
                return;
            }
        }
    }
}

fn verify(home: &Home, trusted: &Value, known: &mut Acknowledged) {
    let dir = home.pilot("inbox");
    let records = inbox::list(&dir, &inbox::Filter::default()).expect("the inbox");
    assert_eq!(records.len(), inbox::ids(&dir).expect("the inbox").len(), "each file is a record");
    let texts: BTreeSet<String> =
        records.iter().map(|r| String::from_utf8(r.data().expect("a payload")).expect("a text")).collect();
    let lost: Vec<_> = known.messages.difference(&texts).collect();
    assert!(lost.is_empty(), "messages acknowledged and lost: {lost:?}");
    let stored = received::list(&home.pilot("received"), None).expect("the files").files;
    let hashes: BTreeSet<[u8; 32]> =
        stored.iter().map(|file| sha256(&fs::read(&file.path).expect("a file"))).collect();
    assert!(known.files.is_subset(&hashes), "a file was acknowledged and lost");
    let trusted: BTreeSet<u64> =
        trusted["trusted"].as_array().expect("a list").iter().filter_map(|p| p["node_id"].as_u64()).collect();
    for (peer, state) in &mut known.trust {
        let now = trusted.contains(&u64::from(*peer));
        assert!(
            state.is_none_or(|state| state == now),
            "trust in {peer} was acknowledged as {state:?}, is {now}"
        );
        *state = Some(now);
    }
}

fn text<'a>(info: &'a Value, key: &str) -> &'a str {
    info[key].as_str().unwrap_or_else(|| panic!("{key} in {info}"))
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_loses_nothing_it_acknowledged() {
    // Sending a file borrows across threads what only one may have.
    tokio::task::LocalSet::new().run_until(kill_again_and_again()).await;
}

async fn kill_again_and_again() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(Config::loopback()).await.expect("a rendezvous");
    let home = Home {
        dir: dir.path().to_owned(),
        listen: free_port(),
        registry: server.registry_addr().to_string(),
        beacon: server.beacon_addr().to_string(),
    };
    fs::create_dir(home.pilot("")).expect("directory");
    fs::write(home.pilot("config.json"), format!("{{\"listen\": \"127.0.0.1:{}\"}}", home.listen))
        .expect("write");
    let mut random = seed();
    let known = Known::default();
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        peers.push(node(&server).await);
    }
    let mut first: Option<Value> = None;
    let kills = kills(20);
    for life in 0..=kills {
        let mut process = home.spawn();
        let (client, info) = home.ready(&mut process).await;
        let trusted = client.handshake_trusted().await.expect("the daemon answers");
        verify(&home, &trusted, &mut known.lock().expect("lock"));
        assert!(
            text(&info, "endpoint").ends_with(&format!(":{}", home.listen)),
            "the configured port: {info}"
        );
        let first = first.get_or_insert_with(|| info.clone());
        for key in ["node_id", "public_key", "address"] {
            assert_eq!(info[key], first[key], "the same identity");
        }
        let own = first["node_id"].as_u64().expect("an id") as NodeId;
        if life == kills {
            break;
        }
        let to = Addr::backbone(own);
        let mut load = JoinSet::new();
        load.spawn_local(messages(node(&server).await, to, life, known.clone()));
        load.spawn_local(files(
            node(&server).await,
            to,
            sent(dir.path(), life),
            random.branch(),
            known.clone(),
        ));
        load.spawn_local(trust(client, own, peers.clone(), known.clone()));
        tokio::time::sleep(Duration::from_millis(100 + random.below(700) as u64)).await;
        process.kill();
        load.shutdown().await;
    }
    let known = known.lock().expect("lock");
    let (messages, files, changes) = (known.messages.len(), known.files.len(), known.changes);
    println!(
        "{kills} kills, nothing acknowledged was lost: {messages} messages, {files} files, {changes} changes of trust"
    );
    assert!(messages > kills && files > kills && changes > kills, "a load that proves something");
}

/// Where the files of one life are sent from.
fn sent(dir: &Path, life: usize) -> PathBuf {
    let dir = dir.join(format!("sent-{life}"));
    fs::create_dir(&dir).expect("directory");
    dir
}
