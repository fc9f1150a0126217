//! One of ours and one of theirs: trust, ping, streams, datagrams, messages, files; each in both directions.

use crate::lab::{Daemon, Lab, Make, noise, wait_until};
use serde_json::Value;
use std::time::Duration;

/// Two private daemons that trust each other; the first is of `make`, the second of the other make.
fn trusting_pair(lab: &Lab, make: Make) -> (Daemon, Daemon) {
    let a = lab.daemon(make, "alpha", &[]);
    let b = lab.daemon(make.other(), "beta", &[]);
    lab.trust(&a, &b);
    (a, b)
}

#[test]
fn each_finds_the_other_by_name() {
    let lab = Lab::new();
    let ours = lab.daemon(Make::Ours, "alpha", &["-public"]);
    let theirs = lab.daemon(Make::Reference, "beta", &["-public"]);
    for (asker, asked) in [(&ours, &theirs), (&theirs, &ours)] {
        let found = asker.ctl(asker.make, &["find", &asked.name]).data();
        assert_eq!(found["address"], asked.address().as_str());
        assert_eq!(found["hostname"], asked.name.as_str());
    }
}

#[test]
fn a_relayed_handshake_is_approved_our_request_to_their_private_node() {
    relayed_handshake(Make::Ours);
}

#[test]
fn a_relayed_handshake_is_approved_their_request_to_our_private_node() {
    relayed_handshake(Make::Reference);
}

fn relayed_handshake(asker: Make) {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, asker);
    let id = b.node_id();
    let trusted = a.ctl(a.make, &["trust"]).data()["trusted"].clone();
    let record = trusted.as_array().expect("a list").iter().find(|p| p["node_id"] == id).cloned();
    assert_eq!(record.expect("the peer is listed")["mutual"], true);
}

#[test]
fn a_direct_handshake_reaches_their_public_node() {
    direct_handshake(Make::Ours);
}

#[test]
fn a_direct_handshake_reaches_our_public_node() {
    direct_handshake(Make::Reference);
}

fn direct_handshake(asker: Make) {
    let lab = Lab::new();
    let a = lab.daemon(asker, "alpha", &["-public"]);
    let b = lab.daemon(asker.other(), "beta", &["-public"]);
    a.ctl(a.make, &["handshake", "beta", "let us talk"]).data();
    wait_until("the request is pending", Duration::from_secs(20), || {
        let pending = b.ctl(b.make, &["pending"]).data();
        pending["pending"].as_array().is_some_and(|p| p.iter().any(|r| r["justification"] == "let us talk"))
    });
    let pending = b.ctl(b.make, &["pending"]).data();
    let request = &pending["pending"][0];
    assert_eq!(request["node_id"], a.node_id());
    assert!(
        request["public_key"].as_str().is_some_and(|k| k.len() == 44),
        "a direct request carries the key: {request}"
    );
    b.ctl(b.make, &["approve", &a.node_id().to_string()]).data();
    wait_until("both sides trust", Duration::from_secs(20), || a.trusts(&b) && b.trusts(&a));
}

#[test]
fn a_rejected_request_leaves_no_trust_on_either_side() {
    for asker in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let a = lab.daemon(asker, "alpha", &[]);
        let b = lab.daemon(asker.other(), "beta", &[]);
        a.ctl(a.make, &["handshake", "beta", "please"]).data();
        wait_until("the request is pending", Duration::from_secs(70), || {
            b.ctl(b.make, &["pending"]).data()["pending"].as_array().is_some_and(|p| !p.is_empty())
        });
        b.ctl(b.make, &["reject", &a.node_id().to_string(), "not now"]).data();
        assert!(!a.trusts(&b) && !b.trusts(&a));
    }
}

#[test]
fn auto_approval_works_in_both_directions() {
    for asker in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let a = lab.daemon(asker, "alpha", &[]);
        let b = lab.daemon(asker.other(), "beta", &["-trust-auto-approve"]);
        a.ctl(a.make, &["handshake", "beta", "agents"]).data();
        wait_until("both sides trust", Duration::from_secs(70), || a.trusts(&b) && b.trusts(&a));
    }
}

/// Between public nodes everything goes directly, so their side learns of our approval from our accept alone.
#[test]
fn they_take_our_direct_accept_with_its_call_for_confirmation() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Reference, "alpha", &["-public"]);
    let b = lab.daemon(Make::Ours, "beta", &["-public", "-trust-auto-approve"]);
    a.ctl(a.make, &["handshake", "beta", "agents"]).data();
    wait_until("both sides trust", Duration::from_secs(10), || a.trusts(&b) && b.trusts(&a));
}

#[test]
fn untrust_reaches_the_other_side() {
    for make in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let (a, b) = trusting_pair(&lab, make);
        a.ctl(a.make, &["untrust", &b.node_id().to_string()]).data();
        wait_until("trust is gone on both sides", Duration::from_secs(20), || !a.trusts(&b) && !b.trusts(&a));
    }
}

#[test]
fn ping_works_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let ping = from.ctl(from.make, &["ping", &to.name, "--count", "2"]).data();
        let results = ping["results"].as_array().expect("results");
        assert_eq!(results.len(), 2);
        for result in results {
            assert!(result["rtt_ms"].as_f64().is_some_and(|ms| ms < 5_000.0), "{ping}");
        }
    }
}

#[test]
fn our_stream_echoes_8_mib_through_their_echo_service() {
    let lab = Lab::new();
    let (ours, theirs) = trusting_pair(&lab, Make::Ours);
    let data = noise(8 << 20, 7);
    let said = ours.ctl_raw(Make::Ours, &["connect", &theirs.name, "7", "--timeout", "60s"], &data);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(said.stdout.len(), data.len(), "every byte came back");
    assert!(said.stdout == data, "and unchanged");
}

#[test]
fn their_bench_runs_8_mib_through_our_echo_service() {
    let lab = Lab::new();
    let (theirs, ours) = trusting_pair(&lab, Make::Reference);
    let bench = theirs.ctl(Make::Reference, &["bench", &ours.name, "8"]).data();
    assert_eq!(bench["complete"], true, "{bench}");
    assert_eq!(bench["recv_bytes"], 8 << 20, "{bench}");
}

#[test]
fn datagrams_arrive_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let listener =
            to.ctl_spawn(to.make, &["listen", "5000", "--count", "1", "--timeout", "20s", "--json"]);
        // A datagram is lost when nobody listens yet, so it is repeated until the listener ends.
        let mut listener = listener;
        wait_until("the listener got a datagram", Duration::from_secs(20), || {
            from.ctl(from.make, &["dgram", &to.name, "5000", "--data", "over the air"]).data();
            listener.try_wait().is_ok_and(|s| s.is_some())
        });
        let out = listener.wait_with_output().expect("the listener ended");
        let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let message = &value["data"]["messages"][0];
        assert_eq!(message["data"], "over the air", "{value}");
        assert_eq!(message["src_addr"], from.address().as_str());
    }
}

fn inbox(daemon: &Daemon) -> Vec<Value> {
    let data = daemon.ctl(daemon.make, &["inbox", "--full", "--limit", "100"]).data();
    data["messages"].as_array().cloned().unwrap_or_default()
}

#[test]
fn messages_of_every_type_land_in_the_inbox_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    for (from, to) in [(&a, &b), (&b, &a)] {
        for (kind, text) in
            [("text", "hello"), ("json", r#"{"action":"status"}"#), ("binary", "\u{1}\u{2}raw")]
        {
            let sent =
                from.ctl(from.make, &["send-message", &to.name, "--type", kind, "--data", text]).data();
            assert_eq!(sent["ack"], format!("ACK {} {} bytes", kind.to_uppercase(), text.len()), "{sent}");
            assert_eq!(sent["tagged"], true, "{sent}");
            let found = inbox(to);
            let record = found
                .iter()
                .find(|m| m["message_id"] == sent["message_id"])
                .unwrap_or_else(|| panic!("{sent} is not in {found:?}"));
            assert_eq!(record["from"], from.address().as_str());
            assert_eq!(record["type"], kind.to_uppercase());
            if kind != "binary" {
                assert_eq!(record["data"], text);
            }
        }
    }
}

#[test]
fn a_file_of_20_mb_arrives_intact_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    let content = noise(20_000_000, 20);
    let path = lab.dir.path().join("payload.bin");
    std::fs::write(&path, &content).expect("file");
    for (from, to) in [(&a, &b), (&b, &a)] {
        let path = path.to_str().expect("utf-8 path");
        let sent = from.ctl(from.make, &["send-file", &to.name, path]).data();
        assert_eq!(sent["verified"], true, "{sent}");
        assert_eq!(sent["transport"], "filestream", "{sent}");
        let received = to.ctl(to.make, &["received"]).data();
        let file = received["files"][0]["path"].as_str().expect("path").to_owned();
        assert!(std::fs::read(file).expect("received file") == content, "the content is the same");
    }
}

#[test]
fn data_that_looks_like_sack_lists_arrives_intact_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    // Lists of one block, back to back. A segment of 1,152 bytes shifts them by 8 of 13 bytes, so one segment in 13 begins
    // exactly as a list does, and a receiver that took it for one would lose it.
    let content = b"SACK\x01\0\0\x10\0\0\0\x20\0".repeat(150_000);
    let path = lab.dir.path().join("lists.bin");
    std::fs::write(&path, &content).expect("file");
    for (from, to) in [(&a, &b), (&b, &a)] {
        let path = path.to_str().expect("utf-8 path");
        let sent = from.ctl(from.make, &["send-file", &to.name, path]).data();
        assert_eq!(sent["verified"], true, "{sent}");
        let received = to.ctl(to.make, &["received"]).data();
        let file = received["files"][0]["path"].as_str().expect("path").to_owned();
        assert!(std::fs::read(file).expect("received file") == content, "the content is the same");
    }
    // And without any frame around them: a stream of nothing but lists, there and back.
    let said = a.ctl_raw(Make::Ours, &["connect", &b.name, "7", "--timeout", "60s"], &content);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout == content, "{} of {} bytes came back", said.stdout.len(), content.len());
}

#[test]
fn an_untrusted_peer_gets_no_stream_on_a_private_node() {
    for make in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let a = lab.daemon(make, "alpha", &["-public"]);
        let b = lab.daemon(make.other(), "beta", &[]);
        let said = a.ctl(a.make, &["connect", &b.name, "7", "--message", "hi", "--timeout", "5s"]);
        assert_eq!(said.error_code(), "trust_required", "{said:?}");
    }
}

#[test]
fn a_closed_port_is_refused_in_both_directions() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let said = from.ctl(from.make, &["connect", &to.name, "4999", "--message", "hi", "--timeout", "5s"]);
        assert_eq!(said.error_code(), "connection_failed", "{said:?}");
    }
}

#[test]
fn close_ends_the_stream_on_both_sides() {
    let lab = Lab::new();
    let (a, b) = trusting_pair(&lab, Make::Ours);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let receiver = to.ctl_spawn(to.make, &["recv", "4001", "--count", "1", "--timeout", "20s", "--json"]);
        wait_until("the peer listens and the message went out", Duration::from_secs(20), || {
            let said = from.ctl_raw(
                from.make,
                &["connect", &to.name, "4001", "--message", "last words", "--timeout", "1s", "--json"],
                b"",
            );
            !said.stderr.contains("cannot connect")
        });
        let out = receiver.wait_with_output().expect("recv ended");
        let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(value["data"]["messages"][0]["data"], "last words", "{value}");
    }
}

#[test]
fn a_relay_only_node_is_reached_through_our_beacon_by_either_make() {
    for relayed in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let a = lab.daemon(relayed, "alpha", &["-relay-only"]);
        let b = lab.daemon(Make::Ours, "beta", &[]);
        let c = lab.daemon(Make::Reference, "gamma", &[]);
        for caller in [&b, &c] {
            lab.trust(caller, &a);
            caller.ctl(caller.make, &["ping", "alpha", "--count", "2"]).data();
            let bench = caller.ctl(caller.make, &["bench", "alpha", "1"]).data();
            assert_eq!(bench["complete"], true, "{bench}");
        }
        // The reference keeps no such promise for itself (it may go direct when it is the caller); ours does.
        let peers = b.ctl(Make::Ours, &["peers"]).data();
        let path =
            peers["peers"].as_array().and_then(|p| p.iter().find(|p| p["node_id"] == a.node_id()).cloned());
        if relayed == Make::Ours {
            assert_eq!(path.expect("the peer is listed")["relay"], true, "{peers}");
            let own = a.ctl(Make::Ours, &["peers"]).data();
            let all_relayed = own["peers"].as_array().is_some_and(|p| p.iter().all(|p| p["relay"] == true));
            assert!(all_relayed, "a relay-only node shows its address to nobody: {own}");
        }
    }
}
