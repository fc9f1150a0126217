//! What the tasks of one node share.

use crate::carrier::Way;
use crate::command::{Command, Commands, EngineStatus};
use crate::config::{NodeConfig, Transport};
use crate::directory::Directory;
use crate::entrance::Entrance;
use crate::insist::SessionPins;
use crate::lock;
use crate::mapping::Mapper;
use crate::node::{Datagram, NodeEvent};
use crate::peers::Peers;
use crate::pins::Disputes;
use crate::platform::Interface;
use crate::records::Records;
use crate::registry::Client;
use crate::rotation::Rotation;
use crate::trust::TrustState;
use pilot_proto::crypto::Identity;
use pilot_proto::{Addr, NodeId};
use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{Notify, broadcast, oneshot, watch};

/// Warnings kept for the user; the oldest gives way.
const MAX_WARNINGS: usize = 32;

/// Who this node is, as the registry last said.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) identity: Arc<Identity>,
    /// How often the key was rotated, as the registry counts.
    pub(crate) key_generation: u32,
    pub(crate) node: NodeId,
    pub(crate) address: Addr,
    /// The name the registry accepted.
    pub(crate) hostname: String,
    /// The name to ask for at the next registration.
    pub(crate) wanted_hostname: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) public: bool,
    /// Where the registry tells others to find us.
    pub(crate) endpoint: String,
    /// Our socket as the beacon sees it.
    pub(crate) observed: Option<SocketAddr>,
    /// Our port as the router maps it, and by which protocol.
    pub(crate) mapping: Option<(&'static str, SocketAddr)>,
    /// Addresses of this host that the socket serves.
    pub(crate) interfaces: Vec<Interface>,
    /// `listen_addr` of the last registration.
    pub(crate) registered: String,
    /// What was told at that time of where else we are.
    pub(crate) published: Vec<String>,
    pub(crate) beacon: String,
    /// Networks this node is a member of, beside the backbone.
    pub(crate) networks: Vec<u16>,
    pub(crate) superseded: bool,
    pub(crate) registry_ok: bool,
    /// Why not; empty while it is.
    pub(crate) registry_error: String,
    pub(crate) warnings: VecDeque<String>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) commands: Commands,
    pub(crate) registry: Client,
    pub(crate) directory: Directory,
    pub(crate) trust: TrustState,
    pub(crate) peers: Peers,
    pub(crate) session_pins: Arc<SessionPins>,
    pub(crate) disputes: Disputes,
    pub(crate) records: Records,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    pub(crate) datagrams: broadcast::Sender<Datagram>,
    pub(crate) started: Instant,
    /// Names this process to the registry (docs/extensions.md).
    pub(crate) instance: String,
    /// Where the UDP socket is bound.
    pub(crate) bound: SocketAddr,
    /// What carries datagrams, as the driver says.
    pub(crate) way: watch::Receiver<Way>,
    /// Where nodes without UDP come in.
    pub(crate) entrance: Entrance,
    /// Register again now.
    pub(crate) reregister: Notify,
    /// How often the network around the node changed, or the machine slept.
    pub(crate) network: watch::Sender<u64>,
    pub(crate) mapper: Mapper,
    /// Ask the router for a port again now.
    pub(crate) remap: Notify,
    /// A registration was answered.
    pub(crate) registered: Notify,
    /// True: the node stops.
    pub(crate) stop: watch::Sender<bool>,
    /// A key rotation whose outcome is not known.
    pub(crate) rotation: tokio::sync::Mutex<Option<Rotation>>,
    state: Mutex<State>,
}

/// What [`Shared::new`] puts together.
pub(crate) struct Parts {
    pub(crate) config: NodeConfig,
    pub(crate) commands: Commands,
    pub(crate) registry: Client,
    pub(crate) trust: TrustState,
    pub(crate) peers: Peers,
    pub(crate) session_pins: Arc<SessionPins>,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    pub(crate) datagrams: broadcast::Sender<Datagram>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) bound: SocketAddr,
    pub(crate) way: watch::Receiver<Way>,
    pub(crate) entrance: Entrance,
    pub(crate) instance: String,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Shared {
        let Parts {
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
        } = parts;
        let state = State {
            identity,
            key_generation: 0,
            node: 0,
            address: Addr::ZERO,
            hostname: String::new(),
            wanted_hostname: config.hostname.clone().filter(|name| !name.is_empty()),
            tags: config.tags.clone(),
            public: config.public,
            endpoint: String::new(),
            observed: None,
            mapping: None,
            interfaces: Vec::new(),
            registered: String::new(),
            published: Vec::new(),
            beacon: config.beacons.first().cloned().unwrap_or_default(),
            networks: Vec::new(),
            superseded: false,
            registry_ok: false,
            registry_error: String::new(),
            warnings: VecDeque::new(),
        };
        Shared {
            config,
            commands,
            registry,
            directory: Directory::default(),
            trust,
            peers,
            session_pins,
            disputes: Disputes::default(),
            records: Records::default(),
            events,
            datagrams,
            started: Instant::now(),
            instance,
            bound,
            way,
            entrance,
            reregister: Notify::new(),
            network: watch::Sender::new(0),
            mapper: Mapper::default(),
            remap: Notify::new(),
            registered: Notify::new(),
            stop: watch::Sender::new(false),
            rotation: tokio::sync::Mutex::new(rotation),
            state: Mutex::new(state),
        }
    }

    /// Reads or changes the state; `f` must be short.
    pub(crate) fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut lock(&self.state))
    }

    /// Datagrams go over the WebSocket.
    pub(crate) fn on_websocket(&self) -> bool {
        *self.way.borrow() == Way::WebSocket
    }

    /// Others are told to reach this node through the beacon alone.
    pub(crate) fn relays(&self) -> bool {
        self.config.relay_only || self.on_websocket()
    }

    /// The operator wants no direct paths, or no UDP.
    pub(crate) fn never_direct(&self) -> bool {
        self.config.relay_only || self.config.transport == Transport::Compat
    }

    pub(crate) fn node(&self) -> NodeId {
        self.state(|s| s.node)
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.state(|s| s.identity.clone())
    }

    /// Sends to the driver. It is gone only when the node has stopped.
    pub(crate) fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Asks the driver; `None` when the node has stopped.
    pub(crate) async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        self.command(make(tx));
        rx.await.ok()
    }

    pub(crate) async fn engine_status(&self) -> EngineStatus {
        self.ask(Command::Status).await.unwrap_or_default()
    }

    pub(crate) fn publish(&self, name: &'static str, data: Value) {
        // Without a subscriber there is nobody to tell.
        let _ = self.events.send(NodeEvent { name, data });
    }

    /// Keeps a problem in the status and logs it.
    pub(crate) fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.state(|s| {
            s.warnings.retain(|w| *w != text);
            if s.warnings.len() == MAX_WARNINGS {
                s.warnings.pop_front();
            }
            s.warnings.push_back(text);
        });
    }

    /// Resolves when the node stops.
    pub(crate) async fn stopped(&self) {
        // `self.stop` lives as long as `self`, so the channel cannot close.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Runs `task` until it ends or the node stops.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let shared = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                () = shared.stopped() => {}
            }
        });
    }
}
