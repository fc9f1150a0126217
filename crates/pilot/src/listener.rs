//! A listening port.

use crate::command::{Command, Commands};
use crate::stream::Stream;
use tokio::sync::mpsc;

/// Connections accepted and not yet taken by the application, per listener; more are reset (spec 03 section 6.2).
pub(crate) const BACKLOG: usize = 64;

/// What the driver hands to a listener.
pub(crate) type Incoming = Stream;

/// A listening port; dropping it unbinds.
#[derive(Debug)]
pub struct Listener {
    port: u16,
    incoming: mpsc::Receiver<Incoming>,
    commands: Commands,
}

impl Listener {
    pub(crate) fn new(port: u16, incoming: mpsc::Receiver<Incoming>, commands: Commands) -> Listener {
        Listener { port, incoming, commands }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next stream a peer opened; `None` when the node has stopped. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Unlisten(self.port));
    }
}
