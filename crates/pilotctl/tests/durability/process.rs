//! A process that is killed.

use std::process::{Child, Command};

/// Killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        Process(command.spawn().expect("the binary starts"))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.0.kill().expect("a child of ours can be killed");
        self.0.wait().expect("a child of ours can be waited for");
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child of ours can be asked for").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
