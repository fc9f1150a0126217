//! Why a client's request failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("connect to daemon: no daemon is listening on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket exists but cannot be used.
    #[error("connect to daemon: {}: {error}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Cause.
        error: io::Error,
    },
    /// The daemon's error text.
    #[error("daemon: {0}")]
    Daemon(String),
    /// The connection ended. Right after connecting it means that the daemon runs as another user or has too many clients.
    #[error("daemon disconnected")]
    Disconnected,
    /// No answer in time.
    #[error("no answer from the daemon within {0:?}")]
    Timeout(Duration),
    /// The answer makes no sense.
    #[error("unexpected answer from the daemon: {0}")]
    Protocol(String),
    /// The request does not fit a frame.
    #[error("request of {0} bytes is over the limit of {max}", max = crate::frame::MAX_SEND)]
    TooLarge(usize),
}

impl ClientError {
    /// The daemon's own words, if it answered.
    pub fn daemon_text(&self) -> Option<&str> {
        match self {
            ClientError::Daemon(text) => Some(text),
            _ => None,
        }
    }
}
