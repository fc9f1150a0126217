//! Interoperation with the real reference 1.18.0: its daemon, its CLI and its Python SDK against ours.
//!
//! Needs root (network namespaces), `ip`, `unshare`, `nsenter`, and the reference in a Python environment named
//! by `PILOT_REFERENCE_VENV`; `scripts/test.sh` sets all of this up. The reference binaries only ever run in a
//! namespace that holds nothing but loopback, with an empty HOME and their vendor services off.

mod cli;
mod compat;
mod lab;
mod lifecycle;
mod lossy;
mod pair;
mod recovery;
mod sdk;
