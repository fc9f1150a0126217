//! Networks, members, policies.

use super::*;

fn create(name: &str, owner: u32, fields: Value) -> Value {
    let mut request = json!({"type": "create_network", "node_id": owner, "name": name, "admin_token": ADMIN});
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn by_admin(kind: &str, fields: Value) -> Value {
    let mut request = fields;
    request["type"] = json!(kind);
    request["admin_token"] = json!(ADMIN);
    request
}

#[test]
fn networks_are_created_joined_left_and_deleted() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    let answer = w.ok(&mut sa, create("net", a.id, json!({"join_rule": "open", "token": ""})));
    assert_eq!(
        answer,
        json!({"type": "create_network_ok", "network_id": 1, "name": "net", "enterprise": false})
    );
    let joined = w.ok(&mut sb, b.network("join_network", 1, json!({"token": "", "inviter_id": 0})));
    assert_eq!(joined, json!({"type": "join_network_ok", "network_id": 1, "address": "1:0001.0000.0002"}));
    assert_eq!(w.refused(&mut sb, b.network("join_network", 1, json!({}))), "node 2 already in network 1");
    assert_eq!(w.lookup(&mut sb, b.id)["networks"], json!([0, 1]));
    w.ok(&mut sa, a.resolve(b.id));
    let listed = w.ok(&mut sb, json!({"type": "list_networks"}));
    assert_eq!(
        listed["networks"][1],
        json!({"id": 1, "name": "net", "join_rule": "open", "enterprise": false, "created": w.now.unix()})
    );
    assert_eq!(w.ok(&mut sb, by_admin("list_networks", json!({})))["networks"][1]["members"], 2);
    w.ok(&mut sb, b.network("leave_network", 1, json!({})));
    assert_eq!(
        w.refused(&mut sb, b.network("leave_network", 1, json!({}))),
        "node 2 is not a member of network 1"
    );
    assert!(w.refused(&mut sa, a.resolve(b.id)).contains("node not found"));
    w.ok(&mut sb, b.network("join_network", 1, json!({})));
    w.ok(&mut sa, by_admin("rename_network", json!({"network_id": 1, "name": "other"})));
    w.reload();
    w.ok(&mut sa, by_admin("delete_network", json!({"network_id": 1})));
    assert_eq!(w.lookup(&mut sb, b.id)["networks"], json!([0]));
    w.reload();
    assert_eq!(w.ok(&mut sa, create("net", a.id, json!({})))["network_id"], 2, "numbers are not used again");
    w.reload();
}

#[test]
fn creation_is_checked() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    let mut case = |fields: Value, expected: &str| {
        let text = w.refused(&mut s, create("net", a.id, fields));
        assert!(text.contains(expected), "{text}");
    };
    case(json!({"admin_token": "guess"}), "invalid admin token");
    case(json!({"node_id": 0}), "node 0 not registered");
    case(json!({"name": ""}), "require a name");
    case(json!({"name": "Net"}), "must be lowercase");
    case(json!({"name": "backbone"}), "reserved");
    case(json!({"name": "x".repeat(64)}), "too long (max 63 chars)");
    case(json!({"join_rule": "magic"}), "invalid join_rule");
    case(
        json!({"join_rule": "invite"}),
        "enterprise feature: invite-only networks require the enterprise flag",
    );
    case(json!({"join_rule": "token"}), "invalid token");
    case(json!({"rules": "{\"links\":0}"}), "rules: ");
    case(json!({"expr_policy": {"version": 2, "rules": []}}), "unsupported version 2 (want 1)");
    w.ok(&mut s, create("net", a.id, json!({})));
    assert_eq!(w.refused(&mut s, create("net", a.id, json!({}))), "network \"net\" already exists");
    let mut none = World::with(Config::default());
    let (a, mut s) = none.node(1);
    assert!(none.refused(&mut s, create("net", a.id, json!({}))).starts_with("network creation is disabled"));
}

#[test]
fn tokens_and_invitations_guard_networks() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb), (c, mut sc)) = (w.node(1), w.node(2), w.node(3));
    w.ok(&mut sa, create("tok", a.id, json!({"join_rule": "token", "token": "t0p"})));
    assert_eq!(
        w.refused(&mut sb, b.network("join_network", 1, json!({"token": "x"}))),
        "invalid token for network 1"
    );
    w.ok(&mut sb, b.network("join_network", 1, json!({"token": "t0p"})));
    w.ok(&mut sa, create("inv", a.id, json!({"join_rule": "invite", "enterprise": true})));
    assert!(
        w.refused(&mut sb, b.network("join_network", 2, json!({})))
            .starts_with("invite-only networks require")
    );
    let invite = |p: &Peer, network: u16, target: u32| {
        let request = json!({"type": "invite_to_network", "inviter_id": p.id, "network_id": network, "target_node_id": target});
        p.sign(request, &challenge::invite(p.id, network, target))
    };
    assert_eq!(w.refused(&mut sa, invite(&a, 2, a.id)), "cannot invite yourself");
    assert_eq!(w.refused(&mut sa, invite(&a, 2, 99)), "target node 99: node not found");
    assert!(w.refused(&mut sa, invite(&a, 1, c.id)).starts_with("enterprise feature"));
    assert_eq!(w.refused(&mut sb, invite(&b, 2, c.id)), "inviter 2 is not a member of network 2");
    w.ok(&mut sa, invite(&a, 2, b.id));
    assert_eq!(w.ok(&mut sa, invite(&a, 2, b.id))["status"], "already_invited");
    w.reload();
    let invites = w.ok(&mut sb, b.own("poll_invites", json!({})));
    assert_eq!(invites["invites"], json!([{"network_id": 2, "inviter_id": 1, "timestamp": w.now.unix()}]));
    assert_eq!(w.ok(&mut sb, b.own("poll_invites", json!({}))), invites, "polling does not clear");
    let answer = w.ok(&mut sb, b.network("respond_invite", 2, json!({"accept": true})));
    assert_eq!(answer, json!({"type": "respond_invite_ok", "accepted": true, "network_id": 2}));
    assert!(
        w.refused(&mut sb, b.network("respond_invite", 2, json!({"accept": true})))
            .contains("no pending invite for node 2 to network 2")
    );
    assert_eq!(
        w.refused(&mut sb, invite(&b, 2, c.id)),
        "rbac: inviter 2 has role \"member\", requires owner or admin"
    );
    w.ok(&mut sa, invite(&a, 2, c.id));
    w.sleep(31 * 86_400);
    assert!(
        w.refused(&mut sc, c.network("respond_invite", 2, json!({"accept": true}))).ends_with("has expired")
    );
    w.ok(&mut sa, invite(&a, 2, c.id));
    w.ok(&mut sc, c.network("respond_invite", 2, json!({"accept": false})));
    w.ok(&mut sa, invite(&a, 2, c.id));
    w.ok(&mut sa, by_admin("delete_network", json!({"network_id": 2})));
    assert_eq!(w.ok(&mut sc, c.own("poll_invites", json!({})))["invites"], json!([]));
    w.reload();
}

#[test]
fn roles_need_a_token_or_a_signature_and_are_kept_apart() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb), (c, mut sc)) = (w.node(1), w.node(2), w.node(3));
    w.ok(&mut sa, create("ent", a.id, json!({"enterprise": true, "network_admin_token": "net-secret"})));
    w.ok(&mut sb, b.network("join_network", 1, json!({})));
    w.ok(&mut sc, c.network("join_network", 1, json!({})));
    let target = |t: u32| json!({"network_id": 1, "node_id": 0, "target_node_id": t});
    let bare = json!({"type": "promote_member", "network_id": 1, "node_id": a.id, "target_node_id": b.id});
    assert!(
        w.refused(&mut stranger(), bare.clone()).contains("admin_token or a signature of node_id required")
    );
    let nobody = json!({"type": "promote_member", "network_id": 1, "target_node_id": b.id});
    assert!(w.refused(&mut stranger(), nobody).starts_with("rbac: node_id required"));
    let as_owner = a.sign(bare, "promote_member:1:1:2");
    let answer = w.ok(&mut stranger(), as_owner);
    assert_eq!(
        answer,
        json!({"type": "promote_member_ok", "network_id": 1, "target_node_id": 2, "role": "admin"})
    );
    let role = |w: &mut World, t: u32| {
        w.ok(&mut stranger(), json!({"type": "get_member_role", "network_id": 1, "target_node_id": t}))["role"].clone()
    };
    assert_eq!(
        (role(&mut w, 1), role(&mut w, 2), role(&mut w, 3)),
        (json!("owner"), json!("admin"), json!("member"))
    );
    assert_eq!(w.refused(&mut sa, by_admin("promote_member", target(2))), "node 2 is already an admin");
    assert_eq!(w.refused(&mut sa, by_admin("demote_member", target(1))), "cannot demote the owner");
    assert_eq!(w.refused(&mut sa, by_admin("kick_member", target(1))), "cannot kick the network owner");
    w.ok(&mut sa, by_admin("promote_member", target(3)));
    let kick = json!({"type": "kick_member", "network_id": 1, "node_id": b.id, "target_node_id": c.id});
    assert_eq!(
        w.refused(&mut sb, b.sign(kick, "kick_member:2:1:3")),
        "cannot kick: admins cannot kick other admins"
    );
    let demote = json!({"type": "demote_member", "network_id": 1, "node_id": b.id, "target_node_id": c.id});
    assert_eq!(
        w.refused(&mut sb, b.sign(demote, "demote_member:2:1:3")),
        "rbac: node 2 has role \"admin\", requires one of [owner]"
    );
    let mut own = json!({"type": "demote_member", "network_id": 1, "target_node_id": c.id, "admin_token": "net-secret"});
    w.ok(&mut stranger(), own.clone());
    own["admin_token"] = json!("guess");
    assert_eq!(w.refused(&mut stranger(), own), "invalid admin token");
    assert_eq!(
        w.refused(&mut sa, a.network("leave_network", 1, json!({}))),
        "cannot leave network: owner must transfer ownership first"
    );
    let answer = w.ok(&mut sa, by_admin("transfer_ownership", json!({"network_id": 1, "new_owner_id": 2})));
    assert_eq!((&answer["old_owner"], &answer["new_owner"]), (&json!(1), &json!(2)));
    w.ok(&mut sa, a.network("leave_network", 1, json!({})));
    w.ok(&mut sa, by_admin("kick_member", target(3)));
    assert_eq!(w.refused(&mut sa, by_admin("kick_member", target(3))), "node 3 is not a member of network 1");
    w.reload();
    w.ok(&mut sa, by_admin("set_network_enterprise", json!({"network_id": 1, "enterprise": false})));
    assert_eq!(role(&mut w, 2), json!(""));
    w.ok(&mut sa, by_admin("set_network_enterprise", json!({"network_id": 1, "enterprise": true})));
    assert_eq!(role(&mut w, 2), json!("owner"));
    w.reload();
}

#[test]
fn member_tags_are_set_by_administrators_and_listed_to_members() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, create("net", a.id, json!({})));
    w.ok(&mut sb, b.network("join_network", 1, json!({})));
    w.ok(
        &mut sa,
        by_admin("set_member_tags", json!({"network_id": 1, "target_node_id": 2, "tags": ["svc"]})),
    );
    let all = json!({"type": "get_member_tags", "network_id": 1, "target_node_id": 0});
    assert_eq!(w.ok(&mut sb, all.clone())["members"], json!({"1": [], "2": ["svc"]}));
    assert_eq!(w.ok(&mut stranger(), all)["members"], json!({}));
    let one = json!({"type": "get_member_tags", "network_id": 1, "target_node_id": 2});
    assert_eq!(w.ok(&mut stranger(), one)["tags"], json!(["svc"]));
    let many: Vec<_> = (0..11).map(|i| format!("t{i}")).collect();
    let text = w.refused(
        &mut sa,
        by_admin("set_member_tags", json!({"network_id": 1, "target_node_id": 2, "tags": many})),
    );
    assert_eq!(text, "too many member tags (max 10)");
    w.reload();
    w.ok(&mut sa, by_admin("set_member_tags", json!({"network_id": 1, "target_node_id": 2, "tags": []})));
    w.reload();
}

#[test]
fn policies_are_stored_and_checked() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    let zero = json!({"type": "get_network_policy_ok", "network_id": 0, "max_members": 0, "allowed_ports": [], "description": ""});
    assert_eq!(w.ok(&mut sa, json!({"type": "get_network_policy", "network_id": 0})), zero);
    w.ok(&mut sa, create("ent", a.id, json!({"enterprise": true})));
    let set = |fields: Value| {
        let mut request = by_admin("set_network_policy", fields);
        request["network_id"] = json!(1);
        request
    };
    let answer = w.ok(&mut sa, set(json!({"max_members": 1, "allowed_ports": [7, 80, 7]})));
    assert_eq!(
        answer,
        json!({"type": "set_network_policy_ok", "network_id": 1, "max_members": 1, "allowed_ports": [7, 80], "description": ""})
    );
    w.ok(&mut sa, set(json!({"description": "text"})));
    assert!(w.refused(&mut sb, b.network("join_network", 1, json!({}))).contains("membership limit reached"));
    w.ok(&mut sa, set(json!({"max_members": 2})));
    w.ok(&mut sb, b.network("join_network", 1, json!({})));
    assert_eq!(
        w.refused(&mut sa, set(json!({"max_members": 1}))),
        "cannot set max_members to 1: network already has 2 members"
    );
    for bad in [json!(-1), json!(10_001), json!(1.5), json!("1")] {
        assert_eq!(
            w.refused(&mut sa, set(json!({"max_members": bad}))),
            "invalid max_members (must be integer 0-10000)"
        );
    }
    for bad in [json!([0]), json!([65_536]), json!([1.5]), json!(["7"]), json!(7)] {
        assert!(w.refused(&mut sa, set(json!({"allowed_ports": bad}))).starts_with("invalid port number"));
    }
    assert_eq!(
        w.refused(&mut sa, set(json!({"allowed_ports": vec![1; 101]}))),
        "too many allowed_ports (max 100)"
    );
    assert_eq!(
        w.refused(&mut sa, set(json!({"description": "x".repeat(257)}))),
        "policy description too long (max 256 chars)"
    );
    w.reload();
    assert_eq!(w.ok(&mut sb, json!({"type": "get_network_policy", "network_id": 1}))["description"], "text");
    let expr = |value: Value| by_admin("set_expr_policy", json!({"network_id": 1, "expr_policy": value}));
    let policy = json!({"version": 1, "rules": [{"name": "x"}]});
    w.ok(&mut sa, expr(json!(policy.to_string())));
    w.reload();
    assert_eq!(w.ok(&mut sb, json!({"type": "get_expr_policy", "network_id": 1}))["expr_policy"], policy);
    assert_eq!(w.ok(&mut sb, json!({"type": "list_networks"}))["networks"][1]["has_expr_policy"], true);
    assert!(w.refused(&mut sa, expr(json!({"version": 1}))).contains("at least one rule is required"));
    assert!(w.refused(&mut sa, expr(json!("{"))).starts_with("expr_policy: invalid JSON"));
    assert_eq!(w.ok(&mut sa, expr(json!("null")))["cleared"], true);
    assert_eq!(w.ok(&mut sb, json!({"type": "get_expr_policy", "network_id": 1})).get("expr_policy"), None);
    assert!(
        w.refused(&mut sa, by_admin("set_expr_policy", json!({"network_id": 1})))
            .contains("field is required")
    );
}

#[test]
fn the_backbone_cannot_be_changed() {
    let mut w = World::new();
    let (a, mut s) = w.node(1);
    for kind in [
        "delete_network",
        "rename_network",
        "kick_member",
        "promote_member",
        "set_network_policy",
        "set_expr_policy",
        "set_network_enterprise",
        "set_member_tags",
        "transfer_ownership",
    ] {
        let text = w.refused(&mut s, by_admin(kind, json!({"network_id": 0, "name": "x"})));
        assert!(text.starts_with("cannot ") && text.ends_with("the backbone network"), "{text}");
    }
    assert_eq!(
        w.refused(&mut s, a.network("join_network", 0, json!({}))),
        "cannot join the backbone network"
    );
    assert_eq!(
        w.refused(&mut s, a.network("leave_network", 0, json!({}))),
        "cannot leave the backbone network"
    );
}

#[test]
fn reaped_members_come_back_and_deregistered_ones_do_not() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, create("net", a.id, json!({})));
    w.ok(&mut sb, b.network("join_network", 1, json!({})));
    w.sleep(3600);
    w.registry.reap(w.now);
    w.store_writes();
    w.reload();
    w.ok(&mut sb, b.register(json!({})));
    assert_eq!(w.lookup(&mut sb, b.id)["networks"], json!([0, 1]));
    w.ok(&mut sb, b.own("deregister", json!({})));
    w.ok(&mut sb, b.register(json!({})));
    assert_eq!(w.lookup(&mut sb, b.id)["networks"], json!([0]));
    w.reload();
}
