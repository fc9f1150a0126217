//! CUBIC (RFC 9438) with a HyStart-like end of slow start (RFC 9406) and pacing on longer paths.

use super::{Acked, Controller, MAX_CWND, initial, minimum};
use std::time::{Duration, Instant};

/// Multiplicative decrease.
const BETA: f64 = 0.7;
/// Scaling constant, segments per cubic second.
const C: f64 = 0.4;
/// Round-trip samples that make a round's minimum meaningful.
const HYSTART_SAMPLES: u32 = 8;
const HYSTART_MIN: Duration = Duration::from_millis(4);
const HYSTART_MAX: Duration = Duration::from_millis(16);
/// Below this round-trip time acknowledgements clock finely enough without pacing.
const PACING_MIN_RTT: Duration = Duration::from_millis(3);

#[derive(Debug)]
pub(super) struct Cubic {
    mss: u64,
    cwnd: u64,
    ssthresh: u64,
    /// Window before the last reduction, bytes.
    w_max: f64,
    /// Start of the current growth epoch, and the window an AIMD sender would have.
    epoch: Option<(Instant, f64)>,
    /// Seconds until the plateau.
    k: f64,
    /// Growth not yet a whole byte.
    fraction: f64,
    round_end: u64,
    round_min: Option<Duration>,
    round_samples: u32,
    last_round_min: Option<Duration>,
    /// Window and plateau before the last timeout.
    before: (u64, f64),
}

impl Cubic {
    pub(super) fn new(mss: u64) -> Cubic {
        Cubic {
            mss,
            cwnd: initial(mss),
            ssthresh: u64::MAX,
            w_max: 0.0,
            epoch: None,
            k: 0.0,
            fraction: 0.0,
            round_end: 0,
            round_min: None,
            round_samples: 0,
            last_round_min: None,
            before: (0, 0.0),
        }
    }

    /// Ends slow start when the round-trip time of this round has risen clearly over the last one's.
    fn hystart(&mut self, ack: &Acked) {
        if ack.una >= self.round_end {
            self.round_end = ack.nxt;
            self.last_round_min = self.round_min.take().or(self.last_round_min);
            self.round_samples = 0;
        }
        let Some(rtt) = ack.rtt else { return };
        let low = self.round_min.map_or(rtt, |m| m.min(rtt));
        self.round_min = Some(low);
        self.round_samples += 1;
        if let Some(last) = self.last_round_min
            && self.round_samples >= HYSTART_SAMPLES
            && low >= last + (last / 8).clamp(HYSTART_MIN, HYSTART_MAX)
        {
            self.ssthresh = self.cwnd;
        }
    }

    fn avoid(&mut self, ack: &Acked) {
        let cwnd = self.cwnd as f64;
        let mss = self.mss as f64;
        if self.epoch.is_none() {
            if self.w_max < cwnd {
                self.w_max = cwnd;
            }
            self.k = ((self.w_max - cwnd) / mss / C).max(0.0).cbrt();
            self.epoch = Some((ack.now, cwnd));
        }
        let Some((start, w_est)) = &mut self.epoch else { return };
        let acked = ack.bytes as f64;
        // RFC 9438 section 4.3: the Reno-friendly estimate grows by alpha segments per window.
        let alpha = if *w_est >= self.w_max { 1.0 } else { 3.0 * (1.0 - BETA) / (1.0 + BETA) };
        *w_est += alpha * mss * acked / cwnd;
        let t = (ack.now.saturating_duration_since(*start) + ack.srtt).as_secs_f64();
        let target = (C * (t - self.k).powi(3) * mss + self.w_max).clamp(cwnd, cwnd * 1.5);
        let growth = ((target - cwnd) / cwnd * acked).max(0.0);
        let growth = growth.max(*w_est - cwnd);
        self.fraction += growth;
        let whole = self.fraction.floor();
        self.fraction -= whole;
        self.cwnd += whole as u64;
    }

    fn reduce(&mut self) {
        let cwnd = self.cwnd as f64;
        // Fast convergence: leave room if the plateau came down.
        self.w_max = if cwnd < self.w_max { cwnd * (1.0 + BETA) / 2.0 } else { cwnd };
        self.ssthresh = ((cwnd * BETA) as u64).max(minimum(self.mss));
        self.epoch = None;
        self.fraction = 0.0;
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &Acked) {
        if ack.in_recovery || !ack.limited {
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd += ack.bytes;
            self.hystart(ack);
        } else {
            self.avoid(ack);
        }
        self.cwnd = self.cwnd.min(MAX_CWND);
    }

    fn on_loss(&mut self, _now: Instant, _in_flight: u64) {
        self.reduce();
        self.cwnd = self.ssthresh;
    }

    fn on_timeout(&mut self, _now: Instant, _in_flight: u64) {
        self.before = (self.cwnd, self.w_max);
        self.reduce();
        self.cwnd = self.mss.max(4096);
    }

    fn forgive(&mut self) {
        let (cwnd, w_max) = self.before;
        self.ssthresh = self.ssthresh.max(cwnd);
        self.w_max = self.w_max.max(w_max);
        self.cwnd = self.cwnd.max(initial(self.mss));
    }

    fn on_idle(&mut self) {
        self.cwnd = self.cwnd.min(initial(self.mss));
        self.epoch = None;
    }

    fn set_mss(&mut self, mss: u64) {
        self.mss = mss;
        self.cwnd = self.cwnd.max(minimum(mss));
    }

    fn cwnd(&self) -> u64 {
        self.cwnd
    }

    fn ssthresh(&self) -> u64 {
        self.ssthresh
    }

    fn pacing_rate(&self, srtt: Option<Duration>) -> Option<u64> {
        let srtt = srtt.filter(|s| *s >= PACING_MIN_RTT)?;
        let gain = if self.cwnd < self.ssthresh { 2.0 } else { 1.25 };
        Some((gain * self.cwnd as f64 / srtt.as_secs_f64()) as u64)
    }
}
