//! Requests of our own nodes cannot be repeated by whoever overheard them (docs/extensions.md, "fresh").
//!
//! The signatures of reference nodes are the same every time (spec 05 section 15), so a recording of one is as good as the
//! original. A node that has shown that it signs freshly is therefore not believed without, as long as it is heard of;
//! except that it may register plainly from the IP address it registered from last: another program may run it now.

use super::auth::public_key;
use super::model::Key;
use super::request::{Refused, Request};
use super::{Now, Registry, Session};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_proto::NodeId;
use pilot_proto::registry::fresh::{WINDOW, text};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Plain signatures of a node are refused for this long after a fresh one: three heartbeats.
const FRESH_FOR: Duration = Duration::from_secs(180);
/// Numbers remembered per node; with more within the window the lowest ones count as used.
const MAX_USED: usize = 1024;

/// What a node's fresh requests left behind.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// Numbers used within the window.
    used: BTreeSet<u64>,
    /// All numbers up to this one count as used.
    floor: u64,
    last: Option<Instant>,
    /// Where the node registered from last.
    from: Option<IpAddr>,
}

impl Freshness {
    /// Uses a number; false if it was used before, or is outside the window.
    fn take(&mut self, seq: u64, now_us: u64) -> bool {
        if seq.abs_diff(now_us) > WINDOW || seq <= self.floor || !self.used.insert(seq) {
            return false;
        }
        let old = now_us.saturating_sub(WINDOW);
        while let Some(&first) = self.used.first()
            && (first < old || self.used.len() > MAX_USED)
        {
            self.used.pop_first();
            self.floor = self.floor.max(first);
        }
        true
    }

    fn required(&self, now: Instant) -> bool {
        self.last.is_some_and(|at| now.saturating_duration_since(at) < FRESH_FOR)
    }
}

/// The signed text and the signature of a fresh request.
fn parts(body: &Map<String, Value>, registry_id: &str) -> Option<(u64, String, Vec<u8>)> {
    let fresh = Request(body.get("fresh")?.as_object()?);
    let registry = fresh.text("registry");
    if registry != registry_id
        && !(registry.is_empty() && matches!(Request(body).kind(), "register" | "rotate_key"))
    {
        return None;
    }
    let seq = fresh.number("seq", u64::MAX);
    let signature = STANDARD.decode(fresh.text("signature")).ok()?;
    let mut rest = body.clone();
    rest.remove("fresh");
    let rest = serde_json::to_string(&rest).ok()?;
    Some((seq, text(registry, seq, &rest), signature))
}

impl Registry {
    /// The node and key a fresh request is signed with.
    fn fresh_signer(&self, req: Request<'_>) -> Option<Key> {
        if req.kind() == "register" {
            return public_key("public_key", req.text("public_key")).ok();
        }
        let node = Request(req.value("fresh")?.as_object()?).node("node");
        Some(self.nodes.get(&node)?.record.key)
    }

    /// What to check before the registry is locked for a fresh request: key, text and signature.
    pub(super) fn fresh_to_check(&self, req: Request<'_>) -> Option<(Key, String, Vec<u8>)> {
        let (_, text, signature) = parts(req.0, &self.registry_id)?;
        Some((self.fresh_signer(req)?, text, signature))
    }

    /// Notes in the session whose fresh request this is. A request that is not fresh is a plain one.
    pub(super) fn freshen(&mut self, s: &mut Session, req: Request<'_>, now: Now) {
        s.fresh = None;
        let id = req.node("node_id");
        let key = self.nodes.get(&id).map(|n| n.record.key);
        if s.vouched(req) && s.heartbeats.iter().any(|(n, k, _)| *n == id && Some(*k) == key) {
            return;
        }
        let Some((seq, text, signature)) = parts(req.0, &self.registry_id) else { return };
        let Some(key) = self.fresh_signer(req) else { return };
        if !s.verify(&key, &text, &signature) {
            return;
        }
        // A key that is not registered yet has used no number.
        let Some(node) = self.by_key.get(&key).and_then(|id| self.nodes.get_mut(id)) else {
            s.fresh = (seq.abs_diff(now.unix_us) <= WINDOW).then_some((key, seq));
            return;
        };
        let fresh = node.fresh.get_or_insert_default();
        if fresh.take(seq, now.unix_us) {
            // A registration alone does not show that the node has read that it is understood.
            if req.kind() != "register" || fresh.last.is_some() {
                fresh.last = Some(now.mono);
            }
            s.fresh = Some((key, seq));
        }
    }

    /// Refuses a plain signature of a node that signs freshly.
    pub(super) fn plain_signature(&self, id: NodeId, now: Instant) -> Result<(), Refused> {
        let required = self.nodes.get(&id).and_then(|n| n.fresh.as_ref()).is_some_and(|f| f.required(now));
        if !required {
            return Ok(());
        }
        Err(Refused(format!(
            "signature verification failed: node {id} signs with times lately, this one could be a recording"
        )))
    }

    /// The same for a registration from `ip`.
    pub(super) fn plain_registration(&mut self, id: NodeId, ip: IpAddr, now: Now) -> Result<(), Refused> {
        let here = self.nodes.get(&id).and_then(|n| n.fresh.as_ref()).is_some_and(|f| f.from == Some(ip));
        if !here {
            self.plain_signature(id, now.mono)
                .map_err(|Refused(text)| Refused(format!("registration: {text}")))?;
        }
        if let Some(fresh) = self.nodes.get_mut(&id).and_then(|n| n.fresh.as_mut()) {
            fresh.last = None;
        }
        Ok(())
    }

    /// A node has registered freshly from `ip`, the first time or again.
    pub(super) fn fresh_registration(&mut self, id: NodeId, seq: u64, ip: IpAddr, now: Now) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let fresh = node.fresh.get_or_insert_default();
            fresh.take(seq, now.unix_us);
            fresh.from = Some(ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_once_within_the_window_and_memory_is_bounded() {
        let mut fresh = Freshness::default();
        let now = 1_795_217_600_000_000;
        assert!(fresh.take(now, now));
        assert!(!fresh.take(now, now));
        assert!(fresh.take(now - 5, now), "another connection was faster");
        assert!(!fresh.take(now + WINDOW + 1, now) && !fresh.take(now - WINDOW - 1, now));
        let later = now + 2 * WINDOW;
        assert!(fresh.take(later, later));
        assert_eq!(fresh.used.len(), 1);
        for i in 1..3000 {
            assert!(fresh.take(later + i, later));
        }
        assert_eq!(fresh.used.len(), MAX_USED);
        assert!(!fresh.take(later + 1, later), "forgotten numbers count as used");
    }
}
