//! File transfers (spec 06 section 5.6).

use super::*;
use crate::service::file_receiver::{
    FileReceiver, MAX_BUFFERED, MAX_TRANSFERS, PartialFile, PartialStore, WriteError,
};
use crate::service::file_sender::{CHUNK, FileSender, Step, TransferError, Transferred, WINDOW};
use crate::service::filestream::{Init, Message, TransferId, encode, parse};
use crate::service::frame::{Decoder, Frame, FrameType};
use crate::service::message::text_frame;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Partial and finished files in memory. Like the real store it keeps one partial file per content, and gives a
/// second holder a private one.
#[derive(Default)]
struct Disk {
    partial: HashMap<TransferId, Vec<u8>>,
    held: Vec<TransferId>,
    finished: Vec<(String, Vec<u8>)>,
    quota: u64,
}

#[derive(Clone)]
struct Memory(Rc<RefCell<Disk>>);

struct MemoryFile {
    disk: Rc<RefCell<Disk>>,
    id: TransferId,
    private: bool,
    bytes: Vec<u8>,
}

impl PartialStore for Memory {
    type File = MemoryFile;
    fn open(&mut self, id: &TransferId, init: &Init) -> Result<MemoryFile, String> {
        let mut disk = self.0.borrow_mut();
        if init.size > disk.quota {
            return Err(format!(
                "receiver disk quota exceeded: need {}, 2147283573 of {} available",
                init.size, disk.quota
            ));
        }
        let private = disk.held.contains(id);
        let bytes = if private { Vec::new() } else { disk.partial.get(id).cloned().unwrap_or_default() };
        disk.held.push(*id);
        Ok(MemoryFile { disk: self.0.clone(), id: *id, private, bytes })
    }
}

impl PartialFile for MemoryFile {
    type Stored = String;
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn append(&mut self, data: &[u8]) -> Result<(), WriteError> {
        if data.starts_with(b"FULL") {
            return Err(WriteError::Failed("receiver disk full".into()));
        }
        if data.starts_with(b"TAKEN") {
            return Err(WriteError::TakenOver);
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        self.bytes.chunks(7).for_each(each);
        Ok(())
    }
    fn corrupt(mut self) {
        self.bytes.clear();
    }
    fn finish(self, base: &str) -> Result<String, String> {
        self.disk.borrow_mut().finished.push((base.to_owned(), self.bytes.clone()));
        Ok(base.to_owned())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut disk = self.disk.borrow_mut();
        let at = disk.held.iter().position(|id| *id == self.id).unwrap();
        disk.held.remove(at);
        if !self.private {
            disk.partial.insert(self.id, std::mem::take(&mut self.bytes));
        }
    }
}

fn disk() -> Memory {
    Memory(Rc::new(RefCell::new(Disk { quota: 2_147_483_648, ..Disk::default() })))
}

fn payload(frame: Bytes) -> Bytes {
    let mut decoder = Decoder::new(1 << 20);
    decoder.push(frame);
    decoder.next_frame().unwrap().unwrap().payload
}

fn tell(receiver: &mut FileReceiver<Memory>, id: TransferId, message: Message) -> Option<Message> {
    let reply = receiver.handle(&payload(encode(&id, &message))).reply?;
    let (of, message) = parse(&payload(reply)).unwrap();
    assert_eq!(of, id);
    Some(message)
}

fn init(data: &[u8]) -> (TransferId, Message) {
    let sha256 = crate::crypto::sha256(data);
    let id = sha256[..16].try_into().unwrap();
    (id, Message::Init(Init { size: data.len() as u64, sha256, chunk: 1, name: "n.bin".into() }))
}

fn failed(text: &str) -> Option<Message> {
    Some(Message::Complete(Err(text.to_owned())))
}

#[test]
fn golden_transfers_get_the_golden_answers() {
    let disk = disk();
    let mut connections = [FileReceiver::new(disk.clone()), FileReceiver::new(disk.clone())];
    let mut compared = 0;
    for vector in vectors("file_stream_port_1001") {
        let meaning = vector["meaning"].as_str().unwrap();
        if meaning.starts_with("new connection") {
            connections[0] = FileReceiver::new(disk.clone());
        }
        let receiver = &mut connections[usize::from(meaning.contains("2nd"))];
        let request = payload(sent(&vector).unwrap());
        let reply = receiver.handle(&request).reply;
        match vector["server_to_client"].as_str().unwrap() {
            "no reply" => assert_eq!(reply, None, "{meaning}"),
            golden => assert_eq!(reply.map(|bytes| hex(&bytes)), Some(golden.to_owned()), "{meaning}"),
        }
        compared += 1;
    }
    assert!(compared > 35, "{compared}");
    let names: Vec<String> = disk.0.borrow().finished.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["fox.txt", "evil name.txt", "received.bin", "id.t", "con.txt", "con.txt"]);
}

/// Carries a whole transfer. `cut`: the connection breaks after this many bytes from the sender.
fn transfer(disk: &Memory, data: &Bytes, cut: Option<usize>) -> Result<Transferred, TransferError> {
    let mut receiver = FileReceiver::new(disk.clone());
    let mut sender = FileSender::new("n.bin", data.len() as u64, crate::crypto::sha256(data));
    let mut decoder = Decoder::new(1 << 20);
    let (mut answers, mut carried, mut last) = (Vec::new(), 0, 0);
    loop {
        match sender.step() {
            Step::Write(bytes) => {
                carried += bytes.len();
                if cut.is_some_and(|cut| carried > cut) {
                    sender.end();
                    continue;
                }
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    assert_eq!(frame.ty, FrameType::FILESTREAM);
                    answers.extend(receiver.handle(&frame.payload).reply);
                }
            }
            Step::ReadFile { offset, len } => sender.data(data.slice(offset as usize..offset as usize + len)),
            Step::Read(_) => {
                assert!(!answers.is_empty(), "both ends wait");
                answers.drain(..).for_each(|bytes| sender.input(bytes));
            }
            Step::Done(result) => return result,
        }
        assert!(sender.acknowledged() >= last, "progress never goes back");
        last = sender.acknowledged();
    }
}

#[test]
fn a_file_arrives_whole() {
    for len in [0, 1, CHUNK, CHUNK + 1, WINDOW as usize + CHUNK + 5] {
        let (disk, data) = (disk(), contents(len));
        assert_eq!(transfer(&disk, &data, None), Ok(Transferred { resumed: 0, sent: len as u64 }));
        assert_eq!(disk.0.borrow().finished, [("n.bin".to_owned(), data.to_vec())]);
    }
}

#[test]
fn a_broken_transfer_resumes_where_it_stopped() {
    let (disk, data) = (disk(), contents(10 * CHUNK));
    let broken = transfer(&disk, &data, Some(4 * CHUNK));
    assert!(
        matches!(broken, Err(TransferError::Closed { size, .. }) if size == data.len() as u64),
        "{broken:?}"
    );
    let again = transfer(&disk, &data, None).unwrap();
    assert_eq!(again, Transferred { resumed: 3 * CHUNK as u64, sent: 7 * CHUNK as u64 });
    assert_eq!(disk.0.borrow().finished, [("n.bin".to_owned(), data.to_vec())]);
}

#[test]
fn a_corrupt_file_is_refused_once_and_then_starts_anew() {
    let disk = disk();
    let data = contents(100);
    let (id, start) = init(&data);
    let mut receiver = FileReceiver::new(disk.clone());
    tell(&mut receiver, id, start);
    tell(&mut receiver, id, Message::Chunk(0, contents(101).slice(1..)));
    let text = "sha256 mismatch \u{2014} file corrupt, .partial retained";
    assert_eq!(tell(&mut receiver, id, Message::Done), failed(text));
    assert_eq!(transfer(&disk, &data, None), Ok(Transferred { resumed: 0, sent: 100 }));
}

#[test]
fn chunks_before_their_turn_wait_within_bounds() {
    let data = contents(MAX_BUFFERED + 2000);
    let (id, start) = init(&data);
    let mut receiver = FileReceiver::new(disk());
    tell(&mut receiver, id, start);
    assert_eq!(
        tell(&mut receiver, id, Message::Chunk(1000, data.slice(1000..1000 + MAX_BUFFERED))),
        Some(Message::Ack(0))
    );
    // Over the bound: dropped.
    let last = 1000 + MAX_BUFFERED;
    assert_eq!(
        tell(&mut receiver, id, Message::Chunk(last as u64, data.slice(last..))),
        Some(Message::Ack(0))
    );
    assert_eq!(
        tell(&mut receiver, id, Message::Chunk(0, data.slice(..1000))),
        Some(Message::Ack(last as u64))
    );
    assert_eq!(
        tell(&mut receiver, id, Message::Chunk(last as u64, data.slice(last..))),
        Some(Message::Ack(data.len() as u64))
    );
    assert_eq!(tell(&mut receiver, id, Message::Done), Some(Message::Complete(Ok(()))));
}

#[test]
fn an_offset_near_the_end_of_numbers_is_refused() {
    let (id, start) = init(b"abc");
    let mut receiver = FileReceiver::new(disk());
    tell(&mut receiver, id, start);
    let text = format!("chunk at {} of 2 bytes exceeds declared size 3", u64::MAX);
    assert_eq!(tell(&mut receiver, id, Message::Chunk(u64::MAX, Bytes::from_static(b"ab"))), failed(&text));
}

#[test]
fn a_connection_holds_at_most_64_transfers() {
    let mut receiver = FileReceiver::new(disk());
    for n in 0..MAX_TRANSFERS {
        let (id, start) = init(format!("file {n}").as_bytes());
        assert_eq!(tell(&mut receiver, id, start), Some(Message::InitAck(0)));
    }
    let (id, start) = init(b"one more");
    assert_eq!(tell(&mut receiver, id, start), failed("too many concurrent transfers"));
    let (first, again) = init(b"file 0");
    assert_eq!(tell(&mut receiver, first, again), Some(Message::InitAck(0)), "the same file may start again");
    tell(&mut receiver, first, Message::Abort("x".into()));
    assert_eq!(receiver.transfers(), MAX_TRANSFERS - 1);
}

#[test]
fn failed_writes_end_the_transfer_with_their_cause() {
    for (data, text) in [
        ("FULL disk", "receiver disk full"),
        ("TAKEN over", "a newer transfer of this file has taken it over"),
    ] {
        let (id, start) = init(data.as_bytes());
        let mut receiver = FileReceiver::new(disk());
        tell(&mut receiver, id, start);
        assert_eq!(
            tell(&mut receiver, id, Message::Chunk(0, Bytes::from_static(data.as_bytes()))),
            failed(text)
        );
        assert_eq!(receiver.transfers(), 0);
    }
}

// ---- the sender alone ------------------------------------------------------------------------------------

fn started(size: u64) -> FileSender {
    let mut sender = FileSender::new("n", size, [3; 32]);
    assert!(matches!(sender.step(), Step::Write(_)));
    sender
}

#[test]
fn old_receivers_are_recognised_before_any_data_is_sent() {
    let unsupported = Step::Done(Err(TransferError::Unsupported));
    let mut sender = started(5);
    assert_eq!(sender.step(), Step::Read(Duration::from_secs(5)));
    sender.input(text_frame("ACK UNKNOWN(7) 66 bytes"));
    assert_eq!(sender.step(), unsupported);
    let mut sender = started(5);
    sender.timed_out();
    assert_eq!(sender.step(), unsupported);
    let mut sender = started(5);
    sender.end();
    assert_eq!(sender.step(), unsupported);
}

#[test]
fn refusals_and_aborts_are_reported_with_their_text() {
    let mut sender = started(5);
    sender.input(encode(&[3; 16], &Message::Complete(Err("receiver disk full".into()))));
    assert_eq!(sender.step(), Step::Done(Err(TransferError::Refused("receiver disk full".into()))));
    let mut sender = started(5);
    sender.input(encode(&[9; 16], &Message::Complete(Err("another transfer".into()))));
    assert_eq!(sender.step(), Step::Read(Duration::from_secs(5)), "an answer to another transfer");
    sender.input(encode(&[3; 16], &Message::InitAck(0)));
    sender.input(encode(&[3; 16], &Message::Abort("going down".into())));
    assert_eq!(sender.step(), Step::Done(Err(TransferError::Aborted("going down".into()))));
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let size = 4 * WINDOW;
    let mut sender = started(size).patience(Duration::from_secs(7));
    sender.input(encode(&[3; 16], &Message::InitAck(0)));
    let mut flight = 0;
    loop {
        match sender.step() {
            Step::ReadFile { offset, len } => {
                assert_eq!(offset, flight);
                flight += len as u64;
                sender.data(vec![0; len].into());
            }
            Step::Write(_) => {}
            step => break assert_eq!(step, Step::Read(Duration::from_secs(7))),
        }
    }
    assert!(flight <= WINDOW && flight + CHUNK as u64 > WINDOW);
    // An acknowledgement of more than was sent does not open it further.
    sender.input(encode(&[3; 16], &Message::Ack(u64::MAX)));
    assert_eq!(sender.acknowledged(), flight);
    sender.timed_out();
    assert_eq!(sender.step(), Step::Done(Err(TransferError::TimedOut { acknowledged: flight, size })));
}

#[test]
fn nonsense_from_the_receiver_is_an_error() {
    let mut sender = started(5);
    sender.input(encode(&[3; 16], &Message::InitAck(6)));
    assert!(matches!(sender.step(), Step::Done(Err(TransferError::Protocol(_)))));
    let mut sender = started(5);
    sender.input(encode(&[3; 16], &Message::InitAck(0)));
    sender.input(encode(&[3; 16], &Message::Complete(Ok(()))));
    assert!(matches!(sender.step(), Step::Done(Err(TransferError::Protocol(_)))), "complete before the end");
}

#[test]
fn a_file_that_shrank_aborts_the_transfer() {
    let mut sender = started(5);
    sender.input(encode(&[3; 16], &Message::InitAck(0)));
    assert_eq!(sender.step(), Step::ReadFile { offset: 0, len: 5 });
    sender.data(Bytes::from_static(b"abc"));
    let Step::Write(frame) = sender.step() else { panic!() };
    assert!(matches!(parse(&payload(frame)), Ok((_, Message::Abort(_)))));
    assert_eq!(sender.step(), Step::Done(Err(TransferError::FileChanged)));
}

fn any_message() -> impl Strategy<Value = Message> {
    let data = proptest::collection::vec(any::<u8>(), 0..30);
    let name = "\\PC{0,20}";
    prop_oneof![
        (any::<u64>(), any::<[u8; 32]>(), any::<u32>(), name)
            .prop_map(|(size, sha256, chunk, name)| Message::Init(Init { size, sha256, chunk, name })),
        (any::<u64>(), data).prop_map(|(offset, data)| Message::Chunk(offset, data.into())),
        any::<u64>().prop_map(Message::Ack),
        Just(Message::Done),
        any::<u64>().prop_map(Message::InitAck),
        Just(Message::Complete(Ok(()))),
        name.prop_map(|text| Message::Complete(Err(text))),
        name.prop_map(Message::Abort),
        (8u8..).prop_map(Message::Unknown),
    ]
}

proptest! {
    #[test]
    fn messages_survive_their_encoding(id in any::<[u8; 16]>(), message in any_message()) {
        prop_assert_eq!(parse(&payload(encode(&id, &message))), Ok((id, message)));
    }

    #[test]
    fn any_messages_leave_the_receiver_within_its_bounds(
        script in proptest::collection::vec((0u8..3, 0u64..40, 0usize..20, 0u8..4), 0..60),
    ) {
        let mut receiver = FileReceiver::new(disk());
        let data = contents(32);
        for (file, offset, len, what) in script {
            let (_, start) = init(&data);
            let message = match what {
                0 => start,
                1 => Message::Done,
                2 => Message::Chunk(offset, contents(len)),
                _ => Message::Chunk(offset, data.slice((offset as usize).min(32)..(offset as usize + len).min(32))),
            };
            match receiver.handle(&payload(encode(&[file; 16], &message))).reply.map(|r| parse(&payload(r)).unwrap().1) {
                Some(Message::Ack(at) | Message::InitAck(at)) => prop_assert!(at <= 32),
                Some(Message::Complete(_) | Message::Abort(_)) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn any_bytes_are_handled_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let frame: Bytes = bytes.clone().into();
        FileReceiver::new(disk()).handle(&frame);
        let mut sender = started(5);
        sender.input(encode(&[3; 16], &Message::InitAck(0)));
        sender.input(Frame { ty: FrameType::FILESTREAM, payload: frame }.to_bytes());
        sender.input(bytes.into());
        let _ = sender.step();
    }
}
