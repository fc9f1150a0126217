//! The last known keys and addresses of peers, kept in `peers.json` beside the identity.
//!
//! Two uses. A peer's Ed25519 key is *pinned* the first time a session proves it: from then on a registry that names
//! another key is not believed ([`Peers::check`]). And after a restart, or while the registry is away, recent peers can
//! be reached without asking anybody ([`Peers::recent`], [`Peers::port`]).
//!
//! The file:
//!
//! ```json
//! {"version": 1, "port": 40001, "registry": "9f…", "registry_addr": "registry.example:9000",
//!  "own": {"registry": "9f…", "node_id": 3, "public_key": "…", "key_generation": 0, "hostname": "beta",
//!          "networks": [], "signed_discover": true},
//!  "peers": [
//!   {"node_id": 7, "registry": "9f…", "public_key": "…", "key_version": 1, "first_seen": 1795217564,
//!    "last_seen": 1795217999, "endpoints": ["192.0.2.7:4000"], "routes": ["192.0.2.7:4000"], "names": ["alpha"],
//!    "record_generation": 0, "record_sequence": 1795217999000000}]}
//! ```
//!
//! `registry` is the `registry_id` the registry gave itself, else its address; node ids mean nothing at another one.
//! A file of a newer version is kept aside and not used. Unknown fields of this version are dropped at the next save.

use crate::lock;
use pilot_disk::Disk;
use pilot_proto::NodeId;
use pilot_proto::crypto;
use pilot_proto::path::{Candidate, CandidateKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Version of the file's format.
const VERSION: u32 = 1;
/// Peers kept; the one not seen for longest gives way.
pub(crate) const MAX_PEERS: usize = 4096;
/// Addresses kept per peer, newest first.
pub(crate) const MAX_ENDPOINTS: usize = 4;
/// Addresses the directory gave, per peer.
const MAX_ROUTES: usize = 8;
/// Names kept per peer, and the longest one (bytes).
const MAX_NAMES: usize = 4;
const MAX_NAME: usize = 255;
/// Networks of this node.
const MAX_NETWORKS: usize = 1024;
/// Largest file read (bytes): a full one has about 1.5 MB.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// What is known about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownPeer {
    /// The Ed25519 key it proved.
    pub(crate) key: [u8; 32],
    /// 1 for the first key seen, one more with each change the operator accepted.
    pub(crate) key_version: u32,
    /// When the first session with it was made, Unix seconds.
    pub(crate) first_seen: u64,
    /// When a session with it was last made or seen alive, Unix seconds.
    pub(crate) last_seen: u64,
    /// Where it was last reached directly, newest first; empty: only through the relay.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Where else the directory said it is.
    pub(crate) routes: Vec<SocketAddr>,
    /// Key generation and sequence of the newest record it signed itself; 0: none.
    pub(crate) generation: u32,
    pub(crate) sequence: u64,
}

impl KnownPeer {
    /// Every address worth a try, where it was last reached first.
    pub(crate) fn ways(&self) -> Vec<Candidate> {
        let reached = self.endpoints.iter().map(|at| Candidate::new(*at, CandidateKind::Learnt));
        let told = self.routes.iter().filter(|at| !self.endpoints.contains(at));
        reached.chain(told.map(|at| Candidate::guessed(*at))).collect()
    }
}

/// Who this node was at a registry, for a start without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    /// What the registry calls itself.
    pub(crate) registry: String,
    pub(crate) node: NodeId,
    /// The Ed25519 key it was registered with.
    pub(crate) key: [u8; 32],
    pub(crate) generation: u32,
    pub(crate) hostname: String,
    pub(crate) networks: Vec<u16>,
    /// Beacons take proofs of this node.
    pub(crate) signed_discover: bool,
}

/// How a key compares to the pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pin {
    /// None is kept for this node.
    Unknown,
    /// The same.
    Same,
    /// Another one is pinned: this.
    Other([u8; 32]),
}

/// Node ids belong to a registry, so records do, too.
type Key = (String, NodeId);

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<Key, KnownPeer>,
    registry: String,
    registry_addr: String,
    port: u16,
    own: Option<Own>,
    /// Names the registry in use resolved, to whom. Kept in the file for known peers.
    names: BTreeMap<String, NodeId>,
}

/// The peers of one node. Bounded by [`MAX_PEERS`] over all registries.
#[derive(Debug, Default)]
pub(crate) struct Peers {
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
    port: u16,
    #[serde(default)]
    registry: String,
    #[serde(default)]
    registry_addr: String,
    #[serde(default)]
    own: Option<OwnEntry>,
    #[serde(default)]
    peers: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct OwnEntry {
    registry: String,
    node_id: NodeId,
    public_key: String,
    #[serde(default)]
    key_generation: u32,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    networks: Vec<u16>,
    #[serde(default)]
    signed_discover: bool,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    node_id: NodeId,
    #[serde(default)]
    registry: String,
    public_key: String,
    key_version: u32,
    first_seen: u64,
    last_seen: u64,
    #[serde(default)]
    endpoints: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(default)]
    record_generation: u32,
    #[serde(default)]
    record_sequence: u64,
}

impl Peers {
    /// What `peers.json` beside the identity holds; without an identity file nothing is kept. The text says why the file was
    /// not used.
    pub(crate) fn load(identity_path: Option<&Path>) -> (Peers, Option<String>) {
        let path = identity_path.map(|path| path.with_file_name("peers.json"));
        let read = match path.as_deref().map(read) {
            None | Some(Ok(None)) => Ok(State::default()),
            Some(Ok(Some(text))) => parse(&text),
            Some(Err(error)) => Err(error),
        };
        let (state, warning) = match (read, &path) {
            (Err(error), Some(path)) => {
                let kept = path.with_extension("json.bad");
                let what = match std::fs::rename(path, &kept) {
                    Ok(()) => format!("kept as {}", kept.display()),
                    Err(e) => format!("it could not be moved aside ({e}) and will be replaced"),
                };
                let text = format!(
                    "{}: {error}; no key or address of a peer is known from before, {what}",
                    path.display()
                );
                (State::default(), Some(text))
            }
            (read, _) => (read.unwrap_or_default(), None),
        };
        (Peers { state: Mutex::new(state), path, ..Peers::default() }, warning)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Names the registry whose numbers count from now on: what it calls itself, and where it is. True: another one than
    /// last time is at the same address.
    pub(crate) fn set_registry(&self, name: &str, addr: &str) -> bool {
        let mut state = self.state();
        let replaced = state.registry_addr == addr && !addr.is_empty() && state.registry != name;
        if state.registry != name || state.registry_addr != addr {
            if state.registry != name {
                state.names.clear();
            }
            name.clone_into(&mut state.registry);
            addr.clone_into(&mut state.registry_addr);
            self.dirty.notify_one();
        }
        replaced
    }

    /// The UDP port of the last run; 0: not known. For the restart, before the socket is bound.
    pub(crate) fn port(&self) -> u16 {
        self.state().port
    }

    /// Remembers the UDP port in use.
    pub(crate) fn set_port(&self, port: u16) {
        if std::mem::replace(&mut self.state().port, port) != port {
            self.dirty.notify_one();
        }
    }

    /// Who this node was at the registry at this address, if that is the one of last time.
    pub(crate) fn own(&self, registry_addr: &str) -> Option<Own> {
        let state = self.state();
        let same = state.registry_addr == registry_addr;
        state.own.clone().filter(|own| same && own.registry == state.registry)
    }

    /// This node is registered.
    pub(crate) fn set_own(&self, own: Own) {
        let own = Some(own);
        let mut state = self.state();
        if state.own != own {
            state.own = own;
            self.dirty.notify_one();
        }
    }

    /// What the registry holds of this node beside its number.
    pub(crate) fn set_settings(&self, hostname: &str, networks: &[u16]) {
        let mut state = self.state();
        let own = state.own.as_mut().filter(|own| own.hostname != hostname || own.networks != networks);
        if let Some(own) = own {
            hostname.clone_into(&mut own.hostname);
            own.networks = networks.to_vec();
            self.dirty.notify_one();
        }
    }

    /// The registry said that this is the node's name.
    pub(crate) fn note_name(&self, node: NodeId, name: &str) {
        let mut state = self.state();
        if state.names.get(name) == Some(&node) || name.len() > MAX_NAME {
            return;
        }
        if state.names.len() >= MAX_PEERS {
            // Those of known peers matter.
            let State { peers, names, registry, .. } = &mut *state;
            names.retain(|_, node| peers.contains_key(&(registry.clone(), *node)));
            if names.len() >= MAX_PEERS {
                names.pop_first();
            }
        }
        state.names.insert(name.to_owned(), node);
        self.dirty.notify_one();
    }

    /// Whose name it was when the registry was asked last.
    pub(crate) fn named(&self, name: &str) -> Option<NodeId> {
        self.state().names.get(name).copied()
    }

    /// The directory said that a node is there.
    pub(crate) fn note_route(&self, node: NodeId, addrs: impl Iterator<Item = SocketAddr>) {
        let routes: Vec<SocketAddr> = addrs.take(MAX_ROUTES).collect();
        let mut state = self.state();
        let key = (state.registry.clone(), node);
        if let Some(peer) = state.peers.get_mut(&key).filter(|peer| peer.routes != routes) {
            peer.routes = routes;
            self.dirty.notify_one();
        }
    }

    /// The record of a node.
    pub(crate) fn get(&self, node: NodeId) -> Option<KnownPeer> {
        let state = self.state();
        state.peers.get(&(state.registry.clone(), node)).cloned()
    }

    /// Peers of the registry in use, else the last one, seen since then (Unix seconds), the latest first.
    pub(crate) fn recent(&self, since: u64) -> Vec<(NodeId, KnownPeer)> {
        let state = self.state();
        let ours = state.peers.iter().filter(|((registry, _), _)| *registry == state.registry);
        let recent = ours.filter(|(_, peer)| peer.last_seen >= since);
        let mut recent: Vec<_> = recent.map(|((_, node), peer)| (*node, peer.clone())).collect();
        recent.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.last_seen));
        recent
    }

    /// Compares a key with the pinned one.
    pub(crate) fn check(&self, node: NodeId, key: &[u8; 32]) -> Pin {
        match self.get(node) {
            None => Pin::Unknown,
            Some(known) if crypto::constant_time_eq(&known.key, key) => Pin::Same,
            Some(known) => Pin::Other(known.key),
        }
    }

    /// A session proved this key: pins it, or only notes that the peer lives. Another pinned key stays.
    pub(crate) fn proven(&self, now_unix: u64, node: NodeId, key: &[u8; 32]) -> Pin {
        let pin = self.check(node, key);
        match pin {
            Pin::Unknown => self.put(now_unix, node, *key, 1),
            Pin::Same => self.seen(now_unix, node, None),
            Pin::Other(_) => {}
        }
        pin
    }

    /// The operator accepts this key for a node.
    pub(crate) fn accept(&self, now_unix: u64, node: NodeId, key: &[u8; 32]) {
        if let Pin::Same = self.check(node, key) {
            return;
        }
        let version = self.get(node).map_or(1, |known| known.key_version.saturating_add(1));
        self.put(now_unix, node, *key, version);
    }

    /// A live session with a node, and the direct address in use.
    pub(crate) fn seen(&self, now_unix: u64, node: NodeId, endpoint: Option<SocketAddr>) {
        let mut state = self.state();
        let key = (state.registry.clone(), node);
        let Some(peer) = state.peers.get_mut(&key) else { return };
        peer.last_seen = peer.last_seen.max(now_unix);
        if let Some(endpoint) = endpoint.filter(|at| peer.endpoints.first() != Some(at)) {
            peer.endpoints.retain(|known| *known != endpoint);
            peer.endpoints.insert(0, endpoint);
            peer.endpoints.truncate(MAX_ENDPOINTS);
        }
    }

    /// What was noted by [`Peers::seen`] is worth saving.
    pub(crate) fn touch(&self) {
        self.dirty.notify_one();
    }

    /// The node signed a record of this sequence with its pinned key.
    pub(crate) fn note_record(&self, node: NodeId, key: &[u8; 32], generation: u32, sequence: u64) {
        let mut state = self.state();
        let at = (state.registry.clone(), node);
        let peer = state.peers.get_mut(&at).filter(|peer| peer.key == *key && peer.sequence < sequence);
        if let Some(peer) = peer {
            (peer.generation, peer.sequence) = (generation, sequence);
            self.dirty.notify_one();
        }
    }

    fn put(&self, now_unix: u64, node: NodeId, key: [u8; 32], key_version: u32) {
        let mut state = self.state();
        let at = (state.registry.clone(), node);
        if state.peers.len() >= MAX_PEERS
            && !state.peers.contains_key(&at)
            && let Some(oldest) =
                state.peers.iter().min_by_key(|(_, p)| p.last_seen).map(|(at, _)| at.clone())
        {
            state.peers.remove(&oldest);
        }
        let first_seen = state.peers.get(&at).map_or(now_unix, |known| known.first_seen);
        let peer = KnownPeer {
            key,
            key_version,
            first_seen,
            last_seen: now_unix,
            endpoints: Vec::new(),
            routes: Vec::new(),
            generation: 0,
            sequence: 0,
        };
        state.peers.insert(at, peer);
        self.dirty.notify_one();
    }

    /// Resolves when there is something to save.
    pub(crate) async fn changed(&self) {
        self.dirty.notified().await;
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file and the cause.
    pub(crate) async fn save(&self, disk: &Disk) -> Result<(), String> {
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
        let state = self.state();
        let entry = |((registry, node), peer): (&Key, &KnownPeer)| Entry {
            node_id: *node,
            registry: registry.clone(),
            public_key: crypto::base64(peer.key),
            key_version: peer.key_version,
            first_seen: peer.first_seen,
            last_seen: peer.last_seen,
            endpoints: peer.endpoints.clone(),
            routes: peer.routes.clone(),
            names: state
                .names
                .iter()
                .filter(|(_, named)| **named == *node && *registry == state.registry)
                .map(|(name, _)| name.clone())
                .take(MAX_NAMES)
                .collect(),
            record_generation: peer.generation,
            record_sequence: peer.sequence,
        };
        let peers = state.peers.iter().map(entry).collect();
        let (registry, registry_addr) = (state.registry.clone(), state.registry_addr.clone());
        let own = state.own.as_ref().map(|own| OwnEntry {
            registry: own.registry.clone(),
            node_id: own.node,
            public_key: crypto::base64(own.key),
            key_generation: own.generation,
            hostname: own.hostname.clone(),
            networks: own.networks.clone(),
            signed_discover: own.signed_discover,
        });
        let file = File { version: VERSION, port: state.port, registry, registry_addr, own, peers };
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string(&file).unwrap_or_default()
    }
}

/// The file's text; `None` if there is no file.
pub(crate) fn read(path: &Path) -> Result<Option<String>, String> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(file) => file,
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(Some(text))
}

/// The text that a file with this text is saved as again; `None`: it is refused.
#[cfg(feature = "fuzzing")]
pub(crate) fn resaved(text: &str) -> Option<String> {
    let state = Mutex::new(parse(text).ok()?);
    Some(Peers { state, ..Peers::default() }.to_json())
}

fn parse(text: &str) -> Result<State, String> {
    /// Read first, so that a newer file is told from a broken one.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let bad = |error: serde_json::Error| format!("not a peers file: {error}");
    let Head { version } = serde_json::from_str(text).map_err(bad)?;
    if version != VERSION {
        return Err(format!("format version {version} is not known (this version writes {VERSION})"));
    }
    let file: File = serde_json::from_str(text).map_err(bad)?;
    let File { port, registry, registry_addr, own, peers, .. } = file;
    let mut state = State { registry, registry_addr, port, ..State::default() };
    if let Some(own) = own {
        let key = crypto::unbase64(&own.public_key).ok_or("this node's own key is malformed")?;
        let OwnEntry {
            registry,
            node_id: node,
            key_generation: generation,
            hostname,
            mut networks,
            signed_discover,
            ..
        } = own;
        networks.truncate(MAX_NETWORKS);
        state.own = Some(Own { registry, node, key, generation, hostname, networks, signed_discover });
    }
    for mut entry in peers.into_iter().take(MAX_PEERS) {
        let Some(key) = crypto::unbase64(&entry.public_key) else {
            return Err(format!("the key of node {} is malformed", entry.node_id));
        };
        entry.endpoints.truncate(MAX_ENDPOINTS);
        entry.routes.truncate(MAX_ROUTES);
        let Entry { node_id, registry, key_version, first_seen, last_seen, endpoints, routes, .. } = entry;
        if registry == state.registry {
            let names = entry.names.into_iter().filter(|name| name.len() <= MAX_NAME).take(MAX_NAMES);
            state.names.extend(names.map(|name| (name, node_id)));
        }
        let (generation, sequence) = (entry.record_generation, entry.record_sequence);
        let peer =
            KnownPeer { key, key_version, first_seen, last_seen, endpoints, routes, generation, sequence };
        state.peers.insert((registry, node_id), peer);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 32] = [1; 32];
    const B: [u8; 32] = [2; 32];

    fn peers(dir: &Path) -> (Peers, Option<String>) {
        let (peers, warning) = Peers::load(Some(&dir.join("identity.json")));
        peers.set_registry("r", "r:9000");
        (peers, warning)
    }

    #[test]
    fn the_first_proven_key_stays_until_the_operator_accepts_another() {
        let peers = Peers::default();
        assert_eq!(peers.proven(10, 7, &A), Pin::Unknown);
        assert_eq!(peers.proven(20, 7, &A), Pin::Same);
        assert_eq!(peers.proven(30, 7, &B), Pin::Other(A));
        let known = peers.get(7).unwrap();
        assert_eq!((known.key, known.key_version, known.first_seen, known.last_seen), (A, 1, 10, 20));
        peers.accept(40, 7, &B);
        assert_eq!(peers.check(7, &B), Pin::Same);
        let known = peers.get(7).unwrap();
        assert_eq!((known.key_version, known.first_seen, known.last_seen), (2, 10, 40));
    }

    #[tokio::test]
    async fn keys_addresses_and_the_port_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (before, warning) = peers(dir.path());
        assert_eq!(warning, None);
        before.set_port(4000);
        before.proven(10, 7, &A);
        before.proven(11, 8, &B);
        before.seen(20, 7, Some("192.0.2.1:1".parse().unwrap()));
        for port in 2..=6 {
            before.seen(20, 7, Some(SocketAddr::new([192, 0, 2, 1].into(), port)));
        }
        before.save(&Disk::new()).await.unwrap();
        let (after, warning) = peers(dir.path());
        assert_eq!((warning, after.port()), (None, 4000));
        assert_eq!(after.get(7), before.get(7));
        let ports: Vec<u16> = after.get(7).unwrap().endpoints.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [6, 5, 4, 3]);
        let recent: Vec<NodeId> = after.recent(11).into_iter().map(|(node, _)| node).collect();
        assert_eq!(recent, [7, 8], "the latest first");
        assert_eq!(after.recent(12).len(), 1);
    }

    #[test]
    fn a_node_id_of_another_registry_is_another_node() {
        let peers = Peers::default();
        assert!(!peers.set_registry("one", "a:1"));
        peers.proven(10, 7, &A);
        assert!(peers.set_registry("two", "a:1"), "another one at the same address");
        assert_eq!(peers.check(7, &B), Pin::Unknown);
        assert_eq!(peers.recent(0), []);
        assert!(!peers.set_registry("one", "b:1"));
        assert_eq!(peers.check(7, &B), Pin::Other(A));
    }

    #[test]
    fn the_4097th_peer_replaces_the_one_not_seen_for_longest() {
        let peers = Peers::default();
        for node in 0..=u32::try_from(MAX_PEERS).unwrap() {
            peers.proven(u64::from(node) + 10, node, &A);
        }
        assert_eq!(peers.recent(0).len(), MAX_PEERS);
        assert_eq!(peers.get(0), None);
        assert!(peers.get(1).is_some());
    }

    #[test]
    fn a_broken_or_newer_file_is_kept_aside_with_the_cause() {
        for (text, cause) in [
            ("{\"version\": 1, \"peers\": [", "not a peers file"),
            ("{\"version\": 2, \"peers\": 5}", "format version 2 is not known"),
            (
                r#"{"version":1,"peers":[{"node_id":7,"public_key":"x","key_version":1,"first_seen":1,"last_seen":1}]}"#,
                "the key of node 7 is malformed",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("peers.json");
            std::fs::write(&path, text).unwrap();
            let (peers, warning) = peers(dir.path());
            let warning = warning.unwrap();
            assert!(warning.contains(cause), "{warning}");
            assert_eq!(peers.recent(0), []);
            assert_eq!(std::fs::read_to_string(dir.path().join("peers.json.bad")).unwrap(), text);
            assert!(!path.exists());
        }
    }
}
