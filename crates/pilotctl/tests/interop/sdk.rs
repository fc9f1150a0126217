//! The reference's Python SDK 1.18.0, unmodified, against our daemon's socket.

use crate::lab::{Lab, Make, noise};

/// Asserts inside the script; prints `ok` at its end.
#[track_caller]
fn runs(said: &crate::lab::Said) {
    assert_eq!((said.code, said.text().trim()), (0, "ok"), "{}", said.stderr);
}

#[test]
fn identity_and_directory_calls() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    lab.trust(&a, &b);
    let script = r#"
import os, sys
from pilotprotocol import Driver
with Driver(os.environ["PILOT_SOCKET"]) as d:
    info = d.info()
    assert info["hostname"] == "alpha", info
    assert d.health()["status"] == "ok"
    assert d.set_hostname("renamed")["hostname"] == "renamed"
    assert d.info()["hostname"] == "renamed"
    found = d.resolve_hostname("beta")
    assert found["node_id"] == int(sys.argv[1]), found
    assert d.set_tags(["one"])["tags"] == ["one"]
    assert d.set_visibility(True)["visibility"] == "public"
    peers = d.trusted_peers()["trusted"]
    assert [p["node_id"] for p in peers] == [int(sys.argv[1])], peers
    assert d.pending_handshakes()["pending"] == []
print("ok")
"#;
    runs(&a.python(script, &[&b.node_id().to_string()]));
}

#[test]
fn handshake_and_approval() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    let ask = r#"
import os, sys
from pilotprotocol import Driver
with Driver(os.environ["PILOT_SOCKET"]) as d:
    assert d.handshake(int(sys.argv[1]), "from the SDK")["status"] == "sent"
print("ok")
"#;
    runs(&a.python(ask, &[&b.node_id().to_string()]));
    let approve = r#"
import os, sys, time
from pilotprotocol import Driver
with Driver(os.environ["PILOT_SOCKET"]) as d:
    deadline = time.monotonic() + 20
    while True:
        pending = d.pending_handshakes()["pending"]
        if pending: break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert pending[0]["justification"] == "from the SDK", pending
    assert d.approve_handshake(int(sys.argv[1]))["status"] == "approved"
print("ok")
"#;
    runs(&b.python(approve, &[&a.node_id().to_string()]));
    crate::lab::wait_until("both sides trust", std::time::Duration::from_secs(20), || {
        a.trusts(&b) && b.trusts(&a)
    });
}

const STREAM: &str = r#"
import hashlib, os, sys
from pilotprotocol import Driver
data = open(sys.argv[2], "rb").read()
with Driver(os.environ["PILOT_SOCKET"]) as d:
    conn = d.dial(sys.argv[1] + ":7")
    import threading
    def feed():
        view = memoryview(data)
        for at in range(0, len(data), 65536):
            conn.write(bytes(view[at:at + 65536]))
    t = threading.Thread(target=feed); t.start()
    got = hashlib.sha256(); count = 0
    while count < len(data):
        part = conn.read(65536)
        got.update(part); count += len(part)
    t.join()
    conn.close()
    assert count == len(data), count
    assert got.hexdigest() == hashlib.sha256(data).hexdigest()
print("ok")
"#;

#[test]
fn a_stream_of_8_mib_echoes_through_their_daemon() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Reference, "beta", &[]);
    lab.trust(&a, &b);
    let path = lab.dir.path().join("data.bin");
    std::fs::write(&path, noise(8 << 20, 3)).expect("file");
    runs(&a.python(STREAM, &[&b.address(), path.to_str().expect("utf-8")]));
}

#[test]
fn their_daemon_echoes_8_mib_through_our_echo_service() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Reference, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    lab.trust(&a, &b);
    let path = lab.dir.path().join("data.bin");
    std::fs::write(&path, noise(8 << 20, 5)).expect("file");
    runs(&a.python(STREAM, &[&b.address(), path.to_str().expect("utf-8")]));
}

#[test]
fn dial_listen_read_write_between_two_sdk_programs() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    lab.trust(&a, &b);
    let script = r#"
import sys, threading
from pilotprotocol import Driver, PilotError
here, there, address = sys.argv[1:4]
with Driver(here) as client, Driver(there) as server:
    listener = server.listen(4242)
    result = {}
    def serve():
        conn = listener.accept()
        result["got"] = conn.read_full(11)
        conn.write(b"and back")
        try:
            conn.read(10)
            result["end"] = "data"
        except PilotError as e:
            result["end"] = str(e)
    t = threading.Thread(target=serve); t.start()
    conn = client.dial(address + ":4242", timeout=10)
    assert conn.write(b"hello world") == 11
    assert conn.read_full(8) == b"and back"
    conn.close()
    t.join(20)
    assert result == {"got": b"hello world", "end": "EOF"}, result
print("ok")
"#;
    let (here, there) = (a.socket.to_str().expect("utf-8"), b.socket.to_str().expect("utf-8"));
    runs(&a.python(script, &[here, there, &b.address()]));
}

#[test]
fn datagrams_between_two_sdk_programs() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    lab.trust(&a, &b);
    let script = r#"
import base64, sys
from pilotprotocol import Driver
here, there, address, own = sys.argv[1:5]
with Driver(here) as client, Driver(there) as server:
    server.info()  # the connection is established before the datagram leaves
    client.send_to(address + ":6000", b"over and out")
    got = server.recv_from()
    assert got["src_addr"] == own, got
    assert got["dst_port"] == 6000, got
    assert base64.b64decode(got["data"]) == b"over and out", got
print("ok")
"#;
    let (here, there) = (a.socket.to_str().expect("utf-8"), b.socket.to_str().expect("utf-8"));
    runs(&a.python(script, &[here, there, &b.address(), &a.address()]));
}

#[test]
fn messages_and_files_from_the_sdk() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Ours, "beta", &[]);
    lab.trust(&a, &b);
    let path = lab.dir.path().join("note.txt");
    std::fs::write(&path, b"a note").expect("file");
    let script = r#"
import os, sys
from pilotprotocol import Driver
with Driver(os.environ["PILOT_SOCKET"]) as d:
    sent = d.send_message("beta", b"good morning")
    assert sent["ack"] == "ACK TEXT 12 bytes", sent
    sent = d.send_message("beta", b'{"a":1}', msg_type="json")
    assert sent["ack"] == "ACK JSON 7 bytes", sent
    sent = d.send_file("beta", sys.argv[1])
    assert sent["ack"].startswith("ACK FILE 6 bytes"), sent
print("ok")
"#;
    runs(&a.python(script, &[path.to_str().expect("utf-8")]));
    let inbox = b.ctl(Make::Ours, &["inbox", "--full"]).data();
    assert_eq!(inbox["total"], 2, "{inbox}");
    let received = b.ctl(Make::Ours, &["received"]).data();
    let file = received["files"][0]["path"].as_str().expect("path").to_owned();
    assert_eq!(std::fs::read(file).expect("file"), b"a note");
}
