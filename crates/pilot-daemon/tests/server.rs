//! The socket, its framing and the life of a daemon.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Raw, config, daemon, daemon_with, rendezvous, text_of, within};
use pilot_daemon::{Daemon, DaemonError, SocketError};
use pilot_ipc::frame::MAX_FRAME;
use pilot_ipc::request::Request;
use pilot_ipc::{Client, ClientError};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn framing_is_as_lenient_and_as_strict_as_recorded() {
    let server = rendezvous().await;
    let a = daemon(&server).await;

    let mut client = a.raw().await;
    client.send_bytes(&[0; 4]).await;
    client.expect_silence().await;
    client.send_bytes(&[0, 0, 0, 1, 0x21, 0, 0, 0, 1, 0x21, 0, 0, 0, 1, 0x21]).await;
    for _ in 0..3 {
        assert_eq!(client.expect().await.command, 0x22);
    }
    for byte in [0, 0, 0, 1, 0x21] {
        client.send_bytes(&[byte]).await;
    }
    assert_eq!(client.expect().await.command, 0x22);
    let mut largest = vec![0x7A; 4 + MAX_FRAME];
    largest[..5].copy_from_slice(&[0x00, 0x10, 0x00, 0x00, 0xEE]);
    client.send_bytes(&largest).await;
    assert_eq!(text_of(&client.expect().await), "unknown command: 0xEE");
    client.expect_silence().await;

    for oversize in [[0x00, 0x10, 0x00, 0x01], [0xFF; 4]] {
        let mut client = a.raw().await;
        client.send_bytes(&oversize).await;
        assert_eq!(client.next().await, None, "closed without a word");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_of_one_client_leaves_the_others_alone() {
    let server = rendezvous().await;
    let a = daemon(&server).await;
    let mut good = a.raw().await;
    let mut state = 0x1234_5678u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.push((state >> 24) as u8);
        }
        out
    };
    for round in 0..40usize {
        // Pure noise; noise in frames, with every command; and a frame that never ends.
        let mut bytes = noise(200);
        for command in 0..=255u8 {
            let body = noise(round % 24);
            bytes = if round % 2 == 0 { bytes } else { Vec::new() };
            bytes.extend_from_slice(&(body.len() as u32 + 1).to_be_bytes());
            bytes.push(command);
            bytes.extend_from_slice(&body);
        }
        bytes.extend_from_slice(&[0x00, 0x0F, 0xFF, 0xFF, 0x0D]);
        let Raw { read, mut write } = a.raw().await;
        // The daemon may have closed it already.
        let _ = write.write_all(&bytes).await;
        drop((read, write));
        good.send_bytes(&[0, 0, 0, 1, 0x0D]).await;
        assert_eq!(good.expect().await.command, 0x0E, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_only_stops_sending_still_gets_its_replies() {
    let server = rendezvous().await;
    let a = daemon(&server).await;
    let Raw { read, mut write } = a.raw().await;
    let mut wait = vec![0, 0, 0, 10, 0x0F, 7, 0, 0, 0, 99, 0, 0, 0, 200];
    wait.extend([0, 0, 0, 1, 0x0D, 0, 0, 0, 9, 0x0D]); // the last frame is cut off
    write.write_all(&wait).await.unwrap();
    write.shutdown().await.unwrap();
    let mut client = Raw { read, write };
    assert_eq!(client.expect().await.command, 0x0E);
    assert_eq!(client.expect().await.command, 0x10);
    assert_eq!(client.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let server = rendezvous().await;
    let a = daemon(&server).await;
    assert_eq!(std::fs::metadata(a.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Daemon::start(config(&server, &a.dir)).await.unwrap_err();
    assert!(matches!(error, DaemonError::Socket(SocketError::InUse(_))), "{error}");
    assert!(error.to_string().contains("pilotctl daemon stop"), "{error}");
    a.raw().await.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_quick_ends_clients_and_streams_and_removes_the_socket() {
    let server = rendezvous().await;
    let (a, b) = (daemon(&server).await, daemon(&server).await);
    let (alice, bob) = (a.client().await, b.client().await);
    let mut listener = bob.listen(4000).await.unwrap();
    let _stream = alice.dial(b.addr(), 4000).await.unwrap();
    let mut accepted = within(listener.accept()).await.unwrap();
    let (socket, _dir) = (a.socket(), a.dir);
    let start = Instant::now();
    a.daemon.shutdown().await;
    assert!(start.elapsed() < Duration::from_millis(1100), "{:?}", start.elapsed());
    assert!(!socket.exists());
    assert!(matches!(Client::connect(&socket).await, Err(ClientError::NotRunning(_))));
    assert!(matches!(alice.info().await, Err(ClientError::Disconnected)));
    assert_eq!(within(accepted.read()).await, None, "the peer hears of the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_email_given_once_is_used_again() {
    let server = rendezvous().await;
    let a = daemon_with(&server, |c| c.node.email = Some("a@example.com".into())).await;
    let config = config(&server, &a.dir);
    a.daemon.shutdown().await;
    let again = within(Daemon::start(config)).await.unwrap();
    assert_eq!(again.node().status().await.email, "a@example.com");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_email_is_refused_before_anything_starts() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&server, &dir);
    config.node.email = Some("nobody".into());
    let error = Daemon::start(config).await.unwrap_err();
    assert_eq!(error.to_string(), "daemon start: invalid email: email address must contain @");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_after_the_last_is_closed_at_once() {
    let server = rendezvous().await;
    let a = daemon(&server).await;
    let mut clients = Vec::new();
    for _ in 0..1024 {
        let mut client = a.raw().await;
        // Answered means admitted.
        client.send(&Request::Health).await;
        assert_eq!(client.expect().await.command, 0x22);
        clients.push(client);
    }
    let mut last = a.raw().await;
    assert_eq!(last.next().await, None);
    // A place that becomes free can be taken.
    clients.pop();
    within(async {
        loop {
            let mut client = a.raw().await;
            let written = client.write.write_all(&[0, 0, 0, 1, 0x21]).await;
            if written.is_ok() && client.next().await.is_some() {
                return;
            }
        }
    })
    .await;
}
