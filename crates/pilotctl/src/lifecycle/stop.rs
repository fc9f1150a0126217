//! Stopping a process: asked first, forced after a while.

use super::lock;
use super::platform::Process;
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use std::io;
use std::time::Duration;

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
    let Some(process) = Process::open(pid)? else { return Ok(Stopped::Gone) };
    for (signal, limit, outcome) in
        [(Signal::TERM, GRACE, Stopped::Orderly), (Signal::KILL, FORCED, Stopped::Forced)]
    {
        match kill_process(pid, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(outcome),
            Err(e) => return Err(e.into()),
        }
        if process.ends_within(limit)? {
            return Ok(outcome);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {number} does not end, even when killed")))
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
