//! Output: envelopes, text, progress, and what every command knows about its surroundings (spec 08 section 1.2).

pub mod json;
mod progress;
mod style;

use crate::error::{CliError, CliResult, Exit};
use pilot_daemon::config::{ConfigFile, Env};
use pilot_ipc::Client;
pub use progress::Progress;
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
pub use style::Style;

/// How a command talks to its user, and where its files are.
#[derive(Debug)]
pub struct Ctx {
    /// `--json`: one compact line on stdout, errors as one line on stderr.
    pub json: bool,
    /// `--verbose`.
    pub verbose: bool,
    /// Reached through the `extras` prefix.
    pub extras: bool,
    /// Colours of stdout.
    pub style: Style,
    env: Env,
    config: OnceCell<ConfigFile>,
}

impl Ctx {
    /// The surroundings of this process.
    pub fn new(json: bool, verbose: bool, extras: bool) -> Ctx {
        let style = Style::detect(!json && std::io::stdout().is_terminal());
        Ctx { json, verbose, extras, style, env: Env::from_process(), config: OnceCell::new() }
    }

    /// Environment variables.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// `~/.pilot`, or `$PILOT_HOME/.pilot`.
    pub fn home(&self) -> PathBuf {
        self.env.pilot_home()
    }

    /// The configuration file; a corrupt one is an error that says how to mend it.
    pub fn config(&self) -> Result<&ConfigFile, CliError> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = ConfigFile::load(&self.home().join("config.json")).map_err(|e| {
            CliError::invalid(e.to_string()).hint("mend or remove the file; pilotctl init writes a new one")
        })?;
        for key in config.unknown_keys() {
            self.warn(&format!("warning: {}: unknown key {key:?} is ignored", config.path().display()));
        }
        Ok(self.config.get_or_init(|| config))
    }

    /// The daemon's socket: environment, configuration file, default.
    pub fn socket(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = self.env.get("PILOT_SOCKET") {
            return Ok(path.into());
        }
        Ok(match self.config()?.string("socket") {
            Some(path) => path.into(),
            None => self.env.default_socket(),
        })
    }

    /// A connection to the daemon.
    pub async fn client(&self) -> Result<Client, CliError> {
        let socket = self.socket()?;
        if self.verbose {
            self.warn(&format!("connecting to daemon socket {}", socket.display()));
        }
        Client::connect(&socket).await.map_err(|_| not_running(&socket))
    }

    /// Prints the result: the envelope in JSON mode, the text else (no trailing newline needed).
    pub fn emit(&self, data: Value, text: impl FnOnce(&Style) -> String) -> CliResult {
        self.emit_as(data, text, Exit::OK)
    }

    /// As [`Ctx::emit`], for results that are negative though the command ran.
    pub fn emit_as(&self, data: Value, text: impl FnOnce(&Style) -> String, exit: Exit) -> CliResult {
        let out = match self.json {
            true => json::compact(&json!({"status": "ok", "data": data})),
            false => text(&self.style),
        };
        self.line(&out)?;
        Ok(exit)
    }

    /// Prints the result of a command without a layout of its own: in text mode the bare data, indented.
    pub fn emit_data(&self, data: Value) -> CliResult {
        let text = json::pretty(&data);
        self.emit(data, |_| text)
    }

    /// One bare object of an unbounded stream (JSON mode), or its text.
    pub fn emit_item(&self, item: &Value, text: impl FnOnce(&Style) -> String) -> Result<(), CliError> {
        match self.json {
            true => self.line(&json::compact(item)),
            false => self.line(&text(&self.style)),
        }
    }

    /// One line on stdout, flushed: a reader at the other end of a pipe sees it at once.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        let newline: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.write_all(newline))
            .and_then(|()| stdout.flush());
        written.map_err(|e| CliError::io("write to stdout", &e))
    }

    /// Side information on stderr, in text mode only.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.warn(text);
        }
    }

    /// A line on stderr in both modes. A closed stderr is no reason to fail.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A bar over `total` bytes, drawn on stderr only if it is a terminal and not in JSON mode.
    pub fn progress_bytes(&self, label: &str, total: u64) -> Progress {
        Progress::bytes(self.interactive(), label, total)
    }

    /// A spinner with the elapsed time, drawn as [`Ctx::progress_bytes`] is.
    pub fn spinner(&self, label: &str) -> Progress {
        Progress::spinner(self.interactive(), label)
    }

    fn interactive(&self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// Prints an error in the form of the mode.
    pub fn error(&self, error: &CliError) {
        self.warn(&match self.json {
            true => {
                let mut envelope = json!({
                    "status": "error",
                    "code": error.code.as_str(),
                    "error": error.message,
                    "message": error.message,
                });
                if let Some(hint) = &error.hint {
                    envelope["hint"] = json!(hint);
                }
                json::compact(&envelope)
            }
            false => match &error.hint {
                Some(hint) => format!("error: {}\nhint:  {hint}", error.message),
                None => format!("error: {}", error.message),
            },
        });
    }
}

/// The error of every command that needs the daemon.
pub fn not_running(socket: &Path) -> CliError {
    CliError::new(crate::error::Code::NotRunning, "daemon is not running")
        .hint(format!("start the daemon with: pilotctl daemon start  (tried {})", socket.display()))
}
