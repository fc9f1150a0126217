//! What the registry knows about others: keys, routes, names. Bounded caches; equal questions are asked once.

use crate::command::Command;
use crate::lock;
use crate::offline::silent;
use crate::registry::RegistryError;
use crate::shared::Shared;
use pilot_proto::NodeId;
use pilot_proto::engine::Route;
use pilot_proto::registry::challenge;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Entries of each cache.
const MAX_ENTRIES: usize = 4096;
/// How long a route is good.
const ROUTE_FRESH: Duration = Duration::from_secs(60);
/// How long a route serves when the registry cannot be asked.
const ROUTE_FALLBACK: Duration = Duration::from_secs(3600);
/// How long a name is good (spec 07 section 12).
const NAME_FRESH: Duration = Duration::from_secs(60);
/// How long the registry's word on trust admits a node, and how long it is not asked again.
const ADMISSION: Duration = Duration::from_secs(60);
/// Least time between two questions about the same knocking node.
const KNOCK_PAUSE: Duration = Duration::from_secs(2);

/// A map whose entries give way by age when it is full.
#[derive(Debug)]
struct Cache<K, V>(HashMap<K, (Instant, V)>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    fn get(&self, key: &K, age: Duration) -> Option<V> {
        self.0.get(key).filter(|(at, _)| at.elapsed() < age).map(|(_, value)| value.clone())
    }

    fn put(&mut self, key: K, value: V, longest: Duration) {
        if self.0.len() >= MAX_ENTRIES && !self.0.contains_key(&key) {
            self.0.retain(|_, (at, _)| at.elapsed() < longest);
            if self.0.len() >= MAX_ENTRIES
                && let Some(oldest) = self.0.iter().min_by_key(|(_, (at, _))| *at).map(|(k, _)| k.clone())
            {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(key, (Instant::now(), value));
    }
}

type Answer = Result<Value, RegistryError>;
type InFlight = Mutex<HashMap<(&'static str, NodeId), Arc<OnceCell<Answer>>>>;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    routes: Mutex<Cache<NodeId, Route>>,
    names: Mutex<Cache<String, Value>>,
    knocks: Mutex<Cache<NodeId, bool>>,
    asking: InFlight,
}

impl Directory {
    /// Forgets the way to a node.
    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.routes).0.remove(&node);
        lock(&self.knocks).0.remove(&node);
    }

    /// Forgets which of their addresses suit us.
    pub(crate) fn forget_routes(&self) {
        lock(&self.routes).0.clear();
    }

    pub(crate) fn forget_name(&self, name: &str) {
        lock(&self.names).0.remove(name);
    }
}

impl Shared {
    /// Asks once for all who want the same at the same time.
    async fn ask_once(&self, kind: &'static str, node: NodeId, request: impl FnOnce() -> Value) -> Answer {
        let cell = {
            let mut asking = lock(&self.directory.asking);
            if asking.len() >= MAX_ENTRIES {
                // Left behind by askers that gave up.
                asking.retain(|_, cell| Arc::strong_count(cell) > 1);
            }
            asking.entry((kind, node)).or_default().clone()
        };
        let answer = cell.get_or_init(|| self.registry.request(request())).await.clone();
        let mut asking = lock(&self.directory.asking);
        if asking.get(&(kind, node)).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            asking.remove(&(kind, node));
        }
        answer
    }

    /// The registry's record of a node.
    pub(crate) async fn lookup(&self, node: NodeId) -> Answer {
        let before = self.known_record(node);
        let answer = self.ask_once("lookup", node, || self.lookup_request(node)).await?;
        let answer = self.judge_record(node, before, answer);
        // Whatever it was asked for: a key that contradicts the pinned one is announced.
        self.judge_key(node, &answer);
        answer
    }

    /// A `lookup`. References send the bare id; a registry that keeps private records from strangers needs to know
    /// who asks (spec 05 section 4.4). The same goes for names and trust below.
    pub(crate) fn lookup_request(&self, node: NodeId) -> Value {
        let (own, identity) = self.state(|s| (s.node, s.identity.clone()));
        json!({
            "type": "lookup",
            "node_id": node,
            "requester_id": own,
            "signature": identity.sign_text(&challenge::pair("lookup", own, node)),
        })
    }

    /// Answers the engine's question for a route.
    pub(crate) async fn answer_route(&self, node: NodeId) {
        let route = self.route(node).await;
        self.command(Command::Route(node, route));
    }

    /// Asks anew where a node is and lets the engine try the addresses; sessions and streams are kept.
    pub(crate) async fn renew_route(&self, node: NodeId) -> Result<(), String> {
        self.directory.forget(node);
        let route = self.route(node).await?;
        self.command(Command::Route(node, Ok(route)));
        Ok(())
    }

    async fn route(&self, node: NodeId) -> Result<Route, String> {
        if let Some(route) = lock(&self.directory.routes).get(&node, ROUTE_FRESH) {
            return Ok(route);
        }
        if self.registry_away()
            && let Some(route) = self.last_route(node)
        {
            return Ok(route);
        }
        let before = self.known_record(node);
        let answer = self
            .ask_once("resolve", node, || {
                let (requester, identity) = self.state(|s| (s.node, s.identity.clone()));
                json!({
                    "type": "resolve",
                    "node_id": node,
                    "requester_id": requester,
                    "signature": identity.sign_text(&challenge::pair("resolve", requester, node)),
                })
            })
            .await
            .and_then(|answer| self.judge_record(node, before, answer));
        let error = match answer {
            Ok(answer) => match self.read_route(node, &answer).await {
                Ok(route) => {
                    lock(&self.directory.routes).put(node, route.clone(), ROUTE_FALLBACK);
                    // In this order: the node may become a known one at the same time.
                    self.remember_route(node);
                    return Ok(route);
                }
                Err(error) => return Err(error),
            },
            Err(error) => error,
        };
        // A refusal is an answer; only when there was none is the last one better than nothing.
        if silent(&error)
            && let Some(route) = self.last_route(node)
        {
            return Ok(route);
        }
        Err(error.to_string())
    }

    /// Keeps what the registry said of a node's place, now that the node is one we know.
    pub(crate) fn remember_route(&self, node: NodeId) {
        if let Some(route) = lock(&self.directory.routes).get(&node, ROUTE_FALLBACK) {
            self.peers.note_route(node, route.direct.iter().map(|c| c.addr));
        }
    }

    /// The way to a node as the registry last said, else as this node itself last knew.
    fn last_route(&self, node: NodeId) -> Option<Route> {
        let told = lock(&self.directory.routes).get(&node, ROUTE_FALLBACK);
        told.or_else(|| {
            let known = self.peers.get(node)?;
            let direct = if self.config.relay_only { Vec::new() } else { known.ways() };
            Some(Route { direct, relay_only: self.config.relay_only })
        })
    }

    /// The registry's record of a name (`resolve_hostname_ok`).
    pub(crate) async fn name(&self, hostname: &str) -> Answer {
        if let Some(answer) = lock(&self.directory.names).get(&hostname.to_owned(), NAME_FRESH) {
            return Ok(answer);
        }
        if self.registry_away()
            && let Some(answer) = self.remembered_name(hostname)
        {
            return Ok(answer);
        }
        let (own, identity) = self.state(|s| (s.node, s.identity.clone()));
        let request = json!({
            "type": "resolve_hostname",
            "hostname": hostname,
            "requester_id": own,
            "signature": identity.sign_text(&challenge::own("resolve_hostname", own)),
        });
        let answer = match self.registry.request(request).await {
            Err(error) if silent(&error) => return self.remembered_name(hostname).ok_or(error),
            answer => answer?,
        };
        if let Some(node) = answer["node_id"].as_u64().and_then(|n| NodeId::try_from(n).ok()) {
            self.peers.note_name(node, hostname);
        }
        if answer["node_id"].as_u64() != Some(u64::from(own)) {
            lock(&self.directory.names).put(hostname.to_owned(), answer.clone(), NAME_FRESH);
        }
        Ok(answer)
    }

    /// An untrusted node knocks: lets it in if the registry vouches for it.
    pub(crate) async fn answer_knock(&self, node: NodeId) {
        {
            let mut knocks = lock(&self.directory.knocks);
            if knocks.get(&node, KNOCK_PAUSE).is_some() {
                return;
            }
            knocks.put(node, false, KNOCK_PAUSE);
        }
        if self.registry_trusts(node).await == Ok(true) {
            self.command(Command::Admit(node, Instant::now() + ADMISSION));
        }
    }

    /// Whether the registry knows of trust between this node and another.
    pub(crate) async fn registry_trusts(&self, node: NodeId) -> Result<bool, RegistryError> {
        let (own, identity) = self.state(|s| (s.node, s.identity.clone()));
        let request = json!({
            "type": "check_trust",
            "node_id": own,
            "peer_id": node,
            "requester_id": own,
            "signature": identity.sign_text(&challenge::pair("check_trust", own, node)),
        });
        Ok(self.registry.request(request).await?["trusted"] == true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_loses_its_oldest_entry() {
        let mut cache = Cache::default();
        for i in 0..=MAX_ENTRIES {
            cache.put(i, i, ROUTE_FALLBACK);
        }
        assert_eq!(cache.0.len(), MAX_ENTRIES);
        assert_eq!(cache.get(&0, ROUTE_FALLBACK), None);
        assert_eq!(cache.get(&MAX_ENTRIES, ROUTE_FALLBACK), Some(MAX_ENTRIES));
        assert_eq!(cache.get(&1, Duration::ZERO), None);
    }
}
