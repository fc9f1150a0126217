//! The async client of a daemon, of this project or the reference 1.18.0.
//!
//! One connection carries everything: requests (one at a time, in order of arrival, because replies name no request), any
//! number of streams, and datagrams. A task reads the socket and routes what it reads; a task writes.
//!
//! **Unread streams.** The protocol has no credit per stream: what the daemon wrote must be read, and a reference daemon
//! closes a client that takes nothing for 10 s (ours: 10 minutes, spec 07 section 18). So every stream has its own buffer of
//! 8 MiB, and streams do not wait for each other while they stay below it. Only when one exceeds it the connection is read
//! no further, for at most 8 s; if its application still does not read, that stream alone is closed
//! ([`StreamEnd::Overrun`]) and the others go on. Programs that may leave a stream unread for long should give it a
//! connection of its own.

mod api;
mod error;
mod reader;
mod stream;

pub use api::{Datagram, Datagrams};
pub use error::ClientError;
pub use stream::{IpcListener, IpcReader, IpcStream, IpcWriter, StreamEnd};

use crate::Command;
use crate::frame::{FrameReader, MAX_SEND, OutFrame};
use crate::outbox::Outbox;
use crate::request::Request;
use bytes::Bytes;
use pilot_proto::Addr;
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stream::StreamShared;
use tokio::net::UnixStream;
use tokio::sync::{OwnedMutexGuard, broadcast, mpsc, oneshot};

/// Bytes queued towards the daemon before writers wait.
const OUT_BYTES: usize = 4 << 20;
/// Frames queued towards the daemon before writers wait.
const OUT_FRAMES: usize = 4096;
/// Accepted streams waiting per listener; more are closed.
const ACCEPT_BACKLOG: usize = 1024;
/// Datagrams waiting per subscriber; then the oldest are dropped.
const DATAGRAM_BACKLOG: usize = 1024;
/// Time limit of requests without one of their own, including the wait for earlier ones.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of [`Client::dial`].
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a daemon. Cheap to clone; the connection ends with the last clone, stream and listener.
#[derive(Debug, Clone)]
pub struct Client {
    guard: Arc<Guard>,
}

/// Ends the connection when the last handle is gone: what is queued is still written.
#[derive(Debug)]
struct Guard {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.outbox.close();
    }
}

#[derive(Debug)]
struct Shared {
    outbox: Outbox,
    state: Mutex<State>,
    /// Held by the request whose reply is awaited, until that reply came, even if nobody wants it any more: a later request
    /// could not tell it from its own.
    slot: Arc<tokio::sync::Mutex<()>>,
    datagrams: broadcast::Sender<Datagram>,
}

#[derive(Debug, Default)]
struct State {
    pending: Option<Pending>,
    streams: HashMap<u32, Arc<StreamShared>>,
    listeners: HashMap<u16, mpsc::Sender<IpcStream>>,
    /// Commands the daemon called unknown; not tried again.
    lacking: Vec<Command>,
    gone: bool,
}

/// The request in flight.
#[derive(Debug)]
struct Pending {
    command: Command,
    kind: Kind,
    answer: oneshot::Sender<Result<Answer, String>>,
    _slot: OwnedMutexGuard<()>,
}

#[derive(Debug)]
enum Kind {
    Plain,
    Dial(Addr, u16),
    Bind(u16, mpsc::Sender<IpcStream>),
}

#[derive(Debug)]
enum Answer {
    Body(Bytes),
    Stream(IpcStream),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lacks(&self, command: Command) -> bool {
        self.lock().lacking.contains(&command)
    }
}

/// Sends Cancel if dropped before the dial's answer arrived.
struct CancelOnDrop<'a> {
    shared: &'a Shared,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.outbox.push(OutFrame::new(Command::Cancel as u8, &[], Bytes::new()));
        }
    }
}

impl Guard {
    /// Waits for the slot and sends a request; the answer comes through the receiver.
    async fn begin(
        &self,
        command: Command,
        body: Bytes,
        kind: Kind,
    ) -> Result<oneshot::Receiver<Result<Answer, String>>, ClientError> {
        if body.len() > MAX_SEND {
            return Err(ClientError::TooLarge(body.len()));
        }
        let slot = self.shared.slot.clone().lock_owned().await;
        let (answer, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.gone {
            return Err(ClientError::Disconnected);
        }
        state.pending = Some(Pending { command, kind, answer, _slot: slot });
        // Under the lock, so that requests leave in the order in which they became pending.
        let sent = self.shared.outbox.push(OutFrame::new(command as u8, &[], body));
        if !sent {
            state.pending = None;
            return Err(ClientError::Disconnected);
        }
        Ok(receiver)
    }

    async fn answer(receiver: oneshot::Receiver<Result<Answer, String>>) -> Result<Answer, ClientError> {
        match receiver.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(text)) => Err(ClientError::Daemon(text)),
            Err(_) => Err(ClientError::Disconnected),
        }
    }

    async fn exchange(&self, command: Command, body: Bytes, limit: Duration) -> Result<Bytes, ClientError> {
        let exchange = async {
            let receiver = self.begin(command, body, Kind::Plain).await?;
            match Self::answer(receiver).await {
                Ok(Answer::Body(body)) => Ok(body),
                Ok(Answer::Stream(_)) => Err(ClientError::Protocol("a stream".into())),
                Err(error) => {
                    let unknown = format!("unknown command: 0x{:02X}", command as u8);
                    if error.daemon_text().is_some_and(|text| text.starts_with(&unknown)) {
                        self.shared.lock().lacking.push(command);
                    }
                    Err(error)
                }
            }
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| ClientError::Timeout(limit))?
    }

    async fn request(&self, request: &Request) -> Result<Bytes, ClientError> {
        let (command, body) = request.encode();
        self.exchange(command, body, REQUEST_TIMEOUT).await
    }
}

impl Client {
    /// Connects to the daemon listening on `path`.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Client, ClientError> {
        let path = path.as_ref();
        let socket = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.to_owned())
            }
            _ => ClientError::Connect { path: path.to_owned(), error },
        })?;
        Ok(Self::over(socket))
    }

    /// A client on a connected socket.
    pub fn over(socket: UnixStream) -> Client {
        let (read, mut write) = socket.into_split();
        let shared = Arc::new(Shared {
            outbox: Outbox::new(OUT_BYTES, OUT_FRAMES),
            state: Mutex::default(),
            slot: Arc::default(),
            datagrams: broadcast::channel(DATAGRAM_BACKLOG).0,
        });
        let guard = Arc::new(Guard { shared: shared.clone(), runtime: tokio::runtime::Handle::current() });
        let writing = shared.clone();
        tokio::spawn(async move {
            // A failure is noticed by the reader, which sees the same connection end. Dropping `write` shuts the direction.
            let _ = writing.outbox.run(&mut write, None).await;
        });
        tokio::spawn(reader::run(FrameReader::new(read), shared, Arc::downgrade(&guard)));
        Client { guard }
    }

    /// Sends a request and returns the JSON object it is answered with. Limit: [`REQUEST_TIMEOUT`].
    pub async fn json(&self, command: Command, body: impl Into<Bytes>) -> Result<Value, ClientError> {
        self.json_within(command, body, REQUEST_TIMEOUT).await
    }

    /// [`Client::json`] with a time limit, which includes the wait for earlier requests.
    pub async fn json_within(
        &self,
        command: Command,
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Value, ClientError> {
        let body = self.guard.exchange(command, body.into(), limit).await?;
        let value: Value =
            serde_json::from_slice(&body).map_err(|e| ClientError::Protocol(format!("{command:?}: {e}")))?;
        if !value.is_object() {
            return Err(ClientError::Protocol(format!("{command:?}: not a JSON object")));
        }
        Ok(value)
    }

    /// Opens a stream, within [`DIAL_TIMEOUT`].
    pub async fn dial(&self, to: Addr, port: u16) -> Result<IpcStream, ClientError> {
        self.dial_within(to, port, DIAL_TIMEOUT).await
    }

    /// Opens a stream. When the limit passes or the future is dropped the daemon is told to give the dial up.
    pub async fn dial_within(&self, to: Addr, port: u16, limit: Duration) -> Result<IpcStream, ClientError> {
        let guard = &self.guard;
        let dial = async {
            let (command, body) = Request::Dial { to, port }.encode();
            let receiver = guard.begin(command, body, Kind::Dial(to, port)).await?;
            let mut cancel = CancelOnDrop { shared: &guard.shared, armed: true };
            let answer = Guard::answer(receiver).await;
            cancel.armed = false;
            match answer? {
                Answer::Stream(stream) => Ok(stream),
                Answer::Body(_) => Err(ClientError::Protocol("invalid dial response".into())),
            }
        };
        tokio::time::timeout(limit, dial).await.map_err(|_| ClientError::Timeout(limit))?
    }

    /// Binds a port; streams to it arrive at the listener.
    pub async fn listen(&self, port: u16) -> Result<IpcListener, ClientError> {
        let guard = &self.guard;
        let (sender, incoming) = mpsc::channel(ACCEPT_BACKLOG);
        let bind = async {
            let (command, body) = Request::Bind { port }.encode();
            let receiver = guard.begin(command, body, Kind::Bind(port, sender)).await?;
            Guard::answer(receiver).await
        };
        tokio::time::timeout(DIAL_TIMEOUT, bind).await.map_err(|_| ClientError::Timeout(DIAL_TIMEOUT))??;
        Ok(IpcListener { port, incoming, connection: guard.clone() })
    }

    /// Waits until everything sent so far has been taken by the daemon's socket.
    pub async fn flush(&self) {
        self.guard.shared.outbox.flush().await;
    }

    /// Whether the connection to the daemon was lost.
    pub fn is_disconnected(&self) -> bool {
        self.guard.shared.lock().gone
    }
}
