//! Congestion controllers. Private to the sender (spec 03 section 24), so they can be exchanged.

mod aimd;
mod cubic;

use std::fmt;
use std::time::{Duration, Instant};

/// Which controller new connections use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CongestionKind {
    /// The protocol's original (spec 03 section 14).
    Aimd,
    /// CUBIC (RFC 9438) with a delay-based end of slow start.
    #[default]
    Cubic,
}

/// What an acknowledgement told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acked {
    pub(super) now: Instant,
    /// Bytes newly known to have arrived, by cumulative acknowledgement or SACK.
    pub(super) bytes: u64,
    /// Round-trip time sample of this acknowledgement, if it gave one.
    pub(super) rtt: Option<Duration>,
    /// Smoothed round-trip time.
    pub(super) srtt: Duration,
    /// The window, not the application or the peer, limited sending: only then it may grow.
    pub(super) limited: bool,
    /// Losses of an earlier window are still being repaired.
    pub(super) in_recovery: bool,
    /// Offset up to which everything has arrived, and offset sent next: they delimit rounds.
    pub(super) una: u64,
    /// See `una`.
    pub(super) nxt: u64,
}

/// One connection's sending rate. All quantities are bytes.
pub(super) trait Controller: fmt::Debug + Send {
    /// A segment was sent (again).
    fn on_sent(&mut self, _now: Instant, _bytes: u64) {}
    /// Something arrived.
    fn on_ack(&mut self, ack: &Acked);
    /// Loss was found; called once per window of data.
    fn on_loss(&mut self, now: Instant, in_flight: u64);
    /// The retransmission timeout expired.
    fn on_timeout(&mut self, now: Instant, in_flight: u64);
    /// The last timeout was not due to congestion: the path has ceased to carry packets of that size. Begins anew, up to where
    /// it was.
    fn forgive(&mut self);
    /// Nothing was sent for longer than a timeout.
    fn on_idle(&mut self);
    /// The segment size changed.
    fn set_mss(&mut self, mss: u64);
    /// Bytes that may be in flight.
    fn cwnd(&self) -> u64;
    /// Slow-start threshold, for status output.
    fn ssthresh(&self) -> u64;
    /// Bytes per second to spread sending over, or no pacing.
    fn pacing_rate(&self, srtt: Option<Duration>) -> Option<u64>;
}

/// Largest congestion window, bytes.
pub(super) const MAX_CWND: u64 = 64 << 20;
/// Initial window in bytes (spec 03 section 14), but at least two segments.
const INITIAL_CWND: u64 = 40_960;
/// Smallest window after a loss (spec 03 section 14), but at least two segments.
const MIN_CWND: u64 = 8192;

pub(super) fn new(kind: CongestionKind, mss: u64) -> Box<dyn Controller> {
    match kind {
        CongestionKind::Aimd => Box::new(aimd::Aimd::new(mss)),
        CongestionKind::Cubic => Box::new(cubic::Cubic::new(mss)),
    }
}

fn initial(mss: u64) -> u64 {
    INITIAL_CWND.max(2 * mss)
}

fn minimum(mss: u64) -> u64 {
    MIN_CWND.max(2 * mss)
}
