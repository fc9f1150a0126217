//! The largest datagram one path carries, found by probes (packetization layer path MTU discovery, RFC 8899).
//!
//! Sizes are bytes of UDP payload. A path starts at its floor, which every path is trusted with, and is searched
//! upwards once full-sized datagrams are sent on it: the commonest size first, then the largest, then what lies
//! between. Only an answered probe raises the size. Probes that get lost say nothing about congestion, and three of
//! one size, not one, say that it does not fit. When full-sized datagrams seem to vanish, the size in use is probed: if
//! nothing answers, the path is a black hole for it, and the search starts from the floor again.
//!
//! What routers say (ICMP) can be forged by whoever knows both addresses. It makes us probe, and go to the floor for a
//! round trip, nothing else. What the operating system refuses is certain.

use std::time::{Duration, Instant};

/// IP packet sizes of common links, bytes: IPv6's minimum, tunnels and mobile networks, WireGuard, VXLAN, a large cloud,
/// 6in4, PPPoE, Ethernet, FDDI, jumbo frames of a cloud and of most others.
const LINKS: [usize; 11] = [1280, 1400, 1420, 1450, 1460, 1480, 1492, ETHERNET, 4352, 8896, JUMBO];
const ETHERNET: usize = 1500;
const JUMBO: usize = 9000;
/// Larger than any datagram.
const UNKNOWN: usize = usize::MAX;
/// Sizes probed at the same time: every link and the size that was in use.
const MAX_ROUND: usize = LINKS.len() + 1;
/// Unanswered probes of a size after which it does not fit.
const TRIES: u8 = 3;
/// Sizes between a fitting and a failing one that the last round tries, and the gap below which it tries none.
const CUTS: usize = 3;
const FINE: usize = 16;
/// How long an answer is awaited: twice the round trip, within bounds.
const MIN_WAIT: Duration = Duration::from_millis(60);
const FIRST_WAIT: Duration = Duration::from_millis(400);
const MAX_WAIT: Duration = Duration::from_millis(500);
/// A finished search is repeated after this time, if there is traffic: the path may carry more by then.
pub const SEARCH_EVERY: Duration = Duration::from_secs(600);
/// The same if not one probe was answered, which says nothing about sizes; doubled each time.
pub const SEARCH_AGAIN: Duration = Duration::from_secs(2);
/// Least distance of two examinations of the size in use.
const DOUBT_EVERY: Duration = Duration::from_millis(200);
/// Least distance of two falls because of what a router said.
const HINT_EVERY: Duration = Duration::from_secs(1);

/// What is being probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing.
    Rest,
    /// The commonest size.
    Ethernet,
    /// The largest worth a try.
    Jumbo,
    /// All sizes of common links between what fits and what does not.
    Ladder,
    /// A few sizes in the gap that is left.
    Gap,
    /// The size in use.
    Doubt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probe {
    size: usize,
    token: Option<u64>,
}

/// What a timer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Datagrams of exactly these sizes to be sent, each with the token its answer must carry.
    pub probes: Vec<(usize, u64)>,
    /// The size in use fell: what is under way at a larger one is lost.
    pub fell: bool,
}

/// How large a datagram one path carries.
#[derive(Debug)]
pub struct Mtu {
    floor: usize,
    size: usize,
    /// IP and UDP headers.
    headers: usize,
    /// Never searched upwards: the size it starts with is known.
    fixed: bool,
    /// The smallest size that does not fit as far as is known, and the smallest the operating system refused.
    misfit: usize,
    refused: usize,
    stage: Stage,
    /// What is not answered of the round under way, and of the one before.
    probes: Vec<Probe>,
    late: Vec<Probe>,
    tries: u8,
    sent_at: Instant,
    next: Option<Instant>,
    /// A router named a size to this round.
    hinted: bool,
    hint_at: Option<Instant>,
    doubt_at: Option<Instant>,
    /// A probe of this search was answered.
    heard: bool,
    /// Searches in a row of which none was.
    unheard: u32,
    /// When the next search may begin; at once if `None`.
    search_at: Option<Instant>,
    rtt: Option<Duration>,
}

impl Mtu {
    /// A path that carries `floor` bytes at least. `headers`: bytes of the IP and UDP headers on the first link.
    pub fn new(now: Instant, floor: usize, headers: usize) -> Mtu {
        Mtu {
            floor,
            size: floor,
            headers,
            fixed: false,
            misfit: UNKNOWN,
            refused: UNKNOWN,
            stage: Stage::Rest,
            probes: Vec::new(),
            late: Vec::new(),
            tries: 0,
            sent_at: now,
            next: None,
            hinted: false,
            hint_at: None,
            doubt_at: None,
            heard: false,
            unheard: 0,
            search_at: None,
            rtt: None,
        }
    }

    /// A path that is known to carry `size` bytes (loopback). It is not searched unless that turns out wrong.
    pub fn known(now: Instant, floor: usize, headers: usize, size: usize) -> Mtu {
        Mtu { size: size.max(floor), fixed: true, ..Mtu::new(now, floor, headers) }
    }

    /// Bytes of UDP payload that may be sent.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The largest datagram that is not known to be too large; more than any can have if nothing is known.
    pub fn most(&self) -> usize {
        if self.stage == Stage::Rest && self.heard { self.misfit - 1 } else { self.refused - 1 }
    }

    /// A datagram was sent. True: a search began.
    pub fn sent(&mut self, now: Instant, len: usize) -> bool {
        let wanted = len >= self.size && !self.fixed && self.stage == Stage::Rest;
        if !wanted || self.search_at.is_some_and(|at| at > now) {
            return false;
        }
        (self.misfit, self.refused, self.heard) = (UNKNOWN, UNKNOWN, false);
        self.begin(now, Stage::Ethernet);
        self.next.is_some()
    }

    /// Another path was used, or this one may lead elsewhere by now. True: probes are due.
    pub fn revisit(&mut self, now: Instant) -> bool {
        if self.fixed {
            return false;
        }
        let before = std::mem::replace(&mut self.size, self.floor);
        (self.misfit, self.refused, self.heard, self.search_at) = (UNKNOWN, UNKNOWN, false, None);
        if before == self.floor {
            self.rest(None);
            return false;
        }
        let ethernet = Some(ETHERNET - self.headers).filter(|size| *size > before);
        self.round(now, Stage::Ethernet, [before].into_iter().chain(ethernet));
        true
    }

    /// Full-sized datagrams get lost in a way that may be due to their size. `rtt`: round trip of those who noticed.
    /// True: probes are due.
    pub fn doubt(&mut self, now: Instant, rtt: Duration) -> bool {
        let recent = self.doubt_at.is_some_and(|at| now.saturating_duration_since(at) < DOUBT_EVERY);
        if self.size <= self.floor || recent || self.stage == Stage::Doubt {
            return false;
        }
        self.doubt_at = Some(now);
        self.rtt = Some(self.rtt.map_or(rtt, |known| known.max(rtt)));
        self.round(now, Stage::Doubt, [self.size].into_iter());
        true
    }

    /// A router claims that the path carries datagrams of `size` bytes only. True: probes are due.
    pub fn hint(&mut self, now: Instant, size: usize) -> bool {
        let size = size.max(self.floor);
        if size >= self.size {
            // It speaks of a probe: the named size is worth one, too.
            let known = size == self.size || self.probes.iter().any(|probe| probe.size == size);
            let running = !matches!(self.stage, Stage::Rest | Stage::Doubt);
            let smaller = self.probes.iter().any(|probe| probe.size > size);
            if known || !running || !smaller || self.hinted || self.probes.len() >= MAX_ROUND {
                return false;
            }
            self.hinted = true;
            self.probes.push(Probe { size, token: None });
            (self.tries, self.next) = (self.tries.saturating_sub(1), Some(now));
            return true;
        }
        if self.hint_at.is_some_and(|at| now.saturating_duration_since(at) < HINT_EVERY) {
            return false;
        }
        self.hint_at = Some(now);
        let before = std::mem::replace(&mut self.size, self.floor);
        (self.fixed, self.misfit, self.heard) = (false, self.refused, false);
        let named = Some(size).filter(|size| *size > self.floor);
        self.round(now, Stage::Ladder, named.into_iter().chain([before]));
        self.hinted = true;
        true
    }

    /// The operating system refused a datagram of `len` bytes. True: the size in use fell.
    pub fn refuse(&mut self, now: Instant, len: usize) -> bool {
        if len <= self.floor {
            // Nothing smaller can be sent.
            return false;
        }
        self.refused = self.refused.min(len);
        self.misfit = self.misfit.min(len);
        self.probes.retain(|probe| probe.size < len);
        self.late.retain(|probe| probe.size < len);
        if self.size >= len {
            self.fall(now);
            return true;
        }
        if self.stage != Stage::Rest && self.probes.is_empty() {
            self.next = Some(now);
        }
        false
    }

    /// A probe was answered. True: the size in use grew.
    pub fn answered(&mut self, now: Instant, token: u64) -> bool {
        let is_it = |probe: &Probe| probe.token == Some(token);
        let size = match self.probes.iter().position(is_it) {
            Some(at) => {
                if self.tries == 1 {
                    let rtt = now.saturating_duration_since(self.sent_at);
                    self.rtt = Some(self.rtt.map_or(rtt, |known| rtt.max(known / 8 * 7)));
                }
                self.probes.swap_remove(at).size
            }
            None => match self.late.iter().position(is_it) {
                Some(at) => self.late.swap_remove(at).size,
                None => return false,
            },
        };
        self.heard = true;
        let grew = size > self.size && size < self.refused;
        if grew {
            self.size = size;
            self.misfit = self.misfit.max(size + 1);
            // What is smaller would fit as well.
            self.probes.retain(|probe| probe.size > size);
            self.late.retain(|probe| probe.size > size);
        }
        if self.stage == Stage::Doubt && size >= self.size {
            self.rest(self.search_at);
        } else if self.stage != Stage::Rest && self.probes.is_empty() {
            self.next = Some(now);
        }
        grew
    }

    /// When [`Mtu::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Runs the timer. `token` draws a fresh one.
    pub fn tick(&mut self, now: Instant, mut token: impl FnMut() -> u64) -> Due {
        let mut due = Due::default();
        if self.next.is_none_or(|at| at > now) {
            return due;
        }
        if self.probes.is_empty() || self.tries >= TRIES {
            due.fell = self.advance(now);
        }
        if self.probes.is_empty() {
            return due;
        }
        self.tries += 1;
        self.sent_at = now;
        self.next = Some(now + self.patience());
        for probe in &mut self.probes {
            due.probes.push((probe.size, *probe.token.get_or_insert_with(&mut token)));
        }
        due
    }

    fn patience(&self) -> Duration {
        self.rtt.map_or(FIRST_WAIT, |rtt| (rtt * 2).clamp(MIN_WAIT, MAX_WAIT))
    }

    /// The round under way is over. True: the size in use fell.
    fn advance(&mut self, now: Instant) -> bool {
        if self.stage == Stage::Doubt {
            self.fall(now);
            return true;
        }
        for probe in &self.probes {
            self.misfit = self.misfit.min(probe.size);
        }
        let next = match self.stage {
            Stage::Ethernet => Stage::Jumbo,
            Stage::Jumbo => Stage::Ladder,
            Stage::Ladder => Stage::Gap,
            Stage::Gap | Stage::Rest | Stage::Doubt => Stage::Rest,
        };
        self.begin(now, next);
        false
    }

    /// The size in use does not fit.
    fn fall(&mut self, now: Instant) {
        let before = std::mem::replace(&mut self.size, self.floor);
        (self.fixed, self.heard) = (false, false);
        self.misfit = self.refused;
        // The path may only have been down for a moment, so that size is tried again as well.
        let rungs = self.rungs().filter(|size| *size < before).chain([before]);
        let rungs: Vec<usize> = rungs.filter(|size| *size < self.refused).collect();
        self.round(now, Stage::Ladder, rungs.into_iter());
    }

    fn rungs(&self) -> impl Iterator<Item = usize> {
        let headers = self.headers;
        LINKS.into_iter().map(move |link| link - headers)
    }

    /// Begins a stage, or the first after it that has something to probe.
    fn begin(&mut self, now: Instant, mut stage: Stage) {
        loop {
            let (low, high) = (self.size, self.misfit);
            let between = |size: &usize| *size > low && *size < high;
            let (sizes, next): (Vec<usize>, Stage) = match stage {
                Stage::Ethernet => (vec![ETHERNET - self.headers], Stage::Jumbo),
                // Who cannot have the common size cannot have more.
                Stage::Jumbo if low < ETHERNET - self.headers => (Vec::new(), Stage::Ladder),
                Stage::Jumbo => (vec![JUMBO - self.headers], Stage::Ladder),
                Stage::Ladder => (self.rungs().collect(), Stage::Gap),
                Stage::Gap if high != UNKNOWN && high - low > FINE => {
                    ((1..=CUTS).map(|n| low + (high - low) * n / (CUTS + 1)).collect(), Stage::Rest)
                }
                Stage::Gap | Stage::Rest | Stage::Doubt if self.heard => {
                    self.unheard = 0;
                    return self.rest(Some(now + SEARCH_EVERY));
                }
                Stage::Gap | Stage::Rest | Stage::Doubt => {
                    let wait = SEARCH_AGAIN * (1 << self.unheard.min(16));
                    self.unheard += 1;
                    return self.rest(Some(now + wait.min(SEARCH_EVERY)));
                }
            };
            let sizes: Vec<usize> = sizes.into_iter().filter(between).collect();
            if !sizes.is_empty() {
                return self.round(now, stage, sizes.into_iter());
            }
            stage = next;
        }
    }

    fn rest(&mut self, search_at: Option<Instant>) {
        self.finish();
        (self.stage, self.next, self.search_at) = (Stage::Rest, None, search_at);
    }

    fn round(&mut self, now: Instant, stage: Stage, sizes: impl Iterator<Item = usize>) {
        self.finish();
        self.probes.extend(sizes.take(MAX_ROUND).map(|size| Probe { size, token: None }));
        (self.stage, self.tries, self.hinted, self.next) = (stage, 0, false, Some(now));
    }

    /// Answers to what was sent may still come.
    fn finish(&mut self) {
        if !self.probes.is_empty() {
            self.late = std::mem::take(&mut self.probes);
        }
    }
}

#[cfg(test)]
mod tests;
