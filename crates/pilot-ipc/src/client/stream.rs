//! Streams and listeners of a client.

use super::{ClientError, Guard};
use crate::Command;
use crate::frame::{MAX_SEND, OutFrame};
use crate::request::Request;
use bytes::Bytes;
use pilot_proto::Addr;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Received bytes kept for one stream whose application does not read. Beyond it the connection's reader waits (see
/// [`super`]).
pub(super) const STREAM_BUFFER: usize = 8 << 20;

/// Why no more bytes come from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The stream ended: finished or reset by the peer, or closed here. The protocol does not tell them apart.
    Ended,
    /// The application did not read for too long and the stream was closed to keep the connection alive.
    Overrun,
    /// The connection to the daemon was lost.
    Disconnected,
}

#[derive(Debug, Default)]
pub(super) struct StreamState {
    queue: VecDeque<Bytes>,
    pub(super) bytes: usize,
    end: Option<StreamEnd>,
    close_sent: bool,
    close_oks: u8,
    reader_gone: bool,
}

/// What the connection's reader and the stream's owner share.
#[derive(Debug, Default)]
pub(super) struct StreamShared {
    state: Mutex<StreamState>,
    readable: Notify,
    room: Notify,
}

impl StreamShared {
    fn lock(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores received bytes. True: the buffer is over its bound and the reader should wait.
    pub(super) fn received(&self, data: Bytes) -> bool {
        let mut state = self.lock();
        if state.reader_gone || state.end.is_some() || data.is_empty() {
            return false;
        }
        state.bytes += data.len();
        state.queue.push_back(data);
        let full = state.bytes > STREAM_BUFFER;
        drop(state);
        self.readable.notify_one();
        full
    }

    /// Returns when the buffer is within its bound again.
    pub(super) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let state = self.lock();
                if state.bytes <= STREAM_BUFFER || state.reader_gone {
                    return;
                }
            }
            room.await;
        }
    }

    pub(super) fn end(&self, why: StreamEnd) {
        self.lock().end.get_or_insert(why);
        self.readable.notify_one();
    }

    /// Counts a CloseOK. A locally closed stream gets two, the reply and the push, and data may lie between them (spec 07
    /// section 8.5). True: the stream can be forgotten.
    pub(super) fn close_ok(&self) -> bool {
        let mut state = self.lock();
        state.close_oks = state.close_oks.saturating_add(1);
        let second = state.close_oks >= 2;
        if !state.close_sent || second || state.reader_gone {
            state.end.get_or_insert(StreamEnd::Ended);
        }
        let forget = state.close_sent && (second || state.reader_gone);
        drop(state);
        self.readable.notify_one();
        forget
    }
}

/// Closes the stream when both halves are gone.
#[derive(Debug)]
struct Owner {
    id: u32,
    remote: Addr,
    remote_port: u16,
    shared: Arc<StreamShared>,
    connection: Arc<Guard>,
}

impl Owner {
    fn close(&self) {
        let mut state = self.shared.lock();
        if state.close_sent {
            return;
        }
        state.close_sent = true;
        drop(state);
        self.connection.shared.outbox.push(OutFrame::new(
            Command::Close as u8,
            &self.id.to_be_bytes(),
            Bytes::new(),
        ));
    }

    fn reader_gone(&self) {
        let mut state = self.shared.lock();
        state.reader_gone = true;
        state.bytes = 0;
        state.queue.clear();
        drop(state);
        self.shared.room.notify_waiters();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.reader_gone();
        self.close();
    }
}

/// A stream to a peer. Dropped (or both halves dropped), it is closed in order.
#[derive(Debug)]
pub struct IpcStream {
    reader: IpcReader,
    writer: IpcWriter,
}

/// The reading half.
#[derive(Debug)]
pub struct IpcReader {
    owner: Arc<Owner>,
}

/// The writing half.
#[derive(Debug)]
pub struct IpcWriter {
    owner: Arc<Owner>,
}

impl IpcStream {
    pub(super) fn new(
        connection: Arc<Guard>,
        shared: Arc<StreamShared>,
        id: u32,
        remote: Addr,
        remote_port: u16,
    ) -> IpcStream {
        let owner = Arc::new(Owner { id, remote, remote_port, shared, connection });
        IpcStream { reader: IpcReader { owner: owner.clone() }, writer: IpcWriter { owner } }
    }

    /// The daemon's number of the connection.
    pub fn id(&self) -> u32 {
        self.reader.owner.id
    }
    /// The peer's address.
    pub fn remote(&self) -> Addr {
        self.reader.owner.remote
    }
    /// The peer's port.
    pub fn remote_port(&self) -> u16 {
        self.reader.owner.remote_port
    }
    /// Both halves.
    pub fn split(self) -> (IpcReader, IpcWriter) {
        (self.reader, self.writer)
    }
    /// See [`IpcReader::read`].
    pub async fn read(&mut self) -> Option<Bytes> {
        self.reader.read().await
    }
    /// See [`IpcWriter::write`].
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), ClientError> {
        self.writer.write(data).await
    }
    /// See [`IpcWriter::finish`].
    pub async fn finish(&mut self) -> bool {
        self.writer.finish().await
    }
    /// See [`IpcWriter::close`].
    pub fn close(&self) {
        self.writer.close();
    }
    /// See [`IpcReader::end`].
    pub fn end(&self) -> Option<StreamEnd> {
        self.reader.end()
    }
}

impl IpcReader {
    /// The daemon's number of the connection.
    pub fn id(&self) -> u32 {
        self.owner.id
    }

    /// The next bytes; `None` once the stream has ended and everything received was returned. Cancel-safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        let shared = &self.owner.shared;
        loop {
            {
                let mut state = shared.lock();
                if let Some(data) = state.queue.pop_front() {
                    let was_full = state.bytes > STREAM_BUFFER;
                    state.bytes -= data.len();
                    drop(state);
                    if was_full {
                        shared.room.notify_waiters();
                    }
                    return Some(data);
                }
                if state.end.is_some() {
                    return None;
                }
            }
            // One reader: a permit stored since the look above makes this return at once.
            shared.readable.notified().await;
        }
    }

    /// Why [`IpcReader::read`] returns or will return `None`; `None` while the stream goes on.
    pub fn end(&self) -> Option<StreamEnd> {
        self.owner.shared.lock().end
    }
}

impl Drop for IpcReader {
    fn drop(&mut self) {
        self.owner.reader_gone();
    }
}

impl IpcWriter {
    /// The daemon's number of the connection.
    pub fn id(&self) -> u32 {
        self.owner.id
    }

    /// Waits for room and hands all of `data` to the daemon. Success says nothing about the peer: a daemon silently drops
    /// bytes for a stream that is over ([`IpcReader::end`] tells). Dropped half-way, part of `data` may have gone.
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), ClientError> {
        let mut data = data.into();
        if self.owner.shared.lock().close_sent {
            return Err(ClientError::Daemon("connection closed".into()));
        }
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_SEND));
            let frame = OutFrame::new(Command::Send as u8, &self.owner.id.to_be_bytes(), part);
            self.owner.connection.shared.outbox.send(frame).await.map_err(|_| ClientError::Disconnected)?;
        }
        Ok(())
    }

    /// Waits until everything written has been taken by the daemon's socket.
    pub async fn flush(&mut self) {
        self.owner.connection.shared.outbox.flush().await;
    }

    /// Ends our sending direction: the peer reads everything written, then the end, and can still answer. False: nothing was
    /// done, because the daemon or the peer does not know half-close; then only [`IpcWriter::close`] tells the peer.
    pub async fn finish(&mut self) -> bool {
        let connection = &self.owner.connection;
        if connection.shared.lacks(Command::Finish) {
            return false;
        }
        match connection.request(&Request::Finish { conn: self.owner.id }).await {
            Ok(body) => body.get(4) == Some(&1),
            Err(_) => false,
        }
    }

    /// Closes both directions in order: the peer gets everything written. Not waiting. Bytes already received can still be
    /// read.
    pub fn close(&self) {
        self.owner.close();
    }
}

/// A bound port. Dropped, it is unbound.
#[derive(Debug)]
pub struct IpcListener {
    pub(super) port: u16,
    pub(super) incoming: mpsc::Receiver<IpcStream>,
    pub(super) connection: Arc<Guard>,
}

impl IpcListener {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next stream a peer opened; `None` when the daemon is gone. Cancel-safe.
    pub async fn accept(&mut self) -> Option<IpcStream> {
        self.incoming.recv().await
    }
}

impl Drop for IpcListener {
    fn drop(&mut self) {
        let (connection, port) = (self.connection.clone(), self.port);
        connection.shared.lock().listeners.remove(&port);
        let runtime = connection.runtime.clone();
        runtime.spawn(async move {
            // A daemon that does not know Unbind keeps the port until the connection ends.
            let _ = connection.request(&Request::Unbind { port }).await;
        });
    }
}
