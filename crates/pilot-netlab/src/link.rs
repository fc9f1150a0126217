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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PACKET: usize = 1250;

    /// Offers packets of 1,250 bytes at this interval; arrival (since the first was offered) and copies of each.
    fn offer(
        link: Link,
        seed: u64,
        count: u32,
        every: Duration,
    ) -> (LinkState, Vec<Option<(Duration, bool)>>) {
        let mut state = LinkState::new(link, seed, 0);
        let start = Instant::now();
        let verdicts = (0..count).map(|i| match state.offer(start + every * i, PACKET) {
            Verdict::Deliver { at, twice } => Some((at - start, twice)),
            Verdict::Drop | Verdict::TooBig { .. } => None,
        });
        let verdicts = verdicts.collect();
        (state, verdicts)
    }

    #[test]
    fn a_plain_link_delivers_at_once_and_a_delay_is_exact() {
        let (_, all) = offer(Link::new(), 1, 100, MS);
        assert!(all.iter().zip(0..).all(|(v, i)| *v == Some((MS * i, false))));
        let (_, all) = offer(Link::new().delay(20 * MS), 1, 100, MS);
        assert!(all.iter().zip(20..).all(|(v, i)| *v == Some((MS * i, false))));
    }

    #[test]
    fn loss_and_duplication_hit_the_share_asked_for() {
        let link = Link::new().loss(0.05).duplicate(0.1);
        let (state, all) = offer(link, 2, 100_000, MS);
        let lost = all.iter().filter(|v| v.is_none()).count();
        let twice = all.iter().flatten().filter(|(_, twice)| *twice).count();
        // 5,000 and 9,500, with standard deviations of 69 and 93.
        assert!((4_700..=5_300).contains(&lost), "{lost}");
        assert!((9_100..=9_900).contains(&twice), "{twice}");
        let counts = state.counts;
        assert_eq!((counts.offered, counts.lost), (100_000, lost as u64));
        assert_eq!(counts.delivered, (100_000 - lost + twice) as u64);
        assert_eq!(offer(Link::new().loss(1.0), 2, 100, MS).1, vec![None; 100]);
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops() {
        // 1,250 bytes at 10 Mbit/s take 1 ms. The queue takes 10 of them besides what is being sent.
        let link = Link::new().mbit(10).queue(10 * PACKET);
        let (state, all) = offer(link, 3, 12, Duration::ZERO);
        let arrivals: Vec<_> = all.iter().flatten().map(|(at, _)| *at).collect();
        assert_eq!(arrivals, (1..=10).map(|i| MS * i).collect::<Vec<_>>());
        assert_eq!(state.counts.overflowed, 2);
        // At twice the rate half is dropped, and what arrives fills the link.
        let (state, all) = offer(link, 3, 10_000, MS / 2);
        let last = all.iter().flatten().last().unwrap().0;
        assert!(state.counts.delivered.abs_diff(5_000) <= 10, "{:?}", state.counts);
        assert_eq!(last, MS * state.counts.delivered as u32);
    }

    #[test]
    fn jitter_spreads_arrivals_and_keeps_their_order() {
        let (_, all) = offer(Link::new().delay(20 * MS).jitter(10 * MS), 4, 10_000, 100 * MS);
        let extra: Vec<_> =
            all.iter().flatten().zip(0..).map(|((at, _), i)| *at - 100 * MS * i - 20 * MS).collect();
        assert!(extra.iter().all(|e| *e < 10 * MS));
        let mean = extra.iter().sum::<Duration>() / 10_000;
        assert!((4_900..=5_100).contains(&mean.as_micros()), "{mean:?}");
        // Closer together than the jitter is wide.
        let (_, all) = offer(Link::new().jitter(10 * MS), 4, 10_000, MS);
        assert!(all.iter().flatten().is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn reordering_holds_back_the_share_asked_for() {
        let (_, all) = offer(Link::new().reorder(0.02, 5 * MS), 5, 50_000, MS);
        let late = all.iter().flatten().zip(0..).filter(|((at, _), i)| *at == MS * (*i + 5)).count();
        let in_time = all.iter().flatten().zip(0..).filter(|((at, _), i)| *at == MS * *i).count();
        // 1,000, with a standard deviation of 31.
        assert!((870..=1_130).contains(&late), "{late}");
        assert_eq!(late + in_time, 50_000);
    }

    #[test]
    fn a_seed_repeats_and_one_fault_does_not_move_another() {
        let lossy = Link::new().loss(0.1);
        let hit = |link, seed| offer(link, seed, 1_000, MS).1.iter().map(Option::is_none).collect::<Vec<_>>();
        assert_eq!(hit(lossy, 6), hit(lossy, 6));
        assert_ne!(hit(lossy, 6), hit(lossy, 7));
        assert_eq!(hit(lossy, 6), hit(lossy.jitter(MS).duplicate(0.3).reorder(0.1, MS), 6));
    }

    #[test]
    fn what_is_too_big_or_offered_to_a_cut_link_is_counted() {
        let mut state = LinkState::new(Link::new().mtu(1_000), 8, 0);
        let now = Instant::now();
        assert_eq!(state.offer(now, 1_001), Verdict::TooBig { mtu: 1_000, tell: true });
        assert_eq!(state.offer(now, 1_000), Verdict::Deliver { at: now, twice: false });
        state.set(Link::new().black_hole_mtu(900));
        assert_eq!(state.offer(now, 1_000), Verdict::TooBig { mtu: 900, tell: false });
        state.set(Link::new().cut());
        assert_eq!(state.offer(now, 10), Verdict::Drop);
        assert_eq!((state.counts.too_big, state.counts.cut), (2, 1));
    }
}
