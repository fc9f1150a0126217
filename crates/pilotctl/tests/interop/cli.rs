//! Their CLI driving our daemon, and ours driving theirs, for every command both have.

use crate::lab::{Daemon, Lab, Make, wait_until};
use serde_json::Value;
use std::time::Duration;

/// A daemon under test driven by the other make's CLI, and a trusted peer of the other make.
fn crossed(lab: &Lab, daemon: Make) -> (Daemon, Daemon) {
    let a = lab.daemon(daemon, "alpha", &[]);
    let b = lab.daemon(daemon.other(), "beta", &[]);
    lab.trust(&a, &b);
    (a, b)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[track_caller]
fn has_keys(value: &Value, wanted: &[&str]) {
    let present = keys(value);
    for key in wanted {
        assert!(present.contains(key), "{key} is missing in {value}");
    }
}

fn status_commands(daemon: Make) {
    let lab = Lab::new();
    let (a, b) = crossed(&lab, daemon);
    let cli = daemon.other();
    a.ctl(cli, &["ping", "beta", "--count", "1"]).data();
    // The reference's figures lag behind by up to a second.
    wait_until("the tunnel shows", Duration::from_secs(5), || {
        a.ctl(cli, &["info"]).data()["encrypted_peers"] == 1
    });

    let info = a.ctl(cli, &["info"]).data();
    let wanted = [
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
        "ports",
        "public_key",
        "relay_peer_count",
        "transport",
        "tunnel_encryption_failure",
        "tunnel_encryption_success",
        "uptime_secs",
        "version",
        "webhook_circuit_skips",
        "webhook_queue_dropped",
    ];
    has_keys(&info, &wanted);
    assert_eq!(info["hostname"], "alpha");
    assert_eq!(info["email"], "alpha@example.com");
    assert_eq!(info["encrypted_peers"], 1);

    let health = a.ctl(cli, &["health"]).data();
    assert_eq!(health["status"], "ok");
    has_keys(&health, &["uptime_seconds", "connections", "peers", "bytes_sent", "bytes_recv", "beacon_addr"]);

    let peers = a.ctl(cli, &["peers"]).data();
    assert_eq!(peers["total"], 1, "{peers}");
    assert_eq!(peers["peers"][0]["node_id"], b.node_id());
    assert_eq!(peers["peers"][0]["encrypted"], true);
    assert_eq!(peers["peers"][0]["authenticated"], true);

    has_keys(&a.ctl(cli, &["connections"]).data(), &["connections", "total"]);
    let found = a.ctl(cli, &["find", "beta"]).data();
    assert_eq!(found["node_id"], b.node_id());
    let looked = a.ctl(cli, &["lookup", &b.node_id().to_string()]).data();
    assert_eq!(looked["public_key"], b.info()["public_key"]);
    let trust = a.ctl(cli, &["trust"]).data();
    assert_eq!(trust["total"], 1, "{trust}");
    has_keys(&trust["trusted"][0], &["approved_at", "mutual", "network", "node_id", "public_key"]);
    assert_eq!(a.ctl(cli, &["pending"]).data()["pending"], Value::Array(vec![]));
}

#[test]
fn their_cli_reads_our_daemons_status() {
    status_commands(Make::Ours);
}

#[test]
fn our_cli_reads_their_daemons_status() {
    status_commands(Make::Reference);
}

fn setting_commands(daemon: Make) {
    let lab = Lab::new();
    let (a, b) = crossed(&lab, daemon);
    let cli = daemon.other();
    let id = a.node_id();

    assert_eq!(a.ctl(cli, &["set-hostname", "gamma"]).data()["hostname"], "gamma");
    assert_eq!(b.ctl(b.make, &["find", "gamma"]).data()["node_id"], id);
    assert_eq!(a.ctl(cli, &["clear-hostname"]).data()["hostname"], "");
    let visible = a.ctl(cli, &["set-public"]).data();
    assert_eq!(visible["visibility"], "public");
    assert_eq!(b.ctl(b.make, &["lookup", &id.to_string()]).data()["public"], true);
    assert_eq!(a.ctl(cli, &["set-private"]).data()["visibility"], "private");
    let tags = a.ctl(cli, &["extras", "set-tags", "mcp", "finance"]).data();
    assert_eq!(tags["tags"], serde_json::json!(["mcp", "finance"]));
    let cleared = a.ctl(cli, &["extras", "clear-tags"]).data();
    assert!(cleared["tags"].as_array().is_none_or(Vec::is_empty), "{cleared}");
    let before = a.info()["public_key"].clone();
    let rotated = a.ctl(cli, &["rotate-key"]).data();
    assert_ne!(rotated["public_key"], before);
    // The reference answers `info` from a copy that may be 200 ms old.
    wait_until("info has the new key", Duration::from_secs(5), || {
        a.info()["public_key"] == rotated["public_key"]
    });
    assert_eq!(a.ctl(cli, &["deregister"]).data()["type"], "deregister_ok");
}

#[test]
fn their_cli_changes_our_daemons_settings() {
    setting_commands(Make::Ours);
}

#[test]
fn our_cli_changes_their_daemons_settings() {
    setting_commands(Make::Reference);
}

fn trust_commands(daemon: Make) {
    let lab = Lab::new();
    let a = lab.daemon(daemon, "alpha", &[]);
    let b = lab.daemon(daemon.other(), "beta", &[]);
    let cli = daemon.other();
    let (a_id, b_id) = (a.node_id().to_string(), b.node_id().to_string());

    let sent = a.ctl(cli, &["handshake", "beta", "crossed"]).data();
    assert_eq!(sent["status"], "sent");
    assert_eq!(sent["node_id"], b.node_id());
    wait_until("the request is pending", Duration::from_secs(70), || {
        b.ctl(b.make, &["pending"]).data()["pending"].as_array().is_some_and(|p| !p.is_empty())
    });
    b.ctl(b.make, &["approve", &a_id]).data();
    wait_until("both sides trust", Duration::from_secs(70), || a.trusts(&b) && b.trusts(&a));
    a.ctl(cli, &["untrust", &b_id]).data();
    wait_until("trust is gone", Duration::from_secs(20), || !a.trusts(&b) && !b.trusts(&a));

    let c = lab.daemon(daemon.other(), "delta", &[]);
    c.ctl(c.make, &["handshake", "alpha", "from delta"]).data();
    wait_until("the request arrived", Duration::from_secs(70), || {
        let pending = a.ctl(cli, &["pending"]).data();
        pending["pending"].as_array().is_some_and(|p| p.iter().any(|r| r["justification"] == "from delta"))
    });
    let approved = a.ctl(cli, &["approve", &c.node_id().to_string()]).data();
    assert_eq!(approved["status"], "approved");
    wait_until("delta trusts alpha", Duration::from_secs(70), || c.trusts(&a));

    let d = lab.daemon(daemon.other(), "epsilon", &[]);
    d.ctl(d.make, &["handshake", "alpha", "from epsilon"]).data();
    wait_until("the request arrived", Duration::from_secs(70), || {
        let pending = a.ctl(cli, &["pending"]).data();
        pending["pending"].as_array().is_some_and(|p| p.iter().any(|r| r["justification"] == "from epsilon"))
    });
    let rejected = a.ctl(cli, &["reject", &d.node_id().to_string(), "no"]).data();
    assert_eq!(rejected["status"], "rejected");
    assert!(!a.trusts(&d));
}

#[test]
fn their_cli_manages_our_daemons_trust() {
    trust_commands(Make::Ours);
}

#[test]
fn our_cli_manages_their_daemons_trust() {
    trust_commands(Make::Reference);
}

fn traffic_commands(daemon: Make) {
    let lab = Lab::new();
    let (a, b) = crossed(&lab, daemon);
    let cli = daemon.other();

    let ping = a.ctl(cli, &["ping", "beta", "--count", "2"]).data();
    assert_eq!(ping["results"].as_array().map(Vec::len), Some(2), "{ping}");
    let route = a.ctl(cli, &["traceroute", &b.address()]).data();
    has_keys(&route, &["rtt_samples", "setup_ms", "target"]);
    let bench = a.ctl(cli, &["bench", "beta", "2"]).data();
    assert_eq!(bench["complete"], true, "{bench}");
    let echoed = a.ctl(cli, &["connect", "beta", "7", "--message", "hello"]).data();
    assert_eq!(echoed["response"], "hello", "{echoed}");
    let echoed = a.ctl(cli, &["send", "beta", "7", "--data", "again"]).data();
    assert_eq!(echoed["response"], "again", "{echoed}");

    let receiver = a.ctl_spawn(cli, &["recv", "4100", "--count", "1", "--timeout", "20s", "--json"]);
    wait_until("a message reached recv", Duration::from_secs(20), || {
        let said = b.ctl(b.make, &["connect", "alpha", "4100", "--message", "inbound", "--timeout", "1s"]);
        !said.stderr.contains("cannot connect")
    });
    let out = receiver.wait_with_output().expect("recv ended");
    let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(value["data"]["messages"][0]["data"], "inbound", "{value}");

    let mut listener = a.ctl_spawn(cli, &["listen", "5100", "--count", "1", "--timeout", "20s", "--json"]);
    wait_until("the listener got a datagram", Duration::from_secs(20), || {
        b.ctl(b.make, &["dgram", "alpha", "5100", "--data", "crossed"]).data();
        listener.try_wait().is_ok_and(|s| s.is_some())
    });
    let out = listener.wait_with_output().expect("listen ended");
    let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(value["data"]["messages"][0]["data"], "crossed", "{value}");

    let sent = a.ctl(cli, &["dgram", "beta", "5000", "--data", "hi"]).data();
    assert_eq!(sent["bytes"], 2);
    assert_eq!(sent["confirmed"], true);

    let sent = a.ctl(cli, &["send-message", "beta", "--data", "crossed", "--type", "text"]).data();
    assert_eq!(sent["ack"], "ACK TEXT 7 bytes", "{sent}");
    let inbox = b.ctl(b.make, &["inbox"]).data();
    assert_eq!(inbox["messages"][0]["preview"], "crossed", "{inbox}");

    let path = lab.dir.path().join("small.txt");
    std::fs::write(&path, b"a small file").expect("file");
    let file = a.ctl(cli, &["send-file", "beta", path.to_str().expect("utf-8")]).data();
    assert_eq!(file["bytes"], 12, "{file}");
    assert_eq!(b.ctl(b.make, &["received"]).data()["total"], 1);

    // And what lands at the daemon under test is readable by the other make's CLI.
    b.ctl(b.make, &["send-message", "alpha", "--data", "answer"]).data();
    let inbox = a.ctl(cli, &["inbox", "--latest"]).data();
    assert_eq!(inbox["messages"][0]["data"], "answer", "{inbox}");
}

#[test]
fn their_cli_sends_traffic_through_our_daemon() {
    traffic_commands(Make::Ours);
}

#[test]
fn our_cli_sends_traffic_through_their_daemon() {
    traffic_commands(Make::Reference);
}

#[test]
fn our_cli_subscribes_and_publishes_at_their_broker() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Reference, "beta", &[]);
    lab.trust(&a, &b);
    let listening =
        a.ctl_spawn(Make::Ours, &["subscribe", "beta", "news", "--count", "1", "--timeout", "20s", "--json"]);
    let mut listening = Some(listening);
    // A subscription is not acknowledged: publish until it has its event.
    wait_until("an event arrives", Duration::from_secs(20), || {
        let said = a.ctl(Make::Ours, &["publish", "beta", "news", "--data", "hello"]).data();
        assert_eq!(said, serde_json::json!({"bytes": 5, "target": b.address(), "topic": "news"}));
        listening.as_mut().is_some_and(|child| child.try_wait().expect("a child of ours").is_some())
    });
    let out = listening.take().expect("there").wait_with_output().expect("subscribe ended");
    let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let expected =
        serde_json::json!({"events": [{"bytes": 5, "data": "hello", "topic": "news"}], "timeout": false});
    assert_eq!(value["data"], expected);
}
