//! `send-message`: a message through the data exchange, and the wait for its answer (spec 06 section 5).

pub mod reply;
mod wait;

use super::mailbox::{inbox_dir, pretty, unreadable};
use super::reach::{Reach, go_duration};
use super::text::{millis, safe, safe_lines};
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult};
use crate::output::Ctx;
use bytes::Bytes;
use pilot_daemon::services::{client, inbox};
use pilot_ipc::IpcStream;
use pilot_proto::service::frame::FrameType;
use pilot_proto::service::message::{Tag, TraceAck, is_valid_id, new_id};
use pilot_proto::service::port::DATA_EXCHANGE;
use pilot_proto::service::send::{Content, Delivered, SendError};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wait::ReplyWait;

/// Default of `--wait`.
const WAIT: Duration = Duration::from_secs(30);
/// Limit of opening a stream, and of waiting for an acknowledgement, unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most messages of one command.
const MAX_COUNT: u64 = 100_000;

pub const COMMANDS: &[Spec] = &[Spec {
    name: "send-message",
    about: "send a message; with --wait, wait for the answer",
    args: &["<peer>"],
    flags: &[
        Flag::value("data", "T", "the message; - reads stdin"),
        Flag::value("data-file", "P", "the message, from a file"),
        Flag::value("type", "text|json|binary", "type of the message (text)"),
        Flag::value("count", "N", "send it N times (1)"),
        Flag::switch("reuse-conn", "one stream for all messages instead of one each"),
        Flag::optional("wait", "D", "wait for the answer, at most D (30s)"),
        Flag::value("reply-to", "ID", "the message this one answers: message_id or inbox id"),
        Flag::switch("no-resend", "never send a message a second time"),
        Flag::value("timeout", "D", "limit for the acknowledgement (30s)"),
        Flag::switch("trace", "tell where the time goes"),
        Flag::switch("no-auto-handshake", "do not ask about trust first"),
    ],
    returns: "ack, bytes, message_id, target, to, type, seq, tagged, reused, first_contact?, reply_to?, retried?, \
              reply?, reply_after_ms?; with --count results[]",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(send_message(ctx, args))),
}];

async fn send_message(ctx: &Ctx, args: &Args) -> CliResult {
    let ty = parse_type(args.value("type").unwrap_or("text"))?;
    let count = args.int("count", 1)?;
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(CliError::invalid(format!("--count must be 1 to {MAX_COUNT}, got {count}")));
    }
    let wait = args.optional_duration("wait", WAIT)?;
    let patience = args.duration_or("timeout", TIMEOUT)?;
    let dir = inbox_dir(ctx);
    let reply_to = args.value("reply-to").map(|given| reply_target(&dir, given)).transpose()?;
    let data = message_data(args)?;
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let first_contact = !has_session(&reach).await;
    let reply_wait =
        wait.map(|limit| ReplyWait::new(dir, &reach.peer.addr.to_string(), limit)).transpose()?;
    let mut job = Job {
        ctx,
        reach: &reach,
        ty,
        data,
        reply_to,
        patience,
        trace: args.on("trace") || ctx.env().get("PILOTCTL_TRACE_TIME").is_some(),
        reuse: args.on("reuse-conn") || ctx.env().get("PILOT_SENDMSG_REUSE_CONN").is_some(),
        resend: !args.on("no-resend"),
        first_contact,
        kept: None,
        reply_wait,
    };
    let result = job.run(count).await;
    job.kept = None;
    reach.client.flush().await;
    result
}

fn parse_type(name: &str) -> Result<FrameType, CliError> {
    match name.to_ascii_lowercase().as_str() {
        "text" => Ok(FrameType::TEXT),
        "json" => Ok(FrameType::JSON),
        "binary" => Ok(FrameType::BINARY),
        _ => Err(CliError::invalid(format!("unknown type {name:?} (use text, json, or binary)"))),
    }
}

/// `--data`, `--data -` or `--data-file`.
fn message_data(args: &Args) -> Result<Bytes, CliError> {
    let limit = u64::from(client::frame_limit());
    let data = match (args.value("data"), args.value("data-file")) {
        (Some(_), Some(_)) => return Err(CliError::invalid("give either --data or --data-file")),
        (Some("-"), None) => {
            let mut data = Vec::new();
            let read = std::io::stdin().lock().take(limit + 1).read_to_end(&mut data);
            read.map_err(|e| CliError::io("read stdin", &e))?;
            data
        }
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(path)) => {
            let mut data = Vec::new();
            let read = std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut data));
            read.map_err(|e| CliError::io(path, &e))?;
            data
        }
        (None, None) => Vec::new(),
    };
    if data.is_empty() {
        return Err(CliError::invalid("--data is required"));
    }
    if data.len() as u64 > limit {
        return Err(CliError::invalid(format!("a message has at most {limit} bytes"))
            .hint("send it as a file: pilotctl send-file"));
    }
    Ok(data.into())
}

/// `--reply-to`: a message id, or the inbox id of a record that carries one.
fn reply_target(dir: &Path, given: &str) -> Result<String, CliError> {
    if given.is_empty() {
        return Err(CliError::invalid("--reply-to needs a value: a message_id or an inbox id"));
    }
    if let Some(record) = inbox::read(dir, given).map_err(unreadable(dir))? {
        return match record.message_id() {
            Some(id) => Ok(id.to_owned()),
            None => Err(CliError::invalid(format!("--reply-to: {given} carries no message_id"))
                .hint("its sender is too old to match answers; send without --reply-to")),
        };
    }
    if is_valid_id(given) {
        return Ok(given.to_owned());
    }
    Err(CliError::invalid(format!("--reply-to: {given:?} is not a message_id and not in the inbox")))
}

/// Whether there is an encrypted session with the peer already.
async fn has_session(reach: &Reach<'_>) -> bool {
    let Ok(info) = reach.client.info().await else { return true };
    let node = u64::from(reach.peer.addr.node);
    info["node_id"].as_u64() == Some(node)
        || info["peer_list"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|p| p["node_id"].as_u64() == Some(node) && p["encrypted"] == true)
}

fn random_id() -> Result<String, CliError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| CliError::internal("the operating system gives no random numbers"))?;
    Ok(new_id(random))
}

fn unix_nanos() -> u64 {
    // Fits until the year 2554.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

struct Job<'a> {
    ctx: &'a Ctx,
    reach: &'a Reach<'a>,
    ty: FrameType,
    data: Bytes,
    reply_to: Option<String>,
    patience: Duration,
    trace: bool,
    reuse: bool,
    resend: bool,
    first_contact: bool,
    /// The stream to use again.
    kept: Option<IpcStream>,
    reply_wait: Option<ReplyWait>,
}

/// An acknowledged message.
struct Sent {
    delivered: Delivered,
    message_id: String,
    reused: bool,
    retried: bool,
    dial: Duration,
    total: Duration,
}

impl Job<'_> {
    async fn run(&mut self, count: u64) -> CliResult {
        let to = self.reach.peer.addr.to_string();
        let spinner = self.ctx.spinner(&format!("sending to {to}"));
        let mut results = Vec::new();
        for seq in 0..count {
            let sent = self.send(None).await.map_err(|error| match (count, results.len()) {
                (1, _) => error,
                (_, done) => {
                    CliError { message: format!("{} ({done} of {count} delivered)", error.message), ..error }
                }
            })?;
            results.push(self.result(&sent, seq));
        }
        drop(spinner);
        let kind = self.ty.name().to_ascii_lowercase();
        let mut data = match results.pop() {
            Some(only) if count == 1 => {
                let mut data = only;
                if let Some(id) = &self.reply_to {
                    data["reply_to"] = json!(id);
                }
                if self.first_contact {
                    data["first_contact"] = json!(true);
                }
                data
            }
            last => {
                results.extend(last);
                json!({"results": results, "reuse_conn": self.reuse})
            }
        };
        data["target"] = json!(to);
        data["to"] = json!(to);
        data["type"] = json!(kind);
        if self.reply_wait.is_none() {
            return self.print(data, None);
        }
        let acknowledged = Instant::now();
        if !self.ctx.json {
            // Told before the wait: the message is delivered whatever becomes of the answer.
            self.print(data.clone(), None)?;
        }
        let reply = self.wait_for_reply().await?;
        data["reply_after_ms"] = json!(acknowledged.elapsed().as_millis() as u64);
        self.print(data, Some(reply))
    }

    /// Prints the result, or in text mode after the wait the answer alone.
    fn print(&self, mut data: Value, reply: Option<Value>) -> CliResult {
        let plain = !self.ctx.json && std::io::stdout().is_terminal();
        match reply {
            Some(reply) if self.ctx.json => {
                data["reply"] = reply;
                self.ctx.emit_data(data)
            }
            Some(reply) => self.ctx.emit(data, |style| match (plain, reply["data"].as_str()) {
                (true, Some(text)) => {
                    format!(
                        "{}\n{}",
                        style.cyan(&format!("{} answers:", self.reach.peer.addr)),
                        safe_lines(text)
                    )
                }
                _ => pretty(&reply),
            }),
            None if plain && data["ack"].is_string() => {
                let ack = safe(data["ack"].as_str().unwrap_or_default()).into_owned();
                let id = data["message_id"].as_str().unwrap_or_default().to_owned();
                let to = self.reach.peer.addr;
                self.ctx.emit(data, |style| {
                    format!("{} {to} · {ack}\n{}", style.green("✓"), style.dim(&format!("message_id {id}")))
                })
            }
            None => self.ctx.emit_data(data),
        }
    }

    fn result(&self, sent: &Sent, seq: u64) -> Value {
        let mut result = json!({
            "ack": sent.delivered.ack, "bytes": self.data.len(), "message_id": sent.message_id,
            "reused": sent.reused, "seq": seq, "tagged": sent.delivered.tagged,
        });
        if sent.retried {
            result["retried"] = json!(true);
        }
        if let Some(trace) = &sent.delivered.trace {
            put_trace(&mut result, trace, sent);
        }
        result
    }

    /// Sends the message once, acknowledged. `kept_id`: under this id instead of a new one.
    async fn send(&mut self, kept_id: Option<String>) -> Result<Sent, CliError> {
        let message_id = match kept_id {
            Some(id) => id,
            None => random_id()?,
        };
        let began = Instant::now();
        let mut retried = false;
        loop {
            let reused = self.kept.is_some();
            let mut stream = match self.kept.take() {
                Some(stream) => stream,
                None => self.dial().await?,
            };
            let dial = began.elapsed();
            let tag = Tag { message_id: Some(message_id.clone()), reply_to: self.reply_to.clone() };
            let content = Content::message(self.ty, self.data.clone());
            let content = if self.trace { content.traced(unix_nanos()) } else { content };
            match client::send_message(&mut stream, content, Some(tag), self.patience).await {
                Ok(delivered) => {
                    if self.reuse {
                        self.kept = Some(stream);
                    }
                    if let Some(wait) = &mut self.reply_wait {
                        wait.sent(&message_id, delivered.tagged);
                    }
                    return Ok(Sent { delivered, message_id, reused, retried, dial, total: began.elapsed() });
                }
                // The acknowledgement may be all that was lost: the same id again cannot be stored twice.
                Err(SendError::Closed) if self.resend && !retried => {
                    retried = true;
                    self.ctx.note("the connection closed before the acknowledgement; sending once more");
                }
                Err(error) => return Err(self.explain(&error)),
            }
        }
    }

    async fn dial(&self) -> Result<IpcStream, CliError> {
        let began = Instant::now();
        let addr = self.reach.peer.addr;
        self.reach.dial(DATA_EXCHANGE, self.patience).await.map_err(|fault| {
            let message = format!("cannot connect to {addr} (data exchange port {DATA_EXCHANGE})");
            let mut error = self.reach.explain(&fault, &message);
            if error.code == crate::error::Code::ConnectionFailed && error.hint.is_none() {
                error.hint = Some(format!("gave up after {:.1}s", began.elapsed().as_secs_f64()));
            }
            error
        })
    }

    fn explain(&self, error: &SendError) -> CliError {
        let addr = self.reach.peer.addr;
        match error {
            SendError::TimedOut => CliError::timeout(format!(
                "no acknowledgement from {addr} within {}",
                go_duration(self.patience)
            ))
            .hint("the message may have been stored; wait longer with --timeout"),
            SendError::Refused(text) => {
                CliError::connection(format!("{addr} did not store the message: {}", safe(text)))
            }
            SendError::TooLarge { .. } | SendError::BadId(_) => CliError::invalid(error.to_string()),
            SendError::Closed => CliError::connection(format!(
                "{addr} closed the connection before the acknowledgement; the message may or may not be stored"
            )),
            SendError::Protocol(text) => {
                CliError::connection(format!("unexpected answer from {addr}: {}", safe(text)))
            }
        }
    }

    /// Waits for the answer; on first contact the request is sent once more half-way, in case the peer could not
    /// reach us the first time.
    async fn wait_for_reply(&mut self) -> Result<Value, CliError> {
        let Some(mut wait) = self.reply_wait.take() else {
            return Err(CliError::internal("no wait for an answer was asked for"));
        };
        let typed = self.reach.peer.typed.clone();
        let limit = wait.limit();
        self.ctx.note(&format!("waiting for reply from {} (up to {})...", safe(&typed), go_duration(limit)));
        let spinner = self.ctx.spinner(&format!("waiting for {}", safe(&typed)));
        wait.acknowledged();
        if self.first_contact
            && self.resend
            && let Some(half) = wait.resend_after()
        {
            if let Some(reply) = wait.until(half).await? {
                return Ok(reply);
            }
            self.kept = None;
            match self.send(None).await {
                Ok(again) => {
                    wait.sent(&again.message_id, again.delivered.tagged);
                    wait.extend();
                }
                // The first request was acknowledged; its answer may still come.
                Err(error) => self.ctx.note(&format!("sending once more failed: {}", error.message)),
            }
        }
        let reply = wait.rest().await?;
        drop(spinner);
        reply.ok_or_else(|| {
            CliError::timeout(format!("no reply from {:?} within {}", self.reach.peer.addr.to_string(), go_duration(limit)))
                .hint(format!(
                    "{typed} acknowledged the request but no reply arrived; it may still come, see: pilotctl inbox --from \
                     {}",
                    self.reach.peer.addr
                ))
        })
    }
}

/// The keys of `--trace`. Times between the two machines depend on both clocks.
fn put_trace(result: &mut Value, trace: &TraceAck, sent: &Sent) {
    let ms = |from: u64, to: u64| ((i128::from(to) - i128::from(from)) as f64 / 1e3).round() / 1e3;
    result["ack"] = json!(json!(trace).to_string());
    result["inner_ack"] = json!(trace.inner_ack);
    result["to_receiver_ms"] = json!(ms(trace.sent_at_ns, trace.received_at_ns));
    result["receiver_process_ms"] = json!(ms(trace.received_at_ns, trace.ack_sent_at_ns));
    result["return_trip_ms"] =
        json!(ms(trace.ack_sent_at_ns, trace.sent_at_ns + (sent.total - sent.dial).as_nanos() as u64));
    result["total_ms"] = json!(millis(sent.total));
    result["trace"] = json!([
        {"label": "dial", "ms": millis(sent.dial)},
        {"label": "send_ack", "ms": millis(sent.total - sent.dial)},
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_target_is_a_message_id_or_an_inbox_id() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("TEXT-1.json"), r#"{"message_id":"abc"}"#).unwrap();
        std::fs::write(dir.path().join("TEXT-2.json"), "{}").unwrap();
        let message = |given| reply_target(dir.path(), given).unwrap_err().message;
        assert_eq!(reply_target(dir.path(), "TEXT-1"), Ok("abc".to_owned()));
        assert_eq!(reply_target(dir.path(), "de1e9d7c"), Ok("de1e9d7c".to_owned()));
        assert!(message("TEXT-2").contains("carries no message_id"));
        assert!(message("no such id!").contains("not a message_id"));
        assert!(message("").contains("needs a value"));
    }

    #[test]
    fn message_types_are_the_three_a_person_can_write() {
        assert_eq!(parse_type("json"), Ok(FrameType::JSON));
        assert_eq!(
            parse_type("xml").unwrap_err().message,
            "unknown type \"xml\" (use text, json, or binary)"
        );
    }
}
