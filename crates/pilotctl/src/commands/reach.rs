//! Reaching a peer: naming it, the trust gate, dialling, and what is said when it does not work
//! (spec 08 sections 1.4 and 1.7).

use super::text::safe;
use super::way;
use crate::args::Args;
use crate::error::{CliError, Code};
use crate::names::Peer;
use crate::output::Ctx;
use pilot_ipc::{Client, ClientError, IpcStream};
use pilot_proto::NodeId;
use serde_json::Value;
use std::time::Duration;

/// Turns a daemon's refusal of the request `label` into an error.
pub fn daemon_error(label: &str) -> impl Fn(ClientError) -> CliError + '_ {
    move |error| {
        let message = format!("{label}: {error}");
        match &error {
            ClientError::NotRunning(_) => CliError::new(Code::NotRunning, "daemon is not running"),
            ClientError::Disconnected => CliError::new(Code::NotRunning, message)
                .hint("the daemon stopped, or it belongs to another user: pilotctl daemon status"),
            ClientError::Timeout(_) => CliError::timeout(message),
            ClientError::Daemon(text) if text.starts_with("unknown command") => {
                CliError::new(Code::NotImplemented, message).hint("this daemon is too old for that command")
            }
            _ => CliError::connection(message),
        }
    }
}

/// A peer and the daemon that reaches it.
#[derive(Debug)]
pub struct Reach<'a> {
    ctx: &'a Ctx,
    pub client: Client,
    pub peer: Peer,
    /// The peer is trusted; `None`: not asked, or the daemon does not know the question.
    pub trusted: Option<bool>,
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialFault {
    /// Nothing listens on the port.
    Refused,
    /// The peer did not answer in time; the text says at which step.
    NoAnswer(String),
    /// The registry does not tell this node where the peer is.
    Hidden(String),
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for DialFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DialFault::Refused => f.write_str("connection refused: nothing listens on that port"),
            DialFault::NoAnswer(text) | DialFault::Hidden(text) | DialFault::Other(text) => {
                f.write_str(&safe(text))
            }
        }
    }
}

impl std::error::Error for DialFault {}

impl DialFault {
    /// Sorts a daemon's dial error (spec 07 section 8.2).
    pub fn of(error: &ClientError) -> DialFault {
        let text = match error {
            ClientError::Daemon(text) => text,
            ClientError::Timeout(limit) => {
                let limit = Duration::from_millis((limit.as_secs_f64() * 1e3).round() as u64);
                return DialFault::NoAnswer(format!("no answer within {}", go_duration(limit)));
            }
            other => return DialFault::Other(other.to_string()),
        };
        match text.strip_prefix("dial: ").unwrap_or(text) {
            text if text.ends_with("connection refused") => DialFault::Refused,
            text if text.starts_with("dial timeout") => DialFault::NoAnswer(text.to_owned()),
            text if text.starts_with("resolve node") => DialFault::Hidden(text.to_owned()),
            text => DialFault::Other(text.to_owned()),
        }
    }
}

/// A duration as the reference prints it (`3s`, `1m30s`).
pub fn go_duration(duration: Duration) -> String {
    pilot_daemon::config::duration::format(duration)
}

impl<'a> Reach<'a> {
    /// Connects to the daemon, resolves the peer, and asks whether it is trusted unless `--no-auto-handshake` is
    /// given.
    ///
    /// Whether an untrusted peer may be reached is not guessed here: the daemon asks the registry when it dials,
    /// and [`Reach::explain`] words a refusal.
    pub async fn new(ctx: &'a Ctx, args: &Args, typed: &str) -> Result<Reach<'a>, CliError> {
        let client = ctx.client().await?;
        let peer = Peer::resolve(ctx, &client, typed).await?;
        let trusted = match args.on("no-auto-handshake") {
            true => None,
            false => is_trusted(&client, peer.addr.node).await,
        };
        Ok(Reach { ctx, client, peer, trusted })
    }

    /// Opens a stream.
    pub async fn dial(&self, port: u16, limit: Duration) -> Result<IpcStream, DialFault> {
        let error = match self.client.dial_within(self.peer.addr, port, limit).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match DialFault::of(&error) {
            // A registry does not say whether the node is private or unknown, its open record does.
            DialFault::Hidden(text) if self.trusted == Some(false) => {
                Err(DialFault::Hidden(self.not_open().await.unwrap_or(text)))
            }
            // With a tunnel from an earlier attempt the daemon does not ask the registry, and a private peer is silent.
            fault @ DialFault::NoAnswer(_) if self.trusted == Some(false) => {
                Err(self.not_open().await.map_or(fault, DialFault::Hidden))
            }
            fault => Err(fault),
        }
    }

    /// The error for a failed dial. `message` is what could not be done.
    pub fn explain(&self, fault: &DialFault, message: &str) -> CliError {
        let addr = self.peer.addr;
        if let DialFault::Hidden(text) = fault
            && self.trusted == Some(false)
        {
            return untrusted(self, text);
        }
        let error = CliError::connection(match fault {
            DialFault::Refused => format!("{message}: nothing listens on that port"),
            other => format!("{message}: {other}"),
        });
        match fault {
            DialFault::Refused => error.hint(format!(
                "the peer answers, but no program there serves the port; check with: pilotctl ping {addr}"
            )),
            DialFault::NoAnswer(_) if self.trusted == Some(false) => error.hint(format!(
                "the peer may be offline, or private: then it ignores nodes it does not trust. run: pilotctl \
                 handshake {addr}"
            )),
            _ => error.hint(format!("check that {addr} is reachable: pilotctl ping {addr}")),
        }
    }

    /// Asks the registry whether an untrusted peer may be written to at all. For datagrams: they are not dialled, so
    /// no daemon tells.
    pub async fn gate(&self) -> Result<(), CliError> {
        match self.trusted {
            Some(false) => match self.not_open().await {
                Some(why) => Err(untrusted(self, &why)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Why the registry's record says that the peer is not open to everybody; `None` if it is.
    async fn not_open(&self) -> Option<String> {
        let node = self.peer.addr.node;
        let request = serde_json::json!({"type": "lookup", "node_id": node});
        match super::registry::request(self.ctx, request).await {
            Ok(record) if record["public"] == true || self.shares_network(&record).await => None,
            Ok(_) => Some(format!("resolve node {node}: private")),
            Err(error) => {
                let why = error.message.strip_prefix("lookup: ").unwrap_or(&error.message);
                Some(format!("resolve node {node}: {why}"))
            }
        }
    }

    /// Members of one network other than the backbone reach each other without trust.
    async fn shares_network(&self, record: &Value) -> bool {
        let Ok(info) = self.client.info().await else { return false };
        let mine = info["networks"].as_array();
        let theirs = record["networks"].as_array();
        let mut common = mine.into_iter().flatten().filter_map(|n| n["network_id"].as_u64());
        common.any(|id| id != 0 && theirs.is_some_and(|list| list.iter().any(|n| n.as_u64() == Some(id))))
    }

    /// What the daemon says about the way to the peer; `None` without a tunnel, or if it is this node itself.
    pub async fn way(&self) -> Option<Value> {
        way::entry(&self.client.info().await.ok()?, self.peer.addr.node).cloned()
    }

    /// `direct`, `relay` or, for this node itself, `local`: how the peer is reached right now.
    pub async fn path(&self) -> Option<&'static str> {
        path_of(&self.client.info().await.ok()?, self.peer.addr.node)
    }
}

/// The path to a node according to the daemon's info.
pub fn path_of(info: &Value, node: NodeId) -> Option<&'static str> {
    if info["node_id"].as_u64() == Some(u64::from(node)) {
        return Some("local");
    }
    let peer = way::entry(info, node)?;
    Some(if peer["relay"].as_bool()? { "relay" } else { "direct" })
}

/// Whether the daemon trusts a node now; `None` if it cannot tell.
pub async fn is_trusted(client: &Client, node: NodeId) -> Option<bool> {
    let answer = client.handshake_wait(node, Duration::ZERO).await;
    if let Some(trusted) = answer.ok().and_then(|a| a["trusted"].as_bool()) {
        return Some(trusted);
    }
    // Daemons before the wait command.
    let list = client.handshake_trusted().await.ok()?;
    Some(list["trusted"].as_array()?.iter().any(|p| p["node_id"].as_u64() == Some(u64::from(node))))
}

/// The trust gate's refusals. The registry's reason decides; a daemon that withholds it says `request failed`.
fn untrusted(reach: &Reach<'_>, text: &str) -> CliError {
    let addr = reach.peer.addr;
    let hint = format!("run: pilotctl handshake {addr}");
    let reason = text.split_once(": ").map_or(text, |(_, reason)| reason);
    let message = match reason {
        r if r.contains("private") => format!("refusing tunnel to private node {addr} without trust"),
        r if r.contains("not found") || r.contains("request failed") => {
            format!("cannot look up peer {addr} ({}); refusing tunnel to untrusted node", safe(r))
        }
        r => {
            format!(
                "cannot verify peer visibility (registry unreachable: {}); refusing tunnel to untrusted node",
                safe(r)
            )
        }
    };
    CliError::new(Code::TrustRequired, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dial_errors_are_sorted_by_cause() {
        let fault = |text: &str| DialFault::of(&ClientError::Daemon(text.to_owned()));
        assert_eq!(fault("connection refused"), DialFault::Refused);
        assert_eq!(fault("dial: connection refused"), DialFault::Refused);
        let unfinished = "dial timeout: key exchange with peer did not complete";
        assert_eq!(fault(unfinished), DialFault::NoAnswer(unfinished.to_owned()));
        let hidden = "resolve node 3: registry: request failed";
        assert_eq!(fault(hidden), DialFault::Hidden(hidden.to_owned()));
        assert_eq!(
            fault("ephemeral ports exhausted"),
            DialFault::Other("ephemeral ports exhausted".to_owned())
        );
        let late = ClientError::Timeout(Duration::from_secs(2));
        assert_eq!(DialFault::of(&late), DialFault::NoAnswer("no answer within 2s".to_owned()));
    }

    #[test]
    fn the_path_is_read_from_the_peer_list() {
        let info = json!({"node_id": 1, "peer_list": [
            {"node_id": 2, "relay": true}, {"node_id": 3, "relay": false}, {"node_id": 4}]});
        assert_eq!(path_of(&info, 1), Some("local"));
        assert_eq!(path_of(&info, 2), Some("relay"));
        assert_eq!(path_of(&info, 3), Some("direct"));
        assert_eq!(path_of(&info, 4), None);
        assert_eq!(path_of(&info, 5), None);
    }
}
