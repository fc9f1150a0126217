//! Watching the inbox for an answer.

use super::reply::{Candidate, ReplyMatcher};
use crate::commands::mailbox::{unreadable, with_id};
use crate::error::CliError;
use pilot_daemon::services::inbox;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often the inbox directory is looked at. Only its time of change is read unless it did change.
const POLL: Duration = Duration::from_millis(20);
/// A directory that changed less than this long ago is read again: its time of change is coarse.
const COARSE: Duration = Duration::from_millis(100);
/// Most old records read to learn whether the peer tags its answers.
const HISTORY: usize = 200;
/// Shortest half of a wait after which a request is sent again.
const RESEND_MIN: Duration = Duration::from_secs(3);
/// Longest time before a request is sent again.
const RESEND_MAX: Duration = Duration::from_secs(15);

/// The wait for the answer to one request.
#[derive(Debug)]
pub struct ReplyWait {
    dir: PathBuf,
    matcher: ReplyMatcher,
    limit: Duration,
    began: Instant,
    until: Instant,
    changed: Option<SystemTime>,
}

/// Ids in the inbox in order of arrival.
fn arrived(dir: &Path) -> Result<Vec<String>, CliError> {
    let mut ids = inbox::ids(dir).map_err(unreadable(dir))?;
    ids.reverse();
    Ok(ids)
}

/// A record; `None` if it is gone or cannot be read.
fn candidate(dir: &Path, id: &str) -> Option<Candidate> {
    let record = inbox::read(dir, id).ok()??;
    Some(Candidate {
        id: id.to_owned(),
        from: record.from().to_owned(),
        reply_to: record.reply_to().map(str::to_owned),
    })
}

impl ReplyWait {
    /// Remembers what is in the inbox now: none of that is the answer.
    pub fn new(dir: PathBuf, target: &str, limit: Duration) -> Result<ReplyWait, CliError> {
        let ids = arrived(&dir)?;
        let recent = ids.len().saturating_sub(HISTORY);
        let blank = |id: &String| Candidate { id: id.clone(), from: String::new(), reply_to: None };
        let before: Vec<Candidate> = ids
            .iter()
            .enumerate()
            .map(|(at, id)| match at >= recent {
                true => candidate(&dir, id).unwrap_or_else(|| blank(id)),
                false => blank(id),
            })
            .collect();
        let now = Instant::now();
        let matcher = ReplyMatcher::new(target, &before);
        Ok(ReplyWait { dir, matcher, limit, began: now, until: now + limit, changed: None })
    }

    /// How long is waited.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// A request went out.
    pub fn sent(&mut self, message_id: &str, tagged: bool) {
        self.matcher.sent(message_id, tagged);
    }

    /// The request was acknowledged: the wait begins.
    pub fn acknowledged(&mut self) {
        self.began = Instant::now();
        self.until = self.began + self.limit;
    }

    /// When to send the request once more; `None`: the wait is too short for that.
    pub fn resend_after(&self) -> Option<Instant> {
        let half = self.limit / 2;
        (half >= RESEND_MIN).then(|| self.began + half.min(RESEND_MAX))
    }

    /// After a second request: at least half the wait for its answer.
    pub fn extend(&mut self) {
        self.until = self.until.max(Instant::now() + self.limit / 2);
    }

    /// Waits for the answer until `until` at most.
    pub async fn until(&mut self, until: Instant) -> Result<Option<Value>, CliError> {
        loop {
            let now = Instant::now();
            if let Some(reply) = self.look(now)? {
                return Ok(Some(reply));
            }
            if now >= until {
                return Ok(None);
            }
            tokio::time::sleep(POLL.min(until - now)).await;
        }
    }

    /// Waits for the answer as long as is left.
    pub async fn rest(&mut self) -> Result<Option<Value>, CliError> {
        if let Some(reply) = self.until(self.until).await? {
            return Ok(Some(reply));
        }
        let held = self.matcher.give_up(Instant::now());
        Ok(held.and_then(|id| self.record(&id)))
    }

    fn record(&self, id: &str) -> Option<Value> {
        inbox::read(&self.dir, id).ok()?.as_ref().map(with_id)
    }

    fn look(&mut self, now: Instant) -> Result<Option<Value>, CliError> {
        let changed = std::fs::metadata(&self.dir).and_then(|meta| meta.modified()).ok();
        let fresh = changed.is_some_and(|at| at.elapsed().is_ok_and(|age| age < COARSE));
        let mut candidates = Vec::new();
        if changed != self.changed || fresh {
            self.changed = changed;
            let ids = arrived(&self.dir)?;
            // A record that cannot be read yet is looked at again.
            let new = ids.iter().filter(|id| self.matcher.is_new(id));
            candidates = new.filter_map(|id| candidate(&self.dir, id)).collect();
        }
        let answer = self.matcher.offer(&candidates, now);
        Ok(answer.and_then(|id| self.record(&id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PEER: &str = "0:0000.0000.0003";

    fn store(dir: &Path, id: &str, record: &Value) {
        let path = dir.join(format!("{id}.json"));
        let temporary = dir.join(format!("{id}.tmp"));
        std::fs::write(&temporary, record.to_string()).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    fn begin(limit: Duration) -> (tempfile::TempDir, ReplyWait) {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), "TEXT-20261120-000000.000-000001", &json!({"from": PEER, "data": "old"}));
        let mut wait = ReplyWait::new(dir.path().to_owned(), PEER, limit).unwrap();
        wait.sent("m1", true);
        wait.acknowledged();
        (dir, wait)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn the_answer_is_found_while_waiting() {
        let (dir, mut wait) = begin(Duration::from_secs(30));
        let reply = run(async {
            let (reply, ()) = tokio::join!(wait.rest(), async {
                tokio::task::yield_now().await;
                store(
                    dir.path(),
                    "JSON-20261120-000001.000-000002",
                    &json!({"from": "0:0000.0000.0009", "data": "no"}),
                );
                store(
                    dir.path(),
                    "TEXT-20261120-000002.000-000003",
                    &json!({"from": PEER, "data": "yes", "reply_to": "m1"}),
                );
            });
            reply
        });
        assert_eq!(reply.unwrap().unwrap()["data"], "yes");
    }

    #[test]
    fn what_was_there_before_is_no_answer() {
        let (_dir, mut wait) = begin(Duration::ZERO);
        assert_eq!(run(wait.rest()), Ok(None));
    }

    #[test]
    fn a_short_wait_is_too_short_for_a_second_request() {
        let (_dir, wait) = begin(Duration::from_secs(5));
        assert_eq!(wait.resend_after(), None);
        let (_dir, wait) = begin(Duration::from_secs(60));
        assert_eq!(wait.resend_after(), Some(wait.began + RESEND_MAX));
        let (_dir, wait) = begin(Duration::from_secs(10));
        assert_eq!(wait.resend_after(), Some(wait.began + Duration::from_secs(5)));
    }
}
