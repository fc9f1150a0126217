//! A registry, and daemons of it, in one process over loopback.
#![allow(dead_code, clippy::unwrap_used)]

use bytes::Bytes;
use pilot::NodeConfig;
use pilot_daemon::{Daemon, DaemonConfig};
use pilot_ipc::Client;
use pilot_ipc::frame::{Frame, FrameReader, OutFrame};
use pilot_ipc::request::Request;
use pilot_proto::Addr;
use pilot_rendezvous::{Config, Server};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Longest any step of a test may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it takes too long")
}

pub async fn rendezvous() -> Server {
    Server::start(Config::loopback()).await.unwrap()
}

/// A daemon with a directory of its own.
pub struct Running {
    pub daemon: Daemon,
    pub dir: TempDir,
}

pub fn config(server: &Server, dir: &TempDir) -> DaemonConfig {
    let node = NodeConfig {
        registry: server.registry_addr().to_string(),
        beacons: vec![server.beacon_addr().to_string()],
        listen: "127.0.0.1:0".parse().unwrap(),
        public: true,
        version: "1.18.0".into(),
        ..NodeConfig::default()
    };
    DaemonConfig {
        node,
        socket: dir.path().join("pilot.sock"),
        home: dir.path().join("home"),
        no_echo: true,
        no_dataexchange: true,
        no_eventstream: true,
        dataexchange_b64: false,
        admin_token: None,
        webhook: None,
    }
}

pub async fn daemon_with(server: &Server, change: impl FnOnce(&mut DaemonConfig)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(server, &dir);
    change(&mut config);
    Running { daemon: within(Daemon::start(config)).await.unwrap(), dir }
}

pub async fn daemon(server: &Server) -> Running {
    daemon_with(server, |_| {}).await
}

impl Running {
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("pilot.sock")
    }
    pub fn addr(&self) -> Addr {
        self.daemon.node().address()
    }
    pub async fn client(&self) -> Client {
        Client::connect(self.socket()).await.unwrap()
    }
    pub async fn raw(&self) -> Raw {
        let (read, write) = UnixStream::connect(self.socket()).await.unwrap().into_split();
        Raw { read: FrameReader::new(read), write }
    }
}

/// A client that sees every frame.
pub struct Raw {
    pub read: FrameReader<OwnedReadHalf>,
    pub write: OwnedWriteHalf,
}

impl Raw {
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.write.write_all(bytes)).await.unwrap();
    }
    pub async fn send(&mut self, request: &Request) {
        let (command, body) = request.encode();
        self.send_bytes(&OutFrame::new(command as u8, &[], body).to_vec()).await;
    }
    /// The next frame; `None` at the end or when the connection breaks.
    pub async fn next(&mut self) -> Option<Frame> {
        within(self.read.next()).await.unwrap_or(None)
    }
    pub async fn expect(&mut self) -> Frame {
        self.next().await.expect("the daemon sends another frame")
    }
    pub async fn ask(&mut self, request: &Request) -> Frame {
        self.send(request).await;
        self.expect().await
    }
    pub async fn ask_json(&mut self, request: &Request) -> Value {
        let frame = self.ask(request).await;
        assert_eq!(Some(frame.command), request.encode().0.reply(), "{}", text_of(&frame));
        serde_json::from_slice(&frame.body).unwrap()
    }
    /// The error text a request is answered with.
    pub async fn ask_error(&mut self, request: &Request) -> String {
        let frame = self.ask(request).await;
        assert_eq!(frame.command, 0x0A, "{request:?} did not fail");
        text_of(&frame)
    }
    /// Nothing but the answer to this Health request arrives.
    pub async fn expect_silence(&mut self) {
        assert_eq!(self.ask(&Request::Health).await.command, 0x22, "something else arrived first");
    }
}

pub fn text_of(error: &Frame) -> String {
    String::from_utf8_lossy(error.body.get(2..).unwrap_or_default()).into_owned()
}

pub fn id_of(frame: &Frame) -> u32 {
    u32::from_be_bytes(frame.body[..4].try_into().unwrap())
}

/// `len` bytes that repeat only after a long time.
pub fn pattern(len: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&state.to_be_bytes());
    }
    out.truncate(len);
    out.into()
}

/// Everything of a stream until its end.
pub async fn drain(stream: &mut pilot_ipc::IpcStream) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(data) = within(stream.read()).await {
        out.extend_from_slice(&data);
    }
    out
}
