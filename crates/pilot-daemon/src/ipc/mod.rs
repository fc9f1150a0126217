//! The IPC server: the daemon's Unix socket (spec 07).
//!
//! Each client has a reader, a writer with a bounded outbox, and one task per request in progress; each stream has one
//! task per direction. Streams of one client do not wait for each other until one of them has [`conn::QUEUE_BYTES`] of
//! unsent data; clients never wait for each other.

mod client;
mod commands;
mod conn;
mod hub;
mod json;
mod socket;

pub(crate) use hub::Hub;
pub use socket::SocketError;
pub(crate) use socket::{PublishedSocket, ensure_free};

use std::sync::Arc;
use tokio::sync::watch;

/// Clients at a time; further ones are closed at once (spec 07 section 18).
pub(crate) const MAX_CLIENTS: usize = 1024;

/// Accepts clients until `stop` turns true, then closes them after their queued output.
pub(crate) async fn serve(hub: Arc<Hub>, socket: PublishedSocket, mut stop: watch::Receiver<bool>) {
    let mut clients = tokio::task::JoinSet::new();
    let datagrams = tokio::spawn(Hub::push_datagrams(hub.clone(), hub.node.datagrams()));
    loop {
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors or memory: give both a chance to come back.
                tracing::warn!(%error, "cannot accept an IPC client");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == socket.uid => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "IPC client of another user refused");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "IPC client without credentials refused");
                continue;
            }
        }
        if clients.len() >= MAX_CLIENTS {
            tracing::warn!("IPC client refused: {MAX_CLIENTS} are connected");
            continue;
        }
        clients.spawn(client::serve(hub.clone(), stream, stop.clone()));
    }
    drop(socket);
    datagrams.abort();
    while clients.join_next().await.is_some() {}
}
