//! What requests cost, and what a source may ask for.

use crate::config::Limits;
use crate::limits::{Buckets, network, source};
use crate::registry::request::{Refused, Request};
use crate::registry::{Session, changes};
use crate::wire::SMALL_BODY;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Units of about 10 µs of one processor.
const REQUEST: u32 = 1;
/// A signature to check.
pub(crate) const SIGNATURE: u32 = 6;
/// A signature that was wrong, on top.
const BAD_SIGNATURE: u32 = 24;
/// Something to store.
const CHANGE: u32 = 3;
/// A list of nodes or networks.
const LISTING: u32 = 100;
/// Each of this many bytes of a request.
const BYTES: usize = 1024;
/// A TLS handshake.
pub(crate) const TLS_HANDSHAKE: u32 = 60;

/// Longest delay of a request before it is refused instead. Nodes wait 8 s for their answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Room for all bodies above [`SMALL_BODY`] being read or answered at a time, KiB.
const LARGE_BODIES: usize = 64 * 1024;
/// Listings made at a time: each answer takes up to about 15 MB.
const LISTINGS: usize = 16;

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub delayed: u64,
    pub refused: u64,
    pub bad_signatures: u64,
}

/// Room for a request's body, or for an answer.
pub(crate) type Permit = Option<OwnedSemaphorePermit>;

/// Everybody's budgets.
#[derive(Debug)]
pub(crate) struct Budget {
    work: Mutex<(Buckets<IpAddr>, Buckets<IpAddr>)>,
    large_bodies: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    delayed: AtomicU64,
    refused: AtomicU64,
    bad_signatures: AtomicU64,
}

fn cost(req: Request<'_>, bytes: usize) -> u32 {
    let kind = req.kind();
    let signed = match kind {
        "publish_record" => 2 * SIGNATURE,
        _ if req.text("signature").is_empty() => 0,
        _ => SIGNATURE,
    };
    let change = if changes(kind) { CHANGE } else { 0 };
    let listing = if listing(kind) { LISTING } else { 0 };
    // A body is at most 1 MiB.
    REQUEST + signed + change + listing + (bytes / BYTES) as u32
}

fn listing(kind: &str) -> bool {
    matches!(kind, "list_nodes" | "list_networks")
}

impl Budget {
    pub fn new(limits: &Limits) -> Budget {
        Budget {
            work: Mutex::new((Buckets::new(limits.work), Buckets::new(limits.network_work))),
            large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
            delayed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bad_signatures: AtomicU64::new(0),
        }
    }

    fn work(&self) -> MutexGuard<'_, (Buckets<IpAddr>, Buckets<IpAddr>)> {
        // No code panics while it holds the lock.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn charge(&self, ip: IpAddr, cost: u32, patience: Duration) -> Result<Duration, Duration> {
        let now = Instant::now();
        let mut work = self.work();
        let own = work.0.charge(source(ip), cost, now, patience)?;
        Ok(own.max(work.1.charge(network(ip), cost, now, patience)?))
    }

    /// Takes `cost` of a source if it can be had at once.
    pub fn afford(&self, ip: IpAddr, cost: u32) -> bool {
        self.charge(ip, cost, Duration::ZERO).is_ok()
    }

    /// Waits until the request's source may have it done. The permit belongs to the making of its answer.
    pub async fn pay(&self, s: &Session, req: Request<'_>, bytes: usize) -> Result<Permit, Refused> {
        let ip = s.peer.ip();
        if !s.exempt {
            match self.charge(ip, cost(req, bytes), PATIENCE) {
                Ok(Duration::ZERO) => {}
                Ok(wait) => {
                    self.delayed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(wait).await;
                }
                Err(_) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    // Refusals at full speed would be work as well.
                    tokio::time::sleep(PATIENCE).await;
                    return Err(Refused(format!("rate limited: too much work for requests from {ip}")));
                }
            }
        }
        if !listing(req.kind()) {
            return Ok(None);
        }
        // The semaphore is never closed.
        Ok(self.listings.clone().acquire_owned().await.ok())
    }

    /// Counts a wrong signature, which makes its source's next requests wait sooner.
    pub fn bad_signature(&self, s: &Session) {
        self.bad_signature_of(s.peer.ip(), s.exempt);
    }

    /// The same, of a connection that is no registry session.
    pub fn bad_signature_of(&self, ip: IpAddr, exempt: bool) {
        self.bad_signatures.fetch_add(1, Ordering::Relaxed);
        if !exempt {
            let _ = self.charge(ip, BAD_SIGNATURE, PATIENCE);
        }
    }

    /// Waits until there is room for a body of this length.
    pub async fn room_for(&self, length: usize) -> Permit {
        if length <= SMALL_BODY {
            return None;
        }
        // At most 1 MiB, so there are that many permits; the semaphore is never closed.
        self.large_bodies.clone().acquire_many_owned((length / 1024) as u32).await.ok()
    }

    pub fn counters(&self) -> Counters {
        Counters {
            delayed: self.delayed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bad_signatures: self.bad_signatures.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;
    use serde_json::{Value, json};

    fn session(peer: &str) -> Session {
        Session::new(peer.parse().unwrap(), "192.0.2.1".parse().unwrap(), false)
    }

    fn budget(burst: f64) -> Budget {
        Budget::new(&Limits {
            work: Rate { per_second: 10.0, burst },
            network_work: Rate { per_second: 20.0, burst: 2.0 * burst },
            ..Limits::default()
        })
    }

    async fn pay(budget: &Budget, from: &str, request: &Value) -> Result<(), String> {
        let request = request.as_object().unwrap();
        budget.pay(&session(from), Request(request), 0).await.map(drop).map_err(|refused| refused.0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_asks_for_too_much_waits_and_is_then_refused_and_others_are_not() {
        let b = budget(10.0);
        let signed = json!({"type": "heartbeat", "signature": "x"});
        // Seven units each; two exceed the burst by four, the third by more than four seconds' worth.
        for _ in 0..2 {
            pay(&b, "203.0.113.1:1", &signed).await.unwrap();
        }
        for _ in 0..8 {
            let _ = b.charge("203.0.113.1".parse().unwrap(), 7, PATIENCE);
        }
        let error = pay(&b, "203.0.113.1:9", &signed).await.unwrap_err();
        assert_eq!(error, "rate limited: too much work for requests from 203.0.113.1");
        pay(&b, "198.51.100.1:1", &signed).await.unwrap();
        let counters = b.counters();
        assert_eq!((counters.delayed, counters.refused), (1, 1));
    }

    #[test]
    fn wrong_signatures_exhaust_a_source_four_times_faster() {
        let b = budget(60.0);
        let s = session("203.0.113.1:1");
        b.bad_signature(&s);
        b.bad_signature(&s);
        assert!(b.afford(s.peer.ip(), 12));
        assert!(!b.afford(s.peer.ip(), 1));
        assert_eq!(b.counters().bad_signatures, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_share_a_bounded_room_and_small_ones_need_none() {
        let b = budget(1.0);
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(b.room_for(1 << 20).await);
        }
        let more = tokio::time::timeout(Duration::from_secs(60), b.room_for(SMALL_BODY + 1)).await;
        assert!(more.is_err());
        assert!(b.room_for(SMALL_BODY).await.is_none());
        held.pop();
        assert!(b.room_for(SMALL_BODY + 1).await.is_some());
    }
}
