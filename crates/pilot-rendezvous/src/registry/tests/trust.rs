//! Trust pairs.

use super::*;

fn trusted(w: &mut World, s: &mut Session, a: u32, b: u32) -> bool {
    w.ok(s, json!({"type": "check_trust", "node_id": a, "peer_id": b}))["trusted"] == true
}

#[test]
fn one_side_alone_makes_no_pair() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, a.pair("report_trust", b.id));
    w.ok(&mut sa, a.pair("report_trust", b.id));
    assert!(!trusted(&mut w, &mut sa, a.id, b.id));
    assert!(w.refused(&mut sa, a.resolve(b.id)).starts_with("node 2: node not found"));
    w.reload();
    w.ok(&mut sb, b.pair("report_trust", a.id));
    assert!(trusted(&mut w, &mut sa, a.id, b.id));
    w.ok(&mut sa, a.resolve(b.id));
    w.ok(&mut sb, b.resolve(a.id));
    w.reload();
    assert_eq!(w.registry.sizes().2, 1);
}

#[test]
fn a_relayed_request_and_its_acceptance_make_a_pair_without_reports() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.ok(&mut sa, a.handshake(b.id, "hello"));
    w.ok(&mut sb, b.own("poll_handshakes", json!({})));
    w.delivered();
    w.ok(&mut sb, b.respond(a.id, true));
    assert!(trusted(&mut w, &mut sb, b.id, a.id));
    w.ok(&mut sb, b.respond(a.id, true));
    w.reload();
}

#[test]
fn either_side_ends_the_pair_and_a_lone_report_does_not_bring_it_back() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.trust(&a, &b);
    w.ok(&mut sb, b.pair("revoke_trust", a.id));
    assert_eq!(w.effects, [Effect::TrustRevoked { node: a.id, peer: b.id }]);
    assert!(!trusted(&mut w, &mut sa, a.id, b.id));
    assert_eq!(w.refused(&mut sa, a.pair("revoke_trust", b.id)), "no trust pair between 1 and 2");
    // A daemon that missed it reports all its peers when it registers again.
    w.ok(&mut sa, a.pair("report_trust", b.id));
    assert!(!trusted(&mut w, &mut sa, a.id, b.id));
    w.ok(&mut sa, a.pair("revoke_trust", b.id));
    w.ok(&mut sb, b.pair("report_trust", a.id));
    assert!(!trusted(&mut w, &mut sa, a.id, b.id), "the withdrawn report does not count any more");
    w.reload();
}

#[test]
fn pairs_survive_deregistration_and_reaping() {
    let mut w = World::new();
    let ((a, mut sa), (b, mut sb)) = (w.node(1), w.node(2));
    w.trust(&a, &b);
    w.ok(&mut sa, a.own("deregister", json!({})));
    w.reload();
    w.ok(&mut sa, a.register(json!({})));
    w.ok(&mut sb, b.resolve(a.id));
}

#[test]
fn strangers_learn_nothing_from_check_trust() {
    let mut w = World::new();
    let ((a, _), (b, _), (c, mut sc)) = (w.node(1), w.node(2), w.node(3));
    w.trust(&a, &b);
    assert!(!trusted(&mut w, &mut stranger(), a.id, b.id));
    assert!(!trusted(&mut w, &mut sc, a.id, b.id));
    let asked = json!({"type": "check_trust", "node_id": a.id, "peer_id": b.id, "requester_id": a.id});
    let proven = a.sign(asked.clone(), &challenge::pair("check_trust", a.id, b.id));
    assert_eq!(w.ok(&mut stranger(), proven)["trusted"], true);
    let forged = c.sign(asked, &challenge::pair("check_trust", a.id, b.id));
    assert_eq!(w.ok(&mut stranger(), forged)["trusted"], false);
}

#[test]
fn unknown_peers_self_trust_and_wrong_keys_are_refused() {
    let mut w = World::new();
    let ((a, mut sa), (b, _)) = (w.node(1), w.node(2));
    assert_eq!(w.refused(&mut sa, a.pair("report_trust", 77)), "node 77: node not found");
    assert!(w.refused(&mut sa, a.pair("report_trust", a.id)).contains("cannot trust itself"));
    let forged = Peer { id: b.id, ..Peer::new(1) }.pair("report_trust", a.id);
    assert_eq!(w.refused(&mut sa, forged), "signature verification failed");
}
