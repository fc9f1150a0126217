//! Closing (spec 03 section 16), and half-close between our own nodes (docs/extensions.md).

use super::conn::{Conn, Context, State};
use super::{CloseReason, Config, DialError, StreamEvent};
use crate::wire::packet::{Header, Packet};
use std::time::{Duration, Instant};

/// Longest time a FIN towards a reference peer is held for unacknowledged data.
const HOLD: Duration = Duration::from_secs(5);
/// Silence after which a reference peer's early FIN counts although data before it is missing.
const HELD_FIN: Duration = Duration::from_secs(15);
/// A FIN a reference peer does not answer is given up after this much silence.
const FIN_WAIT: Duration = Duration::from_secs(10);
/// Times a FIN is sent to one of our own nodes before the peer counts as dead.
const MAX_FINS: u32 = 9;
/// Longest interval between FINs.
const MAX_FIN_WAIT: Duration = Duration::from_secs(10);

/// First payload byte of a FIN between our own nodes: only this direction ends.
pub(super) const FIN_ONE: u8 = 0;
/// Both directions end: the sender takes no more data either.
pub(super) const FIN_BOTH: u8 = 1;

/// A FIN of the peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerFin {
    pub(super) seq: u32,
    pub(super) both: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Want {
    #[default]
    Open,
    Finish,
    Close,
}

/// How far closing has come.
#[derive(Debug, Default)]
pub(super) struct Closing {
    want: Want,
    /// Since when a close makes no progress.
    progress_at: Option<Instant>,
    /// When the FIN goes out although data is unacknowledged (reference).
    hold_at: Option<Instant>,
    first_fin: Option<Instant>,
    fin_at: Option<Instant>,
    fins: u32,
    /// A FIN is to be sent.
    pub(super) fin_due: bool,
    acked: bool,
    /// A FIN-ACK is to be sent; its acknowledgement number (reference).
    pub(super) fin_ack: Option<u32>,
    /// The peer's FIN, waiting for the data before it.
    pub(super) peer_fin: Option<PeerFin>,
    /// The peer's FIN was taken: nothing follows.
    pub(super) peer_done: bool,
    /// Why the connection ends or ended, if not in the ordinary way.
    pub(super) reason: Option<CloseReason>,
}

impl Closing {
    /// The application wants no more to be sent.
    pub(super) fn wanted(&self) -> bool {
        self.want != Want::Open
    }

    /// The application closed both directions.
    pub(super) fn wants_close(&self) -> bool {
        self.want == Want::Close
    }

    pub(super) fn progressed(&mut self, now: Instant) {
        if self.progress_at.is_some() {
            self.progress_at = Some(now);
        }
    }

    /// When a close that makes no progress is given up.
    pub(super) fn linger_deadline(&self, config: &Config) -> Option<Instant> {
        self.progress_at.map(|at| at + config.idle_timeout)
    }

    pub(super) fn lingered(&self, now: Instant, config: &Config) -> bool {
        self.linger_deadline(config).is_some_and(|at| at <= now)
    }

    pub(super) fn deadline(&self, last_received: Instant, reference: bool) -> Option<Instant> {
        let held = self.peer_fin.filter(|_| reference).map(|_| last_received + HELD_FIN);
        [self.hold_at, self.fin_at, held].into_iter().flatten().min()
    }
}

impl Conn {
    /// State name as shown to users (spec 03 section 5).
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::SynSent => "SYN_SENT",
            State::Open if self.closing.wanted() => "FIN_WAIT",
            State::Open if self.closing.peer_done => "CLOSE_WAIT",
            State::Open => "ESTABLISHED",
            State::TimeWait => "TIME_WAIT",
            State::Closed => "CLOSED",
        }
    }

    /// Ends our direction. False: half-close was not agreed.
    pub(super) fn finish(&mut self, now: Instant) -> bool {
        if self.state != State::Open || !self.own.is_some_and(|own| own.half_close) {
            return false;
        }
        if self.closing.want == Want::Open {
            self.closing.want = Want::Finish;
            self.arm_fin(now);
        }
        true
    }

    /// The application ends both directions and reads no more: what was written is sent, then FIN.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) {
        if self.state == State::Open && self.closing.want != Want::Close && self.own.is_some() {
            self.recv.discard();
        }
        self.begin_close(cx);
    }

    /// The same by this side's own decision: what was received can still be read.
    pub(super) fn begin_close(&mut self, cx: &mut Context<'_>) {
        if self.state != State::Open || self.closing.want == Want::Close {
            return;
        }
        self.closing.want = Want::Close;
        self.closing.progress_at = Some(cx.now);
        if self.own.is_some()
            && let Some(fin) = self.closing.peer_fin.filter(|fin| fin.both)
        {
            return self.accept_fin(cx, fin);
        }
        if self.closing.first_fin.is_some() {
            // Our direction has ended already; the peer must learn that the other one has, too.
            self.closing.fin_due = true;
        }
        self.arm_fin(cx.now);
    }

    /// Lets the FIN go out when its time has come: after the last byte, towards reference peers when everything is
    /// acknowledged or 5 s have passed (spec 03 section 16.2).
    pub(super) fn arm_fin(&mut self, now: Instant) {
        if self.state != State::Open || !self.closing.wanted() || self.closing.first_fin.is_some() {
            return;
        }
        if self.send.unsent() > 0 || self.closing.fin_due {
            return;
        }
        if self.own.is_some() || self.send.all_acked() || self.closing.hold_at.is_some_and(|at| at <= now) {
            self.closing.fin_due = true;
            self.closing.hold_at = None;
        } else if self.closing.hold_at.is_none() {
            self.closing.hold_at = Some(now + HOLD);
        }
    }

    /// A FIN left: it is repeated until it is answered.
    pub(super) fn on_fin_sent(&mut self, now: Instant) {
        self.closing.fin_due = false;
        self.send.set_fin_sent();
        self.last_sent = now;
        if self.state != State::Open {
            return;
        }
        if self.closing.first_fin.is_none() {
            self.closing.first_fin = Some(now);
            self.last_activity = now;
        }
        let wait = (self.send.rtt.rto() * (1 << self.closing.fins.min(8))).min(MAX_FIN_WAIT);
        self.closing.fins += 1;
        self.closing.fin_at = Some(now + wait);
    }

    /// The kind of our FIN between our own nodes.
    pub(super) fn fin_kind(&self) -> u8 {
        if self.closing.want == Want::Finish && self.state == State::Open { FIN_ONE } else { FIN_BOTH }
    }

    /// The peer acknowledged our FIN (own nodes only).
    pub(super) fn on_fin_acked(&mut self, cx: &mut Context<'_>) {
        self.closing.acked = true;
        if self.closing.peer_done {
            self.end_in_order(cx);
        } else if self.closing.want == Want::Finish {
            self.closing.fin_at = None;
            self.closing.fin_due = false;
            self.closing.fins = 0;
        }
    }

    fn end_in_order(&mut self, cx: &mut Context<'_>) {
        self.closing.fin_due = false;
        let reason = self.closing.reason.unwrap_or(CloseReason::Closed);
        self.end(cx, reason);
    }

    /// Takes a FIN or FIN-ACK (spec 03 section 16.3).
    pub(super) fn on_fin(&mut self, cx: &mut Context<'_>, packet: &Packet<'_>) -> bool {
        let seq = packet.header.seq;
        if self.own.is_some() {
            return self.on_own_fin(cx, packet);
        }
        if self.state != State::Open {
            return false;
        }
        self.heard(cx.now);
        let fin = PeerFin { seq, both: true };
        if !self.closing.wants_close() && self.recv.distance(seq) > 0 {
            self.hold_fin(fin);
        } else {
            self.accept_fin(cx, fin);
        }
        true
    }

    fn on_own_fin(&mut self, cx: &mut Context<'_>, packet: &Packet<'_>) -> bool {
        let header = &packet.header;
        let both = packet.payload.first() != Some(&FIN_ONE);
        match self.state {
            State::TimeWait => {
                // The peer repeats its FIN: our answer was lost.
                let seen = header.ack == self.send.nxt_seq();
                if self.send.fin_was_sent() && !seen {
                    self.closing.fin_due = true;
                } else {
                    self.acks.due(&self.recv, false);
                }
                return true;
            }
            State::Open if !self.of_another_life(header) => {}
            _ => return false,
        }
        self.heard(cx.now);
        let fin = PeerFin { seq: header.seq, both };
        self.take_ack(cx, header, &[], false);
        if self.state != State::Open {
            self.closing.peer_done = true;
            self.acks.due(&self.recv, false);
            return true;
        }
        if self.closing.peer_done {
            if both {
                self.end_both(cx);
            } else {
                self.acks.due(&self.recv, false);
            }
        } else if self.recv.distance(fin.seq) < 0 {
            // Bytes beyond it have come: it is not the end of this connection.
            return false;
        } else if self.recv.distance(fin.seq) > 0 && !(both && self.closing.wants_close()) {
            self.hold_fin(fin);
            if let Some(held) = &mut self.closing.peer_fin {
                held.both |= both;
            }
        } else {
            self.accept_fin(cx, fin);
        }
        true
    }

    /// The peer ended both directions: what we have not sent is pointless; our FIN answers.
    fn end_both(&mut self, cx: &mut Context<'_>) {
        self.end_in_order(cx);
        if self.closing.acked {
            self.acks.due(&self.recv, false);
        } else {
            self.closing.fin_due = true;
        }
    }

    /// Handles a FIN whose turn has come.
    pub(super) fn accept_fin(&mut self, cx: &mut Context<'_>, fin: PeerFin) {
        self.closing.peer_fin = None;
        self.closing.peer_done = true;
        if self.own.is_some() && self.closing.wants_close() {
            // Both sides closed: what is still missing before the FIN would be thrown away.
            self.recv.skip_to(fin.seq);
        }
        if !self.closing.wants_close() {
            cx.events.push_back(StreamEvent::EndOfStream(self.id));
        }
        if self.own.is_none() {
            self.end_in_order(cx);
            self.closing.fin_ack = Some(fin.seq.wrapping_add(1));
        } else if fin.both {
            self.end_both(cx);
        } else if self.closing.acked {
            self.end_in_order(cx);
            self.acks.due(&self.recv, false);
        } else {
            self.acks.due(&self.recv, false);
        }
    }

    /// Takes an RST, whatever its numbers (spec 03 section 16.6).
    pub(super) fn on_rst(&mut self, cx: &mut Context<'_>) {
        match self.state {
            State::SynSent => self.fail_dial(cx, DialError::Refused),
            State::Open | State::TimeWait => {
                self.end(cx, CloseReason::Reset);
                self.closing.fin_ack = None;
                self.expire(cx.now);
            }
            State::Closed => {}
        }
    }

    /// Handles deadlines of closing. Returns an RST to send if the peer is given up.
    pub(super) fn on_close_timer(&mut self, cx: &mut Context<'_>) -> Option<Header> {
        let now = cx.now;
        if let Some(fin) = self.closing.peer_fin
            && self.own.is_none()
            && now.saturating_duration_since(self.last_received) >= HELD_FIN
        {
            self.accept_fin(cx, fin);
            return None;
        }
        self.arm_fin(now);
        if self.closing.fin_at.is_some_and(|at| at <= now) {
            self.closing.fin_at = None;
            if self.own.is_some() {
                if self.closing.fins >= MAX_FINS && !self.may_wake(now, cx.config) {
                    return Some(self.give_up(cx, CloseReason::DeadPeer));
                }
                self.closing.fin_due = true;
            } else if now.saturating_duration_since(self.last_activity) >= FIN_WAIT {
                let reason = if self.send.all_acked() { CloseReason::Closed } else { CloseReason::DeadPeer };
                let reason = self.closing.reason.unwrap_or(reason);
                self.end(cx, reason);
                self.expire(now);
            } else {
                self.closing.fin_due = true;
            }
        }
        None
    }
}
