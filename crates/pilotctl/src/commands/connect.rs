//! `connect` and `send`: bytes to a port of a peer, and its answer.

use super::pipe::{Bounds, Ending, Sink, Stdout, Talk, converse, once, put_bytes, stdin};
use super::reach::{Reach, go_duration};
use super::text::short_time;
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Exit};
use crate::output::Ctx;
use bytes::Bytes;
use serde_json::json;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Port of `connect` when none is given (spec 06 section 4).
const DEFAULT_PORT: u16 = 1000;
/// Default of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Default of `--idle`.
const IDLE: Duration = Duration::from_secs(2);

const IDLE_FLAG: Flag =
    Flag::value("idle", "D", "silence that ends the answer of a peer without half-close (2s)");
const GATE_FLAG: Flag = Flag::switch("no-auto-handshake", "do not ask about trust first");

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "connect",
        about: "open a stream: send a message or stdin, print the answer; interactive on a terminal",
        args: &["<peer>", "[port]"],
        flags: &[
            Flag::value("message", "M", "send this instead of stdin"),
            Flag::value("timeout", "D", "limit for connecting, and for the answer to begin (30s)"),
            IDLE_FLAG,
            GATE_FLAG,
        ],
        returns: "target, port, sent, response (with response_b64 if it is not text)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(connect(ctx, args))),
    },
    Spec {
        name: "send",
        about: "send a message to a port and print the answer",
        args: &["<peer>", "<port>"],
        flags: &[
            Flag::value("data", "M", "the message"),
            Flag::value("timeout", "D", "limit for the answer to begin (30s)"),
            IDLE_FLAG,
            GATE_FLAG,
        ],
        returns: "target, port, sent, response (with response_b64 if it is not text)",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(send(ctx, args))),
    },
];

async fn connect(ctx: &Ctx, args: &Args) -> CliResult {
    let port = args.pos(1).map_or(Ok(DEFAULT_PORT), value::parse_port)?;
    let timeout = args.duration_or("timeout", TIMEOUT)?;
    let message = match args.given("message") {
        true => Some(Bytes::copy_from_slice(args.value("message").unwrap_or_default().as_bytes())),
        false => None,
    };
    if message.is_none() && ctx.json && std::io::stdin().is_terminal() {
        return Err(CliError::invalid("--message is required (interactive mode not supported with --json)")
            .hint("use --message to send a single message, or pipe data via stdin"));
    }
    exchange(ctx, args, port, message, timeout, timeout).await
}

async fn send(ctx: &Ctx, args: &Args) -> CliResult {
    let port = value::parse_port(args.required(1))?;
    let timeout = args.duration_or("timeout", TIMEOUT)?;
    let data = args.value("data").unwrap_or_default();
    if data.is_empty() {
        return Err(CliError::invalid("--data is required"));
    }
    exchange(ctx, args, port, Some(Bytes::copy_from_slice(data.as_bytes())), TIMEOUT, timeout).await
}

async fn exchange(
    ctx: &Ctx,
    args: &Args,
    port: u16,
    message: Option<Bytes>,
    dial_limit: Duration,
    first: Duration,
) -> CliResult {
    let bounds = Bounds { first, idle: args.duration_or("idle", IDLE)? };
    let interactive = message.is_none() && std::io::stdin().is_terminal();
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let addr = reach.peer.addr;
    let began = Instant::now();
    let spinner = ctx.spinner(&format!("connecting to {addr} port {port}"));
    let stream = reach
        .dial(port, dial_limit)
        .await
        .map_err(|fault| reach.explain(&fault, &format!("cannot connect to {addr} port {port}")))?;
    drop(spinner);
    if interactive {
        ctx.note(&format!("Tunnel established · {addr} · {}", short_time(began.elapsed())));
        ctx.note("what you type is sent line by line; end with Ctrl-D");
    }
    let piped = message.is_none();
    let source = message.map_or_else(stdin, once);
    let mut sink = match ctx.json {
        true => Sink::Kept(Vec::new()),
        false => Sink::Stdout(Stdout::new(!piped)),
    };
    let mut sent = Vec::new();
    let keep = ctx.json.then_some(&mut sent);
    let talk = converse(stream, source, &mut sink, keep, bounds).await;
    reach.client.flush().await;
    let kept = match sink {
        Sink::Kept(kept) => kept,
        Sink::Stdout(stdout) => {
            stdout.finish()?;
            Vec::new()
        }
    };
    report(ctx, &addr.to_string(), port, talk?, interactive, bounds, &sent, &kept)
}

#[allow(clippy::too_many_arguments)]
fn report(
    ctx: &Ctx,
    addr: &str,
    port: u16,
    talk: Talk,
    interactive: bool,
    bounds: Bounds,
    sent: &[u8],
    response: &[u8],
) -> CliResult {
    match talk.ending {
        Ending::NoAnswer => {
            return Err(CliError::timeout(format!(
                "no response within {} ({} bytes were sent)",
                go_duration(bounds.first),
                talk.sent
            ))
            .hint(format!("increase with --timeout, or check peer: pilotctl ping {addr}")));
        }
        Ending::Stalled => {
            return Err(CliError::timeout(format!(
                "the answer stopped after {} bytes without an end for {}",
                talk.received,
                go_duration(bounds.first.max(bounds.idle))
            ))
            .hint("increase with --timeout"));
        }
        Ending::Closed if interactive => ctx.note("connection closed by the peer"),
        Ending::Closed if talk.received == 0 => ctx.note(&format!("sent {} bytes (no response)", talk.sent)),
        Ending::Closed | Ending::Silent => {}
    }
    if !ctx.json {
        return Ok(Exit::OK);
    }
    let mut data = json!({
        "target": addr, "port": port, "sent_bytes": talk.sent, "response_bytes": talk.received,
        "ended": if talk.ending == Ending::Closed { "closed" } else { "idle" },
    });
    put_bytes(&mut data, "sent", sent);
    put_bytes(&mut data, "response", response);
    ctx.emit_data(data)
}
