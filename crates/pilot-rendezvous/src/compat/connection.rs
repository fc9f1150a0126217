//! One HTTP connection: a request, and if it is for the compat endpoint, the WebSocket it becomes.

use super::{Inlet, Joined};
use crate::admission::Place;
use crate::config::Rate;
use crate::cost;
use crate::limits::Meter;
use crate::server::{Shared, stopped};
use pilot_proto::NodeId;
use pilot_proto::wire::compat::{Challenge, MAX_MESSAGE, PATH, Reply, SUBPROTOCOL, accepted};
use pilot_proto::wire::http::{Head, MAX_HEAD};
use pilot_proto::wire::websocket::{self, Decoder, Kind, Message, Role, close_payload, encode};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// A request must be complete within this time.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A node must have proven itself within this time (spec 04 section 17.2).
const AUTH_DEADLINE: Duration = Duration::from_secs(10);
/// A WebSocket that sends nothing for this long is closed (spec 04 section 17.4).
const IDLE: Duration = Duration::from_secs(90);
/// One that takes nothing for this long is, too.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the last words.
const GOODBYE: Duration = Duration::from_secs(2);
/// Messages of one node; more wait, and so does the sender.
const MESSAGES: Rate = Rate { per_second: 20_000.0, burst: 20_000.0 };
/// Longest such wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages sent in one go.
const BATCH: usize = 64;
/// Pings and closes that wait to be answered; more are not.
const ANSWERS: usize = 4;
const READ_BUFFER: usize = 16 * 1024;
/// Longest message before the node has proven itself.
const MAX_AUTH: usize = 4096;

/// Why a WebSocket ends: close code and reason.
#[derive(Debug)]
enum End {
    /// Say this.
    Close(u16, &'static str),
    /// Nobody listens any more.
    Broken,
}

const STOPPED: End = End::Close(1001, "beacon stopped");

/// Who asks.
struct Peer<'a> {
    shared: &'a Shared,
    addr: SocketAddr,
    exempt: bool,
}

/// Serves a connection that begins with an HTTP request.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: &Shared,
    addr: SocketAddr,
    exempt: bool,
    place: Place,
    stop: watch::Receiver<bool>,
) {
    let peer = Peer { shared, addr, exempt };
    let mut bytes = Vec::new();
    let head = match timeout(HEAD_DEADLINE, read_head(&mut stream, &mut bytes)).await {
        Ok(Ok(Some(head))) => head,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::debug!(peer = %addr, %error, "HTTP request refused");
            return answer(&mut stream, "400 Bad Request", "", "bad request\n").await;
        }
    };
    let refusal = match route(&head) {
        Ok(Route::Health) => return answer(&mut stream, "200 OK", "", "ok\n").await,
        Ok(Route::WebSocket(key)) => {
            let Some(_entered) = shared.compat.enter() else {
                return answer(&mut stream, "503 Service Unavailable", "Retry-After: 30\r\n", "full\n").await;
            };
            let protocol = if head.has("sec-websocket-protocol", SUBPROTOCOL) {
                format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n")
            } else {
                String::new()
            };
            let upgrade = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n{protocol}\r\n",
                websocket::accept_key(key)
            );
            return peer.websocket(stream, &upgrade, &bytes, place, stop).await;
        }
        Err(refusal) => refusal,
    };
    let (status, headers, text) = refusal;
    answer(&mut stream, status, headers, text).await;
}

enum Route<'a> {
    Health,
    /// With the client's key.
    WebSocket(&'a str),
}

type Refusal = (&'static str, &'static str, &'static str);

fn route(head: &Head) -> Result<Route<'_>, Refusal> {
    let (method, path) = head.request().ok_or(("400 Bad Request", "", "bad request\n"))?;
    match (method, path) {
        ("GET" | "HEAD", "/health") => return Ok(Route::Health),
        ("GET", PATH) => {}
        (_, "/health" | PATH) => return Err(("405 Method Not Allowed", "Allow: GET\r\n", "GET only\n")),
        _ => return Err(("404 Not Found", "", "nothing here\n")),
    }
    // A node that looks whether the endpoint is there expects 426 (spec 04 section 17.5).
    const UPGRADE: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let upgrades = head.has("connection", "upgrade") && head.has("upgrade", "websocket");
    match head.get("sec-websocket-key") {
        _ if !upgrades || head.get("sec-websocket-version") != Some("13") => {
            Err(("426 Upgrade Required", UPGRADE, "WebSocket only\n"))
        }
        Some(key) if (16..=64).contains(&key.len()) => Ok(Route::WebSocket(key)),
        _ => Err(("400 Bad Request", "", "no Sec-WebSocket-Key\n")),
    }
}

/// Reads a request's head; `bytes` keeps what follows it. `None`: the client has left.
async fn read_head(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if let Some((head, used)) = Head::parse(bytes).map_err(io::Error::other)? {
            bytes.drain(..used);
            return Ok(Some(head));
        }
        // An incomplete head is shorter than MAX_HEAD.
        bytes.reserve(1024.min(MAX_HEAD));
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// Answers, and closes.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), status: &str, headers: &str, body: &str) {
    let text = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let write = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = timeout(GOODBYE, write).await;
}

impl Peer<'_> {
    /// The connection is a WebSocket from here on; `rest` came behind its request.
    async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        upgrade: &str,
        rest: &[u8],
        mut place: Place,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut auth = Decoder::new(Role::Server, MAX_AUTH);
        auth.feed(rest);
        let proven = async {
            stream.write_all(upgrade.as_bytes()).await.map_err(|e| e.to_string())?;
            self.authenticate(&mut stream, &mut auth).await
        };
        let proven = tokio::select! {
            proven = timeout(AUTH_DEADLINE, proven) => proven.unwrap_or_else(|_| Err("took too long".into())),
            _ = stopped(&mut stop) => return,
        };
        let node = match proven {
            Ok(node) => node,
            Err(cause) => {
                self.shared.compat.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = %self.addr, %cause, "WebSocket refused");
                return close(&mut stream, websocket::CLOSE_POLICY, "auth failed").await;
            }
        };
        place.used(true, Instant::now());
        let Some((joined, inlet)) = self.shared.compat.join(node, self.addr).await else { return };
        let mut ok = Vec::new();
        encode(Kind::Text, accepted().as_bytes(), None, &mut ok);
        if !matches!(timeout(WRITE_DEADLINE, send(&mut stream, &ok)).await, Ok(Ok(()))) {
            return;
        }
        tracing::debug!(peer = %self.addr, node, "WebSocket open");
        let end =
            exchange(&mut stream, auth.with_max(MAX_MESSAGE), &joined, inlet, &mut place, &mut stop).await;
        drop(joined);
        tracing::debug!(peer = %self.addr, node, ?end, "WebSocket closed");
        if let End::Close(code, reason) = end {
            close(&mut stream, code, reason).await;
        }
    }

    /// Challenge and reply; the node that is there, or why it is not.
    async fn authenticate(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        decoder: &mut Decoder,
    ) -> Result<NodeId, String> {
        let mut nonce = [0; 32];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "no random numbers")?;
        let now = crate::registry::Now::read().unix();
        let challenge = Challenge::new(nonce, i64::try_from(now).unwrap_or(i64::MAX));
        let mut out = Vec::new();
        encode(Kind::Text, challenge.to_text().as_bytes(), None, &mut out);
        send(stream, &out).await.map_err(|e| e.to_string())?;
        let mut buffer = [0; 1024];
        let reply = loop {
            match decoder.next_message().map_err(|e| e.to_string())? {
                Some(Message::Text(text)) => break Reply::parse(&text)?,
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                Some(Message::Binary(_)) => return Err("a datagram before the proof".into()),
                Some(Message::Close(..)) => return Err("closed by the node".into()),
                None => match stream.read(&mut buffer).await.map_err(|e| e.to_string())? {
                    0 => return Err("closed by the node".into()),
                    n => decoder.feed(&buffer[..n]),
                },
            }
        };
        if !self.exempt && !self.shared.budget.afford(self.addr.ip(), cost::SIGNATURE) {
            return Err("too much work for this source".into());
        }
        let known = self.shared.known(reply.node).ok_or("the registry does not know this node")?;
        if !reply.verify(&challenge, &known.key) {
            self.shared.budget.bad_signature_of(self.addr.ip(), self.exempt);
            return Err(format!("wrong signature for node {}", reply.node));
        }
        Ok(reply.node)
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn close(stream: &mut (impl AsyncWrite + Unpin), code: u16, reason: &str) {
    let mut out = Vec::new();
    encode(Kind::Close, &close_payload(code, reason), None, &mut out);
    let write = async {
        send(stream, &out).await?;
        stream.shutdown().await
    };
    let _ = timeout(GOODBYE, write).await;
}

/// Datagrams in both directions until either side ends it.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut decoder: Decoder,
    joined: &Joined<'_>,
    mut inlet: Inlet,
    place: &mut Place,
    stop: &mut watch::Receiver<bool>,
) -> End {
    let (mut from, mut to) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<Vec<u8>>(ANSWERS);
    let reading = async {
        let mut buffer = vec![0; READ_BUFFER];
        let mut pace = Meter::new(MESSAGES);
        loop {
            loop {
                match decoder.next_message() {
                    Ok(Some(Message::Binary(bytes))) => {
                        if let Ok(wait) = pace.charge(1, Instant::now(), PATIENCE)
                            && !wait.is_zero()
                        {
                            tokio::time::sleep(wait).await;
                        }
                        if !joined.arrived(bytes).await {
                            return STOPPED;
                        }
                    }
                    Ok(Some(Message::Ping(bytes))) => drop(answers.try_send(bytes)),
                    Ok(Some(Message::Close(..))) => return End::Close(websocket::CLOSE_NORMAL, ""),
                    // Text has no meaning after the proof.
                    Ok(Some(Message::Text(_) | Message::Pong(_))) => {}
                    Ok(None) => break,
                    Err(error) => return End::Close(error.close_code(), "protocol error"),
                }
            }
            match timeout(IDLE, from.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return End::Broken,
                Ok(Ok(n)) => decoder.feed(&buffer[..n]),
                Err(_) => return End::Close(websocket::CLOSE_NORMAL, "idle"),
            }
            place.used(true, Instant::now());
        }
    };
    let writing = async {
        let (mut batch, mut out) = (Vec::new(), Vec::new());
        loop {
            out.clear();
            tokio::select! {
                Some(pong) = answered.recv() => encode(Kind::Pong, &pong, None, &mut out),
                () = inlet.take(&mut batch, BATCH) => {
                    if batch.is_empty() {
                        return End::Close(websocket::CLOSE_NORMAL, "replaced");
                    }
                    batch.drain(..).for_each(|message| encode(Kind::Binary, &message, None, &mut out));
                }
            }
            if !matches!(timeout(WRITE_DEADLINE, send(&mut to, &out)).await, Ok(Ok(()))) {
                return End::Broken;
            }
        }
    };
    let end = tokio::select! {
        end = reading => end,
        end = writing => end,
        _ = stopped(stop) => STOPPED,
    };
    // A beacon that stops lets go of all queues, which looks like having been replaced.
    if *stop.borrow() { STOPPED } else { end }
}
