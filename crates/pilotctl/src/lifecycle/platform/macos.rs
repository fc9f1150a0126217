use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::io;
use std::time::{Duration, Instant};

/// How often to look whether a process is gone; there is no handle to wait on.
const LOOK: Duration = Duration::from_millis(20);

/// A process that may end at any time.
#[derive(Debug)]
pub struct Process(Pid);

impl Process {
    /// `None`: it is gone.
    pub fn open(pid: Pid) -> io::Result<Option<Process>> {
        match test_kill_process(pid) {
            Ok(()) => Ok(Some(Process(pid))),
            Err(Errno::SRCH) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits at most `limit` for its end.
    pub fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        while Process::open(self.0)?.is_some() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }
}
