//! One registry connection: frames in, answers out, in order.

use crate::admission::Place;
use crate::beacon::task::Hint;
use crate::cost::{self, Permit};
use crate::push::{self, Push};
use crate::registry::request::{Request, error};
use crate::registry::{After, Checked, Effect, Now, Session, changes};
use crate::server::{Shared, stopped};
use crate::wire::{body, header, write_frame};
use pilot_proto::NodeId;
use serde_json::{Map, Value};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

/// A connection without a whole request for this long is closed.
const READ_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// The same before its first request.
pub(crate) const FIRST_DEADLINE: Duration = Duration::from_secs(30);
/// A request that has begun must be complete within this time: memory is not held for those who never finish.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// An answer must be taken within this time.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before each request over the connection's rate.
const SLOW_DOWN: Duration = Duration::from_millis(10);

/// Reads one request's body. `None`: the client has left. The permit is held as long as the request is.
async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    buf: &mut Vec<u8>,
    idle: Duration,
    budget: &cost::Budget,
) -> std::io::Result<Option<Permit>> {
    let late = |what: &str| std::io::Error::new(std::io::ErrorKind::TimedOut, what.to_owned());
    let mut first = [0];
    let begun = timeout(idle, stream.read(&mut first)).await.map_err(|_| late("idle"))??;
    if begun == 0 {
        return Ok(None);
    }
    let rest = async {
        let length = header(stream, first[0]).await?;
        let permit = budget.room_for(length).await;
        body(stream, length, buf).await?;
        Ok(Some(permit))
    };
    timeout(BODY_DEADLINE, rest).await.map_err(|_| late("the request was not complete in time"))?
}

/// Serves a connection until either side closes it.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: Arc<Shared>,
    mut session: Session,
    mut place: Option<Place>,
    mut stop: watch::Receiver<bool>,
) {
    let mut buf = Vec::new();
    let mut in_doubt: Option<(NodeId, u64)> = None;
    let mut pace = crate::limits::Meter::new(shared.limits.requests);
    let mut idle = FIRST_DEADLINE;
    loop {
        let read = tokio::select! {
            read = read(&mut stream, &mut buf, idle, &shared.budget) => read,
            _ = stopped(&mut stop) => break,
        };
        let permit = match read {
            Ok(Some(permit)) => permit,
            Ok(None) => break,
            Err(e) => {
                tracing::debug!(peer = %session.peer, error = %e, "connection closed");
                break;
            }
        };
        idle = READ_DEADLINE;
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(&buf) else {
            tracing::debug!(peer = %session.peer, "request is no JSON object, closed");
            break;
        };
        if let Some((node, up_to)) = in_doubt.take() {
            // Strict request and answer: the client has read the answer before this one.
            shared.registry().delivery_confirmed(node, up_to);
        }
        if !session.exempt && pace.charge(1, Instant::now(), Duration::ZERO).is_err() {
            tokio::time::sleep(SLOW_DOWN).await;
        }
        let (answer, after) = match shared.budget.pay(&session, Request(&body), buf.len()).await {
            Ok(_listing) => answer(&shared, &mut session, &body).await,
            Err(refused) => (error(&refused.0), After::Nothing),
        };
        drop((permit, body));
        if let Some(place) = &mut place {
            place.used(!session.proven.is_empty(), Instant::now());
        }
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
                feed(&mut stream, messages, waiting, place, stop).await;
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
    let to_check = if session.vouched(req) { None } else { shared.registry().to_check(req) };
    session.checked = to_check.map(|(key, text, signature)| Checked::run(key, text, signature));
    if session.checked.as_ref().is_some_and(|c| !c.good) {
        shared.budget.bad_signature(session);
    }
    let (answer, after, commit, effects) = {
        let mut registry = shared.registry();
        let (answer, after) = registry.handle(session, body, Now::read());
        let writes = registry.take_writes();
        let effects = registry.take_effects();
        // Under the lock, so that writes are stored in the order in which they happened. A change that was made already, by
        // a request that was repeated, may be on its way to the disk still: it is waited for as well.
        let commit = (!writes.is_empty() || changes(req.kind())).then(|| shared.store.submit(writes));
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
    } else if req.kind() == "register"
        && let Some(node) = answer["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok())
    {
        let endpoint = answer["observed_addr"].as_str().and_then(|at| at.parse::<SocketAddr>().ok());
        shared.hint(Hint::Registered(node, endpoint.map(|at| at.ip().to_canonical())));
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
            shared.hint(Hint::Handshake(*node));
        }
    }
}

/// Sends pushes and pings until either side ends it.
async fn feed<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut messages: push::Messages,
    waiting: bool,
    mut place: Option<Place>,
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
                    push = messages.next() => match push {
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
        if let Some(place) = &mut place {
            place.used(true, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Snapshot, Store, StoreError, Write};
    use pilot_proto::crypto::Identity;
    use pilot_proto::registry::challenge;
    use serde_json::json;
    use std::sync::atomic::AtomicBool;

    /// A disk that is full while the flag is set.
    struct Disk(Arc<AtomicBool>);

    impl Store for Disk {
        fn load(&mut self) -> Result<Snapshot, StoreError> {
            Ok(Snapshot::default())
        }
        fn commit(&mut self, _: &[Write]) -> Result<(), StoreError> {
            if self.0.load(Ordering::SeqCst) { Err(StoreError("disk full".into())) } else { Ok(()) }
        }
    }

    async fn ask(shared: &Shared, session: &mut Session, request: Value) -> Value {
        answer(shared, session, request.as_object().unwrap()).await.0
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_that_the_disk_did_not_take_and_presence_goes_on() {
        let full = Arc::new(AtomicBool::new(false));
        let (shared, _notified) = Shared::for_tests(Box::new(Disk(full.clone())));
        let mut session = Session::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1".parse().unwrap(), true);
        let identity = Identity::from_seed([1; 32]).unwrap();
        let key = identity.public_key_base64();
        let signature = identity.sign_text(&challenge::register("", &key));
        let register =
            json!({"type": "register", "public_key": key, "listen_addr": "", "signature": signature});
        let own = |verb: &str, fields: Value| {
            let mut request = fields;
            request["type"] = json!(verb);
            request["node_id"] = json!(1);
            request["signature"] = json!(identity.sign_text(&challenge::own(verb, 1)));
            request
        };
        assert_eq!(ask(&shared, &mut session, register).await["type"], "register_ok");
        full.store(true, Ordering::SeqCst);
        // The first finds out, the second is refused before it changes anything.
        for name in ["a", "b"] {
            let answer = ask(&shared, &mut session, own("set_hostname", json!({"hostname": name}))).await;
            let text = answer["error"].as_str().unwrap();
            assert!(text.starts_with("registry storage unavailable") && text.contains("disk full"), "{text}");
        }
        let unknown = ask(&shared, &mut session, json!({"type": "resolve_hostname", "hostname": "b"})).await;
        assert!(unknown["error"].is_string());
        assert_eq!(ask(&shared, &mut session, own("heartbeat", json!({}))).await["type"], "heartbeat_ok");
        assert_eq!(
            ask(&shared, &mut session, own("poll_handshakes", json!({}))).await["requests"],
            json!([])
        );
        full.store(false, Ordering::SeqCst);
        // The writer stores what failed by itself; then changes are taken again.
        while shared.store.failed().is_some() {
            tokio::task::yield_now().await;
        }
        let answer = ask(&shared, &mut session, own("set_hostname", json!({"hostname": "c"}))).await;
        assert_eq!(answer["type"], "set_hostname_ok");
        assert_eq!(shared.errors.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_handshake_is_hinted_to_the_beacon_once_it_is_stored() {
        let full = Arc::new(AtomicBool::new(false));
        let (shared, mut hinted) = Shared::for_tests(Box::new(Disk(full.clone())));
        let mut session = Session::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1".parse().unwrap(), true);
        let nodes: Vec<Identity> = (1..3).map(|seed| Identity::from_seed([seed; 32]).unwrap()).collect();
        for node in &nodes {
            let key = node.public_key_base64();
            let signature = node.sign_text(&challenge::register("", &key));
            let request =
                json!({"type": "register", "public_key": key, "listen_addr": "", "signature": signature});
            ask(&shared, &mut session, request).await;
        }
        let signature = nodes[0].sign_text(&challenge::pair("handshake", 1, 2));
        let request =
            json!({"type": "request_handshake", "from_node_id": 1, "to_node_id": 2, "signature": signature});
        assert_eq!(ask(&shared, &mut session, request).await["status"], "delivered");
        let hints: Vec<Hint> = std::iter::from_fn(|| hinted.try_recv().ok()).collect();
        let here = Some("127.0.0.1".parse().unwrap());
        let expected = [Hint::Registered(1, here), Hint::Registered(2, here), Hint::Handshake(2)];
        assert_eq!(hints, expected);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

        #[test]
        fn arbitrary_bytes_end_in_answers_or_a_closed_connection(
            frames in proptest::collection::vec(
                (proptest::prelude::any::<bool>(), proptest::collection::vec(0u8..=255, 0..40), "[{}\\[\\]\":,a-z0-9]{0,40}"),
                0..6,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (shared, _notified) = Shared::for_tests(Box::new(Disk(Arc::default())));
                let (mut client, server) = tokio::io::duplex(1 << 16);
                let session = Session::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1".parse().unwrap(), true);
                let (_stop, stopping) = watch::channel(false);
                for (framed, bytes, text) in frames {
                    let object = format!("{{\"type\":\"lookup\",\"x\":{text}}}");
                    for body in [text.as_bytes(), object.as_bytes(), &bytes] {
                        if framed {
                            let header = (body.len() as u32).to_be_bytes();
                            tokio::io::AsyncWriteExt::write_all(&mut client, &header).await.unwrap();
                        }
                        tokio::io::AsyncWriteExt::write_all(&mut client, body).await.unwrap();
                    }
                }
                tokio::io::AsyncWriteExt::shutdown(&mut client).await.unwrap();
                serve(server, shared, session, None, stopping).await;
                let mut answers = Vec::new();
                client.read_to_end(&mut answers).await.unwrap();
                let mut rest = &answers[..];
                while let [a, b, c, d, body @ ..] = rest {
                    let (answer, after) = body.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
                    assert!(serde_json::from_slice::<Value>(answer).unwrap()["type"].is_string());
                    rest = after;
                }
                assert!(rest.is_empty());
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_not_completed_does_not_hold_its_memory_for_long() {
        use tokio::io::AsyncWriteExt as _;
        let (mut client, mut server) = tokio::io::duplex(1 << 21);
        client.write_all(&[0, 15, 0, 0]).await.unwrap();
        client.write_all(&vec![b' '; 900_000]).await.unwrap();
        let budget = cost::Budget::new(&crate::config::Limits::default());
        let began = tokio::time::Instant::now();
        let error = read(&mut server, &mut Vec::new(), READ_DEADLINE, &budget).await.err().unwrap();
        assert_eq!(error.to_string(), "the request was not complete in time");
        assert_eq!(began.elapsed(), BODY_DEADLINE);
        // Between requests a client may be silent for longer.
        let (_client, mut server) = tokio::io::duplex(64);
        let began = tokio::time::Instant::now();
        let error = read(&mut server, &mut Vec::new(), READ_DEADLINE, &budget).await.err().unwrap();
        assert_eq!(error.to_string(), "idle");
        assert_eq!(began.elapsed(), READ_DEADLINE);
    }
}
