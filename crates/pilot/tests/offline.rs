//! A node that starts while registry and beacon are away.
#![allow(clippy::unwrap_used)]

mod common;

use common::{config, echo_round, event, node, pattern, rendezvous, restart, serve_echo, within};
use pilot::{Node, NodeConfig, StartError, TrustWait};
use pilot_rendezvous::{Config, Server, StoreConfig};
use std::path::Path;

fn home(server: &Server, dir: &Path, name: &str) -> NodeConfig {
    let hostname = Some(name.to_owned());
    NodeConfig { identity_path: Some(dir.join("identity.json")), hostname, ..config(server) }
}

/// Mutual trust, and a tunnel both have used.
async fn befriend(ours: &Node, peer: &Node) {
    within(ours.handshake(peer.node_id(), "please")).await.unwrap();
    assert_eq!(ours.wait_for_trust(peer.node_id(), common::LIMIT).await, TrustWait::Trusted);
    within(ours.resolve_hostname("peer")).await.unwrap();
    echo_round(within(ours.dial(peer.address(), 7)).await.unwrap(), pattern(1000)).await;
    // The directory told a stranger nothing, so a tunnel of before the trust went through the relay.
    within(async {
        while ours.status().await.peers.iter().any(|peer| peer.path != "direct") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarted_without_registry_and_beacon_reaches_its_trusted_peer_by_name_and_registers_later() {
    let store = tempfile::tempdir().unwrap();
    let stored = Config { store: StoreConfig::File(store.path().join("registry.db")), ..Config::loopback() };
    let server = Server::start(stored.clone()).await.unwrap();
    let addresses =
        Config { registry_addr: server.registry_addr(), beacon_addr: server.beacon_addr(), ..stored };
    let (ours_dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours_config = home(&server, ours_dir.path(), "ours");
    let ours = node(ours_config.clone()).await;
    let peer = NodeConfig { trust_auto_approve: true, ..home(&server, peer_dir.path(), "peer") };
    let peer = node(peer).await;
    serve_echo(peer.listen(7).await.unwrap());
    befriend(&ours, &peer).await;
    let (id, address) = (ours.node_id(), ours.address());
    within(ours.shutdown()).await;
    drop(ours);
    server.shutdown().await;

    let ours = node(ours_config.clone()).await;
    let status = ours.status().await;
    assert_eq!((status.node_id, status.address, &status.hostname[..]), (id, address, "ours"));
    assert!(!status.registry_ok);
    assert!(status.registry_error.contains("cannot be reached: connection refused"), "{status:?}");
    let told = |warnings: &[String]| warnings.iter().any(|w| w.starts_with("started without the registry"));
    assert!(told(&status.warnings), "{status:?}");
    let found = within(ours.resolve_hostname("peer")).await.unwrap();
    assert_eq!(found["node_id"].as_u64(), Some(u64::from(peer.node_id())));
    assert!(ours.is_trusted(peer.node_id()));
    let stream = within(ours.dial(peer.address(), 7)).await;
    echo_round(stream.unwrap(), pattern(100_000)).await;
    within(ours.resolve_hostname("stranger")).await.unwrap_err();

    let mut events = ours.events();
    let server = restart(addresses).await;
    event(&mut events, "node.reregistered").await;
    let status = ours.status().await;
    assert_eq!((status.node_id, status.registry_ok, &status.registry_error[..]), (id, true, ""));
    assert!(!told(&status.warnings), "{status:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_registered_there_does_not_start_without_the_registry() {
    let (server, other) = (rendezvous().await, rendezvous().await);
    let dir = tempfile::tempdir().unwrap();
    within(node(home(&other, dir.path(), "ours")).await.shutdown()).await;
    let config = home(&server, dir.path(), "ours");
    server.shutdown().await;
    let error = within(Node::start(config)).await.unwrap_err();
    assert!(matches!(error, StartError::Unreachable(_)), "{error}");
    other.shutdown().await;
}
