//! What a hundred peers with a stream each cost a node while nothing is said. Alone in its process, because it measures the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{config, cpu, node, rendezvous, serve_echo, within};
use pilot::NodeConfig;
use std::time::Duration;

/// Peers of the node.
const PEERS: usize = 100;
/// Until what follows the opening of streams is over: paths are compared, sizes are searched.
const SETTLE: Duration = Duration::from_secs(10);
/// How long is measured: more than the distance of keepalives, 25 s.
const TIME: Duration = Duration::from_secs(30);
/// A twentieth of a processor for all nodes and the registry together, in a build without optimisation.
const BOUND: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_idle_peers_with_a_stream_each_cost_next_to_no_processor_time() {
    let server = rendezvous().await;
    let hub = node(config(&server)).await;
    let mut peers = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..PEERS {
        let peer = node(NodeConfig { public: true, ..config(&server) }).await;
        serve_echo(peer.listen(7).await.unwrap());
        let mut stream = within(hub.dial(peer.address(), 7)).await.unwrap();
        within(stream.write("hello".into())).await.unwrap();
        assert_eq!(within(stream.read()).await.unwrap(), "hello");
        streams.push(stream);
        peers.push(peer);
    }
    tokio::time::sleep(SETTLE).await;
    let sent = hub.status().await.counters.pkts_sent;
    let before = cpu();
    tokio::time::sleep(TIME).await;
    let (used, sent) = (cpu() - before, hub.status().await.counters.pkts_sent - sent);
    println!(
        "{} nodes, {PEERS} idle streams, {TIME:?}: {used:?} of processor time; the one with all of them sent {sent} packets",
        PEERS + 1
    );
    assert!(used < BOUND, "{used:?}");
    assert!(sent <= 5 * PEERS as u64, "{sent}");
}
