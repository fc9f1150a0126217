//! Load on a registry: `load [nodes] [connections] [store file]`. Starts a server of its own (in memory, or on the
//! file), registers the nodes, then sends heartbeats for five seconds, and prints both rates.
//!
//! It shares the processors with the server it measures.

use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use pilot_rendezvous::{Config, Server, StoreConfig};
use serde_json::{Value, json};
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bounds of this program.
const MAX_NODES: usize = 200_000;
const MAX_CONNECTIONS: usize = 1_000;
const HEARTBEAT_TIME: Duration = Duration::from_secs(5);

type Failure = Box<dyn Error + Send + Sync>;

async fn ask(stream: &mut TcpStream, request: &Value) -> Result<Value, Failure> {
    let body = serde_json::to_vec(request)?;
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(body);
    stream.write_all(&frame).await?;
    let mut body = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut body).await?;
    let answer: Value = serde_json::from_slice(&body)?;
    match answer.get("error") {
        Some(error) => Err(error.to_string().into()),
        None => Ok(answer),
    }
}

fn identity(number: usize) -> Option<Identity> {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    Identity::from_seed(seed)
}

/// Registers every `step`th node on one connection; returns their heartbeat requests.
async fn register(
    addr: SocketAddr,
    first: usize,
    step: usize,
    nodes: usize,
) -> Result<(TcpStream, Vec<Value>), Failure> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut heartbeats = Vec::new();
    for number in (first..nodes).step_by(step) {
        let identity = identity(number).ok_or("no key")?;
        let key = identity.public_key_base64();
        let signature = identity.sign_text(&challenge::register("127.0.0.1:4000", &key));
        let request = json!({
            "type": "register", "listen_addr": "127.0.0.1:4000", "public_key": key, "signature": signature,
            "owner": format!("{number}@example.com"), "version": "load",
        });
        let id = ask(&mut stream, &request).await?["node_id"].as_u64().ok_or("no node_id")? as u32;
        let signature = identity.sign_text(&challenge::own("heartbeat", id));
        heartbeats.push(json!({"type": "heartbeat", "node_id": id, "signature": signature}));
    }
    Ok((stream, heartbeats))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let nodes = args.next().map_or(Ok(5_000), |a| a.parse::<usize>())?.clamp(1, MAX_NODES);
    let connections = args.next().map_or(Ok(64), |a| a.parse::<usize>())?.clamp(1, MAX_CONNECTIONS);
    let store = args.next().map_or(StoreConfig::Memory, |file| StoreConfig::File(file.into()));
    let server = Server::start(Config { store, ..Config::loopback() }).await?;
    let addr = server.registry_addr();

    let start = Instant::now();
    let tasks: Vec<_> =
        (0..connections).map(|c| tokio::spawn(register(addr, c, connections, nodes))).collect();
    let mut ready = Vec::new();
    for task in tasks {
        ready.push(task.await??);
    }
    let took = start.elapsed().as_secs_f64();
    let commits = server.stats().commits;
    println!(
        "{nodes} registrations over {connections} connections: {:.0}/s, {commits} commits",
        nodes as f64 / took
    );

    let start = Instant::now();
    let tasks: Vec<_> = ready
        .into_iter()
        .map(|(mut stream, heartbeats)| {
            tokio::spawn(async move {
                let mut sent = 0u64;
                for request in heartbeats.iter().cycle() {
                    if start.elapsed() >= HEARTBEAT_TIME {
                        break;
                    }
                    ask(&mut stream, request).await?;
                    sent += 1;
                }
                Ok::<u64, Failure>(sent)
            })
        })
        .collect();
    let mut sent = 0;
    for task in tasks {
        sent += task.await??;
    }
    println!("{sent} heartbeats: {:.0}/s", sent as f64 / start.elapsed().as_secs_f64());
    println!("{:?}", server.stats());
    server.shutdown().await;
    Ok(())
}
