//! The way to a peer in words: which path, since when, how fast, and why no better one.

use super::listing::number;
use super::text::{safe, short_time};
use crate::args::value::human_age;
use pilot_proto::NodeId;
use serde_json::{Map, Value};
use std::time::Duration;

/// What an entry of the daemon's `peer_list` says about the way; a reference daemon's has none of them.
const KEYS: [&str; 6] = ["path", "path_kind", "path_since", "path_rtt_ms", "path_why", "mtu"];

/// The entry of a node in the daemon's list of peers.
pub fn entry(info: &Value, node: NodeId) -> Option<&Value> {
    info["peer_list"].as_array()?.iter().find(|p| p["node_id"].as_u64() == Some(u64::from(node)))
}

/// What it says about the way.
pub fn keys(peer: &Value) -> Map<String, Value> {
    let known = KEYS.iter().filter_map(|key| peer.get(*key).map(|value| ((*key).to_owned(), value.clone())));
    known.collect()
}

/// `direct` or `relay`, with the kind of address: `direct (lan)`.
pub fn name(peer: &Value) -> String {
    let path = match (peer["path"].as_str(), peer["relay"].as_bool()) {
        (Some(path), _) => path,
        (None, Some(true)) => "relay",
        (None, _) => "direct",
    };
    match peer["path_kind"].as_str() {
        Some(kind) => format!("{} ({})", safe(path), safe(kind)),
        None => safe(path).into_owned(),
    }
}

/// All of it on one line: `direct (lan) for 3m20s · 12ms · packets up to 1400 bytes`, or
/// `relay for 2s · no direct address answered`.
pub fn line(peer: &Value) -> String {
    let mut out = name(peer);
    if peer["path_since"].is_u64() {
        out.push_str(&format!(" for {}", human_age(Duration::from_secs(number(peer, "path_since")))));
    }
    if let Some(ms) = peer["path_rtt_ms"].as_f64().filter(|ms| (0.0..1e9).contains(ms)) {
        out.push_str(&format!(" · {}", short_time(Duration::from_secs_f64(ms / 1e3))));
    }
    if number(peer, "mtu") > 0 {
        out.push_str(&format!(" · packets up to {} bytes", number(peer, "mtu")));
    }
    if let Some(why) = peer["path_why"].as_str().filter(|why| !why.is_empty()) {
        out.push_str(&format!(" · {}", safe(why)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_path_age_speed_size_and_reason() {
        let direct = json!({
            "relay": false, "path": "direct", "path_kind": "lan", "path_since": 200, "path_rtt_ms": 12.4, "mtu": 1400,
            "path_why": "",
        });
        assert_eq!(line(&direct), "direct (lan) for 3m20s · 12ms · packets up to 1400 bytes");
        let relay = json!({
            "relay": true, "path": "relay", "path_kind": null, "path_since": 2, "path_rtt_ms": null,
            "path_why": "no direct address answered",
        });
        assert_eq!(line(&relay), "relay for 2s · no direct address answered");
    }

    #[test]
    fn a_reference_daemon_tells_the_path_alone() {
        assert_eq!(line(&json!({"relay": true})), "relay");
        assert_eq!(line(&json!({"relay": false})), "direct");
        assert!(keys(&json!({"relay": false})).is_empty());
    }

    #[test]
    fn words_of_a_daemon_cannot_rewrite_the_line() {
        let relay = json!({"path": "relay", "path_why": "x\u{1b}[2J\n"});
        assert_eq!(line(&relay), "relay · x\\u{1b}[2J\\n");
    }
}
