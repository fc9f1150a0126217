//! Links: what a cable does to packets, decided packet by packet on a clock that is passed in.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::time::{Duration, Instant};

/// One direction of a link. The default carries everything at once and unchanged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits per second of IP packets, headers included; `None`: no limit.
    pub rate: Option<u64>,
    /// Time from the end of sending to arrival.
    pub delay: Duration,
    /// Upper end of a uniformly distributed addition to `delay`. Order is kept.
    pub jitter: Duration,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// Share of packets held back by `reorder_by`, so that later ones overtake them, 0 to 1.
    pub reorder: f64,
    /// How long those are held back.
    pub reorder_by: Duration,
    /// Bytes that may wait for their turn when `rate` is set; what comes on top is dropped.
    pub queue: usize,
    /// Largest packet carried, in bytes, IP header included.
    pub mtu: usize,
    /// Whether the sender of a packet beyond `mtu` that must not be fragmented is told so by ICMP. If not, the
    /// link is a black hole for such packets.
    pub icmp: bool,
    /// Off: nothing passes.
    pub up: bool,
}

impl Default for Link {
    fn default() -> Self {
        Link::new()
    }
}

impl Link {
    /// Bytes a limited link queues unless told otherwise.
    pub const DEFAULT_QUEUE: usize = 256 * 1024;

    /// A link without limits, delay or faults.
    pub const fn new() -> Link {
        Link {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            queue: Self::DEFAULT_QUEUE,
            mtu: MTU_MAX,
            icmp: true,
            up: true,
        }
    }

    /// Limits the rate, in megabits per second.
    #[must_use]
    pub const fn mbit(mut self, mbit_per_s: u64) -> Link {
        self.rate = Some(mbit_per_s * 1_000_000);
        self
    }

    /// Sets the delay.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Link {
        self.delay = delay;
        self
    }

    /// Sets the jitter: up to this much is added to the delay.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Link {
        self.jitter = jitter;
        self
    }

    /// Loses this share of the packets (0 to 1).
    #[must_use]
    pub const fn loss(mut self, share: f64) -> Link {
        self.loss = share;
        self
    }

    /// Delivers this share of the packets twice (0 to 1).
    #[must_use]
    pub const fn duplicate(mut self, share: f64) -> Link {
        self.duplicate = share;
        self
    }

    /// Holds this share of the packets back (0 to 1) for so long.
    #[must_use]
    pub const fn reorder(mut self, share: f64, by: Duration) -> Link {
        self.reorder = share;
        self.reorder_by = by;
        self
    }

    /// Bounds the queue before a limited link, in bytes.
    #[must_use]
    pub const fn queue(mut self, bytes: usize) -> Link {
        self.queue = bytes;
        self
    }

    /// Carries packets up to this size only, and says so to senders by ICMP.
    #[must_use]
    pub const fn mtu(mut self, bytes: usize) -> Link {
        self.mtu = bytes;
        self.icmp = true;
        self
    }

    /// Carries packets up to this size only, and swallows larger ones without a word.
    #[must_use]
    pub const fn black_hole_mtu(mut self, bytes: usize) -> Link {
        self.mtu = bytes;
        self.icmp = false;
        self
    }

    /// The link cut: nothing passes.
    #[must_use]
    pub const fn cut(mut self) -> Link {
        self.up = false;
        self
    }
}

/// Largest IPv4 packet, in bytes.
pub(crate) const MTU_MAX: usize = 65_535;

/// Both directions of a link, seen from the host or router it belongs to. A [`Link`] stands for both at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Duplex {
    /// Towards the network.
    pub up: Link,
    /// From the network.
    pub down: Link,
}

impl From<Link> for Duplex {
    fn from(link: Link) -> Duplex {
        Duplex { up: link, down: link }
    }
}

/// What happened to the packets of one direction of a link so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Packets offered.
    pub offered: u64,
    /// Bytes offered.
    pub offered_bytes: u64,
    /// Packets delivered or under way, duplicates included.
    pub delivered: u64,
    /// Lost at random, as asked.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Larger than the MTU.
    pub too_big: u64,
    /// Offered while the link was cut.
    pub cut: u64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    /// Larger than the MTU; `tell`: by ICMP.
    TooBig {
        mtu: usize,
        tell: bool,
    },
    Deliver {
        at: Instant,
        twice: bool,
    },
}

/// One direction at work.
pub(crate) struct LinkState {
    pub config: Link,
    pub counts: LinkCounts,
    rng: ChaCha8Rng,
    /// When the last packet accepted will have been sent.
    busy_until: Option<Instant>,
    /// When the last packet that kept its place in the order arrives.
    last_arrival: Option<Instant>,
}

impl LinkState {
    /// Every link draws from a generator of its own, so that what it does to its n-th packet depends on the
    /// seed and on nothing another link sees.
    pub fn new(config: Link, seed: u64, stream: u64) -> LinkState {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        LinkState { config, counts: LinkCounts::default(), rng, busy_until: None, last_arrival: None }
    }

    /// Decides about a packet of `len` bytes that enters now.
    pub fn offer(&mut self, now: Instant, len: usize) -> Verdict {
        let link = self.config;
        self.counts.offered += 1;
        self.counts.offered_bytes += len as u64;
        // The same number of draws for every packet: changing one fault moves no other.
        let [lose, duplicate, hold, jitter] = std::array::from_fn(|_| self.draw());
        if !link.up {
            self.counts.cut += 1;
            return Verdict::Drop;
        }
        if len > link.mtu {
            self.counts.too_big += 1;
            return Verdict::TooBig { mtu: link.mtu, tell: link.icmp };
        }
        let mut sent = now;
        if let Some(rate) = link.rate.filter(|r| *r > 0) {
            let start = self.busy_until.map_or(now, |t| t.max(now));
            let waiting = (start - now).as_secs_f64() * rate as f64 / 8.0;
            if waiting + len as f64 > link.queue as f64 {
                self.counts.overflowed += 1;
                return Verdict::Drop;
            }
            sent = start + Duration::from_nanos((len as u64 * 8).saturating_mul(1_000_000_000) / rate);
            self.busy_until = Some(sent);
        }
        if lose < link.loss {
            self.counts.lost += 1;
            return Verdict::Drop;
        }
        let mut at = sent + link.delay + link.jitter.mul_f64(jitter);
        if hold < link.reorder {
            at += link.reorder_by;
        } else {
            at = self.last_arrival.map_or(at, |last| last.max(at));
            self.last_arrival = Some(at);
        }
        let twice = duplicate < link.duplicate;
        self.counts.delivered += 1 + u64::from(twice);
        Verdict::Deliver { at, twice }
    }

    /// Changes the link. What is under way arrives as it would have, and before what comes now.
    pub fn set(&mut self, config: Link) {
        if config.rate.is_none() {
            self.busy_until = None;
        }
        self.config = config;
    }

    /// Uniform in [0, 1).
    fn draw(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}
