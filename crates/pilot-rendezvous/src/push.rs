//! Push connections: who listens, and telling them (docs/extensions.md).

use crate::registry::Effect;
use pilot_proto::NodeId;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Messages waiting for one subscriber. One that is further behind is disconnected; it polls when it is back.
const QUEUE: usize = 64;

/// What a subscriber is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Push {
    Handshake,
    TrustRevoked(NodeId),
    Superseded,
}

impl Push {
    pub fn message(&self) -> Value {
        match self {
            Push::Handshake => json!({"type": "push", "kind": "handshake"}),
            Push::TrustRevoked(peer) => json!({"type": "push", "kind": "trust_revoked", "peer_id": peer}),
            Push::Superseded => json!({"type": "push", "kind": "superseded"}),
        }
    }
}

/// The message that shows that the connection lives.
pub(crate) fn ping() -> Value {
    json!({"type": "push", "kind": "ping"})
}

#[derive(Debug)]
struct Subscriber {
    serial: u64,
    instance: String,
    queue: mpsc::Sender<Push>,
    /// A handshake hint is queued already; one is enough.
    hinted: Arc<AtomicBool>,
}

/// The reading end of a subscription.
#[derive(Debug)]
pub(crate) struct Messages {
    queue: mpsc::Receiver<Push>,
    hinted: Arc<AtomicBool>,
}

impl Messages {
    /// The next message; `None` when the subscription has ended.
    pub async fn next(&mut self) -> Option<Push> {
        let push = self.queue.recv().await;
        self.taken(push.as_ref());
        push
    }

    fn taken(&self, push: Option<&Push>) {
        if push == Some(&Push::Handshake) {
            self.hinted.store(false, Ordering::Release);
        }
    }

    #[cfg(test)]
    fn try_next(&mut self) -> Result<Push, mpsc::error::TryRecvError> {
        let push = self.queue.try_recv();
        self.taken(push.as_ref().ok());
        push
    }
}

/// All subscriptions; one per node.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    inner: Mutex<(u64, HashMap<NodeId, Subscriber>)>,
}

impl Subscriptions {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<NodeId, Subscriber>)> {
        // No code panics while it holds the lock, and the map stays whole anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes a connection, ending an earlier subscription of the node. Returns its serial number.
    pub fn add(&self, node: NodeId, instance: String) -> (u64, Messages) {
        let (queue, messages) = mpsc::channel(QUEUE);
        let hinted = Arc::new(AtomicBool::new(false));
        let messages = Messages { queue: messages, hinted: hinted.clone() };
        let mut inner = self.lock();
        inner.0 += 1;
        let serial = inner.0;
        inner.1.insert(node, Subscriber { serial, instance, queue, hinted });
        (serial, messages)
    }

    /// Ends a subscription, unless a later one took its place.
    pub fn remove(&self, node: NodeId, serial: u64) {
        let mut inner = self.lock();
        if inner.1.get(&node).is_some_and(|s| s.serial == serial) {
            inner.1.remove(&node);
        }
    }

    /// Tells whom an effect concerns.
    pub fn tell(&self, effect: &Effect) {
        let (node, push) = match effect {
            Effect::Handshake(node) => (*node, Push::Handshake),
            Effect::TrustRevoked { node, peer } => (*node, Push::TrustRevoked(*peer)),
            Effect::Superseded { node, .. } => (*node, Push::Superseded),
        };
        let mut inner = self.lock();
        let Some(subscriber) = inner.1.get(&node) else { return };
        if let Effect::Superseded { by, .. } = effect {
            // Processes without an instance never are superseded.
            if subscriber.instance == *by || subscriber.instance.is_empty() {
                return;
            }
        }
        if push == Push::Handshake && subscriber.hinted.swap(true, Ordering::AcqRel) {
            return;
        }
        // Dropping the sender ends the subscriber's connection once it has read what is queued.
        if subscriber.queue.try_send(push).is_err() || matches!(effect, Effect::Superseded { .. }) {
            inner.1.remove(&node);
        }
    }

    /// Open subscriptions.
    pub fn len(&self) -> usize {
        self.lock().1.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_instance_is_superseded_and_its_queue_ends() {
        let subs = Subscriptions::default();
        let (_, mut mine) = subs.add(1, "a".into());
        subs.tell(&Effect::Superseded { node: 1, by: "a".into() });
        assert!(mine.try_next().is_err());
        subs.tell(&Effect::Superseded { node: 1, by: "b".into() });
        assert_eq!(mine.try_next(), Ok(Push::Superseded));
        assert_eq!(mine.try_next(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(subs.len(), 0);
    }

    #[test]
    fn a_subscriber_that_does_not_read_is_dropped_not_buffered_for() {
        let subs = Subscriptions::default();
        let (_, mut messages) = subs.add(1, String::new());
        for peer in 0..=QUEUE as u32 {
            subs.tell(&Effect::TrustRevoked { node: 1, peer });
        }
        assert_eq!(subs.len(), 0);
        assert_eq!(std::iter::from_fn(|| messages.try_next().ok()).count(), QUEUE);
    }

    #[test]
    fn handshake_hints_are_merged_until_one_is_taken() {
        let subs = Subscriptions::default();
        let (_, mut messages) = subs.add(1, String::new());
        for _ in 0..1000 {
            subs.tell(&Effect::Handshake(1));
        }
        assert_eq!(messages.try_next(), Ok(Push::Handshake));
        assert!(messages.try_next().is_err());
        subs.tell(&Effect::Handshake(1));
        assert_eq!(messages.try_next(), Ok(Push::Handshake));
        assert_eq!(subs.len(), 1);
    }

    #[test]
    fn a_later_subscription_replaces_the_earlier_and_outlives_its_removal() {
        let subs = Subscriptions::default();
        let (first, mut old) = subs.add(1, String::new());
        let (_, mut new) = subs.add(1, String::new());
        subs.remove(1, first);
        subs.tell(&Effect::Handshake(1));
        assert_eq!(old.try_next(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(new.try_next(), Ok(Push::Handshake));
    }
}
