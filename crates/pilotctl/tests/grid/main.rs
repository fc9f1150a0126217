//! Which pairs of NATs connect, how soon, and on which path: our daemons in the network laboratory.
#![allow(clippy::unwrap_used)]

mod agents;
mod report;

use agents::{Agent, Make, Net, PATIENCE};
use pilot_netlab::Site;
use report::Cell;
use std::time::{Duration, Instant};

/// How long a pair may take to leave the relay before the relay is its path.
const DIRECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an agent in a place that may be a dead end may take to register.
const REGISTER_PATIENCE: Duration = Duration::from_secs(15);
/// The kinds of NAT in the grid.
const KINDS: [Site; 7] = [
    Site::Public,
    Site::FullCone,
    Site::AddressRestricted,
    Site::PortRestricted,
    Site::Symmetric,
    Site::Predictable,
    Site::Carrier,
];

/// One `ping` of the peer's echo service: whether the answer came directly.
fn ping(a: &Agent, b: &Agent) -> Result<bool, String> {
    let said = a.ctl(&["ping", &b.name, "--count", "1", "--timeout", "10s", "--no-auto-handshake"])?;
    let result = &said["results"][0];
    match (result["path"].as_str(), result["error"].as_str()) {
        (Some(path), None) => Ok(path == "direct"),
        (_, error) => Err(error.map_or_else(|| said.to_string(), str::to_owned)),
    }
}

/// Measures a pair that trusts each other and has no tunnel.
fn measure(a: &Agent, b: &Agent) -> Cell {
    let id = b.ctl(&["info"]).expect("the daemon answers")["node_id"].clone();
    let peers = a.ctl(&["peers", "--all"]).expect("the daemon answers");
    let known = peers["peers"].as_array().is_some_and(|p| p.iter().any(|p| p["node_id"] == id));
    assert!(!known, "{} has a tunnel to {} already: {peers}", a.name, b.name);
    let start = Instant::now();
    let first = match ping(a, b) {
        Ok(direct) => (start.elapsed(), direct),
        Err(e) => return Cell::Failed(e),
    };
    let mut direct = first.1.then_some(first.0);
    while direct.is_none() && start.elapsed() < DIRECT_PATIENCE {
        std::thread::park_timeout(Duration::from_millis(50));
        match ping(a, b) {
            Ok(true) => direct = Some(start.elapsed()),
            Ok(false) => {}
            Err(e) => return Cell::Failed(format!("after the first answer: {e}")),
        }
    }
    Cell::Connected { first_byte: first.0, direct }
}

/// Trust in place, no tunnel, NATs that know nothing.
fn start_anew(agents: &mut [Agent]) {
    agents.iter_mut().for_each(Agent::stop);
    agents.iter().for_each(Agent::forget_peers);
    agents.iter_mut().for_each(Agent::start);
    for agent in agents {
        assert!(agent.registers_within(PATIENCE), "{} registers", agent.name);
    }
}

#[test]
fn agents_behind_nats_connect() {
    // (one side, the other, whether directly)
    let pairs = [
        (Site::Public, Site::PortRestricted, true),
        (Site::PortRestricted, Site::PortRestricted, true),
        (Site::Symmetric, Site::Symmetric, false),
    ];
    let net = Net::new(61);
    let mut agents = Vec::new();
    for (n, (left, right, _)) in (0..).zip(pairs) {
        agents.push(net.agent(left, &format!("a{n}"), 2 * n));
        agents.push(net.agent(right, &format!("b{n}"), 2 * n + 1));
    }
    start_anew(&mut agents);
    for pair in agents.chunks(2) {
        pair[0].trust(&pair[1]).expect("trust");
    }
    start_anew(&mut agents);
    for (pair, (left, right, directly)) in agents.chunks(2).zip(pairs) {
        match measure(&pair[0], &pair[1]) {
            Cell::Connected { direct, .. } => assert_eq!(direct.is_some(), directly, "{left:?} to {right:?}"),
            Cell::Failed(e) => panic!("{left:?} to {right:?}: {e}"),
        }
    }
}

#[test]
#[ignore = "some minutes: cargo xtask netlab grid"]
fn the_whole_grid() {
    let ours = grid(62, Make::Ours);
    report::write_ours(&KINDS, &ours, &special_pairs());
    assert_connected(&ours);
}

#[test]
#[ignore = "some minutes, and the reference: cargo xtask netlab grid --reference"]
fn the_whole_grid_with_a_reference() {
    let reference = grid(64, Make::Reference);
    report::write_reference(&KINDS, &reference);
    assert_connected(&reference);
}

fn assert_connected(grid: &[Vec<Cell>]) {
    let failed: Vec<_> = grid.iter().flatten().filter(|c| matches!(c, Cell::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Our daemon behind every kind of NAT asks a daemon of that make behind every kind.
fn grid(seed: u64, make: Make) -> Vec<Vec<Cell>> {
    let net = Net::new(seed);
    let mut agents = Vec::new();
    for (side, make, first) in [("a", Make::Ours, 0), ("b", make, 100)] {
        for (site, n) in KINDS.into_iter().zip(first..) {
            agents.push(net.agent_of(make, site, &format!("{side}-{}", site.name()), n));
        }
    }
    start_anew(&mut agents);
    let (left, right) = agents.split_at(KINDS.len());
    // All ask first: a reference takes up to a minute to answer.
    for a in left {
        right.iter().for_each(|b| drop(a.ctl(&["handshake", &b.name, "grid"])));
    }
    for a in left {
        for b in right {
            a.trust(b).unwrap_or_else(|e| panic!("{} and {}: {e}", a.name, b.name));
        }
    }
    start_anew(&mut agents);
    let (left, right) = agents.split_at(KINDS.len());
    left.iter().map(|a| right.iter().map(|b| measure(a, b)).collect()).collect()
}

/// Pairs in places that are more than a NAT.
fn special_pairs() -> Vec<(&'static str, Cell)> {
    let sites = |left, right| move |net: &Net| [net.agent(left, "a", 1), net.agent(right, "b", 2)];
    let pairs: [(&'static str, Pair); 10] = [
        ("UPnP-IGD and symmetric", Box::new(sites(Site::Upnp, Site::Symmetric))),
        ("PCP and symmetric", Box::new(sites(Site::Pcp, Site::Symmetric))),
        ("IPv6 only, both", Box::new(sites(Site::V6Only, Site::V6Only))),
        ("IPv6 only and IPv4 only", Box::new(sites(Site::V6Only, Site::PortRestricted))),
        ("dual stack, both", Box::new(sites(Site::DualStack, Site::DualStack))),
        ("same LAN, NAT hairpins", Box::new(|net| neighbours(net, Site::PortRestricted))),
        ("same LAN, NAT does not hairpin", Box::new(|net| neighbours(net, Site::NoHairpin))),
        (
            "two LANs with the same prefix",
            Box::new(|net| {
                [net.agent(Site::PortRestricted, "a", 1), net.agent(Site::PortRestricted, "b", 1)]
            }),
        ),
        ("UDP blocked and public", Box::new(sites(Site::UdpBlocked, Site::Public))),
        ("only an HTTP proxy, and public", Box::new(sites(Site::ProxyOnly, Site::Public))),
    ];
    pairs.into_iter().map(|(name, pair)| (name, special(&pair))).collect()
}

/// Makes the agents of a pair.
type Pair = Box<dyn Fn(&Net) -> [Agent; 2]>;

fn neighbours(net: &Net, site: Site) -> [Agent; 2] {
    let a = net.agent(site, "a", 1);
    let b = net.neighbour(&a, "b");
    [a, b]
}

fn special(pair: &Pair) -> Cell {
    let net = Net::new(63);
    let mut agents = pair(&net);
    for again in [false, true] {
        agents.iter_mut().for_each(Agent::stop);
        agents.iter().for_each(Agent::forget_peers);
        agents.iter_mut().for_each(Agent::start);
        if let Some(stuck) = agents.iter().find(|a| !a.registers_within(REGISTER_PATIENCE)) {
            return Cell::Failed(format!("{} does not register", stuck.place.site.name()));
        }
        if !again && let Err(e) = agents[0].trust(&agents[1]) {
            return Cell::Failed(format!("no trust: {e}"));
        }
    }
    measure(&agents[0], &agents[1])
}
