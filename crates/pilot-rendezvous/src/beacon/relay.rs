//! Frames from one node to another: who may send them, and where they go (spec 04 section 4.3).
//!
//! A long run of frames with one header leaves from the buffer it was received into, its headers rewritten in place: what
//! it costs to relay is what it costs the system to copy it twice. All others wait in their destination's queue, where
//! they find others to leave with.

use super::queue::Run;
use super::transmit::Sent;
use super::{Beacon, Directory, RELAY_LEAST, RELAY_UNIT, canonical};
use crate::limits::network;
use pilot_proto::NodeId;
use pilot_proto::wire::beacon::{Message, RELAY_HEADER_LEN};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A run of so many bytes is not copied to a queue first: copying as much costs what a system call does.
pub(super) const DIRECT: usize = 16 << 10;

/// Relay frames with one header, as they were received.
#[derive(Clone, Copy)]
pub(super) struct Frames<'a> {
    pub bytes: &'a [u8],
    /// Length of each; the last one may be shorter.
    pub stride: usize,
}

impl<'a> Frames<'a> {
    fn each(self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.stride)
    }

    fn count(self) -> u64 {
        self.bytes.len().div_ceil(self.stride) as u64
    }

    /// In units of [`RELAY_UNIT`].
    fn cost(self) -> u32 {
        let cost = |len: usize| len.max(RELAY_LEAST).div_ceil(RELAY_UNIT);
        let (whole, last) = (self.bytes.len() / self.stride, self.bytes.len() % self.stride);
        // A receive call brings 64 KiB at most.
        (whole * cost(self.stride) + if last > 0 { cost(last) } else { 0 }) as u32
    }
}

/// Where frames go.
enum Place {
    /// To a WebSocket.
    Socket,
    /// To an address, with this header.
    Addr(SocketAddr, Head),
    Unknown,
}

#[derive(Clone, Copy)]
struct Head {
    bytes: [u8; RELAY_HEADER_LEN],
    len: usize,
}

impl Head {
    fn bytes(&self) -> &[u8] {
        // At most the whole.
        &self.bytes[..self.len]
    }
}

impl Beacon {
    /// Handles what one receive call brought from one sender: datagrams of `stride` bytes, the last one maybe shorter.
    /// Answers go to `send`. Frames to relay go to `direct`, which says what the socket took of them, or wait in the
    /// queues ([`Beacon::next`]); their headers in `bytes` are overwritten.
    #[expect(clippy::too_many_arguments)]
    pub fn take(
        &mut self,
        from: SocketAddr,
        bytes: &mut [u8],
        stride: usize,
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
        direct: &mut impl FnMut(Run<'_>) -> Sent,
    ) {
        let stride = stride.clamp(1, bytes.len().max(1));
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = match rest.first_chunk::<RELAY_HEADER_LEN>() {
                // Whatever has the same header has the same fate: it is decided once.
                Some(header @ [0x05, ..]) if stride >= header.len() => {
                    stride * rest.chunks(stride).take_while(|datagram| datagram.starts_with(header)).count()
                }
                _ => stride,
            };
            let (these, others) = rest.split_at_mut(len.min(rest.len()));
            match Message::parse(these) {
                Ok(Message::Relay { from: node, to, .. }) => {
                    let frames = Frames { bytes: these, stride };
                    if let Some(peer) = self.admit(canonical(from), node, to, frames, now) {
                        self.pass(peer, node, to, these, stride, direct);
                    }
                }
                _ => self.handle(from, these, directory, now, send),
            }
            rest = others;
        }
    }

    /// [`Beacon::take`] with a socket that is never full.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub fn receive(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        stride: usize,
        directory: &impl Directory,
        now: Instant,
        send: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let mut relayed = Vec::new();
        let direct = &mut |run: Run<'_>| {
            let before = relayed.len();
            relayed.extend(run.frames().map(|frame| (run.to, frame.to_vec())));
            let bytes = relayed[before..].iter().map(|(_, frame)| frame.len() as u64).sum();
            Sent { frames: (relayed.len() - before) as u64, bytes, ..Sent::default() }
        };
        self.take(from, &mut bytes.to_vec(), stride, directory, now, send, direct);
        relayed.iter().for_each(|(to, frame)| send(*to, frame));
    }

    /// Whether frames of one sender to one destination are relayed, all or none of them: `None`, or whether a peer beacon
    /// sent them.
    fn admit(
        &mut self,
        from: SocketAddr,
        node: NodeId,
        to: NodeId,
        frames: Frames<'_>,
        now: Instant,
    ) -> Option<bool> {
        let peer = self.settings.peers.contains(&from);
        // Known to be at this address, or at another port of it.
        let entry = self.table.get_mut(node).filter(|e| e.addr.ip() == from.ip());
        let (near, proven) = match entry {
            Some(entry) if entry.addr == from => {
                entry.seen = now;
                (true, entry.proven)
            }
            other => (other.is_some(), false),
        };
        if !peer && !self.exempt(from.ip()) {
            let budget = if proven { &mut self.proven_relays } else { &mut self.relays };
            let allowed = if near {
                budget.charge(from, frames.cost(), now, Duration::ZERO).is_ok()
            } else {
                // A forged sender, or one the beacon has not heard of since its own start.
                let count = frames.count() as u32;
                self.strange_relays.charge(network(from.ip()), count, now, Duration::ZERO).is_ok()
                    && self.strange_deliveries.charge(to, count, now, Duration::ZERO).is_ok()
            };
            if !allowed {
                self.counters.relay_limited += frames.count();
                return None;
            }
        }
        Some(peer)
    }

    /// Where frames for a node go: to its WebSocket, its address, its beacon, in this order.
    fn place(&self, peer: bool, node: NodeId, to: NodeId) -> Place {
        if self.sockets.has(to) {
            return Place::Socket;
        }
        // Never from beacon to beacon to beacon: stale tables must not make frames go round.
        let route = self.routes.get(&to).filter(|_| !peer);
        let entry = self.table.get(to).filter(|entry| !entry.weak || route.is_none());
        let (addr, kind, len) = match (entry, route) {
            (Some(entry), _) if entry.named => (entry.addr, 0x09, RELAY_HEADER_LEN),
            (Some(entry), _) => (entry.addr, 0x06, 5),
            (None, Some(route)) => (*route, 0x05, RELAY_HEADER_LEN),
            (None, None) => return Place::Unknown,
        };
        let mut bytes = [kind; RELAY_HEADER_LEN];
        bytes[1..5].copy_from_slice(&node.to_be_bytes());
        bytes[5..].copy_from_slice(&to.to_be_bytes());
        Place::Addr(addr, Head { bytes, len })
    }

    /// Queues frames for where their destination is.
    pub(super) fn forward(&mut self, peer: bool, node: NodeId, to: NodeId, frames: Frames<'_>) {
        match self.place(peer, node, to) {
            Place::Socket => self.push_to_socket(node, to, frames),
            Place::Addr(addr, head) => {
                let refused = self.queues.push(addr, head.bytes(), frames.each(), RELAY_HEADER_LEN);
                self.counters.relay_overrun += refused;
            }
            Place::Unknown => self.counters.dropped += frames.count(),
        }
    }

    /// As [`Beacon::forward`], but a long run leaves at once if nothing is before it: its destination has nothing queued, and
    /// the socket was not full.
    fn pass(
        &mut self,
        peer: bool,
        node: NodeId,
        to: NodeId,
        bytes: &mut [u8],
        stride: usize,
        direct: &mut impl FnMut(Run<'_>) -> Sent,
    ) {
        let place = if bytes.len() >= DIRECT { self.place(peer, node, to) } else { Place::Unknown };
        let Place::Addr(addr, head) = place else {
            return self.forward(peer, node, to, Frames { bytes, stride });
        };
        if self.full || self.queues.holds(addr) {
            return self.forward(peer, node, to, Frames { bytes, stride });
        }
        let skip = RELAY_HEADER_LEN - head.len;
        for frame in bytes.chunks_mut(stride) {
            // Each has a header: it was compared.
            frame[skip..RELAY_HEADER_LEN].copy_from_slice(head.bytes());
        }
        let sent = direct(Run { to: addr, bytes, stride, skip });
        self.count(&sent);
        self.full = sent.full;
        let left = bytes.get(stride * sent.done()..).filter(|left| !left.is_empty());
        if let Some(left) = left {
            self.counters.relay_overrun += self.queues.push(addr, &[], left.chunks(stride), skip);
        }
    }

    fn push_to_socket(&mut self, node: NodeId, to: NodeId, frames: Frames<'_>) {
        for frame in frames.each() {
            let mut out = Vec::with_capacity(frame.len());
            Message::RelayDeliver { from: node, frame: &frame[RELAY_HEADER_LEN..] }.emit(&mut out);
            if self.sockets.push(to, &out) {
                self.counters.relayed += 1;
                self.counters.relayed_bytes += out.len() as u64;
            } else {
                self.counters.slow_dropped += 1;
            }
        }
    }
}
