//! The golden cases of `tests/vectors/`: packets, addresses, frames, keys, beacon messages.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use pilot_proto::crypto::{self, Identity, SessionKey, TunnelSecret};
use pilot_proto::tunnel::replay::{Epochs, Refused, Verdict, Window};
use pilot_proto::tunnel::session::{Fault, Session};
use pilot_proto::wire::addr::{AddrError, SocketAddr as PilotSocketAddr};
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::frame::{self, Frame, FrameError, Pils};
use pilot_proto::wire::packet::{Header, Packet, PacketError};
use pilot_proto::{Addr, NodeId};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Instant;

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn packet_vectors() -> Value {
    load(include_str!("vectors/packet.json"))
}

fn tunnel_vectors() -> Value {
    load(include_str!("vectors/tunnel.json"))
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_else(|| panic!("hex text expected, found {value}"));
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value).try_into().unwrap()
}

fn list(value: &Value) -> &[Value] {
    let list = value.as_array().unwrap();
    assert!(!list.is_empty());
    list
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn address_error_kind(error: &AddrError) -> &'static str {
    match error {
        AddrError::Shape(_) => "shape",
        AddrError::Network { .. } => "network",
        AddrError::Groups(_) => "groups",
        AddrError::GroupLen(_) => "group-len",
        AddrError::Hex(_) => "hex",
        AddrError::Mismatch { .. } => "mismatch",
        AddrError::NoPort(_) => "no-port",
        AddrError::Port { .. } => "port",
    }
}

#[test]
fn addresses_parse_print_and_are_refused_for_the_right_reason() {
    let all = packet_vectors();
    for case in list(&all["addresses"]["canonical"]) {
        let addr: Addr = text(&case["text"]).parse().unwrap();
        assert_eq!(u64::from(addr.network), number(&case["network"]));
        assert_eq!(u64::from(addr.node), number(&case["node"]));
        assert_eq!(addr.to_string(), text(&case["text"]));
        assert_eq!(addr.to_bytes().to_vec(), unhex(&case["bytes"]));
        assert_eq!(Addr::from_slice(&unhex(&case["bytes"])), addr);
    }
    for case in list(&all["addresses"]["accepted_but_not_canonical"]) {
        let addr: Addr = text(&case["text"]).parse().unwrap();
        assert_eq!(addr.to_string(), text(&case["canonical"]));
    }
    for case in list(&all["addresses"]["invalid"]) {
        let error = text(&case["text"]).parse::<Addr>().unwrap_err();
        assert_eq!(address_error_kind(&error), text(&case["error"]), "{case}");
    }
    for case in list(&all["addresses"]["socket_canonical"]) {
        let at: PilotSocketAddr = text(&case["text"]).parse().unwrap();
        assert_eq!(u64::from(at.port), number(&case["port"]));
        assert_eq!(u64::from(at.addr.node), number(&case["node"]));
        assert_eq!(at.to_string(), text(&case["text"]));
    }
    for case in list(&all["addresses"]["socket_accepted_but_not_canonical"]) {
        let at: PilotSocketAddr = text(&case["text"]).parse().unwrap();
        assert_eq!(at.to_string(), text(&case["canonical"]));
    }
    for case in list(&all["addresses"]["socket_invalid"]) {
        let error = text(&case["text"]).parse::<PilotSocketAddr>().unwrap_err();
        assert_eq!(address_error_kind(&error), text(&case["error"]), "{case}");
    }
}

#[test]
fn packets_encode_and_decode_to_the_golden_bytes() {
    let all = packet_vectors();
    for case in list(&all["packets"]) {
        let header = Header {
            flags: number(&case["flags"]) as u8,
            protocol: number(&case["protocol"]) as u8,
            src: text(&case["src"]).parse().unwrap(),
            dst: text(&case["dst"]).parse().unwrap(),
            src_port: number(&case["src_port"]) as u16,
            dst_port: number(&case["dst_port"]) as u16,
            seq: number(&case["seq"]) as u32,
            ack: number(&case["ack"]) as u32,
            window: number(&case["window"]) as u16,
        };
        let (payload, wire) = (unhex(&case["payload"]), unhex(&case["wire"]));
        let mut out = vec![0xEE];
        header.emit(&payload, &mut out).unwrap();
        assert_eq!(out[1..], wire[..], "{}", case["name"]);
        assert_eq!(out[31..35], unhex(&case["checksum"])[..]);
        assert_eq!(Packet::parse(&wire), Ok(Packet { header, payload: &payload }));
    }
    for case in list(&all["invalid_packets"]) {
        let kind = match Packet::parse(&unhex(&case["wire"])).unwrap_err() {
            PacketError::TooShort(_) => "short",
            PacketError::Truncated { .. } => "truncated",
            PacketError::Checksum => "checksum",
            PacketError::Version(_) => "version",
            PacketError::PayloadTooLarge(_) => "payload",
        };
        assert_eq!(kind, text(&case["error"]), "{}", case["name"]);
    }
    let trailing = &all["valid_with_trailing_bytes"];
    let wire = unhex(&trailing["wire"]);
    assert_eq!(Packet::parse(&wire).unwrap().payload, unhex(&trailing["payload"]));
    let oversized = Header::default().emit(&[0; 65_536], &mut Vec::new());
    assert_eq!(oversized, Err(PacketError::PayloadTooLarge(65_536)));
}

struct Node {
    id: NodeId,
    secret: TunnelSecret,
    identity: Identity,
}

fn node(all: &Value, name: &str) -> Node {
    let n = &all["nodes"][name];
    let secret = TunnelSecret::from_bytes(&array(&n["x25519_private"])).unwrap();
    assert_eq!(secret.public_key()[..], unhex(&n["x25519_public"])[..]);
    let identity = Identity::from_seed(array(&n["ed25519_seed"])).unwrap();
    assert_eq!(identity.public_key()[..], unhex(&n["ed25519_public"])[..]);
    Node { id: number(&n["node_id"]) as u32, secret, identity }
}

fn golden_key(all: &Value) -> [u8; 32] {
    array(&all["key_derivation"]["aes_256_gcm_key"])
}

#[test]
fn both_sides_derive_the_golden_session_key() {
    let all = tunnel_vectors();
    let (a, b) = (node(&all, "a"), node(&all, "b"));
    // The key itself stays inside; what it seals shows that it is the golden one.
    let golden = SessionKey::from_bytes(&golden_key(&all)).unwrap();
    for derived in [a.secret.session_key(b.secret.public_key()), b.secret.session_key(a.secret.public_key())]
    {
        let mut text = *b"some packet";
        let tag = golden.seal([7; 12], b"aad", &mut text).unwrap();
        let mut sealed = [&text[..], &tag[..]].concat();
        assert_eq!(derived.unwrap().open([7; 12], b"aad", &mut sealed).unwrap(), b"some packet");
    }
    assert!(a.secret.session_key(&[0; 32]).is_none(), "an all-zero secret is refused");
}

#[test]
fn key_exchange_frames_are_built_and_judged() {
    let all = tunnel_vectors();
    for case in list(&all["pila"]) {
        let n = node(&all, text(&case["sender"]));
        let signed = frame::pila_signed(n.id, n.secret.public_key());
        assert_eq!(signed[..], unhex(&case["signed_message"])[..]);
        let signature = n.identity.sign(&signed);
        let built = frame::pila(n.id, n.secret.public_key(), n.identity.public_key(), &signature);
        assert_eq!(built[..], unhex(&case["frame"])[..]);
    }
    let judge = |bytes: &[u8], registered: &[u8; 32]| match Frame::parse(bytes) {
        Err(FrameError::TooShort { kind: "PILA", .. }) => "short",
        Ok(Frame::Pila(pila)) if pila.ed25519 != registered => "key-mismatch",
        Ok(Frame::Pila(pila)) => {
            let signed = frame::pila_signed(pila.node, pila.x25519);
            if crypto::verify(registered, &signed, pila.signature) { "ok" } else { "bad-signature" }
        }
        other => panic!("{other:?}"),
    };
    for case in list(&all["pila_invalid"]) {
        let registered = array(&case["registry_ed25519_public"]);
        assert_eq!(judge(&unhex(&case["frame"]), &registered), text(&case["error"]), "{}", case["name"]);
    }
    let registered = array(&all["nodes"]["a"]["ed25519_public"]);
    assert_eq!(judge(&unhex(&all["pila_trailing_bytes"]["frame"]), &registered), "ok");
    for case in list(&all["pilk"]) {
        let n = node(&all, text(&case["sender"]));
        assert_eq!(frame::pilk(n.id, n.secret.public_key())[..], unhex(&case["frame"])[..]);
    }
    assert_eq!(Frame::parse(&unhex(&all["pilp"]["frame"])), Ok(Frame::Pilp));
}

fn session(all: &Value) -> Session {
    let key = SessionKey::from_bytes(&golden_key(all)).unwrap();
    Session::new(key, [0; 32], true, [0; 4], Instant::now())
}

fn open(session: &mut Session, bytes: &mut [u8]) -> Result<Vec<u8>, &'static str> {
    let header = match Frame::parse(bytes) {
        Ok(Frame::Pils(header)) => header,
        Err(FrameError::TooShort { kind: "PILS", .. }) => return Err("short"),
        other => panic!("{other:?}"),
    };
    match session.open(Instant::now(), &header, &mut bytes[frame::PILS_HEADER_LEN..]) {
        Ok((plain, _)) => Ok(plain.to_vec()),
        Err(error) if error.fault == Fault::Decrypt => Err("aead"),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn encrypted_packets_seal_to_the_golden_bytes_and_open() {
    let all = tunnel_vectors();
    for case in list(&all["pils"]) {
        let header = Pils {
            node: node(&all, text(&case["sender"])).id,
            prefix: array(&case["nonce_prefix"]),
            counter: number(&case["counter"]),
        };
        assert_eq!(header.nonce()[..], unhex(&case["nonce"])[..]);
        let mut plain = unhex(&case["plaintext"]);
        let key = SessionKey::from_bytes(&golden_key(&all)).unwrap();
        let tag = key.seal(header.nonce(), &unhex(&case["aad"]), &mut plain).unwrap();
        let sealed = [&header.header()[..], &plain[..], &tag[..]].concat();
        assert_eq!(sealed, unhex(&case["frame"]), "{}", case["name"]);
        let mut frame = sealed;
        assert_eq!(open(&mut session(&all), &mut frame), Ok(unhex(&case["plaintext"])), "{}", case["name"]);
    }
}

#[test]
fn a_session_seals_frames_from_counter_1_in_place() {
    let all = tunnel_vectors();
    let case = &all["pils"][0];
    let key = SessionKey::from_bytes(&golden_key(&all)).unwrap();
    let mut session = Session::new(key, [0; 32], true, array(&case["nonce_prefix"]), Instant::now());
    let mut frame = vec![0xAB; 9 + frame::PILS_HEADER_LEN];
    frame.extend_from_slice(&unhex(&case["plaintext"]));
    assert!(session.seal(5, &mut frame, 9));
    assert_eq!(frame[..9], [0xAB; 9]);
    assert_eq!(frame[9..], unhex(&case["frame"])[..]);
}

#[test]
fn forged_encrypted_packets_do_not_open() {
    let all = tunnel_vectors();
    for case in list(&all["pils_invalid"]) {
        let mut frame = unhex(&case["frame"]);
        if text(&case["error"]) == "no-key" {
            // Which session a frame belongs to is the engine's business; here: it names another node.
            let Ok(Frame::Pils(header)) = Frame::parse(&frame) else { panic!() };
            assert_ne!(u64::from(header.node), number(&case["session_node_id"]));
            continue;
        }
        assert_eq!(open(&mut session(&all), &mut frame), Err(text(&case["error"])), "{}", case["name"]);
    }
    for case in list(&all["pils_bad_inner"]) {
        let plain = open(&mut session(&all), &mut unhex(&case["frame"])).unwrap();
        assert!(Packet::parse(&plain).is_ok(), "{}", case["name"]);
    }
}

#[test]
fn replay_windows_judge_as_the_golden_sequences() {
    let all = tunnel_vectors();
    for name in ["replay_window", "replay_window_counter_zero"] {
        let mut window = Window::default();
        let mut epochs = Epochs::default();
        let cases = list(&all[name]["counters"]).iter().zip(list(&all[name]["results"]));
        for (counter, result) in cases {
            let (verdict, epoch) = match text(result) {
                "ok" => (Verdict::Fresh, None),
                "replay" => (Verdict::Replay, Some(Refused::Replay)),
                "outside-window" => (Verdict::Outside, Some(Refused::Outside)),
                other => panic!("{other}"),
            };
            assert_eq!(window.check(number(counter)), verdict, "{name}: {counter}");
            assert_eq!(epochs.check([9; 4], number(counter)).err(), epoch, "{name}: {counter}");
        }
    }
}

#[test]
fn beacon_messages_round_trip_and_bad_ones_are_refused() {
    let all = load(include_str!("vectors/beacon.json"));
    for case in list(&all["messages"]) {
        let bytes = unhex(&case["hex"]);
        let f = &case["fields"];
        if bytes.starts_with(b"PIL") {
            assert_eq!(Frame::parse(&bytes), Ok(Frame::Pilp));
            continue;
        }
        assert_eq!(u64::from(bytes[0]), number(&f["type"]));
        let message = Message::parse(&bytes).unwrap();
        let id = |field: &str| number(&f[field]) as u32;
        let inner = |frame: &[u8]| {
            if let Some(magic) = f["inner_magic"].as_str() {
                assert_eq!(&frame[..4], magic.as_bytes());
                assert_eq!(frame.len() as u64, number(&f["inner_len"]));
            }
            if f["inner"].is_string() {
                assert_eq!(frame, unhex(&f["inner"]));
            }
        };
        match message {
            Message::Discover { node, key } => {
                assert_eq!(node, id("node_id"));
                assert_eq!(
                    key.map(|k| k.to_vec()),
                    f["public_key"].is_string().then(|| unhex(&f["public_key"]))
                );
            }
            Message::DiscoverReply(addr) | Message::PunchCommand(addr) => {
                assert_eq!(addr, SocketAddr::new(text(&f["ip"]).parse().unwrap(), number(&f["port"]) as u16));
            }
            Message::PunchRequest { requester, target } => {
                assert_eq!((requester, target), (id("requester"), id("target")));
            }
            Message::Relay { from, to, frame } => {
                assert_eq!((from, to), (id("sender"), id("dest")));
                inner(frame);
            }
            Message::RelayDeliver { from, frame } => {
                assert_eq!(from, id("sender"));
                inner(frame);
            }
            Message::Sync { beacon, nodes } => {
                assert_eq!(beacon, id("beacon_id"));
                let ids: Vec<u64> =
                    nodes.chunks(4).map(|n| u32::from_be_bytes(n.try_into().unwrap()).into()).collect();
                assert_eq!(ids, f["nodes"].as_array().unwrap().iter().map(number).collect::<Vec<_>>());
            }
            Message::DiscoverEx { node } => assert_eq!(node, id("node_id")),
            Message::RelayDeliverDest { from, to, frame } => {
                assert_eq!((from, to), (id("sender"), id("dest")));
                inner(frame);
            }
            Message::Notify { kind } => assert_eq!(u64::from(kind), number(&f["kind"])),
        }
        let mut out = Vec::new();
        message.emit(&mut out);
        // The grant after a punch request is not ours to send.
        assert_eq!(out[..], bytes[..out.len()], "{}", case["name"]);
        assert!(out.len() == bytes.len() || f["signature"].is_string(), "{}", case["name"]);
    }
    let outcome = |name: &str| {
        let case = list(&all["invalid"]).iter().find(|c| c["name"] == name).unwrap();
        Message::parse(&unhex(&case["hex"])).is_ok()
    };
    for refused in [
        "discover_short",
        "punch_command_empty",
        "punch_command_bad_ip_len",
        "punch_command_truncated",
        "unknown_type",
    ] {
        assert!(!outcome(refused), "{refused}");
    }
    for taken in ["discover_long", "punch_request_unknown_target", "notify_unknown_kind"] {
        assert!(outcome(taken), "{taken}");
    }
}

#[test]
fn what_a_node_signs_for_the_registry_is_signed_to_the_golden_bytes() {
    use pilot_proto::registry::challenge;
    let all = tunnel_vectors();
    let identity = Identity::from_seed(array(&all["nodes"]["a"]["ed25519_seed"])).unwrap();
    let cases = list(&all["signatures"]);
    let new_key = text(&cases[2]["text"]).rsplit(':').next().unwrap();
    let ours = [
        challenge::own("set_visibility", 5),
        challenge::pair("resolve", 5, 3),
        challenge::rotate(5, new_key),
    ];
    assert_eq!(cases.len(), ours.len());
    for (case, ours) in cases.iter().zip(ours) {
        assert_eq!(ours, text(&case["text"]));
        assert_eq!(identity.sign_text(&ours), text(&case["signature"]), "{ours}");
    }
}
