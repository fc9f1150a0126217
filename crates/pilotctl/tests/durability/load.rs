//! One client's load on a registry, and what it may rely on. Every change states which facts it alters and how. A change
//! that was answered must be there for ever; of one that was not answered, all or nothing.

use crate::Random;
use crate::client::{Client, Node};
use pilot_proto::crypto::Identity;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// Nodes of one client that do more than be registered.
const NODES: usize = 16;
/// Of the other nodes, those looked up at random in each round, beside the newest.
const SAMPLE: usize = 50;
/// Networks of one client.
const NETWORKS: usize = 4;
pub const ADMIN: &str = "admin-token-of-the-test";

/// Something a registry can be asked for. Nodes and networks are named by their ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Key(u32),
    Hostname(u32),
    Tags(u32),
    Public(u32),
    Networks(u32),
    Trust(u32, u32),
    /// Requests that wait: sender and words.
    Requests(u32),
    /// Answers that wait: sender and whether accepted.
    Responses(u32),
    NetworkName(u16),
}

type Changes = Vec<(Fact, Value)>;

/// A client's model of what it did.
#[derive(Debug)]
pub struct Load {
    name: usize,
    random: Random,
    count: usize,
    nodes: Vec<Node>,
    facts: BTreeMap<Fact, Value>,
    /// Nodes that are registered and nothing else: id and key. The first ones were looked up before.
    others: Vec<(u32, String)>,
    looked_up: usize,
    /// The change whose answer did not come.
    doubt: Changes,
    /// The key of a registration or rotation whose answer did not come.
    fresh: Option<Arc<Identity>>,
    /// A registration whose answer did not come.
    registering: bool,
    creating: Option<String>,
    /// Changes acknowledged, by kind.
    pub acknowledged: BTreeMap<&'static str, usize>,
    /// Changes in doubt that turned out to be (lost, stored).
    pub doubts: (usize, usize),
}

enum Did {
    Acknowledged(Value),
    /// Refused for being too fast: nothing happened.
    NotNow,
}

impl Load {
    pub fn new(name: usize, random: Random) -> Load {
        Load {
            name,
            random,
            count: 0,
            nodes: Vec::new(),
            facts: BTreeMap::new(),
            others: Vec::new(),
            looked_up: 0,
            doubt: Changes::new(),
            fresh: None,
            registering: false,
            creating: None,
            acknowledged: BTreeMap::new(),
            doubts: (0, 0),
        }
    }

    /// Changes things until the connection breaks.
    pub fn run(&mut self, addr: SocketAddr) {
        let Ok(mut client) = Client::connect(addr) else { return };
        while self.step(&mut client).is_ok() {}
    }

    fn identity(&mut self) -> Arc<Identity> {
        let mut seed = [0; 32];
        seed.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.random.next_u64().to_be_bytes()));
        Arc::new(Identity::from_seed(seed).expect("any seed makes a key"))
    }

    fn get(&self, fact: &Fact) -> Value {
        self.facts.get(fact).cloned().unwrap_or(Value::Null)
    }

    /// Makes one change. The facts are as `changes` says when it is answered, and in doubt until then.
    fn change(
        &mut self,
        client: &mut Client,
        kind: &'static str,
        request: &Value,
        changes: Changes,
    ) -> io::Result<Did> {
        self.doubt = changes;
        let answer = client.ask(request)?;
        let changes = std::mem::take(&mut self.doubt);
        match answer["error"].as_str() {
            None => {
                self.facts.extend(changes);
                *self.acknowledged.entry(kind).or_default() += 1;
                Ok(Did::Acknowledged(answer))
            }
            Some(text) if text.contains("rate limited") || text.contains("too many") => Ok(Did::NotNow),
            Some(text) => panic!("{request} was refused: {text}"),
        }
    }

    fn two(&mut self) -> (Node, Node) {
        let a = self.random.below(self.nodes.len());
        let b = (a + 1 + self.random.below(self.nodes.len() - 1)) % self.nodes.len();
        (self.nodes[a].clone(), self.nodes[b].clone())
    }

    fn step(&mut self, client: &mut Client) -> io::Result<()> {
        self.count += 1;
        if self.nodes.len() < 2 || self.random.below(8) == 0 {
            return self.register(client);
        }
        let (a, b) = self.two();
        let unique = format!("t{}-{}", self.name, self.count);
        let waiting = |load: &Load, to: u32, from: u32| {
            let list = load.get(&Fact::Requests(to));
            list.as_array().is_some_and(|list| list.iter().any(|entry| entry[0] == from))
        };
        match self.random.below(10) {
            0 => {
                let request = a.own("set_hostname", json!({"hostname": unique}));
                self.change(client, "names", &request, vec![(Fact::Hostname(a.id), json!(unique))])?;
            }
            1 => {
                let tags = json!([unique, "b"]);
                let request = a.own("set_tags", json!({"tags": tags}));
                self.change(client, "tags", &request, vec![(Fact::Tags(a.id), tags)])?;
            }
            2 => {
                let public = self.get(&Fact::Public(a.id)) != true;
                let request = a.own("set_visibility", json!({"public": public}));
                self.change(client, "visibilities", &request, vec![(Fact::Public(a.id), json!(public))])?;
            }
            3 => self.rotate(client, &a)?,
            4 => self.network(client, &a)?,
            // Trust by two reports, or its end.
            5 | 6 => {
                let pair = (a.id.min(b.id), a.id.max(b.id));
                let fact = Fact::Trust(pair.0, pair.1);
                if self.get(&fact) == true {
                    let request = a.pair("revoke_trust", b.id);
                    self.change(client, "revocations", &request, vec![(fact, json!(false))])?;
                } else {
                    self.change(client, "reports", &a.pair("report_trust", b.id), Changes::new())?;
                    self.change(
                        client,
                        "trust pairs",
                        &b.pair("report_trust", a.id),
                        vec![(fact, json!(true))],
                    )?;
                }
            }
            // Trust by request and answer.
            7 if !waiting(self, b.id, a.id) => {
                let fact = Fact::Requests(b.id);
                let mut list = self.get(&fact).as_array().cloned().unwrap_or_default();
                list.push(json!([a.id, unique]));
                let request = a.ask_trust(b.id, &unique);
                self.change(client, "requests", &request, vec![(fact, json!(list))])?;
            }
            8 if waiting(self, b.id, a.id) => {
                let accept = self.random.below(4) > 0;
                let mut requests = self.get(&Fact::Requests(b.id)).as_array().cloned().unwrap_or_default();
                requests.retain(|entry| entry[0] != a.id);
                let fact = Fact::Responses(a.id);
                let mut responses = self.get(&fact).as_array().cloned().unwrap_or_default();
                responses.retain(|entry| entry[0] != b.id);
                responses.push(json!([b.id, accept]));
                let mut changes = vec![(Fact::Requests(b.id), json!(requests)), (fact, json!(responses))];
                if accept {
                    changes.push((Fact::Trust(a.id.min(b.id), a.id.max(b.id)), json!(true)));
                }
                self.change(client, "answers", &b.respond(a.id, accept), changes)?;
            }
            9 => {
                let kept = client.ask(&a.own("poll_handshakes", json!({"keep": true})))?;
                if let Some(up_to) = kept["up_to"].as_u64().filter(|up_to| *up_to > 0) {
                    let none = vec![(Fact::Requests(a.id), json!([])), (Fact::Responses(a.id), json!([]))];
                    self.change(client, "deliveries", &a.acknowledge(up_to), none)?;
                }
            }
            _ => {
                client.ask(&a.own("heartbeat", json!({})))?;
            }
        }
        Ok(())
    }

    fn register(&mut self, client: &mut Client) -> io::Result<()> {
        let identity = self.identity();
        (self.fresh, self.registering) = (Some(identity.clone()), true);
        let done = self.change(client, "registrations", &Node::register(&identity), Changes::new())?;
        (self.fresh, self.registering) = (None, false);
        if let Did::Acknowledged(answer) = done {
            self.registered(identity, &answer);
        }
        Ok(())
    }

    fn registered(&mut self, identity: Arc<Identity>, answer: &Value) {
        let id = answer["node_id"].as_u64().expect("an id") as u32;
        if self.nodes.len() == NODES {
            self.others.push((id, identity.public_key_base64()));
            return;
        }
        self.facts.insert(Fact::Key(id), json!(identity.public_key_base64()));
        self.facts.insert(Fact::Public(id), json!(false));
        self.nodes.push(Node { identity, id });
    }

    fn rotate(&mut self, client: &mut Client, node: &Node) -> io::Result<()> {
        let fresh = self.identity();
        self.fresh = Some(fresh.clone());
        let key = fresh.public_key_base64();
        let changes = vec![(Fact::Key(node.id), json!(key))];
        let done = self.change(client, "rotations", &node.rotate(&key), changes)?;
        self.fresh = None;
        if let Did::Acknowledged(_) = done {
            self.nodes.iter_mut().find(|n| n.id == node.id).expect("one of ours").identity = fresh;
        }
        Ok(())
    }

    fn network(&mut self, client: &mut Client, node: &Node) -> io::Result<()> {
        let known: Vec<u16> = self
            .facts
            .keys()
            .filter_map(|fact| if let Fact::NetworkName(id) = fact { Some(*id) } else { None })
            .collect();
        if known.len() < NETWORKS {
            let name = format!("net-{}-{}", self.name, self.count);
            let request = json!({
                "type": "create_network", "node_id": node.id, "name": name, "join_rule": "open",
                "admin_token": ADMIN,
            });
            self.creating = Some(name.clone());
            let done = self.change(client, "networks", &request, Changes::new())?;
            self.creating = None;
            if let Did::Acknowledged(answer) = done {
                let id = answer["network_id"].as_u64().expect("an id") as u16;
                self.facts.insert(Fact::NetworkName(id), json!(name));
                let mut list = self.get(&Fact::Networks(node.id)).as_array().cloned().unwrap_or_default();
                list.push(json!(id));
                self.facts.insert(Fact::Networks(node.id), json!(list));
            }
            return Ok(());
        }
        let network = known[self.random.below(known.len())];
        let fact = Fact::Networks(node.id);
        let mut list = self.get(&fact).as_array().cloned().unwrap_or_default();
        let (request, kind) = if list.contains(&json!(network)) {
            list.retain(|id| *id != network);
            (node.leave(network), "leavings")
        } else {
            list.push(json!(network));
            (node.join(network), "joinings")
        };
        self.change(client, kind, &request, vec![(fact, json!(list))]).map(|_| ())
    }

    /// Asks the registry for everything it acknowledged. `ids` collects all node ids, which must be unique.
    pub fn verify(&mut self, addr: SocketAddr, ids: &mut BTreeSet<u32>) {
        let mut client = Client::connect(addr).expect("the registry answers");
        let ask = |client: &mut Client, request: &Value| {
            let answer = client.ask(request).expect("the registry answers");
            assert!(answer["error"].is_null(), "{request}: {answer}");
            answer
        };
        if self.registering {
            // Of no concern whether it was stored; the same key gets an id, and no other node has it.
            self.registering = false;
            let identity = self.fresh.take().expect("a registration has a key");
            let answer = ask(&mut client, &Node::register(&identity));
            self.registered(identity, &answer);
        }
        let listed = ask(&mut client, &json!({"type": "list_networks", "admin_token": ADMIN}));
        let listed: BTreeMap<u64, &str> = listed["networks"]
            .as_array()
            .expect("networks")
            .iter()
            .filter_map(|network| Some((network["id"].as_u64()?, network["name"].as_str()?)))
            .collect();
        if let Some(name) = self.creating.take()
            && let Some((id, _)) = listed.iter().find(|(_, found)| **found == name)
        {
            self.facts.insert(Fact::NetworkName(*id as u16), json!(name));
        }
        let mut seen = BTreeMap::new();
        for node in &mut self.nodes {
            assert!(ids.insert(node.id), "two nodes have the id {}", node.id);
            let key = ask(&mut client, &json!({"type": "lookup", "node_id": node.id}))["public_key"].clone();
            if let Some(fresh) = &self.fresh
                && key == json!(fresh.public_key_base64())
            {
                node.identity = fresh.clone();
            }
            seen.insert(Fact::Key(node.id), key);
        }
        self.fresh = None;
        for node in &self.nodes {
            // Proves the connection, and that the key is in force.
            ask(&mut client, &node.own("heartbeat", json!({})));
            let record = ask(&mut client, &json!({"type": "lookup", "node_id": node.id}));
            let inbox = ask(&mut client, &node.own("poll_handshakes", json!({"keep": true})));
            let entries = |list: &str, value: &str| {
                let list = inbox[list].as_array().expect("a list").iter();
                json!(list.map(|entry| json!([entry["from_node_id"], entry[value]])).collect::<Vec<_>>())
            };
            let mut networks = record["networks"].as_array().cloned().unwrap_or_default();
            networks.retain(|id| *id != 0);
            seen.insert(Fact::Hostname(node.id), record["hostname"].clone());
            seen.insert(Fact::Tags(node.id), record["tags"].clone());
            seen.insert(Fact::Public(node.id), record["public"].clone());
            seen.insert(Fact::Networks(node.id), json!(networks));
            seen.insert(Fact::Requests(node.id), entries("requests", "justification"));
            seen.insert(Fact::Responses(node.id), entries("responses", "accept"));
        }
        let mut pairs = BTreeSet::new();
        for fact in self.facts.keys().chain(self.doubt.iter().map(|(fact, _)| fact)) {
            match fact {
                Fact::Trust(a, b) => {
                    pairs.insert((*a, *b));
                }
                Fact::NetworkName(id) => {
                    seen.insert(fact.clone(), json!(listed.get(&u64::from(*id))));
                }
                _ => {}
            }
        }
        // Members of one network trust each other as well, so each pair is asked for outside of networks only.
        for (a, b) in pairs {
            let networks = |id| seen[&Fact::Networks(id)].as_array().cloned().unwrap_or_default();
            let fact = Fact::Trust(a, b);
            if networks(a).iter().any(|id| networks(b).contains(id)) {
                if self.doubt.iter().any(|(doubted, _)| *doubted == fact) {
                    // It cannot be told, so it is decided anew.
                    let node = self.nodes.iter().find(|node| node.id == a).expect("one of ours");
                    client.ask(&node.pair("revoke_trust", b)).expect("the registry answers");
                    self.doubt.retain(|(doubted, _)| *doubted != fact);
                    self.facts.insert(fact.clone(), json!(false));
                }
                let kept = self.facts.get(&fact).cloned().unwrap_or(Value::Null);
                seen.insert(fact, kept);
                continue;
            }
            let question = json!({"type": "check_trust", "node_id": a, "peer_id": b});
            seen.insert(fact, ask(&mut client, &question)["trusted"].clone());
        }
        self.compare(seen);
        self.verify_others(&mut client, ids, SAMPLE);
    }

    /// Looks up the nodes that came since the last time and `sample` others.
    fn verify_others(&mut self, client: &mut Client, ids: &mut BTreeSet<u32>, sample: usize) {
        for (id, _) in &self.others {
            assert!(ids.insert(*id), "two nodes have the id {id}");
        }
        let again: Vec<usize> = match self.looked_up {
            0 => Vec::new(),
            before => (0..sample).map(|_| self.random.below(before)).collect(),
        };
        for at in again.into_iter().chain(self.looked_up..self.others.len()) {
            let (id, key) = &self.others[at];
            let found = client.ask(&json!({"type": "lookup", "node_id": id})).expect("the registry answers");
            assert_eq!(found["public_key"], json!(key), "node {id}: {found}");
        }
        self.looked_up = self.others.len();
    }

    /// Looks up all registered nodes; how many there are.
    pub fn verify_all(&mut self, addr: SocketAddr) -> usize {
        let mut client = Client::connect(addr).expect("the registry answers");
        self.looked_up = 0;
        self.verify_others(&mut client, &mut BTreeSet::new(), 0);
        self.nodes.len() + self.others.len()
    }

    fn compare(&mut self, seen: BTreeMap<Fact, Value>) {
        let same = |fact: &Fact, a: &Value, b: &Value| {
            let sorted = |value: &Value| {
                let mut list = value.as_array().cloned().unwrap_or_default();
                list.sort_by_key(Value::to_string);
                list
            };
            match fact {
                Fact::Networks(_) | Fact::Requests(_) | Fact::Responses(_) => sorted(a) == sorted(b),
                Fact::Trust(..) => (*a == true) == (*b == true),
                _ => a == b,
            }
        };
        // A creation in doubt makes its owner a member; adopted when the network is there.
        let doubt: BTreeMap<Fact, Value> = std::mem::take(&mut self.doubt).into_iter().collect();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (fact, value) in &seen {
            let before = self.get(fact);
            match doubt.get(fact) {
                Some(after) if same(fact, &before, after) => {}
                Some(after) if same(fact, value, after) => new.push(fact.clone()),
                Some(_) if same(fact, value, &before) => old.push(fact.clone()),
                Some(after) => panic!("{fact:?} is {value}, neither {before} nor {after}"),
                None if same(fact, value, &before) => {}
                None if matches!(fact, Fact::Networks(_)) && joined_own(&before, value, &self.facts) => {}
                None => panic!("{fact:?} was acknowledged as {before} and is {value}"),
            }
        }
        assert!(old.is_empty() || new.is_empty(), "half a change is stored: {new:?}, but not {old:?}");
        if !doubt.is_empty() {
            if new.is_empty() { self.doubts.0 += 1 } else { self.doubts.1 += 1 }
        }
        for fact in self.facts.keys() {
            assert!(seen.contains_key(fact), "{fact:?} was not looked at");
        }
        self.facts = seen;
    }
}

/// The only difference is a network of ours whose creation was not answered.
fn joined_own(before: &Value, after: &Value, facts: &BTreeMap<Fact, Value>) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (before, after) = (list(before), list(after));
    let more: Vec<&Value> = after.iter().filter(|id| !before.contains(id)).collect();
    before.iter().all(|id| after.contains(id))
        && more.len() == 1
        && more[0].as_u64().is_some_and(|id| facts.contains_key(&Fact::NetworkName(id as u16)))
}
