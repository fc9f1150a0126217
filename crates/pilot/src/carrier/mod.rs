//! What carries the node's datagrams: the UDP socket, and while no beacon answers over it a WebSocket.
//!
//! The engine knows nothing of this. While the WebSocket is in use its beacon alone is the engine's, under the address [`WEBSOCKET`], which is no
//! real one; what is sent there goes through the WebSocket, and what comes from the WebSocket comes from there.

mod auto;
mod link;
mod wss;

pub(crate) use auto::Way;
pub(crate) use link::{DriverEnd, link};
pub(crate) use wss::{Owner, Target, keep};

use crate::config::Transport;
use crate::socket::{Sent, Socket};
use auto::{Act, Auto};
use link::Inbound;
use pilot_proto::engine::Engine;
use pilot_proto::wire::beacon::Message;
use std::net::{Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;

/// The beacon at the other end of the WebSocket, for the engine: an address of the prefix that is to be discarded (RFC 6666).
pub(crate) const WEBSOCKET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0x5049, 1)), 1);
/// Messages of the WebSocket handed to the engine before anything else gets its turn.
const MESSAGES: usize = 128;
/// A WebSocket that took nothing for this long is not waited for; what is sent is lost, as on any path.
const STALLED: std::time::Duration = std::time::Duration::from_millis(500);
/// First byte of a DiscoverReply.
const DISCOVER_REPLY: u8 = 0x02;
/// Beacons that count, as many as with the engine.
const MAX_BEACONS: usize = 16;

fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// Everything that carries datagrams.
pub(crate) struct Carrier {
    pub(crate) socket: Socket,
    link: DriverEnd,
    auto: Auto,
    /// Frames of the WebSocket count, also while it lingers.
    open: bool,
    /// The beacons over UDP, as the engine has them while it uses UDP.
    udp_beacons: Vec<SocketAddr>,
    /// The operator wants no direct paths.
    relay_only: bool,
    /// When the WebSocket last had room.
    moved: Option<Instant>,
    /// Messages taken from the queue by a poll, not handled yet.
    next: Option<Inbound>,
    /// Tells the rest of the node.
    told: watch::Sender<Way>,
    /// An operator who wants the WebSocket alone gets no UDP.
    strict: bool,
}

impl Carrier {
    pub(crate) fn new(
        socket: Socket,
        link: DriverEnd,
        transport: Transport,
        relay_only: bool,
        told: watch::Sender<Way>,
    ) -> Carrier {
        let auto = Auto::new(transport);
        told.send_replace(auto.way());
        Carrier {
            socket,
            link,
            auto,
            open: false,
            udp_beacons: Vec::new(),
            relay_only,
            moved: None,
            next: None,
            told,
            strict: transport == Transport::Compat,
        }
    }

    /// Before anything else: the engine's beacon is the WebSocket from the start, if that is the transport.
    pub(crate) fn begin(&self, now: Instant, engine: &mut Engine) {
        if self.strict {
            engine.set_relay_only(now, true);
            engine.set_beacon(now, Some(WEBSOCKET));
        }
    }

    /// The beacons to use over UDP.
    pub(crate) fn set_beacons(&mut self, now: Instant, engine: &mut Engine, beacons: &[SocketAddr]) {
        self.udp_beacons = beacons.iter().copied().map(canonical).take(MAX_BEACONS).collect();
        if self.auto.way() == Way::Udp {
            engine.set_beacons(now, &self.udp_beacons);
        }
    }

    /// The node is on another network, or was away.
    pub(crate) fn network_changed(&mut self, now: Instant, engine: &mut Engine) {
        engine.network_changed(now);
        if !self.udp_beacons.is_empty() {
            self.auto.network_changed(now);
        }
    }

    /// Does what time demands.
    pub(crate) fn poll(&mut self, now: Instant, engine: &mut Engine) {
        while let Some(act) = self.auto.poll(now) {
            match act {
                Act::Probe => {
                    // Node id 0: the beacon answers and takes note of nothing.
                    let mut bytes = Vec::with_capacity(5);
                    Message::Discover { node: 0, key: None }.emit(&mut bytes);
                    for beacon in &self.udp_beacons {
                        let _ = self.socket.send(*beacon, &bytes, None);
                    }
                }
                Act::Connect => drop(self.link.wanted.send_replace(true)),
                Act::Disconnect => drop(self.link.wanted.send_replace(false)),
                Act::Use { way, direct } => {
                    engine.set_relay_only(now, self.relay_only || !direct);
                    match way {
                        Way::Udp => {
                            engine.set_beacons(now, &self.udp_beacons);
                            engine.network_changed(now);
                        }
                        Way::WebSocket => engine.set_beacon(now, Some(WEBSOCKET)),
                    }
                    self.told.send_replace(way);
                }
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.auto.deadline()
    }

    /// What the UDP socket took in goes to the engine.
    pub(crate) fn deliver(&mut self, now: Instant, engine: &mut Engine) {
        let Carrier { socket, auto, udp_beacons, strict, .. } = self;
        if *strict {
            return socket.for_each(|_, _| {});
        }
        socket.for_each(|from, datagram| {
            if !udp_beacons.contains(&canonical(from)) {
                auto.heard_others(now);
            } else {
                let reply = datagram.first() == Some(&DISCOVER_REPLY);
                auto.heard(now, reply);
                if reply && auto.way() == Way::WebSocket {
                    // The answer to a probe; the engine has another beacon now.
                    return;
                }
            }
            engine.handle_datagram(now, from, datagram);
        });
    }

    /// What the WebSocket took in goes to the engine; true: perhaps there is more.
    pub(crate) fn receive(&mut self, engine: &mut Engine) -> bool {
        for _ in 0..MESSAGES {
            let Some(message) = self.next.take().or_else(|| self.link.inbound.try_recv().ok()) else {
                return false;
            };
            let now = Instant::now();
            match message {
                Inbound::Open => {
                    self.open = true;
                    self.moved = Some(now);
                    self.auto.socket(now, true);
                    if self.auto.way() == Way::WebSocket {
                        // Asked at once, not when the last question is due again.
                        engine.set_beacon(now, Some(WEBSOCKET));
                    }
                }
                Inbound::Closed => {
                    self.open = false;
                    self.auto.socket(now, false);
                }
                Inbound::Datagram(mut bytes) => {
                    let from = match self.auto.way() {
                        Way::WebSocket => Some(WEBSOCKET),
                        // On its way when UDP came back, or the beacon's first to a WebSocket not in use yet.
                        Way::Udp => self.udp_beacons.first().copied(),
                    };
                    if let Some(from) = from {
                        engine.handle_datagram(now, from, &mut bytes);
                    }
                }
            }
        }
        true
    }

    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_some() || self.socket.poll_readable(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.link.inbound.poll_recv(cx) {
            Poll::Ready(Some(message)) => {
                self.next = Some(message);
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>, to: SocketAddr) -> Poll<()> {
        match to == WEBSOCKET {
            // Tried again; if there is no room still, the driver makes a pause.
            true => Poll::Ready(()),
            false => self.socket.poll_writable(cx),
        }
    }

    /// Sends one datagram, or several of `segment` bytes each (the last may be shorter).
    pub(crate) fn send(
        &mut self,
        now: Instant,
        to: SocketAddr,
        bytes: &[u8],
        segment: Option<usize>,
    ) -> Sent {
        if to != WEBSOCKET {
            if self.strict {
                return Sent::Dropped;
            }
            if self.udp_beacons.contains(&canonical(to)) {
                self.auto.sent(now);
            }
            return self.socket.send(to, bytes, segment);
        }
        if !self.open {
            return Sent::Dropped;
        }
        let segment = segment.filter(|&s| s > 0).unwrap_or(bytes.len()).max(1);
        for (n, datagram) in bytes.chunks(segment).enumerate() {
            match self.link.outbound.try_reserve() {
                Ok(permit) => {
                    permit.send(datagram.to_vec());
                    self.moved = Some(now);
                }
                Err(TrySendError::Full(())) => {
                    let moving = self.moved.is_some_and(|at| now.saturating_duration_since(at) < STALLED);
                    return if moving { Sent::Blocked(n * segment) } else { Sent::Dropped };
                }
                Err(TrySendError::Closed(())) => return Sent::Dropped,
            }
        }
        Sent::Done
    }
}
