//! Carrying handshakes: port 444, the registry's relay, polling (spec 06 sections 2.2, 2.8, 2.11).

use crate::command::Command;
use crate::listener::Listener;
use crate::node::dial;
use crate::registry::RegistryError;
use crate::shared::Shared;
use crate::stream::Stream;
use crate::{lock, unix_now};
use bytes::Bytes;
use pilot_proto::registry::challenge;
use pilot_proto::trust::message::MAX_MESSAGE;
use pilot_proto::trust::{Action, Delivery, Facts, Incoming, Kind, Refusal, Relay};
use pilot_proto::{Addr, NodeId};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// The trust handshake's port.
pub(crate) const PORT: u16 = 444;
/// Time for a direct message, from dial to acknowledged close.
const DIRECT: Duration = Duration::from_millis(1500);
/// Time a connection to port 444 gets to deliver its message.
const MESSAGE: Duration = Duration::from_secs(10);
/// Time it stays open after that for its sender to close it.
const LINGER: Duration = Duration::from_millis(500);
/// Messages handled at the same time.
const SERVING: usize = 64;
/// Messages of one peer handled at the same time; further connections are closed.
const SERVING_PEER: usize = 8;
/// Reads one message may take. Each looks at all bytes so far; 64 KiB in segments of 1,152 bytes are 57.
const MAX_READS: usize = 128;
/// Peers that actions are carried out for at the same time.
const WORKING: usize = 32;
/// Least time between polls that users or beacons cause.
const POLL_PAUSE: Duration = Duration::from_secs(2);
/// Longest a user's command is held up by a poll.
const POLL_LIMIT: Duration = Duration::from_secs(3);
/// Polls that notices of the beacon may cause: burst, and time for one more.
const NOTICES: (u32, Duration) = (3, Duration::from_secs(5));

static WORKERS: Semaphore = Semaphore::const_new(WORKING);

/// When and why to poll.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    /// Poll now.
    wanted: Notify,
    /// A request was sent; without push its answer is polled for.
    sent: Notify,
    /// A poll in flight; the time the last one began.
    last: tokio::sync::Mutex<Option<Instant>>,
    notices: Mutex<Option<(f64, Instant)>>,
    /// A lane has become empty, or a message of a peer has been handled.
    lane_done: Notify,
}

impl Polling {
    pub(crate) fn request_sent(&self) {
        self.sent.notify_one();
    }

    /// Waits until no poll is in flight.
    pub(crate) async fn finished(&self) {
        drop(self.last.lock().await);
    }

    /// Takes a token of the beacon's bucket.
    fn notice(&self) -> bool {
        let mut bucket = lock(&self.notices);
        let now = Instant::now();
        let (tokens, at) = bucket.unwrap_or((f64::from(NOTICES.0), now));
        let refill = now.duration_since(at).as_secs_f64() / NOTICES.1.as_secs_f64();
        let tokens = (tokens + refill).min(f64::from(NOTICES.0));
        *bucket = Some((if tokens >= 1.0 { tokens - 1.0 } else { tokens }, now));
        tokens >= 1.0
    }
}

impl Shared {
    // ---- sending -----------------------------------------------------------------------------------------

    /// Carries out the network actions of one peer, in order.
    pub(crate) async fn work(self: Arc<Self>, node: NodeId) {
        let Ok(_permit) = WORKERS.acquire().await else { return };
        loop {
            let action = {
                let mut lanes = lock(&self.trust.lanes);
                let action = lanes.get_mut(&node).and_then(std::collections::VecDeque::pop_front);
                if action.is_none() {
                    lanes.remove(&node);
                }
                action
            };
            let Some(action) = action else {
                self.trust.polling.lane_done.notify_waiters();
                return;
            };
            // Nobody is told what a crash could undo.
            self.trust_durable().await;
            match action {
                Action::Deliver(delivery) => {
                    if let Err(error) = self.deliver(delivery).await {
                        tracing::debug!(node, error, "handshake message not delivered");
                    }
                }
                Action::ReportTrust(node) => {
                    if let Err(error) = self.about(node, "report_trust").await {
                        tracing::warn!(node, %error, "trust not reported to the registry");
                    }
                    // A refusal from before is void.
                    self.directory.forget(node);
                }
                // The other side may have been faster; then there is no pair any more.
                Action::RevokeTrust(node) => {
                    if let Err(error) = self.about(node, "revoke_trust").await {
                        tracing::debug!(node, %error, "trust not revoked at the registry");
                    }
                }
                Action::BackfillKey(node) => {
                    // A key that contradicts the pinned one is an alarm, and nothing the trust may rest on.
                    if let Some(key) = self.believed_key(node).await {
                        self.trust_key_known(node, key);
                    }
                }
                Action::TearDown(node) => {
                    // A peer that ended trust waits for our close of its message.
                    let _ = timeout(LINGER, self.served(node)).await;
                    self.directory.forget(node);
                    self.command(Command::Forget(node));
                }
                _ => {}
            }
        }
    }

    /// Waits until nothing is being sent to a peer.
    pub(crate) async fn lane_idle(&self, node: NodeId) {
        loop {
            let done = self.trust.polling.lane_done.notified();
            tokio::pin!(done);
            // Registered before the look, so that no end is missed.
            done.as_mut().enable();
            if !lock(&self.trust.lanes).contains_key(&node) {
                return;
            }
            done.await;
        }
    }

    /// Waits until no message of a peer is being handled.
    async fn served(&self, node: NodeId) {
        loop {
            let done = self.trust.polling.lane_done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if !lock(&self.trust.serving).contains_key(&node) {
                return;
            }
            done.await;
        }
    }

    /// `report_trust` or `revoke_trust`.
    async fn about(&self, peer: NodeId, verb: &str) -> Result<Value, RegistryError> {
        let (node, identity) = self.state(|s| (s.node, s.identity.clone()));
        let signature = identity.sign_text(&challenge::pair(verb, node, peer));
        let request = json!({"type": verb, "node_id": node, "peer_id": peer, "signature": signature});
        self.registry.request(request).await
    }

    /// Brings a message to a peer. Success of one way is success; the error names both failures.
    pub(crate) async fn deliver(self: &Arc<Self>, delivery: Delivery) -> Result<(), String> {
        let Delivery { node, direct, relay, relay_also } = delivery;
        if relay_also && relay != Relay::None {
            // The sure way first, it takes a millisecond; the direct one need not hold up the caller.
            let relayed = self.relay(node, &relay).await;
            let shared = self.clone();
            let direct = async move {
                match direct {
                    Some(bytes) => shared.direct(node, bytes).await,
                    None => Err("no direct form".into()),
                }
            };
            return match relayed {
                Ok(()) => {
                    self.spawn(async move {
                        if let Err(error) = direct.await {
                            tracing::debug!(node, error, "relayed only");
                        }
                    });
                    Ok(())
                }
                Err(first) => direct.await.map_err(|second| format!("relay: {first}; direct: {second}")),
            };
        }
        let first = match direct {
            Some(bytes) => match self.direct(node, bytes).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            None => String::new(),
        };
        if relay == Relay::None {
            return Err(format!("direct: {first}"));
        }
        self.relay(node, &relay).await.map_err(|second| match first.is_empty() {
            true => format!("relay: {second}"),
            false => format!("direct: {first}; relay: {second}"),
        })
    }

    /// One message on a stream to port 444, acknowledged. A private peer cannot be resolved by a stranger, so
    /// this fails at once where it would fail in the end.
    async fn direct(&self, node: NodeId, bytes: Vec<u8>) -> Result<(), String> {
        let mut written = false;
        let send = async {
            let stream = dial(self, Addr::backbone(node), PORT).await.map_err(|e| e.to_string())?;
            let (mut reader, mut writer) = stream.split();
            writer.write(Bytes::from(bytes)).await.map_err(|e| e.to_string())?;
            written = true;
            // The peer's close answers ours: the message is there, and tearing the tunnel down loses nothing. A
            // node of our kind closes when it has acted on the message, so that what we do next comes after it.
            if !writer.finish() {
                writer.close();
            }
            while reader.read().await.is_some() {}
            Ok(())
        };
        match timeout(DIRECT, send).await {
            Ok(result) => result,
            Err(_) if written => Ok(()),
            Err(_) => Err("no answer".into()),
        }
    }

    async fn relay(&self, peer: NodeId, form: &Relay) -> Result<(), String> {
        let (node, identity) = self.state(|s| (s.node, s.identity.clone()));
        let request = match form {
            Relay::Request { justification } => json!({
                "type": "request_handshake",
                "from_node_id": node,
                "to_node_id": peer,
                "justification": justification,
                "signature": identity.sign_text(&challenge::pair("handshake", node, peer)),
            }),
            Relay::Respond { accept } => json!({
                "type": "respond_handshake",
                "node_id": node,
                "peer_id": peer,
                "accept": accept,
                "signature": identity.sign_text(&challenge::pair("respond", node, peer)),
            }),
            Relay::None => return Err("not relayed".into()),
        };
        match self.registry.request(request).await {
            Ok(_) => Ok(()),
            // It is there already; that is what was wanted.
            Err(RegistryError::Refused(text)) if text.contains("already pending") => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    // ---- receiving directly ------------------------------------------------------------------------------

    /// Takes messages on port 444.
    pub(crate) async fn serve_handshakes(self: Arc<Self>, mut listener: Listener) {
        let room = Arc::new(Semaphore::new(SERVING));
        while let Some(stream) = listener.accept().await {
            // Before the room for all is used: one peer must not take it.
            let Some(serving) = Serving::new(self.clone(), stream.remote().node) else {
                stream.close();
                continue;
            };
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let shared = self.clone();
            self.spawn(async move {
                let _permit = permit;
                shared.serve_handshake(stream, serving).await;
            });
        }
    }

    async fn serve_handshake(self: &Arc<Self>, mut stream: Stream, _serving: Serving) {
        let transport = stream.remote().node;
        let mut bytes = Vec::new();
        let message = timeout(MESSAGE, async {
            for _ in 0..MAX_READS {
                let Some(more) = stream.read().await else { return Err(Refusal::Incomplete) };
                bytes.extend_from_slice(&more);
                match self.with_trust(|trust| trust.examine(unix_now(), transport, &bytes)) {
                    Err(Refusal::Incomplete) if bytes.len() <= MAX_MESSAGE => {}
                    result => return result,
                }
            }
            Err(Refusal::Incomplete)
        });
        let result = match message.await {
            Ok(Ok(message)) => self.received(message).await,
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Err(Refusal::Incomplete),
        };
        match result {
            // Our close of the connection says that the message has done its work.
            Ok(()) => {
                if timeout(MESSAGE, self.trust_durable()).await.is_err() {
                    return;
                }
            }
            Err(refusal) => tracing::debug!(transport, %refusal, "handshake message dropped"),
        }
        let _ = timeout(LINGER, async { while stream.read().await.is_some() {} }).await;
        drop(stream);
        self.ask(Command::Flush).await;
    }

    async fn received(self: &Arc<Self>, message: Incoming) -> Result<(), Refusal> {
        let node = message.node;
        let record = self.lookup(node).await;
        let registry_key = self.judge_key(node, &record);
        let record = record.ok();
        let shared_network = match (message.kind, &record) {
            (Kind::Request, Some(record)) => self.shared_network(record),
            _ => 0,
        };
        let facts = Facts { registry_key, shared_network };
        let became = self.with_trust(|trust| trust.receive_direct(unix_now(), message, facts))?;
        tracing::debug!(node, ?became, "handshake message");
        Ok(())
    }

    /// The first network, beside the backbone, that a node of this record shares with us; 0: none.
    fn shared_network(&self, record: &Value) -> u16 {
        let theirs = record["networks"].as_array().into_iter().flatten();
        let theirs: Vec<u16> = theirs.filter_map(|n| u16::try_from(n.as_u64()?).ok()).collect();
        self.state(|s| s.networks.iter().copied().find(|n| theirs.contains(n)).unwrap_or_default())
    }

    // ---- receiving through the registry ------------------------------------------------------------------

    /// Polls when asked, and every 2 s for an answer if the registry does not push.
    pub(crate) async fn keep_polling(self: Arc<Self>) {
        let polling = &self.trust.polling;
        loop {
            let fast = !self.registry.features().push && self.trust.awaits_answer();
            tokio::select! {
                () = polling.wanted.notified() => {}
                () = polling.sent.notified() => continue,
                () = tokio::time::sleep(POLL_PAUSE), if fast => {}
            }
            let mut last = polling.last.lock().await;
            *last = Some(Instant::now());
            if let Err(error) = self.poll().await {
                tracing::debug!(%error, "handshake poll failed");
            }
            self.with_trust(|trust| trust.handle_time(unix_now()));
        }
    }

    /// Polls as soon as no other poll runs.
    pub(crate) fn poll_handshakes_soon(&self) {
        self.trust.polling.wanted.notify_one();
    }

    /// The beacon says that something waits.
    pub(crate) fn poll_on_notice(&self) {
        if self.trust.polling.notice() {
            self.poll_handshakes_soon();
        }
    }

    /// A poll for a user who wants to see fresh state: at most one per 2 s, waited for at most 3 s.
    pub(crate) async fn poll_handshakes_on_demand(self: &Arc<Self>) {
        let shared = self.clone();
        // In a task of its own: an answer that empties the inbox must be taken even if nobody waits any more.
        let poll = tokio::spawn(async move {
            let mut last = shared.trust.polling.last.lock().await;
            if last.is_some_and(|at| at.elapsed() < POLL_PAUSE) {
                return;
            }
            *last = Some(Instant::now());
            if let Err(error) = shared.poll().await {
                tracing::debug!(%error, "handshake poll failed");
            }
        });
        let _ = timeout(POLL_LIMIT, poll).await;
    }

    /// One poll. The caller holds the polling lock.
    async fn poll(self: &Arc<Self>) -> Result<(), RegistryError> {
        let (node, identity) = self.state(|s| (s.node, s.identity.clone()));
        let keep = self.registry.features().handshake_ack;
        let mut request = json!({
            "type": "poll_handshakes",
            "node_id": node,
            "signature": identity.sign_text(&challenge::own("poll_handshakes", node)),
        });
        if keep {
            request["keep"] = true.into();
        }
        let answer = self.registry.request(request).await?;
        let from = |entry: &Value| entry["from_node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok());
        let list = |key: &str| answer[key].as_array().into_iter().flatten();
        let networked = self.state(|s| !s.networks.is_empty());
        for entry in list("requests") {
            let Some(peer) = from(entry) else { continue };
            let mut shared_network = 0;
            if networked
                && !self.trust.is_trusted(peer)
                && let Ok(record) = self.lookup(peer).await
            {
                shared_network = self.shared_network(&record);
            }
            let text = entry["justification"].as_str().unwrap_or_default();
            let became = self
                .with_trust(|trust| trust.receive_relayed_request(unix_now(), peer, text, shared_network));
            tracing::debug!(peer, ?became, "relayed handshake request");
        }
        for entry in list("responses") {
            let Some(peer) = from(entry) else { continue };
            let accept = entry["accept"] == true;
            // A route refused while there was no trust must not outlive the answer.
            self.directory.forget(peer);
            let became = self.with_trust(|trust| trust.receive_relayed_response(unix_now(), peer, accept));
            tracing::debug!(peer, ?became, "relayed handshake response");
        }
        if keep
            && let Some(up_to) = answer["up_to"].as_u64()
            && list("requests").next().or(list("responses").next()).is_some()
        {
            // Kept on disk before the registry forgets it.
            if let Err(error) = self.save_trust().await {
                tracing::debug!(error, "the registry keeps what it delivered");
                return Ok(());
            }
            let acknowledge = json!({
                "type": "ack_handshakes",
                "node_id": node,
                "up_to": up_to,
                "signature": identity.sign_text(&challenge::ack_handshakes(node, up_to)),
            });
            self.registry.request(acknowledge).await?;
        }
        Ok(())
    }
}

/// Counts the messages of a peer that are being handled.
struct Serving(Arc<Shared>, NodeId);

impl Serving {
    /// `None`: there are [`SERVING_PEER`] already.
    fn new(shared: Arc<Shared>, node: NodeId) -> Option<Serving> {
        {
            let mut serving = lock(&shared.trust.serving);
            let count = serving.entry(node).or_default();
            if *count >= SERVING_PEER {
                return None;
            }
            *count += 1;
        }
        Some(Serving(shared, node))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut serving = lock(&self.0.trust.serving);
        if let Some(count) = serving.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                serving.remove(&self.1);
            }
        }
        self.0.trust.polling.lane_done.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_of_the_beacon_are_rationed() {
        let polling = Polling::default();
        let taken = (0..10).filter(|_| polling.notice()).count();
        assert_eq!(taken, 3);
    }
}
