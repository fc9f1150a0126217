//! Group commit: one thread owns the store; the writes of many requests share one transaction and one sync.
//!
//! Memory is ahead of the store while a commit runs. Nothing is acknowledged before its commit. If a commit fails,
//! its writes stay at the head of the queue, in order, and are tried again; until they are in, the registry refuses
//! further changes ([`Handle::failed`]).

use super::{Store, StoreError, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most writes in one transaction.
const BATCH: usize = 8192;

/// Pause between attempts to store what a failed commit left.
const RETRY: Duration = Duration::from_secs(1);

struct Job {
    writes: Vec<Write>,
    done: Option<oneshot::Sender<Result<(), StoreError>>>,
}

#[derive(Default)]
struct Shared {
    failed: AtomicBool,
    commits: AtomicU64,
    cause: Mutex<Option<StoreError>>,
}

/// The way to the writer thread.
#[derive(Clone)]
pub(crate) struct Handle {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

/// A commit under way.
pub(crate) struct Commit(oneshot::Receiver<Result<(), StoreError>>);

impl Commit {
    /// Waits until the writes are durable.
    pub async fn wait(self) -> Result<(), StoreError> {
        self.0
            .await
            .unwrap_or_else(|_| Err(StoreError("the store is closed: the registry is shutting down".into())))
    }
}

impl Handle {
    /// Queues writes. Call it under the lock that ordered them.
    pub fn submit(&self, writes: Vec<Write>) -> Commit {
        let (done, wait) = oneshot::channel();
        // A closed queue drops `done`, which `Commit::wait` reports.
        let _ = self.jobs.send(Job { writes, done: Some(done) });
        Commit(wait)
    }

    /// Why the last commit failed, if it did and its writes are not stored yet.
    pub fn failed(&self) -> Option<StoreError> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        self.shared.cause.lock().ok().and_then(|c| c.clone())
    }

    /// Commits made.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

/// Starts the writer. The thread ends, with everything stored, when the last handle is dropped.
pub(crate) fn start(mut store: Box<dyn Store>) -> std::io::Result<(Handle, std::thread::JoinHandle<()>)> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let shared = Arc::new(Shared::default());
    let mine = shared.clone();
    let thread = std::thread::Builder::new().name("pilot-store".into()).spawn(move || {
        let mut backlog: Vec<Write> = Vec::new();
        loop {
            let first = if backlog.is_empty() {
                queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(RETRY)
            };
            let last = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
            let mut waiting = Vec::new();
            let mut take = |job: Job, backlog: &mut Vec<Write>| {
                backlog.extend(job.writes);
                waiting.extend(job.done);
            };
            if let Ok(job) = first {
                take(job, &mut backlog);
                while backlog.len() < BATCH {
                    let Ok(job) = queue.try_recv() else { break };
                    take(job, &mut backlog);
                }
            }
            let outcome = if backlog.is_empty() { Ok(()) } else { store.commit(&backlog) };
            match &outcome {
                Ok(()) => {
                    if !backlog.is_empty() {
                        mine.commits.fetch_add(1, Ordering::Relaxed);
                    }
                    backlog.clear();
                    if mine.failed.swap(false, Ordering::AcqRel) {
                        tracing::info!("the store works again");
                    }
                }
                Err(e) => {
                    if let Ok(mut cause) = mine.cause.lock() {
                        *cause = Some(e.clone());
                    }
                    if !mine.failed.swap(true, Ordering::AcqRel) {
                        tracing::error!(error = %e, "the store cannot be written; changes are refused");
                    }
                }
            }
            for done in waiting {
                let _ = done.send(outcome.clone());
            }
            if last {
                if !backlog.is_empty() {
                    tracing::error!(writes = backlog.len(), "stopped with unacknowledged writes not stored");
                }
                return;
            }
        }
    })?;
    Ok((Handle { jobs, shared }, thread))
}
