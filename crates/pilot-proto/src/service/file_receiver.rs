//! Receiving half of file transfers on one connection (spec 06 section 5.6).
//!
//! Files are kept by a [`PartialStore`], which may block: call [`FileReceiver::handle`] where that is allowed.

use super::Sha256;
use super::filestream::{self, Init, Malformed, Message, TransferId};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// Transfers on one connection.
pub const MAX_TRANSFERS: usize = 64;
/// Data that came before its turn, per transfer, bytes.
pub const MAX_BUFFERED: usize = 786_432;
/// Chunks that came before their turn, per transfer.
pub const MAX_BUFFERED_CHUNKS: usize = 1024;

/// Why bytes could not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteError {
    /// A newer transfer of this file owns the partial file.
    TakenOver,
    /// It failed; a text for the sender. The transfer ends; the store has dealt with the partial file.
    Failed(String),
}

/// Where partial files are kept.
pub trait PartialStore {
    /// One partial file.
    type File: PartialFile;

    /// Opens the partial file of a transfer, creating it or continuing it. A partial file larger than the declared
    /// size starts anew.
    ///
    /// # Errors
    /// A refusal (quota, disk, I/O) in words for the sender.
    fn open(&mut self, id: &TransferId, init: &Init) -> Result<Self::File, String>;
}

/// A partial file. Dropping it ends the transfer and keeps what is written, for a later resumption.
pub trait PartialFile {
    /// What is known of a finished file.
    type Stored;

    /// Bytes written so far; all of them contiguous.
    fn len(&self) -> u64;

    /// No bytes are written yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends.
    ///
    /// # Errors
    /// See [`WriteError`].
    fn append(&mut self, data: &[u8]) -> Result<(), WriteError>;

    /// Passes all bytes written so far, in order, to `each`.
    ///
    /// # Errors
    /// In words for the sender.
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), String>;

    /// The contents are not those announced: a retry must start anew.
    fn corrupt(self);

    /// Makes it durable and gives it its final name, formed from `base` (a plain file name).
    ///
    /// # Errors
    /// In words for the sender.
    fn finish(self, base: &str) -> Result<Self::Stored, String>;
}

struct Transfer<F> {
    file: F,
    init: Init,
    /// Hash of everything written, if it was followed from the first byte.
    hash: Option<Sha256>,
    /// Chunks beyond the end of what is written, by offset.
    waiting: BTreeMap<u64, Bytes>,
    waiting_bytes: usize,
}

impl<F: PartialFile> Transfer<F> {
    fn append(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.file.append(data)?;
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
        Ok(())
    }

    /// Takes a chunk that lies within the declared size.
    fn take(&mut self, offset: u64, data: Bytes) -> Result<(), WriteError> {
        let cursor = self.file.len();
        if offset > cursor {
            let room =
                self.waiting_bytes + data.len() <= MAX_BUFFERED && self.waiting.len() < MAX_BUFFERED_CHUNKS;
            if room && !data.is_empty() && !self.waiting.contains_key(&offset) {
                self.waiting_bytes += data.len();
                // A copy, so that a small chunk does not keep a large read buffer alive.
                self.waiting.insert(offset, Bytes::copy_from_slice(&data));
            }
            return Ok(());
        }
        if offset == cursor {
            self.append(&data)?;
            while let Some(entry) = self.waiting.first_entry()
                && *entry.key() <= self.file.len()
            {
                let (offset, data) = entry.remove_entry();
                self.waiting_bytes -= data.len();
                if offset == self.file.len() {
                    self.append(&data)?;
                }
            }
        }
        Ok(())
    }
}

/// What came of one frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Handled<S> {
    /// A whole frame to send back.
    pub reply: Option<Bytes>,
    /// A file was finished. The reply must not be sent before its events are published.
    pub stored: Option<S>,
}

/// All transfers of one connection.
pub struct FileReceiver<S: PartialStore> {
    store: S,
    transfers: HashMap<TransferId, Transfer<S::File>>,
}

impl<S: PartialStore> std::fmt::Debug for FileReceiver<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileReceiver({} transfers)", self.transfers.len())
    }
}

type Stored<S> = <<S as PartialStore>::File as PartialFile>::Stored;

impl<S: PartialStore> FileReceiver<S> {
    /// No transfers yet.
    pub fn new(store: S) -> FileReceiver<S> {
        FileReceiver { store, transfers: HashMap::new() }
    }

    /// Transfers under way.
    pub fn transfers(&self) -> usize {
        self.transfers.len()
    }

    /// Takes the payload of a FILESTREAM frame.
    pub fn handle(&mut self, payload: &Bytes) -> Handled<Stored<S>> {
        let mut stored = None;
        let reply = match filestream::parse(payload) {
            Err(Malformed::Frame) => Some((TransferId::default(), failed(Malformed::Frame.to_string()))),
            Err(error @ Malformed::Body(id, _)) => Some((id, failed(error.to_string()))),
            Ok((id, message)) => match message {
                Message::Init(init) => Some((id, self.init(id, init))),
                Message::Chunk(offset, data) => Some((id, self.chunk(id, offset, data))),
                Message::Done => {
                    let (reply, file) = self.done(id);
                    stored = file;
                    Some((id, reply))
                }
                Message::Abort(_) => {
                    self.transfers.remove(&id);
                    None
                }
                Message::Ack(_) | Message::InitAck(_) | Message::Complete(_) | Message::Unknown(_) => None,
            },
        };
        Handled { reply: reply.map(|(id, message)| filestream::encode(&id, &message)), stored }
    }

    fn init(&mut self, id: TransferId, init: Init) -> Message {
        // The sender starts again: its earlier attempt on this connection must let go of the partial file.
        self.transfers.remove(&id);
        if self.transfers.len() >= MAX_TRANSFERS {
            return failed("too many concurrent transfers".to_owned());
        }
        match self.store.open(&id, &init) {
            Err(refusal) => failed(refusal),
            Ok(file) => {
                let resume = file.len();
                let hash = file.is_empty().then(Sha256::new);
                let transfer = Transfer { file, init, hash, waiting: BTreeMap::new(), waiting_bytes: 0 };
                self.transfers.insert(id, transfer);
                Message::InitAck(resume)
            }
        }
    }

    fn chunk(&mut self, id: TransferId, offset: u64, data: Bytes) -> Message {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return Message::Abort("no active transfer (send INIT first)".to_owned());
        };
        let size = transfer.init.size;
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
            return failed(format!("chunk at {offset} of {} bytes exceeds declared size {size}", data.len()));
        }
        match transfer.take(offset, data) {
            Ok(()) => Message::Ack(transfer.file.len()),
            Err(error) => {
                self.transfers.remove(&id);
                failed(match error {
                    WriteError::TakenOver => "a newer transfer of this file has taken it over".to_owned(),
                    WriteError::Failed(text) => text,
                })
            }
        }
    }

    fn done(&mut self, id: TransferId) -> (Message, Option<Stored<S>>) {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return (failed("no active transfer".to_owned()), None);
        };
        let (have, size) = (transfer.file.len(), transfer.init.size);
        if have != size {
            return (failed(format!("incomplete: have {have} of {size} bytes")), None);
        }
        let Some(mut transfer) = self.transfers.remove(&id) else { return (failed(String::new()), None) };
        let hash = match transfer.hash.take() {
            Some(hash) => Ok(hash),
            None => {
                let mut hash = Sha256::new();
                transfer.file.read(&mut |bytes| hash.update(bytes)).map(|()| hash)
            }
        };
        match hash.map(|hash| hash.finish() == transfer.init.sha256) {
            Err(text) => (failed(text), None),
            Ok(false) => {
                transfer.file.corrupt();
                (failed("sha256 mismatch \u{2014} file corrupt, .partial retained".to_owned()), None)
            }
            Ok(true) => match transfer.file.finish(&super::names::base_name(&transfer.init.name)) {
                Ok(stored) => (Message::Complete(Ok(())), Some(stored)),
                Err(text) => (failed(text), None),
            },
        }
    }
}

fn failed(text: String) -> Message {
    Message::Complete(Err(text))
}
