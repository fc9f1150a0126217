//! Floods over real sockets, small enough for every run: what counters say, what tables hold, and that honest peers
//! from elsewhere are served meanwhile. `scripts/flood.py` measures the large ones.
#![cfg(target_os = "linux")] // all of 127.0.0.0/8 is local there
#![allow(clippy::unwrap_used)]

mod common;

use common::{Client, Peer, SOON};
use pilot_rendezvous::{Config, Limits, Server, Stats};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

async fn until(server: &Server, what: &str, mut reached: impl FnMut(&Stats) -> bool) -> Stats {
    let wait = async {
        loop {
            let stats = server.stats();
            if reached(&stats) {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not reached: {what}: {:?}", server.stats()))
}

async fn connect(from: &str, to: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    Client(timeout(SOON, socket.connect(to)).await.unwrap().unwrap())
}

fn strict(limits: Limits) -> Config {
    Config { limits: Limits { exempt_loopback: false, ..limits }, ..Config::loopback() }
}

#[tokio::test]
async fn idle_and_half_open_connections_of_one_network_give_way_to_others() {
    let server = Server::start(strict(Limits { max_connections: 40, ..Limits::default() })).await.unwrap();
    let addr = server.registry_addr();
    let mut proven = connect("127.0.9.1", addr).await;
    let mut a = Peer::new(1);
    a.register(&mut proven).await;
    let mut held = Vec::new();
    for i in 0..200u32 {
        let mut flood = connect(&format!("127.0.1.{}", 1 + i % 250), addr).await;
        if i % 2 == 0 {
            // The beginning of a request that never comes.
            flood.0.write_all(&[0, 0, 4, 0, b'{']).await.unwrap();
        }
        held.push(flood);
    }
    let stats = until(&server, "evictions", |s| s.connections_evicted == 161).await;
    assert_eq!((stats.connections, stats.connections_refused_rate), (40, 0));
    let mut newcomer = connect("127.0.2.1", addr).await;
    let mut b = Peer::new(2);
    b.register(&mut newcomer).await;
    newcomer.ok(b.own("heartbeat", json!({}))).await;
    proven.ok(a.own("heartbeat", json!({}))).await;
    let stats = server.stats();
    assert_eq!((stats.nodes_online, stats.connections, stats.connections_evicted), (2, 40, 162));
    server.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_requests_waits_and_costs_others_nothing() {
    let rate = |per_second, burst| pilot_rendezvous::Rate { per_second, burst };
    let limits = Limits { work: rate(50.0, 100.0), network_work: rate(50.0, 100.0), ..Limits::default() };
    let server = Server::start(strict(limits)).await.unwrap();
    let addr = server.registry_addr();
    let mut flood = connect("127.0.1.1", addr).await;
    let bad = json!({"type": "heartbeat", "node_id": 1, "signature": "AAAA"});
    let mut honest = connect("127.0.2.1", addr).await;
    let mut a = Peer::new(1);
    a.register(&mut honest).await;
    // Four wrong signatures at 7 + 24 units exceed 100: the fifth request waits.
    for _ in 0..4 {
        flood.ask(bad.clone()).await;
    }
    flood.send(&bad).await;
    honest.ok(a.own("heartbeat", json!({}))).await;
    let stats = until(&server, "a delay", |s| s.requests_delayed == 1).await;
    assert_eq!((stats.bad_signatures, stats.requests_refused), (4, 0));
    assert!(flood.next().await.unwrap()["error"].is_string(), "late, but answered");
    server.shutdown().await;
}

#[tokio::test]
async fn discovers_and_garbage_of_one_source_are_counted_bounded_and_do_not_shut_others_out() {
    let server = Server::start(strict(Limits::default())).await.unwrap();
    let to = server.beacon_addr();
    let honest = UdpSocket::bind("127.0.2.1:0").await.unwrap();
    let mut registry = connect("127.0.2.1", server.registry_addr()).await;
    let mut a = Peer::new(1);
    a.register(&mut registry).await;
    let flood = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    flood.bind(&"127.0.1.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    flood.set_nonblocking(true).unwrap();
    let flood = UdpSocket::from_std(flood.into()).unwrap();
    // In portions that the beacon's socket holds, so that every datagram counts.
    for id in 1000..3500u32 {
        flood.send_to(&[&[1][..], &id.to_be_bytes()].concat(), to).await.unwrap();
        flood.send_to(&[0x0B, 1, 2], to).await.unwrap();
        if id % 100 == 0 {
            until(&server, "the portion", |s| s.beacon_garbage > u64::from(id - 1000)).await;
        }
    }
    let stats = until(&server, "all garbage", |s| s.beacon_garbage == 2500).await;
    // A burst of 1,000 answers and 100 per second; at most 64 invented ids of a network are kept.
    assert!((1000..=1500).contains(&stats.discover_limited), "{stats:?}");
    assert_eq!(stats.beacon_nodes, 64);
    honest.send_to(&[1, 0, 0, 0, 1], to).await.unwrap();
    let mut reply = [0; 64];
    assert_eq!(timeout(SOON, honest.recv(&mut reply)).await.unwrap().unwrap(), 8);
    // Who claims the id of a node that is elsewhere does not get its frames.
    flood.send_to(b"\x05\0\0\0\x09\0\0\0\x01PILS", to).await.unwrap();
    let n = timeout(SOON, honest.recv(&mut reply)).await.unwrap().unwrap();
    assert_eq!(&reply[..n], b"\x06\0\0\0\x09PILS");
    server.shutdown().await;
}
