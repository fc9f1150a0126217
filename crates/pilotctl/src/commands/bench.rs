//! `bench`: how fast bytes go to a peer's echo service and back.

use super::ping::ECHO_PORT;
use super::reach::{Reach, go_duration};
use super::text::{mib_per_second, round2, short_time};
use crate::args::{Args, Flag, Run, Spec, Tier, value};
use crate::error::{CliError, CliResult, Exit};
use crate::output::{Ctx, Progress};
use bytes::Bytes;
use pilot_ipc::{IpcReader, IpcWriter};
use serde_json::json;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Default of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Limit of opening the stream, within `--timeout`.
const DIAL: Duration = Duration::from_secs(30);
/// Largest size, MiB.
const MAX_MIB: f64 = 4096.0;
/// Bytes per write to the daemon.
const WRITE: usize = 512 * 1024;
/// The progress bar moves every so many bytes.
const BAR_STEP: u64 = 1 << 20;

pub const COMMANDS: &[Spec] = &[Spec {
    name: "bench",
    about: "measure throughput to a peer and back",
    args: &["<peer>", "[size_mb]"],
    flags: &[
        Flag::value("timeout", "D", "limit (2m)"),
        Flag::switch("no-auto-handshake", "do not ask about trust first"),
    ],
    returns: "target, complete, intact, path, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, \
              send_mbps, total_mbps (MiB per second)",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(bench(ctx, args))),
}];

/// Period of the bytes sent. It shares no factor with common segment sizes, so that bytes delivered in the wrong
/// place do not compare equal.
const PERIOD: usize = WRITE + 1;

/// The repeating bytes, long enough for one write from any place within a period.
fn pattern() -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let mut block: Vec<u8> = next.take(PERIOD).collect();
    block.extend_from_within(..WRITE);
    block.into()
}

/// Size in bytes of a size in MiB as typed.
fn parse_size(text: &str) -> Result<u64, CliError> {
    let size: f64 = text.parse().unwrap_or(f64::NAN);
    if !(size > 0.0 && size.is_finite()) {
        return Err(CliError::invalid(format!("size must be a positive number of MB, got {text:?}")));
    }
    if size > MAX_MIB {
        return Err(CliError::invalid(format!("size {text} MB exceeds maximum of {MAX_MIB} MB")));
    }
    Ok(((size * f64::from(1 << 20)) as u64).max(1))
}

#[derive(Debug, Default)]
struct Tally {
    sent: Cell<u64>,
    received: Cell<u64>,
    send_time: Cell<Option<Duration>>,
}

async fn bench(ctx: &Ctx, args: &Args) -> CliResult {
    let size = parse_size(args.pos(1).unwrap_or("1"))?;
    let limit = args.duration_or("timeout", TIMEOUT)?;
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let addr = reach.peer.addr;
    let spinner = ctx.spinner(&format!("connecting to {addr}"));
    let stream = reach
        .dial(ECHO_PORT, DIAL.min(limit))
        .await
        .map_err(|fault| reach.explain(&fault, &format!("cannot connect to {addr} port {ECHO_PORT}")))?;
    drop(spinner);
    let bar = ctx.progress_bytes("echo", size);
    let tally = Tally::default();
    let block = pattern();
    let (mut reader, mut writer) = stream.split();
    let began = Instant::now();
    let both = async {
        tokio::try_join!(
            send(&mut writer, &block, size, began, &tally),
            receive(&mut reader, &block, size, &tally, &bar)
        )
    };
    let outcome = tokio::time::timeout(limit, both).await;
    let total = began.elapsed();
    drop(bar);
    let failure = match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some(format!("not done within {}", go_duration(limit))),
    };
    writer.close();
    let path = reach.path().await;
    reach.client.flush().await;

    let (sent, received) = (tally.sent.get(), tally.received.get());
    let send_time = tally.send_time.get().unwrap_or(total);
    let rate = |bytes, time| round2(mib_per_second(bytes, time));
    let complete = failure.is_none();
    let mut data = json!({
        "target": addr.to_string(),
        "complete": complete,
        "intact": failure.as_deref() != Some(CORRUPT),
        "path": path,
        "sent_bytes": sent,
        "recv_bytes": received,
        "send_duration_ms": send_time.as_millis() as u64,
        "total_duration_ms": total.as_millis() as u64,
        "send_mbps": rate(sent, send_time),
        "total_mbps": rate(received, total),
    });
    if let Some(why) = &failure {
        data["error"] = json!(why);
    }
    let exit = if complete { Exit::OK } else { Exit::NEGATIVE };
    ctx.emit_as(
        data,
        |style| {
            let mut out = format!(
                "BENCH {addr} · {} echo · {}\n  sent    {} in {} · {:.1} MB/s\n  echoed  {} in {} · {:.1} MB/s",
                value::human_bytes(size),
                path.unwrap_or("path unknown"),
                value::human_bytes(sent),
                short_time(send_time),
                rate(sent, send_time),
                value::human_bytes(received),
                short_time(total),
                rate(received, total),
            );
            if let Some(why) = &failure {
                out.push_str(&style.warn(&format!("\n  incomplete: {why}")));
            }
            out
        },
        exit,
    )
}

const CORRUPT: &str = "what came back is not what was sent";

async fn send(
    writer: &mut IpcWriter,
    block: &Bytes,
    size: u64,
    began: Instant,
    tally: &Tally,
) -> Result<(), String> {
    let mut left = size;
    let mut at = 0;
    while left > 0 {
        let length = WRITE.min(usize::try_from(left).unwrap_or(WRITE));
        writer.write(block.slice(at..at + length)).await.map_err(|e| e.to_string())?;
        at = (at + length) % PERIOD;
        left -= length as u64;
        tally.sent.set(size - left);
    }
    writer.flush().await;
    tally.send_time.set(Some(began.elapsed()));
    Ok(())
}

async fn receive(
    reader: &mut IpcReader,
    block: &Bytes,
    size: u64,
    tally: &Tally,
    bar: &Progress,
) -> Result<(), String> {
    let mut received = 0;
    let mut at = 0;
    let mut shown = 0;
    while received < size {
        let Some(part) = reader.read().await else {
            return Err(format!("the peer closed the stream after {received} of {size} bytes"));
        };
        let mut rest = &part[..];
        while !rest.is_empty() {
            let length = rest.len().min(block.len() - at);
            if rest[..length] != block[at..at + length] {
                return Err(CORRUPT.to_owned());
            }
            rest = &rest[length..];
            at = (at + length) % PERIOD;
        }
        received += part.len() as u64;
        tally.received.set(received);
        if received - shown >= BAR_STEP {
            bar.set(received);
            shown = received;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mebibytes_and_may_be_fractions() {
        assert_eq!(parse_size("10"), Ok(10 << 20));
        assert_eq!(parse_size("0.5"), Ok(1 << 19));
        assert_eq!(parse_size("4096"), Ok(4096 << 20));
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_reference_texts() {
        let message = |text| parse_size(text).unwrap_err().message;
        assert_eq!(message("0"), "size must be a positive number of MB, got \"0\"");
        assert_eq!(message("nan"), "size must be a positive number of MB, got \"nan\"");
        assert_eq!(message("x"), "size must be a positive number of MB, got \"x\"");
        assert_eq!(message("5000"), "size 5000 MB exceeds maximum of 4096 MB");
    }
}
