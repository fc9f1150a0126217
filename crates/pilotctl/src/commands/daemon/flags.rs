//! Flags of the daemon, the same for `daemon start` and a binary called `pilot-daemon` (spec 08 sections 1.14, 1.15).

use crate::args::Args;
use pilot_daemon::config::keys::{KEYS, Kind};
use std::collections::BTreeMap;

macro_rules! daemon_flags {
    ($($more:expr),*) => {
        &[
            $($more,)*
            Flag::value("registry", "HOST:PORT", "the registry to join, or local for the one of this machine"),
            Flag::value("beacon", "HOST:PORT", "the beacon (the registry's host, port 9001)"),
            Flag::switch("local", "same as --registry local"),
            Flag::value("hostname", "NAME", "name others find this node by"),
            Flag::value("tags", "A,B", "what this node is good for"),
            Flag::value("email", "E", "owner; remembered"),
            Flag::switch("public", "let anybody look this node up and connect"),
            Flag::switch("trust-auto-approve", "trust everybody who asks"),
            Flag::value("listen", "HOST:PORT", "UDP address (:0, a free port)"),
            Flag::value("socket", "FILE", "socket for clients"),
            Flag::value("identity", "FILE", "key of this node (~/.pilot/identity.json)"),
            Flag::value("config", "FILE", "configuration (~/.pilot/config.json)"),
            Flag::value("endpoint", "HOST:PORT", "address that leads to this node, or several; the first is registered"),
            Flag::value("advertise-endpoint", "HOST:PORT", "the same, before those of --endpoint"),
            Flag::switch("port-mapping", "ask the router to let peers in: PCP, NAT-PMP, UPnP (on)"),
            Flag::switch("no-port-mapping", "same as --port-mapping=false"),
            Flag::switch("relay-only", "never send directly"),
            Flag::value("webhook", "URL", "post events there"),
            Flag::value("admin-token", "T", "token for network administration"),
            Flag::switch("registry-tls", "speak TLS to the registry"),
            Flag::value("registry-trust", "pinned|system", "how its certificate is trusted (pinned)"),
            Flag::value("registry-fingerprint", "HEX", "SHA-256 of its certificate; turns TLS on"),
            Flag::switch("encrypt", "encrypt tunnels (on)"),
            Flag::switch("no-encrypt", "same as --encrypt=false"),
            Flag::switch("session-upgrade", "forward-secret sessions with nodes that know them (on)"),
            Flag::switch("strict-dataplane-trust", "ignore key exchanges and pings of untrusted nodes"),
            Flag::value("keepalive", "D", "heartbeat interval (60s)"),
            Flag::value("idle-timeout", "D", "silence that ends a stream (120s)"),
            Flag::value("user-timeout", "D", "silence of a node like this that streams outlive: it may sleep (15m)"),
            Flag::value("max-conns-per-port", "N", "connections per listening port (1024)"),
            Flag::value("max-conns-total", "N", "connections in total (65536)"),
            Flag::value("syn-rate-limit", "N", "connection attempts per second from all peers (100)"),
            Flag::switch("no-echo", "no echo service (port 7)"),
            Flag::switch("no-dataexchange", "no messages and files (port 1001)"),
            Flag::switch("no-eventstream", "no event stream (port 1002)"),
            Flag::switch("dataexchange-b64", "keep every message as base64"),
            Flag::value("log-level", "L", "trace, debug, info, warn or error (info)"),
            Flag::value("log-format", "F", "text or json (text)"),
            Flag::value("log-max-size", "MB", "size at which the log is put aside (50)"),
            Flag::value("log-max-backups", "N", "logs kept (3)"),
            Flag::value("transport", "T", "auto, udp, or compat: WebSocket and TLS alone (auto)"),
            Flag::value("compat-beacon", "URL", "wss:// URL of the beacon (as the registry says)"),
            Flag::value("tls-trust", "system|pinned", "how its certificate is trusted (as the registry's)"),
            Flag::value("proxy", "URL|auto|off", "HTTP proxy (auto: HTTPS_PROXY, ALL_PROXY, NO_PROXY)"),
            Flag::value("proxy-cmd", "CMD", "shell command that prints the proxy's URL"),
            Flag::value("owner", "E", "older name of --email"),
            Flag::value("security-profile", "P", "compatible"),
            Flag::switch("sandbox", "not in this version"),
            Flag::value("sandbox-dir", "DIR", "not in this version"),
            Flag::value("networks", "IDS", "not in this version"),
            Flag::value("webhook-secret", "S", "not in this version"),
            Flag::value("syn-whitelist", "IDS", "not in this version"),
            Flag::value("reply-whitelist", "IDS", "not in this version"),
            Flag::value("rekey-whitelist", "IDS", "not in this version"),
            Flag::value("time-wait", "D", "not in this version"),
            Flag::value("pprof", "HOST:PORT", "not in this version"),
            Flag::switch("beacon-rtt-probe", "not in this version"),
            Flag::switch("no-addr-watch", "do not follow changes of this host's network, and its sleep"),
            Flag::switch("no-path-watch", "not in this version"),
            Flag::switch("no-rx-watchdog", "not in this version"),
            Flag::vendor("no-skillinject", false),
            Flag::vendor("telemetry-url", true),
            Flag::vendor("motd-feed-url", true),
            Flag::vendor("motd-interval", true),
        ]
    };
}
pub(super) use daemon_flags;

/// Settings that must not be seen in the process list, and the variables they travel in.
const SECRETS: [(&str, &str); 4] = [
    ("admin_token", "PILOT_ADMIN_TOKEN"),
    ("webhook_secret", "PILOT_WEBHOOK_SECRET"),
    ("proxy", "PILOT_PROXY"),
    ("proxy_cmd", "PILOT_PROXY_CMD"),
];

/// What was given, by configuration key.
pub fn settings(args: &Args) -> BTreeMap<&'static str, String> {
    let mut out = BTreeMap::new();
    for key in KEYS {
        let flag = key.name.replace('_', "-");
        if !args.given(&flag) {
            continue;
        }
        let value = match key.kind {
            Kind::Bool => args.on(&flag).to_string(),
            _ => args.value(&flag).unwrap_or_default().to_owned(),
        };
        out.insert(key.name, value);
    }
    if args.given("no-encrypt") {
        out.insert("encrypt", (!args.on("no-encrypt")).to_string());
    }
    if args.given("no-port-mapping") {
        out.insert("port_mapping", (!args.on("no-port-mapping")).to_string());
    }
    if args.on("local") {
        out.insert("registry", pilot_daemon::config::keys::LOCAL.to_owned());
    }
    out
}

/// The same settings as flags and environment for a process of its own.
pub fn for_child(settings: &BTreeMap<&'static str, String>) -> (Vec<String>, Vec<(&'static str, String)>) {
    let (mut flags, mut env) = (Vec::new(), Vec::new());
    for (key, value) in settings {
        match SECRETS.iter().find(|(name, _)| name == key) {
            Some((_, variable)) => env.push((*variable, value.clone())),
            None => flags.push(format!("--{}={value}", key.replace('_', "-"))),
        }
    }
    (flags, env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Flag;
    use crate::args::spec::FlagKind;
    use pilot_daemon::config::keys;

    const FLAGS: &[Flag] = daemon_flags!();
    const WITHOUT_KEY: [&str; 5] = ["local", "config", "no-encrypt", "no-port-mapping", "pprof"];

    #[test]
    fn every_key_has_a_flag_of_its_kind_and_every_flag_a_key() {
        for key in KEYS {
            let name = key.name.replace('_', "-");
            let flag = FLAGS.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no flag for {name}"));
            let switch = matches!(flag.kind, FlagKind::Switch | FlagKind::Vendor(false));
            assert_eq!(switch, key.kind == Kind::Bool, "{name}");
        }
        for flag in FLAGS {
            let known = keys::find(flag.name).is_some() || WITHOUT_KEY.contains(&flag.name);
            assert!(known, "no key for --{}", flag.name);
        }
    }

    #[test]
    fn secrets_travel_in_the_environment() {
        let given = BTreeMap::from([("admin_token", "s3cret".to_owned()), ("public", "true".to_owned())]);
        let (flags, env) = for_child(&given);
        assert_eq!(flags, ["--public=true"]);
        assert_eq!(env, [("PILOT_ADMIN_TOKEN", "s3cret".to_owned())]);
    }
}
