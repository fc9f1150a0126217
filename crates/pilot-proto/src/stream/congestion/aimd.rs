//! The protocol's original controller (spec 03 section 14): additive increase, halving.

use super::{Acked, Controller, initial, minimum};
use std::time::{Duration, Instant};

const MAX_WINDOW: u64 = 1 << 20;
const INITIAL_SSTHRESH: u64 = 524_288;
/// Most growth per acknowledgement in slow start.
const SLOW_START_STEP: u64 = 8192;
const AVOIDANCE_STEP: u64 = 4096;
const AFTER_TIMEOUT: u64 = 4096;

#[derive(Debug)]
pub(super) struct Aimd {
    mss: u64,
    cwnd: u64,
    ssthresh: u64,
    /// Threshold before the last timeout.
    before: u64,
}

impl Aimd {
    pub(super) fn new(mss: u64) -> Aimd {
        Aimd { mss, cwnd: initial(mss), ssthresh: INITIAL_SSTHRESH, before: 0 }
    }
}

impl Controller for Aimd {
    fn on_ack(&mut self, ack: &Acked) {
        if ack.in_recovery || !ack.limited {
            return;
        }
        self.cwnd += if self.cwnd < self.ssthresh {
            ack.bytes.min(SLOW_START_STEP)
        } else {
            (AVOIDANCE_STEP * ack.bytes.min(AVOIDANCE_STEP) / self.cwnd).max(1)
        };
        self.cwnd = self.cwnd.min(MAX_WINDOW.max(2 * self.mss));
    }

    fn on_loss(&mut self, _now: Instant, in_flight: u64) {
        self.ssthresh = (in_flight / 2).max(minimum(self.mss));
        self.cwnd = self.ssthresh;
    }

    fn on_timeout(&mut self, _now: Instant, in_flight: u64) {
        self.before = self.ssthresh.min(self.cwnd);
        self.ssthresh = (in_flight / 2).max(minimum(self.mss));
        self.cwnd = AFTER_TIMEOUT.max(self.mss);
    }

    fn forgive(&mut self) {
        self.ssthresh = self.ssthresh.max(self.before);
        self.cwnd = self.cwnd.max(initial(self.mss));
    }

    fn on_idle(&mut self) {
        self.cwnd = self.cwnd.min(initial(self.mss));
    }

    fn set_mss(&mut self, mss: u64) {
        self.mss = mss;
        self.cwnd = self.cwnd.max(mss);
    }

    fn cwnd(&self) -> u64 {
        self.cwnd
    }

    fn ssthresh(&self) -> u64 {
        self.ssthresh
    }

    fn pacing_rate(&self, _srtt: Option<Duration>) -> Option<u64> {
        None
    }
}
