//! Push notices of our registry, on a connection of their own (docs/extensions.md).

use super::client::Io;
use super::{Client, RegistryError, frame};
use serde_json::Value;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// Time for the answer to `subscribe`.
const ANSWER: Duration = Duration::from_secs(8);
/// Ping interval when the registry names none, seconds; and the range believed.
const PING: (u64, u64, u64) = (30, 1, 600);

/// An open subscription.
pub(crate) struct Push {
    connection: Box<dyn Io>,
    silence: Duration,
}

/// A notice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Something waits in the handshake inbox.
    Handshake,
    /// This peer withdrew its trust.
    TrustRevoked(u32),
    /// Another process registered this identity.
    Superseded,
    /// The registry lives.
    Ping,
}

impl Notice {
    /// What a frame says; `None`: a kind of a later version.
    pub(crate) fn of(frame: &Value) -> Option<Notice> {
        let peer = frame["peer_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        match (frame["kind"].as_str()?, peer) {
            ("handshake", _) => Some(Notice::Handshake),
            ("trust_revoked", Some(peer)) => Some(Notice::TrustRevoked(peer)),
            ("superseded", _) => Some(Notice::Superseded),
            ("ping", _) => Some(Notice::Ping),
            _ => None,
        }
    }
}

impl Push {
    /// Connects and sends `subscribe`, which `request` makes.
    pub(crate) async fn open(client: &Client, request: Value) -> Result<Push, RegistryError> {
        let mut connection = client.connect().await?;
        let mut bytes = Vec::new();
        let request = client.freshen(request);
        frame::put(&request, &mut bytes).map_err(|e| RegistryError::Unreachable(format!("registry: {e}")))?;
        let exchange = async {
            connection.write_all(&bytes).await?;
            connection.flush().await?;
            frame::read(&mut connection).await
        };
        let answer = match timeout(ANSWER, exchange).await {
            Ok(answer) => answer.map_err(|e| client.lost(&e.to_string()))?,
            Err(_) => return Err(RegistryError::TimedOut),
        };
        let answer = Value::Object(answer.ok_or_else(|| client.lost("closed by the registry"))?);
        if let Some(error) = answer["error"].as_str() {
            return Err(RegistryError::Refused(error.to_owned()));
        }
        let ping = answer["ping_secs"].as_u64().unwrap_or(PING.0).clamp(PING.1, PING.2);
        Ok(Push { connection, silence: Duration::from_millis(2500 * ping) })
    }

    /// The next notice; an error ends the subscription.
    pub(crate) async fn next(&mut self) -> Result<Notice, String> {
        loop {
            let frame = match timeout(self.silence, frame::read(&mut self.connection)).await {
                Ok(Ok(Some(frame))) => Value::Object(frame),
                Ok(Ok(None)) => return Err("closed by the registry".into()),
                Ok(Err(e)) => return Err(e.to_string()),
                Err(_) => return Err("silent for too long".into()),
            };
            if let Some(notice) = Notice::of(&frame) {
                return Ok(notice);
            }
        }
    }
}
