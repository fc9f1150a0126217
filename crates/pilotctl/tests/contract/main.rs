//! What users and scripts rely on: streams, envelopes, exit statuses, files, processes.

mod config;
mod daemon;
mod demo;
mod directory;
mod frame;
mod messages;
mod pair;
mod proxy;
mod streams;
mod support;
mod trust;
