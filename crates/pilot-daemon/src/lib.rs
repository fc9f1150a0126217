//! A Pilot node with its IPC server, built-in services and lifecycle.
//!
//! [`Daemon`] is all of it without signals and logging, which belong to the process it runs in.

#![forbid(unsafe_code)]

mod account;
pub mod config;
mod envelope;
mod ipc;
pub mod services;

pub use config::DaemonConfig;
pub use ipc::SocketError;

use ipc::{Hub, PublishedSocket};
use pilot::Node;
use services::Services;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time for each part of a clean stop; after it the process ends anyway.
const STOP: Duration = Duration::from_millis(500);
/// How often the memberships shown in Info are asked for anew.
const NETWORKS_EVERY: Duration = Duration::from_secs(600);

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The node did not start.
    #[error("daemon start: {0}")]
    Node(#[from] pilot::StartError),
    /// The IPC socket cannot be had.
    #[error("daemon start: {0}")]
    Socket(#[from] SocketError),
    /// A setting is wrong.
    #[error("daemon start: {0}")]
    Config(String),
}

/// A running daemon. Dropped without [`Daemon::shutdown`] it stops too, but in the background.
#[derive(Debug)]
pub struct Daemon {
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    services: Services,
}

impl Daemon {
    /// Starts the node, the services and the IPC server. Returns when the node is registered and the socket answers.
    pub async fn start(mut config: DaemonConfig) -> Result<Daemon, DaemonError> {
        // Before anything else: a second daemon must not register the identity of the first.
        ipc::ensure_free(&config.socket).await?;
        config.node.email =
            account::email(&config.home, config.node.email.take()).map_err(DaemonError::Config)?;
        let node = Node::start(config.node.clone()).await?;
        if let Some(email) = &config.node.email {
            account::remember(&config.node.disk, &config.home, email);
        }
        let services = Services::start(&node, &config).await;
        let socket = match PublishedSocket::create(&config.socket).await {
            Ok(socket) => socket,
            Err(error) => {
                node.shutdown().await;
                return Err(error.into());
            }
        };
        tracing::info!(address = %node.address(), socket = %config.socket.display(), "daemon running");
        let hub = Hub::new(node, config);
        let stop = watch::Sender::new(false);
        let server = tokio::spawn(ipc::serve(hub.clone(), socket, stop.subscribe()));
        tokio::spawn(keep_networks(hub.clone(), stop.subscribe()));
        Ok(Daemon { hub, stop, server, services })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.hub.node
    }

    /// Removes the socket, closes clients and streams in order, stops. Takes about a second at most.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(STOP, &mut self.server).await.is_err() {
            self.server.abort();
        }
        drop(self.services);
        if tokio::time::timeout(STOP, self.hub.node.shutdown()).await.is_err() {
            tracing::warn!("streams were not all closed in order");
        }
    }
}

async fn keep_networks(hub: Arc<Hub>, mut stop: watch::Receiver<bool>) {
    let work = async {
        loop {
            hub.refresh_networks().await;
            tokio::time::sleep(NETWORKS_EVERY).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}
