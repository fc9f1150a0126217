//! Commands of a daemon, compared with the recordings of the reference 1.18.0 where they apply.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Raw, Running, daemon, daemon_with, rendezvous, text_of, within};
use pilot_ipc::frame::{Decoder, Frame};
use pilot_ipc::request::{Handshake, Managed, Network, Request};
use pilot_rendezvous::{Config, Server};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn decode(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::default();
    decoder.extend(bytes);
    decoder.next_frame().unwrap().unwrap()
}

/// Recorded exchanges by meaning: request bytes and first reply.
fn recorded() -> Vec<(String, Vec<u8>, Frame)> {
    let vectors: Value = serde_json::from_str(include_str!("vectors/ipc.json")).unwrap();
    let exchanges = vectors["exchanges"].as_array().unwrap();
    let exchange = |e: &Value| {
        let reply = decode(&unhex(e["replies"][0]["hex"].as_str()?));
        Some((e["meaning"].as_str()?.to_owned(), unhex(e["request"]["hex"].as_str()?), reply))
    };
    exchanges.iter().filter_map(exchange).collect()
}

/// Exchanges whose outcome depends on nothing but the daemon: the answer is the recorded one, byte for byte.
const EXACT: &[&str] = &[
    "bind 4000",
    "bind 4000 twice",
    "bind 0",
    "bind 0 again",
    "bind 444",
    "bind 50000 (ephemeral)",
    "bind truncated",
    "bind with trailing bytes",
    "unbind owner",
    "unbind short",
    "unbind 3 bytes",
    "handshake no sub",
    "handshake unknown sub",
    "handshake send short",
    "pending",
    "trusted (empty)",
    "revoke unknown",
    "wait unknown 200ms",
    "wait short",
    "close short",
    "close unknown conn",
    "dial short",
    "sendto confirm broadcast",
    "sendto confirm short",
    "resolve empty",
    "visibility missing",
    "webhook ftp",
    "webhook metadata",
    "webhook garbage",
    "webhook no host",
    "net nosub",
    "net join short",
    "net leave short",
    "net members short",
    "invite short",
    "respond short",
    "net unknown",
    "managed nosub",
    "managed status",
    "policy short",
    "policy set short",
    "policy set trunc tok",
    "policy set no json",
    "policy unknown action",
    "mtags short",
    "mtags set no json",
    "mtags unk",
    "managed score removed",
    "managed rankings removed",
    "managed unk",
    "broadcast short",
    "broadcast trunc tok",
    "broadcast no token",
    "badge empty",
    "enroll empty",
    "enroll",
    "sign no audience",
    "sign no body",
    "sign bad hash",
    "sign both",
    "sign bad audience",
    "sign bad nonce",
    "sign upper hash",
    "verify garbage",
    "verify empty",
    "bind 53",
    "bind 80",
    "bind 1",
    "bind 65535",
];

/// Exchanges whose error ends in the words of a JSON decoder: only what precedes them is the same.
const DECODER_WORDS: &[&str] = &[
    "tags bad json",
    "tags wrong type",
    "tags empty body",
    "policy set bad json",
    "mtags bad json",
    "badge bad",
    "enroll bad",
    "sign bad",
    "verify bad json",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_exchanges_get_the_recorded_answers() {
    let server = rendezvous().await;
    let a = daemon(&server).await;
    let mut client = a.raw().await;
    let mut replayed = BTreeSet::new();
    for (meaning, request, want) in recorded() {
        let unknown_command = meaning.starts_with("cmd 0x") && want.command == 0x0A && request[4] != 0x3B;
        if unknown_command || EXACT.contains(&meaning.as_str()) {
            if !replayed.insert(meaning.clone()) {
                continue; // recorded again in another state
            }
            client.send_bytes(&request).await;
            let got = client.expect().await;
            assert_eq!(got, want, "{meaning}: got {:?}", String::from_utf8_lossy(&got.body));
        } else if DECODER_WORDS.contains(&meaning.as_str()) {
            replayed.insert(meaning.clone());
            client.send_bytes(&request).await;
            let (got, want) = (text_of(&client.expect().await), text_of(&want));
            let prefix = |text: &str| {
                let at = ["JSON: ", "payload: "].iter().filter_map(|p| text.find(p)).min();
                at.map(|at| text[..at].to_owned())
            };
            assert!(prefix(&got).is_some() && prefix(&got) == prefix(&want), "{meaning}: {got}");
        }
    }
    for meaning in EXACT.iter().chain(DECODER_WORDS) {
        assert!(replayed.contains(*meaning), "{meaning} is not in the recordings");
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_and_health_have_every_recorded_key_with_its_type() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut listener = bob.listen(4000).await.unwrap();
    let stream = alice.dial(b.addr(), 4000).await.unwrap();
    let _accepted = within(listener.accept()).await.unwrap();
    for (meaning, got) in
        [("info with conn", alice.info().await.unwrap()), ("health", alice.health().await.unwrap())]
    {
        let want: Value = recorded()
            .into_iter()
            .find(|(m, ..)| m == meaning)
            .map(|r| serde_json::from_slice(&r.2.body).unwrap())
            .unwrap();
        assert!(keys(&got).is_superset(&keys(&want)), "{meaning}: {:?}", keys(&want).difference(&keys(&got)));
        for (key, want) in want.as_object().unwrap() {
            let got = &got[key];
            assert_eq!(
                std::mem::discriminant(got),
                std::mem::discriminant(want),
                "{meaning}: {key} is {got}"
            );
            if let (Some(got), Some(want)) = (got.get(0), want.get(0).filter(|w| w.is_object())) {
                assert!(keys(got).is_superset(&keys(want)), "{key}: {:?}", keys(want).difference(&keys(got)));
            }
            assert!(!got.to_string().contains(".0,"), "{key}: whole numbers have no fraction: {got}");
        }
    }
    let info = alice.info().await.unwrap();
    assert_eq!(info["node_id"], a.daemon.node().node_id());
    assert_eq!(info["networks"], Value::Null);
    assert_eq!(info["ports"], 1, "trust handshakes");
    assert_eq!(info["connections"], 1);
    assert_eq!(info["conn_list"][0]["id"], stream.id());
    assert_eq!(info["conn_list"][0]["state"], "ESTABLISHED");
    assert_eq!(info["peer_list"][0]["node_id"], b.daemon.node().node_id());
    let features = json!(["reply_window", "dial_awaits_key", "key_request", "dgram_confirm", "half_close"]);
    assert_eq!(info["features"], features);
    assert_eq!(
        (&info["public"], &info["registry_ok"], &info["superseded"]),
        (&json!(true), &json!(true), &json!(false))
    );
}

async fn private(server: &Server) -> Running {
    daemon_with(server, |c| c.node.public = false).await
}

fn handshake(request: Handshake) -> Request {
    Request::Handshake(request)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_is_asked_for_granted_and_ended() {
    let server = rendezvous().await;
    let (a, b) = (private(&server).await, private(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = (a.addr().node, b.addr().node);
    let refused = alice.ask_error(&Request::Dial { to: b.addr(), port: 7 }).await;
    assert!(refused.starts_with(&format!("resolve node {y}: registry: ")), "{refused}");

    let sent =
        alice.ask_json(&handshake(Handshake::Send { node: y, justification: "let me in".into() })).await;
    assert_eq!(sent, json!({"node_id": y, "status": "sent"}));
    let pending = within(async {
        loop {
            let pending = bob.ask_json(&handshake(Handshake::Pending)).await;
            if pending["pending"] != json!([]) {
                return pending;
            }
        }
    })
    .await;
    let entry = &pending["pending"][0];
    assert_eq!((&entry["node_id"], &entry["justification"]), (&json!(x), &json!("let me in")));
    assert_eq!(keys(entry), ["justification", "node_id", "public_key", "received_at"].into());

    alice.send(&handshake(Handshake::Wait { node: y, timeout_ms: 20_000 })).await;
    let approved = bob.ask_json(&handshake(Handshake::Approve { node: x })).await;
    assert_eq!(approved, json!({"node_id": x, "status": "approved", "pending": true}));
    let waited: Value = serde_json::from_slice(&alice.expect().await.body).unwrap();
    assert_eq!(waited, json!({"node_id": y, "trusted": true}));
    let trusted = alice.ask_json(&handshake(Handshake::Trusted)).await;
    assert_eq!(trusted["trusted"][0]["node_id"], y);
    assert_eq!(
        keys(&trusted["trusted"][0]),
        ["approved_at", "mutual", "network", "node_id", "public_key"].into()
    );

    // Still the reference's success, but the truth beside it.
    let nothing = bob.ask_json(&handshake(Handshake::Approve { node: 99 })).await;
    assert_eq!(nothing, json!({"node_id": 99, "status": "approved", "pending": false}));
    let nothing = bob.ask_json(&handshake(Handshake::Reject { node: 99, reason: "no".into() })).await;
    assert_eq!(nothing, json!({"node_id": 99, "status": "rejected", "pending": false}));

    let revoked = bob.ask_json(&handshake(Handshake::Revoke { node: x })).await;
    assert_eq!(revoked, json!({"node_id": x, "status": "revoked"}));
    assert_eq!(
        bob.ask_error(&handshake(Handshake::Revoke { node: x })).await,
        format!("handshake revoke: node {x} was not trusted")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_client_hears_of_a_rejection() {
    let server = rendezvous().await;
    let (a, b) = (private(&server).await, private(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = (a.addr().node, b.addr().node);
    alice.ask_json(&handshake(Handshake::Send { node: y, justification: String::new() })).await;
    alice.send(&handshake(Handshake::Wait { node: y, timeout_ms: 20_000 })).await;
    within(async { while bob.ask_json(&handshake(Handshake::Pending)).await["pending"] == json!([]) {} })
        .await;
    let rejected = bob.ask_json(&handshake(Handshake::Reject { node: x, reason: "not today".into() })).await;
    assert_eq!(rejected, json!({"node_id": x, "status": "rejected", "pending": true}));
    let waited: Value = serde_json::from_slice(&alice.expect().await.body).unwrap();
    assert_eq!((&waited["trusted"], &waited["rejected"]), (&json!(false), &json!(true)), "{waited}");
    assert!(waited["reason"].is_string(), "{waited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_at_the_registry_is_changed_and_shown() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let node = a.addr().node;
    let set = alice.set_hostname("agent-a").await.unwrap();
    assert_eq!(set, json!({"hostname": "agent-a", "node_id": node, "type": "set_hostname_ok"}));
    assert_eq!(alice.info().await.unwrap()["hostname"], "agent-a");
    let found = bob.resolve_hostname("agent-a").await.unwrap();
    assert_eq!((&found["node_id"], &found["type"]), (&json!(node), &json!("resolve_hostname_ok")));
    let error = bob.resolve_hostname("nobody-here").await.unwrap_err();
    assert!(error.daemon_text().unwrap().starts_with("resolve_hostname: registry: "), "{error}");
    let error = bob.set_hostname("Bad Name!").await.unwrap_err();
    assert!(error.daemon_text().unwrap().starts_with("set_hostname: registry: "), "{error}");

    let tags: Vec<String> = ["one", "two", "three", "four"].map(str::to_owned).to_vec();
    assert_eq!(alice.set_tags(&tags).await.unwrap()["tags"], json!(tags));
    let many: Vec<String> = (0..11).map(|i| format!("t{i}")).collect();
    let error = alice.set_tags(&many).await.unwrap_err();
    assert_eq!(error.daemon_text(), Some("set_tags: maximum 10 tags allowed"));

    let private = alice.set_visibility(false).await.unwrap();
    assert_eq!(private, json!({"node_id": node, "type": "set_visibility_ok", "visibility": "private"}));
    assert_eq!(alice.info().await.unwrap()["public"], false);

    let before = alice.info().await.unwrap()["public_key"].clone();
    let rotated = alice.rotate_key().await.unwrap();
    assert_eq!((&rotated["node_id"], &rotated["type"]), (&json!(node), &json!("rotate_key_ok")));
    let after = alice.info().await.unwrap()["public_key"].clone();
    assert_eq!(rotated["public_key"], after);
    assert_ne!(before, after);

    let hook = alice.set_webhook("http://127.0.0.1:9999/hook").await.unwrap();
    assert_eq!(hook["webhook"], "http://127.0.0.1:9999/hook");
    assert_eq!(alice.set_webhook("").await.unwrap()["webhook"], "");

    assert_eq!(bob.deregister().await.unwrap()["type"], "deregister_ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_signed_by_one_daemon_is_verified_by_another() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    // SHA-256 of "hello".
    let hash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let request = json!({"audience": "svc.example", "body_b64": "aGVsbG8=", "nonce": "0011223344556677"});
    let signed = alice.sign_envelope(&request).await.unwrap();
    let text = signed["envelope"].as_str().unwrap();
    let fields: Vec<&str> = text.split('|').collect();
    assert_eq!(fields[0..2], ["pilot-req-v1", &format!("{:012x}", a.addr().node)]);
    assert_eq!(fields[3..], ["0011223344556677", hash, "svc.example"]);
    assert_eq!(signed["address"], a.addr().to_string());

    let envelope = |text: &str| json!({"envelope": text, "signature": signed["signature"]});
    let valid = bob.verify_envelope(&envelope(text)).await.unwrap();
    let want = json!({
        "address": a.addr().to_string(),
        "node_id": a.addr().node,
        "trusted": false,
        "type": "verify_envelope_ok",
        "valid": true,
        "verified_via": "registry",
    });
    assert_eq!(valid, want);
    assert_eq!(
        alice.verify_envelope(&envelope(text)).await.unwrap()["verified_via"],
        "cache",
        "one's own key is known"
    );

    let mut standing = envelope(text);
    standing["check_standing"] = true.into();
    let valid = bob.verify_envelope(&standing).await.unwrap();
    assert_eq!((&valid["online"], &valid["network_member"]), (&json!(true), &json!(true)), "{valid}");
    assert_eq!(valid["key_generation"], 0);

    let invalid = |reason: &str| json!({"reason": reason, "type": "verify_envelope_ok", "valid": false});
    let tampered = bob.verify_envelope(&envelope(&text.replace("svc.example", "svc.examplf"))).await.unwrap();
    assert_eq!(tampered, invalid("reqsig: signature verification failed"));
    let old = text.replace(fields[2], "1795217316");
    let expired = bob.verify_envelope(&envelope(&old)).await.unwrap();
    assert_eq!(expired, invalid("reqsig: envelope timestamp outside ±5m0s window"));
    let bad = json!({"envelope": text, "signature": "???"});
    let reason = bob.verify_envelope(&bad).await.unwrap()["reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("reqsig: signature not base64: "), "{reason}");
    let unknown = text.replace(fields[1], "000000001092");
    let reason = bob.verify_envelope(&envelope(&unknown)).await.unwrap()["reason"].clone();
    assert!(
        reason.as_str().unwrap().starts_with("public key for node 4242 unavailable: registry: "),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_are_joined_listed_broadcast_to_and_left() {
    let server =
        Server::start(Config { admin_token: Some("secret".into()), ..Config::loopback() }).await.unwrap();
    let admin = |c: &mut pilot_daemon::DaemonConfig| c.admin_token = Some("secret".into());
    let (a, b, c) = (daemon_with(&server, admin).await, daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let created = a.daemon.node().registry_request(json!({
        "type": "create_network",
        "node_id": a.addr().node,
        "name": "friends",
        "join_rule": "token",
        "token": "tok",
        "admin_token": "secret",
    }));
    let network = created.await.unwrap()["network_id"].as_u64().unwrap() as u16;

    let error = bob.network(Network::Join { network, token: "wrong".into() }).await.unwrap_err();
    assert_eq!(
        error.daemon_text().unwrap(),
        format!("network join: registry: invalid token for network {network}")
    );
    let joined = bob.network(Network::Join { network, token: "tok".into() }).await.unwrap();
    assert_eq!((&joined["type"], &joined["network_id"]), (&json!("join_network_ok"), &json!(network)));
    let address = pilot_proto::Addr { network, node: b.addr().node }.to_string();
    let shown = json!([{"address": address, "network_id": network}]);
    assert_eq!(bob.info().await.unwrap()["networks"], shown, "at once, not after a while");
    let members = bob.network(Network::Members { network }).await.unwrap();
    assert_eq!(members["nodes"].as_array().unwrap().len(), 2, "{members}");
    assert_eq!(bob.network(Network::PollInvites).await.unwrap()["invites"], json!([]));
    assert!(bob.network(Network::List).await.unwrap()["networks"].as_array().unwrap().len() == 2);

    let mut raw = b.raw().await;
    raw.expect_silence().await;
    let mut outsider = c.raw().await;
    outsider.expect_silence().await;
    alice.broadcast(network, 5000, "secret", "to all friends").await.unwrap();
    let frame = raw.expect().await;
    assert_eq!((frame.command, &frame.body[10..]), (0x0C, &b"to all friends"[..]));
    outsider.expect_silence().await;
    for (network, token, reason) in [
        (network, "wrong", "broadcast denied: invalid admin token"),
        (0, "secret", "broadcast not permitted on backbone network"),
    ] {
        let error = alice.broadcast(network, 5000, token, "x").await.unwrap_err();
        assert_eq!(error.daemon_text().unwrap(), format!("broadcast: {reason}"));
    }

    let tags = Managed::MemberTagsSet { network, node: b.addr().node, tags: Bytes::from_static(b"[\"x\"]") };
    assert_eq!(alice.managed(tags).await.unwrap()["tags"], json!(["x"]));
    let tags = Managed::MemberTagsGet { network, node: b.addr().node };
    assert_eq!(bob.managed(tags).await.unwrap()["tags"], json!(["x"]));

    assert_eq!(bob.network(Network::Leave { network }).await.unwrap()["type"], "leave_network_ok");
    assert_eq!(bob.info().await.unwrap()["networks"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_refused_honestly() {
    let server = rendezvous().await;
    let a = daemon_with(&server, |c| c.admin_token = Some("secret".into())).await;
    let client = a.client().await;
    let policy = Bytes::from_static(br#"{"version":1,"rules":[]}"#);
    let set =
        |token: &'static str| Managed::PolicySet { network: 5, token: token.into(), policy: policy.clone() };
    let error = client.managed(set("wrong")).await.unwrap_err();
    assert_eq!(error.daemon_text(), Some("managed policy set: invalid admin token"));
    let error = client.managed(set("secret")).await.unwrap_err();
    assert_eq!(error.daemon_text(), Some("managed policy set: this daemon runs no policy engine"));
    let engine = client.managed(Managed::PolicyGet { network: 5 }).await.unwrap();
    assert_eq!(engine, json!({"engine": "none", "network_id": 5, "type": "managed_policy_ok"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_client_run_beside_each_other() {
    let server = rendezvous().await;
    let (a, b) = (private(&server).await, private(&server).await);
    let mut client: Raw = a.raw().await;
    let wait = handshake(Handshake::Wait { node: b.addr().node, timeout_ms: 400 });
    client.send(&wait).await;
    client.send(&Request::Info).await;
    client.send(&Request::Health).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(client.expect().await.command);
    }
    assert_eq!(order.pop(), Some(0x10), "the wait is answered last");
    order.sort_unstable();
    assert_eq!(order, [0x0E, 0x22]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_path_can_be_asked_for_without_losing_streams() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut listener = bob.listen(4000).await.unwrap();
    let mut stream = alice.dial(b.addr(), 4000).await.unwrap();
    let mut accepted = within(listener.accept()).await.unwrap();
    let reply = alice.prefer_direct(b.addr().node).await.unwrap();
    assert_eq!((&reply["had_tunnel"], &reply["resolve_error"]), (&json!(true), &json!("")), "{reply}");
    stream.write("still there").await.unwrap();
    assert_eq!(within(accepted.read()).await.unwrap(), "still there");
    let reply = alice.prefer_direct(4242).await.unwrap();
    assert_eq!(reply["had_tunnel"], false);
    assert!(reply["resolve_error"].as_str().unwrap().starts_with("resolve node 4242: registry: "), "{reply}");
}
