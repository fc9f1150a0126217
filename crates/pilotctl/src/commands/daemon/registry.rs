//! Which registry a daemon joins. None is built in: where nothing names one, a new home starts on this machine alone.

use crate::error::CliError;
use crate::lifecycle::rendezvous::{Local, ensure_local};
use crate::output::Ctx;
use pilot_daemon::config::keys::LOCAL;
use pilot_daemon::config::{ConfigFile, Settings};
use serde_json::json;

/// The registry to join.
#[derive(Debug, Clone)]
pub struct Choice {
    /// `host:port`.
    pub registry: String,
    /// `host:port`; `None`: as the registry says.
    pub beacon: Option<String>,
    /// Set if it is the rendezvous of this machine.
    pub local: Option<Local>,
}

/// Decides, and starts the local rendezvous if it is the one and not running.
pub fn choose(ctx: &Ctx, settings: &Settings<'_>) -> Result<Choice, CliError> {
    let invalid = |e: pilot_daemon::config::SettingError| CliError::invalid(e.to_string());
    match settings.text("registry").map_err(invalid)? {
        Some(registry) if registry != LOCAL => {
            let beacon = settings.text("beacon").map_err(invalid)?;
            return Ok(Choice { registry, beacon, local: None });
        }
        Some(_) => {}
        None => {
            let identity = settings.identity().map_err(invalid)?;
            if identity.exists() {
                return Err(CliError::invalid(format!(
                    "{} belongs to a node, but nothing says which registry it is registered at",
                    identity.display()
                ))
                .hint("name it with --registry HOST:PORT, or use the one of this machine with --local"));
            }
        }
    }
    let local = ensure_local(ctx.env())?;
    Ok(Choice {
        registry: local.state.registry_here().to_string(),
        beacon: Some(local.state.beacon_here().to_string()),
        local: Some(local),
    })
}

impl Choice {
    /// What a user should know about a choice nobody made explicitly.
    pub fn explain(&self, ctx: &Ctx) {
        if let Some(Local { state, started, .. }) = &self.local {
            let verb = if *started { "started" } else { "using" };
            ctx.note(&format!("{verb} the local rendezvous at {} (this machine only)", state.registry));
            ctx.note("to join a network instead: pilotctl daemon start --registry HOST:PORT");
        }
    }

    /// Remembers the local rendezvous in the configuration file, so that the next start need not ask; a file that names a
    /// registry is left alone.
    pub fn remember(&self, file: &ConfigFile) -> Result<(), CliError> {
        if self.local.is_none() || file.string("registry").is_some() {
            return Ok(());
        }
        let mut file = file.clone();
        file.set("registry", json!(LOCAL));
        file.save().map_err(|e| CliError::io("config", &e.into()))
    }
}
