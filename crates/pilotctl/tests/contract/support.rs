//! A home of its own for each test, and the binary run in it.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The envelope's data; the command must have printed one and ended with status 0.
    pub fn data(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        self.data_of(0)
    }

    /// The envelope's data of a command that ended with that status.
    pub fn data_of(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        let envelope: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(envelope["status"], "ok", "{self:?}");
        envelope["data"].clone()
    }

    /// The error envelope; stdout must be empty and the status 1.
    pub fn error(&self) -> Value {
        assert_eq!(self.code, 1, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let last = self.stderr.lines().last().unwrap_or_default();
        let envelope: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(envelope["status"], "error");
        assert_eq!(envelope["error"], envelope["message"]);
        envelope
    }
}

/// A temporary `HOME`. Whatever runs in it is stopped when it is dropped.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { dir: TempDir::with_prefix("pilot").expect("temporary directory") }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file below `.pilot`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(".pilot").join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("below .pilot")).expect("directory");
        fs::write(path, text).expect("write");
    }

    pub fn config(&self) -> Value {
        let text = fs::read_to_string(self.file("config.json")).expect("config.json");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The binary, with this home and nothing else of our environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotctl"));
        command.args(args).env_clear();
        command.env("HOME", self.path()).env("PILOT_SOCKET", self.path().join("pilot.sock"));
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let out = self.command(args).envs(env.iter().copied()).output().expect("the binary runs");
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
    }

    /// Runs with `--json`.
    pub fn json(&self, args: &[&str]) -> Ran {
        let mut all = vec!["--json"];
        all.extend(args);
        self.run(&all)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.run(&["daemon", "stop"]);
        self.run(&["rendezvous", "stop"]);
    }
}
