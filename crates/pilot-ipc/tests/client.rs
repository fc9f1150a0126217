//! The client against a scripted daemon.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use pilot_ipc::client::StreamEnd;
use pilot_ipc::frame::{Frame, FrameReader, OutFrame};
use pilot_ipc::request::Request;
use pilot_ipc::{Client, ClientError, Command, push};
use pilot_proto::Addr;
use serde_json::json;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const PEER: Addr = Addr::backbone(1);

/// The daemon's end of a connection.
struct Daemon {
    read: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

fn connected() -> (Client, Daemon) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = theirs.into_split();
    (Client::over(ours), Daemon { read: FrameReader::new(read), write })
}

impl Daemon {
    async fn next(&mut self) -> Frame {
        self.read.next().await.unwrap().expect("the client sends another frame")
    }

    async fn request(&mut self) -> Request {
        let frame = self.next().await;
        Request::parse(frame.command, frame.body).unwrap()
    }

    async fn send(&mut self, frames: &[OutFrame]) {
        let bytes: Vec<u8> = frames.iter().flat_map(OutFrame::to_vec).collect();
        self.write.write_all(&bytes).await.unwrap();
    }
}

fn id_frame(command: u8, id: u32) -> OutFrame {
    OutFrame::new(command, &id.to_be_bytes(), Bytes::new())
}

fn recv(id: u32, data: impl Into<Bytes>) -> OutFrame {
    OutFrame::new(push::RECV, &id.to_be_bytes(), data.into())
}

fn reply_json(command: Command, text: &str) -> OutFrame {
    OutFrame::new(command.reply().unwrap(), &[], Bytes::copy_from_slice(text.as_bytes()))
}

fn dial_ok(id: u32) -> OutFrame {
    id_frame(Command::Dial.reply().unwrap(), id)
}

fn accept(port: u16, id: u32) -> OutFrame {
    let mut fields = [0; 14];
    fields[..2].copy_from_slice(&port.to_be_bytes());
    fields[2..6].copy_from_slice(&id.to_be_bytes());
    fields[6..12].copy_from_slice(&PEER.to_bytes());
    fields[12..].copy_from_slice(&49_152u16.to_be_bytes());
    OutFrame::new(push::ACCEPT, &fields, Bytes::new())
}

fn bind_ok(port: u16) -> OutFrame {
    OutFrame::new(Command::Bind.reply().unwrap(), &port.to_be_bytes(), Bytes::new())
}

/// Dials through a daemon that accepts with `id` and sends `then` along with the answer.
async fn dialled(client: &Client, daemon: &mut Daemon, id: u32, then: &[OutFrame]) -> pilot_ipc::IpcStream {
    let serve = async {
        assert_eq!(daemon.request().await, Request::Dial { to: PEER, port: 7 });
        let frames: Vec<OutFrame> = std::iter::once(dial_ok(id)).chain(then.iter().cloned()).collect();
        daemon.send(&frames).await;
    };
    let (stream, ()) = tokio::join!(client.dial(PEER, 7), serve);
    stream.unwrap()
}

#[tokio::test]
async fn a_reply_is_found_among_pushes_and_strangers() {
    let (client, mut daemon) = connected();
    let serve = async {
        assert_eq!(daemon.request().await, Request::Info);
        daemon
            .send(&[
                recv(9, "for nobody"),
                id_frame(push::CLOSE_OK, 9),
                OutFrame::new(0xEE, &[], Bytes::from_static(b"of the future")),
                reply_json(Command::Health, r#"{"late":1}"#),
                reply_json(Command::Info, r#"{"node_id":2}"#),
            ])
            .await;
    };
    let (info, ()) = tokio::join!(client.info(), serve);
    assert_eq!(info.unwrap(), json!({"node_id": 2}));
}

#[tokio::test]
async fn errors_carry_the_daemons_text_and_nonsense_is_named() {
    let (client, mut daemon) = connected();
    let serve = async {
        for reply in [
            OutFrame::error("resolve_hostname: registry: request failed"),
            reply_json(Command::ResolveHostname, "[1]"),
            reply_json(Command::ResolveHostname, "{"),
        ] {
            daemon.request().await;
            daemon.send(&[reply]).await;
        }
    };
    let ask = async {
        let error = client.resolve_hostname("x").await.unwrap_err();
        assert_eq!(error.daemon_text(), Some("resolve_hostname: registry: request failed"));
        assert_eq!(error.to_string(), "daemon: resolve_hostname: registry: request failed");
        for _ in 0..2 {
            let error = client.resolve_hostname("x").await.unwrap_err();
            assert!(matches!(error, ClientError::Protocol(_)), "{error}");
        }
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_missing_or_stale_socket_means_not_running() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    assert!(matches!(Client::connect(&path).await, Err(ClientError::NotRunning(p)) if p == path));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path).await, Err(ClientError::NotRunning(p)) if p == path));
}

#[tokio::test]
async fn a_vanished_daemon_ends_everything() {
    let (client, mut daemon) = connected();
    let mut stream = dialled(&client, &mut daemon, 1, &[recv(1, "last words")]).await;
    let serve = async {
        daemon.request().await;
        drop(daemon);
    };
    let (info, ()) = tokio::join!(client.info(), serve);
    assert!(matches!(info, Err(ClientError::Disconnected)));
    assert_eq!(stream.read().await.unwrap(), "last words");
    assert_eq!(stream.read().await, None);
    assert_eq!(stream.end(), Some(StreamEnd::Disconnected));
    assert!(matches!(client.health().await, Err(ClientError::Disconnected)));
    assert!(client.is_disconnected());
}

#[tokio::test]
async fn data_and_end_in_the_same_packet_as_the_dial_reply_are_not_lost() {
    let (client, mut daemon) = connected();
    let then = [recv(5, "hello "), recv(5, "world"), id_frame(push::CLOSE_OK, 5)];
    let mut stream = dialled(&client, &mut daemon, 5, &then).await;
    assert_eq!((stream.id(), stream.remote(), stream.remote_port()), (5, PEER, 7));
    assert_eq!(stream.read().await.unwrap(), "hello ");
    assert_eq!(stream.read().await.unwrap(), "world");
    assert_eq!(stream.read().await, None);
    assert_eq!(stream.end(), Some(StreamEnd::Ended));
    drop(stream);
    assert_eq!(daemon.request().await, Request::Close { conn: 5 });
}

#[tokio::test]
async fn data_between_the_two_close_oks_of_a_local_close_is_delivered() {
    let (client, mut daemon) = connected();
    let mut stream = dialled(&client, &mut daemon, 3, &[recv(3, "before")]).await;
    stream.close();
    assert_eq!(daemon.request().await, Request::Close { conn: 3 });
    daemon.send(&[id_frame(push::CLOSE_OK, 3), recv(3, "between"), id_frame(push::CLOSE_OK, 3)]).await;
    assert_eq!(stream.read().await.unwrap(), "before");
    assert_eq!(stream.read().await.unwrap(), "between");
    assert_eq!(stream.read().await, None);
    assert!(stream.write("late").await.is_err(), "closed here");
    drop(stream);
    drop(client);
    assert_eq!(daemon.read.next().await.unwrap(), None, "closed only once, then the connection ends");
}

#[tokio::test]
async fn writes_are_cut_to_the_stock_size_and_keep_their_order() {
    let (client, mut daemon) = connected();
    let mut stream = dialled(&client, &mut daemon, 1, &[]).await;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let sent = Bytes::from(data.clone());
    let write = async {
        stream.write(sent).await.unwrap();
        stream.close();
    };
    let read = async {
        let mut sizes = Vec::new();
        let mut got = Vec::new();
        loop {
            match daemon.request().await {
                Request::Send { conn: 1, data } => {
                    sizes.push(data.len());
                    got.extend_from_slice(&data);
                }
                other => return (sizes, got, other),
            }
        }
    };
    let ((), (sizes, got, last)) = tokio::join!(write, read);
    assert_eq!(sizes, [1_048_512, 1_048_512, 902_976]);
    assert!(got == data);
    assert_eq!(last, Request::Close { conn: 1 });
}

#[tokio::test]
async fn a_dial_given_up_is_cancelled_and_its_late_success_closed() {
    let (client, mut daemon) = connected();
    let dial = client.dial_within(PEER, 7, Duration::from_millis(20)).await;
    assert!(matches!(dial, Err(ClientError::Timeout(_))), "{dial:?}");
    assert_eq!(daemon.request().await, Request::Dial { to: PEER, port: 7 });
    assert_eq!(daemon.request().await, Request::Cancel);
    // The next request waits until the dial was answered, so that it cannot take that answer for its own.
    let serve = async {
        daemon.send(&[dial_ok(8)]).await;
        let mut next = vec![daemon.request().await, daemon.request().await];
        next.sort_by_key(|r| *r != Request::Health);
        assert_eq!(next, [Request::Health, Request::Close { conn: 8 }]);
        daemon.send(&[reply_json(Command::Health, "{}")]).await;
    };
    let (health, ()) = tokio::join!(client.health(), serve);
    health.unwrap();
}

#[tokio::test]
async fn a_cancelled_dials_error_does_not_hit_the_next_request() {
    let (client, mut daemon) = connected();
    assert!(client.dial_within(PEER, 7, Duration::from_millis(20)).await.is_err());
    let serve = async {
        daemon.request().await;
        assert_eq!(daemon.request().await, Request::Cancel);
        daemon.send(&[OutFrame::error("context canceled")]).await;
        assert_eq!(daemon.request().await, Request::Health);
        daemon.send(&[reply_json(Command::Health, r#"{"status":"ok"}"#)]).await;
    };
    let (health, ()) = tokio::join!(client.health(), serve);
    assert_eq!(health.unwrap(), json!({"status": "ok"}));
}

#[tokio::test]
async fn stray_errors_of_old_daemons_answer_nothing() {
    let (client, mut daemon) = connected();
    let serve = async {
        daemon.request().await;
        daemon
            .send(&[
                OutFrame::error("connection 7 not found"),
                OutFrame::error("send: missing conn_id"),
                OutFrame::error("sendto: resolve node 9: registry: request failed"),
                OutFrame::error("unknown command: 0x2B"),
                reply_json(Command::Info, "{}"),
            ])
            .await;
    };
    let (info, ()) = tokio::join!(client.info(), serve);
    assert_eq!(info.unwrap(), json!({}));
}

#[tokio::test]
async fn a_stream_accepted_before_the_bind_reply_reaches_the_listener() {
    let (client, mut daemon) = connected();
    let serve = async {
        assert_eq!(daemon.request().await, Request::Bind { port: 4000 });
        daemon.send(&[accept(4000, 1), recv(1, "early"), bind_ok(4000), accept(4000, 2)]).await;
    };
    let (listener, ()) = tokio::join!(client.listen(4000), serve);
    let mut listener = listener.unwrap();
    let mut first = listener.accept().await.unwrap();
    assert_eq!((first.id(), first.remote(), first.remote_port()), (1, PEER, 49_152));
    assert_eq!(first.read().await.unwrap(), "early");
    assert_eq!(listener.accept().await.unwrap().id(), 2);
    assert_eq!(daemon.request().await, Request::Close { conn: 2 }, "the second was dropped");
    drop(listener);
    assert_eq!(daemon.request().await, Request::Unbind { port: 4000 });
    daemon.send(&[accept(4000, 3)]).await;
    assert_eq!(daemon.request().await, Request::Close { conn: 3 }, "nobody listens any more");
}

#[tokio::test]
async fn a_refused_bind_says_why() {
    let (client, mut daemon) = connected();
    let serve = async {
        daemon.request().await;
        daemon.send(&[OutFrame::error("port 7 already bound")]).await;
    };
    let (listener, ()) = tokio::join!(client.listen(7), serve);
    assert_eq!(listener.unwrap_err().daemon_text(), Some("port 7 already bound"));
}

#[tokio::test]
async fn confirmed_datagrams_fall_back_once_and_for_all_on_an_old_daemon() {
    let (client, mut daemon) = connected();
    let datagram =
        |confirm| Request::SendTo { to: PEER, port: 5000, data: Bytes::from_static(b"dg"), confirm };
    let serve = async {
        assert_eq!(daemon.request().await, datagram(true));
        daemon
            .send(&[
                OutFrame::error("resolve: not ours"),
                OutFrame::error("sendto: ephemeral ports exhausted"),
            ])
            .await;
        assert_eq!(daemon.request().await, datagram(true));
        daemon.send(&[OutFrame::error("unknown command: 0x39")]).await;
        assert_eq!(daemon.request().await, datagram(false));
        assert_eq!(daemon.request().await, datagram(false));
    };
    let send = async {
        let refused = client.send_datagram(PEER, 5000, "dg", true).await.unwrap_err();
        assert_eq!(refused.daemon_text(), Some("sendto: ephemeral ports exhausted"));
        client.send_datagram(PEER, 5000, "dg", true).await.unwrap();
        client.send_datagram(PEER, 5000, "dg", true).await.unwrap();
    };
    tokio::join!(serve, send);
}

#[tokio::test]
async fn datagrams_reach_every_subscriber() {
    let (client, mut daemon) = connected();
    let (mut one, mut two) = (client.datagrams(), client.datagrams());
    let fields = [0, 0, 0, 0, 0, 1, 0xC0, 0, 0x13, 0x88];
    daemon.send(&[OutFrame::new(push::RECV_FROM, &fields, Bytes::from_static(b"hi"))]).await;
    for subscriber in [&mut one, &mut two] {
        let datagram = subscriber.recv().await.unwrap();
        assert_eq!((datagram.src, datagram.src_port, datagram.dst_port), (PEER, 49_152, 5000));
        assert_eq!(datagram.payload, "hi");
    }
}

#[tokio::test]
async fn finish_asks_a_daemon_that_lacks_it_only_once() {
    let (client, mut daemon) = connected();
    let mut stream = dialled(&client, &mut daemon, 1, &[]).await;
    let serve = async {
        assert_eq!(daemon.request().await, Request::Finish { conn: 1 });
        daemon.send(&[OutFrame::error("unknown command: 0x3B")]).await;
    };
    let (finished, ()) = tokio::join!(stream.finish(), serve);
    assert!(!finished);
    assert!(!stream.finish().await);
    drop(stream);
    assert_eq!(daemon.request().await, Request::Close { conn: 1 });
}

#[tokio::test]
async fn finish_reports_what_was_negotiated_with_the_peer() {
    let (client, mut daemon) = connected();
    let mut stream = dialled(&client, &mut daemon, 1, &[]).await;
    for negotiated in [false, true] {
        let serve = async {
            daemon.request().await;
            daemon.send(&[OutFrame::new(0x3C, &[0, 0, 0, 1, u8::from(negotiated)], Bytes::new())]).await;
        };
        let (finished, ()) = tokio::join!(stream.finish(), serve);
        assert_eq!(finished, negotiated);
    }
}

#[tokio::test]
async fn an_unread_stream_does_not_hold_up_another() {
    let (client, mut daemon) = connected();
    let _unread = dialled(&client, &mut daemon, 1, &[]).await;
    let mut read = dialled(&client, &mut daemon, 2, &[]).await;
    for _ in 0..8 {
        daemon.send(&[recv(1, vec![0; 1_000_000])]).await;
    }
    daemon.send(&[recv(2, "through")]).await;
    assert_eq!(read.read().await.unwrap(), "through");
}

#[tokio::test(start_paused = true)]
async fn a_stream_unread_for_too_long_is_closed_alone() {
    let (client, mut daemon) = connected();
    let mut unread = dialled(&client, &mut daemon, 1, &[]).await;
    let mut other = dialled(&client, &mut daemon, 2, &[]).await;
    for _ in 0..9 {
        daemon.send(&[recv(1, vec![0; 1_000_000])]).await;
    }
    daemon.send(&[recv(1, "lost"), recv(2, "late but whole")]).await;
    assert_eq!(other.read().await.unwrap(), "late but whole");
    assert_eq!(daemon.request().await, Request::Close { conn: 1 });
    let mut kept = 0;
    while let Some(data) = unread.read().await {
        kept += data.len();
    }
    assert_eq!((kept, unread.end()), (9_000_000, Some(StreamEnd::Overrun)));
}
