//! Where this node itself may be reached, and what of it is told to whom.
//!
//! Towards references: one `listen_addr` and private IPv4 addresses (spec 04 section 6). Our own peers get all of it, in
//! the node record. The engine races them and tells peers more on the way.

use crate::command::Command;
use crate::platform::{self, Interface};
use crate::shared::{Shared, State};
use crate::{endpoints, route};
use pilot_proto::path::candidates::is_local;
use pilot_proto::path::{Candidate, CandidateKind, MAX_CANDIDATES};
use std::net::{IpAddr, SocketAddr};

/// LAN addresses told to the registry.
const MAX_LAN: usize = 16;

/// Whether an address is of no use to strangers.
fn local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
    }
}

pub(crate) fn near(at: SocketAddr) -> bool {
    local(at.ip())
}

/// The addresses of interfaces on which a socket bound like this receives.
fn served(interfaces: Vec<Interface>, bound: SocketAddr) -> Vec<Interface> {
    let serves = |i: &Interface| match bound.ip() {
        ip if !ip.is_unspecified() => ip.to_canonical() == i.ip,
        IpAddr::V4(_) => i.ip.is_ipv4(),
        IpAddr::V6(_) => true,
    };
    interfaces.into_iter().filter(serves).collect()
}

impl Shared {
    /// Everybody this node deals with is on this host: nothing is to be learnt from or told to the network around it.
    pub(crate) fn alone(&self) -> bool {
        let host = self.registry.host();
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        here || self.bound.ip().is_loopback()
    }

    /// Looks at the interfaces; true: their addresses are not what they were.
    pub(crate) fn look_at_interfaces(&self) -> bool {
        if self.alone() {
            return false;
        }
        let now = served(platform::interfaces(), self.bound);
        self.state(|s| std::mem::replace(&mut s.interfaces, now.clone()) != now)
    }

    /// Endpoints the operator gave, the one for everybody first: `--advertise-endpoint` before `--endpoint`.
    fn operator(&self) -> &[String] {
        &self.config.endpoints
    }

    /// What to tell the registry as our endpoint (spec 04 section 6).
    pub(crate) fn listen_addr(&self) -> String {
        self.state(|s| self.listen_addr_of(s))
    }

    /// The same, with the state at hand.
    pub(crate) fn listen_addr_of(&self, state: &State) -> String {
        if self.on_websocket() {
            // Nothing listens (spec 04 section 17).
            return "0.0.0.0:0".to_owned();
        }
        if let Some(endpoint) = self.operator().first() {
            return endpoint.clone();
        }
        let at = state.mapping.map(|(_, at)| at).or(state.observed).unwrap_or(self.bound);
        match at.ip() {
            // Dual-stack sockets, too, are reached so by whoever is on this host.
            ip if ip.is_unspecified() => format!("127.0.0.1:{}", at.port()),
            _ => at.to_string(),
        }
    }

    /// What references are told beside it.
    pub(crate) fn lan_addrs(&self) -> Vec<String> {
        if self.alone() || self.relays() {
            return Vec::new();
        }
        let port = self.bound.port();
        let private = |i: &Interface| match i.ip {
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Some(format!("{ip}:{port}")),
            _ => None,
        };
        self.state(|s| s.interfaces.iter().filter_map(private).take(MAX_LAN).collect())
    }

    /// Every address at which we may be reached, best first.
    pub(crate) fn own_candidates(&self) -> Vec<Candidate> {
        if self.never_direct() {
            return Vec::new();
        }
        let mut out: Vec<Candidate> = Vec::new();
        let mut add = |at: SocketAddr, kind: CandidateKind| {
            let candidate = Candidate::new(at, kind);
            if out.len() < MAX_CANDIDATES && !out.iter().any(|c| c.addr == candidate.addr) {
                out.push(candidate);
            }
        };
        for at in self.operator().iter().filter_map(|text| text.parse().ok()) {
            add(at, CandidateKind::Operator);
        }
        let (mapped, observed, interfaces) =
            self.state(|s| (s.mapping.map(|(_, at)| at), s.observed, s.interfaces.clone()));
        if let Some(at) = mapped {
            add(at, CandidateKind::Mapped);
        }
        let port = self.bound.port();
        let (near, far): (Vec<Interface>, Vec<_>) = interfaces.iter().partition(|i| is_local(i.ip));
        far.iter().for_each(|i| add(SocketAddr::new(i.ip, port), CandidateKind::Public));
        if let Some(at) = observed {
            // Seen by a beacon of the neighbourhood, it says no more than the interface does.
            add(at, Candidate::guessed(at).kind);
        }
        near.iter().for_each(|i| add(SocketAddr::new(i.ip, port), CandidateKind::Lan));
        if self.bound.ip().is_loopback() {
            add(self.bound, CandidateKind::Lan);
        }
        out
    }

    /// What the node record says of our place; `registered` is what the registry tells everybody.
    pub(crate) fn endpoint_texts(&self, registered: &str) -> Vec<String> {
        endpoints::texts(registered, &self.own_candidates(), self.operator())
    }

    /// What we know of our place, for the choice among a peer's addresses.
    pub(crate) fn own_place(&self) -> route::Own {
        let (mapped, observed, interfaces) =
            self.state(|s| (s.mapping.map(|(_, at)| at), s.observed, s.interfaces.clone()));
        let seen = mapped.into_iter().chain(observed).map(|at| at.ip());
        let public = seen.chain(interfaces.iter().map(|i| i.ip)).filter(|ip| !is_local(*ip)).collect();
        let alone = self.alone() || observed.is_some_and(|at| at.ip().is_loopback());
        route::Own { public, interfaces, port: self.bound.port(), v6: self.bound.is_ipv6(), alone }
    }

    /// Our addresses may be others now: the engine is told, and the registry if it is news.
    pub(crate) fn place_changed(&self) {
        self.command(Command::Local(self.own_candidates()));
        let (node, registered, published) =
            self.state(|s| (s.node, s.registered.clone(), s.published.clone()));
        // Before the first registration the start waits for this.
        if node == 0 || self.relays() {
            return;
        }
        if registered != self.listen_addr() || published != self.endpoint_texts("") {
            self.reregister.notify_one();
        }
    }

    /// The beacon sees us at `at`.
    pub(crate) fn observed(&self, at: SocketAddr) {
        if self.on_websocket() {
            // Where the WebSocket comes from says nothing of UDP.
            return;
        }
        let before = self.state(|s| s.observed.replace(at));
        if before.is_some_and(|before| before.ip() != at.ip()) {
            // The router has another address, and may have been restarted.
            self.remap.notify_one();
        }
        self.place_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_serves_the_addresses_of_its_families_or_the_one_it_is_bound_to() {
        let interfaces = || {
            ["192.168.1.7", "203.0.113.7", "2001:db8::7"]
                .map(|ip| Interface { ip: ip.parse().unwrap(), prefix: 24 })
                .to_vec()
        };
        let of = |bound: &str| {
            let served = served(interfaces(), bound.parse().unwrap());
            served.iter().map(|i| i.ip.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of("[::]:4000"), ["192.168.1.7", "203.0.113.7", "2001:db8::7"]);
        assert_eq!(of("0.0.0.0:4000"), ["192.168.1.7", "203.0.113.7"]);
        assert_eq!(of("203.0.113.7:4000"), ["203.0.113.7"]);
        assert!(of("127.0.0.1:4000").is_empty());
    }
}
