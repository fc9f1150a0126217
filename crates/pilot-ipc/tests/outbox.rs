//! The queue of frames towards one socket.
#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use pilot_ipc::frame::{FrameReader, OutFrame};
use pilot_ipc::outbox::{Closed, Outbox, WriteError};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

fn frame(len: usize) -> OutFrame {
    OutFrame::new(0x07, &[0, 0, 0, 1], vec![0x5A; len].into())
}

#[tokio::test]
async fn frames_of_all_sizes_arrive_whole_and_in_order() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outbox = Arc::new(Outbox::new(64 << 10, 16));
    let writing = outbox.clone();
    let writer = tokio::spawn(async move { writing.run(ours, None).await });
    let sizes: Vec<usize> = (0..400).map(|i| (i * 7919) % 40_000).chain([1 << 19, 0, 1]).collect();
    let sent = sizes.clone();
    let sending = outbox.clone();
    tokio::spawn(async move {
        for (i, size) in sent.into_iter().enumerate() {
            let body = vec![i as u8; size];
            sending.send(OutFrame::new(0x07, &(i as u32).to_be_bytes(), body.into())).await.unwrap();
        }
        sending.close();
    });
    let mut frames = FrameReader::new(theirs);
    for (i, size) in sizes.into_iter().enumerate() {
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!(frame.body[..4], (i as u32).to_be_bytes());
        assert_eq!(frame.body.len(), 4 + size);
        assert!(frame.body[4..].iter().all(|b| *b == i as u8));
    }
    assert_eq!(frames.next().await.unwrap(), None, "closed after the last frame");
    writer.await.unwrap().unwrap();
}

#[tokio::test]
async fn senders_wait_at_the_bounds_and_pushed_frames_do_not() {
    let bytes = Outbox::new(1000, 100);
    bytes.try_send(frame(2000)).unwrap();
    assert!(bytes.try_send(frame(0)).is_err(), "the bytes are over the bound");
    assert!(bytes.push(frame(0)));
    let frames = Outbox::new(1000, 2);
    frames.try_send(frame(0)).unwrap();
    frames.try_send(frame(0)).unwrap();
    assert!(frames.try_send(frame(0)).is_err(), "the frames are at the bound");
}

#[tokio::test]
async fn a_waiting_sender_learns_that_the_connection_is_gone() {
    let outbox = Arc::new(Outbox::new(10, 1));
    outbox.try_send(frame(100)).unwrap();
    let (waiting, abandoned) = (outbox.clone(), outbox.clone());
    let sent = tokio::join!(waiting.send(frame(1)), async { abandoned.abandon() }).0;
    assert_eq!(sent, Err(Closed));
    assert!(!outbox.push(frame(1)));
    outbox.flush().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_given_up_and_its_frames_are_dropped() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let outbox = Outbox::new(64 << 20, 1000);
    for _ in 0..20 {
        outbox.try_send(frame(1 << 19)).unwrap();
    }
    let result = outbox.run(ours, Some(Duration::from_secs(10))).await;
    assert!(
        matches!(result, Err(WriteError::Stalled(limit)) if limit == Duration::from_secs(10)),
        "{result:?}"
    );
    assert!(outbox.is_closed());
    assert!(outbox.try_send(frame(1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_given_up_while_it_reads_something() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outbox = Arc::new(Outbox::new(64 << 20, 1000));
    for _ in 0..4 {
        outbox.try_send(frame(1 << 19)).unwrap();
    }
    outbox.close();
    let writing = outbox.clone();
    let writer = tokio::spawn(async move { writing.run(ours, Some(Duration::from_secs(10))).await });
    let mut got = 0;
    let mut buffer = vec![0; 100_000];
    let mut ended = false;
    while !ended {
        // Virtual time. What the socket holds is read then; the kernel wakes a writer only when most of it is gone.
        tokio::time::sleep(Duration::from_secs(9)).await;
        theirs.readable().await.unwrap();
        loop {
            match theirs.try_read(&mut buffer) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(n) => got += n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    writer.await.unwrap().unwrap();
    assert_eq!(got, 4 * frame(1 << 19).len());
}

#[tokio::test]
async fn a_broken_socket_ends_the_writer() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let outbox = Outbox::new(1 << 20, 10);
    outbox.try_send(OutFrame::new(1, &[], Bytes::new())).unwrap();
    assert!(matches!(outbox.run(ours, None).await, Err(WriteError::Io(_))));
    assert!(outbox.is_closed());
}
