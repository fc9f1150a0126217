//! Node records: what peers sign about themselves, and what this node does (docs/extensions.md, "node_record").
//!
//! A record binds a node's number to its key and its endpoints without the registry's word. Once one was seen, a
//! registry cannot hand out an older one or another key without being noticed: such an answer is refused and announced
//! (`security.registry_contradiction`). Registries and nodes that have no records are believed as before.

use crate::registry::RegistryError;
use crate::shared::Shared;
use crate::{lock, unix_micros, unix_now};
use pilot_proto::NodeId;
use pilot_proto::crypto::{base64, unbase64};
use pilot_proto::registry::record::{NodeRecord, Place};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Nodes whose newest record is remembered; the one of the oldest record gives way.
const MAX_KNOWN: usize = 4096;
/// A record of ours is valid for this long, seconds.
const VALID: u64 = 7 * 24 * 3600;
/// It is made anew this often.
const RENEW: Duration = Duration::from_secs(24 * 3600);
/// Clocks may differ by this much before a record counts as expired, seconds.
const SKEW: u64 = 24 * 3600;

/// The newest record seen of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    key: [u8; 32],
    generation: u32,
    sequence: u64,
}

/// What is remembered about records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// At the registry of this name.
    known: Mutex<(String, BTreeMap<NodeId, Seen>)>,
    /// Sequence of our last one, and when it was made.
    own: Mutex<(u64, Option<Instant>)>,
}

impl Records {
    fn get(&self, registry: &str, node: NodeId) -> Option<Seen> {
        let known = lock(&self.known);
        if known.0 == registry { known.1.get(&node).copied() } else { None }
    }

    fn note(&self, registry: &str, node: NodeId, seen: Seen) {
        let mut known = lock(&self.known);
        if known.0 != registry {
            *known = (registry.to_owned(), BTreeMap::new());
        }
        if known.1.len() >= MAX_KNOWN
            && !known.1.contains_key(&node)
            && let Some(oldest) = known.1.iter().min_by_key(|(_, s)| s.sequence).map(|(node, _)| *node)
        {
            known.1.remove(&oldest);
        }
        // Of two answers under way at the same time the newer one stays.
        if known.1.get(&node).is_none_or(|s| s.sequence <= seen.sequence || s.key != seen.key) {
            known.1.insert(node, seen);
        }
    }
}

/// What was known of a node when the registry was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before(Option<Seen>);

/// Judges a record against what was known. `Ok(None)`: there is none that counts.
fn judge(
    answer: &Value,
    node: NodeId,
    registry: &str,
    before: Option<Seen>,
    now_unix: u64,
) -> Result<Option<NodeRecord>, String> {
    let bare: Option<[u8; 32]> = answer["public_key"].as_str().and_then(unbase64);
    let Some(text) = answer["record"].as_str() else {
        // A registry that has lost the record may still not name another key for its generation.
        let same_generation = answer["key_generation"].as_u64() == before.map(|b| u64::from(b.generation));
        return match (before, bare) {
            (Some(before), Some(bare)) if bare != before.key && same_generation => {
                Err("another key than the node's own signed record, and no record for it".into())
            }
            _ => Ok(None),
        };
    };
    let record = NodeRecord::open_text(text).map_err(|e| format!("a {e}"))?;
    if record.node != node || record.registry != registry {
        return Err("a record of another node or registry".into());
    }
    if record.expires.saturating_add(SKEW) < now_unix {
        return Ok(None);
    }
    if bare.is_some_and(|bare| bare != record.key) {
        return Err("another key than the node's signed record beside it".into());
    }
    if let Some(before) = before {
        if record.key == before.key && record.sequence < before.sequence {
            return Err("an older signed record than it had before".into());
        }
        if record.key != before.key && record.generation <= before.generation {
            return Err("a signed record with another key of the same generation".into());
        }
    }
    Ok(Some(record))
}

impl Shared {
    /// The name the registry gave itself; records are made for it.
    fn registry_id(&self) -> Option<String> {
        self.registry.features().registry_id
    }

    /// To be called before the registry is asked for a node.
    pub(crate) fn known_record(&self, node: NodeId) -> Before {
        let Some(registry) = self.registry_id() else { return Before(None) };
        let seen = self.records.get(&registry, node);
        // From an earlier run.
        let pinned = || {
            let known = self.peers.get(node).filter(|known| known.sequence > 0)?;
            Some(Seen { key: known.key, generation: known.generation, sequence: known.sequence })
        };
        Before(seen.or_else(pinned))
    }

    /// Holds the registry's answer about a node against the node's own word: the endpoints of a record replace those of
    /// the answer, and an answer that contradicts one is refused and announced.
    pub(crate) fn judge_record(
        &self,
        node: NodeId,
        before: Before,
        mut answer: Value,
    ) -> Result<Value, RegistryError> {
        if let Some(answer) = answer.as_object_mut() {
            // Only a record says it.
            answer.remove("endpoints");
        }
        let Some(registry) = self.registry_id() else { return Ok(answer) };
        match judge(&answer, node, &registry, before.0, unix_now()) {
            Ok(None) => {}
            Ok(Some(record)) => {
                let seen = Seen { key: record.key, generation: record.generation, sequence: record.sequence };
                self.records.note(&registry, node, seen);
                self.peers.note_record(node, &record.key, record.generation, record.sequence);
                if let Some(place) = record.place {
                    take_place(&mut answer, place);
                }
            }
            Err(what) => {
                let text = format!("the registry's answer about node {node} is refused: {what}");
                self.warn(text.clone());
                self.publish(
                    "security.registry_contradiction",
                    json!({"peer_node_id": node, "reason": what}),
                );
                return Err(RegistryError::Refused(text));
            }
        }
        Ok(answer)
    }

    /// The request that gives our records to the registry; `None` if it takes none.
    pub(crate) fn record_request(&self) -> Option<Value> {
        let features = self.registry.features();
        let registry = features.registry_id.filter(|_| features.node_record)?;
        let (node, identity, endpoint, generation) =
            self.state(|s| (s.node, s.identity.clone(), s.endpoint.clone(), s.key_generation));
        let place = if self.relays() {
            Place { relay_only: true, endpoints: Vec::new() }
        } else {
            Place { relay_only: false, endpoints: self.endpoint_texts(&endpoint) }
        };
        let sequence = {
            let mut own = lock(&self.records.own);
            *own = (unix_micros().max(own.0 + 1), Some(Instant::now()));
            own.0
        };
        let text = |place| {
            let record = NodeRecord {
                registry: registry.clone(),
                node,
                key: *identity.public_key(),
                generation,
                sequence,
                expires: unix_now() + VALID,
                place,
            };
            base64(record.sign(&identity))
        };
        Some(json!({
            "type": "publish_record", "node_id": node, "key_record": text(None), "place_record": text(Some(place)),
        }))
    }

    /// Gives our records to the registry if it asks for them or they are old.
    pub(crate) async fn renew_record(&self, wanted: bool) {
        let due = lock(&self.records.own).1.is_some_and(|at| at.elapsed() >= RENEW);
        if !wanted && !due {
            return;
        }
        if let Some(request) = self.record_request() {
            self.record_published(&self.registry.request(request).await);
        }
    }

    /// The registry's answer to our records.
    pub(crate) fn record_published(&self, answer: &Result<Value, RegistryError>) {
        if let Err(error) = answer {
            tracing::debug!(%error, "the registry did not take this node's signed record");
        }
    }
}

fn take_place(answer: &mut Value, place: Place) {
    if place.relay_only {
        answer["relay_only"] = true.into();
        return;
    }
    let mut endpoints = place.endpoints.iter().map(String::as_str);
    if let Some(real) = endpoints.next() {
        answer["real_addr"] = real.into();
        answer["lan_addrs"] = endpoints.filter(|text| !text.contains('=')).collect();
        answer["relay_only"] = false.into();
        answer["endpoints"] = place.endpoints.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilot_proto::crypto::Identity;

    const REGISTRY: &str = "00112233445566778899aabbccddeeff";

    fn identity(seed: u8) -> Identity {
        Identity::from_seed([seed; 32]).unwrap()
    }

    fn text(seed: u8, generation: u32, sequence: u64, change: impl Fn(&mut NodeRecord)) -> String {
        let mut record = NodeRecord {
            registry: REGISTRY.into(),
            node: 7,
            key: [0; 32],
            generation,
            sequence,
            expires: 1_000_000,
            place: None,
        };
        change(&mut record);
        base64(record.sign(&identity(seed)))
    }

    fn answer(seed: u8, record: Option<String>) -> Value {
        let mut answer = json!({"public_key": identity(seed).public_key_base64(), "key_generation": 0});
        if let Some(record) = record {
            answer["record"] = record.into();
        }
        answer
    }

    fn before() -> Option<Seen> {
        Some(Seen { key: *identity(1).public_key(), generation: 0, sequence: 50 })
    }

    fn verdict(answer: &Value, before: Option<Seen>) -> Result<Option<u64>, String> {
        judge(answer, 7, REGISTRY, before, 900_000).map(|record| record.map(|r| r.sequence))
    }

    #[test]
    fn a_record_as_new_as_the_last_one_counts_and_its_absence_is_nothing() {
        assert_eq!(verdict(&answer(1, Some(text(1, 0, 1, |_| ()))), None), Ok(Some(1)));
        assert_eq!(verdict(&answer(1, Some(text(1, 0, 50, |_| ()))), before()), Ok(Some(50)));
        assert_eq!(verdict(&answer(1, None), None), Ok(None));
        assert_eq!(verdict(&answer(1, None), before()), Ok(None));
        assert_eq!(verdict(&json!({"real_addr": "192.0.2.1:1"}), before()), Ok(None));
        let expired = text(1, 0, 60, |r| r.expires = 900_000 - SKEW - 1);
        assert_eq!(verdict(&answer(1, Some(expired)), before()), Ok(None));
        // After a rotation the new key comes with the next generation; whether it is believed is for the pins.
        assert_eq!(verdict(&answer(2, Some(text(2, 1, 60, |_| ()))), before()), Ok(Some(60)));
    }

    #[test]
    fn contradictions_are_named() {
        let cases = [
            (answer(1, Some(text(1, 0, 49, |_| ()))), "an older signed record than it had before"),
            (
                answer(2, Some(text(2, 0, 99, |_| ()))),
                "a signed record with another key of the same generation",
            ),
            (answer(2, Some(text(1, 0, 99, |_| ()))), "another key than the node's signed record beside it"),
            (answer(2, None), "another key than the node's own signed record, and no record for it"),
            (answer(1, Some(text(1, 0, 99, |r| r.node = 8))), "a record of another node or registry"),
            (
                answer(1, Some(text(1, 0, 99, |r| r.registry = "ff".into()))),
                "a record of another node or registry",
            ),
            (answer(1, Some("AAAA".into())), "a no node record of a known version"),
        ];
        for (answer, cause) in cases {
            assert_eq!(verdict(&answer, before()), Err(cause.to_owned()));
        }
    }

    #[test]
    fn a_place_replaces_what_the_registry_says() {
        let mut answer =
            json!({"real_addr": "192.0.2.66:6", "lan_addrs": ["10.6.6.6:6"], "relay_only": true});
        let all = ["203.0.113.7:4000", "10.0.0.7:4000", "mapped=198.51.100.7:4000"];
        let endpoints = all.map(str::to_owned).to_vec();
        take_place(&mut answer, Place { relay_only: false, endpoints });
        let expected = json!({
            "real_addr": "203.0.113.7:4000", "lan_addrs": ["10.0.0.7:4000"], "relay_only": false, "endpoints": all,
        });
        assert_eq!(answer, expected);
        take_place(&mut answer, Place { relay_only: true, endpoints: Vec::new() });
        assert_eq!(answer["relay_only"], true);
    }

    #[test]
    fn the_records_of_one_registry_are_remembered_and_bounded() {
        let records = Records::default();
        for node in 0..=MAX_KNOWN as u32 {
            records.note("a", node, Seen { key: [1; 32], generation: 0, sequence: u64::from(node) + 1 });
        }
        assert_eq!(records.get("a", 0), None);
        records.note("a", 5, Seen { key: [1; 32], generation: 0, sequence: 1 });
        assert_eq!(records.get("a", 5).unwrap().sequence, 6, "a newer one stays");
        assert_eq!(records.get("b", 5), None);
        records.note("b", 5, Seen { key: [1; 32], generation: 0, sequence: 1 });
        assert_eq!(records.get("a", 7), None);
    }
}
