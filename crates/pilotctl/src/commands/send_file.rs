//! `send-file`: a file through the data exchange, resumable.

use super::reach::{DialFault, Reach, daemon_error, go_duration};
use super::text::{mbit_per_second, round2, safe};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Code};
use crate::output::Ctx;
use pilot_daemon::services::client::{self, FileError, FileEvent, FileSent};
use pilot_proto::service::file_sender::TransferError;
use pilot_proto::service::port::DATA_EXCHANGE;
use pilot_proto::service::send::{Content, SendError};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Default of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Limit of opening a stream.
const DIAL: Duration = Duration::from_secs(30);
/// How often a transfer is taken up again when its stream breaks.
const ATTEMPTS: u32 = 3;

pub const COMMANDS: &[Spec] = &[Spec {
    name: "send-file",
    about: "send a file; send it again after a break to resume",
    args: &["<peer>", "<path>"],
    flags: &[
        Flag::value("timeout", "D", "limit of waiting for any one acknowledgement (90s)"),
        Flag::switch("prefer-direct", "try the direct path anew before sending"),
        Flag::switch("no-stream", "one frame instead of a transfer: no resume, no hash, at most 64 MiB"),
        Flag::switch("no-auto-handshake", "do not ask about trust first"),
    ],
    returns: "filename, bytes, bytes_sent, bytes_resumed, destination, elapsed_ms, throughput_mbps (Mbit/s), sha256, \
              transport, verified; in one frame: ack instead of the last three",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(send_file(ctx, args))),
}];

async fn send_file(ctx: &Ctx, args: &Args) -> CliResult {
    let typed = args.required(1);
    let path = Path::new(typed);
    let patience = args.duration_or("timeout", TIMEOUT)?;
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => CliError::not_found(format!("file not found: {typed}")),
        _ => CliError::io(typed, &e),
    })?;
    if meta.is_dir() {
        return Err(CliError::invalid(format!("{typed} is a directory, not a file"))
            .hint("pack it first, for example: tar czf dir.tgz dir"));
    }
    if !meta.is_file() {
        return Err(CliError::invalid(format!("{typed} is not a regular file")));
    }
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Err(CliError::invalid(format!("{typed} names no file")));
    };
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    if args.on("prefer-direct") {
        reach.client.prefer_direct(reach.peer.addr.node).await.map_err(daemon_error("prefer_direct"))?;
    }
    let mut job = Job { ctx, reach: &reach, path, name: &name, patience, began: Instant::now() };
    let data = match args.on("no-stream") {
        true => job.whole(meta.len()).await?,
        false => job.transfer().await?,
    };
    reach.client.flush().await;
    ctx.emit_data(data)
}

struct Job<'a> {
    ctx: &'a Ctx,
    reach: &'a Reach<'a>,
    path: &'a Path,
    name: &'a str,
    patience: Duration,
    /// When sending began, hashing not included.
    began: Instant,
}

impl Job<'_> {
    async fn transfer(&mut self) -> Result<Value, CliError> {
        let mut attempt = 1;
        loop {
            let label = safe(self.name).into_owned();
            let mut bar = None;
            let mut began = None;
            let event = |event| match event {
                FileEvent::Hashing { hashed, size } => {
                    let bar =
                        bar.get_or_insert_with(|| self.ctx.progress_bytes(&format!("hashing {label}"), size));
                    bar.set(hashed);
                }
                FileEvent::Started { size, .. } => bar = Some(self.ctx.progress_bytes(&label, size)),
                FileEvent::Progress { acknowledged, .. } => {
                    if let Some(bar) = &bar {
                        bar.set(acknowledged);
                    }
                }
                FileEvent::FallingBack => {
                    bar = None;
                    self.ctx.note(
                        "receiver does not support streamed transfer (pre-v1.12.0); falling back to single-frame \
                         TypeFile",
                    );
                }
            };
            let dial = async || {
                began.get_or_insert_with(Instant::now);
                self.reach.dial(DATA_EXCHANGE, DIAL).await
            };
            let result = client::send_file(dial, self.path, self.name, self.patience, event).await;
            self.began = began.unwrap_or(self.began);
            match result {
                Ok(sent) => return Ok(self.report(sent)),
                Err(FileError::Transfer(TransferError::Closed { acknowledged, size }))
                    if attempt < ATTEMPTS =>
                {
                    attempt += 1;
                    self.ctx.note(&format!(
                        "the connection broke after {acknowledged} of {size} bytes; resuming ({attempt} of {ATTEMPTS})"
                    ));
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// The whole file in one frame.
    async fn whole(&mut self, size: u64) -> Result<Value, CliError> {
        let limit = u64::from(client::frame_limit());
        if size + self.name.len() as u64 + 2 > limit {
            return Err(CliError::invalid(format!(
                "{} is over {} and does not go into one frame",
                self.path.display(),
                value::human_bytes(limit)
            ))
            .hint("leave --no-stream away"));
        }
        let data = std::fs::read(self.path).map_err(|e| CliError::io(self.path.display(), &e))?;
        let size = data.len() as u64;
        let spinner = self.ctx.spinner(&format!("sending {}", safe(self.name)));
        self.began = Instant::now();
        let dialled = self.reach.dial(DATA_EXCHANGE, DIAL).await;
        let mut stream = dialled.map_err(|fault| self.explain(FileError::Dial(fault)))?;
        let content = Content::file(self.name, data);
        let sent = client::send_message(&mut stream, content, None, self.patience).await;
        drop(spinner);
        match sent {
            Ok(sent) => Ok(self.report(FileSent::Whole { size, ack: sent.ack })),
            Err(error) => Err(self.explain(FileError::Whole(error))),
        }
    }

    fn report(&self, sent: FileSent) -> Value {
        let elapsed = self.began.elapsed();
        let mut data = json!({
            "destination": self.reach.peer.addr.to_string(),
            "filename": self.name,
            "elapsed_ms": elapsed.as_millis() as u64,
        });
        let rate = |bytes| round2(mbit_per_second(bytes, elapsed));
        match sent {
            FileSent::Streamed { transferred, size, sha256 } => {
                data["bytes"] = json!(size);
                data["bytes_resumed"] = json!(transferred.resumed);
                data["bytes_sent"] = json!(transferred.sent);
                data["sha256"] = json!(pilot_proto::service::hex(&sha256));
                data["throughput_mbps"] = json!(rate(transferred.sent));
                data["transport"] = json!("filestream");
                data["verified"] = json!(true);
            }
            FileSent::Whole { size, ack } => {
                data["ack"] = json!(ack);
                data["bytes"] = json!(size);
                data["throughput_mbps"] = json!(rate(size));
            }
        }
        data
    }

    fn explain(&self, error: FileError<DialFault>) -> CliError {
        let addr = self.reach.peer.addr;
        let late = || {
            CliError::timeout(format!(
                "send-file timed out waiting for ACK from {addr} after {}",
                go_duration(self.patience)
            ))
            .hint("send it again to resume; wait longer with --timeout")
        };
        match error {
            FileError::Read { path, error } => CliError::io(path, &error),
            FileError::Dial(fault) => self
                .reach
                .explain(&fault, &format!("cannot connect to {addr} (data exchange port {DATA_EXCHANGE})")),
            FileError::Transfer(TransferError::TimedOut { .. }) | FileError::Whole(SendError::TimedOut) => {
                late()
            }
            FileError::Transfer(TransferError::Refused(text))
            | FileError::Whole(SendError::Refused(text)) => {
                CliError::internal(format!("receiver rejected file: {}", safe(&text)))
            }
            FileError::Transfer(TransferError::FileChanged) => CliError::new(
                Code::IoError,
                format!("{} changed while it was being sent", self.path.display()),
            ),
            FileError::Transfer(error) => {
                CliError::connection(format!("streamed send-file failed: {}", safe(&error.to_string())))
            }
            FileError::Whole(error) => {
                CliError::connection(format!("send-file failed: {}", safe(&error.to_string())))
            }
        }
    }
}
