//! Info, Health, PreferDirect (spec 07 sections 10 and 15).

use crate::ipc::hub::Hub;
use crate::ipc::json::{fit, object, whole_numbers};
use pilot::NodeStatus;
use pilot_ipc::frame::MAX_JSON;
use pilot_proto::{Addr, NodeId};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::PoisonError;

/// What this daemon promises (spec 07 section 5, docs/extensions.md).
const FEATURES: [&str; 5] = ["reply_window", "dial_awaits_key", "key_request", "dgram_confirm", "half_close"];

/// The numbers Info and Health share.
struct Counts {
    connections: usize,
    encrypted: usize,
    authenticated: usize,
    relayed: usize,
    upgraded: usize,
    /// Key exchanges refused because they came without the session upgrade.
    downgrades: u64,
}

impl Counts {
    fn of(status: &NodeStatus) -> Counts {
        let open =
            |c: &&pilot_proto::stream::ConnStatus| matches!(c.state, "SYN_SENT" | "SYN_RECV" | "ESTABLISHED");
        Counts {
            connections: status.connections.iter().filter(open).count(),
            encrypted: status.peers.iter().filter(|p| p.encrypted).count(),
            authenticated: status.peers.iter().filter(|p| p.authenticated).count(),
            relayed: status.peers.iter().filter(|p| p.relay).count(),
            upgraded: status.peers.iter().filter(|p| p.session == "upgraded").count(),
            downgrades: status.peers.iter().map(|p| p.downgrades_refused).sum(),
        }
    }
}

pub(super) async fn health(hub: &Hub) -> Value {
    let status = hub.node.status().await;
    let counts = Counts::of(&status);
    object([
        ("status", "ok".into()),
        ("uptime_seconds", status.uptime.as_secs().into()),
        ("connections", counts.connections.into()),
        ("peers", status.peers.len().into()),
        ("bytes_sent", status.counters.bytes_sent.into()),
        ("bytes_recv", status.counters.bytes_recv.into()),
        ("encrypted_peers", counts.encrypted.into()),
        ("authenticated_peers", counts.authenticated.into()),
        ("handshake_pending_count", status.handshake_pending.into()),
        ("relay_peer_count", counts.relayed.into()),
        ("accept_queue_drops", status.counters.accept_queue_drops.into()),
        ("webhook_queue_dropped", 0.into()),
        ("webhook_circuit_skips", 0.into()),
        ("beacon_addr", status.beacon_addr.into()),
        ("registry_ok", status.registry_ok.into()),
        ("superseded", status.superseded.into()),
        ("disk_ok", status.disk_ok.into()),
        ("upgraded_peers", counts.upgraded.into()),
        ("downgrades_refused", counts.downgrades.into()),
    ])
}

pub(super) async fn info(hub: &Hub) -> Value {
    let status = hub.node.status().await;
    let networks = hub.networks.lock().unwrap_or_else(PoisonError::into_inner).clone();
    info_of(&status, &networks, &hub.config.node.version)
}

fn info_of(status: &NodeStatus, networks: &[u16], version: &str) -> Value {
    let counts = Counts::of(status);
    let mut info = object([
        ("accept_queue_drops", status.counters.accept_queue_drops.into()),
        ("address", status.address.to_string().into()),
        ("authenticated_peers", counts.authenticated.into()),
        ("beacon_addr", status.beacon_addr.as_str().into()),
        ("bytes_recv", status.counters.bytes_recv.into()),
        ("bytes_sent", status.counters.bytes_sent.into()),
        ("connections", counts.connections.into()),
        ("email", status.email.as_str().into()),
        ("encrypt", status.encrypt.into()),
        ("encrypted_peers", counts.encrypted.into()),
        ("endpoint", status.endpoint.as_str().into()),
        ("features", json!(FEATURES)),
        ("handshake_pending_count", status.handshake_pending.into()),
        ("hostname", status.hostname.as_str().into()),
        ("identity", status.identity_persisted.into()),
        ("motd", "".into()),
        ("networks", network_list(status.node_id, networks)),
        ("node_id", status.node_id.into()),
        ("peers", status.peers.len().into()),
        ("pkts_recv", status.counters.pkts_recv.into()),
        ("pkts_sent", status.counters.pkts_sent.into()),
        ("ports", status.ports.into()),
        ("public_key", pilot_proto::crypto::base64(status.public_key).into()),
        ("relay_peer_count", counts.relayed.into()),
        ("transport", status.transport.into()),
        ("tunnel_encryption_failure", status.counters.encryption_failure.into()),
        ("tunnel_encryption_success", status.counters.encryption_success.into()),
        ("uptime_secs", status.uptime.as_secs().into()),
        ("version", version.into()),
        ("webhook_circuit_skips", 0.into()),
        ("webhook_queue_dropped", 0.into()),
        // Beyond the reference:
        ("port_mapping", status.port_mapping.into()),
        ("public", status.public.into()),
        ("registry_addr", status.registry_addr.as_str().into()),
        ("registry_error", status.registry_error.as_str().into()),
        ("registry_ok", status.registry_ok.into()),
        ("superseded", status.superseded.into()),
        ("upgraded_peers", counts.upgraded.into()),
        ("warnings", json!(status.warnings)),
    ]);
    add_lists(&mut info, status);
    info
}

fn network_list(node: NodeId, networks: &[u16]) -> Value {
    if networks.is_empty() {
        // Not an empty array: that is what existing clients know.
        return Value::Null;
    }
    let entry = |network: &u16| {
        object([
            ("network_id", (*network).into()),
            ("address", Addr { network: *network, node }.to_string().into()),
        ])
    };
    networks.iter().map(entry).collect()
}

/// Adds `peer_list` and `conn_list`, cut so that everything fits a frame: peers with open connections first, then by node.
fn add_lists(info: &mut Value, status: &NodeStatus) {
    let to_value = |item: Result<Value, serde_json::Error>| {
        let mut value = item.unwrap_or_default();
        whole_numbers(&mut value);
        value
    };
    let connected: HashSet<&str> = status.connections.iter().map(|c| c.remote_addr.as_str()).collect();
    let mut peers: Vec<_> = status.peers.iter().collect();
    peers.sort_by_key(|p| (!connected.contains(Addr::backbone(p.node_id).to_string().as_str()), p.node_id));
    let peers: Vec<Value> = peers.into_iter().map(|p| to_value(serde_json::to_value(p))).collect();
    let conns: Vec<Value> = status.connections.iter().map(|c| to_value(serde_json::to_value(c))).collect();

    let rest = super::json::encode(info).len() + 128; // the keys of the lists and their truncation marks
    let budget = MAX_JSON.saturating_sub(rest);
    // Either list may have what the other leaves.
    let size = |items: &[Value]| items.iter().map(|i| super::json::encode(i).len() + 1).sum::<usize>();
    let conn_budget = budget.saturating_sub(size(&peers)).max(budget / 2);
    let (conns, conns_cut) = fit(conns, conn_budget);
    let (peers, peers_cut) = fit(peers, budget.saturating_sub(size(&conns)));
    if let Value::Object(map) = info {
        map.insert("peer_list".into(), peers.into());
        map.insert("conn_list".into(), conns.into());
        if peers_cut {
            map.insert("peer_list_truncated".into(), true.into());
        }
        if conns_cut {
            map.insert("conn_list_truncated".into(), true.into());
        }
    }
}

/// Has the peer's addresses asked for and tried anew. Unlike the reference this keeps the tunnel, so nothing is pushed.
pub(super) async fn prefer_direct(hub: &Hub, node: NodeId) -> Value {
    let peer = hub.node.status().await.peers.into_iter().find(|p| p.node_id == node);
    let error = hub.node.prefer_direct(node).await.err().map(|e| format!("resolve node {node}: {e}"));
    object([
        ("had_tunnel", peer.is_some().into()),
        ("node_id", node.into()),
        ("pila_pushed", false.into()),
        ("resolve_error", error.unwrap_or_default().into()),
        ("was_relay_active", peer.is_some_and(|p| p.relay).into()),
        ("was_relay_pinned", false.into()),
    ])
}
