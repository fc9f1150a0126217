//! The server over its sockets.

mod common;

use common::{Client, Peer, SOON};
use pilot_rendezvous::{Config, Server};
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::time::timeout;

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
