//! What `netcheck` says of places of every kind, before anything runs there.

use crate::agents::{Agent, Make, Net, UPLINK};
use crate::alone;
use pilot_netlab::{Place, Site};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

/// Exit status and data of a check without a daemon.
fn check(agent: &Agent, registry: &str) -> (i32, Value) {
    let output = agent.run(&["netcheck", "--registry", registry, "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(!said["data"].is_null(), "{}: {}", agent.name, String::from_utf8_lossy(&output.stderr));
    println!("{}: {}", agent.name, said["data"]);
    (output.status.code().expect("no signal"), said["data"].clone())
}

#[test]
fn netcheck_says_what_each_kind_of_place_allows() {
    let _alone = alone();
    let net = Net::new(81);
    let registry = format!("{}:9000", net.public.v4());
    let kinds = [
        (Site::Public, "directly", "none", 0),
        (Site::FullCone, "directly", "endpoint_independent", 0),
        (Site::PortRestricted, "directly", "endpoint_independent", 0),
        (Site::Carrier, "directly", "endpoint_independent", 0),
        (Site::Symmetric, "mixed", "per_destination_random", 0),
        (Site::Predictable, "mixed", "per_destination_predictable", 0),
        (Site::Pcp, "directly", "endpoint_independent", 0),
        (Site::Upnp, "directly", "endpoint_independent", 0),
        (Site::UdpBlocked, "relayed", "unknown", 0),
    ];
    let agents: Vec<Agent> =
        (1..).zip(&kinds).map(|(n, (site, ..))| net.agent(*site, site.name(), n)).collect();
    let found: Vec<(i32, Value)> = std::thread::scope(|scope| {
        let running: Vec<_> = agents.iter().map(|agent| scope.spawn(|| check(agent, &registry))).collect();
        running.into_iter().map(|one| one.join().expect("the check ends")).collect()
    });
    for ((site, connects, class, exit), (code, data)) in kinds.into_iter().zip(&found) {
        let name = site.name();
        assert_eq!(data["connects"], connects, "{name}: {data}");
        assert_eq!(data["nat"]["class"], class, "{name}: {data}");
        assert_eq!(*code, exit, "{name}");
        assert_eq!(data["registry"]["reachable"], true, "{name}: {data}");
        assert_eq!(data["captive"]["suspected"], false, "{name}: {data}");
        assert_eq!(data["daemon"]["running"], false, "{name}");
        assert!(data["took_ms"].as_u64().is_some_and(|ms| ms < 15_000), "{name}: {data}");
        let udp = site != Site::UdpBlocked;
        assert_eq!(data["udp"]["works"], udp, "{name}: {data}");
        assert_eq!(data["ipv4"]["works"], udp, "{name}: {data}");
        assert_eq!(data["beacons"][0]["ok"], udp, "{name}: {data}");
        if udp {
            assert_eq!(data["mtu"]["packet"], 1500, "{name}: {data}");
            let rtt = data["beacons"][0]["rtt_ms"].as_f64().expect("a round trip");
            assert!((20.0..2000.0).contains(&rtt), "{name}: {data}");
        } else {
            assert!(data["mtu"].is_null(), "{name}: {data}");
            let advice = data["advice"].to_string();
            assert!(advice.contains("let UDP out to"), "{name}: {data}");
            assert_eq!(data["websocket"]["works"], true, "{name}: {data}");
        }
    }
    for (site, protocol) in [(Site::Pcp, "pcp"), (Site::Upnp, "upnp")] {
        let at = kinds.iter().position(|(kind, ..)| *kind == site).expect("it was checked");
        let (mapping, router) = (&found[at].1["port_mapping"], &agents[at].place.mapping_router);
        assert!(router.is_some());
        assert_eq!(mapping["protocol"], protocol, "{mapping}");
        assert!(mapping["external"].is_string(), "{mapping}");
    }
}

#[test]
fn netcheck_finds_small_packets_a_captive_portal_and_a_registry_that_is_gone() {
    let _alone = alone();
    let mut net = Net::new(82);
    let registry = format!("{}:9000", net.public.v4());
    let link = UPLINK.mtu(1400);
    let place = Place::new(&net.lab, Site::PortRestricted, "tunnel", 1, link).expect("place");
    let mut agent = net.agent_in(Make::Ours, place, "tunnel");
    let (code, data) = check(&agent, &registry);
    assert_eq!((code, &data["mtu"]["packet"]), (0, &1380.into()), "{data}");

    agent.start();
    assert!(agent.registers_within(crate::PATIENCE));
    let told = agent.ctl(&["netcheck"]).expect("it says something");
    assert_eq!(told["daemon"]["running"], true, "{told}");
    assert_eq!(told["registry"]["how"], "daemon", "{told}");
    assert_eq!(
        (&told["connects"], &told["nat"]["class"]),
        (&"directly".into(), &"endpoint_independent".into())
    );

    net.rendezvous.clear();
    let listener =
        net.public.run(|| TcpListener::bind("0.0.0.0:9000").expect("the port is free")).expect("host");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A portal answers whatever it is asked.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(
                b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let (code, data) = check(&agent, &registry);
    assert_eq!((code, &data["connects"]), (1, &"no".into()), "{data}");
    assert_eq!(data["captive"]["suspected"], true, "{data}");
    assert!(data["advice"].to_string().contains("log in to this network"), "{data}");
    assert!(!data["registry"]["error"].as_str().unwrap_or_default().is_empty(), "{data}");
}
