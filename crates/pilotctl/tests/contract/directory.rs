//! `find`, `lookup`, and what a node says of itself; `info`, `health`, `peers`, `connections`.

use crate::pair::{BETA, Pair};
use crate::support::Home;
use serde_json::{Value, json};

#[test]
fn find_and_lookup_tell_a_public_node() {
    let pair = Pair::public();
    let found = pair.a.json(&["find", "agent-beta"]).data();
    for (key, value) in [
        ("address", json!(BETA)),
        ("hostname", json!("agent-beta")),
        ("node_id", json!(2)),
        ("public", json!(true)),
    ] {
        assert_eq!(found[key], value, "{key}");
    }
    assert_eq!(
        pair.a.run(&["find", "agent-beta"]).stdout,
        format!("Hostname:  agent-beta\nNode ID:   2\nAddress:   {BETA}\nVisible:   public\n")
    );
    for peer in ["2", BETA, "agent-beta"] {
        let record = pair.a.json(&["lookup", peer]).data();
        assert_eq!((&record["node_id"], &record["type"]), (&json!(2), &json!("lookup_ok")), "{peer}");
        assert_eq!((&record["real_addr"], &record["endpoint"]), (&json!(null), &json!(null)), "no endpoints");
    }
    let error = pair.a.json(&["find", "nobody"]).error();
    assert_eq!(error["code"], "not_found");
    assert_eq!(error["message"], "cannot find \"nobody\" — hostname not found or no mutual trust");
    assert_eq!(pair.a.json(&["lookup", "99"]).error()["code"], "not_found");
}

#[test]
fn a_hostname_is_set_remembered_and_cleared() {
    let pair = Pair::private();
    assert_eq!(
        pair.a.json(&["set-hostname", "new-name"]).data(),
        json!({"hostname": "new-name", "node_id": 1})
    );
    assert_eq!(pair.a.config()["hostname"], "new-name");
    let error = pair.a.json(&["set-hostname", "agent-beta"]).error();
    assert_eq!(error["code"], "connection_failed");
    assert!(error["message"].as_str().unwrap().contains("already in use"), "the registry's reason: {error}");
    assert_eq!(pair.a.json(&["set-hostname", "Bad_Host"]).error()["code"], "invalid_argument");
    assert_eq!(pair.a.json(&["info"]).data()["hostname"], "new-name", "refused names change nothing");
    assert_eq!(pair.a.run(&["clear-hostname"]).stdout, "hostname cleared\n");
    assert!(pair.a.config().get("hostname").is_none());
}

#[test]
fn tags_work_with_and_without_extras() {
    let pair = Pair::private();
    let set = pair.a.json(&["set-tags", "mcp", "#finance"]).data();
    assert_eq!(set, json!({"node_id": 1, "tags": ["mcp", "finance"]}));
    assert_eq!(pair.a.run(&["extras", "set-tags", "mcp"]).stdout, "tags set: #mcp\n");
    let eleven = ["set-tags", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    assert_eq!(pair.a.json(&eleven[..11]).data()["tags"].as_array().map(Vec::len), Some(10));
    let error = pair.a.json(&eleven).error();
    assert_eq!(error["message"], "set-tags: maximum 10 tags allowed, got 11");
    assert_eq!(pair.a.json(&["clear-tags"]).data(), json!({"node_id": 1, "tags": []}));
}

#[test]
fn visibility_changes_at_once() {
    let pair = Pair::private();
    assert_eq!(
        pair.b.json(&["set-public"]).data(),
        json!({"node_id": 2, "type": "set_visibility_ok", "visibility": "public"})
    );
    assert_eq!(pair.a.json(&["find", "agent-beta"]).data()["public"], true);
    assert_eq!(pair.b.json(&["set-private"]).data()["visibility"], "private");
}

#[test]
fn a_hidden_name_is_unknown_to_strangers() {
    let pair = Pair::private();
    assert_eq!(pair.b.json(&["set-hidden"]).data(), json!({"node_id": 2, "hidden": true}));
    assert_eq!(pair.a.json(&["find", "agent-beta"]).error()["code"], "not_found");
    assert_eq!(pair.b.json(&["set-hidden", "--off"]).data(), json!({"node_id": 2, "hidden": false}));
    assert_eq!(pair.a.json(&["find", "agent-beta"]).data()["node_id"], 2);
}

#[test]
fn a_webhook_is_applied_and_kept_even_without_a_daemon() {
    let home = Home::new();
    let url = "https://example.org/hook";
    assert_eq!(home.json(&["set-webhook", url]).data(), json!({"applied": false, "webhook": url}));
    assert_eq!(home.config()["webhook"], url);
    assert_eq!(
        home.json(&["set-webhook", "ftp://x"]).error()["message"],
        "webhook URL must start with http:// or https://"
    );
    assert_eq!(home.json(&["clear-webhook"]).data(), json!({"applied": false, "webhook": ""}));
}

#[test]
fn status_commands_have_the_documented_keys_and_no_endpoints() {
    let pair = Pair::public();
    let info = pair.a.json(&["info"]).data();
    for key in [
        "accept_queue_drops",
        "address",
        "authenticated_peers",
        "beacon_addr",
        "bytes_recv",
        "bytes_sent",
        "conn_list",
        "connections",
        "email",
        "encrypt",
        "encrypted_peers",
        "features",
        "handshake_pending_count",
        "hostname",
        "identity",
        "motd",
        "networks",
        "node_id",
        "peer_list",
        "peers",
        "pkts_recv",
        "pkts_sent",
        "port_mapping",
        "ports",
        "public_key",
        "registry_error",
        "registry_ok",
        "relay_peer_count",
        "transport",
        "tunnel_encryption_failure",
        "tunnel_encryption_success",
        "uptime_secs",
        "version",
        "webhook_circuit_skips",
        "webhook_queue_dropped",
    ] {
        assert!(info.get(key).is_some(), "info lacks {key}: {info}");
    }
    let health = pair.a.json(&["health"]).data();
    for key in [
        "accept_queue_drops",
        "authenticated_peers",
        "beacon_addr",
        "bytes_recv",
        "bytes_sent",
        "connections",
        "encrypted_peers",
        "handshake_pending_count",
        "peers",
        "relay_peer_count",
        "status",
        "uptime_seconds",
        "webhook_circuit_skips",
        "webhook_queue_dropped",
    ] {
        assert!(health.get(key).is_some(), "health lacks {key}: {health}");
    }
    assert_eq!(pair.a.json(&["peers"]).data(), json!({"encrypted": 0, "peers": [], "total": 0}));
    assert_eq!(pair.a.json(&["connections"]).data(), json!({"connections": [], "total": 0}));
    // A refused connection leaves a tunnel.
    assert_eq!(pair.a.json(&["connect", "2", "4444", "--message=x"]).error()["code"], "connection_failed");
    let peers = pair.a.json(&["peers"]).data();
    assert_eq!((&peers["total"], &peers["encrypted"]), (&json!(1), &json!(1)));
    let mut peer = peers["peers"][0].clone();
    for (key, number) in
        [("path_since", Value::is_u64 as fn(&Value) -> bool), ("path_rtt_ms", |v| v.is_null() || v.is_f64())]
    {
        let value =
            peer.as_object_mut().and_then(|p| p.remove(key)).unwrap_or_else(|| panic!("{key}: {peers}"));
        assert!(number(&value), "{key}: {value}");
    }
    assert_eq!(
        peer,
        json!({
            "authenticated": true, "encrypted": true, "node_id": 2, "relay": false,
            "session": "upgraded", "pinned": true, "downgrades_refused": 0,
            "path": "direct", "path_kind": "lan", "path_why": "", "mtu": 61_510,
        }),
        "no endpoint"
    );
    let text = pair.a.run(&["peers", "--all"]).stdout;
    assert!(text.starts_with("● 1 peer — 1 encrypted+authenticated · 0 relay · 1 direct\n"), "{text}");
    assert!(text.contains("\n2           yes        yes   upgraded  direct (lan) for "), "{text}");
    let text = pair.a.run(&["info"]).stdout;
    assert!(text.contains("\n  paths      node 2 direct (lan) for "), "{text}");
    let error = pair.a.json(&["disconnect", "99"]).error();
    assert_eq!((&error["code"], &error["message"]), (&json!("not_found"), &json!("no connection 99")));
    let pins = pair.a.json(&["pins"]).data();
    assert_eq!((&pins["total"], &pins["pins"][0]["node_id"]), (&json!(1), &json!(2)));
    assert_eq!(pins["pins"][0]["address"], "0:0000.0000.0002");
    assert_eq!(pair.a.json(&["pins", "clear", "2"]).data(), json!({"node_id": 2, "cleared": true}));
    let error = pair.a.json(&["pins", "clear", "2"]).error();
    assert_eq!((&error["code"], &error["message"]), (&json!("not_found"), &json!("node 2 is not pinned")));
    assert_eq!(pair.a.json(&["pins"]).data(), json!({"pins": [], "total": 0}));
}

#[test]
fn commands_without_a_daemon_say_how_to_start_one() {
    let home = Home::new();
    let socket = home.path().join("pilot.sock");
    for command in
        [&["info"][..], &["ping", "2"], &["trust"], &["recv", "1000"], &["send-message", "2", "--data=x"]]
    {
        let error = home.json(command).error();
        assert_eq!(error["code"], "not_running", "{command:?}");
        assert_eq!(error["message"], "daemon is not running");
        assert_eq!(
            error["hint"],
            format!("start the daemon with: pilotctl daemon start  (tried {})", socket.display())
        );
    }
}

#[test]
fn a_signed_request_verifies_and_a_changed_one_does_not() {
    let pair = Pair::public();
    let signed = pair.a.json(&["sign-request", "--audience", "svc", "--body", "hello"]).data();
    let (envelope, signature) = (signed["envelope"].as_str().unwrap(), signed["signature"].as_str().unwrap());
    assert!(envelope.starts_with("pilot-req-v1|000000000001|"), "{envelope}");
    let verify =
        |envelope: &str| pair.b.json(&["verify-request", "--envelope", envelope, "--signature", signature]);
    let valid = verify(envelope).data();
    assert_eq!((&valid["valid"], &valid["node_id"]), (&json!(true), &json!(1)));
    let invalid = verify(&envelope.replace("|svc", "|svd")).data_of(1);
    assert_eq!(invalid["valid"], false);
    assert_eq!(invalid["reason"], "reqsig: signature verification failed");
}

#[test]
fn network_list_passes_the_registry_answer_through() {
    let pair = Pair::private();
    let list = pair.a.json(&["network", "list"]).data();
    assert_eq!(list["type"], "list_networks_ok");
    assert_eq!(list["networks"][0]["name"], "backbone");
    assert_eq!(pair.a.json(&["network", "join", "70000"]).error()["code"], "invalid_argument");
}

#[test]
fn a_rotated_key_is_the_one_of_info_and_registry() {
    let pair = Pair::private();
    let before = pair.a.json(&["info"]).data()["public_key"].clone();
    let rotated = pair.a.json(&["rotate-key"]).data();
    assert_eq!((&rotated["type"], &rotated["node_id"]), (&json!("rotate_key_ok"), &json!(1)));
    assert_ne!(rotated["public_key"], before);
    assert_eq!(pair.a.json(&["info"]).data()["public_key"], rotated["public_key"]);
    assert_eq!(pair.b.json(&["lookup", "1"]).data()["public_key"], rotated["public_key"]);
}

#[test]
fn prefer_direct_and_deregister_have_their_keys() {
    let pair = Pair::public();
    let data = pair.a.json(&["prefer-direct", "agent-beta"]).data();
    for key in
        ["had_tunnel", "node_id", "pila_pushed", "resolve_error", "was_relay_active", "was_relay_pinned"]
    {
        assert!(data.get(key).is_some(), "{key}: {data}");
    }
    assert_eq!((&data["node_id"], &data["resolve_error"]), (&json!(2), &json!("")));
    assert_eq!(pair.a.json(&["deregister"]).data(), json!({"type": "deregister_ok"}));
}
