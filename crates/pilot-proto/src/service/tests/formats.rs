//! Echo, frames, messages, acknowledgements, names, duplicates, sending (spec 06 sections 3 and 5.1 to 5.5).

use super::*;
use crate::Addr;
use crate::service::duplicates::{Claim, Duplicates, LIFETIME, MAX_ENTRIES};
use crate::service::frame::{DEFAULT_MAX_FRAME, Decoder, Frame, FrameType, TooLarge, header, max_frame};
use crate::service::message::{self, Body, Incoming, Tag, TraceAck, Violation};
use crate::service::send::{Content, Delivered, SendError, SendMessage, Step};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn frames(bytes: Bytes) -> Result<Vec<Frame>, TooLarge> {
    let mut decoder = Decoder::new(DEFAULT_MAX_FRAME);
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_frame().transpose()).collect()
}

// ---- 3, echo ---------------------------------------------------------------------------------------------

#[test]
fn golden_echo_exchanges() {
    for vector in vectors("echo_port_7") {
        let request = sent(&vector).unwrap();
        let answer = unhex(vector["server_to_client"].as_str().unwrap());
        match echo::parse_reply(&answer) {
            Some((_, received)) => {
                assert_eq!(echo::reply(&request, received).as_ref().map(|r| &r[..]), Some(&answer[..]))
            }
            None => {
                assert_eq!(echo::reply(&request, 1), None, "{vector}");
                assert_eq!(request, answer);
            }
        }
    }
    let probe = echo::probe(123);
    assert_eq!(echo::parse_reply(&echo::reply(&probe, 456).unwrap()), Some((123, 456)));
    assert_eq!(echo::parse_reply(&probe), None, "an old peer's echo is no answer");
}

// ---- 5.1 to 5.3, frames ----------------------------------------------------------------------------------

/// What a receiver that stores everything answers; `None`: it closes the connection.
fn answer(bytes: Bytes, seen: &mut Duplicates, now: Instant) -> Option<Vec<String>> {
    let mut answers = Vec::new();
    for frame in frames(bytes).ok()? {
        let incoming = message::parse(frame).ok()?;
        let (name, len) = incoming.named();
        let ack = message::ack(&name, len);
        let text = match &incoming.body {
            Body::Unsupported(ty) => message::unsupported(*ty),
            Body::ShortTrace(len) => message::short_trace(*len),
            Body::Stream(_) => panic!("not in these vectors"),
            Body::Message { ty, payload } => {
                match duplicates::key(Addr::backbone(1), *ty, "", &incoming.tag, payload)
                    .map(|key| (key, seen.claim(now, key)))
                {
                    Some((_, Claim::Duplicate(first))) => message::duplicate_ack(&first),
                    Some((key, _)) => {
                        seen.stored(now, key, &ack);
                        ack
                    }
                    None => ack,
                }
            }
            Body::File { .. } => ack,
        };
        answers.push(text);
    }
    Some(answers)
}

#[test]
fn golden_data_exchange_frames_get_the_golden_answers() {
    let mut seen = Duplicates::new();
    let now = Instant::now();
    let mut compared = 0;
    for vector in vectors("data_exchange_port_1001") {
        let Some(request) = sent(&vector) else { continue };
        let expected = vector["reply_text"].as_array().map(|texts| {
            let text = |value: &Value| match serde_json::from_str::<TraceAck>(value.as_str().unwrap()) {
                Ok(trace) => trace.inner_ack,
                Err(_) => value.as_str().unwrap().to_owned(),
            };
            texts.iter().map(text).collect::<Vec<_>>()
        });
        assert_eq!(answer(request, &mut seen, now), expected, "{}", vector["meaning"]);
        compared += 1;
    }
    assert!(compared > 35, "{compared}");
}

#[test]
fn golden_trace_answers_are_reproduced_byte_for_byte() {
    for vector in vectors("data_exchange_port_1001") {
        let Some(Ok(trace)) = vector["reply_text"][0].as_str().map(serde_json::from_str::<TraceAck>) else {
            continue;
        };
        assert_eq!(message::trace_ack(&trace), unhex(vector["server_to_client"].as_str().unwrap()));
    }
}

#[test]
fn a_tagged_frame_gives_its_ids_and_the_inner_frame() {
    let tag = Tag { message_id: Some("a-1".into()), reply_to: Some("b:2".into()) };
    let payload = [&message::tag_prefix(&tag, FrameType::JSON)[..], b"{}"].concat();
    let incoming = message::parse(Frame { ty: FrameType::TAGGED, payload: payload.into() });
    let body = Body::Message { ty: FrameType::JSON, payload: Bytes::from_static(b"{}") };
    assert_eq!(incoming, Ok(Incoming { tag, traced: None, body }));
}

#[test]
fn flaws_of_tagged_frames_are_told_apart() {
    let tagged = |header: &[u8], inner: &[u8]| {
        let payload = [&(header.len() as u16).to_be_bytes()[..], header, inner].concat();
        message::parse(Frame { ty: FrameType::TAGGED, payload: payload.into() }).unwrap_err()
    };
    let text = 1u32.to_be_bytes();
    assert_eq!(tagged(b"", &text), Violation::TagLength(0));
    assert_eq!(tagged(&[b' '; 1025], &text), Violation::TagLength(1025));
    assert_eq!(tagged(b"{}", &[0, 0, 0]), Violation::TagShort);
    assert!(matches!(tagged(b"[\"a\",\"b\"]", &text), Violation::TagJson(_)));
    assert!(matches!(tagged(br#"{"message_id":1}"#, &text), Violation::TagJson(_)));
    assert_eq!(tagged(br#"{"reply_to":"a b"}"#, &text), Violation::TagId("a b".into()));
    let long = format!(r#"{{"message_id":"{}"}}"#, "x".repeat(129));
    assert!(matches!(tagged(long.as_bytes(), &text), Violation::TagId(_)));
    assert_eq!(tagged(b"{}", &10u32.to_be_bytes()), Violation::TagNested);
}

#[test]
fn file_names_must_be_plain() {
    let parse = |name: &[u8]| {
        let payload = [&(name.len() as u16).to_be_bytes()[..], name, b"abc"].concat();
        message::parse(Frame { ty: FrameType::FILE, payload: payload.into() }).map(|incoming| incoming.body)
    };
    for bad in [&b"a/b"[..], b"a\\b", b".", b"..", b"\xFF\xFE", &[b'n'; 256]] {
        assert_eq!(parse(bad), Err(Violation::FileName));
    }
    for good in ["note.txt", "", "…", &"n".repeat(255)] {
        let expected = Body::File { name: good.to_owned(), data: Bytes::from_static(b"abc") };
        assert_eq!(parse(good.as_bytes()), Ok(expected));
    }
}

#[test]
fn the_frame_limit_is_inclusive_and_configurable() {
    let mut decoder = Decoder::new(10);
    decoder.push(header(FrameType::TEXT, 11).to_vec().into());
    assert_eq!(decoder.next_frame(), Err(TooLarge { len: 11, max: 10 }));
    let mut decoder = Decoder::new(10);
    decoder.push([&header(FrameType::TEXT, 10)[..], &[7; 10]].concat().into());
    assert_eq!(decoder.next_frame().unwrap().unwrap().payload.len(), 10);
    for (value, bytes) in [
        (None, 64 << 20),
        (Some("65536"), 65_536),
        (Some("65535"), 64 << 20),
        (Some("2147483647"), 0x7FFF_FFFF),
        (Some("2147483648"), 64 << 20),
        (Some("64M"), 64 << 20),
    ] {
        assert_eq!(max_frame(value), bytes, "{value:?}");
    }
}

#[test]
fn a_declared_length_allocates_nothing_and_whole_frames_are_not_copied() {
    let mut decoder = Decoder::new(DEFAULT_MAX_FRAME);
    decoder.push(header(FrameType::TEXT, 60 << 20).to_vec().into());
    assert_eq!(decoder.next_frame(), Ok(None));
    assert_eq!(decoder.buffered(), 8);

    let bytes: Bytes = [&header(FrameType::TEXT, 4)[..], b"text"].concat().into();
    let mut decoder = Decoder::new(DEFAULT_MAX_FRAME);
    decoder.push(bytes.clone());
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!(frame.payload.as_ptr(), bytes[8..].as_ptr());
    assert_eq!(decoder.buffered(), 0);
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_stream_is_cut(
        payloads in proptest::collection::vec((0u32..12, proptest::collection::vec(any::<u8>(), 0..60)), 0..6),
        cuts in proptest::collection::vec(1usize..40, 1..60),
    ) {
        let expected: Vec<Frame> = payloads.into_iter().map(|(ty, p)| Frame { ty: FrameType(ty), payload: p.into() }).collect();
        let mut stream: Bytes = expected.iter().flat_map(Frame::to_bytes).collect();
        let (mut decoder, mut got, mut cuts) = (Decoder::new(1000), Vec::new(), cuts.into_iter().cycle());
        while !stream.is_empty() {
            let len = cuts.next().unwrap().min(stream.len());
            decoder.push(stream.split_to(len));
            while let Some(frame) = decoder.next_frame().unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, expected);
        prop_assert_eq!(decoder.buffered(), 0);
    }

    #[test]
    fn any_frame_is_parsed_without_panic(ty in 0u32..12, payload in proptest::collection::vec(any::<u8>(), 0..80)) {
        let payload: Bytes = payload.into();
        let _ = message::parse(Frame { ty: FrameType(ty), payload: payload.clone() });
        let _ = filestream::parse(&payload);
        let _ = echo::reply(&payload, 0);
        let _ = echo::parse_reply(&payload);
    }

    #[test]
    fn any_tagged_frame_is_parsed_without_panic(
        len in 0u16..40, header in "[{}\\[\\]\":,a-z_0-9]{0,40}", rest in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let payload = [&len.to_be_bytes()[..], header.as_bytes(), &rest].concat();
        let _ = message::parse(Frame { ty: FrameType::TAGGED, payload: payload.into() });
    }

    #[test]
    fn any_answer_is_taken_without_panic(answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5)) {
        let mut send = SendMessage::new(Content::text("x").traced(1), Some(Tag::default()), 1000).unwrap();
        for answer in answers {
            let _ = send.step();
            send.input(answer.into());
        }
    }

    #[test]
    fn any_name_is_made_fit_for_a_file_system(name in "\\PC{0,300}") {
        let base = names::base_name(&name);
        prop_assert!(!base.is_empty() && !base.contains(['/', '\\', '\0']) && base != "." && base != "..");
        let stored = names::stored_name(&base, "20261120-232849.926-000011");
        prop_assert!(stored.len() <= 255 && stored != "." && stored != ".." && !stored.contains('/'));
    }
}

// ---- 5.4, 5.5 --------------------------------------------------------------------------------------------

#[test]
fn every_field_of_a_message_is_part_of_its_key() {
    let tag = |id: &str, reply: &str| Tag {
        message_id: Some(id.into()),
        reply_to: (!reply.is_empty()).then(|| reply.to_owned()),
    };
    let base = duplicates::key(Addr::backbone(1), FrameType::TEXT, "n", &tag("a", "b"), b"x");
    let others = [
        duplicates::key(Addr::backbone(2), FrameType::TEXT, "n", &tag("a", "b"), b"x"),
        duplicates::key(Addr::backbone(1), FrameType::JSON, "n", &tag("a", "b"), b"x"),
        duplicates::key(Addr::backbone(1), FrameType::TEXT, "na", &tag("", "b"), b"x"),
        duplicates::key(Addr::backbone(1), FrameType::TEXT, "n", &tag("ab", ""), b"x"),
        duplicates::key(Addr::backbone(1), FrameType::TEXT, "n", &tag("a", "bx"), b""),
    ];
    assert!(others.iter().all(|key| key.is_some() && *key != base));
    assert_eq!(duplicates::key(Addr::backbone(1), FrameType::TEXT, "", &Tag::default(), b"x"), None);
}

#[test]
fn a_message_is_stored_once_in_ten_minutes_and_a_failure_is_forgotten() {
    let mut seen = Duplicates::new();
    let now = Instant::now();
    let key = [1; 32];
    assert_eq!(seen.claim(now, key), Claim::New);
    assert_eq!(seen.claim(now, key), Claim::InProgress);
    seen.failed(key);
    assert_eq!(seen.claim(now, key), Claim::New);
    seen.stored(now, key, "ACK TEXT 1 bytes");
    seen.failed(key);
    let last = now + LIFETIME - Duration::from_millis(1);
    assert_eq!(seen.claim(last, key), Claim::Duplicate("ACK TEXT 1 bytes".into()));
    assert_eq!(seen.claim(now + LIFETIME, key), Claim::New);
}

#[test]
fn the_oldest_message_is_forgotten_when_too_many_are_remembered() {
    let mut seen = Duplicates::new();
    let now = Instant::now();
    let key = |n: usize| crate::crypto::sha256(&n.to_be_bytes());
    for n in 0..=MAX_ENTRIES {
        assert_eq!(seen.claim(now, key(n)), Claim::New);
        seen.stored(now, key(n), "");
    }
    assert_eq!(seen.claim(now, key(1)), Claim::Duplicate(String::new()));
    assert_eq!(seen.claim(now, key(0)), Claim::New);
}

#[test]
fn stored_names_are_the_golden_ones() {
    let stamp = names::stamp(1_795_217_329, 926, 0, 11);
    assert_eq!(stamp, "20261120-232849.926-000011");
    assert_eq!(names::stored_name("note.txt", &stamp), "note-20261120-232849.926-000011.txt");
    assert_eq!(names::stored_name("Makefile", &stamp), "Makefile-20261120-232849.926-000011");
    assert_eq!(names::stamp(1_795_217_329, 7, 3600, 1_234_567), "20261121-002849.007-1234567");
    for (name, base) in [
        ("../../evil name.txt", "evil name.txt"),
        ("", "received.bin"),
        (".", "received.bin"),
        ("/", "received.bin"),
        ("..", "received.bin"),
        ("a\\b\\c.txt", "c.txt"),
        ("x\0y\n.z", "xy.z"),
        ("d/", "d"),
        ("photo\u{202E}gpj.exe", "photogpj.exe"),
    ] {
        assert_eq!(names::base_name(name), base, "{name:?}");
    }
}

// ---- sending ---------------------------------------------------------------------------------------------

/// Runs an exchange with a receiver that answers each frame by `answer`; gives the frames and the result.
fn exchange(
    mut send: SendMessage,
    mut answer: impl FnMut(&Frame) -> String,
) -> (Vec<Frame>, Result<Delivered, SendError>) {
    let (mut decoder, mut seen, mut answers) = (Decoder::new(DEFAULT_MAX_FRAME), Vec::new(), Vec::new());
    loop {
        match send.step() {
            Step::Write(bytes) => {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    answers.push(answer(&frame));
                    seen.push(frame);
                }
            }
            Step::Read(_) => match answers.pop() {
                Some(text) => send.input(message::text_frame(&text)),
                None => send.end(),
            },
            Step::Done(result) => return (seen, result),
        }
    }
}

fn tag() -> Option<Tag> {
    Some(Tag { message_id: Some("id-1".into()), reply_to: None })
}

#[test]
fn old_receivers_get_the_message_again_untagged_and_untraced() {
    for vector in vectors("older_receivers") {
        let reply = vector["reply_text"][0].as_str().unwrap_or("");
        if !reply.starts_with("ACK UNKNOWN(10)") {
            continue;
        }
        let send = SendMessage::new(Content::text("hey"), tag(), 1000).unwrap();
        let (frames, result) = exchange(send, |frame| match frame.ty {
            FrameType::TAGGED => reply.to_owned(),
            _ => "ACK TEXT 3 bytes".to_owned(),
        });
        assert_eq!(frames[0].ty, FrameType::TAGGED);
        assert_eq!(frames[1], Frame { ty: FrameType::TEXT, payload: Bytes::from_static(b"hey") });
        assert_eq!(result, Ok(Delivered { ack: "ACK TEXT 3 bytes".into(), tagged: false, trace: None }));
    }
    let send = SendMessage::new(Content::text("hey").traced(5), tag(), 1000).unwrap();
    let (frames, result) = exchange(send, |frame| match frame.ty {
        FrameType::TAGGED => "ERR UNKNOWN(10) save failed: x".to_owned(),
        FrameType::TRACE => "ACK UNKNOWN(5) 15 bytes".to_owned(),
        _ => "ACK TEXT 3 bytes".to_owned(),
    });
    assert_eq!(frames.iter().map(|f| f.ty.0).collect::<Vec<_>>(), [10, 5, 1]);
    assert_eq!(result.map(|delivered| (delivered.tagged, delivered.trace)), Ok((false, None)));
}

#[test]
fn acknowledgements_refusals_and_silence_are_told_apart() {
    let outcome = |text: &str| {
        let send = SendMessage::new(Content::text("hey"), tag(), 1000).unwrap();
        exchange(send, |_| text.to_owned()).1
    };
    assert_eq!(outcome("ACK TEXT 3 bytes (duplicate)").map(|d| d.tagged), Ok(true));
    let refused = "ERR TEXT save failed: inbox byte budget exceeded";
    assert_eq!(outcome(refused), Err(SendError::Refused(refused.into())));
    assert_eq!(outcome("ACK UNKNOWN(1) 3 bytes"), Err(SendError::Refused("ACK UNKNOWN(1) 3 bytes".into())));
    assert_eq!(outcome("hello"), Err(SendError::Protocol("hello".into())));
    let mut send = SendMessage::new(Content::text("hey"), None, 1000).unwrap();
    send.timed_out();
    assert_eq!(send.step(), Step::Done(Err(SendError::TimedOut)));
    let mut send = SendMessage::new(Content::text("hey"), None, 1000).unwrap();
    send.end();
    assert_eq!(send.step(), Step::Done(Err(SendError::Closed)));
}

#[test]
fn a_trace_answer_gives_its_times() {
    let times = TraceAck {
        ack_sent_at_ns: 4,
        inbox_written_at_ns: 3,
        inner_ack: "ACK TEXT 3 bytes".into(),
        received_at_ns: 2,
        sent_at_ns: 1,
    };
    let mut send = SendMessage::new(Content::text("hey").traced(1), tag(), 1000).unwrap();
    assert!(matches!(send.step(), Step::Write(_)));
    send.input(message::trace_ack(&times));
    let expected = Delivered { ack: "ACK TEXT 3 bytes".into(), tagged: true, trace: Some(times) };
    assert_eq!(send.step(), Step::Done(Ok(expected)));
}

#[test]
fn what_does_not_fit_tagged_goes_untagged_and_what_does_not_fit_at_all_is_an_error() {
    let (frames, result) =
        exchange(SendMessage::new(Content::text("x".repeat(1000)), tag(), 1000).unwrap(), |_| {
            "ACK TEXT 1000 bytes".into()
        });
    assert_eq!((frames[0].ty, result.map(|d| d.tagged)), (FrameType::TEXT, Ok(false)));
    let error = SendMessage::new(Content::text("x".repeat(1001)), tag(), 1000).unwrap_err();
    assert_eq!(error, SendError::TooLarge { len: 1001, max: 1000 });
    let bad = Some(Tag { message_id: Some("a b".into()), reply_to: None });
    assert_eq!(SendMessage::new(Content::text(""), bad, 1000).unwrap_err(), SendError::BadId("a b".into()));
}

#[test]
fn a_large_message_is_not_copied_and_a_file_carries_its_name() {
    let data = contents(100_000);
    let mut send = SendMessage::new(Content::file("n.bin", data.clone()), None, DEFAULT_MAX_FRAME).unwrap();
    let Step::Write(head) = send.step() else { panic!() };
    assert_eq!(head, Bytes::from([&header(FrameType::FILE, 7 + 100_000)[..], b"\0\x05n.bin"].concat()));
    assert!(matches!(send.step(), Step::Write(bytes) if bytes.as_ptr() == data.as_ptr()));
}
