//! What this network allows: questions to the registry, to beacons and to the router, from a socket of our own, whether a
//! node runs or not. Nobody is registered, and nothing stays behind.

mod probe;
mod report;
mod verdict;

pub use report::{
    Beacon, Captive, Connects, Family, Nat, PathMtu, PortMapping, Proxy, ProxyVariable, Registry, Report,
    Udp, WebSocket,
};
pub use verdict::{DaemonView, judge};

use crate::beacons::{has_route, listed, with_port};
use crate::carrier::{Target, try_out};
use crate::config::{NodeConfig, split_host_port};
use crate::registry::{Client, Door};
use crate::{mapping, platform};
use probe::Prober;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for the registry's answer.
const REGISTRY: Duration = Duration::from_secs(4);
/// Time for looking up a name.
const LOOK_UP: Duration = Duration::from_secs(3);
/// Time for the router.
const ROUTER: Duration = Duration::from_secs(5);
/// Time to see whether somebody else answers in the registry's place.
const STRANGER: Duration = Duration::from_secs(2);
/// Addresses of beacons that are asked.
const MAX_BEACONS: usize = 16;
/// UDP port of a beacon that nobody named.
const BEACON_PORT: u16 = 9001;
/// Variables that name proxies; the same in small letters.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct Check {
    /// `host:port`; `None`: none is named.
    pub registry: Option<String>,
    /// `host:port` of beacons; empty: the registry's.
    pub beacons: Vec<String>,
    /// Ask the router for a port; it is given back at once.
    pub port_mapping: bool,
    /// What a node here would have for the rest: trust in certificates, proxies, transport.
    pub node: NodeConfig,
    /// A node runs here and has said what it knows.
    pub daemon: Option<DaemonView>,
}

impl Check {
    /// Everything is on this host: the network around it does not matter.
    fn alone(&self) -> bool {
        let here = |addr: &String| {
            let host = split_host_port(addr).map_or("", |(host, _)| host);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        self.registry.as_ref().is_none_or(here) && self.beacons.iter().all(here)
    }
}

/// What the registry said.
#[derive(Default)]
struct Asked {
    registry: Registry,
    listed: Vec<String>,
    beacon_port: Option<u16>,
    beacon_ports: Vec<u16>,
    captive: Captive,
    websocket: Option<WebSocket>,
}

/// Checks the network, within about ten seconds. `progress` hears what is being done.
pub async fn netcheck(check: Check, progress: impl Fn(&str)) -> Report {
    let began = Instant::now();
    let addresses: Vec<IpAddr> = platform::interfaces().iter().map(|i| i.ip).collect();
    let mut report = Report {
        proxy: Proxy { variables: proxies(std::env::vars()) },
        ipv4: family(&addresses, IpAddr::is_ipv4),
        ipv6: family(&addresses, IpAddr::is_ipv6),
        ..Report::default()
    };
    progress("asking the registry and the beacons");
    let prober = match Prober::new(&addresses) {
        Ok(prober) => Some(prober),
        Err(error) => {
            report.udp.error = format!("no UDP socket: {error}");
            None
        }
    };
    // The port that is mapped is given back, so the socket's own is as good as any.
    let port = prober.as_ref().map_or(0, Prober::port);
    let router = async {
        let any = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port);
        let attempt = async { timeout(ROUTER, mapping::attempt(any)).await };
        match check.port_mapping && port != 0 {
            true if check.alone() => Some(Ok(None)),
            true => Some(attempt.await),
            false => None,
        }
    };
    let ((), router) = tokio::join!(ask(&check, &mut report, prober.as_ref(), &progress), router);
    report.port_mapping = match router {
        None => PortMapping { protocol: "off", ..PortMapping::default() },
        Some(Ok(Some(Ok((protocol, external))))) => {
            PortMapping { protocol, external: Some(external), error: String::new() }
        }
        Some(Ok(Some(Err(error)))) => PortMapping { protocol: "none", external: None, error },
        Some(Ok(None)) => PortMapping { protocol: "not_needed", ..PortMapping::default() },
        Some(Err(_)) => {
            let error = format!("the router said nothing within {} s", ROUTER.as_secs());
            PortMapping { protocol: "none", external: None, error }
        }
    };
    report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    judge(&mut report, check.daemon.as_ref());
    report
}

/// Registry, beacons, NAT and sizes.
async fn ask(check: &Check, report: &mut Report, prober: Option<&Prober>, progress: &impl Fn(&str)) {
    // A running node knows better whether its registry answers, and how to reach it.
    let asking = async {
        match (&check.registry, &check.daemon) {
            (Some(addr), None) => ask_registry(addr, &check.node).await,
            (addr, daemon) => Asked {
                registry: Registry {
                    addr: addr.clone().unwrap_or_default(),
                    reachable: daemon.as_ref().is_some_and(|daemon| daemon.registry_ok),
                    how: if daemon.is_some() { "daemon" } else { "" },
                    error: match daemon {
                        Some(daemon) => daemon.registry_error.clone(),
                        None => "no registry is named".into(),
                    },
                    ..Registry::default()
                },
                ..Asked::default()
            },
        }
    };
    let named = !check.beacons.is_empty();
    let (asked, mut targets) = tokio::join!(asking, look_up(check.beacons.clone()));
    let mut more = asked.listed.clone();
    if let Some(addr) = check.registry.as_deref().filter(|_| !named)
        && let Ok((host, _)) = split_host_port(addr)
    {
        more.insert(0, with_port(host, asked.beacon_port.unwrap_or(BEACON_PORT)));
    }
    more.retain(|name| !check.beacons.contains(name));
    targets.extend(look_up(more).await);
    targets.truncate(MAX_BEACONS);
    let found: Vec<SocketAddr> = targets.iter().filter_map(|beacon| beacon.address).collect();
    for to in &found {
        let family = if to.is_ipv4() { &mut report.ipv4 } else { &mut report.ipv6 };
        family.route |= has_route(*to);
    }
    if let Some(prober) = prober {
        // Second ports show what the NAT does, if the registry's beacon has any.
        let seconds = seconds(check, &asked, &targets);
        let all: Vec<SocketAddr> = found.iter().chain(&seconds).copied().collect();
        let answers = prober.ask(&all).await;
        for (beacon, answer) in targets.iter_mut().filter(|beacon| beacon.address.is_some()).zip(&answers) {
            match answer {
                Some(answer) => {
                    (beacon.ok, beacon.seen_as) = (true, Some(answer.observed));
                    beacon.rtt_ms = Some(millis(answer.rtt));
                }
                None => beacon.error = "no answer".into(),
            }
        }
        for (of, v4) in [(&mut report.ipv4, true), (&mut report.ipv6, false)] {
            let mut its = targets.iter().filter(|b| b.address.is_some_and(|a| a.is_ipv4() == v4)).peekable();
            of.works = its.peek().is_some().then(|| its.clone().any(|b| b.ok));
            of.seen_as = its.find_map(|b| b.seen_as);
        }
        report.udp.works = targets.iter().any(|beacon| beacon.ok);
        report.nat = Nat {
            class: prober.nat().name(),
            meaning: prober.nat().words().into(),
            predictable: prober.nat().name() == "per_destination_predictable",
            keeps_port: prober.keeps_port(),
        };
        let fastest = found.iter().zip(&answers).filter_map(|(to, answer)| Some((answer.as_ref()?.rtt, *to)));
        if let Some((rtt, to)) = fastest.min() {
            progress("measuring what fits on the way");
            report.mtu = probe::largest(to, rtt).await.map(|(packet, udp_payload)| PathMtu {
                to,
                packet,
                udp_payload,
            });
        }
    }
    report.beacons = targets;
    report.registry = asked.registry;
    report.captive = asked.captive;
    report.websocket = asked.websocket;
}

/// The second ports of the registry's beacon, at the address in use.
fn seconds(check: &Check, asked: &Asked, targets: &[Beacon]) -> Vec<SocketAddr> {
    let Some((first, rest)) = asked.beacon_ports.split_first() else { return Vec::new() };
    let host = check.registry.as_deref().and_then(|addr| split_host_port(addr).ok()).map(|(host, _)| host);
    let its = |beacon: &&Beacon| {
        let named = split_host_port(&beacon.name).ok().map(|(host, _)| host);
        let at = beacon.address.filter(|at| at.port() == *first);
        at.is_some_and(|at| named == host || Some(at.ip()) == asked.registry.ip)
    };
    // IPv4 tells more about NATs, and comes first.
    let Some(at) = targets.iter().find(its).and_then(|beacon| beacon.address) else { return Vec::new() };
    rest.iter().map(|port| SocketAddr::new(at.ip(), *port)).collect()
}

async fn ask_registry(addr: &str, node: &NodeConfig) -> Asked {
    let tls = node.registry_tls.as_ref();
    let how = if tls.is_some() { "tls" } else { "tcp" };
    let mut registry = Registry { addr: addr.to_owned(), how, ..Registry::default() };
    let mut captive = Captive::default();
    let client = match Client::with(addr, tls, &node.proxies, node.transport) {
        Ok(client) => client,
        Err(error) => {
            return Asked { registry: Registry { error, ..registry }, ..Asked::default() };
        }
    };
    let began = Instant::now();
    let answer = timeout(REGISTRY, client.request(json!({"type": "beacon_list"}))).await;
    registry.ip = client.reached();
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        // It speaks the protocol; that it does not know the request is another matter.
        Ok(Err(crate::RegistryError::Refused(text))) if !text.starts_with("malformed") => json!({}),
        Ok(Err(error)) => {
            registry.error = error.to_string();
            Value::Null
        }
        Err(_) => {
            registry.error = format!("registry {addr} does not answer within {} s", REGISTRY.as_secs());
            Value::Null
        }
    };
    registry.reachable = !answer.is_null();
    if registry.reachable {
        registry.rtt_ms = Some(millis(began.elapsed()));
    } else if let Some(ip) = registry.ip {
        captive = stranger(ip, addr, &registry.error).await;
    }
    let websocket = match registry.reachable {
        true => websocket(addr, node, Door::of(&answer).as_ref()).await,
        false => None,
    };
    let port = |value: &Value| value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|&p| p != 0);
    Asked {
        registry,
        listed: listed(&answer),
        beacon_port: port(&answer["beacon_port"]),
        beacon_ports: answer["beacon_ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map_while(port)
            .take(4)
            .collect(),
        captive,
        websocket,
    }
}

/// Whether the WebSocket of settings or registry can be opened.
async fn websocket(registry: &str, node: &NodeConfig, door: Option<&Door>) -> Option<WebSocket> {
    let config = NodeConfig { registry: registry.to_owned(), ..node.clone() };
    let host = split_host_port(registry).map_or("", |(host, _)| host);
    let failed = |url: String, error: String| Some(WebSocket { url, works: false, error });
    let target = match Target::find(&config, host, door) {
        Ok(target) => target?,
        Err(error) => return failed(node.compat_beacon.clone().unwrap_or_default(), error),
    };
    match timeout(REGISTRY, try_out(&target, &node.proxies)).await {
        Ok(Ok(())) => Some(WebSocket { url: target.to_string(), works: true, error: String::new() }),
        Ok(Err(error)) => failed(target.to_string(), error),
        Err(_) => failed(target.to_string(), format!("no answer within {} s", REGISTRY.as_secs())),
    }
}

/// Whether whoever takes the connection is no registry: captive portals and proxies speak HTTP to everybody.
async fn stranger(ip: IpAddr, addr: &str, error: &str) -> Captive {
    let suspected = |why: String| Captive { suspected: true, why };
    if error.contains("certificate") {
        return suspected(format!("{addr} shows another certificate than the registry's"));
    }
    let Ok((_, port)) = split_host_port(addr) else { return Captive::default() };
    let talk = async {
        let mut stream = TcpStream::connect((ip, port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut first = [0; 5];
        stream.read_exact(&mut first).await?;
        Ok::<_, std::io::Error>(first)
    };
    match timeout(STRANGER, talk).await {
        Ok(Ok(first)) if &first == b"HTTP/" => {
            suspected(format!("{addr} answers as a web server, not as a registry"))
        }
        _ => Captive::default(),
    }
}

/// One entry for an IPv4 and one for an IPv6 address of each name; one without an address if there is none.
async fn look_up(names: Vec<String>) -> Vec<Beacon> {
    let mut running = Vec::new();
    for name in names {
        running.push(tokio::spawn(async move {
            let found = timeout(LOOK_UP, tokio::net::lookup_host(name.clone())).await;
            let (all, error) = match found {
                Ok(Ok(all)) => (all.collect::<Vec<_>>(), String::new()),
                Ok(Err(error)) => (Vec::new(), error.to_string()),
                Err(_) => (Vec::new(), format!("the name was not looked up within {} s", LOOK_UP.as_secs())),
            };
            let of = |v4: bool| all.iter().copied().find(|at| at.is_ipv4() == v4);
            let mut out: Vec<Beacon> = [of(true), of(false)]
                .into_iter()
                .flatten()
                .map(|at| Beacon { name: name.clone(), address: Some(at), ..Beacon::default() })
                .collect();
            if out.is_empty() {
                out.push(Beacon { name, error, ..Beacon::default() });
            }
            out
        }));
    }
    let mut out = Vec::new();
    for task in running {
        out.extend(task.await.unwrap_or_default());
    }
    out
}

fn family(addresses: &[IpAddr], of: impl Fn(&IpAddr) -> bool) -> Family {
    Family { addresses: addresses.iter().copied().filter(|ip| of(ip)).collect(), ..Family::default() }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

/// What the environment says of proxies, without credentials.
fn proxies(variables: impl Iterator<Item = (String, String)>) -> Vec<ProxyVariable> {
    let mut found: Vec<ProxyVariable> = variables
        .filter(|(name, value)| PROXIES.contains(&name.to_uppercase().as_str()) && !value.is_empty())
        .map(|(name, value)| ProxyVariable { name, value: without_credentials(&value) })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn without_credentials(value: &str) -> String {
    let (scheme, rest) = value.split_once("://").map_or(("", value), |(scheme, rest)| (scheme, rest));
    let end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
    let shown = format!("{host}{}", &rest[end..]);
    if scheme.is_empty() { shown } else { format!("{scheme}://{shown}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_told_without_credentials() {
        let environment = [
            ("https_proxy", "http://user:p@ss@proxy.example:3128/x"),
            ("NO_PROXY", "localhost,10.0.0.0/8"),
            ("ALL_PROXY", "user:secret@proxy:1080"),
            ("HTTP_PROXY", ""),
            ("PATH", "/bin"),
        ];
        let found = proxies(environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let texts: Vec<_> = found.iter().map(|p| format!("{}={}", p.name, p.value)).collect();
        assert_eq!(
            texts,
            [
                "ALL_PROXY=proxy:1080",
                "NO_PROXY=localhost,10.0.0.0/8",
                "https_proxy=http://proxy.example:3128/x"
            ]
        );
    }

    #[test]
    fn second_ports_are_asked_at_the_registrys_beacon_only() {
        let beacon = |name: &str, at: &str| Beacon {
            name: name.into(),
            address: Some(at.parse().unwrap()),
            ..Beacon::default()
        };
        let check = Check { registry: Some("r.example:9000".into()), ..Check::default() };
        let asked = Asked { beacon_ports: vec![9001, 9002], ..Asked::default() };
        let targets =
            [beacon("b.example:9001", "192.0.2.1:9001"), beacon("r.example:9001", "192.0.2.2:9001")];
        assert_eq!(seconds(&check, &asked, &targets), ["192.0.2.2:9002".parse().unwrap()]);
        assert!(seconds(&check, &asked, &targets[..1]).is_empty(), "another's");
        let ip = Some("192.0.2.1".parse().unwrap());
        let same = Asked { registry: Registry { ip, ..Registry::default() }, ..asked };
        assert_eq!(seconds(&check, &same, &targets[..1]), ["192.0.2.1:9002".parse().unwrap()]);
        assert!(seconds(&check, &Asked::default(), &targets).is_empty());
    }
}
