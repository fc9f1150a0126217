//! The task that owns the engine and the UDP socket.
//!
//! Nothing on a packet's way takes a lock or allocates per packet: datagrams are received in batches into fixed
//! buffers, opened in place, and sent from one transmit buffer. Everybody else talks to this task by messages.

use crate::carrier::Carrier;
use crate::command::{Command, Control, Delivery, DialToken, EngineStatus};
use crate::insist::SessionPins;
use crate::listener::{BACKLOG, Incoming};
use crate::node::{Datagram, NodeEvent};
use crate::platform::Complaint;
use crate::socket::{Sent, Socket};
use crate::stream::{Ends, Link, Stream};
use bytes::Bytes;
use pilot_proto::engine::{Engine, Event, Output, Route, SendError, Transmit};
use pilot_proto::stream::{CloseReason, ConnId, DialError, StreamEvent};
use pilot_proto::{Addr, NodeId};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Receive batches handled before anything else gets its turn.
const RECEIVES: usize = 4;
/// Commands handled per turn.
const COMMANDS: usize = 256;
/// Outputs of the engine handled per turn.
const OUTPUTS: usize = 256;
/// Bytes handed to the application and not yet consumed, per stream; beyond it they wait in the engine, where
/// they count against the window.
const READ_CREDIT: usize = 1024 * 1024;
/// Pause before trying again a send that found no room although there should be some.
const STUCK: Duration = Duration::from_millis(1);
/// Stream bytes after which memory is given back once no stream is left.
const TIDY_BYTES: usize = 4 * 1024 * 1024;
/// Time without a stream before that.
const TIDY_DELAY: Duration = Duration::from_secs(2);
/// Time streams get to say goodbye when the node stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// The driver's side of a stream.
struct Conn {
    link: Arc<Link>,
    /// `None` once the reader has everything, or is gone.
    received: Option<mpsc::UnboundedSender<Bytes>>,
    /// Bytes the application has and has not consumed.
    held: usize,
    /// No bytes will follow those the engine still has.
    ended: bool,
    /// Written, but the engine had no room. At most [`crate::stream::WRITE_CREDIT`] bytes.
    unsent: VecDeque<Bytes>,
    /// What to do once `unsent` is empty.
    finish: bool,
    close: bool,
    /// The engine is done with it.
    closed: bool,
    /// No handle is left.
    released: bool,
}

struct Dialling {
    token: DialToken,
    to: Addr,
    port: u16,
    reply: oneshot::Sender<Result<Stream, DialError>>,
}

/// Where the driver's messages go.
pub(crate) struct Outlets {
    pub(crate) control: mpsc::Sender<Control>,
    pub(crate) datagrams: broadcast::Sender<Datagram>,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    pub(crate) session_pins: Arc<SessionPins>,
}

pub(crate) struct Driver {
    engine: Engine,
    carrier: Carrier,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For the handles of new streams; weak, so that the channel ends with its users.
    commander: mpsc::WeakUnboundedSender<Command>,
    outlets: Outlets,
    conns: HashMap<ConnId, Conn>,
    dialling: HashMap<ConnId, Dialling>,
    /// Who waits to learn where a node is; as many as datagrams wait in the engine.
    resolving: HashMap<NodeId, Vec<oneshot::Sender<Result<(), SendError>>>>,
    listeners: HashMap<u16, mpsc::Sender<Incoming>>,
    buffer: Vec<u8>,
    /// A transmit the kernel had no room for, in `buffer`, and how much of it is sent.
    blocked: Option<(Transmit, usize)>,
    deadline: Option<Instant>,
    accept_queue_drops: u64,
    /// Stream bytes since memory was last given back, and when to do it next.
    moved: usize,
    tidy_at: Option<Instant>,
    flushing: Vec<oneshot::Sender<()>>,
    stopping: Option<(Instant, Vec<oneshot::Sender<()>>)>,
}

impl Driver {
    pub(crate) fn new(
        engine: Engine,
        carrier: Carrier,
        commands: mpsc::UnboundedReceiver<Command>,
        commander: mpsc::WeakUnboundedSender<Command>,
        outlets: Outlets,
    ) -> Driver {
        Driver {
            engine,
            carrier,
            commands,
            commander,
            outlets,
            conns: HashMap::new(),
            dialling: HashMap::new(),
            resolving: HashMap::new(),
            listeners: HashMap::new(),
            buffer: Vec::with_capacity(65_536),
            blocked: None,
            deadline: None,
            accept_queue_drops: 0,
            moved: 0,
            tidy_at: None,
            flushing: Vec::new(),
            stopping: None,
        }
    }

    /// Runs until told to stop.
    pub(crate) async fn run(mut self) {
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        self.carrier.begin(Instant::now(), &mut self.engine);
        let io = self.carrier.socket.io();
        let mut complaint = pin!(Socket::complaint(&io));
        loop {
            let mut busy = self.receive();
            for _ in 0..COMMANDS {
                match self.commands.try_recv() {
                    Ok(command) => self.command(Instant::now(), command),
                    Err(_) => break,
                }
            }
            let now = Instant::now();
            let engine = &mut self.engine;
            self.carrier.socket.complaints(|complaint| match complaint {
                Complaint::Unreachable(to) => engine.handle_unreachable(now, to),
                Complaint::TooBig { to, mtu } => engine.handle_mtu_hint(now, to, mtu),
            });
            self.carrier.poll(now, engine);
            if self.deadline.is_some_and(|at| at <= now) {
                self.engine.handle_timeout(now);
            }
            let stuck = self.blocked;
            let more = self.transmit();
            busy |= more;
            if !more && self.blocked.is_none() {
                for reply in self.flushing.drain(..) {
                    let _ = reply.send(());
                }
            }
            // "Writable" does not always mean that there is room (an error counts as writable, too).
            let stuck = stuck.is_some() && self.blocked == stuck;
            if let Some((until, replies)) = &mut self.stopping
                && (self.conns.values().all(|c| c.closed) || *until <= now)
            {
                for reply in replies.drain(..) {
                    let _ = reply.send(());
                }
                self.abandon();
                return;
            }
            if busy {
                // Others on this runtime thread get a turn, too.
                tokio::task::coop::consume_budget().await;
                continue;
            }
            self.tidy(now);
            let stop = self.stopping.as_ref().map(|(until, _)| *until);
            let deadline =
                [self.deadline, self.tidy_at, stop, self.carrier.deadline()].into_iter().flatten().min();
            let deadline = match deadline {
                at if !stuck => at,
                at => Some(at.map_or(now + STUCK, |at| at.min(now + STUCK))),
            };
            if let Some(at) = deadline {
                timer.as_mut().reset(at.into());
            }
            let Driver { carrier, commands, blocked, .. } = &mut self;
            let command = poll_fn(|cx| {
                if let Poll::Ready(command) = commands.poll_recv(cx) {
                    return Poll::Ready(command);
                }
                if complaint.as_mut().poll(cx).is_ready() {
                    complaint.set(Socket::complaint(&io));
                    carrier.socket.heard();
                    return Poll::Ready(None);
                }
                let writable =
                    !stuck && blocked.is_some_and(|(t, _)| carrier.poll_writable(cx, t.to).is_ready());
                if carrier.poll_readable(cx).is_ready()
                    || writable
                    || (deadline.is_some() && timer.as_mut().poll(cx).is_ready())
                {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await;
            if let Some(command) = command {
                self.command(Instant::now(), command);
            }
        }
    }

    /// Gives memory back when the streams that needed it have been gone for a while.
    fn tidy(&mut self, now: Instant) {
        if !self.conns.is_empty() || self.moved < TIDY_BYTES {
            self.tidy_at = None;
        } else if *self.tidy_at.get_or_insert(now + TIDY_DELAY) <= now {
            self.tidy_at = None;
            self.moved = 0;
            tokio::task::spawn_blocking(crate::platform::release_memory);
        }
    }

    /// Takes what the socket has; true: perhaps there is more.
    fn receive(&mut self) -> bool {
        for _ in 0..RECEIVES {
            if !self.carrier.socket.receive() {
                return self.carrier.receive(&mut self.engine);
            }
            self.carrier.deliver(Instant::now(), &mut self.engine);
        }
        self.carrier.receive(&mut self.engine);
        true
    }

    /// Does what the engine wants; true: there is more.
    fn transmit(&mut self) -> bool {
        if let Some((transmit, done)) = self.blocked.take()
            && !self.send(transmit, done)
        {
            return false;
        }
        for _ in 0..OUTPUTS {
            let now = Instant::now();
            match self.engine.poll_output(now, &mut self.buffer) {
                Output::Transmit(transmit) => {
                    if !self.send(transmit, 0) {
                        return false;
                    }
                }
                Output::Event(event) => self.event(now, event),
                Output::Timeout(at) => {
                    self.deadline = at;
                    return at.is_some_and(|at| at <= now);
                }
            }
        }
        true
    }

    /// Sends the buffer from `done` on; false: the kernel has no room.
    fn send(&mut self, transmit: Transmit, done: usize) -> bool {
        let Some(bytes) = self.buffer.get(done..transmit.len) else { return true };
        match self.carrier.send(Instant::now(), transmit.to, bytes, transmit.segment_size) {
            Sent::Done | Sent::Dropped => {}
            Sent::Blocked(more) => {
                self.blocked = Some((transmit, done + more));
                return false;
            }
            Sent::TooBig(len) => self.engine.handle_too_big(Instant::now(), transmit.to, len),
            Sent::Unreachable => self.engine.handle_unreachable(Instant::now(), transmit.to),
        }
        true
    }

    fn command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Write(id, data) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.unsent.push_back(data);
                    if conn.unsent.len() == 1 {
                        self.flush(now, id);
                    }
                }
            }
            Command::Consumed(id, bytes) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.held = conn.held.saturating_sub(bytes);
                    self.engine.consumed(now, id, bytes);
                    self.pull(now, id);
                }
            }
            Command::Discard(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.received = None;
                    let held = std::mem::take(&mut conn.held);
                    if held > 0 {
                        self.engine.consumed(now, id, held);
                    }
                    self.pull(now, id);
                }
            }
            Command::Finish(id) => self.end(now, id, |conn| conn.finish = true),
            Command::Close(id) => self.end(now, id, |conn| conn.close = true),
            Command::Abort(id) => self.engine.abort(now, id),
            Command::Release(id) => self.end(now, id, |conn| {
                conn.close = true;
                conn.released = true;
            }),
            Command::Dial { to, port, token, reply } => match self.engine.dial(now, to, port) {
                Ok(id) => {
                    self.dialling.insert(id, Dialling { token, to, port, reply });
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Command::CancelDial(token) => {
                if let Some((&id, _)) = self.dialling.iter().find(|(_, d)| d.token == token) {
                    self.dialling.remove(&id);
                    self.engine.abort(now, id);
                }
            }
            Command::Listen { port, reply } => {
                let incoming = (self.stopping.is_none() && self.engine.listen(port)).then(|| {
                    let (tx, rx) = mpsc::channel(BACKLOG);
                    self.listeners.insert(port, tx);
                    rx
                });
                let _ = reply.send(incoming);
            }
            Command::Unlisten(port) => {
                self.listeners.remove(&port);
                self.engine.unlisten(port);
            }
            Command::SendDatagram { to, port, payload, reply } => {
                let sent = self.engine.send_datagram(now, to, port, &payload);
                let taken = sent.map(|()| match self.engine.is_resolving(to.node) {
                    true => {
                        let (tx, rx) = oneshot::channel();
                        self.resolving.entry(to.node).or_default().push(tx);
                        Delivery(Some(rx))
                    }
                    false => Delivery(None),
                });
                let _ = reply.send(taken);
            }
            Command::PeerKey(node, key) => self.engine.set_peer_key(now, node, key),
            Command::DisputedKey(node, key, text) => self.engine.dispute_key(node, key, text),
            Command::Route(node, route) => self.set_route(now, node, route),
            Command::TryDirect(node) => self.engine.try_direct(now, node),
            Command::Greet(node, direct) => self.engine.greet(now, node, &direct),
            Command::Identity(identity, node) => self.engine.set_identity(now, identity, node),
            Command::Local(candidates) => self.engine.set_local_candidates(now, candidates),
            Command::NetworkChanged => self.carrier.network_changed(now, &mut self.engine),
            Command::Beacons(beacons) => self.carrier.set_beacons(now, &mut self.engine, &beacons),
            Command::Beacon(beacon) => self.carrier.set_beacons(now, &mut self.engine, beacon.as_slice()),
            Command::DiscoverProof(proof) => self.engine.set_discover_proof(now, proof),
            Command::Public(public) => self.engine.set_public(public),
            Command::Trusted(node, trusted) => self.engine.set_trusted(node, trusted),
            Command::Admit(node, until) => self.engine.admit(node, until),
            Command::ReplyWindow(node) => self.engine.open_reply_window(now, node),
            Command::Forget(node) => {
                self.engine.forget_peer(now, node);
                self.settle_datagrams(node, "the peer was forgotten");
            }
            Command::Pins(pins) => self.engine.set_pins(pins),
            Command::ClearPin(node) => drop(self.engine.clear_pin(node)),
            Command::Status(reply) => {
                let mut counters = self.engine.counters();
                counters.accept_queue_drops += self.accept_queue_drops;
                let _ = reply.send(EngineStatus {
                    peers: self.engine.peers(),
                    connections: self.engine.connections(),
                    counters,
                    ports: self.engine.ports(),
                });
            }
            Command::Flush(reply) => self.flushing.push(reply),
            Command::Shutdown(reply) => {
                let (_, replies) = self.stopping.get_or_insert_with(|| (now + GOODBYE, Vec::new()));
                replies.extend(reply);
                self.listeners.clear();
                let ids: Vec<ConnId> = self.conns.keys().copied().collect();
                for id in ids {
                    self.end(now, id, |conn| conn.close = true);
                }
            }
        }
    }

    /// Marks a stream as ending by `how`, and ends it as soon as what was written is with the engine.
    fn end(&mut self, now: Instant, id: ConnId, how: impl FnOnce(&mut Conn)) {
        if let Some(conn) = self.conns.get_mut(&id) {
            how(conn);
            if conn.closed && conn.released {
                self.conns.remove(&id);
                self.engine.release(now, id);
            } else {
                self.flush(now, id);
            }
        }
    }

    /// Hands written bytes to the engine while it has room.
    fn flush(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        while let Some(data) = conn.unsent.pop_front() {
            let len = data.len();
            self.moved = self.moved.saturating_add(len);
            match self.engine.write(now, id, data) {
                Ok(rest) => {
                    conn.link.credit.add_permits(len - rest.len());
                    if !rest.is_empty() {
                        conn.unsent.push_front(rest);
                        return;
                    }
                }
                Err(reason) => {
                    let _ = conn.link.reason.set(reason);
                    conn.link.credit.close();
                    conn.unsent.clear();
                }
            }
        }
        if conn.closed {
            return;
        }
        if std::mem::take(&mut conn.finish) {
            self.engine.finish(now, id);
        }
        if std::mem::take(&mut conn.close) {
            conn.link.credit.close();
            if conn.released {
                self.engine.release(now, id);
            } else {
                self.engine.close(now, id);
            }
        }
    }

    /// Hands received bytes to the application while it keeps up.
    fn pull(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        // What a closed stream still has is bounded by its window and no longer waits for anyone.
        while conn.held < READ_CREDIT || conn.closed {
            let Some(bytes) = self.engine.read(id) else {
                if conn.ended || conn.closed {
                    conn.received = None;
                }
                return;
            };
            let len = bytes.len();
            self.moved = self.moved.saturating_add(len);
            match conn.received.as_ref().map(|r| r.send(bytes)) {
                Some(Ok(())) => conn.held += len,
                _ => self.engine.consumed(now, id, len),
            }
        }
    }

    fn event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Stream(event) => self.stream_event(now, event),
            Event::Datagram { src, src_port, dst_port, payload } => {
                // Without a subscriber there is nobody to tell.
                let _ = self.outlets.datagrams.send(Datagram { src, src_port, dst_port, payload });
            }
            Event::Publish(name, data) => {
                if name == "security.downgrade_refused"
                    && data["signed"] == true
                    && let Some(node) = data["peer_node_id"].as_u64().and_then(|n| NodeId::try_from(n).ok())
                {
                    drop(self.outlets.control.try_send(Control::DowngradeRefused(node)));
                }
                let _ = self.outlets.events.send(NodeEvent { name, data });
            }
            Event::NeedKey(node) => {
                if self.outlets.control.try_send(Control::NeedKey(node)).is_err() {
                    self.engine.set_peer_key(now, node, None);
                }
            }
            Event::NeedRoute(node) => {
                if self.outlets.control.try_send(Control::NeedRoute(node)).is_err() {
                    self.set_route(now, node, Err("too many requests to the registry".into()));
                }
            }
            // The rest is advice; under overload it is dropped and comes again.
            Event::Knock { node, .. } => drop(self.outlets.control.try_send(Control::Knock(node))),
            Event::Notified => drop(self.outlets.control.try_send(Control::Notified)),
            Event::Observed(at) => drop(self.outlets.control.try_send(Control::Observed(at))),
            Event::PeerKeyProven { node, key } => {
                drop(self.outlets.control.try_send(Control::KeyProven(node, key)));
            }
            Event::OtherKeyProven { node, key } => {
                drop(self.outlets.control.try_send(Control::OtherKeyProven(node, key)));
            }
            Event::TunnelEstablished { node, .. } => self.settle_datagrams(node, "the peer was forgotten"),
            Event::Pinned { node, key } => self.outlets.session_pins.had(node, key),
            Event::Pong { .. } => {}
        }
    }

    /// Takes the directory's answer, and tells whoever sent datagrams there.
    fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>) {
        let reason = route.as_ref().err().cloned();
        self.engine.set_route(now, node, route);
        self.settle_datagrams(node, reason.as_deref().unwrap_or_default());
    }

    /// It is known now whether the datagrams for this node can be sent; `reason` is why not.
    fn settle_datagrams(&mut self, node: NodeId, reason: &str) {
        if self.resolving.is_empty() || self.engine.is_resolving(node) {
            return;
        }
        for reply in self.resolving.remove(&node).unwrap_or_default() {
            let result = match self.engine.has_peer(node) {
                true => Ok(()),
                false => Err(SendError::Resolve { node, reason: reason.to_owned() }),
            };
            let _ = reply.send(result);
        }
    }

    fn stream_event(&mut self, now: Instant, event: StreamEvent) {
        match event {
            StreamEvent::Connected(id) => {
                let Some(dial) = self.dialling.remove(&id) else { return };
                let local_port = self.local_port(id);
                if let Some(stream) = self.adopt(id, local_port, dial.to, dial.port) {
                    // If the dialler has gone meanwhile, the stream's drop closes it.
                    let _ = dial.reply.send(Ok(stream));
                }
            }
            StreamEvent::DialFailed(id, error) => {
                if let Some(dial) = self.dialling.remove(&id) {
                    let _ = dial.reply.send(Err(error));
                }
            }
            StreamEvent::Incoming { conn, port, remote, remote_port, .. } => {
                let room = self.listeners.get(&port).cloned().map(mpsc::Sender::try_reserve_owned);
                let Some(Ok(permit)) = room else {
                    if let Some(Err(mpsc::error::TrySendError::Full(_))) = room {
                        self.accept_queue_drops += 1;
                        let data = serde_json::json!({
                            "port": port,
                            "src_addr": remote.to_string(),
                            "src_port": remote_port,
                            "drops_total": self.accept_queue_drops,
                        });
                        let _ = self.outlets.events.send(NodeEvent { name: "conn.accept_queue_full", data });
                    }
                    self.engine.abort(now, conn);
                    return;
                };
                if let Some(stream) = self.adopt(conn, port, remote, remote_port) {
                    permit.send(stream);
                }
            }
            StreamEvent::Readable(id) => self.pull(now, id),
            StreamEvent::Writable(id) => self.flush(now, id),
            StreamEvent::EndOfStream(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.ended = true;
                    self.pull(now, id);
                }
            }
            StreamEvent::Closed(id, reason) => {
                if let Some(dial) = self.dialling.remove(&id) {
                    let _ = dial.reply.send(Err(DialError::Cancelled));
                }
                let Some(conn) = self.conns.get_mut(&id) else { return };
                let _ = conn.link.reason.set(reason);
                conn.link.credit.close();
                conn.unsent.clear();
                conn.closed = true;
                self.pull(now, id);
                if self.conns.get(&id).is_some_and(|conn| conn.released) {
                    self.conns.remove(&id);
                    self.engine.release(now, id);
                }
            }
        }
    }

    fn local_port(&self, id: ConnId) -> u16 {
        self.engine.describe(id).map_or(0, |conn| conn.local_port)
    }

    /// A handle for a connection of the engine; `None` if the node is going away.
    fn adopt(&mut self, id: ConnId, local_port: u16, remote: Addr, remote_port: u16) -> Option<Stream> {
        let commands = self.commander.upgrade()?;
        let (tx, rx) = mpsc::unbounded_channel();
        let link = Link::new();
        self.conns.insert(
            id,
            Conn {
                link: link.clone(),
                received: Some(tx),
                held: 0,
                ended: false,
                unsent: VecDeque::new(),
                finish: false,
                close: false,
                closed: false,
                released: false,
            },
        );
        // From here on the listener's own queue bounds what the application leaves lying.
        self.engine.accepted(id);
        let half_close = self.engine.half_close(id);
        let ends = Ends { id, local_port, remote, remote_port, half_close };
        Some(Stream::new(ends, link, commands, rx))
    }

    /// The node has stopped: whoever waits for a stream learns it.
    fn abandon(&mut self) {
        for (_, conn) in self.conns.drain() {
            let _ = conn.link.reason.set(CloseReason::Aborted);
            conn.link.credit.close();
        }
        for (_, dial) in self.dialling.drain() {
            let _ = dial.reply.send(Err(DialError::Cancelled));
        }
    }
}
