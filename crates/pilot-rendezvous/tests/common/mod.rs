//! A registry client for tests: strict request and answer on one connection.
#![allow(dead_code, clippy::unwrap_used)]

use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for anything the server should do at once.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Client<S = TcpStream>(pub S);

impl Client {
    pub async fn connect(addr: SocketAddr) -> Client {
        Client(TcpStream::connect(addr).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send(&mut self, request: &Value) {
        let body = serde_json::to_vec(request).unwrap();
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend(body);
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next frame; `None` when the server closed.
    pub async fn next(&mut self) -> Option<Value> {
        let read = async {
            let mut header = [0; 4];
            self.0.read_exact(&mut header).await.ok()?;
            let mut body = vec![0; u32::from_be_bytes(header) as usize];
            self.0.read_exact(&mut body).await.ok()?;
            Some(serde_json::from_slice(&body).unwrap())
        };
        timeout(SOON, read).await.expect("the server answers in time")
    }

    pub async fn ask(&mut self, request: Value) -> Value {
        self.send(&request).await;
        self.next().await.expect("an answer")
    }

    pub async fn ok(&mut self, request: Value) -> Value {
        let answer = self.ask(request.clone()).await;
        assert!(answer.get("error").is_none(), "{request} -> {answer}");
        answer
    }
}

/// A node of these tests.
pub struct Peer {
    pub identity: Identity,
    pub id: u32,
}

impl Peer {
    pub fn new(seed: u8) -> Peer {
        Peer { identity: Identity::from_seed([seed; 32]).unwrap(), id: 0 }
    }

    pub fn register_request(&self, listen: &str) -> Value {
        let key = self.identity.public_key_base64();
        let signature = self.identity.sign_text(&challenge::register(listen, &key));
        json!({"type": "register", "listen_addr": listen, "public_key": key, "signature": signature, "version": "1.18.0"})
    }

    pub async fn register<S: AsyncRead + AsyncWrite + Unpin>(&mut self, c: &mut Client<S>) -> Value {
        let answer = c.ok(self.register_request("127.0.0.1:4000")).await;
        self.id = answer["node_id"].as_u64().unwrap() as u32;
        answer
    }

    /// A request of this node about itself.
    pub fn own(&self, verb: &str, fields: Value) -> Value {
        self.signed(json!({"type": verb, "node_id": self.id}), fields, &challenge::own(verb, self.id))
    }

    pub fn pair(&self, verb: &str, peer: u32) -> Value {
        let text = challenge::pair(verb, self.id, peer);
        self.signed(json!({"type": verb, "node_id": self.id, "peer_id": peer}), json!({}), &text)
    }

    pub fn ask_trust(&self, to: u32, why: &str) -> Value {
        let text = challenge::pair("handshake", self.id, to);
        let request = json!({"type": "request_handshake", "from_node_id": self.id, "to_node_id": to});
        self.signed(request, json!({"justification": why}), &text)
    }

    pub fn respond(&self, peer: u32, accept: bool) -> Value {
        let text = challenge::pair("respond", self.id, peer);
        let request = json!({"type": "respond_handshake", "node_id": self.id, "peer_id": peer});
        self.signed(request, json!({"accept": accept}), &text)
    }

    pub fn resolve(&self, target: u32) -> Value {
        let text = challenge::pair("resolve", self.id, target);
        self.signed(json!({"type": "resolve", "node_id": target, "requester_id": self.id}), json!({}), &text)
    }

    pub fn signed(&self, mut request: Value, fields: Value, text: &str) -> Value {
        for (name, value) in fields.as_object().unwrap() {
            request[name] = value.clone();
        }
        request["signature"] = json!(self.identity.sign_text(text));
        request
    }
}
