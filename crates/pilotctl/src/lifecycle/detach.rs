//! Starting a process that outlives the command, and hearing from it when it is ready.
//!
//! The child is this binary again, in a session of its own. Its stdout is a pipe to the parent, on which it says one
//! line: that it is ready, or why it is not. So the parent neither polls nor guesses, and nothing but the child's
//! own words is shown when it fails. Then the child's stdout becomes its log.

use crate::error::{CliError, Code};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Tells the child that it is detached and where its log is.
const LOG_VARIABLE: &str = "PILOT_DETACHED_LOG";
/// Most bytes of a child's first line.
const MAX_LINE: usize = 64 << 10;

/// A process to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The name it runs under, which decides what it is: `pilot-daemon`, `pilot-rendezvous`.
    pub name: &'a str,
    /// Its flags.
    pub args: Vec<String>,
    /// Variables added to the environment; what must not be seen in the process list travels here.
    pub env: Vec<(&'static str, String)>,
    /// Its log file.
    pub log: &'a Path,
    /// How long it may take until it is ready.
    pub wait: Duration,
}

/// The binary to start again.
pub fn own_binary() -> Result<PathBuf, CliError> {
    if let Ok(path) = std::env::current_exe() {
        return Ok(path);
    }
    // Without /proc the way we were called must do.
    let called = std::env::args_os().next().map(PathBuf::from).filter(|p| p.components().count() > 1);
    called
        .and_then(|p| std::path::absolute(p).ok())
        .ok_or_else(|| CliError::internal("cannot find this program's own file; call it by its path"))
}

impl Launch<'_> {
    /// Starts the process and waits until it is ready: its number and what it said. If it fails or is late,
    /// nothing of it stays.
    pub fn start(&self) -> Result<(u32, Value), CliError> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.log)
            .map_err(|e| CliError::io(format!("open {}", self.log.display()), &e))?;
        let mut child = Command::new(own_binary()?)
            .arg0(self.name)
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env(LOG_VARIABLE, self.log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| CliError::io(format!("start {}", self.name), &e))?;
        // Closed at once: the child reads an end of file, and no /dev/null is needed.
        drop(child.stdin.take());
        let said = self.listen(&mut child);
        if said.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        said.map(|value| (child.id(), value))
    }

    fn listen(&self, child: &mut Child) -> Result<Value, CliError> {
        let pid = child.id();
        let Some(mut pipe) = child.stdout.take() else {
            return Err(CliError::internal("the child has no stdout"));
        };
        let line = match first_line(&mut pipe, Instant::now() + self.wait) {
            Ok(Some(line)) => line,
            Ok(None) => {
                return Err(CliError::timeout(format!(
                    "{} (pid {pid}) did not become ready within {}; it was stopped",
                    self.name,
                    pilot_daemon::config::duration::format(self.wait)
                ))
                .hint(format!("its log: {}", self.log.display())));
            }
            Err(e) => return Err(CliError::io(format!("hear from {}", self.name), &e)),
        };
        let said: Value = match serde_json::from_slice(&line) {
            Ok(said) => said,
            Err(_) => {
                let status = child.wait().map(|s| s.to_string()).unwrap_or_default();
                return Err(CliError::internal(format!(
                    "{} (pid {pid}) died during startup ({status})",
                    self.name
                ))
                .hint(format!("its log: {}", self.log.display())));
            }
        };
        match said.get("error") {
            Some(error) => Err(error_from(error)),
            None => Ok(said),
        }
    }
}

/// Reads up to the first newline or the end; `None`: nothing complete in time.
fn first_line(pipe: &mut ChildStdout, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut chunk = [0; 4096];
        let count = pipe.read(&mut chunk)?;
        line.extend_from_slice(&chunk[..count]);
        if count == 0 || line.ends_with(b"\n") || line.len() > MAX_LINE {
            return Ok(Some(line));
        }
    }
}

fn error_from(error: &Value) -> CliError {
    let text = |key: &str| error[key].as_str().map(str::to_owned);
    let code = text("code").and_then(|c| Code::ALL.iter().map(|(code, _)| *code).find(|k| k.as_str() == c));
    let mut out = CliError::new(code.unwrap_or(Code::Internal), text("message").unwrap_or_default());
    out.hint = text("hint");
    out
}

/// The child's side.
#[derive(Debug)]
pub struct Detached {
    /// Where the log goes.
    pub log: PathBuf,
}

impl Detached {
    /// `Some` if this process was started by [`Launch::start`]; it then leaves its parent's session.
    pub fn from_env() -> Option<Detached> {
        let log = std::env::var_os(LOG_VARIABLE).filter(|v| !v.is_empty())?;
        // Fails only for a session leader, which is what is wanted.
        let _ = rustix::process::setsid();
        Some(Detached { log: log.into() })
    }

    /// Tells the parent that all is well. An error means that the parent is gone: nobody wants this process.
    pub fn ready(&self, data: &Value) -> io::Result<()> {
        self.say(data)
    }

    /// Tells the parent why not.
    pub fn failed(&self, error: &CliError) {
        let error = json!({"code": error.code.as_str(), "message": error.message, "hint": error.hint});
        let _ = self.say(&json!({"error": error}));
    }

    fn say(&self, line: &Value) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()?;
        rustix::stdio::dup2_stdout(io::stderr())?;
        Ok(())
    }
}
