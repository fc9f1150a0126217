//! Registration, heartbeats, keys, reaping, recovery.

use super::*;

#[test]
fn the_same_key_keeps_its_id_through_refresh_deregistration_reaping_and_restart() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let (b, _) = w.node(2);
    assert_eq!((a.id, b.id), (1, 2));
    assert_eq!(w.ok(&mut s, a.register(json!({})))["node_id"], 1);
    w.ok(&mut s, a.own("deregister", json!({})));
    w.ok(&mut s, a.own("deregister", json!({})));
    assert_eq!(w.refused(&mut s, a.own("heartbeat", json!({}))), "node 1: node not found");
    w.reload();
    assert_eq!(w.ok(&mut s, a.register(json!({})))["node_id"], 1);
    w.sleep(31 * 60);
    assert_eq!(w.registry.reap(w.now), 2);
    w.store_writes();
    assert_eq!(w.refused(&mut s, a.own("heartbeat", json!({}))), "node 1: node not found");
    w.reload();
    assert_eq!(w.ok(&mut s, a.register(json!({})))["node_id"], 1);
    assert_eq!(w.node(3).0.id, 3);
}

#[test]
fn an_id_never_goes_to_another_key_of_the_same_owner() {
    let mut w = World::new();
    let a = Peer::new(1);
    let mut s = stranger();
    w.ok(&mut s, a.register(json!({"owner": "a@example.com"})));
    // Also while the first one is online.
    assert_eq!(w.ok(&mut s, Peer::new(2).register(json!({"owner": "a@example.com"})))["node_id"], 2);
    let a = Peer { id: 1, ..a };
    w.ok(&mut s, a.own("deregister", json!({})));
    assert_eq!(w.ok(&mut s, Peer::new(3).register(json!({"owner": "a@example.com"})))["node_id"], 3);
}

#[test]
fn deregistering_forgets_settings_and_reaping_keeps_them() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let set = |w: &mut World, s: &mut Session| {
        w.ok(s, a.own("set_hostname", json!({"hostname": "agent-a"})));
        w.ok(s, a.own("set_tags", json!({"tags": ["x"]})));
        w.ok(s, a.own("set_visibility", json!({"public": true})));
    };
    set(&mut w, &mut s);
    w.sleep(3600);
    w.registry.reap(w.now);
    w.store_writes();
    let (b, mut sb) = w.node(2);
    assert_eq!(
        w.refused(&mut sb, b.own("set_hostname", json!({"hostname": "agent-a"}))),
        "hostname \"agent-a\" already in use"
    );
    let back = w.ok(&mut s, a.register(json!({})));
    assert_eq!(back.get("hostname"), None);
    let seen = w.lookup(&mut stranger(), a.id);
    assert_eq!(
        (&seen["hostname"], &seen["tags"], &seen["public"]),
        (&json!("agent-a"), &json!(["x"]), &json!(true))
    );
    assert_eq!(w.ok(&mut s, a.register(json!({})))["hostname"], "agent-a", "a refresh echoes the name");
    w.ok(&mut s, a.own("deregister", json!({})));
    w.ok(&mut sb, b.own("set_hostname", json!({"hostname": "agent-a"})));
    w.ok(&mut s, a.register(json!({})));
    let seen = w.lookup(&mut s, a.id);
    assert_eq!((seen.get("hostname"), seen.get("tags"), &seen["public"]), (None, None, &json!(false)));
    w.reload();
}

#[test]
fn a_name_is_held_for_a_silent_node_for_a_week() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    w.ok(&mut s, a.own("set_hostname", json!({"hostname": "agent-a"})));
    w.sleep(3600);
    assert_eq!(w.registry.reap(w.now), 1);
    w.sleep(7 * 24 * 3600);
    let (b, mut sb) = w.node(2);
    w.ok(&mut sb, b.own("set_hostname", json!({"hostname": "agent-a"})));
    w.reload();
    w.ok(&mut s, a.register(json!({})));
    assert_eq!(w.lookup(&mut s, a.id).get("hostname"), None);
}

#[test]
fn heartbeats_keep_a_node_and_silence_of_the_threshold_removes_it() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    for _ in 0..60 {
        w.sleep(60);
        w.ok(&mut s, a.own("heartbeat", json!({})));
        assert_eq!(w.registry.reap(w.now), 0);
    }
    w.sleep(30 * 60 - 1);
    assert_eq!(w.registry.reap(w.now), 0);
    w.sleep(1);
    assert_eq!(w.registry.reap(w.now), 1);
    assert_eq!(w.registry.sizes().0, 0);
}

#[test]
fn heartbeats_write_nothing() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    w.sleep(60);
    let request = a.own("heartbeat", json!({}));
    w.registry.handle(&mut s, request.as_object().unwrap(), w.now);
    assert_eq!(w.registry.take_writes(), []);
    let same = a.register(json!({}));
    w.registry.handle(&mut s, same.as_object().unwrap(), w.now);
    assert_eq!(w.registry.take_writes(), [], "a registration that says nothing new is not stored either");
}

#[test]
fn a_verified_heartbeat_vouches_on_its_connection_for_two_minutes_only() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let forged = json!({"type": "heartbeat", "node_id": a.id, "signature": "AAAA"});
    assert_eq!(w.refused(&mut s, forged.clone()), "signature verification failed");
    w.ok(&mut s, a.own("heartbeat", json!({})));
    w.sleep(119);
    w.ok(&mut s, forged.clone());
    assert_eq!(w.refused(&mut stranger(), forged.clone()), "signature verification failed");
    w.sleep(1);
    assert_eq!(w.refused(&mut s, forged), "signature verification failed");
    let unsigned = json!({"type": "heartbeat", "node_id": a.id});
    assert_eq!(w.refused(&mut s, unsigned), "signature required for authenticated node");
}

#[test]
fn registrations_are_checked() {
    let mut w = World::new();
    let (a, b) = (Peer::new(1), Peer::new(2));
    let mut s = stranger();
    let mut case = |mut request: Value, field: &str, value: Value, expected: &str| {
        request[field] = value;
        let text = w.refused(&mut s, request);
        assert!(text.starts_with(expected), "{text}");
    };
    case(a.register(json!({})), "public_key", json!(""), "registration requires public_key");
    case(a.register(json!({})), "public_key", json!(7), "registration requires public_key");
    case(a.register(json!({})), "public_key", json!("AAAA"), "invalid public_key: ");
    case(a.register(json!({})), "public_key", json!("%"), "invalid public_key: ");
    case(a.register(json!({})), "public_key", json!(b.key()), "registration: signature verification failed");
    case(a.register(json!({})), "signature", json!("%"), "registration: invalid signature encoding");
    case(
        a.register(json!({})),
        "listen_addr",
        json!("1.2.3.4:5"),
        "registration: signature verification failed",
    );
    case(a.register(json!({})), "owner", json!("x".repeat(255)), "invalid owner: too long");
    case(a.register(json!({})), "version", json!("1\n2"), "invalid version: control");
    assert_eq!(w.registry.sizes().1, 0, "nothing was stored");
}

#[test]
fn once_signed_a_key_cannot_be_registered_unsigned_again() {
    let mut w = World::new();
    let a = Peer::new(1);
    let mut s = stranger();
    let mut unsigned = a.register(json!({}));
    unsigned.as_object_mut().unwrap().remove("signature");
    w.ok(&mut s, unsigned.clone());
    w.ok(&mut s, unsigned.clone());
    w.ok(&mut s, a.register(json!({})));
    let text = "node 1: unsigned registration cannot modify a signature-verified key";
    assert_eq!(w.refused(&mut s, unsigned.clone()), text);
    w.sleep(3600);
    w.registry.reap(w.now);
    w.store_writes();
    w.reload();
    assert_eq!(w.refused(&mut s, unsigned), text);
}

#[test]
fn endpoints_follow_the_rule() {
    let peer = |s: &str| s.parse::<SocketAddr>().unwrap();
    let public = peer("203.0.113.7:50000");
    for (listen, stored) in [
        ("", "203.0.113.7:50000"),
        ("nonsense", "nonsense"),
        (":4000", "203.0.113.7:4000"),
        ("0.0.0.0:4000", "203.0.113.7:4000"),
        ("[::]:4000", "203.0.113.7:4000"),
        ("[::1]:4000", "203.0.113.7:4000"),
        ("127.0.0.1:4000", "203.0.113.7:4000"),
        ("192.168.1.9:4000", "203.0.113.7:4000"),
        ("169.254.1.1:4000", "203.0.113.7:4000"),
        ("[fe80::1]:4000", "203.0.113.7:4000"),
        ("[fd00::1]:4000", "203.0.113.7:4000"),
        ("198.51.100.3:4000", "198.51.100.3:4000"),
        ("[2001:db8::1]:4000", "[2001:db8::1]:4000"),
        ("agent.example.com:4000", "agent.example.com:4000"),
    ] {
        assert_eq!(registration::endpoint(listen, public), stored, "{listen}");
    }
    assert_eq!(registration::endpoint(":4000", peer("[2001:db8::2]:1")), "[2001:db8::2]:4000");
    assert_eq!(registration::endpoint(":4000", peer("[::ffff:203.0.113.7]:1")), "203.0.113.7:4000");
}

#[test]
fn a_rotated_key_is_the_only_one_that_works_and_a_repeated_rotation_succeeds() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let new = Peer { id: a.id, ..Peer::new(9) };
    let request = |signer: &Peer, text: String| {
        signer.sign(json!({"type": "rotate_key", "node_id": a.id, "new_public_key": new.key()}), &text)
    };
    let short = request(&a, challenge::own("rotate", a.id));
    assert!(w.refused(&mut s, short).starts_with("signature verification failed: it must cover the new key"));
    let by_new = request(&new, challenge::rotate(a.id, &new.key()));
    assert_eq!(w.refused(&mut s, by_new.clone()), "signature verification failed");
    let good = request(&a, challenge::rotate(a.id, &new.key()));
    let answer = w.ok(&mut s, good.clone());
    assert_eq!(
        answer,
        json!({"type": "rotate_key_ok", "node_id": 1, "address": "0:0000.0000.0001", "public_key": new.key()})
    );
    assert_eq!(w.ok(&mut stranger(), good), answer);
    assert_eq!(w.lookup(&mut s, a.id)["key_generation"], 1);
    assert_eq!(w.refused(&mut stranger(), a.own("heartbeat", json!({}))), "signature verification failed");
    w.ok(&mut stranger(), new.own("heartbeat", json!({})));
    w.reload();
    // The old key is a stranger's now.
    assert_eq!(w.ok(&mut stranger(), a.register(json!({})))["node_id"], 2);
    let (b, mut sb) = w.node(3);
    let steal = b.sign(
        json!({"type": "rotate_key", "node_id": b.id, "new_public_key": new.key()}),
        &challenge::rotate(b.id, &new.key()),
    );
    assert_eq!(w.refused(&mut sb, steal), "invalid new_public_key: already bound to a node");
    w.reload();
}

#[test]
fn a_recovery_key_moves_an_id_once_per_generation_and_cannot_be_replaced() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let (recovery, new) = (Peer::new(70), Peer { id: a.id, ..Peer::new(71) });
    let enroll = |key: String| {
        let text = format!("enroll_recovery_key:{}:{key}", a.id);
        a.sign(json!({"type": "enroll_recovery_key", "node_id": a.id, "recovery_public_key": key}), &text)
    };
    let recover = |signer: &Peer, key: &str, generation: u32| {
        let text = format!("recover_key:{}:{key}:{generation}", a.id);
        signer.sign(json!({"type": "recover_key", "node_id": a.id, "new_public_key": key}), &text)
    };
    let failed = "node 1: recovery signature verification failed";
    assert_eq!(w.refused(&mut s, recover(&recovery, &new.key(), 0)), failed);
    w.ok(&mut s, enroll(recovery.key()));
    w.ok(&mut s, enroll(recovery.key()));
    let other = w.refused(&mut s, enroll(Peer::new(72).key()));
    assert!(other.contains("already enrolled"), "{other}");
    w.ok(&mut s, a.own("deregister", json!({})));
    w.reload();
    assert_eq!(w.refused(&mut s, recover(&a, &new.key(), 0)), failed);
    assert_eq!(w.refused(&mut s, recover(&recovery, &new.key(), 1)), failed);
    w.ok(&mut stranger(), recover(&recovery, &new.key(), 0));
    w.ok(&mut stranger(), recover(&recovery, &new.key(), 0));
    assert_eq!(w.ok(&mut stranger(), new.register(json!({})))["node_id"], 1);
    assert_eq!(w.ok(&mut stranger(), a.register(json!({})))["node_id"], 2, "the lost key is a stranger's");
    let back = Peer::new(73);
    assert_eq!(w.refused(&mut s, recover(&recovery, &back.key(), 0)), failed);
    w.ok(&mut s, recover(&recovery, &back.key(), 1));
    assert_eq!(w.lookup(&mut s, 1)["key_generation"], 2);
    w.reload();
    let unknown =
        json!({"type": "recover_key", "node_id": 99, "new_public_key": new.key(), "signature": "AAAA"});
    assert_eq!(w.refused(&mut s, unknown), "node 99: recovery signature verification failed");
}

#[test]
fn the_later_process_wins_and_the_earlier_one_hears_of_it() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let (one, two) = ("00000000000000a1", "00000000000000b2");
    w.ok(&mut s, a.register(json!({"instance": one})));
    w.ok(&mut s, a.own("heartbeat", json!({"instance": one})));
    w.ok(&mut s, a.register(json!({"instance": two})));
    assert_eq!(w.effects, [Effect::Superseded { node: 1, by: two.into() }]);
    let expected = "superseded: node 1 is registered by another process since 2026-11-20T23:33:20Z";
    assert_eq!(w.refused(&mut s, a.own("heartbeat", json!({"instance": one}))), expected);
    w.ok(&mut s, a.own("heartbeat", json!({"instance": two})));
    w.ok(&mut s, a.own("heartbeat", json!({})));
    w.ok(&mut s, a.register(json!({})));
    assert_eq!(w.effects, [], "a process without an instance supersedes nobody");
    w.reload();
    assert_eq!(w.refused(&mut s, a.own("heartbeat", json!({"instance": one}))), expected);
    w.ok(&mut s, a.register(json!({"instance": one})));
    w.ok(&mut s, a.own("heartbeat", json!({"instance": one})));
}

#[test]
fn new_keys_are_rate_limited_per_source_and_known_keys_are_not() {
    let mut config = Config { max_nodes: 3, ..Config::default() };
    config.limits.registrations = crate::config::Rate { per_second: 1.0, burst: 2.0 };
    let mut w = World::with(config);
    let mut s = stranger();
    w.ok(&mut s, Peer::new(1).register(json!({})));
    w.ok(&mut s, Peer::new(2).register(json!({})));
    let text = w.refused(&mut s, Peer::new(3).register(json!({})));
    assert_eq!(text, "rate limited: too many registrations from 198.51.100.99");
    w.ok(&mut s, Peer::new(1).register(json!({})));
    w.ok(&mut session("198.51.100.1:1"), Peer::new(3).register(json!({})));
    w.sleep(5);
    let text = w.refused(&mut s, Peer::new(4).register(json!({})));
    assert!(text.starts_with("registry full"), "{text}");
    w.ok(&mut s, Peer::new(3).register(json!({})));
}

#[test]
fn expired_keys_are_refused_and_expiry_is_announced() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let expiry = |at: &str| a.own("set_key_expiry", json!({"expires_at": at}));
    let in_two_days = crate::clock::rfc3339(w.now.unix() + 2 * 86_400);
    assert!(w.refused(&mut s, expiry(&in_two_days)).starts_with("enterprise feature: key expiry"));
    w.ok(&mut s, json!({"type": "create_network", "node_id": 1, "name": "n", "enterprise": true, "admin_token": ADMIN}));
    assert!(w.refused(&mut s, expiry("soon")).starts_with("invalid expires_at"));
    assert!(w.refused(&mut s, expiry("2020-01-01T00:00:00Z")).contains("must be in the future"));
    assert!(w.refused(&mut s, expiry("2099-01-01T00:00:00Z")).contains("cannot exceed 10 years"));
    assert_eq!(w.ok(&mut s, expiry(&in_two_days))["expires_at"], in_two_days.as_str());
    assert_eq!(w.ok(&mut s, a.own("heartbeat", json!({}))).get("key_expiry_warning"), None);
    w.sleep(86_400);
    assert_eq!(w.ok(&mut s, a.own("heartbeat", json!({})))["key_expiry_warning"], true);
    w.sleep(86_400);
    assert_eq!(
        w.refused(&mut s, a.own("heartbeat", json!({}))),
        format!("node 1: key expired at {in_two_days}")
    );
    w.ok(&mut s, expiry("never"));
    w.ok(&mut s, a.own("heartbeat", json!({})));
    assert_eq!(w.ok(&mut s, json!({"type": "get_key_info", "node_id": 1}))["key_age_days"], 2);
    w.reload();
}

#[test]
fn unknown_and_unsupported_requests_say_so() {
    let mut w = World::new();
    let mut s = stranger();
    assert_eq!(w.refused(&mut s, json!({"type": "frobnicate"})), "unknown message type: \"frobnicate\"");
    assert!(w.refused(&mut s, json!({"type": "get_audit_log"})).contains("not supported"));
    assert!(w.refused(&mut s, json!({"type": "recover_identity"})).contains("recover_key"));
    assert!(w.refused(&mut s, json!({})).contains("type missing"));
}
