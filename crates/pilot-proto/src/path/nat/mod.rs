//! What the NAT in front of us does with our socket: whether it gives every destination a port of its own, and which.
//!
//! Beacons tell at which address they see us. Two of them, or two ports of one, that see us at the same address mean a
//! mapping that does not depend on the destination; two that see different ports mean one per destination, and the
//! distance of ports that were given one right after the other tells how the next is chosen (spec 04 section 21, item 4).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Destinations whose view is kept; the one heard least recently gives way.
const MAX_VIEWS: usize = 32;
/// Ports given by the NAT that are remembered, newest last.
const MAX_GIVEN: usize = 16;
/// Two views of different times do not compare: the mapping may have been renewed in between. Nor do two ports: somebody
/// else may have been given those between.
const TOGETHER: Duration = Duration::from_secs(5);
/// Largest distance of two ports given one after the other that counts as a step. Two random ports lie as close with
/// a probability of 1 in 2,000.
const MAX_STEP: i32 = 16;
/// Ports in a predicted range.
pub const PREDICTED_PORTS: u16 = 64;

/// How a NAT that maps per destination chooses ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// One after the other.
    Predictable {
        /// Distance of two, not zero, at most 16 either way.
        stride: i16,
        /// The one given last, as far as we know.
        last: u16,
    },
    /// With no order that we can see.
    Random,
}

/// What lies between our socket and the beacons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatClass {
    /// Too little is known: no beacon answers, or only one at one port.
    #[default]
    Unknown,
    /// Nothing: we are seen at an address of our own.
    None,
    /// One outside port for all destinations.
    EndpointIndependent,
    /// An outside port for each destination ("symmetric").
    PerDestination {
        /// How it chooses them.
        ports: Ports,
    },
}

impl NatClass {
    /// As status output names it.
    pub fn name(self) -> &'static str {
        match self {
            NatClass::Unknown => "unknown",
            NatClass::None => "none",
            NatClass::EndpointIndependent => "endpoint_independent",
            NatClass::PerDestination { ports: Ports::Predictable { .. } } => "per_destination_predictable",
            NatClass::PerDestination { ports: Ports::Random } => "per_destination_random",
        }
    }

    /// The same in words.
    pub fn words(self) -> &'static str {
        match self {
            NatClass::Unknown => "not known yet",
            NatClass::None => "none: others see this host's own address",
            NatClass::EndpointIndependent => "one outside port for all destinations (cone)",
            NatClass::PerDestination { ports: Ports::Predictable { .. } } => {
                "another outside port for each destination, predictable (symmetric)"
            }
            NatClass::PerDestination { ports: Ports::Random } => {
                "another outside port for each destination, at random (symmetric)"
            }
        }
    }
}

/// Outside ports of which a NAT is expected to give one to the next destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Our outside address.
    pub ip: IpAddr,
    /// The most likely port, which comes first.
    pub first: u16,
    /// Distance to the next, not zero.
    pub stride: i16,
    /// How many, at most [`PREDICTED_PORTS`]; none of them leaves 1 to 65,535.
    pub count: u16,
    /// When the NAT gave the port this follows from.
    pub since: Instant,
}

impl PortRange {
    /// The addresses, most likely first.
    pub fn addresses(self) -> impl Iterator<Item = SocketAddr> {
        let port = move |n: u16| i32::from(self.first) + i32::from(self.stride) * i32::from(n);
        (0..self.count).filter_map(move |n| Some(SocketAddr::new(self.ip, u16::try_from(port(n)).ok()?)))
    }
}

/// How one destination sees us.
#[derive(Debug, Clone, Copy)]
struct View {
    to: SocketAddr,
    observed: SocketAddr,
    /// When this very port was seen first, and last.
    since: Instant,
    last: Instant,
}

/// A port the NAT gave to a new mapping.
#[derive(Debug, Clone, Copy)]
struct Given {
    port: u16,
    at: Instant,
    /// Position among the questions.
    turn: u64,
}

/// What is known about our NAT. IPv4 if we are seen there at all: IPv6 has no ports to share.
#[derive(Debug, Default)]
pub struct Nat {
    /// Addresses of our socket that need no NAT.
    own: Vec<SocketAddr>,
    local_port: Option<u16>,
    views: Vec<View>,
    given: VecDeque<Given>,
    /// The last question to each destination: many leave at one instant, and their order is that of the ports.
    turns: VecDeque<(SocketAddr, u64, Instant)>,
    turn: u64,
    class: NatClass,
    /// The last verdict on how ports are chosen.
    ports: Option<Ports>,
    kept: Duration,
    lost: Option<Duration>,
}

impl Nat {
    /// The addresses our socket has on this host, not wildcards. They replace those given before; at most 64 count.
    pub fn set_own(&mut self, own: &[SocketAddr]) {
        self.own = own.iter().take(64).map(|a| SocketAddr::new(a.ip().to_canonical(), a.port())).collect();
        if let Some(newest) = self.views.iter().map(|view| view.last).max() {
            self.compare(newest);
        }
    }

    /// The port our socket is bound to.
    pub fn set_local_port(&mut self, port: u16) {
        self.local_port = Some(port);
    }

    /// The network is another: nothing of what was seen holds.
    pub fn reset(&mut self) {
        let (own, local_port) = (std::mem::take(&mut self.own), self.local_port);
        *self = Nat { own, local_port, ..Nat::default() };
    }

    /// A question leaves for this destination, or a copy of one.
    pub fn asking(&mut self, now: Instant, to: SocketAddr) {
        if let Some((_, _, last)) = self.turns.iter_mut().find(|(known, ..)| *known == to) {
            let copy = now.saturating_duration_since(std::mem::replace(last, now)) <= TOGETHER;
            if copy {
                return;
            }
            self.turns.retain(|(known, ..)| *known != to);
        }
        if self.turns.len() >= MAX_VIEWS {
            self.turns.pop_front();
        }
        self.turn += 1;
        self.turns.push_back((to, self.turn, now));
    }

    /// A destination answered: it sees us there. `asked`: when it was asked; `quiet`: how long nothing had been sent to it
    /// before. Replies nobody asked for must not come here.
    pub fn observe(&mut self, asked: Instant, to: SocketAddr, observed: SocketAddr, quiet: Option<Duration>) {
        let observed = SocketAddr::new(observed.ip().to_canonical(), observed.port());
        if observed.ip().is_unspecified() || observed.port() == 0 {
            return;
        }
        let known = self.views.iter_mut().find(|view| view.to == to);
        if let Some(view) = known {
            view.last = view.last.max(asked);
            if view.observed == observed {
                self.kept = self.kept.max(quiet.unwrap_or_default());
                return self.compare(asked);
            }
            let moved = view.observed.ip() != observed.ip();
            if asked < view.since {
                // An answer that was overtaken.
                return;
            }
            view.observed = observed;
            view.since = asked;
            if moved {
                // Another network: what was given there says nothing about this one.
                self.given.clear();
                (self.class, self.ports) = (NatClass::Unknown, None);
                self.views.retain(|view| view.to == to || view.observed.ip() == observed.ip());
            } else if let Some(quiet) = quiet {
                self.lost = Some(self.lost.map_or(quiet, |lost| lost.min(quiet)));
            }
        } else {
            if self.views.len() >= MAX_VIEWS
                && let Some(oldest) =
                    self.views.iter().enumerate().min_by_key(|(_, view)| view.last).map(|(n, _)| n)
            {
                self.views.swap_remove(oldest);
            }
            self.views.push(View { to, observed, since: asked, last: asked });
        }
        if observed.is_ipv4() {
            let turn = self.turns.iter().find(|(known, ..)| *known == to).map_or(0, |(_, turn, _)| *turn);
            self.gave(Given { port: observed.port(), at: asked, turn });
        }
        self.compare(asked);
    }

    /// How this destination saw us last.
    pub fn view(&self, to: SocketAddr) -> Option<SocketAddr> {
        self.views.iter().find(|view| view.to == to).map(|view| view.observed)
    }

    /// The NAT gave this port; replies may come in another order than the questions went out.
    fn gave(&mut self, new: Given) {
        if self.given.iter().any(|given| given.port == new.port) {
            return;
        }
        let before = |given: &Given| (given.at, given.turn) <= (new.at, new.turn);
        let place = self.given.iter().rposition(before).map_or(0, |n| n + 1);
        self.given.insert(place, new);
        if self.given.len() > MAX_GIVEN {
            self.given.pop_front();
        }
        self.judge();
    }

    fn judge(&mut self) {
        // A port kept as it was inside says nothing about how the others are chosen.
        let chosen: Vec<Given> =
            self.given.iter().copied().filter(|given| Some(given.port) != self.local_port).collect();
        let steps: Vec<i32> = chosen
            .windows(2)
            .filter(|pair| pair[1].at.saturating_duration_since(pair[0].at) <= TOGETHER)
            .map(|pair| i32::from(pair[1].port) - i32::from(pair[0].port))
            .collect();
        let Some(last) = chosen.last() else { return };
        let recent = &steps[steps.len().saturating_sub(4)..];
        let small: Vec<i32> = recent.iter().copied().filter(|step| step.abs() <= MAX_STEP).collect();
        if recent.is_empty() {
            // Nothing to compare it with: only the place where the NAT is now is news.
            if let Some(Ports::Predictable { last: at, .. }) = &mut self.ports {
                *at = last.port;
            }
            return;
        }
        // Others behind the NAT take ports in between, so a step may be a multiple of the stride; the smallest is nearest.
        // Answers may have been ordered wrongly, so most say which way it goes; NATs that count backwards are rare.
        let backwards = small.iter().filter(|step| **step < 0).count() * 2 > small.len();
        let stride =
            small.iter().copied().filter(|step| (*step < 0) == backwards).min_by_key(|step| step.abs());
        self.ports = match stride.and_then(|stride| i16::try_from(stride).ok()) {
            Some(stride) if small.len() * 2 > recent.len() => {
                Some(Ports::Predictable { stride, last: last.port })
            }
            _ => Some(Ports::Random),
        };
    }

    /// The verdict so far.
    pub fn class(&self) -> NatClass {
        match self.class {
            NatClass::PerDestination { .. } => {
                NatClass::PerDestination { ports: self.ports.unwrap_or(Ports::Random) }
            }
            class => class,
        }
    }

    /// Compares what was seen at about the same time. Views of IPv6 count only as long as there are none of IPv4.
    fn compare(&mut self, at: Instant) {
        let v4 = self.views.iter().any(|view| view.observed.is_ipv4());
        let now = |view: &&View| view.last.max(at) - view.last.min(at) <= TOGETHER;
        let mut views = self.views.iter().filter(|view| view.observed.is_ipv4() == v4).filter(now);
        let Some(first) = views.next() else { return };
        let rest: Vec<&View> = views.collect();
        if rest.iter().chain([&first]).all(|view| self.own.contains(&view.observed)) {
            self.class = NatClass::None;
        } else if rest.is_empty() {
            // One view says that there is a NAT, no more.
            if self.class == NatClass::None {
                self.class = NatClass::Unknown;
            }
        } else if rest.iter().all(|view| view.observed == first.observed) {
            self.class = NatClass::EndpointIndependent;
        } else {
            self.class = NatClass::PerDestination { ports: Ports::Random };
        }
    }

    /// The ports a NAT that can be predicted should give to the next destinations, as known at the last
    /// [`Nat::observe`]. `None`: there is none, or it cannot be predicted.
    pub fn predicted(&self) -> Option<PortRange> {
        let NatClass::PerDestination { ports: Ports::Predictable { stride, last } } = self.class() else {
            return None;
        };
        let given = self.given.iter().rev().find(|given| given.port == last)?;
        let ip = self.views.iter().filter(|v| v.observed.is_ipv4()).max_by_key(|v| v.since)?.observed.ip();
        let first = u16::try_from(i32::from(last) + i32::from(stride)).ok().filter(|port| *port != 0)?;
        let room = if stride > 0 { u16::MAX - first } else { first - 1 } / stride.unsigned_abs() + 1;
        Some(PortRange { ip, first, stride, count: room.min(PREDICTED_PORTS), since: given.at })
    }

    /// Whether the outside port is the inside one, for any destination. `None`: not known.
    pub fn keeps_port(&self) -> Option<bool> {
        let port = self.local_port?;
        let mut views = self.views.iter().filter(|view| view.observed.is_ipv4()).peekable();
        views.peek()?;
        Some(views.any(|view| view.observed.port() == port))
    }

    /// How long a mapping was seen to last without traffic from us, and after what silence one was seen to be gone.
    pub fn lifetime(&self) -> (Duration, Option<Duration>) {
        (self.kept, self.lost)
    }
}

#[cfg(test)]
mod tests;
