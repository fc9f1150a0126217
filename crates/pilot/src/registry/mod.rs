//! The registry as a node sees it.

mod client;
mod connect;
mod frame;
pub(crate) mod push;
#[cfg(test)]
mod tests;
mod tls;
mod ways;

pub(crate) use client::{Client, Io, plain};
pub(crate) use connect::tcp;
pub(crate) use tls::config as tls_config;

use serde_json::Value;
use std::sync::Arc;

/// A registry's answer or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The registry answered with an error; its text.
    #[error("registry: {0}")]
    Refused(String),
    /// No connection, or it broke; the text names the registry.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("registry: call timed out, connection likely half-open")]
    TimedOut,
}

/// One request to the registry at `address` (`host:port`) on a connection of its own, without a node.
///
/// # Errors
/// [`RegistryError::Refused`] with the registry's words, or why there is no answer.
pub async fn registry_call(
    address: &str,
    tls: Option<&crate::RegistryTls>,
    request: Value,
) -> Result<Value, RegistryError> {
    Client::new(address, tls).map_err(RegistryError::Unreachable)?.request(request).await
}

/// TLS over a stream to this host. The error is the cause alone.
pub(crate) async fn connect_tls(
    config: Arc<rustls::ClientConfig>,
    host: &str,
    stream: Box<dyn Io>,
) -> Result<Box<dyn Io>, String> {
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|e| tls::cause(&e))?))
}

/// Where nodes without UDP come in, as `register_ok` says (docs/extensions.md, "compat").
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Door {
    pub(crate) port: u16,
    #[serde(default)]
    pub(crate) tls: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls_fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
}

impl Door {
    /// From `register_ok`; what makes no sense is as if it were not there.
    pub(crate) fn of(answer: &Value) -> Option<Door> {
        let door: Door = serde_json::from_value(answer.get("compat")?.clone()).ok()?;
        door.checked()
    }

    pub(crate) fn checked(self) -> Option<Door> {
        let digest =
            |text: &String| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let good = self.port != 0
            && self.tls_fingerprint.as_ref().is_none_or(digest)
            && self.url.as_ref().is_none_or(|url| url.len() <= 256);
        good.then_some(self)
    }
}

/// What `register_ok` says the registry can do beyond the reference (docs/extensions.md).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) push: bool,
    pub(crate) handshake_ack: bool,
    pub(crate) instance: bool,
    pub(crate) hidden: bool,
    pub(crate) signed_discover: bool,
    pub(crate) node_record: bool,
    pub(crate) fresh: bool,
    /// Name of the store; survives restarts.
    pub(crate) registry_id: Option<String>,
    /// The registry's clock minus ours, seconds.
    pub(crate) clock_offset: i64,
    pub(crate) beacon_port: Option<u16>,
}

impl Features {
    /// Of a `register_ok`, received at `now_unix`.
    pub(crate) fn of(answer: &Value, now_unix: u64) -> Features {
        let named: Vec<&str> =
            answer["features"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let has = |name| named.contains(&name);
        let now = i64::try_from(now_unix).unwrap_or(i64::MAX);
        Features {
            push: has("push"),
            handshake_ack: has("handshake_ack"),
            instance: has("instance"),
            hidden: has("hidden"),
            signed_discover: has("signed_discover"),
            node_record: has("node_record"),
            fresh: has("fresh"),
            registry_id: answer["registry_id"].as_str().filter(|s| s.len() <= 64).map(str::to_owned),
            clock_offset: answer["time"].as_i64().map_or(0, |time| time.saturating_sub(now)),
            beacon_port: answer["beacon_port"]
                .as_u64()
                .and_then(|p| u16::try_from(p).ok())
                .filter(|&p| p != 0),
        }
    }
}

/// Reads answers as they come over a connection, as far as they go.
#[cfg(feature = "fuzzing")]
pub(crate) fn answers(mut bytes: &[u8]) -> Vec<Value> {
    use std::task::{Context, Poll, Waker};
    let mut answers = Vec::new();
    loop {
        let read = std::pin::pin!(frame::read(&mut bytes)).poll(&mut Context::from_waker(Waker::noop()));
        // A slice is always ready.
        let Poll::Ready(Ok(Some(answer))) = read else { return answers };
        answers.extend(client::judge(answer));
    }
}
