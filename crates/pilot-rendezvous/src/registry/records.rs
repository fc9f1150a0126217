//! Records that nodes signed themselves, kept in memory and handed on (docs/extensions.md, "node_record"). Nodes send
//! them again after a restart of the registry, because their heartbeats are answered with `want_record`.

use super::request::{Answer, Refused, Request};
use super::{Now, Registry, Session};
use pilot_proto::NodeId;
use pilot_proto::registry::record::NodeRecord;
use serde_json::json;

/// A record may be this far ahead of the registry's clock, microseconds.
const AHEAD: u64 = 24 * 3600 * 1_000_000;
/// Longest validity, seconds.
const LONGEST: u64 = 31 * 24 * 3600;

/// Both records of a node, as text, of one sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Records {
    sequence: u64,
    /// Names the key; for everybody.
    pub key: String,
    /// Also says where the node is; for those who may resolve it. `None`: registered elsewhere since.
    pub place: Option<String>,
}

impl Registry {
    pub(super) fn publish_record(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let id = req.node("node_id");
        let known = self.nodes.get(&id).and_then(|n| n.signed.as_ref()).map_or(0, |r| r.sequence);
        let (key, place) = (self.open(id, req, "key_record", now)?, self.open(id, req, "place_record", now)?);
        if key.place.is_some() || place.place.is_none() {
            return Err("invalid records: the key record has no place, the place record has one".into());
        }
        if key.sequence != place.sequence || key.sequence <= known {
            return Err(Refused(format!("invalid record: sequence {known} is the latest, more is needed")));
        }
        let records = Records {
            sequence: key.sequence,
            key: req.text("key_record").to_owned(),
            place: Some(req.text("place_record").to_owned()),
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            s.prove(id, node.record.key);
            node.signed = Some(Box::new(records));
        }
        Ok(json!({"type": "publish_record_ok", "node_id": id, "sequence": key.sequence}))
    }

    /// A record of the request, if it is one of the live node `id`, for here and now.
    fn open(&self, id: NodeId, req: Request<'_>, field: &str, now: Now) -> Result<NodeRecord, Refused> {
        let registered = &self.live(id)?.record;
        let invalid = |why: &str| Refused(format!("invalid {field}: {why}"));
        let record = NodeRecord::open_text(req.text(field)).map_err(|e| invalid(&e.to_string()))?;
        if record.node != id || record.key != registered.key || record.generation != registered.rotate_count {
            return Err(invalid("another node, key or key generation than registered"));
        }
        if record.registry != self.registry_id {
            return Err(invalid("made for another registry"));
        }
        if record.sequence > now.unix_us + AHEAD {
            return Err(invalid("its sequence is in the future; is the clock right?"));
        }
        if record.expires <= now.unix() || record.expires > now.unix() + LONGEST {
            return Err(invalid("expired, or valid for more than 31 days"));
        }
        Ok(record)
    }

    /// The node's place is not what its record says any more.
    pub(super) fn outdate_place(&mut self, id: NodeId) {
        if let Some(records) = self.nodes.get_mut(&id).and_then(|n| n.signed.as_mut()) {
            records.place = None;
        }
    }

    /// Whether the node should send its records.
    pub(super) fn wants_record(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.signed.as_ref().is_none_or(|r| r.place.is_none()))
    }
}
