//! The server against raw clients and against this crate's own client, over streams in memory.

use super::*;
use crate::services::client::{FileError, FileEvent, FileSent, send_file, send_message};
use crate::services::inbox;
use crate::services::{Ended, received};
use pilot_proto::service::file_sender::{TransferError, Transferred};
use pilot_proto::service::send::Content;
use pilot_proto::service::{Sha256, filestream};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(5);

/// One end of a stream in memory.
struct Pipe {
    read: mpsc::Receiver<Bytes>,
    write: mpsc::Sender<Bytes>,
}

fn pipe() -> (Pipe, Pipe) {
    let (a, from_a) = mpsc::channel(64);
    let (b, from_b) = mpsc::channel(64);
    (Pipe { read: from_b, write: a }, Pipe { read: from_a, write: b })
}

impl ByteStream for Pipe {
    async fn read(&mut self) -> Option<Bytes> {
        self.read.recv().await
    }
    async fn write(&mut self, data: Bytes) -> Result<(), Ended> {
        self.write.send(data).await.map_err(|_| Ended)
    }
}

type Events = Arc<Mutex<Vec<(&'static str, Value)>>>;

struct Server {
    home: tempfile::TempDir,
    shared: Arc<Shared>,
    events: Events,
}

impl Server {
    fn new() -> Server {
        let home = tempfile::tempdir().unwrap();
        let shared = Shared::new(&Disk::new(), home.path(), false);
        Server { home, shared, events: Events::default() }
    }

    fn limited(inbox_bytes: u64, quota: u64, take_over: Duration) -> Server {
        let home = tempfile::tempdir().unwrap();
        let stamps = Arc::new(Stamps::default());
        let inbox = Inbox::new(Disk::new(), home.path().join("inbox"), stamps.clone(), false)
            .limits(inbox_bytes, 100);
        let received =
            Received::new(Disk::new(), home.path().join("received"), stamps).limits(quota, take_over);
        Server { shared: Shared::with(inbox, received), home, events: Events::default() }
    }

    /// A connection from `node`.
    fn connect(&self, node: u32) -> Pipe {
        let (ours, theirs) = pipe();
        let (shared, events) = (self.shared.clone(), self.events.clone());
        tokio::spawn(async move {
            let remote = SocketAddr { addr: Addr::backbone(node), port: 50_000 };
            connection(&shared, theirs, remote, &|name, data| events.lock().unwrap().push((name, data)))
                .await;
        });
        ours
    }

    fn messages(&self) -> Vec<inbox::Record> {
        inbox::list(&self.home.path().join("inbox"), &inbox::Filter::default()).unwrap()
    }

    fn files(&self) -> received::Listing {
        received::list(&self.home.path().join("received"), None).unwrap()
    }

    fn events(&self) -> Vec<(&'static str, Value)> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

/// Writes raw bytes and reads one frame of answer; `None`: the server closed.
async fn ask(pipe: &mut Pipe, bytes: impl Into<Bytes>) -> Option<Frame> {
    pipe.write(bytes.into()).await.unwrap();
    let mut decoder = Decoder::new(1 << 20);
    decoder.push(pipe.read().await?);
    decoder.next_frame().unwrap()
}

fn text(frame: Option<Frame>) -> String {
    String::from_utf8(frame.unwrap().payload.to_vec()).unwrap()
}

fn tag(id: &str) -> Option<Tag> {
    Some(Tag { message_id: Some(id.to_owned()), reply_to: None })
}

fn frame(ty: u32, payload: &[u8]) -> Bytes {
    Frame { ty: FrameType(ty), payload: Bytes::copy_from_slice(payload) }.to_bytes()
}

#[tokio::test]
async fn a_message_is_on_disk_when_it_is_acknowledged() {
    let server = Server::new();
    let mut pipe = server.connect(1);
    let sent = send_message(&mut pipe, Content::text("hello text"), tag("id-1"), PATIENCE).await.unwrap();
    assert_eq!((sent.ack.as_str(), sent.tagged), ("ACK TEXT 10 bytes", true));
    let messages = server.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].from(), messages[0].message_id()), ("0:0000.0000.0001", Some("id-1")));
    assert_eq!(messages[0].data().unwrap(), b"hello text");
    let expected = json!({"from": "0:0000.0000.0001", "message_id": "id-1", "size": 10, "type": "TEXT"});
    assert_eq!(server.events(), [("message.received", expected)]);
}

#[tokio::test]
async fn frames_on_one_connection_are_answered_in_order() {
    let server = Server::new();
    let mut pipe = server.connect(1);
    let both = [frame(1, b"one"), frame(11, b"?"), frame(1, b"three")].concat();
    assert_eq!(text(ask(&mut pipe, both).await), "ACK TEXT 3 bytes");
    let mut rest = Vec::new();
    while rest.len() < 2 {
        let mut decoder = Decoder::new(1 << 20);
        decoder.push(pipe.read().await.unwrap());
        while let Some(frame) = decoder.next_frame().unwrap() {
            rest.push(text(Some(frame)));
        }
    }
    assert_eq!(rest, ["ERR UNKNOWN(11) save failed: unsupported frame type 11", "ACK TEXT 5 bytes"]);
}

#[tokio::test]
async fn a_repeated_message_is_stored_once_even_if_both_come_at_once() {
    let server = Server::new();
    let (mut a, mut b, mut other) = (server.connect(1), server.connect(1), server.connect(2));
    let (first, second) = tokio::join!(
        send_message(&mut a, Content::text("x"), tag("same"), PATIENCE),
        send_message(&mut b, Content::text("x"), tag("same"), PATIENCE),
    );
    let mut acks = [first.unwrap().ack, second.unwrap().ack];
    acks.sort();
    assert_eq!(acks, ["ACK TEXT 1 bytes", "ACK TEXT 1 bytes (duplicate)"]);
    let elsewhere = send_message(&mut other, Content::text("x"), tag("same"), PATIENCE).await.unwrap();
    assert_eq!(elsewhere.ack, "ACK TEXT 1 bytes", "another sender's message is another message");
    assert_eq!(server.messages().len(), 2);
}

#[tokio::test]
async fn a_message_that_could_not_be_stored_is_taken_on_the_next_attempt() {
    let server = Server::new();
    // A file where the directory should be.
    std::fs::write(server.home.path().join("inbox"), "").unwrap();
    let mut pipe = server.connect(1);
    let failed = send_message(&mut pipe, Content::text("x"), tag("a"), PATIENCE).await.unwrap_err();
    assert!(failed.to_string().starts_with("ERR TEXT save failed: "), "{failed}");
    std::fs::remove_file(server.home.path().join("inbox")).unwrap();
    let sent = send_message(&mut pipe, Content::text("x"), tag("a"), PATIENCE).await.unwrap();
    assert_eq!(sent.ack, "ACK TEXT 1 bytes");
}

#[tokio::test]
async fn a_traced_message_is_stored_and_answered_with_times() {
    let server = Server::new();
    let mut pipe = server.connect(1);
    let sent = send_message(&mut pipe, Content::text("hi").traced(7), tag("t"), PATIENCE).await.unwrap();
    let trace = sent.trace.unwrap();
    assert_eq!((trace.sent_at_ns, trace.inner_ack.as_str()), (7, "ACK TEXT 2 bytes"));
    assert!(
        trace.received_at_ns <= trace.inbox_written_at_ns
            && trace.inbox_written_at_ns <= trace.ack_sent_at_ns
    );
    assert_eq!(server.messages()[0].message_id(), Some("t"));
}

#[tokio::test]
async fn breaches_close_the_connection_without_an_answer() {
    for bytes in [
        frame(4, b"\0\x03a/babc"),
        frame(10, b"\0\x04nope\0\0\0\x01y"),
        Bytes::from_static(&[0, 0, 0, 1, 0x04, 0, 0, 1]),
    ] {
        let server = Server::new();
        assert_eq!(ask(&mut server.connect(1), bytes.clone()).await, None, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_two_minutes_even_within_a_frame() {
    for bytes in [Bytes::new(), Bytes::from_static(b"\0\0\0\x01\0\0\0\x09half")] {
        let server = Server::new();
        let start = Instant::now();
        assert_eq!(ask(&mut server.connect(1), bytes).await, None);
        assert!(start.elapsed() >= IDLE && start.elapsed() < IDLE + Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_file_frame_is_stored_under_a_stamped_name() {
    let server = Server::new();
    let mut pipe = server.connect(1);
    let sent = send_message(&mut pipe, Content::file("note.txt", "abc"), None, PATIENCE).await.unwrap();
    assert_eq!(sent.ack, "ACK FILE 3 bytes");
    let file = server.files().files.remove(0);
    assert!(file.name.starts_with("note-") && file.name.ends_with("-000001.txt"), "{}", file.name);
    assert_eq!(std::fs::read(&file.path).unwrap(), b"abc");
    let (name, data) = server.events().remove(0);
    assert_eq!((name, &data["filename"], &data["size"]), ("file.received", &json!("note.txt"), &json!(3)));
    assert_eq!(text(ask(&mut pipe, frame(4, b"\0\0abc")).await), "ACK FILE 3 bytes", "nameless: not stored");
    assert_eq!(server.files().files.len(), 1);
}

#[tokio::test]
async fn full_stores_refuse_with_their_numbers_and_tell() {
    let server = Server::limited(1000, 10, Duration::ZERO);
    let mut pipe = server.connect(1);
    let error = send_message(&mut pipe, Content::text("x".repeat(2000)), None, PATIENCE).await.unwrap_err();
    let expected = "ERR TEXT save failed: inbox byte budget exceeded: a 2123-byte message is larger than the 1000-byte cap";
    // The time in the record has 9 digits of fraction or fewer.
    assert_eq!(error.to_string().replace(char::is_numeric, "#"), expected.replace(char::is_numeric, "#"));
    let error = send_message(&mut pipe, Content::file("f", "0123456789x"), None, PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "ERR FILE save failed: received-files quota exceeded: 0 + 11 > 10");
    let names: Vec<_> =
        server.events().iter().map(|(name, data)| (*name, data["max_bytes"].clone())).collect();
    assert_eq!(names, [("inbox.full", json!(1000)), ("received.full", json!(10))]);
}

// ---- files -----------------------------------------------------------------------------------------------

fn source(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
    let data: Vec<u8> =
        (0..len as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(len).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    (file, data)
}

#[tokio::test]
async fn a_file_is_transferred_verified_and_progress_is_told() {
    let server = Server::new();
    let (file, data) = source(3_000_001);
    let mut progress = Vec::new();
    let dial = async || Ok::<_, Ended>(server.connect(1));
    let sent =
        send_file(dial, file.path(), "../big.bin", PATIENCE, |event| progress.push(event)).await.unwrap();
    let FileSent::Streamed { transferred, size, sha256 } = sent else { panic!("{sent:?}") };
    assert_eq!((transferred, size), (Transferred { resumed: 0, sent: 3_000_001 }, 3_000_001));
    let mut hash = Sha256::new();
    hash.update(&data);
    assert_eq!(sha256, hash.finish());
    assert!(progress.contains(&FileEvent::Started { resumed: 0, size }));
    assert_eq!(progress.last(), Some(&FileEvent::Progress { acknowledged: size, size }));
    let listing = server.files();
    assert_eq!((listing.files.len(), listing.partial.len()), (1, 0));
    let stored = &listing.files[0];
    assert!(stored.name.starts_with("big-") && stored.name.ends_with(".bin"));
    assert_eq!(std::fs::read(&stored.path).unwrap(), data);
    let (name, event) = server.events().remove(0);
    assert_eq!((name, &event["filename"]), ("file.received", &json!(stored.name)));
}

#[tokio::test]
async fn an_interrupted_file_resumes_on_the_next_attempt() {
    let server = Server::new();
    let (file, data) = source(1_000_000);
    let mut hash = Sha256::new();
    hash.update(&data);
    let sha256 = hash.finish();
    let id = sha256[..16].try_into().unwrap();
    let init = filestream::Init { size: 1_000_000, sha256, chunk: 1, name: "f".into() };
    let mut pipe = server.connect(1);
    ask(&mut pipe, filestream::encode(&id, &filestream::Message::Init(init))).await.unwrap();
    let chunk = Bytes::copy_from_slice(&data[..400_000]);
    ask(&mut pipe, filestream::encode(&id, &filestream::Message::Chunk(0, chunk))).await.unwrap();
    assert_eq!(server.files().partial[0].bytes, 400_000);
    // A second client while the first lives gets a file of its own.
    let dial = async || Ok::<_, Ended>(server.connect(1));
    let sent = send_file(dial, file.path(), "f", PATIENCE, |_| {}).await.unwrap();
    let all = Transferred { resumed: 0, sent: 1_000_000 };
    assert!(matches!(sent, FileSent::Streamed { transferred, .. } if transferred == all), "{sent:?}");
    // Its own partial file is gone; the first one's stays and, once its connection is gone, is continued.
    assert_eq!(server.files().partial.len(), 1);
    drop(pipe);
    while Arc::strong_count(&server.shared) > 1 {
        tokio::task::yield_now().await;
    }
    let sent = send_file(dial, file.path(), "f", PATIENCE, |_| {}).await.unwrap();
    let rest = Transferred { resumed: 400_000, sent: 600_000 };
    assert!(matches!(sent, FileSent::Streamed { transferred, .. } if transferred == rest), "{sent:?}");
    assert_eq!((server.files().files.len(), server.files().partial.len()), (2, 0));
}

#[tokio::test]
async fn an_idle_transfer_gives_way_and_learns_of_it() {
    let server = Server::limited(1000, 1 << 20, Duration::ZERO);
    let (_, data) = source(1000);
    let mut hash = Sha256::new();
    hash.update(&data);
    let sha256 = hash.finish();
    let id = sha256[..16].try_into().unwrap();
    let init = || {
        let init = filestream::Init { size: 1000, sha256, chunk: 1, name: "f".into() };
        filestream::encode(&id, &filestream::Message::Init(init))
    };
    let chunk = |at: usize| {
        let data = Bytes::copy_from_slice(&data[at..at + 500]);
        filestream::encode(&id, &filestream::Message::Chunk(at as u64, data))
    };
    let answer = |frame: Option<Frame>| filestream::parse(&frame.unwrap().payload).unwrap().1;
    let (mut old, mut new) = (server.connect(1), server.connect(1));
    ask(&mut old, init()).await;
    ask(&mut old, chunk(0)).await;
    assert_eq!(answer(ask(&mut new, init()).await), filestream::Message::InitAck(500));
    let taken = Err("a newer transfer of this file has taken it over".to_owned());
    assert_eq!(answer(ask(&mut old, chunk(500)).await), filestream::Message::Complete(taken));
    assert_eq!(answer(ask(&mut new, chunk(500)).await), filestream::Message::Ack(1000));
    let done = filestream::encode(&id, &filestream::Message::Done);
    assert_eq!(answer(ask(&mut new, done).await), filestream::Message::Complete(Ok(())));
}

#[tokio::test]
async fn a_transfer_over_the_quota_is_refused_with_its_numbers() {
    let server = Server::limited(1000, 1500, Duration::from_secs(10));
    let (file, _) = source(1000);
    let dial = async || Ok::<_, Ended>(server.connect(1));
    send_file(dial, file.path(), "f", PATIENCE, |_| {}).await.unwrap();
    let error = send_file(dial, file.path(), "f", PATIENCE, |_| {}).await.unwrap_err();
    let expected = "receiver disk quota exceeded: need 1000, 500 of 1500 available";
    assert!(
        matches!(&error, FileError::Transfer(TransferError::Refused(text)) if text == expected),
        "{error}"
    );
    assert!(server.events().iter().any(|(name, _)| *name == "received.full"));
}

#[tokio::test]
async fn an_old_receiver_gets_the_file_in_one_frame() {
    let dials = AtomicUsize::new(0);
    let (got, mut frames) = mpsc::channel(4);
    let dial = async || {
        dials.fetch_add(1, Ordering::Relaxed);
        let (ours, mut theirs) = pipe();
        let got = got.clone();
        tokio::spawn(async move {
            let mut decoder = Decoder::new(1 << 20);
            while let Some(bytes) = theirs.read().await {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    let text = match frame.ty {
                        FrameType::FILE => "ACK FILE 9 bytes".to_owned(),
                        ty => format!("ACK UNKNOWN({}) {} bytes", ty.0, frame.payload.len()),
                    };
                    theirs.write(message::text_frame(&text)).await.unwrap();
                    got.send(frame).await.unwrap();
                }
            }
        });
        Ok::<_, Ended>(ours)
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "some data").unwrap();
    let mut events = Vec::new();
    let sent = send_file(dial, file.path(), "n.txt", PATIENCE, |event| events.push(event)).await.unwrap();
    assert_eq!(sent, FileSent::Whole { size: 9, ack: "ACK FILE 9 bytes".into() });
    assert!(events.contains(&FileEvent::FallingBack));
    assert_eq!(dials.load(Ordering::Relaxed), 2);
    assert_eq!(frames.recv().await.unwrap().ty, FrameType::FILESTREAM);
    assert_eq!(frames.recv().await.unwrap().payload, Bytes::from_static(b"\0\x05n.txtsome data"));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_error_before_anything_is_sent() {
    let dial = async || -> Result<Pipe, Ended> { panic!("must not dial") };
    let error = send_file(dial, Path::new("/nonexistent/file"), "n", PATIENCE, |_| {}).await.unwrap_err();
    assert!(error.to_string().starts_with("read /nonexistent/file: "), "{error}");
}
