//! `dgram` and `listen`: single datagrams.

use super::pipe::put_bytes;
use super::reach::{DialFault, Reach, daemon_error, go_duration};
use super::text::safe;
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Code, Exit};
use crate::output::Ctx;
use bytes::Bytes;
use pilot_ipc::ClientError;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Far enough to mean never (a year).
const NEVER: Duration = Duration::from_secs(365 * 86_400);

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "dgram",
        about: "send one datagram; nobody says whether it arrived",
        args: &["<peer>", "<port>"],
        flags: &[
            Flag::value("data", "M", "the payload"),
            Flag::switch("no-auto-handshake", "do not ask about trust first"),
        ],
        returns: "target, port, bytes, confirmed (handed to the tunnel, not delivered)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(dgram(ctx, args))),
    },
    Spec {
        name: "listen",
        about: "print datagrams that arrive at a port",
        args: &["<port>"],
        flags: &[
            Flag::value("count", "N", "stop after N datagrams"),
            Flag::value("timeout", "D", "stop after D"),
        ],
        returns: "messages[]{src_addr, src_port, bytes, data}, timeout; without --count one message per line",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(listen(ctx, args))),
    },
];

async fn dgram(ctx: &Ctx, args: &Args) -> CliResult {
    let port = value::parse_port(args.required(1))?;
    let payload = args.value("data").unwrap_or_default();
    if payload.is_empty() {
        return Err(CliError::invalid("--data is required"));
    }
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    reach.gate().await?;
    let addr = reach.peer.addr;
    let bytes = payload.len();
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    if let Err(error) = reach.client.send_datagram(addr, port, payload, true).await {
        let refused = match &error {
            ClientError::Daemon(text) => {
                text.strip_prefix("sendto: ").map(|t| ClientError::Daemon(t.to_owned()))
            }
            _ => None,
        };
        if let Some(fault @ DialFault::Hidden(_)) = refused.as_ref().map(DialFault::of) {
            return Err(reach.explain(&fault, &format!("cannot send to {addr} port {port}")));
        }
        return Err(daemon_error("dgram")(error));
    }
    reach.client.flush().await;
    let data = json!({"target": addr.to_string(), "port": port, "bytes": bytes, "confirmed": true});
    ctx.emit(data, |_| format!("sent {bytes} byte(s) to {addr} port {port}"))
}

async fn listen(ctx: &Ctx, args: &Args) -> CliResult {
    let port = value::parse_port(args.required(0))?;
    let count = args.given("count").then(|| args.int("count", 0)).transpose()?;
    if count == Some(0) {
        return Err(CliError::invalid("--count must be at least 1"));
    }
    let limit = args.duration("timeout")?;
    let client = ctx.client().await?;
    let mut datagrams = client.datagrams();
    // A daemon that refuses the connection says so only when it is asked something.
    client.health().await.map_err(daemon_error("health"))?;
    ctx.note(&format!("listening on port {port} — waiting for datagrams..."));
    let until = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let mut messages: Vec<Value> = Vec::new();
    let mut taken = 0;
    let mut timed_out = false;
    while count.is_none_or(|count| taken < count) {
        let datagram = match timeout_at(until, datagrams.recv()).await {
            Err(_) => {
                timed_out = true;
                break;
            }
            Ok(None) => return Err(CliError::new(Code::NotRunning, "the daemon stopped while listening")),
            Ok(Some(datagram)) if datagram.dst_port != port => continue,
            Ok(Some(datagram)) => datagram,
        };
        taken += 1;
        let mut message = json!({
            "bytes": datagram.payload.len(), "src_addr": datagram.src.to_string(), "src_port": datagram.src_port,
        });
        put_bytes(&mut message, "data", &datagram.payload);
        match ctx.json && count.is_some() {
            true => messages.push(message),
            false => ctx.emit_item(&message, |_| {
                let text = String::from_utf8_lossy(&datagram.payload);
                format!("[{}:{}] {}", datagram.src, datagram.src_port, safe(&text))
            })?,
        }
    }
    if timed_out {
        let limit = limit.map(go_duration).unwrap_or_default();
        ctx.note(&format!("timeout: {taken} datagram(s) within {limit}"));
    }
    let exit = if count.is_some_and(|count| taken < count) { Exit::NEGATIVE } else { Exit::OK };
    if ctx.json && count.is_some() {
        return ctx.emit_as(json!({"messages": messages, "timeout": timed_out}), |_| String::new(), exit);
    }
    Ok(exit)
}
