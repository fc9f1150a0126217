//! Honest nodes that come while the flood runs.

use crate::Outcome;
use crate::options::Options;
use bytes::Bytes;
use pilot::{Node, NodeConfig};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The echo service of a daemon.
const ECHO: u16 = 7;
/// Longest wait for one of them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts `--count` nodes, one after the other; each registers at `--registry`, reaches `--to` and has a byte echoed.
pub async fn newcomers(options: &Options) -> Outcome {
    let mut times = Vec::new();
    for _ in 0..options.get::<u32>("count")? {
        times.push(
            tokio::time::timeout(PATIENCE, one(options)).await.map_err(|_| "a newcomer took too long")??,
        );
    }
    Ok(Value::Array(times))
}

async fn one(options: &Options) -> Outcome {
    let config = NodeConfig {
        registry: options.get("registry")?,
        beacons: vec![options.get("beacon")?],
        public: true,
        ..NodeConfig::default()
    };
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let node = Node::start(config).await.map_err(|e| e.to_string())?;
    let start = ms(began);
    let mut stream = node.dial(options.get("to")?, ECHO).await.map_err(|e| format!("dial: {e}"))?;
    let connect = ms(began);
    stream.write(Bytes::from_static(b"?")).await.map_err(|e| format!("write: {e:?}"))?;
    stream.read().await.ok_or("no echo")?;
    let echo = ms(began);
    let relay = node.status().await.peers.iter().any(|peer| peer.relay);
    node.shutdown().await;
    Ok(json!({"registered_ms": start, "connected_ms": connect, "echo_ms": echo, "relay": relay}))
}
