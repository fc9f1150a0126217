//! The local socket protocol between a Pilot daemon and its clients, both ends (spec 07).
//!
//! - [`Command`], [`frame`]: framing and command bytes.
//! - [`request`]: typed requests with their encoding and the error texts of malformed ones.
//! - [`outbox`]: the bounded queue of frames to send, shared by both ends.
//! - [`client`]: the async client.

pub mod client;
mod command;
pub mod frame;
pub mod outbox;
pub mod request;

pub use client::{Client, ClientError, IpcListener, IpcReader, IpcStream, IpcWriter};
pub use command::{Command, push};

use std::path::PathBuf;

/// The socket used when none is named: `$XDG_RUNTIME_DIR/pilot.sock` on Linux if that variable is not empty,
/// else `/tmp/pilot.sock` (spec 07 section 1); `~/.pilot/pilot.sock` if that directory does not exist.
pub fn default_socket() -> PathBuf {
    let usual = socket_for(std::env::var_os("XDG_RUNTIME_DIR").filter(|_| cfg!(target_os = "linux")));
    if usual.parent().is_some_and(std::path::Path::is_dir) {
        return usual;
    }
    let named = |name| std::env::var_os(name).filter(|home| !home.is_empty());
    let home = named("PILOT_HOME").or_else(|| named("HOME")).unwrap_or_else(|| ".".into());
    PathBuf::from(home).join(".pilot/pilot.sock")
}

fn socket_for(runtime_dir: Option<std::ffi::OsString>) -> PathBuf {
    match runtime_dir {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("pilot.sock"),
        _ => PathBuf::from("/tmp/pilot.sock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_socket_follows_the_runtime_directory() {
        assert_eq!(socket_for(Some("/run/user/7".into())), PathBuf::from("/run/user/7/pilot.sock"));
        assert_eq!(socket_for(Some("".into())), PathBuf::from("/tmp/pilot.sock"));
        assert_eq!(socket_for(None), PathBuf::from("/tmp/pilot.sock"));
    }
}
