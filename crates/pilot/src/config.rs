//! Settings of a node and why one does not start.

use crate::proxy::Proxies;
use pilot_disk::Disk;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How the registry's TLS certificate is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryTls {
    /// SHA-256 of the leaf certificate, 64 lower-case hex digits.
    Pinned(String),
    /// The operating system's roots, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    System,
    /// Either of these: a certificate the registry told of earlier, which it may have renewed since.
    PinnedOrSystem(String),
}

/// What carries datagrams to the beacon (spec 04 section 17).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// UDP alone.
    Udp,
    /// A WebSocket alone; the registry is reached with TLS.
    Compat,
    /// UDP while the beacon answers over it, a WebSocket while it does not.
    #[default]
    Auto,
}

/// Settings of a node. `NodeConfig::default()` is a private, encrypted node of a registry on this host.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `host:port` of the registry.
    pub registry: String,
    /// TLS towards the registry; `None`: plain TCP.
    pub registry_tls: Option<RegistryTls>,
    /// `host:port` of beacons, first one preferred. Empty: the registry's host, port as it says, else 9001.
    pub beacons: Vec<String>,
    /// What carries datagrams.
    pub transport: Transport,
    /// `wss://` or `ws://` URL of the beacon's WebSocket. `None`: as the registry says, else on the registry's own port.
    pub compat_beacon: Option<String>,
    /// How the certificate of the WebSocket, and of a registry reached the same way, is trusted. `None`: like that of the
    /// registry; without any, one the registry told of earlier, or the system's roots.
    pub compat_tls: Option<RegistryTls>,
    /// Proxies on the way to registry and WebSocket.
    pub proxies: Proxies,
    /// UDP listen address. `[::]` serves IPv6 and IPv4 on one port, where there is no IPv6 the latter alone; `0.0.0.0`
    /// serves IPv4.
    pub listen: SocketAddr,
    /// Where the identity is kept; `None`: a fresh one, not stored. `trust.json` lies beside it.
    pub identity_path: Option<PathBuf>,
    /// Owner told to the registry; `None`: a name made from the public key.
    pub email: Option<String>,
    /// Name to hold at the registry.
    pub hostname: Option<String>,
    /// Tags to set at the registry.
    pub tags: Vec<String>,
    /// Anyone may resolve and reach this node.
    pub public: bool,
    /// `host:port` the operator knows to lead to this node; the first is registered instead of the observed one.
    pub endpoints: Vec<String>,
    /// Ask the router for a port that leads here (PCP, NAT-PMP, UPnP-IGD).
    pub port_mapping: bool,
    /// Follow changes of this host's network, and its sleep.
    pub watch_network: bool,
    /// Never send to or tell direct addresses; everything goes through the beacon.
    pub relay_only: bool,
    /// Trust everyone who asks.
    pub trust_auto_approve: bool,
    /// Tunnel encryption; off only on the operator's word.
    pub encrypt: bool,
    /// Offer and take the session upgrade among our own nodes (docs/extensions.md).
    pub session_upgrade: bool,
    /// On a private node: ignore key exchanges and pings of untrusted nodes (spec 02 section 13).
    pub strict_dataplane_trust: bool,
    /// Registry heartbeat interval and stream keepalive.
    pub keepalive: Duration,
    /// Silence after which a stream is closed.
    pub idle_timeout: Duration,
    /// Silence of a node of our own kind that its streams outlive, because its machine may be asleep (RFC 5482's user timeout).
    pub user_timeout: Duration,
    /// Most connections per listening port.
    pub max_conns_per_port: usize,
    /// Most connections in total.
    pub max_conns_total: usize,
    /// Most connection attempts per second from all peers together; 0: no limit.
    pub syn_rate_limit: u32,
    /// Version told to the registry.
    pub version: String,
    /// How the files are written.
    pub disk: Disk,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            registry: "127.0.0.1:9000".into(),
            registry_tls: None,
            beacons: Vec::new(),
            transport: Transport::default(),
            compat_beacon: None,
            compat_tls: None,
            proxies: Proxies::default(),
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
            identity_path: None,
            email: None,
            hostname: None,
            tags: Vec::new(),
            public: false,
            endpoints: Vec::new(),
            port_mapping: true,
            watch_network: true,
            relay_only: false,
            trust_auto_approve: false,
            encrypt: true,
            session_upgrade: true,
            strict_dataplane_trust: false,
            keepalive: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(120),
            user_timeout: Duration::from_secs(900),
            max_conns_per_port: 1024,
            max_conns_total: 65_536,
            syn_rate_limit: 100,
            version: env!("CARGO_PKG_VERSION").into(),
            disk: Disk::new(),
        }
    }
}

impl NodeConfig {
    /// How the registry is spoken to: the transport without UDP always asks for TLS (spec 04 section 17.1).
    pub(crate) fn trust_of_registry(&self) -> Option<RegistryTls> {
        match (&self.registry_tls, self.transport) {
            (None, Transport::Compat) => Some(self.compat_tls.clone().unwrap_or(RegistryTls::System)),
            (trust, _) => trust.clone(),
        }
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity file cannot be used; the text says how to mend it.
    #[error("{0}")]
    Identity(String),
    /// The UDP socket could not be bound.
    #[error("bind {addr}: {error}")]
    Bind {
        /// Address.
        addr: SocketAddr,
        /// Cause.
        error: std::io::Error,
    },
    /// The registry refused, or its certificate is not the one expected.
    #[error("register: registry: {0}")]
    Register(String),
    /// The registry cannot be reached or does not answer; the text names it and the cause.
    #[error("{0}")]
    Unreachable(String),
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
}

/// Splits `host:port`, with brackets around an IPv6 host.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, u16), String> {
    let bad = |why: &str| format!("invalid address {text:?}: {why} (expected host:port)");
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("no port"))?;
    let port = port.parse().map_err(|_| bad("the port is not a number in 0..=65535"))?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(|| bad("no closing bracket"))?,
        None if host.contains(':') => return Err(bad("an IPv6 host needs brackets")),
        None => host,
    };
    if host.is_empty() {
        return Err(bad("no host"));
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_split_and_mistakes_are_named() {
        assert_eq!(split_host_port("a.example:9000"), Ok(("a.example", 9000)));
        assert_eq!(split_host_port("[::1]:1"), Ok(("::1", 1)));
        assert_eq!(
            split_host_port("a.example").unwrap_err(),
            r#"invalid address "a.example": no port (expected host:port)"#
        );
        assert!(split_host_port("::1:9000").unwrap_err().contains("an IPv6 host needs brackets"));
        assert!(split_host_port(":9000").unwrap_err().contains("no host"));
        assert!(split_host_port("h:70000").unwrap_err().contains("not a number in 0..=65535"));
    }
}
