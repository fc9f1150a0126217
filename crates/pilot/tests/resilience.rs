//! What goes wrong in practice: peers that restart, lost files, dials given up, a registry without extensions.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{LIMIT, config, echo_round, node, pattern, rendezvous, serve_echo, within};
use pilot::{HandshakeSent, NodeConfig, TrustWait};
use pilot_proto::Addr;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_reached_again_at_once() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let public = || NodeConfig {
        identity_path: Some(dir.path().join("identity.json")),
        public: true,
        ..config(&server)
    };
    let a = node(config(&server)).await;
    let b = node(public()).await;
    serve_echo(b.listen(7).await.unwrap());
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(10_000)).await;
    b.shutdown().await;
    drop(b);
    let b = node(public()).await;
    serve_echo(b.listen(7).await.unwrap());
    let began = Instant::now();
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(10_000)).await;
    println!("reached again after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_node_that_lost_its_trust_file_asks_the_registry() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let private = || NodeConfig {
        identity_path: Some(dir.path().join("identity.json")),
        trust_auto_approve: true,
        ..config(&server)
    };
    let a = node(config(&server)).await;
    let b = node(private()).await;
    a.handshake(b.node_id(), "one").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    b.shutdown().await;
    drop(b);
    std::fs::remove_file(dir.path().join("trust.json")).unwrap();
    let b = node(private()).await;
    assert!(!b.is_trusted(a.node_id()));
    serve_echo(b.listen(7).await.unwrap());
    let began = Instant::now();
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    println!("let in after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_trust_file_is_kept_aside_and_named() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let with_identity =
        || NodeConfig { identity_path: Some(dir.path().join("identity.json")), ..config(&server) };
    node(with_identity()).await.shutdown().await;
    std::fs::write(dir.path().join("trust.json"), "{\"trusted\": [").unwrap();
    let again = node(with_identity()).await;
    let warnings = again.status().await.warnings;
    assert!(warnings[0].contains("trust.json is not valid"), "{warnings:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("trust.json.bad")).unwrap(), "{\"trusted\": [");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_is_given_up_leaves_nothing_behind() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let to = b.address();
    b.shutdown().await;
    drop(b);
    let dialling = tokio::time::timeout(Duration::from_millis(200), a.dial(to, 7)).await;
    assert!(dialling.is_err(), "nobody is there: {dialling:?}");
    within(async {
        while !a.status().await.connections.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_handle_stops_the_node() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let endpoint: SocketAddr = a.status().await.endpoint.parse().unwrap();
    let clone = a.clone();
    drop(a);
    assert!(clone.status().await.registry_ok, "a clone keeps it alive");
    assert!(std::net::UdpSocket::bind(endpoint).is_err());
    drop(clone);
    within(async {
        while std::net::UdpSocket::bind(endpoint).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_does_not_block_the_peer() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut listener = b.listen(80).await.unwrap();
    let mut stream = within(a.dial(b.address(), 80)).await.unwrap();
    let (reader, mut writer) = within(listener.accept()).await.unwrap().split();
    drop(reader);
    within(stream.write(pattern(16 << 20).into())).await.unwrap();
    writer.write(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(within(stream.read()).await.unwrap(), "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_only_nodes_talk_through_the_beacon() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { relay_only: true, public: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(300_000)).await;
    let peers = a.status().await.peers;
    assert!(peers.iter().any(|p| p.node_id == b.node_id() && p.relay && p.authenticated), "{peers:?}");
    assert!(server.stats().relayed > 100, "{:?}", server.stats());
}

/// A registry in front of `to` that hides all extensions, as a reference server would.
async fn without_extensions(to: SocketAddr) -> SocketAddr {
    async fn frame(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
        let len = from.read_u32().await.ok()?;
        let mut body = vec![0; len as usize];
        from.read_exact(&mut body).await.ok()?;
        Some(body)
    }
    async fn serve(mut client: TcpStream, to: SocketAddr) -> Option<()> {
        let mut server = TcpStream::connect(to).await.ok()?;
        loop {
            let mut request: Value = serde_json::from_slice(&frame(&mut client).await?).ok()?;
            assert_ne!(request["type"], "subscribe", "an extension nobody offered");
            assert!(request.get("keep").is_none(), "an extension nobody offered");
            // Notices of the beacon come from the same server; the instance would give it away.
            request.as_object_mut()?.remove("instance");
            let body = serde_json::to_vec(&request).ok()?;
            server.write_u32(body.len() as u32).await.ok()?;
            server.write_all(&body).await.ok()?;
            let mut answer: Value = serde_json::from_slice(&frame(&mut server).await?).ok()?;
            for key in ["features", "registry_id", "time", "beacon_port"] {
                answer.as_object_mut()?.remove(key);
            }
            let body = serde_json::to_vec(&answer).ok()?;
            client.write_u32(body.len() as u32).await.ok()?;
            client.write_all(&body).await.ok()?;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(client, to));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_push_answers_are_polled_for() {
    let server = rendezvous().await;
    let registry = without_extensions(server.registry_addr()).await.to_string();
    let plain = || NodeConfig { registry: registry.clone(), ..config(&server) };
    let a = node(plain()).await;
    let b = node(NodeConfig { trust_auto_approve: true, ..plain() }).await;
    let began = Instant::now();
    assert_eq!(a.handshake(b.node_id(), "one").await, Ok(HandshakeSent::Sent));
    // The other side's user looks, as `pilotctl pending` does.
    b.poll_handshakes().await;
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    println!("trusted by polling after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    serve_echo(b.listen(7).await.unwrap());
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_to_nobody_says_so_only_when_it_can() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let broadcast = Addr { network: 0, node: Addr::BROADCAST_NODE };
    let error = a.send_datagram(broadcast, 1, Bytes::from_static(b"x")).await.unwrap_err();
    assert!(error.to_string().contains("broadcast"), "{error}");
    a.shutdown().await;
    let error = a.send_datagram(Addr::backbone(1), 1, Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.to_string(), "resolve node 1: this node has stopped");
}
