//! What was found out, as `pilotctl netcheck --json` prints it.

use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// What this network allows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// How a node connects from here.
    pub connects: Connects,
    /// What was found and what it means, a sentence each.
    pub summary: Vec<String>,
    /// What would make it better, a sentence each.
    pub advice: Vec<String>,
    /// The registry.
    pub registry: Registry,
    /// UDP.
    pub udp: Udp,
    /// The way for networks without UDP; `None`: the registry names none, or a daemon's word was taken.
    pub websocket: Option<WebSocket>,
    /// IPv4.
    pub ipv4: Family,
    /// IPv6.
    pub ipv6: Family,
    /// The NAT in front of this host.
    pub nat: Nat,
    /// Ports of the router.
    pub port_mapping: PortMapping,
    /// All beacons that are known.
    pub beacons: Vec<Beacon>,
    /// What fits on the way to the fastest beacon; `None`: not measured.
    pub mtu: Option<PathMtu>,
    /// Somebody answers in the registry's place.
    pub captive: Captive,
    /// Proxies the environment names.
    pub proxy: Proxy,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// How a node connects from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connects {
    /// Directly with most peers.
    Directly,
    /// Directly with some, through the relay with the others.
    Mixed,
    /// Through the relay.
    Relayed,
    /// Only with peers this node knows already.
    KnownPeers,
    /// Not at all.
    #[default]
    No,
}

/// The registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Registry {
    /// `host:port`; empty: none is named.
    pub addr: String,
    /// It answers.
    pub reachable: bool,
    /// `tcp`, `tls`, or `daemon` if it is the daemon's word.
    pub how: &'static str,
    /// Where it was reached.
    pub ip: Option<IpAddr>,
    /// Time for connection and answer, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it does not answer; empty if it does.
    pub error: String,
}

/// UDP.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Udp {
    /// A beacon answers.
    pub works: bool,
    /// Why it could not be tried; empty if it could.
    pub error: String,
}

/// The WebSocket to the beacon.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WebSocket {
    /// `wss://host:port/path`.
    pub url: String,
    /// It can be opened.
    pub works: bool,
    /// Why not; empty if it can.
    pub error: String,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Family {
    /// Addresses of this host's interfaces, without loopback and link-local IPv6.
    pub addresses: Vec<IpAddr>,
    /// The system knows a way to one of the addresses that were tried.
    pub route: bool,
    /// A beacon answers by it; `None`: no beacon has such an address.
    pub works: Option<bool>,
    /// Where a beacon sees this host.
    pub seen_as: Option<SocketAddr>,
}

/// The NAT in front of this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Nat {
    /// `none`, `endpoint_independent`, `per_destination_predictable`, `per_destination_random` or `unknown`.
    pub class: &'static str,
    /// The same in words.
    pub meaning: String,
    /// Ports are given one after the other, so that peers can guess them.
    pub predictable: bool,
    /// The outside port is the inside one.
    pub keeps_port: Option<bool>,
}

/// Ports of the router.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PortMapping {
    /// `pcp`, `nat-pmp`, `upnp`; `none`; `off` by the settings; `not_needed` without NAT.
    pub protocol: &'static str,
    /// The address from outside.
    pub external: Option<SocketAddr>,
    /// Why there is none; empty else.
    pub error: String,
}

/// One address of a beacon.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Beacon {
    /// `host:port` as it was named.
    pub name: String,
    /// `None`: the name could not be looked up.
    pub address: Option<SocketAddr>,
    /// It answers.
    pub ok: bool,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Where it sees this host.
    pub seen_as: Option<SocketAddr>,
    /// Why it does not answer; empty if it does.
    pub error: String,
}

/// What fits on a way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathMtu {
    /// To whom.
    pub to: SocketAddr,
    /// Largest IP packet that got through, of those tried, up to 1,500 bytes.
    pub packet: usize,
    /// The same without IP and UDP headers.
    pub udp_payload: usize,
}

/// Somebody answers in the registry's place.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Captive {
    /// So it seems.
    pub suspected: bool,
    /// What was seen; empty if nothing.
    pub why: String,
}

/// Proxies the environment names.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Proxy {
    /// Variable and value, without credentials.
    pub variables: Vec<ProxyVariable>,
}

/// One variable.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ProxyVariable {
    /// As it is written.
    pub name: String,
    /// Without credentials.
    pub value: String,
}
