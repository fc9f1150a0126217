//! Framing of the registry's TCP protocol: a 4-byte big-endian length and one JSON object (spec 05 section 2.1).

use serde_json::{Map, Value};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Largest answer taken, bytes. The protocol allows 64 MiB; nothing a node asks comes near this.
pub(crate) const MAX_READ: usize = 16 * 1024 * 1024;
/// Largest request sent, bytes.
pub(crate) const MAX_WRITE: usize = 64 * 1024 * 1024;
/// Bytes set aside before any have arrived; beyond it the buffer grows with what really comes.
const FIRST: usize = 16 * 1024;

/// Appends the frame of `request` to `out`.
pub(crate) fn put(request: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut *out, request).map_err(|e| e.to_string())?;
    let len = out.len() - at - 4;
    match u32::try_from(len) {
        Ok(header) if len <= MAX_WRITE => {
            out[at..at + 4].copy_from_slice(&header.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(at);
            Err(format!("request of {len} bytes is too long (max {MAX_WRITE})"))
        }
    }
}

/// Reads one frame. `Ok(None)`: the peer closed between frames.
pub(crate) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Map<String, Value>>> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < 4 {
        match from.read(&mut header[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => have += n,
        }
    }
    let len = u32::from_be_bytes(header) as usize;
    if len > MAX_READ {
        return Err(io::Error::other(format!("answer of {len} bytes is too long (max {MAX_READ})")));
    }
    let mut body = Vec::with_capacity(len.min(FIRST));
    let mut rest = from.take(len as u64);
    rest.read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map(Some).map_err(|e| io::Error::other(format!("malformed response: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn frames_round_trip_and_bad_ones_name_the_cause() {
        let mut bytes = Vec::new();
        put(&json!({"type":"beacon_list"}), &mut bytes).unwrap();
        assert_eq!(bytes[..4], [0, 0, 0, 0x16]);
        let mut both = [&bytes[..], &bytes[..]].concat();
        let mut from = &both[..];
        for _ in 0..2 {
            assert_eq!(read(&mut from).await.unwrap().unwrap()["type"], "beacon_list");
        }
        assert!(read(&mut from).await.unwrap().is_none());

        both.truncate(both.len() - 1);
        let mut from = &both[26..];
        assert_eq!(read(&mut from).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut long = &[0x01, 0x00, 0x00, 0x01][..];
        assert!(read(&mut long).await.unwrap_err().to_string().contains("too long"));
        let mut array = &b"\x00\x00\x00\x02[]"[..];
        assert!(read(&mut array).await.unwrap_err().to_string().starts_with("malformed response: "));
    }
}
