//! Drives the trust state machine: carries out its actions, keeps `trust.json`, wakes waiters.

use crate::command::Command;
use crate::config::NodeConfig;
use crate::keeping::{Keeper, newer};
use crate::shared::Shared;
use crate::{lock, unix_now};
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::trust::{Action, Approved, Config, Outcome, Requested, Trust};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast;

/// Outcomes kept for a slow waiter; one that misses some looks at the state.
const OUTCOMES: usize = 256;
/// Largest `trust.json` read, bytes: far above the bounds of its lists.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Outcome of [`crate::Node::handshake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeSent {
    /// The request is on its way.
    Sent,
    /// Both sides trust each other; nothing was sent.
    AlreadyTrusted,
    /// A request to that node is being sent right now.
    InFlight,
}

/// Outcome of [`crate::Node::approve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApproveOutcome {
    /// The peer is trusted now.
    Approved,
    /// It was before.
    AlreadyTrusted,
    /// No request of that node waits.
    NothingPending,
}

/// Outcome of [`crate::Node::wait_for_trust`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustWait {
    /// The peer is trusted.
    Trusted,
    /// The peer refused our request.
    Rejected {
        /// Its words; may be empty.
        reason: String,
    },
    /// Neither, in the time given.
    TimedOut,
}

/// A waiting request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRequest {
    /// Who asks.
    pub node_id: NodeId,
    /// Claimed key, base64; empty for relayed requests.
    pub public_key: String,
    /// Their words.
    pub justification: String,
    /// Unix seconds.
    pub received_at_unix: u64,
}

/// A trusted peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedPeer {
    /// Who.
    pub node_id: NodeId,
    /// Key the trust is bound to, base64; empty while none is known.
    pub public_key: String,
    /// Unix seconds.
    pub approved_at_unix: u64,
    /// The peer is known to trust us too.
    pub mutual: bool,
    /// Shared network the trust rests on; 0: none.
    pub network: u16,
}

/// The state machine and what its driver needs.
#[derive(Debug)]
pub(crate) struct TrustState {
    pub(crate) machine: Mutex<Trust>,
    pub(crate) keeper: Keeper,
    outcomes: broadcast::Sender<(NodeId, Outcome)>,
    /// Network actions per peer, in order; a peer is in the map while its worker runs.
    pub(crate) lanes: Mutex<HashMap<NodeId, VecDeque<Action>>>,
    /// Peers whose direct messages are being handled, and how many.
    pub(crate) serving: Mutex<HashMap<NodeId, usize>>,
    /// How often a peer became trusted.
    grants: AtomicU64,
    /// Peers a request is being sent to.
    sending: Mutex<HashSet<NodeId>>,
    pub(crate) polling: crate::handshake::Polling,
    warning: Mutex<Option<String>>,
}

impl TrustState {
    /// The state stored beside the identity. Nothing is active before the registry is known.
    ///
    /// # Errors
    /// The file is of a newer program; it stays as it is.
    pub(crate) fn load(config: &NodeConfig, identity: Arc<Identity>) -> Result<TrustState, String> {
        let mut machine =
            Trust::new(Config { auto_approve: config.trust_auto_approve, ..Config::new(0, identity) });
        let path = config.identity_path.as_ref().map(|p| p.with_file_name("trust.json"));
        let mut warning = None;
        if let Some(path) = &path
            && let Some(text) = read(path)
        {
            if let Some(version) = text.as_deref().ok().and_then(newer) {
                let path = path.display();
                return Err(format!(
                    "{path} has format {version}, which this program does not know; use a newer program, or move the file \
                     away to start without trust"
                ));
            }
            let loaded =
                text.and_then(|text| machine.load(unix_now(), &text).map_err(|error| error.to_string()));
            match loaded {
                Ok(0) => {}
                Ok(skipped) => {
                    warning = Some(format!("{}: {skipped} malformed entries skipped", path.display()));
                }
                Err(error) => {
                    let kept = path.with_extension("json.bad");
                    let what = match std::fs::rename(path, &kept) {
                        Ok(()) => format!("kept as {}", kept.display()),
                        Err(e) => format!("it could not be moved aside ({e}) and will be replaced"),
                    };
                    warning = Some(format!("{}: {error}; starting without trust, {what}", path.display()));
                }
            }
        }
        // Activations are repeated when the registry is known.
        while machine.poll_action().is_some() {}
        Ok(TrustState {
            machine: Mutex::new(machine),
            keeper: Keeper::new(path),
            outcomes: broadcast::Sender::new(OUTCOMES),
            lanes: Mutex::default(),
            serving: Mutex::default(),
            grants: AtomicU64::new(0),
            sending: Mutex::default(),
            polling: crate::handshake::Polling::default(),
            warning: Mutex::new(warning),
        })
    }

    pub(crate) fn is_trusted(&self, node: NodeId) -> bool {
        lock(&self.machine).is_trusted(node)
    }

    /// What came of asking a node for trust, so far.
    fn outcome(&self, node: NodeId) -> Option<TrustWait> {
        let machine = lock(&self.machine);
        if machine.is_trusted(node) {
            return Some(TrustWait::Trusted);
        }
        machine.rejection(node).map(|rejection| TrustWait::Rejected { reason: rejection.reason.clone() })
    }

    /// The key the trust in a node is bound to.
    pub(crate) fn pinned_key(&self, node: NodeId) -> Option<[u8; 32]> {
        lock(&self.machine).trusted_key(node)
    }

    pub(crate) fn pending_count(&self) -> usize {
        lock(&self.machine).pending().count()
    }

    pub(crate) fn awaits_answer(&self) -> bool {
        lock(&self.machine).awaits_answer(unix_now())
    }

    pub(crate) fn pending(&self) -> Vec<PendingRequest> {
        let machine = lock(&self.machine);
        let entry = |(node_id, p): (NodeId, &pilot_proto::trust::Pending)| PendingRequest {
            node_id,
            public_key: p.key_base64(),
            justification: p.justification.clone(),
            received_at_unix: p.received_at,
        };
        machine.pending().map(entry).collect()
    }

    pub(crate) fn trusted(&self) -> Vec<TrustedPeer> {
        let machine = lock(&self.machine);
        let entry = |(node_id, t): (NodeId, &pilot_proto::trust::Trusted)| TrustedPeer {
            node_id,
            public_key: t.key_base64(),
            approved_at_unix: t.approved_at,
            mutual: t.mutual,
            network: t.network,
        };
        machine.trusted().map(entry).collect()
    }
}

/// The file's text; `None` if there is no file. One that cannot be read must not be taken for none: the next save would
/// replace it.
fn read(path: &std::path::Path) -> Option<Result<String, String>> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(error.to_string())),
        Ok(file) => file,
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE).read_to_string(&mut text);
    Some(read.map(|_| text).map_err(|error| error.to_string()))
}

impl Shared {
    /// Calls the state machine, then carries out what it wants.
    pub(crate) fn with_trust<T>(self: &Arc<Self>, f: impl FnOnce(&mut Trust) -> T) -> T {
        let mut machine = lock(&self.trust.machine);
        let result = f(&mut machine);
        // Under the lock, so that commands and lanes see actions in the order the machine gave them.
        while let Some(action) = machine.poll_action() {
            self.act(action);
        }
        result
    }

    fn act(self: &Arc<Self>, action: Action) {
        match action {
            Action::SetTrusted(node, trusted) => {
                if trusted {
                    self.trust.grants.fetch_add(1, Ordering::Relaxed);
                } else {
                    tracing::info!(peer = node, "trust has ended");
                }
                self.command(Command::Trusted(node, trusted));
            }
            Action::Publish(name, data) => {
                // Trust won and lost is logged where it takes effect.
                if name.starts_with("handshake.") {
                    tracing::info!(peer = %data["peer_node_id"], "{name}");
                }
                self.publish(name, data);
            }
            Action::Save => self.trust.keeper.changed(),
            Action::Wake(node, outcome) => {
                if outcome == Outcome::Trusted {
                    tracing::info!(peer = node, "trusted now");
                }
                // Without a waiter there is nobody to wake.
                let _ = self.trust.outcomes.send((node, outcome));
            }
            Action::KeyChanged { node, pinned, shown } => {
                let text = pilot_proto::crypto::fingerprint;
                self.warn(format!(
                    "node {node} shows another key than the one trusted ({} now, {} before); trust has ended; if the change \
                     is expected, shake hands again: `pilotctl handshake {node}`",
                    text(&shown),
                    text(&pinned)
                ));
                self.publish(
                    "security.key_changed",
                    serde_json::json!({
                        "peer_node_id": node, "pinned": text(&pinned), "shown": text(&shown), "source": "peer",
                    }),
                );
            }
            Action::Deliver(ref delivery) => self.enqueue(delivery.node, action),
            Action::ReportTrust(node)
            | Action::RevokeTrust(node)
            | Action::BackfillKey(node)
            | Action::TearDown(node) => self.enqueue(node, action),
        }
    }

    fn enqueue(self: &Arc<Self>, node: NodeId, action: Action) {
        let mut lanes = lock(&self.trust.lanes);
        match lanes.get_mut(&node) {
            Some(lane) => lane.push_back(action),
            None => {
                lanes.insert(node, VecDeque::from([action]));
                self.spawn(self.clone().work(node));
            }
        }
    }

    /// The node is registered as `node` with the registry `name`: its trust records count.
    pub(crate) fn trust_registered(self: &Arc<Self>, node: NodeId, identity: Arc<Identity>, name: &str) {
        if let Some(warning) = lock(&self.trust.warning).take() {
            self.warn(warning);
        }
        self.with_trust(|trust| {
            trust.set_identity(node, identity);
            trust.set_registry(name);
        });
        for node in self.trusted_nodes() {
            self.command(Command::Trusted(node, true));
        }
    }

    pub(crate) fn trust_identity(self: &Arc<Self>, node: NodeId, identity: Arc<Identity>) {
        self.with_trust(|trust| trust.set_identity(node, identity));
    }

    pub(crate) fn trusted_nodes(&self) -> Vec<NodeId> {
        lock(&self.trust.machine).trusted().map(|(node, _)| node).collect()
    }

    pub(crate) fn trust_key_known(self: &Arc<Self>, node: NodeId, key: [u8; 32]) {
        self.with_trust(|trust| trust.peer_key_known(node, &key));
    }

    /// The registry says that a peer withdrew its trust. The notice may have been overtaken by a new handshake,
    /// so it counts only if the registry still sees no trust once we have said all we have to say.
    pub(crate) fn trust_revoked_at_registry(self: &Arc<Self>, peer: NodeId) {
        let shared = self.clone();
        self.spawn(async move {
            loop {
                shared.lane_idle(peer).await;
                let grants = shared.trust.grants.load(Ordering::Relaxed);
                // A request of ours that is under way is no trust, and stands.
                if !shared.trust.is_trusted(peer) || shared.registry_trusts(peer).await == Ok(true) {
                    return;
                }
                if grants == shared.trust.grants.load(Ordering::Relaxed) {
                    break;
                }
            }
            shared.directory.forget(peer);
            shared.with_trust(|trust| trust.is_trusted(peer) && trust.revoked_at_registry(peer));
        });
    }

    // ---- what the user decides ---------------------------------------------------------------------------

    pub(crate) async fn handshake(
        self: &Arc<Self>,
        node: NodeId,
        justification: &str,
    ) -> Result<HandshakeSent, String> {
        if node == self.node() {
            return Ok(HandshakeSent::AlreadyTrusted);
        }
        /// Takes the node off the list when the request is sent or given up.
        struct Sending<'a>(&'a Mutex<HashSet<NodeId>>, NodeId);
        impl Drop for Sending<'_> {
            fn drop(&mut self) {
                lock(self.0).remove(&self.1);
            }
        }
        if !lock(&self.trust.sending).insert(node) {
            return Ok(HandshakeSent::InFlight);
        }
        let _sending = Sending(&self.trust.sending, node);
        self.consent(node).await?;
        let requested = self.with_trust(|trust| trust.request(unix_now(), node, justification));
        let delivery = match requested {
            Requested::AlreadyTrusted => return Ok(HandshakeSent::AlreadyTrusted),
            Requested::Send(delivery) => delivery,
        };
        // Its answer must find what was asked.
        self.trust_kept().await?;
        // A revoke that is still under way must arrive first.
        self.lane_idle(node).await;
        self.command(Command::ReplyWindow(node));
        self.deliver(delivery).await?;
        self.trust.polling.request_sent();
        Ok(HandshakeSent::Sent)
    }

    pub(crate) async fn approve(self: &Arc<Self>, node: NodeId) -> Result<ApproveOutcome, String> {
        self.consent(node).await?;
        let outcome = self.with_trust(|trust| trust.approve(unix_now(), node));
        let outcome = match outcome {
            // Perhaps the request waits at the registry.
            Approved::NothingPending => {
                self.poll_handshakes_on_demand().await;
                self.with_trust(|trust| trust.approve(unix_now(), node))
            }
            outcome => outcome,
        };
        match outcome {
            Approved::Approved => {
                self.trust_kept().await?;
                Ok(ApproveOutcome::Approved)
            }
            Approved::AlreadyTrusted => Ok(ApproveOutcome::AlreadyTrusted),
            Approved::NothingPending => Ok(ApproveOutcome::NothingPending),
            Approved::Full => Err(format!(
                "too many trusted peers (max {}); untrust some first",
                pilot_proto::trust::MAX_TRUSTED
            )),
        }
    }

    pub(crate) async fn reject(self: &Arc<Self>, node: NodeId, reason: &str) -> Result<bool, String> {
        let mut rejected = self.with_trust(|trust| trust.reject(unix_now(), node, reason));
        if !rejected {
            self.poll_handshakes_on_demand().await;
            rejected = self.with_trust(|trust| trust.reject(unix_now(), node, reason));
        }
        self.trust_kept().await?;
        Ok(rejected)
    }

    pub(crate) async fn revoke(self: &Arc<Self>, node: NodeId) -> Result<(), String> {
        self.with_trust(|trust| trust.revoke(unix_now(), node)).map_err(|e| e.to_string())?;
        self.trust_kept().await
    }

    pub(crate) async fn wait_for_trust(self: &Arc<Self>, node: NodeId, limit: Duration) -> TrustWait {
        let mut outcomes = self.trust.outcomes.subscribe();
        if !self.trust.is_trusted(node) {
            let shared = self.clone();
            self.spawn(async move { shared.poll_handshakes_on_demand().await });
        }
        // A question about the present, answered like the list of the trusted: a save of something else that is under
        // way must not make it a no.
        if limit.is_zero() {
            return self.trust.outcome(node).unwrap_or(TrustWait::TimedOut);
        }
        let waiting = async {
            loop {
                if let Some(outcome) = self.trust.outcome(node) {
                    return outcome;
                }
                match outcomes.recv().await {
                    // The state says the same, also when messages were missed.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return TrustWait::TimedOut,
                }
            }
        };
        let told = async {
            let outcome = waiting.await;
            self.trust_durable().await;
            outcome
        };
        tokio::select! {
            // What is known already is told, also when the time is up.
            biased;
            outcome = told => outcome,
            () = tokio::time::sleep(limit) => TrustWait::TimedOut,
            () = self.stopped() => TrustWait::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_file_that_cannot_be_read_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.json");
        std::fs::write(&path, b"{\"trusted\": [\xFF]}").unwrap();
        let config =
            NodeConfig { identity_path: Some(dir.path().join("identity.json")), ..NodeConfig::default() };
        let identity = Arc::new(Identity::from_seed([1; 32]).unwrap());
        let state = TrustState::load(&config, identity).unwrap();
        let warning = lock(&state.warning).clone().unwrap();
        assert!(warning.contains("stream did not contain valid UTF-8; starting without trust"), "{warning}");
        assert!(!path.exists());
        assert_eq!(std::fs::read(dir.path().join("trust.json.bad")).unwrap(), b"{\"trusted\": [\xFF]}");
    }
}
