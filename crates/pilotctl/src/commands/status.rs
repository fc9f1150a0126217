//! `info`, `health`, `peers`, `connections` and `disconnect`: what the daemon says about itself.

use super::listing::{list, number, row_limit};
use super::reach::daemon_error;
use super::text::{or_dash, plural, safe};
use super::way;
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult};
use crate::output::{Ctx, Style};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "info",
        about: "this node: identity, peers, traffic",
        args: &[],
        flags: &[],
        returns: "node_id, address, hostname, version, uptime_secs, peers, peer_list[], conn_list[], beacons[]{name, source, \
                  address, ok, rtt_ms, chosen, registered, answered_secs_ago}, nat{class, meaning}, features[], …",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(info(ctx))),
    },
    Spec {
        name: "health",
        about: "a few counters, answered from memory",
        args: &[],
        flags: &[],
        returns: "status, uptime_seconds, connections, peers, bytes_sent, bytes_recv, …",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(health(ctx))),
    },
    Spec {
        name: "peers",
        about: "peers with a tunnel",
        args: &[],
        flags: &[
            Flag::switch("all", "list every peer, not only the summary"),
            Flag::value("limit", "N", "at most N peers (default 20 in text, 0: all)"),
            Flag::value("search", "S", "only node numbers that contain S"),
        ],
        returns: "peers[]{node_id, encrypted, authenticated, relay, session, pinned, path, path_kind, path_since, \
                  path_rtt_ms, path_why, mtu}, total, encrypted",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(peers(ctx, args))),
    },
    Spec {
        name: "connections",
        about: "open streams with their counters",
        args: &[],
        flags: &[],
        returns: "connections[]{id, state, local_port, remote_addr, remote_port, bytes_sent, …}, total",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(connections(ctx))),
    },
    Spec {
        name: "disconnect",
        about: "close a stream of this node by its id",
        args: &["<connection_id>"],
        flags: &[],
        returns: "conn_id",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(disconnect(ctx, args))),
    },
];

/// Keys that carry IP endpoints; results are pasted into tickets and chats, so they are left out.
const ENDPOINT_KEYS: [&str; 7] =
    ["endpoint", "real_addr", "lan_addrs", "public_addr", "stun_addr", "observed_addr", "mapped_addr"];

/// Most peers whose path `info` shows in text mode.
const PATHS_SHOWN: usize = 5;
/// Most streams `connections` shows in text mode.
const CONNECTIONS_SHOWN: usize = 50;

/// Removes [`ENDPOINT_KEYS`] at every level.
pub fn without_endpoints(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !ENDPOINT_KEYS.contains(&key.as_str()));
            map.values_mut().for_each(without_endpoints);
        }
        Value::Array(list) => list.iter_mut().for_each(without_endpoints),
        _ => {}
    }
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn on(object: &Value, key: &str) -> bool {
    object[key].as_bool().unwrap_or(false)
}

async fn info(ctx: &Ctx) -> CliResult {
    let mut info = ctx.client().await?.info().await.map_err(daemon_error("info"))?;
    without_endpoints(&mut info);
    let page = info_text(&info, &ctx.style);
    ctx.emit(info, |_| page)
}

fn info_text(info: &Value, style: &Style) -> String {
    let mut out = format!(
        "{} pilot-daemon {} · up {}\n\n",
        style.green("●"),
        safe(text(info, "version")),
        value::human_age(Duration::from_secs(number(info, "uptime_secs")))
    );
    let mut row = |label: &str, line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {} {line}", style.dim(&format!("{label:<10}")));
    };
    let hostname = match text(info, "hostname") {
        "" => "(no hostname)".to_owned(),
        name => style.bold(&safe(name)),
    };
    row(
        "identity",
        format!("{hostname} · {} · node {}", style.cyan(text(info, "address")), number(info, "node_id")),
    );
    let key: String = text(info, "public_key").chars().take(8).collect();
    let kept = if on(info, "identity") { "persistent" } else { "not stored, gone after a restart" };
    let mut line = format!("Ed25519 {key}… · {kept}");
    if !text(info, "email").is_empty() {
        let _ = write!(line, " · {}", safe(text(info, "email")));
    }
    row("", line);
    let (peers, relay) = (number(info, "peers"), number(info, "relay_peer_count"));
    let mut line = format!(
        "{peers} peers ({} encrypted · {relay} relay · {} direct)",
        number(info, "encrypted_peers"),
        peers.saturating_sub(relay)
    );
    if info["encrypt"] == false {
        line.push_str(&style.warn(" · encryption disabled"));
    }
    row("network", line);
    let mut line = format!(
        "beacon {} · {} connections · {} ports",
        or_dash(text(info, "beacon_addr")),
        number(info, "connections"),
        number(info, "ports")
    );
    match number(info, "handshake_pending_count") {
        0 => {}
        count => {
            let _ = write!(line, " · {count} pending handshake{} — pilotctl pending", plural(count));
        }
    }
    row("", line);
    let beacons = list(info, "beacons");
    for (n, beacon) in beacons.iter().enumerate().filter(|_| beacons.len() > 1) {
        row(if n == 0 { "beacons" } else { "" }, beacon_line(beacon, style));
    }
    if let Some(meaning) = info["nat"]["meaning"].as_str().filter(|_| info["nat"]["class"] != "unknown") {
        row("nat", safe(meaning).into_owned());
    }
    // A daemon tells of peers with open connections first.
    let ways = list(info, "peer_list").iter().filter(|peer| on(peer, "encrypted"));
    for (n, peer) in ways.clone().take(PATHS_SHOWN).enumerate() {
        row(
            if n == 0 { "paths" } else { "" },
            format!("node {} {}", number(peer, "node_id"), way::line(peer)),
        );
    }
    if let more @ 1.. = ways.count().saturating_sub(PATHS_SHOWN) {
        row("", format!("{more} more: pilotctl peers --all"));
    }
    let networks = list(info, "networks");
    if !networks.is_empty() {
        let names = networks.iter().map(|n| format!("{} ({})", number(n, "network_id"), text(n, "address")));
        row("networks", names.collect::<Vec<_>>().join(" · "));
    }
    let volume = |bytes: &str, packets: &str| {
        format!(
            "{} ({} pkts)",
            value::human_bytes(number(info, bytes)),
            value::human_count(number(info, packets))
        )
    };
    row(
        "traffic",
        format!("↑ {} · ↓ {}", volume("bytes_sent", "pkts_sent"), volume("bytes_recv", "pkts_recv")),
    );
    if on(info, "superseded") {
        row("warning", style.warn("another process registered this identity; this one no longer registers"));
    }
    for warning in list(info, "warnings").iter().filter_map(Value::as_str) {
        row("warning", style.warn(&safe(warning)));
    }
    out
}

/// A beacon: its name, whether it answers, how fast, and that it is the one in use.
fn beacon_line(beacon: &Value, style: &Style) -> String {
    let mut line = safe(text(beacon, "name")).into_owned();
    line.push_str(&match (text(beacon, "state"), beacon["rtt_ms"].as_f64()) {
        ("up", Some(rtt)) => {
            format!(" · {}", super::text::short_time(Duration::from_secs_f64(rtt.max(0.0) / 1e3)))
        }
        ("up", None) => " · answers".to_owned(),
        ("down", _) => style.warn(" · does not answer"),
        _ if beacon["address"].is_null() => style.warn(" · no address"),
        _ => " · not known yet".to_owned(),
    });
    if on(beacon, "chosen") {
        line.push_str(" · in use");
    }
    if text(beacon, "source") == "cache" {
        line.push_str(" · from an earlier run");
    }
    line
}

async fn health(ctx: &Ctx) -> CliResult {
    let health = ctx.client().await?.health().await.map_err(daemon_error("health"))?;
    let page = format!(
        "{} {} · up {}\n  {} peers ({} encrypted, {} via relay) · {} connections\n  ↑ {} · ↓ {}",
        ctx.style.green("●"),
        safe(text(&health, "status")),
        value::human_age(Duration::from_secs(number(&health, "uptime_seconds"))),
        number(&health, "peers"),
        number(&health, "encrypted_peers"),
        number(&health, "relay_peer_count"),
        number(&health, "connections"),
        value::human_bytes(number(&health, "bytes_sent")),
        value::human_bytes(number(&health, "bytes_recv")),
    );
    let superseded = on(&health, "superseded");
    ctx.emit(health, |style| match superseded {
        true => format!("{page}\n  {}", style.warn("another process registered this identity")),
        false => page,
    })
}

async fn peers(ctx: &Ctx, args: &Args) -> CliResult {
    let mut info = ctx.client().await?.info().await.map_err(daemon_error("info"))?;
    without_endpoints(&mut info);
    let search = args.value("search").unwrap_or_default();
    let limit = row_limit(ctx, args, 20)?;
    let mut found: Vec<Value> = list(&info, "peer_list")
        .iter()
        .filter(|peer| number(peer, "node_id").to_string().contains(search))
        .cloned()
        .collect();
    found.sort_by_key(|peer| number(peer, "node_id"));
    let total = found.len();
    let encrypted = found.iter().filter(|p| on(p, "encrypted")).count();
    let authenticated = found.iter().filter(|p| on(p, "encrypted") && on(p, "authenticated")).count();
    let relay = found.iter().filter(|p| on(p, "relay")).count();
    found.truncate(limit);
    let page = {
        let mut out = format!(
            "{} {total} peer{} — {authenticated} encrypted+authenticated · {relay} relay · {} direct\n",
            ctx.style.green("●"),
            plural(total as u64),
            total - relay
        );
        if (args.on("all") || args.given("search")) && total > 0 {
            out.push_str(&ctx.style.dim("\nNODE ID     ENCRYPTED  AUTH  SESSION   PATH\n"));
            for peer in &found {
                let yes = |key| if on(peer, key) { "yes" } else { "no" };
                let node = number(peer, "node_id");
                let refused = match number(peer, "downgrades_refused") {
                    0 => String::new(),
                    count => ctx.style.warn(&format!(
                        " · came without the upgrade {count} time{}, refused: pilotctl pins",
                        plural(count)
                    )),
                };
                let _ = writeln!(
                    out,
                    "{node:<10}  {:<9}  {:<4}  {:<8}  {}{refused}",
                    yes("encrypted"),
                    yes("authenticated"),
                    or_dash(text(peer, "session")),
                    way::line(peer)
                );
            }
            if found.len() < total {
                let _ = writeln!(out, "{} of {total} shown; --limit 0 shows all", found.len());
            }
        }
        out
    };
    let mut data = json!({"peers": found, "total": total, "encrypted": encrypted});
    if on(&info, "peer_list_truncated") {
        data["peer_list_truncated"] = json!(true);
    }
    ctx.emit(data, |_| page)
}

async fn connections(ctx: &Ctx) -> CliResult {
    let mut info = ctx.client().await?.info().await.map_err(daemon_error("info"))?;
    without_endpoints(&mut info);
    let mut found = list(&info, "conn_list").to_vec();
    found.sort_by_key(|c| number(c, "id"));
    let page = connections_text(&found, &ctx.style);
    let mut data = json!({"total": found.len(), "connections": found});
    if on(&info, "conn_list_truncated") {
        data["conn_list_truncated"] = json!(true);
    }
    ctx.emit(data, |_| page)
}

fn connections_text(found: &[Value], style: &Style) -> String {
    if found.is_empty() {
        return "no connections".to_owned();
    }
    let mut out = String::new();
    for c in found.iter().take(CONNECTIONS_SHOWN) {
        let _ = writeln!(
            out,
            "{} {} :{} → {}:{}\n    ↑ {} · ↓ {} · rtt {}ms · window {} · {} in flight · {} retransmits",
            style.bold(&format!("#{}", number(c, "id"))),
            safe(text(c, "state")),
            number(c, "local_port"),
            text(c, "remote_addr"),
            number(c, "remote_port"),
            value::human_bytes(number(c, "bytes_sent")),
            value::human_bytes(number(c, "bytes_recv")),
            number(c, "srtt_ms"),
            value::human_bytes(number(c, "cong_win")),
            value::human_bytes(number(c, "in_flight")),
            number(c, "retransmits"),
        );
    }
    if found.len() > CONNECTIONS_SHOWN {
        let _ = writeln!(out, "{CONNECTIONS_SHOWN} of {} shown; --json shows all", found.len());
    }
    out
}

async fn disconnect(ctx: &Ctx, args: &Args) -> CliResult {
    let typed = args.required(0);
    let id: u32 = typed.parse().map_err(|_| {
        CliError::invalid(format!("invalid connection id {typed:?}: a number from `connections`"))
    })?;
    let client = ctx.client().await?;
    let info = client.info().await.map_err(daemon_error("info"))?;
    let known = list(&info, "conn_list").iter().any(|c| number(c, "id") == u64::from(id));
    if !known && !on(&info, "conn_list_truncated") {
        return Err(
            CliError::not_found(format!("no connection {id}")).hint("list them with: pilotctl connections")
        );
    }
    client.disconnect(id).map_err(daemon_error("disconnect"))?;
    client.flush().await;
    ctx.emit_data(json!({"conn_id": id}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_removed_at_every_level() {
        let mut info = json!({
            "address": "0:0000.0000.0002", "endpoint": "203.0.113.9:4000",
            "peer_list": [{"node_id": 3, "endpoint": "198.51.100.7:4000", "relay": false}],
        });
        without_endpoints(&mut info);
        assert_eq!(
            info,
            json!({"address": "0:0000.0000.0002", "peer_list": [{"node_id": 3, "relay": false}]})
        );
    }

    #[test]
    fn the_info_page_reads_as_documented() {
        let info = json!({
            "version": "1.18.0", "uptime_secs": 869, "hostname": "agent-alpha", "address": "0:0000.0000.0002",
            "node_id": 2, "public_key": "iohItY1tAAAA", "identity": true, "email": "a@example.com", "peers": 1,
            "encrypted_peers": 1, "relay_peer_count": 0, "beacon_addr": "127.0.0.1:9001", "connections": 0,
            "ports": 4, "bytes_sent": 71_408_025, "pkts_sent": 65_912, "bytes_recv": 14_784_921,
            "pkts_recv": 41_887, "encrypt": true, "networks": null, "handshake_pending_count": 0,
            "peer_list": [{"node_id": 7, "encrypted": true, "relay": true, "path": "relay", "path_since": 61,
                "path_why": "no direct address answered"}],
        });
        let page = info_text(&info, &Style::default());
        assert_eq!(
            page,
            "● pilot-daemon 1.18.0 · up 14m29s\n\n  \
               identity   agent-alpha · 0:0000.0000.0002 · node 2\n             \
               Ed25519 iohItY1t… · persistent · a@example.com\n  \
               network    1 peers (1 encrypted · 0 relay · 1 direct)\n             \
               beacon 127.0.0.1:9001 · 0 connections · 4 ports\n  \
               paths      node 7 relay for 1m1s · no direct address answered\n  \
               traffic    ↑ 68.1 MB (65.9K pkts) · ↓ 14.1 MB (41.9K pkts)\n"
        );
    }

    #[test]
    fn a_hostile_hostname_cannot_rewrite_the_page() {
        let info = json!({"hostname": "x\x1b[2J\nfake", "address": "0:0000.0000.0002"});
        let page = info_text(&info, &Style::default());
        assert!(page.contains("x\\u{1b}[2J\\nfake"), "{page:?}");
    }
}
