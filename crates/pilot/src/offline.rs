//! Starting without the registry: a node that was registered before is itself again, and reaches the peers it knows
//! where they were last. Everything else waits until the registry answers.

use crate::command::Command;
use crate::peers::Own;
use crate::registry::RegistryError;
use crate::shared::Shared;
use pilot_proto::crypto::constant_time_eq;
use pilot_proto::engine::DiscoverProof;
use pilot_proto::{Addr, NodeId};
use serde_json::{Value, json};
use std::sync::Arc;

/// How the warning begins.
const WITHOUT: &str = "started without the registry";

/// The registry said nothing. What it said before may be used then, but not against its refusal.
pub(crate) fn silent(error: &RegistryError) -> bool {
    !matches!(error, RegistryError::Refused(_))
}

impl Shared {
    /// Who this node was at this registry, if it was and its key is the same.
    pub(crate) fn remembered(&self) -> Option<Own> {
        let own = self.peers.own(self.registry.address())?;
        constant_time_eq(&own.key, self.identity().public_key()).then_some(own)
    }

    /// Takes up the number and name of the last run.
    pub(crate) fn start_offline(self: &Arc<Self>, own: &Own, cause: &RegistryError) {
        let identity = self.identity();
        self.state(|s| {
            s.node = own.node;
            s.address = Addr::backbone(own.node);
            s.hostname.clone_from(&own.hostname);
            s.key_generation = own.generation;
            s.networks.clone_from(&own.networks);
            s.endpoint = self.listen_addr_of(s);
            s.registry_error = cause.to_string();
        });
        self.insist(&own.registry);
        self.registry.set_signer(identity.clone(), own.node);
        self.command(Command::Identity(identity.clone(), own.node));
        let proof = own.signed_discover.then(|| DiscoverProof {
            registry: own.registry.clone(),
            clock: (std::time::Instant::now(), crate::unix_micros()),
        });
        self.command(Command::DiscoverProof(proof));
        self.registry_named(&own.registry);
        self.trust_registered(own.node, identity, &own.registry);
        self.warn(format!(
            "{WITHOUT} ({cause}): this node is what it was, and reaches the peers it knows where they were last; it \
             registers as soon as the registry answers"
        ));
        self.publish("node.started_offline", json!({"node_id": own.node, "reason": cause.to_string()}));
    }

    /// The registry has answered; what there was to say of its absence is over. To be kept for the next start.
    pub(crate) fn remember_registration(&self, name: &str, signed_discover: bool) {
        let own = self.state(|s| {
            s.warnings.retain(|w| !w.starts_with(WITHOUT));
            s.registry_error.clear();
            Own {
                registry: name.to_owned(),
                node: s.node,
                key: *s.identity.public_key(),
                generation: s.key_generation,
                hostname: s.hostname.clone(),
                networks: s.networks.clone(),
                signed_discover,
            }
        });
        self.peers.set_own(own);
    }

    /// Name and networks as they are now, for the next start.
    pub(crate) fn remember_settings(&self) {
        let (hostname, networks) = self.state(|s| (s.hostname.clone(), s.networks.clone()));
        self.peers.set_settings(&hostname, &networks);
    }

    /// The registry is known to be away, so a cached answer is better than waiting for none.
    pub(crate) fn registry_away(&self) -> bool {
        self.state(|s| !s.registry_ok && s.node != 0)
    }

    /// The answer for a name as it was when the registry was asked last.
    pub(crate) fn remembered_name(&self, hostname: &str) -> Option<Value> {
        let node: NodeId = self.peers.named(hostname)?;
        Some(json!({
            "type": "resolve_hostname_ok",
            "node_id": node,
            "address": Addr::backbone(node).to_string(),
            "hostname": hostname,
            "cached": true,
        }))
    }
}
