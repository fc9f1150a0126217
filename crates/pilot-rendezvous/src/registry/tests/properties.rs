//! Arbitrary requests: nothing panics, and the store holds what memory holds.

use super::*;
use proptest::prelude::*;

const KINDS: &[&str] = &[
    "register",
    "heartbeat",
    "deregister",
    "rotate_key",
    "set_key_expiry",
    "get_key_info",
    "enroll_recovery_key",
    "recover_key",
    "lookup",
    "resolve",
    "resolve_hostname",
    "list_nodes",
    "set_hostname",
    "set_hidden",
    "set_visibility",
    "set_tags",
    "report_trust",
    "revoke_trust",
    "check_trust",
    "request_handshake",
    "poll_handshakes",
    "ack_handshakes",
    "respond_handshake",
    "subscribe",
    "create_network",
    "join_network",
    "leave_network",
    "delete_network",
    "rename_network",
    "list_networks",
    "set_network_enterprise",
    "invite_to_network",
    "poll_invites",
    "respond_invite",
    "kick_member",
    "promote_member",
    "demote_member",
    "transfer_ownership",
    "get_member_role",
    "set_member_tags",
    "get_member_tags",
    "get_network_policy",
    "set_network_policy",
    "get_expr_policy",
    "set_expr_policy",
    "beacon_list",
    "beacon_register",
    "punch",
    "validate_token",
    "",
    "nonsense",
];

const FIELDS: &[&str] = &[
    "node_id",
    "peer_id",
    "network_id",
    "target_node_id",
    "requester_id",
    "from_node_id",
    "to_node_id",
    "inviter_id",
    "new_owner_id",
    "node_a",
    "node_b",
    "public_key",
    "new_public_key",
    "recovery_public_key",
    "listen_addr",
    "owner",
    "hostname",
    "name",
    "tags",
    "lan_addrs",
    "version",
    "relay_only",
    "public",
    "hidden",
    "accept",
    "keep",
    "up_to",
    "ts",
    "instance",
    "justification",
    "join_rule",
    "token",
    "enterprise",
    "rules",
    "expr_policy",
    "max_members",
    "allowed_ports",
    "description",
    "expires_at",
    "beacon_id",
    "addr",
    "admin_token",
    "signature",
    "network_admin_token",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..6).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(ADMIN)),
        proptest::sample::select(vec![
            "",
            "a",
            "agent-b",
            "open",
            "token",
            "invite",
            "127.0.0.1:1",
            "[::1]:9",
            "AAAA",
            "never",
            "2027-01-01T00:00:00Z",
            "0123456789abcdef",
            "{\"version\":1,\"rules\":[]}",
            "{\"links\":1,\"cycle\":\"2m\"}"
        ])
        .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![4 => scalar(), 1 => prop::collection::vec(scalar(), 0..12).prop_map(Value::from)]
}

/// A request of a kind, with fields of any type, signed by the key of one of the first nodes or not at all.
fn request() -> impl Strategy<Value = (Value, Option<u8>)> {
    let fields = prop::collection::vec((proptest::sample::select(FIELDS), value()), 0..10);
    let ids = prop::collection::vec((proptest::sample::select(&FIELDS[..11]), 0u32..6), 0..6);
    (proptest::sample::select(KINDS), fields, ids, prop::option::weighted(0.8, 1u8..5)).prop_map(
        |(kind, fields, ids, signer)| {
            let mut request: Value =
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>().into();
            for (field, id) in ids {
                request[field] = json!(id);
            }
            if let Some(seed) = signer {
                // Mostly consistent requests, or nothing would ever get past the signature check.
                for field in ["node_id", "requester_id", "from_node_id", "inviter_id", "node_a"] {
                    if kind != "resolve" && kind != "lookup" || field != "node_id" {
                        request[field] = json!(seed);
                    }
                }
            }
            request["type"] = json!(kind);
            (request, signer)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_memory_and_store_agree(steps in prop::collection::vec((request(), 0u64..4000), 1..60)) {
        let mut w = World::new();
        let mut peers: Vec<(Peer, Session)> = (1..5).map(|seed| w.node(seed)).collect();
        for ((mut request, signer), pause) in steps {
            if pause > 3000 {
                w.sleep(pause);
                w.registry.reap(w.now);
                w.store_writes();
            }
            let mut nobody = stranger();
            let session = match signer {
                Some(seed) => {
                    let (peer, session) = &mut peers[usize::from(seed) - 1];
                    let body = request.as_object().unwrap().clone();
                    let text = match body["type"].as_str().unwrap() {
                        "register" => {
                            request["public_key"] = json!(peer.key());
                            let listen = request["listen_addr"].as_str().unwrap_or("").to_owned();
                            Some(challenge::register(&listen, &peer.key()))
                        }
                        _ => auth::claim(Request(&body)).map(|c| c.text),
                    };
                    if let Some(text) = text {
                        request["signature"] = json!(peer.identity.sign_text(&text));
                    }
                    session
                }
                None => &mut nobody,
            };
            let answer = w.ask(session, request);
            prop_assert!(answer["type"].is_string());
            if matches!(w.after, After::Delivered { .. }) {
                w.delivered();
            }
        }
        w.reload();
    }
}
