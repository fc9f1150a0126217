//! Peers with which the session upgrade was had, kept in `pins.json` beside the identity, so that a restart does not
//! let anybody talk us out of it (docs/extensions.md, "Session upgrade").
//!
//! ```json
//! {"version": 1, "pins": [{"node_id": 7, "registry": "9f…", "public_key": "…", "since": 1795217564}]}
//! ```
//!
//! `registry` is the name of the registry the node id belongs to. The engine insists from the moment the upgrade was had;
//! the file follows at once. A pin leaves the file before the engine forgets it.

use crate::command::Command;
use crate::shared::Shared;
use crate::{lock, unix_now};
use pilot_disk::Disk;
use pilot_proto::NodeId;
use pilot_proto::crypto::{base64, unbase64};
use pilot_proto::engine::MAX_PINS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Version of the file's format.
const VERSION: u32 = 1;
/// Distance to the next attempt after a save that failed.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// A peer this node insists on upgraded sessions with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SessionPin {
    pub node_id: NodeId,
    /// Its identity when the upgrade was had last.
    pub public_key: [u8; 32],
    /// When it was had first, Unix seconds.
    pub since_unix: u64,
}

/// Node ids belong to a registry, so pins do, too.
type Key = (String, NodeId);

#[derive(Debug, Default)]
struct State {
    pins: BTreeMap<Key, ([u8; 32], u64)>,
    registry: String,
}

/// The pins of one node. Bounded by [`MAX_PINS`] over all registries.
#[derive(Debug, Default)]
pub(crate) struct SessionPins {
    state: Mutex<State>,
    path: Option<PathBuf>,
    dirty: Notify,
    /// One save at a time, so that an older state never replaces a newer one.
    saving: tokio::sync::Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    #[serde(default)]
    pins: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    node_id: NodeId,
    #[serde(default)]
    registry: String,
    public_key: String,
    #[serde(default)]
    since: u64,
}

impl SessionPins {
    /// What `pins.json` beside the identity holds; without an identity file nothing is kept. The text says why the file was
    /// not used.
    pub(crate) fn load(identity_path: Option<&Path>) -> (SessionPins, Option<String>) {
        let path = identity_path.map(|path| path.with_file_name("pins.json"));
        let read = match path.as_deref().map(crate::peers::read) {
            None | Some(Ok(None)) => Ok(BTreeMap::new()),
            Some(Ok(Some(text))) => parse(&text),
            Some(Err(error)) => Err(error),
        };
        let (pins, warning) = match (read, &path) {
            (Err(error), Some(path)) => {
                let kept = path.with_extension("json.bad");
                let what = match std::fs::rename(path, &kept) {
                    Ok(()) => format!("kept as {}", kept.display()),
                    Err(e) => format!("it could not be moved aside ({e}) and will be replaced"),
                };
                let text = format!(
                    "{}: {error}; this node does not know any more with which peers it had upgraded sessions, {what}",
                    path.display()
                );
                (BTreeMap::new(), Some(text))
            }
            (read, _) => (read.unwrap_or_default(), None),
        };
        let state = Mutex::new(State { pins, registry: String::new() });
        (SessionPins { state, path, ..SessionPins::default() }, warning)
    }

    /// Names the registry whose node ids count from now on; the pins of its nodes.
    fn set_registry(&self, name: &str) -> Vec<SessionPin> {
        name.clone_into(&mut lock(&self.state).registry);
        self.list()
    }

    /// The pins of the registry in use, by node id.
    pub(crate) fn list(&self) -> Vec<SessionPin> {
        let state = lock(&self.state);
        let ours = state.pins.iter().filter(|((registry, _), _)| *registry == state.registry);
        let pin = |((_, node_id), (public_key, since)): (&Key, &([u8; 32], u64))| SessionPin {
            node_id: *node_id,
            public_key: *public_key,
            since_unix: *since,
        };
        ours.map(pin).collect()
    }

    /// The upgrade was had with a node under this identity. Called by the packet path: it must not wait.
    pub(crate) fn had(&self, node: NodeId, key: [u8; 32]) {
        self.add(unix_now(), node, key);
    }

    fn add(&self, now_unix: u64, node: NodeId, key: [u8; 32]) {
        let mut state = lock(&self.state);
        let at = (state.registry.clone(), node);
        if state.pins.len() >= MAX_PINS && !state.pins.contains_key(&at) {
            return;
        }
        let since = state.pins.get(&at).map_or(now_unix, |(_, since)| *since);
        state.pins.insert(at, (key, since));
        self.dirty.notify_one();
    }

    /// Takes a pin out; what it was.
    fn remove(&self, node: NodeId) -> Option<([u8; 32], u64)> {
        let mut state = lock(&self.state);
        let at = (state.registry.clone(), node);
        state.pins.remove(&at)
    }

    fn put_back(&self, node: NodeId, pin: ([u8; 32], u64)) {
        let mut state = lock(&self.state);
        let at = (state.registry.clone(), node);
        state.pins.entry(at).or_insert(pin);
    }

    async fn save(&self, disk: &Disk) -> Result<(), String> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let _one = self.saving.lock().await;
        let text = self.to_json();
        let disk = disk.clone();
        let written = tokio::task::spawn_blocking(move || {
            disk.replace(&path, text.as_bytes()).map_err(|e| e.to_string())
        });
        written.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn to_json(&self) -> String {
        let state = lock(&self.state);
        let entry = |((registry, node), (key, since)): (&Key, &([u8; 32], u64))| Entry {
            node_id: *node,
            registry: registry.clone(),
            public_key: base64(key),
            since: *since,
        };
        let file = File { version: VERSION, pins: state.pins.iter().map(entry).collect() };
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string(&file).unwrap_or_default()
    }
}

fn parse(text: &str) -> Result<BTreeMap<Key, ([u8; 32], u64)>, String> {
    /// Read first, so that a newer file is told from a broken one.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let bad = |error: serde_json::Error| format!("not a pins file: {error}");
    let Head { version } = serde_json::from_str(text).map_err(bad)?;
    if version != VERSION {
        return Err(format!("format version {version} is not known (this version writes {VERSION})"));
    }
    let file: File = serde_json::from_str(text).map_err(bad)?;
    let mut pins = BTreeMap::new();
    for Entry { node_id, registry, public_key, since } in file.pins.into_iter().take(MAX_PINS) {
        let Some(key) = unbase64(&public_key) else {
            return Err(format!("the key of node {node_id} is malformed"));
        };
        pins.insert((registry, node_id), (key, since));
    }
    Ok(pins)
}

/// What the operator reads.
fn warning(node: NodeId) -> String {
    format!(
        "{} the upgraded session this node insists on, and was refused: somebody on the path cuts it off, or the node runs \
         other software now; if you know the latter, run `pilotctl pins clear {node}`",
        warning_start(node)
    )
}

fn warning_start(node: NodeId) -> String {
    format!("node {node} came without")
}

impl Shared {
    /// Tells the engine with whom it must insist. Before it learns its node id, so before any contact.
    pub(crate) fn insist(&self, registry: &str) {
        let pins = self.session_pins.set_registry(registry);
        self.command(Command::Pins(pins.into_iter().map(|pin| (pin.node_id, pin.public_key)).collect()));
    }

    /// A pinned peer's signed key exchange came without the upgrade.
    pub(crate) fn downgrade_refused(&self, node: NodeId) {
        self.warn(warning(node));
    }

    /// Saves pins as they come.
    pub(crate) async fn keep_pins(self: Arc<Self>) {
        loop {
            self.session_pins.dirty.notified().await;
            if let Err(error) = self.session_pins.save(&self.config.disk).await {
                self.warn(format!("pins of upgraded sessions could not be saved: {error}"));
                tokio::time::sleep(SAVE_AGAIN).await;
                self.session_pins.dirty.notify_one();
            }
        }
    }

    /// On the operator's word: no insisting with this peer any more. False: it was not pinned.
    pub(crate) async fn clear_pin(&self, node: NodeId) -> Result<bool, String> {
        let Some(pin) = self.session_pins.remove(node) else { return Ok(false) };
        if let Err(error) = self.session_pins.save(&self.config.disk).await {
            self.session_pins.put_back(node, pin);
            return Err(format!("the pin of node {node} stays: {error}"));
        }
        self.command(Command::ClearPin(node));
        let start = warning_start(node);
        self.state(|s| s.warnings.retain(|warning| !warning.starts_with(&start)));
        tracing::warn!(peer = node, "the operator no longer insists on upgraded sessions with this node");
        Ok(true)
    }

    /// Writes what is still unwritten, when the node stops.
    pub(crate) async fn save_pins(&self) {
        if let Err(error) = self.session_pins.save(&self.config.disk).await {
            self.warn(format!("pins of upgraded sessions could not be saved: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(dir: &Path) -> (SessionPins, Option<String>) {
        let (pins, warning) = SessionPins::load(Some(&dir.join("identity.json")));
        pins.set_registry("r");
        (pins, warning)
    }

    #[tokio::test]
    async fn pins_survive_a_restart_and_belong_to_their_registry() {
        let dir = tempfile::tempdir().unwrap();
        let (before, warning) = pins(dir.path());
        assert_eq!(warning, None);
        before.add(10, 7, [1; 32]);
        before.add(20, 7, [2; 32]);
        before.save(&Disk::new()).await.unwrap();
        let (after, warning) = pins(dir.path());
        let seven = SessionPin { node_id: 7, public_key: [2; 32], since_unix: 10 };
        assert_eq!((warning, after.list()), (None, vec![seven]));
        assert_eq!(after.set_registry("another"), []);
        after.add(30, 7, [3; 32]);
        assert_eq!(after.set_registry("r"), [seven]);
        assert_eq!(after.remove(8), None);
        assert_eq!(after.remove(7), Some(([2; 32], 10)));
        assert_eq!(after.list(), []);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_kept_aside_and_said_so() {
        let key = base64([1; 32]);
        for (text, cause) in [
            ("{".to_owned(), "not a pins file"),
            (
                r#"{"version":2,"pins":[]}"#.to_owned(),
                "format version 2 is not known (this version writes 1)",
            ),
            (
                r#"{"version":1,"pins":[{"node_id":9,"public_key":"AA=="}]}"#.to_owned(),
                "the key of node 9 is malformed",
            ),
            (format!(r#"{{"version":1,"pins":[{{"node_id":-1,"public_key":"{key}"}}]}}"#), "not a pins file"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pins.json");
            std::fs::write(&path, &text).unwrap();
            let (loaded, warning) = pins(dir.path());
            let warning = warning.unwrap();
            assert!(warning.contains(cause) && warning.contains("kept as"), "{warning}");
            assert_eq!(loaded.list(), []);
            assert!(!path.exists());
            assert_eq!(std::fs::read_to_string(dir.path().join("pins.json.bad")).unwrap(), text);
        }
    }

    #[test]
    fn more_pins_than_the_bound_are_not_taken() {
        let pins = SessionPins::default();
        for node in 0..=u32::try_from(MAX_PINS).unwrap() {
            pins.add(1, node, [1; 32]);
        }
        assert_eq!(pins.list().len(), MAX_PINS);
        pins.add(1, 0, [2; 32]);
        assert_eq!(pins.list()[0].public_key, [2; 32], "one that is there can change");
    }
}
