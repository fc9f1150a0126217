//! All connections of a node: ports, listeners, limits, dials.

pub(crate) mod conn;
pub(crate) mod recv;
pub(crate) mod send;

use crate::bucket::{Bucket, Buckets};
use crate::{ConnId, DialError};
use conn::{Conn, Out, State};
use pilot_proto::wire::packet::port::EPHEMERAL_FIRST;
use pilot_proto::{Addr, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// SYNs of one source at once and per second; of all sources.
const SYN_SOURCE: (u32, u32) = (64, 10);
const SYN_TOTAL: (u32, u32) = (100, 100);
/// Connections per port and in total.
const MAX_PER_PORT: usize = 1024;
const MAX_TOTAL: usize = 65_536;

/// A dial under way (spec 04 section 10).
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) node: NodeId,
    pub(crate) started: Instant,
    /// Next expiry; `None` until the peer's address is known.
    pub(crate) at: Option<Instant>,
    pub(crate) wait: Duration,
    pub(crate) retries: u32,
    pub(crate) direct_retries: u32,
    /// It switched the peer to the relay.
    pub(crate) switched: bool,
}

pub(crate) struct Streams {
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) dials: BTreeMap<ConnId, Dial>,
    pub(crate) listeners: BTreeSet<u16>,
    next_id: u32,
    next_port: u16,
    syn_sources: Buckets<NodeId>,
    syn_total: Option<Bucket>,
    pub(crate) client_buffer: usize,
}

impl Streams {
    pub(crate) fn new(client_buffer: usize, first_port: u16) -> Streams {
        Streams {
            conns: BTreeMap::new(),
            dials: BTreeMap::new(),
            listeners: BTreeSet::new(),
            next_id: 1,
            next_port: first_port.max(EPHEMERAL_FIRST),
            syn_sources: Buckets::new(SYN_SOURCE.0, SYN_SOURCE.1),
            syn_total: None,
            client_buffer,
        }
    }

    pub(crate) fn new_id(&mut self) -> ConnId {
        let id = ConnId(self.next_id);
        self.next_id += 1;
        id
    }

    /// The next free ephemeral port.
    pub(crate) fn port(&mut self) -> Result<u16, DialError> {
        for _ in EPHEMERAL_FIRST..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
            let used = self.conns.values().any(|c| !c.removed && c.local_port == port);
            if !used && !self.listeners.contains(&port) {
                return Ok(port);
            }
        }
        Err(DialError::PortsExhausted)
    }

    /// The connection of a tuple, a live one first.
    pub(crate) fn find(&self, local_port: u16, remote: Addr, remote_port: u16) -> Option<ConnId> {
        let same = |c: &&Conn| {
            !c.removed && c.local_port == local_port && c.remote == remote && c.remote_port == remote_port
        };
        let mut found = self.conns.values().filter(same);
        let first = found.next()?;
        if first.live() {
            return Some(first.id);
        }
        Some(found.find(|c| c.live()).unwrap_or(first).id)
    }

    pub(crate) fn open_with(&self, node: NodeId) -> bool {
        self.conns.values().any(|c| c.live() && c.remote.node == node)
    }

    /// Whether the rate limits let a SYN of this source pass.
    pub(crate) fn take_syn(&mut self, now: Instant, source: NodeId) -> bool {
        let total = self.syn_total.get_or_insert_with(|| Bucket::new(now, SYN_TOTAL.0, SYN_TOTAL.1));
        self.syn_sources.take(now, source) && total.take(now)
    }

    /// Whether the port and the node have room for a connection.
    pub(crate) fn room(&self, port: u16) -> bool {
        let live = self.conns.values().filter(|c| c.live());
        let on_port = live.clone().filter(|c| c.local_port == port).count();
        on_port < MAX_PER_PORT && live.count() < MAX_TOTAL
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let conns = self.conns.values().filter_map(Conn::timeout).min();
        let dials = self.dials.values().filter_map(|d| d.at).min();
        [conns, dials].into_iter().flatten().min()
    }

    pub(crate) fn sweep(&mut self, now: Instant, out: &mut Out) {
        for conn in self.conns.values_mut() {
            conn.sweep(now, out);
        }
        self.conns.retain(|_, c| !c.finished() || c.state == State::SynSent);
    }
}
