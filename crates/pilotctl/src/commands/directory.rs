//! What the registry knows: `find`, `lookup`, and this node's own record.

use super::listing::number;
use super::reach::daemon_error;
use super::status::without_endpoints;
use super::text::safe;
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Code};
use crate::names::Peer;
use crate::output::Ctx;
use pilot_daemon::config::{ConfigFile, keys};
use serde_json::{Value, json};

/// Most tags a node may have (the registry's limit).
const MAX_TAGS: usize = 10;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "find",
        about: "look up a hostname",
        args: &["<hostname>"],
        flags: &[],
        returns: "hostname, node_id, address, public",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(find(ctx, args))),
    },
    Spec {
        name: "lookup",
        about: "a node's record at the registry",
        args: &["<peer>"],
        flags: &[],
        returns: "node_id, address, hostname, public, public_key, networks[], …",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(lookup(ctx, args))),
    },
    Spec {
        name: "set-hostname",
        about: "name this node",
        args: &["<name>"],
        flags: &[],
        returns: "hostname, node_id",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(set_hostname(ctx, args))),
    },
    Spec {
        name: "clear-hostname",
        about: "remove this node's name",
        args: &[],
        flags: &[],
        returns: "hostname, node_id",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(clear_hostname(ctx))),
    },
    Spec {
        name: "set-tags",
        about: "say what this node can do, in up to 10 tags",
        args: &["<tag...>"],
        flags: &[],
        returns: "node_id, tags[]",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(set_tags(ctx, args))),
    },
    Spec {
        name: "clear-tags",
        about: "remove this node's tags",
        args: &[],
        flags: &[],
        returns: "node_id, tags[]",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(clear_tags(ctx))),
    },
    Spec {
        name: "set-public",
        about: "let every node reach this one",
        args: &[],
        flags: &[],
        returns: "node_id, visibility",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(set_visibility(ctx, true))),
    },
    Spec {
        name: "set-private",
        about: "let only trusted nodes reach this one",
        args: &[],
        flags: &[],
        returns: "node_id, visibility",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(set_visibility(ctx, false))),
    },
    Spec {
        name: "set-hidden",
        about: "let only trusted nodes find this one by name; --off for everybody",
        args: &[],
        flags: &[Flag::switch("off", "let everybody find the name")],
        returns: "node_id, hidden",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(set_hidden(ctx, args))),
    },
    Spec {
        name: "rotate-key",
        about: "replace this node's identity key",
        args: &[],
        flags: &[],
        returns: "node_id, address, public_key",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(rotate_key(ctx))),
    },
    Spec {
        name: "register",
        about: "(the daemon registers by itself)",
        args: &["[listen_addr]"],
        flags: &[],
        returns: "",
        tier: Tier::Hidden,
        run: Run::Sync(register),
    },
    Spec {
        name: "deregister",
        about: "remove this node from the registry until it registers again",
        args: &[],
        flags: &[],
        returns: "type",
        tier: Tier::Core,
        run: Run::Async(|ctx, _| Box::pin(deregister(ctx))),
    },
    Spec {
        name: "set-webhook",
        about: "post events to a URL",
        args: &["<url>"],
        flags: &[],
        returns: "webhook, applied",
        tier: Tier::Operator,
        run: Run::Async(|ctx, args| Box::pin(set_webhook(ctx, args))),
    },
    Spec {
        name: "clear-webhook",
        about: "post events nowhere",
        args: &[],
        flags: &[],
        returns: "webhook, applied",
        tier: Tier::Operator,
        run: Run::Async(|ctx, _| Box::pin(clear_webhook(ctx))),
    },
];

async fn find(ctx: &Ctx, args: &Args) -> CliResult {
    let name = args.required(0);
    let mut found = ctx.client().await?.resolve_hostname(name).await.map_err(|e| {
        CliError::not_found(format!("cannot find {name:?} — hostname not found or no mutual trust"))
            .hint(format!("establish trust first: pilotctl handshake {name} \"reason\"  ({e})"))
    })?;
    without_endpoints(&mut found);
    if let Some(object) = found.as_object_mut() {
        object.remove("type");
        object.entry("hostname").or_insert_with(|| json!(name));
    }
    if name.bytes().all(|b| b.is_ascii_digit()) && found["node_id"].as_u64() != name.parse().ok() {
        ctx.note(&format!("note: for every other command {name} means node number {name}, not this host"));
    }
    let text = format!(
        "Hostname:  {}\nNode ID:   {}\nAddress:   {}\nVisible:   {}",
        safe(found["hostname"].as_str().unwrap_or(name)),
        number(&found, "node_id"),
        found["address"].as_str().unwrap_or("-"),
        if found["public"] == true { "public" } else { "private" }
    );
    ctx.emit(found, |_| text)
}

async fn lookup(ctx: &Ctx, args: &Args) -> CliResult {
    let typed = args.required(0);
    // Names are the daemon's to resolve; a number or an address needs only the registry.
    let node = match Peer::literal(typed) {
        Some(peer) => peer.addr.node,
        None => Peer::resolve_node(ctx, &ctx.client().await?, typed).await?,
    };
    let mut record = super::registry::request(ctx, json!({"type": "lookup", "node_id": node})).await?;
    without_endpoints(&mut record);
    ctx.emit_data(record)
}

/// Changes the configuration file. The daemon has already done its part, so a failure is told, not returned.
fn remember(ctx: &Ctx, change: impl FnOnce(&mut ConfigFile)) {
    let path = ctx.home().join("config.json");
    let saved = ConfigFile::load(&path).map_err(|e| e.to_string()).and_then(|mut file| {
        change(&mut file);
        file.save().map_err(|e| e.to_string())
    });
    if let Err(why) = saved {
        ctx.warn(&format!("warning: applied now, but not kept for the next start: {why}"));
    }
}

async fn set_hostname(ctx: &Ctx, args: &Args) -> CliResult {
    let name = args.required(0);
    if !keys::is_hostname(name) {
        return Err(CliError::invalid(format!(
            "invalid hostname {name:?}: hostname must be 1-63 lowercase letters, digits or internal hyphens"
        )));
    }
    let client = ctx.client().await?;
    let answer = client.set_hostname(name).await.map_err(daemon_error("set_hostname"))?;
    remember(ctx, |file| file.set("hostname", json!(name)));
    let data = json!({"hostname": name, "node_id": answer["node_id"]});
    ctx.emit(data, |_| format!("hostname set: {name}"))
}

async fn clear_hostname(ctx: &Ctx) -> CliResult {
    let client = ctx.client().await?;
    let answer = client.set_hostname("").await.map_err(daemon_error("set_hostname"))?;
    remember(ctx, |file| file.remove("hostname"));
    ctx.emit(json!({"hostname": "", "node_id": answer["node_id"]}), |_| "hostname cleared".to_owned())
}

async fn set_tags(ctx: &Ctx, args: &Args) -> CliResult {
    let tags: Vec<String> =
        args.rest(0).iter().map(|tag| tag.strip_prefix('#').unwrap_or(tag).to_owned()).collect();
    if tags.len() > MAX_TAGS {
        return Err(CliError::invalid(format!(
            "set-tags: maximum {MAX_TAGS} tags allowed, got {}",
            tags.len()
        )));
    }
    let answer = ctx.client().await?.set_tags(&tags).await.map_err(daemon_error("set_tags"))?;
    // What the registry kept, which may be less (duplicates).
    let kept: Vec<String> = match answer["tags"].as_array() {
        Some(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        None => tags,
    };
    let shown: Vec<String> = kept.iter().map(|tag| format!("#{}", safe(tag))).collect();
    ctx.emit(json!({"node_id": answer["node_id"], "tags": kept}), |_| {
        format!("tags set: {}", shown.join(" "))
    })
}

async fn clear_tags(ctx: &Ctx) -> CliResult {
    let answer = ctx.client().await?.set_tags(&[]).await.map_err(daemon_error("set_tags"))?;
    ctx.emit(json!({"node_id": answer["node_id"], "tags": []}), |_| "tags cleared".to_owned())
}

async fn set_visibility(ctx: &Ctx, public: bool) -> CliResult {
    let client = ctx.client().await?;
    ctx.emit_data(client.set_visibility(public).await.map_err(daemon_error("set_visibility"))?)
}

async fn set_hidden(ctx: &Ctx, args: &Args) -> CliResult {
    let hidden = !args.on("off");
    let answer = ctx.client().await?.set_hidden(hidden).await.map_err(daemon_error("set_hidden"))?;
    ctx.emit(json!({"node_id": answer["node_id"], "hidden": hidden}), |_| match hidden {
        true => "name hidden: only trusted nodes find it".to_owned(),
        false => "name shown: everybody finds it".to_owned(),
    })
}

async fn rotate_key(ctx: &Ctx) -> CliResult {
    ctx.emit_data(ctx.client().await?.rotate_key().await.map_err(daemon_error("rotate_key"))?)
}

/// The reference sends a request without a key, which every registry refuses.
fn register(_: &Ctx, _: &Args) -> CliResult {
    Err(CliError::new(Code::NotSupported, "register: a node is registered by its daemon, with its key")
        .hint("pilotctl daemon start"))
}

async fn deregister(ctx: &Ctx) -> CliResult {
    ctx.emit_data(ctx.client().await?.deregister().await.map_err(daemon_error("deregister"))?)
}

async fn set_webhook(ctx: &Ctx, args: &Args) -> CliResult {
    let url = args.required(0);
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(CliError::invalid("webhook URL must start with http:// or https://"));
    }
    webhook(ctx, url).await
}

async fn clear_webhook(ctx: &Ctx) -> CliResult {
    webhook(ctx, "").await
}

/// Kept in the configuration file in any case; applied at once if the daemon runs.
async fn webhook(ctx: &Ctx, url: &str) -> CliResult {
    let applied = match ctx.client().await {
        Ok(client) => {
            let answer = client.set_webhook(url).await.map_err(daemon_error("set_webhook"))?;
            // Our daemon says so if it posts nothing; a reference daemon always posts.
            let ignored = answer["delivering"] == false && !url.is_empty();
            if ignored {
                ctx.warn("notice: the URL is kept, but this version of the daemon posts no events");
            }
            !ignored
        }
        Err(_) => false,
    };
    remember(ctx, |file| match url {
        "" => file.remove("webhook"),
        url => file.set("webhook", json!(url)),
    });
    ctx.emit(json!({"webhook": url, "applied": applied}), |_| {
        let what = if url.is_empty() { "webhook cleared".to_owned() } else { format!("webhook set: {url}") };
        let when = if applied { "" } else { " (not in effect now)" };
        format!("{what}{when}")
    })
}
