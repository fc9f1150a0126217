//! The daemon process: detached by `daemon start`, in the foreground, or called as `pilot-daemon`.

use super::{already_running, check_socket, config_file, flags, invalid, pid_file, registry};
use crate::args::Args;
use crate::commands::VERSION;
use crate::error::{CliError, CliResult, Exit};
use crate::lifecycle::detach::Detached;
use crate::lifecycle::lock::PidLock;
use crate::lifecycle::{logfile, make_private_dir};
use crate::output::Ctx;
use pilot_daemon::config::Settings;
use pilot_daemon::{Daemon, DaemonConfig};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub fn run(ctx: &Ctx, args: &Args) -> CliResult {
    if args.on("version") {
        ctx.line(VERSION)?;
        return Ok(Exit::OK);
    }
    let detached = Detached::from_env();
    let result = prepare(ctx, args, detached.as_ref());
    if let (Err(error), Some(detached)) = (&result, &detached) {
        detached.failed(error);
    }
    result
}

fn prepare(ctx: &Ctx, args: &Args, detached: Option<&Detached>) -> CliResult {
    let file = config_file(ctx, args)?;
    let mut given = flags::settings(args);
    let settings = Settings::new(given.clone(), ctx.env(), &file);
    let logging = settings.logging().map_err(invalid)?;
    // Checked before a local rendezvous is started for it.
    let checked = settings.daemon("", None).map_err(invalid)?;
    let home = ctx.home();
    make_private_dir(&home)?;
    let path = pid_file(&home);
    let lock = PidLock::acquire(&path)
        .map_err(|e| CliError::io(format!("lock {}", path.display()), &e))?
        .map_err(already_running)?;
    check_socket(&checked.socket)?;
    if detached.is_none() {
        // A detached daemon's parent has said it.
        settings.notices().iter().for_each(|notice| ctx.warn(notice));
    }
    let choice = registry::choose(ctx, &settings)?;
    if let Some(fingerprint) = choice.local.as_ref().and_then(|l| l.state.registry_fingerprint().cloned()) {
        given.insert("registry_fingerprint", fingerprint);
    }
    let settings = Settings::new(given, ctx.env(), &file);
    let config = settings.daemon(&choice.registry, choice.beacon.as_deref()).map_err(invalid)?;
    if detached.is_none() {
        choice.explain(ctx);
        choice.remember(&file)?;
    }
    logfile::init(&logging, detached.map(|d| d.log.as_path()))?;
    pilot::tune_allocator();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::io("start the runtime", &e))?;
    let result = runtime.block_on(serve(config, detached));
    drop(lock);
    result
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, CliError> {
        let listen = |kind| signal(kind).map_err(|e| CliError::io("listen for signals", &e));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Returns when the process is to end; a hang-up is no reason.
    async fn end(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::debug!("hang-up ignored"),
            }
        }
    }
}

async fn serve(config: DaemonConfig, detached: Option<&Detached>) -> CliResult {
    let mut signals = Signals::listen()?;
    let tags = config.node.tags.clone();
    let auto = config.node.transport == pilot::Transport::Auto;
    let proxy = match &config.node.proxies.choice {
        pilot::ProxyChoice::Fixed(proxy) => Some(proxy.to_string()),
        _ => None,
    };
    let daemon = tokio::select! {
        started = Daemon::start(config) => started.map_err(|e| CliError::connection(e.to_string()))?,
        () = signals.end() => return Ok(Exit::OK),
    };
    let status = daemon.node().status().await;
    let mut said: Value = json!({
        "node_id": status.node_id,
        "address": status.address.to_string(),
        "hostname": status.hostname,
        "tags": tags,
        "transport": status.transport,
        "warnings": status.warnings,
    });
    if auto {
        said["transport_auto"] = json!(true);
    }
    if let Some(proxy) = proxy {
        said["proxy"] = json!(proxy);
    }
    if detached.is_some_and(|d| d.ready(&said).is_err()) {
        daemon.shutdown().await;
        return Err(CliError::internal("the starting process is gone"));
    }
    signals.end().await;
    tracing::info!("stopping");
    daemon.shutdown().await;
    Ok(Exit::OK)
}
