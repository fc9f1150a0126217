//! The session upgrade between real nodes: pinned, kept over restarts, refused without, cleared by the operator.

#![allow(clippy::unwrap_used)]

mod common;

use common::{config, echo_round, event, node, pattern, rendezvous, serve_echo, within};
use pilot::{Node, NodeConfig};
use pilot_proto::stream::DialError;

fn session(status: &pilot::NodeStatus) -> Vec<(&'static str, bool)> {
    status.peers.iter().map(|p| (p.session, p.pinned)).collect()
}

async fn serve(config: NodeConfig) -> Node {
    let node = node(config).await;
    serve_echo(node.listen(7).await.unwrap());
    node
}

async fn round(from: &Node, to: &Node) {
    echo_round(within(from.dial(to.address(), 7)).await.unwrap(), pattern(100_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_had_the_upgrade_insists_on_it_until_the_operator_says_otherwise() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, session_upgrade: bool| NodeConfig {
        identity_path: Some(dir.path().join(name).join("identity.json")),
        public: true,
        session_upgrade,
        ..config(&server)
    };
    let a = serve(of("a", true)).await;
    let b = serve(of("b", true)).await;
    round(&a, &b).await;
    assert_eq!(session(&a.status().await), [("upgraded", true)]);
    assert_eq!(session(&b.status().await), [("upgraded", true)]);
    let pins = a.session_pins();
    assert_eq!(
        (pins.len(), pins[0].node_id, pins[0].public_key),
        (1, b.node_id(), b.status().await.public_key)
    );

    // Node a restarts and remembers; node b comes back without the upgrade.
    a.shutdown().await;
    drop(a);
    b.shutdown().await;
    drop(b);
    let a = serve(of("a", true)).await;
    let b = serve(of("b", false)).await;
    assert_eq!(a.session_pins(), pins);
    let mut events = a.events();
    let refused = within(a.dial(b.address(), 7)).await.unwrap_err();
    assert_eq!(refused, DialError::Downgrade(b.node_id()));
    let reported = event(&mut events, "security.downgrade_refused").await;
    assert_eq!(reported.data["peer_node_id"], b.node_id());
    let status = a.status().await;
    let wanted = format!("pilotctl pins clear {}", b.node_id());
    assert!(status.warnings.iter().any(|warning| warning.contains(&wanted)), "{:?}", status.warnings);
    assert_eq!(session(&status), [("none", true)]);

    assert_eq!(a.clear_session_pin(b.node_id()).await, Ok(true));
    assert_eq!(a.clear_session_pin(b.node_id()).await, Ok(false));
    assert!(!a.status().await.warnings.iter().any(|warning| warning.contains(&wanted)));
    round(&a, &b).await;
    assert_eq!(session(&a.status().await), [("compat", false)]);

    // The upgrade comes back, and so does the pin.
    b.shutdown().await;
    drop(b);
    let b = serve(of("b", true)).await;
    round(&b, &a).await;
    assert_eq!(session(&b.status().await), [("upgraded", true)]);
    a.shutdown().await;
    let stored = std::fs::read_to_string(dir.path().join("a/pins.json")).unwrap();
    assert!(stored.contains(&format!("\"node_id\":{}", b.node_id())), "{stored}");
}
