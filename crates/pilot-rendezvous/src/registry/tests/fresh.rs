//! Requests that cannot be repeated.

use super::*;
use pilot_proto::registry::fresh::text;

/// The request as our own nodes send it.
fn fresh(w: &World, peer: &Peer, mut request: Value, seq: u64) -> Value {
    let registry = if request["type"] == "register" { "" } else { w.registry.registry_id() };
    let signature = peer.identity.sign_text(&text(registry, seq, &request.to_string()));
    request["fresh"] = json!({"node": peer.id, "seq": seq, "registry": registry, "signature": signature});
    request
}

fn world() -> (World, Peer, Session) {
    let mut w = World::new();
    let mut s = session("198.51.100.1:1");
    let mut a = Peer::new(1);
    let request = fresh(&w, &a, a.register(json!({})), w.now.unix_us);
    a.id = w.ok(&mut s, request)["node_id"].as_u64().unwrap() as u32;
    let beat = fresh(&w, &a, a.own("heartbeat", json!({})), w.now.unix_us + 100);
    w.ok(&mut s, beat);
    (w, a, s)
}

#[test]
fn a_recorded_request_of_a_fresh_node_is_refused_whoever_sends_it() {
    let (mut w, a, mut s) = world();
    let public = fresh(&w, &a, a.own("set_visibility", json!({"public": true})), w.now.unix_us + 1);
    w.ok(&mut s, public.clone());
    let hide = fresh(&w, &a, a.own("set_visibility", json!({"public": false})), w.now.unix_us + 2);
    w.ok(&mut s, hide);
    let mut attacker = session("203.0.113.66:1");
    let mut stripped = public.clone();
    stripped.as_object_mut().unwrap().remove("fresh");
    let mut changed = public.clone();
    changed["public"] = json!(false);
    changed["fresh"]["seq"] = json!(w.now.unix_us + 3);
    for recording in [public.clone(), stripped, changed] {
        let error = w.refused(&mut attacker, recording);
        assert_eq!(
            error,
            "signature verification failed: node 1 signs with times lately, this one could be a recording"
        );
    }
    w.sleep(61);
    let late = w.refused(&mut attacker, public);
    assert!(late.contains("could be a recording"), "{late}");
}

#[test]
fn a_recorded_registration_takes_nothing_over_and_another_program_on_the_same_host_may_register() {
    let (mut w, a, _) = world();
    let recorded = fresh(&w, &a, a.register(json!({"instance": "00000000000000ee"})), w.now.unix_us);
    let mut attacker = session("203.0.113.66:1");
    for _ in 0..2 {
        let error = w.refused(&mut attacker, recorded.clone());
        assert!(error.starts_with("registration: signature verification failed"), "{error}");
    }
    assert!(w.effects.is_empty(), "nobody was superseded");
    // A reference daemon with this identity, on the same host: it signs plainly from now on.
    let mut s = session("198.51.100.1:7");
    w.ok(&mut s, a.register(json!({})));
    w.ok(&mut s, a.own("heartbeat", json!({})));
}

#[test]
fn a_silent_node_may_come_back_with_plain_signatures_from_anywhere() {
    let (mut w, a, _) = world();
    let mut elsewhere = session("203.0.113.66:1");
    w.sleep(179);
    assert!(w.refused(&mut elsewhere, a.register(json!({}))).contains("could be a recording"));
    w.sleep(1);
    w.ok(&mut elsewhere, a.register(json!({})));
}

#[test]
fn a_fresh_request_counts_for_the_node_its_claim_names_only() {
    let (mut w, a, mut s) = world();
    let mut b = Peer::new(2);
    b.id = w.ok(&mut s, b.register(json!({})))["node_id"].as_u64().unwrap() as u32;
    // Node 1 signs freshly what only node 2 may ask for.
    let mut request = json!({"type": "set_tags", "node_id": b.id, "tags": ["x"], "signature": "AAAA"});
    request = fresh(&w, &a, request, w.now.unix_us + 9);
    assert_eq!(w.refused(&mut stranger(), request), "signature verification failed");
    // And the reference's signatures of node 2 are as good as ever.
    w.ok(&mut s, b.own("set_tags", json!({"tags": ["x"]})));
    w.ok(&mut s, b.own("set_tags", json!({"tags": ["x"]})));
}
