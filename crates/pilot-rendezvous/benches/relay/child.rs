//! Relays in processes of their own, so that their processor time is theirs alone.

use pilot_rendezvous::{Config, Limits, Server, StoreConfig};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

/// A relay under test; killed when dropped.
pub struct Child {
    process: std::process::Child,
    pub beacon: SocketAddr,
    pub registry: Option<SocketAddr>,
}

impl Child {
    pub fn start(role: &str) -> Child {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut addrs = line.split_whitespace().map(|a| a.parse::<SocketAddr>().unwrap());
        Child { process, beacon: addrs.next().unwrap(), registry: addrs.next() }
    }

    /// Processor time of all its threads, seconds.
    pub fn cpu(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let times = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        });
        times.sum::<f64>() * 1e-9
    }

    /// Resident memory, MB.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024e-6
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ =
            std::fs::remove_dir_all(std::env::temp_dir().join(format!("pilot-bench-{}", self.process.id())));
    }
}

/// The child's side: prints its addresses and serves until it is killed, or its parent is gone.
pub fn run(role: &str) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().lines().next();
        std::process::exit(0);
    });
    match role {
        "child-plain" => plain(),
        "child-filed" => rendezvous(false, StoreConfig::File(store().join("registry.db"))),
        _ => rendezvous(role == "child-strict", StoreConfig::Memory),
    }
}

/// A directory for the store of this process, left for its parent to remove.
fn store() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("pilot-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    dir
}

fn rendezvous(strict: bool, store: StoreConfig) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let limits = Limits { exempt_loopback: !strict, ..Limits::default() };
        let server = Server::start(Config { limits, store, ..Config::loopback() }).await.unwrap();
        println!("{} {}", server.beacon_addr(), server.registry_addr());
        std::future::pending::<()>().await;
    });
}

/// The baseline: receives a frame, looks its destination up, sends it on.
fn plain() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20);
    let _ = socket2::SockRef::from(&socket).set_send_buffer_size(8 << 20);
    println!("{}", socket.local_addr().unwrap());
    let mut nodes: HashMap<[u8; 4], SocketAddr> = HashMap::new();
    let mut buffer = [0; 65_536];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        match buffer[..len] {
            [1, a, b, c, d, ..] => {
                nodes.insert([a, b, c, d], from);
                let _ = socket.send_to(&[2, 4, 127, 0, 0, 1, 0, 0], from);
            }
            [5, _, _, _, _, a, b, c, d, ..] => {
                if let Some(to) = nodes.get(&[a, b, c, d]) {
                    buffer.copy_within(1..5, 5);
                    buffer[4] = 6;
                    let _ = socket.send_to(&buffer[4..len], to);
                }
            }
            _ => {}
        }
    }
}
