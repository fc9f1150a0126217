//! One port for the registry's protocol and for HTTP: the first byte tells them apart.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// A stream whose first byte was looked at, and comes again.
pub(crate) struct Peeked<S> {
    first: Option<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> Peeked<S> {
    /// Waits for the first byte. `None`: the other end closed without one.
    pub async fn new(mut stream: S) -> io::Result<Option<Peeked<S>>> {
        let mut first = [0];
        match stream.read(&mut first).await? {
            0 => Ok(None),
            _ => Ok(Some(Peeked { first: Some(first[0]), stream })),
        }
    }

    /// Whether it begins GET or HEAD. The registry's frames begin with a length of at most 1 MiB, whose first byte is 0, and
    /// its binary mode with `PILT`.
    pub fn is_http(&self) -> bool {
        matches!(self.first, Some(b'G' | b'H'))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Peeked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Peeked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
