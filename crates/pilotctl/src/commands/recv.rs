//! `recv`: serve a port, by collecting what comes in or by running a command for each connection.

use super::pipe::{MAX_KEPT, print_body, put_bytes};
use super::reach::{daemon_error, go_duration};
use super::text::safe;
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Exit};
use crate::output::Ctx;
use bytes::Bytes;
use pilot_ipc::{Client, IpcReader, IpcStream, IpcWriter};
use pilot_proto::Addr;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Default of `--timeout` without `--exec`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Default of `--idle`.
const IDLE: Duration = Duration::from_secs(2);
/// Far enough to mean never (a year).
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// Connections served at once; further ones wait in the daemon.
const AT_ONCE: usize = 32;
/// Bytes per read from a command.
const CHUNK: usize = 64 * 1024;

pub const COMMANDS: &[Spec] = &[Spec {
    name: "recv",
    about: "serve a port: print what comes in, or run a command for each connection",
    args: &["<port>"],
    flags: &[
        Flag::value("count", "N", "stop after N connections (1; with --exec no limit)"),
        Flag::value("timeout", "D", "limit for the whole command (30s; with --exec none)"),
        Flag::value("idle", "D", "silence that ends the input of a peer without half-close (2s)"),
        Flag::value("exec", "CMD", "give each connection to `sh -c CMD` and send back what it prints"),
    ],
    returns: "messages[]{seq, port, from, bytes, data, ended}, timeout; with --exec and no --count one \
              connection per line",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(recv(ctx, args))),
}];

/// What is the same for all connections.
#[derive(Debug, Clone)]
struct Serve {
    client: Client,
    port: u16,
    idle: Duration,
    exec: Option<String>,
}

/// One finished connection.
struct Served {
    seq: u64,
    from: Addr,
    body: Vec<u8>,
    /// Bytes received; with `--exec` they are not kept.
    bytes: u64,
    ended: &'static str,
    /// Bytes sent back, and how the command ended.
    exec: Option<(u64, String)>,
}

async fn recv(ctx: &Ctx, args: &Args) -> CliResult {
    let port = value::parse_port(args.required(0))?;
    if port == 0 {
        return Err(CliError::invalid("recv: port 0 cannot be served").hint("ports are 1 to 65535"));
    }
    let exec = args.value("exec").map(str::to_owned);
    let count = match (args.given("count"), &exec) {
        (false, Some(_)) => None,
        _ => Some(args.int("count", 1)?),
    };
    if count == Some(0) {
        return Err(CliError::invalid("--count must be at least 1"));
    }
    let limit = args.duration("timeout")?.or(exec.is_none().then_some(TIMEOUT));
    let idle = args.duration_or("idle", IDLE)?;
    let client = ctx.client().await?;
    let mut listener = client.listen(port).await.map_err(daemon_error("listen: bind"))?;
    let until = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let waiting = limit.map_or(String::new(), |limit| format!(" (up to {})", go_duration(limit)));
    ctx.note(&format!("listening on port {port}{waiting}..."));

    let serve = Serve { client: client.clone(), port, idle, exec };
    let mut running: JoinSet<Served> = JoinSet::new();
    let mut accepted = 0;
    let mut messages = Vec::new();
    let mut finished = 0;
    let mut timed_out = false;
    while count.is_none_or(|count| finished < count) {
        let more = count.is_none_or(|count| accepted < count) && running.len() < AT_ONCE;
        let next = async {
            tokio::select! {
                stream = listener.accept(), if more => Step::Accepted(stream),
                Some(served) = running.join_next() => Step::Finished(served.ok()),
            }
        };
        match timeout_at(until, next).await {
            Err(_) => {
                timed_out = true;
                break;
            }
            Ok(Step::Accepted(None)) => return Err(CliError::connection("daemon disconnected")),
            Ok(Step::Accepted(Some(stream))) => {
                running.spawn(serve.clone().one(stream, accepted, until));
                accepted += 1;
            }
            Ok(Step::Finished(served)) => {
                finished += 1;
                if let Some(served) = served {
                    let message = tell(ctx, &served, port, count.is_none())?;
                    messages.push(message);
                }
            }
        }
        if count.is_none() {
            messages.clear();
        }
    }
    // What had arrived of unfinished connections when the time was up is not thrown away.
    while timed_out && serve.exec.is_none() {
        let Some(served) = running.join_next().await else { break };
        if let Ok(served) = served {
            messages.push(tell(ctx, &served, port, false)?);
        }
    }
    drop(running);
    drop(listener);
    client.flush().await;
    if timed_out {
        ctx.note("timeout");
    }
    let exit = if count.is_some_and(|count| finished < count) { Exit::NEGATIVE } else { Exit::OK };
    if !ctx.json || count.is_none() {
        return Ok(exit);
    }
    messages.sort_by_key(|m| m["seq"].as_u64());
    ctx.emit_as(json!({"messages": messages, "timeout": timed_out}), |_| String::new(), exit)
}

enum Step {
    Accepted(Option<IpcStream>),
    Finished(Option<Served>),
}

/// Prints a finished connection in text mode (in JSON mode only if `live`) and returns its JSON.
fn tell(ctx: &Ctx, served: &Served, port: u16, live: bool) -> Result<Value, CliError> {
    let mut message = json!({
        "seq": served.seq, "port": port, "from": served.from.to_string(), "bytes": served.bytes,
        "ended": served.ended,
    });
    match &served.exec {
        None => put_bytes(&mut message, "data", &served.body),
        Some((sent, status)) => {
            message["sent_bytes"] = json!(sent);
            message["exit"] = json!(status);
        }
    }
    match (&served.exec, ctx.json) {
        (_, true) if live => ctx.emit_item(&message, |_| String::new())?,
        (_, true) => {}
        (None, false) => {
            if served.ended == "too_long" {
                ctx.note(&format!("connection {}: cut off at {} bytes", served.seq, served.bytes));
            }
            print_body(&served.body)?;
        }
        (Some((sent, status)), false) => ctx.note(&format!(
            "connection {} from {}: {} bytes in, {sent} bytes out, {}",
            served.seq,
            served.from,
            served.bytes,
            safe(status)
        )),
    }
    Ok(message)
}

impl Serve {
    async fn one(self, stream: IpcStream, seq: u64, until: Instant) -> Served {
        match &self.exec {
            None => self.collect(stream, seq, until).await,
            Some(command) => self.run(stream, seq, command).await,
        }
    }

    /// The next bytes of a peer. `None`: it ended, or has been silent although it cannot say that it ended.
    async fn next(&self, reader: &mut IpcReader, begun: bool) -> Result<Option<Bytes>, Silent> {
        if !begun {
            return Ok(reader.read().await);
        }
        if let Ok(part) = tokio::time::timeout(self.idle, reader.read()).await {
            return Ok(part);
        }
        if self.half_close(reader.id()).await {
            return Ok(reader.read().await);
        }
        Err(Silent)
    }

    /// Whether the peer of a connection can end its direction alone.
    async fn half_close(&self, id: u32) -> bool {
        let Ok(info) = self.client.info().await else { return false };
        let connections = info["conn_list"].as_array();
        connections
            .into_iter()
            .flatten()
            .any(|c| c["id"].as_u64() == Some(u64::from(id)) && c["half_close"] == true)
    }

    async fn collect(self, stream: IpcStream, seq: u64, until: Instant) -> Served {
        let from = stream.remote();
        let (mut reader, writer) = stream.split();
        let mut body = Vec::new();
        let ended = loop {
            match timeout_at(until, self.next(&mut reader, !body.is_empty())).await {
                Err(_) => break "timeout",
                Ok(Err(Silent)) => break "idle",
                Ok(Ok(None)) => break "closed",
                Ok(Ok(Some(part))) if body.len() + part.len() > MAX_KEPT => break "too_long",
                Ok(Ok(Some(part))) => body.extend_from_slice(&part),
            }
        };
        writer.close();
        Served { seq, from, bytes: body.len() as u64, body, ended, exec: None }
    }

    async fn run(&self, stream: IpcStream, seq: u64, command: &str) -> Served {
        let from = stream.remote();
        let mut served = Served { seq, from, body: Vec::new(), bytes: 0, ended: "closed", exec: None };
        let spawned = Command::new("sh")
            .arg("-c")
            .arg(command)
            .env("PILOT_PEER", from.to_string())
            .env("PILOT_PEER_NODE", from.node.to_string())
            .env("PILOT_PORT", self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                served.exec = Some((0, format!("not started: {error}")));
                return served;
            }
        };
        let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            served.exec = Some((0, "not started: no pipes".to_owned()));
            return served;
        };
        let (mut reader, mut writer) = stream.split();
        let received = AtomicU64::new(0);
        let mut sent = 0;
        let ended = {
            let input = self.feed(&mut reader, stdin, &received);
            let output = give_back(&mut stdout, &mut writer, &mut sent);
            tokio::pin!(input, output);
            // The command decides when the connection is over: by closing its output.
            let mut ended = None;
            loop {
                tokio::select! {
                    how = &mut input, if ended.is_none() => ended = Some(how),
                    () = &mut output => break ended,
                }
            }
        };
        writer.close();
        let status = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => format!("lost: {error}"),
        };
        served.bytes = received.into_inner();
        served.ended = ended.unwrap_or("command");
        served.exec = Some((sent, status));
        served
    }

    /// The peer's bytes to the command's stdin, which is closed at their end.
    async fn feed(
        &self,
        reader: &mut IpcReader,
        mut stdin: ChildStdin,
        received: &AtomicU64,
    ) -> &'static str {
        loop {
            match self.next(reader, received.load(Relaxed) > 0).await {
                Err(Silent) => return "idle",
                Ok(None) => return "closed",
                Ok(Some(part)) => {
                    received.fetch_add(part.len() as u64, Relaxed);
                    // A command that reads no more may still answer; what it does not read is dropped.
                    let _ = stdin.write_all(&part).await;
                }
            }
        }
    }
}

/// A command's output to the peer, until it closes it or the daemon is gone.
async fn give_back(stdout: &mut ChildStdout, writer: &mut IpcWriter, sent: &mut u64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = stdout.read(&mut chunk).await {
        if writer.write(Bytes::copy_from_slice(&chunk[..length])).await.is_err() {
            return;
        }
        *sent += length as u64;
    }
}

/// A peer without half-close has said nothing for the idle time.
struct Silent;
