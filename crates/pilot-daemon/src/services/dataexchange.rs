//! Data exchange (port 1001, spec 06 section 5): takes messages and files, and acknowledges what is on disk.

use super::ByteStream;
use super::client::frame_limit;
use super::files::{Stamps, StoreError, since_epoch};
use super::inbox::Inbox;
use super::received::{Received, Store, StoredFile};
use bytes::{Bytes, BytesMut};
use pilot::{Listener, Node};
use pilot_disk::Disk;
use pilot_proto::service::duplicates::{self, Claim, Duplicates, Key};
use pilot_proto::service::file_receiver::FileReceiver;
use pilot_proto::service::frame::{Decoder, Frame, FrameType};
use pilot_proto::service::message::{self, Body, Incoming, Tag, TraceAck};
use pilot_proto::{Addr, PilotSocketAddr as SocketAddr};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout_at};

/// A connection ends when no frame was completed for so long.
const IDLE: Duration = Duration::from_secs(120);
/// An acknowledgement must leave within this time.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Frames above this size, bytes, are gathered by at most [`LARGE_FRAMES`] connections at a time; the others wait,
/// and their senders with them.
const LARGE: usize = 1 << 20;
/// See [`LARGE`]. Bounds the memory strangers can make a public node hold: each frame has up to 64 MiB.
const LARGE_FRAMES: usize = 4;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Inbox,
    received: Arc<Received>,
    duplicates: Mutex<Duplicates>,
    /// Told whenever a claim ends.
    claims: Notify,
    large: Arc<Semaphore>,
    max_frame: u32,
}

impl Shared {
    pub(super) fn new(disk: &Disk, home: &Path, base64: bool) -> Arc<Shared> {
        let stamps = Arc::new(Stamps::default());
        let inbox = Inbox::new(disk.clone(), home.join("inbox"), stamps.clone(), base64);
        Shared::with(inbox, Received::new(disk.clone(), home.join("received"), stamps))
    }

    fn with(inbox: Inbox, received: Received) -> Arc<Shared> {
        Arc::new(Shared {
            inbox,
            received: Arc::new(received),
            duplicates: Mutex::new(Duplicates::new()),
            claims: Notify::new(),
            large: Arc::new(Semaphore::new(LARGE_FRAMES)),
            max_frame: frame_limit(),
        })
    }

    fn duplicates<T>(&self, f: impl FnOnce(&mut Duplicates) -> T) -> T {
        f(&mut self.duplicates.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves until the node stops.
pub(super) async fn serve(node: Node, mut listener: Listener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Some(stream) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (node, shared) = (node.clone(), shared.clone());
        connections.spawn(async move {
            let remote = SocketAddr { addr: stream.remote(), port: stream.remote_port() };
            connection(&shared, stream, remote, &|name, data| node.publish(name, data)).await;
        });
    }
}

type Publish<'a> = &'a (dyn Fn(&'static str, Value) + Sync);

/// Reads frames and answers them in order until the peer ends, breaks a rule or is silent for too long.
async fn connection(
    shared: &Arc<Shared>,
    mut stream: impl ByteStream,
    remote: SocketAddr,
    publish: Publish<'_>,
) {
    let mut session = Session::new(shared.clone(), remote.addr);
    if let Err(reason) = exchange(&mut session, &mut stream, remote, publish).await {
        tracing::debug!(%remote, reason, "data exchange closed");
    }
    session.finish().await;
}

/// The error is why this side ends the connection.
async fn exchange(
    session: &mut Session,
    stream: &mut impl ByteStream,
    remote: SocketAddr,
    publish: Publish<'_>,
) -> Result<(), String> {
    let mut deadline = Instant::now() + IDLE;
    loop {
        match timeout_at(deadline, stream.read()).await {
            Ok(Some(bytes)) => session.decoder.push(bytes),
            Ok(None) => return Ok(()),
            Err(_) => return Err("idle".to_owned()),
        }
        let waiting = Instant::now();
        session.admit_large().await;
        deadline += waiting.elapsed();
        while let Some(answer) = session.next().await? {
            deadline = Instant::now() + IDLE;
            for (name, data) in answer.events {
                publish(name, data);
            }
            if answer.bytes.is_empty() {
                continue;
            }
            let error = match tokio::time::timeout(WRITE_PATIENCE, stream.write(answer.bytes)).await {
                Ok(Ok(())) => continue,
                Ok(Err(ended)) => ended.to_string(),
                Err(_) => "the peer takes no acknowledgements".to_owned(),
            };
            let data = json!({"remote": remote.to_string(), "frame_type": answer.frame_type, "error": error});
            publish("dataexchange.ack_failed", data);
            return Err(error);
        }
    }
}

/// What one or more frames were answered with.
struct Answer {
    bytes: Bytes,
    events: Vec<(&'static str, Value)>,
    frame_type: String,
}

/// One connection's state.
struct Session {
    shared: Arc<Shared>,
    remote: Addr,
    decoder: Decoder,
    /// A frame that ended a run of transfer frames.
    ahead: Option<Frame>,
    /// `None` while a blocking task has it.
    transfers: Option<FileReceiver<Store>>,
    large: Option<OwnedSemaphorePermit>,
}

impl Session {
    fn new(shared: Arc<Shared>, remote: Addr) -> Session {
        let decoder = Decoder::new(shared.max_frame);
        let transfers = FileReceiver::new(Store { received: shared.received.clone(), from: remote.node });
        Session { shared, remote, decoder, ahead: None, transfers: Some(transfers), large: None }
    }

    /// Waits for leave to gather a large frame.
    async fn admit_large(&mut self) {
        if self.large.is_none() && self.decoder.buffered() > LARGE {
            // The semaphore is never closed.
            self.large = self.shared.large.clone().acquire_owned().await.ok();
        }
    }

    /// Handles the next frame, or the next run of transfer frames, and says what to answer. `None`: more bytes are
    /// needed. The error is a reason to close the connection.
    async fn next(&mut self) -> Result<Option<Answer>, String> {
        let Some(frame) = self.next_frame()? else {
            if self.decoder.buffered() <= LARGE {
                self.large = None;
            }
            return Ok(None);
        };
        let received_ns = now_ns();
        let incoming = message::parse(frame).map_err(|violation| violation.to_string())?;
        match incoming.body {
            Body::Stream(first) => self.transfer(first).await.map(Some),
            _ => Ok(Some(self.message(incoming, received_ns).await)),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, String> {
        match self.ahead.take() {
            Some(frame) => Ok(Some(frame)),
            None => self.decoder.next_frame().map_err(|error| error.to_string()),
        }
    }

    /// Handles transfer frames that have arrived together in one visit to the disk.
    async fn transfer(&mut self, first: Bytes) -> Result<Answer, String> {
        let mut run = vec![first];
        while let Some(frame) = self.next_frame()? {
            if frame.ty != FrameType::FILESTREAM {
                self.ahead = Some(frame);
                break;
            }
            run.push(frame.payload);
        }
        let Some(mut transfers) = self.transfers.take() else { return Err("transfers are gone".to_owned()) };
        let (remote, quota) = (self.remote, self.shared.received.quota());
        let work = spawn_blocking(move || {
            let mut bytes = BytesMut::new();
            let mut events = Vec::new();
            for payload in run {
                let handled = transfers.handle(&payload);
                if let Some(file) = handled.stored {
                    events.push(("file.received", file_event(remote, &file.name, &file, &Tag::default())));
                }
                if let Some(reply) = handled.reply {
                    if is_quota_refusal(&reply) {
                        let data =
                            json!({"type": "FILESTREAM", "frame_bytes": payload.len(), "max_bytes": quota});
                        events.push(("received.full", data));
                    }
                    bytes.extend_from_slice(&reply);
                }
            }
            (transfers, Answer { bytes: bytes.freeze(), events, frame_type: FrameType::FILESTREAM.name() })
        });
        let (transfers, answer) = work.await.map_err(|error| error.to_string())?;
        self.transfers = Some(transfers);
        Ok(answer)
    }

    async fn message(&mut self, incoming: Incoming, received_ns: u64) -> Answer {
        let (name, len) = incoming.named();
        let Incoming { tag, traced, body } = incoming;
        let mut events = Vec::new();
        let text = match body {
            Body::Unsupported(ty) => message::unsupported(ty),
            Body::ShortTrace(len) => message::short_trace(len),
            Body::File { name: file, data } if file.is_empty() => message::ack(&name, data.len()),
            Body::Stream(_) => String::new(), // handled by `transfer`
            Body::Message { ty, payload } => {
                let key = duplicates::key(self.remote, ty, "", &tag, &payload);
                let (shared, remote, ack) = (self.shared.clone(), self.remote, message::ack(&name, len));
                self.once(key, ack, &mut events, move || save_message(&shared, remote, ty, &tag, &payload))
                    .await
            }
            Body::File { name: file, data } => {
                let key = duplicates::key(self.remote, FrameType::FILE, &file, &tag, &data);
                let (shared, remote, ack) = (self.shared.clone(), self.remote, message::ack(&name, len));
                self.once(key, ack, &mut events, move || save_file(&shared, remote, &file, &tag, &data)).await
            }
        };
        let bytes = match traced {
            None => message::text_frame(&text),
            Some(sent_at_ns) => message::trace_ack(&TraceAck {
                inbox_written_at_ns: now_ns(),
                ack_sent_at_ns: now_ns(),
                inner_ack: text,
                received_at_ns: received_ns,
                sent_at_ns,
            }),
        };
        Answer { bytes, events, frame_type: name }
    }

    /// Runs `save` unless an identical message was stored lately; waits for one that is being stored.
    async fn once(
        &self,
        key: Option<Key>,
        ack: String,
        events: &mut Vec<(&'static str, Value)>,
        save: impl FnOnce() -> Saved + Send + 'static,
    ) -> String {
        let claim = match key {
            None => None,
            Some(key) => loop {
                let ended = self.shared.claims.notified();
                match self.shared.duplicates(|seen| seen.claim(now(), key)) {
                    Claim::New => break Some(Claimed { shared: &self.shared, key, stored: None }),
                    Claim::InProgress => ended.await,
                    Claim::Duplicate(first) => return message::duplicate_ack(&first),
                }
            },
        };
        let saved = spawn_blocking(save)
            .await
            .unwrap_or_else(|error| Saved { error: Some(error.to_string()), event: None });
        events.extend(saved.event);
        match saved.error {
            Some(error) => error,
            None => {
                if let Some(mut claim) = claim {
                    claim.stored = Some(ack.clone());
                }
                ack
            }
        }
    }

    /// Lets go of partial files, which may block.
    async fn finish(mut self) {
        if let Some(transfers) = self.transfers.take().filter(|transfers| transfers.transfers() > 0) {
            let _ = spawn_blocking(move || drop(transfers)).await;
        }
    }
}

/// The right to store a message; given back when dropped, also if the connection's task is.
struct Claimed<'a> {
    shared: &'a Shared,
    key: Key,
    stored: Option<String>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.shared.duplicates(|seen| match &self.stored {
            Some(ack) => seen.stored(now(), self.key, ack),
            None => seen.failed(self.key),
        });
        self.shared.claims.notify_waiters();
    }
}

/// What came of storing: no error text means stored.
struct Saved {
    error: Option<String>,
    event: Option<(&'static str, Value)>,
}

fn save_message(shared: &Shared, from: Addr, ty: FrameType, tag: &Tag, payload: &[u8]) -> Saved {
    match shared.inbox.store(from, ty, tag, payload) {
        Ok(_) => {
            let data = json!({"type": ty.name(), "from": from.to_string(), "size": payload.len()});
            Saved { error: None, event: Some(("message.received", with_ids(data, tag))) }
        }
        Err(error) => {
            let full = json!({
                "from": from.to_string(),
                "type": ty.name(),
                "frame_bytes": payload.len(),
                "max_bytes": shared.inbox.max_bytes(),
            });
            let event = matches!(error, StoreError::Full(_)).then_some(("inbox.full", full));
            tracing::warn!(%from, %error, "message not stored");
            Saved { error: Some(message::error(&ty.name(), &error.for_sender())), event }
        }
    }
}

fn save_file(shared: &Shared, from: Addr, name: &str, tag: &Tag, data: &[u8]) -> Saved {
    match shared.received.store(name, data) {
        Ok(file) => Saved { error: None, event: Some(("file.received", file_event(from, name, &file, tag))) },
        Err(error) => {
            let full = matches!(error, StoreError::Full(_));
            let data =
                json!({"type": "FILE", "frame_bytes": data.len(), "max_bytes": shared.received.quota()});
            tracing::warn!(%from, %error, "file not stored");
            Saved {
                error: Some(message::error("FILE", &error.for_sender())),
                event: full.then_some(("received.full", data)),
            }
        }
    }
}

fn file_event(from: Addr, name: &str, file: &StoredFile, tag: &Tag) -> Value {
    let data = json!({"filename": name, "size": file.size, "path": file.path.display().to_string(), "from": from.to_string()});
    with_ids(data, tag)
}

fn with_ids(mut data: Value, tag: &Tag) -> Value {
    for (name, id) in [("message_id", &tag.message_id), ("reply_to", &tag.reply_to)] {
        if let Some(id) = id {
            data[name] = id.as_str().into();
        }
    }
    data
}

/// The reply is the refusal of an INIT for want of quota.
fn is_quota_refusal(reply: &[u8]) -> bool {
    const TEXT: &[u8] = b"receiver disk quota exceeded";
    // Frame header, kind, id and status precede the text.
    reply.get(8 + 17 + 1..).is_some_and(|text| text.starts_with(TEXT))
}

/// The runtime's clock, which tests can move.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn now_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
