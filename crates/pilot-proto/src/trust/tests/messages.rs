//! Messages and their checks (2.2, 2.3), text cleaning (2.4), the replay set, times.

use super::*;
use crate::crypto::base64;
use crate::trust::message::{MAX_JUSTIFICATION, MAX_MESSAGE, MAX_SENT_MESSAGE, clean, encode};
use crate::trust::replay::{LIFETIME_SECS, MAX_ENTRIES, MAX_PER_NODE, ReplaySet};
use proptest::prelude::*;

fn edited(kind: Kind, edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(&message(PEER, ME, kind, "hello", NOW)).unwrap();
    edit(&mut json);
    json.to_string().into_bytes()
}

#[test]
fn golden_messages_are_understood_and_their_signatures_verify() {
    let vectors = vectors();
    let list = vectors["handshake_port_444"]["messages"].as_array().unwrap();
    assert_eq!(list.len(), 5);
    for vector in list {
        let text = vector["text"].as_str().unwrap();
        let json: Value = serde_json::from_str(text).unwrap();
        let signed: Vec<u32> = vector["signed_string"]
            .as_str()
            .unwrap()
            .split(':')
            .skip(1)
            .map(|n| n.parse().unwrap())
            .collect();
        let (from, to) = (signed[0], signed[1]);
        let at = json["timestamp"].as_u64().unwrap();
        let result = message::examine(to, at, from, text.as_bytes());
        if from == to {
            assert_eq!(result, Err(Refusal::ImpossibleSender(from)), "{}", vector["meaning"]);
            continue;
        }
        let incoming = result.unwrap();
        assert_eq!(incoming.kind.name(), json["type"], "{}", vector["meaning"]);
        assert_eq!(incoming.key.map(base64), json["public_key"].as_str().map(str::to_owned));
        assert_eq!(incoming.justification, json["justification"]);
        assert_eq!(incoming.reason, json["reason"]);
    }
}

#[test]
fn messages_have_the_golden_shape_byte_for_byte() {
    let vectors = vectors();
    let golden = vectors["handshake_port_444"]["messages"][0]["text"].as_str().unwrap();
    let json: Value = serde_json::from_str(golden).unwrap();
    let ours =
        String::from_utf8(encode(&identity(1), 1, 2, Kind::Request, "direct please", "", 1_795_217_564))
            .unwrap();
    let ours_json: Value = serde_json::from_str(&ours).unwrap();
    let field = |json: &Value, name: &str| json[name].as_str().unwrap().to_owned();
    let expected = golden
        .replace(&field(&json, "public_key"), &field(&ours_json, "public_key"))
        .replace(&field(&json, "signature"), &field(&ours_json, "signature"));
    assert_eq!(ours, expected);
}

#[test]
fn golden_relay_signatures_cover_the_challenges() {
    let vectors = vectors();
    let mut checked = 0;
    for vector in vectors["handshake_registry_relay"]["messages"].as_array().unwrap() {
        let Some(signed) = vector["signed_string"].as_str() else { continue };
        let json: Value = serde_json::from_str(vector["text"].as_str().unwrap()).unwrap();
        let number = |name: &str| json[name].as_u64().unwrap() as u32;
        let expected = match json["type"].as_str().unwrap() {
            "request_handshake" => {
                crate::registry::challenge::pair("handshake", number("from_node_id"), number("to_node_id"))
            }
            "poll_handshakes" => crate::registry::challenge::own("poll_handshakes", number("node_id")),
            "report_trust" => {
                crate::registry::challenge::pair("report_trust", number("node_id"), number("peer_id"))
            }
            "respond_handshake" => {
                crate::registry::challenge::pair("respond", number("node_id"), number("peer_id"))
            }
            other => panic!("{other}"),
        };
        assert_eq!(signed, expected);
        let key = crypto::unbase64(vector["public_key"].as_str().unwrap()).unwrap();
        let signature: [u8; 64] = crypto::unbase64(json["signature"].as_str().unwrap()).unwrap();
        assert!(crypto::verify(&key, signed.as_bytes(), &signature), "{signed}");
        checked += 1;
    }
    assert_eq!(checked, 4);
}

#[test]
fn the_first_bytes_of_a_message_are_incomplete_not_malformed() {
    let bytes = message(PEER, ME, Kind::Request, "hello", NOW);
    for len in 0..bytes.len() {
        assert_eq!(trust(ME).examine(NOW, PEER, &bytes[..len]), Err(Refusal::Incomplete), "{len}");
    }
    assert!(matches!(trust(ME).examine(NOW, PEER, b"nonsense"), Err(Refusal::Malformed(_))));
    let long = vec![b' '; MAX_MESSAGE + 1];
    assert_eq!(trust(ME).examine(NOW, PEER, &long), Err(Refusal::TooLong(MAX_MESSAGE + 1)));
}

#[test]
fn clocks_may_differ_by_five_minutes_back_and_half_a_minute_ahead() {
    let at = |timestamp: u64| trust(ME).examine(NOW, PEER, &message(PEER, ME, Kind::Request, "", timestamp));
    assert!(at(NOW - 300).is_ok());
    assert_eq!(at(NOW - 301), Err(Refusal::TooOld));
    assert!(at(NOW + 30).is_ok());
    assert_eq!(at(NOW + 31), Err(Refusal::FromFuture));
    let without = edited(Kind::Request, |json| drop(json.as_object_mut().unwrap().remove("timestamp")));
    assert_eq!(trust(ME).examine(NOW, PEER, &without), Err(Refusal::TooOld));
    let extreme = edited(Kind::Request, |json| json["timestamp"] = i64::MIN.into());
    assert_eq!(trust(ME).examine(NOW, PEER, &extreme), Err(Refusal::TooOld));
}

#[test]
fn a_message_is_refused_for_each_flaw_of_key_and_signature() {
    let cases: [(&str, Value, Refusal); 6] = [
        ("public_key", json!(""), Refusal::NoKey),
        ("signature", json!(""), Refusal::NoSignature),
        ("public_key", json!("AAAA"), Refusal::BadKey),
        ("public_key", json!(base64(key(3))), Refusal::BadSignature),
        ("signature", json!("!!"), Refusal::BadSignature),
        ("signature", json!(base64([7; 64])), Refusal::BadSignature),
    ];
    for (field, value, refusal) in cases {
        let bytes = edited(Kind::Request, |json| json[field] = value.clone());
        assert_eq!(trust(ME).examine(NOW, PEER, &bytes), Err(refusal), "{field} {value}");
    }
}

#[test]
fn a_signature_for_another_receiver_does_not_verify() {
    let bytes = message(PEER, 3, Kind::Request, "", NOW);
    assert_eq!(trust(ME).examine(NOW, PEER, &bytes), Err(Refusal::BadSignature));
}

#[test]
fn another_key_than_the_registry_knows_is_refused() {
    let mut me = trust(ME);
    let bytes = message(PEER, ME, Kind::Request, "", NOW);
    assert_eq!(deliver(&mut me, PEER, &bytes, known(3), NOW), Err(Refusal::KeyMismatch));
    // A refused message leaves no trace in the replay set.
    assert_eq!(deliver(&mut me, PEER, &bytes, known(PEER), NOW), Ok(Received::Pending));
}

#[test]
fn all_kinds_but_requests_must_come_over_the_senders_own_tunnel() {
    for kind in [Kind::Accept, Kind::Reject, Kind::Revoke] {
        let bytes = message(PEER, ME, kind, "", NOW);
        let refusal = Refusal::WrongTransport { claimed: PEER, transport: 3 };
        assert_eq!(trust(ME).examine(NOW, 3, &bytes), Err(refusal));
    }
    assert!(trust(ME).examine(NOW, 3, &message(PEER, ME, Kind::Request, "", NOW)).is_ok());
}

#[test]
fn an_unsigned_answer_is_taken_only_of_a_node_without_a_key() {
    let bytes = edited(Kind::Reject, |json| {
        json["public_key"] = "".into();
        json["signature"] = "".into();
    });
    let mut me = trust(ME);
    assert_eq!(deliver(&mut me, PEER, &bytes, known(PEER), NOW), Err(Refusal::Unsigned));
    assert_eq!(deliver(&mut me, PEER, &bytes, Facts::default(), NOW), Ok(Received::Ignored));
}

#[test]
fn impossible_senders_and_unknown_types_are_refused() {
    for (field, value, refusal) in [
        ("node_id", json!(0), Refusal::ImpossibleSender(0)),
        ("node_id", json!(u32::MAX), Refusal::ImpossibleSender(u32::MAX)),
        ("node_id", json!(ME), Refusal::ImpossibleSender(ME)),
        ("type", json!("handshake_dance"), Refusal::UnknownType),
    ] {
        let bytes = edited(Kind::Request, |json| json[field] = value.clone());
        assert_eq!(trust(ME).examine(NOW, PEER, &bytes), Err(refusal), "{field} {value}");
    }
}

#[test]
fn a_repeated_kind_is_a_replay_whatever_its_text_and_time() {
    let mut me = trust(ME);
    assert_eq!(send(&mut me, PEER, Kind::Request, "one", NOW), Ok(Received::Pending));
    assert_eq!(send(&mut me, PEER, Kind::Request, "two", NOW + 3), Err(Refusal::Replay));
    assert_eq!(send(&mut me, PEER, Kind::Reject, "", NOW + 3), Ok(Received::Ignored), "another kind");
    let later = NOW + LIFETIME_SECS + 1;
    assert_eq!(
        send(&mut me, PEER, Kind::Request, "three", later),
        Err(Refusal::Replay),
        "before the job ran"
    );
    me.handle_time(later);
    assert_eq!(send(&mut me, PEER, Kind::Request, "three", later), Ok(Received::Pending));
}

#[test]
fn the_replay_set_evicts_the_oldest_of_the_node_then_of_all() {
    let key = |n: u32| crypto::sha256(&n.to_be_bytes());
    let mut set = ReplaySet::default();
    set.record(NOW, 9, key(1_000_000));
    for n in 0..=MAX_PER_NODE as u32 {
        set.record(NOW, PEER, key(n));
    }
    assert_eq!(set.len(), MAX_PER_NODE + 1);
    assert!(!set.contains(&key(0)) && set.contains(&key(1)) && set.contains(&key(1_000_000)));
    for n in 0..MAX_ENTRIES as u32 {
        set.record(NOW, 1000 + n, key(10_000 + n));
    }
    assert_eq!(set.len(), MAX_ENTRIES);
    assert!(!set.contains(&key(1_000_000)), "the oldest of all gave way");
    set.record(NOW + LIFETIME_SECS + 1, 5, key(5_000_000));
    assert_eq!(set.len(), 1, "expired entries go first");
}

#[test]
fn texts_lose_what_does_not_print_and_what_is_too_long() {
    assert_eq!(clean("a\nb\u{7}c é \u{202E}d\u{200B}\u{A0}\u{E000}"), "abc é d");
    assert_eq!(clean(&"x".repeat(2000)).len(), MAX_JUSTIFICATION);
    assert_eq!(clean(&"é".repeat(2000)), "é".repeat(MAX_JUSTIFICATION / 2));
    assert_eq!(clean(&format!("x{}", "é".repeat(2000))).len(), MAX_JUSTIFICATION - 1);
}

#[test]
fn a_long_justification_is_shortened_to_fit_one_segment() {
    for text in ["x".repeat(1024), "\"".repeat(1024), "é".repeat(512)] {
        let bytes = message(PEER, ME, Kind::Request, &text, NOW);
        assert!(bytes.len() <= MAX_SENT_MESSAGE && bytes.len() > MAX_SENT_MESSAGE - 12, "{}", bytes.len());
        let incoming = trust(ME).examine(NOW, PEER, &bytes).unwrap();
        assert!(text.starts_with(&incoming.justification) && incoming.justification.len() > 300);
    }
}

#[test]
fn times_are_read_and_written_as_rfc_3339() {
    for (text, unix) in [
        ("2026-11-20T23:28:10Z", 1_795_217_290),
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T12:00:00Z", 951_825_600),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ] {
        assert_eq!(rfc3339::format(unix), text);
        assert_eq!(rfc3339::parse(text), Some(unix));
    }
    assert_eq!(rfc3339::parse("2026-11-21T01:28:10.123456789+02:00"), Some(1_795_217_290));
    assert_eq!(rfc3339::parse("2026-11-20T18:58:10-04:30"), Some(1_795_217_290));
    assert_eq!(rfc3339::format_nanos(1_795_217_290, 606_594_240, 7200), "2026-11-21T01:28:10.60659424+02:00");
    assert_eq!(rfc3339::format_nanos(1_795_217_290, 0, -16_200), "2026-11-20T18:58:10-04:30");
    for bad in [
        "",
        "2026-11-20",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-11-20T24:00:00Z",
        "2026-11-20T23:28:10",
        "2026-11-20T23:28:10.Z",
        "2026-11-20T23:28:10+0200",
        "1969-12-31T23:59:59Z",
        "é026",
    ] {
        assert_eq!(rfc3339::parse(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_examined_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = trust(ME).examine(NOW, PEER, &bytes);
    }

    #[test]
    fn any_change_of_a_message_is_examined_without_panic(at in 0usize..330, byte in any::<u8>()) {
        let mut bytes = message(PEER, ME, Kind::Request, "hello", NOW);
        if let Some(b) = bytes.get_mut(at) { *b = byte; }
        let _ = trust(ME).examine(NOW, PEER, &bytes);
    }

    #[test]
    fn every_time_survives_its_text(unix in 0u64..253_402_300_800) {
        prop_assert_eq!(rfc3339::parse(&rfc3339::format(unix)), Some(unix));
    }

    #[test]
    fn any_text_is_parsed_as_a_time_without_panic(text in "\\PC{0,40}") {
        let _ = rfc3339::parse(&text);
    }
}
