//! The registry as a node sees it.

mod client;
mod connect;
mod frame;
pub(crate) mod push;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use client::Client;

use serde_json::Value;

/// Ports of one beacon that are asked.
const MAX_BEACON_PORTS: usize = 4;

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
    /// All UDP ports at which its beacon answers Discovers, its own first.
    pub(crate) beacon_ports: Vec<u16>,
}

impl Features {
    /// Of a `register_ok`, received at `now_unix`.
    pub(crate) fn of(answer: &Value, now_unix: u64) -> Features {
        let named: Vec<&str> =
            answer["features"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let has = |name| named.contains(&name);
        let now = i64::try_from(now_unix).unwrap_or(i64::MAX);
        let port = |value: &Value| value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|&p| p != 0);
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
            beacon_port: port(&answer["beacon_port"]),
            beacon_ports: answer["beacon_ports"]
                .as_array()
                .into_iter()
                .flatten()
                .map_while(port)
                .take(MAX_BEACON_PORTS)
                .collect(),
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
