//! Connections whose other end has gone: its process restarted, or it forgot them (docs/extensions.md).
//!
//! Other implementations are silent about a connection they do not know (spec 03 section 3), so its other end learns of
//! a restart from timers alone. We answer with RST, which every version honours, and say in its payload why.

use super::CloseReason;
use super::conn::{Conn, Context, State};
use crate::tunnel::limits::Recent;
use crate::wire::addr::Addr;
use crate::wire::packet::{Header, Packet, flags, protocol};
use std::time::{Duration, Instant};

/// Payload of an RST that answers a packet of no connection. Other versions ignore it.
const NO_CONNECTION: &[u8; 4] = b"PSNC";
/// Least time between two such RSTs for one pair of ports and address.
const RESET_EVERY: Duration = Duration::from_millis(100);
/// Probes of a connection whose peer came back under another tunnel key.
const PROBES: u32 = 4;
/// Distance of the first two; it doubles from then on: 0, 0.2, 0.4, 0.8 s, and the end after 1.6 s.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// An RST, and whether it answers a packet of no connection.
#[derive(Debug)]
pub(super) struct Reset {
    header: Header,
    unknown: bool,
}

impl Reset {
    pub(super) fn of(header: Header) -> Reset {
        Reset { header, unknown: false }
    }

    pub(super) fn to(&self) -> Addr {
        self.header.dst
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) -> bool {
        let payload: &[u8] = if self.unknown { NO_CONNECTION } else { &[] };
        self.header.emit(payload, out).is_ok()
    }
}

/// The RST says that the peer does not know the connection.
pub(super) fn says_unknown(packet: &Packet<'_>) -> bool {
    packet.payload.starts_with(NO_CONNECTION)
}

/// Limits the answers to packets of no connection: a burst of them is in flight when a process has restarted.
#[derive(Debug)]
pub(super) struct Unknown {
    answered: Recent<(Addr, u16, u16)>,
}

impl Unknown {
    /// `seed`: secret random bytes.
    pub(super) fn new(seed: u64) -> Unknown {
        Unknown { answered: Recent::new(seed) }
    }

    /// The RST for a packet of no connection, unless one has just been sent. RSTs are never answered.
    pub(super) fn answer(&mut self, now: Instant, packet: &Header) -> Option<Reset> {
        let tuple = (packet.src, packet.src_port, packet.dst_port);
        if packet.flags & flags::RST != 0 || !self.answered.once(tuple, now, RESET_EVERY) {
            return None;
        }
        let header = Header {
            flags: flags::RST,
            protocol: protocol::STREAM,
            src: packet.dst,
            dst: packet.src,
            src_port: packet.dst_port,
            dst_port: packet.src_port,
            ..Header::default()
        };
        Some(Reset { header, unknown: true })
    }
}

/// The peer came back under another tunnel key: does it still know the connection?
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// It came back at least once since the connection began.
    rekeyed: bool,
    /// Probes sent, and when the next is due.
    asking: Option<(u32, Instant)>,
}

impl Doubt {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.asking.map(|(_, at)| at)
    }

    /// It has been asked, and has not answered.
    pub(super) fn unsettled(&self) -> bool {
        self.asking.is_some()
    }

    /// The connection lives.
    pub(super) fn cleared(&mut self) {
        self.asking = None;
    }
}

impl Conn {
    /// The peer came back under another tunnel key: asks at once whether it still knows this connection. The key of a
    /// reference is its process's (spec 02 section 4): its connections are over, and not a packet may follow. Its next process
    /// counts ports and numbers from the beginning, believes any acknowledgement, keeps data that is far ahead, and answers it
    /// with a list of what no connection of ours has sent, which would be taken for data (spec 03 sections 4, 10.1 and 11.1).
    pub(super) fn peer_rekeyed(&mut self, cx: &mut Context<'_>) {
        match self.state {
            State::SynSent | State::Closed => {}
            State::Open if !self.reference() => {
                self.doubt = Doubt { rekeyed: true, asking: Some((1, cx.now + FIRST_WAIT)) };
                self.probe_due = true;
            }
            State::TimeWait if !self.reference() => {}
            State::Open | State::TimeWait => {
                let reason = self.in_order().unwrap_or(CloseReason::PeerRestarted);
                self.end(cx, reason);
                self.closing.fin_ack = None;
                self.expire(cx.now);
            }
        }
    }

    /// A connection that the peer's next process must see nothing of.
    pub(super) fn of_one_process(&self) -> bool {
        self.reference() && self.state != State::SynSent
    }

    /// Repeats the question. One of our own answers with RST if it does not know the connection, and silence means nothing.
    pub(super) fn on_doubt_timer(&mut self, now: Instant) {
        let Some((sent, _)) = self.doubt.asking.filter(|(_, at)| *at <= now) else { return };
        if sent >= PROBES {
            self.doubt.asking = None;
            return;
        }
        self.doubt.asking = Some((sent + 1, now + FIRST_WAIT * (1 << (sent - 1))));
        self.probe_due = true;
    }

    /// The end it has if the peer has closed and forgotten it: only the answer to our FIN was lost.
    fn in_order(&self) -> Option<CloseReason> {
        let nothing_expected = self.closing.wants_close() || self.closing.peer_done;
        let over = nothing_expected && self.send.fin_was_sent() && self.send.all_acked();
        over.then(|| self.closing.reason.unwrap_or(CloseReason::Closed))
    }

    /// Takes the word of the peer that it does not know this connection.
    pub(super) fn on_unknown(&mut self, cx: &mut Context<'_>) {
        let reason = if let Some(reason) = self.in_order() {
            reason
        } else if self.doubt.rekeyed {
            CloseReason::PeerRestarted
        } else if self.closing.peer_done && self.send.fin_was_sent() {
            // It has ended the connection long ago, perhaps in order: what it took of the last bytes remains unknown.
            CloseReason::DeadPeer
        } else {
            CloseReason::Reset
        };
        self.end(cx, reason);
        self.closing.fin_ack = None;
        self.expire(cx.now);
    }
}
