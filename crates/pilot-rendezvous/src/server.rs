//! Start, supervision and shutdown.

use crate::config::Config;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("cannot listen on {what} {addr}: {source}")]
    Bind {
        /// `registry TCP` or `beacon UDP`.
        what: &'static str,
        /// The configured address.
        addr: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The store could not be opened or read.
    #[error("cannot open the store {path}: {reason}")]
    Store {
        /// The file, or `(memory)`.
        path: String,
        /// Cause and fix.
        reason: String,
    },
    /// Certificate or key could not be read or made.
    #[error("TLS: {path}: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("invalid setting {name}: {reason}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// Why, and what is allowed.
        reason: String,
    },
}

/// Counters since start, and sizes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Nodes in the directory now.
    pub nodes_online: u64,
    /// Identities known, online or not.
    pub nodes_known: u64,
    /// Mutual trust pairs.
    pub trust_pairs: u64,
    /// Networks besides the backbone.
    pub networks: u64,
    /// Open registry connections.
    pub connections: u64,
    /// Open push subscriptions.
    pub subscriptions: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Commits of the store; requests of many connections share one.
    pub commits: u64,
    /// Nodes in the beacon's table.
    pub beacon_nodes: u64,
    /// Frames relayed.
    pub relayed: u64,
    /// Frames not relayed: destination unknown or over a limit.
    pub relay_dropped: u64,
    /// Punches coordinated.
    pub punches: u64,
}

/// A running registry and beacon. Dropping it stops it without waiting; prefer [`Server::shutdown`].
#[derive(Debug)]
pub struct Server {
    registry_addr: SocketAddr,
    beacon_addr: SocketAddr,
    fingerprint: Option<String>,
}

impl Server {
    /// Opens the store, binds both addresses and starts serving on the current tokio runtime.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let _ = config;
        todo!()
    }

    /// Address the registry listens on.
    pub fn registry_addr(&self) -> SocketAddr {
        self.registry_addr
    }

    /// Address the beacon listens on.
    pub fn beacon_addr(&self) -> SocketAddr {
        self.beacon_addr
    }

    /// SHA-256 of the leaf certificate as 64 lower-case hex digits: what clients pin. `None` without TLS.
    pub fn tls_fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// Stops accepting, closes connections, makes everything durable and returns.
    pub async fn shutdown(self) {
        todo!()
    }
}
