//! `proxy show | set-credentials | clear`: names and passwords for HTTP proxies.

use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult};
use crate::lifecycle::make_private_dir;
use crate::output::Ctx;
use pilot::{Credentials, ProxyUrl};
use pilot_proto::crypto::Secret;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

/// Longest password read, bytes.
const MAX_PASSWORD: u64 = 4096;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "proxy show",
        about: "HTTP proxies there are credentials for",
        args: &[],
        flags: &[],
        returns: "proxies[]{proxy, user}, file",
        tier: Tier::Core,
        run: Run::Sync(show),
    },
    Spec {
        name: "proxy set-credentials",
        about: "keep name and password for an HTTP proxy; the password comes from stdin or a prompt",
        args: &["<host:port>"],
        flags: &[Flag::value("user", "NAME", "the name")],
        returns: "proxy, user, file",
        tier: Tier::Core,
        run: Run::Sync(set),
    },
    Spec {
        name: "proxy clear",
        about: "forget name and password for an HTTP proxy",
        args: &["<host:port>"],
        flags: &[],
        returns: "proxy, cleared",
        tier: Tier::Core,
        run: Run::Sync(clear),
    },
];

fn load(ctx: &Ctx) -> Result<(PathBuf, Credentials), CliError> {
    let path = ctx.env().proxy_credentials();
    let kept = Credentials::load(&path).map_err(CliError::invalid)?;
    Ok((path, kept))
}

/// The proxy's `host:port`, of that or of a URL. A password there is in the shell's history already, and in the process list.
fn authority(text: &str) -> Result<String, CliError> {
    if text.contains('@') {
        return Err(CliError::invalid("the proxy must be named without user and password")
            .hint("pilotctl proxy set-credentials HOST:PORT --user NAME, with the password on stdin"));
    }
    let url: ProxyUrl = text.parse().map_err(CliError::invalid)?;
    Ok(url.authority())
}

fn show(ctx: &Ctx, _: &Args) -> CliResult {
    let (path, kept) = load(ctx)?;
    let proxies: Vec<Value> =
        kept.list().map(|(proxy, user)| json!({"proxy": proxy, "user": user})).collect();
    let lines: Vec<String> = kept.list().map(|(proxy, user)| format!("{proxy}  {user}")).collect();
    ctx.emit(json!({"proxies": proxies, "file": path}), |style| match lines.is_empty() {
        true => format!(
            "no credentials for proxies\n{}",
            style.dim("keep some with: pilotctl proxy set-credentials HOST:PORT --user NAME")
        ),
        false => lines.join("\n"),
    })
}

fn set(ctx: &Ctx, args: &Args) -> CliResult {
    let proxy = authority(args.required(0))?;
    let user = args.value("user").filter(|user| !user.is_empty() && !user.contains(':'));
    let user = user.ok_or_else(|| CliError::invalid("--user NAME is needed, without a colon"))?;
    let (path, mut kept) = load(ctx)?;
    let password = password(&proxy, user)?;
    kept.set(&proxy, user, &password);
    make_private_dir(&ctx.home())?;
    kept.save(&path).map_err(CliError::internal)?;
    let data = json!({"proxy": proxy, "user": user, "file": path});
    ctx.emit(data, |_| format!("kept the password of {user} for the proxy {proxy}"))
}

fn clear(ctx: &Ctx, args: &Args) -> CliResult {
    let proxy = authority(args.required(0))?;
    let (path, mut kept) = load(ctx)?;
    if !kept.remove(&proxy) {
        return Err(CliError::not_found(format!("no credentials for the proxy {proxy}"))
            .hint("list them with: pilotctl proxy show"));
    }
    kept.save(&path).map_err(CliError::internal)?;
    ctx.emit(json!({"proxy": proxy, "cleared": true}), |_| format!("forgot the credentials for {proxy}"))
}

/// One line of stdin; from a terminal it is asked for and not shown.
fn password(proxy: &str, user: &str) -> Result<Secret, CliError> {
    let stdin = std::io::stdin();
    let io = |e: std::io::Error| CliError::io("read the password", &e);
    let mut text = String::new();
    if stdin.is_terminal() {
        eprint!("Password of {user} for {proxy}: ");
        let _ = std::io::stderr().flush();
        let before = tcgetattr(&stdin).map_err(|e| io(e.into()))?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|e| io(e.into()))?;
        let read = stdin.read_line(&mut text);
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &before);
        eprintln!();
        read.map_err(io)?;
    } else {
        stdin.lock().take(MAX_PASSWORD).read_to_string(&mut text).map_err(io)?;
    }
    let password = text.lines().next().unwrap_or_default();
    match password.is_empty() {
        false => Ok(Secret::from(password)),
        true => Err(CliError::invalid("no password on stdin")
            .hint("pilotctl proxy set-credentials HOST:PORT --user NAME < password-file")),
    }
}
