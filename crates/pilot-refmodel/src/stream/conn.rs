//! One connection (spec 03 sections 5 to 17).

use super::recv::{AckNow, Receiver, Taken, diff, parse_sack};
use super::send::{Act, Sender};
use crate::{ConnId, End};
use bytes::Bytes;
use pilot_proto::Addr;
use pilot_proto::wire::packet::{Header, flags, protocol};
use std::time::{Duration, Instant};

/// A FIN waits this long for the data before it to be acknowledged.
const FIN_HELD: Duration = Duration::from_secs(5);
/// A peer's early FIN is handled after this long without a word from the peer.
const FIN_WAITS: Duration = Duration::from_secs(15);
/// Without activity: when keepalives begin, and when the connection is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(120);
const KEEPALIVES: u8 = 3;
/// A connection that ended, or is ending, is forgotten after this long without activity.
const LINGER: Duration = Duration::from_secs(10);
/// A SYN-ACK that comes later than this after the dial finds no connection, from the next sweep on.
const SYN_SENT_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    Established,
    FinWait,
    TimeWait,
    Closed,
}

/// The connection's own FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    None,
    /// Its number is reserved; it goes out when everything before it is acknowledged, or at this time.
    Held(u32, Instant),
    Sent,
}

/// What a connection wants done besides packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    Connected,
    Refused,
    Readable,
    Writable,
    /// No more bytes will come.
    Ended,
    Over(End),
    CutShort,
}

/// Packets and notes a connection produced.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) packets: Vec<(Header, Bytes)>,
    pub(crate) notes: Vec<(ConnId, Note)>,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) local: Addr,
    pub(crate) local_port: u16,
    pub(crate) remote: Addr,
    pub(crate) remote_port: u16,
    pub(crate) state: State,
    /// No longer in the table: packets do not find it.
    pub(crate) removed: bool,
    created: Instant,
    pub(crate) activity: Instant,
    keepalives: u8,
    pub(crate) send: Sender,
    pub(crate) recv: Receiver,
    fin: Fin,
    /// The application closed; what is still to be written goes first.
    closing: bool,
    /// The application closed: nobody reads any more.
    pub(crate) abandoned: bool,
    ended: bool,
    over: bool,
    /// It was closed because nothing happened on it.
    idle: bool,
    /// The node's own echo service serves it.
    pub(crate) echo: bool,
}

impl Conn {
    pub(crate) fn new(
        id: ConnId,
        local: (Addr, u16),
        remote: (Addr, u16),
        now: Instant,
        client_buffer: usize,
    ) -> Conn {
        Conn {
            id,
            local: local.0,
            local_port: local.1,
            remote: remote.0,
            remote_port: remote.1,
            state: State::SynSent,
            removed: false,
            created: now,
            activity: now,
            keepalives: 0,
            send: Sender::new(now),
            recv: Receiver::new(0, client_buffer),
            fin: Fin::None,
            closing: false,
            abandoned: false,
            ended: false,
            over: false,
            idle: false,
            echo: false,
        }
    }

    /// States that count as an open connection.
    pub(crate) fn live(&self) -> bool {
        !self.removed && !matches!(self.state, State::TimeWait | State::Closed)
    }

    fn header(&self, flags: u8, seq: u32, ack: u32, window: u16) -> Header {
        Header {
            flags,
            protocol: protocol::STREAM,
            src: self.local,
            dst: self.remote,
            src_port: self.local_port,
            dst_port: self.remote_port,
            seq,
            ack,
            window,
        }
    }

    fn put(&self, out: &mut Out, flags: u8, seq: u32, ack: u32, window: u16, payload: Bytes) {
        out.packets.push((self.header(flags, seq, ack, window), payload));
    }

    pub(crate) fn put_syn(&self, out: &mut Out) {
        self.put(out, flags::SYN, 0, 0, self.recv.window(), Bytes::new());
    }

    pub(crate) fn put_syn_ack(&self, out: &mut Out) {
        self.put(out, flags::SYN | flags::ACK, 0, self.recv.expected, self.recv.window(), Bytes::new());
    }

    fn put_ack(&mut self, out: &mut Out) {
        let payload = Bytes::from(self.recv.sack());
        self.put(out, flags::ACK, self.send.nxt, self.recv.expected, self.recv.window(), payload);
        self.recv.acked();
    }

    fn put_empty(&mut self, out: &mut Out) {
        self.put(out, flags::ACK, self.send.nxt, self.recv.expected, self.recv.window(), Bytes::new());
    }

    fn put_fin_ack(&self, out: &mut Out, fin: u32) {
        let seq = self.send.nxt;
        self.put(out, flags::FIN | flags::ACK, seq, fin.wrapping_add(1), 0, Bytes::new());
    }

    fn end(&mut self, out: &mut Out) {
        if !self.ended {
            self.ended = true;
            out.notes.push((self.id, Note::Ended));
        }
    }

    fn over(&mut self, why: End, out: &mut Out) {
        if !self.over {
            self.over = true;
            let why = if self.idle { End::Idle } else { why };
            out.notes.push((self.id, Note::Over(why)));
        }
    }

    /// The connection leaves the table.
    pub(crate) fn remove(&mut self, why: End, out: &mut Out) {
        self.state = State::Closed;
        self.removed = true;
        self.send.stop();
        self.recv.delayed = None;
        self.recv.fin = None;
        self.fin = Fin::None;
        self.end(out);
        self.over(why, out);
    }

    /// Nobody needs it any more.
    pub(crate) fn finished(&self) -> bool {
        self.removed && (self.abandoned || self.recv.unread() == 0)
    }

    fn perform(&mut self, now: Instant, acts: Vec<Act>, out: &mut Out) {
        for act in acts {
            match act {
                Act::Data(segment, new) => {
                    if new {
                        self.activity = now;
                    }
                    let (ack, window) = (self.recv.expected, self.recv.window());
                    self.put(out, flags::ACK, segment.seq, ack, window, segment.data);
                    self.recv.acked();
                }
                Act::Probe => self.put_empty(out),
                Act::GiveUp => {
                    self.put(out, flags::RST, 0, 0, 0, Bytes::new());
                    self.remove(End::GaveUp, out);
                }
            }
        }
    }

    // ---- the application ---------------------------------------------------------------------------------

    /// Takes a write. False: the connection does not carry data any more.
    pub(crate) fn write(&mut self, now: Instant, data: Bytes, out: &mut Out) -> bool {
        if self.state != State::Established || self.closing {
            return false;
        }
        self.send.write(data);
        self.pump(now, out);
        true
    }

    fn pump(&mut self, now: Instant, out: &mut Out) {
        if self.state != State::Established {
            return;
        }
        let acts = self.send.pump(now);
        self.perform(now, acts, out);
        self.after_pump(now, out);
    }

    fn after_pump(&mut self, now: Instant, out: &mut Out) {
        if self.state == State::Established && !self.send.blocked() {
            if self.closing {
                self.close_now(now, out);
            } else {
                out.notes.push((self.id, Note::Writable));
            }
        }
    }

    /// The application closes. Writes that were not through yet go first.
    pub(crate) fn close(&mut self, now: Instant, out: &mut Out) {
        self.closing = true;
        match self.state {
            State::Established if self.send.blocked() => {}
            State::Established => self.close_now(now, out),
            // A quirk: the state goes back, without a packet.
            State::TimeWait => {
                self.state = State::FinWait;
                self.activity = now;
            }
            State::SynSent => self.remove(End::Own, out),
            State::FinWait | State::Closed => {}
        }
    }

    fn close_now(&mut self, now: Instant, out: &mut Out) {
        let acts = self.send.flush_ignoring_window(now);
        self.perform(now, acts, out);
        if self.state != State::Established {
            return;
        }
        self.state = State::FinWait;
        self.activity = now;
        self.recv.delayed = None;
        let seq = self.send.nxt;
        self.send.nxt = seq.wrapping_add(1);
        if self.send.unacked() == 0 {
            self.put_fin(now, seq, out);
        } else {
            self.fin = Fin::Held(seq, now + FIN_HELD);
        }
        self.end(out);
    }

    fn put_fin(&mut self, now: Instant, seq: u32, out: &mut Out) {
        self.fin = Fin::Sent;
        self.activity = now;
        if self.send.unacked() > 0 {
            out.notes.push((self.id, Note::CutShort));
        }
        self.put(out, flags::FIN, seq, 0, 0, Bytes::new());
    }

    // ---- packets -----------------------------------------------------------------------------------------

    /// A SYN-ACK; `true`: it answered our SYN.
    pub(crate) fn on_syn_ack(&mut self, now: Instant, header: &Header, out: &mut Out) -> bool {
        if self.state != State::SynSent {
            return false;
        }
        self.state = State::Established;
        self.recv.expected = header.seq.wrapping_add(1);
        self.send.window = header.window;
        self.activity = now;
        self.put_ack(out);
        out.notes.push((self.id, Note::Connected));
        true
    }

    /// The FIN branch: FIN with or without ACK.
    pub(crate) fn on_fin(&mut self, now: Instant, seq: u32, out: &mut Out) {
        match self.state {
            State::Established => {
                self.keepalives = 0;
                if diff(seq, self.recv.expected) > 0 {
                    let first = self.recv.fin.map_or(seq, |(first, _)| first);
                    self.recv.fin = Some((first, now));
                    return self.put_ack(out);
                }
                self.take_fin(now, seq, End::Fin, out);
            }
            State::FinWait => {
                self.send.stop();
                if let Fin::Held(..) = self.fin {
                    self.fin = Fin::Sent;
                }
                self.put_fin_ack(out, seq);
                self.state = State::TimeWait;
                self.activity = now;
                self.over(End::Own, out);
            }
            State::SynSent | State::TimeWait | State::Closed => {}
        }
    }

    fn take_fin(&mut self, now: Instant, seq: u32, why: End, out: &mut Out) {
        self.recv.fin = None;
        self.recv.delayed = None;
        self.send.stop();
        self.state = State::TimeWait;
        self.activity = now;
        self.put_fin_ack(out, seq);
        self.end(out);
        self.over(why, out);
    }

    /// The ACK branch. `NoSlot`: the segment waits for a slot; the acknowledgement has been dealt with.
    pub(crate) fn on_ack(&mut self, now: Instant, header: &Header, payload: &Bytes, out: &mut Out) -> Taken {
        if self.state == State::SynSent {
            return Taken::Done;
        }
        self.activity = now;
        self.keepalives = 0;
        if matches!(self.state, State::TimeWait | State::Closed) {
            return Taken::Done;
        }
        let sack = parse_sack(payload);
        let (ack, empty) = (header.ack, payload.is_empty());
        let acts = self.send.on_ack(now, ack, header.window, empty, sack.as_deref());
        self.perform(now, acts, out);
        if let Fin::Held(seq, _) = self.fin
            && self.send.unacked() == 0
        {
            self.put_fin(now, seq, out);
        }
        self.after_pump(now, out);
        if self.state != State::Established || empty || sack.is_some() {
            return Taken::Done;
        }
        self.on_data(now, header.seq, payload, out)
    }

    /// A data segment, also one that waited for a slot.
    pub(crate) fn on_data(&mut self, now: Instant, seq: u32, payload: &Bytes, out: &mut Out) -> Taken {
        if self.state != State::Established {
            return Taken::Done;
        }
        let before = self.recv.received;
        if self.recv.data(now, seq, payload) == Taken::NoSlot {
            return Taken::NoSlot;
        }
        if self.recv.received > before {
            out.notes.push((self.id, Note::Readable));
        }
        self.after_data(now, out);
        Taken::Done
    }

    /// No slot became free in time: the segment is dropped, which the acknowledgement tells.
    pub(crate) fn no_slot(&mut self, out: &mut Out) {
        if self.state == State::Established {
            self.put_ack(out);
        }
    }

    fn after_data(&mut self, now: Instant, out: &mut Out) {
        if let Some((fin, _)) = self.recv.fin
            && diff(fin, self.recv.expected) <= 0
        {
            return self.take_fin(now, fin, End::Fin, out);
        }
        if self.recv.count(now) == AckNow::Yes {
            self.put_ack(out);
        }
    }

    // ---- time --------------------------------------------------------------------------------------------

    pub(crate) fn timeout(&self) -> Option<Instant> {
        if self.removed {
            return None;
        }
        let sending = matches!(self.state, State::Established | State::FinWait);
        let send = self.send.timeout().filter(|_| sending);
        let held = if let Fin::Held(_, at) = self.fin { Some(at) } else { None };
        let early = self.recv.fin.map(|(_, heard)| heard + FIN_WAITS);
        [send, self.recv.delayed, held, early].into_iter().flatten().min()
    }

    pub(crate) fn on_timeout(&mut self, now: Instant, jitter: u32, out: &mut Out) {
        if self.recv.delayed.is_some_and(|at| now >= at) {
            self.recv.refill_quick();
            self.put_ack(out);
        }
        if matches!(self.state, State::Established | State::FinWait) {
            let acts = self.send.on_timeout(now, jitter);
            self.perform(now, acts, out);
            self.after_pump(now, out);
        }
        if let Fin::Held(seq, at) = self.fin
            && now >= at
        {
            self.put_fin(now, seq, out);
        }
        if let Some((fin, heard)) = self.recv.fin
            && now >= heard + FIN_WAITS
        {
            self.take_fin(now, fin, End::EarlyFin, out);
        }
    }

    /// What happens to it every 15 s.
    pub(crate) fn sweep(&mut self, now: Instant, out: &mut Out) {
        let quiet = now.saturating_duration_since(self.activity);
        match self.state {
            State::SynSent if now.saturating_duration_since(self.created) > SYN_SENT_FOR => {
                // The dial goes on; only its answer is lost.
                self.removed = true;
            }
            State::Established if quiet > IDLE => self.close_idle(now, out),
            State::Established if quiet > KEEPALIVE => {
                if self.keepalives >= KEEPALIVES {
                    self.close_idle(now, out);
                } else {
                    self.keepalives += 1;
                    self.put_empty(out);
                }
            }
            State::FinWait | State::TimeWait if quiet >= LINGER => {
                if let Fin::Held(seq, _) = self.fin {
                    self.put_fin(now, seq, out);
                }
                self.remove(End::Unanswered, out);
            }
            State::Closed => self.removed = true,
            _ => {}
        }
    }

    fn close_idle(&mut self, now: Instant, out: &mut Out) {
        // A writer that waits for a closed window loses what it did not get rid of.
        self.idle = true;
        self.send.drop_writes();
        out.notes.push((self.id, Note::CutShort));
        self.close_now(now, out);
    }
}
