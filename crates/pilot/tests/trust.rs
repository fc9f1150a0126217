//! Trust between nodes: relayed and direct handshakes, rejection, revocation, persistence.

mod common;

use common::{LIMIT, config, event, node, rendezvous, serve_echo, within};
use pilot::{ApproveOutcome, HandshakeSent, NodeConfig, TrustWait};
use pilot_proto::stream::DialError;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_nodes_shake_hands_through_the_registry_at_once() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { trust_auto_approve: true, ..config(&server) }).await;
    serve_echo(b.listen(7).await.unwrap());
    assert!(matches!(within(a.dial(b.address(), 7)).await, Err(DialError::Resolve { .. })));
    let began = Instant::now();
    assert_eq!(a.handshake(b.node_id(), "let us talk").await, Ok(HandshakeSent::Sent));
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    let trusted = began.elapsed();
    let mut stream = within(a.dial(b.address(), 7)).await.unwrap();
    stream.write("hello".into()).await.unwrap();
    assert_eq!(within(stream.read()).await.unwrap(), "hello");
    println!("trusted after {trusted:?}, first echo after {:?}", began.elapsed());
    assert!(trusted < Duration::from_secs(1), "{trusted:?}");
    assert!(a.is_trusted(b.node_id()) && b.is_trusted(a.node_id()));
    let began = Instant::now();
    assert_eq!(a.handshake(b.node_id(), "again").await, Ok(HandshakeSent::AlreadyTrusted));
    assert!(began.elapsed() < Duration::from_millis(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_person_and_approval_or_rejection_reaches_the_other_side() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(config(&server)).await;
    let c = node(config(&server)).await;
    let mut events = b.events();
    a.handshake(b.node_id(), "may I?").await.unwrap();
    let event_ = event(&mut events, "handshake.pending").await;
    assert_eq!(event_.data["peer_node_id"], a.node_id());
    let pending = b.pending().await;
    assert_eq!((pending[0].node_id, &pending[0].justification[..]), (a.node_id(), "may I?"));
    assert_eq!(b.approve(a.node_id()).await, Ok(ApproveOutcome::Approved));
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    assert_eq!(b.approve(a.node_id()).await, Ok(ApproveOutcome::AlreadyTrusted));

    c.handshake(b.node_id(), "me too").await.unwrap();
    event(&mut events, "handshake.pending").await;
    assert_eq!(b.reject(c.node_id(), "no").await, Ok(true));
    assert!(matches!(c.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Rejected { .. }));
    assert!(!c.is_trusted(b.node_id()));
    assert_eq!(b.reject(c.node_id(), "no").await, Ok(false));
    assert_eq!(c.wait_for_trust(a.node_id(), Duration::from_millis(50)).await, TrustWait::TimedOut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_node_is_asked_directly() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, trust_auto_approve: true, ..config(&server) }).await;
    let began = Instant::now();
    a.handshake(b.node_id(), "hello").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    println!("trusted directly after {:?}", began.elapsed());
    let record = &a.trusted().await[0];
    assert_eq!(record.public_key, b.identity().public_key_base64(), "trust is bound to the key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_withdrawn_ends_on_both_sides_and_can_be_had_again() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { trust_auto_approve: true, ..config(&server) }).await;
    a.handshake(b.node_id(), "one").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    let mut events = b.events();
    let began = Instant::now();
    a.revoke(b.node_id()).await.unwrap();
    assert!(!a.is_trusted(b.node_id()));
    event(&mut events, "trust.revoked_by_peer").await;
    println!("revoked at the peer after {:?}", began.elapsed());
    assert!(!b.is_trusted(a.node_id()));
    assert_eq!(a.revoke(b.node_id()).await, Err(format!("node {} was not trusted", b.node_id())));
    let began = Instant::now();
    assert_eq!(a.handshake(b.node_id(), "two").await, Ok(HandshakeSent::Sent));
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    println!("trusted again after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(b.is_trusted(a.node_id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_survives_a_restart_and_belongs_to_its_registry() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    let with_identity = || NodeConfig { identity_path: Some(path.clone()), ..config(&server) };
    let a = node(with_identity()).await;
    let b = node(NodeConfig { trust_auto_approve: true, ..config(&server) }).await;
    a.handshake(b.node_id(), "one").await.unwrap();
    assert_eq!(a.wait_for_trust(b.node_id(), LIMIT).await, TrustWait::Trusted);
    a.shutdown().await;
    drop(a);
    let text = std::fs::read_to_string(dir.path().join("trust.json")).unwrap();
    assert!(text.contains("\"registry\": \""), "{text}");

    let elsewhere = rendezvous().await;
    let moved = node(NodeConfig { identity_path: Some(path.clone()), ..config(&elsewhere) }).await;
    assert!(moved.trusted().await.is_empty(), "the numbers of another registry mean nothing here");
    moved.shutdown().await;
    drop(moved);

    let a = node(with_identity()).await;
    assert!(a.is_trusted(b.node_id()), "and are still known at home");
    serve_echo(b.listen(7).await.unwrap());
    within(a.dial(b.address(), 7)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_cannot_hold_the_handshake_port_for_itself() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let c = node(config(&server)).await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(within(a.dial(b.address(), 444)).await.unwrap());
    }
    let began = Instant::now();
    let mut ninth = within(a.dial(b.address(), 444)).await.unwrap();
    assert!(within(ninth.read()).await.is_none(), "closed at once");
    let mut other = within(c.dial(b.address(), 444)).await.unwrap();
    other.write("no handshake".into()).await.unwrap();
    assert!(within(other.read()).await.is_none(), "read, and refused");
    // An idle connection is closed after 10 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_tiny_pieces_is_given_up() {
    let server = rendezvous().await;
    let a = node(config(&server)).await;
    let b = node(NodeConfig { public: true, ..config(&server) }).await;
    let mut stream = within(a.dial(b.address(), 444)).await.unwrap();
    let began = Instant::now();
    stream.write("{".into()).await.unwrap();
    // Spaces before the first key: valid so far, for ever.
    let (mut reader, mut writer) = stream.split();
    let mut pieces = tokio::time::interval(Duration::from_millis(5));
    within(async {
        loop {
            tokio::select! {
                end = reader.read() => break assert_eq!(end, None),
                _ = pieces.tick() => drop(writer.write(" ".into()).await),
            }
        }
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
