//! The real daemon as the node under test.

use crate::lab::{App, Entry, Host, PeerId, Seen, Setup, node_id};
use crate::registry::{self, Shared, State};
use pilot_proto::Addr;
use pilot_proto::wire::beacon::Message;
use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the daemon may take to start.
const STARTED: Duration = Duration::from_secs(30);
/// Daemons on one network of loopback; more take the next.
pub const NUMBERS: usize = 200;
const TICK: Duration = Duration::from_millis(50);

enum Arrived {
    Peer(PeerId, Vec<u8>),
    Beacon(Vec<u8>),
    Local(u8, Vec<u8>),
}

pub struct LiveHost {
    daemon: Child,
    dir: tempfile::TempDir,
    start: Instant,
    subject: SocketAddr,
    beacon: UdpSocket,
    peers: Vec<UdpSocket>,
    local: UnixStream,
    registry: Shared,
    arrivals: Receiver<(Instant, Arrived)>,
    stop: Arc<AtomicBool>,
    reading: Arc<AtomicBool>,
    conns: Vec<u32>,
    /// Connections whose own CloseOK has not come yet.
    closing: Vec<u32>,
    /// Bytes of connections that were not announced yet.
    early: VecDeque<(Duration, u32, Seen)>,
    seen: VecDeque<(Duration, Seen)>,
}

fn reference_daemon() -> PathBuf {
    let venv = std::env::var_os("PILOT_REFERENCE_VENV").expect(
        "PILOT_REFERENCE_VENV must name a Python environment with pilotprotocol==1.18.0 (scripts/test.sh)",
    );
    let lib = Path::new(&venv).join("lib");
    fs::read_dir(&lib)
        .expect("the reference environment has a lib directory")
        .filter_map(Result::ok)
        .map(|e| e.path().join("site-packages/pilotprotocol/bin/pilot-daemon"))
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("pilot-daemon of pilotprotocol==1.18.0 not found under {}", lib.display()))
}

/// Reads a socket until the host is gone.
fn read_udp(
    socket: &UdpSocket,
    stop: &Arc<AtomicBool>,
    out: &Sender<(Instant, Arrived)>,
    wrap: impl Fn(&UdpSocket, SocketAddr, Vec<u8>) -> Option<Arrived> + Send + 'static,
) {
    let socket = socket.try_clone().expect("a socket can be cloned");
    socket.set_read_timeout(Some(TICK)).expect("a timeout can be set");
    let (stop, out) = (stop.clone(), out.clone());
    std::thread::spawn(move || {
        let mut buf = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut buf) else { continue };
            let at = Instant::now();
            if let Some(arrived) = wrap(&socket, from, buf[..len].to_vec())
                && out.send((at, arrived)).is_err()
            {
                return;
            }
        }
    });
}

/// Reads the daemon's local socket, frame by frame, unless reading is switched off.
fn read_local(
    mut stream: UnixStream,
    stop: Arc<AtomicBool>,
    on: Arc<AtomicBool>,
    out: Sender<(Instant, Arrived)>,
) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut buf = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            if !on.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(5));
                continue;
            }
            match stream.read(&mut buf) {
                Ok(0) => return,
                Ok(len) => bytes.extend_from_slice(&buf[..len]),
                Err(_) => continue,
            }
            while bytes.len() >= 5 {
                let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
                if bytes.len() < 4 + length {
                    break;
                }
                let frame: Vec<u8> = bytes.drain(..4 + length).collect();
                if length > 0
                    && out.send((Instant::now(), Arrived::Local(frame[4], frame[5..].to_vec()))).is_err()
                {
                    return;
                }
            }
        }
    });
}

impl LiveHost {
    /// Starts a daemon of its own on addresses that no other scenario uses.
    pub fn start(number: usize, setup: &Setup) -> LiveHost {
        let (net, number) = (1 + number / NUMBERS, 1 + number % NUMBERS);
        let ip = |host: u8| IpAddr::V4(Ipv4Addr::new(127, net as u8, number as u8, host));
        let dir = tempfile::Builder::new().prefix("pilot-model-").tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("mode");
        let subject = SocketAddr::new(ip(1), 4000);
        let bind = |host: u8, port: u16| UdpSocket::bind((ip(host), port)).expect("the address is free");
        let beacon = bind(9, 9001);
        let peers: Vec<UdpSocket> = (0..setup.peers).map(|p| bind(10 + p as u8, 4000)).collect();
        let addresses = peers.iter().map(|p| p.local_addr().expect("bound")).collect();
        let entries = vec![Entry { key: None }; setup.peers];
        let registry = Arc::new(Mutex::new(State { entries, addresses, subject: None }));
        registry::serve((ip(9), 9000), registry.clone());
        let (stop, reading) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let (out, arrivals) = channel();
        read_udp(&beacon, &stop, &out, |socket, from, bytes| {
            if let Ok(Message::Discover { .. }) = Message::parse(&bytes) {
                let mut reply = Vec::new();
                Message::DiscoverReply(from).emit(&mut reply);
                let _ = socket.send_to(&reply, from);
                return None;
            }
            Some(Arrived::Beacon(bytes))
        });
        for (i, peer) in peers.iter().enumerate() {
            read_udp(peer, &stop, &out, move |_, _, bytes| Some(Arrived::Peer(i, bytes)));
        }
        let socket = dir.path().join("pilot.sock");
        let daemon = spawn(dir.path(), &socket, subject, ip(9), setup);
        let local = connect(&socket, dir.path());
        local.set_read_timeout(Some(TICK)).expect("a timeout can be set");
        read_local(local.try_clone().expect("clone"), stop.clone(), reading.clone(), out);
        let mut host = LiveHost {
            daemon,
            dir,
            start: Instant::now(),
            subject,
            beacon,
            peers,
            local,
            registry,
            arrivals,
            stop,
            reading,
            conns: Vec::new(),
            closing: Vec::new(),
            early: VecDeque::new(),
            seen: VecDeque::new(),
        };
        // It is up when it answers, and its second Discover is over.
        host.command(0x0D, &[]);
        let answered = |a: &(Instant, Arrived)| matches!(a.1, Arrived::Local(0x0E, _));
        let deadline = Instant::now() + STARTED;
        while !host.arrivals.recv_timeout(TICK).is_ok_and(|a| answered(&a)) {
            assert!(Instant::now() < deadline, "the daemon does not answer: {}", host.log());
        }
        host.start = Instant::now();
        host
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    fn command(&mut self, command: u8, body: &[u8]) {
        let mut frame = (body.len() as u32 + 1).to_be_bytes().to_vec();
        frame.push(command);
        frame.extend_from_slice(body);
        self.local.write_all(&frame).expect("the daemon takes commands");
    }

    fn number(&self, conn: u32) -> Option<usize> {
        self.conns.iter().position(|c| *c == conn)
    }

    fn arrive(&mut self, at: Instant, arrived: Arrived) {
        let at = at.saturating_duration_since(self.start);
        match arrived {
            Arrived::Peer(peer, bytes) => self.seen.push_back((at, Seen::Direct(peer, bytes))),
            Arrived::Beacon(bytes) => self.seen.push_back((at, Seen::Beacon(bytes))),
            Arrived::Local(command, body) => self.on_local(at, command, &body),
        }
    }

    fn on_local(&mut self, at: Duration, command: u8, body: &[u8]) {
        let id = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        match command {
            0x04 => self.announce(at, id(body), Seen::Connected),
            0x05 => {
                let port = u16::from_be_bytes([body[0], body[1]]);
                self.announce(at, id(&body[2..]), |n| Seen::Accepted(n, port));
            }
            0x07 => self.of_conn(at, id(body), |n| Seen::Data(n, body[4..].to_vec())),
            0x09 => {
                let conn = id(body);
                match self.closing.iter().position(|c| *c == conn) {
                    Some(i) => {
                        self.closing.remove(i);
                    }
                    None => self.of_conn(at, conn, Seen::Ended),
                }
            }
            0x0A => {
                let text = String::from_utf8_lossy(&body[2..]).into_owned();
                self.seen.push_back((at, Seen::Failed(text)));
            }
            0x0C => {
                let port = u16::from_be_bytes([body[8], body[9]]);
                self.seen.push_back((at, Seen::Datagram(port, body[10..].to_vec())));
            }
            _ => {}
        }
    }

    fn announce(&mut self, at: Duration, conn: u32, seen: impl Fn(usize) -> Seen) {
        self.conns.push(conn);
        let n = self.conns.len() - 1;
        self.seen.push_back((at, seen(n)));
        for (at, of, seen) in std::mem::take(&mut self.early) {
            let seen = match seen {
                Seen::Data(_, bytes) if of == conn => Seen::Data(n, bytes),
                Seen::Ended(_) if of == conn => Seen::Ended(n),
                other => {
                    self.early.push_back((at, of, other));
                    continue;
                }
            };
            self.seen.push_back((at, seen));
        }
    }

    fn of_conn(&mut self, at: Duration, conn: u32, seen: impl Fn(usize) -> Seen) {
        match self.number(conn) {
            Some(n) => self.seen.push_back((at, seen(n))),
            None => self.early.push_back((at, conn, seen(0))),
        }
    }
}

fn spawn(home: &Path, socket: &Path, subject: SocketAddr, services: IpAddr, setup: &Setup) -> Child {
    let log = fs::File::create(home.join("daemon.log")).expect("log file");
    let mut command = Command::new(reference_daemon());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    command.env("HOME", home).env("PILOT_NO_SKILLINJECT", "1");
    command.arg("-registry").arg(format!("{services}:9000")).arg("-beacon").arg(format!("{services}:9001"));
    command.arg("-listen").arg(subject.to_string()).arg("-endpoint").arg(subject.to_string());
    command.arg("-socket").arg(socket).arg("-identity").arg(home.join("identity.json"));
    command.args(["-email", "subject@example.com"]).args(setup.public.then_some("-public"));
    command.args(["-no-skillinject", "-telemetry-url", "", "-motd-feed-url", ""]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("log file")).stderr(log);
    command.spawn().expect("the daemon starts")
}

fn connect(socket: &Path, home: &Path) -> UnixStream {
    let deadline = Instant::now() + STARTED;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => {
                let log = || fs::read_to_string(home.join("daemon.log")).unwrap_or_default();
                assert!(Instant::now() < deadline, "no local socket ({error}): {}", log());
                std::thread::park_timeout(TICK);
            }
        }
    }
}

impl Host for LiveHost {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn send(&mut self, from: PeerId, bytes: &[u8]) {
        self.peers[from].send_to(bytes, self.subject).expect("sent");
    }

    fn send_from_beacon(&mut self, bytes: &[u8]) {
        self.beacon.send_to(bytes, self.subject).expect("sent");
    }

    fn set_entry(&mut self, peer: PeerId, entry: Entry) {
        self.registry.lock().expect("no panic").entries[peer] = entry;
    }

    fn app(&mut self, app: App) {
        let to = |peer: PeerId, port: u16| {
            let mut out = Addr::backbone(node_id(peer)).to_bytes().to_vec();
            out.extend_from_slice(&port.to_be_bytes());
            out
        };
        match app {
            App::Bind(port) => self.command(0x01, &port.to_be_bytes()),
            App::Dial(peer, port) => self.command(0x03, &to(peer, port)),
            App::Send(conn, data) => {
                let mut body = self.conns[conn].to_be_bytes().to_vec();
                body.extend_from_slice(&data);
                self.command(0x06, &body);
            }
            App::Close(conn) => {
                let id = self.conns[conn];
                self.closing.push(id);
                self.command(0x08, &id.to_be_bytes());
            }
            App::Datagram(peer, port, data) => {
                let mut body = to(peer, port);
                body.extend_from_slice(&data);
                self.command(0x0B, &body);
            }
            App::StopReading => self.reading.store(false, Ordering::Relaxed),
            App::Read => self.reading.store(true, Ordering::Relaxed),
        }
    }

    fn next(&mut self, until: Duration) -> Option<(Duration, Seen)> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Some(seen);
            }
            let left = until.saturating_sub(self.start.elapsed());
            match self.arrivals.recv_timeout(left) {
                Ok((at, arrived)) => self.arrive(at, arrived),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the readers are gone"),
            }
        }
    }

    fn address(&self, peer: PeerId) -> SocketAddr {
        self.peers[peer].local_addr().expect("bound")
    }
}

impl Drop for LiveHost {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}
