//! `daemon stop` and `daemon status`.

use super::pid_file;
use crate::args::Args;
use crate::args::value::human_bytes;
use crate::error::{CliError, CliResult, Code, Exit};
use crate::lifecycle::lock::{self, PidLock};
use crate::lifecycle::stop::{Stopped, terminate};
use crate::output::{Ctx, Style};
use pilot_ipc::Client;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long `daemon status` waits for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// The daemon's process: who holds the pid file; else who serves the socket (a daemon of another make or home).
async fn process(home: &Path, socket: &Path) -> Result<Option<u32>, CliError> {
    let path = pid_file(home);
    let holder = PidLock::holder(&path).map_err(|e| CliError::io(format!("read {}", path.display()), &e))?;
    if holder.is_some() {
        return Ok(holder);
    }
    let peer = UnixStream::connect(socket).await.ok().and_then(|s| s.peer_cred().ok()).and_then(|c| c.pid());
    Ok(peer.and_then(|pid| u32::try_from(pid).ok()))
}

pub async fn stop(ctx: &Ctx, _: &Args) -> CliResult {
    let (home, socket) = (ctx.home(), ctx.socket()?);
    let path = pid_file(&home);
    let Some(pid) = process(&home, &socket).await? else {
        let stale = path.exists();
        let _ = fs::remove_file(&path);
        let message = match stale {
            true => "daemon is not running (cleaned up stale state)",
            false => "daemon is not running",
        };
        return Err(CliError::new(Code::NotRunning, message));
    };
    if lock::pid(pid).is_none() {
        return Err(CliError::internal("the daemon runs in another pid namespace")
            .hint("stop it from the container it was started in"));
    }
    let progress = ctx.spinner("stopping the daemon");
    let how = tokio::task::spawn_blocking(move || terminate(pid))
        .await
        .map_err(|e| CliError::internal(e.to_string()))?
        .map_err(|e| CliError::io(format!("stop process {pid}"), &e))?;
    drop(progress);
    let mut data = json!({"pid": pid});
    if how == Stopped::Forced {
        data["forced"] = json!(true);
        let _ = fs::remove_file(&socket);
    }
    if PidLock::holder(&path).is_ok_and(|holder| holder.is_none()) {
        // Left by a killed daemon, or by one of another make.
        let _ = fs::remove_file(&path);
    }
    let word = if how == Stopped::Forced { "force-stopped" } else { "stopped" };
    ctx.emit(data, |_| format!("daemon {word} (pid {pid})"))
}

pub async fn status(ctx: &Ctx, args: &Args) -> CliResult {
    let (home, socket) = (ctx.home(), ctx.socket()?);
    let info = timeout(ANSWER, ask(&socket)).await.unwrap_or_default();
    let pid = process(&home, &socket).await?;
    let exit = if info.is_some() { Exit::OK } else { Exit::NEGATIVE };
    if args.on("check") {
        return Ok(exit);
    }
    let mut data = json!({
        "pid": pid.unwrap_or(0),
        "pid_file": pid_file(&home),
        "responsive": info.is_some(),
        "running": pid.is_some() || info.is_some(),
        "socket": socket,
    });
    if let Some(info) = &info {
        for key in ["address", "connections", "hostname", "node_id", "peers", "uptime_secs"] {
            data[key] = info[key].clone();
        }
    }
    ctx.emit_as(
        data,
        |style| match (&info, pid) {
            (Some(info), pid) => running(style, info, pid),
            (None, Some(pid)) => {
                format!("{} pilot-daemon starting or not responding (pid {pid})", style.warn("●"))
            }
            (None, None) => "○ pilot-daemon stopped\n  start: pilotctl daemon start".to_owned(),
        },
        exit,
    )
}

async fn ask(socket: &Path) -> Option<Value> {
    Client::connect(socket).await.ok()?.info().await.ok()
}

fn running(style: &Style, info: &Value, pid: Option<u32>) -> String {
    let number = |key: &str| info[key].as_u64().unwrap_or(0);
    let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
    let up = number("uptime_secs");
    let mut out = format!(
        "{} pilot-daemon running\n  uptime {:02}:{:02}:{:02} · pid {} · {} connection(s)\n",
        style.green("●"),
        up / 3600,
        up / 60 % 60,
        up % 60,
        pid.unwrap_or(0),
        number("connections")
    );
    let name = match text("hostname").as_str() {
        "" => String::new(),
        name => format!(" · {name}"),
    };
    out.push_str(&format!("  node      {} · {}{name}\n", number("node_id"), text("address")));
    out.push_str(&format!(
        "  peers     {} ({} encrypted, {} via relay)\n",
        number("peers"),
        number("encrypted_peers"),
        number("relay_peer_count")
    ));
    out.push_str(&format!(
        "  traffic   ↑ {} · ↓ {}\n",
        human_bytes(number("bytes_sent")),
        human_bytes(number("bytes_recv"))
    ));
    let pending = number("handshake_pending_count");
    if pending > 0 {
        out.push_str(&format!("  {pending} pending handshake(s) — review with: pilotctl pending\n"));
    }
    for warning in info["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str(&format!("  {}\n", style.warn(&format!("warning: {warning}"))));
    }
    out
}
