//! Streams and datagrams between the clients of two daemons.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Raw, daemon, daemon_with, drain, id_of, pattern, rendezvous, text_of, within};
use pilot_ipc::ClientError;
use pilot_ipc::frame::Frame;
use pilot_ipc::request::Request;
use pilot_proto::Addr;
use std::time::Duration;

const BIND_OK: u8 = 0x02;
const DIAL_OK: u8 = 0x04;
const ACCEPT: u8 = 0x05;
const RECV: u8 = 0x07;
const CLOSE_OK: u8 = 0x09;

/// Binds 4000 at one raw client and dials it from another; returns both ids.
async fn connect(from: &mut Raw, to: &mut Raw, addr: Addr) -> (u32, u32) {
    assert_eq!(to.ask(&Request::Bind { port: 4000 }).await.command, BIND_OK);
    dial(from, to, addr).await
}

async fn dial(from: &mut Raw, to: &mut Raw, addr: Addr) -> (u32, u32) {
    let dialled = from.ask(&Request::Dial { to: addr, port: 4000 }).await;
    assert_eq!(dialled.command, DIAL_OK, "{}", text_of(&dialled));
    let accept = to.expect().await;
    assert_eq!((accept.command, accept.body.len()), (ACCEPT, 14));
    assert_eq!(accept.body[..2], 4000u16.to_be_bytes());
    (id_of(&dialled), u32::from_be_bytes(accept.body[2..6].try_into().unwrap()))
}

/// Collects Recv data until the CloseOK push.
async fn until_end(client: &mut Raw, id: u32) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let Frame { command, body } = client.expect().await;
        assert_eq!(body[..4], id.to_be_bytes());
        match command {
            RECV => data.extend_from_slice(&body[4..]),
            CLOSE_OK => return data,
            other => panic!("unexpected frame 0x{other:02X}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_runs_through_all_its_frames() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = connect(&mut alice, &mut bob, b.addr()).await;

    alice.send(&Request::Send { conn: x, data: "to bob".into() }).await;
    let frame = bob.expect().await;
    assert_eq!((frame.command, id_of(&frame), &frame.body[4..]), (RECV, y, &b"to bob"[..]));
    bob.send(&Request::Send { conn: y, data: "to alice".into() }).await;
    let frame = alice.expect().await;
    assert_eq!((frame.command, id_of(&frame), &frame.body[4..]), (RECV, x, &b"to alice"[..]));

    // The closer gets the reply and the push, the other end the push.
    alice.send(&Request::Close { conn: x }).await;
    assert_eq!(until_end(&mut alice, x).await, b"");
    assert_eq!(until_end(&mut alice, x).await, b"");
    assert_eq!(until_end(&mut bob, y).await, b"");
    // A Send on an ended stream is dropped silently; Close is always answered.
    bob.send(&Request::Send { conn: y, data: "too late".into() }).await;
    let frame = bob.ask(&Request::Close { conn: y }).await;
    assert_eq!((frame.command, id_of(&frame)), (CLOSE_OK, y));
    let frame = bob.ask(&Request::Close { conn: 77_777 }).await;
    assert_eq!((frame.command, id_of(&frame)), (CLOSE_OK, 77_777));
    alice.expect_silence().await;
    bob.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_megabytes_before_a_close_arrive_complete() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = connect(&mut alice, &mut bob, b.addr()).await;
    let data = pattern(3_000_000);
    for part in data.chunks(1_048_512) {
        alice.send(&Request::Send { conn: x, data: Bytes::copy_from_slice(part) }).await;
    }
    alice.send(&Request::Close { conn: x }).await;
    assert!(until_end(&mut bob, y).await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sent_arrives_although_it_is_gone() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = connect(&mut alice, &mut bob, b.addr()).await;
    let data = pattern(3_000_000);
    for part in data.chunks(1_048_512) {
        alice.send(&Request::Send { conn: x, data: Bytes::copy_from_slice(part) }).await;
    }
    drop(alice);
    assert!(until_end(&mut bob, y).await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_mebibytes_come_back_through_both_daemons() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut listener = bob.listen(7).await.unwrap();
    tokio::spawn(async move {
        let (mut reader, mut writer) = listener.accept().await.unwrap().split();
        while let Some(data) = reader.read().await {
            writer.write(data).await.unwrap();
        }
        writer.close();
    });
    let (mut reader, mut writer) = alice.dial(b.addr(), 7).await.unwrap().split();
    let data = pattern(8 << 20);
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        writer.write(sent).await.unwrap();
        writer
    });
    let mut back = Vec::with_capacity(data.len());
    while back.len() < data.len() {
        back.extend_from_slice(&within(reader.read()).await.expect("the stream ended early"));
    }
    assert!(back == data);
    drop(writing.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_lets_the_other_direction_go_on() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut listener = bob.listen(4000).await.unwrap();
    let serve = async {
        let mut stream = within(listener.accept()).await.unwrap();
        let question = drain(&mut stream).await;
        stream.write([b"you asked ", &question[..]].concat()).await.unwrap();
        stream.close();
        drain(&mut stream).await;
    };
    let ask = async {
        let mut stream = alice.dial(b.addr(), 4000).await.unwrap();
        stream.write("how are you").await.unwrap();
        assert!(within(stream.finish()).await, "our daemons negotiate half-close");
        drain(&mut stream).await
    };
    let ((), answer) = tokio::join!(serve, ask);
    assert_eq!(answer, b"you asked how are you");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_on_a_closed_window_holds_up_neither_other_requests_nor_other_streams() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut deaf, mut bob) = (a.raw().await, b.raw().await, b.raw().await);
    let (x, _) = connect(&mut alice, &mut deaf, b.addr()).await;
    assert_eq!(bob.ask(&Request::Bind { port: 4001 }).await.command, BIND_OK);
    // More than window and buffers towards a client that reads nothing, less than the daemon queues for a stream.
    for _ in 0..6 {
        alice.send(&Request::Send { conn: x, data: pattern(1 << 19) }).await;
    }
    alice.expect_silence().await;
    let dialled = alice.ask(&Request::Dial { to: b.addr(), port: 4001 }).await;
    assert_eq!((dialled.command, bob.expect().await.command), (DIAL_OK, ACCEPT));
    alice.send(&Request::Send { conn: id_of(&dialled), data: "past it".into() }).await;
    assert_eq!(bob.expect().await.body[4..], b"past it"[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_does_not_hold_up_another() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut deaf) = (a.raw().await, b.raw().await);
    let (x, _) = connect(&mut alice, &mut deaf, b.addr()).await;
    let flood = tokio::spawn(async move {
        // Until the daemon stops reading this client.
        let frame = Request::Send { conn: x, data: pattern(1 << 19) };
        for _ in 0..64 {
            alice.send(&frame).await;
        }
    });
    let mut bob = b.raw().await;
    let mut carol = a.raw().await;
    assert_eq!(bob.ask(&Request::Bind { port: 4001 }).await.command, BIND_OK);
    for _ in 0..50 {
        let dialled = carol.ask(&Request::Dial { to: b.addr(), port: 4001 }).await;
        assert_eq!(dialled.command, DIAL_OK, "{}", text_of(&dialled));
        let accepted = bob.expect().await;
        carol.send(&Request::Send { conn: id_of(&dialled), data: "ping".into() }).await;
        assert_eq!(bob.expect().await.body[4..], b"ping"[..]);
        assert_eq!(accepted.command, ACCEPT);
    }
    flood.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vanished_client_frees_its_ports_and_ends_its_streams_at_once() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, _) = connect(&mut alice, &mut bob, b.addr()).await;
    drop(bob);
    assert_eq!(until_end(&mut alice, x).await, b"");
    // The stream's end and the port's are told to nobody in a fixed order.
    let mut carol = b.raw().await;
    let bound = within(async {
        loop {
            let frame = carol.ask(&Request::Bind { port: 4000 }).await;
            if frame.command == BIND_OK {
                return frame;
            }
            assert_eq!(text_of(&frame), "port 4000 already bound");
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bound.body, 4000u16.to_be_bytes()[..]);
    dial(&mut alice, &mut carol, b.addr()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_while_its_sends_are_stuck_frees_its_ports() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut deaf) = (a.raw().await, b.raw().await);
    let (x, _) = connect(&mut alice, &mut deaf, b.addr()).await;
    assert_eq!(alice.ask(&Request::Bind { port: 5000 }).await.command, BIND_OK);
    // Until the daemon no longer reads: nothing is written for a while.
    let (command, body) = Request::Send { conn: x, data: pattern(1 << 20 >> 1) }.encode();
    let frame = pilot_ipc::frame::OutFrame::new(command as u8, &[], body).to_vec();
    let stuck = async {
        loop {
            tokio::io::AsyncWriteExt::write_all(&mut alice.write, &frame).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(2), stuck).await.is_err());
    drop(alice);
    let mut carol = a.raw().await;
    within(async {
        while carol.ask(&Request::Bind { port: 5000 }).await.command != BIND_OK {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbound_port_refuses_but_its_streams_live_on() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = connect(&mut alice, &mut bob, b.addr()).await;
    let mut other = b.raw().await;
    assert_eq!(
        other.ask_error(&Request::Unbind { port: 4000 }).await,
        "unbind: port is not owned by this client"
    );
    assert_eq!(bob.ask(&Request::Unbind { port: 4000 }).await.command, 0x38);
    assert_eq!(alice.ask_error(&Request::Dial { to: b.addr(), port: 4000 }).await, "connection refused");
    alice.send(&Request::Send { conn: x, data: "still here".into() }).await;
    let frame = bob.expect().await;
    assert_eq!((id_of(&frame), &frame.body[4..]), (y, &b"still here"[..]));
    assert_eq!(other.ask(&Request::Bind { port: 4000 }).await.command, BIND_OK, "free at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_client_may_send_on_and_close_a_stream_and_its_owner_hears_of_it() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut bob) = (a.raw().await, b.raw().await);
    let (x, y) = connect(&mut alice, &mut bob, b.addr()).await;
    let mut stranger = a.raw().await;
    stranger.send(&Request::Send { conn: x, data: "from a stranger".into() }).await;
    assert_eq!(bob.expect().await.body[4..], b"from a stranger"[..]);
    let frame = stranger.ask(&Request::Close { conn: x }).await;
    assert_eq!((frame.command, id_of(&frame)), (CLOSE_OK, x));
    assert_eq!(until_end(&mut alice, x).await, b"");
    assert_eq!(until_end(&mut bob, y).await, b"");
    stranger.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_is_cancelled_on_request_and_when_its_client_goes() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let gone = b.addr();
    // Registered but dead: dials to it hang.
    b.daemon.shutdown().await;
    let mut alice = a.raw().await;
    alice.send(&Request::Dial { to: gone, port: 7 }).await;
    // While it is in progress other requests are answered.
    alice.expect_silence().await;
    alice.send(&Request::Cancel).await;
    let frame = alice.expect().await;
    assert_eq!((frame.command, text_of(&frame).as_str()), (0x0A, "context canceled"));
    alice.send(&Request::Cancel).await;
    alice.expect_silence().await;

    alice.send(&Request::Dial { to: gone, port: 7 }).await;
    alice.expect_silence().await;
    drop(alice);
    let mut other = a.raw().await;
    within(async {
        while other.ask_json(&Request::Info).await["conn_list"] != serde_json::json!([]) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let dial = a.client().await.dial_within(gone, 7, Duration::from_millis(50)).await;
    assert!(matches!(dial, Err(ClientError::Timeout(_))), "{dial:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_go_to_every_client_of_the_receiver() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (mut alice, mut one, mut two) = (a.raw().await, b.raw().await, b.raw().await);
    // Served means subscribed.
    one.expect_silence().await;
    two.expect_silence().await;
    let datagram = |data: Bytes, confirm| Request::SendTo { to: b.addr(), port: 5000, data, confirm };
    assert_eq!(alice.ask(&datagram("confirmed".into(), true)).await.command, 0x3A);
    alice.send(&datagram("plain".into(), false)).await;
    for client in [&mut one, &mut two] {
        let mut got = [client.expect().await, client.expect().await];
        got.sort_by(|x, y| x.body[10..].cmp(&y.body[10..]));
        for (frame, payload) in got.iter().zip(["confirmed", "plain"]) {
            assert_eq!((frame.command, &frame.body[10..]), (0x0C, payload.as_bytes()));
            assert_eq!(frame.body[..6], a.addr().to_bytes());
            assert_eq!(frame.body[8..10], 5000u16.to_be_bytes());
        }
    }
    alice.send_bytes(&[0, 0, 0, 2, 0x39, 1]).await;
    assert_eq!(text_of(&alice.expect().await), "sendto: missing header");
    let everyone =
        Request::SendTo { to: Addr { network: 0, node: u32::MAX }, port: 1, data: "x".into(), confirm: true };
    assert_eq!(
        alice.ask_error(&everyone).await,
        "sendto: broadcast address requires admin token: use BroadcastDatagram"
    );
    assert_eq!(
        alice.ask_error(&datagram(pattern(65_536), true)).await,
        "sendto: marshal: payload too large: 65536 bytes (max 65535)"
    );
    // Never answered, whatever is wrong with it.
    alice.send_bytes(&[0, 0, 0, 2, 0x0B, 1]).await;
    alice
        .send(&Request::SendTo { to: Addr::backbone(4242), port: 1, data: "x".into(), confirm: false })
        .await;
    alice.send_bytes(&[0, 0, 0, 2, 0x06, 1]).await;
    alice.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_built_in_services_stream_works_and_can_be_closed_by_id() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon_with(&server, |c| c.no_echo = false).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut stream = alice.dial(b.addr(), 7).await.unwrap();
    stream.write("echo").await.unwrap();
    assert_eq!(within(stream.read()).await.unwrap(), "echo");
    assert_eq!(bob.listen(7).await.unwrap_err().daemon_text(), Some("port 7 already bound"));
    let id = bob.info().await.unwrap()["conn_list"][0]["id"].as_u64().unwrap();
    bob.disconnect(id as u32).unwrap();
    assert_eq!(within(stream.read()).await, None);
}

/// A reader may pause for longer than the ten seconds other daemons allow; the limit is ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_for_eleven_seconds_keeps_its_streams_and_ports() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, mut deaf) = (a.client().await, b.raw().await);
    assert_eq!(deaf.ask(&Request::Bind { port: 4000 }).await.command, BIND_OK);
    let (mut reader, mut writer) = alice.dial(b.addr(), 4000).await.unwrap().split();
    let flood = tokio::spawn(async move {
        let piece = pattern(1 << 19);
        while writer.write(piece.clone()).await.is_ok() {}
    });
    let ended = tokio::time::timeout(Duration::from_secs(11), reader.read()).await;
    assert!(ended.is_err(), "the stream goes on: {ended:?}");
    assert!(b.client().await.listen(4000).await.is_err(), "the port is still bound");
    assert!(!flood.is_finished());
    flood.abort();
}
