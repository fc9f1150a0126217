//! One client's connection.

use super::commands;
use super::conn::{self, Conn};
use super::hub::Hub;
use bytes::Bytes;
use pilot::{Delivery, Listener};
use pilot_ipc::frame::{FrameReader, OutFrame};
use pilot_ipc::outbox::{Outbox, WriteError};
use pilot_ipc::request::{Malformed, Request};
use pilot_ipc::{Command, push};
use pilot_proto::Addr;
use pilot_proto::engine::SendError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Frames waiting to be written to a client before producers wait (spec 07 section 18).
const OUT_FRAMES: usize = 256;
/// Bytes waiting to be written to a client before producers wait.
const OUT_BYTES: usize = 4 << 20;
/// A client whose socket takes nothing for this long is closed and its streams are reset.
const WRITE_STALL: Duration = Duration::from_secs(600);
/// Requests of one client in progress.
const MAX_REQUESTS: u32 = 1024;
/// Live connections of one client, dials included.
const MAX_CONNS: usize = 4096;
/// Datagrams of one client waiting to be sent.
const DATAGRAMS: usize = 256;
/// While a client is not read, this is how often it is looked at whether it is still there.
const HANGUP_CHECK: Duration = Duration::from_millis(100);
/// How long replies may take to leave when the client or the daemon ends.
const FLUSH: Duration = Duration::from_millis(500);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) outbox: Outbox,
    state: Mutex<State>,
    /// Counts Cancel requests; dials in flight end when it changes.
    cancels: watch::Sender<u64>,
    /// The client is gone; what was done only for it ends.
    gone: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    gone: bool,
    conns: HashMap<u32, Arc<Conn>>,
    dialling: usize,
    ports: HashMap<u16, BoundPort>,
}

#[derive(Debug)]
struct BoundPort {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl BoundPort {
    /// Returns when the port is free.
    async fn unbind(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

impl Client {
    fn new() -> Arc<Client> {
        Arc::new(Client {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            outbox: Outbox::new(OUT_BYTES, OUT_FRAMES),
            state: Mutex::default(),
            cancels: watch::Sender::new(0),
            gone: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new connection. False: the client is gone.
    pub(crate) fn own(&self, conn: &Arc<Conn>) -> bool {
        let mut state = self.lock();
        if state.gone {
            return false;
        }
        state.conns.insert(conn.id, conn.clone());
        true
    }

    pub(crate) fn disown(&self, id: u32) {
        self.lock().conns.remove(&id);
    }

    /// Resolves when the client is gone.
    pub(crate) async fn gone(&self) {
        // Fails only if the sender is dropped, and that is part of `self`.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Ends everything done for this client. Streams are closed in order, or reset if `reset`.
    async fn release(&self, reset: bool) {
        let (conns, ports) = {
            let mut state = self.lock();
            state.gone = true;
            (std::mem::take(&mut state.conns), std::mem::take(&mut state.ports))
        };
        self.gone.send_replace(true);
        for conn in conns.values() {
            if reset { conn.abort() } else { conn.close() }
        }
        for port in ports.into_values() {
            port.unbind().await;
        }
    }
}

/// Serves one client until it leaves or `stop` turns true.
pub(crate) async fn serve(hub: Arc<Hub>, socket: UnixStream, mut stop: watch::Receiver<bool>) {
    let client = Client::new();
    hub.add_client(&client);
    let (read, write) = socket.into_split();
    let writing = client.clone();
    let mut writer = tokio::spawn(async move { writing.outbox.run(write, Some(WRITE_STALL)).await });
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS as usize));
    let (datagrams, queued) = mpsc::channel(DATAGRAMS);
    let sender = tokio::spawn(send_datagrams(hub.clone(), client.clone(), queued));

    let session = Session { hub: hub.clone(), client: client.clone(), requests: requests.clone(), datagrams };
    let mut frames = FrameReader::new(read);
    let ended = tokio::select! {
        () = session.read(&mut frames) => Ended::Read,
        result = &mut writer => Ended::Written(matches!(result, Ok(Err(WriteError::Stalled(_))))),
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
    };
    // Datagrams that were queued still go out.
    drop(session);
    let mut reset = false;
    match ended {
        // The client may have closed only its sending direction: requests in progress are answered, unless it is gone
        // altogether.
        Ended::Read => {
            let finish = async {
                let _ = sender.await;
                let _ = requests.acquire_many(MAX_REQUESTS).await;
            };
            tokio::select! {
                () = finish => {}
                () = hung_up(frames.get_ref()) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        Ended::Written(stalled) => {
            reset = stalled;
            if stalled {
                tracing::warn!(client = client.id, "IPC client closed: it read nothing for {WRITE_STALL:?}");
            }
        }
        Ended::Stopped => {}
    }
    client.release(reset).await;
    hub.remove_client(client.id);
    client.outbox.close();
    if !writer.is_finished() && tokio::time::timeout(FLUSH, &mut writer).await.is_err() {
        writer.abort();
    }
    client.outbox.abandon();
}

enum Ended {
    /// No more requests come.
    Read,
    /// The socket takes no more; true: because the client did not read.
    Written(bool),
    Stopped,
}

/// Resolves when the other end has closed both directions. The socket may hold unread bytes, so its end cannot be read.
async fn hung_up(socket: &OwnedReadHalf) {
    loop {
        match socket.ready(Interest::READABLE | Interest::WRITABLE).await {
            Ok(ready) if ready.is_write_closed() => return,
            Ok(_) => tokio::time::sleep(HANGUP_CHECK).await,
            Err(_) => return,
        }
    }
}

/// A datagram to send.
struct Outgoing {
    to: Addr,
    port: u16,
    data: Bytes,
    confirm: bool,
}

/// Sends a client's datagrams in the order of its requests. The replies keep that order, too: one that waits for the registry
/// to say where its peer is holds up those behind it, but no datagram.
async fn send_datagrams(hub: Arc<Hub>, client: Arc<Client>, mut queued: mpsc::Receiver<Outgoing>) {
    let (replies, mut waiting) = mpsc::channel::<Result<Delivery, SendError>>(DATAGRAMS);
    let replying = async {
        while let Some(taken) = waiting.recv().await {
            let result = match taken {
                Ok(delivery) => delivery.resolved().await,
                Err(error) => Err(error),
            };
            let reply = match result {
                Ok(()) => OutFrame::new(Command::SendToConfirm as u8 + 1, &[], Bytes::new()),
                Err(error) => OutFrame::error(&format!("sendto: {error}")),
            };
            // If the client is gone, the rest of its datagrams still leaves.
            let _ = client.outbox.send(reply).await;
        }
    };
    let sending = async move {
        while let Some(Outgoing { to, port, data, confirm }) = queued.recv().await {
            let taken = hub.node.offer_datagram(to, port, data).await;
            if confirm {
                // The other half of this task lives as long as this one.
                let _ = replies.send(taken).await;
            }
        }
    };
    tokio::join!(sending, replying);
}

struct Session {
    hub: Arc<Hub>,
    client: Arc<Client>,
    requests: Arc<Semaphore>,
    datagrams: mpsc::Sender<Outgoing>,
}

impl Session {
    /// Reads requests until the connection ends or breaks the rules.
    async fn read(&self, frames: &mut FrameReader<OwnedReadHalf>) {
        loop {
            match frames.next().await {
                Ok(Some(frame)) => match Request::parse(frame.command, frame.body) {
                    Ok(request) => {
                        self.request(request, frames.get_ref()).await;
                    }
                    Err(Malformed::Silent) => {}
                    Err(Malformed::Answer(text)) => self.reply(OutFrame::error(&text)).await,
                },
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(client = self.client.id, %error, "IPC client closed");
                    return;
                }
            }
        }
    }

    async fn reply(&self, frame: OutFrame) {
        // If it fails, the writer has ended and so will this reader.
        let _ = self.client.outbox.send(frame).await;
    }

    /// Starts a request; what must keep its order is done here.
    async fn request(&self, request: Request, socket: &OwnedReadHalf) {
        match request {
            Request::Send { conn, data } => {
                if let Some(conn) = self.hub.conn(conn)
                    && conn.send(data)
                {
                    // A client that is gone has only what its socket holds left to say; its streams still get that.
                    tokio::select! {
                        () = conn.has_room() => {}
                        () = hung_up(socket) => {}
                    }
                }
            }
            Request::Close { conn } => {
                match self.hub.conn(conn) {
                    Some(conn) => conn.close(),
                    // It may be a built-in service's.
                    None => self.hub.node.close_connection(conn),
                }
                self.reply(conn::close_ok(conn)).await;
            }
            Request::Finish { conn } => {
                let done = self.hub.conn(conn).map(|conn| conn.finish());
                self.spawn(move |_, client| async move {
                    let finished = match done {
                        Some(done) => done.await.unwrap_or(false),
                        None => false,
                    };
                    let mut fields = [0; 5];
                    fields[..4].copy_from_slice(&conn.to_be_bytes());
                    fields[4] = u8::from(finished);
                    let reply = OutFrame::new(Command::Finish as u8 + 1, &fields, Bytes::new());
                    let _ = client.outbox.send(reply).await;
                })
                .await;
            }
            Request::SendTo { to, port, data, confirm } => {
                let datagram = Outgoing { to, port, data, confirm };
                tokio::select! {
                    // The receiver lives as long as this session.
                    _ = self.datagrams.send(datagram) => {}
                    () = hung_up(socket) => {}
                }
            }
            Request::Cancel => self.client.cancels.send_modify(|n| *n += 1),
            Request::Dial { to, port } => {
                // Before the task runs, so that a Cancel read next is not missed.
                let cancelled = self.client.cancels.subscribe();
                self.spawn(move |hub, client| dial(hub, client, to, port, cancelled)).await;
            }
            Request::Bind { port } => self.spawn(move |hub, client| bind(hub, client, port)).await,
            Request::Unbind { port } => self.spawn(move |_, client| unbind(client, port)).await,
            other => {
                self.spawn(move |hub, client| async move {
                    let reply = match commands::answer(&hub, other).await {
                        Ok(frame) => frame,
                        Err(text) => OutFrame::error(&text),
                    };
                    let _ = client.outbox.send(reply).await;
                })
                .await;
            }
        }
    }

    /// Runs a request beside the others; waits while too many are in progress.
    async fn spawn<F, Work>(&self, work: F)
    where
        F: FnOnce(Arc<Hub>, Arc<Client>) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        // The semaphore is never closed.
        let Ok(permit) = self.requests.clone().acquire_owned().await else { return };
        let (hub, client) = (self.hub.clone(), self.client.clone());
        tokio::spawn(async move {
            work(hub, client).await;
            drop(permit);
        });
    }
}

async fn refuse(client: &Client, text: &str) {
    let _ = client.outbox.send(OutFrame::error(text)).await;
}

async fn dial(hub: Arc<Hub>, client: Arc<Client>, to: Addr, port: u16, mut cancelled: watch::Receiver<u64>) {
    let over = {
        let mut state = client.lock();
        let over = state.conns.len() + state.dialling >= MAX_CONNS;
        state.dialling += usize::from(!over);
        over
    };
    if over {
        return refuse(&client, &format!("dial: per-client connection quota ({MAX_CONNS}) reached")).await;
    }
    // Dropping the dial cancels it.
    let result = tokio::select! {
        biased;
        result = hub.node.dial(to, port) => Some(result),
        _ = cancelled.changed() => None,
        () = client.gone() => None,
    };
    client.lock().dialling -= 1;
    match result {
        Some(Ok(stream)) => {
            let ok = OutFrame::new(Command::Dial as u8 + 1, &stream.id().to_be_bytes(), Bytes::new());
            conn::adopt(&hub, &client, stream, ok).await;
        }
        Some(Err(error)) => refuse(&client, &error.to_string()).await,
        None => refuse(&client, "context canceled").await,
    }
}

async fn bind(hub: Arc<Hub>, client: Arc<Client>, port: u16) {
    let Some(listener) = hub.node.listen(port).await else {
        return refuse(&client, &format!("port {port} already bound")).await;
    };
    let (stop, stopped) = oneshot::channel();
    // The reply precedes the first Accept: the task that accepts starts after it was queued.
    let (start, started) = oneshot::channel::<()>();
    let task = tokio::spawn(accept(hub.clone(), client.clone(), listener, started, stopped));
    {
        let mut state = client.lock();
        if state.gone {
            // The listener goes with the task, whose `stopped` ends here.
            return;
        }
        state.ports.insert(port, BoundPort { stop, task });
    }
    let _ =
        client.outbox.send(OutFrame::new(Command::Bind as u8 + 1, &port.to_be_bytes(), Bytes::new())).await;
    let _ = start.send(());
}

async fn unbind(client: Arc<Client>, port: u16) {
    let bound = client.lock().ports.remove(&port);
    match bound {
        Some(bound) => {
            bound.unbind().await;
            let ok = OutFrame::new(Command::Unbind as u8 + 1, &port.to_be_bytes(), Bytes::new());
            let _ = client.outbox.send(ok).await;
        }
        None => refuse(&client, "unbind: port is not owned by this client").await,
    }
}

/// Hands a port's incoming streams to the client until told to stop.
async fn accept(
    hub: Arc<Hub>,
    client: Arc<Client>,
    mut listener: Listener,
    started: oneshot::Receiver<()>,
    mut stopped: oneshot::Receiver<()>,
) {
    let port = listener.port();
    let work = async {
        let _ = started.await;
        while let Some(stream) = listener.accept().await {
            let mut fields = [0; 14];
            fields[..2].copy_from_slice(&port.to_be_bytes());
            fields[2..6].copy_from_slice(&stream.id().to_be_bytes());
            fields[6..12].copy_from_slice(&stream.remote().to_bytes());
            fields[12..].copy_from_slice(&stream.remote_port().to_be_bytes());
            let announce = OutFrame::new(push::ACCEPT, &fields, Bytes::new());
            conn::adopt(&hub, &client, stream, announce).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = &mut stopped => {}
    }
}
