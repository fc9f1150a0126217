//! What a scenario is written in.

use super::packets::{ACK, Peer, Pkt, SYN, describe};
use super::trace::Line;
use super::{App, Entry, Host, PeerId, SUBJECT, Seen, node_id};
use pilot_proto::Addr;
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::frame::Frame;
use pilot_proto::wire::packet::{Header, Packet};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a script waits for something that should come at once.
const SOON: Duration = Duration::from_secs(3);

/// Which way the peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Direct,
    Relay,
}

/// A packet of the node that arrived.
#[derive(Debug, Clone)]
pub struct Got {
    pub peer: PeerId,
    pub header: Header,
    pub payload: Vec<u8>,
}

/// A running scenario.
pub struct Script<'a> {
    host: &'a mut dyn Host,
    pub peers: Vec<Peer>,
    pub via: Via,
    lines: Vec<Line>,
    /// Packets that arrived and were not asked for yet.
    inbox: Vec<Got>,
    /// Key exchange frames that arrived (PILA and PILK), per peer.
    pub exchanges: usize,
    /// Bytes and digest the applications read, per connection.
    read: BTreeMap<usize, (usize, u32)>,
    ports: Vec<u16>,
    /// Acknowledgements are counted from here.
    base: u32,
    /// Times are counted from here.
    began: Duration,
}

impl<'a> Script<'a> {
    pub fn new(host: &'a mut dyn Host, peers: usize) -> Script<'a> {
        let peers: Vec<Peer> = (0..peers).map(|p| Peer::new(node_id(p))).collect();
        for (i, peer) in peers.iter().enumerate() {
            host.set_entry(i, Entry { key: Some(*peer.identity.public_key()) });
        }
        Script {
            host,
            peers,
            via: Via::Direct,
            lines: Vec::new(),
            inbox: Vec::new(),
            exchanges: 0,
            read: BTreeMap::new(),
            ports: Vec::new(),
            base: 0,
            began: Duration::ZERO,
        }
    }

    /// Everything seen.
    pub fn finish(mut self) -> Vec<Line> {
        if self.base != 0 {
            return self.lines;
        }
        for (conn, (bytes, crc)) in std::mem::take(&mut self.read) {
            let what = format!("app {conn} read {bytes} bytes {crc:08x} in all");
            self.lines.push(Line { ms: 0, window: None, what });
        }
        self.lines
    }

    // ---- sending -----------------------------------------------------------------------------------------

    /// Sends any bytes.
    pub fn raw(&mut self, peer: PeerId, bytes: &[u8]) {
        match self.via {
            Via::Direct => self.host.send(peer, bytes),
            Via::Relay => {
                let mut out = Vec::new();
                Message::RelayDeliver { from: node_id(peer), frame: bytes }.emit(&mut out);
                self.host.send_from_beacon(&out);
            }
        }
    }

    /// Sends a beacon message.
    pub fn beacon(&mut self, message: &Message<'_>) {
        let mut out = Vec::new();
        message.emit(&mut out);
        self.host.send_from_beacon(&out);
    }

    /// Fills in the addresses a packet of this peer has.
    pub fn addressed(&self, peer: PeerId, mut pkt: Pkt) -> Pkt {
        if pkt.header.src.is_zero() {
            pkt.header.src = Addr::backbone(node_id(peer));
        }
        if pkt.header.dst.is_zero() {
            pkt.header.dst = Addr::backbone(SUBJECT);
        }
        pkt
    }

    /// Sends a packet, sealed.
    pub fn send(&mut self, peer: PeerId, pkt: Pkt) {
        let bytes = self.addressed(peer, pkt).bytes();
        let frame = self.peers[peer].seal(&bytes);
        self.raw(peer, &frame);
    }

    pub fn app(&mut self, app: App) {
        self.host.app(app);
    }

    pub fn register(&mut self, peer: PeerId, key: Option<[u8; 32]>) {
        self.host.set_entry(peer, Entry { key });
    }

    // ---- receiving ---------------------------------------------------------------------------------------

    /// Lets that much time pass.
    pub fn wait(&mut self, ms: u64) {
        let until = self.host.now() + Duration::from_millis(ms);
        while self.step(until) {}
    }

    /// Lets time pass while pings and pongs show that the path works.
    pub fn wait_alive(&mut self, seconds: u64) {
        for n in 0..seconds / 5 {
            self.wait(5_000);
            self.send(0, Pkt::control(0, 5, 0).seq(n as u32).data("alive"));
        }
    }

    fn step(&mut self, until: Duration) -> bool {
        let Some((at, seen)) = self.host.next(until) else { return false };
        self.note(at, seen);
        true
    }

    /// Waits for a packet; the script fails without it, and so does the comparison.
    #[track_caller]
    pub fn expect(&mut self, what: &str, wanted: impl Fn(&Got) -> bool) -> Got {
        self.expect_within(what, SOON, wanted)
    }

    #[track_caller]
    pub fn expect_within(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Got) -> bool) -> Got {
        let until = self.host.now() + limit;
        loop {
            if let Some(i) = self.inbox.iter().position(&wanted) {
                let found = self.inbox.remove(i);
                if found.header.flags == SYN {
                    // The real daemon counts its SYN after it has sent it: an answer within a millisecond comes before that.
                    self.wait(5);
                }
                return found;
            }
            if !self.step(until) {
                let seen: String = self.lines.iter().map(|l| format!("{l}\n")).collect();
                panic!("waited {limit:?} in vain: {what}\n{seen}");
            }
        }
    }

    /// Waits for something that is not a packet.
    #[track_caller]
    pub fn expect_line(&mut self, what: &str) {
        let until = self.host.now() + SOON;
        while !self.lines.iter().any(|l| l.what == what) {
            assert!(self.step(until), "waited {SOON:?} in vain: {what}");
        }
    }

    /// Waits until that many exchange frames have arrived in all.
    pub fn expect_exchanges(&mut self, count: usize, limit: Duration) {
        let until = self.host.now() + limit;
        while self.exchanges < count && self.step(until) {}
        assert!(self.exchanges >= count, "{} of {count} key exchange frames came", self.exchanges);
    }

    fn push(&mut self, at: Duration, what: String, window: Option<u16>) {
        self.lines.push(Line { ms: at.saturating_sub(self.began).as_millis() as u64, window, what });
    }

    fn note(&mut self, at: Duration, seen: Seen) {
        match seen {
            Seen::Direct(peer, bytes) => self.on_frame(at, peer, Via::Direct, &bytes),
            Seen::Beacon(bytes) => match Message::parse(&bytes) {
                Ok(Message::Relay { to, frame, .. }) => {
                    let peer = (to as usize).wrapping_sub(100);
                    let frame = frame.to_vec();
                    if peer < self.peers.len() {
                        self.on_frame(at, peer, Via::Relay, &frame);
                    } else {
                        self.push(at, format!("relay to stranger {to}"), None);
                    }
                }
                Ok(Message::PunchRequest { target, .. }) => self.push(at, format!("punch {target}"), None),
                // Its times are the daemon's affair: when it started.
                Ok(Message::Discover { .. }) => {}
                other => self.push(at, format!("beacon {other:?}"), None),
            },
            Seen::Connected(conn) => self.push(at, format!("app {conn} connected"), None),
            Seen::Failed(why) => self.push(at, format!("app dial failed: {why}"), None),
            Seen::Accepted(conn, port) => self.push(at, format!("app {conn} accepted on {port}"), None),
            Seen::Ended(conn) => self.push(at, format!("app {conn} ended"), None),
            Seen::Datagram(port, payload) => {
                self.push(at, format!("app datagram for {port}, {} bytes", payload.len()), None);
            }
            Seen::Data(conn, bytes) => {
                let (count, crc) = self.read.entry(conn).or_default();
                let mut hasher = crc32fast::Hasher::new_with_initial(*crc);
                hasher.update(&bytes);
                (*count, *crc) = (*count + bytes.len(), hasher.finalize());
            }
        }
    }

    /// The node's ephemeral ports, by order of appearance.
    fn port_name(ports: &mut Vec<u16>, port: u16) -> String {
        if port < 49_152 {
            return port.to_string();
        }
        let known = ports.iter().position(|p| *p == port);
        let n = known.unwrap_or_else(|| {
            ports.push(port);
            ports.len() - 1
        });
        format!("e{n}")
    }

    fn on_frame(&mut self, at: Duration, peer: PeerId, via: Via, bytes: &[u8]) {
        let way = match via {
            Via::Direct => "direct",
            Via::Relay => "relay",
        };
        let node = node_id(peer);
        match Frame::parse(bytes) {
            Ok(Frame::Pila(pila)) => {
                self.exchanges += 1;
                if self.peers[peer].subject != Some(*pila.x25519) {
                    let subject = *pila.x25519;
                    self.peers[peer].agree(&subject);
                }
                self.push(at, format!("{way} {node} PILA of {}, {} bytes", pila.node, bytes.len()), None);
            }
            Ok(Frame::Pilk(pilk)) => {
                self.exchanges += 1;
                self.push(at, format!("{way} {node} PILK of {}, {} bytes", pilk.node, bytes.len()), None);
            }
            Ok(Frame::Pilp) => self.push(at, format!("{way} {node} PILP"), None),
            Ok(Frame::Pils(header)) => {
                let Some(packet) = self.peers[peer].open(header, bytes) else {
                    return self.push(at, format!("{way} {node} PILS for an earlier key"), None);
                };
                let epochs = &self.peers[peer].epochs;
                let epoch = epochs.iter().position(|e| *e == header.prefix).unwrap_or_default();
                match Packet::parse(&packet) {
                    Ok(parsed) => {
                        let mut ports = std::mem::take(&mut self.ports);
                        let (text, window) =
                            describe(&parsed, self.base, |p| Script::port_name(&mut ports, p));
                        self.ports = ports;
                        self.push(at, format!("{way} {node}.{epoch} {text}"), window);
                        let (header, payload) = (parsed.header, parsed.payload.to_vec());
                        self.inbox.push(Got { peer, header, payload });
                    }
                    Err(error) => self.push(at, format!("{way} {node} PILS with {error}"), None),
                }
            }
            other => self.push(at, format!("{way} {node} {other:?}"), None),
        }
    }

    // ---- what most scenarios begin with ------------------------------------------------------------------

    /// Exchanges keys on the current path and lets the duplicate window (250 ms) pass.
    pub fn exchange(&mut self, peer: PeerId) {
        let before = self.exchanges;
        let pila = self.peers[peer].pila();
        self.raw(peer, &pila);
        self.expect_exchanges(before + 1, SOON);
        self.wait(300);
    }

    /// Opens a stream from `src` to a port; the SYN's number is 100.
    pub fn open(&mut self, peer: PeerId, src: u16, dst: u16) {
        self.send(peer, Pkt::stream(SYN, src, dst).seq(100));
        self.expect("the SYN-ACK", |g| {
            g.peer == peer && g.header.flags == SYN | ACK && g.header.dst_port == src
        });
        self.send(peer, Pkt::stream(ACK, src, dst).seq(101).ack(1));
    }

    /// Keys and a stream from port 50001 to the echo service.
    pub fn echo(&mut self) {
        self.exchange(0);
        self.open(0, 50_001, 7);
    }

    /// A packet of the stream to the echo service.
    pub fn on_echo(&mut self, seq: u32, ack: u32, data: impl AsRef<[u8]>) {
        self.send(0, Pkt::stream(ACK, 50_001, 7).seq(seq).ack(ack).data(data));
    }

    /// Sends our PILA without waiting for an answer that may not come.
    pub fn exchange_quietly(&mut self, peer: PeerId) {
        let pila = self.peers[peer].pila();
        self.raw(peer, &pila);
    }

    /// Keys, then [`Script::accept_dial`] with an open window.
    pub fn accept_dial_after_exchange(&mut self) -> u16 {
        self.accept_dial_after_exchange_with(512)
    }

    pub fn accept_dial_after_exchange_with(&mut self, window: u16) -> u16 {
        self.exchange(0);
        self.accept_dial(0, window)
    }

    /// The window of the last packet that had one.
    pub fn last_window(&self) -> Option<u16> {
        self.lines.iter().rev().find_map(|l| l.window)
    }

    /// Forgets all lines so far: for traffic whose amount depends on buffers of the operating system, and its length on the
    /// machine. From now on acknowledgements are counted from this one, and times from now.
    pub fn forget_before(&mut self, ack: u32) {
        self.lines.clear();
        self.base = ack;
        self.began = self.host.now();
    }

    pub fn address(&self, peer: PeerId) -> std::net::SocketAddr {
        self.host.address(peer)
    }

    /// A dial of the node to a peer's port 2000 that the peer accepts with number 500; the node's port.
    pub fn accept_dial(&mut self, peer: PeerId, window: u16) -> u16 {
        self.app(App::Dial(peer, 2000));
        let syn = self.expect("the SYN", |g| g.header.flags == SYN && g.header.dst_port == 2000);
        let port = syn.header.src_port;
        let answer = Pkt::stream(SYN | ACK, 2000, port).seq(500).ack(syn.header.seq + 1).window(window);
        self.send(peer, answer);
        self.expect("the third packet", |g| g.header.flags == ACK && g.header.dst_port == 2000);
        // When the SYN-ACK overtakes the dialler's own bookkeeping its number is 0 (spec 03 section 6.5).
        if let Some(line) = self.lines.iter_mut().rev().find(|l| l.what.ends_with(">2000 seq 0 ack 501")) {
            line.what = line.what.replace("seq 0", "seq 1");
        }
        self.expect_line("app 0 connected");
        port
    }
}

/// Bytes that repeat nowhere soon.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
