//! Settings of a daemon: keys, flags, environment, files, and the one order in which they win.

pub mod duration;
mod env;
mod file;
pub mod keys;
mod settings;

pub use env::Env;
pub use file::{ConfigFile, FileError};
pub use settings::{LogSettings, Setting, SettingError, Settings, Source};

use pilot_proto::crypto::Secret;
use std::path::PathBuf;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `time level message key=value`.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of a daemon. Every path is absolute or relative to the working directory.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Settings of the node.
    pub node: pilot::NodeConfig,
    /// The IPC socket; its directory must exist (spec 07 section 1).
    pub socket: PathBuf,
    /// `~/.pilot`: `account.json`, `inbox/`, `received/` (spec 08 section 1.9).
    pub home: PathBuf,
    /// Port 7 stays free.
    pub no_echo: bool,
    /// Port 1001 stays free.
    pub no_dataexchange: bool,
    /// Port 1002 stays free.
    pub no_eventstream: bool,
    /// Store every message of the data exchange as base64.
    pub dataexchange_b64: bool,
    /// Permits broadcasts (spec 07 section 9.3) and is passed to the registry with network commands.
    pub admin_token: Option<Secret>,
    /// Where events are posted.
    pub webhook: Option<String>,
}
