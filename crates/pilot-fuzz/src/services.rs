//! Formats and state machines of the built-in services and of the trust handshake.

use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::service::file_receiver::{FileReceiver, PartialFile, PartialStore, WriteError};
use pilot_proto::service::filestream::{Init, TransferId};
use pilot_proto::service::{frame, message};
use pilot_proto::trust::{Config, Trust};
use std::sync::Arc;

/// Largest frame the decoder accepts here; small, so that the limit is reached.
const MAX_FRAME: u32 = 4096;

/// A data exchange stream, in chunks whose sizes the input chooses.
pub fn data_exchange(input: &[u8]) {
    let Some((&step, mut rest)) = input.split_first() else { return };
    let step = usize::from(step).max(1);
    let mut decoder = frame::Decoder::new(MAX_FRAME);
    while !rest.is_empty() {
        let (chunk, tail) = rest.split_at(step.min(rest.len()));
        rest = tail;
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= MAX_FRAME as usize);
                    let _ = message::parse(frame);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A partial file in memory.
#[derive(Default)]
struct Memory(Vec<u8>);

struct Store;

impl PartialStore for Store {
    type File = Memory;

    fn open(&mut self, _: &TransferId, init: &Init) -> Result<Memory, String> {
        if init.size > 1 << 20 { Err("too large".to_owned()) } else { Ok(Memory::default()) }
    }
}

impl PartialFile for Memory {
    type Stored = u64;

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn append(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        each(&self.0);
        Ok(())
    }

    fn corrupt(self) {}

    fn finish(self, base: &str) -> Result<u64, String> {
        assert!(
            !base.is_empty() && !base.contains('/') && base != ".." && base != ".",
            "{base:?} leaves its folder"
        );
        Ok(self.0.len() as u64)
    }
}

/// File transfers: a series of payloads, each preceded by its length in two bytes.
pub fn file_receiver(input: &[u8]) {
    let mut receiver = FileReceiver::new(Store);
    let mut rest = input;
    while let Some((head, tail)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*head)).min(tail.len());
        let (payload, next) = tail.split_at(len);
        let handled = receiver.handle(&Bytes::copy_from_slice(payload));
        if let Some(size) = handled.stored {
            assert!(size <= 1 << 20);
        }
        rest = next;
    }
}

fn trust() -> Trust {
    let identity = Identity::from_seed([7; 32]).expect("every seed is a key");
    Trust::new(Config::new(5, Arc::new(identity)))
}

/// A direct handshake message from node 9 in the year the samples were made.
pub fn handshake(input: &[u8]) {
    let trust = trust();
    for now in [1_795_217_600, 0, u64::MAX] {
        let _ = trust.examine(now, 9, input);
    }
}

/// A trust file.
pub fn trust_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut trust = trust();
    if trust.load(1_795_217_600, text).is_ok() {
        let written = trust.to_json(1_795_217_600);
        self::trust().load(1_795_217_600, &written).expect("what we write we can read");
    }
}
