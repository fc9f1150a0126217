//! A registry with its beacon, and nodes of it, in one process over loopback.
#![allow(dead_code, clippy::unwrap_used)]

use pilot::{Listener, Node, NodeConfig, NodeEvent, Stream};
use pilot_proto::crypto::sha256;
use pilot_rendezvous::{Config, Server};
use std::time::Duration;
use tokio::sync::broadcast;

/// Longest any step of a test may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub async fn rendezvous() -> Server {
    Server::start(Config::loopback()).await.unwrap()
}

/// Starts a server on addresses that were free a moment ago: another test's connection may hold one for an instant.
pub async fn restart(config: Config) -> Server {
    within(async {
        loop {
            match Server::start(config.clone()).await {
                Ok(server) => return server,
                Err(pilot_rendezvous::StartError::Bind { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

pub fn config(server: &Server) -> NodeConfig {
    NodeConfig {
        registry: server.registry_addr().to_string(),
        beacons: vec![server.beacon_addr().to_string()],
        listen: "127.0.0.1:0".parse().unwrap(),
        ..NodeConfig::default()
    }
}

pub async fn node(config: NodeConfig) -> Node {
    within(Node::start(config)).await.unwrap()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it takes too long")
}

/// Waits for an event with this name.
pub async fn event(events: &mut broadcast::Receiver<NodeEvent>, name: &str) -> NodeEvent {
    within(async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == name => return event,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("{name} never came: {error}"),
            }
        }
    })
    .await
}

/// Sends everything back, closing in order.
pub fn serve_echo(mut listener: Listener) {
    tokio::spawn(async move {
        while let Some(stream) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
}

async fn echo(stream: Stream) {
    let (mut reader, mut writer) = stream.split();
    while let Some(bytes) = reader.read().await {
        if writer.write(bytes).await.is_err() {
            return;
        }
    }
    writer.finish();
}

/// `len` bytes that repeat only after a long time.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&state.to_be_bytes());
    }
    out.truncate(len);
    out
}

/// Writes `bytes` and reads as many back at the same time; compares the hashes.
pub async fn echo_round(stream: Stream, bytes: Vec<u8>) {
    let want = sha256(&bytes);
    let len = bytes.len();
    let (mut reader, mut writer) = stream.split();
    let writing = tokio::spawn(async move {
        writer.write(bytes.into()).await.unwrap();
        writer
    });
    let mut back = Vec::with_capacity(len);
    while back.len() < len {
        let more = within(reader.read()).await.expect("the stream ended early");
        back.extend_from_slice(&more);
    }
    assert_eq!(back.len(), len);
    assert!(sha256(&back) == want, "the bytes came back changed");
    drop(writing.await.unwrap());
}

/// User and system time of this process.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
