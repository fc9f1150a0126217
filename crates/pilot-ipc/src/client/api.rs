//! Typed requests of a client.

use super::{Client, ClientError, REQUEST_TIMEOUT};
use crate::Command;
use crate::frame::{MAX_SEND, OutFrame};
use crate::request::{Handshake, Managed, Network, Request};
use bytes::Bytes;
use pilot_proto::{Addr, NodeId};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::broadcast;

/// Most a daemon waits for trust, milliseconds.
const WAIT_MAX_MS: u128 = 30_000;

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Datagram {
    pub src: Addr,
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: Bytes,
}

/// Every datagram the daemon receives, whatever its port.
#[derive(Debug)]
pub struct Datagrams {
    receiver: broadcast::Receiver<Datagram>,
}

impl Datagrams {
    /// The next datagram; `None` when the client is gone. Of those not fetched in time the oldest are lost. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Datagram> {
        loop {
            match self.receiver.recv().await {
                Ok(datagram) => return Some(datagram),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Client {
    /// Sends a typed request and returns the JSON object it is answered with.
    pub async fn request(&self, request: &Request) -> Result<Value, ClientError> {
        let (command, body) = request.encode();
        self.json(command, body).await
    }

    /// State of the daemon (spec 07 section 10.1).
    pub async fn info(&self) -> Result<Value, ClientError> {
        self.request(&Request::Info).await
    }
    /// Short state of the daemon (spec 07 section 10.2).
    pub async fn health(&self) -> Result<Value, ClientError> {
        self.request(&Request::Health).await
    }

    /// Asks a node for trust.
    pub async fn handshake(&self, node: NodeId, justification: &str) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Send { node, justification: justification.into() })).await
    }
    /// Grants trust to a node that asked.
    pub async fn handshake_approve(&self, node: NodeId) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Approve { node })).await
    }
    /// Refuses trust to a node that asked.
    pub async fn handshake_reject(&self, node: NodeId, reason: &str) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Reject { node, reason: reason.into() })).await
    }
    /// Nodes that asked for trust.
    pub async fn handshake_pending(&self) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Pending)).await
    }
    /// Trusted nodes.
    pub async fn handshake_trusted(&self) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Trusted)).await
    }
    /// Ends trust.
    pub async fn handshake_revoke(&self, node: NodeId) -> Result<Value, ClientError> {
        self.request(&Request::Handshake(Handshake::Revoke { node })).await
    }
    /// Waits until a node is trusted; the daemon waits at most 30 s.
    pub async fn handshake_wait(&self, node: NodeId, limit: Duration) -> Result<Value, ClientError> {
        let timeout_ms = limit.as_millis().min(WAIT_MAX_MS) as u32;
        self.request(&Request::Handshake(Handshake::Wait { node, timeout_ms })).await
    }

    /// The node of a name.
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, ClientError> {
        self.request(&Request::ResolveHostname(hostname.into())).await
    }
    /// Sets the node's name; empty clears it.
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, ClientError> {
        self.request(&Request::SetHostname(hostname.into())).await
    }
    /// Makes the node public or private.
    pub async fn set_visibility(&self, public: bool) -> Result<Value, ClientError> {
        self.request(&Request::SetVisibility { public }).await
    }
    /// Extension: hides the node's name from all but trusted peers, or shows it.
    pub async fn set_hidden(&self, hidden: bool) -> Result<Value, ClientError> {
        self.request(&Request::SetHidden { hidden }).await
    }
    /// Extension: the peers the node insists on upgraded sessions with.
    pub async fn pins(&self) -> Result<Value, ClientError> {
        self.request(&Request::Pins { clear: None }).await
    }
    /// Extension: no longer insists on upgraded sessions with a node.
    pub async fn clear_pin(&self, node: NodeId) -> Result<Value, ClientError> {
        self.request(&Request::Pins { clear: Some(node) }).await
    }
    /// Sets the node's tags.
    pub async fn set_tags(&self, tags: &[String]) -> Result<Value, ClientError> {
        self.request(&Request::SetTags(json_bytes(&tags)?)).await
    }
    /// Sets where events are posted; empty clears it.
    pub async fn set_webhook(&self, url: &str) -> Result<Value, ClientError> {
        self.request(&Request::SetWebhook(url.into())).await
    }
    /// Removes the node from the registry.
    pub async fn deregister(&self) -> Result<Value, ClientError> {
        self.request(&Request::Deregister).await
    }
    /// Gives the node a new identity key.
    pub async fn rotate_key(&self) -> Result<Value, ClientError> {
        self.request(&Request::RotateKey).await
    }
    /// Tries the direct path to a peer anew.
    pub async fn prefer_direct(&self, node: NodeId) -> Result<Value, ClientError> {
        self.request(&Request::PreferDirect { node }).await
    }
    /// Network commands (spec 07 section 13).
    pub async fn network(&self, request: Network) -> Result<Value, ClientError> {
        self.request(&Request::Network(request)).await
    }
    /// Managed networks, policy, member tags (spec 07 section 14).
    pub async fn managed(&self, request: Managed) -> Result<Value, ClientError> {
        self.request(&Request::Managed(request)).await
    }
    /// Forwards a badge.
    pub async fn submit_badge(&self, request: &Value) -> Result<Value, ClientError> {
        self.request(&Request::SubmitBadge(json_bytes(request)?)).await
    }
    /// Forwards a recovery enrolment.
    pub async fn enroll_recovery(&self, request: &Value) -> Result<Value, ClientError> {
        self.request(&Request::EnrollRecovery(json_bytes(request)?)).await
    }
    /// Signs a request envelope (spec 07 section 16).
    pub async fn sign_envelope(&self, request: &Value) -> Result<Value, ClientError> {
        self.request(&Request::SignEnvelope(json_bytes(request)?)).await
    }
    /// Verifies a request envelope (spec 07 section 16).
    pub async fn verify_envelope(&self, request: &Value) -> Result<Value, ClientError> {
        self.request(&Request::VerifyEnvelope(json_bytes(request)?)).await
    }

    /// Closes any connection of the daemon by its number, whoever owns it. Not waiting.
    pub fn disconnect(&self, conn: u32) -> Result<(), ClientError> {
        let frame = OutFrame::new(Command::Close as u8, &conn.to_be_bytes(), Bytes::new());
        if self.guard.shared.outbox.push(frame) { Ok(()) } else { Err(ClientError::Disconnected) }
    }

    /// Sends a datagram. With `confirm` the daemon's refusal is reported (where it knows how to); success says nothing about
    /// delivery.
    pub async fn send_datagram(
        &self,
        to: Addr,
        port: u16,
        data: impl Into<Bytes>,
        confirm: bool,
    ) -> Result<(), ClientError> {
        let data = data.into();
        if data.len() > MAX_SEND - 8 {
            return Err(ClientError::TooLarge(data.len()));
        }
        if confirm && !self.guard.shared.lacks(Command::SendToConfirm) {
            let (command, body) = Request::SendTo { to, port, data: data.clone(), confirm }.encode();
            let result = self.guard.exchange(command, body, REQUEST_TIMEOUT).await;
            if !self.guard.shared.lacks(Command::SendToConfirm) {
                return result.map(drop);
            }
        }
        let mut fields = [0; 8];
        fields[..6].copy_from_slice(&to.to_bytes());
        fields[6..].copy_from_slice(&port.to_be_bytes());
        let frame = OutFrame::new(Command::SendTo as u8, &fields, data);
        self.guard.shared.outbox.send(frame).await.map_err(|_| ClientError::Disconnected)
    }

    /// Sends a datagram to every member of a network.
    pub async fn broadcast(
        &self,
        network: u16,
        port: u16,
        token: impl Into<Bytes>,
        data: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        let (command, body) =
            Request::Broadcast { network, port, token: token.into().into(), data: data.into() }.encode();
        self.guard.exchange(command, body, REQUEST_TIMEOUT).await.map(drop)
    }

    /// Datagrams received from now on.
    pub fn datagrams(&self) -> Datagrams {
        Datagrams { receiver: self.guard.shared.datagrams.subscribe() }
    }
}

fn json_bytes(value: &impl serde::Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| ClientError::Protocol(e.to_string()))
}
