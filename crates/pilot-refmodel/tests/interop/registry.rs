//! A registry for one daemon: it knows the daemon and the scripted peers, and nothing else (spec 05 section 12).

use crate::lab::{Entry, SUBJECT, node_id};
use pilot_proto::Addr;
use pilot_proto::crypto::base64;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the registry knows.
#[derive(Debug)]
pub struct State {
    pub entries: Vec<Entry>,
    pub addresses: Vec<SocketAddr>,
    /// The daemon's key and address, once it has registered.
    pub subject: Option<(String, String)>,
}

pub type Shared = Arc<Mutex<State>>;

/// Serves until the process ends.
pub fn serve(addr: (IpAddr, u16), state: Shared) {
    let listener = TcpListener::bind(addr).expect("the registry's port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            std::thread::spawn(move || {
                // Ends when the daemon does.
                let _ = connection(stream, &state);
            });
        }
    });
}

fn connection(mut stream: TcpStream, state: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body)?;
        let request: Value = serde_json::from_slice(&body)?;
        let answer = serde_json::to_vec(&answer(&request, state))?;
        stream.write_all(&(answer.len() as u32).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn failed() -> Value {
    json!({"type": "error", "error": "request failed"})
}

fn answer(request: &Value, state: &Shared) -> Value {
    let mut state = state.lock().expect("no panic");
    let kind = request["type"].as_str().unwrap_or_default();
    let node = request["node_id"].as_u64().unwrap_or_default() as u32;
    match kind {
        "register" => {
            let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
            state.subject = Some((text("public_key"), text("listen_addr")));
            json!({"type": "register_ok", "node_id": SUBJECT, "network_id": 0, "protocol_version": 1,
                "address": Addr::backbone(SUBJECT).to_string(), "public_key": text("public_key"),
                "observed_addr": text("listen_addr")})
        }
        "lookup" => {
            let key = if node == SUBJECT {
                state.subject.as_ref().map(|(key, _)| key.clone())
            } else {
                known(&state, node).and_then(|e| e.0.key).map(base64)
            };
            let Some(key) = key else {
                return json!({"type": "error", "error": format!("node {node}: node not found")});
            };
            json!({"type": "lookup_ok", "node_id": node, "address": Addr::backbone(node).to_string(),
                "networks": [0], "public_key": key, "public": true, "key_generation": 0, "last_seen_unix": 1})
        }
        "resolve" => match known(&state, node).filter(|(e, _)| e.key.is_some()) {
            Some((_, addr)) => {
                json!({"type": "resolve_ok", "node_id": node, "real_addr": addr.to_string(), "key_age_days": 0})
            }
            None => failed(),
        },
        "set_visibility" => json!({"type": "set_visibility_ok", "node_id": node, "visibility": "public"}),
        "set_hostname" => {
            json!({"type": "set_hostname_ok", "node_id": node, "hostname": request["hostname"]})
        }
        "heartbeat" => json!({"type": "heartbeat_ok", "time": 1}),
        "poll_handshakes" => json!({"type": "poll_handshakes_ok", "requests": [], "responses": []}),
        "check_trust" => json!({"type": "check_trust_ok", "trusted": false}),
        "get_network_policy" => json!({"type": "get_network_policy_ok", "network_id": 0, "allowed_ports": [],
            "description": "", "max_members": 0}),
        "list_networks" => json!({"type": "list_networks_ok", "networks": []}),
        "beacon_list" => json!({"type": "beacon_list_ok", "beacons": []}),
        _ => failed(),
    }
}

fn known(state: &State, node: u32) -> Option<(Entry, SocketAddr)> {
    let peer = (0..state.entries.len()).find(|p| node_id(*p) == node)?;
    Some((state.entries[peer], state.addresses[peer]))
}
