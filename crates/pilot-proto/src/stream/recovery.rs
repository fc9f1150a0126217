//! The sending direction: what is in flight, what arrived, what is lost (RACK-TLP, RFC 8985, within the bounds of
//! spec 03 sections 8, 11, 13 and 25).

use super::congestion::{self, Acked, CongestionKind, Controller};
use super::ranges::RangeSet;
use super::rtt::{MAX_RTO, Rtt};
use super::sack::{self, Block};
use super::send::SendBuffer;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Payload of a segment towards reference peers, bytes (spec 03 section 8).
pub(super) const REFERENCE_SEGMENT: usize = 1152;
/// Segments a reference receiver keeps behind a hole (spec 03 section 9.2).
const REFERENCE_REORDER: usize = 128;
/// Slots of a reference receiver's queue left free for the race with its application (spec 03 section 25).
const WINDOW_MARGIN: usize = 4;
/// Largest number of unacknowledged segments of one connection.
const MAX_FLIGHT_SEGMENTS: usize = 8192;
/// Short segments that may be unacknowledged; further small writes are gathered until one is acknowledged.
const MAX_SHORT_IN_FLIGHT: usize = 16;
/// Timeouts in a row, without any acknowledgement, after which the peer counts as dead (spec 03 section 13).
pub(super) const MAX_TIMEOUTS: u32 = 8;
/// Shortest tail-loss probe time.
const MIN_PTO: Duration = Duration::from_millis(2);
/// Longest delay of a peer's acknowledgement of a lone segment (spec 03 section 10), with room for its timer.
const PEER_ACK_DELAY: Duration = Duration::from_millis(8);
/// Most the reordering window may be widened, in quarters of the smallest round-trip time.
const MAX_REO_MULT: u32 = 8;

/// How the peer counts its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerWindow {
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
}

impl Segment {
    fn end(&self) -> u64 {
        self.off + u64::from(self.len)
    }
}

/// A piece of the stream to put into a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) off: u64,
    pub(super) len: usize,
    /// Sent for the first time.
    pub(super) fresh: bool,
}

/// What an acknowledgement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AckEffect {
    /// The cumulative acknowledgement moved.
    pub(super) progress: bool,
    /// It covers the FIN.
    pub(super) fin: bool,
}

/// Counters for status output.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SendStats {
    pub(super) bytes: u64,
    pub(super) segments: u64,
    pub(super) retransmits: u64,
    pub(super) fast_retransmits: u64,
    pub(super) dup_acks: u64,
    pub(super) sack_blocks: u64,
}

/// The sending direction of one connection. Offsets count data bytes from 0.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) buf: SendBuffer,
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
    pub(super) rtt: Rtt,
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
    pub(super) stats: SendStats,
}

impl Sender {
    pub(super) fn new(base: u32, window: PeerWindow, kind: CongestionKind, capacity: usize) -> Sender {
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
            stats: SendStats::default(),
        }
    }

    // ---- positions ---------------------------------------------------------------------------------------

    /// Moves offset 0 to another sequence number, before anything is sent (options were accepted).
    pub(super) fn rebase(&mut self, base: u32) {
        debug_assert_eq!(self.nxt, 0, "nothing was sent");
        self.base = base;
    }

    /// The sequence number of an offset.
    pub(super) fn seq(&self, off: u64) -> u32 {
        self.base.wrapping_add(off as u32)
    }

    /// The next sequence number (after the FIN, once that was sent).
    pub(super) fn nxt_seq(&self) -> u32 {
        self.seq(self.nxt + u64::from(self.fin_sent))
    }

    /// Sequence number of the FIN.
    pub(super) fn fin_seq(&self) -> u32 {
        self.seq(self.nxt)
    }

    pub(super) fn una(&self) -> u64 {
        self.una
    }

    pub(super) fn unsent(&self) -> u64 {
        self.buf.end() - self.nxt
    }

    pub(super) fn all_acked(&self) -> bool {
        self.una == self.buf.end()
    }

    pub(super) fn fin_was_sent(&self) -> bool {
        self.fin_sent
    }

    pub(super) fn set_fin_sent(&mut self) {
        self.fin_sent = true;
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn unacked_segments(&self) -> usize {
        self.segs.len()
    }

    pub(super) fn in_recovery(&self) -> bool {
        self.recovery.is_some()
    }

    pub(super) fn cwnd(&self) -> u64 {
        self.cc.cwnd()
    }

    pub(super) fn ssthresh(&self) -> u64 {
        self.cc.ssthresh()
    }

    /// Bytes the peer still takes, for status output.
    pub(super) fn peer_window_bytes(&self) -> i64 {
        match self.window {
            PeerWindow::Segments(n) => i64::from(n) * REFERENCE_SEGMENT as i64,
            PeerWindow::Edge(edge) => edge.saturating_sub(self.una) as i64,
        }
    }

    /// The peer takes nothing at all, or too little for what waits while nothing is on the way to change that.
    pub(super) fn stuck(&self) -> bool {
        let waiting = self.unsent() > 0 || !self.segs.is_empty();
        match self.window {
            PeerWindow::Segments(n) => n == 0 && waiting,
            PeerWindow::Edge(edge) => edge <= self.nxt && self.unsent() > 0 && self.segs.is_empty(),
        }
    }

    /// Sequence number and value of a byte already acknowledged: makes any receiver report its window
    /// (spec 03 section 12.1).
    pub(super) fn old_byte(&self) -> (u32, u8) {
        (self.seq(self.una).wrapping_sub(1), self.last_byte)
    }

    // ---- window ------------------------------------------------------------------------------------------

    /// Takes the window of a packet. When it opens again, what was in flight is resent at once: a reference
    /// receiver with a full queue dropped it or holds it undelivered (spec 03 section 9.4).
    pub(super) fn set_window(&mut self, window: PeerWindow) {
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
    pub(super) fn set_mss(&mut self, mss: usize) {
        if self.mss != mss {
            self.mss = mss;
            self.cc.set_mss(mss as u64);
        }
    }

    fn index_of(&self, off: u64) -> Option<usize> {
        let at = self.segs.partition_point(|s| s.off < off);
        self.segs.get(at).is_some_and(|s| s.off == off).then_some(at)
    }

    /// The next piece to send, if window, congestion window and pacing allow one. It counts as sent.
    pub(super) fn next_piece(&mut self, now: Instant) -> Option<Piece> {
        if self.closed() || self.pace_at.is_some_and(|at| at > now) {
            return None;
        }
        let piece = self.retransmission(now).or_else(|| self.fresh(now))?;
        self.pace_at = self.pace(now, piece.len);
        self.cc.on_sent(now, piece.len as u64);
        self.last_sent = Some(now);
        let rto = (self.backed_off_rto() + self.rto_extra).min(MAX_RTO);
        self.rto_at.get_or_insert(now + rto);
        if self.tlp_at.is_none() {
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
        Some(from + Duration::from_secs_f64(len as f64 / rate as f64))
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
        }
        seg.sent = seg.sent.saturating_add(1);
        seg.sent_at = now;
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

    // ---- acknowledgements --------------------------------------------------------------------------------

    /// The offset an acknowledgement number names, if it can be one of ours. The FIN counts as one byte.
    pub(super) fn ack_offset(&self, ack: u32) -> Option<i64> {
        let delta = ack.wrapping_sub(self.seq(self.una)) as i32;
        let off = self.una as i64 + i64::from(delta);
        (off <= (self.nxt + u64::from(self.fin_sent)) as i64).then_some(off)
    }

    /// Takes a cumulative acknowledgement (from [`Sender::ack_offset`]) and the blocks above it.
    /// `pure`: the packet carried no data, so it may count as a duplicate in the statistics.
    pub(super) fn on_ack(&mut self, now: Instant, ack: u64, blocks: &[Block], pure: bool) -> AckEffect {
        let fin = self.fin_sent && ack > self.nxt;
        let ack = ack.min(self.nxt);
        let mut newest: Option<(Instant, u64, Duration)> = None;
        let mut delivered = 0;
        let limited = self.in_flight + 2 * self.mss as u64 >= self.cc.cwnd();
        let flight_before = self.in_flight;
        let progress = ack > self.una;
        if progress {
            self.last_byte = {
                let (head, n) = self.buf.peek(ack - 1);
                if n > 0 { head[0] } else { 0 }
            };
            while let Some(seg) = self.segs.front().copied() {
                if seg.end() <= ack {
                    self.segs.pop_front();
                    self.short_segs -= usize::from(seg.short);
                    if seg.sacked {
                        self.sacked_segs -= 1;
                    } else {
                        delivered += self.arrived(now, &seg, &mut newest);
                    }
                } else {
                    // A partly covered segment stays whole (spec 03 section 10.1).
                    break;
                }
            }
            self.una = ack;
            self.buf.release(self.segs.front().map_or(ack, |s| s.off.min(ack)));
            self.sacked.remove_below(ack);
            self.fack = self.fack.max(ack);
        } else if ack == self.una && pure && !self.segs.is_empty() {
            self.stats.dup_acks += 1;
        }
        delivered += self.mark(now, blocks, &mut newest);
        let mut sample = None;
        if let Some((_, _, rtt)) = newest {
            sample = Some(rtt);
            self.rtt.sample(now, rtt);
        }
        if self.recovery.is_some_and(|point| self.una >= point) {
            self.recovery = None;
        }
        if delivered > 0 {
            self.cc.on_ack(&Acked {
                now,
                bytes: delivered,
                rtt: sample,
                srtt: self.rtt.srtt().unwrap_or_default(),
                limited,
                in_recovery: self.recovery.is_some(),
                una: self.una,
                nxt: self.nxt,
            });
        }
        self.unpark(now, blocks);
        self.detect(now, flight_before);
        if progress || delivered > 0 {
            self.timeouts = 0;
            self.tlp_done = false;
            self.rto_extra = Duration::ZERO;
            self.rto_at = (!self.segs.is_empty()).then(|| now + self.backed_off_rto());
            self.arm_tlp(now);
        }
        AckEffect { progress, fin }
    }

    /// Books a segment that is known to have arrived; returns its bytes.
    fn arrived(&mut self, now: Instant, seg: &Segment, newest: &mut Option<(Instant, u64, Duration)>) -> u64 {
        if seg.lost {
            self.lost.remove(&seg.off);
        } else {
            self.in_flight -= u64::from(seg.len);
        }
        if self.probe == Some(seg.off) {
            self.probe = None;
        }
        let rtt = now.saturating_duration_since(seg.sent_at);
        if seg.sent > 1 {
            if rtt * 4 < self.rtt.min() * 3 {
                // Too soon for the copy: the original arrived late, so it was not lost but overtaken.
                self.reordering = true;
                self.reo_mult = (self.reo_mult + 1).min(MAX_REO_MULT);
                return u64::from(seg.len);
            }
        } else {
            if seg.end() < self.fack {
                self.reordering = true;
            }
            if newest.is_none_or(|(at, _, _)| seg.sent_at >= at) {
                *newest = Some((seg.sent_at, seg.end(), rtt));
            }
        }
        if self.rack.is_none_or(|r| (seg.sent_at, seg.end()) > r) {
            self.rack = Some((seg.sent_at, seg.end()));
            self.rack_rtt = rtt;
        }
        u64::from(seg.len)
    }

    /// Applies SACK blocks: segments wholly inside one have arrived. Returns the bytes that are news.
    fn mark(&mut self, now: Instant, blocks: &[Block], newest: &mut Option<(Instant, u64, Duration)>) -> u64 {
        let mut delivered = 0;
        let una_seq = self.seq(self.una);
        for &(left, right) in blocks {
            let left = self.una as i64 + i64::from(left.wrapping_sub(una_seq) as i32);
            let right = self.una as i64 + i64::from(right.wrapping_sub(una_seq) as i32);
            let (left, right) = (left.max(self.una as i64) as u64, right);
            if right <= left as i64 || right as u64 > self.nxt {
                continue;
            }
            self.stats.sack_blocks += 1;
            let mut fresh = Vec::new();
            self.sacked.insert(left, right as u64, |s, e| fresh.push((s, e)));
            for (start, end) in fresh {
                // A segment may straddle two reports: begin with the one that contains `start`.
                let mut i = self.segs.partition_point(|s| s.end() <= start);
                while let Some(seg) = self.segs.get(i).copied() {
                    if seg.off >= end {
                        break;
                    }
                    let whole = self.sacked.end_of(seg.off).is_some_and(|e| e >= seg.end());
                    if whole && !seg.sacked {
                        delivered += self.arrived(now, &seg, newest);
                        self.segs[i].sacked = true;
                        self.segs[i].lost = false;
                        self.sacked_segs += 1;
                        self.fack = self.fack.max(seg.end());
                    }
                    i += 1;
                }
            }
        }
        delivered
    }

    /// A block that begins at the cumulative acknowledgement: the peer holds the segment but had no room to
    /// deliver it, and wants it again (spec 03 section 11.2).
    fn unpark(&mut self, now: Instant, blocks: &[Block]) {
        let una_seq = self.seq(self.una);
        if self.closed() || !blocks.iter().any(|&(left, _)| left == una_seq) {
            return;
        }
        let wait = self.rtt.srtt().unwrap_or(Duration::from_millis(100));
        let Some(head) = self.segs.front().copied() else { return };
        if head.sacked && now.saturating_duration_since(head.sent_at) >= wait {
            self.unmark_all();
            self.lose(0);
            self.credit = true;
        }
    }

    /// Forgets all SACK marks: they are no promise.
    fn unmark_all(&mut self) {
        self.sacked.clear();
        self.sacked_segs = 0;
        for seg in &mut self.segs {
            if seg.sacked {
                seg.sacked = false;
                self.in_flight += u64::from(seg.len);
            }
        }
    }

    fn lose(&mut self, index: usize) {
        let seg = &mut self.segs[index];
        if !seg.lost && !seg.sacked {
            seg.lost = true;
            self.in_flight -= u64::from(seg.len);
            self.lost.insert(seg.off);
        }
    }

    // ---- loss --------------------------------------------------------------------------------------------

    fn reordering_window(&self) -> Duration {
        if self.reordering {
            let window = self.rtt.min() / 4 * self.reo_mult;
            return window.min(self.rtt.srtt().unwrap_or(window));
        }
        // Without a sign of reordering, three later arrivals (or all there can be) prove a loss at once.
        let enough = self.sacked_segs >= 3 || self.sacked_segs + 1 >= self.segs.len();
        if self.recovery.is_some() || enough { Duration::ZERO } else { self.rtt.min() / 4 }
    }

    /// Finds segments sent before one that arrived, by more than the reordering window.
    fn detect(&mut self, now: Instant, flight: u64) {
        self.reo_at = None;
        let Some((rack_at, rack_end)) = self.rack else { return };
        let window = self.reordering_window();
        let mut found = false;
        let mut i = 0;
        while let Some(seg) = self.segs.get(i).copied() {
            if seg.sacked {
                // Skip the whole SACKed range.
                let end = self.sacked.end_of(seg.off).unwrap_or(seg.end());
                i = self.segs.partition_point(|s| s.off < end).max(i + 1);
                continue;
            }
            if !seg.lost {
                if (seg.sent_at, seg.end()) >= (rack_at, rack_end) {
                    if seg.sent == 1 {
                        // Segments sent once are in order of time: all later ones are newer still.
                        break;
                    }
                } else {
                    let due = seg.sent_at + self.rack_rtt + window;
                    if due <= now || window.is_zero() {
                        self.lose(i);
                        found = true;
                    } else {
                        self.reo_at = Some(self.reo_at.map_or(due, |at| at.min(due)));
                    }
                }
            }
            i += 1;
        }
        if found && self.recovery.is_none() {
            self.recovery = Some(self.nxt);
            self.cc.on_loss(now, flight);
            self.credit = true;
        }
    }

    fn backed_off_rto(&self) -> Duration {
        (self.rtt.rto() * (1 << self.timeouts.min(8))).min(MAX_RTO)
    }

    fn arm_tlp(&mut self, now: Instant) {
        self.tlp_at = None;
        let Some(srtt) = self.rtt.srtt() else { return };
        if self.segs.is_empty() || self.tlp_done || !self.lost.is_empty() || self.timeouts > 0 {
            return;
        }
        let mut pto = (srtt * 2).max(MIN_PTO);
        if self.segs.len() == 1 {
            pto += PEER_ACK_DELAY;
        }
        let at = now + pto;
        self.tlp_at = self.rto_at.is_none_or(|rto| at < rto).then_some(at);
    }

    /// The earliest of the sender's own deadlines.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.closed() {
            return None;
        }
        let pace = self.pace_at.filter(|at| *at > now && (self.unsent() > 0 || !self.lost.is_empty()));
        [self.rto_at, self.tlp_at, self.reo_at, pace].into_iter().flatten().min()
    }

    /// Handles expired deadlines. `jitter` is a random number. True: the peer acknowledged nothing for so long
    /// that it counts as dead.
    pub(super) fn on_timer(&mut self, now: Instant, jitter: u32) -> bool {
        if self.closed() {
            return false;
        }
        if self.reo_at.is_some_and(|at| at <= now) {
            self.detect(now, self.in_flight);
        }
        if self.rto_at.is_some_and(|at| at <= now) {
            return self.on_rto(now, jitter);
        }
        if self.tlp_at.is_some_and(|at| at <= now) {
            self.tlp_at = None;
            self.tlp_done = true;
            self.credit = true;
            let more = self.unsent() > 0 && self.allowed() >= (self.unsent() as usize).min(self.mss);
            if !more {
                self.probe = self.segs.iter().rev().find(|s| !s.sacked).map(|s| s.off);
            }
            self.rto_at = Some(now + self.backed_off_rto());
        }
        false
    }

    fn on_rto(&mut self, now: Instant, jitter: u32) -> bool {
        self.rto_at = None;
        self.tlp_at = None;
        let Some(head) = self.segs.front() else { return false };
        self.timeouts += 1;
        if self.timeouts >= MAX_TIMEOUTS {
            return true;
        }
        let flight = self.in_flight;
        if head.sacked {
            self.unmark_all();
        }
        for i in 0..self.segs.len() {
            self.lose(i);
        }
        self.probe = None;
        self.tlp_done = true;
        if self.timeouts == 1 {
            self.cc.on_timeout(now, flight);
        }
        self.recovery = Some(self.nxt);
        self.credit = true;
        self.pace_at = None;
        // Up to a quarter of the timeout at random, so that connections do not stay in step (spec 03 section
        // 13). The timer starts when the segment really leaves: a path that is not ready costs no attempt.
        self.rto_extra = (self.backed_off_rto() / 4).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        false
    }

    /// The way to the peer changed or came back: try again at once.
    pub(super) fn kick(&mut self, now: Instant) {
        if self.timeouts > 0 && !self.segs.is_empty() {
            self.lose(0);
            self.credit = true;
            self.rto_at = Some(now + self.backed_off_rto());
        }
    }

    /// Stops sending data: everything unacknowledged and unsent is forgotten.
    pub(super) fn discard(&mut self) {
        self.buf.truncate(self.nxt);
        self.buf.release(self.nxt);
        self.segs.clear();
        self.sacked.clear();
        self.sacked_segs = 0;
        self.lost.clear();
        self.in_flight = 0;
        self.probe = None;
        (self.rto_at, self.tlp_at, self.reo_at, self.pace_at) = (None, None, None, None);
        self.una = self.nxt;
    }
}
