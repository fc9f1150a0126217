//! Golden control packets of `tests/vectors/stream.json`, replayed against an engine without encryption.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use serde_json::Value;
use support::*;

fn unhex(value: &Value) -> Vec<u8> {
    let hex = value.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn pings_are_answered_byte_for_byte_and_nothing_else_is() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/stream.json")).unwrap();
    let probes = vectors["probes"].as_array().unwrap().iter();
    let control = |probe: &&Value| probe["steps"][0]["proto"] == 3;
    let mut answered = Vec::new();
    for probe in probes.filter(control) {
        // The recording's node is 1, its peer 901.
        let mut net = Net::new();
        net.add(1, pilot_proto::engine::Config { encrypt: false, ..config(1) });
        let name = probe["name"].as_str().unwrap();
        let steps = probe["steps"].as_array().unwrap();
        net.inject(addr_of(901), addr_of(1), &unhex(&steps[0]["frame_hex"]));
        net.log.clear();
        net.run(ms(210));
        let sent: Vec<Vec<u8>> =
            net.log.iter().filter(|s| s.to == addr_of(901)).map(|s| s.bytes.clone()).collect();
        let expected: Vec<Vec<u8>> =
            steps.iter().filter(|s| s["dir"] == "from_ref").map(|s| unhex(&s["frame_hex"])).collect();
        assert_eq!(sent, expected, "{name}");
        answered.push((name, sent.len()));
    }
    let expected = [("ping", 1), ("ping_from_port", 1), ("pong_ignored", 0), ("control_other_port", 0)];
    assert_eq!(answered, expected);
}
