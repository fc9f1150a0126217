//! Stopping a process: asked first, forced after a while.

use super::lock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};
use std::io;
use std::time::{Duration, Instant};

/// How long a process may take to end in order.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end it after SIGKILL.
const FORCED: Duration = Duration::from_secs(5);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was gone already.
    Gone,
    /// In order.
    Orderly,
    /// By SIGKILL.
    Forced,
}

/// SIGTERM, then after [`GRACE`] SIGKILL. Returns when the process is gone.
pub fn terminate(number: u32) -> io::Result<Stopped> {
    let Some(pid) = lock::pid(number) else { return Ok(Stopped::Gone) };
    // Opened before the signal, so that the number cannot come to mean another process.
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(Stopped::Gone),
        Err(e) => return Err(e.into()),
    };
    for (signal, limit, outcome) in
        [(Signal::TERM, GRACE, Stopped::Orderly), (Signal::KILL, FORCED, Stopped::Forced)]
    {
        match kill_process(pid, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(outcome),
            Err(e) => return Err(e.into()),
        }
        if ends_within(&handle, limit)? {
            return Ok(outcome);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {number} does not end, even when killed")))
}

fn ends_within(handle: &rustix::fd::OwnedFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_obeys_is_stopped_in_order() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(terminate(child.id()).unwrap(), Stopped::Orderly);
        assert!(!child.wait().unwrap().success());
        assert_eq!(terminate(child.id()).unwrap(), Stopped::Gone);
    }
}
