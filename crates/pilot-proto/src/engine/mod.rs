//! One node's protocol behind one poll contract: tunnels, paths, streams, datagrams, control packets.
//!
//! The driver's loop: feed datagrams and deadlines in, then call [`Engine::poll_output`] until it returns
//! [`Output::Timeout`].

mod admit;
mod beacons;
mod calls;
mod deliver;
mod discovery;
mod drops;
mod gate;
mod half;
mod handshake;
mod mtu;
mod nat;
mod paths;
mod peer;
mod pins;
mod receive;
mod recovery;
mod send;
#[cfg(test)]
mod tests;
mod timers;
mod upgrade;

pub use beacons::BeaconStatus;
pub use discovery::DiscoverProof;
pub use drops::Drops;
pub use pins::MAX_PINS;

use crate::NodeId;
use crate::crypto::{Identity, Ratchet, TunnelSecret, hkdf_pair};
use crate::path::Candidate;
use crate::path::beacons::Beacons;
use crate::path::budget::Budget;
use crate::path::nat::Nat;
use crate::stream::{self, CloseReason, ConnId, ConnStatus, DialError, Ingress, StreamEvent, Streams};
use crate::tunnel::limits::Bucket;
use crate::tunnel::pending::Taken;
use crate::wire::addr::Addr;
use admit::Limits;
use bytes::Bytes;
use discovery::Proofs;
use gate::Gate;
use half::Half;
use handshake::Lookup;
use nat::NatProbes;
use peer::Peer;
use pins::Pins;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use send::{Carry, Ready};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroize as _;

/// Peers in the table.
pub const MAX_PEERS: usize = 65_536;
/// Ed25519 keys of nodes that are not (yet) peers are forgotten above this number.
const MAX_KEYS: usize = MAX_PEERS;
/// Keys remembered that contradict a node's own; one gives way to a new one.
const MAX_DISPUTED: usize = 256;
/// Events that may wait for the driver.
const MAX_EVENTS: usize = 8192;
/// Bytes of datagrams among them.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// Settings of an engine.
#[derive(Clone)]
pub struct Config {
    /// 32 secret bytes for this process's X25519 tunnel key, from the operating system's generator.
    pub tunnel_secret: [u8; 32],
    /// 32 secret bytes from the operating system's generator: seed of the engine's own generators (ephemeral keys, nonce
    /// prefixes, sequence numbers, ports, jitter). The engine keeps neither it nor `tunnel_secret`.
    pub rng_seed: [u8; 32],
    /// Tunnel encryption; off only on the operator's word (spec 02 section 14).
    pub encrypt: bool,
    /// Offer and take the session upgrade among our own nodes (docs/extensions.md).
    pub session_upgrade: bool,
    /// Peers (by the operator's word) with whom an unauthenticated session is acceptable. Empty by default.
    pub allow_anonymous: Vec<NodeId>,
    /// Anyone may open streams to us.
    pub public: bool,
    /// On a private node: ignore key exchanges and pings of untrusted nodes (spec 02 section 13).
    pub strict_dataplane_trust: bool,
    /// Never send to or learn direct addresses.
    pub relay_only: bool,
    /// Largest stream payload towards peers on this host's loopback (bytes). Elsewhere it is 1,152, and towards our own
    /// nodes what the path is found to carry.
    pub loopback_payload: usize,
    /// Idle time after which a stream is closed (default 120 s) and keepalive interval (default 60 s).
    pub idle_timeout: Duration,
    /// Keepalive interval of streams.
    pub keepalive: Duration,
    /// Silence of one of our own nodes that its streams outlive (default 15 min).
    pub user_timeout: Duration,
    /// Connections per port (default 1,024).
    pub max_conns_per_port: usize,
    /// Connections in total (default 65,536).
    pub max_conns_total: usize,
    /// SYNs per second from all sources together (default 100; 0 = no limit).
    pub syn_rate_limit: u32,
    /// Most datagrams of equal size the socket layer takes in one batch (GSO); 1 without GSO.
    pub max_segments: usize,
}

impl std::fmt::Debug for Config {
    /// Nothing secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Config { encrypt, session_upgrade, public, relay_only, .. } = self;
        f.debug_struct("Config")
            .field("encrypt", encrypt)
            .field("session_upgrade", session_upgrade)
            .field("public", public)
            .field("relay_only", relay_only)
            .finish_non_exhaustive()
    }
}

/// Where a peer is (a `resolve` answer).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// Addresses to try directly, best first; the first [`MAX_CANDIDATES`] count. Empty: relay only.
    pub direct: Vec<Candidate>,
    /// Pin the relay, do not punch.
    pub relay_only: bool,
}

/// Something to send. The bytes are in the buffer given to [`Engine::poll_output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// If set, the buffer holds several datagrams of this size (the last may be shorter).
    pub segment_size: Option<usize>,
}

/// What the engine wants from its driver.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send the buffer.
    Transmit(Transmit),
    /// Something happened.
    Event(Event),
    /// Nothing more to do until then (or until input arrives, if `None`).
    Timeout(Option<Instant>),
}

/// Events of the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Please look up the Ed25519 key of this node and answer with [`Engine::set_peer_key`].
    NeedKey(NodeId),
    /// Please resolve this node and answer with [`Engine::set_route`].
    NeedRoute(NodeId),
    /// See [`StreamEvent`].
    Stream(StreamEvent),
    /// A datagram that passed the gates.
    Datagram {
        /// Source address.
        src: Addr,
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Payload, never empty.
        payload: Bytes,
    },
    /// An untrusted node knocked on this private node. The driver may ask the registry (`check_trust`), rate
    /// limited, and answer with [`Engine::admit`]; the peer's retry then passes.
    Knock {
        /// Who.
        node: NodeId,
        /// Destination port.
        port: u16,
        /// A datagram rather than a SYN.
        datagram: bool,
    },
    /// A session was installed or confirmed by a key exchange.
    TunnelEstablished {
        /// Peer.
        node: NodeId,
        /// Its key was verified.
        authenticated: bool,
        /// The exchange came through the relay.
        relay: bool,
        /// It replaced an earlier session.
        rekeyed: bool,
    },
    /// The peer proved possession of this Ed25519 key (for trust pinning, spec 06 section 2.9).
    PeerKeyProven {
        /// Peer.
        node: NodeId,
        /// Its key.
        key: [u8; 32],
    },
    /// Somebody proved possession of the key of [`Engine::dispute_key`]; no session came of it.
    OtherKeyProven {
        /// Node it claims to be.
        node: NodeId,
        /// Its key.
        key: [u8; 32],
    },
    /// The session upgrade was had with this peer for the first time, or under a new identity: store it durably, so that
    /// [`Engine::set_pins`] can name it after a restart.
    Pinned {
        /// Peer.
        node: NodeId,
        /// Its identity.
        key: [u8; 32],
    },
    /// The beacon says something waits at the registry.
    Notified,
    /// The beacon sees our socket at this address.
    Observed(SocketAddr),
    /// An event for logs, webhooks and subscribers: name and fields of spec 02 section 18 / spec 03 section 26.
    Publish(&'static str, serde_json::Value),
    /// A pong: reply to a ping of ours.
    Pong {
        /// Peer.
        node: NodeId,
        /// The ping's payload.
        payload: Bytes,
    },
}

/// Why a datagram could not be sent; texts of spec 07 section 9.1 without the `sendto: ` prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Node 0xFFFFFFFF.
    #[error("broadcast address requires admin token: use BroadcastDatagram")]
    Broadcast,
    /// Over 65,535 bytes.
    #[error("marshal: payload too large: {0} bytes (max 65535)")]
    TooLarge(usize),
    /// More than one UDP datagram can carry.
    #[error("message too long: {0} bytes (max {1} on this path)")]
    TooLong(usize, usize),
    /// No free local port.
    #[error("ephemeral ports exhausted")]
    PortsExhausted,
    /// The peer's queue for an unfinished key exchange is full.
    #[error(
        "pending queue full: newest packet dropped to preserve ordered prefix while key exchange pending (peer_node_id={0})"
    )]
    PendingFull(NodeId),
    /// 256 peers already wait for a key exchange.
    #[error("too many pending key exchanges")]
    TooManyPending,
    /// The peer could not be resolved.
    #[error("resolve node {node}: {reason}")]
    Resolve {
        /// Peer.
        node: NodeId,
        /// Cause.
        reason: String,
    },
    /// See [`DialError::Downgrade`].
    #[error("{}", DialError::Downgrade(*.0))]
    Downgrade(NodeId),
}

/// One tunnel peer, as `info` and `peers` show it (spec 07 section 10.1) plus what our own CLI adds.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct PeerStatus {
    pub node_id: NodeId,
    pub authenticated: bool,
    pub encrypted: bool,
    pub endpoint: String,
    pub relay: bool,
    /// Bytes of UDP payload the path in use is known to carry; 0 without a path.
    pub mtu: usize,
    /// `upgraded`, `compat` or `none` (docs/extensions.md).
    pub session: &'static str,
    /// The upgrade was had with this peer, and nothing less is accepted.
    pub pinned: bool,
    /// Key exchanges of this peer refused because they came without the upgrade.
    pub downgrades_refused: u64,
    /// `direct`, `relay` or `none`.
    pub path: &'static str,
    /// Where the direct address in use is known from: a name of [`CandidateKind`](crate::path::CandidateKind).
    pub path_kind: Option<&'static str>,
    /// Seconds since the way in use became what it is.
    pub path_since: u64,
    /// Round trip of the last probe on the way in use.
    pub path_rtt_ms: Option<f64>,
    /// Why it is not a better one, in words; empty if there is none.
    pub path_why: String,
}

/// Tunnel counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub bytes_sent: u64,
    pub bytes_recv: u64,
    pub pkts_sent: u64,
    pub pkts_recv: u64,
    pub encryption_success: u64,
    pub encryption_failure: u64,
    pub accept_queue_drops: u64,
    /// Datagrams sent to find out whether their size fits (docs/extensions.md, "Path MTU").
    pub mtu_probes: u64,
}

/// The part of the settings that concerns streams.
fn stream_config(config: &Config) -> stream::Config {
    stream::Config {
        idle_timeout: config.idle_timeout,
        keepalive: config.keepalive,
        user_timeout: config.user_timeout,
        max_conns_per_port: config.max_conns_per_port,
        max_conns_total: config.max_conns_total,
        syn_rate_limit: config.syn_rate_limit,
        ..stream::Config::default()
    }
}

/// Which way a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Straight from this address.
    Direct(SocketAddr),
    /// Named by a beacon as the sender, which nothing proves; and that beacon.
    Relay(NodeId, SocketAddr),
}

/// A node's protocol state.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    identity: Arc<Identity>,
    node: NodeId,
    /// Our tunnel key for peers that need no other.
    half: Arc<Half>,
    /// Nodes outside the peer table that need another.
    ended: BTreeMap<NodeId, Taken>,
    rng: ChaCha20Rng,
    /// Ephemeral secrets of the session upgrade.
    ephemerals: Ratchet,
    pins: Pins,
    streams: Streams,
    listening: BTreeSet<u16>,
    /// The latest time any input came with.
    latest: Instant,
    peers: BTreeMap<NodeId, Peer>,
    keys: BTreeMap<NodeId, [u8; 32]>,
    /// Keys the registry names for nodes that are bound to another.
    disputed: BTreeMap<NodeId, ([u8; 32], String)>,
    lookups: BTreeMap<NodeId, Lookup>,
    gate: Gate,
    limits: Limits,
    beacons: Beacons,
    proofs: Proofs,
    nat_probes: NatProbes,
    /// Our own addresses.
    local: Vec<Candidate>,
    /// What peers were told of them last, with what beacons see, and how often that changed.
    offered: Vec<Candidate>,
    generation: u32,
    /// How a beacon saw our socket last.
    reflexive: Option<SocketAddr>,
    /// What lies between our socket and the beacons.
    own_nat: Nat,
    /// New addresses sent to since the port was seen from which the next ones are guessed.
    opened: (Option<Instant>, u16),
    /// What may be sent to unproven addresses.
    budget: Budget,
    /// Direct paths may be opened by punching.
    punching: bool,
    /// When the beacon was asked last because a peer fell silent.
    hushed: Option<Instant>,
    /// Random ports may be tried where none can be predicted.
    birthday: bool,
    /// Punch requests without a punch command yet.
    punches: BTreeMap<NodeId, Instant>,
    punch_bucket: Option<Bucket>,
    security_bucket: Option<Bucket>,
    /// Peers with a key exchange under way.
    exchanging: usize,
    /// Peers with packets waiting for a session.
    pending_peers: usize,
    timers: BTreeSet<(Instant, NodeId)>,
    dirty: Vec<NodeId>,
    control: VecDeque<Ready>,
    data: VecDeque<Ready>,
    data_bytes: usize,
    carried: Carry,
    events: VecDeque<Event>,
    event_bytes: usize,
    counters: Counters,
    drops: Drops,
}

impl Engine {
    /// An engine for `node` (0: not registered yet). It is silent until it gets a beacon or something to do.
    pub fn new(mut config: Config, identity: Arc<Identity>, node: NodeId, now: Instant) -> Engine {
        // Every 32-byte string is a valid X25519 private key (RFC 7748 section 5): only the length is checked.
        let secret = TunnelSecret::from_bytes(&config.tunnel_secret).expect("32 bytes are an X25519 key");
        let half = Arc::new(Half::new(Arc::new(secret), &identity, node, config.session_upgrade));
        // Whoever reads the memory later must not find the seed: past ephemeral keys would follow from it.
        let derived = hkdf_pair(&config.rng_seed, b"pilot engine rng").expect("HKDF yields 64 bytes");
        let mut rng = ChaCha20Rng::from_seed(*derived[0]);
        let ephemerals = Ratchet::new(&derived[1], b"pilot ephemeral keys").expect("HKDF yields 64 bytes");
        config.tunnel_secret.zeroize();
        config.rng_seed.zeroize();
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let streams = Streams::new(stream_config(&config), seed);
        let limits = Limits::new(rng.next_u64());
        let gate = Gate { public: config.public, strict: config.strict_dataplane_trust, ..Gate::default() };
        Engine {
            config,
            identity,
            node,
            half,
            ended: BTreeMap::new(),
            rng,
            ephemerals,
            pins: Pins::default(),
            streams,
            listening: BTreeSet::new(),
            latest: now,
            peers: BTreeMap::new(),
            keys: BTreeMap::new(),
            disputed: BTreeMap::new(),
            lookups: BTreeMap::new(),
            gate,
            limits,
            beacons: Beacons::default(),
            proofs: Proofs::default(),
            nat_probes: NatProbes::default(),
            local: Vec::new(),
            offered: Vec::new(),
            generation: 0,
            reflexive: None,
            own_nat: Nat::default(),
            opened: (None, 0),
            budget: Budget::default(),
            punching: true,
            hushed: None,
            birthday: false,
            punches: BTreeMap::new(),
            punch_bucket: None,
            security_bucket: None,
            exchanging: 0,
            pending_peers: 0,
            timers: BTreeSet::new(),
            dirty: Vec::new(),
            control: VecDeque::new(),
            data: VecDeque::new(),
            data_bytes: 0,
            carried: Carry::default(),
            events: VecDeque::new(),
            event_bytes: 0,
            counters: Counters::default(),
            drops: Drops::default(),
        }
    }

    // ---- input -------------------------------------------------------------------------------------------

    /// One received datagram; decrypted in place. `from` is its UDP source.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        self.latest = now;
        self.receive(now, from, datagram);
        self.mtu_doubts(now);
    }

    /// The socket layer could not deliver to this address (ICMP unreachable).
    pub fn handle_unreachable(&mut self, now: Instant, to: SocketAddr) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        if self.beacons.contains(to) {
            self.beacons.unreachable(now, to);
            return self.run_beacons(now);
        }
        let affected = |(node, peer): (&NodeId, &mut Peer)| {
            (peer.path.direct() == Some(to)).then(|| (*node, peer.path.unreachable(now)))
        };
        let affected: Vec<(NodeId, bool)> = self.peers.iter_mut().filter_map(affected).collect();
        for (node, lost) in affected {
            if lost {
                self.path_lost(now, node);
            }
            self.touch(node);
        }
    }

    /// The operating system refused to send a datagram of `len` bytes to this address: it is larger than the interface
    /// carries (EMSGSIZE).
    pub fn handle_too_big(&mut self, now: Instant, to: SocketAddr, len: usize) {
        self.latest = now;
        self.size_refused(now, SocketAddr::new(to.ip().to_canonical(), to.port()), len);
    }

    /// A router says that it cannot send on packets of more than `mtu` bytes, IP header included, towards this address (ICMP
    /// "fragmentation needed", ICMPv6 "packet too big"). It may be a lie: it costs probes, and a round trip at the smallest
    /// size at most.
    pub fn handle_mtu_hint(&mut self, now: Instant, to: SocketAddr, mtu: usize) {
        self.latest = now;
        self.size_hinted(now, SocketAddr::new(to.ip().to_canonical(), to.port()), mtu);
    }

    /// Runs everything that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.latest = now;
        self.run_timers(now);
    }

    // ---- output ------------------------------------------------------------------------------------------

    /// What to do next. `buf` is cleared and filled when the result is `Transmit`.
    pub fn poll_output(&mut self, now: Instant, buf: &mut Vec<u8>) -> Output {
        loop {
            if let Some(event) = self.events.pop_front() {
                if let Event::Datagram { payload, .. } = &event {
                    self.event_bytes = self.event_bytes.saturating_sub(payload.len());
                }
                return Output::Event(event);
            }
            if let Some(event) = self.streams.poll_event() {
                return Output::Event(Event::Stream(self.explained(event)));
            }
            if let Some(transmit) = self.next_frames(buf).or_else(|| self.next_batch(now, buf)) {
                return Output::Transmit(transmit);
            }
            // Traffic to ourselves may have caused events without a datagram.
            if let Some(event) = self.streams.poll_event() {
                return Output::Event(Event::Stream(self.explained(event)));
            }
            if self.events.is_empty() && self.control.is_empty() {
                return Output::Timeout(self.next_timeout(now));
            }
        }
    }

    fn emit(&mut self, event: Event) {
        let bytes = if let Event::Datagram { payload, .. } = &event { payload.len() } else { 0 };
        if self.events.len() >= MAX_EVENTS || self.event_bytes + bytes > MAX_EVENT_BYTES {
            return self.drops.events_full += 1;
        }
        self.event_bytes += bytes;
        self.events.push_back(event);
    }

    // ---- the directory's answers -------------------------------------------------------------------------

    /// The registry's key for a node; `None`: unknown or registry failed (remembered for 3 s).
    pub fn set_peer_key(&mut self, now: Instant, node: NodeId, key: Option<[u8; 32]>) {
        self.key_answer(now, node, key);
    }

    /// The registry names this key for a node that is bound to another ([`Engine::set_peer_key`]). It opens no session.
    /// When somebody proves to hold it, that is reported ([`Event::OtherKeyProven`]), and dials to the node fail with `reason`.
    pub fn dispute_key(&mut self, node: NodeId, key: [u8; 32], reason: String) {
        self.key_disputed(node, key, reason);
    }

    /// Where a node is; an error fails its dials and datagrams with that text.
    pub fn set_route(&mut self, now: Instant, node: NodeId, route: Result<Route, String>) {
        self.route_answer(now, node, route);
    }

    // ---- settings that change at run time ----------------------------------------------------------------

    /// After (re-)registration or key rotation. Another node id ends all sessions: they are bound to it.
    pub fn set_identity(&mut self, now: Instant, identity: Arc<Identity>, node: NodeId) {
        self.identity = identity;
        let before = std::mem::replace(&mut self.node, node);
        self.sign_halves();
        if node == before {
            return;
        }
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.remove_peer(peer);
            self.streams.reset_node(now, peer);
        }
        self.ask_beacons(now);
    }

    /// Our node id; 0 before registration.
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// Opens or closes this node to everybody.
    pub fn set_public(&mut self, public: bool) {
        self.gate.public = public;
    }

    /// Whether everything goes through the beacon from now on. Sessions and streams go on either way.
    pub fn set_relay_only(&mut self, now: Instant, relay_only: bool) {
        if std::mem::replace(&mut self.config.relay_only, relay_only) == relay_only {
            return;
        }
        self.latest = self.latest.max(now);
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|node| self.touch(node));
    }

    /// Local trust: gates of a private node, `tunnel.established` details.
    pub fn set_trusted(&mut self, node: NodeId, trusted: bool) {
        if trusted {
            if self.gate.trusted.insert(node) {
                // Before, nobody here was told where we are, and a directory of private nodes may have been as silent.
                self.call_first(self.latest, node);
            }
        } else {
            self.gate.trusted.remove(&node);
        }
    }

    /// The registry vouches for a node until then (answer to [`Event::Knock`]).
    pub fn admit(&mut self, node: NodeId, until: Instant) {
        self.gate.admitted.set(node, self.latest, until);
    }

    /// We contacted this node: for 5 minutes its SYNs to ports 1001 and 444 pass (spec 03 section 6.1). Dials
    /// do this by themselves; the handshake layer calls it for relayed requests.
    pub fn open_reply_window(&mut self, now: Instant, node: NodeId) {
        self.gate.reply.set(node, now, now + gate::REPLY_WINDOW);
    }

    /// Forgets session, endpoint, route and key of a peer and its connections (untrust, revoke).
    pub fn forget_peer(&mut self, now: Instant, node: NodeId) {
        self.streams.reset_node(now, node);
        self.remove_peer(node);
        self.gate.admitted.clear(node);
        self.gate.reply.clear(node);
    }

    /// The directory is being asked where this node is, and packets wait for its answer.
    pub fn is_resolving(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(Peer::resolving)
    }

    /// The node is in the peer table.
    pub fn has_peer(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    // ---- streams -----------------------------------------------------------------------------------------

    /// Binds a port. False: already bound.
    pub fn listen(&mut self, port: u16) -> bool {
        self.streams.listen(port) && self.listening.insert(port)
    }
    /// Releases a port.
    pub fn unlisten(&mut self, port: u16) {
        self.listening.remove(&port);
        self.streams.unlisten(port)
    }
    /// Bound listeners.
    pub fn ports(&self) -> usize {
        self.listening.len()
    }
    /// Starts a dial; the outcome is a [`StreamEvent`].
    pub fn dial(&mut self, now: Instant, to: Addr, port: u16) -> Result<ConnId, DialError> {
        let local = Addr { network: to.network, node: self.node };
        let conn = self.streams.dial(now, local, to, port)?;
        self.open_reply_window(now, to.node);
        self.reach(now, to.node);
        self.note_app(now, to.node);
        self.touch(to.node);
        Ok(conn)
    }
    /// See [`Streams::write`].
    pub fn write(&mut self, now: Instant, conn: ConnId, data: Bytes) -> Result<Bytes, CloseReason> {
        self.streams.write(now, conn, data)
    }
    /// See [`Streams::read`].
    pub fn read(&mut self, conn: ConnId) -> Option<Bytes> {
        self.streams.read(conn)
    }
    /// See [`Streams::consumed`].
    pub fn consumed(&mut self, now: Instant, conn: ConnId, bytes: usize) {
        self.streams.consumed(now, conn, bytes)
    }
    /// See [`Streams::finish`].
    pub fn finish(&mut self, now: Instant, conn: ConnId) -> bool {
        self.streams.finish(now, conn)
    }
    /// See [`Streams::half_close`].
    pub fn half_close(&self, conn: ConnId) -> bool {
        self.streams.half_close(conn)
    }
    /// See [`Streams::close`].
    pub fn close(&mut self, now: Instant, conn: ConnId) {
        self.streams.close(now, conn)
    }
    /// See [`Streams::abort`].
    pub fn abort(&mut self, now: Instant, conn: ConnId) {
        self.streams.abort(now, conn)
    }

    /// See [`Streams::acknowledged`].
    pub fn acknowledged(&self, conn: ConnId) -> Option<u64> {
        self.streams.acknowledged(conn)
    }
    /// See [`Streams::describe`].
    pub fn describe(&self, conn: ConnId) -> Option<stream::ConnInfo> {
        self.streams.describe(conn)
    }
    /// See [`Streams::accepted`].
    pub fn accepted(&mut self, conn: ConnId) {
        self.streams.accepted(conn)
    }
    /// See [`Streams::release`].
    pub fn release(&mut self, now: Instant, conn: ConnId) {
        self.streams.release(now, conn)
    }

    // ---- datagrams and control ---------------------------------------------------------------------------

    /// Sends one datagram from a fresh ephemeral port; queued while the peer is being reached.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        to: Addr,
        port: u16,
        payload: &[u8],
    ) -> Result<(), SendError> {
        self.datagram_out(now, to, port, payload)
    }
    /// Sends a control ping (non-empty payload); the answer is [`Event::Pong`].
    pub fn ping(&mut self, now: Instant, node: NodeId, payload: &[u8]) -> Result<(), SendError> {
        self.ping_out(now, node, payload)
    }

    // ---- status ------------------------------------------------------------------------------------------

    /// All connections.
    pub fn connections(&self) -> Vec<ConnStatus> {
        self.streams.status()
    }
    /// Tunnel counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }
    /// What was dropped, by cause.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }
}
