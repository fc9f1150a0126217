//! Fuzz targets: one function for every place where bytes from outside enter.
//!
//! `cargo fuzz run TARGET` (in `fuzz/`) explores; the corpora in `fuzz/corpus/TARGET/` are replayed by the
//! normal tests of this crate. A target panics when it finds a bug and returns otherwise.

mod engine;
mod input;
mod local;
mod mtu;
mod path;
mod services;
mod stream;
mod trust;
mod wire;

/// A fuzz target: its name (also the name of its corpus) and what it does with one input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("address", wire::address),
    ("packet", wire::packet),
    ("frame", wire::frame),
    ("capability", wire::capability),
    ("beacon", wire::beacon),
    ("data_exchange", services::data_exchange),
    ("file_receiver", services::file_receiver),
    ("handshake", services::handshake),
    ("trust", trust::trust),
    ("trust_file", services::trust_file),
    ("peers_file", pilot::fuzzing::peers_file),
    ("node_record", wire::node_record),
    ("ipc", local::ipc),
    ("identity_file", pilot::fuzzing::identity_file),
    ("config_file", local::config_file),
    ("registry", pilot_rendezvous::fuzzing::registry),
    ("beacon_server", pilot_rendezvous::fuzzing::beacon),
    ("registry_client", pilot::fuzzing::registry_answers),
    ("router", pilot::fuzzing::router_answers),
    ("stream", stream::stream),
    ("engine", engine::engine),
    ("mtu", mtu::mtu),
    ("path", path::path),
];

/// Runs one input through a target.
pub fn run(name: &str, input: &[u8]) {
    let (_, target) =
        TARGETS.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no fuzz target {name}"));
    target(input);
}
