//! A node that has nothing to do does nothing. Alone in its process, because it measures the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{config, cpu, echo_round, node, pattern, rendezvous, serve_echo, within};
use pilot::NodeConfig;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_nodes_use_no_processor_time_also_after_a_peer_died() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    let stream = within(a.dial(b.address(), 7)).await.unwrap();
    echo_round(stream, pattern(100_000)).await;
    let mut open = within(a.dial(b.address(), 7)).await.unwrap();

    let before = cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = cpu() - before;
    println!("idle for 2 s: {idle:?} of processor time");
    assert!(idle < Duration::from_millis(100), "{idle:?}");

    b.shutdown().await;
    drop(b);
    let _ = open.write("nobody reads this".into()).await;
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let dead = cpu() - before;
    println!("with a dead peer for 2 s: {dead:?} of processor time");
    assert!(dead < Duration::from_millis(100), "{dead:?}");
}
