//! Start, supervision and shutdown.

use crate::admission::{Admission, Place};
use crate::beacon::task::{Hint, Inputs, SharedCounters};
use crate::beacon::{self, Beacon, Directory, Known};
use crate::compat::{self, Compat, Peeked};
use crate::config::{Config, Limits, ProbePort, StoreConfig, Tls, TlsListener};
use crate::conn;
use crate::cost::Budget;
use crate::limits::{Reached, contains};
use crate::push::Subscriptions;
use crate::registry::{Door, Now, Registry, Session};
use crate::store::sqlite::Sqlite;
use crate::store::{Store as _, StoreError, writer};
use pilot_proto::NodeId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// The reaper looks this often.
const REAP_INTERVAL: Duration = Duration::from_secs(10);
/// A TLS handshake must be done within this time.
const TLS_DEADLINE: Duration = Duration::from_secs(10);
/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;
/// File descriptors left for everything but registry connections.
const SPARE_FILES: u64 = 256;
/// Hints waiting for the beacon.
const HINT_QUEUE: usize = 1024;
/// Pause after a failed accept, for instance without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for connections at shutdown.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("cannot listen on {what} {addr}: {source}")]
    Bind {
        /// `registry TCP`, `registry TLS`, `beacon UDP` or `beacon probe UDP`.
        what: &'static str,
        /// The configured address.
        addr: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The system has no thread for the beacon, or its socket could not be set up.
    #[error("cannot start the beacon: {source}")]
    Beacon {
        /// Cause.
        source: std::io::Error,
    },
    /// The store could not be opened or read.
    #[error("cannot open the store {path}: {reason}")]
    Store {
        /// The file, or `(memory)`.
        path: String,
        /// Cause and fix.
        reason: String,
    },
    /// Certificate or key could not be read or made.
    #[error("TLS: {path}: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("invalid setting {name}: {reason}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// Why, and what is allowed.
        reason: String,
    },
}

/// Counters since start, and sizes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Nodes in the directory now.
    pub nodes_online: u64,
    /// Identities known, online or not.
    pub nodes_known: u64,
    /// Mutual trust pairs.
    pub trust_pairs: u64,
    /// Networks besides the backbone.
    pub networks: u64,
    /// Open registry connections.
    pub connections: u64,
    /// Connections refused: too many per second from one source or network.
    pub connections_refused_rate: u64,
    /// Connections refused: one source or network holds its share.
    pub connections_refused_share: u64,
    /// Connections refused: all places are taken.
    pub connections_refused_full: u64,
    /// Connections closed to make room for others.
    pub connections_evicted: u64,
    /// Open push subscriptions.
    pub subscriptions: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests that waited because their source or network asks for much work.
    pub requests_delayed: u64,
    /// Requests refused for the same reason.
    pub requests_refused: u64,
    /// Signatures that were wrong.
    pub bad_signatures: u64,
    /// Commits of the store; requests of many connections share one.
    pub commits: u64,
    /// Nodes in the beacon's table.
    pub beacon_nodes: u64,
    /// Frames relayed.
    pub relayed: u64,
    /// Their bytes on the way out.
    pub relayed_bytes: u64,
    /// Frames not relayed: destination unknown.
    pub relay_dropped: u64,
    /// Frames not relayed: over a budget.
    pub relay_limited: u64,
    /// Frames not relayed: too many wait for their destination, or in all.
    pub relay_overrun: u64,
    /// Frames the system refused to send: no way there, or too long for it.
    pub relay_unsent: u64,
    /// Answers of the beacon the system did not take.
    pub answers_unsent: u64,
    /// Datagrams the kernel dropped before the beacon read them: its receive buffer was full.
    pub receive_overflow: u64,
    /// Punches coordinated.
    pub punches: u64,
    /// Punch requests over a budget, or of a sender that is not where it says.
    pub punch_refused: u64,
    /// Discovers without an answer: over a budget.
    pub discover_limited: u64,
    /// Claims to a node id that is at another address.
    pub claims_refused: u64,
    /// Claims over a budget, or beyond the table.
    pub claims_dropped: u64,
    /// Datagrams that are no message to a beacon.
    pub beacon_garbage: u64,
    /// Nodes that reach the beacon over a WebSocket now.
    pub compat_nodes: u64,
    /// WebSockets closed because they did not prove their node.
    pub compat_refused: u64,
    /// Frames not relayed: the receiver's WebSocket takes them too slowly.
    pub compat_dropped: u64,
}

/// What all tasks share.
pub(crate) struct Shared {
    registry: Mutex<Registry>,
    pub store: writer::Handle,
    pub subscriptions: Subscriptions,
    pub hints: mpsc::Sender<Hint>,
    pub limits: Limits,
    pub requests: AtomicU64,
    pub errors: AtomicU64,
    pub budget: Budget,
    pub compat: Compat,
    reached: Reached,
    /// Highest node id given out.
    last_node: AtomicU32,
    admission: Arc<Admission>,
}

impl Shared {
    /// An empty memory registry over `store`, with the beacon's end of the notify queue.
    #[cfg(test)]
    pub fn for_tests(store: Box<dyn crate::store::Store>) -> (Arc<Shared>, mpsc::Receiver<Hint>) {
        let config = Config::loopback();
        let registry =
            Registry::load(&config, config.beacon_addr, Default::default(), "test".to_owned(), Now::read());
        let (hints, hinted) = mpsc::channel(HINT_QUEUE);
        let last_node = AtomicU32::new(registry.last_node());
        let shared = Shared {
            registry: Mutex::new(registry),
            store: writer::start(store).unwrap().0,
            subscriptions: Subscriptions::default(),
            hints,
            compat: Compat::new().0,
            reached: Reached::new(Instant::now()),
            last_node,
            budget: Budget::new(&config.limits),
            admission: Admission::new(&config.limits, config.limits.max_connections),
            limits: config.limits,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        };
        (Arc::new(shared), hinted)
    }

    /// The state, locked. Never held across an await.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        // A handler does not panic; if one did, each change it made is still whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A registered node.
    pub fn known(&self, node: NodeId) -> Option<Known> {
        // Invented ids are not worth the lock.
        if node > self.last_node.load(Ordering::Relaxed) {
            return None;
        }
        self.registry().known(node)
    }

    fn exempt(&self, ip: IpAddr) -> bool {
        (self.limits.exempt_loopback && ip.to_canonical().is_loopback())
            || self.limits.exempt.iter().any(|(net, prefix)| contains(*net, *prefix, ip))
    }
}

/// The beacon's view of the registry.
struct Lookups(Arc<Shared>);

impl Directory for Lookups {
    fn find(&self, node: NodeId) -> Option<Known> {
        self.0.known(node)
    }

    fn reached(&self, ip: IpAddr) -> bool {
        self.0.reached.has(ip, Instant::now())
    }
}

impl Shared {
    /// Tells the beacon. A full queue loses a hint: the node is asked again, or polls.
    pub fn hint(&self, hint: Hint) {
        if let Hint::Registered(node, _) = hint {
            self.last_node.fetch_max(node, Ordering::Relaxed);
        }
        let _ = self.hints.try_send(hint);
    }
}

/// A running registry and beacon. Dropping it stops it without waiting; prefer [`Server::shutdown`].
pub struct Server {
    registry_addr: SocketAddr,
    tls_addr: Option<SocketAddr>,
    beacon_addr: SocketAddr,
    probe_addr: Option<SocketAddr>,
    fingerprint: Option<String>,
    shared: Option<Arc<Shared>>,
    counters: Arc<SharedCounters>,
    stop: watch::Sender<bool>,
    /// Closed when the last task has ended.
    ended: mpsc::Receiver<()>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("registry", &self.registry_addr)
            .field("beacon", &self.beacon_addr)
            .finish_non_exhaustive()
    }
}

fn check(config: &Config) -> Result<(), StartError> {
    let invalid = |name, reason: &str| Err(StartError::Setting { name, reason: reason.to_owned() });
    if config.max_nodes == 0 {
        return invalid("max_nodes", "must be at least 1");
    }
    if config.stale_after < Duration::from_secs(1) {
        return invalid("stale_after", "must be at least one second; nodes send a heartbeat every 60 s");
    }
    if config.limits.max_connections == 0 {
        return invalid("limits.max_connections", "must be at least 1");
    }
    if config.admin_token.as_deref() == Some("") {
        return invalid("admin_token", "must not be empty; leave it out to disable administration");
    }
    if config.tls_listener.as_ref().is_some_and(|listener| listener.tls == Tls::Off) {
        return invalid("tls_listener", "needs a certificate");
    }
    if config.advertise_compat.as_deref().is_some_and(|url| !is_socket_url(url)) {
        return invalid(
            "advertise_compat",
            "must be a wss:// or ws:// URL of at most 256 characters, without user name",
        );
    }
    if config.advertise_beacon.as_deref().is_some_and(|a| {
        !a.rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
    }) {
        return invalid("advertise_beacon", "must be host:port");
    }
    Ok(())
}

fn is_socket_url(url: &str) -> bool {
    let rest = url.strip_prefix("wss://").or_else(|| url.strip_prefix("ws://"));
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let plain = url.bytes().all(|b| b.is_ascii_graphic());
    url.len() <= 256 && plain && !authority.is_empty() && !authority.contains('@')
}

/// Binds; `[::]` becomes `0.0.0.0` where the system has no IPv6.
fn any_family<T>(addr: SocketAddr, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> std::io::Result<T> {
    match bind(addr) {
        Err(e) if addr.ip() == Ipv6Addr::UNSPECIFIED && e.kind() != std::io::ErrorKind::AddrInUse => {
            tracing::debug!(error = %e, "no IPv6 here");
            bind((Ipv4Addr::UNSPECIFIED, addr.port()).into())
        }
        result => result,
    }
}

fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds the beacon's second port.
fn probe_socket(wanted: ProbePort, beacon: SocketAddr) -> Result<Option<UdpSocket>, StartError> {
    let (port, needed) = match wanted {
        ProbePort::Off => return Ok(None),
        ProbePort::At(port) => (port, true),
        ProbePort::Next if beacon.port() == 0 => (0, false),
        ProbePort::Next => match beacon.port().checked_add(1) {
            Some(port) => (port, false),
            None => return Ok(None),
        },
    };
    let addr = SocketAddr::new(beacon.ip(), port);
    match any_family(addr, beacon::socket::bind) {
        Ok(socket) => Ok(Some(socket)),
        Err(source) if needed => Err(StartError::Bind { what: "beacon probe UDP", addr, source }),
        Err(e) => {
            tracing::info!(%addr, error = %e, "no second beacon port: nodes tell the kind of their NAT by other beacons");
            Ok(None)
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError("the system has no random numbers".into()))?;
    Ok(bytes)
}

fn random_id() -> Result<String, StoreError> {
    let bytes: [u8; 16] = random()?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

impl Server {
    /// Opens the store, binds both addresses and starts serving on the current tokio runtime.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        check(&config)?;
        let bind = |what, addr| move |source| StartError::Bind { what, addr, source };
        let tcp =
            any_family(config.registry_addr, listen).map_err(bind("registry TCP", config.registry_addr))?;
        let udp = any_family(config.beacon_addr, beacon::socket::bind)
            .map_err(bind("beacon UDP", config.beacon_addr))?;
        let registry_addr = tcp.local_addr().map_err(bind("registry TCP", config.registry_addr))?;
        let beacon_addr = udp.local_addr().map_err(bind("beacon UDP", config.beacon_addr))?;
        let probe = probe_socket(config.beacon_probe, config.beacon_addr)?;
        let probe_addr = probe.as_ref().and_then(|socket| socket.local_addr().ok());
        let certified = crate::tls::acceptor(&config.tls, &config.store)?;
        let second = match &config.tls_listener {
            None => None,
            Some(TlsListener { addr, tls }) => {
                let tcp = any_family(*addr, listen).map_err(bind("registry TLS", *addr))?;
                let bound = tcp.local_addr().map_err(bind("registry TLS", *addr))?;
                // One certificate for both, even where it lives as long as the process.
                let certified = match &certified {
                    Some(certified) if *tls == config.tls => Some(certified.clone()),
                    _ => crate::tls::acceptor(tls, &config.store)?,
                };
                Some((tcp, bound, certified))
            }
        };
        let tls_addr = second.as_ref().map(|(_, bound, _)| *bound);
        let of_second = second.as_ref().and_then(|(_, _, certified)| certified.as_ref());
        let fingerprint = of_second.or(certified.as_ref()).map(|(_, fingerprint)| fingerprint.clone());
        let door = Door {
            port: tls_addr.unwrap_or(registry_addr).port(),
            fingerprint: fingerprint.clone(),
            url: config.advertise_compat.clone(),
        };
        let (store, writer, mut registry) = {
            let config = config.clone();
            let open = tokio::task::spawn_blocking(move || open(&config, beacon_addr)).await;
            open.map_err(|e| StartError::Store { path: "(store)".into(), reason: e.to_string() })??
        };
        registry.probe_port(probe_addr.map(|addr| addr.port()));
        registry.set_door(door);
        let (hints, hinted) = mpsc::channel(HINT_QUEUE);
        let (compat, arrivals) = Compat::new();
        let (stop, stopping) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let last_node = AtomicU32::new(registry.last_node());
        let registry_id = registry.registry_id().to_owned();
        let shared = Arc::new(Shared {
            registry: Mutex::new(registry),
            store,
            subscriptions: Subscriptions::default(),
            hints,
            compat,
            reached: Reached::new(Instant::now()),
            last_node,
            limits: config.limits.clone(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            budget: Budget::new(&config.limits),
            admission: Admission::new(&config.limits, places(config.limits.max_connections)),
        });
        let counters = Arc::new(SharedCounters::default());
        let beacon = Beacon::new(beacon::Settings {
            id: config.beacon_id,
            peers: config.beacon_peers.clone(),
            exempt: config.limits.exempt.clone(),
            exempt_loopback: config.limits.exempt_loopback,
            registry: registry_id,
            secret: random().map_err(|e| StartError::Store { path: "(random)".into(), reason: e.0 })?,
        });
        let directory = Lookups(shared.clone());
        let inputs = Inputs { hints: hinted, arrivals };
        let (counted, stop_beacon) = (counters.clone(), stopping.clone());
        beacon::task::start(udp, probe, beacon, directory, counted, inputs, stop_beacon, alive.clone())
            .map_err(|source| StartError::Beacon { source })?;
        tokio::spawn(held(alive.clone(), reap(shared.clone(), stopping.clone())));
        if let Some((tcp, _, certified)) = second {
            let tls = certified.map(|(acceptor, _)| acceptor);
            tokio::spawn(accept(tcp, tls, shared.clone(), stopping.clone(), alive.clone()));
        }
        let tls = certified.map(|(acceptor, _)| acceptor);
        tokio::spawn(accept(tcp, tls, shared.clone(), stopping, alive));
        tracing::info!(registry = %registry_addr, beacon = %beacon_addr, tls = ?tls_addr, "rendezvous started");
        Ok(Server {
            registry_addr,
            tls_addr,
            beacon_addr,
            probe_addr,
            fingerprint,
            shared: Some(shared),
            counters,
            stop,
            ended,
            writer: Some(writer),
        })
    }

    /// Address the registry listens on.
    pub fn registry_addr(&self) -> SocketAddr {
        self.registry_addr
    }

    /// Address that is always served with TLS, if there is one.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls_addr
    }

    /// Address the beacon listens on.
    pub fn beacon_addr(&self) -> SocketAddr {
        self.beacon_addr
    }

    /// Address of the beacon's second port, if it has one.
    pub fn probe_addr(&self) -> Option<SocketAddr> {
        self.probe_addr
    }

    /// SHA-256 of the leaf certificate as 64 lower-case hex digits: what clients pin. `None` without TLS.
    pub fn tls_fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        let beacon = self.counters.read();
        let mut stats = Stats {
            beacon_nodes: beacon.nodes,
            relayed: beacon.relayed,
            relayed_bytes: beacon.relayed_bytes,
            relay_dropped: beacon.dropped,
            relay_limited: beacon.relay_limited,
            relay_overrun: beacon.relay_overrun,
            relay_unsent: beacon.relay_unsent,
            answers_unsent: beacon.answers_unsent,
            receive_overflow: beacon::socket::overflowed(self.beacon_addr).unwrap_or(0),
            punches: beacon.punches,
            punch_refused: beacon.punch_refused,
            discover_limited: beacon.discover_limited,
            claims_refused: beacon.claims_refused,
            claims_dropped: beacon.claims_dropped,
            beacon_garbage: beacon.garbage,
            compat_nodes: beacon.sockets,
            compat_dropped: beacon.slow_dropped,
            ..Stats::default()
        };
        if let Some(shared) = &self.shared {
            let (online, known, pairs, networks) = shared.registry().sizes();
            stats.nodes_online = online as u64;
            stats.nodes_known = known as u64;
            stats.trust_pairs = pairs as u64;
            stats.networks = networks as u64;
            let (admission, held) = shared.admission.counters();
            stats.connections = held as u64;
            stats.connections_refused_rate = admission.refused_rate;
            stats.connections_refused_share = admission.refused_share;
            stats.connections_refused_full = admission.refused_full;
            stats.connections_evicted = admission.evicted;
            let budget = shared.budget.counters();
            stats.requests_delayed = budget.delayed;
            stats.requests_refused = budget.refused;
            stats.bad_signatures = budget.bad_signatures;
            stats.subscriptions = shared.subscriptions.len() as u64;
            stats.requests = shared.requests.load(Ordering::Relaxed);
            stats.errors = shared.errors.load(Ordering::Relaxed);
            stats.compat_refused = shared.compat.refused.load(Ordering::Relaxed);
            stats.commits = shared.store.commits();
        }
        stats
    }

    /// Stops accepting, closes connections, makes everything durable and returns.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // Drops the store's queue with the last task, so that the writer ends after what is queued.
        self.shared = None;
        let _ = tokio::time::timeout(SHUTDOWN_WAIT, self.ended.recv()).await;
        if let Some(writer) = self.writer.take() {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        tracing::info!("rendezvous stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

type Opened = (writer::Handle, std::thread::JoinHandle<()>, Registry);

fn open(config: &Config, beacon: SocketAddr) -> Result<Opened, StartError> {
    let path = match &config.store {
        StoreConfig::Memory => "(memory)".to_owned(),
        StoreConfig::File(path) => path.display().to_string(),
    };
    let opened = || -> Result<Opened, StoreError> {
        let mut store = match &config.store {
            StoreConfig::Memory => Sqlite::memory()?,
            StoreConfig::File(path) => Sqlite::open(path)?,
        };
        let snapshot = store.load()?;
        let mut registry = Registry::load(config, beacon, snapshot, random_id()?, Now::read());
        store.commit(&registry.take_writes())?;
        let (handle, thread) = writer::start(Box::new(store)).map_err(|e| StoreError(e.to_string()))?;
        Ok((handle, thread, registry))
    };
    opened().map_err(|e| StartError::Store { path, reason: e.0 })
}

/// Runs a task that shutdown waits for.
async fn held(alive: mpsc::Sender<()>, task: impl Future<Output = ()>) {
    task.await;
    drop(alive);
}

async fn reap(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(REAP_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stopped(&mut stop) => return,
        }
        if shared.store.failed().is_some() {
            continue;
        }
        let mut registry = shared.registry();
        let reaped = registry.reap(Now::read());
        let writes = registry.take_writes();
        if !writes.is_empty() {
            drop(shared.store.submit(writes));
        }
        drop(registry);
        if reaped > 0 {
            tracing::debug!(reaped, "nodes not heard of for too long");
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped(&mut stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let exempt = shared.exempt(peer.ip());
        let place = match shared.admission.admit(peer.ip(), exempt, Instant::now()) {
            Ok(place) => place,
            Err(refusal) => {
                tracing::trace!(%peer, ?refusal, "connection refused");
                // A reset: nothing of it stays in the kernel.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                continue;
            }
        };
        shared.reached.note(peer.ip(), Instant::now());
        let (shared, tls, stop) = (shared.clone(), tls.clone(), stop.clone());
        let alive = alive.clone();
        tokio::spawn(held(alive, async move {
            let evicted = place.evicted();
            tokio::select! {
                () = connection(stream, peer, exempt, place, tls, &shared, stop) => {}
                () = evicted.notified() => tracing::debug!(%peer, "connection gave way to others"),
            }
        }));
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    exempt: bool,
    place: Place,
    tls: Option<TlsAcceptor>,
    shared: &Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let caller = Caller { peer, local: local.ip(), exempt, place, shared };
    let Some(tls) = tls else {
        return caller.serve(stream, stop).await;
    };
    if !exempt && !shared.budget.afford(peer.ip(), crate::cost::TLS_HANDSHAKE) {
        return tracing::debug!(%peer, "no TLS handshake: too much work for this source");
    }
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(TLS_DEADLINE, tls.accept(stream)) => handshake,
        _ = stopped(&mut stop) => return,
    };
    match handshake {
        Ok(Ok(stream)) => caller.serve(stream, stop).await,
        Ok(Err(e)) => tracing::debug!(%peer, error = %e, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

/// A connection whose bytes can be read, and where it comes from.
struct Caller<'a> {
    peer: SocketAddr,
    local: IpAddr,
    exempt: bool,
    place: Place,
    shared: &'a Arc<Shared>,
}

impl Caller<'_> {
    /// Serves what it speaks: the registry's protocol or HTTP.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S, mut stop: watch::Receiver<bool>) {
        let Caller { peer, local, exempt, place, shared } = self;
        let first = tokio::select! {
            first = tokio::time::timeout(conn::FIRST_DEADLINE, Peeked::new(stream)) => first,
            _ = stopped(&mut stop) => return,
        };
        let Ok(Ok(Some(stream))) = first else { return };
        if stream.is_http() {
            return compat::serve(stream, shared, peer, exempt, place, stop).await;
        }
        let session = Session::new(peer, local, exempt);
        conn::serve(stream, shared.clone(), session, Some(place), stop).await;
    }
}

/// How many connections there may be: what is wanted, within what the system lets this process open. Asks for as
/// much as it may have first.
fn places(wanted: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let needed = (wanted as u64).saturating_add(SPARE_FILES);
    if limit.current.is_some_and(|now| now < needed) {
        let more = rustix::process::Rlimit {
            current: Some(limit.maximum.map_or(needed, |most| most.min(needed))),
            maximum: limit.maximum,
        };
        if setrlimit(Resource::Nofile, more).is_ok() {
            limit = more;
        }
    }
    let allowed = limit.current.map_or(u64::MAX, |files| files.saturating_sub(SPARE_FILES).max(files / 2));
    if allowed < wanted as u64 {
        tracing::info!(wanted, allowed, "fewer registry connections than wanted: limit of open files");
    }
    wanted.min(usize::try_from(allowed).unwrap_or(usize::MAX))
}

/// Waits until the server stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which stops its tasks as well.
    let _ = stop.wait_for(|s| *s).await;
}
