//! `ping` and `traceroute`: round trips through a peer's echo service (spec 06 section 3).

use super::reach::{DialFault, Reach, go_duration};
use super::text::{millis, plural, safe, short_time};
use super::way;
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Exit};
use crate::output::{Ctx, Style};
use bytes::Bytes;
use pilot_ipc::IpcStream;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The echo service.
pub const ECHO_PORT: u16 = 7;
/// Pause between probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Default of `ping --timeout`, besides the pauses between probes.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Default of `traceroute --timeout`.
const TRACE_TIMEOUT: Duration = Duration::from_secs(30);
/// Round trips `traceroute` measures.
const TRACE_PROBES: usize = 3;
/// Most probes: results are kept until the end.
const MAX_COUNT: u64 = 100_000;
/// First bytes of a probe the echo service stamps.
const STAMP: &[u8; 4] = b"TRCE";

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "ping",
        about: "is a peer there, how far away, and on which path",
        args: &["<peer>"],
        flags: &[
            Flag::value("count", "N", "probes (4)"),
            Flag::value("timeout", "D", "limit for the whole command (5s plus the pauses)"),
            Flag::value("interval", "D", "pause between probes (1s)"),
            Flag::switch("reuse-conn", "one stream for all probes instead of one each"),
            Flag::switch("trace", "tell where the time goes"),
            Flag::switch("no-auto-handshake", "do not ask about trust first"),
        ],
        returns: "target, to, timeout, results[]{seq, bytes, rtt_ms, path | error}, summary{sent, received, min_ms, \
                  avg_ms, max_ms}, path, path_kind, path_since, path_rtt_ms, path_why, mtu",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(ping(ctx, args))),
    },
    Spec {
        name: "traceroute",
        about: "how a peer is reached: directly or through a relay, and how fast",
        args: &["<peer>"],
        flags: &[
            Flag::value("timeout", "D", "limit (30s)"),
            Flag::switch("no-auto-handshake", "do not ask about trust first"),
        ],
        returns: "target, path, setup_ms, rtt_samples[]{bytes, rtt_ms}",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(traceroute(ctx, args))),
    },
];

/// One answered probe.
#[derive(Debug, Clone, Copy, Default)]
struct Reply {
    bytes: usize,
    total: Duration,
    dial: Duration,
    echo: Duration,
    /// Milliseconds to the peer and back, by both clocks; only from a peer that stamps probes.
    to_server_ms: Option<f64>,
    from_server_ms: Option<f64>,
}

/// Why a probe has no answer.
#[derive(Debug)]
enum Lost {
    Dial(DialFault),
    Echo(&'static str),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Dial(fault) => write!(f, "dial: {fault}"),
            Lost::Echo(why) => write!(f, "echo: {why}"),
        }
    }
}

struct Labelled {
    label: &'static str,
    took: Duration,
}

async fn ping(ctx: &Ctx, args: &Args) -> CliResult {
    let count = args.int("count", 4)?;
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(CliError::invalid(format!("--count must be 1 to {MAX_COUNT}, got {count}")));
    }
    let interval = args.duration_or("interval", INTERVAL)?;
    let pauses = interval.saturating_mul(u32::try_from(count - 1).unwrap_or(u32::MAX));
    let limit = args.duration_or("timeout", TIMEOUT.saturating_add(pauses))?;
    let reuse = args.on("reuse-conn") || ctx.env().get("PILOT_PING_REUSE_CONN").is_some();
    let trace = args.on("trace") || ctx.env().get("PILOTCTL_TRACE_TIME").is_some();
    let began = Instant::now();
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let setup = Labelled { label: "connect_resolve_gate", took: began.elapsed() };
    let addr = reach.peer.addr;
    if !ctx.json {
        ctx.line(&format!("PING {addr}"))?;
    }

    let deadline = Instant::now() + limit;
    let mut kept: Option<IpcStream> = None;
    let mut results = Vec::new();
    let mut rtts = Vec::new();
    let mut cut_short = false;
    let mut last_fault = None;
    for seq in 0..count {
        if seq > 0 {
            tokio::time::sleep(interval.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            cut_short = true;
            break;
        }
        let reused = kept.is_some();
        let spinner = ctx.spinner(&format!("waiting for probe {seq}"));
        let outcome = probe(&reach, &mut kept, seq, trace, left).await;
        drop(spinner);
        if !reuse || outcome.is_err() {
            kept = None;
        }
        let path = reach.path().await;
        let mut result = json!({"seq": seq});
        match &outcome {
            Ok(reply) => {
                rtts.push(reply.total);
                result["bytes"] = json!(reply.bytes);
                result["rtt_ms"] = json!(millis(reply.total));
                if reused {
                    result["reused"] = json!(true);
                }
                if trace {
                    result["dial_ms"] = json!(millis(reply.dial));
                    result["echo_ms"] = json!(millis(reply.echo));
                    result["to_server_ms"] = json!(reply.to_server_ms);
                    result["from_server_ms"] = json!(reply.from_server_ms);
                }
                if let Some(path) = path {
                    result["path"] = json!(path);
                }
            }
            Err(lost) => result["error"] = json!(lost.to_string()),
        }
        if !ctx.json {
            ctx.line(&probe_text(&ctx.style, seq, &addr.to_string(), &outcome, path, trace))?;
        }
        results.push(result);
        if let Err(Lost::Dial(fault)) = outcome {
            let refused = matches!(fault, DialFault::Hidden(_)) && reach.trusted == Some(false);
            last_fault = Some(fault);
            if refused {
                // The next probe would be refused alike: it is a matter of trust, not of the path.
                break;
            }
        }
    }
    if let (Some(fault), true) = (&last_fault, rtts.is_empty()) {
        let error = reach.explain(fault, &format!("cannot ping {addr}"));
        if matches!(fault, DialFault::Hidden(_)) && reach.trusted == Some(false) {
            return Err(error);
        }
        if let Some(hint) = error.hint {
            ctx.note(&format!("hint:  {hint}"));
        }
    }
    let way = reach.way().await;
    reach.client.flush().await;

    let sent = results.len();
    let summary = summary(sent, &rtts);
    let mut data = json!({
        "target": addr.to_string(), "to": addr.to_string(), "timeout": cut_short, "results": results,
        "summary": summary,
    });
    if trace {
        data["trace"] = json!([{"label": setup.label, "ms": millis(setup.took)}]);
    }
    if let (Some(way), Some(data)) = (&way, data.as_object_mut()) {
        data.extend(way::keys(way));
    }
    let exit = if rtts.is_empty() { Exit::NEGATIVE } else { Exit::OK };
    let text = |style: &Style| {
        let mut text = summary_text(sent, count, &rtts, cut_short.then_some(limit));
        if let Some(way) = &way {
            let _ = write!(text, "\n{} {}", style.dim("path"), way::line(way));
        }
        text
    };
    ctx.emit_as(data, text, exit)
}

fn summary(sent: usize, rtts: &[Duration]) -> Value {
    let mut summary = json!({"sent": sent, "received": rtts.len()});
    if let Some((min, avg, max)) = spread(rtts) {
        summary["min_ms"] = json!(millis(min));
        summary["avg_ms"] = json!(millis(avg));
        summary["max_ms"] = json!(millis(max));
    }
    summary
}

fn spread(rtts: &[Duration]) -> Option<(Duration, Duration, Duration)> {
    let (min, max) = (rtts.iter().min()?, rtts.iter().max()?);
    let sum: Duration = rtts.iter().sum();
    Some((*min, sum / u32::try_from(rtts.len()).ok()?, *max))
}

fn probe_text(
    style: &Style,
    seq: u64,
    addr: &str,
    outcome: &Result<Reply, Lost>,
    path: Option<&str>,
    trace: bool,
) -> String {
    match outcome {
        Ok(reply) => {
            let mut line = format!("{} reply from {addr} · {}", style.green("✓"), short_time(reply.total));
            if let Some(path) = path {
                let _ = write!(line, " · {path}");
            }
            if trace {
                let _ = write!(line, "  [dial={} echo={}", short_time(reply.dial), short_time(reply.echo));
                if let (Some(to), Some(from)) = (reply.to_server_ms, reply.from_server_ms) {
                    let _ = write!(line, " there={to:.2}ms back={from:.2}ms by both clocks");
                }
                line.push(']');
            }
            line
        }
        Err(lost) => format!("{} no reply to probe {seq}: {}", style.warn("✗"), safe(&lost.to_string())),
    }
}

fn summary_text(sent: usize, wanted: u64, rtts: &[Duration], cut: Option<Duration>) -> String {
    let lost = sent - rtts.len();
    let mut line = format!(
        "{sent} probe{}, {} repl{}, {}% lost",
        plural(sent as u64),
        rtts.len(),
        if rtts.len() == 1 { "y" } else { "ies" },
        (lost * 100).checked_div(sent).unwrap_or(0)
    );
    if let Some((min, avg, max)) = spread(rtts) {
        let _ = write!(line, " · min/avg/max {}/{}/{}", short_time(min), short_time(avg), short_time(max));
    }
    if let Some(limit) = cut {
        let _ = write!(line, " · timeout: {sent} of {wanted} probes sent within {}", go_duration(limit));
    }
    line
}

fn unix_nanos() -> u64 {
    // Fits until the year 2554.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// One probe on `kept`, or on a fresh stream that is left in `kept`.
async fn probe(
    reach: &Reach<'_>,
    kept: &mut Option<IpcStream>,
    seq: u64,
    trace: bool,
    limit: Duration,
) -> Result<Reply, Lost> {
    let began = Instant::now();
    let stream = match kept {
        Some(stream) => stream,
        None => kept.insert(reach.dial(ECHO_PORT, limit).await.map_err(Lost::Dial)?),
    };
    let dial = began.elapsed();
    let sent_at = unix_nanos();
    let payload = match trace {
        true => [STAMP.as_slice(), &sent_at.to_be_bytes()].concat(),
        false => format!("ping-{seq}").into_bytes(),
    };
    let left = limit.saturating_sub(dial);
    let answer = match tokio::time::timeout(left, round_trip(stream, &payload, trace)).await {
        Ok(answer) => answer.map_err(Lost::Echo)?,
        Err(_) => return Err(Lost::Echo("connected, but no answer in time")),
    };
    let total = began.elapsed();
    let mut reply = Reply { bytes: answer.len(), total, dial, echo: total - dial, ..Reply::default() };
    if let Some(stamp) = answer.get(12..20).and_then(|s| <[u8; 8]>::try_from(s).ok()) {
        let ms = |from: u64, to: u64| (i128::from(to) - i128::from(from)) as f64 / 1e6;
        let received_at = u64::from_be_bytes(stamp);
        reply.to_server_ms = Some(ms(sent_at, received_at));
        reply.from_server_ms = Some(ms(received_at, unix_nanos()));
    }
    Ok(reply)
}

/// Sends a payload and reads its echo. A stamped probe comes back with 20 bytes, or unchanged from old peers.
async fn round_trip(stream: &mut IpcStream, payload: &[u8], stamped: bool) -> Result<Vec<u8>, &'static str> {
    stream.write(Bytes::copy_from_slice(payload)).await.map_err(|_| "the daemon went away")?;
    let mut answer: Vec<u8> = Vec::with_capacity(payload.len());
    while answer.len() < payload.len() {
        let part = stream.read().await.ok_or("the peer closed the stream without answering")?;
        answer.extend_from_slice(&part);
    }
    let same = answer == payload || (stamped && answer.len() == 20 && answer[..12] == *payload);
    if same { Ok(answer) } else { Err("the answer is not what was sent") }
}

async fn traceroute(ctx: &Ctx, args: &Args) -> CliResult {
    let limit = args.duration_or("timeout", TRACE_TIMEOUT)?;
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let addr = reach.peer.addr;
    let spinner = ctx.spinner(&format!("measuring {addr}"));
    let began = Instant::now();
    let mut stream = reach
        .dial(ECHO_PORT, limit)
        .await
        .map_err(|fault| reach.explain(&fault, &format!("cannot trace {addr}")))?;
    let setup = began.elapsed();
    let mut samples = Vec::new();
    let mut rtts = Vec::new();
    for seq in 0..TRACE_PROBES {
        let payload = format!("trace-{seq}");
        let sent = Instant::now();
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, round_trip(&mut stream, payload.as_bytes(), false)).await {
            Ok(Ok(answer)) => {
                rtts.push(sent.elapsed());
                samples.push(json!({"bytes": answer.len(), "rtt_ms": millis(sent.elapsed())}));
            }
            Ok(Err(why)) => return Err(CliError::connection(format!("cannot trace {addr}: echo: {why}"))),
            Err(_) => {
                return Err(CliError::timeout(format!("no echo from {addr} within {}", go_duration(limit))));
            }
        }
    }
    let path = reach.path().await;
    drop(spinner);
    drop(stream);
    reach.client.flush().await;
    let data = json!({
        "target": addr.to_string(), "setup_ms": millis(setup), "rtt_samples": samples, "path": path,
    });
    ctx.emit(data, |style| {
        let how = match path {
            Some("relay") => "1  the beacon's relay\n2",
            _ => "1",
        };
        let mut out = format!("tunnel to {}\n{how}  {addr}", style.cyan(&addr.to_string()));
        for rtt in &rtts {
            let _ = write!(out, "  {}", short_time(*rtt));
        }
        let _ = write!(out, "\nset-up {} · path {}\n", short_time(setup), path.unwrap_or("unknown"));
        out.push_str(
            &style.dim("the routers underneath are not shown; for them use the system's traceroute"),
        );
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_time_and_path() {
        let reply = Reply { bytes: 6, total: Duration::from_micros(38_400), ..Reply::default() };
        let line = probe_text(&Style::default(), 0, "0:0000.0000.002A", &Ok(reply), Some("direct"), false);
        assert_eq!(line, "✓ reply from 0:0000.0000.002A · 38ms · direct");
    }

    #[test]
    fn a_lost_probe_says_why() {
        let lost = Err(Lost::Dial(DialFault::NoAnswer("dial timeout".to_owned())));
        let line = probe_text(&Style::default(), 3, "0:0000.0000.002A", &lost, None, false);
        assert_eq!(line, "✗ no reply to probe 3: dial: dial timeout");
    }

    #[test]
    fn the_summary_counts_and_spreads() {
        let rtts = [Duration::from_millis(10), Duration::from_millis(30)];
        assert_eq!(
            summary_text(3, 4, &rtts, Some(Duration::from_secs(2))),
            "3 probes, 2 replies, 33% lost · min/avg/max 10ms/20ms/30ms · timeout: 3 of 4 probes sent within 2s"
        );
        assert_eq!(summary_text(1, 1, &[], None), "1 probe, 0 replies, 100% lost");
        assert_eq!(summary(1, &rtts[..1])["avg_ms"], 10.0);
    }
}
