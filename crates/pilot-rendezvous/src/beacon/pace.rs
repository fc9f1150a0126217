//! How long the beacon waits before it looks at its socket again.
//!
//! A beacon that wakes at every datagram spends its time waking, and sends every frame on alone. Where much comes, it
//! waits a little, as network cards do: then frames of many flows find others to the same destination to leave with.
//! Where little comes it never waits.

use std::time::{Duration, Instant};

/// The wait is weighed anew this often.
const WINDOW: Duration = Duration::from_millis(2);
/// Fewer datagrams per second than this are handled as they come.
const BUSY: f64 = 25_000.0;
/// Shortest and longest wait. A beacon of the reference gathers for 2 ms (spec 04 section 4.3).
const SHORTEST: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_millis(2);
/// With fewer frames per message sent it waits longer, with more of them less.
const FEW: f64 = 6.0;
const MANY: f64 = 24.0;

/// Weighs how long to wait.
#[derive(Debug)]
pub(super) struct Pace {
    /// What may come while it waits: bytes, as the kernel counts them.
    room: f64,
    since: Option<Instant>,
    frames: u64,
    bytes: u64,
    messages: u64,
    wait: Duration,
}

impl Pace {
    /// `room`: size of the socket's receive buffer, bytes.
    pub fn new(room: usize) -> Pace {
        // A quarter: what comes is not even.
        Pace { room: room as f64 / 4.0, since: None, frames: 0, bytes: 0, messages: 0, wait: Duration::ZERO }
    }

    /// The beacon has handled all that came: `frames` datagrams of `bytes` in all, and has sent `messages`. Says how long to
    /// wait before it looks for more.
    pub fn wait(&mut self, frames: u64, bytes: u64, messages: u64, now: Instant) -> Duration {
        let since = *self.since.get_or_insert(now);
        self.frames += frames;
        self.bytes += bytes;
        self.messages += messages;
        let passed = now.saturating_duration_since(since);
        if passed < WINDOW {
            return self.wait;
        }
        let secs = passed.as_secs_f64();
        let fill = self.frames as f64 / self.messages.max(1) as f64;
        // A datagram takes about twice its bytes in the kernel, a small one a kilobyte.
        let speed = (2 * self.bytes + 1024 * self.frames) as f64 / secs;
        let wanted = match self.frames as f64 / secs {
            rate if rate < BUSY => Duration::ZERO,
            _ if fill < FEW => (self.wait * 2).clamp(SHORTEST, LONGEST),
            _ if fill > MANY => (self.wait / 2).max(SHORTEST),
            _ => self.wait.max(SHORTEST),
        };
        let most = Duration::from_secs_f64((self.room / speed.max(1.0)).min(1.0));
        self.wait = if most < SHORTEST / 2 { Duration::ZERO } else { wanted.min(most) };
        (self.since, self.frames, self.bytes, self.messages) = (Some(now), 0, 0, 0);
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 16 << 20;

    /// A second of `rate` datagrams of `len` bytes, `fill` of which leave in a message; says how long it waited at the end.
    fn second(pace: &mut Pace, now: &mut Instant, rate: u64, len: u64, fill: u64) -> Duration {
        let mut wait = Duration::ZERO;
        for _ in 0..10_000 {
            *now += Duration::from_micros(100);
            let frames = rate / 10_000;
            wait = pace.wait(frames, frames * len, frames.div_ceil(fill), *now);
        }
        wait
    }

    #[test]
    fn it_waits_only_where_much_comes_and_longest_where_frames_leave_alone() {
        let (mut pace, mut now) = (Pace::new(ROOM), Instant::now());
        assert_eq!(second(&mut pace, &mut now, 20_000, 1231, 1), Duration::ZERO, "200 Mbit/s");
        assert_eq!(second(&mut pace, &mut now, 200_000, 1231, 1), LONGEST);
        assert_eq!(second(&mut pace, &mut now, 200_000, 1231, 10), LONGEST, "what it gathers is enough");
        assert_eq!(second(&mut pace, &mut now, 1_000_000, 1231, 50), SHORTEST);
        assert_eq!(second(&mut pace, &mut now, 10_000, 1231, 50), Duration::ZERO);
    }

    #[test]
    fn what_comes_while_it_waits_has_room_in_the_receive_buffer() {
        let (mut pace, mut now) = (Pace::new(400_000), Instant::now());
        let wait = second(&mut pace, &mut now, 100_000, 1231, 1);
        assert!((Duration::from_micros(250)..Duration::from_micros(300)).contains(&wait), "{wait:?}");
        assert_eq!(second(&mut pace, &mut now, 1_000_000, 1231, 50), Duration::ZERO);
    }
}
