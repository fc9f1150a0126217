//! Nodes without UDP: the WebSocket to the beacon.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use pilot::pilot_proto::{Addr, crypto::sha256};
use pilot::{Node, NodeConfig, RegistryTls, Stream, Transport};
use pilot_rendezvous::{Config, Server, Tls};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Longest wait for anything these tests wait for.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 4242;

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"));
}

fn config(server: &Server) -> NodeConfig {
    NodeConfig {
        registry: server.registry_addr().to_string(),
        registry_tls: server.tls_fingerprint().map(|digest| RegistryTls::Pinned(digest.to_owned())),
        public: true,
        trust_auto_approve: true,
        listen: "127.0.0.1:0".parse().unwrap(),
        ..NodeConfig::default()
    }
}

/// Sends back what comes, on every stream.
fn echo(node: &Node) {
    let node = node.clone();
    tokio::spawn(async move {
        let mut listener = node.listen(PORT).await.unwrap();
        while let Some(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(bytes) = stream.read().await {
                    if stream.write(bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Sends this and waits until all of it is back.
async fn exchange(stream: &mut Stream, sent: &[u8]) {
    stream.write(Bytes::copy_from_slice(sent)).await.unwrap();
    let mut back = Vec::new();
    while back.len() < sent.len() {
        back.extend(
            timeout(PATIENCE, stream.read()).await.expect("the echo comes").expect("the stream lives"),
        );
    }
    assert_eq!(sha256(&back), sha256(sent));
}

async fn dial(node: &Node, to: Addr) -> Stream {
    timeout(PATIENCE, node.dial(to, PORT)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_without_udp_exchange_streams_through_the_registrys_own_port() {
    let server = Server::start(Config { tls: Tls::SelfSigned, ..Config::loopback() }).await.unwrap();
    let compat = || NodeConfig { transport: Transport::Compat, ..config(&server) };
    let (a, b) = (Node::start(compat()).await.unwrap(), Node::start(compat()).await.unwrap());
    echo(&b);
    let mut stream = dial(&a, b.address()).await;
    for _ in 0..12 {
        exchange(&mut stream, &vec![7; 250_000]).await;
    }
    for node in [&a, &b] {
        let status = node.status().await;
        assert_eq!((status.transport, &*status.endpoint), ("compat", "127.0.0.1:0"));
    }
    assert_eq!((server.stats().compat_nodes, server.stats().beacon_nodes), (2, 0));
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_node_that_finds_no_websocket_says_where_it_looked_and_why_it_failed() {
    let server = Server::start(Config { tls: Tls::SelfSigned, ..Config::loopback() }).await.unwrap();
    let url = format!("ws://{}/elsewhere", server.registry_addr());
    let wrong =
        NodeConfig { transport: Transport::Compat, compat_beacon: Some(url.clone()), ..config(&server) };
    let error = Node::start(wrong).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("no WebSocket to the beacon {url}: ")), "{error}");
}

/// A way to the beacon that can be blocked.
async fn barrier(beacon: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = front.local_addr().unwrap();
    let blocked = Arc::new(AtomicBool::new(false));
    let closed = blocked.clone();
    tokio::spawn(async move {
        let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = vec![0; 65_535];
        while let Ok((n, from)) = front.recv_from(&mut buffer).await {
            if closed.load(Ordering::SeqCst) {
                continue;
            }
            if let Entry::Vacant(entry) = ways.entry(from) {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                way.connect(beacon).await.unwrap();
                entry.insert(way.clone());
                let (front, closed) = (front.clone(), closed.clone());
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65_535];
                    while let Ok(n) = way.recv(&mut buffer).await {
                        if !closed.load(Ordering::SeqCst) {
                            let _ = front.send_to(&buffer[..n], from).await;
                        }
                    }
                });
            }
            let _ = ways[&from].send(&buffer[..n]).await;
        }
    });
    (at, blocked)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_survive_the_loss_of_udp_and_its_return() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let (beacon, blocked) = barrier(server.beacon_addr()).await;
    // Everything goes through the beacon, so that blocking it blocks all.
    let relayed = || NodeConfig { relay_only: true, beacons: vec![beacon.to_string()], ..config(&server) };
    let (a, b) = (Node::start(relayed()).await.unwrap(), Node::start(relayed()).await.unwrap());
    echo(&b);
    let mut stream = dial(&a, b.address()).await;
    exchange(&mut stream, b"over udp").await;
    assert_eq!(a.status().await.transport, "udp");
    blocked.store(true, Ordering::SeqCst);
    exchange(&mut stream, b"over the websocket").await;
    for node in [&a, &b] {
        until("the WebSocket is in use", async || node.status().await.transport == "compat").await;
    }
    blocked.store(false, Ordering::SeqCst);
    for node in [&a, &b] {
        until("UDP is in use again", async || node.status().await.transport == "udp").await;
    }
    exchange(&mut stream, b"over udp again").await;
    until("the WebSockets are closed", async || server.stats().compat_nodes == 0).await;
    exchange(&mut stream, b"and still").await;
}
