//! The sending direction of a connection: Nagle, windows, congestion, retransmission (spec 03 sections 8, 12 to 14).

use super::recv::diff;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Payload of a segment.
pub(crate) const MSS: usize = 1152;
/// Unacknowledged segments.
const MAX_SEGMENTS: usize = 128;
/// A large write is fed through in pieces of this size.
const PIECE: usize = 56 * MSS;
/// A short rest is held for at most this long.
const NAGLE: Duration = Duration::from_millis(40);
const INITIAL_CWND: usize = 40_960;
const INITIAL_SSTHRESH: usize = 524_288;
const MAX_CWND: usize = 1_048_576;
const MIN_SSTHRESH: usize = 8_192;
const GROWTH: usize = 4_096;
const INITIAL_RTO: Duration = Duration::from_secs(1);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(10);
/// Transmissions of one segment.
const MAX_TIMES: u32 = 8;
const FIRST_PROBE: Duration = Duration::from_millis(500);
const MAX_PROBE: Duration = Duration::from_secs(30);
/// Probes of a closed window before giving up.
const MAX_PROBES: u32 = 30;

/// A segment on its way.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) data: Bytes,
    sent: Instant,
    times: u32,
    marked: bool,
}

/// Repair after a loss, up to this sequence number.
#[derive(Debug, Clone, Copy)]
struct Repair {
    until: u32,
    fast: bool,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    at: Instant,
    wait: Duration,
    sent: u32,
}

/// What the sender wants to be done.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// New data; true: new, else sent again.
    Data(Segment, bool),
    /// An empty acknowledgement as a window probe.
    Probe,
    /// The peer is given up: RST.
    GiveUp,
}

#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) nxt: u32,
    una: u32,
    /// Bytes acknowledged.
    pub(crate) acked: u64,
    segments: VecDeque<Segment>,
    pub(crate) window: u16,
    cwnd: usize,
    ssthresh: usize,
    dups: u32,
    repair: Option<Repair>,
    rto: Duration,
    rtt: Option<(Duration, Duration)>,
    /// Writes of the application that are not through, oldest first.
    writes: VecDeque<Bytes>,
    /// Bytes to be cut into segments.
    buffer: VecDeque<u8>,
    /// The write they came from was a full segment or longer.
    whole: bool,
    /// They are the rest of a write about which nothing has been decided.
    unsettled: bool,
    nagle: Option<Instant>,
    flush: bool,
    probe: Option<Probe>,
    /// The 100-ms timer counts from here.
    ticks_from: Instant,
}

impl Sender {
    pub(crate) fn new(now: Instant) -> Sender {
        Sender {
            nxt: 1,
            una: 0,
            acked: 0,
            segments: VecDeque::new(),
            window: 0,
            cwnd: INITIAL_CWND,
            ssthresh: INITIAL_SSTHRESH,
            dups: 0,
            repair: None,
            rto: INITIAL_RTO,
            rtt: None,
            writes: VecDeque::new(),
            buffer: VecDeque::new(),
            whole: false,
            unsettled: false,
            nagle: None,
            flush: false,
            probe: None,
            ticks_from: now,
        }
    }

    pub(crate) fn unacked(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of writes that are not through. Held bytes of finished writes do not count: they block nobody.
    pub(crate) fn waiting(&self) -> usize {
        self.writes.iter().map(Bytes::len).sum::<usize>() + if self.blocked() { self.buffer.len() } else { 0 }
    }

    /// A write does not return yet.
    pub(crate) fn blocked(&self) -> bool {
        self.probe.is_some() || !self.writes.is_empty()
    }

    pub(crate) fn write(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.writes.push_back(data);
        }
    }

    /// The application closes: a held rest goes out whatever the window says.
    pub(crate) fn flush_ignoring_window(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        while !self.buffer.is_empty() {
            acts.push(self.segment(now));
        }
        acts
    }

    /// Nothing more is sent, and nothing sent is repeated.
    pub(crate) fn stop(&mut self) {
        self.segments.clear();
        self.writes.clear();
        self.buffer.clear();
        (self.nagle, self.probe, self.repair, self.unsettled) = (None, None, None, false);
    }

    /// What was written and is not in a segment yet is thrown away.
    pub(crate) fn drop_writes(&mut self) {
        self.writes.clear();
        self.buffer.clear();
        (self.nagle, self.probe, self.unsettled) = (None, None, false);
    }

    fn flight(&self, marked_too: bool) -> usize {
        self.segments.iter().filter(|s| marked_too || !s.marked).map(|s| s.data.len()).sum()
    }

    fn may_send(&self) -> bool {
        let fast = self.repair.is_some_and(|r| r.fast);
        let bytes = self.cwnd.min(usize::from(self.window) * MSS);
        let most = usize::from(self.window).min(MAX_SEGMENTS);
        self.flight(fast) < bytes && self.segments.len() < most
    }

    fn segment(&mut self, now: Instant) -> Act {
        let len = self.buffer.len().min(MSS);
        let data: Bytes = self.buffer.drain(..len).collect();
        let segment = Segment { seq: self.nxt, data, sent: now, times: 1, marked: false };
        self.nxt = self.nxt.wrapping_add(len as u32);
        self.segments.push_back(segment.clone());
        self.probe = None;
        if self.buffer.is_empty() {
            self.nagle = None;
        }
        Act::Data(segment, true)
    }

    /// Sends what may be sent.
    pub(crate) fn pump(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        loop {
            if self.buffer.len() >= MSS {
                if !self.may_send() {
                    self.block(now);
                    break;
                }
                acts.push(self.segment(now));
            } else if self.unsettled {
                if !self.settle(now, &mut acts) {
                    break;
                }
                self.unsettled = false;
            } else if let Some(write) = self.writes.front_mut() {
                self.whole |= write.len() >= MSS;
                let piece = write.split_to(write.len().min(PIECE));
                self.buffer.extend(piece);
                if write.is_empty() {
                    self.writes.pop_front();
                    self.unsettled = true;
                }
            } else {
                self.settle(now, &mut acts);
                break;
            }
        }
        acts
    }

    /// Decides about a rest shorter than a segment. False: it blocks the writer.
    fn settle(&mut self, now: Instant, acts: &mut Vec<Act>) -> bool {
        if self.buffer.is_empty() {
            (self.whole, self.flush) = (false, false);
            return true;
        }
        let short_under_way = self.segments.iter().any(|s| s.data.len() < MSS && !s.marked);
        if !(self.whole || self.flush || !short_under_way) {
            self.nagle.get_or_insert(now + NAGLE);
            return true;
        }
        if !self.may_send() {
            self.block(now);
            return false;
        }
        acts.push(self.segment(now));
        (self.whole, self.flush) = (false, false);
        true
    }

    fn block(&mut self, now: Instant) {
        self.nagle = None;
        self.probe.get_or_insert(Probe { at: now + FIRST_PROBE, wait: FIRST_PROBE, sent: 0 });
    }

    /// An acknowledgement with its window and, if it has one, its SACK list.
    pub(crate) fn on_ack(
        &mut self,
        now: Instant,
        ack: u32,
        window: u16,
        empty: bool,
        sack: Option<&[(u32, u32)]>,
    ) -> Vec<Act> {
        let same_window = window == self.window;
        self.window = window;
        let mut acts = Vec::new();
        match diff(ack, self.una) {
            0 if !self.segments.is_empty() && (sack.is_some() || (empty && same_window)) => {
                self.on_duplicate(now, &mut acts);
            }
            1.. => self.on_advance(now, ack, &mut acts),
            _ => {}
        }
        for (left, right) in sack.unwrap_or_default() {
            for segment in &mut self.segments {
                let end = segment.seq.wrapping_add(segment.data.len() as u32);
                segment.marked |= diff(segment.seq, *right) < 0 && diff(end, *left) > 0;
            }
        }
        acts.extend(self.pump(now));
        acts
    }

    fn on_duplicate(&mut self, now: Instant, acts: &mut Vec<Act>) {
        self.dups += 1;
        match self.dups {
            3 if self.repair.is_none() => {
                self.ssthresh = (self.flight(true) / 2).max(MIN_SSTHRESH);
                self.cwnd = self.ssthresh + 3 * MSS;
                self.repair = Some(Repair { until: self.nxt, fast: true });
                acts.extend(self.resend_first(now));
            }
            4.. if self.repair.is_some_and(|r| r.fast) => self.cwnd = (self.cwnd + MSS).min(MAX_CWND),
            _ => {}
        }
    }

    fn on_advance(&mut self, now: Instant, ack: u32, acts: &mut Vec<Act>) {
        let (mut acked, mut sample, mut repeated) = (0, None, false);
        while let Some(first) = self.segments.front() {
            if diff(first.seq.wrapping_add(first.data.len() as u32), ack) > 0 {
                break;
            }
            if !first.marked {
                acked += first.data.len();
            }
            self.acked += first.data.len() as u64;
            repeated |= first.times > 1;
            if first.times == 1 {
                sample.get_or_insert(now.saturating_duration_since(first.sent));
            }
            self.segments.pop_front();
        }
        if let Some(rtt) = sample.filter(|_| !repeated) {
            self.sample(rtt);
        }
        self.una = ack;
        self.dups = 0;
        for segment in &mut self.segments {
            segment.sent = now;
        }
        match self.repair {
            Some(repair) if diff(ack, repair.until) >= 0 => {
                if repair.fast {
                    self.cwnd = self.ssthresh;
                } else {
                    self.grow(acked);
                }
                self.repair = None;
            }
            Some(repair) => {
                if repair.fast {
                    let less = self.cwnd.saturating_sub(acked);
                    self.cwnd = (less + if acked >= MSS { MSS } else { 0 }).max(self.ssthresh);
                } else {
                    self.grow(acked);
                }
                acts.extend(self.resend_first(now));
            }
            None => self.grow(acked),
        }
    }

    fn grow(&mut self, acked: usize) {
        if acked == 0 {
            return;
        }
        self.cwnd += if self.cwnd < self.ssthresh {
            acked.min(2 * GROWTH)
        } else {
            (GROWTH * acked.min(GROWTH) / self.cwnd).max(1)
        };
        self.cwnd = self.cwnd.min(MAX_CWND);
    }

    fn sample(&mut self, r: Duration) {
        let (srtt, var) = match self.rtt {
            None => (r, r / 2),
            Some((srtt, var)) => ((srtt * 7 + r) / 8, (var * 3 + srtt.abs_diff(r)) / 4),
        };
        self.rtt = Some((srtt, var));
        self.rto = (srtt + (var * 4).max(Duration::from_millis(10))).clamp(MIN_RTO, MAX_RTO);
    }

    fn resend_first(&mut self, now: Instant) -> Option<Act> {
        let first = self.segments.iter_mut().find(|s| !s.marked)?;
        (first.times, first.sent) = (first.times + 1, now);
        Some(Act::Data(first.clone(), false))
    }

    /// When something is due.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let head = self.segments.front().filter(|s| s.marked);
        let first = self.segments.iter().find(|s| !s.marked);
        let resend = [head, first].into_iter().flatten().map(|s| self.tick_after(s.sent + self.rto)).min();
        [resend, self.nagle, self.probe.map(|p| p.at)].into_iter().flatten().min()
    }

    /// The first 100-ms tick not before that time.
    fn tick_after(&self, at: Instant) -> Instant {
        const TICK: u128 = 100_000_000;
        let since = at.saturating_duration_since(self.ticks_from).as_nanos();
        self.ticks_from + Duration::from_nanos((since.div_ceil(TICK) * TICK) as u64)
    }

    /// Runs what is due. `jitter` is a random number below 1,000,000.
    pub(crate) fn on_timeout(&mut self, now: Instant, jitter: u32) -> Vec<Act> {
        let mut acts = Vec::new();
        if let Some(front) = self.segments.front()
            && front.marked
            && now >= self.tick_after(front.sent + self.rto)
        {
            // A head that the receiver holds without delivering it: all marks are forgotten.
            self.segments.iter_mut().for_each(|s| s.marked = false);
        }
        let late = |s: &&Segment| !s.marked && now >= self.tick_after(s.sent + self.rto);
        if let Some(first) = self.segments.iter().find(|s| !s.marked).filter(late) {
            if first.times >= MAX_TIMES {
                return vec![Act::GiveUp];
            }
            self.ssthresh = (self.flight(true) / 2).max(MIN_SSTHRESH);
            self.cwnd = GROWTH;
            self.dups = 0;
            self.repair = Some(Repair { until: self.nxt, fast: false });
            acts.extend(self.resend_first(now));
            let doubled = self.rto * 2;
            self.rto = (doubled + doubled / 4 * jitter / 1_000_000).min(MAX_RTO);
        }
        if self.nagle.is_some_and(|at| now >= at) {
            (self.nagle, self.flush) = (None, true);
            acts.extend(self.pump(now));
        }
        if let Some(probe) = &mut self.probe
            && now >= probe.at
        {
            if probe.sent >= MAX_PROBES {
                return vec![Act::GiveUp];
            }
            probe.wait = (probe.wait * 2).min(MAX_PROBE);
            (probe.at, probe.sent) = (now + probe.wait, probe.sent + 1);
            acts.push(Act::Probe);
        }
        acts
    }
}
