//! `connect`, `send`, `recv`, `dgram`, `listen`: bytes arrive as they were sent, and waits are bounded.

use crate::pair::{ALPHA, BETA, Background, Pair, noise, piped, until};
use serde_json::json;
use std::io::Write as _;

#[test]
fn connect_prints_the_answer_of_a_command_behind_recv() {
    let pair = Pair::public();
    let serving = Background::recv(&pair.b, "1000", &["--exec", "tr a-z A-Z", "--count=2"]);
    let ran = pair.a.json(&["connect", "agent-beta", "--message", "hello"]);
    let data = ran.data();
    for (key, value) in [
        ("port", json!(1000)),
        ("sent", json!("hello")),
        ("response", json!("HELLO")),
        ("target", json!(BETA)),
        ("ended", json!("closed")),
    ] {
        assert_eq!(data[key], value, "{key}");
    }
    let (code, stdout, _) = piped(&pair.a, &["connect", "2"], b"x\r\ny\n");
    assert_eq!((code, stdout.as_slice()), (0, &b"X\r\nY\n"[..]), "line endings stay as they are");
    let served = serving.finish().data();
    assert_eq!(served["timeout"], false);
    assert_eq!(served["messages"][1]["bytes"], 5);
    assert_eq!(served["messages"][1]["sent_bytes"], 5);
    assert_eq!(served["messages"][1]["from"], ALPHA);
}

#[test]
fn a_large_binary_pipe_comes_back_whole() {
    let pair = Pair::public();
    let _serving = Background::recv(&pair.b, "1000", &["--exec", "cat", "--count=1"]);
    let sent = noise(3_000_000);
    let (code, received, stderr) = piped(&pair.a, &["connect", "2"], &sent);
    assert_eq!(code, 0, "{stderr}");
    assert!(received == sent, "{} of {} bytes, or changed", received.len(), sent.len());
}

#[test]
fn the_answer_is_printed_while_stdin_is_still_open() {
    let pair = Pair::public();
    let _serving = Background::recv(&pair.b, "1000", &["--exec", "echo ready; cat", "--count=1"]);
    let mut talking = Background::start(&pair.a, &["connect", "2"]);
    let mut stdin = talking.stdin();
    stdin.write_all(b"more\n").unwrap();
    until("the peer has a connection", || pair.b.json(&["connections"]).data()["total"] != 0);
    drop(stdin);
    let ran = talking.finish();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "ready\nmore\n"), "{ran:?}");
}

#[test]
fn stdin_may_be_dev_null() {
    let pair = Pair::public();
    let _serving = Background::recv(&pair.b, "1000", &["--exec", "echo hello", "--count=1"]);
    let ran = pair.a.run(&["connect", "2"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello\n"), "{ran:?}");
}

#[test]
fn a_port_without_a_listener_is_named() {
    let pair = Pair::public();
    let error = pair.a.json(&["connect", "2", "--message", "x"]).error();
    assert_eq!(error["code"], "connection_failed");
    assert_eq!(error["message"], format!("cannot connect to {BETA} port 1000: nothing listens on that port"));
    let error = pair.a.json(&["connect", "2", "70000", "--message", "x"]).error();
    assert_eq!(
        error["message"],
        "invalid port \"70000\": strconv.ParseUint: parsing \"70000\": value out of range"
    );
}

#[test]
fn recv_collects_whole_messages_and_keeps_binary_exactly() {
    let pair = Pair::public();
    let serving = Background::recv(&pair.b, "4001", &["--count=2"]);
    let ran = pair.a.run(&["send", "2", "4001", "--data", "one"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(ran.stderr, "sent 3 bytes (no response)\n");
    assert_eq!(piped(&pair.a, &["connect", "2", "4001"], b"a\xff\0").0, 0);
    let data = serving.finish().data();
    assert_eq!(data["timeout"], false);
    let message = &data["messages"][0];
    for (key, value) in
        [("bytes", json!(3)), ("data", json!("one")), ("port", json!(4001)), ("seq", json!(0))]
    {
        assert_eq!(message[key], value, "{key}");
    }
    let message = &data["messages"][1];
    assert_eq!((&message["data_b64"], &message["bytes"]), (&json!("Yf8A"), &json!(3)));
}

#[test]
fn a_pause_does_not_cut_off_a_peer_that_can_say_when_it_ends() {
    let pair = Pair::public();
    let serving = Background::recv(&pair.b, "4001", &["--idle", "1ms"]);
    let mut talking = Background::start(&pair.a, &["connect", "2", "4001"]);
    let mut stdin = talking.stdin();
    stdin.write_all(b"one ").unwrap();
    // By the time this has been seen, the idle time is over many times.
    until("the first part arrives", || {
        let list = pair.b.json(&["connections"]).data();
        list["connections"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["bytes_recv"] == 4 && c["half_close"] == true)
    });
    stdin.write_all(b"two").unwrap();
    drop(stdin);
    assert_eq!(talking.finish().code, 0);
    let message = &serving.finish().data()["messages"][0];
    assert_eq!((&message["data"], &message["ended"]), (&json!("one two"), &json!("closed")));
}

#[test]
fn recv_that_gets_less_than_asked_ends_in_time_with_status_one() {
    let pair = Pair::public();
    let data = pair.b.json(&["recv", "4001", "--timeout", "200ms"]).data_of(1);
    assert_eq!(data, json!({"messages": [], "timeout": true}));
    let ran = pair.b.run(&["recv", "4001", "--timeout", "200ms"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.ends_with("timeout\n"), "{ran:?}");
}

#[test]
fn a_bound_port_is_refused_and_free_again_afterwards() {
    let pair = Pair::public();
    let holding = Background::recv(&pair.b, "4001", &[]);
    let error = pair.b.json(&["recv", "4001", "--timeout=1s"]).error();
    assert_eq!(error["code"], "connection_failed");
    assert_eq!(error["message"], "listen: bind: daemon: port 4001 already bound");
    drop(holding);
    until("the port is free", || {
        pair.b.json(&["recv", "4001", "--timeout=1ms"]).code == 1
            && pair.b.json(&["recv", "4001", "--timeout=1ms"]).stderr.is_empty()
    });
}

#[test]
fn no_answer_in_time_is_a_timeout_that_says_what_was_sent() {
    let pair = Pair::public();
    let _silent = Background::recv(&pair.b, "4001", &["--exec", "sleep 60", "--count=1"]);
    let error = pair.a.json(&["send", "2", "4001", "--data", "hello", "--timeout", "300ms"]).error();
    assert_eq!(error["code"], "timeout");
    assert_eq!(error["message"], "no response within 300ms (5 bytes were sent)");
}

#[test]
fn datagrams_arrive_at_the_listener_of_their_port() {
    let pair = Pair::public();
    let listening = Background::start(&pair.b, &["--json", "listen", "5000", "--count=2", "--timeout=20s"]);
    // Nobody tells when a listener is there: send until it has what it wants.
    let mut listening = Some(listening);
    let sent = pair.a.json(&["dgram", "2", "5000", "--data", "d1"]).data();
    assert_eq!(sent, json!({"bytes": 2, "confirmed": true, "port": 5000, "target": BETA}));
    until("two datagrams arrive", || {
        pair.a.json(&["dgram", "2", "5001", "--data", "other"]).data();
        pair.a.json(&["dgram", "2", "5000", "--data", "d1"]).data();
        listening.as_mut().is_some_and(Background::has_ended)
    });
    let data = listening.take().unwrap().finish().data();
    assert_eq!(data["timeout"], false);
    assert_eq!(data["messages"].as_array().unwrap().len(), 2);
    for message in data["messages"].as_array().unwrap() {
        assert_eq!((&message["data"], &message["src_addr"]), (&json!("d1"), &json!(ALPHA)));
    }
    let short = pair.b.json(&["listen", "5000", "--count=1", "--timeout=50ms"]).data_of(1);
    assert_eq!(short, json!({"messages": [], "timeout": true}));
}
