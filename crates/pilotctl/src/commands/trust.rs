//! `handshake`, `pending`, `approve`, `reject`, `trust` and `untrust`.

use super::listing::{row_limit, rows};
use super::reach::{daemon_error, go_duration, is_trusted};
use super::text::{plural, safe, unix_now, utc_minute};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Code};
use crate::names::Peer;
use crate::output::Ctx;
use pilot_ipc::Client;
use pilot_proto::NodeId;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How long `handshake --wait` waits by default: a person has to answer.
const WAIT: Duration = Duration::from_secs(120);
/// Most a daemon waits per request (spec 07 section 11).
const WAIT_STEP: Duration = Duration::from_secs(30);

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "handshake",
        about: "ask a peer for trust",
        args: &["<peer>", "[justification]"],
        flags: &[Flag::optional("wait", "D", "wait for the answer, at most D (2m)")],
        returns: "node_id, status (sent | in_flight | already_trusted | trusted)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(handshake(ctx, args))),
    },
    Spec {
        name: "pending",
        about: "requests for trust that wait for an answer",
        args: &[],
        flags: &[],
        returns: "pending[]{node_id, justification, public_key, received_at}",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(pending(ctx))),
    },
    Spec {
        name: "approve",
        about: "trust a peer that asked",
        args: &["<peer>"],
        flags: &[],
        returns: "node_id, status (approved | already_trusted)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(approve(ctx, args))),
    },
    Spec {
        name: "reject",
        about: "decline a peer that asked",
        args: &["<peer>", "[reason]"],
        flags: &[],
        returns: "node_id, status (rejected)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(reject(ctx, args))),
    },
    Spec {
        name: "trust",
        about: "trusted peers, newest first",
        args: &[],
        flags: &[
            Flag::value("limit", "N", "at most N peers (default 20 in text, 0: all)"),
            Flag::value("search", "S", "only node numbers or hostnames that contain S"),
        ],
        returns: "trusted[]{node_id, approved_at, mutual, network, public_key}, total",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(trust(ctx, args))),
    },
    Spec {
        name: "untrust",
        about: "end trust in a peer, on both sides",
        args: &["<peer>"],
        flags: &[],
        returns: "node_id",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(untrust(ctx, args))),
    },
];

/// What came of waiting for trust.
enum Outcome {
    Trusted,
    Rejected(String),
    Open,
}

async fn handshake(ctx: &Ctx, args: &Args) -> CliResult {
    let wait = args.optional_duration("wait", WAIT)?;
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    let info = client.info().await.map_err(daemon_error("info"))?;
    if info["node_id"].as_u64() == Some(u64::from(node)) {
        return Err(CliError::invalid(format!("node {node} is this node itself; it needs no trust")));
    }
    // Our daemon says by itself when there is nothing to ask for: the peer may have dropped its half of the trust.
    // The reference says "sent" whatever it did.
    let ours = info["features"].as_array().is_some_and(|f| f.iter().any(|f| f == "half_close"));
    let already = || {
        done(ctx, node, "already_trusted", format!("already trusted with node {node} — ready to communicate"))
    };
    if !ours && is_trusted(&client, node).await == Some(true) {
        return already();
    }
    let waiting = ctx.spinner(&format!("sending handshake to node {node}"));
    ctx.note(&format!("sending handshake to node {node}..."));
    let answer =
        client.handshake(node, args.pos(1).unwrap_or_default()).await.map_err(daemon_error("handshake"))?;
    drop(waiting);
    if answer["trusted"] == true {
        return already();
    }
    let status = answer["status"].as_str().unwrap_or("sent").to_owned();
    let Some(limit) = wait else {
        let mut data = answer;
        data["node_id"] = json!(node);
        data["status"] = json!(status);
        return ctx.emit(data, |style| {
            let hint = format!(
                "they approve with: pilotctl approve <this node> · wait for it with: pilotctl handshake {node} --wait"
            );
            format!("handshake request sent to node {node}\n{}", style.dim(&hint))
        });
    };
    ctx.note(&format!("waiting for node {node} to answer (up to {})...", go_duration(limit)));
    let spinner = ctx.spinner(&format!("waiting for node {node}"));
    let outcome = wait_for_trust(&client, node, limit).await?;
    drop(spinner);
    match outcome {
        Outcome::Trusted => done(ctx, node, "trusted", format!("trust established with node {node}")),
        Outcome::Rejected(reason) => {
            let why = if reason.is_empty() { String::new() } else { format!(": {}", safe(&reason)) };
            Err(CliError::new(Code::Rejected, format!("node {node} declined the request{why}")))
        }
        Outcome::Open => {
            Err(CliError::timeout(format!("no answer from node {node} within {}", go_duration(limit))).hint(
                "the request stays open on their side until it is answered; see later with: pilotctl trust",
            ))
        }
    }
}

fn done(ctx: &Ctx, node: NodeId, status: &str, text: String) -> CliResult {
    ctx.emit(json!({"node_id": node, "status": status}), |style| format!("{} {text}", style.green("✓")))
}

async fn wait_for_trust(client: &Client, node: NodeId, limit: Duration) -> Result<Outcome, CliError> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let answer = client.handshake_wait(node, left.min(WAIT_STEP)).await.map_err(daemon_error("wait"))?;
        if answer["trusted"] == true {
            return Ok(Outcome::Trusted);
        }
        if answer["rejected"] == true || answer["status"] == "rejected" {
            return Ok(Outcome::Rejected(answer["reason"].as_str().unwrap_or_default().to_owned()));
        }
        if until <= Instant::now() {
            return Ok(Outcome::Open);
        }
    }
}

fn node_of(row: &Value) -> u64 {
    row["node_id"].as_u64().unwrap_or(0)
}

async fn pending(ctx: &Ctx) -> CliResult {
    let client = ctx.client().await?;
    let answer = client.handshake_pending().await.map_err(daemon_error("pending"))?;
    let requests = rows(&answer, "pending");
    let now = unix_now();
    let mut data = answer;
    data["pending"] = json!(requests);
    ctx.emit(data, |style| {
        if requests.is_empty() {
            let hint = "a peer asks with: pilotctl handshake <this node> \"why\"";
            return format!("no pending handshake requests\n{}", style.dim(hint));
        }
        let mut out = format!("Pending handshakes — {}\n\n", requests.len());
        for request in &requests {
            let node = node_of(request);
            let received = request["received_at"].as_u64().unwrap_or(now);
            let age = value::human_age(Duration::from_secs(now.saturating_sub(received)));
            let _ = writeln!(
                out,
                "  {} · {age} ago ({})",
                style.bold(&format!("node {node}")),
                utc_minute(received)
            );
            match request["justification"].as_str().unwrap_or_default() {
                "" => out.push_str("  (no justification given)\n"),
                why => drop(writeln!(out, "  {}", safe(why))),
            }
            let help =
                format!("accept: pilotctl approve {node} · decline: pilotctl reject {node} \"reason\"");
            let _ = writeln!(out, "  {}\n", style.dim(&help));
        }
        out
    })
}

/// Whether a request of this node waits.
async fn is_pending(client: &Client, node: NodeId) -> Result<bool, CliError> {
    let answer = client.handshake_pending().await.map_err(daemon_error("pending"))?;
    Ok(rows(&answer, "pending").iter().any(|row| node_of(row) == u64::from(node)))
}

fn nothing_pending(node: NodeId) -> CliError {
    CliError::not_found(format!("no request from node {node} is pending"))
        .hint(format!("list requests with: pilotctl pending · ask them yourself: pilotctl handshake {node}"))
}

async fn approve(ctx: &Ctx, args: &Args) -> CliResult {
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    if !is_pending(&client, node).await? {
        if is_trusted(&client, node).await == Some(true) {
            return done(ctx, node, "already_trusted", format!("node {node} is already trusted"));
        }
        return Err(nothing_pending(node));
    }
    let mut data = client.handshake_approve(node).await.map_err(daemon_error("approve"))?;
    if data["status"] == "nothing_pending" {
        return Err(nothing_pending(node));
    }
    data["node_id"] = json!(node);
    ctx.emit(data, |style| {
        let hint = format!("try: pilotctl ping {node} · take it back: pilotctl untrust {node}");
        format!("{} trust established with node {node}\n{}", style.green("✓"), style.dim(&hint))
    })
}

async fn reject(ctx: &Ctx, args: &Args) -> CliResult {
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    if !is_pending(&client, node).await? {
        return Err(nothing_pending(node));
    }
    let reason = args.pos(1).unwrap_or_default();
    let mut data = client.handshake_reject(node, reason).await.map_err(daemon_error("reject"))?;
    data["node_id"] = json!(node);
    ctx.emit(data, |_| format!("handshake from node {node} rejected"))
}

async fn trust(ctx: &Ctx, args: &Args) -> CliResult {
    let limit = row_limit(ctx, args, 20)?;
    let search = args.value("search").unwrap_or_default();
    let client = ctx.client().await?;
    let answer = client.handshake_trusted().await.map_err(daemon_error("trusted"))?;
    let mut found = rows(&answer, "trusted");
    found.retain(|row| {
        node_of(row).to_string().contains(search)
            || row["hostname"].as_str().is_some_and(|name| name.contains(search))
    });
    found.sort_by_key(|row| (std::cmp::Reverse(row["approved_at"].as_u64().unwrap_or(0)), node_of(row)));
    let total = found.len();
    found.truncate(limit);
    let mut data = json!({"trusted": found, "total": total});
    if answer["trusted_truncated"] == true {
        data["trusted_truncated"] = json!(true);
    }
    ctx.emit(data, |style| {
        if total == 0 {
            return format!(
                "no trusted peers\n{}",
                style.dim("ask one with: pilotctl handshake <peer> \"why\" · requests: pilotctl pending")
            );
        }
        let mut out = format!("Trusted peers — {total}\n\n");
        for row in &found {
            let when = row["approved_at"].as_u64().unwrap_or(0);
            let _ = write!(
                out,
                "  {} · approved {}",
                style.bold(&format!("node {}", node_of(row))),
                utc_minute(when)
            );
            if let Some(name) = row["hostname"].as_str().filter(|name| !name.is_empty()) {
                let _ = write!(out, " · {}", safe(name));
            }
            match row["network"].as_u64().unwrap_or(0) {
                0 => out.push('\n'),
                network => drop(writeln!(out, " · through network {network}")),
            }
        }
        if found.len() < total {
            let _ = writeln!(out, "\n{} of {total} peer{} shown", found.len(), plural(total as u64));
        }
        let help =
            "show more: --limit <n> (0 = all) · search: --search <substr> · revoke: pilotctl untrust <id>";
        let _ = write!(out, "\n{}", style.dim(help));
        out
    })
}

async fn untrust(ctx: &Ctx, args: &Args) -> CliResult {
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    // A reference daemon takes even a refused revocation as a reason to ignore that peer for 5 minutes, so it is
    // asked only when there is something to revoke.
    if is_trusted(&client, node).await == Some(false) {
        return Err(CliError::connection(format!(
            "untrust: revoke: daemon: handshake revoke: node {node} was not trusted"
        ))
        .hint("list trusted peers with: pilotctl trust"));
    }
    client.handshake_revoke(node).await.map_err(daemon_error("untrust: revoke"))?;
    ctx.emit(json!({"node_id": node}), |style| {
        let hint = format!("trust it again: pilotctl handshake {node}");
        format!("trust revoked for node {node}\n{}", style.dim(&hint))
    })
}
