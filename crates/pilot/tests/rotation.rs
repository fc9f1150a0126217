//! Key rotations, interrupted at every point: the node keeps its id, and the key the registry has.
#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{config, node, rendezvous, restart, within};
use pilot::pilot_proto::crypto::Identity;
use pilot::{Node, NodeConfig, RegistryError, StartError};
use pilot_disk::simulate::{Image, Random, Recorder};
use pilot_disk::{Disk, Op, Watch};
use pilot_rendezvous::{Config, Server, StoreConfig};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Where the process dies: nothing reaches the disk after so many steps.
#[derive(Debug)]
struct Dies(AtomicUsize);

impl Watch for Dies {
    fn before(&self, _: &Op<'_>) -> io::Result<()> {
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the process is dead")),
        }
    }
}

fn home(server: &Server, dir: &Path) -> NodeConfig {
    NodeConfig { identity_path: Some(dir.join("identity.json")), public: true, ..config(server) }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("identity"))
        .collect();
    names.sort();
    names
}

/// The node starts, has the id it had, and its key is the registry's.
async fn starts_as(id: u32, config: NodeConfig) -> Node {
    let node = node(config).await;
    assert_eq!(node.node_id(), id);
    let record = node.lookup(id).await.unwrap();
    assert_eq!(record["public_key"], node.identity().public_key_base64());
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_step_on_the_disk_keeps_the_identity() {
    let server = rendezvous().await;
    let mut outcomes = std::collections::BTreeSet::new();
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let first = node(home(&server, dir.path())).await;
        let (id, before) = (first.node_id(), first.identity().public_key_base64());
        within(first.shutdown()).await;
        let disk = Disk::watched(Arc::new(Dies(AtomicUsize::new(steps))));
        let dying = node(NodeConfig { disk, ..home(&server, dir.path()) }).await;
        let rotated = within(dying.rotate_key()).await.is_ok();
        within(dying.shutdown()).await;
        let left = files(dir.path());
        let after = starts_as(id, home(&server, dir.path())).await;
        let changed = after.identity().public_key_base64() != before;
        assert!(changed || !rotated, "acknowledged after {steps} steps and lost");
        assert_eq!(files(dir.path()), ["identity.json"], "settled");
        within(after.shutdown()).await;
        outcomes.insert((rotated, changed, left.contains(&"identity.json.new".to_owned())));
        if rotated && left == ["identity.json"] {
            assert!(steps > 8, "each step was tried");
            break;
        }
    }
    // Not begun; begun and finished later; done.
    assert!(outcomes.contains(&(false, false, false)), "{outcomes:?}");
    assert!(outcomes.contains(&(true, true, true)), "{outcomes:?}");
    assert!(outcomes.contains(&(true, true, false)), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_keeps_the_identity() {
    let server = rendezvous().await;
    let random = &mut Random(1);
    let dir = tempfile::tempdir().unwrap();
    let first = node(home(&server, dir.path())).await;
    let id = first.node_id();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    within(first.shutdown()).await;
    let disk = Disk::watched(recorder.clone());
    let rotating = node(NodeConfig { disk, ..home(&server, dir.path()) }).await;
    let began = recorder.steps();
    within(rotating.rotate_key()).await.unwrap();
    let ended = recorder.steps();
    within(rotating.shutdown()).await;
    // The registry is asked when the new key is durable, so every cut before that leaves a registry with the old key.
    let durable = (began..=ended)
        .find(|at| (0..40).all(|_| holds(&recorder.cut(*at, random), "identity.json.new")))
        .expect("the new key is durable at some step");
    for at in durable..=ended {
        for _ in 0..3 {
            let left = tempfile::tempdir().unwrap();
            recorder.cut(at, random).write(left.path()).unwrap();
            let after = starts_as(id, home(&server, left.path())).await;
            assert_eq!(files(left.path()), ["identity.json"]);
            within(after.shutdown()).await;
        }
    }
    for at in began..durable {
        for _ in 0..40 {
            let image = recorder.cut(at, random);
            assert!(holds(&image, "identity.json"), "the old key is there until the new one is");
        }
    }
}

fn holds(image: &Image, name: &str) -> bool {
    image.files.get(Path::new(name)).is_some_and(|text| serde_json::from_slice::<Value>(text).is_ok())
}

/// What happens to the first rotation that passes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    RequestLost,
    AnswerLost,
}

/// Passes requests on to the registry, one connection after the other, until it meets a rotation.
async fn proxy(to: SocketAddr, fate: Fate) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let met = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, to, fate, met.clone()));
        }
    });
    addr
}

async fn frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await?;
    let len = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    frame.resize(4 + len, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

async fn pass(mut client: TcpStream, to: SocketAddr, fate: Fate, met: Arc<AtomicUsize>) -> io::Result<()> {
    let mut registry = TcpStream::connect(to).await?;
    loop {
        let request = frame(&mut client).await?;
        let is = |kind: &str| String::from_utf8_lossy(&request).contains(&format!("\"type\":\"{kind}\""));
        let doomed = is("rotate_key") && met.fetch_add(1, Ordering::Relaxed) == 0;
        // Until the process has ended nothing else gets through, so that it cannot find out.
        if doomed && fate == Fate::RequestLost || is("lookup") && met.load(Ordering::Relaxed) == 1 {
            return Ok(());
        }
        registry.write_all(&request).await?;
        if is("subscribe") {
            tokio::io::copy_bidirectional(&mut client, &mut registry).await?;
            return Ok(());
        }
        let answer = frame(&mut registry).await?;
        if doomed {
            return Ok(());
        }
        client.write_all(&answer).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_rotation_is_finished_at_the_next_start() {
    let server = rendezvous().await;
    for fate in [Fate::RequestLost, Fate::AnswerLost] {
        let dir = tempfile::tempdir().unwrap();
        let registry = proxy(server.registry_addr(), fate).await.to_string();
        let first = node(NodeConfig { registry, ..home(&server, dir.path()) }).await;
        let (id, before) = (first.node_id(), first.identity().public_key_base64());
        let error = within(first.rotate_key()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable(_)), "{error}");
        let warnings = first.status().await.warnings;
        assert!(warnings.iter().any(|w| w.contains("did not answer a key rotation")), "{warnings:?}");
        within(first.shutdown()).await;
        assert_eq!(files(dir.path()), ["identity.json", "identity.json.new"], "both keys are kept");
        let after = starts_as(id, home(&server, dir.path())).await;
        assert_ne!(after.identity().public_key_base64(), before, "{fate:?}");
        assert_eq!(files(dir.path()), ["identity.json"]);
        within(after.rotate_key()).await.unwrap();
        within(after.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_keys_are_kept_until_the_registry_answers() {
    let store = tempfile::tempdir().unwrap();
    let stored = Config { store: StoreConfig::File(store.path().join("registry.db")), ..Config::loopback() };
    let server = Server::start(stored.clone()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let registry = proxy(server.registry_addr(), Fate::AnswerLost).await.to_string();
    let first = node(NodeConfig { registry, ..home(&server, dir.path()) }).await;
    let id = first.node_id();
    within(first.rotate_key()).await.unwrap_err();
    within(first.shutdown()).await;
    let config = home(&server, dir.path());
    let addresses =
        Config { registry_addr: server.registry_addr(), beacon_addr: server.beacon_addr(), ..stored };
    server.shutdown().await;
    let error = within(Node::start(config.clone())).await.unwrap_err();
    assert!(matches!(error, StartError::Unreachable(_)), "{error}");
    assert_eq!(files(dir.path()), ["identity.json", "identity.json.new"]);
    let server = restart(addresses).await;
    within(starts_as(id, config).await.shutdown()).await;
    assert_eq!(files(dir.path()), ["identity.json"]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_signed_off_finds_its_key_by_registering() {
    let server = rendezvous().await;
    for fate in [Fate::RequestLost, Fate::AnswerLost] {
        let dir = tempfile::tempdir().unwrap();
        let registry = proxy(server.registry_addr(), fate).await.to_string();
        let first = node(NodeConfig { registry, ..home(&server, dir.path()) }).await;
        let id = first.node_id();
        within(first.rotate_key()).await.unwrap_err();
        within(first.shutdown()).await;
        // The key in force signs the node off, as its owner might with another tool.
        let text = std::fs::read_to_string(dir.path().join(match fate {
            Fate::RequestLost => "identity.json",
            Fate::AnswerLost => "identity.json.new",
        }));
        let other = tempfile::tempdir().unwrap();
        Disk::new().replace(&other.path().join("identity.json"), text.unwrap().as_bytes()).unwrap();
        let elsewhere = starts_as(id, home(&server, other.path())).await;
        within(elsewhere.deregister()).await.unwrap();
        within(elsewhere.shutdown()).await;
        let after = starts_as(id, home(&server, dir.path())).await;
        assert_eq!(files(dir.path()), ["identity.json"], "{fate:?}");
        within(after.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_do_not_belong_together_are_named_and_left() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let config = home(&server, dir.path());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    within(node(config.clone()).await.shutdown()).await;
    write("identity.json.new", "{");
    let error = within(Node::start(config.clone())).await.unwrap_err().to_string();
    assert!(error.contains("identity.json.new: identity file corrupted"), "{error}");
    let text = std::fs::read_to_string(dir.path().join("identity.json")).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    let key = Identity::from_seed([5; 32]).unwrap();
    other["private_key"] = STANDARD.encode([&[5; 32][..], key.public_key()].concat()).into();
    other["public_key"] = key.public_key_base64().into();
    other["node_id"] = 1.into();
    other["previous_public_key"] = Identity::from_seed([6; 32]).unwrap().public_key_base64().into();
    write("identity.json.new", &other.to_string());
    let error = within(Node::start(config.clone())).await.unwrap_err().to_string();
    assert!(error.contains("it holds the rotation of another identity"), "{error}");
    std::fs::remove_file(dir.path().join("identity.json")).unwrap();
    let error = within(Node::start(config)).await.unwrap_err().to_string();
    assert!(error.contains("is missing, but") && error.contains("rename the other one to it"), "{error}");
    assert_eq!(files(dir.path()), ["identity.json.new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_kept_is_not_told_to_the_registry() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(pilot_disk::simulate::Fault::default());
    let disk = Disk::watched(fault.clone());
    let full = node(NodeConfig { disk, ..home(&server, dir.path()) }).await;
    let before = full.identity().public_key_base64();
    fault.set(Some(io::ErrorKind::StorageFull));
    let error = within(full.rotate_key()).await.unwrap_err().to_string();
    assert!(error.contains("nothing was changed") && error.contains("the disk is full"), "{error}");
    let record = full.lookup(full.node_id()).await.unwrap();
    assert_eq!(record["public_key"], before);
    fault.set(None);
    within(full.rotate_key()).await.unwrap();
    assert_ne!(full.identity().public_key_base64(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_is_durable_before_the_registry_gives_it_an_id() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(pilot_disk::simulate::Fault::default());
    fault.set(Some(io::ErrorKind::StorageFull));
    let disk = Disk::watched(fault);
    let error = within(Node::start(NodeConfig { disk, ..home(&server, dir.path()) })).await.unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(server.stats().nodes_known, 0, "nobody registered");
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let disk = Disk::watched(recorder.clone());
    // The process is killed as soon as it has an id: whatever the disk lost, the id is the same.
    let first = node(NodeConfig { disk, ..home(&server, dir.path()) }).await;
    let id = first.node_id();
    let left = tempfile::tempdir().unwrap();
    recorder.cut(recorder.steps(), &mut Random(2)).write(left.path()).unwrap();
    within(first.shutdown()).await;
    within(starts_as(id, home(&server, left.path())).await.shutdown()).await;
}
