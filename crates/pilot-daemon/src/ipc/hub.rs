//! What all clients share.

use super::client::Client;
use super::conn::Conn;
use crate::DaemonConfig;
use bytes::Bytes;
use pilot::{Datagram, Node};
use pilot_ipc::frame::OutFrame;
use pilot_ipc::push;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node, the settings and the tables of connections and clients.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) node: Node,
    pub(crate) config: DaemonConfig,
    /// Where events are posted; empty: nowhere.
    pub(crate) webhook: watch::Sender<String>,
    /// Networks the node is a member of, without the backbone, as last heard from the registry.
    pub(crate) networks: Mutex<Vec<u16>>,
    /// Streams owned by clients. Bounded by the node's own limit of connections. Any client may use any of them (spec 07
    /// section 8.1).
    conns: Mutex<HashMap<u32, Arc<Conn>>>,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
}

impl Hub {
    pub(crate) fn new(node: Node, config: DaemonConfig) -> Arc<Hub> {
        Arc::new(Hub {
            node,
            webhook: watch::Sender::new(config.webhook.clone().unwrap_or_default()),
            config,
            networks: Mutex::default(),
            conns: Mutex::default(),
            clients: Mutex::default(),
        })
    }

    pub(crate) fn conn(&self, id: u32) -> Option<Arc<Conn>> {
        lock(&self.conns).get(&id).cloned()
    }

    pub(crate) fn insert(&self, conn: &Arc<Conn>) {
        lock(&self.conns).insert(conn.id, conn.clone());
    }

    pub(crate) fn remove(&self, id: u32) {
        lock(&self.conns).remove(&id);
    }

    pub(crate) fn add_client(&self, client: &Arc<Client>) {
        lock(&self.clients).insert(client.id, client.clone());
    }

    pub(crate) fn remove_client(&self, id: u64) {
        lock(&self.clients).remove(&id);
    }

    /// Asks the registry which networks the node is in.
    pub(crate) async fn refresh_networks(&self) {
        let own = self.node.node_id();
        let Ok(answer) = self.node.lookup(own).await else { return };
        let listed = answer.get("networks").and_then(|n| n.as_array()).cloned().unwrap_or_default();
        let networks = listed.iter().filter_map(|n| n.as_u64().and_then(|n| u16::try_from(n).ok()));
        *lock(&self.networks) = networks.filter(|n| *n != 0).collect();
    }

    /// Passes every received datagram to every client (spec 07 section 9.2). A client with a full outbox misses it; the others
    /// do not wait.
    pub(crate) async fn push_datagrams(hub: Arc<Hub>, mut datagrams: broadcast::Receiver<Datagram>) {
        loop {
            let datagram = match datagrams.recv().await {
                Ok(datagram) => datagram,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "datagrams dropped: clients were too slow");
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let mut fields = [0; 10];
            fields[..6].copy_from_slice(&datagram.src.to_bytes());
            fields[6..8].copy_from_slice(&datagram.src_port.to_be_bytes());
            fields[8..].copy_from_slice(&datagram.dst_port.to_be_bytes());
            let payload: Bytes = datagram.payload;
            for client in lock(&hub.clients).values() {
                let _ = client.outbox.try_send(OutFrame::new(push::RECV_FROM, &fields, payload.clone()));
            }
        }
    }
}
