//! A Pilot node with its IPC server, built-in services and lifecycle.

pub mod config;
pub mod services;

pub use config::DaemonConfig;
