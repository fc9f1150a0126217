//! `handshake`, `pending`, `approve`, `reject`, `trust`, `untrust`, and the gate that asks for trust.

use crate::pair::{Background, Pair, until};
use serde_json::json;

fn arrives(pair: &Pair) {
    until("the request arrives", || pair.b.json(&["pending"]).data()["pending"][0]["node_id"] == 1);
}

#[test]
fn a_request_is_listed_approved_and_trusted_on_both_sides() {
    let pair = Pair::private();
    let ran = pair.a.json(&["handshake", "2", "need your\x07data"]);
    assert_eq!(ran.data(), json!({"node_id": 2, "status": "sent"}));
    arrives(&pair);
    let pending = pair.b.json(&["pending"]).data();
    assert_eq!(pending["pending"][0]["justification"], "need yourdata", "control characters are dropped");
    assert!(pending["pending"][0]["received_at"].as_u64().unwrap() > 1_700_000_000);
    let text = pair.b.run(&["pending"]).stdout;
    assert!(text.starts_with("Pending handshakes — 1\n\n  node 1 · "), "{text}");
    assert!(
        text.contains("\n  accept: pilotctl approve 1 · decline: pilotctl reject 1 \"reason\"\n"),
        "{text}"
    );

    let approved = pair.b.json(&["approve", "1"]).data();
    assert_eq!((&approved["node_id"], &approved["status"]), (&json!(1), &json!("approved")));
    assert_eq!(pair.b.json(&["pending"]).data()["pending"], json!([]), "an empty list, not null");
    until("the approval arrives", || pair.a.json(&["trust"]).data()["total"] == 1);
    for (home, peer) in [(&pair.a, 2), (&pair.b, 1)] {
        let trust = home.json(&["trust"]).data();
        assert_eq!(trust["trusted"][0]["node_id"], peer);
        assert!(trust["trusted"][0]["approved_at"].as_u64().unwrap() > 1_700_000_000);
    }
    assert_eq!(pair.a.json(&["trust", "--search", "9"]).data()["total"], 0);
    let again = pair.a.json(&["handshake", "2"]).data();
    assert_eq!(again, json!({"node_id": 2, "status": "already_trusted"}));
    let text = pair.a.run(&["handshake", "2"]).stdout;
    assert_eq!(text, "✓ already trusted with node 2 — ready to communicate\n");
}

#[test]
fn waiting_for_trust_ends_with_the_answer() {
    let pair = Pair::private();
    let waiting = Background::start(&pair.a, &["--json", "handshake", "2", "--wait", "25s"]);
    arrives(&pair);
    pair.b.json(&["approve", "1"]).data();
    assert_eq!(waiting.finish().data(), json!({"node_id": 2, "status": "trusted"}));
}

#[test]
fn waiting_for_trust_tells_a_rejection() {
    let pair = Pair::private();
    let waiting = Background::start(&pair.a, &["--json", "handshake", "2", "--wait", "25s"]);
    arrives(&pair);
    let rejected = pair.b.json(&["reject", "1", "not today"]).data();
    assert_eq!((&rejected["node_id"], &rejected["status"]), (&json!(1), &json!("rejected")));
    let error = waiting.finish().error();
    assert_eq!(error["code"], "rejected");
    assert!(error["message"].as_str().unwrap().starts_with("node 2 declined the request"), "{error}");
    assert_eq!(pair.a.json(&["trust"]).data(), json!({"total": 0, "trusted": []}));
}

#[test]
fn waiting_for_trust_is_bounded() {
    let pair = Pair::private();
    let error = pair.a.json(&["handshake", "2", "--wait", "200ms"]).error();
    assert_eq!(error["code"], "timeout");
    assert_eq!(error["message"], "no answer from node 2 within 200ms");
}

#[test]
fn answering_a_request_that_is_not_there_is_an_error() {
    let pair = Pair::private();
    for command in ["approve", "reject"] {
        let error = pair.b.json(&[command, "77"]).error();
        assert_eq!(error["code"], "not_found", "{command}");
        assert_eq!(error["message"], "no request from node 77 is pending");
    }
}

#[test]
fn a_node_does_not_ask_itself() {
    let pair = Pair::private();
    assert_eq!(pair.a.json(&["handshake", "1"]).error()["code"], "invalid_argument");
}

#[test]
fn untrust_ends_trust_on_both_sides_once() {
    let pair = Pair::private().trust();
    assert_eq!(pair.a.json(&["untrust", "2"]).data(), json!({"node_id": 2}));
    for (home, peer) in [(&pair.a, 2), (&pair.b, 1)] {
        let logged = |text: &str| {
            let log = std::fs::read_to_string(home.file("pilot.log")).unwrap();
            log.lines()
                .any(|l| l.contains("INFO") && l.contains(text) && l.ends_with(&format!("peer={peer}")))
        };
        until("both logs tell that trust was won and has ended", || {
            logged("trusted now") && logged("trust has ended")
        });
    }
    until("the peer forgets too", || pair.b.json(&["trust"]).data()["total"] == 0);
    let error = pair.a.json(&["untrust", "2"]).error();
    assert_eq!(error["code"], "connection_failed");
    assert_eq!(error["message"], "untrust: revoke: daemon: handshake revoke: node 2 was not trusted");
}

#[test]
fn a_private_peer_is_not_reached_without_trust() {
    let pair = Pair::private();
    for command in [
        &["ping", "2", "--count=1"][..],
        &["connect", "2", "--message=x"],
        &["dgram", "2", "5000", "--data=x"],
    ] {
        let error = pair.a.json(command).error();
        assert_eq!(error["code"], "trust_required", "{command:?}");
        assert_eq!(error["message"], "refusing tunnel to private node 0:0000.0000.0002 without trust");
        assert_eq!(error["hint"], "run: pilotctl handshake 0:0000.0000.0002");
        let unknown = pair.a.json(&[&[command[0], "99"], &command[2..]].concat()).error();
        assert_eq!(unknown["code"], "trust_required", "{command:?}");
        let message = unknown["message"].as_str().unwrap();
        assert!(message.starts_with("cannot look up peer 0:0000.0000.0063 (registry: "), "{message}");
        assert!(message.ends_with("); refusing tunnel to untrusted node"), "{message}");
    }
    let ran = pair.a.json(&["ping", "2", "--no-auto-handshake", "--count=1"]);
    assert_eq!(ran.data_of(1)["summary"]["received"], 0, "without the question the dial fails all the same");
}
