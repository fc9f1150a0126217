//! Decisions on what comes in (2.5, 2.6, 2.8, 2.9).

use super::*;

fn names(actions: &[Action]) -> Vec<&'static str> {
    events(actions).iter().map(|(name, _)| *name).collect()
}

/// The reason `trust.changed` gives, checking that it says `granted`.
fn granted(actions: &[Action]) -> String {
    let all = events(actions);
    let (_, data) = all.iter().find(|(name, _)| *name == "trust.changed").unwrap();
    assert_eq!(data["state"], "granted");
    data["reason"].as_str().unwrap().to_owned()
}

fn record(trust: &Trust, node: NodeId) -> Trusted {
    trust.trusted().find(|(n, _)| *n == node).unwrap().1.clone()
}

// ---- 2.5, direct requests --------------------------------------------------------------------------------

#[test]
fn row_1_a_trusted_sender_gets_another_accept_and_nothing_else_changes() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    let before = record(&me, PEER);
    assert_eq!(send(&mut me, PEER, Kind::Request, "again", NOW + 60), Ok(Received::AlreadyTrusted));
    let actions = actions(&mut me);
    assert_eq!(content(&deliveries(&actions)[0]).0, "handshake_accept");
    assert_eq!(names(&actions), ["handshake.received"]);
    assert!(!actions.iter().any(|a| matches!(a, Action::Save | Action::ReportTrust(_))));
    assert_eq!(record(&me, PEER), before);
}

#[test]
fn row_1_a_trusted_senders_new_key_ends_trust_and_the_request_waits() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    let bytes = message::encode(&identity(9), PEER, ME, Kind::Request, "new key", "", NOW + 60);
    let facts = Facts { registry_key: Some(key(9)), shared_network: 0 };
    assert_eq!(deliver(&mut me, PEER, &bytes, facts, NOW + 60), Ok(Received::Pending));
    let actions = actions(&mut me);
    assert!(actions.contains(&Action::KeyChanged { node: PEER, pinned: key(PEER), shown: key(9) }));
    assert!(actions.contains(&Action::SetTrusted(PEER, false)) && actions.contains(&Action::TearDown(PEER)));
    assert!(!me.is_trusted(PEER));
}

#[test]
fn row_1_a_forged_request_does_not_end_trust() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    // Signed by its own key, through node 7's tunnel, while the registry cannot be asked.
    let bytes = message::encode(&identity(9), PEER, ME, Kind::Request, "", "", NOW + 60);
    let message = me.examine(NOW + 60, 7, &bytes).unwrap();
    assert_eq!(me.receive_direct(NOW + 60, message, Facts::default()), Ok(Received::Dropped));
    assert!(me.is_trusted(PEER));
}

#[test]
fn row_2_a_request_that_meets_our_own_is_mutual() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(send(&mut me, PEER, Kind::Request, "", NOW), Ok(Received::Trusted("mutual")));
    let actions = actions(&mut me);
    assert_eq!(
        record(&me, PEER),
        Trusted { key: Some(key(PEER)), approved_at: NOW, mutual: true, network: 0, registry: None }
    );
    assert_eq!(names(&actions), ["handshake.received", "handshake.auto_approved", "trust.changed"]);
    assert_eq!(granted(&actions), "mutual");
    assert!(actions.contains(&Action::Wake(PEER, Outcome::Trusted)));
    // The pair comes before the accept: only then does the registry tell where a private peer is.
    let report = actions.iter().position(|a| *a == Action::ReportTrust(PEER)).unwrap();
    let accept = actions.iter().position(|a| matches!(a, Action::Deliver(_))).unwrap();
    assert!(report < accept);
    assert_eq!(deliveries(&actions)[0].relay, Relay::Respond { accept: true });
}

#[test]
fn row_2_without_the_registrys_word_the_request_waits() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    let bytes = message(PEER, ME, Kind::Request, "", NOW);
    assert_eq!(deliver(&mut me, PEER, &bytes, Facts::default(), NOW), Ok(Received::Pending));
}

#[test]
fn row_3_a_shared_network_is_enough_if_the_registry_vouches() {
    let mut me = trust(ME);
    let bytes = message(PEER, ME, Kind::Request, "", NOW);
    let facts = Facts { registry_key: Some(key(PEER)), shared_network: 7 };
    assert_eq!(deliver(&mut me, PEER, &bytes, facts, NOW), Ok(Received::Trusted("same_network")));
    assert_eq!((record(&me, PEER).network, record(&me, PEER).mutual), (7, false));

    let mut me = trust(ME);
    let facts = Facts { registry_key: None, shared_network: 7 };
    assert_eq!(deliver(&mut me, PEER, &bytes, facts, NOW), Ok(Received::Pending));
}

#[test]
fn row_4_a_listed_agent_is_trusted_if_key_and_list_agree() {
    let agent = |key| TrustedAgent { node: PEER, hostname: "list-agents".into(), key };
    for (agents, expected) in [
        (vec![agent(None)], Received::Trusted("trusted_agent")),
        (vec![agent(Some(key(PEER)))], Received::Trusted("trusted_agent")),
        (vec![agent(Some(key(9)))], Received::Pending),
        (vec![agent(None), agent(None)], Received::Pending),
    ] {
        let mut me = trust(ME);
        me.set_agents(agents.clone());
        assert_eq!(send(&mut me, PEER, Kind::Request, "", NOW), Ok(expected), "{agents:?}");
        if expected != Received::Pending {
            let actions = actions(&mut me);
            let data = events(&actions)[1].1.clone();
            assert_eq!(
                data,
                json!({"peer_node_id": PEER, "reason": "trusted_agent", "agent": "list-agents"})
            );
        }
    }
}

#[test]
fn row_5_auto_approval_needs_no_registry_but_the_senders_own_tunnel() {
    let auto = || {
        let mut config = Config::new(ME, identity(ME));
        config.auto_approve = true;
        Trust::new(config)
    };
    let bytes = message(PEER, ME, Kind::Request, "", NOW);
    let mut me = auto();
    assert_eq!(deliver(&mut me, PEER, &bytes, Facts::default(), NOW), Ok(Received::Trusted("auto_approve")));
    assert!(!record(&me, PEER).mutual);
    let mut me = auto();
    let message = me.examine(NOW, 7, &bytes).unwrap();
    assert_eq!(me.receive_direct(NOW, message, Facts::default()), Ok(Received::Pending));
}

#[test]
fn row_6_a_request_waits_with_its_claim_and_its_source() {
    let mut me = trust(ME);
    let message = me.examine(NOW, 7, &message(PEER, ME, Kind::Request, "please\n", NOW)).unwrap();
    assert_eq!(me.receive_direct(NOW, message, Facts::default()), Ok(Received::Pending));
    let (node, entry) = me.pending().next().unwrap();
    let expected =
        Pending { key: Some(key(PEER)), justification: "please".into(), received_at: NOW, source: 7 };
    assert_eq!((node, entry), (PEER, &expected));
    let actions = actions(&mut me);
    assert_eq!(names(&actions), ["handshake.received", "handshake.pending"]);
    assert_eq!(events(&actions)[1].1, json!({"peer_node_id": PEER, "justification": "please"}));
    assert_eq!(deliveries(&actions), []);
}

#[test]
fn row_6_caps_hold_per_source_and_in_total_but_never_stop_auto_approval() {
    let mut me = trust(ME);
    let forged = |me: &mut Trust, node: NodeId, source: NodeId| {
        let bytes = message::encode(&identity(8), node, ME, Kind::Request, "", "", NOW);
        let message = me.examine(NOW, source, &bytes).unwrap();
        me.receive_direct(NOW, message, Facts::default()).unwrap()
    };
    for n in 0..MAX_PENDING_PER_SOURCE as u32 {
        assert_eq!(forged(&mut me, 100 + n, 7), Received::Pending);
    }
    assert_eq!(forged(&mut me, 500, 7), Received::Dropped);
    for n in 0..(MAX_PENDING - MAX_PENDING_PER_SOURCE) as u32 {
        assert_eq!(me.receive_relayed_request(NOW, 1000 + n, "", 0), Received::Pending);
    }
    assert_eq!(me.receive_relayed_request(NOW, 5000, "", 0), Received::Dropped);
    assert_eq!(me.receive_relayed_request(NOW, 1000, "repeat", 0), Received::Pending, "a repeat replaces");
    assert_eq!(me.receive_relayed_request(NOW, 5000, "", 3), Received::Trusted("same_network"));
}

#[test]
fn a_forger_cannot_replace_a_genuine_request_nor_a_relayed_one_lose_its_key() {
    let mut me = trust(ME);
    assert_eq!(send(&mut me, PEER, Kind::Request, "genuine", NOW), Ok(Received::Pending));
    let forged = message::encode(&identity(9), PEER, ME, Kind::Request, "forged", "", NOW);
    let message = me.examine(NOW, 7, &forged).unwrap();
    assert_eq!(me.receive_direct(NOW, message, Facts::default()), Ok(Received::Dropped));
    assert_eq!(me.pending().next().unwrap().1.justification, "genuine");
    assert_eq!(me.receive_relayed_request(NOW, PEER, "relayed too", 0), Received::Pending);
    assert_eq!(me.pending().next().unwrap().1.key, Some(key(PEER)));
}

// ---- 2.6, the other kinds --------------------------------------------------------------------------------

#[test]
fn an_accept_of_our_request_makes_trust_and_reports_it() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(send(&mut me, PEER, Kind::Accept, "", NOW), Ok(Received::Trusted("accepted")));
    assert_eq!(record(&me, PEER).key, Some(key(PEER)));
    assert!(record(&me, PEER).mutual && me.requested_at(PEER).is_none());
    let actions = actions(&mut me);
    assert!(
        actions.contains(&Action::ReportTrust(PEER)) && actions.contains(&Action::SetTrusted(PEER, true))
    );
    assert!(actions.contains(&Action::Save) && actions.contains(&Action::Wake(PEER, Outcome::Trusted)));
    assert_eq!(deliveries(&actions), [], "a reference peer gets no answer to its accept");
}

#[test]
fn an_accept_nobody_asked_for_is_ignored() {
    let mut me = trust(ME);
    assert_eq!(send(&mut me, PEER, Kind::Accept, "", NOW), Ok(Received::Ignored));
    assert!(!me.is_trusted(PEER) && actions(&mut me).is_empty());
}

#[test]
fn an_accept_during_the_cool_down_is_ignored_and_ends_the_request() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    me.revoke(NOW, PEER).unwrap();
    me.outgoing.insert(PEER, NOW);
    me.handle_time(NOW);
    let bytes = message(PEER, ME, Kind::Accept, "", NOW + 299);
    me.replays = ReplaySet::default();
    assert_eq!(deliver(&mut me, PEER, &bytes, known(PEER), NOW + 299), Ok(Received::Ignored));
    assert!(!me.is_trusted(PEER) && me.requested_at(PEER).is_none());
}

#[test]
fn an_accept_under_another_key_deletes_the_record() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    me.replays = ReplaySet::default();
    let bytes = message::encode(&identity(9), PEER, ME, Kind::Accept, "", "", NOW);
    let facts = Facts { registry_key: Some(key(9)), shared_network: 0 };
    assert_eq!(deliver(&mut me, PEER, &bytes, facts, NOW), Ok(Received::KeyChanged));
    assert!(!me.is_trusted(PEER));
}

#[test]
fn a_rejection_reaches_the_requester_with_its_reason() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(send(&mut me, PEER, Kind::Reject, "not today", NOW + 1), Ok(Received::Rejected));
    assert!(me.requested_at(PEER).is_none() && !me.is_trusted(PEER));
    assert_eq!(me.rejection(PEER), Some(&Rejection { reason: "not today".into(), at: NOW + 1 }));
    let actions = actions(&mut me);
    assert!(actions.contains(&Action::Wake(PEER, Outcome::Rejected { reason: "not today".into() })));
    assert_eq!(send(&mut me, 3, Kind::Reject, "", NOW), Ok(Received::Ignored), "never asked");
    me.request(NOW + 5, PEER, "");
    assert_eq!(me.rejection(PEER), None, "a new request is open again");
}

#[test]
fn a_revoke_deletes_everything_and_sets_no_cool_down() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(send(&mut me, PEER, Kind::Revoke, "trust revoked", NOW), Ok(Received::Revoked));
    let actions = actions(&mut me);
    assert_eq!(names(&actions), ["trust.revoked_by_peer", "trust.changed"]);
    assert_eq!(events(&actions)[1].1, json!({"peer_node_id": PEER, "state": "revoked", "reason": "by_peer"}));
    for action in
        [Action::SetTrusted(PEER, false), Action::TearDown(PEER), Action::RevokeTrust(PEER), Action::Save]
    {
        assert!(actions.contains(&action), "{action:?}");
    }
    assert!(!me.cooling_down(NOW, PEER) && !me.is_trusted(PEER));
}

#[test]
fn a_revoke_of_a_node_that_was_not_trusted_removes_its_requests_only() {
    let mut me = trust(ME);
    send(&mut me, PEER, Kind::Request, "", NOW).unwrap();
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(send(&mut me, PEER, Kind::Revoke, "", NOW), Ok(Received::Revoked));
    assert!(me.pending().next().is_none() && me.requested_at(PEER).is_none());
    assert_eq!(actions(&mut me), [Action::Save]);
}

// ---- 2.8, relayed ----------------------------------------------------------------------------------------

#[test]
fn a_relayed_request_waits_without_a_key() {
    let mut me = trust(ME);
    assert_eq!(me.receive_relayed_request(NOW, PEER, "pls\u{7}", 0), Received::Pending);
    let expected = Pending { key: None, justification: "pls".into(), received_at: NOW, source: PEER };
    assert_eq!(me.pending().next(), Some((PEER, &expected)));
    assert_eq!(me.receive_relayed_request(NOW, PEER, "again", 0), Received::Pending, "no replay set");
}

#[test]
fn a_relayed_request_is_decided_as_a_direct_one_and_answered_by_relay() {
    let cases: [(&str, bool, bool); 4] = [
        ("mutual", false, false),
        ("same_network", false, true),
        ("trusted_agent_relayed", true, true),
        ("auto_approve_relayed", true, true),
    ];
    for (reason, published, reported) in cases {
        let mut config = Config::new(ME, identity(ME));
        config.auto_approve = reason == "auto_approve_relayed";
        if reason == "trusted_agent_relayed" {
            config.agents = vec![TrustedAgent { node: PEER, hostname: "a".into(), key: None }];
        }
        let mut me = Trust::new(config);
        if reason == "mutual" {
            me.request(NOW, PEER, "");
        }
        actions(&mut me);
        let network = if reason == "same_network" { 7 } else { 0 };
        assert_eq!(me.receive_relayed_request(NOW, PEER, "", network), Received::Trusted(reason));
        let actions = actions(&mut me);
        let relayed =
            Delivery { node: PEER, direct: None, relay: Relay::Respond { accept: true }, relay_also: false };
        assert_eq!(deliveries(&actions), [relayed], "{reason}");
        assert_eq!(actions.contains(&Action::ReportTrust(PEER)), reported, "{reason}");
        assert!(actions.contains(&Action::BackfillKey(PEER)), "{reason}");
        let expected: &[&str] = match published {
            true => &["handshake.received", "handshake.auto_approved", "trust.changed"],
            false => &["handshake.received"],
        };
        assert_eq!(names(&actions), expected, "{reason}");
        let record = record(&me, PEER);
        assert_eq!(
            (record.key, record.mutual, record.network),
            (None, reason == "mutual", network),
            "{reason}"
        );
    }
}

#[test]
fn a_relayed_request_does_not_match_a_pinned_agent() {
    let mut me = trust(ME);
    me.set_agents(vec![TrustedAgent { node: PEER, hostname: "a".into(), key: Some(key(PEER)) }]);
    assert_eq!(me.receive_relayed_request(NOW, PEER, "", 0), Received::Pending);
}

#[test]
fn a_relayed_request_of_a_trusted_node_is_only_answered() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(me.receive_relayed_request(NOW, PEER, "", 0), Received::AlreadyTrusted);
    let actions = actions(&mut me);
    assert_eq!(deliveries(&actions)[0].relay, Relay::Respond { accept: true });
    assert!(!actions.iter().any(|a| matches!(a, Action::ReportTrust(_) | Action::BackfillKey(_))));
}

#[test]
fn a_relayed_approval_counts_once_and_only_if_asked_for() {
    let mut me = trust(ME);
    assert_eq!(me.receive_relayed_response(NOW, PEER, true), Received::Ignored);
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(me.receive_relayed_response(NOW, PEER, true), Received::Trusted("accepted"));
    assert!(record(&me, PEER).mutual && actions(&mut me).contains(&Action::BackfillKey(PEER)));
    assert_eq!(me.receive_relayed_response(NOW, PEER, true), Received::AlreadyTrusted);
    assert_eq!(actions(&mut me), [], "duplicates are normal");
}

#[test]
fn a_relayed_approval_during_the_cool_down_is_ignored() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    me.revoke(NOW, PEER).unwrap();
    me.outgoing.insert(PEER, NOW);
    assert_eq!(me.receive_relayed_response(NOW + 299, PEER, true), Received::Ignored);
    assert_eq!(me.receive_relayed_response(NOW + 300, PEER, true), Received::Trusted("accepted"));
}

#[test]
fn a_relayed_rejection_ends_the_request_and_the_wait() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    actions(&mut me);
    assert_eq!(me.receive_relayed_response(NOW, PEER, false), Received::Rejected);
    assert!(me.requested_at(PEER).is_none());
    assert!(actions(&mut me).contains(&Action::Wake(PEER, Outcome::Rejected { reason: String::new() })));
}

// ---- 2.9, keys -------------------------------------------------------------------------------------------

#[test]
fn an_unknown_key_is_adopted_then_pinned() {
    let mut me = trust(ME);
    me.receive_relayed_request(NOW, PEER, "", 7);
    actions(&mut me);
    me.peer_key_known(PEER, &key(PEER));
    assert_eq!((record(&me, PEER).key, actions(&mut me)), (Some(key(PEER)), vec![Action::Save]));
    me.peer_key_known(PEER, &key(PEER));
    assert_eq!(actions(&mut me), []);
    me.peer_key_known(PEER, &key(9));
    assert!(!me.is_trusted(PEER));
    let actions = actions(&mut me);
    assert_eq!(
        events(&actions),
        [("trust.changed", json!({"peer_node_id": PEER, "state": "revoked", "reason": "key_changed"}),)]
    );
    assert!(actions.contains(&Action::KeyChanged { node: PEER, pinned: key(PEER), shown: key(9) }));
    assert!(actions.contains(&Action::SetTrusted(PEER, false)) && actions.contains(&Action::Save));
}

#[test]
fn the_key_of_an_untrusted_node_changes_nothing() {
    let mut me = trust(ME);
    me.peer_key_known(PEER, &key(9));
    assert_eq!(actions(&mut me), []);
}
