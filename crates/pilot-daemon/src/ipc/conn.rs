//! One stream of a client: a bounded queue of bytes to send and a task per direction.

use super::client::Client;
use super::hub::Hub;
use bytes::{Bytes, BytesMut};
use pilot::{ReadHalf, Stream, WriteHalf};
use pilot_ipc::frame::OutFrame;
use pilot_ipc::{Command, push};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Unsent bytes of one stream beyond which the client's socket is not read.
pub(crate) const QUEUE_BYTES: usize = 4 << 20;
/// Smaller pieces waiting together are joined up to this size.
const JOIN: usize = 64 * 1024;
/// Largest Recv frame, data bytes.
const RECV_MAX: usize = 256 * 1024;
/// After a local close, received bytes still on their way inside the daemon are passed on for at most this long.
const LINGER: Duration = Duration::from_secs(2);

enum Item {
    Data(Bytes),
    Finish(oneshot::Sender<bool>),
    Close,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Close was queued or the stream is over: nothing more is taken.
    closing: bool,
    /// Our direction was finished.
    finished: bool,
    /// The peer's direction has ended.
    ended: bool,
}

/// A stream owned by a client.
pub(crate) struct Conn {
    pub(crate) id: u32,
    half_close: bool,
    queue: Mutex<Queue>,
    data: Notify,
    room: Notify,
    abort: Notify,
    /// Our side closed; wakes the receiving task.
    closed: Notify,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({})", self.id)
    }
}

impl Conn {
    fn new(stream: &Stream) -> Conn {
        Conn {
            id: stream.id(),
            half_close: stream.half_close(),
            queue: Mutex::default(),
            data: Notify::new(),
            room: Notify::new(),
            abort: Notify::new(),
            closed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues bytes to send; dropped silently if the stream is over. True: over the bound, wait for [`Conn::has_room`].
    pub(crate) fn send(&self, data: Bytes) -> bool {
        let mut queue = self.lock();
        if queue.closing || queue.finished || data.is_empty() {
            return false;
        }
        queue.bytes += data.len();
        queue.items.push_back(Item::Data(data));
        let full = queue.bytes > QUEUE_BYTES;
        drop(queue);
        self.data.notify_one();
        full
    }

    /// Returns once the queue is within its bound or the stream is over.
    pub(crate) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let queue = self.lock();
                if queue.bytes <= QUEUE_BYTES || queue.closing {
                    return;
                }
            }
            room.await;
        }
    }

    /// Ends our direction after what is queued. The receiver tells whether half-close was negotiated; it fails if the stream
    /// is over.
    pub(crate) fn finish(&self) -> oneshot::Receiver<bool> {
        let (done, receiver) = oneshot::channel();
        let mut queue = self.lock();
        if !queue.closing {
            queue.finished |= self.half_close;
            queue.items.push_back(Item::Finish(done));
        }
        drop(queue);
        self.data.notify_one();
        receiver
    }

    /// Closes both directions after what is queued.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        if queue.closing {
            return;
        }
        queue.closing = true;
        queue.items.push_back(Item::Close);
        drop(queue);
        self.data.notify_one();
        self.room.notify_waiters();
        self.closed.notify_one();
    }

    /// Resets the stream at once.
    pub(crate) fn abort(&self) {
        self.abort.notify_one();
    }

    /// The stream takes no more: empties the queue.
    fn over(&self) {
        let mut queue = self.lock();
        queue.closing = true;
        queue.bytes = 0;
        queue.items.clear();
        drop(queue);
        self.room.notify_waiters();
    }

    /// The next thing to do; small pieces are joined.
    async fn next(&self) -> Item {
        loop {
            {
                let mut queue = self.lock();
                if let Some(item) = queue.items.pop_front() {
                    return match item {
                        Item::Data(first) => Item::Data(join(first, &mut queue.items)),
                        other => other,
                    };
                }
            }
            self.data.notified().await;
        }
    }

    /// Counts bytes as handed over.
    fn sent(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.bytes = queue.bytes.saturating_sub(bytes);
        drop(queue);
        self.room.notify_waiters();
    }
}

fn join(first: Bytes, items: &mut VecDeque<Item>) -> Bytes {
    let fits = |have: usize, items: &VecDeque<Item>| match items.front() {
        Some(Item::Data(next)) => have + next.len() <= JOIN,
        _ => false,
    };
    if !fits(first.len(), items) {
        return first;
    }
    let mut joined = BytesMut::from(&first[..]);
    while fits(joined.len(), items) {
        if let Some(Item::Data(next)) = items.pop_front() {
            joined.extend_from_slice(&next);
        }
    }
    joined.freeze()
}

/// Makes a stream the client's: it can be sent on and closed from now on. `announce` (DialOK or Accept) goes out before
/// anything received.
pub(crate) async fn adopt(hub: &Arc<Hub>, client: &Arc<Client>, stream: Stream, announce: OutFrame) {
    let conn = Arc::new(Conn::new(&stream));
    if !client.own(&conn) {
        stream.close();
        return;
    }
    hub.insert(&conn);
    let (read, write) = stream.split();
    tokio::spawn(send(hub.clone(), client.clone(), conn.clone(), write));
    let mut unannounced = CloseOnDrop(Some(conn));
    if client.outbox.send(announce).await.is_ok()
        && let Some(conn) = unannounced.0.take()
    {
        tokio::spawn(receive(client.clone(), conn, read));
    }
}

/// Closes a stream that its client never heard of.
struct CloseOnDrop(Option<Arc<Conn>>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(conn) = &self.0 {
            conn.close();
        }
    }
}

/// Moves bytes from the queue to the stream until it is closed.
async fn send(hub: Arc<Hub>, client: Arc<Client>, conn: Arc<Conn>, mut write: WriteHalf) {
    let work = async {
        loop {
            match conn.next().await {
                Item::Data(data) => {
                    let len = data.len();
                    let written = write.write(data).await;
                    conn.sent(len);
                    if written.is_err() {
                        break;
                    }
                }
                Item::Finish(done) => {
                    let finished = write.finish();
                    // The asker may be gone.
                    let _ = done.send(finished);
                    if finished && conn.lock().ended {
                        break;
                    }
                }
                Item::Close => break,
            }
        }
    };
    let aborted = tokio::select! {
        () = work => false,
        () = conn.abort.notified() => true,
    };
    if aborted {
        write.abort()
    } else {
        write.close()
    }
    conn.over();
    conn.closed.notify_one();
    hub.remove(conn.id);
    client.disown(conn.id);
}

/// Moves received bytes to the client, then the end.
async fn receive(client: Arc<Client>, conn: Arc<Conn>, mut read: ReadHalf) {
    let mut closed = false;
    loop {
        let next = if closed {
            tokio::time::timeout(LINGER, read.read()).await.unwrap_or(None)
        } else {
            tokio::select! {
                biased;
                next = read.read() => next,
                () = conn.closed.notified() => {
                    closed = true;
                    continue;
                }
            }
        };
        let Some(mut data) = next else { break };
        while !data.is_empty() {
            let part = data.split_to(data.len().min(RECV_MAX));
            let frame = OutFrame::new(push::RECV, &conn.id.to_be_bytes(), part);
            if client.outbox.send(frame).await.is_err() {
                return;
            }
        }
    }
    let end = OutFrame::new(push::CLOSE_OK, &conn.id.to_be_bytes(), Bytes::new());
    let finished = {
        let mut queue = conn.lock();
        queue.ended = true;
        queue.finished
    };
    // With half-close we may go on sending to a peer that only finished.
    if !conn.half_close || finished || read.close_reason().is_some() {
        conn.close();
    }
    // If the client is gone, so is its interest.
    let _ = client.outbox.send(end).await;
}

/// The reply to Close.
pub(crate) fn close_ok(id: u32) -> OutFrame {
    OutFrame::new(Command::Close as u8 + 1, &id.to_be_bytes(), Bytes::new())
}
