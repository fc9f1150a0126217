//! Streams and datagrams between nodes over loopback, with the real registry and beacon.

mod common;

use bytes::Bytes;
use common::{config, echo_round, node, pattern, rendezvous, serve_echo, within};
use pilot::NodeConfig;
use pilot_proto::stream::{CloseReason, DialError};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_8_mib_both_ways_unchanged() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    let began = Instant::now();
    let stream = within(a.dial(b.address(), 7)).await.unwrap();
    println!("first dial: {:?}", began.elapsed());
    assert_eq!((stream.remote(), stream.remote_port()), (b.address(), 7));
    assert!(stream.local_port() >= 49_152, "{}", stream.local_port());
    let began = Instant::now();
    echo_round(stream, pattern(8 << 20)).await;
    println!("8 MiB echo: {:?}", began.elapsed());
    assert!(b.listen(7).await.is_none(), "the port is bound");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_ends_one_direction_only() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut listener = b.listen(80).await.unwrap();
    let dialled = within(a.dial(b.address(), 80)).await.unwrap();
    assert!(dialled.half_close(), "our own nodes negotiate it");
    let (mut reader, mut writer) = dialled.split();
    writer.write(Bytes::from_static(b"question")).await.unwrap();
    assert!(writer.finish());
    let (mut theirs, mut answer) = within(listener.accept()).await.unwrap().split();
    assert_eq!(within(theirs.read()).await.unwrap(), "question");
    assert_eq!(within(theirs.read()).await, None, "the question ends");
    assert_eq!(theirs.close_reason(), None, "the stream does not");
    answer.write(Bytes::from_static(b"answer")).await.unwrap();
    assert_eq!(within(reader.read()).await.unwrap(), "answer");
    drop((theirs, answer));
    assert_eq!(within(reader.read()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_writer_back_and_loses_nothing() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut listener = b.listen(80).await.unwrap();
    let mut stream = within(a.dial(b.address(), 80)).await.unwrap();
    let (mut reader, _writer) = within(listener.accept()).await.unwrap().split();
    let bytes = pattern(32 << 20);
    let sent = bytes.clone();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = written.clone();
    let writing = tokio::spawn(async move {
        let mut rest = Bytes::from(sent);
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(64 * 1024));
            let len = piece.len();
            stream.write(piece).await.unwrap();
            count.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
        }
        stream
    });
    // Until the writer has stood still for a while.
    let mut before = 0;
    let mut still = 0;
    while still < 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = written.load(std::sync::atomic::Ordering::Relaxed);
        still = if now == before && now > 0 { still + 1 } else { 0 };
        before = now;
    }
    println!("held back after {before} bytes");
    assert!(before < 24 << 20, "{before} bytes were taken although nobody reads");
    let mut back = Vec::with_capacity(bytes.len());
    while back.len() < bytes.len() {
        back.extend_from_slice(&within(reader.read()).await.unwrap());
    }
    assert!(back == bytes, "the bytes came changed");
    drop(within(writing).await.unwrap());
    assert_eq!(within(reader.read()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dials_fail_with_the_reason() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    assert_eq!(within(a.dial(b.address(), 81)).await.unwrap_err(), DialError::Refused);
    let nobody = pilot_proto::Addr::backbone(4_000_000);
    let error = within(a.dial(nobody, 80)).await.unwrap_err();
    assert!(
        error.to_string().starts_with("resolve node 4000000: registry: node 4000000: node not found"),
        "{error}"
    );
    let private = node(config(&server)).await;
    let error = within(a.dial(private.address(), 80)).await.unwrap_err();
    assert!(
        matches!(&error, DialError::Resolve { node, .. } if *node == private.node_id()),
        "a stranger cannot resolve a private node: {error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_reaches_the_peer_and_a_stop_ends_accept() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut listener = b.listen(80).await.unwrap();
    let (_reader, mut writer) = within(a.dial(b.address(), 80)).await.unwrap().split();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    let (mut theirs, _out) = within(listener.accept()).await.unwrap().split();
    assert_eq!(within(theirs.read()).await.unwrap(), "x");
    writer.abort();
    assert_eq!(within(theirs.read()).await, None);
    assert_eq!(theirs.close_reason(), Some(CloseReason::Reset));
    let stopping = Instant::now();
    within(b.shutdown()).await;
    println!("shutdown: {:?}", stopping.elapsed());
    assert!(within(listener.accept()).await.is_none());
    assert_eq!(b.dial(a.address(), 80).await.unwrap_err(), DialError::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_shutdown_arrives() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut listener = b.listen(80).await.unwrap();
    let mut stream = within(a.dial(b.address(), 80)).await.unwrap();
    let bytes = pattern(1 << 20);
    within(stream.write(bytes.clone().into())).await.unwrap();
    let (mut reader, _writer) = within(listener.accept()).await.unwrap().split();
    let reading = tokio::spawn(async move {
        let mut back = Vec::new();
        while let Some(more) = reader.read().await {
            back.extend_from_slice(&more);
        }
        back
    });
    within(a.shutdown()).await;
    assert!(within(reading).await.unwrap() == bytes, "the tail was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_reach_every_subscriber_of_a_public_node() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let (mut first, mut second) = (b.datagrams(), b.datagrams());
    a.send_datagram(b.address(), 5353, Bytes::from_static(b"hello")).await.unwrap();
    for subscriber in [&mut first, &mut second] {
        let datagram = within(subscriber.recv()).await.unwrap();
        assert_eq!((datagram.src, datagram.dst_port), (a.address(), 5353));
        assert_eq!(datagram.payload, "hello");
    }
    let too_long = Bytes::from(vec![0; 70_000]);
    let error = a.send_datagram(b.address(), 1, too_long).await.unwrap_err();
    assert_eq!(error.to_string(), "marshal: payload too large: 70000 bytes (max 65535)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_do_not_disturb_each_other() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, syn_rate_limit: 0, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    let mut rounds = tokio::task::JoinSet::new();
    for i in 0..64 {
        let (a, to) = (a.clone(), b.address());
        rounds.spawn(async move {
            let stream = within(a.dial(to, 7)).await.unwrap();
            echo_round(stream, pattern(10_000 + 997 * i)).await;
        });
    }
    while let Some(done) = rounds.join_next().await {
        done.unwrap();
    }
}
