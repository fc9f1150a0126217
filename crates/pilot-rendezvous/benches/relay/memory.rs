//! Memory of a rendezvous with many nodes.

use crate::child::Child;
use crate::load::discover;
use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const NODES: u32 = 100_000;
/// Connections that register.
const CONNECTIONS: u32 = 8;
/// Most resident memory, MB.
const MOST: f64 = 100.0;

pub fn run() -> bool {
    let child = Child::start("child-filed");
    let registry = child.registry.unwrap();
    let empty = child.memory();
    let ids: Vec<u32> = std::thread::scope(|scope| {
        let share =
            |n| scope.spawn(move || register(registry, (0..NODES).filter(move |i| i % CONNECTIONS == n)));
        let shares: Vec<_> = (0..CONNECTIONS).map(share).collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    });
    let registered = child.memory();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for id in &ids {
        socket.send_to(&discover(*id), child.beacon).unwrap();
        socket.recv(&mut [0; 64]).expect("an answer");
    }
    let known = child.memory();
    println!("| rendezvous | resident memory, MB |\n|---|---|");
    println!("| empty | {empty:.1} |");
    println!("| {} nodes registered (store in a file) | {registered:.1} |", ids.len());
    println!("| and known to the beacon | {known:.1} |\n");
    if known - empty > MOST {
        println!("MISSED: {:.1} MB more, wanted {MOST}", known - empty);
    }
    known - empty <= MOST && ids.len() == NODES as usize
}

fn register(registry: SocketAddr, nodes: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut stream = TcpStream::connect(registry).unwrap();
    stream.set_nodelay(true).unwrap();
    nodes
        .map(|n| {
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            let identity = Identity::from_seed(seed).unwrap();
            let (listen, key) = ("203.0.113.7:4000", identity.public_key_base64());
            let signature = identity.sign_text(&challenge::register(listen, &key));
            let request =
                json!({"type": "register", "listen_addr": listen, "public_key": key, "signature": signature});
            let body = serde_json::to_vec(&request).unwrap();
            stream.write_all(&[&(body.len() as u32).to_be_bytes()[..], &body].concat()).unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut answer).unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            answer["node_id"].as_u64().unwrap_or_else(|| panic!("{answer}")) as u32
        })
        .collect()
}
