//! A stream at a given rate through two daemons.

use crate::Outcome;
use crate::options::Options;
use bytes::Bytes;
use pilot_ipc::Client;
use pilot_proto::Addr;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, interval, sleep_until, timeout_at};

/// Writes per second.
const WRITES: u64 = 200;
/// Wait for the other side to begin.
const PATIENCE: Duration = Duration::from_secs(20);

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Takes one stream on `--port` of the daemon at `--socket` and counts what arrives in `--secs` from its first byte.
pub async fn receive(options: &Options) -> Outcome {
    let client = Client::connect(options.get::<String>("socket")?).await.map_err(text)?;
    let mut listener = client.listen(options.get("port")?).await.map_err(text)?;
    eprintln!("ready");
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let mut stream = accepted.map_err(text)?.ok_or("the daemon is gone")?;
    let (mut bytes, mut end) = (0u64, Instant::now() + PATIENCE);
    let limit = options.secs()?;
    let mut began = None;
    while let Ok(Some(data)) = timeout_at(end, stream.read()).await {
        if began.is_none() {
            let now = Instant::now();
            (began, end) = (Some(now), now + limit);
        }
        bytes += data.len() as u64;
    }
    sleep_until(end).await;
    Ok(json!({"bytes": bytes, "mbit_s": bytes as f64 * 8e-6 / limit.as_secs_f64()}))
}

/// Opens a stream from the daemon at `--socket` to `--port` of `--to` and offers `--mbit` for `--secs`.
pub async fn send(options: &Options) -> Outcome {
    let client = Client::connect(options.get::<String>("socket")?).await.map_err(text)?;
    let to: Addr = options.get("to")?;
    let began = Instant::now();
    let mut stream = client.dial_within(to, options.get("port")?, PATIENCE).await.map_err(text)?;
    let dialled = began.elapsed();
    let piece = Bytes::from(vec![0x5A; (options.get::<u64>("mbit")? * 1_000_000 / 8 / WRITES) as usize]);
    let end = Instant::now() + options.secs()?;
    let mut tick = interval(Duration::from_secs(1) / WRITES as u32);
    let mut offered = 0u64;
    // A tick that was missed because a write waited is made up for: what is offered is a rate.
    while Instant::now() < end {
        tick.tick().await;
        match timeout_at(end, stream.write(piece.clone())).await {
            Ok(written) => written.map_err(text)?,
            Err(_) => break,
        }
        offered += piece.len() as u64;
    }
    stream.close();
    client.flush().await;
    Ok(json!({"bytes": offered, "dial_ms": dialled.as_secs_f64() * 1e3}))
}
