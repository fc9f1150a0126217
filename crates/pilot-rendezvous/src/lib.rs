//! Registry and beacon of a Pilot network in one process.
//!
//! The registry (TCP, spec 05) is the directory: ids, keys, endpoints, names, trust and networks. The beacon (UDP,
//! spec 04) tells nodes their public address, coordinates hole punching and relays frames.
//!
//! # Where it differs from the reference
//!
//! Clients of 1.18.0 work unchanged; what they can learn or do to others is less.
//!
//! - An id moves to another key by `rotate_key` (signature over the new key; the short form of old clients is refused)
//!   or `recover_key` only, never by an owner's e-mail address. The owner is a label: several keys may share one.
//! - A trust pair needs both sides: two reports, or a request and its acceptance. An approval without a request at the
//!   registry is passed on to the requester and counts once that one confirms it.
//! - Names and tags of private nodes are told to themselves, trusted nodes and members of a shared network; lists of
//!   members to members (others see public nodes, without addresses); `check_trust` answers its two nodes. A
//!   connection speaks for each node of which it carried a verified request, so a 1.18.0 daemon, which does not sign
//!   these requests, proves itself by its heartbeats and polls on each pooled connection.
//! - Roles in networks need the admin token, the network's own, or a signature over
//!   `<request type>:<node_id>:<network_id>:<target node>` (0 without a target).
//! - A node may resolve itself. `punch` tells addresses to those who may resolve them.
//! - A node that went silent keeps its settings, and its name for a week; signing off gives both up.
//! - Error texts are not hidden; "does not exist" and "not for you" read the same.
//! - Everything acknowledged is on the disk. Presence is in memory only; nodes get the stale threshold anew after a
//!   restart.
//! - The binary mode, replication, HTTP and the administration of spec 05 section 5.8 do not exist.
//!
//! ```no_run
//! # async fn run() -> Result<(), pilot_rendezvous::StartError> {
//! let server = pilot_rendezvous::Server::start(pilot_rendezvous::Config::loopback()).await?;
//! println!("registry {} beacon {}", server.registry_addr(), server.beacon_addr());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod admission;
mod beacon;
mod clock;
mod compat;
mod config;
mod conn;
mod cost;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod push;
mod registry;
mod server;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod store;
mod tls;
mod wire;

pub use config::{
    BEACON_PORT, Config, Limits, ProbePort, REGISTRY_PORT, Rate, StoreConfig, Tls, TlsListener,
};
pub use server::{Server, StartError, Stats};
