//! The WebSocket to the beacon: connected, proven and kept while it is wanted (spec 04 section 17).

use super::link::{Inbound, SocketEnd};
use crate::config::{NodeConfig, RegistryTls};
use crate::proxy::{Proxies, ProxyUrl, split};
use crate::registry::{Door, Io, connect_tls, tls_config};
use crate::{jitter, random};
use pilot_proto::NodeId;
use pilot_proto::crypto::{Identity, base64};
use pilot_proto::wire::compat::{Challenge, PATH, SUBPROTOCOL, is_accepted};
use pilot_proto::wire::http::Head;
use pilot_proto::wire::websocket::{self, Decoder, Kind, Message, Role, close_payload, encode};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

/// Time for one attempt to connect and to prove the node.
const ATTEMPT: Duration = Duration::from_secs(20);
/// First and longest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A connection that lived this long makes the next attempt come soon again.
const LIVED: Duration = Duration::from_secs(30);
/// Ping interval, and time for anything to come after one.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(10);
/// The same on another network, which a connection of before may have no way through; a ping goes at once then.
const PONG_MOVED: Duration = Duration::from_secs(3);
/// Time a write may take.
const WRITE: Duration = Duration::from_secs(20);
/// Longest message taken: what a beacon sends, and some.
const MAX_MESSAGE: usize = 128 * 1024;
/// Datagrams sent in one go.
const BATCH: usize = 64;
const READ_BUFFER: usize = 32 * 1024;
/// Masks drawn from the system at a time.
const MASKS: usize = 256;

/// Where the WebSocket is, and how its certificate is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    path: String,
    trust: RegistryTls,
}

impl Target {
    /// Of a URL.
    pub(crate) fn of(url: &str, trust: RegistryTls) -> Result<Target, String> {
        let bad = |why: &str| format!("compat beacon {url:?}: {why}; expected wss://host[:port]/path");
        let (tls, rest) = match url.split_once("://") {
            Some(("wss", rest)) => (true, rest),
            Some(("ws", rest)) => (false, rest),
            _ => return Err(bad("not a WebSocket URL")),
        };
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') || path.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(bad("user names and spaces do not belong there"));
        }
        let (host, port) =
            split(authority, if tls { 443 } else { 80 }).ok_or_else(|| bad("no host or port"))?;
        let path = if path.is_empty() { PATH } else { path };
        Ok(Target { tls, host: host.to_owned(), port, path: path.to_owned(), trust })
    }

    /// What settings and registry say; `None`: neither says anything.
    pub(crate) fn find(
        config: &NodeConfig,
        registry_host: &str,
        door: Option<&Door>,
    ) -> Result<Option<Target>, String> {
        let learned = door.and_then(|door| door.tls_fingerprint.clone());
        let named = config.compat_tls.clone().or_else(|| config.registry_tls.clone());
        let trust = named.unwrap_or_else(|| learned.map_or(RegistryTls::System, RegistryTls::PinnedOrSystem));
        if let Some(url) = config.compat_beacon.as_deref().or(door.and_then(|door| door.url.as_deref())) {
            return Target::of(url, trust).map(Some);
        }
        let place = |tls, port: u16| Target {
            tls,
            host: registry_host.to_owned(),
            port,
            path: PATH.to_owned(),
            trust: trust.clone(),
        };
        if let Some(door) = door {
            return Ok(Some(place(door.tls, door.port)));
        }
        let port = config.registry.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Ok(port.filter(|_| config.transport == crate::Transport::Compat).map(|port| place(true, port)))
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{}://{host}:{}{}", if self.tls { "wss" } else { "ws" }, self.port, self.path)
    }
}

/// Masks of frames, from the operating system.
struct Masks {
    bytes: [u8; 4 * MASKS],
    used: usize,
}

impl Masks {
    fn new() -> Masks {
        Masks { bytes: [0; 4 * MASKS], used: 4 * MASKS }
    }

    fn next(&mut self) -> Option<[u8; 4]> {
        if self.used == self.bytes.len() {
            // They keep intermediaries from being fooled, not anybody from reading.
            let _ = random(&mut self.bytes);
            self.used = 0;
        }
        let mask = self.bytes[self.used..].first_chunk().copied();
        self.used += 4;
        mask
    }
}

/// An open WebSocket that has proven the node.
struct Open {
    stream: Box<dyn Io>,
    decoder: Decoder,
    masks: Masks,
}

async fn connect(
    target: &Target,
    proxies: &Proxies,
    identity: &Identity,
    node: NodeId,
) -> Result<Open, String> {
    let proxy: Option<&ProxyUrl> = proxies.secure(&target.host, target.port);
    let mut stream = proxies.connect(proxy, &target.host, target.port).await?;
    if target.tls {
        stream = connect_tls(tls_config(&target.trust)?, &target.host, stream).await.map_err(|e| match e
            .contains("certificate")
        {
            true => format!("{e}; if it is the right one, pin it with --registry-fingerprint"),
            false => e,
        })?;
    }
    let mut key = [0; 16];
    random(&mut key)?;
    let key = base64(key);
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}:{}\r\nUser-Agent: pilot-daemon\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        target.path, target.port
    );
    send(&mut stream, request.as_bytes()).await?;
    let mut bytes = Vec::with_capacity(1024);
    let (head, used) = loop {
        if let Some(parsed) = Head::parse(&bytes).map_err(|e| e.to_string())? {
            break parsed;
        }
        if stream.read_buf(&mut bytes).await.map_err(|e| e.to_string())? == 0 {
            return Err("closed the connection instead of answering".into());
        }
    };
    match head.status() {
        Some((101, _)) => {}
        Some((status, reason)) => {
            return Err(format!("answers {status} {reason}; is it the path of a beacon?"));
        }
        None => return Err("does not speak HTTP".into()),
    }
    if head.get("sec-websocket-accept") != Some(&websocket::accept_key(&key)) {
        return Err("its answer is not that of a WebSocket".into());
    }
    let mut decoder = Decoder::new(Role::Client, MAX_MESSAGE);
    decoder.feed(&bytes[used..]);
    let mut open = Open { stream, decoder, masks: Masks::new() };
    let challenge = open.text().await?;
    let answer = Challenge::parse(&challenge)?.answer(identity, node);
    let mut out = Vec::new();
    encode(Kind::Text, answer.as_bytes(), open.masks.next(), &mut out);
    send(&mut open.stream, &out).await?;
    match is_accepted(&open.text().await?) {
        true => Ok(open),
        false => Err("it does not accept this node's proof".into()),
    }
}

async fn send(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), String> {
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    match timeout(WRITE, write).await {
        Ok(sent) => sent.map_err(|e: io::Error| e.to_string()),
        Err(_) => Err(format!("took nothing for {} s", WRITE.as_secs())),
    }
}

impl Open {
    /// The next text message.
    async fn text(&mut self) -> Result<Vec<u8>, String> {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_message().map_err(|e| e.to_string())? {
                Some(Message::Text(text)) => return Ok(text),
                Some(Message::Close(code, reason)) => {
                    return Err(format!("closed by the beacon: {code} {reason}"));
                }
                Some(_) => {}
                None => match self.stream.read(&mut buffer).await.map_err(|e| e.to_string())? {
                    0 => return Err("closed by the beacon".into()),
                    n => self.decoder.feed(&buffer[..n]),
                },
            }
        }
    }

    /// Carries datagrams until it breaks; says why.
    async fn carry(self, link: &mut SocketEnd, moved: &mut watch::Receiver<u64>) -> String {
        let Open { stream, mut decoder, mut masks } = self;
        let (mut from, mut to) = tokio::io::split(stream);
        let (controls, mut controlled) = mpsc::channel::<(Kind, Vec<u8>)>(4);
        // Reads so far.
        let heard = AtomicU64::new(0);
        let SocketEnd { inbound, outbound, wanted } = link;
        let reading = async {
            let mut buffer = vec![0; READ_BUFFER];
            loop {
                loop {
                    match decoder.next_message() {
                        Ok(Some(Message::Binary(bytes))) => {
                            if inbound.send(Inbound::Datagram(bytes)).await.is_err() {
                                return "the node stops".to_owned();
                            }
                        }
                        Ok(Some(Message::Ping(bytes))) => drop(controls.try_send((Kind::Pong, bytes))),
                        Ok(Some(Message::Close(code, reason))) => {
                            return format!("closed by the beacon: {code} {reason}").trim_end().to_owned();
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => return error.to_string(),
                    }
                }
                match from.read(&mut buffer).await {
                    Ok(0) => return "closed by the beacon".to_owned(),
                    Ok(n) => decoder.feed(&buffer[..n]),
                    Err(error) => return error.to_string(),
                }
                heard.fetch_add(1, Ordering::Relaxed);
            }
        };
        let writing = async {
            let (mut batch, mut out) = (Vec::with_capacity(BATCH), Vec::new());
            loop {
                out.clear();
                tokio::select! {
                    Some((kind, bytes)) = controlled.recv() => encode(kind, &bytes, masks.next(), &mut out),
                    n = outbound.recv_many(&mut batch, BATCH) => {
                        if n == 0 {
                            return "the node stops".to_owned();
                        }
                        batch.drain(..).for_each(|datagram: Vec<u8>| {
                            encode(Kind::Binary, &datagram, masks.next(), &mut out);
                        });
                    }
                }
                if let Err(cause) = send(&mut to, &out).await {
                    return cause;
                }
            }
        };
        let pinging = async {
            loop {
                let patience = tokio::select! {
                    () = tokio::time::sleep(PING) => PONG,
                    Ok(()) = moved.changed() => PONG_MOVED,
                };
                let before = heard.load(Ordering::Relaxed);
                let _ = controls.send((Kind::Ping, b"pilot".to_vec())).await;
                tokio::time::sleep(patience).await;
                if heard.load(Ordering::Relaxed) == before {
                    return format!("silent for {} s after a ping", patience.as_secs());
                }
            }
        };
        let end = tokio::select! {
            end = reading => end,
            end = writing => end,
            end = pinging => end,
            () = unwanted(wanted) => "not needed any more".to_owned(),
        };
        let mut out = Vec::new();
        encode(Kind::Close, &close_payload(websocket::CLOSE_NORMAL, ""), Some([0; 4]), &mut out);
        let _ = timeout(Duration::from_secs(1), send(&mut to, &out)).await;
        end
    }
}

async fn unwanted(wanted: &mut watch::Receiver<bool>) {
    if wanted.wait_for(|wanted| !*wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a connection needs to know of its node, at the time it is made.
pub(crate) trait Owner: Send + Sync {
    /// Key, id and target; `None`: not known yet.
    fn who(&self) -> Option<(Arc<Identity>, NodeId, Target)>;
    /// Resolves when that may have changed.
    fn changed(&self) -> impl Future<Output = ()> + Send;
    /// Counts changes of the network.
    fn network(&self) -> watch::Receiver<u64>;
    /// An attempt failed, or the connection broke.
    fn failed(&self, target: &Target, cause: &str);
    /// It is open.
    fn opened(&self, target: &Target);
}

/// Keeps a WebSocket while it is wanted, until the driver is gone.
pub(crate) async fn keep(mut link: SocketEnd, proxies: Proxies, owner: Arc<impl Owner>) {
    let mut pause = BACKOFF.0;
    let mut moved = owner.network();
    loop {
        if link.wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let Some((identity, node, target)) = owner.who() else {
            owner.changed().await;
            continue;
        };
        moved.mark_unchanged();
        let attempt = tokio::select! {
            attempt = timeout(ATTEMPT, connect(&target, &proxies, &identity, node)) => attempt,
            // It may wait for a way that is no more.
            Ok(()) = moved.changed() => continue,
        };
        let attempt = attempt.unwrap_or_else(|_| Err(format!("no answer within {} s", ATTEMPT.as_secs())));
        let cause = match attempt {
            Err(cause) => cause,
            Ok(open) => {
                // What waited was for a connection of before.
                while link.outbound.try_recv().is_ok() {}
                if link.inbound.send(Inbound::Open).await.is_err() {
                    return;
                }
                owner.opened(&target);
                let since = Instant::now();
                let cause = open.carry(&mut link, &mut moved).await;
                if since.elapsed() > LIVED {
                    pause = BACKOFF.0;
                }
                if link.inbound.send(Inbound::Closed).await.is_err() {
                    return;
                }
                cause
            }
        };
        if !*link.wanted.borrow() {
            pause = BACKOFF.0;
            continue;
        }
        owner.failed(&target, &cause);
        tokio::select! {
            () = tokio::time::sleep(jitter(pause)) => pause = (pause * 2).min(BACKOFF.1),
            () = owner.changed() => pause = BACKOFF.0,
            Ok(()) = moved.changed() => pause = BACKOFF.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &NodeConfig, door: Option<&Door>) -> Option<String> {
        Target::find(config, "registry.example", door).unwrap().map(|target| target.to_string())
    }

    #[test]
    fn the_settings_come_before_the_registry_and_the_registry_before_a_guess() {
        let mut config = NodeConfig { registry: "registry.example:9000".into(), ..NodeConfig::default() };
        assert_eq!(find(&config, None), None, "no guess unless the operator asks for this transport");
        config.transport = crate::Transport::Compat;
        assert_eq!(find(&config, None).as_deref(), Some("wss://registry.example:9000/v1/compat"));
        let mut door = Door { port: 443, tls: true, ..Door::default() };
        assert_eq!(find(&config, Some(&door)).as_deref(), Some("wss://registry.example:443/v1/compat"));
        door.url = Some("ws://front.example/x".into());
        assert_eq!(find(&config, Some(&door)).as_deref(), Some("ws://front.example:80/x"));
        config.compat_beacon = Some("wss://[2001:db8::1]:8443".into());
        assert_eq!(find(&config, Some(&door)).as_deref(), Some("wss://[2001:db8::1]:8443/v1/compat"));
    }

    #[test]
    fn what_the_registry_told_of_a_certificate_counts_unless_the_operator_says_something() {
        let digest = "ab".repeat(32);
        let door = Door { port: 443, tls: true, tls_fingerprint: Some(digest.clone()), url: None };
        let trust = |config: &NodeConfig| Target::find(config, "r", Some(&door)).unwrap().unwrap().trust;
        let mut config = NodeConfig::default();
        assert_eq!(trust(&config), RegistryTls::PinnedOrSystem(digest));
        config.registry_tls = Some(RegistryTls::Pinned("cd".repeat(32)));
        assert_eq!(trust(&config), RegistryTls::Pinned("cd".repeat(32)));
        config.compat_tls = Some(RegistryTls::System);
        assert_eq!(trust(&config), RegistryTls::System);
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_is_expected() {
        for url in ["https://a/", "wss://", "wss://u@a/", "wss://a:0/", "wss://a/b c"] {
            let error = Target::of(url, RegistryTls::System).unwrap_err();
            assert!(error.contains("expected wss://host[:port]/path"), "{error}");
        }
    }
}
