//! Framing of the registry protocol: a four-byte big-endian length and a JSON object (spec 05 section 2.1).

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest request body, bytes. Clients send far less; a longer one closes the connection. It is also why the binary
/// mode's `PILT`, read as a length, closes it.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// Bodies up to this many bytes are read at any time; longer ones share a bounded room.
pub(crate) const SMALL_BODY: usize = 8 * 1024;

/// Space set aside before any byte of a body arrived.
const FIRST_RESERVE: usize = 1024;
/// A buffer grown beyond this is not kept for the next request.
const KEEP: usize = SMALL_BODY;

/// Reads the rest of the length of a frame that begins with `first`.
pub(crate) async fn header(stream: &mut (impl AsyncRead + Unpin), first: u8) -> io::Result<usize> {
    let mut header = [first, 0, 0, 0];
    stream.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_BODY {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes (max {MAX_BODY})"),
        ));
    }
    Ok(length)
}

/// Reads a body of `length` bytes into `buf`.
pub(crate) async fn body(
    stream: &mut (impl AsyncRead + Unpin),
    length: usize,
    buf: &mut Vec<u8>,
) -> io::Result<()> {
    if buf.capacity() > KEEP {
        *buf = Vec::new();
    }
    buf.clear();
    buf.reserve(length.min(FIRST_RESERVE));
    // Grows as bytes arrive: a length alone reserves nothing.
    let read = stream.take(length as u64).read_to_end(buf).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Reads one frame without any deadline. `false`: the peer closed between frames.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin), buf: &mut Vec<u8>) -> io::Result<bool> {
    let mut first = [0];
    if stream.read(&mut first).await? == 0 {
        return Ok(false);
    }
    let length = header(stream, first[0]).await?;
    body(stream, length, buf).await?;
    Ok(true)
}

/// The frame of an answer.
pub(crate) fn frame(body: &serde_json::Value) -> Vec<u8> {
    let mut out = vec![0; 4];
    // Writing a JSON value into memory cannot fail: its keys are texts.
    if serde_json::to_writer(&mut out, body).is_err() {
        out.truncate(4);
    }
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Writes one frame.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    body: &serde_json::Value,
) -> io::Result<()> {
    stream.write_all(&frame(body)).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> (io::Result<bool>, Vec<u8>) {
        let mut buf = Vec::new();
        (read_frame(&mut bytes, &mut buf).await, buf)
    }

    #[tokio::test]
    async fn frames_read_back() {
        let (ok, body) = read(b"\x00\x00\x00\x16{\"type\":\"beacon_list\"}").await;
        assert!(ok.unwrap());
        assert_eq!(body, br#"{"type":"beacon_list"}"#);
        assert_eq!(
            frame(&serde_json::json!({"type": "beacon_list"})),
            b"\x00\x00\x00\x16{\"type\":\"beacon_list\"}"
        );
    }

    #[tokio::test]
    async fn ends_are_told_apart() {
        assert!(!read(b"").await.0.unwrap());
        for cut in [&b"\x00\x00"[..], b"\x00\x00\x00\x05abc"] {
            assert_eq!(read(cut).await.0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn long_frames_and_the_binary_mode_are_refused_without_allocating() {
        for bytes in [&b"\x00\x10\x00\x01"[..], b"PILT\x01", b"\xff\xff\xff\xff"] {
            let (outcome, buf) = read(bytes).await;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(buf.capacity(), 0);
        }
        let (_, buf) = read(b"\x00\x0f\xff\xffabc").await;
        assert!(buf.capacity() <= FIRST_RESERVE);
    }
}
