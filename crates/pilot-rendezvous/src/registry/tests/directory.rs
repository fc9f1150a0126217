//! Who learns what.

use super::*;

/// A private node with a name and a tag, a trusted one, a member of its network, and a stranger with an id.
struct Scene {
    w: World,
    private: Peer,
    trusted: (Peer, Session),
    member: (Peer, Session),
    other: (Peer, Session),
}

fn scene() -> Scene {
    let mut w = World::new();
    let (private, mut s) = w.node(1);
    w.ok(&mut s, private.register(json!({"lan_addrs": ["192.168.1.5:4000", "", 7, "junk"]})));
    w.ok(&mut s, private.own("set_hostname", json!({"hostname": "secret"})));
    w.ok(&mut s, private.own("set_tags", json!({"tags": ["tag-a"]})));
    let (trusted, member, other) = (w.node(2), w.node(3), w.node(4));
    w.trust(&private, &trusted.0);
    w.ok(&mut s, json!({"type": "create_network", "node_id": 1, "name": "net", "admin_token": ADMIN}));
    let (m, mut sm) = member;
    w.ok(&mut sm, m.network("join_network", 1, json!({"token": ""})));
    w.reload();
    Scene { w, private, trusted, member: (m, sm), other }
}

#[test]
fn a_private_nodes_lookup_gives_its_key_to_all_and_its_name_to_friends() {
    let Scene { mut w, private, mut trusted, mut member, mut other } = scene();
    for s in [&mut stranger(), &mut other.1] {
        let seen = w.lookup(s, private.id);
        let mut keys: Vec<_> = seen.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "address",
                "key_generation",
                "last_seen_unix",
                "networks",
                "node_id",
                "public",
                "public_key",
                "type"
            ]
        );
        assert_eq!(seen["public_key"], private.key());
        assert_eq!(seen["networks"], json!([0, 1]));
    }
    for s in [&mut trusted.1, &mut member.1] {
        let seen = w.lookup(s, private.id);
        assert_eq!((&seen["hostname"], &seen["tags"]), (&json!("secret"), &json!(["tag-a"])));
        assert_eq!(
            (seen.get("real_addr"), seen.get("endpoint")),
            (None, None),
            "addresses come from resolve only"
        );
    }
    let asked = json!({"type": "lookup", "node_id": private.id, "requester_id": trusted.0.id});
    let proven = trusted.0.sign(asked, &challenge::pair("lookup", trusted.0.id, private.id));
    assert_eq!(w.ok(&mut stranger(), proven)["hostname"], "secret");
    assert_eq!(
        w.refused(&mut stranger(), json!({"type": "lookup", "node_id": 99})),
        "node 99: node not found"
    );
    assert_eq!(
        w.refused(&mut stranger(), json!({"type": "lookup", "node_id": -1})),
        "node 0: node not found"
    );
}

#[test]
fn proof_does_not_outlive_the_key_that_gave_it() {
    let Scene { mut w, private, mut trusted, .. } = scene();
    assert_eq!(w.lookup(&mut trusted.1, private.id)["hostname"], "secret");
    let new = Peer { id: trusted.0.id, ..Peer::new(60) };
    let rotate = trusted.0.sign(
        json!({"type": "rotate_key", "node_id": new.id, "new_public_key": new.key()}),
        &challenge::rotate(new.id, &new.key()),
    );
    w.ok(&mut stranger(), rotate);
    assert_eq!(w.lookup(&mut trusted.1, private.id).get("hostname"), None);
}

#[test]
fn resolve_answers_friends_and_tells_strangers_the_same_as_for_unknown_ids() {
    let Scene { mut w, private, mut trusted, mut member, mut other } = scene();
    for (peer, s) in [(&trusted.0, &mut trusted.1), (&member.0, &mut member.1)] {
        let answer = w.ok(s, peer.resolve(private.id));
        assert_eq!(answer["real_addr"], "203.0.113.1:4000");
        assert_eq!(answer["lan_addrs"], json!(["192.168.1.5:4000"]));
        assert_eq!(answer["key_age_days"], 0);
    }
    let (o, so) = (&other.0, &mut other.1);
    let denied = w.refused(so, o.resolve(private.id));
    assert_eq!(denied, "node 1: node not found, or private and not shared with node 4");
    assert_eq!(w.refused(so, o.resolve(99)), denied.replace("node 1:", "node 99:"));
    w.ok(&mut stranger(), private.resolve(private.id));
    let mut forged = o.resolve(private.id);
    forged["requester_id"] = json!(trusted.0.id);
    assert_eq!(w.refused(so, forged), "signature verification failed");
    w.ok(&mut stranger(), private.own("set_visibility", json!({"public": true})));
    w.ok(so, o.resolve(private.id));
    let text = w.refused(so, Peer { id: 77, ..Peer::new(4) }.resolve(1));
    assert_eq!(text, "resolve denied: requester node 77 is not registered");
}

#[test]
fn relay_only_nodes_are_reached_at_the_beacon_as_the_asking_client_sees_it() {
    let Scene { mut w, private, mut trusted, .. } = scene();
    w.ok(&mut stranger(), private.register(json!({"relay_only": true})));
    let answer = w.ok(&mut trusted.1, trusted.0.resolve(private.id));
    assert_eq!((&answer["real_addr"], &answer["relay_only"]), (&json!("192.0.2.1:9001"), &json!(true)));
    assert_eq!(answer.get("lan_addrs"), None);
    w.ok(&mut stranger(), private.own("set_visibility", json!({"public": true})));
    assert_eq!(w.lookup(&mut stranger(), private.id)["endpoint"], "192.0.2.1:9001");
    w.config.advertise_beacon = Some("beacon.example.net:9001".into());
    w.reload();
    assert_eq!(w.lookup(&mut stranger(), private.id)["real_addr"], "beacon.example.net:9001");
    w.ok(&mut stranger(), private.register(json!({})));
    assert_eq!(w.lookup(&mut stranger(), private.id).get("relay_only"), None, "absent clears it");
}

#[test]
fn names_resolve_exactly_and_hidden_ones_only_for_trusted_proof() {
    let Scene { mut w, private, mut trusted, mut member, mut other } = scene();
    let ask = json!({"type": "resolve_hostname", "hostname": "secret"});
    assert_eq!(w.ok(&mut stranger(), ask.clone())["node_id"], 1);
    let hide = |hidden: bool| {
        let text = format!("set_hidden:1:{}", u8::from(hidden));
        private.sign(json!({"type": "set_hidden", "node_id": 1, "hidden": hidden}), &text)
    };
    let mut flipped = hide(false);
    flipped["hidden"] = json!(true);
    assert_eq!(w.refused(&mut stranger(), flipped), "signature verification failed", "the value is covered");
    assert_eq!(
        w.ok(&mut stranger(), hide(true)),
        json!({"type": "set_hidden_ok", "node_id": 1, "hidden": true})
    );
    w.reload();
    let unknown = w.refused(&mut stranger(), json!({"type": "resolve_hostname", "hostname": "nobody"}));
    assert_eq!(unknown, "hostname \"nobody\" not found");
    for s in [&mut stranger(), &mut other.1, &mut member.1] {
        assert_eq!(w.refused(s, ask.clone()), "hostname \"secret\" not found");
    }
    assert_eq!(w.ok(&mut trusted.1, ask.clone())["node_id"], 1, "this connection has proven a trusted node");
    let mut asked = ask.clone();
    asked["requester_id"] = json!(trusted.0.id);
    assert_eq!(w.refused(&mut stranger(), asked.clone()), "hostname \"secret\" not found");
    let proven = trusted.0.sign(asked, &challenge::own("resolve_hostname", trusted.0.id));
    assert_eq!(w.ok(&mut stranger(), proven)["node_id"], 1);
    w.ok(&mut stranger(), hide(false));
    w.ok(&mut stranger(), ask);
    assert_eq!(w.refused(&mut stranger(), json!({"type": "resolve_hostname"})), "hostname required");
}

#[test]
fn a_hidden_public_node_shows_no_name_in_lookups_and_lists() {
    let Scene { mut w, private, mut trusted, .. } = scene();
    let mut s = stranger();
    w.ok(&mut s, private.own("set_visibility", json!({"public": true})));
    w.ok(&mut s, private.sign(json!({"type": "set_hidden", "node_id": 1, "hidden": true}), "set_hidden:1:1"));
    assert_eq!(w.lookup(&mut stranger(), 1).get("hostname"), None);
    let list = w.ok(&mut stranger(), json!({"type": "list_nodes", "network_id": 1}));
    assert_eq!(list["nodes"][0].get("hostname"), None);
    assert_eq!(w.lookup(&mut trusted.1, 1)["hostname"], "secret");
}

#[test]
fn nodes_are_listed_to_members_and_public_ones_to_all_without_addresses() {
    let Scene { mut w, private, mut member, mut other, .. } = scene();
    let list = json!({"type": "list_nodes", "network_id": 1});
    let ids = |v: &Value| {
        v["nodes"].as_array().unwrap().iter().map(|n| n["node_id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    for s in [&mut stranger(), &mut other.1] {
        assert_eq!(w.ok(s, list.clone())["nodes"], json!([]));
    }
    let seen = w.ok(&mut member.1, list.clone());
    assert_eq!(ids(&seen), [1, 3]);
    let first = &seen["nodes"][0];
    assert_eq!(
        (&first["address"], &first["role"], &first["hostname"]),
        (&json!("1:0001.0000.0001"), &json!("owner"), &json!("secret"))
    );
    assert_eq!(first.get("real_addr"), None, "private");
    w.ok(&mut stranger(), private.own("set_visibility", json!({"public": true})));
    let seen = w.ok(&mut stranger(), list.clone());
    assert_eq!(ids(&seen), [1]);
    assert_eq!(seen["nodes"][0].get("real_addr"), None);
    assert_eq!(w.ok(&mut member.1, list.clone())["nodes"][0]["real_addr"], "203.0.113.1:4000");
    let mut asked = list.clone();
    asked["requester_id"] = json!(member.0.id);
    let proven = member.0.sign(asked, "list_nodes:3:1");
    assert_eq!(ids(&w.ok(&mut stranger(), proven)), [1, 3]);
    let mut by_admin = list;
    by_admin["admin_token"] = json!(ADMIN);
    assert_eq!(ids(&w.ok(&mut stranger(), by_admin)), [1, 3]);
    w.sleep(3600);
    w.ok(&mut member.1, member.0.own("heartbeat", json!({})));
    w.registry.reap(w.now);
    w.store_writes();
    let seen = w.ok(&mut member.1, json!({"type": "list_nodes", "network_id": 1}));
    assert_eq!(
        seen["nodes"][0],
        json!({"node_id": 1, "address": "1:0001.0000.0001", "offline": true, "role": "owner"})
    );
    assert_eq!(
        w.refused(&mut stranger(), json!({"type": "list_nodes", "network_id": 9})),
        "network 9: network not found"
    );
}

#[test]
fn the_backbone_is_listed_to_the_administrator_only() {
    let Scene { mut w, mut other, .. } = scene();
    for network in [json!(0), json!("x"), json!(-1), json!(70_000)] {
        let text = w.refused(&mut other.1, json!({"type": "list_nodes", "network_id": network}));
        assert!(text.contains("listing backbone nodes is not permitted"), "{text}");
    }
    let all = w.ok(&mut stranger(), json!({"type": "list_nodes", "network_id": 0, "admin_token": ADMIN}));
    assert_eq!(all["nodes"].as_array().unwrap().len(), 4);
}

#[test]
fn lookups_are_rate_limited_per_source() {
    let mut config = Config::default();
    config.limits.lookups = crate::config::Rate { per_second: 1.0, burst: 2.0 };
    let mut w = World::with(config);
    let (a, mut s) = w.node(1);
    w.ok(&mut s, a.own("set_hostname", json!({"hostname": "a"})));
    for _ in 0..10 {
        w.ok(&mut s, json!({"type": "lookup", "node_id": 1}));
    }
    // A connection that speaks for no node has what its source has.
    let mut s = stranger();
    w.ok(&mut s, json!({"type": "lookup", "node_id": 1}));
    w.ok(&mut s, json!({"type": "resolve_hostname", "hostname": "a"}));
    for request in [
        json!({"type": "lookup", "node_id": 1}),
        json!({"type": "resolve_hostname", "hostname": "b"}),
        a.resolve(1),
    ] {
        assert_eq!(w.refused(&mut s, request), "rate limited: too many lookups from 198.51.100.99");
    }
    w.sleep(1);
    w.ok(&mut s, json!({"type": "lookup", "node_id": 1}));
}

#[test]
fn names_and_tags_are_checked() {
    let Scene { mut w, mut other, .. } = scene();
    let (o, s) = (other.0, &mut other.1);
    let name = |n: &str| o.own("set_hostname", json!({"hostname": n}));
    assert_eq!(w.refused(s, name(&"x".repeat(64))), "invalid hostname: hostname too long (max 63 chars)");
    for bad in ["A", "-a", "a-", "a_b", "a.b", "é"] {
        assert!(w.refused(s, name(bad)).starts_with("invalid hostname: hostname must be lowercase"), "{bad}");
    }
    assert_eq!(w.refused(s, name("localhost")), "invalid hostname: hostname \"localhost\" is reserved");
    assert_eq!(w.refused(s, name("secret")), "hostname \"secret\" already in use");
    w.ok(s, name(&"x".repeat(63)));
    w.ok(s, name("free"));
    w.ok(s, name(""));
    assert_eq!(
        w.refused(&mut stranger(), json!({"type": "resolve_hostname", "hostname": "free"})),
        "hostname \"free\" not found"
    );
    let tags = |t: Value| o.own("set_tags", json!({"tags": t}));
    assert_eq!(
        w.ok(s, tags(json!(["#a", "a", "##b"].map(|t| t.replace("##", "#")))))["tags"],
        json!(["a", "b"])
    );
    assert!(w.refused(s, tags(json!(["#"]))).contains("empty tag not allowed"));
    assert_eq!(
        w.refused(s, tags(json!(["x".repeat(33)]))),
        format!("tag {:?} too long (max 32 chars)", "x".repeat(32))
    );
    assert!(w.refused(s, tags(json!(["Bad"]))).contains("must be lowercase alphanumeric"));
    let eleven: Vec<_> = (0..11).map(|i| format!("t{i}")).collect();
    assert_eq!(w.refused(s, tags(json!(eleven))), "too many tags (max 10)");
    assert_eq!(w.ok(s, tags(json!([])))["tags"], json!([]));
    let taken = w.ok(s, o.register(json!({"hostname": "secret"})));
    assert_eq!(taken["hostname_error"], "hostname \"secret\" already in use");
    let bad = w.ok(s, o.register(json!({"hostname": "-"})));
    assert!(bad["hostname_error"].as_str().unwrap().starts_with("hostname must be"), "{bad}");
    assert_eq!(w.ok(s, o.register(json!({"hostname": "mine"})))["hostname"], "mine");
    let by_admin =
        json!({"type": "set_hostname", "node_id": o.id, "hostname": "given", "admin_token": ADMIN});
    w.ok(&mut stranger(), by_admin.clone());
    let mut wrong = by_admin;
    wrong["admin_token"] = json!("guess");
    assert_eq!(w.refused(&mut stranger(), wrong), "signature required for authenticated node");
    w.reload();
}

#[test]
fn punch_tells_addresses_to_those_who_could_resolve_them() {
    let Scene { mut w, mut trusted, mut other, .. } = scene();
    let punch = |p: &Peer, a: u32, b: u32| {
        let request = json!({"type": "punch", "requester_id": p.id, "node_a": a, "node_b": b});
        p.sign(request, &challenge::pair("punch", a, b))
    };
    let answer = w.ok(&mut trusted.1, punch(&trusted.0, 2, 1));
    assert_eq!(
        (&answer["node_a_addr"], &answer["node_b_addr"]),
        (&json!("203.0.113.2:4000"), &json!("203.0.113.1:4000"))
    );
    assert_eq!(w.refused(&mut other.1, punch(&other.0, 4, 1)), "node 1: node not found");
    assert!(w.refused(&mut other.1, punch(&other.0, 1, 2)).contains("must be participant"));
}

#[test]
fn beacons_are_listed_for_a_minute_and_added_by_administrators_or_locally() {
    let mut w = World::new();
    let register = json!({"type": "beacon_register", "beacon_id": 2, "addr": "198.51.100.7:9001"});
    assert!(w.refused(&mut stranger(), register.clone()).contains("requires admin_token"));
    w.ok(&mut session("127.0.0.1:1"), register.clone());
    let mut by_admin = register.clone();
    by_admin["admin_token"] = json!(ADMIN);
    w.ok(&mut stranger(), by_admin);
    let list = w.ok(&mut stranger(), json!({"type": "beacon_list"}));
    assert_eq!(list["type"], "beacon_list_ok");
    assert_eq!(list["beacons"], json!([{"id": 2, "addr": "198.51.100.7:9001"}]));
    let registered = w.ok(&mut stranger(), Peer::new(9).register(json!({})));
    assert_eq!(list["beacon_ports"], registered["beacon_ports"]);
    w.sleep(61);
    assert_eq!(w.ok(&mut stranger(), json!({"type": "beacon_list"}))["beacons"], json!([]));
    for (field, value) in [
        ("beacon_id", json!(0)),
        ("addr", json!("")),
        ("addr", json!("host")),
        ("addr", json!("a b:1")),
        ("addr", json!("::1:x")),
    ] {
        let mut bad = register.clone();
        bad[field] = value;
        w.refused(&mut session("127.0.0.1:1"), bad);
    }
}
