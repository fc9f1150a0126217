//! Deadlines: one per peer, kept in order, plus the beacon, the key lookups and the streams.

use super::handshake::LOOKUP_TIMEOUT;
use super::peer::{GIVE_UP_RESET_EVERY, HUSH_EVERY, Peer, REAP, RouteState, WATCH_EVERY, WATCH_PROBES};
use super::{Engine, Event};
use crate::NodeId;
use crate::path::Tick;
use crate::tunnel::exchange::COOLDOWN;
use std::sync::Arc;
use std::time::Instant;

impl Engine {
    /// Has this peer's timer computed anew before the driver goes to sleep.
    pub(super) fn touch(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node)
            && !peer.dirty
        {
            peer.dirty = true;
            self.dirty.push(node);
        }
    }

    pub(super) fn next_timeout(&mut self, now: Instant) -> Option<Instant> {
        while let Some(node) = self.dirty.pop() {
            self.arm(now, node);
        }
        let peer = self.timers.first().map(|(at, _)| *at);
        let lookup = self.lookups.values().map(|l| l.asked + LOOKUP_TIMEOUT).min();
        [peer, lookup, self.beacons.deadline(), self.nat_probes.deadline(), self.streams.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    fn arm(&mut self, now: Instant, node: NodeId) {
        let connections = self.streams.connections_with(node) > 0;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.dirty = false;
        if let Some(at) = peer.armed.take() {
            self.timers.remove(&(at, node));
        }
        peer.asleep = !peer.active(now, connections);
        peer.armed = peer.deadline(now, connections, self.config.relay_only);
        if let Some(at) = peer.armed {
            self.timers.insert((at, node));
        }
    }

    pub(super) fn run_timers(&mut self, now: Instant) {
        if self.beacons.deadline().is_some_and(|at| at <= now) {
            self.run_beacons(now);
        }
        if self.nat_probes.deadline().is_some_and(|at| at <= now) {
            self.run_nat(now);
        }
        self.expire_lookups(now);
        while let Some((at, node)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, node));
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.armed = None;
                self.peer_timeout(now, node);
                self.touch(node);
            }
        }
        self.streams.handle_timeout(now);
        self.mtu_doubts(now);
    }

    fn peer_timeout(&mut self, now: Instant, node: NodeId) {
        let connections = self.streams.connections_with(node) > 0;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !connections && now >= peer.last_traffic() + REAP {
            self.remove_peer(node);
            return;
        }
        if peer.pending.expires().is_some_and(|at| at <= now) {
            self.drop_pending(node);
        }
        self.upgrade_timeout(now, node, connections);
        self.exchange_timeout(now, node, connections);
        self.path_timeout(now, node, connections);
        self.call_timeout(now, node);
        self.mtu_timeout(now, node);
        self.hush_timeout(now, node, connections);
        self.liveness_timeout(now, node, connections);
        self.recovery_timeout(now, node, connections);
    }

    fn exchange_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.cooldown.is_some_and(|until| until <= now) {
            peer.cooldown = None;
            let wanted = connections || !peer.pending.is_empty();
            if wanted && !peer.linked(now) && peer.exchange.is_none() {
                return self.start_exchange(now, node);
            }
        }
        let Some(exchange) = peer.exchange.filter(|e| e.next <= now) else { return };
        if !exchange.exhausted() {
            return self.send_exchange(now, node);
        }
        peer.exchange = None;
        self.exchanging = self.exchanging.saturating_sub(1);
        if exchange.greets() {
            return self.remove_peer(node);
        }
        peer.cooldown = Some(now + COOLDOWN);
        let active = peer.active(now, connections);
        let wanted = active || !peer.pending.is_empty() || peer.linked(now);
        let may_reset = peer.last_give_up_reset.is_none_or(|at| now >= at + GIVE_UP_RESET_EVERY);
        self.emit(Event::Publish("tunnel.rekey_gave_up", serde_json::json!({ "peer_node_id": node })));
        if !wanted {
            return self.remove_peer(node);
        }
        if active && may_reset {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.last_give_up_reset = Some(now);
                peer.route = RouteState::Unknown;
            }
            self.want_route(now, node);
            let fields = serde_json::json!({ "peer_node_id": node, "reason": "rekey_gave_up" });
            self.emit(Event::Publish("tunnel.path_suspect", fields));
        }
    }

    fn path_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let fallback = self.beacons.chosen().is_some();
        loop {
            let Some(peer) = self.peers.get_mut(&node) else { return };
            let may_upgrade = peer.may_upgrade(now, connections, self.config.relay_only);
            match peer.path.tick(now, may_upgrade, fallback) {
                Some(Tick::Check { again }) => {
                    self.send_probes(now, node, false);
                    if again {
                        self.refresh_beacons(now);
                    }
                }
                Some(Tick::Lull) => self.refresh_beacons(now),
                Some(Tick::Probe) => self.send_probes(now, node, true),
                Some(Tick::Punch) => self.invite(now, node),
                Some(Tick::Lost) => self.path_lost(now, node),
                None => return,
            }
        }
    }

    pub(super) fn relay_activated(&mut self, now: Instant, node: NodeId) {
        self.emit(Event::Publish("tunnel.relay_activated", serde_json::json!({ "peer_node_id": node })));
        self.streams.path_changed(now, node);
    }

    /// See [`HUSH`].
    fn hush_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.hush_due(connections).is_none_or(|at| at > now) {
            return;
        }
        peer.hush();
        let due = self.hushed.is_none_or(|at| now.saturating_duration_since(at) >= HUSH_EVERY);
        if due && peer.linked(now) {
            self.hushed = Some(now);
            self.ask_beacons(now);
        }
    }

    fn liveness_timeout(&mut self, now: Instant, node: NodeId, connections: bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !peer.linked(now) || !peer.active(now, connections) {
            return;
        }
        if now >= peer.keepalive_due() {
            // Also when nothing can be sent: the next try is due in 25 s, not at once.
            peer.last_out = now;
            self.send_keepalive(now, node, None);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if now < peer.watch_due() {
            return;
        }
        if peer.watch_probes < WATCH_PROBES {
            peer.watch_probes += 1;
            peer.watch_next = now + WATCH_EVERY;
            return self.send_watch_probe(now, node);
        }
        let silent = now.saturating_duration_since(peer.last_in).as_secs();
        let probes = std::mem::take(&mut peer.watch_probes);
        peer.last_reset = Some(now);
        let fields =
            serde_json::json!({ "peer_node_id": node, "silent_for_seconds": silent, "probes_sent": probes });
        self.emit(Event::Publish("tunnel.path_suspect", fields));
        self.reset_path(now, node);
    }

    /// Drops the session and everything known about the way to a peer, and starts anew.
    fn reset_path(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let lost = peer.has_state();
        peer.session = None;
        if let Some(upgrade) = &mut peer.upgrade {
            upgrade.reset();
        }
        peer.previous = None;
        peer.salvage = Default::default();
        peer.path.reset();
        peer.route = RouteState::Unknown;
        if lost {
            self.renew_half(node);
        }
        self.want_route(now, node);
        self.request_punch(now, node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.calls.forget();
        }
        self.start_exchange(now, node);
        self.streams.path_changed(now, node);
    }

    pub(super) fn drop_pending(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let waiting = peer.pending.take();
        if !waiting.is_empty() {
            self.pending_peers = self.pending_peers.saturating_sub(1);
            self.drops.pending_expired += waiting.len() as u64;
        }
    }

    /// Forgets everything about a peer but its connections.
    pub(super) fn remove_peer(&mut self, node: NodeId) {
        self.drop_pending(node);
        let Some(peer) = self.peers.remove(&node) else { return };
        let lost = peer.has_state();
        let Peer { armed, exchange, half, taken, .. } = peer;
        if lost || !Arc::ptr_eq(&half, &self.half) {
            self.retire_half(node, taken);
        }
        if let Some(at) = armed {
            self.timers.remove(&(at, node));
        }
        if exchange.is_some() {
            self.exchanging = self.exchanging.saturating_sub(1);
        }
        self.keys.remove(&node);
        self.punches.remove(&node);
    }
}
