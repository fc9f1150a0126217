//! The server over its sockets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Client, Peer, SOON};
use pilot_rendezvous::{Config, Limits, ProbePort, Rate, Server, StartError, StoreConfig, Tls};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Waits for a state of the server.
async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let wait = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not reached: {what}"));
}

#[tokio::test]
async fn a_node_registers_is_found_and_survives_on_heartbeats() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    let mut a = Peer::new(1);
    let answer = a.register(&mut c).await;
    assert_eq!(answer["type"], "register_ok");
    assert_eq!(answer["node_id"], 1);
    assert_eq!(answer["address"], "0:0000.0000.0001");
    assert_eq!(answer["observed_addr"], "127.0.0.1:4000");
    assert_eq!(answer["beacon_port"], server.beacon_addr().port());
    let probe = server.probe_addr().unwrap();
    assert_eq!(answer["beacon_ports"], json!([server.beacon_addr().port(), probe.port()]));
    assert_eq!(answer["registry_id"].as_str().unwrap().len(), 32);
    c.ok(a.own("heartbeat", json!({}))).await;
    c.ok(a.own("set_visibility", json!({"public": true}))).await;
    c.ok(a.own("set_hostname", json!({"hostname": "agent-a"}))).await;
    c.ok(a.own("set_tags", json!({"tags": ["#alpha", "beta"]}))).await;
    let found = c.ok(json!({"type": "lookup", "node_id": 1})).await;
    assert_eq!(found["tags"], json!(["alpha", "beta"]));
    assert_eq!(found["endpoint"], "127.0.0.1:4000");
    let mut b = Peer::new(2);
    b.register(&mut c).await;
    let named = c.ok(json!({"type": "resolve_hostname", "hostname": "agent-a"})).await;
    assert_eq!(named["node_id"], 1);
    assert_eq!(c.ok(b.resolve(1)).await["real_addr"], "127.0.0.1:4000");
    assert_eq!(server.stats().nodes_online, 2);
    server.shutdown().await;
    assert_eq!(c.next().await, None, "shutdown closes connections");
}

#[tokio::test]
async fn the_second_beacon_port_follows_the_first_answers_and_can_be_left_out() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut discover = [0; 20];
    discover[0] = 1;
    let mut answers = Vec::new();
    for port in [server.beacon_addr(), server.probe_addr().unwrap()] {
        socket.send_to(&discover, port).await.unwrap();
        let mut answer = [0; 64];
        let (len, from) = timeout(SOON, socket.recv_from(&mut answer)).await.unwrap().unwrap();
        assert_eq!(from, port);
        answers.push(answer[..len].to_vec());
    }
    assert_eq!(answers[0], answers[1], "no NAT between");
    let taken = server.probe_addr().unwrap().port();
    let at = |probe| Config { beacon_probe: probe, ..Config::loopback() };
    let failed = Server::start(at(ProbePort::At(taken))).await.unwrap_err();
    assert!(failed.to_string().starts_with("cannot listen on beacon probe UDP"), "{failed}");
    let without = Server::start(at(ProbePort::Off)).await.unwrap();
    assert_eq!(without.probe_addr(), None);
    let mut c = Client::connect(without.registry_addr()).await;
    let answer = Peer::new(1).register(&mut c).await;
    assert_eq!(answer["beacon_ports"], json!([without.beacon_addr().port()]));
    // Where the next port is taken, the beacon does without.
    let next =
        Config { beacon_addr: std::net::SocketAddr::from(([127, 0, 0, 1], taken - 1)), ..Config::loopback() };
    if let Ok(server) = Server::start(next).await {
        assert_eq!(server.probe_addr(), None);
    }
}

#[tokio::test]
async fn a_waiting_handshake_is_pushed_and_notified_through_the_beacon() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    let (mut a, mut b) = (Peer::new(1), Peer::new(2));
    a.register(&mut c).await;
    let time = b.register(&mut c).await["time"].as_u64().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(&[1, 0, 0, 0, 2], server.beacon_addr()).await.unwrap();
    let mut buf = [0; 64];
    let n = timeout(SOON, udp.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(
        &buf[..n],
        &[&[2, 4, 127, 0, 0, 1][..], &udp.local_addr().unwrap().port().to_be_bytes()].concat()
    );

    let mut push = Client::connect(server.registry_addr()).await;
    let text = pilot_proto::registry::challenge::subscribe(b.id, time);
    let request = json!({"type": "subscribe", "node_id": b.id, "ts": time, "instance": "0123456789abcdef"});
    let answer = push.ok(b.signed(request, json!({}), &text)).await;
    assert_eq!(answer, json!({"type": "subscribe_ok", "ping_secs": 30}));
    c.ok(a.ask_trust(b.id, "pls")).await;
    assert_eq!(push.next().await.unwrap(), json!({"type": "push", "kind": "handshake"}));
    let n = timeout(SOON, udp.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(&buf[..n], &[0x0A, 1]);

    let polled = c.ok(b.own("poll_handshakes", json!({}))).await;
    assert_eq!(polled["requests"][0]["justification"], "pls");
    c.ok(b.respond(a.id, true)).await;
    let polled = c.ok(a.own("poll_handshakes", json!({}))).await;
    assert_eq!(polled["responses"][0]["accept"], true);
    c.ok(a.resolve(b.id)).await;
    c.ok(a.pair("revoke_trust", b.id)).await;
    assert_eq!(push.next().await.unwrap(), json!({"type": "push", "kind": "trust_revoked", "peer_id": a.id}));
    assert_eq!(server.stats().subscriptions, 1);
    server.shutdown().await;
}

fn on_disk(dir: &Path) -> Config {
    Config { store: StoreConfig::File(dir.join("registry.db")), tls: Tls::SelfSigned, ..Config::loopback() }
}

async fn tls_client(server: &Server, dir: &Path) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("registry.db.cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(server.registry_addr()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Client(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
}

#[tokio::test]
async fn identities_and_the_certificate_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = Peer::new(1);
    let server = Server::start(on_disk(dir.path())).await.unwrap();
    let fingerprint = server.tls_fingerprint().unwrap().to_owned();
    assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    let mut c = tls_client(&server, dir.path()).await;
    let first = a.register(&mut c).await;
    c.ok(a.own("set_hostname", json!({"hostname": "agent-a"}))).await;
    server.shutdown().await;

    let server = Server::start(on_disk(dir.path())).await.unwrap();
    assert_eq!(server.tls_fingerprint(), Some(&*fingerprint));
    let mut c = tls_client(&server, dir.path()).await;
    c.ok(a.own("heartbeat", json!({}))).await;
    assert_eq!(c.ok(json!({"type": "resolve_hostname", "hostname": "agent-a"})).await["node_id"], a.id);
    let again = a.register(&mut c).await;
    assert_eq!((&again["node_id"], &again["registry_id"]), (&first["node_id"], &first["registry_id"]));
    assert_eq!(server.stats().nodes_known, 1);
    let second = Server::start(on_disk(dir.path())).await.unwrap_err();
    assert!(
        matches!(&second, StartError::Store { .. }) && second.to_string().contains("another process"),
        "{second}"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let key = std::fs::metadata(dir.path().join("registry.db.key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn acknowledged_changes_are_there_after_the_process_is_gone_without_a_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { tls: Tls::Off, ..on_disk(dir.path()) };
    let server = Server::start(config).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    let mut a = Peer::new(1);
    a.register(&mut c).await;
    c.ok(a.own("set_tags", json!({"tags": ["kept"]}))).await;
    // What a killed process leaves behind.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let after = Server::start(Config { tls: Tls::Off, ..on_disk(copy.path()) }).await.unwrap();
    let mut c = Client::connect(after.registry_addr()).await;
    c.ok(a.own("heartbeat", json!({}))).await;
    assert_eq!(c.ok(json!({"type": "lookup", "node_id": a.id})).await["tags"], json!(["kept"]));
    after.shutdown().await;
    server.shutdown().await;
}

#[tokio::test]
async fn frames_that_are_no_requests_close_the_connection_without_an_answer() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let cases: [&[u8]; 6] = [
        b"PILT\x01",
        b"\x00\x10\x00\x01",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x02{x",
        b"\x00\x00\x00\x05\"\xff\xff\xff\"",
    ];
    for bytes in cases {
        let mut c = Client::connect(server.registry_addr()).await;
        c.0.write_all(bytes).await.unwrap();
        assert_eq!(c.next().await, None, "{bytes:?}");
    }
    let mut c = Client::connect(server.registry_addr()).await;
    assert_eq!(c.ask(json!({"type": "x"})).await["error"], "unknown message type: \"x\"");
    c.ok(json!({"type": "beacon_list"})).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_poll_whose_connection_broke_can_be_repeated_on_another() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    let (mut a, mut b) = (Peer::new(1), Peer::new(2));
    a.register(&mut c).await;
    b.register(&mut c).await;
    c.ok(a.ask_trust(b.id, "x")).await;
    let poll = b.own("poll_handshakes", json!({}));
    let mut lost = Client::connect(server.registry_addr()).await;
    let first = lost.ok(poll.clone()).await;
    assert_eq!(first["requests"].as_array().unwrap().len(), 1);
    drop(lost);
    until("the broken connection is gone", || server.stats().connections == 1).await;
    assert_eq!(c.ok(poll.clone()).await, first);
    // The next request on this connection shows that the answer arrived.
    assert_eq!(c.ok(poll).await["requests"], json!([]));
    server.shutdown().await;
}

#[tokio::test]
async fn a_superseded_process_is_told_and_disconnected() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    let mut a = Peer::new(1);
    let time = a.register(&mut c).await["time"].as_u64().unwrap();
    let with = |instance: &str| {
        let mut request = a.register_request("127.0.0.1:4000");
        request["instance"] = json!(instance);
        request
    };
    c.ok(with("00000000000000a1")).await;
    let mut push = Client::connect(server.registry_addr()).await;
    let text = pilot_proto::registry::challenge::subscribe(a.id, time);
    let request = json!({"type": "subscribe", "node_id": a.id, "ts": time, "instance": "00000000000000a1"});
    push.ok(a.signed(request, json!({}), &text)).await;
    until("subscribed", || server.stats().subscriptions == 1).await;
    c.ok(with("00000000000000b2")).await;
    assert_eq!(push.next().await, Some(json!({"type": "push", "kind": "superseded"})));
    assert_eq!(push.next().await, None);
    let beat = c.ask(a.own("heartbeat", json!({"instance": "00000000000000a1"}))).await;
    assert!(
        beat["error"]
            .as_str()
            .unwrap()
            .starts_with("superseded: node 1 is registered by another process since")
    );
    server.shutdown().await;
}

#[tokio::test]
async fn frames_are_relayed_between_sockets_of_both_families() {
    let config = Config { beacon_addr: "[::]:0".parse().unwrap(), ..Config::loopback() };
    let server = Server::start(config).await.unwrap();
    let port = server.beacon_addr().port();
    let v4 = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let v6 = UdpSocket::bind("[::1]:0").await.unwrap();
    v4.connect(("127.0.0.1", port)).await.unwrap();
    v6.connect(("::1", port)).await.unwrap();
    let mut buf = [0; 2048];
    v4.send(&[1, 0, 0, 0, 1]).await.unwrap();
    assert_eq!(timeout(SOON, v4.recv(&mut buf)).await.unwrap().unwrap(), 8);
    v6.send(&[1, 0, 0, 0, 2]).await.unwrap();
    assert_eq!(timeout(SOON, v6.recv(&mut buf)).await.unwrap().unwrap(), 20);
    v4.send(b"\x05\0\0\0\x01\0\0\0\x02PILS").await.unwrap();
    let n = timeout(SOON, v6.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(&buf[..n], b"\x06\0\0\0\x01PILS");
    v6.send(b"\x05\0\0\0\x02\0\0\0\x01PILS").await.unwrap();
    let n = timeout(SOON, v4.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(&buf[..n], b"\x06\0\0\0\x02PILS");
    v4.send(&[3, 0, 0, 0, 1, 0, 0, 0, 2]).await.unwrap();
    assert_eq!(timeout(SOON, v4.recv(&mut buf)).await.unwrap().unwrap(), 20);
    assert_eq!(timeout(SOON, v6.recv(&mut buf)).await.unwrap().unwrap(), 8);
    until("counted", || server.stats().relayed == 2 && server.stats().punches == 1).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_connections_from_one_source_is_cut_off() {
    let limits = Limits {
        connections: Rate { per_second: 0.001, burst: 3.0 },
        exempt_loopback: false,
        ..Limits::default()
    };
    let server = Server::start(Config { limits, ..Config::loopback() }).await.unwrap();
    let mut answered = 0;
    for _ in 0..5 {
        let mut c = Client::connect(server.registry_addr()).await;
        c.send(&json!({"type": "beacon_list"})).await;
        answered += usize::from(c.next().await.is_some());
    }
    assert_eq!(answered, 3);
    server.shutdown().await;
}

#[tokio::test]
async fn wrong_settings_are_named() {
    async fn refused(config: Config) -> String {
        Server::start(config).await.unwrap_err().to_string()
    }
    let base = Config::loopback;
    assert!(refused(Config { max_nodes: 0, ..base() }).await.contains("max_nodes"));
    assert!(refused(Config { admin_token: Some(String::new()), ..base() }).await.contains("admin_token"));
    assert!(
        refused(Config { advertise_beacon: Some("host".into()), ..base() })
            .await
            .contains("must be host:port")
    );
    let server = Server::start(base()).await.unwrap();
    let taken = refused(Config { registry_addr: server.registry_addr(), ..base() }).await;
    assert!(taken.starts_with("cannot listen on registry TCP 127.0.0.1:"), "{taken}");
    let missing = Tls::Files { cert: "/nonexistent/cert.pem".into(), key: "/nonexistent/key.pem".into() };
    assert!(refused(Config { tls: missing, ..base() }).await.starts_with("TLS: /nonexistent/cert.pem: "));
    let shown = format!("{:?}", Config { admin_token: Some("sesame".into()), ..base() });
    assert!(!shown.contains("sesame"), "{shown}");
    server.shutdown().await;
}

#[tokio::test]
async fn many_clients_at_once_get_distinct_ids() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config { tls: Tls::Off, ..on_disk(dir.path()) }).await.unwrap();
    let addr = server.registry_addr();
    let tasks: Vec<_> = (1..=64)
        .map(|seed| {
            tokio::spawn(async move {
                let mut c = Client::connect(addr).await;
                let answer: Value = Peer::new(seed).register(&mut c).await;
                answer["node_id"].as_u64().unwrap()
            })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=64).collect::<Vec<_>>());
    assert_eq!(server.stats().nodes_online, 64);
    server.shutdown().await;
}
