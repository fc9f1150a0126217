//! Where a peer may be reached: every usable address of a `resolve` answer and of its node record.

use crate::endpoints;
use crate::platform::Interface;
use crate::shared::Shared;
use pilot_proto::NodeId;
use pilot_proto::engine::Route;
use pilot_proto::path::{Candidate, CandidateKind, MAX_CANDIDATES};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// LAN addresses of one node looked at.
const MAX_LAN: usize = 64;
/// Entries of its record looked at.
const MAX_ENTRIES: usize = 64;
/// Names looked up for one node, and addresses taken of each.
const MAX_NAMES: usize = 2;
const MAX_OF_NAME: usize = 4;
/// Time to look up the names a node gave as its address.
const NAME_LOOKUP: Duration = Duration::from_secs(5);

/// What a `resolve` answer says about where a node is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    relay_only: bool,
    /// `host:port`, and what is said of it; that for everybody first. Empty only if `relay_only`.
    known: Vec<(&'a str, Option<CandidateKind>)>,
}

impl<'a> Place<'a> {
    pub(crate) fn of(node: NodeId, answer: &'a Value) -> Result<Place<'a>, String> {
        let relay_only = answer["relay_only"] == true;
        let real = answer["real_addr"].as_str().filter(|text| !text.is_empty());
        if real.is_none() && !relay_only {
            return Err(format!("node {node} has no real address"));
        }
        let texts = |key: &str| answer[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let lan = texts("lan_addrs").filter(|at| at.parse::<SocketAddrV4>().is_ok()).take(MAX_LAN);
        let kinds = texts("endpoints").take(MAX_ENTRIES).filter_map(endpoints::parse);
        let kinds = kinds.filter_map(|(kind, at)| kind.map(|kind| (at, Some(kind))));
        let known = real.map(|at| (at, None)).into_iter();
        let known = known.chain(lan.map(|at| (at, Some(CandidateKind::Lan)))).chain(kinds).collect();
        Ok(Place { relay_only, known })
    }
}

/// What this node knows of its own place.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// IP addresses under which the Internet sees it.
    pub(crate) public: Vec<IpAddr>,
    pub(crate) interfaces: Vec<Interface>,
    /// The UDP port.
    pub(crate) port: u16,
    /// The socket serves IPv6.
    pub(crate) v6: bool,
    /// Everybody it deals with is on this host.
    pub(crate) alone: bool,
}

impl Own {
    /// Something may answer there, and it is not us.
    fn usable(&self, at: SocketAddr) -> bool {
        let ip = at.ip();
        let sane = at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast();
        let sane = sane
            && match ip {
                IpAddr::V4(ip) => !ip.is_broadcast(),
                // Without its interface it means nothing.
                IpAddr::V6(ip) => !ip.is_unicast_link_local(),
            };
        if !sane || (ip.is_ipv6() && !self.v6) {
            return false;
        }
        if ip.is_loopback() {
            // A peer elsewhere that calls itself so would have us knock at doors of this host.
            return self.alone;
        }
        let ours = at.port() == self.port && self.interfaces.iter().any(|i| i.ip == ip);
        let family = self.interfaces.iter().any(|i| i.ip.is_ipv4() == ip.is_ipv4());
        !ours && (family || self.interfaces.is_empty())
    }

    /// Usable ones of a peer's addresses, those more likely to answer first. LAN addresses count for neighbours: nodes
    /// that the Internet sees at one address, or whose networks have the same prefix. They are never the only ones, since
    /// many networks have the same prefix (spec 04 section 20.3).
    fn choose(&self, all: &[Candidate]) -> Vec<Candidate> {
        let mut known: Vec<Candidate> = Vec::new();
        for candidate in all.iter().filter(|c| self.usable(c.addr)) {
            match known.iter_mut().find(|c| c.addr == candidate.addr) {
                // Said more precisely later on.
                Some(before) => before.kind = candidate.kind,
                None => known.push(*candidate),
            }
        }
        let same_place = known.iter().any(|c| self.public.contains(&c.addr.ip()));
        let first = all.first().map(|c| c.addr);
        let lan = |c: &Candidate| c.kind == CandidateKind::Lan && Some(c.addr) != first;
        let (near, far): (Vec<_>, Vec<_>) = known.into_iter().partition(lan);
        let neighbour = |c: &Candidate| self.interfaces.iter().any(|i| i.neighbours(c.addr.ip()));
        let near = near.into_iter().filter(|c| same_place || neighbour(c));
        let mut out: Vec<Candidate> =
            if same_place { near.chain(far).collect() } else { far.into_iter().chain(near).collect() };
        out.truncate(MAX_CANDIDATES);
        out
    }
}

impl Shared {
    /// Where a node may be reached, by the registry's answer.
    pub(crate) async fn read_route(&self, node: NodeId, answer: &Value) -> Result<Route, String> {
        let place = Place::of(node, answer)?;
        if self.config.relay_only || place.relay_only {
            return Ok(Route { direct: Vec::new(), relay_only: true });
        }
        let mut all = Vec::new();
        let mut names = 0;
        for (at, kind) in place.known {
            let mut add =
                |addr| all.push(kind.map_or_else(|| Candidate::guessed(addr), |k| Candidate::new(addr, k)));
            match at.parse() {
                Ok(addr) => add(addr),
                Err(_) if names < MAX_NAMES => {
                    names += 1;
                    // The name is the peer's own word: its name server may not hold us up.
                    if let Ok(Ok(found)) = timeout(NAME_LOOKUP / MAX_NAMES as u32, lookup_host(at)).await {
                        found.take(MAX_OF_NAME).for_each(add);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(Route { direct: self.own_place().choose(&all), relay_only: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own(interfaces: &[(&str, u8)], public: &[&str]) -> Own {
        let interface = |(ip, prefix): &(&str, u8)| Interface { ip: ip.parse().unwrap(), prefix: *prefix };
        Own {
            public: public.iter().map(|ip| ip.parse().unwrap()).collect(),
            interfaces: interfaces.iter().map(interface).collect(),
            port: 4000,
            v6: true,
            alone: false,
        }
    }

    fn chosen(own: &Own, all: &[(&str, CandidateKind)]) -> Vec<String> {
        let all: Vec<_> = all.iter().map(|(at, kind)| Candidate::new(at.parse().unwrap(), *kind)).collect();
        own.choose(&all).iter().map(|c| format!("{} {}", c.kind.name(), c.addr)).collect()
    }

    const PEER: [(&str, CandidateKind); 5] = [
        ("203.0.113.9:4000", CandidateKind::Reflexive),
        ("192.168.1.9:4000", CandidateKind::Lan),
        ("10.9.9.9:4000", CandidateKind::Lan),
        ("203.0.113.9:4000", CandidateKind::Mapped),
        ("[2001:db8::9]:4000", CandidateKind::Public),
    ];

    #[test]
    fn lan_addresses_are_for_neighbours_and_never_the_only_ones() {
        let far = ["mapped 203.0.113.9:4000", "public [2001:db8::9]:4000"];
        let lan = ["lan 192.168.1.9:4000", "lan 10.9.9.9:4000"];
        let v6 = ("2001:db8:1::1", 64);
        // Another network.
        assert_eq!(chosen(&own(&[("172.16.0.5", 24), v6], &["198.51.100.1"]), &PEER), far);
        // The same public address: the same house.
        let expected = [&lan[..], &far].concat();
        assert_eq!(chosen(&own(&[("172.16.0.5", 24), v6], &["203.0.113.9"]), &PEER), expected);
        // The same prefix, and another public address: perhaps.
        let expected = [&far[..], &lan[..1]].concat();
        assert_eq!(chosen(&own(&[("192.168.1.5", 24), v6], &["198.51.100.1"]), &PEER), expected);
    }

    #[test]
    fn families_without_an_address_here_are_left_out() {
        let v4 = own(&[("172.16.0.5", 24)], &[]);
        assert_eq!(chosen(&v4, &PEER), ["mapped 203.0.113.9:4000"]);
        assert_eq!(chosen(&own(&[("2001:db8:1::1", 64)], &[]), &PEER), ["public [2001:db8::9]:4000"]);
        assert_eq!(chosen(&Own { v6: false, ..own(&[("2001:db8:1::1", 64)], &[]) }, &PEER), [""; 0]);
    }

    #[test]
    fn addresses_where_nobody_can_be_are_left_out_and_so_are_our_own() {
        let own = own(&[("192.168.1.5", 24), ("2001:db8:1::1", 64)], &[]);
        let nonsense = [
            "0.0.0.0:4000",
            "255.255.255.255:4000",
            "224.0.0.1:4000",
            "203.0.113.9:0",
            "127.0.0.1:4000",
            "[::1]:4000",
            "[fe80::1]:4000",
            "[ff02::1]:4000",
            "[::]:1",
            "192.168.1.5:4000",
            "[::ffff:127.0.0.1]:4000",
        ];
        let all: Vec<_> = nonsense.iter().map(|at| (*at, CandidateKind::Lan)).collect();
        assert_eq!(chosen(&own, &all), [""; 0]);
        let neighbour = [("192.168.1.5:4001", CandidateKind::Lan)];
        assert_eq!(chosen(&own, &neighbour), ["lan 192.168.1.5:4001"], "another node of this host");
        let alone = Own { alone: true, ..own };
        assert_eq!(chosen(&alone, &[("127.0.0.1:7", CandidateKind::Reflexive)]), ["lan 127.0.0.1:7"]);
    }

    #[test]
    fn a_private_address_that_the_registry_itself_tells_counts() {
        let own = own(&[("10.1.0.5", 24)], &[]);
        let routed = [("10.2.0.9:4000", CandidateKind::Lan), ("10.3.0.9:4000", CandidateKind::Lan)];
        assert_eq!(chosen(&own, &routed), ["lan 10.2.0.9:4000"]);
    }

    #[test]
    fn a_peer_with_many_addresses_is_tried_at_some() {
        let own = own(&[("192.168.1.5", 16)], &[]);
        let many: Vec<String> = (0..100).map(|n| format!("192.168.{n}.1:4000")).collect();
        let many: Vec<_> = many.iter().map(|at| (&at[..], CandidateKind::Lan)).collect();
        assert_eq!(chosen(&own, &many).len(), MAX_CANDIDATES);
    }

    #[test]
    fn answers_with_and_without_kinds_are_read() {
        let plain =
            json!({"real_addr": "203.0.113.9:4000", "lan_addrs": ["192.168.1.9:4000", "mapped=1.2.3.4:5"]});
        let lan = Some(CandidateKind::Lan);
        let known = vec![("203.0.113.9:4000", None), ("192.168.1.9:4000", lan)];
        assert_eq!(Place::of(7, &plain), Ok(Place { relay_only: false, known }));
        let kinds = json!({"real_addr": "g.example:1", "endpoints": ["g.example:1", "mapped=192.0.2.1:4", "new=192.0.2.2:4"]});
        let known = vec![("g.example:1", None), ("192.0.2.1:4", Some(CandidateKind::Mapped))];
        assert_eq!(Place::of(7, &kinds), Ok(Place { relay_only: false, known }));
        assert_eq!(Place::of(7, &json!({})).unwrap_err(), "node 7 has no real address");
        let hidden = Place { relay_only: true, known: Vec::new() };
        assert_eq!(Place::of(7, &json!({"relay_only": true})), Ok(hidden));
    }
}
