//! Registry and beacon of a Pilot network in one process.
//!
//! The registry (TCP, spec 05) is the directory: ids, keys, endpoints, names, trust and networks. The beacon (UDP,
//! spec 04) tells nodes their public address, coordinates hole punching and relays frames.
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

mod beacon;
mod clock;
mod config;
mod conn;
mod limits;
mod push;
mod registry;
mod server;
mod store;
mod tls;
mod wire;

pub use config::{BEACON_PORT, Config, Limits, REGISTRY_PORT, Rate, StoreConfig, Tls};
pub use server::{Server, StartError, Stats};
