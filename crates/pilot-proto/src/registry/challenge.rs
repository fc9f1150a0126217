//! The texts node signatures cover (spec 05 section 4.1), used by both ends.

use crate::NodeId;

/// `register:<listen_addr>:<public_key>`, both as sent.
pub fn register(listen_addr: &str, public_key: &str) -> String {
    format!("register:{listen_addr}:{public_key}")
}

/// A request about the node itself: `<verb>:<node_id>`. Verbs: `heartbeat`, `deregister`, `set_visibility`,
/// `set_hostname`, `set_tags`, `poll_handshakes`, `poll_invites`, `set_key_expiry`.
pub fn own(verb: &str, node: NodeId) -> String {
    format!("{verb}:{node}")
}

/// A request about a pair: `<verb>:<first>:<second>`. Verbs and order: `resolve` requester:target,
/// `report_trust` / `revoke_trust` node:peer, `handshake` from:to, `respond` node:peer, `punch` a:b,
/// `join_network` / `leave_network` / `respond_invite` node:network.
pub fn pair(verb: &str, first: u32, second: u32) -> String {
    format!("{verb}:{first}:{second}")
}

/// `rotate:<node_id>:<new public key, base64>`, signed by the current key.
pub fn rotate(node: NodeId, new_public_key: &str) -> String {
    format!("rotate:{node}:{new_public_key}")
}

/// `invite:<inviter>:<network>:<target>`.
pub fn invite(inviter: NodeId, network: u16, target: NodeId) -> String {
    format!("invite:{inviter}:{network}:{target}")
}

/// Extension: `subscribe:<node_id>:<unix seconds>`, opens a push connection (docs/extensions.md).
pub fn subscribe(node: NodeId, unix_secs: u64) -> String {
    format!("subscribe:{node}:{unix_secs}")
}

/// Extension: `ack_handshakes:<node_id>:<up_to>`, removes delivered inbox entries (docs/extensions.md).
pub fn ack_handshakes(node: NodeId, up_to: u64) -> String {
    format!("ack_handshakes:{node}:{up_to}")
}
