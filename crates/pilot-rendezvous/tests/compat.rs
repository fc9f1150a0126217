//! The compat transport: WebSockets on the registry's port.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Client, Peer, SOON};
use pilot_proto::wire::beacon::Message as Datagram;
use pilot_proto::wire::compat::Challenge;
use pilot_proto::wire::http::Head;
use pilot_proto::wire::websocket::{Decoder, Kind, Message, Role, encode};
use pilot_rendezvous::{Config, Server, Tls, TlsListener};
use serde_json::json;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A node's end of a WebSocket.
struct Socket {
    stream: Box<dyn Stream>,
    decoder: Decoder,
}

const UPGRADE: &str = "GET /v1/compat HTTP/1.1\r\nHost: b\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: pilot.v1\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

impl Socket {
    async fn over(stream: impl Stream + 'static) -> Socket {
        let mut stream: Box<dyn Stream> = Box::new(stream);
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let (head, used) = loop {
            if let Some(parsed) = Head::parse(&bytes).unwrap() {
                break parsed;
            }
            assert_ne!(timeout(SOON, stream.read_buf(&mut bytes)).await.unwrap().unwrap(), 0);
        };
        assert_eq!(head.status(), Some((101, "Switching Protocols")));
        assert_eq!(head.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(head.get("sec-websocket-protocol"), Some("pilot.v1"));
        let mut decoder = Decoder::new(Role::Client, 1 << 20);
        decoder.feed(&bytes[used..]);
        Socket { stream, decoder }
    }

    async fn send(&mut self, kind: Kind, payload: &[u8]) {
        let mut out = Vec::new();
        encode(kind, payload, Some([1, 2, 3, 4]), &mut out);
        self.stream.write_all(&out).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn datagram(&mut self, message: &Datagram<'_>) {
        let mut out = Vec::new();
        message.emit(&mut out);
        self.send(Kind::Binary, &out).await;
    }

    /// The next message; `None`: closed.
    async fn next(&mut self) -> Option<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            match timeout(SOON, self.stream.read(&mut buffer)).await.expect("something in time") {
                Ok(n) if n > 0 => self.decoder.feed(&buffer[..n]),
                _ => return None,
            }
        }
    }

    async fn challenge(&mut self) -> Challenge {
        let Some(Message::Text(text)) = self.next().await else { panic!("no challenge") };
        Challenge::parse(&text).unwrap()
    }

    /// A node's WebSocket, open.
    async fn of(stream: impl Stream + 'static, peer: &Peer) -> Socket {
        let mut socket = Socket::over(stream).await;
        let answer = socket.challenge().await.answer(&peer.identity, peer.id);
        socket.send(Kind::Text, answer.as_bytes()).await;
        assert_eq!(socket.next().await, Some(Message::Text(br#"{"type":"auth_ok"}"#.to_vec())));
        socket
    }

    async fn closed(&mut self) -> (u16, String) {
        match self.next().await {
            Some(Message::Close(code, reason)) => (code, reason),
            other => panic!("not closed: {other:?}"),
        }
    }
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

/// Waits for a state of the server: its counters follow what it sends.
async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let wait = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not reached: {what}"));
}

async fn server_with(peers: &mut [Peer]) -> Server {
    let server = Server::start(Config::loopback()).await.unwrap();
    let mut c = Client::connect(server.registry_addr()).await;
    for peer in peers {
        peer.register(&mut c).await;
    }
    server
}

fn relay(from: u32, to: u32, frame: &[u8]) -> Datagram<'_> {
    Datagram::Relay { from, to, frame }
}

fn delivered(from: u32, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Datagram::RelayDeliver { from, frame }.emit(&mut out);
    out
}

#[tokio::test]
async fn datagrams_pass_between_a_websocket_and_udp_and_between_websockets() {
    let mut peers = [Peer::new(1), Peer::new(2), Peer::new(3)];
    let server = server_with(&mut peers).await;
    let mut a = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    let mut c = Socket::of(connect(server.registry_addr()).await, &peers[2]).await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buf = [0; 70_000];
    udp.send_to(&[1, 0, 0, 0, 2], server.beacon_addr()).await.unwrap();
    assert_eq!(timeout(SOON, udp.recv(&mut buf)).await.unwrap().unwrap(), 8);

    // The answer names the connection's other end, not an invented address.
    a.datagram(&Datagram::Discover { node: 1, key: None }).await;
    let Some(Message::Binary(reply)) = a.next().await else { panic!("no answer") };
    assert!(matches!(Datagram::parse(&reply), Ok(Datagram::DiscoverReply(at)) if at.ip().is_loopback()));

    a.datagram(&relay(1, 2, b"PILSdown")).await;
    let n = timeout(SOON, udp.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(buf[..n], delivered(1, b"PILSdown"));
    let mut up = Vec::new();
    relay(2, 1, b"PILSup").emit(&mut up);
    udp.send_to(&up, server.beacon_addr()).await.unwrap();
    assert_eq!(a.next().await, Some(Message::Binary(delivered(2, b"PILSup"))));
    let large = vec![7; 60_000];
    c.datagram(&relay(3, 1, &large)).await;
    assert_eq!(a.next().await, Some(Message::Binary(delivered(3, &large))));
    until("both are counted", || server.stats().compat_nodes == 2).await;

    // Neither a forged sender nor a punch goes on, and both leave the connection as it is.
    a.datagram(&relay(3, 2, b"PILSforged")).await;
    a.datagram(&Datagram::PunchRequest { requester: 1, target: 2 }).await;
    a.send(Kind::Text, b"hello").await;
    a.datagram(&relay(1, 2, b"PILSlast")).await;
    let n = timeout(SOON, udp.recv(&mut buf)).await.unwrap().unwrap();
    assert_eq!(buf[..n], delivered(1, b"PILSlast"));
    let mut punch = Vec::new();
    Datagram::PunchRequest { requester: 2, target: 1 }.emit(&mut punch);
    udp.send_to(&punch, server.beacon_addr()).await.unwrap();
    a.send(Kind::Ping, b"still there").await;
    assert_eq!(a.next().await, Some(Message::Pong(b"still there".to_vec())));
    until("the forged frame is counted", || server.stats().beacon_garbage == 1).await;
    assert_eq!(server.stats().punches, 0);
    assert_eq!(server.stats().beacon_nodes, 1, "no address of a WebSocket is stored");
    server.shutdown().await;
}

#[tokio::test]
async fn only_the_key_the_registry_knows_opens_the_beacon() {
    let mut peers = [Peer::new(1), Peer::new(2)];
    let server = server_with(&mut peers).await;
    let stranger = Peer { id: 77, ..Peer::new(9) };
    let impostor = Peer { id: 2, ..Peer::new(1) };
    for wrong in [&stranger, &impostor] {
        let mut socket = Socket::over(connect(server.registry_addr()).await).await;
        let answer = socket.challenge().await.answer(&wrong.identity, wrong.id);
        socket.send(Kind::Text, answer.as_bytes()).await;
        assert_eq!(socket.closed().await, (1008, "auth failed".into()));
    }
    // An answer to another challenge, a datagram before the proof, and no JSON.
    let mut first = Socket::over(connect(server.registry_addr()).await).await;
    let old = first.challenge().await.answer(&peers[0].identity, 1);
    for (kind, bytes) in [(Kind::Text, old.as_bytes()), (Kind::Binary, b"\x01\0\0\0\x01"), (Kind::Text, b"?")]
    {
        let mut socket = Socket::over(connect(server.registry_addr()).await).await;
        socket.challenge().await;
        socket.send(kind, bytes).await;
        assert_eq!(socket.closed().await, (1008, "auth failed".into()));
    }
    assert_eq!((server.stats().compat_refused, server.stats().compat_nodes), (5, 0));
    server.shutdown().await;
}

#[tokio::test]
async fn a_second_connection_replaces_the_first() {
    let mut peers = [Peer::new(1), Peer::new(2)];
    let server = server_with(&mut peers).await;
    let mut first = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    let mut second = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    assert_eq!(first.closed().await, (1000, "replaced".into()));
    let mut other = Socket::of(connect(server.registry_addr()).await, &peers[1]).await;
    other.datagram(&relay(2, 1, b"PILS")).await;
    assert_eq!(second.next().await, Some(Message::Binary(delivered(2, b"PILS"))));
    server.shutdown().await;
    assert_eq!(second.closed().await, (1001, "beacon stopped".into()));
}

#[tokio::test]
async fn who_takes_nothing_loses_what_is_for_it_and_holds_up_nobody() {
    let mut peers = [Peer::new(1), Peer::new(2), Peer::new(3)];
    let server = server_with(&mut peers).await;
    // It never reads.
    let _stuck = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    let mut sender = Socket::of(connect(server.registry_addr()).await, &peers[1]).await;
    let mut reader = Socket::of(connect(server.registry_addr()).await, &peers[2]).await;
    let frame = vec![7; 60_000];
    // More than the connection's queue and all socket buffers.
    let deadline = std::time::Instant::now() + SOON;
    while server.stats().compat_dropped == 0 {
        assert!(std::time::Instant::now() < deadline, "nothing dropped: {:?}", server.stats());
        sender.datagram(&relay(2, 1, &frame)).await;
    }
    sender.datagram(&relay(2, 3, b"PILS")).await;
    assert_eq!(reader.next().await, Some(Message::Binary(delivered(2, b"PILS"))));
    server.shutdown().await;
}

#[tokio::test]
async fn a_protocol_error_closes_with_its_code() {
    let mut peers = [Peer::new(1)];
    let server = server_with(&mut peers).await;
    let mut socket = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    socket.stream.write_all(b"\x82\x00").await.unwrap();
    assert_eq!(socket.closed().await, (1002, "protocol error".into()), "not masked");
    let mut socket = Socket::of(connect(server.registry_addr()).await, &peers[0]).await;
    socket.stream.write_all(b"\x82\xff\0\0\0\0\0\x01\0\x01").await.unwrap();
    assert_eq!(socket.closed().await, (1009, "protocol error".into()), "longer than 64 KiB");
    server.shutdown().await;
}

/// Status, headers and body of an answer.
async fn http(addr: SocketAddr, request: &str) -> String {
    let mut stream = connect(addr).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn plain_http_gets_plain_answers() {
    let server = Server::start(Config::loopback()).await.unwrap();
    let at = server.registry_addr();
    let health = http(at, "GET /health HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"), "{health}");
    let probe = "GET /v1/compat HTTP/1.1\r\nHost: b\r\nUser-Agent: pilot-daemon/transport-auto\r\nConnection: close\r\n\r\n";
    let probed = http(at, probe).await;
    assert!(probed.starts_with("HTTP/1.1 426 ") && probed.contains("\r\nUpgrade: websocket\r\n"), "{probed}");
    for (request, status) in [
        (UPGRADE.replace("Version: 13", "Version: 8"), "426"),
        (UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", ""), "400"),
        (UPGRADE.replace("/v1/compat", "/v2"), "404"),
        (UPGRADE.replace("GET", "HEAD"), "405"),
        ("GET / HTTP/1.1\r\nno header\r\n\r\n".into(), "400"),
        (format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), "400"),
    ] {
        let answer = http(at, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
    server.shutdown().await;
}

#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn tls(addr: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(AnyCertificate))
        .with_no_client_auth();
    // As HTTP libraries do.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect(name, connect(addr).await).await.unwrap()
}

#[tokio::test]
async fn registry_and_websocket_share_a_port_with_tls_beside_the_plain_one() {
    let listener = TlsListener { addr: "127.0.0.1:0".parse().unwrap(), tls: Tls::SelfSigned };
    let config = Config { tls_listener: Some(listener), ..Config::loopback() };
    let server = Server::start(config).await.unwrap();
    let secure = server.tls_addr().unwrap();
    let (mut a, mut b) = (Peer::new(1), Peer::new(2));
    let told = a.register(&mut Client(tls(secure).await)).await["compat"].clone();
    let fingerprint = server.tls_fingerprint().unwrap();
    assert_eq!(told, json!({"port": secure.port(), "tls": true, "tls_fingerprint": fingerprint}));
    b.register(&mut Client::connect(server.registry_addr()).await).await;
    let mut over_tls = Socket::of(tls(secure).await, &a).await;
    let mut plain = Socket::of(connect(server.registry_addr()).await, &b).await;
    plain.datagram(&relay(2, 1, b"PILS")).await;
    assert_eq!(over_tls.next().await, Some(Message::Binary(delivered(2, b"PILS"))));
    server.shutdown().await;
}

#[tokio::test]
async fn the_operator_may_name_the_url_nodes_take() {
    let url = "wss://pilot.example.org/v1/compat";
    let config = Config { advertise_compat: Some(url.into()), ..Config::loopback() };
    let server = Server::start(config).await.unwrap();
    let told = Peer::new(1).register(&mut Client::connect(server.registry_addr()).await).await;
    assert_eq!(told["compat"], json!({"port": server.registry_addr().port(), "tls": false, "url": url}));
    server.shutdown().await;
    for wrong in ["https://a/", "wss://", "wss://u:p@a/", "wss://a b/"] {
        let config = Config { advertise_compat: Some(wrong.into()), ..Config::loopback() };
        let error = Server::start(config).await.unwrap_err().to_string();
        assert!(error.starts_with("invalid setting advertise_compat"), "{error}");
    }
}
