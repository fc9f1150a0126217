//! The node: its state, its commands, and the loop that feeds and empties it.

use crate::bucket::Buckets;
use crate::path::{Peer, UpgradeProbe};
use crate::stream::conn::{Conn, Note, Out, State};
use crate::stream::{Dial, Streams};
use crate::ticks::{Ticked, Ticks};
use crate::tunnel::{Key, RxWait};
use crate::worker::{Work, WorkWait};
use crate::{Config, ConnId, DialError, Event, Output};
use bytes::Bytes;
use pilot_proto::crypto::{Identity, TunnelSecret};
use pilot_proto::wire::beacon::Message;
use pilot_proto::wire::frame::{self, PILA_LEN, PILK_LEN};
use pilot_proto::wire::packet::{Header, protocol};
use pilot_proto::{Addr, NodeId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Key exchanges per source at once and per second.
const EXCHANGES: (u32, u32) = (5, 5);
/// A second Discover follows the first after this time.
const SECOND_DISCOVER: Duration = Duration::from_secs(1);
/// First wait of a dial, and its longest.
const DIAL_WAIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// Expiries of a dial before the peer is switched to the relay, and in all.
const DIRECT_RETRIES: u32 = 3;
const RETRIES: u32 = 7;
/// Expiries do not count while there is no key, for this long.
const KEY_WAIT: Duration = Duration::from_secs(10);
/// Bytes of writes a connection takes ahead: the local socket's buffers.
const WRITE_AHEAD: usize = 256 * 1024;
/// For this long after a contact of ours the peer may open streams to ports 444 and 1001.
const REPLY_WINDOW: Duration = Duration::from_secs(300);

/// A node of the reference.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) node: NodeId,
    pub(crate) secret: TunnelSecret,
    pub(crate) pila: [u8; PILA_LEN],
    pub(crate) pilk: [u8; PILK_LEN],
    pub(crate) rng: ChaCha20Rng,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) keys: BTreeMap<NodeId, Key>,
    pub(crate) routes: BTreeMap<NodeId, (crate::path::Route, Instant)>,
    pub(crate) resolving: BTreeSet<NodeId>,
    /// Peers whose path is being reset.
    pub(crate) resetting: BTreeSet<NodeId>,
    /// Datagrams that wait for an address.
    unrouted: Vec<(NodeId, Vec<u8>)>,
    pub(crate) beacon: Option<SocketAddr>,
    second_discover: Option<Instant>,
    pub(crate) direct_exchanges: Buckets<IpAddr>,
    pub(crate) relayed_exchanges: Buckets<NodeId>,
    pub(crate) unreadable: BTreeMap<NodeId, Instant>,
    pub(crate) rx: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(crate) rx_wait: Option<RxWait>,
    pub(crate) work: VecDeque<Work>,
    pub(crate) work_wait: Option<WorkWait>,
    pub(crate) trusted: BTreeSet<NodeId>,
    pub(crate) reply: BTreeMap<NodeId, Instant>,
    pub(crate) streams: Streams,
    pub(crate) upgrades: Vec<UpgradeProbe>,
    ticks: Ticks,
    pub(crate) opened: u64,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<Event>,
}

impl Node {
    /// A node `node`. Its timers start now.
    pub fn new(config: Config, identity: &Identity, node: NodeId, now: Instant) -> Node {
        // Every 32-byte string is a valid X25519 private key (RFC 7748 section 5).
        #[allow(clippy::expect_used)]
        let secret = TunnelSecret::from_bytes(&config.tunnel_secret).expect("32 bytes are an X25519 key");
        let public = *secret.public_key();
        let signature = identity.sign(&frame::pila_signed(node, &public));
        let pila = frame::pila(node, &public, identity.public_key(), &signature);
        Node {
            node,
            secret,
            pila,
            pilk: frame::pilk(node, &public),
            rng: ChaCha20Rng::from_seed(config.rng_seed),
            peers: BTreeMap::new(),
            keys: BTreeMap::new(),
            routes: BTreeMap::new(),
            resolving: BTreeSet::new(),
            resetting: BTreeSet::new(),
            unrouted: Vec::new(),
            beacon: None,
            second_discover: None,
            direct_exchanges: Buckets::new(EXCHANGES.0, EXCHANGES.1),
            relayed_exchanges: Buckets::new(EXCHANGES.0, EXCHANGES.1),
            unreadable: BTreeMap::new(),
            rx: VecDeque::new(),
            rx_wait: None,
            work: VecDeque::new(),
            work_wait: None,
            trusted: BTreeSet::new(),
            reply: BTreeMap::new(),
            streams: Streams::new(config.client_buffer, config.first_port),
            upgrades: Vec::new(),
            ticks: Ticks::new(now, &config.phases),
            out: VecDeque::new(),
            events: VecDeque::new(),
            opened: 0,
            config,
        }
    }

    /// Its node id.
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// Another identity key, as after a rotation. The tunnel key and the sessions stay.
    pub fn set_identity(&mut self, identity: &Identity) {
        let public = *self.secret.public_key();
        let signature = identity.sign(&frame::pila_signed(self.node, &public));
        self.pila = frame::pila(self.node, &public, identity.public_key(), &signature);
    }

    // ---- input and output --------------------------------------------------------------------------------

    /// One received datagram.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.receive(now, from, datagram);
        self.run(now);
    }

    /// Runs everything that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for what in self.ticks.due(now) {
            match what {
                Ticked::Exchange => self.retransmit_exchanges(now),
                Ticked::Sweep => {
                    let mut out = Out::default();
                    self.streams.sweep(now, &mut out);
                    self.absorb(now, out);
                }
                Ticked::Keepalive => self.keepalive(now),
                Ticked::Upgrade => self.upgrade(now),
                Ticked::Watchdog => self.watchdog(now),
                Ticked::Discover => self.discover(),
            }
        }
        if self.second_discover.is_some_and(|at| now >= at) {
            self.second_discover = None;
            self.discover();
        }
        self.send_upgrade_probes(now);
        self.run_dials(now);
        self.run_conns(now);
        self.drop_stalled_client(now);
        self.worker_timeout(now);
        self.run(now);
    }

    /// What to do next. `buf` is filled when the result is `Transmit`.
    pub fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output {
        self.run(now);
        if let Some((to, bytes)) = self.out.pop_front() {
            *buf = bytes;
            return Output::Transmit(to);
        }
        if let Some(event) = self.events.pop_front() {
            return Output::Event(event);
        }
        let mut next = self.ticks.next();
        let others = [
            self.second_discover,
            self.streams.next_timeout(),
            self.next_upgrade_probe(),
            self.client_timeout(),
            self.work_wait.as_ref().and_then(WorkWait::until),
        ];
        for at in others.into_iter().flatten() {
            next = next.min(at);
        }
        Output::Timeout(next)
    }

    /// The receive loop and the worker, as far as nothing holds them up.
    pub(crate) fn run(&mut self, now: Instant) {
        self.run_rx(now);
        self.run_worker(now);
    }

    pub(crate) fn transmit(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.out.push_back((to, bytes));
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn random(&mut self) -> u32 {
        self.rng.next_u32()
    }

    // ---- settings and answers ----------------------------------------------------------------------------

    /// The beacon: a Discover now, a second one after 1 s, then every 60 s.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.beacon = beacon;
        self.discover();
        self.second_discover = beacon.map(|_| now + SECOND_DISCOVER);
    }

    pub(crate) fn tell_beacon(&mut self, message: &Message<'_>) {
        if let Some(beacon) = self.beacon {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            self.transmit(beacon, bytes);
        }
    }

    fn discover(&mut self) {
        let node = self.node;
        self.tell_beacon(&Message::Discover { node, key: None });
    }

    /// Trusts a node or no longer.
    pub fn set_trusted(&mut self, node: NodeId, trusted: bool) {
        if trusted {
            self.trusted.insert(node);
        } else {
            self.trusted.remove(&node);
        }
    }

    /// The registry's answer about a key; `None`: unknown or no answer.
    pub fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        self.key_answer(now, node, key);
        self.run(now);
    }

    /// The registry's answer about trust.
    pub fn set_trust(&mut self, now: Instant, node: NodeId, trusted: bool) {
        self.trust_answer(now, node, trusted);
        self.run(now);
    }

    /// The registry's answer about an address: `Err` fails the dials with that text.
    pub fn set_route(&mut self, now: Instant, node: NodeId, route: Result<crate::path::Route, String>) {
        self.resolving.remove(&node);
        match route {
            Ok(route) => {
                self.routes.insert(node, (route, now));
                if !self.peers.contains_key(&node) {
                    self.reach(now, node, &route);
                }
                self.route_for_upgrade(now, node, &route);
                self.route_for_reset(now, node, &route);
                let waiting: Vec<ConnId> = self
                    .streams
                    .dials
                    .iter()
                    .filter(|(_, d)| d.node == node && d.at.is_none())
                    .map(|(id, _)| *id)
                    .collect();
                waiting.into_iter().for_each(|id| self.start_dial(now, id));
                for (to, packet) in std::mem::take(&mut self.unrouted) {
                    if to == node {
                        self.send_packet(now, to, &packet, true);
                    } else {
                        self.unrouted.push((to, packet));
                    }
                }
            }
            Err(reason) => {
                self.unrouted.retain(|(to, _)| *to != node);
                let failed: Vec<ConnId> = self
                    .streams
                    .dials
                    .iter()
                    .filter(|(_, d)| d.node == node && d.at.is_none())
                    .map(|(id, _)| *id)
                    .collect();
                failed.into_iter().for_each(|id| self.fail_dial(id, DialError::Resolve(reason.clone())));
            }
        }
        self.run(now);
    }

    // ---- streams -----------------------------------------------------------------------------------------

    /// Binds a port. False: already bound.
    pub fn listen(&mut self, port: u16) -> bool {
        self.streams.listeners.insert(port)
    }

    /// Releases a port.
    pub fn unlisten(&mut self, port: u16) {
        self.streams.listeners.remove(&port);
    }

    /// Starts a dial; its outcome is an event.
    pub fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError> {
        let local_port = self.streams.port()?;
        let id = self.streams.new_id();
        let local = (Addr { network: to.network, node: self.node }, local_port);
        self.streams.conns.insert(id, Conn::new(id, local, (to, port), now, self.streams.client_buffer));
        self.reply.insert(to.node, now + REPLY_WINDOW);
        let relayed = self.peers.get(&to.node).is_some_and(|p| p.relay && p.pinned);
        self.streams.dials.insert(
            id,
            Dial {
                node: to.node,
                started: now,
                at: None,
                wait: DIAL_WAIT.0,
                retries: 0,
                direct_retries: if relayed { 0 } else { DIRECT_RETRIES },
                switched: false,
            },
        );
        if self.peers.contains_key(&to.node) {
            self.start_dial(now, id);
        } else {
            self.resolve(now, to.node);
        }
        Ok(id)
    }

    fn start_dial(&mut self, now: Instant, id: ConnId) {
        if let Some(dial) = self.streams.dials.get_mut(&id) {
            (dial.started, dial.at) = (now, Some(now + dial.wait));
            self.send_syn(now, id);
        }
    }

    fn send_syn(&mut self, now: Instant, id: ConnId) {
        let mut out = Out::default();
        if let Some(conn) = self.streams.conns.get(&id) {
            conn.put_syn(&mut out);
        }
        self.absorb(now, out);
    }

    fn run_dials(&mut self, now: Instant) {
        let due: Vec<ConnId> = self
            .streams
            .dials
            .iter()
            .filter(|(_, d)| d.at.is_some_and(|at| now >= at))
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().for_each(|id| self.expire_dial(now, id));
    }

    /// One expiry of a dial's timer (spec 04 section 10).
    fn expire_dial(&mut self, now: Instant, id: ConnId) {
        let Some(dial) = self.streams.dials.get_mut(&id) else { return };
        let peer = self.peers.get_mut(&dial.node);
        let keyed = peer.as_ref().is_some_and(|p| p.session.is_some());
        if !keyed && now.saturating_duration_since(dial.started) < KEY_WAIT {
            dial.at = Some(now + dial.wait);
            return;
        }
        if let Some(peer) = peer {
            let early = keyed && dial.retries < dial.direct_retries && peer.keyed_by_relay_only();
            dial.retries += 1;
            if !peer.relay && (early || dial.retries == dial.direct_retries) {
                if early {
                    dial.direct_retries = 0;
                }
                (peer.relay, peer.pinned, dial.switched) = (true, false, true);
                dial.wait = DIAL_WAIT.0;
            }
        } else {
            dial.retries += 1;
        }
        if dial.retries > RETRIES {
            let why = if keyed { DialError::Timeout } else { DialError::KeyExchange };
            return self.fail_dial(id, why);
        }
        let node = dial.node;
        dial.wait = (dial.wait * 2).min(DIAL_WAIT.1);
        dial.at = Some(now + dial.wait);
        let queued = self.peers.get(&node).is_some_and(|p| !p.queue.is_empty());
        if !queued {
            self.send_syn(now, id);
        }
    }

    pub(crate) fn fail_dial(&mut self, id: ConnId, why: DialError) {
        if let Some(dial) = self.streams.dials.remove(&id) {
            self.routes.remove(&dial.node);
            if let Some(peer) = self.peers.get_mut(&dial.node)
                && dial.switched
                && !peer.pinned
            {
                peer.relay = false;
            }
            self.streams.conns.remove(&id);
            self.emit(Event::DialFailed(id, why));
        }
    }

    /// Writes to a connection; what does not fit is returned (`Writable` follows). `None`: it takes no more data.
    pub fn write(&mut self, now: Instant, id: ConnId, mut data: Bytes) -> Option<Bytes> {
        let conn = self.streams.conns.get_mut(&id)?;
        let room = WRITE_AHEAD.saturating_sub(conn.send.waiting());
        let rest = data.split_off(room.min(data.len()));
        let mut out = Out::default();
        let taken = conn.write(now, data, &mut out);
        self.absorb(now, out);
        taken.then_some(rest)
    }

    /// Reads from a connection.
    pub fn read(&mut self, now: Instant, id: ConnId) -> Option<Bytes> {
        let conn = self.streams.conns.get_mut(&id)?;
        let data = conn.recv.read(now);
        if data.is_none() && conn.finished() {
            self.streams.conns.remove(&id);
        }
        self.run(now);
        data
    }

    /// The application closes: FIN after what it wrote. Nothing is read any more.
    pub fn close(&mut self, now: Instant, id: ConnId) {
        let mut out = Out::default();
        if let Some(conn) = self.streams.conns.get_mut(&id) {
            conn.abandoned = true;
            conn.close(now, &mut out);
            if conn.finished() {
                self.streams.conns.remove(&id);
                self.streams.dials.remove(&id);
            }
        }
        self.absorb(now, out);
        self.run(now);
    }

    fn run_conns(&mut self, now: Instant) {
        let due = |c: &Conn| c.timeout().is_some_and(|at| now >= at);
        let due: Vec<ConnId> = self.streams.conns.values().filter(|c| due(c)).map(|c| c.id).collect();
        for id in due {
            let jitter = self.random() % 1_000_000;
            let mut out = Out::default();
            if let Some(conn) = self.streams.conns.get_mut(&id) {
                conn.on_timeout(now, jitter, &mut out);
            }
            self.absorb(now, out);
        }
    }

    /// Sends the packets and tells the notes of connections.
    pub(crate) fn absorb(&mut self, now: Instant, out: Out) {
        for (header, payload) in out.packets {
            let mut packet = Vec::with_capacity(34 + payload.len());
            // Segments and SACK lists are far below the 65,535 bytes a packet can carry.
            if header.emit(&payload, &mut packet).is_ok() {
                self.send_packet(now, header.dst.node, &packet, true);
            }
        }
        for (id, note) in out.notes {
            let echo = self.streams.conns.get(&id).is_some_and(|c| c.echo);
            if echo {
                self.serve_echo(now, id);
                continue;
            }
            match note {
                Note::Connected => {
                    self.streams.dials.remove(&id);
                    self.emit(Event::Connected(id));
                }
                Note::Refused => self.fail_dial(id, DialError::Refused),
                Note::Readable => self.emit(Event::Readable(id)),
                Note::Writable => self.emit(Event::Writable(id)),
                Note::Ended => self.emit(Event::Ended(id)),
                Note::Over(why) => self.emit(Event::Over(id, why)),
                Note::CutShort => self.emit(Event::CutShort(id)),
            }
        }
    }

    // ---- datagrams ---------------------------------------------------------------------------------------

    /// Sends one datagram from a fresh ephemeral port.
    pub fn send_datagram(&mut self, now: Instant, to: Addr, port: u16, payload: &[u8]) -> bool {
        let Ok(src_port) = self.streams.port() else { return false };
        let header = Header {
            protocol: protocol::DATAGRAM,
            src: Addr { network: to.network, node: self.node },
            dst: to,
            src_port,
            dst_port: port,
            ..Header::default()
        };
        let mut packet = Vec::new();
        if header.emit(payload, &mut packet).is_err() {
            return false;
        }
        if self.peers.contains_key(&to.node) {
            self.send_packet(now, to.node, &packet, true)
        } else if self.unrouted.len() < 64 {
            self.unrouted.push((to.node, packet));
            self.resolve(now, to.node);
            true
        } else {
            false
        }
    }

    // ---- status ------------------------------------------------------------------------------------------

    /// Connections in the table, those included that linger.
    pub fn connections(&self) -> usize {
        self.streams.conns.values().filter(|c| !c.removed).count()
    }

    /// Whether a connection takes writes.
    pub fn is_open(&self, id: ConnId) -> bool {
        self.streams.conns.get(&id).is_some_and(|c| c.state == State::Established)
    }

    /// Most segments out of order, and most unacknowledged, of any connection.
    pub fn worst_connection(&self) -> (usize, usize) {
        let conns = self.streams.conns.values();
        let most = |f: fn(&Conn) -> usize| conns.clone().map(f).max().unwrap_or(0);
        (most(|c| c.recv.reordered()), most(|c| c.send.unacked()))
    }

    /// Bytes of a connection's application that the peer has acknowledged, while the connection is known.
    pub fn acknowledged(&self, id: ConnId) -> Option<u64> {
        self.streams.conns.get(&id).map(|c| c.send.acked)
    }

    /// Encrypted frames opened and taken so far.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Peers in the table.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Whether frames to a node go through the relay; `None`: not in the table.
    pub fn relayed(&self, node: NodeId) -> Option<bool> {
        self.peers.get(&node).map(|p| p.relay)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {} peers)", self.node, self.peers.len())
    }
}
