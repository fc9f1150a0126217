//! Requests to the registry over a small pool of connections (spec 05 section 13).

use super::ways::Ways;
use super::{Features, RegistryError, frame};
use crate::config::{RegistryTls, Transport, split_host_port};
use crate::lock;
use crate::proxy::{Proxies, ProxyChoice};
use pilot_proto::NodeId;
use pilot_proto::crypto::Identity;
use pilot_proto::registry::fresh;
use serde_json::{Map, Value};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most connections at once.
const POOL: usize = 4;
/// Time to connect and to write.
const DIAL: Duration = Duration::from_secs(5);
/// The same where there are several ways, or a proxy between.
const LONG_DIAL: Duration = Duration::from_secs(12);
/// Time for the answer of requests a peer or a user waits for.
const SHORT: Duration = Duration::from_secs(8);
/// Time for any other answer.
const LONG: Duration = Duration::from_secs(30);
/// An idle connection older than this is not used again (the registry closes after 5 min).
const IDLE: Duration = Duration::from_secs(240);
/// First and longest pause after a failed connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// A connection's bytes, plain or TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) struct Client {
    address: String,
    host: String,
    ways: Ways,
    idle: Mutex<Vec<(Instant, Box<dyn Io>)>>,
    permits: Semaphore,
    failing: Mutex<Failing>,
    features: Mutex<Features>,
    signer: Mutex<Signer>,
}

/// Who signs requests freshly, and the last number used.
#[derive(Default)]
struct Signer {
    node: Option<(Arc<Identity>, NodeId)>,
    last: u64,
}

/// Requests with these types may be executed twice without harm, so they are sent again when a connection
/// breaks before their answer.
fn repeatable(request: &Value) -> bool {
    let kind = request["type"].as_str().unwrap_or_default();
    matches!(
        kind,
        "register"
            | "heartbeat"
            | "deregister"
            | "lookup"
            | "resolve"
            | "resolve_hostname"
            | "set_visibility"
            | "set_hostname"
            | "set_hidden"
            | "set_tags"
            | "report_trust"
            | "revoke_trust"
            | "check_trust"
            | "request_handshake"
            | "respond_handshake"
            | "ack_handshakes"
            | "poll_invites"
            | "beacon_list"
    ) || kind.starts_with("get_")
        || kind.starts_with("list_")
        // Without `keep` a poll empties the inbox: an answer lost is lost, and asking again hides that.
        || (kind == "poll_handshakes" && request["keep"] == true)
}

fn limit(request: &Value) -> Duration {
    match request["type"].as_str().unwrap_or_default() {
        "heartbeat" | "lookup" | "resolve" | "resolve_hostname" | "check_trust" => SHORT,
        _ => LONG,
    }
}

#[derive(Default)]
struct Failing {
    until: Option<Instant>,
    pause: Duration,
    cause: String,
}

enum Attempt {
    /// The request did not reach the registry, or only in part.
    NotSent(String),
    /// It was sent; whether it was executed is unknown.
    Unanswered(String),
    TimedOut,
}

impl Client {
    pub(crate) fn new(address: &str, trust: Option<&RegistryTls>) -> Result<Client, String> {
        Client::with(address, trust, &Proxies::new(ProxyChoice::Off), Transport::Udp)
    }

    /// The client of a node with this transport.
    pub(crate) fn with(
        address: &str,
        trust: Option<&RegistryTls>,
        proxies: &Proxies,
        transport: Transport,
    ) -> Result<Client, String> {
        let (host, port) = split_host_port(address).map_err(|e| format!("registry: {e}"))?;
        let (flexible, forced) = (transport == Transport::Auto, transport == Transport::Compat);
        Ok(Client {
            address: address.to_owned(),
            host: host.to_owned(),
            ways: Ways::new(host, port, trust, proxies, flexible, forced)?,
            idle: Mutex::default(),
            permits: Semaphore::new(POOL),
            failing: Mutex::default(),
            features: Mutex::default(),
            signer: Mutex::default(),
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The address of the registry's that the last connection went to.
    pub(crate) fn reached(&self) -> Option<IpAddr> {
        self.ways.reached()
    }

    /// The registry has a listener with TLS there (docs/extensions.md, "compat").
    pub(crate) fn set_second_way(&self, host: &str, port: u16, fingerprint: Option<&str>) {
        self.ways.set_second(host, port, fingerprint);
    }

    pub(crate) fn features(&self) -> Features {
        lock(&self.features).clone()
    }

    pub(crate) fn set_features(&self, features: Features) {
        *lock(&self.features) = features;
    }

    /// From now on requests are signed freshly for this node (docs/extensions.md, "fresh").
    pub(crate) fn set_signer(&self, identity: Arc<Identity>, node: NodeId) {
        lock(&self.signer).node = Some((identity, node));
    }

    /// The request with what keeps others from repeating it. A registration and a rotation have it even before the registry
    /// said that it takes it: they matter most, and a rotation is finished before the registration.
    pub(super) fn freshen(&self, mut request: Value) -> Value {
        let features = self.features();
        let first = request["type"] == "register";
        let early = first || request["type"] == "rotate_key";
        if request.get("signature").is_none() || !(features.fresh || early) {
            return request;
        }
        let (signer, seq) = {
            let mut signer = lock(&self.signer);
            let now =
                crate::unix_micros().saturating_add_signed(features.clock_offset.saturating_mul(1_000_000));
            signer.last = now.max(signer.last.saturating_add(1));
            (signer.node.clone(), signer.last)
        };
        let Some((identity, node)) = signer else { return request };
        if first && request["public_key"] != identity.public_key_base64() {
            // Another key of ours, during a rotation.
            return request;
        }
        let registry = features.registry_id.unwrap_or_default();
        let signature = identity.sign_text(&fresh::text(&registry, seq, &request.to_string()));
        request["fresh"] =
            serde_json::json!({"node": node, "seq": seq, "registry": registry, "signature": signature});
        request
    }

    /// The frames of these requests, signed now.
    fn encode(&self, requests: &[Value]) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::with_capacity(512);
        for request in requests {
            frame::put(&self.freshen(request.clone()), &mut bytes)
                .map_err(|e| RegistryError::Unreachable(format!("registry: {e}")))?;
        }
        Ok(bytes)
    }

    /// Opens a connection for the pool, so that the first request need not.
    pub(crate) async fn warm_up(&self) -> Result<(), RegistryError> {
        let connection = self.connect().await?;
        self.put_back(connection);
        Ok(())
    }

    /// A new connection of its own.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Io>, RegistryError> {
        {
            let failing = lock(&self.failing);
            if let Some(until) = failing.until
                && Instant::now() < until
            {
                return Err(RegistryError::Unreachable(failing.cause.clone()));
            }
        }
        let limit = if self.ways.is_long() { LONG_DIAL } else { DIAL };
        let result = self.dial(limit).await;
        let mut failing = lock(&self.failing);
        match result {
            Ok(connection) => {
                *failing = Failing::default();
                Ok(connection)
            }
            Err(cause) => {
                failing.pause = (failing.pause * 2).clamp(BACKOFF.0, BACKOFF.1);
                failing.until = Some(Instant::now() + crate::jitter(failing.pause));
                failing.cause.clone_from(&cause);
                Err(RegistryError::Unreachable(cause))
            }
        }
    }

    async fn dial(&self, limit: Duration) -> Result<Box<dyn Io>, String> {
        self.ways.open(limit).await.map_err(|cause| match cause.contains("certificate") {
            true => format!("registry: {cause}"),
            false => self.no_way(format_args!("{cause}")),
        })
    }

    /// No connection to the registry, and why.
    fn no_way(&self, cause: std::fmt::Arguments<'_>) -> String {
        format!("registry {} cannot be reached: {cause}", self.address)
    }

    /// A connection that was there failed.
    pub(super) fn lost(&self, cause: &str) -> RegistryError {
        RegistryError::Unreachable(format!("registry {}: connection lost: {cause}", self.address))
    }

    /// The network is another one: connections of before may hang, and whoever could not be reached may be now.
    pub(crate) fn forget_connections(&self) {
        lock(&self.idle).clear();
        *lock(&self.failing) = Failing::default();
    }

    fn put_back(&self, connection: Box<dyn Io>) {
        let mut idle = lock(&self.idle);
        if idle.len() < POOL {
            idle.push((Instant::now(), connection));
        }
    }

    /// A pooled connection that the registry has not closed meanwhile.
    fn take_idle(&self) -> Option<Box<dyn Io>> {
        loop {
            let (since, mut connection) = lock(&self.idle).pop()?;
            if since.elapsed() < IDLE && quiet(&mut *connection) {
                return Some(connection);
            }
        }
    }

    /// Sends one request and waits for its answer.
    pub(crate) async fn request(&self, request: Value) -> Result<Value, RegistryError> {
        let mut answers = self.batch(std::slice::from_ref(&request)).await?;
        answers.pop().unwrap_or_else(|| Err(self.lost("no answer")))
    }

    /// Sends requests in one go and waits for all answers: one round trip. The outer error is that of the
    /// connection, the inner ones are the registry's.
    pub(crate) async fn batch(
        &self,
        requests: &[Value],
    ) -> Result<Vec<Result<Value, RegistryError>>, RegistryError> {
        let limit = requests.iter().map(limit).max().unwrap_or(SHORT);
        let repeatable = requests.iter().all(repeatable);
        let _permit = self.permits.acquire().await.map_err(|e| self.lost(&e.to_string()))?;
        if let Some(connection) = self.take_idle() {
            match self.exchange(connection, &self.encode(requests)?, requests.len(), limit).await {
                Ok(answers) => return Ok(answers),
                Err(Attempt::TimedOut) => {
                    // Half-open connections fail together: the rest of the pool is no better.
                    lock(&self.idle).clear();
                    return Err(RegistryError::TimedOut);
                }
                Err(Attempt::Unanswered(cause)) if !repeatable => {
                    return Err(self.lost(&cause));
                }
                Err(Attempt::NotSent(_) | Attempt::Unanswered(_)) => {}
            }
        }
        let connection = self.connect().await?;
        match self.exchange(connection, &self.encode(requests)?, requests.len(), limit).await {
            Ok(answers) => Ok(answers),
            Err(Attempt::TimedOut) => Err(RegistryError::TimedOut),
            Err(Attempt::NotSent(cause) | Attempt::Unanswered(cause)) => Err(self.lost(&cause)),
        }
    }

    async fn exchange(
        &self,
        mut connection: Box<dyn Io>,
        bytes: &[u8],
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Result<Value, RegistryError>>, Attempt> {
        let write = async {
            connection.write_all(bytes).await?;
            connection.flush().await
        };
        match timeout(DIAL, write).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(Attempt::NotSent(e.to_string())),
            Err(_) => return Err(Attempt::TimedOut),
        }
        let read = async {
            let mut answers = Vec::with_capacity(count);
            for _ in 0..count {
                let answer = frame::read(&mut connection).await?;
                answers.push(judge(answer.ok_or(io::ErrorKind::UnexpectedEof)?));
            }
            Ok::<_, io::Error>(answers)
        };
        match timeout(limit, read).await {
            Ok(Ok(answers)) => {
                self.put_back(connection);
                Ok(answers)
            }
            Ok(Err(e)) => Err(Attempt::Unanswered(e.to_string())),
            Err(_) => Err(Attempt::TimedOut),
        }
    }
}

/// An answer with the key `error` is an error, whatever its type says (spec 05 section 3).
pub(super) fn judge(answer: Map<String, Value>) -> Result<Value, RegistryError> {
    if let Some(error) = answer.get("error") {
        let text = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
        return Err(RegistryError::Refused(text));
    }
    if !answer.contains_key("type") {
        return Err(RegistryError::Refused("malformed response (missing \"type\" field)".into()));
    }
    Ok(Value::Object(answer))
}

/// The cause of a failed connect in plain words, without the number of the operating system's error.
pub(crate) fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to that host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "no route to that network".to_owned(),
        _ => error.to_string(),
    }
}

/// Nothing to read and not closed: an answer may be expected on it.
fn quiet(connection: &mut dyn Io) -> bool {
    let mut byte = [0; 1];
    let mut context = Context::from_waker(std::task::Waker::noop());
    matches!(Pin::new(connection).poll_read(&mut context, &mut ReadBuf::new(&mut byte)), Poll::Pending)
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.address)
    }
}
