//! Local commands (2.7), bounds and ages (2.4), `trust.json` (2.10), and two nodes talking to each other.

use super::*;
use proptest::prelude::*;

// ---- 2.7 -------------------------------------------------------------------------------------------------

#[test]
fn a_request_goes_directly_and_by_relay_if_that_fails() {
    let mut me = trust(ME);
    let Requested::Send(delivery) = me.request(NOW, PEER, "hello\n") else { panic!() };
    assert_eq!(content(&delivery), ("handshake_request".into(), "hello".into()));
    assert_eq!(delivery.relay, Relay::Request { justification: "hello".into() });
    assert!(!delivery.relay_also);
    assert_eq!(me.requested_at(PEER), Some(NOW));
    assert!(me.awaits_answer(NOW + 119) && !me.awaits_answer(NOW + 120));
}

#[test]
fn a_repeated_request_goes_by_relay_too_while_the_peer_may_discard_it() {
    let mut me = trust(ME);
    let mut relayed = |at| match me.request(at, PEER, "") {
        Requested::Send(delivery) => delivery.relay_also,
        Requested::AlreadyTrusted => panic!(),
    };
    assert!(!relayed(NOW));
    assert!(relayed(NOW + 10));
    assert!(!relayed(NOW + 10 + REPLAY_WINDOW_SECS));
}

#[test]
fn a_request_to_a_trusted_node_or_oneself_does_nothing() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(me.request(NOW, PEER, ""), Requested::AlreadyTrusted);
    assert_eq!(me.request(NOW, ME, ""), Requested::AlreadyTrusted);
    assert_eq!(actions(&mut me), []);
}

#[test]
fn after_a_key_rotation_a_trusted_peer_is_asked_again() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(me.request(NOW, PEER, ""), Requested::AlreadyTrusted);
    let rotated = Identity::from_seed([99; 32]).expect("every seed is a key");
    me.set_identity(ME, Arc::new(rotated));
    assert!(me.is_trusted(PEER), "our own trust does not depend on our key");
    let Requested::Send(delivery) = me.request(NOW + 1, PEER, "") else { panic!("the peer must be asked") };
    assert!(!delivery.relay_also, "the new key signs a message the peer has not seen");
}

#[test]
fn a_request_ends_the_cool_down() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    me.revoke(NOW, PEER).unwrap();
    me.request(NOW + 1, PEER, "");
    assert_eq!(me.receive_relayed_response(NOW + 2, PEER, true), Received::Trusted("accepted"));
}

#[test]
fn approving_trusts_reports_and_answers_both_ways() {
    let mut me = trust(ME);
    send(&mut me, PEER, Kind::Request, "", NOW).unwrap();
    actions(&mut me);
    assert_eq!(me.approve(NOW, PEER), Approved::Approved);
    let actions = actions(&mut me);
    let names: Vec<_> = events(&actions).iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["handshake.approved", "trust.changed"]);
    assert_eq!(events(&actions)[1].1["reason"], "approved");
    let deliveries = deliveries(&actions);
    assert_eq!(content(&deliveries[0]), ("handshake_accept".into(), "confirm".into()));
    assert_eq!((&deliveries[0].relay, deliveries[0].relay_also), (&Relay::Respond { accept: true }, true));
    assert!(actions.contains(&Action::ReportTrust(PEER)));
    let (_, record) = me.trusted().next().unwrap();
    assert_eq!((record.key, record.mutual), (Some(key(PEER)), false));
    assert!(me.pending().next().is_none());
}

#[test]
fn approving_or_rejecting_nothing_says_so() {
    let mut me = trust(ME);
    assert_eq!(me.approve(NOW, PEER), Approved::NothingPending);
    assert!(!me.reject(NOW, PEER, "no"));
    assert_eq!(actions(&mut me), []);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(me.approve(NOW, PEER), Approved::AlreadyTrusted);
}

#[test]
fn rejecting_answers_both_ways() {
    let mut me = trust(ME);
    me.receive_relayed_request(NOW, PEER, "", 0);
    actions(&mut me);
    assert!(me.reject(NOW, PEER, "not today"));
    let actions = actions(&mut me);
    assert_eq!(
        events(&actions),
        [("handshake.rejected", json!({"peer_node_id": PEER, "reason": "not today"}))]
    );
    let delivery = &deliveries(&actions)[0];
    assert_eq!(content(delivery), ("handshake_reject".into(), "not today".into()));
    assert_eq!((&delivery.relay, delivery.relay_also), (&Relay::Respond { accept: false }, true));
}

#[test]
fn revoking_tells_the_peer_before_its_tunnel_goes() {
    let mut me = trust(ME);
    make_trusted(&mut me, PEER, NOW);
    assert_eq!(me.revoke(NOW, PEER), Ok(()));
    let actions = actions(&mut me);
    let names: Vec<_> = events(&actions).iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["trust.revoked", "trust.changed"]);
    assert_eq!(events(&actions)[1].1["reason"], "local");
    let at = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    let sent = at(&|a| matches!(a, Action::Deliver(_)));
    assert!(sent < at(&|a| *a == Action::TearDown(PEER)));
    assert!(
        actions.contains(&Action::RevokeTrust(PEER)) && actions.contains(&Action::SetTrusted(PEER, false))
    );
    let delivery = &deliveries(&actions)[0];
    assert_eq!(content(delivery), ("handshake_revoke".into(), "trust revoked".into()));
    assert_eq!((&delivery.relay, delivery.relay_also), (&Relay::None, false));
}

#[test]
fn revoking_a_node_that_is_not_trusted_changes_nothing() {
    let mut me = trust(ME);
    me.request(NOW, PEER, "");
    actions(&mut me);
    let error = me.revoke(NOW, PEER).unwrap_err();
    assert_eq!(error.to_string(), "node 2 was not trusted");
    assert_eq!(actions(&mut me), []);
    assert_eq!(me.receive_relayed_response(NOW + 2, PEER, true), Received::Trusted("accepted"));
}

// ---- two nodes -------------------------------------------------------------------------------------------

/// Carries direct messages between two nodes until both are silent; returns the kinds carried.
fn talk(a: &mut Trust, b: &mut Trust, at: u64, mut first: Vec<Delivery>) -> Vec<String> {
    let mut carried = Vec::new();
    loop {
        let mut queue = std::mem::take(&mut first);
        queue.extend(deliveries(&actions(a)));
        queue.extend(deliveries(&actions(b)));
        if queue.is_empty() {
            return carried;
        }
        for delivery in queue {
            let (from, to) = if delivery.node == a.config.node {
                (b.config.node, &mut *a)
            } else {
                (a.config.node, &mut *b)
            };
            carried.push(content(&delivery).0);
            let _ = deliver(to, from, delivery.direct.as_deref().unwrap(), known(from), at);
        }
    }
}

#[test]
fn after_an_approval_both_sides_know_that_trust_is_mutual() {
    let (mut a, mut b) = (trust(ME), trust(PEER));
    let Requested::Send(request) = a.request(NOW, PEER, "") else { panic!() };
    talk(&mut a, &mut b, NOW, vec![request]);
    assert_eq!(b.approve(NOW, ME), Approved::Approved);
    let carried = talk(&mut a, &mut b, NOW, vec![]);
    assert_eq!(carried, ["handshake_accept", "handshake_accept"], "an accept and its confirmation, no more");
    assert!(a.trusted().all(|(_, r)| r.mutual) && b.trusted().all(|(_, r)| r.mutual));
    assert_eq!((a.trusted().count(), b.trusted().count()), (1, 1));
}

#[test]
fn the_direct_accept_is_confirmed_even_if_the_relayed_one_was_faster() {
    let (mut a, mut b) = (trust(ME), trust(PEER));
    a.request(NOW, PEER, "");
    b.receive_relayed_request(NOW, ME, "", 0);
    b.approve(NOW, ME);
    a.receive_relayed_response(NOW, PEER, true);
    talk(&mut a, &mut b, NOW, vec![]);
    assert!(b.trusted().all(|(_, r)| r.mutual && r.key == Some(key(ME))));
}

#[test]
fn requests_that_cross_make_mutual_trust_without_a_person() {
    let (mut a, mut b) = (trust(ME), trust(PEER));
    let Requested::Send(from_a) = a.request(NOW, PEER, "") else { panic!() };
    let Requested::Send(from_b) = b.request(NOW, ME, "") else { panic!() };
    talk(&mut a, &mut b, NOW, vec![from_a, from_b]);
    assert!(a.is_trusted(PEER) && b.is_trusted(ME));
    assert!(a.trusted().all(|(_, r)| r.mutual) && b.trusted().all(|(_, r)| r.mutual));
}

// ---- 2.4 -------------------------------------------------------------------------------------------------

#[test]
fn own_requests_are_bounded_and_the_oldest_gives_way() {
    let mut me = trust(ME);
    for n in 0..=MAX_OUTGOING as u32 {
        me.request(NOW + u64::from(n), 10 + n, "");
        me.actions.clear();
    }
    assert_eq!(me.outgoing.len(), MAX_OUTGOING);
    assert!(me.requested_at(10).is_none() && me.requested_at(11).is_some());
    assert!(me.sent.len() <= MAX_SENT);
}

#[test]
fn what_is_too_old_goes_with_the_job() {
    let mut me = trust(ME);
    me.request(NOW, 3, "");
    me.receive_relayed_request(NOW, 4, "", 0);
    make_trusted(&mut me, PEER, NOW);
    me.revoke(NOW, PEER).unwrap();
    actions(&mut me);
    me.handle_time(NOW + COOL_DOWN_SECS);
    assert_eq!(actions(&mut me), [Action::Save]);
    assert!(me.revoked.is_empty());
    let last = NOW + REQUEST_LIFETIME_SECS;
    me.handle_time(last);
    assert!(me.requested_at(3).is_some() && me.pending().count() == 1 && actions(&mut me).is_empty());
    me.handle_time(last + 300);
    assert!(me.requested_at(3).is_none() && me.pending().count() == 0);
    assert_eq!(actions(&mut me), [Action::Save]);
}

// ---- 2.10 ------------------------------------------------------------------------------------------------

#[test]
fn an_empty_state_is_written_as_null() {
    assert_eq!(trust(ME).to_json(NOW), "{\n  \"trusted\": null\n}");
}

#[test]
fn the_file_has_the_documented_shape() {
    let mut me = trust(ME);
    let k = key(PEER);
    me.trusted
        .insert(2, Trusted { key: Some(k), approved_at: NOW, mutual: true, network: 7, registry: None });
    me.trusted.insert(
        3,
        Trusted { key: None, approved_at: NOW, mutual: false, network: 0, registry: Some("r".into()) },
    );
    me.pending.insert(1, Pending { key: None, justification: String::new(), received_at: NOW, source: 1 });
    me.revoked.insert(5, NOW + 1);
    me.revoked.insert(6, NOW);
    me.outgoing.insert(4, NOW);
    let expected = format!(
        r#"{{
  "trusted": [
    {{
      "node_id": 2,
      "public_key": "{}",
      "approved_at": "2026-11-20T23:33:20Z",
      "mutual": true,
      "network": 7
    }},
    {{
      "node_id": 3,
      "public_key": "",
      "approved_at": "2026-11-20T23:33:20Z",
      "mutual": false,
      "registry": "r"
    }}
  ],
  "pending": [
    {{
      "node_id": 1,
      "received_at": "2026-11-20T23:33:20Z",
      "source": 1
    }}
  ],
  "revoked": [
    {{
      "node_id": 5,
      "until": "2026-11-20T23:33:21Z"
    }}
  ],
  "outgoing": [
    {{
      "node_id": 4,
      "sent_at": "2026-11-20T23:33:20Z"
    }}
  ]
}}"#,
        crypto::base64(k)
    );
    assert_eq!(me.to_json(NOW), expected);
    let mut again = trust(ME);
    assert_eq!(again.load(NOW, &expected), Ok(0));
    assert_eq!(again.to_json(NOW), expected);
    assert_eq!(actions(&mut again), [Action::SetTrusted(2, true), Action::SetTrusted(3, true)]);
}

#[test]
fn loading_skips_what_is_malformed_expired_or_too_old() {
    let at = |secs: u64| rfc3339::format(secs);
    let day = 86_400;
    let text = json!({
        "trusted": [
            {"node_id": 2, "public_key": "", "approved_at": at(NOW), "mutual": true},
            {"node_id": 3, "public_key": "", "approved_at": "yesterday", "mutual": true},
            {"node_id": 4, "public_key": "short", "approved_at": at(NOW), "mutual": true},
        ],
        "pending": [{"node_id": 5, "received_at": at(NOW - 400 * day)}, {"node_id": 6, "received_at": "?"}],
        "revoked": [{"node_id": 7, "until": at(NOW)}, {"node_id": 8, "until": at(NOW + 1)}],
        "outgoing": [{"node_id": 9, "sent_at": at(NOW - 31 * day)}, {"node_id": 10, "sent_at": at(NOW - 30 * day)}],
        "later": 1,
    })
    .to_string();
    let mut me = trust(ME);
    assert_eq!(me.load(NOW, &text), Ok(3));
    assert_eq!(me.trusted().map(|(n, _)| n).collect::<Vec<_>>(), [2]);
    let pending: Vec<_> = me.pending().map(|(n, entry)| (n, entry.source)).collect();
    assert_eq!(pending, [(5, 5)], "the age of a pending request is not judged at load");
    assert_eq!(me.revoked.keys().copied().collect::<Vec<_>>(), [8]);
    assert_eq!(me.outgoing.keys().copied().collect::<Vec<_>>(), [10]);
}

#[test]
fn a_broken_file_is_an_error_and_leaves_the_state_empty() {
    let mut me = trust(ME);
    assert!(
        me.load(NOW, "{\"trusted\": [").unwrap_err().to_string().starts_with("trust.json is not valid: ")
    );
    assert_eq!(me.to_json(NOW), trust(ME).to_json(NOW));
}

#[test]
fn records_of_another_registry_are_kept_but_inactive() {
    let text = json!({"trusted": [
        {"node_id": 2, "public_key": crypto::base64(key(2)), "approved_at": "2026-11-20T23:28:10Z", "mutual": true, "registry": "old"},
        {"node_id": 3, "public_key": "", "approved_at": "2026-11-20T23:28:10Z", "mutual": true},
    ]})
    .to_string();
    let mut config = Config::new(ME, identity(ME));
    config.registry = Some("new".into());
    let mut me = Trust::new(config);
    me.load(NOW, &text).unwrap();
    assert!(!me.is_trusted(2) && me.is_trusted(3));
    // Another node 2 of the new registry is a stranger and may become trusted beside the old record.
    assert_eq!(me.receive_relayed_request(NOW, 2, "", 7), Received::Trusted("same_network"));
    actions(&mut me);
    let written: Value = serde_json::from_str(&me.to_json(NOW)).unwrap();
    let ids: Vec<_> = written["trusted"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["node_id"].clone(), e["registry"].clone()))
        .collect();
    assert_eq!(ids, [(json!(2), json!("new")), (json!(3), json!("new")), (json!(2), json!("old"))]);

    me.set_registry("old");
    assert!(me.is_trusted(2) && !me.is_trusted(3));
    assert_eq!(me.trusted().next().unwrap().1.key, Some(key(2)));
    assert_eq!(actions(&mut me), [Action::SetTrusted(3, false), Action::Save]);
}

proptest! {
    #[test]
    fn any_file_is_loaded_without_panic(text in "[{}\\[\\]\",:a-z0-9 ]{0,200}") {
        let _ = trust(ME).load(NOW, &text);
    }
}
