//! One connection: its state, the packets it takes and its timers (spec 03 sections 5, 9, 10, 12, 15).

use super::ack::Acks;
use super::close::{Closing, PeerFin};
use super::handshake::Dial;
use super::options::Options;
use super::recv::Receiver;
use super::restart::Doubt;
use super::sack::{self, Block};
use super::sender::{PeerWindow, Sender};
use super::{CloseReason, Config, ConnId, StreamEvent};
use crate::wire::addr::Addr;
use crate::wire::packet::{Header, Packet, flags, protocol};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes per count of the windows we announce to our own nodes.
pub(super) const WINDOW_UNIT: u16 = 1024;
/// Between keepalives that are not answered (spec 03 section 15).
const KEEPALIVE_RETRY: Duration = Duration::from_secs(15);
/// Keepalives without an answer after which an idle connection is closed.
const MAX_KEEPALIVES: u8 = 3;
/// An empty acknowledgement is answered only if nothing was sent for this long (spec 03 section 15).
const ANSWER_QUIET: Duration = Duration::from_secs(10);
/// First and longest interval of window probes (spec 03 section 12.1).
const PROBE_FIRST: Duration = Duration::from_millis(50);
const PROBE_MAX: Duration = Duration::from_secs(4);
/// Window probes in a row that nothing answered, after which the peer counts as dead.
const MAX_PROBES: u32 = 12;
/// How long TIME_WAIT lasts (spec 03 section 16.5).
pub(super) const TIME_WAIT: Duration = Duration::from_secs(10);
/// How long unread bytes of a connection that is over are kept for the application.
const UNREAD_KEPT: Duration = Duration::from_secs(600);
/// Least time between answers to a reference sender that probes a window it missed opening.
const REOPEN_ANSWER: Duration = Duration::from_millis(200);

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Dialling.
    SynSent,
    /// Established, or closing (see [`Closing`]).
    Open,
    /// Over; answers stragglers.
    TimeWait,
    /// Over; exists only until what was received is read.
    Closed,
}

/// What was agreed with one of our own nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreed {
    pub(super) half_close: bool,
    pub(super) max_segment: usize,
    pub(super) window_unit: u16,
}

impl From<Options> for Agreed {
    fn from(options: Options) -> Agreed {
        Agreed {
            half_close: options.half_close,
            max_segment: usize::from(options.max_segment),
            window_unit: options.window_unit,
        }
    }
}

/// What a connection needs of its table while it works.
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    pub(super) config: &'a Config,
    pub(super) events: &'a mut VecDeque<StreamEvent>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) local: Addr,
    pub(super) local_port: u16,
    pub(super) remote: Addr,
    pub(super) remote_port: u16,
    pub(super) incoming: bool,
    pub(super) state: State,
    pub(super) iss: u32,
    pub(super) irs: u32,
    /// Set if the peer is one of our own nodes and options were exchanged.
    pub(super) own: Option<Agreed>,
    pub(super) send: Sender,
    pub(super) recv: Receiver,
    pub(super) acks: Acks,
    pub(super) dial: Dial,
    pub(super) closing: Closing,
    pub(super) doubt: Doubt,
    pub(super) syn_ack_due: Option<bool>,
    /// An old byte is to be sent, to draw an answer.
    pub(super) probe_due: bool,
    probe_at: Option<Instant>,
    probe_wait: Duration,
    pub(super) probes: u32,
    pub(super) last_activity: Instant,
    pub(super) last_received: Instant,
    pub(super) last_sent: Instant,
    keepalives: u8,
    keep_at: Option<Instant>,
    pub(super) wait_at: Option<Instant>,
    /// Window field sent last, and the right edge it meant.
    pub(super) advertised: u16,
    pub(super) advertised_edge: u64,
    /// The window was (nearly) closed, then re-opened; no data has come since, so the update may be lost.
    reopened: bool,
    readable_told: bool,
    pub(super) sack_lists_sent: u64,
    /// Packet budget of this connection's turn (see the table's scheduler).
    pub(super) turn: u32,
    pub(super) queued: bool,
    pub(super) blocked: bool,
    pub(super) timer: Option<Instant>,
    pub(super) counted: bool,
    pub(super) unaccepted: bool,
}

impl Conn {
    pub(super) fn new(
        now: Instant,
        config: &Config,
        id: ConnId,
        (local, local_port): (Addr, u16),
        (remote, remote_port): (Addr, u16),
        iss: u32,
    ) -> Conn {
        Conn {
            id,
            local,
            local_port,
            remote,
            remote_port,
            incoming: false,
            state: State::SynSent,
            iss,
            irs: 0,
            own: None,
            send: Sender::new(
                iss.wrapping_add(1),
                PeerWindow::Segments(0),
                config.congestion,
                config.send_buffer,
            ),
            recv: Receiver::new(0, config.recv_window),
            acks: Acks::new(),
            dial: Dial::new(now, config),
            closing: Closing::default(),
            doubt: Doubt::default(),
            syn_ack_due: None,
            probe_due: false,
            probe_at: None,
            probe_wait: PROBE_FIRST,
            probes: 0,
            last_activity: now,
            last_received: now,
            last_sent: now,
            keepalives: 0,
            keep_at: None,
            wait_at: None,
            advertised: 0,
            advertised_edge: 0,
            reopened: false,
            readable_told: false,
            sack_lists_sent: 0,
            turn: 0,
            queued: false,
            blocked: false,
            timer: None,
            counted: false,
            unaccepted: false,
        }
    }

    pub(super) fn reference(&self) -> bool {
        self.own.is_none()
    }

    // ---- headers -----------------------------------------------------------------------------------------

    /// A header of this connection, with the window we have now unless the packet type carries none.
    pub(super) fn header(&self, bits: u8, seq: u32, ack: u32, window: u16) -> Header {
        Header {
            flags: bits,
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

    /// The window field to send now; remembers it.
    pub(super) fn advertise(&mut self) -> u16 {
        let (field, unit) = match self.own {
            Some(_) => (self.recv.window(WINDOW_UNIT, u16::MAX), u64::from(WINDOW_UNIT)),
            None => (self.recv.reference_window(), super::sender::REFERENCE_SEGMENT as u64),
        };
        self.advertised = field;
        self.advertised_edge = self.recv.expected() + u64::from(field) * unit;
        field
    }

    /// The cumulative acknowledgement number.
    pub(super) fn ack_number(&self) -> u32 {
        self.recv.ack(self.closing.peer_done && self.own.is_some())
    }

    /// An RST for this connection.
    pub(super) fn rst(&self) -> Header {
        self.header(flags::RST, 0, 0, 0)
    }

    // ---- packets -----------------------------------------------------------------------------------------

    /// Takes a packet with flags ACK (spec 03 section 3, order 5). False: it meant nothing here.
    pub(super) fn on_ack_packet(&mut self, cx: &mut Context<'_>, packet: &Packet<'_>) -> bool {
        if self.state != State::Open {
            return false;
        }
        let header = &packet.header;
        if self.of_another_life(header) {
            return false;
        }
        let (blocks, data): (Vec<Block>, &[u8]) = match self.own {
            Some(_) if packet.payload.is_empty() => (Vec::new(), packet.payload),
            Some(_) => match sack::split_own(packet.payload) {
                Some(parts) => parts,
                None => return false,
            },
            None => match sack::parse_reference(packet.payload, header.ack, self.send.nxt_seq()) {
                Some(blocks) => (blocks, &[]),
                None => (Vec::new(), packet.payload),
            },
        };
        self.heard(cx.now);
        self.keepalives = 0;
        let news = self.take_ack(cx, header, &blocks, data.is_empty());
        if self.state != State::Open {
            return true;
        }
        if !data.is_empty() {
            self.take_data(cx, header.seq, data);
        } else if blocks.is_empty() && !news {
            self.on_quiet_ack(cx.now, header);
        }
        true
    }

    /// The packet acknowledges what this connection never sent. A late SYN opens a connection anew that was reset before, and
    /// what follows it from that time must not be taken for its data. Towards a reference nothing is certain enough.
    pub(super) fn of_another_life(&self, header: &Header) -> bool {
        self.own.is_some() && !self.send.is_ours(header.ack)
    }

    /// Something arrived from the peer.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_activity = now;
        self.last_received = now;
        self.probes = 0;
        self.doubt.cleared();
    }

    /// Takes acknowledgement and window of a packet. True: they told something new.
    pub(super) fn take_ack(
        &mut self,
        cx: &mut Context<'_>,
        header: &Header,
        blocks: &[Block],
        pure: bool,
    ) -> bool {
        let Some(off) = self.send.ack_offset(header.ack) else { return true };
        if off < self.send.una() as i64 {
            return true;
        }
        let off = off as u64;
        let before = self.send.peer_window_bytes();
        self.send.set_window(match self.own {
            Some(own) => PeerWindow::Edge(off + u64::from(header.window) * u64::from(own.window_unit)),
            None => PeerWindow::Segments(header.window),
        });
        let same_window = before == self.send.peer_window_bytes();
        let effect = self.send.on_ack(cx.now, off, blocks, pure && same_window);
        if effect.progress {
            self.closing.progressed(cx.now);
            if self.send.buf.take_writable() {
                cx.events.push_back(StreamEvent::Writable(self.id));
            }
        }
        if effect.fin {
            self.on_fin_acked(cx);
        }
        effect.progress || effect.fin || !same_window
    }

    fn take_data(&mut self, cx: &mut Context<'_>, seq: u32, data: &[u8]) {
        let reference = self.reference();
        if reference && self.closing.wants_close() {
            // FIN_WAIT: dropped and not acknowledged (spec 03 section 16.4).
            return;
        }
        if self.closing.peer_done {
            self.acks.due(&self.recv, reference);
            return;
        }
        let outcome = self.recv.ingest(seq, data);
        if outcome != super::recv::Ingest::Duplicate {
            self.reopened = false;
        }
        self.acks.on_data(cx.now, &self.recv, outcome, reference);
        if outcome == super::recv::Ingest::InOrder {
            if !self.readable_told && self.recv.unread() > 0 {
                self.readable_told = true;
                cx.events.push_back(StreamEvent::Readable(self.id));
            }
            self.release_held_fin(cx);
        }
    }

    /// An empty acknowledgement without news: never answered, except a keepalive after a silence, or a probe of a
    /// window whose opening may have been lost (spec 03 sections 12.1 and 15).
    fn on_quiet_ack(&mut self, now: Instant, header: &Header) {
        let quiet = now.saturating_duration_since(self.last_sent);
        let reference = self.reference();
        let missed = reference && self.reopened && quiet >= REOPEN_ANSWER;
        let differs = reference && (self.advertised == 0) != (self.recv.reference_window() == 0);
        let keepalive = quiet >= ANSWER_QUIET && self.send.all_acked() && self.recv.distance(header.seq) == 0;
        if (missed || differs || keepalive) && !self.closing.wants_close() {
            self.acks.due(&self.recv, reference);
        }
    }

    // ---- application -------------------------------------------------------------------------------------

    /// Why no more bytes are taken, if so.
    pub(super) fn write_refused(&self) -> Option<CloseReason> {
        match self.state {
            State::TimeWait | State::Closed => Some(self.closing.reason.unwrap_or(CloseReason::Closed)),
            _ if self.closing.wanted() => Some(CloseReason::Closed),
            _ => None,
        }
    }

    pub(super) fn read(&mut self) -> Option<Bytes> {
        let bytes = self.recv.read();
        if bytes.is_none() {
            self.readable_told = false;
        }
        bytes
    }

    /// The application consumed bytes: sends a window update when the window had become small, or has grown by a
    /// good part of its size.
    pub(super) fn consumed(&mut self, bytes: usize) {
        self.recv.consume(bytes);
        if self.state != State::Open || self.closing.peer_done || self.closing.wants_close() {
            return;
        }
        match self.own {
            Some(_) => {
                let edge = self.recv.expected() + self.recv.free();
                if edge.saturating_sub(self.advertised_edge) >= self.recv.capacity() / 4 {
                    self.acks.due(&self.recv, false);
                }
            }
            None => {
                let window = self.recv.reference_window();
                let full = self.recv.full_reference_window();
                let small = self.advertised < full / 8;
                if window > self.advertised
                    && (window - self.advertised >= full / 2 || small && window >= full / 4)
                {
                    self.reopened |= small;
                    self.acks.due(&self.recv, true);
                }
            }
        }
    }

    // ---- timers ------------------------------------------------------------------------------------------

    /// Arms what depends on the state as a whole, then returns the next deadline.
    pub(super) fn deadline(&mut self, now: Instant, config: &Config) -> Option<Instant> {
        match self.state {
            State::SynSent => return self.dial.deadline(),
            State::TimeWait | State::Closed => return self.wait_at,
            State::Open => {}
        }
        if !self.send.stuck() {
            self.probe_at = None;
            self.probe_wait = PROBE_FIRST;
        } else if self.probe_at.is_none() && !self.probe_due {
            self.probe_at = Some(now + self.probe_wait);
        }
        let idle = self.last_activity + config.keepalive.min(config.idle_timeout);
        let keep = Some(self.keep_at.map_or(idle, |at| at.max(idle)));
        let linger = self.closing.linger_deadline(config);
        let linger = linger.map(|at| self.patience(config).map_or(at, |until| at.max(until)));
        [
            self.send.deadline(now),
            self.acks.deadline(),
            self.probe_at,
            keep.filter(|_| !self.closing.wants_close()),
            linger,
            self.doubt.deadline(),
            self.closing.deadline(self.last_received, self.reference()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Handles expired deadlines. Returns an RST to send, if the connection was given up.
    pub(super) fn on_timer(&mut self, cx: &mut Context<'_>, jitter: u32) -> Option<Header> {
        match self.state {
            State::SynSent => {
                self.on_dial_timer(cx);
                return None;
            }
            State::TimeWait | State::Closed => {
                if self.wait_at.is_some_and(|at| at <= cx.now) {
                    self.wait_at = None;
                    self.expire(cx.now);
                }
                return None;
            }
            State::Open => {}
        }
        let reference = self.reference();
        self.acks.on_timer(cx.now, &self.recv, reference);
        let dead = self.send.on_timer(cx.now, jitter);
        if self.probe_at.is_some_and(|at| at <= cx.now) {
            self.probe_at = None;
            self.probe_due = true;
            self.probe_wait = (self.probe_wait * 2).min(PROBE_MAX);
        }
        let dead = dead || self.probes > MAX_PROBES || self.closing.lingered(cx.now, cx.config);
        if dead && !self.may_wake(cx.now, cx.config) {
            return Some(self.give_up(cx, CloseReason::DeadPeer));
        }
        self.on_doubt_timer(cx.now);
        if let Some(rst) = self.on_close_timer(cx) {
            return Some(rst);
        }
        if self.state == State::Open {
            self.keep_alive(cx);
        }
        None
    }

    /// Until when the silence of one of our own nodes may be its sleep.
    fn patience(&self, config: &Config) -> Option<Instant> {
        self.own.map(|_| self.last_received + config.user_timeout)
    }

    /// The silent peer need not be dead. One that has restarted says so.
    pub(super) fn may_wake(&self, now: Instant, config: &Config) -> bool {
        self.patience(config).is_some_and(|until| now < until)
    }

    fn keep_alive(&mut self, cx: &mut Context<'_>) {
        let idle = cx.now.saturating_duration_since(self.last_activity);
        if idle < cx.config.keepalive.min(cx.config.idle_timeout) {
            self.keep_at = None;
            return;
        }
        if self.keep_at.is_some_and(|at| at > cx.now) || self.closing.wants_close() {
            return;
        }
        let over = idle >= cx.config.idle_timeout || self.keepalives >= MAX_KEEPALIVES;
        if over && !self.may_wake(cx.now, cx.config) {
            self.closing.reason = Some(CloseReason::Idle);
            self.begin_close(cx);
            return;
        }
        self.recv.shrink();
        self.keepalives = self.keepalives.saturating_add(1);
        self.keep_at = Some(cx.now + KEEPALIVE_RETRY.min(cx.config.keepalive));
        // An old byte is answered by every version, an empty acknowledgement by none.
        self.probe_due = true;
    }

    /// Ends the connection without the peer's consent. Returns the RST to send.
    pub(super) fn give_up(&mut self, cx: &mut Context<'_>, reason: CloseReason) -> Header {
        let rst = self.rst();
        self.end(cx, reason);
        self.expire(cx.now);
        rst
    }

    /// The connection is over: tells the application, forgets what was to be sent, waits for stragglers.
    pub(super) fn end(&mut self, cx: &mut Context<'_>, reason: CloseReason) {
        if matches!(self.state, State::TimeWait | State::Closed) {
            return;
        }
        self.state = State::TimeWait;
        self.wait_at = Some(cx.now + TIME_WAIT);
        self.closing.reason = Some(reason);
        self.send.discard();
        self.acks.clear();
        self.probe_due = false;
        self.syn_ack_due = None;
        cx.events.push_back(StreamEvent::Closed(self.id, reason));
    }

    /// TIME_WAIT is over, or there is none: only unread bytes keep the connection.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.state == State::Closed {
            self.recv.discard();
            return;
        }
        self.state = State::Closed;
        self.wait_at = Some(now + UNREAD_KEPT);
    }

    /// Nothing is left that anybody could want.
    pub(super) fn gone(&self) -> bool {
        self.state == State::Closed && self.recv.unread() == 0
    }

    /// An early FIN may be due now that more data has arrived.
    fn release_held_fin(&mut self, cx: &mut Context<'_>) {
        if let Some(fin) = self.closing.peer_fin
            && self.recv.distance(fin.seq) <= 0
        {
            self.accept_fin(cx, fin);
        }
    }

    /// Holds a FIN that is ahead of missing data; the first one's number counts (spec 03 section 16.3).
    pub(super) fn hold_fin(&mut self, fin: PeerFin) {
        self.closing.peer_fin.get_or_insert(fin);
        let reference = self.reference();
        self.acks.due(&self.recv, reference);
    }
}
