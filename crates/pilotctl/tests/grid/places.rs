//! Places that are more than a NAT: which candidate wins there.

use crate::agents::{Agent, Make, Net, UPLINK};
use crate::probe::{Found, Way, measure};
use crate::{alone, report, runtime};
use pilot_netlab::{Link, Nat, Place, Site};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How long a pair may take to get the path it must have.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the relay must stay the path of a pair that can have no other.
const RELAY_PATIENCE: Duration = Duration::from_secs(4);
/// How long an agent may take to register.
const REGISTER_PATIENCE: Duration = Duration::from_secs(30);
/// Laboratories at a time.
const JOBS: usize = 3;

/// What must come of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Directly, each side over an address of one of these kinds: how the one who asks sees the other, and the reverse.
    Direct([&'static [&'static str]; 2]),
    Relay,
}

pub struct Outcome {
    pub name: &'static str,
    pub expected: Expected,
    pub cell: Result<Found, String>,
}

/// Makes the agents of a pair.
type Pair = fn(&Net) -> [Agent; 2];

/// Seen from outside a NAT, with or without having been told.
const OUTSIDE: &[&str] = &["reflexive", "learnt"];
/// The same of a neighbour.
const LAN: &[&str] = &["lan", "learnt"];
/// Of one behind a symmetric NAT.
const LEARNT: &[&str] = &["learnt"];
/// At the port its router gave it.
const MAPPED: &[&str] = &["mapped"];
/// IPv6 addresses are mostly what they seem.
const V6: &[&str] = &["public", "reflexive", "learnt"];
const ANY: &[&str] = &["lan", "public", "reflexive", "mapped", "learnt", "predicted"];

const PAIRS: &[(&str, Pair, Expected)] = &[
    (
        "UPnP-IGD and symmetric",
        |net| sites(net, Site::Upnp, Site::Symmetric),
        Expected::Direct([LEARNT, MAPPED]),
    ),
    ("PCP and symmetric", |net| sites(net, Site::Pcp, Site::Symmetric), Expected::Direct([LEARNT, MAPPED])),
    (
        "NAT-PMP and symmetric",
        |net| sites(net, Site::NatPmp, Site::Symmetric),
        Expected::Direct([LEARNT, MAPPED]),
    ),
    ("IPv6 only, both", |net| sites(net, Site::V6Only, Site::V6Only), Expected::Direct([V6, V6])),
    ("IPv6 only and IPv4 only", |net| sites(net, Site::V6Only, Site::PortRestricted), Expected::Relay),
    ("IPv6 only and dual stack", |net| sites(net, Site::V6Only, Site::DualStack), Expected::Direct([V6, V6])),
    ("dual stack, both", |net| sites(net, Site::DualStack, Site::DualStack), Expected::Direct([V6, V6])),
    ("same LAN, NAT hairpins", |net| neighbours(net, Site::PortRestricted), Expected::Direct([ANY, ANY])),
    ("same LAN, NAT does not hairpin", |net| neighbours(net, Site::NoHairpin), Expected::Direct([LAN, LAN])),
    (
        "two LANs with the same prefix",
        |net| [net.agent(Site::PortRestricted, "a", 1), net.agent(Site::PortRestricted, "b", 1)],
        Expected::Direct([OUTSIDE, OUTSIDE]),
    ),
    (
        "two homes behind a carrier that hairpins",
        |net| homes(net, true),
        Expected::Direct([OUTSIDE, OUTSIDE]),
    ),
    ("two homes behind a carrier that does not hairpin", |net| homes(net, false), Expected::Relay),
    ("UDP blocked and public", |net| sites(net, Site::UdpBlocked, Site::Public), Expected::Relay),
    ("only an HTTP proxy, and public", |net| sites(net, Site::ProxyOnly, Site::Public), Expected::Relay),
    (
        "UDP blocked, and only an HTTP proxy",
        |net| sites(net, Site::UdpBlocked, Site::ProxyOnly),
        Expected::Relay,
    ),
];

#[test]
fn in_every_place_the_right_candidate_wins() {
    let _alone = alone();
    let outcomes = all(JOBS);
    outcomes.iter().for_each(|o| println!("{}: {}", o.name, report::place(&o.cell)));
    check(&outcomes);
}

/// Fails unless all came as expected.
pub fn check(outcomes: &[Outcome]) {
    let wrong: Vec<_> = outcomes.iter().filter(|o| !o.right()).collect();
    let list: Vec<_> = wrong.iter().map(|o| format!("{}, {:?}: {:?}", o.name, o.expected, o.cell)).collect();
    assert!(wrong.is_empty(), "{}", list.join("\n"));
}

/// Puts every pair to the test, so many at a time.
pub fn all(jobs: usize) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    let Some((name, pair, expected)) = PAIRS.get(n) else { return };
                    let cell = place(*pair, *expected);
                    let outcome = Outcome { name, expected: *expected, cell };
                    outcomes.lock().expect("no other holds it at a panic").push((n, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no other holds it at a panic");
    outcomes.sort_by_key(|(n, _)| *n);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

impl Outcome {
    fn right(&self) -> bool {
        match (&self.cell, self.expected) {
            (Ok(found), Expected::Direct(_)) => found.wanted.is_some(),
            (Ok(found), Expected::Relay) => found.wanted.is_none(),
            (Err(_), _) => false,
        }
    }
}

fn won(ways: &[Way; 2], kinds: [&[&str]; 2]) -> bool {
    ways.iter()
        .zip(kinds)
        .all(|(way, kinds)| way.direct() && way.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)))
}

fn place(pair: Pair, expected: Expected) -> Result<Found, String> {
    let net = Net::new(63);
    let mut agents = pair(&net);
    for again in [false, true] {
        agents.iter_mut().for_each(Agent::stop);
        agents.iter_mut().for_each(Agent::start);
        if let Some(stuck) = agents.iter().find(|a| !a.registers_within(REGISTER_PATIENCE)) {
            return Err(format!("{} does not register", stuck.place.site.name()));
        }
        if !again {
            agents[0].trust(&agents[1]).map_err(|e| format!("no trust: {e}"))?;
        }
    }
    let (kinds, patience) = match expected {
        Expected::Direct(kinds) => (kinds, PATIENCE),
        Expected::Relay => ([ANY, ANY], RELAY_PATIENCE),
    };
    runtime().block_on(measure(&agents[0], &agents[1], 2000, |ways| won(ways, kinds), patience))
}

fn sites(net: &Net, left: Site, right: Site) -> [Agent; 2] {
    [net.agent(left, "a", 1), net.agent(right, "b", 2)]
}

fn neighbours(net: &Net, site: Site) -> [Agent; 2] {
    let a = net.agent(site, "a", 1);
    let b = net.neighbour(&a, "b");
    [a, b]
}

/// Two NATs of their own behind one carrier's.
fn homes(net: &Net, hairpin: bool) -> [Agent; 2] {
    let carrier = net.lab.router(net.lab.internet(), UPLINK, &["100.64.0.0/24"]).expect("prefix");
    let carrier = carrier.nat(Nat::port_restricted().hairpin(hairpin)).start();
    ["a", "b"].map(|name| {
        let home = net.lab.router(carrier.lan(), Link::new(), &["192.168.1.0/24"]).expect("prefix");
        let home = home.nat(Nat::port_restricted()).start();
        let host = net.lab.host(name).on(home.lan(), Link::new()).start().expect("host");
        let (router, carrier) = (Some(home), Some(carrier.clone()));
        let place = Place { site: Site::Carrier, host, router, carrier, mapping_router: None, proxy: None };
        net.agent_in(Make::Ours, place, name)
    })
}
