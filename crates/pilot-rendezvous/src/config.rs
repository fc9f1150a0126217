//! What an operator can set.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Default TCP port of the registry.
pub const REGISTRY_PORT: u16 = 9000;
/// Default UDP port of the beacon.
pub const BEACON_PORT: u16 = 9001;

/// Settings of one registry and beacon.
#[derive(Clone)]
pub struct Config {
    /// TCP address of the registry; port 0 picks a free one. `[::]` serves both families, where there is no IPv6 IPv4
    /// alone; the same goes for the beacon.
    pub registry_addr: SocketAddr,
    /// UDP address of the beacon; port 0 picks a free one.
    pub beacon_addr: SocketAddr,
    /// Where the beacon answers Discovers a second time, so that a node sees how its NAT maps.
    pub beacon_probe: ProbePort,
    /// `host:port` under which nodes reach the beacon, handed out in place of the address of relay-only nodes.
    /// `None`: the beacon's address if it is bound to one, else the address a client reached the registry at, with
    /// the beacon's port.
    pub advertise_beacon: Option<String>,
    /// Where the directory is kept.
    pub store: StoreConfig,
    /// Encryption of registry connections.
    pub tls: Tls,
    /// A second TCP address, always with TLS, for networks that let out little else than port 443. Registry and compat
    /// transport (spec 04 section 17) share it, as they share the first.
    pub tls_listener: Option<TlsListener>,
    /// `wss://` or `ws://` URL under which nodes reach the compat transport, if a reverse proxy is in front of it. `None`: a
    /// node takes the host it knows the registry by, and the port of the listener with TLS if there is one.
    pub advertise_compat: Option<String>,
    /// Token for network administration; `None` disables requests that need it.
    pub admin_token: Option<String>,
    /// Most identities kept, online or not (1 to 4,294,967,295).
    pub max_nodes: u32,
    /// A node not heard of for this long is taken out of the directory. Its id stays bound to its key.
    pub stale_after: Duration,
    /// Abuse control.
    pub limits: Limits,
    /// Beacons whose Sync messages are accepted and which get ours.
    pub beacon_peers: Vec<SocketAddr>,
    /// Number of this beacon in Sync messages.
    pub beacon_id: u32,
}

impl fmt::Debug for Config {
    /// All settings but the admin token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("registry_addr", &self.registry_addr)
            .field("beacon_addr", &self.beacon_addr)
            .field("beacon_probe", &self.beacon_probe)
            .field("advertise_beacon", &self.advertise_beacon)
            .field("store", &self.store)
            .field("tls", &self.tls)
            .field("tls_listener", &self.tls_listener)
            .field("advertise_compat", &self.advertise_compat)
            .field("admin_token", &self.admin_token.as_ref().map(|_| "(set)"))
            .field("max_nodes", &self.max_nodes)
            .field("stale_after", &self.stale_after)
            .field("limits", &self.limits)
            .field("beacon_peers", &self.beacon_peers)
            .field("beacon_id", &self.beacon_id)
            .finish()
    }
}

impl Default for Config {
    fn default() -> Config {
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        Config {
            registry_addr: SocketAddr::new(any, REGISTRY_PORT),
            beacon_addr: SocketAddr::new(any, BEACON_PORT),
            beacon_probe: ProbePort::Next,
            advertise_beacon: None,
            store: StoreConfig::Memory,
            tls: Tls::Off,
            tls_listener: None,
            advertise_compat: None,
            admin_token: None,
            max_nodes: 1_000_000,
            stale_after: Duration::from_secs(30 * 60),
            limits: Limits::default(),
            beacon_peers: Vec::new(),
            beacon_id: 0,
        }
    }
}

impl Config {
    /// Registry and beacon on free loopback ports, nothing on disk: for tests and embedding.
    pub fn loopback() -> Config {
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Config { registry_addr: local, beacon_addr: local, ..Config::default() }
    }
}

/// The second UDP port of the beacon. At it nothing but Discovers is answered, and nothing is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbePort {
    /// The one after the beacon's, or a free one where the beacon takes a free one; none if that is taken.
    Next,
    /// This one.
    At(u16),
    /// None: nodes of other operators' beacons or with two beacons do not need it.
    Off,
}

/// Where the directory is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// Gone when the process ends.
    Memory,
    /// A SQLite file, created if missing; its folder must exist.
    File(PathBuf),
}

/// Encryption of registry connections (spec 05 section 2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain TCP.
    Off,
    /// Certificate chain and private key, PEM.
    Files {
        /// Certificate chain, leaf first.
        cert: PathBuf,
        /// PKCS#8, SEC1 or PKCS#1 key.
        key: PathBuf,
    },
    /// A self-signed certificate, made once and kept beside the store file, so that its fingerprint survives
    /// restarts; with [`StoreConfig::Memory`] it lives as long as the process.
    SelfSigned,
}

/// An address that is served with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsListener {
    /// Port 0 picks a free one.
    pub addr: SocketAddr,
    /// The certificate; not [`Tls::Off`].
    pub tls: Tls,
}

/// A token bucket: `burst` at once, then `per_second`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens added per second.
    pub per_second: f64,
    /// Most tokens held.
    pub burst: f64,
}

/// Abuse control. A source is an IPv4 address or an IPv6 /64, a network an IPv4 /24 or an IPv6 /56. The figures
/// leave room for several hundred agents behind one address, each with five connections, that all start at once.
#[derive(Debug, Clone)]
pub struct Limits {
    /// New TCP connections per source.
    pub connections: Rate,
    /// New TCP connections per network.
    pub network_connections: Rate,
    /// TCP connections a source may hold.
    pub per_source: usize,
    /// TCP connections a network may hold.
    pub per_network: usize,
    /// Registrations per source of keys the registry does not know yet; known keys are exempt.
    pub registrations: Rate,
    /// `lookup`, `resolve` and `resolve_hostname` together, per source, on connections that speak for no node.
    pub lookups: Rate,
    /// The same per node, on connections that speak for one.
    pub node_lookups: Rate,
    /// All requests of one connection; more are delayed, not refused.
    pub requests: Rate,
    /// Work for one source, in units of about 10 µs: 1 for a request, more for a signature, a change or many bytes.
    /// What exceeds it is delayed, and refused from a delay of 4 s.
    pub work: Rate,
    /// The same for one network.
    pub network_work: Rate,
    /// Most TCP connections at a time, and never more than the system lets the process have. When all are taken,
    /// those that have not spoken for a node give way first, then idle ones, of the network that holds most.
    pub max_connections: usize,
    /// Sources that no rate applies to, as (network, prefix length).
    pub exempt: Vec<(IpAddr, u8)>,
    /// Loopback sources are exempt too.
    pub exempt_loopback: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: Rate { per_second: 100.0, burst: 2_000.0 },
            network_connections: Rate { per_second: 400.0, burst: 8_000.0 },
            per_source: 4_096,
            per_network: 16_384,
            registrations: Rate { per_second: 1.0, burst: 500.0 },
            lookups: Rate { per_second: 50.0, burst: 2_000.0 },
            node_lookups: Rate { per_second: 500.0, burst: 2_000.0 },
            requests: Rate { per_second: 200.0, burst: 1000.0 },
            work: Rate { per_second: 5_000.0, burst: 50_000.0 },
            network_work: Rate { per_second: 20_000.0, burst: 200_000.0 },
            max_connections: 100_000,
            exempt: Vec::new(),
            exempt_loopback: true,
        }
    }
}
