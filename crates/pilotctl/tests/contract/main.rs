//! What users and scripts rely on: streams, envelopes, exit statuses, files, processes.

mod config;
mod daemon;
mod frame;
mod support;
