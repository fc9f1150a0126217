//! The task that reads a client's socket.

use super::stream::{IpcStream, StreamEnd, StreamShared};
use super::{Answer, Datagram, Guard, Kind, Pending, Shared, State};
use crate::frame::{Frame, FrameReader, OutFrame};
use crate::{Command, push};
use bytes::Bytes;
use pilot_proto::Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::unix::OwnedReadHalf;

/// How long an unread stream may stop the whole connection. Less than the 10 s after which a reference daemon closes
/// a client (ours waits 10 minutes).
const STALL: Duration = Duration::from_secs(8);

pub(super) async fn run(mut frames: FrameReader<OwnedReadHalf>, shared: Arc<Shared>, guard: Weak<Guard>) {
    loop {
        match frames.next().await {
            Ok(Some(frame)) => handle(frame, &shared, &guard).await,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "daemon connection failed");
                break;
            }
        }
    }
    shared.outbox.abandon();
    let state = {
        let mut state = shared.lock();
        state.gone = true;
        let gone = State { gone: true, ..State::default() };
        std::mem::replace(&mut *state, gone)
    };
    for stream in state.streams.values() {
        stream.end(StreamEnd::Disconnected);
    }
    // Dropping the rest wakes whoever waits for an answer or an incoming stream.
}

async fn handle(frame: Frame, shared: &Shared, guard: &Weak<Guard>) {
    let body = frame.body;
    match frame.command {
        push::RECV => received(body, shared).await,
        push::CLOSE_OK => {
            let Some(id) = u32_at(&body, 0) else { return };
            let mut state = shared.lock();
            if state.streams.get(&id).is_some_and(|stream| stream.close_ok()) {
                state.streams.remove(&id);
            }
        }
        push::ACCEPT => accept(&body, shared, guard),
        push::RECV_FROM => {
            let (Some(head), true) = (body.get(..10), body.len() >= 10) else { return };
            let datagram = Datagram {
                src: Addr::from_slice(head),
                src_port: u16::from_be_bytes([head[6], head[7]]),
                dst_port: u16::from_be_bytes([head[8], head[9]]),
                payload: body.slice(10..),
            };
            // Fails only if nobody subscribed.
            let _ = shared.datagrams.send(datagram);
        }
        push::ERROR => {
            let text = String::from_utf8_lossy(body.get(2..).unwrap_or(b"daemon error")).into_owned();
            let mut state = shared.lock();
            if state.pending.as_ref().is_some_and(|p| answers(p.command, &text))
                && let Some(pending) = state.pending.take()
            {
                if let Kind::Bind(port, sender) = &pending.kind {
                    // An early Accept may have entered this listener.
                    if state.listeners.get(port).is_some_and(|known| known.same_channel(sender)) {
                        state.listeners.remove(port);
                    }
                }
                drop(state);
                let _ = pending.answer.send(Err(text));
            }
        }
        reply => replied(reply, body, shared, guard),
    }
}

/// Whether an error can be the answer to `command`. Daemons up to 1.10 also send errors for failed Sends, which belong to no
/// request; errors of confirmed datagrams are known by their prefix (spec 07 sections 9.1, 20 and 24).
fn answers(command: Command, text: &str) -> bool {
    if command == Command::SendToConfirm {
        return text.starts_with("sendto: ") || text.starts_with("unknown command: 0x39");
    }
    let stray = text.starts_with("sendto: ")
        || text.starts_with("send: ")
        || text.starts_with("unknown command: 0x2B")
        || (text.starts_with("connection ") && text.ends_with(" not found"));
    !stray
}

async fn received(mut body: Bytes, shared: &Shared) {
    let Some(id) = u32_at(&body, 0) else { return };
    let data = body.split_off(4);
    let Some(stream) = shared.lock().streams.get(&id).cloned() else { return };
    if stream.received(data) && tokio::time::timeout(STALL, stream.has_room()).await.is_err() {
        tracing::warn!(conn = id, "stream closed: not read for too long");
        stream.end(StreamEnd::Overrun);
        shared.lock().streams.remove(&id);
        shared.outbox.push(OutFrame::new(Command::Close as u8, &id.to_be_bytes(), Bytes::new()));
    }
}

/// Enters a new stream into the table.
fn enter(state: &mut State, guard: Arc<Guard>, id: u32, remote: Addr, remote_port: u16) -> IpcStream {
    let stream = Arc::new(StreamShared::default());
    state.streams.insert(id, stream.clone());
    IpcStream::new(guard, stream, id, remote, remote_port)
}

fn accept(body: &Bytes, shared: &Shared, guard: &Weak<Guard>) {
    let (Some(head), Some(guard)) = (body.get(..14), guard.upgrade()) else { return };
    let port = u16::from_be_bytes([head[0], head[1]]);
    let (Some(id), remote) = (u32_at(body, 2), Addr::from_slice(&head[6..])) else { return };
    let remote_port = u16::from_be_bytes([head[12], head[13]]);
    let mut state = shared.lock();
    if !state.listeners.contains_key(&port)
        && let Some(Pending { kind: Kind::Bind(bound, sender), .. }) = &state.pending
        && *bound == port
    {
        // The daemon may push the first stream before it says that the port is bound.
        let sender = sender.clone();
        state.listeners.insert(port, sender);
    }
    let Some(listener) = state.listeners.get(&port).cloned() else {
        drop(state);
        // Nobody listens any more; without this the stream would stay open.
        shared.outbox.push(OutFrame::new(Command::Close as u8, &id.to_be_bytes(), Bytes::new()));
        return;
    };
    let stream = enter(&mut state, guard, id, remote, remote_port);
    drop(state);
    // A full backlog drops and so closes the stream.
    if listener.try_send(stream).is_err() {
        tracing::warn!(port, "incoming stream closed: listener is not accepting");
    }
}

fn replied(reply: u8, body: Bytes, shared: &Shared, guard: &Weak<Guard>) {
    let mut state = shared.lock();
    if state.pending.as_ref().is_none_or(|p| p.command.reply() != Some(reply)) {
        drop(state);
        // A dial nobody waits for any more succeeded after all.
        if Command::Dial.reply() == Some(reply)
            && let Some(id) = u32_at(&body, 0)
        {
            shared.outbox.push(OutFrame::new(Command::Close as u8, &id.to_be_bytes(), Bytes::new()));
        }
        return;
    }
    let Some(pending) = state.pending.take() else { return };
    let answer = match &pending.kind {
        Kind::Plain => Answer::Body(body),
        Kind::Bind(port, sender) => {
            state.listeners.insert(*port, sender.clone());
            Answer::Body(body)
        }
        Kind::Dial(to, port) => match (u32_at(&body, 0), guard.upgrade()) {
            (Some(id), Some(guard)) => Answer::Stream(enter(&mut state, guard, id, *to, *port)),
            _ => Answer::Body(body),
        },
    };
    drop(state);
    // If nobody waits, a stream is dropped and so closed, and a port has to be given back.
    if pending.answer.send(Ok(answer)).is_err()
        && let Kind::Bind(port, _) = pending.kind
    {
        shared.lock().listeners.remove(&port);
        shared.outbox.push(OutFrame::new(Command::Unbind as u8, &port.to_be_bytes(), Bytes::new()));
    }
}

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?))
}
