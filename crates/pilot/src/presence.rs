//! Being registered: registration, heartbeats, re-registration, push (spec 05 section 12, docs/extensions.md).

use crate::command::Command;
use crate::registry::push::{Notice, Push};
use crate::registry::{Features, RegistryError};
use crate::shared::Shared;
use crate::{jitter, unix_now};
use pilot_proto::crypto::Identity;
use pilot_proto::engine::DiscoverProof;
use pilot_proto::registry::challenge;
use pilot_proto::{Addr, NodeId};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Failed heartbeats in a row after which the node registers anew.
const FAILURES: u32 = 3;
/// First and longest pause before a re-registration, and between attempts to subscribe.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// After a failed heartbeat the next one comes at least this soon.
const RETRY: Duration = Duration::from_secs(5);
/// Least time between re-registrations because of a changed address.
const MOVE_PAUSE: Duration = Duration::from_secs(2);
/// Requests sent in one go after a registration.
const BATCH: usize = 64;

fn refused_with(error: &RegistryError, phrase: &str) -> bool {
    matches!(error, RegistryError::Refused(text) if text.contains(phrase))
}

impl Shared {
    /// The request that registers with a key, and the endpoint in it.
    pub(crate) fn registration(&self, identity: &Identity) -> (Value, String) {
        let key = identity.public_key_base64();
        let listen = self.listen_addr();
        let mut request = json!({
            "type": "register",
            "listen_addr": listen,
            "owner": self.owner(identity),
            "public_key": key,
            "signature": identity.sign_text(&challenge::register(&listen, &key)),
            "version": self.config.version,
            "instance": self.instance,
        });
        let lan = self.lan_addrs();
        if !lan.is_empty() {
            request["lan_addrs"] = lan.into();
        }
        if self.relays() {
            request["relay_only"] = true.into();
        }
        (request, listen)
    }

    /// Registers and adopts what the registry says. Does not send what follows a registration.
    pub(crate) async fn register(self: &Arc<Self>) -> Result<(), RegistryError> {
        let identity = self.identity();
        self.registry.set_signer(identity.clone(), self.node());
        let (request, listen) = self.registration(&identity);
        let published = self.endpoint_texts("");
        let answer = self.registry.request(request).await?;
        let malformed = |what: &str| RegistryError::Refused(format!("malformed response ({what})"));
        let node = answer["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok()).filter(|&id| id != 0);
        let node = node.ok_or_else(|| malformed("missing \"node_id\""))?;
        let address: Addr = answer["address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| malformed("missing \"address\""))?;
        self.learn_door(&answer);
        let features = Features::of(&answer, unix_now());
        let name = features.registry_id.clone().unwrap_or_else(|| self.registry.address().to_owned());
        let proof = features.signed_discover.then(|| DiscoverProof {
            registry: name.clone(),
            clock: (std::time::Instant::now(), crate::unix_micros()),
        });
        self.registry.set_features(features);
        let before = self.state(|s| {
            let before = s.node;
            s.node = node;
            s.address = address;
            s.registry_ok = true;
            s.key_generation = answer["key_generation"].as_u64().map_or(0, |n| u32::try_from(n).unwrap_or(0));
            s.registered.clone_from(&listen);
            s.published.clone_from(&published);
            s.endpoint = answer["observed_addr"].as_str().unwrap_or(&listen).to_owned();
            if let Some(hostname) = answer["hostname"].as_str() {
                s.hostname = hostname.to_owned();
            }
            before
        });
        self.remember_registration(&name, self.registry.features().signed_discover);
        self.insist(&name);
        self.registry.set_signer(identity.clone(), node);
        if before != node {
            self.command(Command::Identity(identity.clone(), node));
        }
        self.command(Command::DiscoverProof(proof));
        self.registered.notify_one();
        self.registry_named(&name);
        self.trust_registered(node, identity, &name);
        Ok(())
    }

    /// The configured owner, or one made of the key (spec 05 section 5.1).
    fn owner(&self, identity: &Identity) -> String {
        match self.config.email.as_deref() {
            Some(email) if !email.is_empty() => email.to_owned(),
            _ => {
                let digits: String = identity.public_key()[..6].iter().map(|b| format!("{b:02x}")).collect();
                format!("{digits}@nodes.pilotprotocol.network")
            }
        }
    }

    /// Sends what the registry must know beside the registration, in one round trip; `again` also repeats what a
    /// registry that lost its memory needs. Refusals are warnings.
    pub(crate) async fn announce(self: &Arc<Self>, again: bool) {
        let (node, identity, public, hostname, tags) =
            self.state(|s| (s.node, s.identity.clone(), s.public, s.wanted_hostname.clone(), s.tags.clone()));
        let sign = |verb| identity.sign_text(&challenge::own(verb, node));
        let mut requests = vec![json!({
            "type": "set_visibility", "node_id": node, "public": public, "signature": sign("set_visibility"),
        })];
        if let Some(hostname) = &hostname {
            requests.push(json!({
                "type": "set_hostname", "node_id": node, "hostname": hostname, "signature": sign("set_hostname"),
            }));
        }
        if !tags.is_empty() {
            requests.push(
                json!({"type": "set_tags", "node_id": node, "tags": tags, "signature": sign("set_tags")}),
            );
        }
        let settings = requests.len();
        if again {
            for peer in self.trusted_nodes() {
                let signature = identity.sign_text(&challenge::pair("report_trust", node, peer));
                requests.push(
                    json!({"type": "report_trust", "node_id": node, "peer_id": peer, "signature": signature}),
                );
            }
        }
        requests.extend(self.record_request());
        requests.insert(settings, self.lookup_request(node));
        let mut sent = 0;
        for batch in requests.chunks(BATCH) {
            let answers = match self.registry.batch(batch).await {
                Ok(answers) => answers,
                Err(error) => {
                    self.warn(format!("settings not sent to the registry: {error}"));
                    return;
                }
            };
            for (request, answer) in batch.iter().zip(answers) {
                self.announced(sent < settings, request, answer);
                sent += 1;
            }
        }
    }

    fn announced(&self, setting: bool, request: &Value, answer: Result<Value, RegistryError>) {
        match (request["type"].as_str().unwrap_or_default(), answer) {
            ("set_hostname", Ok(answer)) => {
                let accepted = answer["hostname"].as_str().or(request["hostname"].as_str());
                self.state(|s| s.hostname = accepted.unwrap_or_default().to_owned());
            }
            ("set_hostname", Err(error)) => {
                self.warn(format!("hostname {} was refused: {error}", request["hostname"]));
            }
            ("lookup", Ok(answer)) => self.own_record(&answer),
            ("publish_record", answer) => self.record_published(&answer),
            (what, Err(error)) if setting => self.warn(format!("{what} failed: {error}")),
            _ => {}
        }
    }

    /// Takes memberships and the name from our own record.
    pub(crate) fn own_record(&self, record: &Value) {
        let networks = record["networks"].as_array().into_iter().flatten();
        let networks =
            networks.filter_map(|n| u16::try_from(n.as_u64()?).ok()).filter(|&n| n != 0).take(1024).collect();
        self.state(|s| {
            s.networks = networks;
            // Absent also when the registry did not recognise the asker, so absence says nothing.
            if let Some(hostname) = record["hostname"].as_str() {
                s.hostname = hostname.to_owned();
            }
        });
        self.remember_settings();
    }

    /// Registers again, with everything. Not if another process has taken over.
    async fn reregister(self: &Arc<Self>) -> Result<(), RegistryError> {
        let before = self.node();
        // The old key of a rotation that the registry has made would get another id.
        self.settle_rotation().await?;
        self.register().await?;
        self.announce(true).await;
        let (node, address, endpoint) = self.state(|s| (s.node, s.address, s.endpoint.clone()));
        let registry = self.registry.address();
        tracing::info!(%registry, node, %address, %endpoint, "registered again");
        self.publish(
            "node.reregistered",
            json!({"address": address.to_string(), "endpoint": endpoint, "node_id": node}),
        );
        if before != node {
            self.warn(format!("the registry gave this node another id: {before} before, {node} now"));
        }
        Ok(())
    }

    fn superseded(&self, text: &str) {
        if !self.state(|s| std::mem::replace(&mut s.superseded, true)) {
            self.warn(format!(
                "this node has stopped registering: {text}; stop one of the two processes, or give one an \
                 identity of its own"
            ));
            self.publish("node.superseded", json!({"node_id": self.node()}));
        }
    }

    fn is_superseded(&self) -> bool {
        self.state(|s| s.superseded)
    }

    /// Heartbeats and re-registrations until the node stops or is superseded (spec 05 section 12.5).
    pub(crate) async fn keep_registered(self: Arc<Self>) {
        let keepalive = self.config.keepalive.max(Duration::from_millis(50));
        // A node that started without the registry has yet to register.
        let mut failures = if self.registry_away() { FAILURES } else { 0 };
        let mut pause = BACKOFF.0;
        // Nodes that started together do not beat together.
        let phase = jitter(keepalive.min(Duration::from_secs(10))) - keepalive.min(Duration::from_secs(10));
        let mut next = if failures > 0 { Instant::now() } else { Instant::now() + keepalive + phase };
        let mut moved_at: Option<Instant> = None;
        loop {
            let moved = tokio::select! {
                () = tokio::time::sleep_until(next) => false,
                () = self.reregister.notified() => true,
            };
            if self.is_superseded() {
                return;
            }
            if moved {
                if let Some(at) = moved_at {
                    tokio::time::sleep_until(at + MOVE_PAUSE).await;
                }
                moved_at = Some(Instant::now());
                if let Err(error) = self.reregister().await {
                    self.registry_failed(&error);
                    failures = FAILURES;
                    next = Instant::now() + jitter(pause);
                }
                continue;
            }
            if failures < FAILURES {
                match self.heartbeat().await {
                    Ok(()) => {
                        self.registry_answers();
                        failures = 0;
                        pause = BACKOFF.0;
                        next = Instant::now() + keepalive;
                        if !self.registry.features().push {
                            self.poll_handshakes_soon();
                        }
                        continue;
                    }
                    Err(error) => {
                        if let RegistryError::Refused(text) = &error
                            && text.starts_with("superseded:")
                        {
                            self.superseded(text);
                            return;
                        }
                        let at_once = refused_with(&error, "node not found")
                            || refused_with(&error, "signature verification failed")
                            || matches!(error, RegistryError::TimedOut);
                        failures = if at_once { FAILURES } else { failures + 1 };
                        self.registry_failed(&error);
                        next = Instant::now() + keepalive.min(RETRY);
                    }
                }
            }
            if failures >= FAILURES {
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(BACKOFF.1);
                match self.reregister().await {
                    Ok(()) => {
                        failures = 0;
                        next = Instant::now() + keepalive;
                    }
                    Err(error) => {
                        self.registry_failed(&error);
                        next = Instant::now();
                    }
                }
            }
        }
    }

    fn registry_failed(&self, error: &RegistryError) {
        self.state(|s| s.registry_error = error.to_string());
        if self.state(|s| std::mem::replace(&mut s.registry_ok, false)) {
            let registry = self.registry.address();
            tracing::warn!(%registry, %error, "the registry is lost; trying again until it answers");
        } else {
            tracing::debug!(%error, "the registry still does not answer");
        }
    }

    fn registry_answers(&self) {
        self.state(|s| s.registry_error.clear());
        if !self.state(|s| std::mem::replace(&mut s.registry_ok, true)) {
            tracing::info!(registry = %self.registry.address(), "the registry answers again");
        }
    }

    async fn heartbeat(&self) -> Result<(), RegistryError> {
        let (node, identity) = self.state(|s| (s.node, s.identity.clone()));
        let mut request = json!({
            "type": "heartbeat",
            "node_id": node,
            "signature": identity.sign_text(&challenge::own("heartbeat", node)),
        });
        if self.registry.features().instance {
            request["instance"] = self.instance.as_str().into();
        }
        let answer = self.registry.request(request).await?;
        self.publish("agent.heartbeat", json!({"node_id": node}));
        self.renew_record(answer["want_record"] == true).await;
        if answer["key_expiry_warning"] == true {
            self.warn("this node's key expires within 24 hours; rotate it with `pilotctl rotate-key`".into());
        }
        Ok(())
    }

    /// Keeps a push subscription open while the registry offers it.
    pub(crate) async fn keep_subscribed(self: Arc<Self>) {
        let mut pause = BACKOFF.0;
        loop {
            if self.is_superseded() {
                return;
            }
            let features = self.registry.features();
            if !features.push {
                // Only a registration brings other features.
                self.registered.notified().await;
                continue;
            }
            let (node, identity) = self.state(|s| (s.node, s.identity.clone()));
            let ts = unix_now().saturating_add_signed(features.clock_offset);
            let request = json!({
                "type": "subscribe",
                "node_id": node,
                "ts": ts,
                "instance": self.instance,
                "signature": identity.sign_text(&challenge::subscribe(node, ts)),
            });
            let mut network = self.network.subscribe();
            match Push::open(&self.registry, request).await {
                Ok(mut push) => {
                    pause = BACKOFF.0;
                    self.registry_answers();
                    // What came while nobody was told.
                    self.poll_handshakes_soon();
                    let cause = tokio::select! {
                        cause = self.follow(&mut push) => cause,
                        _ = network.changed() => "the network changed".into(),
                    };
                    tracing::debug!(%cause, "push subscription ended");
                }
                Err(RegistryError::Refused(text)) if text.starts_with("superseded:") => {
                    self.superseded(&text);
                    return;
                }
                // Noticed here long before the next heartbeat.
                Err(error @ (RegistryError::Unreachable(_) | RegistryError::TimedOut)) => {
                    self.registry_failed(&error);
                }
                Err(error) => tracing::debug!(%error, "no push subscription"),
            }
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn follow(self: &Arc<Self>, push: &mut Push) -> String {
        loop {
            match push.next().await {
                Ok(Notice::Handshake) => self.poll_handshakes_soon(),
                Ok(Notice::TrustRevoked(peer)) => self.trust_revoked_at_registry(peer),
                Ok(Notice::Superseded) => {
                    self.superseded("another process registered this identity");
                    return "superseded".into();
                }
                Ok(Notice::Ping) => {}
                Err(cause) => return cause,
            }
        }
    }
}
