//! `pins` and `pins clear`: peers this node insists on upgraded sessions with (docs/extensions.md, "Session upgrade").

use super::listing::{number, row_limit, rows};
use super::reach::daemon_error;
use super::text::utc_minute;
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult};
use crate::names::Peer;
use crate::output::Ctx;
use serde_json::json;
use std::fmt::Write as _;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "pins",
        about: "peers that must come with an upgraded session, because they have before",
        args: &[],
        flags: &[Flag::value("limit", "N", "at most N peers (default 20 in text, 0: all)")],
        returns: "pins[]{node_id, address, public_key, since_unix}, total",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(pins(ctx, args))),
    },
    Spec {
        name: "pins clear",
        about: "accept plain sessions of a peer again, until its next upgraded one",
        args: &["<peer>"],
        flags: &[],
        returns: "node_id, cleared",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(clear(ctx, args))),
    },
];

async fn pins(ctx: &Ctx, args: &Args) -> CliResult {
    if let Some(word) = args.pos(0) {
        return Err(CliError::invalid(format!("unknown pins subcommand: {word}")).hint("available: clear"));
    }
    let limit = row_limit(ctx, args, 20)?;
    let answer = ctx.client().await?.pins().await.map_err(daemon_error("pins"))?;
    let mut found = rows(&answer, "pins");
    let total = number(&answer, "total");
    found.truncate(limit);
    let mut data = json!({"pins": found, "total": total});
    if answer["pins_truncated"] == true {
        data["pins_truncated"] = json!(true);
    }
    ctx.emit(data, |style| {
        if total == 0 {
            return format!(
                "no pinned peers\n{}",
                style.dim("a peer is pinned by its first upgraded session; see: pilotctl peers --all")
            );
        }
        let mut out = format!("Peers that must come with an upgraded session — {total}\n\n");
        for row in &found {
            let node = style.bold(&format!("node {}", number(row, "node_id")));
            let _ = writeln!(out, "  {node} · since {}", utc_minute(number(row, "since_unix")));
        }
        if (found.len() as u64) < total {
            let _ = writeln!(out, "\n{} of {total} shown; --limit 0 shows all", found.len());
        }
        let _ =
            write!(out, "\n{}", style.dim("accept plain sessions of one again: pilotctl pins clear <peer>"));
        out
    })
}

async fn clear(ctx: &Ctx, args: &Args) -> CliResult {
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    let answer = client.clear_pin(node).await.map_err(daemon_error("pins clear"))?;
    if answer["cleared"] != true {
        return Err(CliError::not_found(format!("node {node} is not pinned"))
            .hint("list pinned peers with: pilotctl pins"));
    }
    ctx.emit(answer, |style| {
        let hint = "its next upgraded session pins it again";
        format!("plain sessions of node {node} are accepted again\n{}", style.dim(hint))
    })
}
