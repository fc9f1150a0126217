//! The registry protocol, blocking; and nodes that sign.

use pilot_proto::crypto::Identity;
use pilot_proto::registry::challenge;
use serde_json::{Value, json};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Client(TcpStream);

impl Client {
    pub fn connect(addr: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client(stream))
    }

    /// The answer; an error if the connection ends before it is there in full.
    pub fn ask(&mut self, request: &Value) -> io::Result<Value> {
        let body = request.to_string();
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend(body.as_bytes());
        self.0.write_all(&frame)?;
        let mut header = [0; 4];
        self.0.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.0.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }
}

/// A node of the load. Its key may change.
#[derive(Debug, Clone)]
pub struct Node {
    pub identity: Arc<Identity>,
    pub id: u32,
}

impl Node {
    fn sign(&self, mut request: Value, text: &str) -> Value {
        request["signature"] = json!(self.identity.sign_text(text));
        request
    }

    pub fn register(identity: &Identity) -> Value {
        let (listen, key) = ("127.0.0.1:4000", identity.public_key_base64());
        let signature = identity.sign_text(&challenge::register(listen, &key));
        json!({"type": "register", "listen_addr": listen, "public_key": key, "signature": signature})
    }

    pub fn own(&self, verb: &str, mut fields: Value) -> Value {
        fields["type"] = json!(verb);
        fields["node_id"] = json!(self.id);
        self.sign(fields, &challenge::own(verb, self.id))
    }

    pub fn pair(&self, verb: &str, peer: u32) -> Value {
        let request = json!({"type": verb, "node_id": self.id, "peer_id": peer});
        self.sign(request, &challenge::pair(verb, self.id, peer))
    }

    pub fn ask_trust(&self, to: u32, why: &str) -> Value {
        let request = json!({
            "type": "request_handshake", "from_node_id": self.id, "to_node_id": to, "justification": why,
        });
        self.sign(request, &challenge::pair("handshake", self.id, to))
    }

    pub fn respond(&self, peer: u32, accept: bool) -> Value {
        let request =
            json!({"type": "respond_handshake", "node_id": self.id, "peer_id": peer, "accept": accept});
        self.sign(request, &challenge::pair("respond", self.id, peer))
    }

    pub fn acknowledge(&self, up_to: u64) -> Value {
        let request = json!({"type": "ack_handshakes", "node_id": self.id, "up_to": up_to});
        self.sign(request, &challenge::ack_handshakes(self.id, up_to))
    }

    pub fn join(&self, network: u16) -> Value {
        let request = json!({"type": "join_network", "node_id": self.id, "network_id": network});
        self.sign(request, &challenge::pair("join_network", self.id, network.into()))
    }

    pub fn leave(&self, network: u16) -> Value {
        let request = json!({"type": "leave_network", "node_id": self.id, "network_id": network});
        self.sign(request, &challenge::pair("leave_network", self.id, network.into()))
    }

    pub fn rotate(&self, key: &str) -> Value {
        let request = json!({"type": "rotate_key", "node_id": self.id, "new_public_key": key});
        self.sign(request, &challenge::rotate(self.id, key))
    }
}
