//! The echo service, and the local client that does not read.

use crate::node::Node;
use crate::stream::conn::{Conn, Out};
use crate::{ConnId, Event};
use bytes::Bytes;
use std::time::Instant;

/// Marks a segment that the echo service answers with the time (spec 06 section 3).
const TRACE: &[u8] = b"TRCE";

impl Node {
    /// The echo service writes back what it reads, a segment at a time, and reads on when its write is through.
    pub(crate) fn serve_echo(&mut self, now: Instant, id: ConnId) {
        loop {
            let Some(conn) = self.streams.conns.get_mut(&id) else { return };
            if conn.send.blocked() {
                return;
            }
            let Some(data) = conn.recv.read(now) else {
                if conn.finished() {
                    self.streams.conns.remove(&id);
                }
                return;
            };
            let answer = if data.len() >= 12 && data.starts_with(TRACE) {
                let mut out = data[..12].to_vec();
                // A time that no test may depend on.
                out.extend_from_slice(&[0; 8]);
                Bytes::from(out)
            } else {
                data
            };
            let mut out = Out::default();
            conn.write(now, answer, &mut out);
            out.notes.clear();
            self.absorb(now, out);
        }
    }

    /// When the client of a connection it does not read is dropped.
    pub(crate) fn client_timeout(&self) -> Option<Instant> {
        let waits = |c: &&Conn| !c.echo && !c.abandoned && !c.removed;
        let stalled = self.streams.conns.values().filter(waits).filter_map(|c| c.recv.stalled).min();
        stalled.map(|at| at + self.config.client_stall)
    }

    /// A client whose socket takes nothing for 10 s is dropped (spec 07 section 18): its connections are closed, its ports
    /// released.
    pub(crate) fn drop_stalled_client(&mut self, now: Instant) {
        if self.client_timeout().is_none_or(|at| now < at) {
            return;
        }
        self.streams.listeners.clear();
        self.emit(Event::ClientDropped);
        let all: Vec<ConnId> = self.streams.conns.values().filter(|c| !c.echo).map(|c| c.id).collect();
        all.into_iter().for_each(|id| self.close(now, id));
    }
}
