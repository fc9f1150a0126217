//! One peer's share of the session upgrade: which sessions there are, which handshake is under way, which challenges
//! are good (docs/extensions.md, "Session upgrade"; the argument is in docs/security/session-upgrade.md).
//!
//! The lower node id is the initiator. Its new session sends as soon as message 2 is read; the responder's waits in
//! `next` and sends only when the initiator's first frame has opened under it, so that no frame is ever sealed under keys
//! the other side may not have. What was replaced goes on opening frames for [`GRACE`].

use super::exchange::{Exchange, Pace};
use super::noise::Initiator;
use super::upgraded::{MAX_AGE, REKEY_AFTER, Upgraded};
use crate::NodeId;
use crate::wire::capability::CHALLENGE_LEN;
use crate::wire::frame::Pilu;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the prologue of the handshake begins with.
const PROLOGUE: &[u8] = b"pilot-session-upgrade-v1\0";
/// How long a replaced session still opens frames once its successor is confirmed; then its keys are wiped.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long the responder keeps an agreed session whose initiator has not sent a frame: longer than an initiator repeats
/// its message 1.
pub const HALF_OPEN: Duration = Duration::from_secs(30);
/// How long we wait for the upgrade with a peer that offers it before the plain session is used. Three message losses
/// in a row fit.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The responder starts a rekey this much later than the initiator, which normally has done it by then.
pub const RESPONDER_LATER: Duration = Duration::from_secs(10);
/// Distance to the next attempt after one that failed while a session is there.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long a challenge is handed out; it is accepted for twice as long.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(30);
/// Age from which an unanswered message 1 is replaced when the peer offers a challenge.
pub const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Message 1 frames remembered as dealt with, per peer.
pub const MAX_SPENT: usize = 8;
/// Frames remembered as seen a moment ago, per peer.
const MAX_RECENT: usize = 8;
/// A frame seen within this time is a copy, and dropped before its signature is looked at. Repetitions are further apart.
const COPY: Duration = Duration::from_millis(200);

/// A nonce of the responder that shows a message 1 to be fresh.
pub type Challenge = [u8; CHALLENGE_LEN];

/// The handshake's prologue: both node ids and both identities, the initiator's first.
pub fn prologue(initiator: (NodeId, &[u8; 32]), responder: (NodeId, &[u8; 32])) -> Vec<u8> {
    let (a, b) = (initiator.0.to_be_bytes(), responder.0.to_be_bytes());
    [PROLOGUE, &a, &b, initiator.1, responder.1].concat()
}

/// A message 1 that waits for its message 2.
#[derive(Debug)]
pub struct Pending {
    /// Ephemeral secret and transcript; wiped when dropped.
    pub noise: Initiator,
    /// The frame: every repetition is these bytes.
    pub frame: Vec<u8>,
    /// Our name for the session.
    pub local: u32,
    /// The responder's identity, as the prologue has it.
    pub peer_key: [u8; 32],
    /// The challenge it answers.
    pub challenge: Challenge,
    /// When it was made.
    pub started: Instant,
}

/// A session agreed as responder.
#[derive(Debug)]
pub struct Next {
    /// The session.
    pub session: Upgraded,
    /// Message 1 answered a challenge of ours, so the initiator lives and may be sent to if there is no other session.
    pub fresh: bool,
    /// The challenge of ours that message 1 answered.
    pub answers: Option<Challenge>,
    /// The challenge told in message 2.
    pub reserved: Challenge,
    /// It was put to use before its confirmation.
    pub announced: bool,
}

/// What a new session means for its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There was none.
    First,
    /// It replaces one with an earlier process of the peer.
    OtherProcess,
    /// It replaces one with the same process.
    Rekeyed,
}

/// A session that was replaced.
#[derive(Debug)]
pub struct Previous {
    /// The session; it only opens.
    pub session: Upgraded,
    /// When it is dropped; set once its successor is confirmed.
    pub until: Option<Instant>,
}

/// The plain session that is used if no upgrade comes about in time.
#[derive(Debug, Clone, Copy)]
pub struct Fallback {
    /// The peer's X25519 key.
    pub x25519: [u8; 32],
    /// Where its frame came from.
    pub from: SocketAddr,
    /// That is a beacon, which relayed it.
    pub relayed: bool,
    /// When the wait is over.
    pub at: Instant,
}

/// Which session a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The one in use.
    Current,
    /// Agreed, not yet confirmed.
    Next,
    /// Replaced.
    Previous,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Sends and opens.
    pub current: Option<Upgraded>,
    /// As responder: opens, and becomes current with its first frame.
    pub next: Option<Next>,
    /// Opens what was sealed before the change.
    pub previous: Option<Previous>,
    /// As initiator: the handshake under way.
    pub pending: Option<Pending>,
    /// As responder: the last message 1 (digest of its frame) and the frame that answered it.
    pub answered: Option<([u8; 32], Vec<u8>)>,
    /// Digests of message 1 frames dealt with, oldest first.
    pub spent: VecDeque<[u8; 32]>,
    /// Digests of greetings and message 1 frames, and when they came; oldest first.
    recent: VecDeque<([u8; 32], Instant)>,
    /// As responder: challenges handed out in greetings, the newer first, and when.
    issued: [Option<(Challenge, Instant)>; 2],
    /// As responder: the challenge told in the current session's message 2.
    reserved: Option<Challenge>,
    /// As initiator: the challenge for our next message 1.
    pub ticket: Option<Challenge>,
    /// Agreeing anew while a session is there.
    pub drive: Option<Exchange>,
    /// When that is to begin.
    pub rekey_at: Option<Instant>,
    /// As initiator: empty frames until the responder has answered one under the new session.
    pub confirm: Option<Exchange>,
    /// What happens if no upgrade comes about.
    pub fallback: Option<Fallback>,
    /// Until then frames of a plain session that came first are still opened.
    pub plain_until: Option<Instant>,
    /// Last greeting sent in answer to one.
    pub greeted: Option<Instant>,
    /// Last frame of the peer with a valid block.
    pub offered: Option<Instant>,
    /// Frames without the upgrade that were signed by the peer and refused.
    pub downgrades: u64,
    /// When one of them was all it had to answer to our key exchange.
    pub last_word: Option<Instant>,
}

impl Upgrade {
    /// The session to seal with.
    pub fn sender(&mut self, now: Instant) -> Option<&mut Upgraded> {
        if self.current.as_ref().is_some_and(|s| s.usable(now)) {
            return self.current.as_mut();
        }
        self.next.as_mut().filter(|next| next.fresh && next.session.usable(now)).map(|next| &mut next.session)
    }

    /// There is a session to seal with.
    pub fn can_send(&self, now: Instant) -> bool {
        self.current.as_ref().is_some_and(|s| s.usable(now))
            || self.next.as_ref().is_some_and(|next| next.fresh && next.session.usable(now))
    }

    /// There is a session both sides have confirmed and that is not too old.
    pub fn live(&self, now: Instant) -> bool {
        self.current.as_ref().is_some_and(|s| !s.expired(now))
    }

    /// When a frame last opened in the current session, or when that was agreed.
    pub fn heard(&self) -> Option<Instant> {
        self.current.as_ref().map(|s| s.heard.unwrap_or(s.installed))
    }

    /// The static key of the peer's end of the session in use.
    pub fn peer_static(&self) -> Option<&[u8; 32]> {
        let next = self.next.as_ref().map(|next| &next.session);
        self.current.as_ref().or(next).map(|session| &session.peer_static)
    }

    /// The session a frame names.
    pub fn find(&mut self, header: &Pilu) -> Option<(Slot, &mut Upgraded)> {
        let current = self.current.as_mut().map(|s| (Slot::Current, s));
        let next = self.next.as_mut().map(|n| (Slot::Next, &mut n.session));
        let previous = self.previous.as_mut().map(|p| (Slot::Previous, &mut p.session));
        [current, next, previous].into_iter().flatten().find(|(_, s)| s.local == header.session)
    }

    /// A name no session of this peer has.
    pub fn free_name(&self, mut draw: impl FnMut() -> u32) -> u32 {
        let taken = [
            self.current.as_ref().map(|s| s.local),
            self.next.as_ref().map(|n| n.session.local),
            self.previous.as_ref().map(|p| p.session.local),
            self.pending.as_ref().map(|p| p.local),
        ];
        loop {
            let name = draw();
            if name != 0 && !taken.contains(&Some(name)) {
                return name;
            }
        }
    }

    // ---- challenges ------------------------------------------------------------------------------------------

    /// The challenge for a greeting: the same for a while, so that greetings sent in a row do not spoil each other.
    pub fn challenge(&mut self, now: Instant, draw: impl FnOnce() -> Challenge) -> Challenge {
        match self.issued[0] {
            Some((challenge, at)) if now.saturating_duration_since(at) < CHALLENGE_LIFE => challenge,
            older => {
                let challenge = draw();
                self.issued = [Some((challenge, now)), older];
                challenge
            }
        }
    }

    /// Whether a message 1 answers a challenge of ours that nobody has used.
    pub fn knows(&self, now: Instant, challenge: &Challenge) -> bool {
        let issued = |slot: &Option<(Challenge, Instant)>| {
            slot.is_some_and(|(c, at)| {
                c == *challenge && now.saturating_duration_since(at) < 2 * CHALLENGE_LIFE
            })
        };
        self.reserved == Some(*challenge)
            || self.next.as_ref().is_some_and(|next| next.reserved == *challenge)
            || self.issued.iter().any(issued)
    }

    /// Whether a message 1 with this challenge is expected, for the first time or again.
    pub fn awaits(&self, now: Instant, challenge: &Challenge) -> bool {
        self.knows(now, challenge) || self.next.as_ref().is_some_and(|next| next.answers == Some(*challenge))
    }

    fn use_up(&mut self, challenge: &Challenge) {
        for slot in &mut self.issued {
            if slot.is_some_and(|(c, _)| c == *challenge) {
                *slot = None;
            }
        }
        if self.reserved == Some(*challenge) {
            self.reserved = None;
        }
    }

    /// Whether a frame is a copy of one that came a moment ago; remembers it.
    pub fn is_copy(&mut self, now: Instant, digest: &[u8; 32]) -> bool {
        self.recent.retain(|(_, at)| now.saturating_duration_since(*at) < COPY);
        if self.recent.iter().any(|(d, _)| d == digest) {
            return true;
        }
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((*digest, now));
        false
    }

    // ---- sessions --------------------------------------------------------------------------------------------

    /// As responder: a message 1 was answered.
    pub fn agreed(&mut self, next: Next, challenge: &Challenge, digest: [u8; 32], answer: Vec<u8>) {
        self.use_up(challenge);
        self.next = Some(next);
        if self.spent.len() >= MAX_SPENT {
            self.spent.pop_front();
        }
        self.spent.push_back(digest);
        self.answered = Some((digest, answer));
    }

    fn change(&self, by: &Upgraded) -> Change {
        match &self.current {
            None => Change::First,
            Some(s) if s.peer_static == by.peer_static => Change::Rekeyed,
            Some(_) => Change::OtherProcess,
        }
    }

    /// As responder: a frame opened under `next`, which becomes the current session. `None`: there is no such session.
    /// The flag: it was put to use before.
    pub fn promote(&mut self, now: Instant) -> Option<(Change, bool)> {
        let next = self.next.take()?;
        let change = self.change(&next.session);
        self.answered = None;
        self.reserved = Some(next.reserved);
        self.drive = None;
        self.rekey_at = Some(now + REKEY_AFTER + RESPONDER_LATER);
        self.previous =
            self.current.replace(next.session).map(|session| Previous { session, until: Some(now + GRACE) });
        Some((change, next.announced))
    }

    /// As initiator: message 2 was read.
    pub fn completed(&mut self, now: Instant, session: Upgraded, ticket: Challenge) -> Change {
        let change = self.change(&session);
        self.pending = None;
        self.drive = None;
        self.ticket = Some(ticket);
        self.rekey_at = Some(now + REKEY_AFTER);
        self.confirm = Some(Exchange::new(Pace::Eager, now));
        // What was never confirmed the responder does not use; it goes on using what was before that.
        if let Some(session) = self.current.replace(session)
            && (session.heard.is_some() || self.previous.is_none())
        {
            self.previous = Some(Previous { session, until: None });
        }
        change
    }

    /// As initiator: the responder's first frame under the current session opened.
    pub fn confirmed(&mut self, now: Instant) {
        if let Some(previous) = &mut self.previous {
            previous.until.get_or_insert(now + GRACE);
        }
    }

    /// Drops what is over. True: the session in use was among it.
    pub fn expire(&mut self, now: Instant) -> bool {
        let mut lost = false;
        let over = |p: &Previous| p.until.is_some_and(|at| at <= now) || p.session.expired(now);
        if self.previous.as_ref().is_some_and(over) {
            self.previous = None;
        }
        if let Some(next) = self.next.take_if(|next| next.session.installed + HALF_OPEN <= now) {
            lost = next.fresh && self.current.is_none();
            self.answered = None;
        }
        if self.pending.as_ref().is_some_and(|pending| pending.started + HALF_OPEN <= now) {
            self.pending = None;
        }
        if self.current.take_if(|s| s.expired(now)).is_some() {
            lost = true;
            self.confirm = None;
            self.drive = None;
            self.rekey_at = None;
        }
        lost
    }

    /// Ends every session and handshake; challenges and what was spent stay.
    pub fn reset(&mut self) {
        (self.current, self.next, self.previous) = (None, None, None);
        (self.pending, self.answered, self.ticket) = (None, None, None);
        (self.drive, self.rekey_at, self.confirm) = (None, None, None);
    }

    /// When the timer must run next. `active`: the peer is in use, so its session is to be replaced in time.
    pub fn deadline(&self, active: bool) -> Option<Instant> {
        let rekey = self.rekey_at.filter(|_| active && self.drive.is_none());
        [
            self.fallback.map(|f| f.at),
            self.plain_until,
            self.pending.as_ref().map(|pending| pending.started + HALF_OPEN),
            self.next.as_ref().map(|next| next.session.installed + HALF_OPEN),
            self.previous.as_ref().map(|p| p.until.unwrap_or(p.session.installed + MAX_AGE)),
            self.current.as_ref().map(|s| s.installed + MAX_AGE),
            self.confirm.map(|confirm| confirm.next),
            self.drive.map(|drive| drive.next),
            rekey,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
