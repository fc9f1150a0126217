//! The built-in services on a node's streams (spec 06), and the client side of data exchange.
//!
//! - [`Services`]: echo (port 7) and data exchange (port 1001) of a daemon.
//! - [`client`]: sends messages and files over any [`ByteStream`].
//! - [`inbox`], [`received`]: what has arrived, on disk.

pub mod client;
mod dataexchange;
#[cfg(test)]
mod durability;
mod echo;
mod files;
pub mod inbox;
pub mod received;
mod stream;

pub use files::{Stamps, StoreError};
pub use stream::{ByteStream, Ended};

use crate::config::DaemonConfig;
use pilot::Node;
use pilot_proto::service::port;
use tokio::task::JoinHandle;

/// The services of a running daemon; dropping it stops them.
#[derive(Debug)]
pub struct Services {
    tasks: Vec<JoinHandle<()>>,
}

impl Services {
    /// Binds the ports of the services that `config` does not turn off.
    pub async fn start(node: &Node, config: &DaemonConfig) -> Services {
        let mut tasks = Vec::new();
        if !config.no_echo {
            match node.listen(port::ECHO).await {
                Some(listener) => tasks.push(tokio::spawn(echo::serve(node.clone(), listener))),
                None => tracing::warn!(port = port::ECHO, "echo: the port is bound already"),
            }
        }
        if !config.no_dataexchange {
            match node.listen(port::DATA_EXCHANGE).await {
                Some(listener) => {
                    let shared =
                        dataexchange::Shared::new(&config.node.disk, &config.home, config.dataexchange_b64);
                    tasks.push(tokio::spawn(dataexchange::serve(node.clone(), listener, shared)));
                }
                None => {
                    tracing::warn!(port = port::DATA_EXCHANGE, "data exchange: the port is bound already")
                }
            }
        }
        Services { tasks }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
