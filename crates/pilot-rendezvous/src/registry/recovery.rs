//! Recovery keys (docs/extensions.md): the only way besides `rotate_key` in which an id moves to another key.

use super::auth::{public_key, signature};
use super::registration::rotated;
use super::request::{Answer, Refused, Request, no_node};
use super::{Now, Registry, Session};
use pilot_proto::crypto;
use serde_json::json;

impl Registry {
    /// The first recovery key stays: whoever steals the node key must not be able to replace it.
    pub(super) fn enroll_recovery_key(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let key = public_key("recovery_public_key", req.text("recovery_public_key"))?;
        let id = self.authenticate(s, req)?;
        let record = &self.nodes.get(&id).ok_or_else(|| no_node(id))?.record;
        if record.key == key {
            return Err("invalid recovery_public_key: it must differ from the node key".into());
        }
        if record.recovery_key.is_some_and(|enrolled| enrolled != key) {
            return Err(Refused(format!(
                "node {id}: a recovery key is already enrolled and cannot be replaced"
            )));
        }
        self.update(id, |r| r.recovery_key = Some(key));
        Ok(json!({"type": "enroll_recovery_key_ok", "node_id": id}))
    }

    /// Works for nodes that are not in the directory as well: the owner of a lost key cannot register.
    pub(super) fn recover_key(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let id = req.node("node_id");
        let text = req.text("new_public_key");
        let new = public_key("new_public_key", text)?;
        let sig = signature(req, "recover_key requires a signature by the recovery key")?;
        // One text for an unknown node, a node without a recovery key and a wrong signature.
        let refused = || Refused(format!("node {id}: recovery signature verification failed"));
        let record = &self.nodes.get(&id).ok_or_else(refused)?.record;
        let recovery = record.recovery_key.ok_or_else(refused)?;
        let signed = |generation: u32| {
            crypto::verify(&recovery, format!("recover_key:{id}:{text}:{generation}").as_bytes(), &sig)
        };
        let generation = record.rotate_count;
        if record.key == new && generation > 0 && signed(generation - 1) {
            // The same request again: its first answer was lost.
            return Ok(rotated("recover_key_ok", id, text));
        }
        if !signed(generation) {
            return Err(refused());
        }
        self.replace_key(id, new, now)?;
        // Whoever holds the old key must not be able to repeat its rotation.
        self.update(id, |r| r.previous_key = None);
        s.proven.retain(|(n, _)| *n != id);
        Ok(rotated("recover_key_ok", id, text))
    }
}
