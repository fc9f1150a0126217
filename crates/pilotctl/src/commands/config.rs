//! `init` and `config`: the configuration file (spec 08 section 1.10).

use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult};
use crate::lifecycle::no_home;
use crate::output::Ctx;
use pilot_daemon::config::ConfigFile;
use pilot_daemon::config::keys::{self, Effect};
use serde_json::{Value, json};

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "init",
        about: "write the configuration file; what is not given stays as it is",
        args: &[],
        flags: &[
            Flag::value("registry", "HOST:PORT", "the registry, or local"),
            Flag::value("beacon", "HOST:PORT", "the beacon, or several"),
            Flag::value("socket", "FILE", "the daemon's socket"),
            Flag::value("hostname", "NAME", "name others find this node by"),
            Flag::value("email", "E", "owner"),
        ],
        returns: "config_path, registry, beacon, socket, hostname",
        tier: Tier::Core,
        run: Run::Sync(init),
    },
    Spec {
        name: "config",
        about: "show the configuration, or set one key",
        args: &[],
        flags: &[Flag::value("set", "KEY=VALUE", "store one setting")],
        returns: "all keys of the file, config_path, pid_file, log_file; with --set: key, value",
        tier: Tier::Core,
        run: Run::Sync(config),
    },
];

fn save(file: &ConfigFile) -> Result<(), CliError> {
    file.save().map_err(|e| no_home(CliError::io("config", &e.into())))
}

fn parse(name: &str, text: &str) -> Result<Option<Value>, CliError> {
    let key = keys::find(name)
        .ok_or_else(|| CliError::invalid(format!("config: unknown key {name:?}")).hint(all_keys()))?;
    key.parse(text).map_err(|why| CliError::invalid(format!("config: {why}")))
}

fn all_keys() -> String {
    let names: Vec<&str> = keys::KEYS.iter().map(|k| k.name).collect();
    format!("keys: {}", names.join(" "))
}

fn init(ctx: &Ctx, args: &Args) -> CliResult {
    let mut file = ctx.config()?.clone();
    for name in ["registry", "beacon", "socket", "hostname", "email"] {
        if let Some(text) = args.value(name)
            && let Some(value) = parse(name, text)?
        {
            file.set(name, value);
        }
    }
    save(&file)?;
    let text = |name: &str| file.string(name).unwrap_or_default();
    let socket = match text("socket") {
        socket if socket.is_empty() => ctx.env().default_socket().display().to_string(),
        socket => socket,
    };
    ctx.emit_data(json!({
        "config_path": file.path(),
        "registry": text("registry"),
        "beacon": text("beacon"),
        "socket": socket,
        "hostname": text("hostname"),
    }))
}

fn config(ctx: &Ctx, args: &Args) -> CliResult {
    match args.value("set") {
        Some(setting) => set(ctx, setting),
        None => show(ctx),
    }
}

fn set(ctx: &Ctx, setting: &str) -> CliResult {
    let (name, text) =
        setting.split_once('=').ok_or_else(|| CliError::invalid("usage: pilotctl config --set key=value"))?;
    let name = name.trim().replace('-', "_");
    let value = parse(&name, text)?;
    let mut file = ctx.config()?.clone();
    match &value {
        Some(value) => file.set(&name, value.clone()),
        None => file.remove(&name),
    }
    save(&file)?;
    if keys::find(&name).is_some_and(|k| k.effect != Effect::Active) {
        ctx.warn(&format!("notice: {name} is kept in the file; it has no effect in this version"));
    }
    let shown = hide(&name, &value.unwrap_or_else(|| json!("")));
    let line = format!("{name} = {}", plain(&shown));
    ctx.emit(json!({"key": name, "value": shown}), |_| line)
}

fn show(ctx: &Ctx) -> CliResult {
    let file = ctx.config()?;
    let home = ctx.home();
    let mut data: serde_json::Map<String, Value> =
        file.values().iter().map(|(name, value)| (name.clone(), hide(name, value))).collect();
    let registry = ctx.env().get("PILOT_REGISTRY").map(str::to_owned).or(file.string("registry"));
    data.insert("registry".into(), json!(registry.unwrap_or_default()));
    data.insert("socket".into(), json!(ctx.socket()?));
    data.insert("config_path".into(), json!(file.path()));
    data.insert("pid_file".into(), json!(home.join("pilot.pid")));
    data.insert("log_file".into(), json!(home.join("pilot.log")));
    let width = data.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> =
        data.iter().map(|(name, value)| format!("{name:<width$}  {}", plain(value))).collect();
    ctx.emit(Value::Object(data), |_| lines.join("\n"))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Secrets are not shown: a token not at all, a URL without its user information.
fn hide(name: &str, value: &Value) -> Value {
    match (name, value.as_str()) {
        ("admin_token" | "webhook_secret", Some(text)) if !text.is_empty() => json!("***"),
        ("proxy", Some(url)) => {
            let Some((scheme, rest)) = url.split_once("://") else { return value.clone() };
            match rest.rsplit_once('@') {
                Some((_, host)) => json!(format!("{scheme}://***@{host}")),
                None => value.clone(),
            }
        }
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden() {
        assert_eq!(hide("admin_token", &json!("t")), json!("***"));
        assert_eq!(hide("proxy", &json!("http://u:p@host:1")), json!("http://***@host:1"));
        assert_eq!(hide("proxy", &json!("http://host:1")), json!("http://host:1"));
        assert_eq!(hide("registry", &json!("h:1")), json!("h:1"));
    }
}
