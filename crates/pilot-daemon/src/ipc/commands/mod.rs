//! What requests do, except those about streams and ports.

mod broadcast;
mod envelope;
mod managed;
mod network;
mod pins;
mod record;
mod status;
mod trust;
mod webhook;

use super::hub::Hub;
use super::json;
use bytes::Bytes;
use pilot::RegistryError;
use pilot_ipc::Command;
use pilot_ipc::frame::{MAX_FRAME, OutFrame};
use pilot_ipc::request::Request;
use serde_json::Value;
use std::sync::Arc;

/// The reply to a request, or the text of its error.
pub(super) async fn answer(hub: &Arc<Hub>, request: Request) -> Result<OutFrame, String> {
    let (command, value) = match request {
        Request::Info => (Command::Info, status::info(hub).await),
        Request::Health => (Command::Health, status::health(hub).await),
        Request::Handshake(request) => (Command::Handshake, trust::handshake(hub, request).await?),
        Request::ResolveHostname(name) => {
            (Command::ResolveHostname, record::resolve_hostname(hub, &name).await?)
        }
        Request::SetHostname(name) => (Command::SetHostname, record::set_hostname(hub, &name).await?),
        Request::SetVisibility { public } => {
            (Command::SetVisibility, record::set_visibility(hub, public).await?)
        }
        Request::SetHidden { hidden } => (Command::SetHidden, record::set_hidden(hub, hidden).await?),
        Request::Pins { clear: None } => (Command::Pins, pins::list(hub)),
        Request::Pins { clear: Some(node) } => (Command::Pins, pins::clear(hub, node).await?),
        Request::Deregister => (Command::Deregister, record::deregister(hub).await?),
        Request::SetTags(tags) => (Command::SetTags, record::set_tags(hub, &tags).await?),
        Request::SetWebhook(url) => (Command::SetWebhook, webhook::set(hub, &url)?),
        Request::Network(request) => (Command::Network, network::network(hub, request).await?),
        Request::Managed(request) => (Command::Managed, managed::managed(hub, request).await?),
        Request::RotateKey => (Command::RotateKey, record::rotate_key(hub).await?),
        Request::Broadcast { network, port, token, data } => {
            broadcast::broadcast(hub, network, port, &token, data).await?;
            return Ok(OutFrame::new(Command::Broadcast as u8 + 1, &[], Bytes::new()));
        }
        Request::PreferDirect { node } => (Command::PreferDirect, status::prefer_direct(hub, node).await),
        Request::SubmitBadge(body) => (Command::SubmitBadge, record::submit_badge(hub, &body).await?),
        Request::EnrollRecovery(body) => {
            (Command::EnrollRecovery, record::enroll_recovery(hub, &body).await?)
        }
        Request::SignEnvelope(body) => (Command::SignEnvelope, envelope::sign(hub, &body)?),
        Request::VerifyEnvelope(body) => (Command::VerifyEnvelope, envelope::verify(hub, &body).await?),
        // Handled where their order is kept.
        Request::Bind { .. }
        | Request::Unbind { .. }
        | Request::Dial { .. }
        | Request::Cancel
        | Request::Send { .. }
        | Request::Close { .. }
        | Request::Finish { .. }
        | Request::SendTo { .. } => return Err("internal error: request reached the wrong handler".into()),
    };
    let body = json::encode(&value);
    if body.len() >= MAX_FRAME {
        return Err(format!("reply of {} bytes does not fit a frame of {MAX_FRAME}", body.len()));
    }
    Ok(OutFrame::new(command as u8 + 1, &[], body))
}

/// Errors of the registry under a command's name.
fn labelled(label: &'static str) -> impl FnOnce(RegistryError) -> String {
    move |error| format!("{label}: {error}")
}

/// A request to the registry about this node, with the operator's token if there is one.
fn with_admin_token(hub: &Hub, mut request: Value) -> Value {
    if let (Some(token), Value::Object(map)) = (&hub.config.admin_token, &mut request) {
        map.insert("admin_token".into(), Value::from(token.expose()));
    }
    request
}
