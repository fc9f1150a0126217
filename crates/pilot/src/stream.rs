//! Handles of one stream.

use crate::command::{Command, Commands};
use bytes::{Bytes, BytesMut};
use pilot_proto::Addr;
use pilot_proto::stream::{CloseReason, ConnId};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, mpsc};

/// Bytes written and not yet taken by the engine, at most, per stream.
pub(crate) const WRITE_CREDIT: usize = 1024 * 1024;
/// Largest piece handed to the driver at once; a larger write is cut.
const WRITE_PIECE: usize = 256 * 1024;
/// Most bytes one `read` returns.
const READ_MAX: usize = 256 * 1024;
/// A received piece of at least this size is passed on as it is; smaller ones are gathered.
const READ_GATHER: usize = 16 * 1024;
/// Consumed bytes are reported to the driver at the latest when there are this many.
const REPORT: usize = 128 * 1024;

/// What the driver and the handles of a stream share.
#[derive(Debug)]
pub(crate) struct Link {
    /// One permit per byte that may be written; closed when no more may.
    pub(crate) credit: Semaphore,
    /// Why the stream ended.
    pub(crate) reason: OnceLock<CloseReason>,
}

impl Link {
    pub(crate) fn new() -> Arc<Link> {
        Arc::new(Link { credit: Semaphore::new(WRITE_CREDIT), reason: OnceLock::new() })
    }

    fn reason(&self) -> CloseReason {
        self.reason.get().copied().unwrap_or(CloseReason::Closed)
    }
}

/// The two ends and properties of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) id: ConnId,
    pub(crate) local_port: u16,
    pub(crate) remote: Addr,
    pub(crate) remote_port: u16,
    pub(crate) half_close: bool,
}

/// Closes the stream in order when the last half is gone.
#[derive(Debug)]
struct Handle {
    ends: Ends,
    link: Arc<Link>,
    commands: Commands,
}

impl Handle {
    fn send(&self, command: Command) {
        // The driver is gone only when the node has stopped; then nothing is left to do.
        let _ = self.commands.send(command);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.send(Command::Release(self.ends.id));
    }
}

/// One stream. Split it to read and write at once; dropping both halves closes it in order (FIN after
/// everything written was acknowledged).
#[derive(Debug)]
pub struct Stream {
    reader: ReadHalf,
    writer: WriteHalf,
}

/// Reading half.
#[derive(Debug)]
pub struct ReadHalf {
    received: mpsc::UnboundedReceiver<Bytes>,
    /// Taken from `received`, returned by the next read.
    held: Option<Bytes>,
    unreported: usize,
    handle: Arc<Handle>,
}

/// Writing half.
#[derive(Debug)]
pub struct WriteHalf {
    handle: Arc<Handle>,
}

impl Stream {
    pub(crate) fn new(
        ends: Ends,
        link: Arc<Link>,
        commands: Commands,
        received: mpsc::UnboundedReceiver<Bytes>,
    ) -> Stream {
        let handle = Arc::new(Handle { ends, link, commands });
        Stream {
            reader: ReadHalf { received, held: None, unreported: 0, handle: handle.clone() },
            writer: WriteHalf { handle },
        }
    }

    /// The node-wide connection id (spec 07 section 8.1).
    pub fn id(&self) -> u32 {
        self.reader.id()
    }

    /// The peer's address.
    pub fn remote(&self) -> Addr {
        self.reader.handle.ends.remote
    }

    /// The peer's port.
    pub fn remote_port(&self) -> u16 {
        self.reader.handle.ends.remote_port
    }

    /// Our port.
    pub fn local_port(&self) -> u16 {
        self.reader.handle.ends.local_port
    }

    /// Half-close was negotiated: [`WriteHalf::finish`] ends only our direction.
    pub fn half_close(&self) -> bool {
        self.reader.handle.ends.half_close
    }

    /// Takes the two directions apart.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.reader, self.writer)
    }

    /// As [`ReadHalf::read`].
    pub async fn read(&mut self) -> Option<Bytes> {
        self.reader.read().await
    }

    /// As [`WriteHalf::write`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), CloseReason> {
        self.writer.write(data).await
    }

    /// Orderly close, not waiting.
    pub fn close(self) {
        self.writer.close();
    }
}

impl ReadHalf {
    /// The node-wide connection id.
    pub fn id(&self) -> u32 {
        self.handle.ends.id.0
    }

    /// The next bytes (as much as has arrived, up to 256 KiB); `None` at the end of the stream. Reading opens
    /// the window again.
    ///
    /// Cancel-safe: no bytes are lost when the future is dropped.
    pub async fn read(&mut self) -> Option<Bytes> {
        let first = match self.held.take() {
            Some(held) => held,
            None => match self.received.try_recv() {
                Ok(bytes) => bytes,
                Err(_) => {
                    self.report();
                    self.received.recv().await?
                }
            },
        };
        let bytes = self.gather(first);
        self.unreported += bytes.len();
        if self.unreported >= REPORT {
            self.report();
        }
        Some(bytes)
    }

    /// Joins small pieces: one wake-up of the reader instead of one per packet.
    fn gather(&mut self, first: Bytes) -> Bytes {
        if first.len() >= READ_GATHER {
            return first;
        }
        let Ok(second) = self.received.try_recv() else { return first };
        let mut out = BytesMut::with_capacity((first.len() + second.len()).max(2 * READ_GATHER));
        out.extend_from_slice(&first);
        let mut next = second;
        loop {
            if next.len() >= READ_GATHER || out.len() + next.len() > READ_MAX {
                self.held = Some(next);
                break;
            }
            out.extend_from_slice(&next);
            match self.received.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
        out.freeze()
    }

    fn report(&mut self) {
        if self.unreported > 0 {
            self.handle.send(Command::Consumed(self.handle.ends.id, self.unreported));
            self.unreported = 0;
        }
    }

    /// Why the stream ended, once `read` returned `None`. `None` if only the peer's direction has ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.handle.link.reason.get().copied()
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.handle.send(Command::Discard(self.handle.ends.id));
    }
}

impl WriteHalf {
    /// The node-wide connection id.
    pub fn id(&self) -> u32 {
        self.handle.ends.id.0
    }

    /// Waits for room, then takes all of `data`. The bytes are shared, not copied.
    ///
    /// An error means that the stream has ended and says why; bytes written before may be lost.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), CloseReason> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(WRITE_PIECE));
            // A piece has at most 2^18 bytes.
            let permits = piece.len() as u32;
            match self.handle.link.credit.acquire_many(permits).await {
                // The driver gives the permits back when the engine has taken the bytes.
                Ok(credit) => credit.forget(),
                Err(_) => return Err(self.handle.link.reason()),
            }
            let command = Command::Write(self.handle.ends.id, piece);
            self.handle.commands.send(command).map_err(|_| CloseReason::Closed)?;
        }
        if self.handle.link.credit.is_closed() {
            return Err(self.handle.link.reason());
        }
        Ok(())
    }

    /// Ends our direction if half-close was negotiated (`true`), else does nothing (`false`).
    pub fn finish(&mut self) -> bool {
        if self.handle.ends.half_close {
            self.handle.send(Command::Finish(self.handle.ends.id));
        }
        self.handle.ends.half_close
    }

    /// Orderly close of both directions, not waiting.
    pub fn close(self) {
        self.handle.send(Command::Close(self.handle.ends.id));
    }

    /// RST.
    pub fn abort(self) {
        self.handle.send(Command::Abort(self.handle.ends.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, mpsc::UnboundedSender<Bytes>, mpsc::UnboundedReceiver<Command>, Arc<Link>) {
        let (commands, asked) = mpsc::unbounded_channel();
        let (tx, rx) = mpsc::unbounded_channel();
        let link = Link::new();
        let ends = Ends {
            id: ConnId(7),
            local_port: 1,
            remote: Addr::backbone(2),
            remote_port: 3,
            half_close: false,
        };
        (Stream::new(ends, link.clone(), commands, rx), tx, asked, link)
    }

    #[tokio::test]
    async fn small_pieces_are_gathered_in_order_and_large_ones_passed_on() {
        let (mut stream, tx, mut asked, _link) = pair();
        let large = Bytes::from(vec![9; READ_GATHER]);
        for piece in [&b"ab"[..], b"cd", &large[..], b"e"] {
            tx.send(Bytes::copy_from_slice(piece)).unwrap();
        }
        assert_eq!(stream.read().await.unwrap(), "abcd");
        assert_eq!(stream.read().await.unwrap(), large);
        assert_eq!(stream.read().await.unwrap(), "e");
        drop(tx);
        assert_eq!(stream.read().await, None);
        let reported = std::iter::from_fn(|| match asked.try_recv() {
            Ok(Command::Consumed(_, n)) => Some(n),
            _ => None,
        });
        assert_eq!(reported.sum::<usize>(), 5 + READ_GATHER, "every byte read is reported before waiting");
    }

    #[tokio::test]
    async fn a_write_waits_for_credit_and_fails_with_the_reason() {
        let (mut stream, _tx, mut asked, link) = pair();
        stream.write(Bytes::from(vec![0; WRITE_CREDIT])).await.unwrap();
        let mut handed = 0;
        while let Ok(Command::Write(_, piece)) = asked.try_recv() {
            handed += piece.len();
        }
        assert_eq!(handed, WRITE_CREDIT);
        {
            let waiting = stream.write(Bytes::from_static(b"x"));
            tokio::pin!(waiting);
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "no credit is left");
            link.credit.add_permits(1);
            waiting.await.unwrap();
        }
        link.reason.set(CloseReason::Reset).unwrap();
        link.credit.close();
        assert_eq!(stream.write(Bytes::from_static(b"y")).await, Err(CloseReason::Reset));
    }

    #[tokio::test]
    async fn the_last_half_releases_the_stream() {
        let (stream, _tx, mut asked, _link) = pair();
        let (reader, writer) = stream.split();
        drop(reader);
        assert!(matches!(asked.try_recv(), Ok(Command::Discard(ConnId(7)))));
        assert!(asked.try_recv().is_err());
        drop(writer);
        assert!(matches!(asked.try_recv(), Ok(Command::Release(ConnId(7)))));
    }
}
