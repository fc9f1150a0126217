//! What arrived, what is lost and when to try again (RACK-TLP, RFC 8985; spec 03 sections 10, 11 and 13).

use super::{AckEffect, REFERENCE_SEGMENT, Segment, Sender};
use crate::stream::congestion::Acked;
use crate::stream::rtt::MAX_RTO;
use crate::stream::sack::Block;
use std::time::{Duration, Instant};

/// Timeouts in a row, without any acknowledgement, after which the peer counts as dead (spec 03 section 13).
const MAX_TIMEOUTS: u32 = 8;
/// Shortest tail-loss probe time.
const MIN_PTO: Duration = Duration::from_millis(2);
/// Longest delay of a peer's acknowledgement of a lone segment (spec 03 section 10), with room for its timer.
const PEER_ACK_DELAY: Duration = Duration::from_millis(8);
/// Most the reordering window may be widened, in quarters of the smallest round-trip time.
const MAX_REO_MULT: u32 = 8;

impl Sender {
    // ---- acknowledgements --------------------------------------------------------------------------------

    /// The offset an acknowledgement number names, if it can be one of ours. The FIN counts as one byte.
    pub(in crate::stream) fn ack_offset(&self, ack: u32) -> Option<i64> {
        let delta = ack.wrapping_sub(self.seq(self.una)) as i32;
        let off = self.una as i64 + i64::from(delta);
        (off <= (self.nxt + u64::from(self.fin_sent)) as i64).then_some(off)
    }

    /// Whether an acknowledgement number can be of this connection: it names something that was sent, or the beginning.
    pub(in crate::stream) fn is_ours(&self, ack: u32) -> bool {
        self.ack_offset(ack).is_some_and(|off| off >= 0)
    }

    /// Takes a cumulative acknowledgement (from [`Sender::ack_offset`]) and the blocks above it.
    /// `pure`: the packet carried no data, so it may count as a duplicate in the statistics.
    pub(in crate::stream) fn on_ack(
        &mut self,
        now: Instant,
        ack: u64,
        blocks: &[Block],
        pure: bool,
    ) -> AckEffect {
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
            (self.recovery, self.slow_start) = (None, false);
        }
        if delivered > 0 {
            self.cc.on_ack(&Acked {
                now,
                bytes: delivered,
                rtt: sample,
                srtt: self.rtt.srtt().unwrap_or_default(),
                limited,
                in_recovery: self.recovery.is_some() && !self.slow_start,
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
        let mut sent_at = seg.sent_at;
        let mut rtt = now.saturating_duration_since(sent_at);
        if seg.sent > 1 {
            if rtt * 4 < self.rtt.min() * 3 {
                // Too soon for the last copy: the one before arrived late, so it was not lost but overtaken.
                if !seg.spare {
                    self.reordering = true;
                    self.reo_mult = (self.reo_mult + 1).min(MAX_REO_MULT);
                }
                // What was sent before that one, and is still missing, is lost all the same. Without this a sender whose every
                // new segment is doubled by a probe never finds its losses.
                sent_at = seg.before;
                rtt = now.saturating_duration_since(sent_at);
                if rtt * 4 < self.rtt.min() * 3 {
                    return u64::from(seg.len);
                }
            }
        } else {
            if seg.end() < self.fack {
                self.reordering = true;
            }
            if newest.is_none_or(|(at, _, _)| seg.sent_at >= at) {
                *newest = Some((seg.sent_at, seg.end(), rtt));
            }
        }
        if self.rack.is_none_or(|r| (sent_at, seg.end()) > r) {
            self.rack = Some((sent_at, seg.end()));
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
    pub(super) fn unmark_all(&mut self) {
        self.sacked.clear();
        self.sacked_segs = 0;
        for seg in &mut self.segs {
            if seg.sacked {
                seg.sacked = false;
                self.in_flight += u64::from(seg.len);
            }
        }
    }

    pub(super) fn lose(&mut self, index: usize) {
        let seg = &mut self.segs[index];
        if !seg.lost && !seg.sacked {
            (seg.lost, seg.spare) = (true, false);
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
        let (mut found, mut again) = (false, false);
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
                        self.doubtful |= seg.sent > 1 && seg.len as usize > REFERENCE_SEGMENT;
                        self.lose(i);
                        found = true;
                        again |= seg.sent > 1;
                    } else {
                        self.reo_at = Some(self.reo_at.map_or(due, |at| at.min(due)));
                    }
                }
            }
            i += 1;
        }
        // What was resent after a timeout is lost again: it was too much.
        if found && (self.recovery.is_none() || again && self.slow_start) {
            (self.recovery, self.slow_start) = (Some(self.nxt), false);
            self.cc.on_loss(now, flight);
            self.credit = true;
        }
    }

    pub(super) fn backed_off_rto(&self) -> Duration {
        (self.rtt.rto() * (1 << self.timeouts.min(8))).min(MAX_RTO)
    }

    pub(super) fn arm_tlp(&mut self, now: Instant) {
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
    pub(in crate::stream) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.closed() {
            return None;
        }
        let pace = self.pace_at.filter(|at| *at > now && (self.unsent() > 0 || !self.lost.is_empty()));
        [self.rto_at, self.tlp_at, self.reo_at, pace].into_iter().flatten().min()
    }

    /// Handles expired deadlines. `jitter` is a random number. True: the peer acknowledged nothing for so long
    /// that it counts as dead.
    pub(in crate::stream) fn on_timer(&mut self, now: Instant, jitter: u32) -> bool {
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
        let flight = self.in_flight;
        if head.sacked {
            self.unmark_all();
        }
        for i in 0..self.segs.len() {
            self.doubtful |= !self.segs[i].sacked && self.segs[i].len as usize > REFERENCE_SEGMENT;
            self.lose(i);
        }
        self.probe = None;
        self.tlp_done = true;
        if self.timeouts == 1 {
            self.cc.on_timeout(now, flight);
        }
        (self.recovery, self.slow_start) = (Some(self.nxt), true);
        self.credit = true;
        self.pace_at = None;
        // Up to a quarter of the timeout at random, so that connections do not stay in step (spec 03 section
        // 13). The timer starts when the segment really leaves: a path that is not ready costs no attempt.
        self.rto_extra = (self.backed_off_rto() / 4).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        self.timeouts >= MAX_TIMEOUTS
    }

    /// The way to the peer changed or came back: try again at once.
    pub(in crate::stream) fn kick(&mut self, now: Instant) {
        if self.timeouts > 0 && !self.segs.is_empty() {
            self.lose(0);
            self.segs[0].spare = true;
            self.credit = true;
            self.rto_at = Some(now + self.backed_off_rto());
        }
    }

    /// The path does not carry segments of more than `mss` bytes: those in flight are lost for certain, which says nothing
    /// about congestion. They leave again at once, cut anew.
    pub(in crate::stream) fn shrink(&mut self, mss: usize) {
        if self.reference() {
            return;
        }
        for i in 0..self.segs.len() {
            if self.segs[i].len as usize > mss {
                self.lose(i);
            }
        }
        if !self.lost.is_empty() {
            if self.timeouts > 0 {
                self.cc.forgive();
            }
            (self.timeouts, self.credit) = (0, true);
            (self.rto_at, self.tlp_at, self.pace_at, self.rto_extra) = (None, None, None, Duration::ZERO);
        }
    }

    /// Stops sending data: everything unacknowledged and unsent is forgotten.
    pub(in crate::stream) fn discard(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::super::{PeerWindow, Piece};
    use super::*;
    use crate::stream::CongestionKind;
    use bytes::Bytes;

    #[test]
    fn acknowledgements_and_sack_work_across_the_wrap_of_sequence_numbers() {
        let base = u32::MAX - 2000;
        let mut sender = Sender::new(base, PeerWindow::Segments(512), CongestionKind::Cubic, 1 << 20);
        let mut now = Instant::now();
        assert!(sender.buf.push(Bytes::from(vec![1; 5 * 1152])).is_empty());
        let sent: Vec<Piece> = std::iter::from_fn(|| sender.next_piece(now)).collect();
        assert_eq!(sent.iter().map(|p| p.off).collect::<Vec<_>>(), [0, 1152, 2304, 3456, 4608]);
        assert!(sender.seq(2304) < base, "the numbers wrapped");
        now += Duration::from_millis(20);
        // The second segment is missing; the block above it lies across the wrap's far side.
        let ack = sender.ack_offset(sender.seq(1152)).expect("ours");
        let block = (sender.seq(2304), sender.seq(5760));
        assert!(sender.on_ack(now, ack as u64, &[block], true).progress);
        let again: Vec<Piece> = std::iter::from_fn(|| sender.next_piece(now)).collect();
        assert_eq!(again, [Piece { off: 1152, len: 1152, fresh: false }]);
        let ack = sender.ack_offset(sender.seq(5760)).expect("ours");
        sender.on_ack(now, ack as u64, &[], true);
        assert!(sender.all_acked());
        assert_eq!((sender.in_flight(), sender.unacked_segments()), (0, 0));
        assert_eq!(sender.ack_offset(sender.seq(5761)), None, "never sent");
    }

    /// An interactive stream over a path of 100 ms on which a few messages got lost: each further one is probed before its
    /// acknowledgement can come, which must not hide that those before it are missing.
    #[test]
    fn losses_are_found_although_every_later_segment_was_probed() {
        let mut sender = Sender::new(1, PeerWindow::Edge(1 << 20), CongestionKind::Cubic, 1 << 20);
        let start = Instant::now();
        let ms = |ms: u64| start + Duration::from_millis(ms);
        let write = |sender: &mut Sender, at: u64| {
            assert!(sender.buf.push(Bytes::from_static(&[1; 32])).is_empty());
            sender.next_piece(ms(at)).expect("a message leaves")
        };
        write(&mut sender, 0);
        sender.on_ack(ms(100), 32, &[], true);
        // Two are lost; the probe for the third leaves 20 ms before its acknowledgement comes.
        for at in [150, 200, 400] {
            write(&mut sender, at);
        }
        sender.probe = Some(96);
        sender.credit = true;
        assert_eq!(sender.next_piece(ms(480)), Some(Piece { off: 96, len: 32, fresh: false }));
        sender.on_ack(ms(500), 32, &[(97, 129)], true);
        assert!(!sender.reordering, "the probe was sent without a sign of loss");
        let again: Vec<u64> = std::iter::from_fn(|| sender.next_piece(ms(500))).map(|p| p.off).collect();
        assert_eq!(again, [32, 64]);
    }

    #[test]
    fn the_probe_waits_for_what_left_last() {
        let mut sender = Sender::new(1, PeerWindow::Edge(1 << 20), CongestionKind::Cubic, 1 << 20);
        let start = Instant::now();
        let ms = |ms: u64| start + Duration::from_millis(ms);
        for at in [0, 150] {
            assert!(sender.buf.push(Bytes::from_static(&[1; 32])).is_empty());
            assert!(sender.next_piece(ms(at)).is_some());
            if at == 0 {
                sender.on_ack(ms(100), 32, &[], true);
            }
        }
        assert!(sender.buf.push(Bytes::from_static(&[1; 32])).is_empty());
        assert!(sender.next_piece(ms(200)).is_some());
        assert_eq!(sender.tlp_at, Some(ms(400)), "two round trips after the last segment");
    }

    #[test]
    fn an_overtaken_segment_widens_the_reordering_window_instead_of_being_resent_again() {
        let mut sender = Sender::new(1, PeerWindow::Segments(512), CongestionKind::Cubic, 1 << 20);
        let start = Instant::now();
        assert!(sender.buf.push(Bytes::from(vec![1; 20 * 1152])).is_empty());
        for i in 0..10 {
            let at = start + Duration::from_millis(i);
            assert!(sender.next_piece(at).is_some());
        }
        let later = start + Duration::from_millis(40);
        let block = |a: u64, b: u64| (1 + a as u32 * 1152, 1 + b as u32 * 1152);
        sender.on_ack(later, 0, &[block(2, 3)], true);
        assert!(!sender.reordering);
        sender.on_ack(later + Duration::from_millis(1), 1152, &[block(2, 3)], true);
        assert!(sender.reordering, "the first segment came after the third");
        assert!(sender.lost.is_empty(), "nothing was taken for lost");
    }
}
