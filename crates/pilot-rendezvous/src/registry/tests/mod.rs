//! The state core under requests. Every change is stored at once; [`World::reload`] checks that the store holds what
//! memory holds.

mod directory;
mod fresh;
mod handshakes;
mod identity;
mod networks;
mod properties;
mod records;
mod trust;
mod vectors;

use super::*;
use crate::store::Store as _;
use crate::store::sqlite::Sqlite;
use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use serde_json::json;

pub const ADMIN: &str = "adm-secret";

/// A node of these tests.
pub struct Peer {
    pub identity: Identity,
    pub id: u32,
}

impl Peer {
    pub fn new(seed: u8) -> Peer {
        Peer { identity: Identity::from_seed([seed; 32]).unwrap(), id: 0 }
    }

    pub fn key(&self) -> String {
        self.identity.public_key_base64()
    }

    /// `fields` with a signature over `text`.
    pub fn sign(&self, mut fields: Value, text: &str) -> Value {
        fields["signature"] = json!(self.identity.sign_text(text));
        fields
    }

    /// A request about itself.
    pub fn own(&self, verb: &str, mut fields: Value) -> Value {
        fields["type"] = json!(verb);
        fields["node_id"] = json!(self.id);
        self.sign(fields, &challenge::own(verb, self.id))
    }

    pub fn register(&self, fields: Value) -> Value {
        let mut request =
            json!({"type": "register", "listen_addr": "127.0.0.1:4000", "public_key": self.key()});
        for (name, value) in fields.as_object().unwrap() {
            request[name] = value.clone();
        }
        let text = challenge::register(request["listen_addr"].as_str().unwrap(), &self.key());
        self.sign(request, &text)
    }

    /// `report_trust` or `revoke_trust`.
    pub fn pair(&self, verb: &str, peer: u32) -> Value {
        let request = json!({"type": verb, "node_id": self.id, "peer_id": peer});
        self.sign(request, &challenge::pair(verb, self.id, peer))
    }

    pub fn handshake(&self, to: u32, why: &str) -> Value {
        let request = json!({
            "type": "request_handshake", "from_node_id": self.id, "to_node_id": to, "justification": why,
        });
        self.sign(request, &challenge::pair("handshake", self.id, to))
    }

    pub fn respond(&self, peer: u32, accept: bool) -> Value {
        let request =
            json!({"type": "respond_handshake", "node_id": self.id, "peer_id": peer, "accept": accept});
        self.sign(request, &challenge::pair("respond", self.id, peer))
    }

    pub fn resolve(&self, target: u32) -> Value {
        let request = json!({"type": "resolve", "node_id": target, "requester_id": self.id});
        self.sign(request, &challenge::pair("resolve", self.id, target))
    }

    /// A request about itself and a network.
    pub fn network(&self, verb: &str, network: u16, mut fields: Value) -> Value {
        fields["type"] = json!(verb);
        fields["node_id"] = json!(self.id);
        fields["network_id"] = json!(network);
        self.sign(fields, &challenge::pair(verb, self.id, u32::from(network)))
    }
}

/// A registry with its store and a clock that stands still unless told.
pub struct World {
    pub registry: Registry,
    pub now: Now,
    pub config: Config,
    pub effects: Vec<Effect>,
    pub after: After,
    store: Sqlite,
}

pub fn session(peer: &str) -> Session {
    Session::new(peer.parse().unwrap(), "192.0.2.1".parse().unwrap(), false)
}

/// A connection nobody has proven anything on.
pub fn stranger() -> Session {
    session("198.51.100.99:7000")
}

fn beacon() -> SocketAddr {
    "0.0.0.0:9001".parse().unwrap()
}

impl World {
    pub fn new() -> World {
        World::with(Config { admin_token: Some(ADMIN.into()), ..Config::default() })
    }

    pub fn with(config: Config) -> World {
        let mut store = Sqlite::memory().unwrap();
        let now = Now { unix_us: 1_795_217_600_000_000, mono: Instant::now() };
        let id = "00112233445566778899aabbccddeeff".to_owned();
        let mut registry = Registry::load(&config, beacon(), store.load().unwrap(), id, now);
        store.commit(&registry.take_writes()).unwrap();
        World { registry, now, config, effects: Vec::new(), after: After::Nothing, store }
    }

    pub fn sleep(&mut self, secs: u64) {
        self.now.unix_us += secs * 1_000_000;
        self.now.mono += Duration::from_secs(secs);
    }

    pub fn store_writes(&mut self) {
        let writes = self.registry.take_writes();
        self.store.commit(&writes).unwrap();
    }

    pub fn ask(&mut self, session: &mut Session, request: Value) -> Value {
        let body = request.as_object().unwrap();
        let (answer, after) = self.registry.handle(session, body, self.now);
        self.effects = self.registry.take_effects();
        self.after = after;
        self.store_writes();
        answer
    }

    /// The answer, which must not be an error.
    pub fn ok(&mut self, session: &mut Session, request: Value) -> Value {
        let answer = self.ask(session, request.clone());
        assert!(answer.get("error").is_none(), "{request} -> {answer}");
        answer
    }

    /// The error text, which must be there.
    pub fn refused(&mut self, session: &mut Session, request: Value) -> String {
        let answer = self.ask(session, request.clone());
        assert_eq!(answer["type"], "error", "{request} -> {answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// A registered private node and its connection.
    pub fn node(&mut self, seed: u8) -> (Peer, Session) {
        let mut peer = Peer::new(seed);
        let mut session = session(&format!("203.0.113.{seed}:50000"));
        let answer = self.ok(&mut session, peer.register(json!({})));
        peer.id = answer["node_id"].as_u64().unwrap() as u32;
        (peer, session)
    }

    pub fn trust(&mut self, a: &Peer, b: &Peer) {
        self.ok(&mut stranger(), a.pair("report_trust", b.id));
        self.ok(&mut stranger(), b.pair("report_trust", a.id));
    }

    pub fn lookup(&mut self, session: &mut Session, id: u32) -> Value {
        self.ask(session, json!({"type": "lookup", "node_id": id}))
    }

    /// Writes the answer of a poll "to the socket".
    pub fn delivered(&mut self) -> (u32, u64) {
        let After::Delivered { node, up_to } = self.after else {
            panic!("nothing to deliver: {:?}", self.after)
        };
        self.registry.delivered(node, up_to, self.now);
        self.store_writes();
        (node, up_to)
    }

    /// What must survive a restart, in a comparable form.
    fn durable(registry: &Registry) -> String {
        let mut out = Vec::new();
        for (id, n) in registry.nodes.iter().collect::<BTreeMap<_, _>>() {
            // Presence is not stored.
            let record = NodeRecord { last_seen: 0, ..n.record.clone() };
            out.push(format!("{id} {record:?} {:?}", n.networks));
        }
        out.push(format!("{:?}", registry.trust.iter().collect::<BTreeMap<_, _>>()));
        out.push(format!("{:?}", registry.reports.iter().collect::<BTreeMap<_, _>>()));
        for (id, i) in registry.inboxes.iter().collect::<BTreeMap<_, _>>() {
            if !(i.requests.is_empty() && i.responses.is_empty() && i.pending.is_empty()) {
                out.push(format!("{id} {:?} {:?} {:?}", i.requests, i.responses, i.pending));
            }
        }
        out.push(format!("{:?}", registry.networks));
        let mut invites = registry.invites.clone();
        invites.values_mut().for_each(|list| list.sort_by_key(|i| i.network));
        out.push(format!("{:?}", invites.into_iter().collect::<BTreeMap<_, _>>()));
        out.push(format!(
            "{} {} {:?}",
            registry.registry_id,
            registry.last_network,
            registry.by_name.iter().collect::<BTreeMap<_, _>>()
        ));
        out.join("\n")
    }

    /// A second registry on what the store holds; it must know what this one knows.
    pub fn reload(&mut self) {
        let stored = self.store.load().unwrap();
        let other = "ffffffffffffffffffffffffffffffff".to_owned();
        let loaded = Registry::load(&self.config, beacon(), stored, other, self.now);
        assert_eq!(World::durable(&loaded), World::durable(&self.registry));
        assert_eq!(loaded.sizes(), self.registry.sizes());
        assert_eq!(loaded.last_node, self.registry.last_node);
        self.registry = loaded;
    }
}
