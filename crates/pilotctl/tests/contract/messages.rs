//! `ping`, `traceroute`, `bench`, `send-message`, `inbox`, `send-file`, `received`: the built-in services.

use crate::pair::{ALPHA, BETA, Background, Pair, noise, piped, until};
use serde_json::{Value, json};

#[test]
fn ping_names_time_and_path_and_sums_up() {
    let pair = Pair::public();
    let data = pair.a.json(&["ping", "agent-beta", "--count=2", "--interval=10ms"]).data();
    assert_eq!((&data["target"], &data["to"], &data["timeout"]), (&json!(BETA), &json!(BETA), &json!(false)));
    for seq in 0..2 {
        let result = &data["results"][seq];
        assert_eq!(
            (&result["seq"], &result["bytes"], &result["path"]),
            (&json!(seq), &json!(6), &json!("direct"))
        );
        assert!(result["rtt_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        (&data["path"], &data["path_kind"], &data["path_why"]),
        (&json!("direct"), &json!("lan"), &json!(""))
    );
    assert!(
        data["path_since"].is_u64() && data["mtu"].is_u64() && data.get("path_rtt_ms").is_some(),
        "{data}"
    );
    let text = pair.a.run(&["ping", BETA, "--count=1"]).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("PING {BETA}"));
    assert!(lines[1].starts_with(&format!("✓ reply from {BETA} · ")), "{text}");
    assert!(lines[1].ends_with("ms · direct"), "{text}");
    assert!(lines[2].starts_with("1 probe, 1 reply, 0% lost · min/avg/max "), "{text}");
    assert!(lines[3].starts_with("path direct (lan) for "), "{text}");
    let reused = pair.a.json(&["ping", "2", "--count=2", "--interval=1ms", "--reuse-conn"]).data();
    assert_eq!(
        (&reused["results"][0]["reused"], &reused["results"][1]["reused"]),
        (&Value::Null, &json!(true))
    );
    let traced = pair.a.json(&["ping", "2", "--count=1", "--trace"]).data();
    assert_eq!(traced["results"][0]["bytes"], 20);
    for key in ["dial_ms", "echo_ms", "to_server_ms", "from_server_ms"] {
        assert!(traced["results"][0][key].is_number(), "{key}: {traced}");
    }
    assert_eq!(pair.a.json(&["ping", "2", "--count=0"]).error()["code"], "invalid_argument");
}

#[test]
fn ping_of_a_dead_peer_ends_in_time_with_status_one() {
    let pair = Pair::public();
    pair.b.json(&["daemon", "stop"]).data();
    let begun = std::time::Instant::now();
    let data = pair.a.json(&["ping", "2", "--timeout=700ms"]).data_of(1);
    assert!(begun.elapsed().as_millis() < 5_000, "{:?}", begun.elapsed());
    assert_eq!(data["summary"]["received"], 0);
    assert!(data["results"][0]["error"].as_str().unwrap().starts_with("dial: "), "{data}");
}

#[test]
fn traceroute_takes_names_and_tells_the_path() {
    let pair = Pair::public();
    let data = pair.a.json(&["traceroute", "agent-beta"]).data();
    assert_eq!((&data["target"], &data["path"]), (&json!(BETA), &json!("direct")));
    assert_eq!(data["rtt_samples"].as_array().unwrap().len(), 3);
    assert_eq!(data["rtt_samples"][0]["bytes"], 7);
    assert!(data["setup_ms"].is_number());
}

#[test]
fn bench_brings_everything_back_intact() {
    let pair = Pair::public();
    let data = pair.a.json(&["bench", "2", "3"]).data();
    for (key, value) in [
        ("complete", json!(true)),
        ("intact", json!(true)),
        ("sent_bytes", json!(3 << 20)),
        ("recv_bytes", json!(3 << 20)),
        ("target", json!(BETA)),
    ] {
        assert_eq!(data[key], value, "{key}");
    }
    for key in ["send_duration_ms", "send_mbps", "total_duration_ms", "total_mbps"] {
        assert!(data[key].is_number(), "{key}: {data}");
    }
    assert_eq!(
        pair.a.json(&["bench", "2", "5000"]).error()["message"],
        "size 5000 MB exceeds maximum of 4096 MB"
    );
}

#[test]
fn a_message_is_acknowledged_stored_and_read() {
    let pair = Pair::public();
    let sent = pair.a.json(&["send-message", "agent-beta", "--data", "hi\x1b[2J there"]).data();
    let id = sent["message_id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(
        sent,
        json!({
            "ack": "ACK TEXT 12 bytes", "bytes": 12, "first_contact": true, "message_id": id, "reused": false,
            "seq": 0, "tagged": true, "target": BETA, "to": BETA, "type": "text",
        })
    );
    let inbox = pair.b.json(&["inbox"]).data();
    assert_eq!((&inbox["total"], &inbox["shown"]), (&json!(1), &json!(1)));
    assert_eq!(inbox["dir"], pair.b.file("inbox").to_str().unwrap());
    let message = &inbox["messages"][0];
    for (key, value) in
        [("bytes", json!(12)), ("from", json!(ALPHA)), ("message_id", json!(id)), ("type", json!("TEXT"))]
    {
        assert_eq!(message[key], value, "{key}");
    }
    assert!(message["preview"].as_str().unwrap().starts_with("hi"));
    let record = pair.b.json(&["inbox", "read", message["id"].as_str().unwrap()]).data();
    assert_eq!(record["data"], "hi\x1b[2J there", "JSON has it as it was sent");
    let text = pair.b.run(&["inbox", "--latest"]).stdout;
    assert!(text.contains("  hi\\u{1b}[2J there\n"), "text mode shows control characters: {text:?}");
    assert_eq!(pair.b.json(&["inbox", "--from", "9"]).data()["total"], 0);
    assert_eq!(pair.b.json(&["inbox", "--from", "1", "--since", "1h"]).data()["total"], 1);
    let error = pair.b.json(&["inbox", "read", "TEXT-0"]).error();
    assert_eq!(error["message"], "no message \"TEXT-0\" — list ids with: pilotctl inbox");
    assert_eq!(
        pair.b.json(&["inbox", "--clear", "--before", "1h"]).data(),
        json!({"cleared": 0, "remaining": 1})
    );
    assert_eq!(pair.b.json(&["inbox", "--clear"]).data(), json!({"cleared": 1, "remaining": 0}));
}

#[test]
fn messages_come_from_stdin_and_files_in_all_types() {
    let pair = Pair::public();
    let (code, stdout, stderr) =
        piped(&pair.a, &["--json", "send-message", "2", "--data", "-", "--type", "binary"], b"\0\xff\n");
    assert_eq!(code, 0, "{stderr}");
    assert!(String::from_utf8(stdout).unwrap().contains("ACK BINARY 3 bytes"));
    pair.a.write("message.json", "{\"a\":1}");
    let file = pair.a.file("message.json");
    let sent =
        pair.a.json(&["send-message", "2", "--data-file", file.to_str().unwrap(), "--type", "json"]).data();
    assert_eq!((&sent["ack"], &sent["type"]), (&json!("ACK JSON 7 bytes"), &json!("json")));
    let inbox = pair.b.json(&["inbox", "--full"]).data();
    assert_eq!(inbox["messages"][0]["data"], "{\"a\":1}");
    assert_eq!(inbox["messages"][1]["data_b64"], "AP8K");
    let error =
        |args: &[&str]| pair.a.json(&[&["send-message", "2"], args].concat()).error()["message"].clone();
    assert_eq!(error(&[]), "--data is required");
    assert_eq!(error(&["--data", "x", "--type", "xml"]), "unknown type \"xml\" (use text, json, or binary)");
    assert_eq!(error(&["--data", "x", "--bogus"]), "send-message: unknown flag --bogus");
}

#[test]
fn several_messages_go_over_one_stream() {
    let pair = Pair::public();
    let data = pair.a.json(&["send-message", "2", "--data", "x", "--count", "3", "--reuse-conn"]).data();
    assert_eq!((&data["reuse_conn"], &data["target"]), (&json!(true), &json!(BETA)));
    let reused: Vec<&Value> = data["results"].as_array().unwrap().iter().map(|r| &r["reused"]).collect();
    assert_eq!(reused, [&json!(false), &json!(true), &json!(true)]);
    assert_eq!(pair.b.json(&["inbox"]).data()["total"], 3);
}

#[test]
fn waiting_brings_the_answer_that_names_the_request() {
    let pair = Pair::public();
    let asking =
        Background::start(&pair.a, &["--json", "send-message", "2", "--data", "q?", "--wait", "25s"]);
    until("the question arrives", || pair.b.json(&["inbox"]).data()["total"] == 1);
    let question = pair.b.json(&["inbox"]).data()["messages"][0]["id"].as_str().unwrap().to_owned();
    pair.b.json(&["send-message", "1", "--data", "other", "--reply-to", "0123456789abcdef"]).data();
    let answered = pair.b.json(&["send-message", "1", "--data", "a!", "--reply-to", &question]).data();
    let data = asking.finish().data();
    assert_eq!(answered["reply_to"], data["message_id"]);
    assert_eq!(data["reply"]["data"], "a!");
    assert_eq!((&data["reply"]["from"], &data["reply"]["reply_to"]), (&json!(BETA), &data["message_id"]));
    assert!(data["reply_after_ms"].is_number());
}

#[test]
fn no_answer_in_time_is_a_timeout_although_the_message_arrived() {
    let pair = Pair::public();
    let error = pair.a.json(&["send-message", "2", "--data", "q?", "--wait", "200ms"]).error();
    assert_eq!(error["code"], "timeout");
    assert_eq!(error["message"], format!("no reply from \"{BETA}\" within 200ms"));
    assert!(error["hint"].as_str().unwrap().starts_with("2 acknowledged the request but no reply arrived"));
    assert_eq!(pair.b.json(&["inbox"]).data()["total"], 1);
}

#[test]
fn a_file_arrives_verified() {
    let pair = Pair::public();
    let contents = noise(2_000_000);
    let path = pair.a.path().join("f5.bin");
    std::fs::write(&path, &contents).unwrap();
    let sent = pair.a.json(&["send-file", "agent-beta", path.to_str().unwrap()]).data();
    for (key, value) in [
        ("bytes", json!(2_000_000)),
        ("bytes_sent", json!(2_000_000)),
        ("bytes_resumed", json!(0)),
        ("destination", json!(BETA)),
        ("filename", json!("f5.bin")),
        ("transport", json!("filestream")),
        ("verified", json!(true)),
    ] {
        assert_eq!(sent[key], value, "{key}");
    }
    assert_eq!(sent["sha256"].as_str().unwrap().len(), 64);
    assert!(sent["throughput_mbps"].is_number() && sent["elapsed_ms"].is_number());
    let received = pair.b.json(&["received"]).data();
    assert_eq!((&received["total"], &received["shown"]), (&json!(1), &json!(1)));
    let file = &received["files"][0];
    let name = file["name"].as_str().unwrap();
    assert!(name.starts_with("f5-") && name.ends_with(".bin"), "{name}");
    assert!(std::fs::read(file["path"].as_str().unwrap()).unwrap() == contents);

    let whole = pair.a.json(&["send-file", "2", path.to_str().unwrap(), "--no-stream"]).data();
    assert_eq!(whole["ack"], "ACK FILE 2000000 bytes");
    assert!(whole.get("transport").is_none());
    assert_eq!(
        pair.b.json(&["received", "--clear"]).data(),
        json!({"cleared": 2, "cleared_partial": 0, "remaining": 0})
    );
}

#[test]
fn a_file_is_sent_from_where_an_earlier_attempt_ended() {
    let pair = Pair::public();
    let contents = noise(1_000_000);
    let path = pair.a.path().join("f1.bin");
    std::fs::write(&path, &contents).unwrap();
    let send = || pair.a.json(&["send-file", "2", path.to_str().unwrap()]).data();
    let sha256 = send()["sha256"].as_str().unwrap().to_owned();
    // What a broken attempt leaves: the beginning, under the transfer's id.
    let partial = pair.b.file("received/.partial").join(&sha256[..32]);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, &contents[..600_000]).unwrap();
    let listed = pair.b.json(&["received"]).data();
    assert_eq!((&listed["total"], &listed["partial"][0]["bytes"]), (&json!(1), &json!(600_000)));
    let resumed = send();
    assert_eq!((&resumed["bytes_resumed"], &resumed["bytes_sent"]), (&json!(600_000), &json!(400_000)));
    assert_eq!((&resumed["bytes"], &resumed["verified"]), (&json!(1_000_000), &json!(true)));
    let file =
        pair.b.json(&["received", "--limit", "1"]).data()["files"][0]["path"].as_str().unwrap().to_owned();
    assert!(std::fs::read(file).unwrap() == contents);
}

#[test]
fn what_is_no_file_is_refused_before_anything_is_sent() {
    let pair = Pair::public();
    let error = pair.a.json(&["send-file", "2", "/nonexistent"]).error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("not_found"), &json!("file not found: /nonexistent"))
    );
    let error = pair.a.json(&["send-file", "2", "/tmp"]).error();
    assert_eq!(error["code"], "invalid_argument");
    assert_eq!(error["message"], "/tmp is a directory, not a file");
}
