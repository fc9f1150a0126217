//! The laboratory: where networks and hosts are made.

use crate::fabric::Fabric;
use crate::firewall::Firewall;
use crate::host::{Families, HostBuilder};
use crate::link::Duplex;
use crate::prefix::Prefix;
use crate::router::{self, RouterBuilder};
use crate::spaces::Processes;
use crate::world::NetworkId;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

/// Addresses of the network that plays the Internet. Programs treat those reserved for documentation as unfit for
/// the public, so these are others; no packet leaves the laboratory.
const INTERNET: (&str, &str) = ("7.7.0.0/16", "2a0f:7700::/48");
/// Environment variable that sets the seed of [`Lab::new`].
const SEED_VARIABLE: &str = "PILOT_NETLAB_SEED";

/// A laboratory. Everything in it ends with it.
pub struct Lab {
    processes: Arc<Processes>,
    fabric: Arc<Fabric>,
    internet: NetworkId,
    seed: u64,
}

impl Lab {
    /// A laboratory with a seed from the environment variable `PILOT_NETLAB_SEED`, or else a new one. The seed
    /// is printed.
    ///
    /// # Errors
    ///
    /// Without root, or if the variable is no number.
    pub fn new() -> io::Result<Lab> {
        let seed = match std::env::var(SEED_VARIABLE) {
            Ok(text) => text
                .parse()
                .map_err(|e| io::Error::other(format!("{SEED_VARIABLE}={text:?} is no number: {e}")))?,
            Err(_) => RandomState::new().hash_one(std::process::id()),
        };
        Lab::with_seed(seed)
    }

    /// A laboratory whose links decide by this seed, which is printed.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn with_seed(seed: u64) -> io::Result<Lab> {
        eprintln!("netlab seed {seed} (again: {SEED_VARIABLE}={seed})");
        let processes = Arc::new(Processes::start()?);
        let fabric = Arc::new(Fabric::start(seed)?);
        let [v4, v6] = [INTERNET.0, INTERNET.1].map(|p| p.parse::<Prefix>().ok());
        let internet = fabric.with(move |state| state.world.add_network(v4, v6));
        Ok(Lab { processes, fabric, internet, seed })
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The network that plays the Internet: 7.7.0.0/16 and 2a0f:7700::/48.
    pub fn internet(&self) -> NetworkId {
        self.internet
    }

    /// Adds a network with these prefixes: of IPv4, of IPv6, or one of each.
    ///
    /// # Errors
    ///
    /// If a prefix does not parse, or there are two of one family.
    pub fn network(&self, prefixes: &[&str]) -> io::Result<NetworkId> {
        let (v4, v6) = router::prefixes(prefixes)?;
        Ok(self.fabric.with(move |state| state.world.add_network(v4, v6)))
    }

    /// Begins a router between a network outside, through a link, and a new network with these prefixes inside;
    /// [`RouterBuilder::start`] makes it.
    ///
    /// # Errors
    ///
    /// As [`Lab::network`].
    pub fn router(
        &self,
        outside: NetworkId,
        link: impl Into<Duplex>,
        inside: &[&str],
    ) -> io::Result<RouterBuilder> {
        Ok(RouterBuilder {
            fabric: Arc::clone(&self.fabric),
            wan: (outside, link.into()),
            lan: router::prefixes(inside)?,
            nat: None,
            firewall: Firewall::stateful(),
        })
    }

    /// Packets on a network that no host or router there takes, so far.
    pub fn unroutable(&self, network: NetworkId) -> u64 {
        self.fabric.with(move |state| state.world.unroutable(network))
    }

    /// Begins a host; [`HostBuilder::start`] makes it.
    pub fn host(&self, name: &str) -> HostBuilder {
        HostBuilder {
            fabric: Arc::clone(&self.fabric),
            processes: Arc::clone(&self.processes),
            name: name.to_owned(),
            interfaces: Vec::new(),
            families: Families::Dual,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.processes.end();
    }
}
