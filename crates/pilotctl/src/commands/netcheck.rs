//! `netcheck`: what this network allows, with or without a daemon.

use super::listing::{list, number};
use super::text::{or_dash, safe, short_time};
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Exit};
use crate::lifecycle::rendezvous::Place;
use crate::output::{Ctx, Style};
use pilot::netcheck::{Check, Connects, DaemonView, Report, netcheck};
use pilot_daemon::config::Settings;
use pilot_daemon::config::keys::{self, LOCAL};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// How long a daemon may take to say what it knows.
const DAEMON: Duration = Duration::from_secs(2);

pub const COMMANDS: &[Spec] = &[Spec {
    name: "netcheck",
    about: "what this network allows and what that means; exit status 1 if nothing connects",
    args: &[],
    flags: &[
        Flag::value(
            "registry",
            "HOST:PORT",
            "check the way to this registry, not the daemon's or the configured one",
        ),
        Flag::value("beacon", "HOST:PORT", "ask this beacon, or several"),
        Flag::switch("registry-tls", "speak TLS to the registry"),
        Flag::value("registry-trust", "pinned|system", "how its certificate is trusted (pinned)"),
        Flag::value("registry-fingerprint", "HEX", "SHA-256 of its certificate; turns TLS on"),
        Flag::switch("port-mapping", "ask the router whether it would map a port (on)"),
    ],
    returns: "connects (directly|mixed|relayed|known_peers|no), summary[], advice[], registry{}, udp{}, ipv4{}, ipv6{}, \
              websocket{}, nat{}, port_mapping{}, beacons[], mtu{}, captive{}, proxy{}, daemon{}, took_ms",
    tier: Tier::Core,
    run: Run::Async(|ctx, args| Box::pin(run(ctx, args))),
}];

async fn run(ctx: &Ctx, args: &Args) -> CliResult {
    let info = if args.given("registry") { None } else { running(ctx).await };
    let check = check(ctx, args, info.as_ref())?;
    let progress = std::cell::RefCell::new(None);
    let report = netcheck(check, |step| {
        // The one before vanishes first.
        progress.borrow_mut().take();
        *progress.borrow_mut() = Some(ctx.spinner(step));
    })
    .await;
    progress.borrow_mut().take();
    let exit = match report.connects {
        Connects::No => Exit::NEGATIVE,
        _ => Exit::OK,
    };
    let mut data = serde_json::to_value(&report).map_err(|e| CliError::internal(e.to_string()))?;
    data["daemon"] = match &info {
        Some(info) => json!({
            "running": true,
            "node_id": info["node_id"],
            "hostname": info["hostname"],
            "transport": info["transport"],
        }),
        None => json!({"running": false}),
    };
    let page = page(&report, &data, &ctx.style);
    ctx.emit_as(data, |_| page, exit)
}

/// What a running daemon says; one that hangs must not keep the check from being made.
async fn running(ctx: &Ctx) -> Option<Value> {
    let asking = async { ctx.client().await.ok()?.info().await.ok() };
    tokio::time::timeout(DAEMON, asking).await.ok().flatten()
}

fn check(ctx: &Ctx, args: &Args, info: Option<&Value>) -> Result<Check, CliError> {
    let mut given: BTreeMap<&'static str, String> = BTreeMap::new();
    for name in ["registry", "beacon", "registry_trust", "registry_fingerprint"] {
        given.extend(args.value(&name.replace('_', "-")).map(|value| (name, value.to_owned())));
    }
    for name in ["registry_tls", "port_mapping"] {
        let flag = name.replace('_', "-");
        if args.given(&flag) {
            given.insert(name, args.on(&flag).to_string());
        }
    }
    // What was given is checked, even where a corrupt file would be an error of its own.
    let settings = Settings::new(given, ctx.env(), ctx.config()?);
    let invalid = |e: pilot_daemon::config::SettingError| CliError::invalid(e.to_string());
    let configured = settings.daemon("", settings.text("beacon").map_err(invalid)?.as_deref());
    let node = configured.map_err(invalid)?.node;
    if let Some(info) = info {
        let named = |beacon: &Value| beacon["name"].as_str().map(str::to_owned);
        let told: Vec<String> = list(info, "beacons").iter().filter_map(named).collect();
        let one = || {
            keys::host_ports(info["beacon_addr"].as_str().unwrap_or_default()).map(str::to_owned).collect()
        };
        return Ok(Check {
            registry: info["registry_addr"].as_str().filter(|text| !text.is_empty()).map(str::to_owned),
            beacons: match (args.given("beacon"), told.is_empty()) {
                (true, _) => node.beacons,
                (false, true) => one(),
                (false, false) => told,
            },
            // The daemon has asked.
            port_mapping: false,
            node: pilot::NodeConfig::default(),
            daemon: Some(view(info)),
        });
    }
    let registry = settings.text("registry").map_err(invalid)?;
    let local = || Place::local(ctx.env()).state();
    let mut node = node;
    let mut beacons = std::mem::take(&mut node.beacons);
    let registry = match registry.filter(|registry| registry != LOCAL) {
        Some(registry) => Some(registry),
        // Nothing is started by a check.
        None => local().map(|state| {
            beacons = vec![state.beacon_here().to_string()];
            node.registry_tls = state.registry_fingerprint().cloned().map(pilot::RegistryTls::Pinned);
            state.registry_here().to_string()
        }),
    };
    Ok(Check { registry, beacons, port_mapping: node.port_mapping, node, daemon: None })
}

fn view(info: &Value) -> DaemonView {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    DaemonView {
        registered: number(info, "node_id") != 0,
        // A reference daemon says nothing of it.
        registry_ok: info["registry_ok"].as_bool().unwrap_or(true),
        registry_error: text(&info["registry_error"]),
        transport: text(&info["transport"]),
        nat: (text(&info["nat"]["class"]), text(&info["nat"]["meaning"])),
        port_mapping: text(&info["port_mapping"]),
        external: info["mapped_addr"].as_str().and_then(|at| at.parse().ok()),
    }
}

fn page(report: &Report, data: &Value, style: &Style) -> String {
    let bullet = match report.connects {
        Connects::No => style.warn("●"),
        _ => style.green("●"),
    };
    let mut summary = report.summary.iter().map(|text| safe(text));
    let mut out = format!("{bullet} {}\n", style.bold(&summary.next().unwrap_or_default()));
    for text in summary {
        let _ = writeln!(out, "  {text}");
    }
    out.push('\n');
    let mut row = |label: &str, line: String| {
        let _ = writeln!(out, "  {} {}", style.dim(&format!("{label:<10}")), safe(&line));
    };
    let rtt =
        |ms: Option<f64>| ms.map_or_else(String::new, |ms| short_time(Duration::from_secs_f64(ms / 1e3)));
    let registry = &report.registry;
    row(
        "registry",
        match (registry.reachable, registry.how) {
            (true, "daemon") => format!("{} · answers the daemon", registry.addr),
            (true, how) => format!("{} · answers over {how} in {}", registry.addr, rtt(registry.rtt_ms)),
            (false, _) => format!("{} · {}", or_dash(&registry.addr), registry.error),
        },
    );
    row(
        "udp",
        match (report.udp.works, report.udp.error.as_str()) {
            (true, _) => "works".into(),
            (false, "") => "does not get through".into(),
            (false, error) => error.into(),
        },
    );
    if let Some(websocket) = &report.websocket {
        let state = if websocket.works { "can be opened" } else { websocket.error.as_str() };
        row("websocket", format!("{} · {state}", websocket.url));
    }
    for (label, family) in [("ipv4", &report.ipv4), ("ipv6", &report.ipv6)] {
        let mut line = match family.addresses.as_slice() {
            [] => "no address".to_owned(),
            all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        match (family.works, family.seen_as) {
            (_, Some(at)) => line.push_str(&format!(" · seen as {at}")),
            (Some(false), None) if family.route => line.push_str(" · no beacon answers"),
            (Some(false), None) => line.push_str(" · no way out"),
            (_, None) => line.push_str(" · not tried: no beacon has such an address"),
        }
        row(label, line);
    }
    row("nat", report.nat.meaning.clone());
    let mapping = &report.port_mapping;
    row(
        "router",
        match (mapping.protocol, mapping.external) {
            (protocol, Some(at)) => format!("maps ports by {protocol}, seen as {at}"),
            ("off", _) => "not asked (port mapping is off)".into(),
            ("not_needed", _) => "none to ask".into(),
            _ if mapping.error.is_empty() => "maps no port".into(),
            _ => format!("maps no port: {}", mapping.error),
        },
    );
    if let Some(mtu) = &report.mtu {
        row("mtu", format!("packets of {} bytes get through to {}", mtu.packet, mtu.to));
    }
    for beacon in &report.beacons {
        let at = beacon.address.map(|at| at.to_string()).unwrap_or_default();
        let name = if at == beacon.name { at } else { format!("{} {at}", beacon.name) };
        let state = if beacon.ok { rtt(beacon.rtt_ms) } else { beacon.error.clone() };
        row("beacon", format!("{} · {state}", name.trim_end()));
    }
    for variable in &report.proxy.variables {
        row("proxy", format!("{}={}", variable.name, variable.value));
    }
    row(
        "daemon",
        match data["daemon"]["running"] == true {
            true => format!(
                "running · node {} · transport {}",
                number(&data["daemon"], "node_id"),
                or_dash(data["daemon"]["transport"].as_str().unwrap_or_default())
            ),
            false => "not running".into(),
        },
    );
    for text in &report.advice {
        let _ = write!(out, "\n{} {}", style.cyan("→"), safe(text));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_it_means_first_and_what_to_do_last() {
        let mut report = Report::default();
        report.registry.addr = "r.example:9000".into();
        report.registry.error = "registry r.example:9000 cannot be reached: timed out".into();
        pilot::netcheck::judge(&mut report, None);
        let data = json!({"daemon": {"running": false}});
        let page = page(&report, &data, &Style::detect(false));
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "● No connections: neither the registry nor a beacon answers.");
        assert_eq!(
            lines[2],
            "  registry   r.example:9000 · registry r.example:9000 cannot be reached: timed out"
        );
        assert!(lines.contains(&"  daemon     not running"), "{page}");
        assert!(lines.last().unwrap().starts_with("→ "), "{page}");
    }

    #[test]
    fn what_a_daemon_says_is_taken_and_a_reference_daemon_says_less() {
        let full = view(&json!({
            "node_id": 5, "registry_ok": false, "registry_error": "away", "transport": "udp",
            "nat": {"class": "none", "meaning": "none"}, "port_mapping": "upnp", "mapped_addr": "203.0.113.9:4000",
        }));
        assert!(full.registered && !full.registry_ok);
        assert_eq!((full.port_mapping.as_str(), full.external), ("upnp", "203.0.113.9:4000".parse().ok()));
        let reference = view(&json!({"node_id": 5}));
        assert!(reference.registered && reference.registry_ok && reference.nat.0.is_empty());
    }
}
