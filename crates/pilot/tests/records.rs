//! Node records end to end: through our registry, and past a registry that lies.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::{config, event, node, rendezvous, serve_echo, within};
use pilot::{Node, NodeConfig};
use pilot_proto::crypto::base64;
use pilot_proto::registry::record::NodeRecord;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Change = Arc<Mutex<Box<dyn FnMut(&mut Value) + Send>>>;

async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Value> {
    let mut body = vec![0; from.read_u32().await.ok()? as usize];
    from.read_exact(&mut body).await.ok()?;
    serde_json::from_slice(&body).ok()
}

async fn write(to: &mut (impl tokio::io::AsyncWrite + Unpin), value: &Value) -> Option<()> {
    let body = value.to_string();
    to.write_u32(body.len() as u32).await.ok()?;
    to.write_all(body.as_bytes()).await.ok()
}

/// A registry that passes requests on to a real one and changes its answers.
async fn liar(real: std::net::SocketAddr, change: Change) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let change = change.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(real).await.ok()?;
                let ((mut from, mut to), (mut answers, mut requests)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut requests).await });
                loop {
                    let mut answer = read(&mut answers).await?;
                    (change.lock().unwrap())(&mut answer);
                    write(&mut to, &answer).await?;
                }
                #[allow(unreachable_code)]
                Some(())
            });
        }
    });
    at
}

fn lies(change: impl FnMut(&mut Value) + Send + 'static) -> Change {
    Arc::new(Mutex::new(Box::new(change)))
}

async fn echo_node(config: NodeConfig) -> Node {
    let node = node(NodeConfig { public: true, ..config }).await;
    serve_echo(node.listen(7).await.unwrap());
    node
}

fn lookup(answer: &Value) -> NodeRecord {
    NodeRecord::open_text(answer["record"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_node_signs_its_place_anew_with_each_registration_and_each_key() {
    let server = rendezvous().await;
    let a = node(NodeConfig { public: true, ..config(&server) }).await;
    let first = lookup(&a.lookup(a.node_id()).await.unwrap());
    assert_eq!((first.node, first.key, first.generation), (a.node_id(), *a.identity().public_key(), 0));
    assert_eq!(first.place, None);
    a.rotate_key().await.unwrap();
    let second = lookup(&a.lookup(a.node_id()).await.unwrap());
    assert_eq!((second.key, second.generation), (*a.identity().public_key(), 1));
    assert!(second.sequence > first.sequence);
}

#[tokio::test]
async fn a_nodes_own_word_about_its_place_counts_more_than_the_registrys() {
    let server = rendezvous().await;
    let a = echo_node(config(&server)).await;
    let at = liar(
        server.registry_addr(),
        lies(|answer| {
            if answer["type"] == "resolve_ok" {
                assert!(answer["record"].is_string(), "{answer}");
                answer["real_addr"] = json!("127.0.0.1:1");
            }
        }),
    )
    .await;
    let b = node(NodeConfig { registry: at, ..config(&server) }).await;
    within(b.dial(a.address(), 7)).await.unwrap();
    // The first bytes may come through the relay; its place is raced meanwhile.
    let peers = within(async {
        loop {
            let peers = b.status().await.peers;
            if !peers[0].relay {
                return peers;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_ne!(peers[0].endpoint, "127.0.0.1:1", "{peers:?}");
}

#[tokio::test]
async fn another_key_beside_the_nodes_record_is_refused_and_announced() {
    let server = rendezvous().await;
    let a = echo_node(config(&server)).await;
    let other = base64([7; 32]);
    let own = a.node_id();
    let at = liar(
        server.registry_addr(),
        lies(move |answer| {
            if answer["type"] == "lookup_ok" && answer["node_id"] == own {
                answer["public_key"] = json!(other);
            }
        }),
    )
    .await;
    let b = node(NodeConfig { registry: at, ..config(&server) }).await;
    let mut events = b.events();
    let error = within(b.lookup(own)).await.unwrap_err().to_string();
    assert!(error.contains("another key than the node's signed record beside it"), "{error}");
    let told = event(&mut events, "security.registry_contradiction").await;
    assert_eq!(told.data["peer_node_id"], own);
    assert!(b.status().await.warnings.iter().any(|w| w.contains("is refused: another key")));
}

#[tokio::test]
async fn an_older_record_than_the_last_one_is_refused() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let same = || NodeConfig { identity_path: Some(dir.path().join("identity.json")), ..config(&server) };
    let a = echo_node(same()).await;
    let own = a.node_id();
    let rollback = Arc::new(Mutex::new(None));
    let told = rollback.clone();
    let at = liar(
        server.registry_addr(),
        lies(move |answer| {
            if answer["type"] == "lookup_ok"
                && answer["node_id"] == own
                && let Some(old) = &*told.lock().unwrap()
            {
                answer["record"] = Value::clone(old);
            }
        }),
    )
    .await;
    let b = node(NodeConfig { registry: at, ..config(&server) }).await;
    let old = b.lookup(own).await.unwrap();
    a.shutdown().await;
    drop(a);
    let _again = echo_node(same()).await;
    assert!(lookup(&b.lookup(own).await.unwrap()).sequence > lookup(&old).sequence);
    *rollback.lock().unwrap() = Some(old["record"].clone());
    let error = within(b.lookup(own)).await.unwrap_err().to_string();
    assert!(error.contains("an older signed record than it had before"), "{error}");
}

#[tokio::test]
async fn a_registry_without_records_is_believed_as_before() {
    let server = rendezvous().await;
    let strip = |answer: &mut Value| {
        if let Some(answer) = answer.as_object_mut() {
            answer.remove("record");
            answer.remove("features");
        }
    };
    let at = liar(server.registry_addr(), lies(strip)).await;
    let a = echo_node(NodeConfig { registry: at.clone(), ..config(&server) }).await;
    let b = node(NodeConfig { registry: at, ..config(&server) }).await;
    within(b.dial(a.address(), 7)).await.unwrap();
    assert_eq!(b.status().await.warnings, [] as [String; 0]);
    assert!(b.lookup(a.node_id()).await.unwrap().get("record").is_none());
}
