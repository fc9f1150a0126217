//! Peers this node insists on upgraded sessions with (docs/extensions.md, IPC).

use crate::ipc::hub::Hub;
use crate::ipc::json::{fit, object};
use pilot_ipc::frame::MAX_JSON;
use pilot_proto::crypto::base64;
use pilot_proto::{Addr, NodeId};
use serde_json::Value;

/// Room for everything of the reply but the list.
const FRAME: usize = 128;

pub(super) fn list(hub: &Hub) -> Value {
    let pins = hub.node.session_pins();
    let total = pins.len();
    let entry = |pin: pilot::SessionPin| {
        object([
            ("node_id", pin.node_id.into()),
            ("address", Addr::backbone(pin.node_id).to_string().into()),
            ("public_key", base64(pin.public_key).into()),
            ("since_unix", pin.since_unix.into()),
        ])
    };
    let (pins, cut) = fit(pins.into_iter().map(entry).collect(), MAX_JSON.saturating_sub(FRAME));
    let mut reply = object([("pins", pins.into()), ("total", total.into())]);
    if cut {
        reply["pins_truncated"] = true.into();
    }
    reply
}

pub(super) async fn clear(hub: &Hub, node: NodeId) -> Result<Value, String> {
    let cleared = hub.node.clear_session_pin(node).await.map_err(|error| format!("pins: {error}"))?;
    Ok(object([("node_id", node.into()), ("cleared", cleared.into())]))
}
