//! The built-in services of a daemon, reached through another daemon and its socket.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Running, daemon, daemon_with, rendezvous, within};
use pilot_daemon::services::client::{FileSent, send_file, send_message};
use pilot_daemon::services::inbox::{self, Filter};
use pilot_daemon::services::received;
use pilot_proto::crypto::sha256;
use pilot_proto::service::file_sender::Transferred;
use pilot_proto::service::message::{Tag, new_id};
use pilot_proto::service::send::Content;
use pilot_proto::service::{echo, port};
use pilot_rendezvous::Server;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon with all services.
async fn serving(server: &Server) -> Running {
    daemon_with(server, |config| {
        config.no_echo = false;
        config.no_dataexchange = false;
    })
    .await
}

/// Bytes that do not repeat.
fn pattern(len: usize) -> Vec<u8> {
    (0..len.div_ceil(32)).flat_map(|n| sha256(&n.to_be_bytes())).take(len).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_sends_everything_back_and_answers_probes() {
    let server = rendezvous().await;
    let (ours, theirs) = (daemon(&server).await, serving(&server).await);
    let node = ours.daemon.node();
    let mut stream = within(node.dial(theirs.addr(), port::ECHO)).await.unwrap();
    stream.write(Bytes::copy_from_slice(&echo::probe(123))).await.unwrap();
    let answer = within(stream.read()).await.unwrap();
    let (sent, received) = echo::parse_reply(&answer).unwrap();
    assert_eq!(sent, 123);
    assert!(received > 1_700_000_000_000_000_000, "{received}");

    let bytes = pattern(4 << 20);
    let (mut reader, mut writer) = stream.split();
    let writing = tokio::spawn({
        let bytes = Bytes::from(bytes.clone());
        async move {
            writer.write(bytes).await.unwrap();
            writer
        }
    });
    let mut back = Vec::with_capacity(bytes.len());
    while back.len() < bytes.len() {
        back.extend_from_slice(&within(reader.read()).await.expect("the stream ended early"));
    }
    assert!(back == bytes, "the bytes came back changed");
    drop(writing.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reaches_its_own_echo() {
    let server = rendezvous().await;
    let own = serving(&server).await;
    let node = own.daemon.node();
    let mut stream = within(node.dial(own.addr(), port::ECHO)).await.unwrap();
    stream.write(Bytes::from_static(b"me")).await.unwrap();
    assert_eq!(within(stream.read()).await.unwrap(), "me");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_sent_through_the_socket_is_in_the_other_inbox() {
    let server = rendezvous().await;
    let (ours, theirs) = (daemon(&server).await, serving(&server).await);
    let mut events = theirs.daemon.node().events();
    let client = ours.client().await;
    let mut stream = within(client.dial(theirs.addr(), port::DATA_EXCHANGE)).await.unwrap();
    let tag = Tag { message_id: Some(new_id([7; 16])), reply_to: Some("q:1".into()) };
    let sent =
        within(send_message(&mut stream, Content::text("hello"), Some(tag.clone()), PATIENCE)).await.unwrap();
    assert_eq!((sent.ack.as_str(), sent.tagged), ("ACK TEXT 5 bytes", true));
    let records = inbox::list(&theirs.dir.path().join("home/inbox"), &Filter::default()).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].from(), ours.addr().to_string());
    assert_eq!((records[0].message_id(), records[0].reply_to()), (tag.message_id.as_deref(), Some("q:1")));
    assert_eq!(records[0].data().unwrap(), b"hello");
    let event = within(async {
        loop {
            let event = events.recv().await.unwrap();
            if event.name == "message.received" {
                return event.data;
            }
        }
    });
    assert_eq!(event.await["size"], 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_sent_through_the_socket_arrives_whole() {
    let server = rendezvous().await;
    let (ours, theirs) = (daemon(&server).await, serving(&server).await);
    let client = ours.client().await;
    let data = pattern(5_000_000);
    let path = ours.dir.path().join("big.bin");
    std::fs::write(&path, &data).unwrap();
    let dial = async || client.dial(theirs.addr(), port::DATA_EXCHANGE).await;
    let sent = within(send_file(dial, &path, "big.bin", PATIENCE, |_| {})).await.unwrap();
    let transferred = Transferred { resumed: 0, sent: 5_000_000 };
    assert_eq!(sent, FileSent::Streamed { transferred, size: 5_000_000, sha256: sha256(&data) });
    let listing = received::list(&theirs.dir.path().join("home/received"), None).unwrap();
    assert_eq!((listing.files.len(), listing.partial.len()), (1, 0));
    assert!(std::fs::read(&listing.files[0].path).unwrap() == data, "the file changed on its way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_are_turned_off_refuse() {
    let server = rendezvous().await;
    let (ours, theirs) = (daemon(&server).await, daemon(&server).await);
    for port in [port::ECHO, port::DATA_EXCHANGE] {
        let error = within(ours.daemon.node().dial(theirs.addr(), port)).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}
