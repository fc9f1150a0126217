//! `publish` and `subscribe`: the event stream of a peer (spec 06 section 6).

use super::pipe::put_bytes;
use super::reach::{Reach, go_duration};
use super::text::safe;
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Exit};
use crate::output::Ctx;
use bytes::{BufMut as _, Bytes, BytesMut};
use pilot_ipc::IpcStream;
use pilot_proto::service::port::EVENTS;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest topic, bytes.
const MAX_TOPIC: usize = 1024;
/// Largest payload, bytes.
const MAX_PAYLOAD: usize = 16 << 20;
/// Limit of opening the stream.
const DIAL: Duration = Duration::from_secs(30);
/// Far enough to mean never (a year).
const NEVER: Duration = Duration::from_secs(365 * 86_400);

const GATE_FLAG: Flag = Flag::switch("no-auto-handshake", "do not ask about trust first");

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "publish",
        about: "publish an event at a peer; nobody says whether anybody listens",
        args: &["<peer>", "<topic>"],
        flags: &[Flag::value("data", "M", "the event"), GATE_FLAG],
        returns: "target, topic, bytes",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(publish(ctx, args))),
    },
    Spec {
        name: "subscribe",
        about: "print the events of a peer; topic * is every topic",
        args: &["<peer>", "<topic>"],
        flags: &[
            Flag::value("count", "N", "stop after N events"),
            Flag::value("timeout", "D", "stop after D"),
            GATE_FLAG,
        ],
        returns: "events[]{topic, bytes, data}, timeout; without --count one event per line",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(subscribe(ctx, args))),
    },
];

/// An event as it travels, in both directions.
fn encode(topic: &str, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(6 + topic.len() + payload.len());
    // Both lengths were checked against their limits.
    frame.put_u16(topic.len() as u16);
    frame.put_slice(topic.as_bytes());
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

/// Takes the first whole event off `buffer`.
fn decode(buffer: &mut BytesMut) -> Result<Option<(String, Bytes)>, CliError> {
    let broken = |what: &str| CliError::connection(format!("the peer sent an event with {what}"));
    let Some(head) = buffer.first_chunk::<2>() else { return Ok(None) };
    let topic_len = usize::from(u16::from_be_bytes(*head));
    if topic_len > MAX_TOPIC {
        return Err(broken("an oversized topic"));
    }
    let Some(length) = buffer.get(2 + topic_len..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_PAYLOAD {
        return Err(broken("an oversized payload"));
    }
    if buffer.len() < 6 + topic_len + length {
        return Ok(None);
    }
    let frame = buffer.split_to(6 + topic_len + length).freeze();
    let topic =
        String::from_utf8(frame[2..2 + topic_len].to_vec()).map_err(|_| broken("a topic that is no text"))?;
    Ok(Some((topic, frame.slice(6 + topic_len..))))
}

async fn open<'a>(ctx: &'a Ctx, args: &Args, what: &str) -> Result<(Reach<'a>, IpcStream), CliError> {
    let topic = args.required(1);
    if topic.len() > MAX_TOPIC {
        return Err(CliError::invalid(format!("a topic has at most {MAX_TOPIC} bytes")));
    }
    let reach = Reach::new(ctx, args, args.required(0)).await?;
    let addr = reach.peer.addr;
    let message = format!("cannot {what} {addr} (event stream port {EVENTS})");
    let mut stream = reach.dial(EVENTS, DIAL).await.map_err(|fault| reach.explain(&fault, &message))?;
    // The first event on a connection is the subscription.
    let subscription = encode(topic, &[]);
    stream.write(subscription).await.map_err(|e| CliError::connection(format!("{message}: {e}")))?;
    Ok((reach, stream))
}

async fn publish(ctx: &Ctx, args: &Args) -> CliResult {
    let data = args.value("data").unwrap_or_default();
    if data.is_empty() {
        return Err(CliError::invalid("--data is required"));
    }
    if data.len() > MAX_PAYLOAD {
        return Err(CliError::invalid(format!("an event has at most {MAX_PAYLOAD} bytes")));
    }
    let topic = args.required(1);
    let (reach, mut stream) = open(ctx, args, "connect to").await?;
    stream.write(encode(topic, data.as_bytes())).await.map_err(|e| CliError::connection(e.to_string()))?;
    drop(stream);
    reach.client.flush().await;
    ctx.emit_data(json!({"target": reach.peer.addr.to_string(), "topic": topic, "bytes": data.len()}))
}

async fn subscribe(ctx: &Ctx, args: &Args) -> CliResult {
    let count = args.given("count").then(|| args.int("count", 0)).transpose()?;
    if count == Some(0) {
        return Err(CliError::invalid("--count must be at least 1"));
    }
    let limit = args.duration("timeout")?;
    let (reach, mut stream) = open(ctx, args, "subscribe on").await?;
    let (topic, addr) = (args.required(1), reach.peer.addr);
    ctx.note(&format!("subscribed to {topic:?} on {addr} — waiting for events..."));
    let until = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let mut buffer = BytesMut::new();
    let mut events: Vec<Value> = Vec::new();
    let mut taken = 0;
    let mut timed_out = false;
    while count.is_none_or(|count| taken < count) {
        let Some((topic, payload)) = decode(&mut buffer)? else {
            match timeout_at(until, stream.read()).await {
                Ok(Some(part)) => buffer.extend_from_slice(&part),
                Ok(None) => return Err(CliError::connection(format!("{addr} closed the event stream"))),
                Err(_) => {
                    timed_out = true;
                    break;
                }
            }
            continue;
        };
        taken += 1;
        let mut event = json!({"topic": topic, "bytes": payload.len()});
        put_bytes(&mut event, "data", &payload);
        match ctx.json && count.is_some() {
            true => events.push(event),
            false => ctx.emit_item(&event, |_| {
                format!("[{}] {}", safe(&topic), safe(&String::from_utf8_lossy(&payload)))
            })?,
        }
    }
    drop(stream);
    reach.client.flush().await;
    if timed_out {
        ctx.note(&format!("timeout: {taken} event(s) within {}", limit.map(go_duration).unwrap_or_default()));
    }
    let exit = if count.is_some_and(|count| taken < count) { Exit::NEGATIVE } else { Exit::OK };
    if ctx.json && count.is_some() {
        return ctx.emit_as(json!({"events": events, "timeout": timed_out}), |_| String::new(), exit);
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_out_of_the_stream_whole() {
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for byte in [encode("news", b"hello"), encode("", b"")].concat() {
            buffer.extend_from_slice(&[byte]);
            got.extend(decode(&mut buffer).unwrap());
        }
        assert_eq!(got, [("news".to_owned(), Bytes::from("hello")), (String::new(), Bytes::new())]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn sizes_over_the_limits_are_refused_before_they_arrive() {
        let message = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err().message;
        assert_eq!(message(&1025_u16.to_be_bytes()), "the peer sent an event with an oversized topic");
        let huge = [&[0, 0][..], &(1_u32 << 25).to_be_bytes()].concat();
        assert_eq!(message(&huge), "the peer sent an event with an oversized payload");
        assert_eq!(message(&[0, 1, 0xFF, 0, 0, 0, 0]), "the peer sent an event with a topic that is no text");
    }
}
