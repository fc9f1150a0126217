//! A Pilot node with its IPC server, built-in services and lifecycle.

pub mod config;

pub use config::DaemonConfig;
