//! The bounded queue of frames waiting to be written to one socket, and the task body that writes them.

use crate::frame::OutFrame;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// Slices given to the system in one write.
const MAX_SLICES: usize = 64;
/// Frames taken from the queue at once, at most half of [`MAX_SLICES`] as each has two slices.
const BATCH: usize = MAX_SLICES / 2;

/// The socket is gone or the queue was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection closed")]
pub struct Closed;

/// Why [`Outbox::run`] ended early.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing could be written for the stall time.
    #[error("the other side read nothing for {0:?}")]
    Stalled(Duration),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<OutFrame>,
    bytes: usize,
    /// No more frames are taken; what is queued is still written.
    closed: bool,
}

/// Frames in the order they were put in. [`Outbox::send`] waits while `limit_bytes` or `limit_frames` are exceeded;
/// [`Outbox::push`] does not and is for frames of bounded number (replies, control).
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    data: Notify,
    room: Notify,
    limit_bytes: usize,
    limit_frames: usize,
}

impl Outbox {
    /// An empty queue with these bounds.
    pub fn new(limit_bytes: usize, limit_frames: usize) -> Outbox {
        Outbox {
            state: Mutex::new(State::default()),
            data: Notify::new(),
            room: Notify::new(),
            limit_bytes,
            limit_frames,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame at once, whatever the bounds. False if the connection is gone.
    pub fn push(&self, frame: OutFrame) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.bytes += frame.len();
        state.queue.push_back(frame);
        drop(state);
        self.data.notify_one();
        true
    }

    /// Queues a frame if the bounds allow it now; gives it back otherwise.
    pub fn try_send(&self, frame: OutFrame) -> Result<(), OutFrame> {
        let mut state = self.lock();
        if state.closed || state.bytes >= self.limit_bytes || state.queue.len() >= self.limit_frames {
            return Err(frame);
        }
        state.bytes += frame.len();
        state.queue.push_back(frame);
        drop(state);
        self.data.notify_one();
        Ok(())
    }

    /// Waits for room and queues a frame. Cancel-safe: dropped, it has queued nothing.
    pub async fn send(&self, frame: OutFrame) -> Result<(), Closed> {
        let mut frame = frame;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_send(frame) {
                Ok(()) => return Ok(()),
                Err(back) => frame = back,
            }
            if self.is_closed() {
                return Err(Closed);
            }
            room.await;
        }
    }

    /// Waits until everything queued has been written, or the connection is gone.
    pub async fn flush(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.lock().bytes == 0 {
                return;
            }
            room.await;
        }
    }

    /// No more frames are taken; queued ones are still written, then [`Outbox::run`] returns.
    pub fn close(&self) {
        self.lock().closed = true;
        self.data.notify_one();
        self.room.notify_waiters();
    }

    /// Drops everything queued and takes no more.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.bytes = 0;
        state.queue.clear();
        drop(state);
        self.data.notify_one();
        self.room.notify_waiters();
    }

    /// Whether [`Outbox::close`] or [`Outbox::abandon`] was called or the socket failed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Writes frames until the queue is closed and empty, or the socket fails, or (`stall`) it takes no byte for that
    /// long. The queue is abandoned on failure.
    pub async fn run(&self, io: impl AsyncWrite + Unpin, stall: Option<Duration>) -> Result<(), WriteError> {
        let result = self.write_all(io, stall).await;
        if result.is_err() {
            self.abandon();
        }
        result
    }

    async fn write_all(
        &self,
        mut io: impl AsyncWrite + Unpin,
        stall: Option<Duration>,
    ) -> Result<(), WriteError> {
        let mut batch: VecDeque<OutFrame> = VecDeque::with_capacity(BATCH);
        let mut written = 0; // bytes of the batch's first frame already written
        loop {
            if batch.is_empty() {
                let closed = {
                    let mut state = self.lock();
                    let n = state.queue.len().min(BATCH);
                    batch.extend(state.queue.drain(..n));
                    state.closed
                };
                if batch.is_empty() {
                    if closed {
                        return Ok(());
                    }
                    // A permit stored by a push since the look above makes this return at once.
                    self.data.notified().await;
                    continue;
                }
            }
            let n = {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let mut count = 0;
                for (i, frame) in batch.iter().enumerate() {
                    for slice in frame.slices(if i == 0 { written } else { 0 }) {
                        if !slice.is_empty() {
                            slices[count] = slice;
                            count += 1;
                        }
                    }
                }
                let write = io.write_vectored(&slices[..count]);
                match stall {
                    None => write.await?,
                    Some(limit) => {
                        tokio::time::timeout(limit, write).await.map_err(|_| WriteError::Stalled(limit))??
                    }
                }
            };
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            self.advance(&mut batch, &mut written, n);
        }
    }

    /// Removes fully written frames from the batch and lets waiting senders in.
    fn advance(&self, batch: &mut VecDeque<OutFrame>, written: &mut usize, n: usize) {
        let mut left = *written + n;
        let mut done = 0;
        while let Some(first) = batch.front() {
            let len = first.len();
            if left < len {
                break;
            }
            left -= len;
            done += len;
            batch.pop_front();
        }
        *written = left;
        if done > 0 {
            let mut state = self.lock();
            state.bytes = state.bytes.saturating_sub(done);
            drop(state);
            self.room.notify_waiters();
        }
    }
}
