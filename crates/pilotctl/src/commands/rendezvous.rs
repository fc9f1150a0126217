//! `rendezvous start | stop | status`, and the process itself.

mod counters;

use self::counters::{Counted, in_words};
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Code, Exit};
use crate::lifecycle::detach::{Detached, Launch};
use crate::lifecycle::lock::PidLock;
use crate::lifecycle::rendezvous::{Place, READY, State};
use crate::lifecycle::stop::{self, Stopped};
use crate::lifecycle::{logfile, make_private_dir};
use crate::output::Ctx;
use pilot_daemon::config::{LogFormat, LogSettings};
use pilot_rendezvous::{Config, ProbePort, Server, StartError, StoreConfig, Tls, TlsListener};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Size at which the log is put aside, bytes.
const LOG_MAX_BYTES: u64 = 50 << 20;
const LOG_BACKUPS: u64 = 3;
/// The counters that `rendezvous status` shows are this old at most, if they change.
const COUNTERS_EVERY: Duration = Duration::from_secs(5);

macro_rules! with_run_flags {
    ($($more:expr),*) => {
        &[
            $($more,)*
            Flag::value("registry-addr", "HOST:PORT", "TCP address of the registry ([::]:9000)"),
            Flag::value("beacon-addr", "HOST:PORT", "UDP address of the beacon ([::]:9001)"),
            Flag::value("beacon-probe-port", "PORT", "second UDP port of the beacon, or off (the one after the beacon's)"),
            Flag::switch("free-ports", "take free ports where the wanted ones are taken"),
            STORE,
            Flag::switch("tls", "serve TLS with a certificate of its own, or the one given"),
            Flag::value("tls-listen", "HOST:PORT", "one more TCP address, always TLS: registry and compat transport (:443)"),
            Flag::value("tls-cert", "FILE", "certificate chain, PEM"),
            Flag::value("tls-key", "FILE", "private key, PEM"),
            Flag::value("advertise-compat", "URL", "wss:// URL of the compat transport behind a reverse proxy"),
            Flag::value("admin-token", "T", "token for network administration (PILOT_ADMIN_TOKEN)"),
            Flag::value("log-level", "L", "trace, debug, info, warn or error (info)"),
            Flag::value("log-format", "F", "text or json (text)"),
        ]
    };
}

const STORE: Flag =
    Flag::value("store", "FILE", "where the directory is kept ($HOME/.pilot/rendezvous/rendezvous.db)");

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "rendezvous start",
        about: "start a registry and beacon",
        args: &[],
        flags: with_run_flags!(Flag::switch("foreground", "do not detach")),
        returns: "pid, registry_addr, beacon_addr, beacon_probe_addr?, tls_addr?, store, log_file, tls_fingerprint?",
        tier: Tier::Core,
        run: Run::Sync(start),
    },
    Spec {
        name: "rendezvous stop",
        about: "stop the registry and beacon",
        args: &[],
        flags: &[STORE],
        returns: "pid, forced?",
        tier: Tier::Core,
        run: Run::Sync(stop),
    },
    Spec {
        name: "rendezvous status",
        about: "whether a registry and beacon run here, and where",
        args: &[],
        flags: &[STORE],
        returns: "running, pid, registry_addr?, beacon_addr?, beacon_probe_addr?, tls_addr?, store, log_file, counters?",
        tier: Tier::Core,
        run: Run::Sync(status),
    },
    Spec {
        name: "_rendezvous-run",
        about: "registry and beacon of a Pilot network",
        args: &[],
        flags: with_run_flags!(),
        returns: "",
        tier: Tier::Hidden,
        run: Run::Sync(run),
    },
];

fn place(ctx: &Ctx, args: &Args) -> Place {
    match args.value("store") {
        Some(path) => {
            let path = PathBuf::from(path);
            Place { store: std::path::absolute(&path).unwrap_or(path) }
        }
        None => Place::local(ctx.env()),
    }
}

fn already_running(pid: u32) -> CliError {
    CliError::new(Code::AlreadyExists, format!("rendezvous is already running (pid {pid})"))
        .hint("stop it first with: pilotctl rendezvous stop")
}

fn start(ctx: &Ctx, args: &Args) -> CliResult {
    if args.on("foreground") {
        return run(ctx, args);
    }
    let place = place(ctx, args);
    settings(ctx, args, &place)?;
    make_private_dir(place.dir())?;
    if let Some(pid) = place.running()? {
        return Err(already_running(pid));
    }
    let mut flags: Vec<String> = [
        "registry-addr",
        "beacon-addr",
        "beacon-probe-port",
        "tls-listen",
        "tls-cert",
        "tls-key",
        "advertise-compat",
        "log-level",
        "log-format",
    ]
    .iter()
    .filter_map(|name| args.value(name).map(|value| format!("--{name}={value}")))
    .collect();
    flags.extend(["free-ports", "tls"].iter().filter(|name| args.on(name)).map(|name| format!("--{name}")));
    flags.push(format!("--store={}", place.store.display()));
    let token = args.value("admin-token").map(|token| ("PILOT_ADMIN_TOKEN", token.to_owned()));
    let launch = Launch {
        name: "pilot-rendezvous",
        args: flags,
        env: token.into_iter().collect(),
        log: &place.log(),
        wait: READY,
    };
    let (pid, said) = launch.start()?;
    let state = State::from_json(&said)
        .ok_or_else(|| CliError::internal(format!("the rendezvous said something else: {said}")))?;
    let mut data = state.to_json();
    data["pid"] = json!(pid);
    data["store"] = json!(place.store);
    data["log_file"] = json!(place.log());
    ctx.emit(data, |_| {
        let mut out = format!("Rendezvous running (pid {pid})\n");
        out.push_str(&addresses(&state));
        out.push_str(&format!(
            "  Store:    {}\n  Logs:     {}",
            place.store.display(),
            place.log().display()
        ));
        out
    })
}

fn addresses(state: &State) -> String {
    let mut out = format!("  Registry: {}\n  Beacon:   {}\n", state.registry, state.beacon);
    if let Some(tls) = state.tls {
        out.push_str(&format!("  TLS port: {tls} (registry, compat transport)\n"));
    }
    let mut join = format!("pilotctl daemon start --registry {}", for_others(state.registry));
    if state.beacon.port() != pilot_rendezvous::BEACON_PORT {
        join.push_str(&format!(" --beacon {}", for_others(state.beacon)));
    }
    if let Some(fingerprint) = &state.fingerprint {
        out.push_str(&format!("  TLS:      {fingerprint}\n"));
    }
    if let Some(fingerprint) = state.registry_fingerprint() {
        join.push_str(&format!(" --registry-fingerprint {fingerprint}"));
    }
    out.push_str(&format!("  Join:     {join}\n"));
    out
}

fn for_others(addr: SocketAddr) -> String {
    match addr.ip().is_unspecified() {
        true => format!("THIS-HOST:{}", addr.port()),
        false => addr.to_string(),
    }
}

fn stop(ctx: &Ctx, args: &Args) -> CliResult {
    let place = place(ctx, args);
    let Some(pid) = place.running()? else {
        return Err(CliError::new(Code::NotRunning, "rendezvous is not running"));
    };
    let progress = ctx.spinner("stopping the rendezvous");
    let how = stop::terminate(pid).map_err(|e| CliError::io(format!("stop process {pid}"), &e))?;
    drop(progress);
    let mut data = json!({"pid": pid});
    if how == Stopped::Forced {
        data["forced"] = json!(true);
        // A killed process could not remove it.
        let _ = std::fs::remove_file(place.pid_file());
    }
    let word = if how == Stopped::Forced { "force-stopped" } else { "stopped" };
    ctx.emit(data, |_| format!("rendezvous {word} (pid {pid})"))
}

fn status(ctx: &Ctx, args: &Args) -> CliResult {
    let place = place(ctx, args);
    let running = place.running()?;
    let state = place.state().filter(|_| running.is_some());
    let mut data = state.as_ref().map_or_else(|| json!({}), State::to_json);
    data["running"] = json!(running.is_some());
    data["pid"] = json!(running.unwrap_or(0));
    data["store"] = json!(place.store);
    data["log_file"] = json!(place.log());
    let counters = place.counters().filter(|_| running.is_some());
    if let Some(counters) = &counters {
        data["counters"] = counters.clone();
    }
    let exit = if running.is_some() { Exit::OK } else { Exit::NEGATIVE };
    let text = |style: &crate::output::Style| match (running, &state) {
        (Some(pid), Some(state)) => format!(
            "{} rendezvous running (pid {pid})\n{}{}  Store:    {}\n  Logs:     {}",
            style.green("●"),
            addresses(state),
            counters.as_ref().map(in_words).unwrap_or_default(),
            place.store.display(),
            place.log().display()
        ),
        (Some(pid), None) => format!("{} rendezvous starting (pid {pid})", style.warn("●")),
        (None, _) => "○ rendezvous stopped\n  start: pilotctl rendezvous start".to_owned(),
    };
    ctx.emit_as(data, text, exit)
}

/// Checks what was given, before anything is started.
fn settings(ctx: &Ctx, args: &Args, place: &Place) -> Result<(Config, LogSettings), CliError> {
    let addr = |flag: &str, default: SocketAddr| match args.value(flag) {
        None => Ok(default),
        Some(text) => pilot_daemon::config::keys::listen_addr(text).ok_or_else(|| {
            CliError::invalid(format!("--{flag}: {text:?} is not an address to listen on"))
                .hint("an IP address and a port, e.g. 127.0.0.1:9000 or [::]:9000; port 0 takes a free one")
        }),
    };
    let defaults = Config::default();
    let probe = match args.value("beacon-probe-port") {
        None => ProbePort::Next,
        Some("off") => ProbePort::Off,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 => ProbePort::At(port),
            _ => {
                return Err(CliError::invalid(format!("--beacon-probe-port: {text:?} is no port"))
                    .hint("1 to 65535, or off"));
            }
        },
    };
    let certificate = match (args.value("tls-cert"), args.value("tls-key")) {
        (Some(cert), Some(key)) => Tls::Files { cert: cert.into(), key: key.into() },
        (None, None) => Tls::SelfSigned,
        _ => return Err(CliError::invalid("--tls-cert and --tls-key belong together")),
    };
    let tls_listener = match args.value("tls-listen") {
        Some(_) => {
            let addr = addr("tls-listen", defaults.registry_addr)?;
            Some(TlsListener { addr, tls: certificate.clone() })
        }
        None => None,
    };
    // A certificate is for the port that was named for it; without one, for the registry's.
    let given = tls_listener.is_none() && certificate != Tls::SelfSigned;
    let tls = if args.on("tls") || given { certificate } else { Tls::Off };
    let token = args.value("admin-token").or(ctx.env().get("PILOT_ADMIN_TOKEN"));
    let config = Config {
        registry_addr: addr("registry-addr", defaults.registry_addr)?,
        beacon_addr: addr("beacon-addr", defaults.beacon_addr)?,
        beacon_probe: probe,
        store: StoreConfig::File(place.store.clone()),
        tls,
        tls_listener,
        advertise_compat: args.value("advertise-compat").map(str::to_owned),
        admin_token: token.map(str::to_owned),
        ..defaults
    };
    let checked = |key: &str, default: &str| {
        let text = args.value(&key.replace('_', "-")).unwrap_or(default);
        match pilot_daemon::config::keys::find(key).map(|k| k.parse(text)) {
            Some(Err(why)) => Err(CliError::invalid(why)),
            _ => Ok(text.to_owned()),
        }
    };
    let format = match checked("log_format", "text")?.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let level = checked("log_level", "info")?;
    Ok((config, LogSettings { level, format, max_bytes: LOG_MAX_BYTES, backups: LOG_BACKUPS }))
}

/// The process.
pub fn run(ctx: &Ctx, args: &Args) -> CliResult {
    let detached = Detached::from_env();
    let result = serve(ctx, args, detached.as_ref());
    if let (Err(error), Some(detached)) = (&result, &detached) {
        detached.failed(error);
    }
    result
}

fn serve(ctx: &Ctx, args: &Args, detached: Option<&Detached>) -> CliResult {
    let place = place(ctx, args);
    let (config, logging) = settings(ctx, args, &place)?;
    make_private_dir(place.dir())?;
    let pid_file = place.pid_file();
    let lock = PidLock::acquire(&pid_file)
        .map_err(|e| CliError::io(format!("lock {}", pid_file.display()), &e))?
        .map_err(already_running)?;
    logfile::init(&logging, detached.map(|d| d.log.as_path()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::io("start the runtime", &e))?;
    runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|e| CliError::io("listen for signals", &e))?;
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(|e| CliError::io("listen for signals", &e))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(|e| CliError::io("listen for signals", &e))?;
        let registry_tls = config.tls != Tls::Off;
        let server = bind(config, args.on("free-ports")).await?;
        let state = State {
            registry: server.registry_addr(),
            beacon: server.beacon_addr(),
            probe: server.probe_addr(),
            tls: server.tls_addr(),
            registry_tls,
            fingerprint: server.tls_fingerprint().map(str::to_owned),
        };
        place.record(&state)?;
        tracing::info!(registry = %state.registry, beacon = %state.beacon, "rendezvous running");
        match detached {
            None => ctx.note(&format!("rendezvous running\n{}", addresses(&state).trim_end())),
            Some(detached) if detached.ready(&state.to_json()).is_err() => {
                server.shutdown().await;
                return Err(CliError::internal("the starting process is gone"));
            }
            Some(_) => {}
        }
        let mut look = tokio::time::interval(COUNTERS_EVERY);
        let mut counted = Counted::default();
        loop {
            tokio::select! {
                _ = look.tick() => {
                    if let Some(news) = counted.look(server.stats(), Instant::now())
                        && place.record_counters(&news).is_err()
                    {
                        // The next look tries again.
                        counted.forget();
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => tracing::debug!("hang-up ignored"),
            }
        }
        tracing::info!("stopping");
        server.shutdown().await;
        drop(lock);
        Ok(Exit::OK)
    })
}

/// Binds; where a port is taken and `free_ports` is on, takes a free one.
async fn bind(mut config: Config, free_ports: bool) -> Result<Server, CliError> {
    loop {
        match Server::start(config.clone()).await {
            Ok(server) => return Ok(server),
            Err(StartError::Bind { what, addr, .. }) if free_ports && addr.port() != 0 => {
                tracing::warn!(%addr, "address is taken, using a free port");
                match (what, &mut config.tls_listener) {
                    ("registry TLS", Some(listener)) => listener.addr.set_port(0),
                    ("registry TCP", _) => config.registry_addr.set_port(0),
                    ("beacon UDP", _) => config.beacon_addr.set_port(0),
                    _ => config.beacon_probe = ProbePort::Next,
                }
            }
            Err(e @ StartError::Bind { .. }) => {
                return Err(CliError::connection(e.to_string())
                    .hint("another program uses it: choose other addresses, or --free-ports"));
            }
            Err(e) => return Err(CliError::internal(e.to_string())),
        }
    }
}
