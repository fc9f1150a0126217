//! What our own NAT does: the beacons' views of us, and second ports asked for one more.

use super::{Engine, discovery};
use crate::path::beacons::Reply;
use crate::path::{CandidateKind, NatClass, PortRange};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Second ports that are asked.
const MAX_PROBES: usize = 4;
/// Distance of two rounds of questions.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// A question without a reply is repeated after this time, doubling.
const REPEAT: Duration = Duration::from_millis(200);
/// Copies of a question.
const COPIES: u32 = 3;
/// A reply counts only this long after a question.
const REPLY_WITHIN: Duration = Duration::from_secs(2);

/// A port that tells how it sees us and does nothing else.
#[derive(Debug)]
struct Probe {
    to: SocketAddr,
    asked: Option<Instant>,
    /// When the question under way was asked first, and its copies.
    question: Option<(Instant, u32)>,
    next: Instant,
    quiet: Option<Duration>,
}

/// Whom to ask about our NAT besides the beacons.
#[derive(Debug, Default)]
pub(super) struct NatProbes {
    probes: Vec<Probe>,
    refreshed: Option<Instant>,
}

impl NatProbes {
    /// When [`Engine::run_nat`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.probes.iter().filter(|probe| probe.question.is_some()).map(|probe| probe.next).min()
    }

    /// The address is one that is asked.
    pub(super) fn asks(&self, addr: SocketAddr) -> bool {
        self.probes.iter().any(|probe| probe.to == addr)
    }
}

impl Engine {
    /// Second ports of beacons (docs/extensions.md): asked with a Discover that registers nobody, they tell what our NAT does
    /// without a second beacon. The first four count.
    pub fn set_nat_probes(&mut self, now: Instant, probes: &[SocketAddr]) {
        let mut wanted: Vec<SocketAddr> = Vec::new();
        for probe in probes.iter().map(|p| SocketAddr::new(p.ip().to_canonical(), p.port())) {
            if wanted.len() < MAX_PROBES && !wanted.contains(&probe) && !self.beacons.contains(probe) {
                wanted.push(probe);
            }
        }
        self.nat_probes.probes.retain(|probe| wanted.contains(&probe.to));
        let before = self.nat_probes.probes.len();
        for to in wanted {
            if !self.nat_probes.asks(to) {
                let probe = Probe { to, asked: None, question: None, next: now, quiet: None };
                self.nat_probes.probes.push(probe);
            }
        }
        if self.nat_probes.probes.len() > before {
            self.nat_probes.refreshed = None;
            self.refresh_nat(now);
        }
    }

    /// What our NAT does.
    pub fn nat(&self) -> NatClass {
        self.own_nat.class()
    }

    /// The outside ports our NAT should give to the next destinations, if that can be predicted. Call
    /// [`Engine::refresh_nat`] a round trip before it matters.
    pub fn predicted_ports(&self) -> Option<PortRange> {
        self.own_nat.predicted()
    }

    /// Whether the NAT lets us keep the port; how long it was seen to keep a mapping without traffic; after which silence it
    /// was seen to have forgotten one. Only what was seen.
    pub fn nat_habits(&self) -> (Option<bool>, Duration, Option<Duration>) {
        let (kept, lost) = self.own_nat.lifetime();
        (self.own_nat.keeps_port(), kept, lost)
    }

    /// Asks the beacons and their second ports anew how they see us; at most every 2 s. A mapping that has run out since
    /// then shows the port that is next.
    pub fn refresh_nat(&mut self, now: Instant) {
        if self.nat_probes.refreshed.is_some_and(|at| now.saturating_duration_since(at) < REFRESH_EVERY) {
            return;
        }
        self.nat_probes.refreshed = Some(now);
        self.beacons.refresh(now);
        self.run_beacons(now);
        for probe in &mut self.nat_probes.probes {
            probe.quiet = probe.asked.map(|at| now.saturating_duration_since(at));
            probe.question = Some((now, 0));
            probe.next = now;
        }
        self.run_nat(now);
    }

    /// The addresses our socket has on this host changed.
    pub(super) fn own_addresses(&mut self) {
        let own = self.local.iter().filter(|c| matches!(c.kind, CandidateKind::Lan | CandidateKind::Public));
        let own: Vec<SocketAddr> = own.map(|c| c.addr).collect();
        if let Some(first) = own.first() {
            self.own_nat.set_local_port(first.port());
        }
        self.own_nat.set_own(&own);
    }

    /// We may be in another network: nothing is known about its NAT.
    pub(super) fn forget_nat(&mut self, now: Instant) {
        self.own_nat.reset();
        self.nat_probes.refreshed = None;
        self.refresh_nat(now);
    }

    /// Sends the questions that are due.
    pub(super) fn run_nat(&mut self, now: Instant) {
        let mut asks = Vec::new();
        for probe in self.nat_probes.probes.iter_mut().filter(|probe| probe.next <= now) {
            match &mut probe.question {
                Some((_, copies)) if *copies < COPIES => {
                    probe.next = now + REPEAT * 2u32.pow(*copies);
                    *copies += 1;
                    probe.asked = Some(now);
                    asks.push(probe.to);
                }
                question => *question = None,
            }
        }
        for to in asks {
            self.own_nat.asking(now, to);
            self.send_control(to, discovery::anonymous());
        }
    }

    /// A second port's reply.
    pub(super) fn probed(&mut self, now: Instant, from: SocketAddr, observed: SocketAddr) {
        let probe = self.nat_probes.probes.iter_mut().find(|probe| probe.to == from);
        let within = |at: &Instant| now.saturating_duration_since(*at) <= REPLY_WITHIN;
        let Some((probe, asked)) = probe
            .and_then(|probe| Some((probe.asked.filter(within)?, probe)))
            .map(|(asked, probe)| (probe, asked))
        else {
            return self.drops.unasked_discover_reply += 1;
        };
        if let Some((first, _)) = probe.question.take() {
            let quiet = probe.quiet.take();
            self.own_nat.observe(first, from, observed, quiet);
        } else {
            self.own_nat.observe(asked, from, observed, None);
        }
    }

    /// A beacon's reply.
    pub(super) fn seen_at(&mut self, now: Instant, from: SocketAddr, observed: SocketAddr, reply: Reply) {
        let before = self.own_nat.view(from);
        self.own_nat.observe(reply.asked, from, observed, reply.quiet);
        if before.is_some() && self.own_nat.view(from) != before {
            // The mapping is another one: compare it with what the others see now.
            self.refresh_nat(now);
        }
    }
}
