//! The one worker that handles decoded packets, in order of arrival, and what holds it up (spec 03 section 3).

use crate::node::Node;
use crate::stream::conn::{Conn, Note, Out, State};
use crate::stream::recv::Taken;
use crate::{ConnId, End, Event};
use bytes::Bytes;
use pilot_proto::NodeId;
use pilot_proto::wire::packet::{Header, flags, port, protocol};
use std::time::{Duration, Instant};

/// How long the worker waits for a slot of a full application queue.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// A decoded packet.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) sender: NodeId,
    pub(crate) header: Header,
    pub(crate) payload: Bytes,
}

/// Why the worker stands still.
#[derive(Debug)]
pub(crate) enum WorkWait {
    /// For a slot for this segment, until then.
    Slot { conn: ConnId, seq: u32, payload: Bytes, until: Instant },
    /// For the registry's word about the sender of this packet.
    Trust(Work),
}

impl WorkWait {
    pub(crate) fn until(&self) -> Option<Instant> {
        if let WorkWait::Slot { until, .. } = self { Some(*until) } else { None }
    }
}

impl Node {
    pub(crate) fn run_worker(&mut self, now: Instant) {
        loop {
            match self.work_wait.take() {
                Some(WorkWait::Slot { conn, seq, payload, until }) => {
                    let open = |c: &Conn| c.state == State::Established;
                    let free = self.streams.conns.get(&conn).is_none_or(|c| !open(c) || c.recv.has_slot());
                    if !free && now < until {
                        self.work_wait = Some(WorkWait::Slot { conn, seq, payload, until });
                        return;
                    }
                    let mut out = Out::default();
                    if let Some(c) = self.streams.conns.get_mut(&conn) {
                        if free {
                            c.on_data(now, seq, &payload, &mut out);
                        } else {
                            c.no_slot(&mut out);
                        }
                    }
                    self.absorb(now, out);
                }
                Some(wait @ WorkWait::Trust(_)) => {
                    self.work_wait = Some(wait);
                    return;
                }
                None => {
                    let Some(work) = self.work.pop_front() else { return };
                    self.handle(now, work, false);
                }
            }
        }
    }

    /// The wait for a slot is over.
    pub(crate) fn worker_timeout(&mut self, now: Instant) {
        self.run_worker(now);
    }

    pub(crate) fn trust_answer(&mut self, now: Instant, node: NodeId, trusted: bool) {
        match self.work_wait.take() {
            Some(WorkWait::Trust(work)) if work.sender == node => {
                if trusted {
                    self.handle(now, work, true);
                }
            }
            other => self.work_wait = other,
        }
    }

    fn handle(&mut self, now: Instant, work: Work, vouched: bool) {
        match work.header.protocol {
            protocol::STREAM => self.on_stream(now, work, vouched),
            protocol::DATAGRAM => self.on_datagram(work, vouched),
            protocol::CONTROL => self.on_control(now, &work),
            _ => {}
        }
    }

    fn on_control(&mut self, now: Instant, work: &Work) {
        let ping = &work.header;
        if ping.dst_port != port::PING || ping.flags & flags::ACK != 0 {
            return;
        }
        let mut src = ping.dst;
        if src.node == 0 {
            src.node = self.node;
        }
        let pong = Header {
            flags: flags::ACK,
            protocol: protocol::CONTROL,
            src,
            dst: ping.src,
            src_port: 0,
            dst_port: ping.src_port,
            seq: ping.seq,
            ack: ping.seq.wrapping_add(1),
            window: 0,
        };
        let mut packet = Vec::new();
        if pong.emit(&work.payload, &mut packet).is_ok() {
            self.send_packet(now, ping.src.node, &packet, false);
        }
    }

    /// Whether a private node lets this sender in; asks the registry if it has to.
    fn gate(&mut self, work: &Work, vouched: bool, reply: bool) -> bool {
        if self.config.public || vouched || reply || self.trusted.contains(&work.sender) {
            return true;
        }
        self.emit(Event::NeedTrust(work.sender));
        self.work_wait = Some(WorkWait::Trust(work.clone()));
        false
    }

    fn on_datagram(&mut self, work: Work, vouched: bool) {
        if work.payload.is_empty() || !self.gate(&work, vouched, false) {
            return;
        }
        let Work { header, payload, .. } = work;
        let (src, src_port, dst_port) = (header.src, header.src_port, header.dst_port);
        self.emit(Event::Datagram { src, src_port, dst_port, payload });
    }

    fn on_stream(&mut self, now: Instant, work: Work, vouched: bool) {
        let header = work.header;
        let (syn, ack) = (header.flags & flags::SYN != 0, header.flags & flags::ACK != 0);
        if syn && !ack {
            return self.on_syn(now, work, vouched);
        }
        let Some(id) = self.streams.find(header.dst_port, header.src, header.src_port) else { return };
        let mut out = Out::default();
        let Some(conn) = self.streams.conns.get_mut(&id) else { return };
        if syn {
            conn.on_syn_ack(now, &header, &mut out);
        } else if header.flags & flags::FIN != 0 {
            conn.on_fin(now, header.seq, &mut out);
        } else if header.flags & flags::RST != 0 {
            if conn.state == State::SynSent {
                out.notes.push((id, Note::Refused));
            } else {
                conn.remove(End::Reset, &mut out);
            }
        } else if ack && conn.on_ack(now, &header, &work.payload, &mut out) == Taken::NoSlot {
            let (seq, until) = (header.seq, now + SLOT_WAIT);
            self.work_wait = Some(WorkWait::Slot { conn: id, seq, payload: work.payload, until });
        }
        self.absorb(now, out);
    }

    /// A connection request, in the order of spec 03 section 6.2.
    fn on_syn(&mut self, now: Instant, work: Work, vouched: bool) {
        let header = work.header;
        let mut out = Out::default();
        if header.dst_port != port::ECHO && !self.streams.listeners.contains(&header.dst_port) {
            self.reset(now, &header);
            return;
        }
        let old = self.streams.find(header.dst_port, header.src, header.src_port);
        if let Some(conn) = old.and_then(|id| self.streams.conns.get_mut(&id))
            && conn.live()
        {
            if conn.recv.fin.is_some() {
                conn.remove(End::Replaced, &mut out);
                self.absorb(now, std::mem::take(&mut out));
            } else {
                if conn.state != State::SynSent {
                    conn.put_syn_ack(&mut out);
                }
                return self.absorb(now, out);
            }
        }
        let reply = matches!(header.dst_port, port::HANDSHAKE | port::DATA_EXCHANGE)
            && self.reply.get(&work.sender).is_some_and(|until| now < *until);
        if !self.gate(&work, vouched, reply) {
            return;
        }
        if !self.streams.take_syn(now, work.sender) {
            return;
        }
        if !self.streams.room(header.dst_port) {
            return self.reset(now, &header);
        }
        let id = self.streams.new_id();
        let echo = header.dst_port == port::ECHO;
        let buffer = if echo { 0 } else { self.streams.client_buffer };
        let local = (header.dst, header.dst_port);
        let mut conn = Conn::new(id, local, (header.src, header.src_port), now, buffer);
        conn.state = State::Established;
        conn.echo = echo;
        conn.recv.expected = header.seq.wrapping_add(1);
        conn.send.window = header.window;
        conn.put_syn_ack(&mut out);
        self.streams.conns.insert(id, conn);
        if !echo {
            self.emit(Event::Incoming(id, header.dst_port));
        }
        self.absorb(now, out);
    }

    fn reset(&mut self, now: Instant, syn: &Header) {
        let rst = Header {
            flags: flags::RST,
            protocol: protocol::STREAM,
            src: syn.dst,
            dst: syn.src,
            src_port: syn.dst_port,
            dst_port: syn.src_port,
            ..Header::default()
        };
        let mut packet = Vec::new();
        if rst.emit(b"", &mut packet).is_ok() {
            self.send_packet(now, syn.src.node, &packet, true);
        }
    }
}
