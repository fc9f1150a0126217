//! Records signed by nodes.

use super::*;
use pilot_proto::crypto::base64;
use pilot_proto::registry::record::{NodeRecord, Place};

fn publish(w: &World, peer: &Peer, change: impl Fn(&mut NodeRecord)) -> Value {
    let text = |place: Option<Place>| {
        let mut record = NodeRecord {
            registry: w.registry.registry_id().to_owned(),
            node: peer.id,
            key: [0; 32],
            generation: 0,
            sequence: w.now.unix_us,
            expires: w.now.unix() + 3600,
            place,
        };
        change(&mut record);
        base64(record.sign(&peer.identity))
    };
    let place = Place { relay_only: false, endpoints: vec!["198.51.100.1:4000".into()] };
    json!({
        "type": "publish_record", "node_id": peer.id, "key_record": text(None), "place_record": text(Some(place)),
    })
}

fn registered(w: &mut World, seed: u8, s: &mut Session) -> Peer {
    let mut peer = Peer::new(seed);
    peer.id =
        w.ok(s, peer.register(json!({"instance": "00000000000000a1"})))["node_id"].as_u64().unwrap() as u32;
    peer
}

#[test]
fn records_are_handed_on_as_they_are_the_place_only_to_those_who_may_resolve() {
    let mut w = World::new();
    let (mut sa, mut sb) = (session("198.51.100.1:1"), session("198.51.100.2:1"));
    let (a, b) = (registered(&mut w, 1, &mut sa), registered(&mut w, 2, &mut sb));
    let beat = a.own("heartbeat", json!({"instance": "00000000000000a1"}));
    assert_eq!(w.ok(&mut sa, beat.clone())["want_record"], true);
    let request = publish(&w, &a, |_| ());
    assert_eq!(w.ok(&mut sa, request.clone())["sequence"], w.now.unix_us);
    assert!(w.ok(&mut sa, beat.clone()).get("want_record").is_none());
    assert!(w.ok(&mut sa, a.own("heartbeat", json!({}))).get("want_record").is_none());
    let found = w.ok(&mut stranger(), json!({"type": "lookup", "node_id": a.id}));
    assert_eq!(found["record"], request["key_record"]);
    assert!(w.ask(&mut sb, b.resolve(a.id))["error"].is_string(), "private");
    w.ok(&mut sa, a.own("set_visibility", json!({"public": true})));
    assert_eq!(w.ok(&mut sb, b.resolve(a.id))["record"], request["place_record"]);
    // It registers from elsewhere: the old place is not handed on, and a new one wanted.
    let mut elsewhere = session("198.51.100.9:1");
    w.ok(&mut elsewhere, a.register(json!({"instance": "00000000000000a1"})));
    assert!(w.ok(&mut sb, b.resolve(a.id)).get("record").is_none());
    assert_eq!(w.ok(&mut sa, beat)["want_record"], true);
    assert_eq!(
        w.ok(&mut stranger(), json!({"type": "lookup", "node_id": a.id}))["record"],
        request["key_record"]
    );
}

#[test]
fn records_that_are_not_the_nodes_own_current_ones_are_refused_with_the_cause() {
    let mut w = World::new();
    let mut s = session("198.51.100.1:1");
    let a = registered(&mut w, 1, &mut s);
    let other = Peer { id: a.id, ..Peer::new(2) };
    let (now, day) = (w.now.unix_us, 24 * 3600 * 1_000_000u64);
    let cases: [(Value, &str); 7] = [
        (publish(&w, &other, |_| ()), "another node, key or key generation"),
        (publish(&w, &a, |r| r.node += 1), "another node, key or key generation"),
        (publish(&w, &a, |r| r.generation = 1), "another node, key or key generation"),
        (publish(&w, &a, |r| r.registry = "ff".into()), "made for another registry"),
        (publish(&w, &a, |r| r.sequence = now + day + 1), "in the future"),
        (publish(&w, &a, |r| r.expires = 5), "expired"),
        (publish(&w, &a, |r| r.place = None), "the place record has one"),
    ];
    for (request, cause) in cases {
        let error = w.ask(&mut s, request)["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(cause), "{error} / {cause}");
    }
    let good = publish(&w, &a, |_| ());
    w.ok(&mut s, good.clone());
    let error = w.ask(&mut s, good)["error"].as_str().unwrap().to_owned();
    assert_eq!(error, format!("invalid record: sequence {now} is the latest, more is needed"));
    let mut forged = publish(&w, &a, |r| r.sequence += 1);
    forged["key_record"] = json!("AAAA");
    assert!(w.ask(&mut s, forged)["error"].as_str().unwrap().contains("no node record"));
    let body =
        json!({"type": "publish_record", "node_id": a.id, "key_record": "A".repeat(5000), "place_record": 7});
    assert!(w.ask(&mut s, body)["error"].is_string());
}

#[test]
fn a_rotated_key_ends_the_records_of_the_old_one() {
    let mut w = World::new();
    let mut s = session("198.51.100.1:1");
    let a = registered(&mut w, 1, &mut s);
    let request = publish(&w, &a, |_| ());
    w.ok(&mut s, request.clone());
    let fresh = Peer { id: a.id, ..Peer::new(9) };
    let rotate = json!({"type": "rotate_key", "node_id": a.id, "new_public_key": fresh.key()});
    w.ok(&mut s, a.sign(rotate, &challenge::rotate(a.id, &fresh.key())));
    assert!(w.ok(&mut s, json!({"type": "lookup", "node_id": a.id})).get("record").is_none());
    assert!(w.ask(&mut s, request)["error"].is_string());
    let next = publish(&w, &fresh, |r| (r.generation, r.sequence) = (1, r.sequence + 1));
    w.ok(&mut s, next);
}
