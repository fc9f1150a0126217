//! What the services need of a stream, so that they run over a node's streams as well as over those of the local
//! socket.

use bytes::Bytes;
use std::future::Future;

/// The stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection closed")]
pub struct Ended;

/// A reliable stream of bytes in both directions.
pub trait ByteStream: Send {
    /// The next bytes; `None` at the end. Cancel-safe: a dropped call loses nothing.
    fn read(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
    /// Waits for room, then takes all of `data`.
    fn write(&mut self, data: Bytes) -> impl Future<Output = Result<(), Ended>> + Send;
}

impl ByteStream for pilot::Stream {
    async fn read(&mut self) -> Option<Bytes> {
        pilot::Stream::read(self).await
    }
    async fn write(&mut self, data: Bytes) -> Result<(), Ended> {
        pilot::Stream::write(self, data).await.map_err(|_| Ended)
    }
}

impl ByteStream for pilot_ipc::IpcStream {
    async fn read(&mut self) -> Option<Bytes> {
        pilot_ipc::IpcStream::read(self).await
    }
    async fn write(&mut self, data: Bytes) -> Result<(), Ended> {
        pilot_ipc::IpcStream::write(self, data).await.map_err(|_| Ended)
    }
}
