//! One request on a registry connection of our own, for what the daemon does not pass on.

use super::reach::daemon_error;
use super::text::safe;
use crate::error::CliError;
use crate::lifecycle::rendezvous::Place;
use crate::output::Ctx;
use pilot::{RegistryError, RegistryTls};
use pilot_daemon::config::Settings;
use serde_json::Value;
use std::collections::BTreeMap;

/// The registry the daemon uses, or that of the settings.
async fn registry(ctx: &Ctx) -> Result<(String, Option<RegistryTls>), CliError> {
    let settings = Settings::new(BTreeMap::new(), ctx.env(), ctx.config()?);
    let wrong = |e: &dyn std::fmt::Display| CliError::invalid(e.to_string());
    let configured = settings.text("registry").map_err(|e| wrong(&e))?.filter(|address| address != "local");
    let address = match (of_daemon(ctx).await?, configured) {
        (Some(address), _) | (None, Some(address)) => address,
        (None, None) => match Place::local(ctx.env()).state() {
            Some(state) => state.registry_here().to_string(),
            None => {
                return Err(CliError::invalid("no registry is configured")
                    .hint("pilotctl config --set registry=HOST:PORT, or start the daemon"));
            }
        },
    };
    let tls = settings.daemon(&address, None).map_err(|e| wrong(&e))?.node.registry_tls;
    Ok((address, tls))
}

/// Where a running daemon is registered; reference daemons do not tell.
async fn of_daemon(ctx: &Ctx) -> Result<Option<String>, CliError> {
    let Ok(client) = ctx.client().await else { return Ok(None) };
    let info = client.info().await.map_err(daemon_error("info"))?;
    Ok(info["registry_addr"].as_str().filter(|address| !address.is_empty()).map(str::to_owned))
}

/// Sends a request and returns the answer; a refusal is an error with the registry's words.
pub async fn request(ctx: &Ctx, request: Value) -> Result<Value, CliError> {
    let kind = request["type"].as_str().unwrap_or("request").to_owned();
    let (address, tls) = registry(ctx).await?;
    pilot::registry_call(&address, tls.as_ref(), request).await.map_err(|error| {
        let message = format!("{kind}: {}", safe(&error.to_string()));
        match error {
            RegistryError::Refused(text) if text.contains("not found") => CliError::not_found(message),
            RegistryError::Refused(_) => CliError::connection(message),
            _ => CliError::connection(message).hint(format!(
                "the registry is {address}; another one: pilotctl config --set registry=HOST:PORT"
            )),
        }
    })
}
