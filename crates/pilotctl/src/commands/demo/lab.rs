//! The demo's folder, processes and commands. Whatever happens, none of it stays.

use crate::error::{CliError, Code};
use crate::lifecycle::detach::own_binary;
use crate::lifecycle::lock::PidLock;
use crate::lifecycle::rendezvous::Place;
use crate::lifecycle::stop::terminate;
use pilot_daemon::config::Env;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::Mutex;

/// The homes of the three processes.
const HOMES: [&str; 3] = ["alice", "bob", "rendezvous"];

#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    /// The directory above, if it had to be made (an empty root has no /tmp).
    made: Option<PathBuf>,
    binary: PathBuf,
    /// Held while a process is being started: cleaning up waits for it, so that no process is missed.
    starting: Arc<Mutex<()>>,
    kept: bool,
}

impl Lab {
    pub fn new() -> Result<Lab, CliError> {
        let binary = own_binary()?;
        let above = std::env::temp_dir();
        let made = (!above.exists()).then(|| above.clone());
        let dir = above.join(format!("pilot-demo-{}", std::process::id()));
        let lab = Lab { dir, made, binary, starting: Arc::default(), kept: false };
        let make = |path: &Path, parents| {
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(parents)
                .create(path)
                .map_err(|e| CliError::io(format!("create {}", path.display()), &e))
        };
        make(&above, true)?;
        make(&lab.dir, false)?;
        for home in HOMES {
            make(&lab.dir.join(home), false)?;
        }
        Ok(lab)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn home(&self, who: &str) -> PathBuf {
        self.dir.join(who)
    }

    pub fn socket(&self, who: &str) -> PathBuf {
        self.home(who).join("pilot.sock")
    }

    /// Nothing is stopped or removed from now on.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    fn command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env_clear().env("HOME", self.home(who)).current_dir(&self.dir);
        // For the progress bar.
        command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
        // A group of its own: Ctrl-C reaches only the demo, which then stops things in order.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command in a home and gives its data.
    pub async fn run(&self, who: &str, args: &[&str]) -> Result<Value, CliError> {
        let all = [&["--json"], args].concat();
        let output = ended(self.command(who, &all)).await?;
        data(who, args, &output)
    }

    /// As [`Lab::run`], for commands that leave a process behind: not cut short when the demo is interrupted.
    pub async fn start(&self, who: &str, args: &[&str]) -> Result<Value, CliError> {
        let starting = self.starting.clone().lock_owned().await;
        let command = self.command(who, &[&["--json"], args].concat());
        let task = tokio::spawn(async move {
            let output = ended(command).await;
            drop(starting);
            output
        });
        let output = task.await.map_err(|e| CliError::internal(e.to_string()))??;
        data(who, args, &output)
    }

    /// As [`Lab::run`], in text mode with its progress on our stderr; the text it prints is JSON.
    pub async fn run_showing_progress(&self, who: &str, args: &[&str]) -> Result<Value, CliError> {
        let mut command = self.command(who, args);
        command.stderr(Stdio::inherit());
        let output = ended(command).await?;
        match output.status.success() {
            true => serde_json::from_slice(&output.stdout).map_err(|e| failed(who, args, &e.to_string())),
            false => Err(failed(who, args, "see above")),
        }
    }

    /// Stops everything and removes the folder.
    pub async fn clean(mut self) -> Result<(), CliError> {
        let _ = self.starting.clone().lock_owned().await;
        self.kept = true;
        self.stop_and_remove()
    }

    fn stop_and_remove(&self) -> Result<(), CliError> {
        let mut pids = Vec::new();
        for who in ["alice", "bob"] {
            pids.extend(PidLock::holder(&self.home(who).join(".pilot/pilot.pid")).ok().flatten());
        }
        let home = self.home("rendezvous").display().to_string();
        let env = Env::from_pairs([("HOME".to_owned(), home)]);
        pids.extend(Place::local(&env).running().ok().flatten());
        for pid in pids {
            terminate(pid).map_err(|e| CliError::io(format!("stop process {pid}"), &e))?;
        }
        fs::remove_dir_all(&self.dir)
            .map_err(|e| CliError::io(format!("remove {}", self.dir.display()), &e))?;
        if let Some(made) = &self.made {
            let _ = fs::remove_dir(made);
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.stop_and_remove();
        }
    }
}

async fn ended(mut command: Command) -> Result<Output, CliError> {
    let mut child = command.spawn().map_err(|e| CliError::io("start a command", &e))?;
    drop(child.stdin.take());
    child.wait_with_output().await.map_err(|e| CliError::io("wait for a command", &e))
}

fn data(who: &str, args: &[&str], output: &Output) -> Result<Value, CliError> {
    let parsed = |bytes: &[u8]| {
        let last = bytes.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        serde_json::from_slice::<Value>(last).unwrap_or_default()
    };
    if output.status.success() {
        return Ok(parsed(&output.stdout)["data"].take());
    }
    // A negative result is on stdout, an error on stderr.
    let said = [&output.stderr[..], &output.stdout].concat();
    let error = parsed(&output.stderr);
    let why = error["message"].as_str().map(str::to_owned);
    Err(failed(who, args, &why.unwrap_or_else(|| String::from_utf8_lossy(&said).trim().to_owned())))
}

fn failed(who: &str, args: &[&str], why: &str) -> CliError {
    CliError::new(Code::Internal, format!("{who}: pilotctl {}: {why}", args.join(" ")))
        .hint("everything was stopped and removed")
}
