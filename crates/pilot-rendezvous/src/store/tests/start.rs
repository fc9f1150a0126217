//! How long a start takes with many nodes in the store (docs/benchmarks.md).

use super::node;
use crate::store::sqlite::Sqlite;
use crate::store::{Store as _, Write};
use crate::{Config, Server, StoreConfig};
use pilot_disk::Disk;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const NODES: u32 = 100_000;
/// A start takes a fraction of a second; this leaves room for a machine that does other things.
const BOUND: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_with_100_000_nodes_starts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let mut store = Sqlite::open_on(&Disk::new(), &path, None).unwrap();
    for first in (1..=NODES).step_by(10_000) {
        let nodes = (first..first + 10_000).map(node);
        // As many trust pairs as nodes.
        let pairs = (first..first + 10_000).map(|a| Write::Trust { a, b: a + 1, present: true });
        store.commit(&nodes.chain(pairs).collect::<Vec<_>>()).unwrap();
    }
    drop(store);
    let began = Instant::now();
    let config = Config { store: StoreConfig::File(path.clone()), ..Config::loopback() };
    let server = Server::start(config).await.unwrap();
    let mut stream = TcpStream::connect(server.registry_addr()).await.unwrap();
    let body = br#"{"type":"lookup","node_id":99999}"#;
    stream.write_u32(body.len() as u32).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let took = began.elapsed();
    assert_eq!(server.stats().nodes_known as u32, NODES);
    let size = std::fs::metadata(&path).unwrap().len();
    println!("{NODES} nodes and trust pairs, {size} bytes: first answer {took:?} after the start");
    assert!(took < BOUND, "{took:?}");
    server.shutdown().await;
}
