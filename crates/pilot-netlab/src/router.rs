//! Routers: two ports, address translation and a firewall between them.

use crate::fabric::Fabric;
use crate::firewall::{Firewall, FirewallState};
use crate::link::{Duplex, LinkCounts};
use crate::nat::{self, Nat, NatState, Outcome};
use crate::packet;
use crate::prefix::Prefix;
use crate::world::{NetworkId, PortId, World};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

/// What a router dropped so far, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterCounts {
    /// No mapping, not permitted by the filter, or not translatable.
    pub nat: u64,
    /// Not allowed by the firewall.
    pub firewall: u64,
    /// No hops left.
    pub hops: u64,
}

pub(crate) struct RouterState {
    pub wan: PortId,
    pub lan: PortId,
    pub nat: Option<NatState>,
    pub firewall: FirewallState,
    pub counts: RouterCounts,
}

impl RouterState {
    /// Decides about a packet that came in through `port`; returns the port it leaves through, changed as it may
    /// be.
    pub fn forward(&mut self, now: Instant, port: PortId, p: &mut [u8]) -> Option<PortId> {
        if !packet::take_hop(p) {
            self.counts.hops += 1;
            return None;
        }
        let head = packet::head(p)?;
        let out = port == self.lan;
        let translated = head.src.is_ipv4() && self.nat.is_some();
        if out && !self.firewall.allows(now, p, &head, true, translated) {
            self.counts.firewall += 1;
            return None;
        }
        let outcome = match &mut self.nat {
            Some(nat) if out && head.src.is_ipv4() => nat.outbound(now, p, &head),
            Some(nat) if nat::is_for(&head, nat.external()) => nat.inbound(now, p, &head),
            // From outside straight to an inside address that is not known there.
            Some(_) if head.src.is_ipv4() => Outcome::Drop,
            _ => Outcome::Pass,
        };
        match outcome {
            Outcome::Drop => {
                self.counts.nat += 1;
                None
            }
            Outcome::Hairpin => Some(self.lan),
            Outcome::Pass if out => Some(self.wan),
            Outcome::Pass => {
                let head = packet::head(p)?;
                if !self.firewall.allows(now, p, &head, false, translated) {
                    self.counts.firewall += 1;
                    return None;
                }
                Some(self.lan)
            }
        }
    }
}

/// Describes a router before it exists; see [`Lab::router`](crate::Lab::router).
#[must_use]
pub struct RouterBuilder {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) wan: (NetworkId, Duplex),
    pub(crate) lan: (Option<Prefix>, Option<Prefix>),
    pub(crate) nat: Option<Nat>,
    pub(crate) firewall: Firewall,
}

impl RouterBuilder {
    /// Translates IPv4 addresses. Without, the outside routes to the inside addresses.
    pub fn nat(mut self, nat: Nat) -> RouterBuilder {
        self.nat = Some(nat);
        self
    }

    /// Sets the firewall; [`Firewall::stateful`] unless set.
    pub fn firewall(mut self, firewall: Firewall) -> RouterBuilder {
        self.firewall = firewall;
        self
    }

    /// Makes the router.
    pub fn start(self) -> Router {
        let RouterBuilder { fabric, wan, lan, nat, firewall } = self;
        let (id, lan) = fabric.with(move |state| {
            let lan = state.world.add_network(lan.0, lan.1);
            (state.world.add_router(wan.0, wan.1, lan, nat, firewall), lan)
        });
        Router { fabric, id, lan }
    }
}

/// A router at work. Clones are handles to the same one.
#[derive(Clone)]
pub struct Router {
    fabric: Arc<Fabric>,
    id: usize,
    lan: NetworkId,
}

impl Router {
    /// The network inside.
    pub fn lan(&self) -> NetworkId {
        self.lan
    }

    /// Its addresses on the outside.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.with(|world, _, wan| world.addrs(wan))
    }

    /// Its IPv4 address on the outside.
    ///
    /// # Panics
    ///
    /// If the network outside has no IPv4.
    pub fn v4(&self) -> Ipv4Addr {
        let found = self.addrs().into_iter().find_map(|a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        found.expect("the network outside has IPv4")
    }

    /// Gives it the next free addresses of the network outside, as when the line is dialled anew: every mapping
    /// is forgotten.
    pub fn change_address(&self) {
        self.with(|world, id, _| world.change_router_address(id));
    }

    /// Forgets every mapping, as when it is switched off and on.
    pub fn forget_mappings(&self) {
        self.with(|world, id, _| {
            if let Some(nat) = &mut world.router(id).nat {
                nat.restart(nat.external());
            }
        });
    }

    /// UDP, TCP and echo mappings that are alive.
    pub fn mappings(&self) -> usize {
        self.with(|world, id, _| world.router(id).nat.as_ref().map_or(0, |n| n.alive(Instant::now())))
    }

    /// Changes the firewall; flows it knows stay known.
    pub fn set_firewall(&self, rules: Firewall) {
        self.with(|world, id, _| world.router(id).firewall.rules = rules);
    }

    /// The link to the outside.
    pub fn link(&self) -> Duplex {
        self.with(|world, _, wan| world.link(wan))
    }

    /// Changes the link to the outside; what is under way arrives as it would have.
    pub fn set_link(&self, link: impl Into<Duplex>) {
        let link = link.into();
        self.with(move |world, _, wan| world.set_link(wan, link));
    }

    /// What the link to the outside did so far: (towards it, from it).
    pub fn link_counts(&self) -> (LinkCounts, LinkCounts) {
        self.with(|world, _, wan| world.counts(wan))
    }

    /// What the router dropped so far.
    pub fn counts(&self) -> RouterCounts {
        self.with(|world, id, _| world.router(id).counts)
    }

    fn with<T: Send + 'static>(&self, f: impl FnOnce(&mut World, usize, PortId) -> T + Send + 'static) -> T {
        let id = self.id;
        self.fabric.with(move |state| {
            let wan = state.world.router(id).wan;
            f(&mut state.world, id, wan)
        })
    }
}

/// Parses the prefixes of a network: at most one of each family.
pub(crate) fn prefixes(texts: &[&str]) -> io::Result<(Option<Prefix>, Option<Prefix>)> {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let prefix: Prefix = text.parse().map_err(io::Error::other)?;
        let slot = if prefix.is_v4() { &mut v4 } else { &mut v6 };
        if slot.replace(prefix).is_some() {
            return Err(io::Error::other(format!("{text}: a network has one prefix of each family")));
        }
    }
    Ok((v4, v6))
}
