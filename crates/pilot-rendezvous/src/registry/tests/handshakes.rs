//! Relayed requests: delivery exactly as often as needed.

use super::*;

fn requests(answer: &Value) -> Vec<u64> {
    answer["requests"].as_array().unwrap().iter().map(|r| r["from_node_id"].as_u64().unwrap()).collect()
}

#[test]
fn an_empty_inbox_is_two_empty_lists() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let answer = w.ok(&mut s, a.own("poll_handshakes", json!({})));
    assert_eq!(answer, json!({"type": "poll_handshakes_ok", "requests": [], "responses": []}));
    assert_eq!(w.after, After::Nothing);
}

#[test]
fn a_poll_empties_the_inbox_only_once_its_answer_was_written() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    assert_eq!(w.ok(&mut sa, a.handshake(b.id, "one"))["status"], "delivered");
    assert_eq!(w.effects, [Effect::Handshake(b.id)]);
    w.ok(&mut sa, a.handshake(b.id, "two"));
    let poll = b.own("poll_handshakes", json!({}));
    let first = w.ok(&mut sb, poll.clone());
    assert_eq!(
        first["requests"],
        json!([{"from_node_id": 1, "justification": "two", "timestamp": w.now.unix()}])
    );
    assert_eq!(w.ok(&mut sb, poll.clone()), first, "not written: still there");
    w.delivered();
    assert_eq!(requests(&w.ok(&mut sb, poll)), [0u64; 0]);
    w.reload();
}

#[test]
fn a_batch_whose_connection_broke_is_delivered_again_to_the_repeated_poll() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, a.handshake(b.id, "x"));
    let poll = b.own("poll_handshakes", json!({}));
    w.ok(&mut sb, poll.clone());
    let (node, up_to) = w.delivered();
    w.registry.delivery_broken(node, up_to, w.now);
    w.sleep(4);
    assert_eq!(requests(&w.ok(&mut stranger(), poll.clone())), [1]);
    let (node, up_to) = w.delivered();
    w.registry.delivery_broken(node, up_to, w.now);
    w.sleep(1);
    assert_eq!(requests(&w.ok(&mut stranger(), poll.clone())), [1], "and once more");
    let (node, up_to) = w.delivered();
    w.registry.delivery_confirmed(node, up_to);
    w.registry.delivery_broken(node, up_to, w.now);
    assert_eq!(requests(&w.ok(&mut stranger(), poll)), [0u64; 0]);
}

#[test]
fn a_broken_batch_is_not_delivered_to_a_later_poll() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, a.handshake(b.id, "x"));
    let poll = b.own("poll_handshakes", json!({}));
    w.ok(&mut sb, poll.clone());
    let (node, up_to) = w.delivered();
    w.registry.delivery_broken(node, up_to, w.now);
    w.sleep(5);
    assert_eq!(requests(&w.ok(&mut stranger(), poll)), [0u64; 0]);
}

#[test]
fn kept_entries_stay_until_acknowledged_and_newer_ones_survive_an_old_acknowledgement() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb), (c, mut sc)) = (w.node(1), w.node(2), w.node(3));
    w.ok(&mut sa, a.handshake(b.id, "x"));
    let poll = b.own("poll_handshakes", json!({"keep": true}));
    let first = w.ok(&mut sb, poll.clone());
    let up_to = first["up_to"].as_u64().unwrap();
    assert_eq!(w.after, After::Nothing);
    w.reload();
    assert_eq!(w.ok(&mut sb, poll.clone()), first);
    w.ok(&mut sc, c.handshake(b.id, "y"));
    let ack = b.sign(
        json!({"type": "ack_handshakes", "node_id": b.id, "up_to": up_to}),
        &challenge::ack_handshakes(b.id, up_to),
    );
    assert_eq!(w.ok(&mut sb, ack.clone()), json!({"type": "ack_handshakes_ok"}));
    assert_eq!(requests(&w.ok(&mut sb, poll.clone())), [3]);
    w.reload();
    w.ok(&mut sa, a.handshake(b.id, "again"));
    w.ok(&mut stranger(), ack);
    assert_eq!(requests(&w.ok(&mut sb, poll)), [3, 1], "a replayed acknowledgement reaches nothing newer");
    let raised = json!({"type": "ack_handshakes", "node_id": b.id, "up_to": u64::MAX, "signature": "AAAA"});
    assert_eq!(w.refused(&mut sb, raised), "signature verification failed");
}

#[test]
fn answers_reach_the_requester_and_end_the_request() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, a.handshake(b.id, "x"));
    w.reload();
    w.ok(&mut sb, b.respond(a.id, false));
    assert_eq!(w.effects, [Effect::Handshake(a.id)]);
    let polled = w.ok(&mut sa, a.own("poll_handshakes", json!({})));
    assert_eq!(polled["responses"], json!([{"from_node_id": 2, "accept": false, "timestamp": w.now.unix()}]));
    w.delivered();
    assert_eq!(
        requests(&w.ok(&mut sb, b.own("poll_handshakes", json!({})))),
        [0u64; 0],
        "an answered request is gone"
    );
    w.reload();
}

#[test]
fn a_hundred_requests_fill_an_inbox() {
    let mut w = World::new();
    let (target, _) = w.node(255);
    for seed in 1..=100 {
        let (peer, mut s) = w.node(seed);
        w.ok(&mut s, peer.handshake(target.id, ""));
    }
    let (late, mut s) = w.node(101);
    assert_eq!(
        w.refused(&mut s, late.handshake(target.id, "")),
        "too many requests: handshake inbox full for node 1"
    );
    let (first, mut s1) = (Peer { id: 2, ..Peer::new(1) }, stranger());
    w.ok(&mut s1, first.handshake(target.id, "replaces"));
    w.reload();
}

#[test]
fn requests_are_checked() {
    let mut w = World::new();
    let ((a, mut s), (b, _)) = (w.node(1), w.node(2));
    assert_eq!(w.refused(&mut s, a.handshake(9, "")), "node 9: node not found");
    assert!(
        w.refused(&mut s, a.handshake(b.id, &"x".repeat(1025)))
            .contains("justification too large: 1025 bytes (max 1024)")
    );
    w.ok(&mut s, a.handshake(b.id, &"x".repeat(1024)));
    let mut unsigned = a.handshake(b.id, "");
    unsigned["signature"] = json!("");
    assert_eq!(w.refused(&mut s, unsigned), "handshake request requires signature");
    let mut forged = b.handshake(a.id, "");
    forged["from_node_id"] = json!(a.id);
    forged["to_node_id"] = json!(b.id);
    assert_eq!(w.refused(&mut s, forged), "handshake request signature verification failed");
    assert!(w.refused(&mut s, a.handshake(a.id, "")).contains("itself"));
}

#[test]
fn subscriptions_need_a_fresh_signature_of_the_current_instance() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    let subscribe = |ts: u64, instance: &str| {
        let request = json!({"type": "subscribe", "node_id": b.id, "ts": ts, "instance": instance});
        b.sign(request, &challenge::subscribe(b.id, ts))
    };
    let now = w.now.unix();
    let instance = "0123456789abcdef";
    w.ok(&mut sb, b.register(json!({"instance": instance})));
    assert!(
        w.refused(&mut sb, subscribe(now - 61, instance)).starts_with("invalid ts: 61s from registry time")
    );
    assert!(w.refused(&mut sb, subscribe(now + 61, instance)).starts_with("invalid ts: 61s"));
    assert!(w.refused(&mut sb, subscribe(now, "ffffffffffffffff")).starts_with("superseded: node 2"));
    assert_eq!(
        w.ok(&mut sb, subscribe(now + 60, instance)),
        json!({"type": "subscribe_ok", "ping_secs": 30})
    );
    assert_eq!(w.after, After::Subscribed { node: b.id, instance: instance.into(), waiting: false });
    w.ok(&mut sa, a.handshake(b.id, ""));
    w.ok(&mut sb, subscribe(now, instance));
    assert_eq!(w.after, After::Subscribed { node: b.id, instance: instance.into(), waiting: true });
    let mut moved = subscribe(now, instance);
    moved["ts"] = json!(now + 1);
    assert_eq!(w.refused(&mut sb, moved), "signature verification failed");
}

#[test]
fn an_approval_of_a_direct_request_is_passed_on_and_counts_once_the_requester_confirms() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    // What 1.18.0 sends on approve; the request came through the tunnel.
    w.ok(&mut sb, b.pair("report_trust", a.id));
    w.ok(&mut sb, b.respond(a.id, true));
    assert_eq!(w.effects, [Effect::Handshake(a.id)]);
    assert!(w.refused(&mut sb, b.resolve(a.id)).contains("node not found"), "one side alone gains nothing");
    w.reload();
    let polled = w.ok(&mut sa, a.own("poll_handshakes", json!({})));
    assert_eq!(polled["responses"][0], json!({"from_node_id": 2, "accept": true, "timestamp": w.now.unix()}));
    w.ok(&mut sa, a.pair("report_trust", b.id));
    w.ok(&mut sb, b.resolve(a.id));
    w.ok(&mut sb, b.respond(a.id, true));
    assert_eq!(w.effects, [], "a repeated approval of a trusted node says nothing new");
    w.reload();
}

#[test]
fn one_node_cannot_wake_others_without_end() {
    let mut w = World::new();
    let ((a, mut s), (b, _)) = (w.node(1), w.node(2));
    let sent = (0..100).filter(|_| w.ask(&mut s, a.handshake(b.id, "")).get("error").is_none()).count();
    assert_eq!(sent, 60);
    assert_eq!(
        w.refused(&mut s, a.respond(b.id, false)),
        "rate limited: too many handshake requests from node 1"
    );
    w.sleep(1);
    w.ok(&mut s, a.handshake(b.id, ""));
}
