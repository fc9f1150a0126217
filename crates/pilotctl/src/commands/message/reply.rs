//! Which message in the inbox answers a request (spec 06 section 5.7).
//!
//! Nothing on the wire ties an answer to its request except `reply_to`, and older responders do not send it. So an
//! untagged message from the right peer counts too, unless that peer is known to tag its answers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long an untagged message of a peer that tags its answers is held back, in case the tagged one follows.
pub const HOLD: Duration = Duration::from_millis(750);

/// What the matcher needs to know of an inbox record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The record's id (file name without suffix).
    pub id: String,
    /// Sender, address text.
    pub from: String,
    /// The request it names.
    pub reply_to: Option<String>,
}

/// Watches the inbox for the answer to one request.
#[derive(Debug)]
pub struct ReplyMatcher {
    target: String,
    ids: Vec<String>,
    delivered_tagged: bool,
    peer_tags: bool,
    peer_named_another: bool,
    seen: HashSet<String>,
    held: Option<(String, Instant)>,
}

impl ReplyMatcher {
    /// A matcher for answers from `target` (address text). `before` are the ids in the inbox before the request
    /// was sent: they answer nothing, but tell whether the peer tags its answers.
    pub fn new(target: &str, before: &[Candidate]) -> ReplyMatcher {
        ReplyMatcher {
            target: target.to_owned(),
            ids: Vec::new(),
            delivered_tagged: true,
            peer_tags: before.iter().any(|c| c.from == target && c.reply_to.is_some()),
            peer_named_another: false,
            seen: before.iter().map(|c| c.id.clone()).collect(),
            held: None,
        }
    }

    /// A request went out under this id. `tagged`: the receiver understood the id.
    pub fn sent(&mut self, message_id: &str, tagged: bool) {
        self.ids.push(message_id.to_owned());
        self.delivered_tagged &= tagged;
    }

    /// Has not been looked at yet; the caller loads only such records.
    pub fn is_new(&self, id: &str) -> bool {
        !self.seen.contains(id)
    }

    /// Offers records in order of arrival. Returns the id of the answer once it is decided.
    pub fn offer(&mut self, records: &[Candidate], now: Instant) -> Option<String> {
        for record in records {
            if !self.seen.insert(record.id.clone()) || record.from != self.target {
                continue;
            }
            match &record.reply_to {
                Some(to) if self.ids.contains(to) => return Some(record.id.clone()),
                Some(_) => {
                    self.peer_tags = true;
                    self.peer_named_another = true;
                }
                None if self.held.is_none() => self.held = Some((record.id.clone(), now)),
                None => {}
            }
        }
        self.decide(now, false)
    }

    /// The wait is over: what was held back is the answer after all.
    pub fn give_up(&mut self, now: Instant) -> Option<String> {
        self.decide(now, true)
    }

    fn decide(&mut self, now: Instant, over: bool) -> Option<String> {
        let (id, since) = self.held.as_ref()?;
        if self.delivered_tagged && self.peer_named_another {
            return None;
        }
        let at_once = !self.delivered_tagged || !self.peer_tags;
        if at_once || over || now.duration_since(*since) >= HOLD { Some(id.clone()) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "0:0000.0000.0003";

    fn record(id: &str, reply_to: Option<&str>) -> Candidate {
        Candidate { id: id.into(), from: PEER.into(), reply_to: reply_to.map(str::to_owned) }
    }

    fn matcher(before: &[Candidate]) -> ReplyMatcher {
        let mut matcher = ReplyMatcher::new(PEER, before);
        matcher.sent("m1", true);
        matcher
    }

    #[test]
    fn the_record_naming_the_request_wins_over_an_older_untagged_one() {
        let mut m = matcher(&[]);
        let now = Instant::now();
        let got = m.offer(&[record("a", None), record("b", Some("m1"))], now);
        assert_eq!(got.as_deref(), Some("b"));
    }

    #[test]
    fn an_untagged_record_counts_at_once_for_a_peer_that_never_tags() {
        let mut m = matcher(&[record("old", None)]);
        assert_eq!(m.offer(&[record("a", None)], Instant::now()).as_deref(), Some("a"));
    }

    #[test]
    fn an_untagged_record_of_a_tagging_peer_is_held_back() {
        let mut m = matcher(&[record("old", Some("x"))]);
        let now = Instant::now();
        assert_eq!(m.offer(&[record("a", None)], now), None);
        assert_eq!(m.offer(&[], now + HOLD - Duration::from_millis(1)), None);
        assert_eq!(m.offer(&[], now + HOLD).as_deref(), Some("a"));
    }

    #[test]
    fn the_tagged_answer_that_follows_within_the_hold_is_taken_instead() {
        let mut m = matcher(&[record("old", Some("x"))]);
        let now = Instant::now();
        assert_eq!(m.offer(&[record("a", None)], now), None);
        assert_eq!(m.offer(&[record("b", Some("m1"))], now).as_deref(), Some("b"));
    }

    #[test]
    fn what_is_held_back_is_taken_when_the_wait_is_over() {
        let mut m = matcher(&[record("old", Some("x"))]);
        let now = Instant::now();
        assert_eq!(m.offer(&[record("a", None)], now), None);
        assert_eq!(m.give_up(now).as_deref(), Some("a"));
    }

    #[test]
    fn a_record_naming_another_request_is_never_the_answer() {
        let mut m = matcher(&[]);
        let now = Instant::now();
        assert_eq!(m.offer(&[record("a", Some("m0"))], now), None);
        assert_eq!(
            m.offer(&[record("b", None)], now + HOLD * 2),
            None,
            "this peer tags, so b answers nothing"
        );
        assert_eq!(m.give_up(now + HOLD * 4), None);
    }

    #[test]
    fn an_untagged_delivery_takes_the_first_untagged_record() {
        let mut m = ReplyMatcher::new(PEER, &[record("old", Some("x"))]);
        m.sent("m1", false);
        assert_eq!(m.offer(&[record("a", None)], Instant::now()).as_deref(), Some("a"));
    }

    #[test]
    fn the_id_of_a_resend_counts_as_well() {
        let mut m = matcher(&[]);
        m.sent("m2", true);
        assert_eq!(m.offer(&[record("a", Some("m2"))], Instant::now()).as_deref(), Some("a"));
    }

    #[test]
    fn other_peers_and_old_records_answer_nothing() {
        let old = record("old", None);
        let mut m = matcher(std::slice::from_ref(&old));
        let other = Candidate { from: "0:0000.0000.0009".into(), ..record("a", Some("m1")) };
        assert_eq!(m.offer(&[old, other], Instant::now()), None);
        assert!(!m.is_new("old") && m.is_new("b"));
    }
}
