//! Processes that outlive a command: starting them detached, knowing whether they run, stopping them, and their logs.

pub mod detach;
pub mod lock;
pub mod logfile;
mod platform;
pub mod rendezvous;
pub mod stop;

use crate::error::CliError;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes a private directory (0700) with its parents.
pub fn make_private_dir(path: &Path) -> Result<(), CliError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| no_home(CliError::io(format!("create {}", path.display()), &e)))
}

/// Adds what to do when the home of Pilot cannot be read or written.
pub fn no_home(error: CliError) -> CliError {
    error.hint("a writable directory is needed: name one with PILOT_HOME=DIR (its .pilot is used)")
}
