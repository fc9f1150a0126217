//! Frames recorded between reference 1.18.0 programs, replayed through the codec.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use pilot_ipc::frame::{Decoder, Frame, OutFrame};
use pilot_ipc::request::{Malformed, Request};
use pilot_ipc::{Command, push};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/ipc.json")).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn decode(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::default();
    decoder.extend(bytes);
    let frame = decoder.next_frame().unwrap().expect("a whole frame");
    assert_eq!(decoder.buffered(), 0, "nothing follows the frame");
    frame
}

/// The recorded request and its first reply.
fn exchanges() -> Vec<(String, Vec<u8>, Option<Frame>)> {
    let vectors = vectors();
    let mut out = Vec::new();
    for e in vectors["exchanges"].as_array().unwrap() {
        let Some(hex) = e["request"]["hex"].as_str() else { continue };
        let reply = e["replies"][0]["hex"].as_str().map(|hex| decode(&unhex(hex)));
        out.push((e["meaning"].as_str().unwrap().to_owned(), unhex(hex), reply));
    }
    assert!(out.len() > 180, "the recordings are there");
    out
}

/// Texts of errors that the decoding of a request alone decides.
fn is_decoding_error(text: &str) -> bool {
    text.starts_with("unknown command: ")
        || text.contains(": missing ")
        || text.contains(": unknown ")
        || text.contains(": truncated ")
        || text.contains(": payload must be ")
        || text == "unbind: port is required"
}

#[test]
fn malformed_requests_get_the_recorded_error_and_no_other_request_does() {
    for (meaning, request, reply) in exchanges() {
        let frame = decode(&request);
        let recorded = reply.and_then(|r| (r.command == push::ERROR).then(|| text_of(&r)));
        // Extension: the reference does not know Finish.
        if frame.command == Command::Finish as u8 {
            continue;
        }
        // The daemon looks at the policy, not the decoder.
        let by_decoder = recorded.filter(|t| is_decoding_error(t) && !t.ends_with("missing policy JSON"));
        match (Request::parse(frame.command, frame.body), by_decoder) {
            (Err(Malformed::Answer(text)), Some(recorded)) => assert_eq!(text, recorded, "{meaning}"),
            (Ok(_), None) => {}
            (got, want) => panic!("{meaning}: decoded to {got:?}, recorded {want:?}"),
        }
    }
}

fn text_of(error: &Frame) -> String {
    assert_eq!(error.body[..2], [0, 1], "the only error code");
    String::from_utf8(error.body[2..].to_vec()).unwrap()
}

#[test]
fn recorded_requests_are_encoded_byte_for_byte() {
    let vectors = vectors();
    let from_clients =
        vectors["client_frames"].as_array().unwrap().iter().map(|c| {
            (c["meaning"].as_str().unwrap().to_owned(), unhex(c["request"]["hex"].as_str().unwrap()))
        });
    let mut compared = 0;
    for (meaning, bytes) in exchanges().into_iter().map(|(m, r, _)| (m, r)).chain(from_clients) {
        let frame = decode(&bytes);
        let Ok(request) = Request::parse(frame.command, frame.body.clone()) else { continue };
        // Accepted, but never written by us: bytes after the fixed fields, an absent optional network, a visibility of 2.
        let lenient =
            ["trailing", "no netid", "visibility 2", "status no"].iter().any(|m| meaning.contains(m));
        let (command, body) = request.encode();
        assert_eq!(command as u8, frame.command, "{meaning}");
        if lenient {
            assert_eq!(Request::parse(command as u8, body), Ok(request), "{meaning}");
            continue;
        }
        assert_eq!(OutFrame::new(command as u8, &[], body).to_vec(), bytes, "{meaning}");
        compared += 1;
    }
    assert!(compared > 130, "only {compared} frames compared");
}

#[test]
fn replies_carry_the_byte_of_the_command_table() {
    for (meaning, request, reply) in exchanges() {
        let (Some(command), Some(reply)) = (Command::from_byte(request[4]), reply) else { continue };
        if reply.command != push::ERROR {
            assert_eq!(Some(reply.command), command.reply(), "{meaning}");
        }
    }
}

#[test]
fn error_frames_are_written_as_recorded() {
    let mut seen = 0;
    for (meaning, _, reply) in exchanges() {
        if let Some(reply) = reply.filter(|r| r.command == push::ERROR) {
            let written = OutFrame::error(&text_of(&reply)).to_vec();
            assert_eq!(decode(&written), reply, "{meaning}");
            seen += 1;
        }
    }
    assert!(seen > 80, "only {seen} errors");
}

#[test]
fn framing_limits_are_those_recorded() {
    for case in vectors()["framing"].as_array().unwrap() {
        let meaning = case["meaning"].as_str().unwrap();
        let mut decoder = Decoder::default();
        match (case["request_hex"].as_str(), case["request_hex_prefix"].as_str()) {
            (Some(hex), _) => decoder.extend(&unhex(hex)),
            (None, Some(prefix)) => {
                decoder.extend(&unhex(prefix));
                decoder.extend(&vec![0x7A; (1 << 20) - 1]);
            }
            _ => panic!("{meaning}: no request"),
        }
        let outcome = case["outcome"].as_str().unwrap();
        match outcome {
            "nothing" | "EOF" => assert_eq!(decoder.next_frame(), Ok(None), "{meaning}"),
            "close" => assert!(decoder.next_frame().is_err(), "{meaning}"),
            "reply, connection stays open" => {
                let frame = decoder.next_frame().unwrap().unwrap();
                assert_eq!((frame.command, frame.body.len()), (0xEE, (1 << 20) - 1), "{meaning}");
            }
            "InfoOK then EOF" => assert_eq!(decoder.next_frame().unwrap().unwrap().command, 0x0D),
            "three HealthOK frames" => {
                for _ in 0..3 {
                    let frame = decoder.next_frame().unwrap().unwrap();
                    assert_eq!(frame, Frame { command: 0x21, body: Bytes::new() });
                }
            }
            other => panic!("unknown outcome {other}"),
        }
    }
}
