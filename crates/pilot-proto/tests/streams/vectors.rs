//! Golden cases of `tests/vectors/stream.json`, replayed against our receiver.

use crate::script::{ACK, FIN, Pkt, RST, SYN, Script};
use pilot_proto::stream::{Config, ConnId, StreamEvent};
use pilot_proto::wire::packet::protocol;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/stream.json")).expect("vectors parse")
}

fn unhex(value: &Value) -> Vec<u8> {
    let hex = value.as_str().expect("hex digits");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

fn frame(step: &Value) -> Pkt {
    if step["frame_hex"].is_string() {
        return Pkt::parse(unhex(&step["frame_hex"]).strip_prefix(b"PILT").expect("plaintext frame"));
    }
    // Long payloads are given by rule: the byte at stream offset k is k mod 251, k = seq - 1 + index.
    assert_eq!(step["payload"], "pattern");
    let mut bytes = unhex(&step["header_hex"]);
    let seq = step["seq"].as_u64().expect("seq");
    let len = step["payload_len"].as_u64().expect("length");
    bytes.extend((seq - 1..seq - 1 + len).map(|k| (k % 251) as u8));
    Pkt::parse(&bytes)
}

/// Our side with an echo application, told in the reference's numbers (its initial sequence number is 0).
struct Echo {
    script: Script,
    iss: HashMap<u16, u32>,
    conns: HashMap<u16, ConnId>,
}

impl Echo {
    fn new() -> Echo {
        let mut script = Script::new(Config::default());
        script.streams.unlisten(4242);
        Echo { script, iss: HashMap::new(), conns: HashMap::new() }
    }

    /// Feeds a packet of the peer; returns our answers with our numbers shifted to start at 0.
    fn feed(&mut self, mut pkt: Pkt) -> Vec<Pkt> {
        let port = pkt.header.src_port;
        let iss = self.iss.get(&port).copied();
        if pkt.header.flags & ACK != 0 || pkt.header.ack != 0 {
            pkt.header.ack = pkt.header.ack.wrapping_add(iss.unwrap_or(0));
        }
        self.script.feed(pkt.header, &pkt.payload);
        let mut answers = self.script.drain();
        for event in std::mem::take(&mut self.script.events) {
            if let StreamEvent::Incoming { conn, remote_port, .. } = event {
                self.conns.insert(remote_port, conn);
            }
        }
        // The application answers after the transport has had its say, as in the captures.
        if let Some(&conn) = self.conns.get(&port) {
            let data = self.script.read_all(conn);
            if !data.is_empty() {
                let _ = self.script.streams.write(self.script.now, conn, data.into());
            }
        }
        answers.extend(self.script.drain());
        for answer in &mut answers {
            if answer.header.flags == SYN | ACK {
                self.iss.insert(port, answer.header.seq);
            }
            if answer.header.flags != RST {
                answer.header.seq = answer.header.seq.wrapping_sub(self.iss.get(&port).copied().unwrap_or(0));
            }
        }
        answers
    }
}

/// Everything but data: flags, numbers, SACK list, and whether the window is open.
type Control = (u8, u32, u32, bool, Option<Vec<(u32, u32)>>);

fn control(pkts: &[Pkt]) -> Vec<Control> {
    pkts.iter()
        .filter(|p| !p.is_data())
        // Our own answer to a packet of no connection, where the reference is silent.
        .filter(|p| p.payload != b"PSNC")
        .map(|p| (p.header.flags, p.header.seq, p.header.ack, p.header.window > 0, p.sack()))
        .collect()
}

fn data(pkts: &[Pkt]) -> Vec<u8> {
    pkts.iter().filter(|p| p.is_data()).flat_map(|p| p.payload.clone()).collect()
}

/// Probes whose outcome is the receiver's own choice, and better here: tested by name in `reference.rs`.
const OWN_WAY: [&str; 3] = ["misaligned_overlap", "sack_lookalike", "zero_window"];

#[test]
fn probes_are_answered_as_the_reference_answers_them() {
    let all = vectors();
    let probes = all["probes"].as_array().expect("probes");
    let mut echo = Echo::new();
    let mut replayed = 0;
    for probe in probes {
        let name = probe["name"].as_str().expect("name");
        let steps = probe["steps"].as_array().expect("steps");
        if OWN_WAY.contains(&name) || steps.iter().any(|s| s["proto"] == u64::from(protocol::CONTROL)) {
            continue;
        }
        replayed += 1;
        println!("probe {name}");
        if name == "sack_lookalike_split" {
            // Its connection is opened by the look-alike probe before it.
            echo.feed(frame(
                &probes.iter().find(|p| p["name"] == "sack_lookalike").expect("probe")["steps"][0],
            ));
        }
        let mut at = 0;
        while at < steps.len() {
            let step = &steps[at];
            at += 1;
            if step["dir"] == "silence" {
                let time = Duration::from_millis(step["for_ms"].as_u64().expect("ms"));
                assert_eq!(echo.script.wait(time), [], "{name}: silence expected");
                continue;
            }
            assert_eq!(step["dir"], "to_ref", "{name}: step {at}");
            let answers = echo.feed(frame(step));
            let mut expected = Vec::new();
            while let Some(answer) = steps.get(at).filter(|s| s["dir"] == "from_ref") {
                expected.push(frame(answer));
                at += 1;
            }
            // An answer of the application alone tells nothing about the transport; the echo may leave with it.
            assert_eq!(control(&answers), control(&expected), "{name}: before step {at}");
            assert_eq!(data(&answers), data(&expected), "{name}: before step {at}");
        }
    }
    assert_eq!(replayed, 13);
}

#[test]
fn captured_conversations_are_answered_like_the_reference_answered() {
    let all = vectors();
    for trace in all["traces"].as_array().expect("traces") {
        let name = trace["name"].as_str().expect("name");
        println!("trace {name}");
        let mut echo = Echo::new();
        let start = echo.script.now;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for packet in trace["packets"].as_array().expect("packets") {
            let pkt = frame(packet);
            if packet["from"] == "B" {
                theirs.push(pkt);
                continue;
            }
            if packet["dropped_in_network"] == true {
                continue;
            }
            let at = start + Duration::from_secs_f64(packet["t_ms"].as_f64().expect("time") / 1000.0);
            echo.script.now = echo.script.now.max(at);
            ours.extend(echo.feed(pkt));
        }
        let lists = |pkts: &[Pkt]| pkts.iter().filter_map(Pkt::sack).collect::<Vec<_>>();
        assert_eq!(lists(&ours), lists(&theirs), "{name}: SACK lists");
        let last_ack = |pkts: &[Pkt]| pkts.iter().rfind(|p| p.header.flags & FIN != 0).map(|p| p.header.ack);
        assert_eq!(last_ack(&ours), last_ack(&theirs), "{name}: answer to the FIN");
        let special = |pkts: &[Pkt]| {
            pkts.iter().map(|p| p.header.flags).filter(|f| f & (SYN | FIN | RST) != 0).collect::<Vec<_>>()
        };
        assert_eq!(special(&ours), special(&theirs), "{name}: opening and closing");
        assert_eq!(data(&ours), data(&theirs), "{name}: echoed bytes");
    }
}

#[test]
fn payloads_are_told_apart_as_the_codec_cases_say() {
    for case in vectors()["sack_codec"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("name");
        let payload = unhex(&case["payload_hex"]);
        let mut script = Script::new(Config { extensions: false, ..Config::default() });
        let (conn, _) = script.open(100, 512);
        let sent = script.write(conn, &payload);
        let looks_like_a_list = case["valid"] == true;
        // Data that a reference would take for a list never leaves as such: its first byte goes alone.
        let first = if looks_like_a_list { 1 } else { payload.len() };
        assert_eq!(sent[0].payload.len(), first, "{name}");
        assert_eq!(data(&sent), payload, "{name}");
    }
}
