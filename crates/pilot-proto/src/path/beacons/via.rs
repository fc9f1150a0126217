//! Through which beacon one peer is answered.
//!
//! Both sides may have chosen another beacon, and one side's may not know the other: a reference peer is known to its own
//! alone. What comes from the peer came through one that works for it. If both followed the other's frames at once they would
//! change places for ever, so the one with the smaller number waits, and goes only if the other does not come.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// For so long must all frames come through another beacon before the side that leads goes there.
const WAIT: Duration = Duration::from_secs(1);

/// State of one peer's relay path. One without anything heard is sent to through the chosen beacon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Via {
    through: Option<SocketAddr>,
    /// Nothing came through the beacon in use since, but through this one.
    other: Option<(SocketAddr, Instant)>,
}

impl Via {
    /// The beacon that works for this peer, as far as is known.
    pub fn through(&self) -> Option<SocketAddr> {
        self.through
    }

    /// An authentic frame of the peer came through `via`. `current`: what frames to it are sent through now. `leads`: the
    /// peer is expected to follow us, unless nothing came from it yet. True: another beacon is used from now on.
    pub fn heard(&mut self, now: Instant, via: SocketAddr, current: Option<SocketAddr>, leads: bool) -> bool {
        if current == Some(via) {
            *self = Via { through: Some(via), other: None };
            return false;
        }
        let since = match self.other {
            Some((other, since)) if other == via => since,
            _ => now,
        };
        if leads && self.through.is_some() && now.saturating_duration_since(since) < WAIT {
            self.other = Some((via, since));
            return false;
        }
        *self = Via { through: Some(via), other: None };
        true
    }

    /// Another beacon was chosen: the side that leads goes there, whatever is still on its way through the one before.
    pub fn lead(&mut self, through: Option<SocketAddr>) {
        *self = Via { through, other: None };
    }
}
