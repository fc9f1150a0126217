//! One order for every setting: flag, then environment, then file, then default.

use super::keys::{self, Effect, Key};
use super::{ConfigFile, DaemonConfig, Env, LogFormat, duration};
use pilot::{NodeConfig, Proxies, ProxyChoice, RegistryTls, Transport};
use pilot_disk::Disk;
use pilot_proto::crypto::Secret;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The environment variable of each key that has one (spec 08 section 1.8).
const ENVIRONMENT: &[(&str, &str)] = &[
    ("admin_token", "PILOT_ADMIN_TOKEN"),
    ("beacon", "PILOT_BEACON"),
    ("proxy", "PILOT_PROXY"),
    ("proxy_cmd", "PILOT_PROXY_CMD"),
    ("registry", "PILOT_REGISTRY"),
    ("registry_fingerprint", "PILOT_REGISTRY_FINGERPRINT"),
    ("registry_trust", "PILOT_REGISTRY_TRUST"),
    ("rekey_whitelist", "PILOT_REKEY_WHITELIST"),
    ("reply_whitelist", "PILOT_REPLY_WHITELIST"),
    ("security_profile", "PILOT_SECURITY_PROFILE"),
    ("socket", "PILOT_SOCKET"),
    ("strict_dataplane_trust", "PILOT_STRICT_DATAPLANE_TRUST"),
    ("syn_whitelist", "PILOT_SYN_WHITELIST"),
    ("transport", "PILOT_TRANSPORT"),
    ("webhook_secret", "PILOT_WEBHOOK_SECRET"),
];

/// Most tags a node has (spec 05 section 5.3).
const MAX_TAGS: usize = 10;
/// Most endpoints given by the operator.
const MAX_ENDPOINTS: usize = 8;
/// Longest tag, bytes.
const MAX_TAG_LEN: usize = 32;

const DEFAULT_LISTEN: &str = ":0";
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(60);
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_USER_TIMEOUT: Duration = Duration::from_secs(900);
const DEFAULT_CONNS_PER_PORT: usize = 1024;
const DEFAULT_CONNS_TOTAL: usize = 65_536;
const DEFAULT_SYN_RATE: u32 = 100;
/// Size at which the log file is put aside, MiB.
const DEFAULT_LOG_SIZE_MIB: u64 = 50;
const DEFAULT_LOG_BACKUPS: u64 = 3;

/// Where a setting was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Flag(&'static str),
    /// In this environment variable.
    Env(&'static str),
    /// In the configuration file.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(key) => write!(f, "--{}", key.replace('_', "-")),
            Source::Env(name) => f.write_str(name),
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A setting somebody made.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Checked value as text.
    pub value: String,
    /// Who said so.
    pub source: Source,
}

impl fmt::Debug for Setting {
    /// Where it comes from; the value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("source", &self.source).finish_non_exhaustive()
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_text}{reason}")]
pub struct SettingError {
    source_text: String,
    /// What it must be.
    pub reason: String,
}

impl SettingError {
    fn at(source: &Source, reason: impl Into<String>) -> SettingError {
        SettingError { source_text: format!("{source}: "), reason: reason.into() }
    }

    fn plain(reason: impl Into<String>) -> SettingError {
        SettingError { source_text: String::new(), reason: reason.into() }
    }
}

/// How the daemon's log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Text or JSON lines.
    pub format: LogFormat,
    /// Size at which the file is put aside, bytes; 0: never.
    pub max_bytes: u64,
    /// How many files put aside are kept.
    pub backups: u64,
}

/// All sources of settings together.
pub struct Settings<'a> {
    flags: BTreeMap<&'static str, String>,
    env: &'a Env,
    file: &'a ConfigFile,
}

impl fmt::Debug for Settings<'_> {
    /// The names of the flags; values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<_> = self.flags.keys().collect();
        f.debug_struct("Settings").field("flags", &flags).finish_non_exhaustive()
    }
}

impl<'a> Settings<'a> {
    /// Flags by key name (`log_level`), switches as `true` or `false`. An empty flag counts as not given.
    pub fn new(flags: BTreeMap<&'static str, String>, env: &'a Env, file: &'a ConfigFile) -> Settings<'a> {
        Settings { flags, env, file }
    }

    /// The winning setting of a key, checked.
    pub fn get(&self, name: &str) -> Result<Option<Setting>, SettingError> {
        let Some(key) = keys::find(name) else { return Ok(None) };
        let Some(Setting { value, source }) = self.raw(key) else { return Ok(None) };
        match key.parse(&value) {
            Ok(checked) => {
                let value = checked.map_or_else(String::new, |v| match v {
                    Value::String(text) => text,
                    other => other.to_string(),
                });
                Ok(Some(Setting { value, source }))
            }
            // A file that already holds a name the registry refuses must not keep the daemon from starting.
            Err(_) if key.name == "hostname" && matches!(source, Source::File(_)) => {
                Ok(Some(Setting { value, source }))
            }
            Err(reason) => Err(SettingError::at(&source, reason)),
        }
    }

    fn raw(&self, key: &Key) -> Option<Setting> {
        let flag = self.flags.get(key.name).filter(|v| !v.is_empty());
        if let Some(value) = flag {
            return Some(Setting { value: value.clone(), source: Source::Flag(key.name) });
        }
        if let Some((_, variable)) = ENVIRONMENT.iter().find(|(name, _)| *name == key.name)
            && let Some(value) = self.env.get(variable)
        {
            let value = match (key.kind, value) {
                (keys::Kind::Bool, "1") => "true",
                (keys::Kind::Bool, "0") => "false",
                (_, value) => value,
            };
            return Some(Setting { value: value.to_owned(), source: Source::Env(variable) });
        }
        let value = self.file.string(key.name)?;
        Some(Setting { value, source: Source::File(self.file.path().to_owned()) })
    }

    /// The text of a key.
    pub fn text(&self, name: &str) -> Result<Option<String>, SettingError> {
        Ok(self.get(name)?.map(|s| s.value).filter(|v| !v.is_empty()))
    }

    fn on(&self, name: &str, default: bool) -> Result<bool, SettingError> {
        Ok(self.text(name)?.map_or(default, |v| v == "true"))
    }

    fn number<T: FromStr>(&self, name: &'static str, default: T) -> Result<T, SettingError> {
        match self.get(name)? {
            None => Ok(default),
            Some(s) => {
                s.value.parse().map_err(|_| SettingError::at(&s.source, format!("{name} is too large")))
            }
        }
    }

    fn duration(&self, name: &str, default: Duration) -> Result<Duration, SettingError> {
        match self.get(name)? {
            None => Ok(default),
            Some(s) => duration::parse(&s.value).map_err(|reason| SettingError::at(&s.source, reason)),
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> Result<PathBuf, SettingError> {
        Ok(self.text("socket")?.map_or_else(|| self.env.default_socket(), PathBuf::from))
    }

    /// Where the identity is kept.
    pub fn identity(&self) -> Result<PathBuf, SettingError> {
        let default = || self.env.pilot_home().join("identity.json");
        Ok(self.text("identity")?.map_or_else(default, PathBuf::from))
    }

    /// How the log is kept.
    pub fn logging(&self) -> Result<LogSettings, SettingError> {
        let mebibytes: u64 = self.number("log_max_size", DEFAULT_LOG_SIZE_MIB)?;
        Ok(LogSettings {
            level: self.text("log_level")?.unwrap_or_else(|| "info".to_owned()),
            format: match self.text("log_format")?.as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Text,
            },
            max_bytes: mebibytes.saturating_mul(1 << 20),
            backups: self.number("log_max_backups", DEFAULT_LOG_BACKUPS)?,
        })
    }

    /// Settings that were made and do nothing, one sentence each.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        for key in keys::KEYS {
            let Some(Setting { source, value }) = self.raw(key) else { continue };
            let why = match key.effect {
                Effect::Active => continue,
                _ if value == "false" => continue,
                Effect::Vendor => "belongs to a vendor service of the reference; it has no effect here",
                Effect::Absent => "is not part of this version; it has no effect",
            };
            // A flag of a vendor service is reported where flags are parsed.
            if !matches!((&source, key.effect), (Source::Flag(_), Effect::Vendor)) {
                notices.push(format!("notice: {} ({source}) {why}", key.name));
            }
        }
        for name in self.file.unknown_keys() {
            notices.push(format!("warning: {}: unknown key {name:?} is ignored", self.file.path().display()));
        }
        notices
    }

    fn registry_tls(&self) -> Result<Option<RegistryTls>, SettingError> {
        let fingerprint = self.text("registry_fingerprint")?;
        let on = self.on("registry_tls", fingerprint.is_some())?;
        match (on, self.text("registry_trust")?.as_deref(), fingerprint) {
            (false, _, _) => Ok(None),
            (true, Some("system"), _) => Ok(Some(RegistryTls::System)),
            (true, _, Some(digest)) => Ok(Some(RegistryTls::Pinned(digest.to_ascii_lowercase()))),
            (true, _, None) => Err(SettingError::plain(
                "registry_tls needs registry_fingerprint (the SHA-256 of the registry's certificate) or \
                 registry_trust system",
            )),
        }
    }

    /// What carries datagrams. `PILOT_TRANSPORT_DEFAULT` counts where nothing else chooses.
    fn transport(&self) -> Result<Transport, SettingError> {
        let chosen = self.text("transport")?;
        let default = || self.env.get("PILOT_TRANSPORT_DEFAULT").map(str::to_owned);
        match chosen.or_else(default).as_deref() {
            Some("udp") => Ok(Transport::Udp),
            Some("compat") => Ok(Transport::Compat),
            Some("auto") | None => Ok(Transport::Auto),
            Some(other) => Err(SettingError::at(
                &Source::Env("PILOT_TRANSPORT_DEFAULT"),
                format!("invalid transport {other:?}: must be udp, compat or auto"),
            )),
        }
    }

    /// How the certificate of the compat transport is trusted; `None`: as that of the registry, or as it told.
    fn compat_tls(&self) -> Result<Option<RegistryTls>, SettingError> {
        match (self.text("tls_trust")?.as_deref(), self.text("registry_fingerprint")?) {
            (None, _) => Ok(None),
            (Some("system"), _) => Ok(Some(RegistryTls::System)),
            (Some(_), Some(digest)) => Ok(Some(RegistryTls::Pinned(digest.to_ascii_lowercase()))),
            (Some(_), None) => Err(SettingError::plain(
                "tls_trust pinned needs registry_fingerprint (the SHA-256 of the certificate, which registry and \
                 WebSocket share)",
            )),
        }
    }

    fn proxies(&self) -> Result<Proxies, SettingError> {
        let setting = self.get("proxy")?;
        let text = setting.as_ref().map_or("auto", |s| s.value.as_str());
        let choice = ProxyChoice::parse(text, |name| self.env.get(name)).map_err(|why| match &setting {
            Some(setting) => SettingError::at(&setting.source, why),
            None => SettingError::plain(why),
        })?;
        Ok(Proxies::new(choice).with(self.text("proxy_cmd")?, Some(self.env.proxy_credentials())))
    }

    fn tags(&self) -> Result<Vec<String>, SettingError> {
        let Some(Setting { value, source }) = self.get("tags")? else { return Ok(Vec::new()) };
        let mut tags: Vec<String> = Vec::new();
        for tag in value.split(',').map(|t| t.trim().trim_start_matches('#')).filter(|t| !t.is_empty()) {
            let plain = tag.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !plain || tag.len() > MAX_TAG_LEN {
                let reason = format!(
                    "tag {tag:?} must be lowercase alphanumeric with hyphens, at most {MAX_TAG_LEN} characters"
                );
                return Err(SettingError::at(&source, reason));
            }
            if !tags.iter().any(|t| t == tag) {
                tags.push(tag.to_owned());
            }
        }
        match tags.len() <= MAX_TAGS {
            true => Ok(tags),
            false => Err(SettingError::at(&source, format!("too many tags (max {MAX_TAGS})"))),
        }
    }

    /// What the operator says of the node's address; `advertise_endpoint` is told first (spec 04 section 6).
    fn endpoints(&self) -> Result<Vec<String>, SettingError> {
        let mut all: Vec<String> = Vec::new();
        for name in ["advertise_endpoint", "endpoint"] {
            let text = self.text(name)?.unwrap_or_default();
            for endpoint in keys::host_ports(&text) {
                if !all.iter().any(|known| known == endpoint) {
                    all.push(endpoint.to_owned());
                }
            }
        }
        match all.len() <= MAX_ENDPOINTS {
            true => Ok(all),
            false => Err(SettingError::plain(format!("too many endpoints (max {MAX_ENDPOINTS})"))),
        }
    }

    /// What protects somebody and is missing here must not be skipped in silence.
    fn refuse_what_is_missing(&self) -> Result<(), SettingError> {
        let missing = [("security_profile", "enterprise"), ("sandbox", "true")];
        for (name, value) in missing {
            if let Some(setting) = self.get(name)?.filter(|s| s.value == value) {
                let reason =
                    format!("{name} {value} is not part of this version; remove the setting to go on");
                return Err(SettingError::at(&setting.source, reason));
            }
        }
        Ok(())
    }

    /// Everything the daemon needs. `registry` and `beacon` come resolved, since `local` is a process to be found.
    pub fn daemon(&self, registry: &str, beacon: Option<&str>) -> Result<DaemonConfig, SettingError> {
        self.refuse_what_is_missing()?;
        let email = self.text("email")?.or(self.text("owner")?);
        if email.as_ref().is_some_and(|e| !e.contains('@')) {
            return Err(SettingError::plain("invalid email: email address must contain @"));
        }
        let listen = self.text("listen")?.unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let Some(listen) = keys::listen_addr(&listen) else {
            return Err(SettingError::plain("listen must be a host:port address"));
        };
        // Not part of it, and checked with it.
        self.logging()?;
        Ok(DaemonConfig {
            node: NodeConfig {
                registry: registry.to_owned(),
                registry_tls: self.registry_tls()?,
                beacons: beacon.map(str::to_owned).into_iter().collect(),
                transport: self.transport()?,
                compat_beacon: self.text("compat_beacon")?,
                compat_tls: self.compat_tls()?,
                proxies: self.proxies()?,
                listen,
                identity_path: Some(self.identity()?),
                email,
                hostname: self.text("hostname")?,
                tags: self.tags()?,
                public: self.on("public", false)?,
                endpoints: self.endpoints()?,
                port_mapping: self.on("port_mapping", true)?,
                watch_network: !self.on("no_addr_watch", false)?,
                relay_only: self.on("relay_only", false)?,
                trust_auto_approve: self.on("trust_auto_approve", false)?,
                encrypt: self.on("encrypt", true)?,
                session_upgrade: self.on("session_upgrade", true)?,
                strict_dataplane_trust: self.on("strict_dataplane_trust", false)?,
                keepalive: self.duration("keepalive", DEFAULT_KEEPALIVE)?,
                idle_timeout: self.duration("idle_timeout", DEFAULT_IDLE_TIMEOUT)?,
                // Who said how long silence may last meant all of it.
                user_timeout: self
                    .duration("user_timeout", self.duration("idle_timeout", DEFAULT_USER_TIMEOUT)?)?,
                max_conns_per_port: self.number("max_conns_per_port", DEFAULT_CONNS_PER_PORT)?,
                max_conns_total: self.number("max_conns_total", DEFAULT_CONNS_TOTAL)?,
                syn_rate_limit: self.number("syn_rate_limit", DEFAULT_SYN_RATE)?,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                disk: Disk::new(),
            },
            socket: absolute(&self.socket()?),
            home: self.env.pilot_home(),
            no_echo: self.on("no_echo", false)?,
            no_dataexchange: self.on("no_dataexchange", false)?,
            no_eventstream: self.on("no_eventstream", false)?,
            dataexchange_b64: self.on("dataexchange_b64", false)?,
            admin_token: self.text("admin_token")?.map(Secret::from),
            webhook: self.text("webhook")?,
        })
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env(pairs: &[(&str, &str)]) -> Env {
        let home = [("HOME", "/nowhere")];
        Env::from_pairs(home.iter().chain(pairs).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn file(values: Value) -> ConfigFile {
        let mut file = ConfigFile::load(Path::new("/nowhere/.pilot/config.json")).unwrap();
        for (name, value) in values.as_object().unwrap() {
            file.set(name, value.clone());
        }
        file
    }

    fn flags(pairs: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        pairs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect()
    }

    #[test]
    fn flag_beats_environment_beats_file_for_every_key() {
        let env = env(&[("PILOT_REGISTRY", "env:1"), ("PILOT_BEACON", "env:2")]);
        let file =
            file(json!({"registry": "file:1", "beacon": "file:2", "listen": ":4000", "log_level": "debug"}));
        let settings = Settings::new(flags(&[("registry", "flag:1"), ("log_level", "warn")]), &env, &file);
        let text = |name: &str| settings.text(name).unwrap().unwrap();
        assert_eq!(text("registry"), "flag:1");
        assert_eq!(text("beacon"), "env:2");
        assert_eq!(text("listen"), ":4000");
        assert_eq!(text("log_level"), "warn");
    }

    #[test]
    fn a_wrong_value_names_where_it_stands() {
        let (env, file) = (env(&[("PILOT_REGISTRY", "nonsense")]), file(json!({"keepalive": "soon"})));
        let settings = Settings::new(flags(&[("listen", "here")]), &env, &file);
        let error = |name: &str| settings.get(name).unwrap_err().to_string();
        assert_eq!(error("registry"), "PILOT_REGISTRY: registry must be a host:port address");
        assert_eq!(error("listen"), "--listen: listen must be a host:port address");
        assert_eq!(
            error("keepalive"),
            "/nowhere/.pilot/config.json: keepalive must be a non-negative duration"
        );
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let (env, file) = (env(&[]), file(json!({})));
        let config = Settings::new(BTreeMap::new(), &env, &file).daemon("127.0.0.1:9000", None).unwrap();
        assert_eq!(config.socket, Path::new("/tmp/pilot.sock"));
        assert_eq!(config.node.identity_path.as_deref(), Some(Path::new("/nowhere/.pilot/identity.json")));
        assert_eq!(config.node.listen.to_string(), "[::]:0");
        assert!(config.node.endpoints.is_empty() && config.node.port_mapping);
        assert!(config.node.encrypt && !config.node.public);
        assert_eq!(config.node.keepalive, Duration::from_secs(60));
        assert_eq!(config.node.idle_timeout, Duration::from_secs(120));
        assert_eq!(config.node.user_timeout, Duration::from_secs(900));
    }

    #[test]
    fn an_idle_timeout_that_was_set_holds_for_sleeping_peers_too_unless_theirs_is_set() {
        for (keys, wanted) in [
            (json!({"idle_timeout": "30s"}), 30),
            (json!({"idle_timeout": "30s", "user_timeout": "1h"}), 3600),
            (json!({"user_timeout": "0s"}), 0),
        ] {
            let (env, file) = (env(&[]), file(keys));
            let config = Settings::new(BTreeMap::new(), &env, &file).daemon("r:1", None).unwrap();
            assert_eq!(config.node.user_timeout, Duration::from_secs(wanted));
        }
    }

    #[test]
    fn several_endpoints_can_be_given_and_the_advertised_one_is_told() {
        let (env, file) = (env(&[]), file(json!({"advertise_endpoint": "gate.example:1"})));
        let flags = flags(&[("endpoint", "192.0.2.1:4000, [2001:db8::1]:4000,gate.example:1")]);
        let config = Settings::new(flags, &env, &file).daemon("r:1", None).unwrap();
        assert_eq!(config.node.endpoints, ["gate.example:1", "192.0.2.1:4000", "[2001:db8::1]:4000"]);
    }

    #[test]
    fn an_email_needs_an_at_sign() {
        let (env, file) = (env(&[]), file(json!({"email": "nobody"})));
        let error = Settings::new(BTreeMap::new(), &env, &file).daemon("r:1", None).unwrap_err();
        assert_eq!(error.to_string(), "invalid email: email address must contain @");
    }

    #[test]
    fn tags_are_split_stripped_and_checked() {
        let (env, file) = (env(&[]), file(json!({})));
        let tags = |text: &str| {
            let settings = Settings::new(flags(&[("tags", text)]), &env, &file);
            settings.daemon("r:1", None).map(|c| c.node.tags)
        };
        assert_eq!(tags("mcp, #finance,mcp").unwrap(), ["mcp", "finance"]);
        assert!(tags("Big").unwrap_err().to_string().starts_with("--tags: tag \"Big\" must be lowercase"));
        assert_eq!(tags("a,b,c,d,e,f,g,h,i,j,k").unwrap_err().to_string(), "--tags: too many tags (max 10)");
    }

    #[test]
    fn protection_that_is_missing_is_refused_and_the_rest_noticed() {
        let (env, file) = (env(&[]), file(json!({"sandbox": true, "networks": "1", "motd_feed_url": "x"})));
        let settings = Settings::new(BTreeMap::new(), &env, &file);
        let error = settings.daemon("r:1", None).unwrap_err().to_string();
        assert!(error.contains("sandbox true is not part of this version"), "{error}");
        let notices = settings.notices().join("\n");
        assert!(notices.contains("motd_feed_url") && notices.contains("vendor service"), "{notices}");
        assert!(notices.contains("networks (") && notices.contains("not part of this version"), "{notices}");
    }

    #[test]
    fn a_fingerprint_turns_tls_on_and_tls_alone_is_not_enough() {
        let (env, file) = (env(&[]), file(json!({})));
        let digest = "AB".repeat(32);
        let tls = |pairs: &[(&'static str, &str)]| Settings::new(flags(pairs), &env, &file).registry_tls();
        assert_eq!(
            tls(&[("registry_fingerprint", &digest)]),
            Ok(Some(RegistryTls::Pinned(digest.to_ascii_lowercase())))
        );
        assert_eq!(
            tls(&[("registry_tls", "true"), ("registry_trust", "system")]),
            Ok(Some(RegistryTls::System))
        );
        assert!(tls(&[("registry_tls", "true")]).unwrap_err().to_string().contains("registry_fingerprint"));
    }

    #[test]
    fn transport_and_proxy_come_from_flag_environment_file_or_are_automatic() {
        let (plain, proxied) =
            (env(&[]), env(&[("PILOT_TRANSPORT", "udp"), ("ALL_PROXY", "http://u:s3cret@p:1")]));
        let (unit, wrong) =
            (env(&[("PILOT_TRANSPORT_DEFAULT", "udp")]), env(&[("HTTPS_PROXY", "socks5://p:1")]));
        let file = file(json!({"tls_trust": "pinned"}));
        let none = ConfigFile::load(Path::new("/nowhere/.pilot/config.json")).unwrap();
        let node = |env: &Env, given: &[(&'static str, &str)], file: &ConfigFile| {
            Settings::new(flags(given), env, file).daemon("r:1", None).map(|config| config.node)
        };
        let config = node(&plain, &[], &none).unwrap();
        assert_eq!(config.transport, Transport::Auto);
        assert_eq!(config.proxies.choice, ProxyChoice::Environment { proxy: None, except: String::new() });
        let config = node(&proxied, &[], &none).unwrap();
        assert_eq!(config.transport, Transport::Udp);
        let ProxyChoice::Environment { proxy: Some(proxy), .. } = config.proxies.choice else {
            panic!("no proxy")
        };
        assert_eq!(proxy.to_string(), "http://***@p:1");
        assert_eq!(node(&unit, &[], &none).unwrap().transport, Transport::Udp);
        let config = node(&proxied, &[("transport", "compat"), ("proxy", "off")], &none).unwrap();
        assert_eq!((config.transport, config.proxies.choice), (Transport::Compat, ProxyChoice::Off));
        let error = |env: &Env, given: &[(&'static str, &str)], file: &ConfigFile| {
            node(env, given, file).unwrap_err().to_string()
        };
        assert!(
            error(&wrong, &[], &none)
                .starts_with("HTTPS_PROXY: invalid proxy URL: socks5:// is no HTTP proxy")
        );
        assert!(
            error(&plain, &[("proxy", "ftp://s3cret@p")], &none)
                .starts_with("--proxy: proxy: invalid proxy URL")
        );
        assert!(error(&plain, &[], &file).contains("tls_trust pinned needs registry_fingerprint"));
        assert!(error(&plain, &[("transport", "tcp")], &none).contains("must be 'udp', 'compat' or 'auto'"));
    }

    #[test]
    fn what_is_printed_of_settings_holds_no_secret() {
        let flags = BTreeMap::from([("admin_token", "s3cret".to_owned())]);
        let env = env(&[("PILOT_WEBHOOK_SECRET", "s3cret")]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"admin_token": "s3cret"}"#).unwrap();
        let file = ConfigFile::load(&path).unwrap();
        let settings = Settings::new(flags, &env, &file);
        let setting = settings.get("admin_token").unwrap().unwrap();
        assert_eq!(setting.value, "s3cret");
        let config = settings.daemon("127.0.0.1:9000", None).unwrap();
        assert_eq!(config.admin_token.as_ref().map(Secret::expose), Some("s3cret"));
        for printed in [
            format!("{settings:?}"),
            format!("{setting:?}"),
            format!("{env:?}"),
            format!("{file:?}"),
            format!("{config:?}"),
        ] {
            assert!(!printed.contains("s3cret"), "{printed}");
        }
    }
}
