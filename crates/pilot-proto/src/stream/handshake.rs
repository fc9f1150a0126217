//! Opening a connection (spec 03 section 6).

use super::conn::{Agreed, Conn, Context, State, WINDOW_UNIT};
use super::options::{MAX_SEGMENT, Options};
use super::recv::REFERENCE_WINDOW;
use super::sender::PeerWindow;
use super::{Config, DialError, StreamEvent};
use crate::NodeId;
use crate::wire::packet::{Header, Packet};
use std::time::{Duration, Instant};

/// First interval between SYNs.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest interval.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// This expiry fails the dial: SYNs at 0, 0.25, 0.75, 1.75, 3.75, 5.75 and 7.75 s, the end at 9.75 s.
const MAX_EXPIRIES: u32 = 7;
/// A dial waits this long for a key to be agreed.
const KEY_WAIT: Duration = Duration::from_secs(10);
/// SYNs sent at once in answer to a stale SYN-ACK; further ones wait for the timer.
const MAX_STALE: u8 = 3;

/// The dialling side of the opening.
#[derive(Debug)]
pub(super) struct Dial {
    started: Instant,
    wait: Duration,
    at: Option<Instant>,
    expiries: u32,
    /// A SYN is to be sent.
    pub(super) due: bool,
    sent: u32,
    sent_at: Option<Instant>,
    stale: u8,
    /// Payload of our SYN; empty without extensions.
    pub(super) options: Vec<u8>,
}

impl Dial {
    pub(super) fn new(now: Instant, config: &Config) -> Dial {
        Dial {
            started: now,
            wait: FIRST_WAIT,
            at: Some(now + FIRST_WAIT),
            expiries: 0,
            due: true,
            sent: 0,
            sent_at: None,
            stale: 0,
            options: if config.extensions { our_options().encode() } else { Vec::new() },
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.at
    }

    /// The SYN left. The first one starts the timer anew: it may have waited for the tunnel.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.due = false;
        self.sent += 1;
        self.sent_at = Some(now);
        if self.sent == 1 {
            self.at = Some(now + self.wait);
        }
    }

    /// The way to the peer changed: the next SYN goes out at once, unless one has just left.
    pub(super) fn kick(&mut self, now: Instant) {
        if self.sent_at.is_some_and(|at| now.saturating_duration_since(at) >= FIRST_WAIT / 2) {
            self.due = true;
            self.wait = FIRST_WAIT;
            self.at = Some(now + FIRST_WAIT);
        }
    }

    /// An interval passed. The error that ends the dial, if it does.
    fn expire(&mut self, now: Instant, node: NodeId) -> Option<DialError> {
        if self.sent == 0 {
            self.at = Some(self.started + KEY_WAIT);
            let over = now.saturating_duration_since(self.started) >= KEY_WAIT;
            return over.then(|| DialError::KeyExchange { node, tried: String::new() });
        }
        self.expiries += 1;
        if self.expiries >= MAX_EXPIRIES {
            return Some(DialError::Timeout);
        }
        self.due = true;
        self.wait = (self.wait * 2).min(MAX_WAIT);
        self.at = Some(now + self.wait);
        None
    }
}

/// What we announce.
pub(super) fn our_options() -> Options {
    Options { half_close: true, max_segment: MAX_SEGMENT, window_unit: WINDOW_UNIT }
}

/// The window field of SYN and SYN-ACK, valid in segments and in our unit alike.
pub(super) fn syn_window(window: u16) -> u16 {
    window.clamp(1, REFERENCE_WINDOW)
}

fn peer_window(own: Option<Agreed>, field: u16) -> PeerWindow {
    match own {
        Some(own) => PeerWindow::Edge(u64::from(field) * u64::from(own.window_unit)),
        None => PeerWindow::Segments(field),
    }
}

impl Conn {
    /// Answers a SYN with a new connection, established at once (spec 03 section 6.3).
    pub(super) fn accept(&mut self, config: &Config, packet: &Packet<'_>) {
        let header = &packet.header;
        self.incoming = true;
        self.state = State::Open;
        self.irs = header.seq;
        self.dial.due = false;
        let options = if config.extensions { Options::parse(packet.payload) } else { None };
        self.own = options.map(Agreed::from);
        let taken = if self.own.is_some() { packet.payload.len() as u32 } else { 0 };
        self.recv.rebase(header.seq.wrapping_add(1).wrapping_add(taken));
        if self.own.is_some() {
            self.send.rebase(self.iss.wrapping_add(1).wrapping_add(self.dial.options.len() as u32));
        }
        self.send.set_window(peer_window(self.own, header.window));
        self.syn_ack_due = Some(true);
    }

    /// Whether this connection with one of our own nodes was opened by the SYN of that number.
    pub(super) fn opened_by(&self, seq: u32) -> bool {
        self.incoming && self.own.is_some() && self.irs == seq
    }

    /// A SYN on a live connection: the SYN-ACK again, with its first number and the current acknowledgement
    /// (spec 03 section 6.4).
    pub(super) fn on_repeated_syn(&mut self, seq: u32) {
        self.syn_ack_due = Some(seq == self.irs);
    }

    /// Takes a SYN-ACK while dialling. `Some(rst)`: it belongs to a connection of an earlier life, which is to be
    /// reset; the SYN follows again (spec 03 section 6.4).
    pub(super) fn on_syn_ack(&mut self, cx: &mut Context<'_>, packet: &Packet<'_>) -> Option<Header> {
        let header = &packet.header;
        let plain = self.iss.wrapping_add(1);
        let with_options = plain.wrapping_add(self.dial.options.len() as u32);
        let own = if header.ack == plain {
            None
        } else {
            let options = (header.ack == with_options).then(|| Options::parse(packet.payload)).flatten();
            let Some(options) = options else {
                if self.dial.stale >= MAX_STALE {
                    return None;
                }
                self.dial.stale += 1;
                self.dial.due = true;
                return Some(self.rst());
            };
            Some(Agreed::from(options))
        };
        self.own = own;
        self.irs = header.seq;
        let taken = if own.is_some() { packet.payload.len() as u32 } else { 0 };
        self.recv.rebase(header.seq.wrapping_add(1).wrapping_add(taken));
        if own.is_some() {
            self.send.rebase(with_options);
        }
        self.send.set_window(peer_window(own, header.window));
        self.state = State::Open;
        self.dial.due = false;
        self.heard(cx.now);
        if let (1, Some(at)) = (self.dial.sent, self.dial.sent_at) {
            self.send.rtt.sample(cx.now, cx.now.saturating_duration_since(at));
        }
        let reference = self.reference();
        self.acks.due(&self.recv, reference);
        cx.events.push_back(StreamEvent::Connected(self.id));
        None
    }

    /// The dial failed: nothing is sent, the connection is gone.
    pub(super) fn fail_dial(&mut self, cx: &mut Context<'_>, error: DialError) {
        self.state = State::Closed;
        self.send.discard();
        cx.events.push_back(StreamEvent::DialFailed(self.id, error));
    }

    pub(super) fn on_dial_timer(&mut self, cx: &mut Context<'_>) {
        if self.dial.at.is_some_and(|at| at <= cx.now)
            && let Some(error) = self.dial.expire(cx.now, self.remote.node)
        {
            self.fail_dial(cx, error);
        }
    }
}
