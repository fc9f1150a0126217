//! What the findings mean for whoever wants to connect from here.

use super::report::{Connects, Report};
use std::net::SocketAddr;

/// What a running node knows beyond what is asked here.
#[derive(Debug, Clone, Default)]
pub struct DaemonView {
    /// It has a number.
    pub registered: bool,
    /// Its registry answers.
    pub registry_ok: bool,
    /// Why not.
    pub registry_error: String,
    /// What carries its datagrams: `udp`, or another way for networks without UDP.
    pub transport: String,
    /// Its NAT: class and the same in words; the class is `unknown` or empty if it does not know either.
    pub nat: (String, String),
    /// How the router maps a port to it: a protocol, `none` or `off`.
    pub port_mapping: String,
    /// That port, from outside.
    pub external: Option<SocketAddr>,
}

/// The class of [`Report::nat`] as text.
fn class_of(name: &str) -> &'static str {
    const NAMES: [&str; 4] =
        ["none", "endpoint_independent", "per_destination_predictable", "per_destination_random"];
    NAMES.into_iter().find(|known| *known == name).unwrap_or("unknown")
}

/// Puts what a node knows into the report, and says in words what all of it means.
pub fn judge(report: &mut Report, daemon: Option<&DaemonView>) {
    if let Some(daemon) = daemon {
        if report.nat.class.is_empty() || report.nat.class == "unknown" {
            let class = class_of(&daemon.nat.0);
            if class != "unknown" {
                report.nat.class = class;
                report.nat.meaning.clone_from(&daemon.nat.1);
                report.nat.predictable = class == "per_destination_predictable";
            }
        }
        const KNOWN: [&str; 5] = ["pcp", "nat-pmp", "upnp", "none", "off"];
        if let Some(known) = KNOWN.into_iter().find(|known| *known == daemon.port_mapping) {
            report.port_mapping.protocol = known;
            report.port_mapping.external = daemon.external;
        }
    }
    if report.nat.class.is_empty() {
        report.nat.class = "unknown";
        report.nat.meaning = "not known".into();
    }
    report.connects = connects(report, daemon);
    report.summary = summary(report, daemon);
    report.advice = advice(report, daemon);
}

/// The router has let others in.
fn mapped(report: &Report) -> bool {
    report.port_mapping.external.is_some()
}

/// Datagrams get through without UDP, or would.
fn carried(report: &Report, daemon: Option<&DaemonView>) -> bool {
    on_websocket(daemon) || report.websocket.as_ref().is_some_and(|websocket| websocket.works)
}

fn on_websocket(daemon: Option<&DaemonView>) -> bool {
    daemon.is_some_and(|daemon| !daemon.transport.is_empty() && daemon.transport != "udp")
}

fn connects(report: &Report, daemon: Option<&DaemonView>) -> Connects {
    let known = daemon.is_some_and(|daemon| daemon.registered);
    match (report.udp.works, report.registry.reachable) {
        (false, true) if carried(report, daemon) => Connects::Relayed,
        (false, _) => Connects::No,
        (true, false) if known => Connects::KnownPeers,
        (true, false) => Connects::No,
        (true, true) => match report.nat.class {
            _ if mapped(report) => Connects::Directly,
            "none" | "endpoint_independent" => Connects::Directly,
            "per_destination_predictable" | "per_destination_random" => Connects::Mixed,
            _ => Connects::Relayed,
        },
    }
}

fn summary(report: &Report, daemon: Option<&DaemonView>) -> Vec<String> {
    let mut out = Vec::new();
    let mut say = |text: &str| out.push(text.to_owned());
    match report.connects {
        Connects::Directly if mapped(report) => {
            say("Direct connections with nearly all peers: the router lets them in.");
        }
        Connects::Directly if report.nat.class == "none" => {
            say(
                "Direct connections with all peers that can send to a public address: there is no NAT in the way.",
            );
        }
        Connects::Directly => {
            say(
                "Direct connections with most peers; through the relay with peers behind a symmetric NAT with random \
                 ports, if this NAT lets in only whom it has sent to.",
            );
        }
        Connects::Mixed if report.nat.predictable => say(
            "Direct connections with most peers, since the ports of this NAT can be predicted; through the relay with \
             peers behind another symmetric NAT.",
        ),
        Connects::Mixed => say(
            "Direct connections with peers on public addresses and behind NATs that let in any port; through the relay \
             with the others: this NAT has another, random port for each of them.",
        ),
        Connects::Relayed if !report.udp.works => {
            say("Everything goes through the relay, over a WebSocket: UDP does not get through.");
        }
        Connects::Relayed => say(
            "Connections work, at least through the relay: what the NAT does is not known, so nobody can say how often \
             directly.",
        ),
        Connects::KnownPeers => {
            say(
                "Peers this node knows can be reached; new ones cannot be looked up while the registry does not answer.",
            );
        }
        Connects::No if report.udp.works => {
            say("No connections: beacons answer, but without the registry this node cannot join.");
        }
        Connects::No if report.registry.reachable => {
            say("No connections: the registry answers, but UDP does not get through, to no beacon.");
        }
        Connects::No => say("No connections: neither the registry nor a beacon answers."),
    }
    if report.ipv6.works == Some(true) && report.udp.works {
        say("IPv6 works: peers that have it as well need no help of a NAT.");
    }
    if on_websocket(daemon) && report.udp.works {
        say("The daemon still uses a WebSocket and goes back to UDP by itself.");
    }
    if report.captive.suspected {
        out.push(format!("A captive portal or proxy seems to be in the way: {}.", report.captive.why));
    }
    let silent = report.beacons.iter().filter(|beacon| !beacon.ok).count();
    if report.udp.works && silent > 0 {
        out.push(format!("{silent} of {} addresses of beacons do not answer.", report.beacons.len()));
    }
    if let Some(mtu) = report.mtu.as_ref().filter(|mtu| mtu.packet < 1500) {
        out.push(format!(
            "Packets of more than {} bytes do not get through; the daemon finds that out by itself.",
            mtu.packet
        ));
    }
    out
}

fn advice(report: &Report, daemon: Option<&DaemonView>) -> Vec<String> {
    let mut out = Vec::new();
    if report.captive.suspected {
        out.push("Open a web page and log in to this network, or use another one.".to_owned());
    } else if report.registry.addr.is_empty() {
        out.push(
            "Name the registry: pilotctl netcheck --registry HOST:PORT, and the same for daemon start."
                .into(),
        );
    } else if !report.registry.reachable {
        out.push(format!(
            "Check the registry's address and that TCP to it is allowed: {}.",
            report.registry.error.trim_end_matches('.')
        ));
    }
    if !report.udp.works && report.udp.error.is_empty() {
        let to = report.beacons.iter().find_map(|beacon| beacon.address);
        match to {
            Some(to) if carried(report, daemon) => {
                out.push(format!("For direct connections, have the firewall let UDP out to {to} and back."))
            }
            Some(to) => out.push(format!("Have the firewall let UDP out to {to} and back.")),
            None if report.beacons.is_empty() => out.push("Name a beacon with --beacon HOST:PORT.".into()),
            None => out.push("Check the names of the beacons; none of them could be looked up.".into()),
        }
    }
    let behind = !matches!(report.nat.class, "none" | "unknown");
    if report.udp.works && behind && !mapped(report) {
        match report.port_mapping.protocol {
            "off" if daemon.is_none() => {}
            "off" => out.push("Turn port mapping on (--port-mapping) to have the router let peers in.".into()),
            _ if matches!(report.connects, Connects::Mixed) => out.push(
                "Turn on PCP, NAT-PMP or UPnP in the router, or forward a UDP port and name it with --endpoint, for direct \
                 connections with all."
                    .into(),
            ),
            _ => {}
        }
    }
    if !report.proxy.variables.is_empty() && !report.registry.reachable {
        let names: Vec<&str> = report.proxy.variables.iter().map(|variable| variable.name.as_str()).collect();
        out.push(format!(
            "The environment names a proxy ({}); only connections with TLS go through it: name a registry with TLS.",
            names.join(", ")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::report::{Beacon, PortMapping, WebSocket};
    use super::*;

    fn report(udp: bool, registry: bool, class: &'static str) -> Report {
        let mut report = Report::default();
        report.udp.works = udp;
        report.registry.reachable = registry;
        report.registry.addr = "r.example:9000".into();
        report.nat.class = class;
        report.nat.predictable = class == "per_destination_predictable";
        report.port_mapping = PortMapping { protocol: "none", ..PortMapping::default() };
        let address = Some("192.0.2.1:9001".parse().unwrap());
        report.beacons = vec![Beacon { name: "b:9001".into(), address, ok: udp, ..Beacon::default() }];
        report
    }

    fn judged(mut report: Report, daemon: Option<&DaemonView>) -> Report {
        judge(&mut report, daemon);
        report
    }

    #[test]
    fn what_connects_follows_from_udp_registry_and_nat() {
        let of = |udp, registry, class| judged(report(udp, registry, class), None).connects;
        assert_eq!(of(true, true, "none"), Connects::Directly);
        assert_eq!(of(true, true, "endpoint_independent"), Connects::Directly);
        assert_eq!(of(true, true, "per_destination_predictable"), Connects::Mixed);
        assert_eq!(of(true, true, "per_destination_random"), Connects::Mixed);
        assert_eq!(of(true, true, "unknown"), Connects::Relayed);
        assert_eq!(of(false, true, "unknown"), Connects::No);
        assert_eq!(of(true, false, "none"), Connects::No);
        assert_eq!(of(false, false, "unknown"), Connects::No);
        let mut report = report(false, true, "unknown");
        let url = "wss://r.example:443/v1/compat".into();
        report.websocket = Some(WebSocket { url, works: true, error: String::new() });
        let carried = judged(report.clone(), None);
        assert_eq!(carried.connects, Connects::Relayed);
        assert_eq!(
            carried.advice,
            ["For direct connections, have the firewall let UDP out to 192.0.2.1:9001 and back."]
        );
        report.websocket.as_mut().unwrap().works = false;
        assert_eq!(judged(report, None).connects, Connects::No);
    }

    #[test]
    fn a_running_node_knows_more() {
        let daemon = DaemonView { registered: true, transport: "udp".into(), ..DaemonView::default() };
        assert_eq!(judged(report(true, false, "none"), Some(&daemon)).connects, Connects::KnownPeers);
        assert_eq!(judged(report(false, true, "unknown"), Some(&daemon)).connects, Connects::No);
        let carried = DaemonView { transport: "compat".into(), ..daemon.clone() };
        assert_eq!(judged(report(false, true, "unknown"), Some(&carried)).connects, Connects::Relayed);
        let nat = ("endpoint_independent".into(), "one port".into());
        let told = judged(report(true, true, "unknown"), Some(&DaemonView { nat, ..daemon.clone() }));
        assert_eq!((told.connects, told.nat.class), (Connects::Directly, "endpoint_independent"));
        let at = Some("203.0.113.9:4000".parse().unwrap());
        let mapped = DaemonView { port_mapping: "upnp".into(), external: at, ..daemon };
        let told = judged(report(true, true, "per_destination_random"), Some(&mapped));
        assert_eq!((told.connects, told.port_mapping.external), (Connects::Directly, at));
        assert!(told.summary[0].contains("the router lets them in"), "{told:?}");
    }

    #[test]
    fn words_name_the_cause_and_what_to_do() {
        let blocked = judged(report(false, true, "unknown"), None);
        assert!(blocked.summary[0].contains("UDP does not get through"), "{blocked:?}");
        assert_eq!(blocked.advice, ["Have the firewall let UDP out to 192.0.2.1:9001 and back."]);
        let random = judged(report(true, true, "per_destination_random"), None);
        assert!(random.summary[0].contains("another, random port for each"), "{random:?}");
        assert!(random.advice[0].contains("PCP, NAT-PMP or UPnP"), "{random:?}");
        let mut portal = report(false, false, "unknown");
        portal.captive.suspected = true;
        portal.captive.why = "r.example:9000 answers as a web server, not as a registry".into();
        let portal = judged(portal, None);
        assert!(portal.summary.iter().any(|text| text.contains("captive portal")), "{portal:?}");
        assert!(portal.advice[0].contains("log in to this network"), "{portal:?}");
        let nowhere = judged(Report::default(), None);
        assert!(nowhere.advice[0].contains("--registry HOST:PORT"), "{nowhere:?}");
    }
}
