//! What the demo shows, in order. Each step is a command a user could type, and checks what came of it.

use super::Report;
use super::lab::Lab;
use crate::args::value::human_bytes;
use crate::error::CliError;
use crate::output::Ctx;
use bytes::Bytes;
use pilot_ipc::{Client, ClientError, IpcListener};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Port of bob's service in the request/response step.
const SERVICE_PORT: u16 = 4000;

/// How long a request for trust may be on its way.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Runs all steps.
pub async fn run(ctx: &Ctx, lab: &Lab, report: &Report<'_>, file_mib: u64) -> Result<(), CliError> {
    rendezvous_and_agents(lab, report).await?;
    discovery_and_trust(lab, report).await?;
    ping(lab, report).await?;
    message(lab, report).await?;
    request(lab, report).await?;
    file(ctx, lab, report, file_mib).await
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn expect(holds: bool, what: &str, got: &Value) -> Result<(), CliError> {
    match holds {
        true => Ok(()),
        false => {
            Err(CliError::internal(format!("{what}: got {got}")).hint("everything was stopped and removed"))
        }
    }
}

async fn rendezvous_and_agents(lab: &Lab, report: &Report<'_>) -> Result<(), CliError> {
    let begun = Instant::now();
    let any = ["rendezvous", "start", "--registry-addr=127.0.0.1:0", "--beacon-addr=127.0.0.1:0"];
    let rendezvous = lab.start("rendezvous", &any).await?;
    let (registry, beacon) = (text(&rendezvous, "registry_addr"), text(&rendezvous, "beacon_addr"));
    report.step(
        "rendezvous",
        begun.elapsed(),
        &format!("registry {registry} (TCP), beacon {beacon} (UDP)"),
    )?;
    for who in ["alice", "bob"] {
        let socket = lab.socket(who).display().to_string();
        let settings =
            ["init", "--registry", &registry, "--beacon", &beacon, "--hostname", who, "--socket", &socket];
        lab.run(who, &settings).await?;
        let begun = Instant::now();
        let daemon = lab.start(who, &["daemon", "start", "--tags", "demo"]).await?;
        expect(daemon["hostname"] == who, "the name was not registered", &daemon)?;
        let address = text(&daemon, "address");
        report.step(
            "registration",
            begun.elapsed(),
            &format!("{who} is {address}, key made, name registered"),
        )?;
    }
    Ok(())
}

async fn discovery_and_trust(lab: &Lab, report: &Report<'_>) -> Result<(), CliError> {
    let begun = Instant::now();
    let found = lab.run("alice", &["find", "bob"]).await?;
    expect(found["hostname"] == "bob", "bob was not found", &found)?;
    report.step("discovery", begun.elapsed(), &format!("alice finds bob at {}", text(&found, "address")))?;

    let begun = Instant::now();
    lab.run("alice", &["handshake", "bob", "the demo"]).await?;
    // "sent" means on its way: bob's registry connection may need a moment to tell him.
    let asked = loop {
        let mut pending = lab.run("bob", &["pending"]).await?;
        let asked = pending["pending"][0].take();
        if asked["justification"] == "the demo" {
            break asked;
        }
        expect(begun.elapsed() < ARRIVAL, "the request did not arrive", &pending)?;
    };
    let alice = asked["node_id"].to_string();
    lab.run("bob", &["approve", &alice]).await?;
    let outcome = lab.run("alice", &["handshake", "bob", "--wait", "10s"]).await?;
    let trusted = ["trusted", "already_trusted"].contains(&text(&outcome, "status").as_str());
    expect(trusted, "trust did not come about", &outcome)?;
    report.step("trust", begun.elapsed(), "alice asks, bob sees \"the demo\" and approves, both trust")
}

async fn ping(lab: &Lab, report: &Report<'_>) -> Result<(), CliError> {
    let begun = Instant::now();
    let mut trips = [0.0; 2];
    for trip in &mut trips {
        let ping = lab.run("alice", &["ping", "bob", "--count", "1"]).await?;
        *trip = ping["results"][0]["rtt_ms"].as_f64().unwrap_or_default();
        expect(*trip > 0.0, "the probe was lost", &ping)?;
    }
    let info = lab.run("alice", &["info"]).await?;
    let encrypted = info["peer_list"].as_array().into_iter().flatten().any(|p| p["encrypted"] == true);
    expect(encrypted, "the tunnel is not encrypted", &info["peer_list"])?;
    let result = format!("round trips of {:.2} and {:.2} ms, tunnel encrypted", trips[0], trips[1]);
    report.step("ping", begun.elapsed(), &result)
}

async fn message(lab: &Lab, report: &Report<'_>) -> Result<(), CliError> {
    let body = json!({"task": "summarise", "pages": [1, 2, 3]});
    let begun = Instant::now();
    let sent =
        lab.run("alice", &["send-message", "bob", "--type", "json", "--data", &body.to_string()]).await?;
    let took = begun.elapsed();
    let inbox = lab.run("bob", &["inbox", "--latest", "--full"]).await?;
    let found = inbox["messages"].as_array().and_then(|m| m.first()).unwrap_or(&inbox);
    let landed: Value = serde_json::from_str(&text(found, "data")).unwrap_or_default();
    expect(landed == body, "the message did not land unchanged", &inbox)?;
    report.step("message", took, &format!("JSON in bob's inbox, \"{}\"", text(&sent, "ack")))
}

fn service_failed(error: ClientError) -> CliError {
    CliError::connection(format!("bob's service: {error}"))
}

/// Bob's service: adds up the numbers of one request.
async fn serve_one(client: &Client, mut listener: IpcListener) -> Result<(), CliError> {
    let Some(mut stream) = listener.accept().await else {
        return Err(CliError::connection("bob's service: the daemon went away"));
    };
    let mut request = Vec::new();
    while let Some(part) = stream.read().await {
        request.extend_from_slice(&part);
        // The request is complete as soon as it is one JSON value.
        let Ok(request) = serde_json::from_slice::<Value>(&request) else { continue };
        let sum: i64 = request["add"].as_array().into_iter().flatten().filter_map(Value::as_i64).sum();
        let answer = Bytes::from(json!({"sum": sum}).to_string());
        stream.write(answer).await.map_err(service_failed)?;
        break;
    }
    stream.close();
    client.flush().await;
    Ok(())
}

async fn request(lab: &Lab, report: &Report<'_>) -> Result<(), CliError> {
    let client = Client::connect(lab.socket("bob")).await.map_err(service_failed)?;
    let listener = client.listen(SERVICE_PORT).await.map_err(service_failed)?;
    let port = SERVICE_PORT.to_string();
    let ask = async {
        let begun = Instant::now();
        let answer = lab.run("alice", &["connect", "bob", &port, "--message", "{\"add\":[19,23]}"]).await?;
        Ok::<_, CliError>((begun.elapsed(), answer))
    };
    let ((), (took, answer)) = tokio::try_join!(serve_one(&client, listener), ask)?;
    expect(answer["response"] == "{\"sum\":42}", "the answer is wrong", &answer)?;
    report.step("request", took, "stream to bob's service: {\"add\":[19,23]} → {\"sum\":42}")
}

async fn file(ctx: &Ctx, lab: &Lab, report: &Report<'_>, mib: u64) -> Result<(), CliError> {
    let path = lab.dir().join("demo.bin");
    make_file(&path, mib).map_err(|e| CliError::io(format!("write {}", path.display()), &e))?;
    let name = path.display().to_string();
    let bob = text(&lab.run("alice", &["find", "bob"]).await?, "address");
    let begun = Instant::now();
    let sent = match ctx.json {
        true => lab.run("alice", &["send-file", &bob, &name]).await?,
        false => lab.run_showing_progress("alice", &["send-file", &bob, &name]).await?,
    };
    let took = begun.elapsed();
    let received = newest(&lab.home("bob").join(".pilot/received"))?;
    let same = same_content(&path, &received)
        .map_err(|e| CliError::io(format!("compare with {}", received.display()), &e))?;
    expect(same, "the received file differs", &sent)?;
    let digest = text(&sent, "sha256");
    let result = format!(
        "{} in {:.2} s, {:.0} Mbit/s, identical, SHA-256 {}…",
        human_bytes(mib << 20),
        took.as_secs_f64(),
        sent["throughput_mbps"].as_f64().unwrap_or_default(),
        digest.get(..16).unwrap_or(&digest)
    );
    report.step("file", took, &result)
}

/// A file whose every 8 bytes differ, so that a lost, doubled or misplaced piece shows.
fn make_file(path: &Path, mib: u64) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(File::create(path)?);
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..(mib << 20) / 8 {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        out.write_all(&state.to_le_bytes())?;
    }
    out.flush()
}

fn newest(dir: &Path) -> Result<PathBuf, CliError> {
    let entries = fs::read_dir(dir).map_err(|e| CliError::io(format!("read {}", dir.display()), &e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.sort();
    files.pop().ok_or_else(|| CliError::not_found(format!("no file in {}", dir.display())))
}

fn same_content(one: &Path, other: &Path) -> std::io::Result<bool> {
    if fs::metadata(one)?.len() != fs::metadata(other)?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(File::open(one)?), BufReader::new(File::open(other)?));
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}
