//! The network between the hosts: segments, links and what is under way, as one state machine. Packets and the
//! time go in, packets for hosts come out; nothing here knows of the kernel.

use crate::firewall::{Firewall, FirewallState};
use crate::link::{Duplex, LinkCounts, LinkState, Verdict};
use crate::nat::{Nat, NatState};
use crate::packet::{self, Head};
use crate::prefix::Prefix;
use crate::router::{RouterCounts, RouterState};
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

/// Packets under way at once; beyond, new ones are dropped (a runaway loop, not a load, gets here).
const UNDER_WAY_MAX: usize = 1 << 20;
/// Spare buffers kept.
const SPARE_MAX: usize = 4096;

/// A segment: hosts and routers on it reach each other directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkId(pub(crate) usize);

/// Where a host or router is plugged into a network, with the link between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortId(pub(crate) usize);

/// Takes the packets that arrive at hosts.
pub(crate) trait Deliver {
    fn deliver(&mut self, port: PortId, packet: &[u8]);
}

pub(crate) struct Network {
    pub v4: Option<Prefix>,
    pub v6: Option<Prefix>,
    ports: Vec<PortId>,
    /// Who owns an address.
    owners: HashMap<IpAddr, PortId>,
    /// Which port leads to addresses beyond the segment, longest prefix first.
    routes: Vec<(Prefix, PortId)>,
    /// The router that leads out of here, if there is one.
    gateway: Option<usize>,
    /// Addresses given away so far, the segment's router's included.
    assigned: u32,
    /// Packets for nobody.
    unroutable: u64,
}

struct Port {
    network: NetworkId,
    /// The router it belongs to; else it is a host's.
    router: Option<usize>,
    up: LinkState,
    down: LinkState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Through the port's link into its network.
    Enter(PortId),
    /// Out of the network to the port's owner.
    Leave(PortId),
}

struct UnderWay {
    at: Instant,
    /// Breaks ties: first come, first served.
    order: u64,
    step: Step,
    packet: Vec<u8>,
}

impl PartialEq for UnderWay {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for UnderWay {}
impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub(crate) struct World {
    seed: u64,
    networks: Vec<Network>,
    ports: Vec<Port>,
    routers: Vec<RouterState>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    order: u64,
    spare: Vec<Vec<u8>>,
}

impl World {
    pub fn new(seed: u64) -> World {
        World {
            seed,
            networks: Vec::new(),
            ports: Vec::new(),
            routers: Vec::new(),
            under_way: BinaryHeap::new(),
            order: 0,
            spare: Vec::new(),
        }
    }

    pub fn add_network(&mut self, v4: Option<Prefix>, v6: Option<Prefix>) -> NetworkId {
        self.networks.push(Network {
            v4,
            v6,
            ports: Vec::new(),
            owners: HashMap::new(),
            routes: Vec::new(),
            gateway: None,
            // The first address belongs to the segment's router, if it has one.
            assigned: 1,
            unroutable: 0,
        });
        NetworkId(self.networks.len() - 1)
    }

    pub fn network(&self, id: NetworkId) -> &Network {
        &self.networks[id.0]
    }

    pub fn add_port(&mut self, network: NetworkId, link: Duplex) -> PortId {
        let id = PortId(self.ports.len());
        let stream = id.0 as u64 * 2;
        self.ports.push(Port {
            network,
            router: None,
            up: LinkState::new(link.up, self.seed, stream),
            down: LinkState::new(link.down, self.seed, stream + 1),
        });
        self.networks[network.0].ports.push(id);
        id
    }

    /// The next free addresses of a network, one of each family it has.
    pub fn assign(&mut self, network: NetworkId) -> Vec<IpAddr> {
        let network = &mut self.networks[network.0];
        network.assigned += 1;
        [network.v4, network.v6].into_iter().flatten().map(|p| p.nth(network.assigned)).collect()
    }

    /// Gives an address to a port; `None` takes it away.
    pub fn set_owner(&mut self, port: PortId, addr: IpAddr, owns: bool) {
        let network = &mut self.networks[self.ports[port.0].network.0];
        if owns {
            network.owners.insert(addr, port);
        } else if network.owners.get(&addr) == Some(&port) {
            network.owners.remove(&addr);
        }
    }

    /// The addresses a port owns.
    pub fn addrs(&self, port: PortId) -> Vec<IpAddr> {
        let owners = &self.networks[self.ports[port.0].network.0].owners;
        let mut addrs: Vec<IpAddr> = owners.iter().filter(|(_, p)| **p == port).map(|(a, _)| *a).collect();
        addrs.sort_unstable();
        addrs
    }

    /// Sends everything for a prefix that nobody on the segment owns to this port.
    pub fn add_route(&mut self, prefix: Prefix, port: PortId) {
        let routes = &mut self.networks[self.ports[port.0].network.0].routes;
        routes.push((prefix, port));
        routes.sort_by_key(|(p, _)| Reverse(p.len()));
    }

    /// Makes a port the way out of its network: it owns the first address of each prefix and gets what is for
    /// elsewhere.
    pub fn set_gateway(&mut self, port: PortId) {
        let network = &self.networks[self.ports[port.0].network.0];
        for prefix in [network.v4, network.v6].into_iter().flatten() {
            self.set_owner(port, prefix.nth(1), true);
            self.add_route(Prefix::new(prefix.nth(1), 0), port);
        }
    }

    /// Makes a prefix behind a port known, here and in the networks that lead here.
    fn announce(&mut self, prefix: Prefix, port: PortId) {
        self.add_route(prefix, port);
        if let Some(router) = self.networks[self.ports[port.0].network.0].gateway {
            self.announce(prefix, self.routers[router].wan);
        }
    }

    pub fn add_router(
        &mut self,
        outside: NetworkId,
        link: Duplex,
        inside: NetworkId,
        nat: Option<Nat>,
        firewall: Firewall,
    ) -> usize {
        let id = self.routers.len();
        let wan = self.add_port(outside, link);
        let lan = self.add_port(inside, Duplex::default());
        for port in [wan, lan] {
            self.ports[port.0].router = Some(id);
        }
        let addrs = self.assign(outside);
        for addr in &addrs {
            self.set_owner(wan, *addr, true);
        }
        let external = addrs.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
        // Streams of the generator below 2^32 are the links'.
        let nat = nat.zip(external).map(|(nat, e)| NatState::new(nat, e, self.seed, (1 << 32) + id as u64));
        let (v4, v6) = (self.networks[inside.0].v4, self.networks[inside.0].v6);
        let translated = nat.is_some();
        let (firewall, counts) = (FirewallState::new(firewall), RouterCounts::default());
        self.routers.push(RouterState { wan, lan, nat, firewall, counts });
        self.networks[inside.0].gateway = Some(id);
        self.set_gateway(lan);
        for prefix in [v4.filter(|_| !translated), v6].into_iter().flatten() {
            self.announce(prefix, wan);
        }
        id
    }

    pub fn router(&mut self, id: usize) -> &mut RouterState {
        &mut self.routers[id]
    }

    /// Gives a router other addresses outside; its NAT begins anew.
    pub fn change_router_address(&mut self, id: usize) {
        let wan = self.routers[id].wan;
        for addr in self.addrs(wan) {
            self.set_owner(wan, addr, false);
        }
        for addr in self.assign(self.ports[wan.0].network) {
            self.set_owner(wan, addr, true);
            if let (IpAddr::V4(addr), Some(nat)) = (addr, &mut self.routers[id].nat) {
                nat.restart(addr);
            }
        }
    }

    pub fn link(&self, port: PortId) -> Duplex {
        let port = &self.ports[port.0];
        Duplex { up: port.up.config, down: port.down.config }
    }

    pub fn set_link(&mut self, port: PortId, link: Duplex) {
        let port = &mut self.ports[port.0];
        port.up.set(link.up);
        port.down.set(link.down);
    }

    /// Counts of both directions: up, down.
    pub fn counts(&self, port: PortId) -> (LinkCounts, LinkCounts) {
        let port = &self.ports[port.0];
        (port.up.counts, port.down.counts)
    }

    /// A buffer for the next packet.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    pub fn recycle(&mut self, mut packet: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            packet.clear();
            self.spare.push(packet);
        }
    }

    /// A host sends a packet.
    pub fn send(&mut self, now: Instant, port: PortId, packet: Vec<u8>, out: &mut impl Deliver) {
        match packet::head(&packet) {
            // Which packets a fault hits must not depend on when the kernel speaks of multicast groups.
            Some(head) if !packet::is_housekeeping(&head) => self.offer(now, Step::Enter(port), packet, out),
            _ => self.recycle(packet),
        }
    }

    /// Lets everything happen that is due.
    pub fn advance(&mut self, now: Instant, out: &mut impl Deliver) {
        while self.under_way.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Some(Reverse(next)) = self.under_way.pop() else { break };
            self.step(next.at, next.step, next.packet, out);
        }
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(next)| next.at)
    }

    /// Puts a packet on one direction of a link.
    fn offer(&mut self, now: Instant, step: Step, packet: Vec<u8>, out: &mut impl Deliver) {
        let link = match step {
            Step::Enter(port) => &mut self.ports[port.0].up,
            Step::Leave(port) => &mut self.ports[port.0].down,
        };
        match link.offer(now, packet.len()) {
            Verdict::Drop => self.recycle(packet),
            Verdict::TooBig { mtu, tell } => {
                if tell {
                    self.tell_too_big(now, step, &packet, mtu, out);
                }
                self.recycle(packet);
            }
            Verdict::Deliver { at, twice } => {
                if twice {
                    let mut copy = self.buffer();
                    copy.extend_from_slice(&packet);
                    self.schedule(now, at, step, copy, out);
                }
                self.schedule(now, at, step, packet, out);
            }
        }
    }

    fn schedule(&mut self, now: Instant, at: Instant, step: Step, packet: Vec<u8>, out: &mut impl Deliver) {
        if at <= now {
            return self.step(now, step, packet, out);
        }
        if self.under_way.len() >= UNDER_WAY_MAX {
            return self.recycle(packet);
        }
        self.order += 1;
        self.under_way.push(Reverse(UnderWay { at, order: self.order, step, packet }));
    }

    /// A packet has come through a link.
    fn step(&mut self, now: Instant, step: Step, mut packet: Vec<u8>, out: &mut impl Deliver) {
        match step {
            Step::Enter(port) => self.switch(now, port, packet, out),
            Step::Leave(port) => match self.ports[port.0].router {
                Some(router) => match self.routers[router].forward(now, port, &mut packet) {
                    Some(port) => self.offer(now, Step::Enter(port), packet, out),
                    None => self.recycle(packet),
                },
                None => {
                    out.deliver(port, &packet);
                    self.recycle(packet);
                }
            },
        }
    }

    /// Passes a packet on within a segment.
    fn switch(&mut self, now: Instant, from: PortId, packet: Vec<u8>, out: &mut impl Deliver) {
        let id = self.ports[from.0].network;
        let Some(head) = packet::head(&packet) else { return self.recycle(packet) };
        if self.networks[id.0].is_for_all(&head) {
            for i in 0..self.networks[id.0].ports.len() {
                let port = self.networks[id.0].ports[i];
                if port != from {
                    let mut copy = self.buffer();
                    copy.extend_from_slice(&packet);
                    self.offer(now, Step::Leave(port), copy, out);
                }
            }
            return self.recycle(packet);
        }
        match self.networks[id.0].next_hop(head.dst) {
            Some(port) if port != from => self.offer(now, Step::Leave(port), packet, out),
            _ => {
                self.networks[id.0].unroutable += 1;
                self.recycle(packet);
            }
        }
    }

    /// The router at the near end of a link tells the sender of a packet that it is too big.
    fn tell_too_big(&mut self, now: Instant, step: Step, packet: &[u8], mtu: usize, out: &mut impl Deliver) {
        let (Step::Enter(port) | Step::Leave(port)) = step;
        let Some(head) = packet::head(packet) else { return };
        let network = &self.networks[self.ports[port.0].network.0];
        let prefix = if head.src.is_ipv4() { network.v4 } else { network.v6 };
        let Some(reply) = prefix.and_then(|p| packet::too_big(packet, p.nth(1), mtu)) else { return };
        match step {
            // Back to the port it came from, at once: the obstacle is the first thing it met.
            Step::Enter(port) => self.step(now, Step::Leave(port), reply, out),
            // From the middle of the segment back through the link of the sender.
            Step::Leave(port) => self.switch(now, port, reply, out),
        }
    }

    /// Packets that no port of a network leads to, so far.
    pub fn unroutable(&self, network: NetworkId) -> u64 {
        self.networks[network.0].unroutable
    }
}

impl Network {
    /// Broadcast or multicast.
    fn is_for_all(&self, head: &Head) -> bool {
        match head.dst {
            IpAddr::V4(a) => {
                a.is_multicast() || a.is_broadcast() || self.v4.is_some_and(|p| p.last() == head.dst)
            }
            IpAddr::V6(a) => a.is_multicast(),
        }
    }

    fn next_hop(&self, dst: IpAddr) -> Option<PortId> {
        let route = || self.routes.iter().find(|(p, _)| p.contains(dst)).map(|(_, port)| *port);
        self.owners.get(&dst).copied().or_else(route)
    }
}
