//! Path MTU discovery with daemons, sockets and links of the network laboratory.
#![allow(clippy::unwrap_used)]

#[path = "../grid/agents.rs"]
#[allow(dead_code)]
mod agents;

use agents::{Agent, Net, PATIENCE, wait_until};
use pilot_netlab::{Link, Site};
use std::process::Command;

/// Two public agents that trust each other.
fn pair(net: &Net) -> [Agent; 2] {
    let mut pair = [net.agent(Site::Public, "a", 1), net.agent(Site::Public, "b", 2)];
    pair.iter_mut().for_each(Agent::start);
    assert!(pair.iter().all(|agent| agent.registers_within(PATIENCE)), "both register");
    pair[0].trust(&pair[1]).expect("trust");
    pair
}

/// Sends so many MiB to the peer's echo service and back: MiB per second, both ways together counted once.
fn bench(a: &Agent, b: &Agent, mib: &str) -> f64 {
    let said = a.ctl(&["bench", &b.name, mib, "--no-auto-handshake"]).expect("bench");
    assert_eq!((&said["complete"], &said["intact"]), (&true.into(), &true.into()), "{said}");
    said["total_mbps"].as_f64().unwrap()
}

/// What the path to the only peer is known to carry.
fn mtu(a: &Agent) -> u64 {
    let peers = a.ctl(&["peers", "--all"]).expect("peers");
    peers["peers"][0]["mtu"].as_u64().unwrap_or_else(|| panic!("{peers}"))
}

fn set_link(agents: &[Agent; 2], link: impl Fn(Link) -> Link) {
    for agent in agents {
        let now = agent.place.host.link(0);
        agent.place.host.set_link(0, pilot_netlab::Duplex { up: link(now.up), down: link(now.down) });
    }
}

#[test]
fn daemons_use_what_their_path_carries_and_follow_it_down() {
    let net = Net::new(81);
    let pair = pair(&net);
    let [a, b] = &pair;
    bench(a, b, "2");
    wait_until("the path is direct", || {
        a.ctl(&["peers", "--all"]).is_ok_and(|peers| peers["peers"][0]["path"] == "direct")
    });
    bench(a, b, "2");
    wait_until("an Ethernet's size is found", || mtu(a) == 1472 && mtu(b) == 1472);
    set_link(&pair, |link| link.mtu(1400));
    bench(a, b, "2");
    wait_until("what a router says is followed", || mtu(a) == 1372);
    set_link(&pair, |link| link.black_hole_mtu(1280));
    bench(a, b, "2");
    wait_until("a black hole is left", || mtu(a) == 1252);
}

/// Figures for docs/benchmarks.md: the same transfer over links that keep it at 1,222 bytes, and over wider ones.
#[test]
#[ignore = "a benchmark: cargo test --release -p pilotctl --test mtu -- --ignored --nocapture"]
fn bulk_throughput_of_packet_sizes() {
    for (link_mtu, found) in [(1500, 1472), (1250, 1222), (1500, 1472), (1250, 1222), (9000, 8972)] {
        let net = Net::new(82);
        let pair = pair(&net);
        for agent in &pair {
            let mut command = Command::new("ip");
            command.args(["link", "set", "dev", "eth0", "mtu", "9000"]);
            assert!(agent.place.host.output(command).unwrap().status.success(), "ip link set");
        }
        set_link(&pair, |_| Link::new().black_hole_mtu(link_mtu));
        let [a, b] = &pair;
        wait_until("the size is found", || {
            bench(a, b, "8");
            mtu(a) == found && mtu(b) == found
        });
        let mut runs: Vec<f64> = (0..7).map(|_| bench(a, b, "16")).collect();
        runs.sort_by(f64::total_cmp);
        println!("MTU {link_mtu}: {found} bytes of UDP payload, {runs:.0?} MiB/s");
    }
}
