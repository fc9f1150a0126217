//! Bytes between this process's standard streams and a peer.
//!
//! Reading stdin and writing stdout block, so each has a thread of its own: the connection to the daemon is served
//! meanwhile. The threads end with the process.

use super::text::safe_lines;
use crate::error::CliError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pilot_ipc::client::StreamEnd;
use pilot_ipc::{IpcReader, IpcStream, IpcWriter};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes per read from stdin.
const CHUNK: usize = 64 * 1024;
/// Chunks waiting between a thread and the connection.
const QUEUE: usize = 16;
/// Most bytes of an answer or of a message kept for one JSON document.
pub const MAX_KEPT: usize = 64 << 20;

/// Stdin as it comes in; the channel closes at its end.
pub fn stdin() -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&chunk[..length])),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let over = read.is_err();
            if sender.blocking_send(read).is_err() || over {
                return;
            }
        }
    });
    receiver
}

/// One message as a source.
pub fn once(message: Bytes) -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(1);
    if !message.is_empty() {
        // The channel is empty and its receiver is here, so there is room.
        let _ = sender.try_send(Ok(message));
    }
    receiver
}

/// Where an answer goes.
pub enum Sink {
    /// Byte for byte to stdout; on a terminal with control characters shown instead of obeyed.
    Stdout(Stdout),
    /// Kept for a JSON document.
    Kept(Vec<u8>),
}

impl Sink {
    async fn take(&mut self, part: Bytes) -> Result<(), CliError> {
        match self {
            Sink::Stdout(stdout) => stdout.write(part).await,
            Sink::Kept(kept) if kept.len() + part.len() > MAX_KEPT => Err(CliError::connection(format!(
                "the answer is over {} MiB; leave --json away to have it printed as it comes",
                MAX_KEPT >> 20
            ))),
            Sink::Kept(kept) => {
                kept.extend_from_slice(&part);
                Ok(())
            }
        }
    }
}

/// Stdout behind a thread.
pub struct Stdout {
    sender: mpsc::Sender<Bytes>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Stdout {
    /// `final_newline`: end the output with a newline if the answer did not.
    pub fn new(final_newline: bool) -> Stdout {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
        let thread = std::thread::spawn(move || {
            let mut stdout = std::io::stdout().lock();
            let mut escape = stdout.is_terminal().then(Escape::default);
            let mut last = b'\n';
            while let Some(part) = receiver.blocking_recv() {
                last = part.last().copied().unwrap_or(last);
                match &mut escape {
                    Some(escape) => stdout.write_all(escape.push(&part).as_bytes())?,
                    None => stdout.write_all(&part)?,
                }
                stdout.flush()?;
            }
            if last != b'\n' && (final_newline || escape.is_some()) {
                stdout.write_all(b"\n")?;
            }
            stdout.flush()
        });
        Stdout { sender, thread }
    }

    async fn write(&self, part: Bytes) -> Result<(), CliError> {
        let closed = || CliError::io("write to stdout", &std::io::ErrorKind::BrokenPipe.into());
        self.sender.send(part).await.map_err(|_| closed())
    }

    /// Waits until everything is written.
    pub fn finish(self) -> Result<(), CliError> {
        drop(self.sender);
        match self.thread.join() {
            Ok(written) => written.map_err(|e| CliError::io("write to stdout", &e)),
            Err(_) => Err(CliError::internal("the stdout thread panicked")),
        }
    }
}

/// Makes a byte stream harmless for a terminal, chunk by chunk.
#[derive(Debug, Default)]
struct Escape {
    /// The beginning of a character whose rest has not come yet, at most 3 bytes.
    tail: Vec<u8>,
}

impl Escape {
    fn push(&mut self, part: &[u8]) -> String {
        self.tail.extend_from_slice(part);
        let whole = match std::str::from_utf8(&self.tail) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => self.tail.len(),
        };
        let rest = self.tail.split_off(whole);
        let text = String::from_utf8_lossy(&self.tail);
        // A carriage return before a newline is a line ending, not an attempt to overwrite the line.
        let text = safe_lines(&text.replace("\r\n", "\n")).into_owned();
        self.tail = rest;
        text
    }
}

/// One received body on lines of its own: byte for byte, or harmless on a terminal.
pub fn print_body(body: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    let written = match stdout.is_terminal() {
        true => stdout.write_all(safe_lines(&String::from_utf8_lossy(body).replace("\r\n", "\n")).as_bytes()),
        false => stdout.write_all(body),
    };
    let newline: &[u8] = if body.ends_with(b"\n") { b"" } else { b"\n" };
    written
        .and_then(|()| stdout.write_all(newline))
        .and_then(|()| stdout.flush())
        .map_err(|e| CliError::io("write to stdout", &e))
}

/// How long a conversation goes on.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For the first byte of the answer, once everything is sent.
    pub first: Duration,
    /// Silence that ends the answer of a peer that cannot tell where it ends (no half-close).
    pub idle: Duration,
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The peer closed.
    Closed,
    /// The peer fell silent, and could not have said more about the end.
    Silent,
    /// Nothing came in time.
    NoAnswer,
    /// An answer began, but neither went on nor ended in time.
    Stalled,
}

/// What a conversation came to.
#[derive(Debug, Clone, Copy)]
pub struct Talk {
    pub ending: Ending,
    pub sent: u64,
    pub received: u64,
}

/// Sends everything of `source` while the answer goes to `sink`. `keep` gets a copy of what is sent.
pub async fn converse(
    stream: IpcStream,
    source: mpsc::Receiver<std::io::Result<Bytes>>,
    sink: &mut Sink,
    mut keep: Option<&mut Vec<u8>>,
    bounds: Bounds,
) -> Result<Talk, CliError> {
    let (mut reader, mut writer) = stream.split();
    let sent = std::cell::Cell::new(0);
    let mut received = 0;
    let ending = {
        let sending = send_all(&mut writer, source, &sent, &mut keep);
        tokio::pin!(sending);
        // After sending: whether the peer knows that there is no more to come.
        let mut half_closed: Option<bool> = None;
        let mut since = Instant::now();
        loop {
            let patience = match (half_closed, received) {
                (None, _) => None,
                (Some(_), 0) => Some(bounds.first),
                (Some(true), _) => Some(bounds.first.max(bounds.idle)),
                (Some(false), _) => Some(bounds.idle),
            };
            let until = since + patience.unwrap_or(Duration::ZERO);
            tokio::select! {
                done = &mut sending, if half_closed.is_none() => {
                    half_closed = Some(done?);
                    since = Instant::now();
                }
                part = reader.read() => match part {
                    Some(part) => {
                        received += part.len() as u64;
                        sink.take(part).await?;
                        since = Instant::now();
                    }
                    None => break ended(&reader)?,
                },
                () = tokio::time::sleep_until(until), if patience.is_some() => {
                    break match (received, half_closed) {
                        (0, _) => Ending::NoAnswer,
                        (_, Some(true)) => Ending::Stalled,
                        _ => Ending::Silent,
                    };
                }
            }
        }
    };
    writer.close();
    Ok(Talk { ending, sent: sent.get(), received })
}

/// The end of a stream, or why it is none.
pub fn ended(reader: &IpcReader) -> Result<Ending, CliError> {
    match reader.end() {
        Some(StreamEnd::Overrun) => Err(CliError::connection(
            "the answer came faster than it was taken from stdout; the rest of it is lost",
        )),
        Some(StreamEnd::Disconnected) => Err(CliError::connection("daemon disconnected")),
        _ => Ok(Ending::Closed),
    }
}

async fn send_all(
    writer: &mut IpcWriter,
    mut source: mpsc::Receiver<std::io::Result<Bytes>>,
    sent: &std::cell::Cell<u64>,
    keep: &mut Option<&mut Vec<u8>>,
) -> Result<bool, CliError> {
    while let Some(part) = source.recv().await {
        let part = part.map_err(|e| CliError::io("read stdin", &e))?;
        if let Some(keep) = keep {
            if keep.len() + part.len() > MAX_KEPT {
                return Err(CliError::invalid(format!(
                    "over {} MiB on stdin do not go into one JSON document",
                    MAX_KEPT >> 20
                )));
            }
            keep.extend_from_slice(&part);
        }
        let length = part.len() as u64;
        writer.write(part).await.map_err(|e| CliError::connection(e.to_string()))?;
        sent.set(sent.get() + length);
    }
    Ok(writer.finish().await)
}

/// Puts bytes into a JSON object: as text; if they are not UTF-8, also exactly, in `<key>_b64`.
pub fn put_bytes(object: &mut Value, key: &str, bytes: &[u8]) {
    object[key] = json!(String::from_utf8_lossy(bytes));
    if std::str::from_utf8(bytes).is_err() {
        object[format!("{key}_b64")] = json!(STANDARD.encode(bytes));
        object[format!("{key}_encoding")] = json!("base64");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_split_between_chunks_is_shown_whole() {
        let mut escape = Escape::default();
        let bytes = "aé✓b".as_bytes();
        let shown: String = bytes.iter().map(|b| escape.push(&[*b])).collect();
        assert_eq!(shown, "aé✓b");
    }

    #[test]
    fn terminals_get_no_control_characters_from_a_peer() {
        let mut escape = Escape::default();
        assert_eq!(escape.push(b"one\r\ntwo\x1b]0;x\x07\xff\n"), "one\ntwo\\u{1b}]0;x\\u{7}\u{fffd}\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_exactly_too() {
        let mut object = json!({});
        put_bytes(&mut object, "response", b"ok");
        put_bytes(&mut object, "sent", b"\xff\x00");
        assert_eq!(
            object,
            json!({"response": "ok", "sent": "\u{fffd}\u{0}", "sent_b64": "/wA=", "sent_encoding": "base64"})
        );
    }
}
