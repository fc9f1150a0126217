//! The public face of a node.

use crate::carrier::{self, Carrier, Target, Way};
use crate::command::{Command, Control, Delivery, DialToken};
use crate::config::{NodeConfig, StartError, Transport, split_host_port};
use crate::driver::{Driver, Outlets};
use crate::entrance::Entrance;
use crate::insist::{SessionPin, SessionPins};
use crate::listener::Listener;
use crate::local::near;
use crate::offline::silent;
use crate::peers::Peers;
use crate::registry::{Client, RegistryError};
use crate::rotation::Rotation;
use crate::shared::{Parts, Shared};
use crate::socket::Socket;
use crate::stream::Stream;
use crate::trust::{ApproveOutcome, HandshakeSent, PendingRequest, TrustState, TrustWait, TrustedPeer};
use crate::{identity, random};
use bytes::Bytes;
use pilot_proto::crypto::Identity;
use pilot_proto::engine::{Config, Counters, Engine, PeerStatus, SendError};
use pilot_proto::registry::challenge;
use pilot_proto::stream::{ConnId, ConnStatus, DialError};
use pilot_proto::{Addr, NodeId};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::timeout;

/// Datagrams and events kept for a slow subscriber.
const BROADCAST: usize = 1024;
/// Questions of the engine that wait for the control task.
const CONTROL: usize = 1024;
/// Questions answered at the same time.
const ANSWERING: usize = 64;
/// Word of errors about certificates.
const CERTIFICATE: &str = "certificate";
/// Addresses of one beacon's name that are tried.
const MAX_BEACON_ADDRESSES: usize = 4;
/// UDP port of a beacon that nobody named.
const BEACON_PORT: u16 = 9001;
/// Wait for the beacon's view of our socket before registering: beacon on this host or network, or elsewhere.
const DISCOVER: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(1));
/// Pauses between attempts to reach the registry at start.
const START_PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// No new attempt after this, however long the attempts themselves took.
const START_PATIENCE: Duration = Duration::from_secs(8);
/// Wait for the WebSocket of a node that has nothing else.
const FIRST_SOCKET: Duration = Duration::from_secs(20);
/// Largest stream payload towards this host (bytes): a UDP datagram of 64 KiB less all headers.
const LOOPBACK_PAYLOAD: usize = 61_440;
/// Time the engine gets for the streams' goodbyes, and a little.
const SHUTDOWN: Duration = Duration::from_millis(1200);

/// A running node. Cheap to clone; the last clone's drop stops it.
#[derive(Debug, Clone)]
pub struct Node {
    shared: Arc<Shared>,
    _running: Arc<Running>,
}

/// Stops the node when the last handle is gone.
#[derive(Debug)]
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
        self.0.command(Command::Shutdown(None));
    }
}

/// An event for logs, webhooks and subscribers.
#[derive(Debug, Clone)]
pub struct NodeEvent {
    /// Name, e.g. `conn.established`.
    pub name: &'static str,
    /// Fields.
    pub data: Value,
}

/// A received datagram.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// Address of the sender, as its tunnel proves.
    pub src: Addr,
    /// Port of the sender.
    pub src_port: u16,
    /// Port it was sent to.
    pub dst_port: u16,
    /// Never empty.
    pub payload: Bytes,
}

/// What a node knows about itself.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct NodeStatus {
    pub node_id: NodeId,
    pub address: Addr,
    /// The name the registry accepted; empty: none.
    pub hostname: String,
    pub email: String,
    pub public_key: [u8; 32],
    pub identity_persisted: bool,
    pub public: bool,
    /// Where the registry tells others to find this node.
    pub endpoint: String,
    pub beacon_addr: String,
    pub registry_addr: String,
    pub encrypt: bool,
    pub uptime: Duration,
    pub peers: Vec<PeerStatus>,
    pub connections: Vec<ConnStatus>,
    pub counters: Counters,
    /// Bound listeners.
    pub ports: usize,
    pub handshake_pending: usize,
    /// Another machine runs this identity now; this node has stopped registering.
    pub superseded: bool,
    /// `udp`, or `compat` while datagrams go over a WebSocket.
    pub transport: &'static str,
    /// Registry answers heartbeats.
    pub registry_ok: bool,
    /// Why it does not; empty if it does.
    pub registry_error: String,
    /// How the router maps a port to this node: `pcp`, `nat-pmp`, `upnp`, `none`, or `off`.
    pub port_mapping: &'static str,
    /// Everything that was to be kept could be written. If not, the warnings say what, why, and what to do.
    pub disk_ok: bool,
    /// Problems a user should know (a refused hostname, changed keys, a full disk), bounded.
    pub warnings: Vec<String>,
}

fn secret<const N: usize>() -> Result<[u8; N], StartError> {
    let mut out = [0; N];
    random(&mut out).map_err(StartError::Identity)?;
    Ok(out)
}

/// The addresses of a beacon that there is a way to. IPv4 first: behind a NAT the beacon's view is worth most there,
/// while IPv6 addresses are mostly what they seem.
async fn resolve_host(address: &str) -> Result<Vec<SocketAddr>, String> {
    let all = tokio::net::lookup_host(address).await.map_err(|e| format!("beacon {address}: {e}"))?;
    let (v4, v6): (Vec<_>, Vec<_>) = all.partition(SocketAddr::is_ipv4);
    let all: Vec<SocketAddr> = v4.into_iter().chain(v6).take(MAX_BEACON_ADDRESSES).collect();
    let first = *all.first().ok_or_else(|| format!("beacon {address}: no address"))?;
    let mut routed: Vec<SocketAddr> = all.into_iter().filter(|at| has_route(*at)).collect();
    if routed.is_empty() {
        // The network may come later.
        routed.push(first);
    }
    Ok(routed)
}

/// The registry's certificate is not the one expected.
fn wrong_certificate(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable(text) if text.starts_with("registry: ") && text.contains(CERTIFICATE))
}

/// The system knows a way there. Nothing is sent.
fn has_route(to: SocketAddr) -> bool {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    std::net::UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(to)).is_ok()
}

impl Node {
    /// Binds, registers, starts. Returns when the node is registered.
    ///
    /// # Errors
    /// The identity file, a setting, the UDP port or the registry; the text names the cause. A registry that
    /// cannot be reached is tried for about 8 s; a node that was registered there before starts without it then, sooner,
    /// says so in its status, and registers as soon as it can.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        for beacon in &config.beacons {
            split_host_port(beacon).map_err(|e| StartError::Config(format!("beacon: {e}")))?;
        }
        for endpoint in &config.endpoints {
            split_host_port(endpoint).map_err(|e| StartError::Config(format!("endpoint: {e}")))?;
        }
        let trust_of_registry = config.trust_of_registry();
        let registry =
            Client::with(&config.registry, trust_of_registry.as_ref(), &config.proxies, config.transport)
                .map_err(StartError::Config)?;
        let entrance = Entrance::load(&config);
        Target::find(&config, registry.host(), None).map_err(StartError::Config)?;
        let (identity, rotation) = Node::identities(&config).map_err(StartError::Identity)?;
        let (peers, unread) = Peers::load(config.identity_path.as_deref());
        let (session_pins, unpinned) = SessionPins::load(config.identity_path.as_deref());
        let session_pins = Arc::new(session_pins);
        let bind_error = |error| StartError::Bind { addr: config.listen, error };
        let (socket, taken) = Socket::bind_again(config.listen, peers.port()).map_err(bind_error)?;
        let bound = socket.local_addr().map_err(bind_error)?;
        let trust = TrustState::load(&config, identity.clone()).map_err(StartError::Config)?;
        peers.set_port(bound.port());
        let instance = secret::<8>()?.iter().map(|b| format!("{b:02x}")).collect();

        // The engine runs before the node has a number, so that the beacon's answer comes to this very socket.
        let engine = Engine::new(
            Config {
                tunnel_secret: secret()?,
                rng_seed: secret()?,
                encrypt: config.encrypt,
                session_upgrade: config.session_upgrade,
                allow_anonymous: Vec::new(),
                public: config.public,
                strict_dataplane_trust: config.strict_dataplane_trust,
                relay_only: config.relay_only,
                loopback_payload: LOOPBACK_PAYLOAD,
                idle_timeout: config.idle_timeout,
                keepalive: config.keepalive,
                user_timeout: config.user_timeout,
                max_conns_per_port: config.max_conns_per_port,
                max_conns_total: config.max_conns_total,
                syn_rate_limit: config.syn_rate_limit,
                max_segments: socket.max_segments(),
            },
            identity.clone(),
            0,
            Instant::now(),
        );
        let (commands, asked) = mpsc::unbounded_channel();
        let (control, mut questions) = mpsc::channel(CONTROL);
        let (events, _) = broadcast::channel(BROADCAST);
        let (datagrams, _) = broadcast::channel(BROADCAST);
        let outlets = Outlets {
            control,
            datagrams: datagrams.clone(),
            events: events.clone(),
            session_pins: session_pins.clone(),
        };
        let (told, way) = watch::channel(Way::Udp);
        let (driver_end, socket_end) = carrier::link();
        let carrier = Carrier::new(socket, driver_end, config.transport, config.relay_only, told);
        let driver = Driver::new(engine, carrier, asked, commands.downgrade(), outlets);
        let proxies = config.proxies.clone();
        let shared = Arc::new(Shared::new(Parts {
            config,
            commands,
            registry,
            trust,
            peers,
            session_pins,
            events,
            datagrams,
            identity,
            rotation,
            bound,
            way,
            entrance,
            instance,
        }));
        shared.second_way();
        unread.into_iter().chain(unpinned).for_each(|warning| shared.warn(warning));
        if let Some(error) = taken {
            shared.warn(format!("{error}; this node has UDP port {} now", bound.port()));
        }
        // From here on every way out stops the driver.
        let node = Node { shared: shared.clone(), _running: Arc::new(Running(shared.clone())) };
        tokio::spawn(driver.run());
        shared.look_at_interfaces();
        if shared.config.transport != Transport::Udp {
            shared.spawn(carrier::keep(socket_end, proxies, shared.clone()));
        }

        let (connected, beacon) = tokio::join!(node.reach_registry(), node.discover(&mut questions));
        let refused = |e: RegistryError| match e {
            RegistryError::Refused(text) => StartError::Register(text),
            RegistryError::Unreachable(text) if text.contains(CERTIFICATE) => {
                StartError::Register(text.trim_start_matches("registry: ").to_owned())
            }
            RegistryError::Unreachable(text) => StartError::Unreachable(text),
            RegistryError::TimedOut => StartError::Unreachable(format!(
                "registry {} takes connections and does not answer",
                shared.registry.address()
            )),
        };
        shared.place_changed();
        let registered = async {
            connected?;
            shared.settle_rotation().await?;
            shared.register().await
        };
        let offline = match registered.await {
            Ok(()) => false,
            Err(cause) => {
                let own = shared.remembered().filter(|_| silent(&cause) && !wrong_certificate(&cause));
                // Which key is ours is not known during a rotation.
                let own = own.filter(|_| shared.rotation.try_lock().is_ok_and(|rotation| rotation.is_none()));
                let Some(own) = own else { return Err(refused(cause)) };
                shared.start_offline(&own, &cause);
                true
            }
        };
        shared.entrance.changed();
        if !offline {
            node.first_way().await?;
        }
        shared.greet_recent_peers();
        if offline {
            node.settle_beacon(beacon).await;
        } else {
            tokio::join!(shared.announce(false), node.settle_beacon(beacon));
        }
        if let Some(listener) = node.listen(crate::handshake::PORT).await {
            shared.spawn(shared.clone().serve_handshakes(listener));
        }
        shared.spawn(shared.clone().answer(questions));
        shared.spawn(shared.clone().keep_watching());
        shared.spawn(shared.clone().keep_mapped());
        shared.spawn(shared.clone().keep_way());
        shared.spawn(shared.clone().keep_registered());
        shared.spawn(shared.clone().keep_subscribed());
        shared.spawn(shared.clone().keep_polling());
        shared.spawn(shared.clone().keep_saving());
        shared.spawn(shared.clone().keep_peers());
        shared.spawn(shared.clone().keep_pins());
        if offline {
            return Ok(node);
        }
        let (address, endpoint, id) = shared.state(|s| (s.address, s.endpoint.clone(), s.node));
        tracing::info!(node = id, %address, %endpoint, "registered");
        shared.publish("node.registered", json!({"address": address.to_string(), "endpoint": endpoint}));
        shared.publish(
            "agent.registered",
            json!({"address": address.to_string(), "endpoint": endpoint, "node_id": id}),
        );
        Ok(node)
    }

    /// The key of the identity file, and the one that may have taken its place.
    fn identities(config: &NodeConfig) -> Result<(Arc<Identity>, Option<Rotation>), String> {
        let Some(path) = &config.identity_path else { return Ok((Arc::new(identity::generate()?), None)) };
        if let Some(problem) = Rotation::orphaned(path) {
            return Err(problem);
        }
        let identity = Arc::new(identity::load_or_create(&config.disk, path)?);
        let rotation = Rotation::load(&config.disk, path, &identity)?;
        Ok((identity, rotation))
    }

    /// With the WebSocket alone, the node has started when it is open.
    async fn first_way(&self) -> Result<(), StartError> {
        if self.shared.config.transport != Transport::Compat {
            return Ok(());
        }
        self.shared.entrance.opened(FIRST_SOCKET).await.map_err(StartError::Unreachable)
    }

    async fn reach_registry(&self) -> Result<(), RegistryError> {
        // One who can do without tries again when it runs.
        let tries = if self.shared.remembered().is_some() { 1 } else { START_PAUSES.len() };
        let mut pauses = START_PAUSES.iter().take(tries);
        let began = Instant::now();
        loop {
            let error = match self.shared.registry.warm_up().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A wrong certificate does not become right by waiting.
            if wrong_certificate(&error) {
                return Err(error);
            }
            match pauses.next().filter(|_| began.elapsed() < START_PATIENCE) {
                Some(pause) => {
                    tracing::warn!("{error}; trying again in {} ms", pause.as_millis());
                    tokio::time::sleep(*pause).await;
                }
                None => return Err(error),
            }
        }
    }

    /// Asks the first beacon that answers how it sees our socket. `None`: none is configured.
    async fn discover(&self, questions: &mut mpsc::Receiver<Control>) -> Option<SocketAddr> {
        let mut first = None;
        if self.shared.config.transport == Transport::Compat {
            return None;
        }
        for name in &self.shared.config.beacons {
            let addresses = match resolve_host(name).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    self.shared.warn(error);
                    continue;
                }
            };
            for beacon in addresses {
                first.get_or_insert((beacon, name));
                self.shared.command(Command::Beacon(Some(beacon)));
                let limit = if near(beacon) { DISCOVER.0 } else { DISCOVER.1 };
                let answer = async {
                    while let Some(question) = questions.recv().await {
                        if let Control::Observed(at) = question {
                            return Some(at);
                        }
                    }
                    None
                };
                if let Ok(Some(at)) = timeout(limit, answer).await {
                    self.shared.state(|s| {
                        s.observed = Some(at);
                        s.beacon.clone_from(name);
                    });
                    return Some(beacon);
                }
            }
            self.shared.warn(format!("beacon {name} does not answer"));
        }
        let (beacon, name) = first?;
        self.shared.state(|s| s.beacon.clone_from(name));
        self.shared.command(Command::Beacon(Some(beacon)));
        Some(beacon)
    }

    /// Registers with every configured beacon; uses the registry's own if none was configured.
    async fn settle_beacon(&self, configured: Option<SocketAddr>) {
        if self.shared.config.transport == Transport::Compat {
            return;
        }
        let beacons = &self.shared.config.beacons;
        if configured.is_some() || !beacons.is_empty() {
            // One alone has been found, or warned of, already.
            if beacons.len() > 1 {
                let mut all = Vec::new();
                for name in beacons {
                    // One that has no address was warned of when the first that answers was looked for, or is not needed.
                    let Ok(addresses) = resolve_host(name).await else { continue };
                    // The family in which it answered works.
                    let answered = addresses.iter().find(|at| Some(**at) == configured);
                    all.extend(answered.or(addresses.first()));
                }
                if all.len() > 1 {
                    self.shared.command(Command::Beacons(all));
                }
            }
            return;
        }
        let port = self.shared.registry.features().beacon_port.unwrap_or(BEACON_PORT);
        let host = self.shared.registry.host();
        let name = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        match resolve_host(&name).await {
            Ok(addresses) => {
                // The family in which the registry was reached works.
                let reached = self.shared.registry.reached();
                let same = addresses.iter().find(|at| Some(at.ip()) == reached);
                self.shared.command(Command::Beacon(same.or(addresses.first()).copied()));
            }
            Err(error) => self.shared.warn(error),
        }
        self.shared.state(|s| s.beacon = name);
    }

    /// This node's number.
    pub fn node_id(&self) -> NodeId {
        self.shared.node()
    }

    /// This node's backbone address.
    pub fn address(&self) -> Addr {
        self.shared.state(|s| s.address)
    }

    /// The key in force.
    pub fn identity(&self) -> Arc<Identity> {
        self.shared.identity()
    }

    /// A snapshot.
    pub async fn status(&self) -> NodeStatus {
        let engine = self.shared.engine_status().await;
        let handshake_pending = self.shared.trust.pending_count();
        let config = &self.shared.config;
        let uptime = self.shared.started.elapsed();
        let troubles = config.disk.troubles();
        self.shared.state(|s| NodeStatus {
            node_id: s.node,
            address: s.address,
            hostname: s.hostname.clone(),
            email: config.email.clone().unwrap_or_default(),
            public_key: *s.identity.public_key(),
            identity_persisted: config.identity_path.is_some(),
            public: s.public,
            endpoint: s.endpoint.clone(),
            beacon_addr: s.beacon.clone(),
            registry_addr: config.registry.clone(),
            encrypt: config.encrypt,
            uptime,
            peers: engine.peers,
            connections: engine.connections,
            counters: engine.counters,
            ports: engine.ports,
            handshake_pending,
            superseded: s.superseded,
            transport: self.shared.transport(),
            registry_ok: s.registry_ok,
            registry_error: s.registry_error.clone(),
            port_mapping: match s.mapping {
                Some((protocol, _)) => protocol,
                None if config.port_mapping => "none",
                None => "off",
            },
            disk_ok: troubles.is_empty(),
            warnings: s.warnings.iter().cloned().chain(troubles).collect(),
        })
    }

    // ---- streams -----------------------------------------------------------------------------------------

    /// Opens a stream. Dropping the future gives the dial up.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, to: Addr, port: u16) -> Result<Stream, DialError> {
        dial(&self.shared, to, port).await
    }

    /// Binds a port. `None`: it is already bound.
    pub async fn listen(&self, port: u16) -> Option<Listener> {
        let incoming = self.shared.ask(|reply| Command::Listen { port, reply }).await.flatten()?;
        Some(Listener::new(port, incoming, self.shared.commands.clone()))
    }

    /// Closes a connection in order by its id, whoever holds it, a built-in service for instance (spec 07 section 8.5). An id
    /// that is not in use is ignored.
    pub fn close_connection(&self, id: u32) {
        // The driver is gone only when the node has stopped.
        let _ = self.shared.commands.send(Command::Close(ConnId(id)));
    }

    // ---- datagrams ---------------------------------------------------------------------------------------

    /// Sends one datagram, unacknowledged. `Ok` means that it is on its way or waits for the key exchange.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_datagram(&self, to: Addr, port: u16, payload: Bytes) -> Result<(), SendError> {
        self.offer_datagram(to, port, payload).await?.resolved().await
    }

    /// As [`Node::send_datagram`], without waiting for the registry to say where the peer is: datagrams offered one after
    /// the other keep their order.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer_datagram(&self, to: Addr, port: u16, payload: Bytes) -> Result<Delivery, SendError> {
        let asked = self.shared.ask(|reply| Command::SendDatagram { to, port, payload, reply }).await;
        asked.unwrap_or_else(|| {
            Err(SendError::Resolve { node: to.node, reason: "this node has stopped".into() })
        })
    }

    /// Every datagram that passed the gates; every subscriber sees all of them.
    pub fn datagrams(&self) -> broadcast::Receiver<Datagram> {
        self.shared.datagrams.subscribe()
    }

    /// Every event from now on.
    pub fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.shared.events.subscribe()
    }

    /// Publishes an event of a service.
    pub fn publish(&self, name: &'static str, data: Value) {
        self.shared.publish(name, data);
    }

    // ---- directory ---------------------------------------------------------------------------------------

    /// The registry's object for a name (`resolve_hostname_ok`), cached 60 s as spec 07 section 12 says.
    ///
    /// # Errors
    /// The registry's, passed on. The same for every registry request below.
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, RegistryError> {
        self.shared.name(hostname).await
    }

    /// The registry's record of a node (`lookup_ok`).
    pub async fn lookup(&self, node: NodeId) -> Result<Value, RegistryError> {
        let record = self.shared.lookup(node).await?;
        if node == self.node_id() {
            self.shared.own_record(&record);
        }
        Ok(record)
    }

    /// A request about this node itself, signed over `<type>:<node_id>`.
    async fn own_request(&self, kind: &str, mut fields: Value) -> Result<Value, RegistryError> {
        let (node, identity) = self.shared.state(|s| (s.node, s.identity.clone()));
        fields["type"] = kind.into();
        fields["node_id"] = node.into();
        fields["signature"] = identity.sign_text(&challenge::own(kind, node)).into();
        self.shared.registry.request(fields).await
    }

    /// Asks the registry anew where a peer is and tries all its addresses directly, at once and from both sides. Sessions and
    /// streams are kept. The error is why the peer cannot be resolved; addresses known before are tried nevertheless.
    pub async fn prefer_direct(&self, node: NodeId) -> Result<(), String> {
        let renewed = self.shared.renew_route(node).await;
        self.shared.command(Command::TryDirect(node));
        renewed
    }

    /// Takes a name, or gives it back if `hostname` is empty.
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, RegistryError> {
        let answer = self.own_request("set_hostname", json!({"hostname": hostname})).await?;
        let old = self.shared.state(|s| {
            s.wanted_hostname = Some(hostname.to_owned()).filter(|h| !h.is_empty());
            s.warnings.retain(|w| !w.starts_with("hostname "));
            std::mem::replace(&mut s.hostname, hostname.to_owned())
        });
        self.shared.remember_settings();
        self.shared.directory.forget_name(&old);
        self.shared.directory.forget_name(hostname);
        Ok(answer)
    }

    /// Extension: a hidden name resolves only for trusted requesters.
    pub async fn set_hidden(&self, hidden: bool) -> Result<Value, RegistryError> {
        if !self.shared.registry.features().hidden {
            return Err(RegistryError::Refused("this registry cannot hide names".into()));
        }
        let (node, identity) = self.shared.state(|s| (s.node, s.identity.clone()));
        let signature = identity.sign_text(&format!("set_hidden:{node}:{}", u8::from(hidden)));
        let request =
            json!({"type": "set_hidden", "node_id": node, "hidden": hidden, "signature": signature});
        self.shared.registry.request(request).await
    }

    /// Replaces the tags.
    pub async fn set_tags(&self, tags: &[String]) -> Result<Value, RegistryError> {
        let answer = self.own_request("set_tags", json!({"tags": tags})).await?;
        self.shared.state(|s| s.tags = tags.to_vec());
        Ok(answer)
    }

    /// Opens or closes this node to strangers.
    pub async fn set_public(&self, public: bool) -> Result<Value, RegistryError> {
        let answer = self.own_request("set_visibility", json!({"public": public})).await?;
        self.shared.state(|s| s.public = public);
        self.shared.command(Command::Public(public));
        Ok(answer)
    }

    /// Removes this node's record; the next heartbeat brings it back.
    pub async fn deregister(&self) -> Result<Value, RegistryError> {
        self.own_request("deregister", json!({})).await
    }

    /// New identity key, kept on disk before the registry is asked (spec 02 section 16).
    ///
    /// # Errors
    /// The key cannot be kept or the registry refuses: the old key stays in force. Without an answer the rotation is
    /// finished when the registry answers again; both keys are kept until then.
    pub async fn rotate_key(&self) -> Result<Value, RegistryError> {
        self.shared.rotate().await
    }

    /// Any registry request, passed through; `type` is in `request`. Used for network commands.
    pub async fn registry_request(&self, request: Value) -> Result<Value, RegistryError> {
        let kind = request["type"].as_str().unwrap_or_default().to_owned();
        let network = request["network_id"].clone();
        let answer = self.shared.registry.request(request).await?;
        if matches!(&kind[..], "join_network" | "leave_network" | "respond_invite")
            && let Ok(record) = self.shared.lookup(self.node_id()).await
        {
            self.shared.own_record(&record);
        }
        match &kind[..] {
            "join_network" => self.shared.publish("network.joined", json!({"network_id": network})),
            "leave_network" => self.shared.publish("network.left", json!({"network_id": network})),
            _ => {}
        }
        Ok(answer)
    }

    // ---- trust -------------------------------------------------------------------------------------------

    /// Whether this node trusts `node`.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        self.shared.trust.is_trusted(node)
    }

    /// Asks a node for trust, directly or through the registry; `Err` if both failed. Returns when the request
    /// is sent, not when it is answered.
    pub async fn handshake(&self, node: NodeId, justification: &str) -> Result<HandshakeSent, String> {
        self.shared.handshake(node, justification).await
    }

    /// Grants a waiting request.
    pub async fn approve(&self, node: NodeId) -> Result<ApproveOutcome, String> {
        self.shared.approve(node).await
    }

    /// Refuses a waiting request; false: none waited.
    pub async fn reject(&self, node: NodeId, reason: &str) -> Result<bool, String> {
        self.shared.reject(node, reason).await
    }

    /// Ends trust in a node and tells it.
    pub async fn revoke(&self, node: NodeId) -> Result<(), String> {
        self.shared.revoke(node).await
    }

    /// Requests that wait for a decision.
    pub async fn pending(&self) -> Vec<PendingRequest> {
        self.shared.trust.pending()
    }

    /// Trusted peers.
    pub async fn trusted(&self) -> Vec<TrustedPeer> {
        self.shared.trust.trusted()
    }

    /// Waits until `node` is trusted, which then is on the disk, refuses, or the time is up. Without time it tells how
    /// things stand.
    pub async fn wait_for_trust(&self, node: NodeId, timeout: Duration) -> TrustWait {
        self.shared.wait_for_trust(node, timeout).await
    }

    /// Fetches relayed requests and answers from the registry now (at most once per 2 s).
    pub async fn poll_handshakes(&self) {
        self.shared.poll_handshakes_on_demand().await;
    }

    /// Peers this node insists on upgraded sessions with, by node id (docs/extensions.md).
    pub fn session_pins(&self) -> Vec<SessionPin> {
        self.shared.session_pins.list()
    }

    /// Stops insisting on upgraded sessions with a node; the next one starts it again. False: it did not.
    ///
    /// # Errors
    /// The file could not be written; the pin stays.
    pub async fn clear_session_pin(&self, node: NodeId) -> Result<bool, String> {
        self.shared.clear_pin(node).await
    }

    /// Closes streams with FIN, saves trust, stops. Takes about a second at most.
    pub async fn shutdown(&self) {
        let status = self.shared.engine_status().await;
        self.shared.publish(
            "daemon.shutting_down",
            json!({
                "open_connections": status.connections.len(),
                "known_peers": status.peers.len(),
                "uptime_seconds": self.shared.started.elapsed().as_secs(),
            }),
        );
        // Where peers are is known as long as the engine runs.
        self.shared.note_peers().await;
        let _ = timeout(SHUTDOWN, self.shared.ask(|reply| Command::Shutdown(Some(reply)))).await;
        // A poll under way may hold what the registry has already forgotten.
        let _ = timeout(SHUTDOWN, self.shared.trust.polling.finished()).await;
        self.shared.stop.send_replace(true);
        self.shared.unmap().await;
        let _ = self.shared.save_trust().await;
        self.shared.save_peers().await;
        self.shared.save_pins().await;
    }
}

/// As [`Node::dial`], for tasks of the node.
pub(crate) async fn dial(shared: &Shared, to: Addr, port: u16) -> Result<Stream, DialError> {
    /// Gives the dial up if its future is dropped.
    struct Pending<'a>(&'a Shared, DialToken, bool);
    impl Drop for Pending<'_> {
        fn drop(&mut self) {
            if !self.2 {
                self.0.command(Command::CancelDial(self.1));
            }
        }
    }
    static TOKENS: AtomicU64 = AtomicU64::new(0);
    let token = DialToken(TOKENS.fetch_add(1, Ordering::Relaxed));
    let mut pending = Pending(shared, token, false);
    let answer = shared.ask(|reply| Command::Dial { to, port, token, reply }).await;
    pending.2 = true;
    answer.unwrap_or(Err(DialError::Cancelled))
}

impl Shared {
    /// Answers the engine's questions, several at a time.
    async fn answer(self: Arc<Self>, mut questions: mpsc::Receiver<Control>) {
        let room = Arc::new(Semaphore::new(ANSWERING));
        while let Some(question) = questions.recv().await {
            match question {
                Control::Observed(at) => self.observed(at),
                Control::Notified => self.poll_on_notice(),
                Control::KeyProven(node, key) => self.key_proven(node, key),
                Control::OtherKeyProven(node, key) => self.other_key_proven(node, key),
                Control::DowngradeRefused(node) => self.downgrade_refused(node),
                Control::NeedKey(_) | Control::NeedRoute(_) | Control::Knock(_) => {
                    let Ok(permit) = room.clone().acquire_owned().await else { return };
                    let shared = self.clone();
                    self.spawn(async move {
                        let _permit = permit;
                        match question {
                            Control::NeedKey(node) => shared.answer_key(node).await,
                            Control::NeedRoute(node) => shared.answer_route(node).await,
                            Control::Knock(node) => shared.answer_knock(node).await,
                            _ => {}
                        }
                    });
                }
            }
        }
    }
}
