//! One registry connection: frames in, answers out, in order.

use crate::push::{self, Push};
use crate::registry::request::{Request, error};
use crate::registry::{After, Checked, Effect, Now, Session, changes};
use crate::server::{Shared, stopped};
use crate::wire::{read_frame, write_frame};
use pilot_proto::NodeId;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

/// A connection without a whole request for this long is closed.
const READ_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// An answer must be taken within this time.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before each request over the connection's rate.
const SLOW_DOWN: Duration = Duration::from_millis(10);

/// Serves a connection until either side closes it.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: Arc<Shared>,
    mut session: Session,
    mut stop: watch::Receiver<bool>,
) {
    let mut buf = Vec::new();
    let mut in_doubt: Option<(NodeId, u64)> = None;
    let mut pace = crate::limits::Buckets::new(shared.limits.requests);
    loop {
        let read = tokio::select! {
            read = timeout(READ_DEADLINE, read_frame(&mut stream, &mut buf)) => read,
            _ = stopped(&mut stop) => break,
        };
        match read {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => break,
            Ok(Err(e)) => {
                tracing::debug!(peer = %session.peer, error = %e, "connection closed");
                break;
            }
            Err(_) => {
                tracing::debug!(peer = %session.peer, "connection idle, closed");
                break;
            }
        }
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(&buf) else {
            tracing::debug!(peer = %session.peer, "request is no JSON object, closed");
            break;
        };
        if let Some((node, up_to)) = in_doubt.take() {
            // Strict request and answer: the client has read the answer before this one.
            shared.registry().delivery_confirmed(node, up_to);
        }
        if !session.exempt && !pace.take((), Instant::now()) {
            tokio::time::sleep(SLOW_DOWN).await;
        }
        let (answer, after) = answer(&shared, &mut session, &body).await;
        if !matches!(timeout(WRITE_DEADLINE, write_frame(&mut stream, &answer)).await, Ok(Ok(()))) {
            tracing::debug!(peer = %session.peer, "answer not taken, closed");
            break;
        }
        match after {
            After::Nothing => {}
            After::Delivered { node, up_to } => {
                let mut registry = shared.registry();
                registry.delivered(node, up_to, Now::read());
                let writes = registry.take_writes();
                // Not waited for: if it is lost, the entries are delivered again.
                drop(shared.store.submit(writes));
                in_doubt = Some((node, up_to));
            }
            After::Subscribed { node, instance, waiting } => {
                let (serial, messages) = shared.subscriptions.add(node, instance);
                feed(&mut stream, messages, waiting, stop).await;
                shared.subscriptions.remove(node, serial);
                return;
            }
        }
    }
    if let Some((node, up_to)) = in_doubt {
        shared.registry().delivery_broken(node, up_to, Now::read());
    }
}

/// Answers one request. What it changed is durable when this returns.
pub(crate) async fn answer(
    shared: &Shared,
    session: &mut Session,
    body: &Map<String, Value>,
) -> (Value, After) {
    let req = Request(body);
    shared.requests.fetch_add(1, Ordering::Relaxed);
    if changes(req.kind())
        && let Some(cause) = shared.store.failed()
    {
        shared.errors.fetch_add(1, Ordering::Relaxed);
        return (error(&unavailable(&cause)), After::Nothing);
    }
    // Signatures are checked without the lock. A heartbeat vouched for by an earlier one needs no check.
    let vouched =
        req.kind() == "heartbeat" && session.heartbeats.iter().any(|(n, ..)| *n == req.node("node_id"));
    let to_check = if vouched { None } else { shared.registry().to_check(req) };
    session.checked = to_check.map(|(key, text, signature)| Checked::run(key, text, signature));
    let (answer, after, commit, effects) = {
        let mut registry = shared.registry();
        let (answer, after) = registry.handle(session, body, Now::read());
        let writes = registry.take_writes();
        let effects = registry.take_effects();
        // Under the lock, so that writes are stored in the order in which they happened.
        let commit = (!writes.is_empty()).then(|| shared.store.submit(writes));
        (answer, after, commit, effects)
    };
    session.checked = None;
    if let Some(commit) = commit
        && let Err(cause) = commit.wait().await
    {
        tell(shared, &effects);
        shared.errors.fetch_add(1, Ordering::Relaxed);
        return (error(&unavailable(&cause)), After::Nothing);
    }
    tell(shared, &effects);
    if answer.get("error").is_some() {
        shared.errors.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(peer = %session.peer, request = req.kind(), error = %answer["error"], "refused");
    }
    (answer, after)
}

fn unavailable(cause: &crate::store::StoreError) -> String {
    format!("registry storage unavailable, the change cannot be kept; try again later: {cause}")
}

fn tell(shared: &Shared, effects: &[Effect]) {
    for effect in effects {
        shared.subscriptions.tell(effect);
        if let Effect::Handshake(node) = effect {
            // A full queue loses a hint, not a request.
            let _ = shared.notify.try_send(*node);
        }
    }
}

/// Sends pushes and pings until either side ends it.
async fn feed<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut messages: tokio::sync::mpsc::Receiver<Push>,
    waiting: bool,
    mut stop: watch::Receiver<bool>,
) {
    let mut next = waiting.then_some(Push::Handshake);
    let every = Duration::from_secs(crate::registry::PING_SECS);
    let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    loop {
        let message = match next.take() {
            Some(push) => push.message(),
            None => {
                let mut byte = [0];
                tokio::select! {
                    push = messages.recv() => match push {
                        Some(push) => push.message(),
                        None => return,
                    },
                    _ = pings.tick() => push::ping(),
                    // The client sends nothing: its end, or a mistake.
                    _ = stream.read(&mut byte) => return,
                    _ = stopped(&mut stop) => return,
                }
            }
        };
        if !matches!(timeout(WRITE_DEADLINE, write_frame(stream, &message)).await, Ok(Ok(()))) {
            return;
        }
    }
}
