//! A network laboratory: hosts in Linux network namespaces, and between them networks whose links lose, delay,
//! limit and reorder packets as asked. For tests and for people at a terminal; needs root, and `ip` of iproute2.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! use pilot_netlab::{Lab, Link};
//! use std::{process::Command, time::Duration};
//!
//! let lab = Lab::with_seed(7)?;
//! let internet = lab.internet();
//! let far = Link::new().mbit(100).delay(Duration::from_millis(20)).loss(0.05);
//! let a = lab.host("a").on(internet, far).start()?;
//! let b = lab.host("b").on(internet, Link::new()).start()?;
//! let mut ping = Command::new("ping");
//! ping.args(["-c", "3", &b.v4().to_string()]);
//! println!("{:?}", a.output(ping)?);
//! # Ok(())
//! # }
//! ```
//!
//! Every packet between hosts passes through one thread, which reads and writes a TUN interface per host and
//! keeps links in user space. Nothing is left behind: namespaces and interfaces exist only as descriptors
//! of the process that made the laboratory, and the processes on the hosts live in a process namespace that the
//! kernel ends with it, even when it is killed.

pub mod control;
mod fabric;
mod firewall;
mod host;
mod lab;
mod link;
mod nat;
mod packet;
mod prefix;
mod router;
mod services;
mod site;
mod spaces;
mod sys;
mod world;

pub use firewall::Firewall;
pub use host::{Families, Host, HostBuilder, Process};
pub use lab::Lab;
pub use link::{Duplex, Link, LinkCounts};
pub use nat::{Dependence, Nat, Ports};
pub use prefix::Prefix;
pub use router::{Router, RouterBuilder, RouterCounts};
pub use services::{HttpProxy, MappingRouter, Protocols};
pub use site::{PROXY_CREDENTIALS, Place, Site};
pub use world::{NetworkId, PortId};
