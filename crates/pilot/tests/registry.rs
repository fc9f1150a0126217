//! Being registered: names, restarts, rotation, takeover, a registry that goes away.

mod common;

use common::{config, echo_round, event, node, pattern, rendezvous, restart, serve_echo, within};
use pilot::{Node, NodeConfig, RegistryTls, StartError};
use pilot_rendezvous::{Config, Server, StoreConfig, Tls};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_takes_milliseconds_and_everything_is_set() {
    let server = rendezvous().await;
    let mut fastest = Duration::MAX;
    for i in 0..5 {
        let began = Instant::now();
        let name = format!("quick-{i}");
        let started = node(NodeConfig {
            hostname: Some(name.clone()),
            tags: vec!["fast".into()],
            public: true,
            ..config(&server)
        })
        .await;
        fastest = fastest.min(began.elapsed());
        let status = started.status().await;
        assert_eq!(status.hostname, name);
        assert!(status.registry_ok && status.warnings.is_empty(), "{:?}", status.warnings);
        let record = started.lookup(started.node_id()).await.unwrap();
        assert_eq!((&record["hostname"], &record["public"]), (&name.into(), &true.into()));
        assert_eq!(record["tags"], serde_json::json!(["fast"]));
        assert_eq!(record["real_addr"], status.endpoint, "the observed endpoint is registered");
        assert_eq!(status.ports, 1, "the handshake port");
    }
    println!("fastest start: {fastest:?}");
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_configured_beacon_the_registry_names_its_own() {
    let server = rendezvous().await;
    let a = node(NodeConfig { beacons: Vec::new(), public: true, ..config(&server) }).await;
    let b = node(NodeConfig { beacons: Vec::new(), ..config(&server) }).await;
    assert_eq!(a.status().await.beacon_addr, server.beacon_addr().to_string());
    serve_echo(a.listen(7).await.unwrap());
    echo_round(within(b.dial(a.address(), 7)).await.unwrap(), pattern(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_resolved_changed_and_refused_visibly() {
    let server = rendezvous().await;
    let a = node(NodeConfig { hostname: Some("agent-a".into()), public: true, ..config(&server) }).await;
    let b = node(NodeConfig { hostname: Some("agent-a".into()), ..config(&server) }).await;
    let found = b.resolve_hostname("agent-a").await.unwrap();
    assert_eq!(found["node_id"], a.node_id());
    let status = b.status().await;
    assert_eq!(status.hostname, "", "the name belongs to another node");
    assert_eq!(status.warnings.len(), 1);
    assert!(
        status.warnings[0].contains("agent-a") && status.warnings[0].contains("already in use"),
        "{:?}",
        status.warnings
    );
    let set = b.set_hostname("agent-b").await.unwrap();
    assert_eq!(set["hostname"], "agent-b");
    let status = b.status().await;
    assert_eq!((&status.hostname[..], status.warnings.len()), ("agent-b", 0));
    let error = b.resolve_hostname("no-such-name").await.unwrap_err();
    assert_eq!(error.to_string(), "registry: hostname \"no-such-name\" not found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_identity_gets_the_same_number_after_a_restart() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    let with_identity = || NodeConfig { identity_path: Some(path.clone()), public: true, ..config(&server) };
    let first = node(with_identity()).await;
    let (id, key) = (first.node_id(), *first.identity().public_key());
    first.shutdown().await;
    drop(first);
    let again = node(with_identity()).await;
    assert_eq!((again.node_id(), *again.identity().public_key()), (id, key));
    serve_echo(again.listen(7).await.unwrap());
    let other = node(config(&server)).await;
    echo_round(within(other.dial(again.address(), 7)).await.unwrap(), pattern(5000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_file_others_can_read_is_refused() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    let with_identity = || NodeConfig { identity_path: Some(path.clone()), ..config(&server) };
    node(with_identity()).await.shutdown().await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Node::start(with_identity()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("identity file has loose permissions (mode 644); chmod 600 {} and retry", path.display())
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, "{\"private_key\":\"AAAA\",\"public_key\":\"AAAA\"}").unwrap();
    let error = Node::start(with_identity()).await.unwrap_err();
    assert!(error.to_string().starts_with("identity file corrupted: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_is_registered_kept_and_used() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    let with_identity = || NodeConfig { identity_path: Some(path.clone()), public: true, ..config(&server) };
    let a = node(with_identity()).await;
    let mut events = a.events();
    let (id, old) = (a.node_id(), *a.identity().public_key());
    let answer = a.rotate_key().await.unwrap();
    let new = a.identity();
    assert_ne!(*new.public_key(), old);
    assert_eq!(answer["public_key"], new.public_key_base64());
    assert_eq!(event(&mut events, "key.rotated").await.data["public_key"], new.public_key_base64());
    assert_eq!(a.lookup(id).await.unwrap()["public_key"], new.public_key_base64());
    a.set_tags(&["rotated".into()]).await.expect("later requests are signed with the new key");
    serve_echo(a.listen(7).await.unwrap());
    let b = node(config(&server)).await;
    echo_round(within(b.dial(a.address(), 7)).await.unwrap(), pattern(5000)).await;
    a.shutdown().await;
    drop(a);
    let again = node(with_identity()).await;
    assert_eq!((again.node_id(), again.identity().public_key()), (id, new.public_key()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_later_of_two_processes_with_one_identity_wins() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    let with_identity = || NodeConfig { identity_path: Some(path.clone()), ..config(&server) };
    let first = node(with_identity()).await;
    let mut events = first.events();
    let second = node(with_identity()).await;
    assert_eq!(first.node_id(), second.node_id());
    event(&mut events, "node.superseded").await;
    let status = first.status().await;
    assert!(status.superseded);
    assert!(status.warnings[0].contains("has stopped registering"), "{:?}", status.warnings);
    assert!(!second.status().await.superseded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_registry_is_joined_again_while_a_stream_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::File(dir.path().join("registry.db"));
    let server = Server::start(Config { store: store.clone(), ..Config::loopback() }).await.unwrap();
    let (registry_addr, beacon_addr) = (server.registry_addr(), server.beacon_addr());
    let fast = NodeConfig { keepalive: Duration::from_millis(200), ..config(&server) };
    let a = node(fast.clone()).await;
    let b = node(NodeConfig { public: true, ..fast }).await;
    serve_echo(b.listen(7).await.unwrap());
    let mut stream = within(a.dial(b.address(), 7)).await.unwrap();
    stream.write("before".into()).await.unwrap();
    assert_eq!(within(stream.read()).await.unwrap(), "before");

    server.shutdown().await;
    within(async {
        while a.status().await.registry_ok {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    echo_round(stream, pattern(1 << 20)).await;

    let _server = restart(Config { store, registry_addr, beacon_addr, ..Config::loopback() }).await;
    within(async {
        while !a.status().await.registry_ok {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(a.lookup(b.node_id()).await.unwrap()["node_id"], b.node_id());
    echo_round(within(a.dial(b.address(), 7)).await.unwrap(), pattern(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lost_its_memory_gets_everything_again() {
    let server = rendezvous().await;
    let (registry_addr, beacon_addr) = (server.registry_addr(), server.beacon_addr());
    let a = node(NodeConfig {
        keepalive: Duration::from_millis(100),
        hostname: Some("lasting".into()),
        tags: vec!["x".into()],
        public: true,
        ..config(&server)
    })
    .await;
    let mut events = a.events();
    server.shutdown().await;
    let _server = restart(Config { registry_addr, beacon_addr, ..Config::loopback() }).await;
    event(&mut events, "node.reregistered").await;
    let record = a.lookup(a.node_id()).await.unwrap();
    assert_eq!((&record["hostname"], &record["public"]), (&"lasting".into(), &true.into()));
    assert_eq!(record["tags"], serde_json::json!(["x"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_registry_certificate_is_checked() {
    let server = Server::start(Config { tls: Tls::SelfSigned, ..Config::loopback() }).await.unwrap();
    let fingerprint = server.tls_fingerprint().unwrap().to_owned();
    let pinned =
        |pin: &str| NodeConfig { registry_tls: Some(RegistryTls::Pinned(pin.to_owned())), ..config(&server) };
    node(pinned(&fingerprint)).await;
    let wrong = "00".repeat(32);
    let error = within(Node::start(pinned(&wrong))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("register: registry: certificate fingerprint mismatch: got {fingerprint}, want {wrong}")
    );
    let error = Node::start(pinned("")).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)));
}

#[tokio::test]
async fn mistakes_in_the_settings_are_named() {
    let start = async |config| Node::start(config).await.unwrap_err().to_string();
    let error = start(NodeConfig { registry: "nowhere".into(), ..NodeConfig::default() }).await;
    assert_eq!(error, r#"registry: invalid address "nowhere": no port (expected host:port)"#);
    let error = start(NodeConfig { beacons: vec!["b:x".into()], ..NodeConfig::default() }).await;
    assert!(error.starts_with(r#"beacon: invalid address "b:x": the port"#), "{error}");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = start(NodeConfig { listen, ..NodeConfig::default() }).await;
    assert!(error.starts_with(&format!("bind {listen}: ")), "{error}");
}
