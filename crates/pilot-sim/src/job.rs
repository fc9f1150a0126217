//! Jobs: bytes that reach a server's disk whatever happens, because its application acknowledges what it has stored
//! and the client's application sends the rest again.

use crate::app::Side;
use crate::check::{Violation, pattern};
use crate::net::{Micros, SECOND};
use crate::plan::{Ending, FAULTS_END, JobPlan, Purpose, StreamPlan};
use crate::world::World;
use bytes::Bytes;

/// A failed attempt is repeated after this time.
const RETRY: Micros = SECOND;
/// Bytes of one receipt: how much is stored, big-endian.
const RECEIPT: usize = 8;
/// Tag of the jobs' byte patterns.
const JOB_TAG: u64 = 1 << 41;

/// What both applications remember of a job; the server's part is on its disk.
#[derive(Debug)]
pub struct Job {
    /// What it is.
    pub plan: JobPlan,
    /// Bytes the server has stored.
    pub stored: u64,
    /// Bytes the client has a receipt for.
    pub receipted: u64,
}

impl Job {
    /// A job nobody has begun.
    pub fn new(plan: JobPlan) -> Job {
        Job { plan, stored: 0, receipted: 0 }
    }
}

/// Bytes of a job from `offset` on.
pub fn job_bytes(job: usize, offset: u64, len: usize) -> Vec<u8> {
    pattern(JOB_TAG + job as u64, offset, len)
}

impl World {
    /// The client dials.
    pub(crate) fn attempt(&mut self, job: usize) {
        let Job { plan, receipted, .. } = self.jobs[job];
        self.add_stream(StreamPlan {
            at: self.now,
            client: plan.client,
            server: plan.server,
            bytes: [4 + plan.total - receipted, 0],
            ending: self.plan.ending(plan.client, plan.server, Ending::HalfClose),
            purpose: Purpose::Job { job, from: receipted },
        });
    }

    /// An attempt is over for the client: is another one needed?
    pub(crate) fn attempt_over(&mut self, id: u32) {
        let stream = &self.streams[id as usize];
        let Purpose::Job { job, .. } = stream.plan.purpose else { return };
        if self.jobs[job].receipted < self.jobs[job].plan.total {
            self.at(self.now + RETRY, crate::world::Happening::Job(job));
        }
    }

    /// The server has received more: it stores it and says so.
    pub(crate) fn store(&mut self, n: usize, id: u32) {
        let stream = &mut self.streams[id as usize];
        let Purpose::Job { job, from } = stream.plan.purpose else { return };
        let me = &mut stream.sides[1];
        let stored = from + me.delivered.saturating_sub(4);
        let job = &mut self.jobs[job];
        if stored <= job.stored && stored < job.plan.total {
            return;
        }
        job.stored = job.stored.max(stored);
        let receipt = job.stored.to_be_bytes();
        let now = self.base + std::time::Duration::from_micros(self.now + self.nodes[n].ahead);
        if let (Some(conn), Some(process)) = (me.conn, self.nodes[n].process.as_mut())
            && let Ok(rest) = process.write(now, conn, Bytes::copy_from_slice(&receipt))
        {
            let taken = RECEIPT - rest.len();
            me.log.extend_from_slice(&receipt[..taken]);
            me.written += taken as u64;
        }
    }

    /// The client has received more: it reads the receipts.
    pub(crate) fn read_receipts(&mut self, id: u32) -> Result<(), Violation> {
        let stream = &self.streams[id as usize];
        let Purpose::Job { job: index, .. } = stream.plan.purpose else { return Ok(()) };
        let [client, server] = &stream.sides;
        let Some(last) = last_receipt(client, server) else { return Ok(()) };
        let job = &mut self.jobs[index];
        if last > job.stored {
            return Err(Violation::ReceiptFalse { job: index, receipt: last, stored: job.stored });
        }
        if last > job.receipted {
            job.receipted = last;
            self.report.done_after = self.report.done_after.max(self.now.saturating_sub(FAULTS_END));
        }
        Ok(())
    }

    /// The client of an attempt has a receipt for everything.
    pub(crate) fn all_receipted(&self, id: u32) -> bool {
        let Purpose::Job { job, .. } = self.streams[id as usize].plan.purpose else { return true };
        self.jobs[job].receipted == self.jobs[job].plan.total
    }

    /// A job that is not done. `all`: those with a reference node as well.
    pub(crate) fn undone(&self, all: bool) -> Option<usize> {
        let counts =
            |plan: &JobPlan| all || !(self.plan.reference(plan.client) || self.plan.reference(plan.server));
        self.jobs.iter().position(|job| counts(&job.plan) && job.receipted < job.plan.total)
    }
}

/// The last whole receipt the client has got.
fn last_receipt(client: &Side, server: &Side) -> Option<u64> {
    let whole = client.delivered as usize / RECEIPT * RECEIPT;
    let bytes = server.log.get(whole.checked_sub(RECEIPT)?..whole)?;
    bytes.try_into().ok().map(u64::from_be_bytes)
}
