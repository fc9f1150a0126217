//! `daemon start | stop | status`, and the daemon itself (spec 08 section 1.14).

mod flags;
mod registry;
mod run;
mod status;

use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Code};
use crate::lifecycle::detach::Launch;
use crate::lifecycle::lock::PidLock;
use crate::lifecycle::make_private_dir;
use crate::output::Ctx;
use flags::daemon_flags;
use pilot_daemon::config::{ConfigFile, Settings};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long `daemon start` waits for a registered daemon unless told otherwise.
const READY: Duration = Duration::from_secs(15);

/// The same without UDP, where more has to be connected.
const READY_COMPAT: Duration = Duration::from_secs(30);

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "daemon start",
        about: "start this machine's node",
        args: &[],
        flags: daemon_flags!(
            Flag::switch("foreground", "do not detach"),
            Flag::value("wait", "D", "how long to wait until it is registered (15s)")
        ),
        returns: "pid, node_id, address, hostname, tags, socket, log_file, transport, \
                  transport_auto?, proxy?, rendezvous?, warnings?",
        tier: Tier::Core,
        run: Run::Sync(start),
    },
    Spec {
        name: "daemon stop",
        about: "stop it",
        args: &[],
        flags: &[],
        returns: "pid, forced?",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(status::stop(ctx, args))),
    },
    Spec {
        name: "daemon status",
        about: "whether it runs, exit status 1 if not",
        args: &[],
        flags: &[Flag::switch("check", "say nothing, only the exit status")],
        returns: "running, responsive, pid, pid_file, socket, node_id?, address?, hostname?, peers?, connections?, \
                  uptime_secs?",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(status::status(ctx, args))),
    },
    Spec {
        name: "_daemon-run",
        about: "a node of a Pilot network",
        args: &[],
        flags: daemon_flags!(Flag::switch("version", "print the version")),
        returns: "",
        tier: Tier::Hidden,
        run: Run::Sync(run::run),
    },
];

/// `~/.pilot/pilot.pid`.
fn pid_file(home: &Path) -> PathBuf {
    home.join("pilot.pid")
}

/// `~/.pilot/pilot.log`.
fn log_file(home: &Path) -> PathBuf {
    home.join("pilot.log")
}

fn already_running(pid: u32) -> CliError {
    CliError::new(Code::AlreadyExists, format!("daemon is already running (pid {pid})"))
        .hint("stop it first with: pilotctl daemon stop")
}

/// Refuses a second daemon on one socket.
fn check_socket(socket: &Path) -> Result<(), CliError> {
    match UnixStream::connect(socket) {
        Ok(_) => Err(CliError::new(
            Code::AlreadyExists,
            format!("daemon is already running (socket {} is active)", socket.display()),
        )
        .hint(
            "stop it first with: pilotctl daemon stop; for a second node: --socket FILE and a home of its own \
             (PILOT_HOME=DIR)",
        )),
        Err(_) => Ok(()),
    }
}

/// The configuration file `--config` names, or the home's.
fn config_file(ctx: &Ctx, args: &Args) -> Result<ConfigFile, CliError> {
    let path = match args.value("config") {
        Some(path) if !Path::new(path).exists() => {
            return Err(CliError::not_found(format!("config file not found: {path}")));
        }
        Some(path) => PathBuf::from(path),
        None => ctx.home().join("config.json"),
    };
    ConfigFile::load(&path).map_err(|e| {
        CliError::invalid(e.to_string()).hint("mend the file, or move it away and run pilotctl init")
    })
}

fn invalid(error: pilot_daemon::config::SettingError) -> CliError {
    CliError::invalid(error.to_string())
}

fn start(ctx: &Ctx, args: &Args) -> CliResult {
    let compat = args.value("transport") == Some("compat");
    let wait = args.duration_or("wait", if compat { READY_COMPAT } else { READY })?;
    if args.on("foreground") {
        return run::run(ctx, args);
    }
    let file = config_file(ctx, args)?;
    let mut given = flags::settings(args);
    let settings = Settings::new(given.clone(), ctx.env(), &file);
    // Everything is checked before anything is started.
    let config = settings.daemon("", None).map_err(invalid)?;
    for notice in settings.notices() {
        ctx.warn(&notice);
    }
    let home = ctx.home();
    make_private_dir(&home)?;
    let pid_path = pid_file(&home);
    let holder = PidLock::holder(&pid_path);
    if let Some(pid) = holder.map_err(|e| CliError::io(format!("read {}", pid_path.display()), &e))? {
        return Err(already_running(pid));
    }
    check_socket(&config.socket)?;
    let choice = registry::choose(ctx, &settings)?;
    choice.explain(ctx);
    choice.remember(&file)?;
    given.insert("registry", choice.registry.clone());
    given.extend(choice.beacon.clone().map(|beacon| ("beacon", beacon)));
    if let Some(fingerprint) = choice.local.as_ref().and_then(|l| l.state.registry_fingerprint().cloned()) {
        given.insert("registry_fingerprint", fingerprint);
    }
    let (mut flags, env) = flags::for_child(&given);
    flags.extend(args.value("config").map(|path| format!("--config={path}")));
    let log = log_file(&home);
    let launch = Launch { name: "pilot-daemon", args: flags, env, log: &log, wait };
    let progress = ctx.spinner("starting the daemon");
    let launched = launch.start();
    drop(progress);
    let (pid, mut data) = launched.map_err(|error| match error.code {
        Code::Timeout => error.hint(format!(
            "does the registry {} answer? The log says more: {}",
            choice.registry,
            log.display()
        )),
        _ => error,
    })?;
    data["pid"] = json!(pid);
    data["socket"] = json!(config.socket);
    data["log_file"] = json!(log);
    if let Some(local) = &choice.local {
        data["rendezvous"] = local.state.to_json();
        data["rendezvous"]["pid"] = json!(local.pid);
    }
    for warning in data["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        ctx.note(&format!("warning: {warning}"));
    }
    let text = running_text(&data, pid, &config.socket, &log);
    ctx.emit(data, |_| text)
}

fn running_text(data: &Value, pid: u32, socket: &Path, log: &Path) -> String {
    let field = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    let tags: Vec<&str> = data["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = format!("Daemon running (pid {pid})\n  Address:  {}\n", field("address"));
    if !field("hostname").is_empty() {
        out.push_str(&format!("  Hostname: {}\n", field("hostname")));
    }
    if !tags.is_empty() {
        out.push_str(&format!("  Tags:     {}\n", tags.join(", ")));
    }
    let auto = if data["transport_auto"] == true { " (auto)" } else { "" };
    out.push_str(&format!("  Network:  {}{auto}\n", field("transport")));
    if !field("proxy").is_empty() {
        out.push_str(&format!("  Proxy:    {}\n", field("proxy")));
    }
    out.push_str(&format!("  Socket:   {}\n  Logs:     {}", socket.display(), log.display()));
    out
}
