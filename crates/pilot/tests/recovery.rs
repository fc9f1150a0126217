//! Processes that end without a word and come back, peers that are not there, a registry that goes away.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{config, echo_round, node, pattern, rendezvous, restart, serve_echo, within};
use pilot::pilot_proto::Addr;
use pilot::pilot_proto::engine::SendError;
use pilot::pilot_proto::stream::{CloseReason, DialError};
use pilot::{Node, NodeConfig};
use pilot_rendezvous::{Config, StoreConfig};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What is promised once the restarted process is up.
const PROMISE: Duration = Duration::from_secs(2);

/// A node in a runtime of its own, so that it can end like a killed process: at once, saying nothing.
struct Process {
    runtime: Option<Runtime>,
    node: Node,
    /// Where it was asked to listen.
    config: NodeConfig,
}

impl Process {
    async fn start(config: NodeConfig) -> Process {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let starting = config.clone();
        let node = within(runtime.spawn(async move {
            let node = Node::start(starting).await.unwrap();
            serve_echo(node.listen(7).await.unwrap());
            node
        }));
        let node = node.await.unwrap();
        Process { runtime: Some(runtime), node, config }
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Ends it and waits until its port is free, as it is when a process has ended.
    async fn kill(mut self) {
        let endpoint = self.endpoint().await;
        self.end();
        within(async {
            while UdpSocket::bind(endpoint).is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn endpoint(&self) -> SocketAddr {
        self.node.status().await.endpoint.parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A runtime must not be dropped where futures run.
        self.end();
    }
}

/// Waits until the node's file of peers names an address of `peer`.
async fn remembered(dir: &Path, peer: u32) {
    let known = || -> Option<bool> {
        let text = std::fs::read(dir.join("peers.json")).ok()?;
        let file: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let peers = file["peers"].as_array()?.iter();
        Some(peers.filter(|p| p["node_id"] == peer).any(|p| !p["endpoints"].as_array().unwrap().is_empty()))
    };
    within(async {
        while known() != Some(true) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_comes_back_at_its_port_and_its_peers_learn_of_it_at_once() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let a = node(config(&server)).await;
    let settings =
        NodeConfig { identity_path: Some(dir.path().join("identity.json")), public: true, ..config(&server) };
    let b = Process::start(settings).await;
    let endpoint = b.endpoint().await;
    let (mut reader, mut writer) = within(a.dial(b.node.address(), 7)).await.unwrap().split();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(within(reader.read()).await.unwrap(), "hello");
    remembered(dir.path(), a.node_id()).await;
    let settings = b.config.clone();
    b.kill().await;

    let b = Process::start(settings).await;
    let up = Instant::now();
    assert_eq!(b.endpoint().await, endpoint, "the same port");
    // This side sends nothing: the restarted one greets, and is asked for the stream.
    assert_eq!(within(reader.read()).await, None);
    assert_eq!(reader.close_reason(), Some(CloseReason::PeerRestarted));
    println!("the stream ended after {:?}", up.elapsed());
    assert!(up.elapsed() < PROMISE, "{:?}", up.elapsed());
    assert_eq!(
        writer.write(Bytes::from_static(b"x")).await.unwrap_err().to_string(),
        "connection reset: peer restarted"
    );
    let began = Instant::now();
    echo_round(within(a.dial(b.node.address(), 7)).await.unwrap(), pattern(10_000)).await;
    println!("traffic flows after {:?}", began.elapsed());
    assert!(up.elapsed() < PROMISE + PROMISE, "{:?}", up.elapsed());
    assert_eq!(a.status().await.peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_behind_the_relay_is_greeted_through_it() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let a = node(NodeConfig { relay_only: true, ..config(&server) }).await;
    let settings =
        NodeConfig { identity_path: Some(dir.path().join("identity.json")), public: true, ..config(&server) };
    let b = Process::start(settings.clone()).await;
    let (mut reader, mut writer) = within(a.dial(b.node.address(), 7)).await.unwrap().split();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(within(reader.read()).await.unwrap(), "hello");
    // No address of the peer is ever known; its record is saved with its key.
    let file = dir.path().join("peers.json");
    within(async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("public_key")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    b.kill().await;
    let _b = Process::start(settings).await;
    let up = Instant::now();
    assert_eq!(within(reader.read()).await, None);
    assert_eq!(reader.close_reason(), Some(CloseReason::PeerRestarted));
    assert!(up.elapsed() < PROMISE, "{:?}", up.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_replaced_and_the_node_says_so() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let settings = NodeConfig { identity_path: Some(dir.path().join("identity.json")), ..config(&server) };
    let first = node(settings.clone()).await;
    let before: SocketAddr = first.status().await.endpoint.parse().unwrap();
    first.shutdown().await;
    drop(first);
    let other = within(async {
        loop {
            match UdpSocket::bind(before) {
                Ok(socket) => return socket,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let again = node(settings.clone()).await;
    let status = again.status().await;
    let now: SocketAddr = status.endpoint.parse().unwrap();
    assert_ne!(now, before);
    let start = format!("UDP port {} of the last run is not free (", before.port());
    let end = format!("; this node has UDP port {} now", now.port());
    assert!(
        status.warnings.iter().any(|w| w.starts_with(&start) && w.ends_with(&end)),
        "{:?}",
        status.warnings
    );
    again.shutdown().await;
    drop((again, other));
    let last = node(settings).await;
    assert_eq!(last.status().await.endpoint, now.to_string(), "from then on it is the one to keep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_to_a_node_nobody_knows_is_an_error_and_holds_up_no_other() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut datagrams = b.datagrams();
    let began = Instant::now();
    let nobody = a.offer_datagram(Addr::backbone(999), 1, Bytes::from_static(b"lost")).await.unwrap();
    let somebody = a.offer_datagram(b.address(), 1, Bytes::from_static(b"found")).await.unwrap();
    within(somebody.resolved()).await.unwrap();
    assert_eq!(within(datagrams.recv()).await.unwrap().payload, "found");
    let error = within(nobody.resolved()).await.unwrap_err();
    assert!(matches!(&error, SendError::Resolve { node: 999, .. }), "{error:?}");
    assert!(error.to_string().starts_with("resolve node 999: "), "{error}");
    println!("{error} after {:?}", began.elapsed());
    assert!(began.elapsed() < PROMISE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_to_a_dead_node_fails_after_ten_seconds_and_says_what_was_tried() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let to = b.address();
    b.shutdown().await;
    drop(b);
    let began = Instant::now();
    let error = within(a.dial(to, 7)).await.unwrap_err();
    println!("{error} after {:?}", began.elapsed());
    assert!(matches!(error, DialError::KeyExchange { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with("dial timeout: key exchange with peer did not complete (no answer in 10 s"),
        "{text}"
    );
    assert!(text.ends_with("and through the relay)"), "{text}");
    assert!((9..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_does_not_notice_that_the_rendezvous_restarts_and_the_node_registers_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::File(dir.path().join("registry.db"));
    let server = restart(Config { store: store.clone(), ..Config::loopback() }).await;
    let (registry_addr, beacon_addr) = (server.registry_addr(), server.beacon_addr());
    let settings = || NodeConfig { keepalive: Duration::from_secs(1), ..config(&server) };
    let a = node(settings()).await;
    let b = node(NodeConfig { public: true, ..settings() }).await;
    serve_echo(b.listen(7).await.unwrap());
    let mut stream = within(a.dial(b.address(), 7)).await.unwrap();
    let mut round = async |n: u32| {
        let began = Instant::now();
        stream.write(Bytes::from(n.to_be_bytes().to_vec())).await.unwrap();
        assert_eq!(&within(stream.read()).await.unwrap()[..], n.to_be_bytes());
        assert!(began.elapsed() < Duration::from_secs(1), "round {n}: {:?}", began.elapsed());
    };
    round(0).await;
    server.shutdown().await;
    for n in 1..=40 {
        round(n).await;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(!a.status().await.registry_ok, "its loss is known by now");
    let again = restart(Config { store, registry_addr, beacon_addr, ..Config::loopback() }).await;
    let up = Instant::now();
    let mut n = 40;
    while !(a.status().await.registry_ok && b.status().await.registry_ok) {
        n += 1;
        round(n).await;
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert!(up.elapsed() < common::LIMIT, "never registered again");
    }
    let took = up.elapsed();
    println!("registered again {took:?} after the rendezvous was up");
    // Heartbeats come every second here, and the pause between attempts has grown to 0.8 s at most.
    assert!(took < Duration::from_secs(5), "{took:?}");
    let c = node(NodeConfig { public: true, ..config(&again) }).await;
    echo_round(within(c.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
}
