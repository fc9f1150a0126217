//! The applications: streams with known bytes in both directions, and what must be true of them.

use crate::check::{Sabotage, Violation, pattern};
use crate::job::job_bytes;
use crate::net::{Micros, SECOND};
use crate::plan::{Ending, FAULTS_END, Purpose, StreamPlan};
use crate::process::NodeKind;
use crate::world::{Happening, Reading, World};
use bytes::Bytes;
use pilot_proto::Addr;
use pilot_proto::stream::{CloseReason, ConnId, DialError, StreamEvent};

/// Port of every node's listener.
pub const PORT: u16 = 7000;
/// Bytes offered to a stream at a time.
const CHUNK: usize = 16 * 1024;
/// A failed probe is repeated after this time.
const RETRY: Micros = SECOND;
/// Between two chunks of a slow reader.
const SLOW: Micros = SECOND / 2;
/// After this time a process has forgotten a connection that is over, and answers its packets with a reset.
const TIME_WAIT: Micros = 10 * SECOND;
/// In a world with more nodes than this each probes only its next ones.
const MESH: usize = 8;
/// How many.
const NEXT: usize = 2;

/// One end of a stream.
#[derive(Debug, Default)]
pub struct Side {
    /// Its connection, once there is one.
    pub conn: Option<ConnId>,
    /// Bytes the process took.
    pub written: u64,
    /// Bytes the peer's process was known to have acknowledged.
    pub acknowledged: u64,
    /// What it wrote, if that cannot be computed (receipts).
    pub log: Vec<u8>,
    /// It ended its direction or both.
    pub ending: bool,
    /// Bytes its application got.
    pub delivered: u64,
    /// The process said no bytes follow.
    pub end_told: bool,
    /// How it ended.
    pub closed: Option<CloseReason>,
    /// And when, by its node's clock.
    pub closed_at: Micros,
    /// It is over: closed, never opened, or its process died.
    pub over: bool,
    /// Its process died.
    pub lost: bool,
    /// The application aborted it.
    pub aborted: bool,
    /// It is of a reference process that ended it before its last bytes, unknown to anybody.
    pub cut_short: bool,
    /// It may be one that a reference process ended, with the client it was for, before the application knew which it was.
    pub dropped: bool,
}

/// A stream of the workload.
#[derive(Debug)]
pub struct Stream {
    /// What it is for.
    pub plan: StreamPlan,
    /// Client and server.
    pub sides: [Side; 2],
    /// The dial's failure.
    pub failed: Option<DialError>,
}

impl Stream {
    /// A stream about to be dialled.
    pub fn new(plan: StreamPlan) -> Stream {
        Stream { plan, sides: Default::default(), failed: None }
    }

    /// The node of a side.
    pub fn node(&self, side: usize) -> usize {
        if side == 0 { self.plan.client } else { self.plan.server }
    }

    /// It tests that a pair connects.
    pub fn probe(&self) -> bool {
        self.plan.purpose == Purpose::Probe
    }

    /// Bytes a side has to write; those of a job's server are not known before.
    fn total(&self, side: usize) -> u64 {
        match self.plan.purpose {
            Purpose::Job { .. } if side == 1 => self.sides[1].written,
            _ => self.plan.bytes[side],
        }
    }

    /// Everything was delivered both ways and both sides ended in order.
    pub fn complete(&self) -> bool {
        let ended = |s: &Side| s.closed == Some(CloseReason::Closed);
        let all = |i: usize| self.sides[1 - i].delivered == self.total(i);
        self.sides.iter().all(ended) && all(0) && all(1)
    }
}

/// Bytes `offset..offset + len` of a direction. The client's first four name the stream.
fn content(id: u32, stream: &Stream, direction: usize, offset: u64, len: usize) -> Vec<u8> {
    let tag = (u64::from(id) << 1) | direction as u64;
    let mut out = match stream.plan.purpose {
        Purpose::Job { .. } if direction == 1 => {
            let until = stream.sides[1].log.len().min(offset as usize + len);
            return stream.sides[1].log.get(offset as usize..until).unwrap_or_default().to_vec();
        }
        // Behind the name.
        Purpose::Job { job, from } if offset >= 4 => return job_bytes(job, from + offset - 4, len),
        Purpose::Job { job, from } => {
            let name = (4 - offset as usize).min(len);
            let mut out = vec![0; name];
            out.extend(job_bytes(job, from, len - name));
            out
        }
        _ => pattern(tag, offset, len),
    };
    if direction == 0 {
        let id = id.to_be_bytes();
        for (i, byte) in out.iter_mut().enumerate().take(4) {
            if let Some(of_id) = usize::try_from(offset).ok().and_then(|o| id.get(o + i)) {
                *byte = *of_id;
            }
        }
    }
    out
}

impl World {
    /// Opens a stream.
    pub(crate) fn start_stream(&mut self, id: u32) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let (client, to) = (stream.plan.client, Addr::backbone(stream.plan.server as u32 + 1));
        self.note(|| {
            format!("node {}: dials node {} for stream {id}: {:?}", client + 1, to.node, stream.plan)
        });
        let now = self.clock(client);
        let dialled = self.nodes[client].process.as_mut().map(|e| e.dial(now, to, PORT));
        match dialled {
            Some(Ok(conn)) => {
                self.streams[id as usize].sides[0].conn = Some(conn);
                self.nodes[client].conns.insert(conn, (id, 0));
                self.drive(client)
            }
            Some(Err(error)) => self.dial_failed(id, error),
            None => self.dial_failed(id, DialError::Cancelled),
        }
    }

    fn dial_failed(&mut self, id: u32, error: DialError) -> Result<(), Violation> {
        let stream = &mut self.streams[id as usize];
        stream.sides[0].over = true;
        if stream.sides[1].conn.is_none() {
            stream.sides[1].over = true;
        }
        stream.failed = Some(error.clone());
        let excused = self.excused(id);
        if self.plan.calm && !excused {
            return Err(Violation::FailedInCalm { stream: id, cause: error.to_string() });
        }
        self.try_again(id);
        Ok(())
    }

    /// Excuse: a reference node answers on a direct path that is dead for as long as the peer's frames reach it through the
    /// relay (spec 04 section 9), so that streams with it may fail without a fault.
    fn excused(&self, id: u32) -> bool {
        let plan = &self.streams[id as usize].plan;
        self.plan.reference(plan.client) || self.plan.reference(plan.server)
    }

    /// A stream of which the client has no hope any more: probes and jobs are dialled again.
    fn try_again(&mut self, id: u32) {
        let stream = &self.streams[id as usize];
        if stream.probe() {
            let plan = StreamPlan { at: self.now + RETRY, ..stream.plan.clone() };
            self.add_stream(plan);
        }
        self.attempt_over(id);
    }

    /// An event of the stream layer at a node.
    pub(crate) fn on_stream_event(&mut self, n: usize, event: StreamEvent) -> Result<(), Violation> {
        let conn = match &event {
            StreamEvent::Connected(c)
            | StreamEvent::DialFailed(c, _)
            | StreamEvent::Readable(c)
            | StreamEvent::Writable(c)
            | StreamEvent::EndOfStream(c)
            | StreamEvent::Closed(c, _) => *c,
            StreamEvent::Incoming { conn, .. } => {
                self.nodes[n].strangers.insert(*conn, Vec::new());
                if let Some(process) = self.nodes[n].process.as_mut() {
                    process.accepted(*conn);
                }
                return Ok(());
            }
        };
        if self.nodes[n].strangers.contains_key(&conn) {
            self.identify(n, conn)?;
        }
        let Some(&(id, side)) = self.nodes[n].conns.get(&conn) else {
            if let StreamEvent::Closed(..) | StreamEvent::EndOfStream(_) = event {
                // Nobody ever said which stream it is.
                self.nodes[n].strangers.remove(&conn);
                let now = self.clock(n);
                if let Some(process) = self.nodes[n].process.as_mut() {
                    process.release(now, conn);
                }
            }
            return Ok(());
        };
        match event {
            StreamEvent::Connected(_) => {
                self.schedule_abort(id, 0);
                self.pump_write(n, id, side)
            }
            StreamEvent::DialFailed(_, error) => {
                self.nodes[n].conns.remove(&conn);
                self.dial_failed(id, error)
            }
            StreamEvent::Writable(_) => self.pump_write(n, id, side),
            StreamEvent::Readable(_) => self.pump_read(n, id, side, usize::MAX),
            StreamEvent::EndOfStream(_) => {
                let early = self.lie(Sabotage::EarlyEnd) && {
                    let stream = &self.streams[id as usize];
                    stream.sides[side].delivered < stream.sides[1 - side].written
                };
                if early {
                    self.lied = true;
                    return self.check_end(id, side);
                }
                self.streams[id as usize].sides[side].end_told = true;
                self.pump_read(n, id, side, usize::MAX)
            }
            StreamEvent::Closed(_, reason) => self.on_closed(n, id, side, reason),
            StreamEvent::Incoming { .. } => Ok(()),
        }
    }

    /// Reads the first four bytes of an accepted connection: they name the stream.
    fn identify(&mut self, n: usize, conn: ConnId) -> Result<(), Violation> {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(mut early) = node.strangers.remove(&conn) else { return Ok(()) };
        while early.len() < 4 {
            let Some(bytes) = process.read(conn) else { break };
            process.consumed(now, conn, bytes.len());
            early.extend_from_slice(&bytes);
        }
        let Some(name) = early.first_chunk::<4>() else {
            node.strangers.insert(conn, early);
            return Ok(());
        };
        let id = u32::from_be_bytes(*name);
        let wrong = Violation::NotAPrefix { stream: id, direction: 0, offset: 0 };
        let Some(stream) = self.streams.get_mut(id as usize) else { return Err(wrong) };
        if stream.plan.server != n {
            return Err(wrong);
        }
        let server = &mut stream.sides[1];
        if server.lost {
            // Opened at the process that died; what still comes belongs to nobody.
            process.abort(now, conn);
            return Ok(());
        }
        if server.conn.is_some() {
            return Err(Violation::StreamTwice { stream: id });
        }
        (server.conn, server.over, server.dropped) = (Some(conn), false, false);
        node.conns.insert(conn, (id, 1));
        self.deliver(n, id, 1, &early)?;
        self.schedule_abort(id, 1);
        self.pump_write(n, id, 1)?;
        self.pump_read(n, id, 1, usize::MAX)
    }

    fn schedule_abort(&mut self, id: u32, side: usize) {
        if let Ending::Abort(who, after) = self.streams[id as usize].plan.ending
            && who == side
        {
            self.at(self.now + after, Happening::Abort(id));
        }
    }

    /// The application aborts.
    pub(crate) fn abort_stream(&mut self, id: u32) -> Result<(), Violation> {
        let Ending::Abort(side, _) = self.streams[id as usize].plan.ending else { return Ok(()) };
        let stream = &mut self.streams[id as usize];
        let (n, conn) = (stream.node(side), stream.sides[side].conn);
        if stream.sides[side].over {
            return Ok(());
        }
        stream.sides[side].aborted = true;
        let now = self.clock(n);
        if let (Some(conn), Some(process)) = (conn, self.nodes[n].process.as_mut()) {
            process.abort(now, conn);
        }
        self.drive(n)
    }

    fn pump_write(&mut self, n: usize, id: u32, side: usize) -> Result<(), Violation> {
        let now = self.clock(n);
        let stream = &mut self.streams[id as usize];
        let (total, ending, job) =
            (stream.plan.bytes[side], stream.plan.ending, matches!(stream.plan.purpose, Purpose::Job { .. }));
        let (Some(conn), Some(process)) = (stream.sides[side].conn, self.nodes[n].process.as_mut()) else {
            return Ok(());
        };
        if stream.sides[side].over || stream.sides[side].ending {
            return Ok(());
        }
        while stream.sides[side].written < total && !(job && side == 1) {
            let written = stream.sides[side].written;
            let len = CHUNK.min((total - written) as usize);
            let bytes = Bytes::from(content(id, stream, side, written, len));
            let me = &mut stream.sides[side];
            let Ok(rest) = process.write(now, conn, bytes) else { return Ok(()) };
            me.written += (len - rest.len()) as u64;
            if !rest.is_empty() {
                return Ok(()); // The buffer is full; Writable follows.
            }
        }
        if job
            && !(if side == 0 { self.all_receipted(id) } else { self.streams[id as usize].sides[1].end_told })
        {
            return Ok(());
        }
        let answered =
            job || self.streams[id as usize].sides[0].delivered == self.streams[id as usize].plan.bytes[1];
        let Some(process) = self.nodes[n].process.as_mut() else { return Ok(()) };
        let me = &mut self.streams[id as usize].sides[side];
        match (ending, side) {
            (Ending::Answered, 0) if answered => {
                me.ending = true;
                process.close(now, conn);
            }
            (Ending::HalfClose, _) => me.ending = process.finish(now, conn),
            (Ending::Close, 0) => {
                me.ending = true;
                process.close(now, conn);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads up to `most` chunks, if the node's applications read at all.
    pub(crate) fn pump_read(&mut self, n: usize, id: u32, side: usize, most: usize) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let Some(conn) = stream.sides[side].conn else { return Ok(()) };
        let most = match self.nodes[n].reading {
            // What is left of a connection that is over is taken from the process at once, as the node's driver does.
            _ if stream.sides[side].over => usize::MAX,
            Reading::Fast => most,
            Reading::Slow if most == 1 => 1,
            Reading::Slow | Reading::Stuck => {
                self.read_put_off(n);
                return Ok(());
            }
        };
        if self.sabotage == Some(Sabotage::KeepConnections) && stream.plan.ending == Ending::Close {
            return Ok(());
        }
        for _ in 0..most {
            let now = self.clock(n);
            let Some(process) = self.nodes[n].process.as_mut() else { return Ok(()) };
            let Some(bytes) = process.read(conn) else {
                return self.drained(n, id, side);
            };
            process.consumed(now, conn, bytes.len());
            if self.lie(Sabotage::LoseChunk) {
                self.lied = true;
                continue;
            }
            self.deliver(n, id, side, &bytes)?;
            if self.lie(Sabotage::DeliverTwice) {
                self.lied = true;
                self.deliver(n, id, side, &bytes)?;
            }
            if self.lie(Sabotage::SecretAbort) && side == 1 {
                self.lied = true;
                if let Some(process) = self.nodes[n].process.as_mut() {
                    process.abort(now, conn);
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, n: usize, id: u32, side: usize, bytes: &[u8]) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let (me, peer) = (&stream.sides[side], &stream.sides[1 - side]);
        let direction = 1 - side;
        let sent = content(id, stream, direction, me.delivered, bytes.len());
        if me.delivered + bytes.len() as u64 > peer.written || sent != bytes {
            return Err(Violation::NotAPrefix { stream: id, direction, offset: me.delivered });
        }
        self.streams[id as usize].sides[side].delivered += bytes.len() as u64;
        self.report.bytes += bytes.len() as u64;
        if side == 1 {
            self.store(n, id);
            return Ok(());
        }
        self.read_receipts(id)?;
        let stream = &self.streams[id as usize];
        let done = match stream.plan.purpose {
            Purpose::Job { .. } => self.all_receipted(id),
            _ => stream.plan.ending == Ending::Answered && stream.sides[0].delivered == stream.plan.bytes[1],
        };
        if done { self.pump_write(n, id, 0) } else { Ok(()) }
    }

    /// Nothing more to read now.
    fn drained(&mut self, n: usize, id: u32, side: usize) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let me = &stream.sides[side];
        let Some(conn) = me.conn else { return Ok(()) };
        if me.end_told {
            self.check_end(id, side)?;
            self.pump_write(n, id, side)?;
        }
        let me = &self.streams[id as usize].sides[side];
        let close = me.end_told && self.streams[id as usize].plan.ending != Ending::HalfClose;
        if close || me.over {
            let now = self.clock(n);
            if let Some(process) = self.nodes[n].process.as_mut() {
                process.release(now, conn);
            }
            self.streams[id as usize].sides[side].ending = true;
        }
        Ok(())
    }

    /// The process said that this was all: it must be all the other side wrote, and that side must have ended.
    fn check_end(&self, id: u32, side: usize) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let (me, peer) = (&stream.sides[side], &stream.sides[1 - side]);
        // A node that woke up after the idle time closes its connections; the other side sees their end.
        let ended = peer.ending || self.nodes[stream.node(1 - side)].slept;
        // Excuse: a reference node that ends a stream of its own accord, or before its last bytes, says so to us alone. Its
        // applications can only close, where ours abort, and so does it for a client it drops.
        let lost = peer.lost || peer.dropped;
        let closed = (peer.aborted || lost) && self.plan.reference(stream.node(1 - side));
        let ended = ended || peer.cut_short || closed;
        let short = me.delivered != peer.written && !peer.cut_short && !(closed && lost);
        if short || !ended {
            let (delivered, sent) = (me.delivered, peer.written);
            return Err(Violation::Incomplete { stream: id, direction: 1 - side, delivered, sent });
        }
        Ok(())
    }

    fn on_closed(&mut self, n: usize, id: u32, side: usize, reason: CloseReason) -> Result<(), Violation> {
        if self.lie(Sabotage::SwallowClosed) {
            self.lied = true;
            return Ok(());
        }
        self.sample(n);
        let peer_node = self.streams[id as usize].node(1 - side);
        let (own_clock, peer_clock) =
            (self.now + self.nodes[n].ahead, self.now + self.nodes[peer_node].ahead);
        let [a, b] = &mut self.streams[id as usize].sides;
        let (me, peer) = if side == 0 { (a, b) } else { (b, a) };
        (me.closed, me.over, me.closed_at) = (Some(reason), true, own_clock);
        let forgotten = peer.closed.is_some() && peer_clock >= peer.closed_at + TIME_WAIT;
        let gave_up = peer.closed.is_some_and(|r| r != CloseReason::Closed);
        let peer_gone = peer.lost || peer.aborted || gave_up || forgotten;
        // A server that never learnt which stream it had may have given up unseen.
        // Excuse: our node forgets a connection whose FIN a reference node leaves unanswered for 10 s, and resets what
        // that node sends on it later.
        let forgotten = peer.closed.is_some() && self.plan.nodes[n].kind == NodeKind::Reference;
        if reason == CloseReason::Reset && !peer_gone && peer.conn.is_some() && !forgotten {
            return Err(Violation::UnprovokedReset { stream: id, side });
        }
        if side == 0 && peer.conn.is_none() {
            peer.over = true;
        }
        *self.report.ends.entry(reason.to_string()).or_default() += 1;
        let stream = &self.streams[id as usize];
        let wanted = !matches!(stream.plan.ending, Ending::Abort(..));
        if self.plan.calm && wanted && !self.excused(id) && reason != CloseReason::Closed {
            return Err(Violation::FailedInCalm { stream: id, cause: reason.to_string() });
        }
        self.pump_read(n, id, side, usize::MAX)?;
        if side == 0 && (reason != CloseReason::Closed || !self.all_receipted(id)) {
            self.try_again(id);
        }
        if self.streams[id as usize].probe() && self.streams[id as usize].complete() {
            self.report.connected_after = self.now - FAULTS_END;
        }
        Ok(())
    }

    /// A reference node drops its client, and with it connections of which nobody has said yet which streams they are.
    pub(crate) fn drop_strangers(&mut self, n: usize) {
        if self.nodes[n].strangers.is_empty() {
            return;
        }
        for stream in self.streams.iter_mut().filter(|s| s.plan.server == n) {
            let [client, server] = &mut stream.sides;
            server.dropped |= client.conn.is_some() && !client.over && server.conn.is_none();
        }
    }

    /// A node's process dies: its streams are over, on its side.
    pub(crate) fn lose_streams(&mut self, n: usize) {
        let conns = std::mem::take(&mut self.nodes[n].conns);
        self.nodes[n].strangers.clear();
        let mut again = Vec::new();
        for (id, side) in conns.into_values() {
            let stream = &mut self.streams[id as usize];
            let was_over = stream.sides[side].over;
            (stream.sides[side].lost, stream.sides[side].over) = (true, true);
            if side == 0 && stream.sides[1].conn.is_none() {
                stream.sides[1].over = true;
            }
            if side == 0 && !was_over {
                again.push(id);
            }
        }
        // A probe or job whose client died is dialled again.
        again.into_iter().for_each(|id| self.try_again(id));
    }

    /// Whether every stream has ended; if not, the first that has not.
    pub(crate) fn unended(&self) -> Option<(u32, usize)> {
        let open = |(id, stream): (usize, &Stream)| {
            stream.sides.iter().position(|s| !s.over).map(|side| (id as u32, side))
        };
        self.streams.iter().enumerate().find_map(open)
    }

    /// Pairs that have not exchanged a whole probe stream yet. `all`: those with a reference node as well.
    pub(crate) fn unreached(&self, all: bool) -> Option<(u32, u32)> {
        let counts =
            |s: &&Stream| all || !(self.plan.reference(s.plan.client) || self.plan.reference(s.plan.server));
        let probes = self.streams.iter().filter(|s| s.probe()).filter(counts);
        let done: std::collections::BTreeSet<(usize, usize)> =
            probes.clone().filter(|s| s.complete()).map(|s| (s.plan.client, s.plan.server)).collect();
        let missing = probes.map(|s| (s.plan.client, s.plan.server)).find(|p| !done.contains(p));
        missing.map(|(a, b)| (a as u32 + 1, b as u32 + 1))
    }

    /// Dials every pair; in a large world each node its next ones.
    pub(crate) fn add_probes(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                if self.plan.reference(a) && self.plan.reference(b) {
                    continue;
                }
                let near = b - a <= NEXT || count - (b - a) <= NEXT;
                if count > MESH && !near {
                    continue;
                }
                let (client, server) = if (a + b) % 2 == 0 { (a, b) } else { (b, a) };
                self.add_stream(StreamPlan {
                    at: FAULTS_END + ((a * count + b) as u64) * 1_000,
                    client,
                    server,
                    bytes: [2_000, 2_000],
                    ending: self.plan.ending(client, server, Ending::HalfClose),
                    purpose: Purpose::Probe,
                });
            }
        }
    }

    /// A slow reader takes one chunk of every connection.
    pub(crate) fn slow_read(&mut self, n: usize) -> Result<(), Violation> {
        if self.nodes[n].reading != Reading::Slow {
            return Ok(());
        }
        self.read_all(n, 1)?;
        self.at(self.now + SLOW, Happening::Read(n));
        Ok(())
    }

    /// Reads what the applications of a node left unread.
    pub(crate) fn read_all(&mut self, n: usize, most: usize) -> Result<(), Violation> {
        let all: Vec<(u32, usize)> = self.nodes[n].conns.values().copied().collect();
        for (id, side) in all {
            self.pump_read(n, id, side, most)?;
        }
        self.drive(n)
    }
}
