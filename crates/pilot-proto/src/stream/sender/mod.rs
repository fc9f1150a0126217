//! The sending direction: what may be sent next and in which pieces (spec 03 sections 8, 12 and 25). What arrived and
//! what is lost is in [`recovery`].

mod recovery;

use super::congestion::{self, CongestionKind, Controller};
use super::ranges::RangeSet;
use super::rtt::{MAX_RTO, Rtt};
use super::sack;
use super::send::SendBuffer;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Payload of a segment towards reference peers, bytes (spec 03 section 8).
pub(in crate::stream) const REFERENCE_SEGMENT: usize = 1152;
/// Segments a reference receiver keeps behind a hole (spec 03 section 9.2).
const REFERENCE_REORDER: usize = 128;
/// Slots of a reference receiver's queue left free for the race with its application (spec 03 section 25).
const WINDOW_MARGIN: usize = 4;
/// Largest number of unacknowledged segments of one connection.
const MAX_FLIGHT_SEGMENTS: usize = 8192;
/// Short segments that may be unacknowledged; further small writes are gathered until one is acknowledged.
const MAX_SHORT_IN_FLIGHT: usize = 16;
/// Pacing holds nothing back for longer than this.
const MAX_PACE: Duration = Duration::from_millis(250);

/// How the peer counts its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream) enum PeerWindow {
    /// Segments that may be unacknowledged, SACKed ones included (reference).
    Segments(u16),
    /// Offset after the last byte the peer takes (our own nodes).
    Edge(u64),
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    off: u64,
    len: u32,
    /// Times sent, saturating.
    sent: u8,
    sacked: bool,
    lost: bool,
    /// Shorter than a full segment when it was cut.
    short: bool,
    sent_at: Instant,
    /// When the copy before the last one left.
    before: Instant,
    /// The last copy left without a sign that the one before was lost: a probe, or the path had changed.
    spare: bool,
}

impl Segment {
    fn end(&self) -> u64 {
        self.off + u64::from(self.len)
    }
}

/// A piece of the stream to put into a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream) struct Piece {
    pub(in crate::stream) off: u64,
    pub(in crate::stream) len: usize,
    /// Sent for the first time.
    pub(in crate::stream) fresh: bool,
}

/// What an acknowledgement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::stream) struct AckEffect {
    /// The cumulative acknowledgement moved.
    pub(in crate::stream) progress: bool,
    /// It covers the FIN.
    pub(in crate::stream) fin: bool,
}

/// Counters for status output.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::stream) struct SendStats {
    pub(in crate::stream) bytes: u64,
    pub(in crate::stream) segments: u64,
    pub(in crate::stream) retransmits: u64,
    pub(in crate::stream) fast_retransmits: u64,
    pub(in crate::stream) dup_acks: u64,
    pub(in crate::stream) sack_blocks: u64,
}

/// The sending direction of one connection. Offsets count data bytes from 0.
#[derive(Debug)]
pub(in crate::stream) struct Sender {
    pub(in crate::stream) buf: SendBuffer,
    /// Sequence number of offset 0.
    base: u32,
    una: u64,
    nxt: u64,
    /// The FIN was sent: it occupies the number after the last byte.
    fin_sent: bool,
    segs: VecDeque<Segment>,
    sacked: RangeSet,
    sacked_segs: usize,
    lost: BTreeSet<u64>,
    /// Bytes neither SACKed nor lost.
    in_flight: u64,
    short_segs: usize,
    window: PeerWindow,
    pub(in crate::stream) rtt: Rtt,
    cc: Box<dyn Controller>,
    mss: usize,
    /// When the newest segment known to have arrived was sent, and its end.
    rack: Option<(Instant, u64)>,
    rack_rtt: Duration,
    /// Highest offset known to have arrived.
    fack: u64,
    reordering: bool,
    reo_mult: u32,
    recovery: Option<u64>,
    /// It began with a timeout: the window grows from its least again while everything is resent (RFC 5681 section 3.1).
    slow_start: bool,
    /// One packet may leave although the congestion window is full (start of recovery, probes).
    credit: bool,
    probe: Option<u64>,
    tlp_done: bool,
    timeouts: u32,
    last_sent: Option<Instant>,
    pace_at: Option<Instant>,
    rto_at: Option<Instant>,
    rto_extra: Duration,
    tlp_at: Option<Instant>,
    reo_at: Option<Instant>,
    last_byte: u8,
    /// Large segments get lost as if the path no longer carried them.
    doubtful: bool,
    pub(in crate::stream) stats: SendStats,
}

impl Sender {
    pub(in crate::stream) fn new(
        base: u32,
        window: PeerWindow,
        kind: CongestionKind,
        capacity: usize,
    ) -> Sender {
        Sender {
            buf: SendBuffer::new(capacity),
            base,
            una: 0,
            nxt: 0,
            fin_sent: false,
            segs: VecDeque::new(),
            sacked: RangeSet::default(),
            sacked_segs: 0,
            lost: BTreeSet::new(),
            in_flight: 0,
            short_segs: 0,
            window,
            rtt: Rtt::default(),
            cc: congestion::new(kind, REFERENCE_SEGMENT as u64),
            mss: REFERENCE_SEGMENT,
            rack: None,
            rack_rtt: Duration::ZERO,
            fack: 0,
            reordering: false,
            reo_mult: 1,
            recovery: None,
            slow_start: false,
            credit: false,
            probe: None,
            tlp_done: false,
            timeouts: 0,
            last_sent: None,
            pace_at: None,
            rto_at: None,
            rto_extra: Duration::ZERO,
            tlp_at: None,
            reo_at: None,
            last_byte: 0,
            doubtful: false,
            stats: SendStats::default(),
        }
    }

    // ---- positions ---------------------------------------------------------------------------------------

    /// Moves offset 0 to another sequence number, before anything is sent (options were accepted).
    pub(in crate::stream) fn rebase(&mut self, base: u32) {
        debug_assert_eq!(self.nxt, 0, "nothing was sent");
        self.base = base;
    }

    /// The sequence number of an offset.
    pub(in crate::stream) fn seq(&self, off: u64) -> u32 {
        self.base.wrapping_add(off as u32)
    }

    /// The next sequence number (after the FIN, once that was sent).
    pub(in crate::stream) fn nxt_seq(&self) -> u32 {
        self.seq(self.nxt + u64::from(self.fin_sent))
    }

    /// Sequence number of the FIN.
    pub(in crate::stream) fn fin_seq(&self) -> u32 {
        self.seq(self.nxt)
    }

    pub(in crate::stream) fn una(&self) -> u64 {
        self.una
    }

    pub(in crate::stream) fn unsent(&self) -> u64 {
        self.buf.end() - self.nxt
    }

    pub(in crate::stream) fn all_acked(&self) -> bool {
        self.una == self.buf.end()
    }

    pub(in crate::stream) fn fin_was_sent(&self) -> bool {
        self.fin_sent
    }

    pub(in crate::stream) fn set_fin_sent(&mut self) {
        self.fin_sent = true;
    }

    pub(in crate::stream) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(in crate::stream) fn unacked_segments(&self) -> usize {
        self.segs.len()
    }

    pub(in crate::stream) fn in_recovery(&self) -> bool {
        self.recovery.is_some()
    }

    pub(in crate::stream) fn cwnd(&self) -> u64 {
        self.cc.cwnd()
    }

    pub(in crate::stream) fn ssthresh(&self) -> u64 {
        self.cc.ssthresh()
    }

    /// Bytes the peer still takes, for status output.
    pub(in crate::stream) fn peer_window_bytes(&self) -> i64 {
        match self.window {
            PeerWindow::Segments(n) => i64::from(n) * REFERENCE_SEGMENT as i64,
            PeerWindow::Edge(edge) => edge.saturating_sub(self.una) as i64,
        }
    }

    /// The peer takes nothing at all, or too little for what waits while nothing is on the way to change that.
    pub(in crate::stream) fn stuck(&self) -> bool {
        let waiting = self.unsent() > 0 || !self.segs.is_empty();
        match self.window {
            PeerWindow::Segments(n) => n == 0 && waiting,
            PeerWindow::Edge(edge) => edge <= self.nxt && self.unsent() > 0 && self.segs.is_empty(),
        }
    }

    /// Sequence number and value of a byte already acknowledged: makes any receiver report its window
    /// (spec 03 section 12.1).
    pub(in crate::stream) fn old_byte(&self) -> (u32, u8) {
        (self.seq(self.una).wrapping_sub(1), self.last_byte)
    }

    // ---- window ------------------------------------------------------------------------------------------

    /// Takes the window of a packet. When it opens again, what was in flight is resent at once: a reference
    /// receiver with a full queue dropped it or holds it undelivered (spec 03 section 9.4).
    pub(in crate::stream) fn set_window(&mut self, window: PeerWindow) {
        let was_closed = self.closed();
        self.window = match (self.window, window) {
            // An edge never moves back: a lower one is from an older packet.
            (PeerWindow::Edge(old), PeerWindow::Edge(new)) => PeerWindow::Edge(old.max(new)),
            (_, new) => new,
        };
        if was_closed && !self.closed() && !self.segs.is_empty() {
            if self.segs[0].sacked {
                self.unmark_all();
            }
            self.lose(0);
            self.credit = true;
            self.rto_at = None;
        }
    }

    fn reference(&self) -> bool {
        matches!(self.window, PeerWindow::Segments(_))
    }

    fn closed(&self) -> bool {
        self.window == PeerWindow::Segments(0)
    }

    /// Bytes of a new segment the peer's window allows now.
    fn allowed(&self) -> usize {
        let flight = self.segs.len();
        match self.window {
            PeerWindow::Edge(edge) if flight < MAX_FLIGHT_SEGMENTS => edge.saturating_sub(self.nxt) as usize,
            PeerWindow::Edge(_) => 0,
            PeerWindow::Segments(n) => {
                let mut limit = usize::from(n);
                if limit > 4 * WINDOW_MARGIN {
                    limit -= WINDOW_MARGIN;
                }
                if !self.sacked.is_empty() || !self.lost.is_empty() || self.recovery.is_some() {
                    // There is a hole: what lies beyond the receiver's reorder buffer would be dropped.
                    limit = limit.min(REFERENCE_REORDER);
                }
                if flight < limit { usize::MAX } else { 0 }
            }
        }
    }

    // ---- sending -----------------------------------------------------------------------------------------

    /// Sets the segment size to use from now on.
    pub(in crate::stream) fn set_mss(&mut self, mss: usize) {
        if self.mss != mss {
            self.mss = mss;
            self.cc.set_mss(mss as u64);
        }
    }

    /// Large segments were lost in a row, or nothing at all is acknowledged: perhaps the path carries less than before.
    /// Asked once for each time, with the round trip of the connection.
    pub(in crate::stream) fn take_doubt(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.doubtful).then(|| self.rtt.srtt().unwrap_or_default())
    }

    /// The last timeout has not been followed by an acknowledgement yet.
    pub(in crate::stream) fn timed_out(&self) -> bool {
        self.timeouts > 0
    }

    fn index_of(&self, off: u64) -> Option<usize> {
        let at = self.segs.partition_point(|s| s.off < off);
        self.segs.get(at).is_some_and(|s| s.off == off).then_some(at)
    }

    /// The next piece to send, if window, congestion window and pacing allow one. It counts as sent.
    pub(in crate::stream) fn next_piece(&mut self, now: Instant) -> Option<Piece> {
        if self.closed() || self.pace_at.is_some_and(|at| at > now) {
            return None;
        }
        let piece = self.retransmission(now).or_else(|| self.fresh(now))?;
        self.pace_at = self.pace(now, piece.len);
        self.cc.on_sent(now, piece.len as u64);
        self.last_sent = Some(now);
        let rto = (self.backed_off_rto() + self.rto_extra).min(MAX_RTO);
        self.rto_at.get_or_insert(now + rto);
        if self.tlp_at.is_none() || piece.fresh {
            // The probe is for what left last (RFC 8985 section 7.2).
            self.arm_tlp(now);
        }
        Some(piece)
    }

    fn pace(&self, now: Instant, len: usize) -> Option<Instant> {
        let rate = self.cc.pacing_rate(self.rtt.srtt())?.max(1);
        // Up to 2 ms' worth, at least ten segments, may leave in one burst: timers are no finer than that.
        let quantum = (rate / 500).max(10 * self.mss as u64) as f64 / rate as f64;
        let floor = now.checked_sub(Duration::from_secs_f64(quantum)).unwrap_or(now);
        let from = self.pace_at.unwrap_or(floor).max(floor);
        // A round trip measured across a suspended process is no rate to go by for long.
        Some((from + Duration::from_secs_f64(len as f64 / rate as f64)).min(now + MAX_PACE))
    }

    fn fits(&self, len: usize) -> bool {
        self.credit || self.in_flight == 0 || self.in_flight + len as u64 <= self.cc.cwnd()
    }

    fn retransmission(&mut self, now: Instant) -> Option<Piece> {
        let probe = self.probe;
        let off = self.lost.first().copied().or(probe)?;
        let Some(index) = self.index_of(off) else {
            self.lost.remove(&off);
            self.probe = None;
            return None;
        };
        if !self.reference() && self.segs[index].len as usize > self.mss {
            self.split(index);
        }
        let len = self.segs[index].len as usize;
        if !self.fits(len) {
            return None;
        }
        self.credit = false;
        self.probe = None;
        self.lost.remove(&off);
        let seg = &mut self.segs[index];
        if seg.lost {
            seg.lost = false;
            self.in_flight += u64::from(seg.len);
        } else {
            seg.spare = true;
        }
        seg.sent = seg.sent.saturating_add(1);
        seg.before = std::mem::replace(&mut seg.sent_at, now);
        self.stats.retransmits += 1;
        if self.timeouts == 0 {
            self.stats.fast_retransmits += 1;
        }
        Some(Piece { off, len, fresh: false })
    }

    /// Cuts a segment that has become too large for the path in two (our own receivers take byte ranges).
    fn split(&mut self, index: usize) {
        let seg = &mut self.segs[index];
        let mut rest = *seg;
        seg.len = self.mss as u32;
        rest.off = seg.end();
        rest.len -= seg.len;
        let lost = seg.lost;
        rest.short = false;
        self.segs.insert(index + 1, rest);
        if lost {
            self.lost.insert(rest.off);
        }
    }

    fn fresh(&mut self, now: Instant) -> Option<Piece> {
        let waiting = self.unsent() as usize;
        let allowed = self.allowed();
        let mut len = waiting.min(self.mss).min(allowed);
        if len == 0 {
            return None;
        }
        if len < self.mss {
            // A short segment: the rest of what was written, or what a small window leaves.
            let crowded = self.short_segs >= MAX_SHORT_IN_FLIGHT;
            if !self.segs.is_empty() && (crowded || len < waiting) {
                return None;
            }
        }
        if self.reference() {
            len = self.guard(len);
        }
        if self.idle_since(now) {
            self.cc.on_idle();
        }
        if !self.fits(len) {
            return None;
        }
        self.credit = false;
        let off = self.nxt;
        self.segs.push_back(Segment {
            off,
            len: len as u32,
            sent: 1,
            sacked: false,
            lost: false,
            short: len < self.mss,
            sent_at: now,
            before: now,
            spare: false,
        });
        self.nxt += len as u64;
        self.in_flight += len as u64;
        self.short_segs += usize::from(len < self.mss);
        self.stats.segments += 1;
        self.stats.bytes += len as u64;
        Some(Piece { off, len, fresh: true })
    }

    /// A reference receiver would swallow a segment that looks like a SACK list: its first byte goes alone
    /// (spec 03 section 11.1).
    fn guard(&self, len: usize) -> usize {
        let (head, n) = self.buf.peek(self.nxt);
        if n == 5 && len >= 5 {
            let mut payload = [0u8; 5 + 8 * sack::MAX_BLOCKS];
            payload[..5].copy_from_slice(&head);
            if sack::looks_like_list(&payload[..len.min(payload.len())]) {
                return 1;
            }
        }
        len
    }

    fn idle_since(&self, now: Instant) -> bool {
        self.segs.is_empty()
            && self.last_sent.is_some_and(|at| now.saturating_duration_since(at) > self.rtt.rto())
    }
}
