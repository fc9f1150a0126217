//! Client of data exchange over any [`ByteStream`]: messages and files.
//!
//! ```no_run
//! # use pilot_daemon::services::{client::*, ByteStream};
//! # use pilot_proto::service::{frame::DEFAULT_MAX_FRAME, message::{Tag, new_id}, send::Content};
//! # async fn f(mut stream: impl ByteStream) -> Result<(), Box<dyn std::error::Error>> {
//! // A message, on a stream dialled to port 1001 (several may follow on one stream):
//! let tag = Tag { message_id: Some(new_id([7; 16])), reply_to: None };
//! let sent = send_message(&mut stream, Content::text("hello"), Some(tag), DEFAULT_PATIENCE).await?;
//! println!("{} (tagged: {})", sent.ack, sent.tagged);
//! # Ok(()) }
//! # async fn g<S: ByteStream>(dial: impl AsyncFnMut() -> Result<S, std::io::Error>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! // A file; `dial` opens a stream to port 1001, a second time if the receiver is old:
//! let file = std::path::Path::new("note.txt");
//! let sent = send_file(dial, file, "note.txt", DEFAULT_PATIENCE, |event| match event {
//!     FileEvent::Progress { acknowledged, size } => println!("{acknowledged}/{size}"),
//!     _ => {}
//! })
//! .await?;
//! # Ok(()) }
//! ```

use super::ByteStream;
use bytes::Bytes;
use pilot_proto::service::file_sender::{self, FileSender, TransferError, Transferred};
use pilot_proto::service::frame::{MAX_FRAME_VARIABLE, max_frame};
use pilot_proto::service::message::Tag;
use pilot_proto::service::send::{Content, Delivered, SendError, SendMessage, Step};
use pilot_proto::service::{Sha256, names};
use std::future::poll_fn;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// How long to wait for an acknowledgement unless the user says otherwise.
pub const DEFAULT_PATIENCE: Duration = file_sender::DEFAULT_PATIENCE;
/// Bytes read from a file at once.
const BLOCK: usize = 1 << 20;

/// The frame limit of this process.
pub fn frame_limit() -> u32 {
    max_frame(std::env::var(MAX_FRAME_VARIABLE).ok().as_deref())
}

/// Sends one message and waits for its acknowledgement.
///
/// # Errors
/// See [`SendError`].
pub async fn send_message(
    stream: &mut impl ByteStream,
    content: Content,
    tag: Option<Tag>,
    patience: Duration,
) -> Result<Delivered, SendError> {
    let mut send = SendMessage::new(content, tag, frame_limit())?.patience(patience);
    loop {
        match send.step() {
            Step::Write(bytes) => {
                if stream.write(bytes).await.is_err() {
                    send.end();
                }
            }
            Step::Read(patience) => match tokio::time::timeout(patience, stream.read()).await {
                Ok(Some(bytes)) => send.input(bytes),
                Ok(None) => send.end(),
                Err(_) => send.timed_out(),
            },
            Step::Done(result) => return result,
        }
    }
}

/// What happens while a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEvent {
    /// Its hash is being computed.
    Hashing {
        /// Bytes so far.
        hashed: u64,
        /// File size, bytes.
        size: u64,
    },
    /// The receiver answered; it had this many bytes already.
    Started {
        /// Bytes.
        resumed: u64,
        /// File size, bytes.
        size: u64,
    },
    /// The receiver has more bytes.
    Progress {
        /// Bytes, earlier attempts included.
        acknowledged: u64,
        /// File size, bytes.
        size: u64,
    },
    /// The receiver is old: the file goes again in a single frame.
    FallingBack,
}

/// How a file went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSent {
    /// As a transfer: complete and verified.
    Streamed {
        /// Bytes the receiver had and bytes sent.
        transferred: Transferred,
        /// File size, bytes.
        size: u64,
        /// Of the file.
        sha256: [u8; 32],
    },
    /// In one frame, to an old receiver.
    Whole {
        /// File size, bytes.
        size: u64,
        /// The receiver's text.
        ack: String,
    },
}

/// Why a file was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum FileError<E> {
    /// The file could not be read.
    #[error("read {path}: {error}")]
    Read {
        /// Which.
        path: String,
        /// Cause.
        error: io::Error,
    },
    /// No stream.
    #[error(transparent)]
    Dial(E),
    /// The transfer failed.
    #[error(transparent)]
    Transfer(TransferError),
    /// The single frame to an old receiver failed.
    #[error("{0} (the receiver does not support streamed transfer)")]
    Whole(SendError),
}

/// Sends a file under `name`. `dial` opens a stream to port 1001 of the receiver.
///
/// # Errors
/// See [`FileError`]. After [`TransferError::Closed`] and [`TransferError::TimedOut`] the same call resumes.
pub async fn send_file<S: ByteStream, E>(
    mut dial: impl AsyncFnMut() -> Result<S, E>,
    path: &Path,
    name: &str,
    patience: Duration,
    mut event: impl FnMut(FileEvent),
) -> Result<FileSent, FileError<E>> {
    let unreadable = |error| FileError::Read { path: path.display().to_string(), error };
    let mut file = Blocks::open(path).await.map_err(unreadable)?;
    let (sha256, size) = file.hash(&mut event).await.map_err(unreadable)?;
    let mut stream = dial().await.map_err(FileError::Dial)?;
    let mut sender = FileSender::new(name, size, sha256).patience(patience);
    let mut reported = None;
    let result = loop {
        match sender.step() {
            file_sender::Step::Write(bytes) => {
                if stream.write(bytes).await.is_err() {
                    sender.end();
                }
            }
            file_sender::Step::ReadFile { offset, len } => match file.read(offset, len).await {
                Ok(data) => sender.data(data),
                Err(error) => {
                    sender.abort("the sender could not read the file");
                    while let file_sender::Step::Write(bytes) = sender.step() {
                        let _ = stream.write(bytes).await;
                    }
                    return Err(unreadable(error));
                }
            },
            file_sender::Step::Read(patience) => match tokio::time::timeout(patience, stream.read()).await {
                Ok(Some(bytes)) => sender.input(bytes),
                Ok(None) => sender.end(),
                Err(_) => sender.timed_out(),
            },
            file_sender::Step::Done(result) => break result,
        }
        if sender.is_accepted() {
            while let Some(Some(bytes)) = read_now(&mut stream).await {
                sender.input(bytes);
            }
            let acknowledged = sender.acknowledged();
            if reported.is_none() {
                event(FileEvent::Started { resumed: sender.resumed(), size });
            }
            if reported != Some(acknowledged) {
                event(FileEvent::Progress { acknowledged, size });
                reported = Some(acknowledged);
            }
        }
    };
    match result {
        Ok(transferred) => Ok(FileSent::Streamed { transferred, size, sha256 }),
        Err(TransferError::Unsupported) => {
            drop(stream);
            event(FileEvent::FallingBack);
            let limit = frame_limit();
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            if len > limit as usize - names::cut(name, 255).len() - 2 {
                return Err(FileError::Whole(SendError::TooLarge { len, max: limit }));
            }
            let data = file.read(0, len).await.map_err(unreadable)?;
            let mut stream = dial().await.map_err(FileError::Dial)?;
            let sent = send_message(&mut stream, Content::file(name, data), None, patience).await;
            sent.map(|sent| FileSent::Whole { size, ack: sent.ack }).map_err(FileError::Whole)
        }
        Err(error) => Err(FileError::Transfer(error)),
    }
}

/// What can be read without waiting.
async fn read_now(stream: &mut impl ByteStream) -> Option<Option<Bytes>> {
    let mut read = pin!(stream.read());
    poll_fn(|cx| match read.as_mut().poll(cx) {
        Poll::Ready(bytes) => Poll::Ready(Some(bytes)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A file read ahead in blocks, off the executor's threads.
struct Blocks {
    file: Option<std::fs::File>,
    block: Bytes,
    at: u64,
}

impl Blocks {
    async fn open(path: &Path) -> io::Result<Blocks> {
        let path = path.to_owned();
        let file = blocking(move || std::fs::File::open(path)).await?;
        Ok(Blocks { file: Some(file), block: Bytes::new(), at: 0 })
    }

    /// Hash and size.
    async fn hash(&mut self, event: &mut impl FnMut(FileEvent)) -> io::Result<([u8; 32], u64)> {
        let size = self.file.as_ref().map(|file| file.metadata()).transpose()?.map_or(0, |data| data.len());
        let mut hash = Sha256::new();
        let mut hashed = 0;
        loop {
            let block = self.read_block(hashed, BLOCK).await?;
            if block.is_empty() {
                return Ok((hash.finish(), hashed));
            }
            hashed += block.len() as u64;
            let updated = blocking(move || {
                hash.update(&block);
                Ok(hash)
            });
            hash = updated.await?;
            event(FileEvent::Hashing { hashed, size: size.max(hashed) });
        }
    }

    /// `len` bytes at `offset`; fewer at the end of the file.
    async fn read(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let within = |at: u64, block: &Bytes| {
            let start = usize::try_from(offset.checked_sub(at)?).ok()?;
            (start + len <= block.len()).then(|| block.slice(start..start + len))
        };
        if let Some(data) = within(self.at, &self.block) {
            return Ok(data);
        }
        self.block = self.read_block(offset, len.max(BLOCK)).await?;
        self.at = offset;
        Ok(self.block.slice(..len.min(self.block.len())))
    }

    async fn read_block(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let Some(mut file) = self.file.take() else { return Err(io::Error::other("the file is closed")) };
        let (file, block) = blocking(move || {
            file.seek(io::SeekFrom::Start(offset))?;
            let mut block = Vec::new();
            (&mut file).take(len as u64).read_to_end(&mut block)?;
            Ok((file, Bytes::from(block)))
        })
        .await?;
        self.file = Some(file);
        Ok(block)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
