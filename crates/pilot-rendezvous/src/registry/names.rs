//! Hostnames, visibility, tags (spec 05 sections 5.2 and 5.3).

use super::request::{Answer, Refused, Request};
use super::{Now, Registry, Session};
use pilot_proto::NodeId;
use serde_json::json;

/// Longest hostname or network name, bytes.
pub(super) const MAX_NAME: usize = 63;
/// Tags per node, and per member of a network.
pub(super) const MAX_TAGS: usize = 10;
/// Longest tag, bytes.
const MAX_TAG: usize = 32;
/// The name of a node that went silent is kept for it this long, seconds: a laptop may sleep for a week without
/// somebody else answering under its name.
pub(super) const NAME_HOLD: u64 = 7 * 24 * 3600;

/// Lower-case letters, digits and inner hyphens.
pub(super) fn label(text: &str) -> bool {
    let b = text.as_bytes();
    let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    b.first().is_some_and(inner) && b.last().is_some_and(inner) && b.iter().all(|c| inner(c) || *c == b'-')
}

fn check_name(name: &str) -> Result<(), Refused> {
    let reason = if name.len() > MAX_NAME {
        "hostname too long (max 63 chars)".to_owned()
    } else if !label(name) {
        "hostname must be lowercase alphanumeric with hyphens, start/end with alphanumeric".to_owned()
    } else if matches!(name, "localhost" | "backbone" | "broadcast") {
        format!("hostname {name:?} is reserved")
    } else {
        return Ok(());
    };
    Err(Refused(format!("invalid hostname: {reason}")))
}

/// Strips one leading `#` each, drops duplicates, checks.
pub(super) fn clean_tags(given: &[&str], too_many: &str) -> Result<Vec<String>, Refused> {
    let mut tags: Vec<String> = Vec::new();
    for tag in given {
        let tag = tag.strip_prefix('#').unwrap_or(tag);
        if tags.iter().any(|t| t == tag) {
            continue;
        }
        if tag.is_empty() {
            return Err("invalid tag: empty tag not allowed".into());
        }
        if tag.len() > MAX_TAG {
            let shown: String = tag.chars().take(MAX_TAG).collect();
            return Err(Refused(format!("tag {shown:?} too long (max 32 chars)")));
        }
        if !label(tag) {
            return Err(Refused(format!(
                "invalid tag: tag {tag:?} must be lowercase alphanumeric with hyphens"
            )));
        }
        tags.push(tag.to_owned());
        if tags.len() > MAX_TAGS {
            return Err(too_many.into());
        }
    }
    Ok(tags)
}

impl Registry {
    /// Gives a node a name; empty takes it away.
    pub(super) fn take_name(&mut self, id: NodeId, name: &str, now: Now) -> Result<(), Refused> {
        if name.is_empty() {
            self.drop_name(id);
            return Ok(());
        }
        check_name(name)?;
        match self.name_holder(name, now) {
            Some(holder) if holder == id => return Ok(()),
            Some(_) => return Err(Refused(format!("hostname {name:?} already in use"))),
            None => {}
        }
        if let Some(former) = self.by_name.get(name).copied() {
            self.drop_name(former);
        }
        self.drop_name(id);
        self.by_name.insert(name.to_owned(), id);
        self.update(id, |r| r.hostname = name.to_owned());
        Ok(())
    }

    /// Frees a node's name.
    pub(super) fn drop_name(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if self.by_name.get(&node.record.hostname) == Some(&id) {
            self.by_name.remove(&node.record.hostname);
        }
        self.update(id, |r| r.hostname.clear());
    }

    pub(super) fn set_hostname(&mut self, s: &mut Session, req: Request<'_>, now: Now) -> Answer {
        let name = req.text("hostname");
        if !name.is_empty() {
            check_name(name)?;
        }
        let id = self.authenticate_or_admin(s, req)?;
        self.take_name(id, name, now)?;
        Ok(json!({"type": "set_hostname_ok", "node_id": id, "hostname": name}))
    }

    pub(super) fn set_hidden(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = self.authenticate(s, req)?;
        let hidden = req.flag("hidden");
        self.update(id, |r| r.hidden = hidden);
        Ok(json!({"type": "set_hidden_ok", "node_id": id, "hidden": hidden}))
    }

    pub(super) fn set_visibility(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let id = self.authenticate_or_admin(s, req)?;
        let public = req.flag("public");
        self.update(id, |r| r.public = public);
        let visibility = if public { "public" } else { "private" };
        Ok(json!({"type": "set_visibility_ok", "node_id": id, "visibility": visibility}))
    }

    pub(super) fn set_tags(&mut self, s: &mut Session, req: Request<'_>) -> Answer {
        let tags = clean_tags(&req.texts("tags"), "too many tags (max 10)")?;
        let id = self.authenticate_or_admin(s, req)?;
        let answer = json!({"type": "set_tags_ok", "node_id": id, "tags": tags});
        self.update(id, |r| r.tags = tags);
        Ok(answer)
    }
}
