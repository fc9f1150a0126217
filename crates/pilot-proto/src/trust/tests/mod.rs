//! Tests of the trust handshake, by section of spec 06.

mod messages;
mod receiving;
mod state;

use super::*;

pub(super) const NOW: u64 = 1_795_217_600;
pub(super) const ME: NodeId = 1;
pub(super) const PEER: NodeId = 2;

pub(super) fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/services.json")).unwrap()
}

pub(super) fn identity(node: NodeId) -> Arc<Identity> {
    Arc::new(Identity::from_seed([node as u8; 32]).unwrap())
}

pub(super) fn key(node: NodeId) -> [u8; 32] {
    *identity(node).public_key()
}

/// The trust of `node`, whose key is made from its number.
pub(super) fn trust(node: NodeId) -> Trust {
    Trust::new(Config::new(node, identity(node)))
}

/// A message signed by `from`.
pub(super) fn message(from: NodeId, to: NodeId, kind: Kind, text: &str, at: u64) -> Vec<u8> {
    let (justification, reason) =
        if matches!(kind, Kind::Request | Kind::Accept) { (text, "") } else { ("", text) };
    message::encode(&identity(from), from, to, kind, justification, reason, at)
}

/// The registry knows the key of `node`.
pub(super) fn known(node: NodeId) -> Facts {
    Facts { registry_key: Some(key(node)), shared_network: 0 }
}

/// Brings a message from `from` over its own tunnel to `to`.
pub(super) fn deliver(
    to: &mut Trust,
    from: NodeId,
    bytes: &[u8],
    facts: Facts,
    at: u64,
) -> Result<Received, Refusal> {
    let message = to.examine(at, from, bytes)?;
    to.receive_direct(at, message, facts)
}

pub(super) fn send(
    to: &mut Trust,
    from: NodeId,
    kind: Kind,
    text: &str,
    at: u64,
) -> Result<Received, Refusal> {
    let bytes = message(from, to.config.node, kind, text, at);
    deliver(to, from, &bytes, known(from), at)
}

pub(super) fn actions(trust: &mut Trust) -> Vec<Action> {
    std::iter::from_fn(|| trust.poll_action()).collect()
}

pub(super) fn deliveries(actions: &[Action]) -> Vec<Delivery> {
    let delivery = |action: &Action| match action {
        Action::Deliver(delivery) => Some(delivery.clone()),
        _ => None,
    };
    actions.iter().filter_map(delivery).collect()
}

pub(super) fn events(actions: &[Action]) -> Vec<(&'static str, Value)> {
    let event = |action: &Action| match action {
        Action::Publish(name, data) => Some((*name, data.clone())),
        _ => None,
    };
    actions.iter().filter_map(event).collect()
}

/// Kind and text of a direct message.
pub(super) fn content(delivery: &Delivery) -> (String, String) {
    let json: Value = serde_json::from_slice(delivery.direct.as_deref().unwrap()).unwrap();
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    (text("type"), text("justification") + &text("reason"))
}

/// Makes `peer` trusted by way of our request and its accept.
pub(super) fn make_trusted(trust: &mut Trust, peer: NodeId, at: u64) {
    trust.request(at, peer, "");
    assert_eq!(send(trust, peer, Kind::Accept, "", at), Ok(Received::Trusted("accepted")));
    actions(trust);
}
