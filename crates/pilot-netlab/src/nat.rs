//! Address translation, one layer, IPv4: mapping, filtering, port assignment, hairpinning and time-outs in the
//! terms of RFC 4787. TCP and ICMP echo are translated by the same rules.

use crate::packet::{self, End, Flow, Head, TCP};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Mappings of one NAT at once; beyond, packets that need a new one are dropped.
const MAPPINGS_MAX: usize = 16_384;
/// Peers remembered per mapping.
const PEERS_MAX: usize = 16_384;
/// Ports below are not assigned.
const FIRST_PORT: u16 = 1024;
/// How long a TCP mapping lives without traffic (RFC 5382, REQ-5).
const TCP_TIMEOUT: Duration = Duration::from_secs(2 * 3600 + 4 * 60);

/// What of the remote end something depends on (RFC 4787, sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    /// Nothing: one for all.
    Independent,
    /// The remote address.
    Address,
    /// The remote address and port.
    AddressAndPort,
}

/// How external ports are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The internal port if it is free, else a random one.
    Preserve,
    /// At random.
    Random,
    /// The one after the last, so that a peer can predict it.
    Sequential,
}

/// How a NAT behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// When a flow gets a mapping of its own.
    pub mapping: Dependence,
    /// Who may send to a mapping: those an internal host has sent to through it.
    pub filtering: Dependence,
    /// External ports of new mappings.
    pub ports: Ports,
    /// Whether internal hosts reach each other by their external addresses.
    pub hairpin: bool,
    /// How long a UDP or ICMP mapping, and a peer's permission, lives without traffic.
    pub timeout: Duration,
    /// Whether inbound traffic counts as such, too.
    pub inbound_refreshes: bool,
}

impl Nat {
    const fn new(mapping: Dependence, filtering: Dependence, ports: Ports) -> Nat {
        let timeout = Duration::from_secs(120);
        Nat { mapping, filtering, ports, hairpin: true, timeout, inbound_refreshes: true }
    }

    /// One mapping per internal address and port; anybody may send to it.
    pub const fn full_cone() -> Nat {
        Nat::new(Dependence::Independent, Dependence::Independent, Ports::Preserve)
    }

    /// One mapping; hosts that were sent to may send, from any port.
    pub const fn address_restricted() -> Nat {
        Nat::new(Dependence::Independent, Dependence::Address, Ports::Preserve)
    }

    /// One mapping; only addresses and ports that were sent to may send.
    pub const fn port_restricted() -> Nat {
        Nat::new(Dependence::Independent, Dependence::AddressAndPort, Ports::Preserve)
    }

    /// A mapping per remote address and port, each with a random external port.
    pub const fn symmetric() -> Nat {
        Nat::new(Dependence::AddressAndPort, Dependence::AddressAndPort, Ports::Random)
    }

    /// A mapping per remote address and port, with external ports one after the other.
    pub const fn symmetric_predictable() -> Nat {
        Nat::new(Dependence::AddressAndPort, Dependence::AddressAndPort, Ports::Sequential)
    }

    /// Turns hairpinning on or off; it is on unless turned off.
    #[must_use]
    pub const fn hairpin(mut self, on: bool) -> Nat {
        self.hairpin = on;
        self
    }

    /// Sets how long a mapping lives without traffic; 120 s unless set.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Nat {
        self.timeout = timeout;
        self
    }

    /// Makes outbound traffic only keep a mapping alive.
    #[must_use]
    pub const fn outbound_refresh_only(mut self) -> Nat {
        self.inbound_refreshes = false;
        self
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Translated; goes on.
    Pass,
    /// Translated twice; goes back to the inside.
    Hairpin,
    Drop,
}

struct Mapping {
    protocol: u8,
    inside: SocketAddrV4,
    /// What it depends on of the remote end.
    key: Option<SocketAddrV4>,
    last: Instant,
    /// Remote ends that were sent to, and when traffic with each was last seen.
    peers: HashMap<SocketAddrV4, Instant>,
}

pub(crate) struct NatState {
    config: Nat,
    external: Ipv4Addr,
    rng: ChaCha8Rng,
    /// By protocol and external port.
    mappings: HashMap<(u8, u16), Mapping>,
    /// External ports by what asks for them.
    by_inside: HashMap<(u8, SocketAddrV4, Option<SocketAddrV4>), u16>,
    last_port: u16,
}

impl NatState {
    pub fn new(config: Nat, external: Ipv4Addr, seed: u64, stream: u64) -> NatState {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let last_port = random_port(&mut rng);
        let (mappings, by_inside) = (HashMap::new(), HashMap::new());
        NatState { config, external, rng, mappings, by_inside, last_port }
    }

    pub fn external(&self) -> Ipv4Addr {
        self.external
    }

    /// Forgets every mapping, and translates to this address from now on.
    pub fn restart(&mut self, external: Ipv4Addr) {
        self.external = external;
        self.mappings.clear();
        self.by_inside.clear();
    }

    /// Mappings that are alive.
    pub fn alive(&self, now: Instant) -> usize {
        self.mappings.values().filter(|m| !self.config.expired(m.protocol, m.last, now)).count()
    }

    /// Translates a packet from the inside.
    pub fn outbound(&mut self, now: Instant, p: &mut [u8], head: &Head) -> Outcome {
        if let Some((at, inner, flow)) = packet::quoted(p, head) {
            return self.outbound_error(now, p, head, at, &inner, &flow);
        }
        let Some(Flow { protocol, src: SocketAddr::V4(src), dst: SocketAddr::V4(dst) }) =
            packet::flow(p, head)
        else {
            return Outcome::Drop;
        };
        let hairpin = *dst.ip() == self.external;
        if hairpin && !self.config.hairpin {
            return Outcome::Drop;
        }
        let Some(port) = self.map(now, protocol, src, dst) else { return Outcome::Drop };
        let from = SocketAddrV4::new(self.external, port);
        if !hairpin {
            packet::rewrite(p, head, End::Src, from);
            return Outcome::Pass;
        }
        // The other internal host sees the external address and port (RFC 4787, REQ-9 a).
        let Some(inside) = self.admit(now, protocol, from, dst.port()) else { return Outcome::Drop };
        packet::rewrite(p, head, End::Src, from);
        packet::rewrite(p, head, End::Dst, inside);
        Outcome::Hairpin
    }

    /// Translates a packet from the outside.
    pub fn inbound(&mut self, now: Instant, p: &mut [u8], head: &Head) -> Outcome {
        if let Some((at, inner, flow)) = packet::quoted(p, head) {
            // It is about a packet that left through here.
            let port = flow.src.port();
            let Some(m) = self.live(now, flow.protocol, port) else { return Outcome::Drop };
            let inside = m.inside;
            packet::rewrite_error(p, head, at, &inner, End::Src, inside);
            return Outcome::Pass;
        }
        let Some(Flow { protocol, src: SocketAddr::V4(src), dst }) = packet::flow(p, head) else {
            return Outcome::Drop;
        };
        let Some(inside) = self.admit(now, protocol, src, dst.port()) else { return Outcome::Drop };
        packet::rewrite(p, head, End::Dst, inside);
        Outcome::Pass
    }

    /// An internal host answers a packet with an ICMP error.
    fn outbound_error(
        &mut self,
        now: Instant,
        p: &mut [u8],
        head: &Head,
        at: usize,
        inner: &Head,
        flow: &Flow,
    ) -> Outcome {
        let (SocketAddr::V4(src), SocketAddr::V4(inside)) = (flow.src, flow.dst) else {
            return Outcome::Drop;
        };
        let key = self.config.mapping_key(src);
        let Some(port) = self.by_inside.get(&(flow.protocol, inside, key)).copied() else {
            return Outcome::Drop;
        };
        if self.live(now, flow.protocol, port).is_none() {
            return Outcome::Drop;
        }
        packet::rewrite_error(p, head, at, inner, End::Dst, SocketAddrV4::new(self.external, port));
        Outcome::Pass
    }

    /// The external port of an outbound flow, which may be new.
    fn map(&mut self, now: Instant, protocol: u8, inside: SocketAddrV4, remote: SocketAddrV4) -> Option<u16> {
        let key = self.config.mapping_key(remote);
        let config = self.config;
        let known = self.by_inside.get(&(protocol, inside, key)).copied();
        let port = match known.filter(|port| self.live(now, protocol, *port).is_some()) {
            Some(port) => port,
            None => {
                if self.mappings.len() >= MAPPINGS_MAX {
                    self.sweep(now);
                }
                if self.mappings.len() >= MAPPINGS_MAX {
                    return None;
                }
                let port = self.choose_port(now, protocol, inside.port())?;
                let m = Mapping { protocol, inside, key, last: now, peers: HashMap::new() };
                self.by_inside.insert((protocol, inside, key), port);
                self.mappings.insert((protocol, port), m);
                port
            }
        };
        let m = self.mappings.get_mut(&(protocol, port))?;
        m.last = now;
        if m.peers.len() >= PEERS_MAX && !m.peers.contains_key(&remote) {
            m.peers.retain(|_, seen| !config.expired(protocol, *seen, now));
        }
        if m.peers.len() < PEERS_MAX || m.peers.contains_key(&remote) {
            m.peers.insert(remote, now);
        }
        Some(port)
    }

    /// The internal end of a mapping, if `remote` may send to it.
    fn admit(&mut self, now: Instant, protocol: u8, remote: SocketAddrV4, port: u16) -> Option<SocketAddrV4> {
        let config = self.config;
        let m = self.live(now, protocol, port)?;
        let fresh = |seen: &Instant| !config.expired(protocol, *seen, now);
        let allowed = match config.filtering {
            Dependence::Independent => true,
            Dependence::Address => m.peers.iter().any(|(p, seen)| p.ip() == remote.ip() && fresh(seen)),
            Dependence::AddressAndPort => m.peers.get(&remote).is_some_and(fresh),
        };
        if !allowed {
            return None;
        }
        if config.inbound_refreshes {
            m.last = now;
            if let Some(seen) = m.peers.get_mut(&remote) {
                *seen = now;
            }
        }
        Some(m.inside)
    }

    /// The mapping behind an external port; forgotten here if its time is over.
    fn live(&mut self, now: Instant, protocol: u8, port: u16) -> Option<&mut Mapping> {
        let m = self.mappings.get(&(protocol, port))?;
        if self.config.expired(protocol, m.last, now) {
            self.by_inside.remove(&(protocol, m.inside, m.key));
            self.mappings.remove(&(protocol, port));
            return None;
        }
        self.mappings.get_mut(&(protocol, port))
    }

    fn sweep(&mut self, now: Instant) {
        let config = self.config;
        self.mappings.retain(|_, m| !config.expired(m.protocol, m.last, now));
        let mappings = &self.mappings;
        self.by_inside.retain(|(protocol, _, _), port| mappings.contains_key(&(*protocol, *port)));
    }

    fn choose_port(&mut self, now: Instant, protocol: u8, internal: u16) -> Option<u16> {
        if self.config.ports == Ports::Preserve
            && internal >= FIRST_PORT
            && self.live(now, protocol, internal).is_none()
        {
            return Some(internal);
        }
        // Less than a quarter of the ports is ever taken, so this ends soon.
        for _ in 0..=u16::MAX {
            let port = match self.config.ports {
                Ports::Sequential => self.last_port.checked_add(1).unwrap_or(FIRST_PORT),
                Ports::Preserve | Ports::Random => random_port(&mut self.rng),
            };
            self.last_port = port;
            if self.live(now, protocol, port).is_none() {
                return Some(port);
            }
        }
        None
    }
}

impl Nat {
    fn mapping_key(&self, remote: SocketAddrV4) -> Option<SocketAddrV4> {
        match self.mapping {
            Dependence::Independent => None,
            Dependence::Address => Some(SocketAddrV4::new(*remote.ip(), 0)),
            Dependence::AddressAndPort => Some(remote),
        }
    }

    fn expired(&self, protocol: u8, last: Instant, now: Instant) -> bool {
        let limit = if protocol == TCP { TCP_TIMEOUT } else { self.timeout };
        now.saturating_duration_since(last) >= limit
    }
}

fn random_port(rng: &mut ChaCha8Rng) -> u16 {
    let span = u32::from(u16::MAX - FIRST_PORT) + 1;
    FIRST_PORT + (rng.next_u32() % span) as u16
}

/// Whether the packet is addressed to this address of IPv4.
pub(crate) fn is_for(head: &Head, addr: Ipv4Addr) -> bool {
    head.dst == IpAddr::V4(addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{head, tests::udp};

    const HOST: &str = "192.168.1.2:4000";
    const PEER: &str = "203.0.113.9:5000";
    const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    fn nat(config: Nat) -> NatState {
        NatState::new(config, EXTERNAL, 1, 0)
    }

    /// Sends out; the source as the outside sees it.
    fn out(nat: &mut NatState, now: Instant, from: &str, to: &str) -> Option<SocketAddr> {
        let mut p = udp(from, to);
        let head_before = head(&p).unwrap();
        let outcome = nat.outbound(now, &mut p, &head_before);
        (outcome == Outcome::Pass).then(|| packet::flow(&p, &head(&p).unwrap()).unwrap().src)
    }

    /// Sends in; the destination as the inside sees it.
    fn inward(nat: &mut NatState, now: Instant, from: &str, port: u16) -> Option<SocketAddr> {
        let mut p = udp(from, &SocketAddrV4::new(EXTERNAL, port).to_string());
        let head_before = head(&p).unwrap();
        let outcome = nat.inbound(now, &mut p, &head_before);
        (outcome == Outcome::Pass).then(|| packet::flow(&p, &head(&p).unwrap()).unwrap().dst)
    }

    #[test]
    fn traffic_keeps_a_mapping_for_exactly_its_time() {
        let start = Instant::now();
        let ms = |n: u64| start + Duration::from_millis(n);
        for (config, inbound_counts) in [
            (Nat::port_restricted().timeout(Duration::from_secs(2)), true),
            (Nat::port_restricted().timeout(Duration::from_secs(2)).outbound_refresh_only(), false),
        ] {
            let mut nat = nat(config);
            let port = out(&mut nat, start, HOST, PEER).unwrap().port();
            assert!(inward(&mut nat, ms(1_999), PEER, port).is_some());
            assert_eq!(inward(&mut nat, ms(3_998), PEER, port).is_some(), inbound_counts);
            assert!(inward(&mut nat, ms(6_000), PEER, port).is_none());
            assert_eq!(nat.alive(ms(6_000)), 0);
        }
    }

    #[test]
    fn a_peers_permission_ends_although_another_peer_keeps_the_mapping() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut nat = nat(Nat::address_restricted().timeout(2 * second));
        let port = out(&mut nat, start, HOST, PEER).unwrap().port();
        for i in 0..4 {
            out(&mut nat, start + second * i, HOST, "203.0.113.10:1").unwrap();
        }
        assert_eq!(
            inward(&mut nat, start + 4 * second, "203.0.113.10:77", port),
            Some(HOST.parse().unwrap())
        );
        assert_eq!(inward(&mut nat, start + 4 * second, PEER, port), None);
    }

    #[test]
    fn a_taken_port_is_not_given_twice() {
        let now = Instant::now();
        let mut nat = nat(Nat::port_restricted());
        let first = out(&mut nat, now, HOST, PEER).unwrap();
        let second = out(&mut nat, now, "192.168.1.3:4000", PEER).unwrap();
        assert_eq!(first.port(), 4000);
        assert_ne!(second.port(), 4000);
        assert_eq!(inward(&mut nat, now, PEER, second.port()), Some("192.168.1.3:4000".parse().unwrap()));
    }

    #[test]
    fn the_table_is_bounded_and_expired_mappings_make_room() {
        let now = Instant::now();
        let mut nat = nat(Nat::symmetric());
        let peer = |i: usize| SocketAddrV4::new(Ipv4Addr::from_bits(0xcb00_7200 + i as u32), 9).to_string();
        for i in 0..MAPPINGS_MAX {
            out(&mut nat, now, HOST, &peer(i)).unwrap();
        }
        assert_eq!(out(&mut nat, now, HOST, PEER), None);
        let later = now + nat.config.timeout;
        assert!(out(&mut nat, later, HOST, PEER).is_some());
        assert_eq!(nat.mappings.len(), 1);
        assert_eq!(nat.by_inside.len(), 1);
    }
}
