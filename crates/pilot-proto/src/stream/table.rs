//! All connections of a node: lookup, limits, scheduling, timers. No operation looks at every connection.

use super::conn::{Conn, Context, State};
use super::emit::Emitted;
use super::ports::Ports;
use super::restart::{self, Reset, Unknown};
use super::syn_limit::SynLimit;
use super::*;
use crate::wire::packet::{Header, flags, protocol};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// Packets one connection may send before the next one has its turn: enough for a batch of equal sizes.
const TURN: u32 = 16;
/// Shares of the accept queue: so many peers can each have as many connections waiting as one.
const ACCEPT_SHARES: usize = 4;
/// Resets that may wait to be sent; further ones are dropped.
const MAX_RESETS: usize = 1024;
/// Doubts about the size of segments that may wait for the engine; what is dropped comes again.
const MAX_DOUBTS: usize = 256;
/// Least time between two runs of one connection's timers.
const TIMER_STEP: Duration = Duration::from_micros(100);

/// Local port, remote address, remote port: the local address is not part of it (spec 03 section 1).
type Tuple = (u16, Addr, u16);

fn tuple(conn: &Conn) -> Tuple {
    (conn.local_port, conn.remote, conn.remote_port)
}

/// All streams of one node.
#[derive(Debug)]
pub struct Streams {
    config: Config,
    rng: ChaCha20Rng,
    conns: HashMap<ConnId, Box<Conn>>,
    tuples: HashMap<Tuple, ConnId>,
    by_node: HashMap<NodeId, BTreeSet<ConnId>>,
    /// Listening ports and the connections their application has not accepted.
    listeners: HashMap<u16, usize>,
    /// Connections per local port, and in total, in every state but TIME_WAIT and CLOSED.
    per_port: HashMap<u16, usize>,
    live: usize,
    ports: Ports,
    last_id: u32,
    ready: VecDeque<ConnId>,
    /// Connections that wait for the tunnel to a node.
    blocked: HashMap<NodeId, Vec<ConnId>>,
    blocked_nodes: VecDeque<NodeId>,
    resets: VecDeque<Reset>,
    unknown: Unknown,
    timers: BTreeSet<(Instant, ConnId)>,
    events: VecDeque<StreamEvent>,
    syn_limit: SynLimit,
    /// Peers towards whom large segments get lost, with the round trip.
    doubts: VecDeque<(NodeId, Duration)>,
    counters: Counters,
}

impl Streams {
    /// No connections yet. `seed` feeds sequence numbers, ports and jitter.
    pub fn new(config: Config, seed: [u8; 32]) -> Streams {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let ports = Ports::new(rng.next_u32());
        let unknown = Unknown::new(rng.next_u64());
        Streams {
            rng,
            conns: HashMap::new(),
            tuples: HashMap::new(),
            by_node: HashMap::new(),
            listeners: HashMap::new(),
            per_port: HashMap::new(),
            live: 0,
            ports,
            last_id: 0,
            ready: VecDeque::new(),
            blocked: HashMap::new(),
            blocked_nodes: VecDeque::new(),
            resets: VecDeque::new(),
            unknown,
            timers: BTreeSet::new(),
            events: VecDeque::new(),
            syn_limit: SynLimit::new(config.syn_rate_limit),
            doubts: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    // ---- bookkeeping -------------------------------------------------------------------------------------

    /// Runs `f` on a connection, then does the bookkeeping its change of state asks for.
    fn with<R>(
        &mut self,
        now: Instant,
        id: ConnId,
        f: impl FnOnce(&mut Conn, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let conn = self.conns.get_mut(&id)?;
        let mut cx = Context { now, config: &self.config, events: &mut self.events };
        let result = f(conn, &mut cx);
        self.settle(now, id);
        Some(result)
    }

    fn settle(&mut self, now: Instant, id: ConnId) {
        self.settle_from(now, id, now);
    }

    fn settle_from(&mut self, now: Instant, id: ConnId, earliest: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if matches!(conn.state, State::TimeWait | State::Closed) {
            let port = conn.local_port;
            if std::mem::take(&mut conn.counted) {
                self.uncount(port);
            }
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if let Some(rtt) = conn.send.take_doubt()
            && self.doubts.len() < MAX_DOUBTS
        {
            self.doubts.push_back((conn.remote.node, rtt));
        }
        if conn.gone() {
            self.remove(id);
            return;
        }
        if !conn.queued && !conn.blocked && conn.state != State::Closed {
            conn.queued = true;
            self.ready.push_back(id);
        }
        self.schedule(now, id, earliest);
    }

    /// Keeps the earliest deadline of a connection in the table's timer queue, never before `earliest`. A deadline
    /// that moved back stays where it is: running a timer too early is harmless.
    fn schedule(&mut self, now: Instant, id: ConnId, earliest: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(at) = conn.deadline(now, &self.config) else { return };
        let at = at.max(earliest);
        if conn.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        if let Some(old) = conn.timer.replace(at) {
            self.timers.remove(&(old, id));
        }
        self.timers.insert((at, id));
    }

    fn count(&mut self, port: u16) {
        self.live += 1;
        *self.per_port.entry(port).or_default() += 1;
    }

    fn uncount(&mut self, port: u16) {
        self.live -= 1;
        if let Some(n) = self.per_port.get_mut(&port) {
            *n -= 1;
            if *n == 0 {
                self.per_port.remove(&port);
            }
        }
    }

    fn insert(&mut self, now: Instant, mut conn: Conn) {
        let id = conn.id;
        conn.counted = true;
        self.count(conn.local_port);
        self.tuples.insert(tuple(&conn), id);
        self.by_node.entry(conn.remote.node).or_default().insert(id);
        self.conns.insert(id, Box::new(conn));
        self.settle(now, id);
    }

    fn remove(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        let key = tuple(&conn);
        if self.tuples.get(&key) == Some(&id) {
            self.tuples.remove(&key);
        }
        if let Some(set) = self.by_node.get_mut(&conn.remote.node) {
            set.remove(&id);
            if set.is_empty() {
                self.by_node.remove(&conn.remote.node);
            }
        }
        if let Some(at) = conn.timer {
            self.timers.remove(&(at, id));
        }
        if conn.counted {
            self.uncount(conn.local_port);
        }
        if !conn.incoming {
            self.ports.release(conn.local_port);
        }
        if conn.unaccepted
            && let Some(waiting) = self.listeners.get_mut(&conn.local_port)
        {
            *waiting = waiting.saturating_sub(1);
        }
    }

    fn next_id(&mut self) -> Option<ConnId> {
        // Numbers are never used twice in the life of a process.
        self.last_id = self.last_id.checked_add(1)?;
        Some(ConnId(self.last_id))
    }

    fn queue_reset(&mut self, header: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Reset::of(header));
        }
    }

    fn nodes_conns(&self, node: NodeId) -> Vec<ConnId> {
        self.by_node.get(&node).map(|set| set.iter().copied().collect()).unwrap_or_default()
    }

    // ---- input -------------------------------------------------------------------------------------------

    /// Takes a packet of protocol 1. `ingress` was established by the tunnel.
    pub fn handle_packet(&mut self, now: Instant, ingress: Ingress, packet: Packet<'_>) -> Handled {
        let header = packet.header;
        if header.src.node != ingress.node {
            // The tunnel knows who sent it; nobody speaks for another node.
            self.counters.foreign += 1;
            return Handled::Dropped;
        }
        let bits = header.flags;
        let syn = bits & flags::SYN != 0;
        if syn && bits & flags::ACK == 0 {
            return self.on_syn(now, ingress, &packet);
        }
        let key = (header.dst_port, header.src, header.src_port);
        let Some(&id) = self.tuples.get(&key) else {
            self.counters.unknown += 1;
            if self.config.extensions
                && self.resets.len() < MAX_RESETS
                && let Some(reset) = self.unknown.answer(now, &header)
            {
                self.counters.unknown_reset += 1;
                self.resets.push_back(reset);
            }
            return Handled::Dropped;
        };
        let mut reset = None;
        let taken = self.with(now, id, |conn, cx| {
            if syn {
                if conn.state != State::SynSent {
                    return false;
                }
                reset = conn.on_syn_ack(cx, &packet);
                true
            } else if bits & flags::FIN != 0 {
                conn.on_fin(cx, &packet)
            } else if bits & flags::RST != 0 {
                if !restart::says_unknown(&packet) {
                    conn.on_rst(cx);
                } else if conn.state == State::Open {
                    conn.on_unknown(cx);
                } else {
                    // It answers a packet of an earlier connection, or of one that is over.
                    return false;
                }
                true
            } else if bits & flags::ACK != 0 {
                conn.on_ack_packet(cx, &packet)
            } else {
                false
            }
        });
        if let Some(header) = reset {
            self.queue_reset(header);
        }
        if taken == Some(true) { Handled::Accepted } else { Handled::Dropped }
    }

    /// A connection request (spec 03 section 6.2, in that order).
    fn on_syn(&mut self, now: Instant, ingress: Ingress, packet: &Packet<'_>) -> Handled {
        let header = &packet.header;
        let port = header.dst_port;
        let Some(&waiting) = self.listeners.get(&port) else {
            return self.refuse(header);
        };
        let key = (port, header.src, header.src_port);
        if let Some(&id) = self.tuples.get(&key) {
            let mut live = false;
            self.with(now, id, |conn, cx| match conn.state {
                State::SynSent => live = true,
                // A straggler of the very SYN that opened it: our own nodes number each connection at random.
                State::Open if conn.opened_by(header.seq) => {
                    conn.on_repeated_syn(header.seq);
                    live = true;
                }
                State::TimeWait | State::Closed if conn.opened_by(header.seq) => live = true,
                // The peer came back under another tunnel key and has not answered on this connection since. Its numbers begin
                // anew, perhaps with the same: its data must not be taken for more of the old connection's.
                State::Open if conn.doubt.unsettled() => {
                    conn.end(cx, CloseReason::PeerRestarted);
                    conn.expire(cx.now);
                }
                State::Open if conn.closing.peer_fin.is_none() => {
                    conn.on_repeated_syn(header.seq);
                    live = true;
                }
                // The peer restarted while its FIN waited for data: the old connection ends silently.
                State::Open => {
                    conn.end(cx, CloseReason::Reset);
                    conn.expire(cx.now);
                }
                State::TimeWait => conn.expire(cx.now),
                State::Closed => {}
            });
            if live {
                return Handled::Accepted;
            }
            self.tuples.remove(&key);
        }
        if !ingress.admitted {
            return Handled::Untrusted;
        }
        if !self.syn_limit.admit(now, ingress.node) {
            self.counters.syn_rate_limited += 1;
            return Handled::Dropped;
        }
        let on_port = self.per_port.get(&port).copied().unwrap_or(0);
        if on_port >= self.config.max_conns_per_port || self.live >= self.config.max_conns_total {
            self.counters.too_many += 1;
            return self.refuse(header);
        }
        // One peer fills its share, never that of all.
        let share = self.config.accept_queue;
        if waiting >= share
            && (waiting >= ACCEPT_SHARES * share || self.unaccepted(port, ingress.node) >= share)
        {
            self.counters.accept_queue_drops += 1;
            return self.refuse(header);
        }
        let Some(id) = self.next_id() else { return self.refuse(header) };
        let iss = self.rng.next_u32();
        let (local, remote) = ((header.dst, port), (header.src, header.src_port));
        let mut conn = Conn::new(now, &self.config, id, local, remote, iss);
        conn.accept(&self.config, packet);
        conn.unaccepted = true;
        self.listeners.insert(port, waiting + 1);
        self.insert(now, conn);
        self.events.push_back(StreamEvent::Incoming {
            conn: id,
            port,
            local: header.dst,
            remote: header.src,
            remote_port: header.src_port,
        });
        Handled::Accepted
    }

    /// Connections of a node to a port that wait for the application.
    fn unaccepted(&self, port: u16, node: NodeId) -> usize {
        let conns = self.by_node.get(&node).into_iter().flatten().filter_map(|id| self.conns.get(id));
        conns.filter(|conn| conn.unaccepted && conn.local_port == port).count()
    }

    /// Answers with RST.
    fn refuse(&mut self, to: &Header) -> Handled {
        self.queue_reset(Header {
            flags: flags::RST,
            protocol: protocol::STREAM,
            src: to.dst,
            dst: to.src,
            src_port: to.dst_port,
            dst_port: to.src_port,
            ..Header::default()
        });
        Handled::Dropped
    }

    // ---- application -------------------------------------------------------------------------------------

    /// Binds a port. False: already bound.
    pub fn listen(&mut self, port: u16) -> bool {
        if self.listeners.contains_key(&port) {
            return false;
        }
        self.listeners.insert(port, 0);
        true
    }

    /// Frees a port. Connections already made stay.
    pub fn unlisten(&mut self, port: u16) {
        self.listeners.remove(&port);
    }

    /// Whether a port is bound.
    pub fn is_listening(&self, port: u16) -> bool {
        self.listeners.contains_key(&port)
    }

    /// Bound ports.
    pub fn listening(&self) -> usize {
        self.listeners.len()
    }

    /// The application took an incoming connection: it no longer counts against its listener's queue of
    /// [`Config::accept_queue`]. Reading, writing and closing imply it.
    pub fn accepted(&mut self, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        if std::mem::take(&mut conn.unaccepted)
            && let Some(waiting) = self.listeners.get_mut(&conn.local_port)
        {
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// [`Streams::with`] for what an application does.
    fn with_app<R>(
        &mut self,
        now: Instant,
        id: ConnId,
        f: impl FnOnce(&mut Conn, &mut Context<'_>) -> R,
    ) -> Option<R> {
        self.accepted(id);
        self.with(now, id, f)
    }

    /// Starts a dial from `local` (destination's network, own node). The outcome is an event.
    pub fn dial(&mut self, now: Instant, local: Addr, remote: Addr, port: u16) -> Result<ConnId, DialError> {
        if self.live >= self.config.max_conns_total {
            return Err(DialError::TooMany(self.config.max_conns_total));
        }
        let local_port = self.ports.take().ok_or(DialError::PortsExhausted)?;
        let Some(id) = self.next_id() else {
            self.ports.release(local_port);
            return Err(DialError::TooMany(u32::MAX as usize));
        };
        let iss = self.rng.next_u32();
        let conn = Conn::new(now, &self.config, id, (local, local_port), (remote, port), iss);
        self.insert(now, conn);
        Ok(id)
    }

    /// An ephemeral port for one datagram. It is free again at once (spec 03 section 4).
    pub fn ephemeral_port(&mut self) -> Option<u16> {
        let port = self.ports.take()?;
        self.ports.release(port);
        Some(port)
    }

    /// Hands bytes to a connection; takes all of them or, when the send buffer is full, a prefix. The rest is
    /// returned. An error means the connection takes no more bytes.
    pub fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason> {
        self.with_app(now, conn, |conn, _| match conn.write_refused() {
            Some(reason) => Err(reason),
            None => Ok(conn.send.buf.push(data)),
        })
        .unwrap_or(Err(CloseReason::Closed))
    }

    /// The next received bytes, if any, at most 256 KiB. They count against the window until
    /// [`Streams::consumed`]. [`StreamEvent::Readable`] comes again only after this returned `None`.
    pub fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        self.accepted(conn);
        let it = self.conns.get_mut(&conn)?;
        let bytes = it.read();
        if it.gone() {
            self.remove(conn);
        }
        bytes
    }

    /// The application is done with `bytes` it read: opens the window and may send an update.
    pub fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize) {
        self.with_app(now, conn, |conn, _| conn.consumed(bytes));
    }

    /// No more bytes from us (half-close, extension). False: half-close was not negotiated and nothing was done.
    pub fn finish(&mut self, now: Instant, conn: ConnId) -> bool {
        self.with_app(now, conn, |conn, cx| conn.finish(cx.now)).unwrap_or(false)
    }

    /// Whether half-close was negotiated on this connection.
    pub fn half_close(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|conn| conn.own.is_some_and(|own| own.half_close))
    }

    /// Orderly close of both directions: everything written is flushed, then FIN. A dial is cancelled.
    pub fn close(&mut self, now: Instant, conn: ConnId) {
        self.with_app(now, conn, |conn, cx| match conn.state {
            State::SynSent => conn.fail_dial(cx, DialError::Cancelled),
            _ => conn.close(cx),
        });
    }

    /// RST. A dial is cancelled, which sends nothing.
    pub fn abort(&mut self, now: Instant, conn: ConnId) {
        let reset = self.with_app(now, conn, |conn, cx| match conn.state {
            State::SynSent => {
                conn.fail_dial(cx, DialError::Cancelled);
                None
            }
            State::Open => Some(conn.give_up(cx, CloseReason::Aborted)),
            State::TimeWait | State::Closed => None,
        });
        if let Some(header) = reset.flatten() {
            self.queue_reset(header);
        }
    }

    /// The application is done with a connection: it is closed if it is not yet, and what was received and not read
    /// is forgotten.
    pub fn release(&mut self, now: Instant, conn: ConnId) {
        self.close(now, conn);
        self.with(now, conn, |conn, _| {
            if matches!(conn.state, State::TimeWait | State::Closed) {
                conn.recv.discard();
            }
        });
    }

    /// Bytes of a connection's application that the peer has acknowledged, while the connection is open.
    pub fn acknowledged(&self, conn: ConnId) -> Option<u64> {
        self.conns.get(&conn).filter(|conn| conn.state == State::Open).map(|conn| conn.send.una())
    }

    /// Who a connection is with, while it exists.
    pub fn describe(&self, conn: ConnId) -> Option<ConnInfo> {
        let conn = self.conns.get(&conn)?;
        Some(ConnInfo {
            local: conn.local,
            local_port: conn.local_port,
            remote: conn.remote,
            remote_port: conn.remote_port,
            incoming: conn.incoming,
        })
    }

    // ---- the tunnel --------------------------------------------------------------------------------------

    /// A dial's peer could not be resolved: the dial fails with this.
    pub fn fail_dials(&mut self, now: Instant, node: NodeId, error: DialError) {
        for id in self.nodes_conns(node) {
            self.with(now, id, |conn, cx| {
                if conn.state == State::SynSent {
                    conn.fail_dial(cx, error.clone());
                }
            });
        }
    }

    /// The tunnel to `node` became ready, or its path changed.
    pub fn path_changed(&mut self, now: Instant, node: NodeId) {
        for id in self.nodes_conns(node) {
            self.with(now, id, |conn, cx| match conn.state {
                State::SynSent => conn.dial.kick(cx.now),
                State::Open => conn.send.kick(cx.now),
                State::TimeWait | State::Closed => {}
            });
        }
        self.unblock(node);
    }

    /// The path to `node` carries packets with at most `max_payload` bytes of payload, and larger ones under way are lost.
    pub fn shrink(&mut self, now: Instant, node: NodeId, max_payload: usize) {
        for id in self.nodes_conns(node) {
            self.with(now, id, |conn, _| {
                if let (State::Open, Some(own)) = (conn.state, conn.own) {
                    conn.send.shrink(max_payload.min(own.max_segment).saturating_sub(1));
                }
            });
        }
        self.unblock(node);
    }

    /// A peer towards whom large segments get lost as if its path carried less than before, and the round trip.
    pub fn take_doubt(&mut self) -> Option<(NodeId, Duration)> {
        self.doubts.pop_front()
    }

    /// The peer came back under another tunnel key. One of our own may be the same process, and is asked for each connection;
    /// those with a reference are over.
    pub fn peer_rekeyed(&mut self, now: Instant, node: NodeId) {
        // Believed without a check of numbers, a late one would end what the new process has opened from the same port.
        self.resets.retain(|reset| reset.to().node != node);
        for id in self.nodes_conns(node) {
            self.with(now, id, |conn, cx| conn.peer_rekeyed(cx));
        }
    }

    /// Our id or every tunnel changed identity: all connections of `node` end.
    pub fn reset_node(&mut self, now: Instant, node: NodeId) {
        for id in self.nodes_conns(node) {
            self.with(now, id, |conn, cx| match conn.state {
                State::SynSent => conn.fail_dial(cx, DialError::Cancelled),
                _ => conn.on_rst(cx),
            });
        }
    }

    fn unblock(&mut self, node: NodeId) {
        for id in self.blocked.remove(&node).unwrap_or_default() {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.blocked = false;
                if !conn.queued {
                    conn.queued = true;
                    self.ready.push_back(id);
                }
            }
        }
    }

    /// One blocked node per call is asked whether its tunnel takes packets again.
    fn recheck_blocked(&mut self, path: &dyn Fn(NodeId) -> PathInfo) {
        let Some(node) = self.blocked_nodes.pop_front() else { return };
        if !self.blocked.contains_key(&node) {
            return;
        }
        let info = path(node);
        if info.ready && info.same_process {
            self.unblock(node);
        } else {
            self.blocked_nodes.push_back(node);
        }
    }

    // ---- output ------------------------------------------------------------------------------------------

    /// Appends the next packet to send (header, payload) to `out`. `path` answers what the tunnel to a node
    /// can take; connections whose path is not ready are skipped and keep their turn.
    pub fn poll_packet(
        &mut self,
        now: Instant,
        path: &dyn Fn(NodeId) -> PathInfo,
        out: &mut Vec<u8>,
    ) -> Option<PacketOut> {
        self.recheck_blocked(path);
        while let Some(reset) = self.resets.pop_front() {
            let (node, info) = (reset.to().node, path(reset.to().node));
            if info.ready && info.same_process && reset.emit(out) {
                return Some(PacketOut { node, asks: false });
            }
        }
        while let Some(&id) = self.ready.front() {
            let Some(conn) = self.conns.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let node = conn.remote.node;
            let info = path(node);
            if !info.ready || !info.same_process && conn.of_one_process() {
                (conn.queued, conn.blocked, conn.turn) = (false, true, 0);
                self.ready.pop_front();
                let list = self.blocked.entry(node).or_default();
                if list.is_empty() {
                    self.blocked_nodes.push_back(node);
                }
                list.push(id);
                continue;
            }
            let emitted = conn.emit(now, info, out);
            let (sent, asks) = (emitted.is_some(), emitted == Some(Emitted::Asks));
            if sent {
                conn.turn += 1;
                if conn.turn >= TURN {
                    conn.turn = 0;
                    self.ready.rotate_left(1);
                }
            } else {
                (conn.queued, conn.turn) = (false, 0);
                self.ready.pop_front();
            }
            self.schedule(now, id, now);
            if sent {
                return Some(PacketOut { node, asks });
            }
        }
        None
    }

    /// The next event, oldest first.
    pub fn poll_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    /// When [`Streams::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            let jitter = self.rng.next_u32();
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.timer = None;
            let mut cx = Context { now, config: &self.config, events: &mut self.events };
            let reset = conn.on_timer(&mut cx, jitter);
            if let Some(header) = reset {
                self.queue_reset(header);
            }
            // Every connection once per call, whatever its next deadline.
            self.settle_from(now, id, now + TIMER_STEP);
        }
    }

    // ---- status ------------------------------------------------------------------------------------------

    /// Every connection of the table, in no particular order.
    pub fn status(&self) -> Vec<ConnStatus> {
        self.conns.values().map(|conn| conn.status()).collect()
    }

    /// Live connections with `node` (for idle and reaping rules of the tunnel).
    pub fn connections_with(&self, node: NodeId) -> usize {
        self.by_node.get(&node).map_or(0, BTreeSet::len)
    }

    /// What was dropped, and why.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
