//! The client against a registry that misbehaves on purpose.

use super::{Client, RegistryError, frame};
use crate::config::RegistryTls;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What the scripted registry does with one request.
enum Do {
    Answer(Value),
    /// Closes without an answer.
    Close,
}

/// A registry that follows a script, over as many connections as it takes; returns what it was asked.
async fn scripted(script: Vec<Do>) -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tx, rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut script = script.into_iter();
        'connections: loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Ok(Some(request)) = frame::read(&mut stream).await {
                tx.send(Value::Object(request)).unwrap();
                match script.next() {
                    Some(Do::Answer(answer)) => {
                        let mut out = Vec::new();
                        frame::put(&answer, &mut out).unwrap();
                        stream.write_all(&out).await.unwrap();
                    }
                    Some(Do::Close) | None => continue 'connections,
                }
            }
        }
    });
    (address, rx)
}

fn count(rx: &mut mpsc::UnboundedReceiver<Value>) -> usize {
    std::iter::from_fn(|| rx.try_recv().ok()).count()
}

#[tokio::test]
async fn an_error_answer_is_passed_on_and_the_connection_kept() {
    let (address, _asked) = scripted(vec![
        Do::Answer(json!({"type": "error", "error": "node 9: node not found"})),
        Do::Answer(json!({"type": "lookup_ok", "error": "odd"})),
        Do::Answer(json!({"node_id": 1})),
        Do::Answer(json!({"type": "lookup_ok", "node_id": 9})),
    ])
    .await;
    let client = Client::new(&address, None).unwrap();
    let ask = || client.request(json!({"type": "lookup", "node_id": 9}));
    let error = ask().await.unwrap_err();
    assert_eq!(error.to_string(), "registry: node 9: node not found");
    assert_eq!(ask().await.unwrap_err(), RegistryError::Refused("odd".into()));
    assert_eq!(ask().await.unwrap_err().to_string(), "registry: malformed response (missing \"type\" field)");
    assert_eq!(ask().await.unwrap()["node_id"], 9);
}

#[tokio::test]
async fn a_harmless_request_is_sent_again_when_its_connection_breaks_and_another_is_not() {
    let ok = || Do::Answer(json!({"type": "x_ok"}));
    let (address, mut asked) = scripted(vec![ok(), Do::Close, ok(), Do::Close, ok()]).await;
    let client = Client::new(&address, None).unwrap();
    client.request(json!({"type": "beacon_list"})).await.unwrap();
    assert_eq!(count(&mut asked), 1);
    client.request(json!({"type": "lookup", "node_id": 1})).await.unwrap();
    assert_eq!(count(&mut asked), 2, "asked again on a new connection");
    let error = client.request(json!({"type": "poll_handshakes", "node_id": 1})).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable(_)), "{error}");
    assert_eq!(count(&mut asked), 1, "what empties the inbox is asked once");
}

#[tokio::test]
async fn a_batch_is_answered_in_order_with_inner_errors() {
    let (address, _asked) = scripted(vec![
        Do::Answer(json!({"type": "a_ok"})),
        Do::Answer(json!({"type": "error", "error": "invalid hostname: x"})),
        Do::Answer(json!({"type": "c_ok"})),
    ])
    .await;
    let client = Client::new(&address, None).unwrap();
    let requests = [json!({"type": "a"}), json!({"type": "b"}), json!({"type": "c"})];
    let answers = client.batch(&requests).await.unwrap();
    assert_eq!(answers[0].as_ref().unwrap()["type"], "a_ok");
    assert_eq!(answers[1].as_ref().unwrap_err(), &RegistryError::Refused("invalid hostname: x".into()));
    assert_eq!(answers[2].as_ref().unwrap()["type"], "c_ok");
}

#[tokio::test]
async fn an_overlong_answer_is_refused_before_it_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&listener.local_addr().unwrap().to_string(), None).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 64];
        let _ = stream.read(&mut some).await.unwrap();
        stream.write_all(&[0xFF; 8]).await.unwrap();
        let _: usize = stream.read(&mut some).await.unwrap_or_default();
    });
    let error = client.request(json!({"type": "list_networks"})).await.unwrap_err();
    assert!(error.to_string().contains("is too long (max 16777216)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_registry_times_out_after_8_s() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&listener.local_addr().unwrap().to_string(), None).unwrap();
    let began = tokio::time::Instant::now();
    let error = client.request(json!({"type": "heartbeat", "node_id": 1})).await.unwrap_err();
    assert_eq!(error.to_string(), "registry: call timed out, connection likely half-open");
    assert_eq!(began.elapsed().as_secs(), 8);
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = Client::new(&address, None).unwrap();
    let error = client.request(json!({"type": "beacon_list"})).await.unwrap_err().to_string();
    assert_eq!(error, format!("registry {address} cannot be reached: connection refused"));
}

/// A TLS registry that answers every request; returns its address and the fingerprint of its certificate.
async fn tls_registry() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let fingerprint =
        pilot_proto::crypto::sha256(&der).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], key.into())
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = async move |stream: TcpStream| {
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        while let Ok(Some(request)) = frame::read(&mut stream).await {
            let mut out = Vec::new();
            frame::put(&json!({"type": "ok", "asked": request["type"]}), &mut out).unwrap();
            stream.write_all(&out).await.unwrap();
        }
    };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream).await;
        }
    });
    (address, fingerprint)
}

#[tokio::test]
async fn a_pinned_certificate_is_accepted_and_another_one_named() {
    let (address, fingerprint) = tls_registry().await;
    let client = Client::new(&address, Some(&RegistryTls::Pinned(fingerprint.clone()))).unwrap();
    assert_eq!(client.request(json!({"type": "beacon_list"})).await.unwrap()["asked"], "beacon_list");
    drop(client);

    let wrong = "ab".repeat(32);
    let client = Client::new(&address, Some(&RegistryTls::Pinned(wrong.clone()))).unwrap();
    let error = client.request(json!({"type": "beacon_list"})).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("registry: certificate fingerprint mismatch: got {fingerprint}, want {wrong}")
    );
}
