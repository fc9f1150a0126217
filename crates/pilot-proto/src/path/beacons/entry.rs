//! One beacon: when it is asked, whether it answers, and how fast.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Distance of Discovers: below the 30 s many NATs keep a mapping for (spec 04 section 21).
const DISCOVER_EVERY: Duration = Duration::from_secs(25);
/// A Discover without a reply is repeated after this time, doubling, until there are [`COPIES`].
const REPEAT: Duration = Duration::from_millis(100);
/// ... but not before the reply can be here; at most this time.
const MAX_FIRST_REPEAT: Duration = Duration::from_secs(1);
/// Discovers of one question.
const COPIES: u32 = 5;
/// Copies without an answer that make it doubtful whether there will be one.
const DOUBT: u32 = 3;
/// The last copy of an urgent question is waited for so long.
const URGENT_WAIT: Duration = Duration::from_millis(500);
/// A beacon that answers none of them is asked again after this time: it may be back, and peers that only reach us through
/// it wait.
const SILENT_EVERY: Duration = Duration::from_secs(5);
/// If another one answers, the distance doubles up to this.
const MAX_SILENT_EVERY: Duration = Duration::from_secs(60);
/// An urgent question that is asked anew meanwhile is not waited for any longer than this: its five copies take as long.
const URGENT_LIMIT: Duration = Duration::from_secs(2);
/// A DiscoverReply counts only this long after a Discover.
const REPLY_WITHIN: Duration = Duration::from_secs(2);
/// Frames go out through a beacon and nothing comes back from it for this time: it is asked whether it is there.
const SILENCE: Duration = Duration::from_millis(1250);
/// Distance of questions to a beacon that is only measured.
const MEASURE_EVERY: Duration = Duration::from_secs(300);
/// Distance of questions while it is being decided whether another one is better.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// A beacon must have answered for this time before it is preferred; doubles with every time it was lost.
const PROBATION: Duration = Duration::from_secs(30);
/// Losses before a time as long as this without any are forgotten.
const FORGIVEN: Duration = Duration::from_secs(3600);
/// Doublings.
const MAX_DOUBLINGS: u32 = 5;

/// Whether a beacon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It was not asked long enough ago to know.
    #[default]
    Unknown,
    /// It answered the last question.
    Up,
    /// It did not.
    Down,
}

impl State {
    /// As status output names it.
    pub fn name(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Up => "up",
            State::Down => "down",
        }
    }
}

/// A Discover and its copies.
#[derive(Debug, Clone, Copy)]
struct Question {
    first: Instant,
    sent: u32,
    /// Traffic depends on the answer.
    urgent: bool,
    /// Since when traffic has depended on one, however often it was asked anew.
    urgent_since: Option<Instant>,
    /// How long nothing had been sent or received before it, as far as is known.
    quiet: Option<Duration>,
}

/// An answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// When the question was asked first.
    pub asked: Instant,
    /// How long the way to the beacon had been quiet then, if that is known.
    pub quiet: Option<Duration>,
}

/// What a beacon's timer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Send a Discover; the count of copies so far, and whether the matter is urgent.
    Send {
        copies: u32,
        urgent: bool,
    },
    /// It does not answer.
    Lost,
}

/// What is known about one beacon.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) addr: SocketAddr,
    /// We register with it; otherwise it is only measured from time to time.
    pub(super) in_use: bool,
    pub(super) state: State,
    pub(super) rtt: Option<Duration>,
    pub(super) replied: Option<Instant>,
    pub(super) observed: Option<SocketAddr>,
    /// Clearly faster than the chosen one since then, and in how many measurements.
    pub(super) better: Option<(Instant, u32)>,
    /// Questions in a row without an answer.
    pub(super) failures: u32,
    question: Option<Question>,
    asked: Option<Instant>,
    next: Instant,
    /// First frame relayed through it since its last sign of life.
    waiting: Option<Instant>,
    /// Last Discover, if nothing else went that way since.
    quiet_since: Option<Instant>,
    up_since: Option<Instant>,
    lost: u32,
}

impl Entry {
    pub(super) fn new(now: Instant, addr: SocketAddr, in_use: bool) -> Entry {
        Entry {
            addr,
            in_use,
            state: State::Unknown,
            rtt: None,
            replied: None,
            observed: None,
            better: None,
            failures: 0,
            question: None,
            asked: None,
            next: now,
            waiting: None,
            quiet_since: None,
            up_since: None,
            lost: 0,
        }
    }

    /// A new question, due at once. One under way goes on unless this one is urgent and it is not.
    pub(super) fn ask(&mut self, now: Instant, urgent: bool) {
        if self.question.is_some_and(|question| question.urgent || !urgent) {
            return;
        }
        self.begin(now, urgent);
        self.next = now;
    }

    /// It has not answered the first copies of a question.
    pub(super) fn doubtful(&self) -> bool {
        self.question.is_some_and(|question| question.sent >= DOUBT)
    }

    /// The same, also if one is under way.
    pub(super) fn ask_anew(&mut self, now: Instant) {
        self.begin(now, self.question.is_some_and(|question| question.urgent));
        self.next = now;
    }

    fn begin(&mut self, now: Instant, urgent: bool) {
        let quiet = self.quiet_since.map(|at| now.saturating_duration_since(at));
        // The answer to a copy of the question before must not make the way look short.
        let first = self.question.map_or(now, |question| question.first);
        let urgent_since = self.question.and_then(|question| question.urgent_since);
        let urgent_since = urgent.then(|| urgent_since.unwrap_or(now));
        self.question = Some(Question { first, sent: 0, urgent, urgent_since, quiet });
    }

    /// What was asked on another network is not waited for.
    pub(super) fn start_over(&mut self) {
        self.question = None;
    }

    pub(super) fn take_up(&mut self, now: Instant) {
        self.in_use = true;
        self.ask_anew(now);
    }

    pub(super) fn put_down(&mut self, now: Instant) {
        self.in_use = false;
        (self.question, self.waiting, self.better) = (None, None, None);
        self.next = now + MEASURE_EVERY;
    }

    /// Not asked for long enough that it may be asked now out of turn.
    pub(super) fn idle(&self, now: Instant, pause: Duration) -> bool {
        self.question.is_none() && self.asked.is_none_or(|at| now.saturating_duration_since(at) >= pause)
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.waiting.filter(|_| !self.urgent()) {
            Some(at) => self.next.min(at + SILENCE),
            None => self.next,
        }
    }

    fn urgent(&self) -> bool {
        self.question.is_some_and(|question| question.urgent)
    }

    /// Runs the timer. `patient`: another one answers, so this one need not be asked often while it does not.
    pub(super) fn tick(&mut self, now: Instant, patient: bool) -> Due {
        if self.waiting.is_some_and(|at| at + SILENCE <= now) {
            self.ask(now, true);
        }
        if self.next > now {
            return Due::Nothing;
        }
        if self.question.is_none() {
            self.begin(now, false);
        }
        let Some(question) = &mut self.question else { return Due::Nothing };
        let (sent, urgent) = (question.sent, question.urgent);
        let copies = if self.in_use { COPIES } else { 2 };
        let since = question.urgent_since.filter(|_| self.in_use && sent > 0);
        if sent >= copies || since.is_some_and(|at| now.saturating_duration_since(at) >= URGENT_LIMIT) {
            self.question = None;
            self.failed(now, patient);
            return Due::Lost;
        }
        question.sent += 1;
        let reply = self.rtt.unwrap_or_default() * 2;
        let pause = REPEAT * 2u32.pow(sent.min(COPIES));
        self.next = now
            + match sent {
                _ if urgent && sent + 1 == copies => URGENT_WAIT.max(reply).min(REPLY_WITHIN),
                0 if !urgent => pause.max(reply).min(MAX_FIRST_REPEAT),
                _ => pause,
            };
        self.asked = Some(now);
        self.quiet_since = Some(now);
        Due::Send { copies: sent + 1, urgent }
    }

    fn failed(&mut self, now: Instant, patient: bool) {
        if self.state == State::Up {
            let forgiven = self.up_since.is_some_and(|at| now.saturating_duration_since(at) >= FORGIVEN);
            self.lost = if forgiven { 1 } else { self.lost.saturating_add(1) };
        }
        self.state = State::Down;
        (self.up_since, self.better, self.waiting) = (None, None, None);
        let doublings = if patient { self.failures.min(MAX_DOUBLINGS) } else { 0 };
        self.failures = self.failures.saturating_add(1);
        self.next = now
            + match self.in_use {
                true => (SILENT_EVERY * 2u32.pow(doublings)).min(MAX_SILENT_EVERY),
                false => MEASURE_EVERY,
            };
    }

    /// A DiscoverReply came from it. `None`: nobody had asked.
    pub(super) fn replied(&mut self, now: Instant, observed: SocketAddr) -> Option<Reply> {
        let asked = self.asked.filter(|at| now.saturating_duration_since(*at) <= REPLY_WITHIN)?;
        self.observed = Some(observed);
        self.replied = Some(now);
        self.waiting = None;
        self.failures = 0;
        if self.state != State::Up {
            self.state = State::Up;
            self.up_since = Some(now);
        }
        let Some(question) = self.question.take() else {
            // A second copy's answer.
            return Some(Reply { asked, quiet: None });
        };
        // After a repetition it is not known which copy was answered: better a bound than nothing.
        if question.sent == 1 || self.rtt.is_none() {
            let sample = now.saturating_duration_since(question.first);
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
            if let Some((_, count)) = &mut self.better {
                *count += 1;
            }
        }
        self.next = asked + if self.in_use { DISCOVER_EVERY } else { MEASURE_EVERY };
        Some(Reply { asked: question.first, quiet: question.quiet })
    }

    /// A comparison with it is under way: the next measurement comes sooner.
    pub(super) fn compare_soon(&mut self, now: Instant) {
        if self.question.is_none() {
            self.next = self.next.min(now + COMPARE_EVERY);
        }
    }

    /// It has answered for long enough to be preferred.
    pub(super) fn settled(&self, now: Instant) -> bool {
        let probation = PROBATION * 2u32.pow(self.lost.min(MAX_DOUBLINGS));
        self.up_since.is_some_and(|at| now.saturating_duration_since(at) >= probation)
    }

    /// A frame is relayed through it. True: its timer must be looked at.
    pub(super) fn relaying(&mut self, now: Instant) -> bool {
        self.quiet_since = None;
        // One that is lost is asked often enough as it is.
        self.state != State::Down && self.waiting.replace(self.waiting.unwrap_or(now)).is_none()
    }

    /// A frame that only its sender can have made came through it.
    pub(super) fn heard(&mut self, now: Instant) {
        self.waiting = None;
        self.quiet_since = None;
        if self.state == State::Down {
            self.ask(now, false);
        }
    }
}
