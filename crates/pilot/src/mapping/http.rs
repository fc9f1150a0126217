//! As much HTTP as routers speak: one request per connection, answers of bounded size.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for a request and its answer.
const LIMIT: Duration = Duration::from_secs(4);
/// Largest answer read (bytes).
const MAX_ANSWER: u64 = 256 * 1024;

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Sends `head` (request line and headers, each ended by CR LF) and the body, and reads the answer.
pub(super) async fn exchange(at: SocketAddr, head: &str, body: &str) -> Result<Answer, String> {
    let work = async {
        let mut stream = TcpStream::connect(at).await?;
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{head}Host: {at}\r\nConnection: close\r\n{length}\r\n{body}");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        // Some close with a reset, after the whole answer.
        let read = stream.take(MAX_ANSWER).read_to_end(&mut bytes).await;
        if bytes.is_empty() { read.map(|_| bytes) } else { Ok(bytes) }
    };
    let bytes = timeout(LIMIT, work).await.map_err(|_| "timed out".to_owned())?;
    parse(&bytes.map_err(|e| e.to_string())?).ok_or_else(|| "not an HTTP answer".to_owned())
}

/// An answer as it came over the connection until its end.
pub(super) fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let mut status = lines.next()?.split(' ');
    let _version = status.next().filter(|v| v.starts_with("HTTP/1."))?;
    let status = status.next()?.parse().ok()?;
    let chunked = lines.filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked")
    });
    let body = &bytes[end + 4..];
    let body = if chunked { dechunk(body)? } else { body.to_vec() };
    Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(out);
        }
        let (chunk, more) = rest.split_at_checked(size)?;
        out.extend_from_slice(chunk);
        rest = more.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n<a>b</a>").unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, "<a>b</a>"));
        let chunks =
            b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<a>\r\n5;x=y\r\nb</a>\r\n0\r\n\r\n";
        let answer = parse(chunks).unwrap();
        assert_eq!((answer.status, &answer.body[..]), (500, "<a>b</a>"));
        for n in 0..chunks.len() - 2 {
            assert_eq!(parse(&chunks[..n]), None, "cut at {n}");
        }
        assert_eq!(parse(b"SSH-2.0-x\r\n\r\n\r\n"), None);
        let huge = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc";
        assert_eq!(parse(huge), None);
    }
}
