//! What nodes ask the directory, which is the registry's own state core, and how their drivers read its answers.

use crate::check::Violation;
use crate::fault::Kind;
use crate::net::{Micros, SECOND, beacon_addr};
use crate::process::Process;
use crate::world::{Happening, World};
use pilot_proto::NodeId;
use pilot_proto::crypto;
use pilot_proto::engine::Route;
use pilot_proto::path::Candidate;
use pilot_rendezvous::simulation::Relay;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a node that the registry vouches for may come in.
const ADMITTED: Duration = Duration::from_secs(60);
/// Between two announcements of a beacon to the others.
pub const MAINTAIN: Micros = 10 * SECOND;

impl World {
    /// Every node registers once before the world begins, in order, so that node `n` gets number `n + 1`. Where one of
    /// two is private, both trust each other.
    pub(crate) fn enroll(&mut self) {
        for n in 0..self.nodes.len() {
            self.register(n);
            let public = self.plan.nodes[n].public;
            self.ask(n, json!({"type": "set_visibility", "public": public}));
        }
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if a != b && !(self.plan.nodes[a].public && self.plan.nodes[b].public) {
                    self.ask(a, json!({"type": "report_trust", "peer_id": b + 1}));
                }
            }
        }
    }

    /// A request of a node, signed by it. `None`: the directory cannot be reached.
    pub(crate) fn ask(&mut self, n: usize, mut request: Value) -> Option<Value> {
        if !self.directory_up {
            self.hit(Kind::DirectoryOutage);
            return None;
        }
        let body = request.as_object_mut()?;
        if body["type"] != "register" && !body.contains_key("requester_id") {
            body.insert("node_id".into(), json!(n + 1));
        }
        body.insert("signature".into(), crypto::base64([0; 64]).into());
        let body: &Map<String, Value> = body;
        let answer = self.directory.request(n as u32, body, self.base + Duration::from_micros(self.now));
        self.note(|| format!("node {}: directory: {request} -> {answer}", n + 1));
        Some(answer)
    }

    /// A process registers, with the address the beacon sees, once it knows it.
    pub(crate) fn register(&mut self, n: usize) {
        self.directory.connect(n as u32, self.net.nats[n].tcp());
        let listen = self.nodes[n].endpoint.map(|at| at.to_string()).unwrap_or_default();
        let key = self.nodes[n].identity.public_key_base64();
        let answer = self.ask(n, json!({"type": "register", "public_key": key, "listen_addr": listen}));
        self.nodes[n].registered = answer.as_ref().is_some_and(|a| a["node_id"] == n + 1);
        if let Some((name, time)) =
            answer.and_then(|a| Some((a["registry_id"].as_str()?.to_owned(), a["time"].as_u64()?)))
        {
            let now = self.clock(n);
            if let Some(process) = self.nodes[n].process.as_mut() {
                process.set_registry(now, &name, time * SECOND);
            }
        }
        if self.nodes[n].registered {
            let now = self.base + Duration::from_micros(self.now);
            for relay in self.relays.iter_mut().flatten() {
                relay.registered(n as NodeId + 1, &self.directory, now);
            }
        }
    }

    /// The beacon told a node its address.
    pub(crate) fn observed(&mut self, n: usize, at: SocketAddr) {
        if self.nodes[n].endpoint != Some(at) || !self.nodes[n].registered {
            self.nodes[n].endpoint = Some(at);
            self.register(n);
        }
    }

    /// The key of a node.
    pub(crate) fn answer_key(&mut self, n: usize, life: u32, about: NodeId) -> Result<(), Violation> {
        let answer = self.ask(n, json!({"type": "lookup", "node_id": about, "requester_id": n + 1}));
        let key = answer.and_then(|a| crypto::unbase64(a["public_key"].as_str()?));
        if let Some(key) = key {
            self.nodes[n].known.insert(about, key);
        }
        self.answer(n, life, |process, now| process.set_peer_key(now, about, key))
    }

    /// Where a node is.
    pub(crate) fn answer_route(&mut self, n: usize, life: u32, about: NodeId) -> Result<(), Violation> {
        let answer = self.ask(n, json!({"type": "resolve", "node_id": about, "requester_id": n + 1}));
        let route = match answer {
            None => Err("registry unreachable".to_string()),
            Some(a) => match a["real_addr"].as_str() {
                Some(at) => {
                    let direct = at.parse().ok().map(Candidate::guessed).into_iter().collect();
                    Ok(Route { direct, relay_only: false })
                }
                None => Err(a["error"].as_str().unwrap_or("no answer").to_string()),
            },
        };
        self.answer(n, life, |process, now| process.set_route(now, about, route))
    }

    /// Whether a node that knocked is trusted.
    pub(crate) fn answer_knock(&mut self, n: usize, life: u32, about: NodeId) -> Result<(), Violation> {
        let request =
            json!({"type": "check_trust", "node_id": n + 1, "peer_id": about, "requester_id": n + 1});
        let trusted = self.ask(n, request).is_some_and(|a| a["trusted"] == true);
        self.answer(n, life, |process, now| {
            if trusted {
                process.admit(about, now + ADMITTED);
            } else {
                process.refuse(about);
            }
        })
    }

    fn answer(
        &mut self,
        n: usize,
        life: u32,
        f: impl FnOnce(&mut dyn Process, Instant),
    ) -> Result<(), Violation> {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        match node.process.as_mut().filter(|_| node.life == life) {
            Some(process) => f(process.as_mut(), now),
            None => return Ok(()),
        }
        self.drive(n)
    }

    /// A beacon starts with an empty table.
    pub(crate) fn start_beacon(&mut self, b: usize) {
        let peers = (0..self.plan.beacons).filter(|other| *other != b).map(beacon_addr).collect();
        let now = self.base + Duration::from_micros(self.now);
        self.relays[b] = Some(Relay::new(b as u32 + 1, peers, now));
    }

    /// What a beacon does regularly.
    pub(crate) fn maintain(&mut self, b: usize) {
        let now = self.base + Duration::from_micros(self.now);
        let mut out = Vec::new();
        if let Some(relay) = self.relays[b].as_mut() {
            relay.maintain(now, |to, bytes| out.push((to, bytes.to_vec())));
        }
        for (to, bytes) in out {
            self.note(|| format!("beacon {b}: -> {to} {}", crate::check::describe(&bytes)));
            self.send(crate::net::Place::Beacon(b), to, &bytes);
        }
        self.at(self.now + MAINTAIN, Happening::Maintain(b));
    }
}
