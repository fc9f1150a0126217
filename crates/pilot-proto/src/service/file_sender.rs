//! Sending half of a file transfer (spec 06 section 5.6): resumable, with progress.
//!
//! No I/O: do what [`FileSender::step`] says until it says [`Step::Done`]. The file's SHA-256 comes first
//! ([`super::Sha256`]). Acknowledgements may be passed to [`FileSender::input`] at any time, not only on
//! [`Step::Read`]; [`FileSender::acknowledged`] then tells the progress.
//!
//! ```no_run
//! # use pilot_proto::service::file_sender::*;
//! # use bytes::Bytes;
//! # struct Stream; impl Stream { fn write(&mut self, _: Bytes) {} fn read(&mut self) -> Option<Bytes> { None } }
//! # fn read_file(_: u64, _: usize) -> Bytes { Bytes::new() }
//! # let (mut stream, sha256, size) = (Stream, [0; 32], 0);
//! let mut sender = FileSender::new("note.txt", size, sha256);
//! let result = loop {
//!     match sender.step() {
//!         Step::Write(bytes) => stream.write(bytes),
//!         Step::ReadFile { offset, len } => sender.data(read_file(offset, len)),
//!         Step::Read(_patience) => match stream.read() {
//!             Some(bytes) => sender.input(bytes),
//!             None => sender.end(),
//!         },
//!         Step::Done(result) => break result,
//!     }
//!     println!("{} of {size} bytes", sender.acknowledged());
//! };
//! if result == Err(TransferError::Unsupported) {
//!     // An old receiver: on a new stream, send `Content::file` with `SendMessage`.
//! }
//! ```

use super::filestream::{self, Init, Message, TransferId};
use super::frame::{Decoder, FrameType};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// Data in one chunk, bytes.
pub const CHUNK: usize = 48 * 1024;
/// Unacknowledged data in flight, bytes. It spares neither end memory (the stream's own window does), so it is
/// far above what the reference sends, and a transfer runs at the speed of the stream.
pub const WINDOW: u64 = 16 << 20;
/// How long to wait for the answer to INIT.
pub const INIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the next acknowledgement unless the user says otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(90);
/// Largest answer accepted, bytes.
const MAX_ANSWER: u32 = 64 * 1024;

/// Why a transfer ended without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The receiver knows no transfers (it is older than 1.12). Open a new stream and send a FILE frame.
    #[error("receiver does not support streamed transfer")]
    Unsupported,
    /// The receiver refused or could not finish; its text. What it has stays there for a later resumption.
    #[error("{0}")]
    Refused(String),
    /// The receiver gave up; its text.
    #[error("transfer aborted by the receiver: {0}")]
    Aborted(String),
    /// The stream ended. A new attempt resumes.
    #[error("connection closed after {acknowledged} of {size} bytes; send again to resume")]
    Closed {
        /// Bytes the receiver has.
        acknowledged: u64,
        /// File size, bytes.
        size: u64,
    },
    /// No acknowledgement in time. A new attempt resumes.
    #[error("no acknowledgement in time after {acknowledged} of {size} bytes; send again to resume")]
    TimedOut {
        /// Bytes the receiver has.
        acknowledged: u64,
        /// File size, bytes.
        size: u64,
    },
    /// The file is shorter than it was when it was hashed.
    #[error("the file changed while it was being sent")]
    FileChanged,
    /// The receiver's answers make no sense.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

/// A transferred file, verified by the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes the receiver had from an earlier attempt.
    pub resumed: u64,
    /// Bytes sent now.
    pub sent: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write these bytes.
    Write(Bytes),
    /// Read this part of the file and pass it to [`FileSender::data`].
    ReadFile {
        /// Where.
        offset: u64,
        /// Bytes; the file has as many there unless it changed.
        len: usize,
    },
    /// Read and pass what came to `input`; at the end of the stream call `end`, after this long without any byte
    /// `timed_out`.
    Read(Duration),
    /// The end.
    Done(Result<Transferred, TransferError>),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    AwaitInitAck,
    Sending,
    AwaitComplete,
    Done(Result<Transferred, TransferError>),
}

/// One file on its way.
#[derive(Debug)]
pub struct FileSender {
    id: TransferId,
    size: u64,
    patience: Duration,
    state: State,
    writes: VecDeque<Bytes>,
    decoder: Decoder,
    resumed: u64,
    /// Offset of the next byte to send.
    next: u64,
    acknowledged: u64,
}

impl FileSender {
    /// A transfer of `size` bytes whose hash is `sha256`. The name is cut to 255 bytes.
    pub fn new(name: &str, size: u64, sha256: [u8; 32]) -> FileSender {
        let mut id = [0; 16];
        id.copy_from_slice(&sha256[..16]);
        let init = Init { size, sha256, chunk: CHUNK as u32, name: name.to_owned() };
        FileSender {
            id,
            size,
            patience: DEFAULT_PATIENCE,
            state: State::AwaitInitAck,
            writes: VecDeque::from([filestream::encode(&id, &Message::Init(init))]),
            decoder: Decoder::new(MAX_ANSWER),
            resumed: 0,
            next: 0,
            acknowledged: 0,
        }
    }

    /// Waits this long for each next acknowledgement.
    pub fn patience(self, patience: Duration) -> FileSender {
        FileSender { patience, ..self }
    }

    /// Bytes the receiver has, those of earlier attempts included.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Bytes the receiver had at the start.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// The receiver has answered and takes the file.
    pub fn is_accepted(&self) -> bool {
        self.state != State::AwaitInitAck && !matches!(self.state, State::Done(Err(_)))
    }

    /// File size, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        if let Some(bytes) = self.writes.pop_front() {
            return Step::Write(bytes);
        }
        match &self.state {
            State::Done(result) => Step::Done(result.clone()),
            State::AwaitInitAck => Step::Read(INIT_PATIENCE),
            State::AwaitComplete => Step::Read(self.patience),
            State::Sending => {
                let left = self.size - self.next;
                let len = left.min(CHUNK as u64);
                if left == 0 {
                    self.state = State::AwaitComplete;
                    Step::Write(filestream::encode(&self.id, &Message::Done))
                } else if self.next - self.acknowledged + len > WINDOW {
                    Step::Read(self.patience)
                } else {
                    Step::ReadFile { offset: self.next, len: len as usize }
                }
            }
        }
    }

    /// The part of the file asked for. Less than asked for: the file has changed, and the transfer is aborted.
    pub fn data(&mut self, data: Bytes) {
        let due = (self.size - self.next).min(CHUNK as u64);
        if self.state != State::Sending {
            return;
        }
        if data.len() as u64 != due {
            self.abort("file changed while it was being sent");
            self.state = State::Done(Err(TransferError::FileChanged));
            return;
        }
        self.writes.push_back(filestream::chunk_prefix(&self.id, self.next, data.len()));
        self.writes.push_back(data);
        self.next += due;
    }

    /// Gives up (a file that cannot be read, a user who cancels): tells the receiver, which keeps what it has.
    /// Write what [`FileSender::step`] still gives.
    pub fn abort(&mut self, reason: &str) {
        self.writes.push_back(filestream::encode(&self.id, &Message::Abort(reason.to_owned())));
        self.state = State::Done(Err(TransferError::Aborted(reason.to_owned())));
    }

    /// Bytes came.
    pub fn input(&mut self, bytes: Bytes) {
        self.decoder.push(bytes);
        while !matches!(self.state, State::Done(_)) {
            match self.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) if frame.ty == FrameType::FILESTREAM => {
                    match filestream::parse(&frame.payload) {
                        // Answers to other transfers on this stream do not concern this one.
                        Ok((id, message)) if id == self.id => self.answer(message),
                        Ok(_) => {}
                        Err(error) => self.finish(Err(TransferError::Protocol(error.to_string()))),
                    }
                }
                Ok(Some(frame)) => {
                    let text = String::from_utf8_lossy(&frame.payload).into_owned();
                    self.finish(Err(match self.state {
                        State::AwaitInitAck => TransferError::Unsupported,
                        _ => TransferError::Protocol(text),
                    }));
                }
                Err(error) => self.finish(Err(match self.state {
                    State::AwaitInitAck => TransferError::Unsupported,
                    _ => TransferError::Protocol(error.to_string()),
                })),
            }
        }
    }

    fn answer(&mut self, message: Message) {
        match (message, &self.state) {
            (Message::InitAck(resume), State::AwaitInitAck) if resume <= self.size => {
                (self.resumed, self.next, self.acknowledged) = (resume, resume, resume);
                self.state = State::Sending;
            }
            (Message::InitAck(resume), State::AwaitInitAck) => {
                self.finish(Err(TransferError::Protocol(format!(
                    "resume at {resume} of {} bytes",
                    self.size
                ))));
            }
            (Message::Ack(offset), State::Sending | State::AwaitComplete) => {
                // An acknowledgement of bytes not sent would let the window overflow.
                self.acknowledged = self.acknowledged.max(offset.min(self.next));
            }
            (Message::Complete(Ok(())), State::AwaitComplete) => {
                self.acknowledged = self.size;
                self.finish(Ok(Transferred { resumed: self.resumed, sent: self.size - self.resumed }));
            }
            (Message::Complete(Ok(())), _) => {
                self.finish(Err(TransferError::Protocol("complete before the end".to_owned())));
            }
            (Message::Complete(Err(text)), _) => self.finish(Err(TransferError::Refused(text))),
            (Message::Abort(text), _) => self.finish(Err(TransferError::Aborted(text))),
            _ => {}
        }
    }

    /// The stream ended, or a write failed.
    pub fn end(&mut self) {
        let (acknowledged, size) = (self.acknowledged, self.size);
        self.finish(Err(match self.state {
            State::AwaitInitAck => TransferError::Unsupported,
            _ => TransferError::Closed { acknowledged, size },
        }));
    }

    /// The patience ran out.
    pub fn timed_out(&mut self) {
        let (acknowledged, size) = (self.acknowledged, self.size);
        self.finish(Err(match self.state {
            State::AwaitInitAck => TransferError::Unsupported,
            _ => TransferError::TimedOut { acknowledged, size },
        }));
    }

    fn finish(&mut self, result: Result<Transferred, TransferError>) {
        if !matches!(self.state, State::Done(_)) {
            self.state = State::Done(result);
            self.writes.clear();
        }
    }
}
