//! What a router lets through.

use crate::packet::{self, Flow, Head, TCP, UDP};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Flows remembered at once; beyond, new ones are dropped.
const FLOWS_MAX: usize = 65_536;
/// How long a flow without traffic is remembered.
const FLOW_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(2 * 3600 + 4 * 60);

/// Rules of a router's firewall, as seen from its inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// Whether packets from the outside need a flow that the inside began. Of what is translated the NAT alone
    /// decides that; this is for the rest, like IPv6.
    pub stateful: bool,
    /// Whether UDP passes.
    pub udp: bool,
    /// If set, all that passes is TCP to this port, from this internal address if one is given, and the answers.
    pub only_tcp: Option<(Option<IpAddr>, u16)>,
    /// UDP to and from these addresses outside does not pass.
    pub blocked: Vec<IpAddr>,
}

impl Firewall {
    /// Lets everything through.
    pub const fn open() -> Firewall {
        Firewall { stateful: false, udp: true, only_tcp: None, blocked: Vec::new() }
    }

    /// Lets in what belongs to a flow that the inside began.
    pub const fn stateful() -> Firewall {
        Firewall { stateful: true, udp: true, only_tcp: None, blocked: Vec::new() }
    }

    /// Lets no UDP through, in neither direction; else as `stateful`.
    pub const fn no_udp() -> Firewall {
        Firewall { stateful: true, udp: false, only_tcp: None, blocked: Vec::new() }
    }

    /// Lets out TCP to this port only, from this internal host only: an HTTP proxy, say.
    pub const fn only_tcp_from(host: IpAddr, port: u16) -> Firewall {
        Firewall { stateful: true, udp: false, only_tcp: Some((Some(host), port)), blocked: Vec::new() }
    }

    /// Lets no UDP to and from these addresses outside through.
    #[must_use]
    pub fn block(mut self, addrs: impl IntoIterator<Item = IpAddr>) -> Firewall {
        self.blocked.extend(addrs);
        self
    }
}

pub(crate) struct FirewallState {
    pub rules: Firewall,
    /// Flows seen from the inside (inside end first), and when last.
    flows: HashMap<Flow, Instant>,
}

impl FirewallState {
    pub fn new(rules: Firewall) -> FirewallState {
        FirewallState { rules, flows: HashMap::new() }
    }

    /// Whether a packet may leave (`out`) or enter. Addresses are those of the inside.
    pub fn allows(&mut self, now: Instant, p: &[u8], head: &Head, out: bool, translated: bool) -> bool {
        let remote = if out { head.dst } else { head.src };
        if head.protocol == UDP && (!self.rules.udp || self.rules.blocked.contains(&remote)) {
            return false;
        }
        if (translated || !self.rules.stateful) && self.rules.only_tcp.is_none() {
            return true;
        }
        if let Some((_, _, flow)) = packet::quoted(p, head) {
            // It belongs to the flow it is about, which it travels against.
            let flow = if out { reverse(flow) } else { flow };
            return self.knows(now, &flow);
        }
        let Some(flow) = packet::flow(p, head) else { return false };
        let flow = if out { flow } else { reverse(flow) };
        if self.knows(now, &flow) {
            self.flows.insert(flow, now);
            return true;
        }
        if !out || !self.may_begin(&flow) {
            return false;
        }
        if self.flows.len() >= FLOWS_MAX {
            self.flows.retain(|flow, last| !expired(flow, *last, now));
        }
        if self.flows.len() >= FLOWS_MAX {
            return false;
        }
        self.flows.insert(flow, now);
        true
    }

    fn may_begin(&self, flow: &Flow) -> bool {
        let Some((host, port)) = self.rules.only_tcp else { return true };
        flow.protocol == TCP && flow.dst.port() == port && host.is_none_or(|h| flow.src.ip() == h)
    }

    fn knows(&self, now: Instant, flow: &Flow) -> bool {
        self.flows.get(flow).is_some_and(|last| !expired(flow, *last, now))
    }
}

fn reverse(flow: Flow) -> Flow {
    let (src, dst): (SocketAddr, SocketAddr) = (flow.dst, flow.src);
    Flow { protocol: flow.protocol, src, dst }
}

fn expired(flow: &Flow, last: Instant, now: Instant) -> bool {
    let limit = if flow.protocol == TCP { TCP_TIMEOUT } else { FLOW_TIMEOUT };
    now.saturating_duration_since(last) >= limit
}
