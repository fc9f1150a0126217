//! Every configuration key: its type, what it accepts, and the words of a refusal (spec 08 section 1.10).

use super::duration;
use pilot::ProxyChoice;
use serde_json::{Value, json};
use std::net::{Ipv6Addr, SocketAddr};

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `host:port`.
    HostPort,
    /// One or several `host:port`, separated by commas.
    HostPorts,
    /// `host:port`, or `local` for the rendezvous of this machine.
    Registry,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A URL with one of these schemes, without user information.
    Url(&'static [&'static str]),
    /// A host name label.
    Hostname,
    /// 64 hexadecimal digits.
    Sha256,
    /// A local `[host]:port` to bind.
    Listen,
    /// `auto`, `off`, or the URL of an HTTP proxy.
    Proxy,
    /// `true` or `false`.
    Bool,
    /// A whole number, not negative.
    Int,
    /// A duration with a unit.
    Duration,
}

/// One configuration key; its flag is the name with `-` for `_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Name as in the file.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What comes of it here.
    pub effect: Effect,
}

/// What a key does in this implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It works.
    Active,
    /// It belongs to a vendor service of the reference: accepted, without effect.
    Vendor,
    /// What it sets does not exist in this version: accepted, without effect, with a notice.
    Absent,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, effect: Effect::Active }
}

const fn vendor(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, effect: Effect::Vendor }
}

const fn absent(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, effect: Effect::Absent }
}

const TRUST: Kind = Kind::OneOf(&["pinned", "system"]);

/// All keys, sorted by name.
pub const KEYS: &[Key] = &[
    key("admin_token", Kind::Text),
    key("advertise_endpoint", Kind::HostPorts),
    key("beacon", Kind::HostPort),
    absent("beacon_rtt_probe", Kind::Bool),
    key("compat_beacon", Kind::Url(&["wss", "ws"])),
    key("dataexchange_b64", Kind::Bool),
    key("email", Kind::Text),
    key("encrypt", Kind::Bool),
    key("endpoint", Kind::HostPorts),
    key("hostname", Kind::Hostname),
    key("identity", Kind::Text),
    key("idle_timeout", Kind::Duration),
    key("keepalive", Kind::Duration),
    key("listen", Kind::Listen),
    key("log_format", Kind::OneOf(&["text", "json"])),
    key("log_level", Kind::OneOf(&["trace", "debug", "info", "warn", "error"])),
    key("log_max_backups", Kind::Int),
    key("log_max_size", Kind::Int),
    key("max_conns_per_port", Kind::Int),
    key("max_conns_total", Kind::Int),
    vendor("motd_feed_url", Kind::Text),
    vendor("motd_interval", Kind::Duration),
    absent("networks", Kind::Text),
    key("no_addr_watch", Kind::Bool),
    key("no_dataexchange", Kind::Bool),
    key("no_echo", Kind::Bool),
    key("no_eventstream", Kind::Bool),
    absent("no_path_watch", Kind::Bool),
    absent("no_rx_watchdog", Kind::Bool),
    vendor("no_skillinject", Kind::Bool),
    key("owner", Kind::Text),
    key("port_mapping", Kind::Bool),
    key("proxy", Kind::Proxy),
    key("proxy_cmd", Kind::Text),
    key("public", Kind::Bool),
    key("registry", Kind::Registry),
    key("registry_fingerprint", Kind::Sha256),
    key("registry_tls", Kind::Bool),
    key("registry_trust", TRUST),
    absent("rekey_whitelist", Kind::Text),
    key("relay_only", Kind::Bool),
    absent("reply_whitelist", Kind::Text),
    key("sandbox", Kind::Bool),
    absent("sandbox_dir", Kind::Text),
    key("security_profile", Kind::OneOf(&["compatible", "enterprise"])),
    key("session_upgrade", Kind::Bool),
    key("socket", Kind::Text),
    key("strict_dataplane_trust", Kind::Bool),
    key("syn_rate_limit", Kind::Int),
    absent("syn_whitelist", Kind::Text),
    key("tags", Kind::Text),
    vendor("telemetry_url", Kind::Text),
    absent("time_wait", Kind::Duration),
    key("tls_trust", TRUST),
    key("transport", Kind::OneOf(&["udp", "compat", "auto"])),
    key("trust_auto_approve", Kind::Bool),
    key("user_timeout", Kind::Duration),
    key("webhook", Kind::Url(&["http", "https"])),
    absent("webhook_secret", Kind::Text),
];

/// The value of `registry` that stands for the rendezvous of this machine.
pub const LOCAL: &str = "local";

/// Keys an empty value deletes.
const CLEARABLE: [&str; 3] = ["transport", "proxy", "proxy_cmd"];

/// The key of that name; `-` and `_` are the same.
pub fn find(name: &str) -> Option<&'static Key> {
    let name = name.replace('-', "_");
    KEYS.binary_search_by(|k| k.name.cmp(&name)).ok().map(|i| &KEYS[i])
}

impl Key {
    /// Checks a text and gives the value for the file; `None`: the key is to be removed. The error is complete
    /// after `config: `.
    pub fn parse(&self, text: &str) -> Result<Option<Value>, String> {
        let (name, text) = (self.name, text.trim());
        if text.is_empty() {
            return match CLEARABLE.contains(&name) {
                true => Ok(None),
                false => Err(format!("{name} must not be empty")),
            };
        }
        let value = match self.kind {
            Kind::Text => json!(text),
            Kind::HostPort if is_host_port(text) => json!(text),
            Kind::HostPorts if host_ports(text).next().is_some() && host_ports(text).all(is_host_port) => {
                json!(text)
            }
            Kind::HostPorts => {
                return Err(format!("{name} must be a host:port address, or several with commas"));
            }
            Kind::Registry if text == LOCAL || is_host_port(text) => json!(text),
            Kind::HostPort | Kind::Registry => return Err(format!("{name} must be a host:port address")),
            Kind::OneOf(words) if words.contains(&text) => json!(text),
            Kind::OneOf(_) => return Err(self.one_of_text(text)),
            Kind::Url(schemes) if is_url(text, schemes) => json!(text),
            Kind::Url(_) => return Err(format!("invalid URL for {name}")),
            Kind::Hostname if is_hostname(text) => json!(text),
            Kind::Hostname => {
                return Err("hostname must be 1-63 lowercase letters, digits or internal hyphens".to_owned());
            }
            Kind::Sha256 if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) => json!(text),
            Kind::Sha256 => return Err(format!("{name} must be a SHA-256 hex digest")),
            Kind::Listen => match listen_addr(text) {
                Some(_) => json!(text),
                None => return Err(format!("{name} must be a host:port address")),
            },
            // The words are not repeated: a URL may hold a password.
            Kind::Proxy => match ProxyChoice::parse(text, |_| None) {
                Ok(_) => json!(text),
                Err(why) => return Err(format!("{name}: {why}, auto or off")),
            },
            Kind::Bool => match text {
                "true" => json!(true),
                "false" => json!(false),
                _ => return Err(format!("{name} must be true or false")),
            },
            Kind::Int => match text.parse::<u64>() {
                Ok(number) => json!(number),
                Err(_) => return Err(format!("{name} must be a non-negative integer")),
            },
            Kind::Duration => match duration::parse(text) {
                Ok(_) => json!(text),
                Err(_) => return Err(format!("{name} must be a non-negative duration")),
            },
        };
        Ok(Some(value))
    }

    fn one_of_text(&self, given: &str) -> String {
        match self.name {
            "registry_trust" | "tls_trust" => format!("{} must be pinned or system", self.name),
            "log_format" => "log_format must be text or json".to_owned(),
            "security_profile" => "security_profile must be compatible or enterprise".to_owned(),
            "transport" => format!("invalid transport {given:?}: must be 'udp', 'compat' or 'auto'"),
            name => format!("invalid {name}"),
        }
    }
}

/// The entries of a list of `host:port`.
pub fn host_ports(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// `host:port` with a port in 1..=65535; an IPv6 host is in brackets.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_ok =
        !host.is_empty() && (bracketed || !host.contains(':')) && !host.contains(char::is_whitespace);
    host_ok && port.parse::<u16>().is_ok_and(|p| p > 0)
}

fn is_url(text: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    schemes.contains(&scheme)
        && !authority.is_empty()
        && !authority.contains('@')
        && !text.contains(char::is_whitespace)
}

/// 1 to 63 lower-case letters, digits or internal hyphens.
pub fn is_hostname(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| plain(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| plain(*b))
        && bytes.last().is_some_and(|b| plain(*b))
}

/// A local address to bind; `:0` means every address of both families.
pub fn listen_addr(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => port.parse().ok().map(|port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_look_up_works() {
        assert!(KEYS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert_eq!(find("log-level").map(|k| k.name), Some("log_level"));
        assert_eq!(find("foo"), None);
    }

    #[test]
    fn refusals_carry_the_words_of_the_specification() {
        let refused = |name: &str, text: &str| find(name).unwrap().parse(text).unwrap_err();
        assert_eq!(refused("public", "yes"), "public must be true or false");
        assert_eq!(refused("log_max_size", "-1"), "log_max_size must be a non-negative integer");
        assert_eq!(refused("keepalive", "60"), "keepalive must be a non-negative duration");
        assert_eq!(refused("registry", "example.org"), "registry must be a host:port address");
        assert_eq!(
            refused("hostname", "Bad_Host"),
            "hostname must be 1-63 lowercase letters, digits or internal hyphens"
        );
        assert_eq!(refused("webhook", "ftp://x"), "invalid URL for webhook");
        assert_eq!(refused("webhook", "http://u:p@x/"), "invalid URL for webhook");
        assert_eq!(refused("registry_trust", "maybe"), "registry_trust must be pinned or system");
        assert_eq!(
            refused("registry_fingerprint", "ab"),
            "registry_fingerprint must be a SHA-256 hex digest"
        );
        assert_eq!(refused("log_level", "loud"), "invalid log_level");
        assert_eq!(refused("log_format", "xml"), "log_format must be text or json");
        assert_eq!(
            refused("transport", "foo"),
            "invalid transport \"foo\": must be 'udp', 'compat' or 'auto'"
        );
        assert_eq!(refused("hostname", " "), "hostname must not be empty");
        let several = "must be a host:port address, or several with commas";
        assert_eq!(refused("endpoint", "192.0.2.1:4000, nowhere"), format!("endpoint {several}"));
        assert_eq!(refused("advertise_endpoint", ","), format!("advertise_endpoint {several}"));
    }

    #[test]
    fn only_three_keys_are_removed_by_an_empty_value() {
        for name in ["transport", "proxy", "proxy_cmd"] {
            assert_eq!(find(name).unwrap().parse(""), Ok(None));
        }
    }

    #[test]
    fn endpoints_are_lists() {
        let text = "192.0.2.1:4000, [2001:db8::1]:4000";
        assert_eq!(find("endpoint").unwrap().parse(text), Ok(Some(json!(text))));
        assert_eq!(host_ports(text).collect::<Vec<_>>(), ["192.0.2.1:4000", "[2001:db8::1]:4000"]);
    }

    #[test]
    fn a_bare_port_is_every_address_of_both_families() {
        assert_eq!(listen_addr(":4000").unwrap().to_string(), "[::]:4000");
        assert_eq!(listen_addr("0.0.0.0:4000").unwrap().to_string(), "0.0.0.0:4000");
    }

    #[test]
    fn ipv6_hosts_stand_in_brackets() {
        assert!(is_host_port("[::1]:9000") && is_host_port("example.org:443"));
        assert!(!is_host_port("::1:9000") && !is_host_port("host:0") && !is_host_port(":9000"));
    }
}
