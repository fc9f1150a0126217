//! Both families, address changes and routers that map ports: our daemons in the network laboratory.
#![allow(clippy::unwrap_used)]

#[path = "../grid/agents.rs"]
#[allow(dead_code)]
mod agents;

use agents::{Agent, Net, PATIENCE, wait_until};
use pilot_netlab::{Host, Site};
use std::process::Command;

/// Two agents that trust each other, started anew: no tunnel, and NATs that know nothing.
fn pair(net: &Net, left: Site, right: Site) -> [Agent; 2] {
    let mut agents = [net.agent(left, "a", 1), net.agent(right, "b", 2)];
    for again in [false, true] {
        for agent in &mut agents {
            agent.stop();
            agent.start();
            assert!(agent.registers_within(PATIENCE), "{} registers", agent.name);
        }
        if !again {
            agents[0].trust(&agents[1]).expect("trust");
        }
    }
    agents
}

/// One `ping`: the path it took.
fn ping(a: &Agent, b: &Agent) -> Option<String> {
    let said = a.ctl(&["ping", &b.name, "--count", "1", "--timeout", "10s", "--no-auto-handshake"]).ok()?;
    said["results"][0]["path"].as_str().map(str::to_owned)
}

#[test]
fn agents_with_ipv6_only_connect_directly() {
    let net = Net::new(71);
    let [a, b] = pair(&net, Site::V6Only, Site::V6Only);
    wait_until("a direct path", || ping(&a, &b).as_deref() == Some("direct"));
}

#[test]
fn an_agent_with_ipv6_only_reaches_one_with_ipv4_only_through_the_relay() {
    let net = Net::new(72);
    let [a, b] = pair(&net, Site::V6Only, Site::PortRestricted);
    assert_eq!(ping(&a, &b).as_deref(), Some("relay"));
    assert_eq!(ping(&b, &a).as_deref(), Some("relay"));
}

#[test]
fn an_agent_with_ipv6_only_and_a_dual_stack_one_connect_directly() {
    let net = Net::new(73);
    let [a, b] = pair(&net, Site::V6Only, Site::DualStack);
    wait_until("a direct path", || ping(&a, &b).as_deref() == Some("direct"));
}

/// Runs `nft` on a host: what it prints.
fn nft(host: &Host, args: &[&str]) -> String {
    let mut command = Command::new("nft");
    command.args(args);
    let output = host.output(command).expect("nft (package nftables)");
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A port that the router maps is found by `protocol`, makes the way to a peer behind a symmetric NAT direct, and is given
/// back at the end.
fn mapped(seed: u64, site: Site, protocol: &str) {
    let net = Net::new(seed);
    let mut agents = [net.agent(site, "a", 1), net.agent(Site::Symmetric, "b", 2)];
    let router = agents[0].place.mapping_router.as_ref().unwrap().host().clone();
    for agent in &mut agents {
        agent.start();
        assert!(agent.registers_within(PATIENCE), "{} registers", agent.name);
    }
    let [a, b] = agents;
    wait_until("a port of the router", || a.ctl(&["info"]).is_ok_and(|i| i["port_mapping"] == protocol));
    assert_eq!(b.ctl(&["info"]).unwrap()["port_mapping"], "none");
    a.trust(&b).expect("trust");
    wait_until("a direct path from there", || ping(&b, &a).as_deref() == Some("direct"));
    wait_until("a direct path to there", || ping(&a, &b).as_deref() == Some("direct"));
    // Its beacon may name the same address before it does itself.
    wait_until("the address is known as a mapped one", || {
        b.ctl(&["peers", "--all"]).is_ok_and(|known| known["peers"][0]["path_kind"] == "mapped")
    });
    let rules = || nft(&router, &["list", "table", "inet", "filter"]);
    assert!(rules().contains("4000"), "{}", rules());
    a.ctl(&["daemon", "stop"]).expect("it stops");
    wait_until("the port is given back", || !rules().contains("4000"));
}

#[test]
fn a_port_mapped_by_upnp_makes_the_way_to_a_symmetric_peer_direct() {
    mapped(81, Site::Upnp, "upnp");
}

#[test]
fn a_port_mapped_by_pcp_makes_the_way_to_a_symmetric_peer_direct() {
    mapped(82, Site::Pcp, "pcp");
}

#[test]
fn a_port_mapped_by_nat_pmp_makes_the_way_to_a_symmetric_peer_direct() {
    mapped(83, Site::NatPmp, "nat-pmp");
}

#[test]
fn an_agent_that_gets_another_address_notices_and_stays_connected() {
    let net = Net::new(84);
    let [a, b] = pair(&net, Site::Public, Site::Public);
    wait_until("a direct path", || ping(&a, &b).as_deref() == Some("direct"));
    a.place.host.change_address(0).expect("another address");
    let log = net.dir.path().join("a/daemon.log");
    wait_until("the node notices", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("the network changed"))
    });
    wait_until("it registers", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("registered again"))
    });
    wait_until("a direct path from there", || ping(&a, &b).as_deref() == Some("direct"));
    wait_until("a direct path to there", || ping(&b, &a).as_deref() == Some("direct"));
}
