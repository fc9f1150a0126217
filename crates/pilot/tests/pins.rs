//! What a registry that lies, or one that is gone, can do to nodes that know each other.

#![allow(clippy::unwrap_used)]

mod common;

use common::{LIMIT, config, echo_round, event, node, pattern, rendezvous, restart, serve_echo, within};
use pilot::pilot_proto::crypto::{Identity, fingerprint};
use pilot::{Node, NodeConfig, TrustWait};
use pilot_rendezvous::Config;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The key to name in `lookup` answers about a node instead of the true one.
type Lie = Arc<Mutex<Option<(u64, String)>>>;

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let len = from.read_u32().await.ok()?;
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Somebody on the way to the registry at `to`, who passes everything on but for the lie.
async fn liar(to: SocketAddr, lie: Lie) -> String {
    async fn answers(
        mut server: tokio::net::tcp::OwnedReadHalf,
        mut client: tokio::net::tcp::OwnedWriteHalf,
        lie: Lie,
    ) -> Option<()> {
        loop {
            let mut answer: Value = serde_json::from_slice(&frame(&mut server).await?).ok()?;
            let told = lie.lock().unwrap().clone();
            if let Some((node, key)) = told
                && answer["node_id"] == node
                && answer["type"] == "lookup_ok"
            {
                answer["public_key"] = key.into();
                // What the node signed itself would give the lie away at once (tests/records.rs).
                for signed in ["record", "key_generation"] {
                    answer.as_object_mut()?.remove(signed);
                }
            }
            let body = serde_json::to_vec(&answer).ok()?;
            client.write_u32(body.len() as u32).await.ok()?;
            client.write_all(&body).await.ok()?;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let Ok(server) = TcpStream::connect(to).await else { continue };
            let ((mut asking, answered), (answering, mut asked)) = (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut asking, &mut asked).await });
            tokio::spawn(answers(answering, answered, lie.clone()));
        }
    });
    address
}

fn warned<'a>(warnings: &'a [String], text: &str) -> Option<&'a String> {
    warnings.iter().find(|warning| warning.contains(text))
}

/// The node at the address of `of`, but with another identity and number of its own: what somebody whom the registry helps
/// would run.
async fn restarted(of: &Node, config: NodeConfig) -> Node {
    of.shutdown().await;
    node(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_names_another_key_is_an_alarm_and_the_known_peer_stays_reachable() {
    let server = rendezvous().await;
    let lie = Lie::default();
    let registry = liar(server.registry_addr(), lie.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let own = || NodeConfig {
        identity_path: Some(dir.path().join("identity.json")),
        registry: registry.clone(),
        ..config(&server)
    };
    let b = node(NodeConfig { public: true, trust_auto_approve: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    let a = node(own()).await;
    a.handshake(b.node_id(), "one").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;

    let other = Identity::from_seed([77; 32]).unwrap();
    *lie.lock().unwrap() = Some((u64::from(b.node_id()), other.public_key_base64()));
    // Started again it remembers the key. When it asks the registry, that lies.
    let a = restarted(&a, own()).await;
    let mut events = a.events();
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    a.lookup(b.node_id()).await.unwrap();
    let alarm = event(&mut events, "security.key_changed").await;
    let (pinned, shown) = (fingerprint(b.identity().public_key()), fingerprint(other.public_key()));
    assert_eq!(alarm.data["peer_node_id"], b.node_id());
    assert_eq!(
        (&alarm.data["pinned"], &alarm.data["shown"]),
        (&pinned.clone().into(), &shown.clone().into())
    );
    assert_eq!(alarm.data["source"], "registry");
    let warnings = a.status().await.warnings;
    let warning = warned(&warnings, "the registry names another key").expect("a warning");
    assert!(warning.contains(&pinned) && warning.contains(&shown), "{warning}");
    assert!(warning.contains(&format!("pilotctl handshake {}", b.node_id())), "{warning}");
    assert!(a.is_trusted(b.node_id()), "a lie alone ends no trust");
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;

    // The truth again: the alarm is over.
    *lie.lock().unwrap() = None;
    let a = restarted(&a, own()).await;
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    assert_eq!(warned(&a.status().await.warnings, "another key"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_is_refused_until_the_operator_shakes_hands_again() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str| NodeConfig {
        identity_path: Some(dir.path().join(name).join("identity.json")),
        trust_auto_approve: true,
        public: true,
        ..config(&server)
    };
    let a = node(NodeConfig { trust_auto_approve: false, ..with("a") }).await;
    let b = node(with("b")).await;
    a.handshake(b.node_id(), "one").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    let old = fingerprint(b.identity().public_key());
    b.rotate_key().await.unwrap();
    let new = fingerprint(b.identity().public_key());

    // The peer's own frames prove the new key: trust is over, and no session comes of them.
    let mut events = a.events();
    let b = restarted(&b, with("b")).await;
    serve_echo(b.listen(7).await.unwrap());
    let knock = tokio::spawn({
        let (b, to) = (b.clone(), a.address());
        async move { b.dial(to, 7).await.map(drop) }
    });
    for source in ["registry", "peer"] {
        let alarm = event(&mut events, "security.key_changed").await.data;
        assert_eq!((&alarm["pinned"], &alarm["shown"]), (&old.clone().into(), &new.clone().into()));
        assert_eq!(alarm["source"], source);
    }
    assert!(!a.is_trusted(b.node_id()));
    // The end of trust may still be tearing the tunnel down, which ends a dial as well.
    let error = within(async {
        loop {
            let error = a.dial(b.address(), 7).await.unwrap_err().to_string();
            if error != "context canceled" {
                return error;
            }
        }
    })
    .await;
    assert!(error.contains(&old) && error.contains(&new), "the dial says why: {error}");
    knock.abort();

    // The operator's word.
    a.handshake(b.node_id(), "your key is new").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    assert_eq!(warned(&a.status().await.warnings, "the registry names another key"), None);
    a.shutdown().await;
    let file: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("a").join("peers.json")).unwrap()).unwrap();
    let record = file["peers"].as_array().unwrap().iter().find(|p| p["node_id"] == b.node_id()).unwrap();
    assert_eq!(
        (&record["public_key"], &record["key_version"]),
        (&b.identity().public_key_base64().into(), &2.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_handshake_with_a_changed_peer_is_an_error_that_names_both_keys() {
    let server = rendezvous().await;
    let lie = Lie::default();
    let registry = liar(server.registry_addr(), lie.clone()).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    let a = node(NodeConfig { registry, ..config(&server) }).await;
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    let other = Identity::from_seed([77; 32]).unwrap();
    *lie.lock().unwrap() = Some((u64::from(b.node_id()), other.public_key_base64()));
    let error = a.handshake(b.node_id(), "hello").await.unwrap_err();
    let (pinned, shown) = (fingerprint(b.identity().public_key()), fingerprint(other.public_key()));
    assert!(error.contains(&pinned) && error.contains(&shown), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_registry_at_the_same_address_is_an_alarm() {
    let server = rendezvous().await;
    let (registry_addr, beacon_addr) = (server.registry_addr(), server.beacon_addr());
    let a = node(NodeConfig { keepalive: Duration::from_millis(100), ..config(&server) }).await;
    let mut events = a.events();
    server.shutdown().await;
    let _server = restart(Config { registry_addr, beacon_addr, ..Config::loopback() }).await;
    let alarm = event(&mut events, "security.registry_changed").await;
    assert_eq!(alarm.data["registry"], registry_addr.to_string());
    let warnings = a.status().await.warnings;
    assert!(warned(&warnings, "is another one than before").is_some(), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_peers_connect_while_the_registry_is_away() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let dir = tempfile::tempdir().unwrap();
    let with_identity = || NodeConfig {
        identity_path: Some(dir.path().join("identity.json")),
        listen: "127.0.0.1:0".parse().unwrap(),
        public: true,
        ..config(&server)
    };
    let b = node(with_identity()).await;
    serve_echo(b.listen(7).await.unwrap());
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
    a.prefer_direct(b.node_id()).await.unwrap();
    server.shutdown().await;
    within(async {
        while a.lookup(b.node_id()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_after_a_rotation_are_signed_with_the_new_key() {
    let server = rendezvous().await;
    let a = node(NodeConfig { keepalive: Duration::from_millis(100), ..config(&server) }).await;
    let mut events = a.events();
    event(&mut events, "agent.heartbeat").await;
    a.rotate_key().await.unwrap();
    event(&mut events, "key.rotated").await;
    for _ in 0..3 {
        let next = within(async {
            loop {
                let event = events.recv().await.unwrap();
                if event.name == "agent.heartbeat" || event.name == "node.reregistered" {
                    return event.name;
                }
            }
        })
        .await;
        assert_eq!(next, "agent.heartbeat", "a refused heartbeat would make the node register anew");
    }
    assert!(a.status().await.registry_ok);
}
