//! `network …`: membership, passed through to the registry (spec 07 section 13).

use super::listing::{list, number};
use super::reach::daemon_error;
use super::text::{or_dash, safe, utc_minute};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult};
use crate::names::Peer;
use crate::output::Ctx;
use pilot_ipc::request::Network;
use serde_json::Value;
use std::fmt::Write as _;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "network list",
        about: "networks the registry has",
        args: &[],
        flags: &[],
        returns: "networks[]{id, name, join_rule, members}",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(networks(ctx))),
    },
    Spec {
        name: "network join",
        about: "become a member of a network",
        args: &["<id>"],
        flags: &[Flag::value("token", "T", "token of the network")],
        returns: "the registry's answer",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(join(ctx, args))),
    },
    Spec {
        name: "network leave",
        about: "leave a network",
        args: &["<id>"],
        flags: &[],
        returns: "the registry's answer",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(leave(ctx, args))),
    },
    Spec {
        name: "network members",
        about: "members of a network",
        args: &["<id>"],
        flags: &[],
        returns: "nodes[]{node_id, hostname, version, public}",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(members(ctx, args))),
    },
    Spec {
        name: "network invite",
        about: "invite a peer into a network",
        args: &["<id>", "<peer>"],
        flags: &[],
        returns: "the registry's answer",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(invite(ctx, args))),
    },
    Spec {
        name: "network invites",
        about: "invitations that wait for this node",
        args: &[],
        flags: &[],
        returns: "invites[]{network_id, inviter_id, timestamp}",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(invites(ctx))),
    },
    Spec {
        name: "network accept",
        about: "accept an invitation",
        args: &["<id>"],
        flags: &[],
        returns: "the registry's answer",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(respond(ctx, args, true))),
    },
    Spec {
        name: "network reject",
        about: "decline an invitation",
        args: &["<id>"],
        flags: &[],
        returns: "the registry's answer",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(respond(ctx, args, false))),
    },
];

fn id(args: &Args) -> Result<u16, CliError> {
    value::parse_network(args.required(0))
}

async fn ask(ctx: &Ctx, request: Network, label: &str) -> Result<Value, CliError> {
    ctx.client().await?.network(request).await.map_err(daemon_error(label))
}

async fn networks(ctx: &Ctx) -> CliResult {
    let data = ask(ctx, Network::List, "network list").await?;
    let rows = list(&data, "networks");
    // A registry tells member counts to some only, as a number or as a list.
    let members = |row: &Value| match &row["members"] {
        Value::Array(list) => Some(list.len() as u64),
        other => other.as_u64(),
    };
    let counted = rows.iter().any(|row| members(row).is_some());
    let mut page =
        format!("{:<6} {:<24} {:<10}{}\n", "ID", "NAME", "JOIN RULE", if counted { " MEMBERS" } else { "" });
    for row in rows {
        let count = members(row).map_or(String::new(), |n| format!(" {n}"));
        let (name, rule) = (or_dash(text(row, "name")), or_dash(text(row, "join_rule")));
        let _ = writeln!(page, "{:<6} {name:<24} {rule:<10}{count}", number(row, "id"));
    }
    if !counted && !rows.is_empty() {
        page.push_str("member counts hidden — admin only\n");
    }
    ctx.emit(data, |_| page)
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

async fn join(ctx: &Ctx, args: &Args) -> CliResult {
    let network = id(args)?;
    let token = args.value("token").unwrap_or_default().to_owned();
    let data = ask(ctx, Network::Join { network, token: token.into() }, "network join").await?;
    ctx.emit(data, |_| format!("joined network {network}"))
}

async fn leave(ctx: &Ctx, args: &Args) -> CliResult {
    let network = id(args)?;
    let data = ask(ctx, Network::Leave { network }, "network leave").await?;
    ctx.emit(data, |_| format!("left network {network}"))
}

async fn members(ctx: &Ctx, args: &Args) -> CliResult {
    let network = id(args)?;
    let mut data = ask(ctx, Network::Members { network }, "network members").await?;
    super::status::without_endpoints(&mut data);
    let mut page = format!("{:<10} {:<24} {:<12} PUBLIC\n", "NODE ID", "HOSTNAME", "VERSION");
    for row in list(&data, "nodes") {
        let (name, version) = (or_dash(text(row, "hostname")), or_dash(text(row, "version")));
        let public = if row["public"] == true { "yes" } else { "no" };
        let _ = writeln!(page, "{:<10} {name:<24} {version:<12} {public}", number(row, "node_id"));
    }
    ctx.emit(data, |_| page)
}

async fn invite(ctx: &Ctx, args: &Args) -> CliResult {
    let network = id(args)?;
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(1)).await?;
    let request = Network::Invite { network, node };
    let data = client.network(request).await.map_err(daemon_error("network invite"))?;
    ctx.emit(data, |_| format!("invited node {node} to network {network}"))
}

async fn invites(ctx: &Ctx) -> CliResult {
    let data = ask(ctx, Network::PollInvites, "network poll-invites").await?;
    let rows = list(&data, "invites");
    let mut page = String::new();
    if rows.is_empty() {
        page.push_str("no invitations");
    } else {
        let _ = writeln!(page, "{:<8} {:<10} TIMESTAMP", "NETWORK", "INVITER");
    }
    for row in rows {
        let when = match &row["timestamp"] {
            Value::String(text) => safe(text).into_owned(),
            other => other.as_u64().map_or("-".to_owned(), utc_minute),
        };
        let _ = writeln!(page, "{:<8} {:<10} {when}", number(row, "network_id"), number(row, "inviter_id"));
    }
    ctx.emit(data, |_| page)
}

async fn respond(ctx: &Ctx, args: &Args, accept: bool) -> CliResult {
    let network = id(args)?;
    let data = ask(ctx, Network::RespondInvite { network, accept }, "network respond-invite").await?;
    let verb = if accept { "accepted" } else { "rejected" };
    ctx.emit(data, |_| format!("{verb} invite to network {network}"))
}
