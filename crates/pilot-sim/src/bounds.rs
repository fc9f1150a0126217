//! What holds at every moment in every process, and at the end of the world.

use crate::app::Stream;
use crate::check::{MAX_IN_TRANSIT, MAX_PIECES, MAX_UNACKED, Violation};
use crate::fault::Kind;
use crate::plan::Ending;
use crate::world::World;
use pilot_proto::stream::CloseReason;

/// Between two looks at the tables of a process, in turns of its node.
const BOUNDS_EVERY: u32 = 64;
/// Between two looks at what was acknowledged.
const SAMPLE_EVERY: u32 = 8;
/// Kinds of fault a world must have seen, unless it is calm.
const MIN_KINDS: usize = 5;
/// Stream bytes a world must have delivered.
const MIN_BYTES: u64 = 1_000_000;
/// Streams a world must have had.
const MIN_STREAMS: usize = 10;

impl World {
    /// Notes what was acknowledged of every stream of a node.
    pub(crate) fn sample(&mut self, n: usize) {
        let Some(process) = self.nodes[n].process.as_ref() else { return };
        for (conn, (id, side)) in &self.nodes[n].conns {
            let me = &mut self.streams[*id as usize].sides[*side];
            if let Some(acknowledged) = process.acknowledged(*conn) {
                me.acknowledged = me.acknowledged.max(acknowledged);
            }
        }
    }

    /// Tables and queues of a node stay within their bounds.
    pub(crate) fn check_bounds(&mut self, n: usize) -> Result<(), Violation> {
        self.nodes[n].turns += 1;
        let turns = self.nodes[n].turns;
        if turns.is_multiple_of(SAMPLE_EVERY) {
            self.sample(n);
        }
        if !turns.is_multiple_of(BOUNDS_EVERY) {
            return Ok(());
        }
        let node = n as u32 + 1;
        let Some(process) = self.nodes[n].process.as_ref() else { return Ok(()) };
        let bound = |what, count: u64, bound: u64| match count > bound {
            true => Err(Violation::TooMuch { node, what, count, bound }),
            false => Ok(()),
        };
        let sizes = process.sizes();
        let mine = self.streams.iter().filter(|s| s.plan.client == n || s.plan.server == n).count();
        // Excuse: a reference node enters the sender of any unreadable frame into its peer table, as the frame names it;
        // and it keeps a connection in TIME_WAIT beside the one a repeated SYN opens in its place.
        if !self.plan.reference(n) {
            bound("peers", sizes.peers as u64, self.nodes.len() as u64)?;
            bound("connections", sizes.connections as u64, mine as u64)?;
        }
        bound("pieces out of order", sizes.pieces, MAX_PIECES)?;
        bound("unacknowledged segments", sizes.unacked, MAX_UNACKED)?;
        for (id, side) in self.nodes[n].conns.values() {
            let sides = &self.streams[*id as usize].sides;
            let (me, peer) = (&sides[*side], &sides[1 - side]);
            let waiting = me.written.saturating_sub(peer.delivered);
            bound("bytes between two applications", waiting, MAX_IN_TRANSIT)?;
            bound("acknowledged bytes, more than were written", me.acknowledged, me.written)?;
        }
        Ok(())
    }

    /// What must be true when everything is over.
    pub(crate) fn check_end_of_world(&self) -> Result<(), Violation> {
        for (i, node) in self.nodes.iter().enumerate() {
            let left = node.process.as_ref().map_or(0, |p| p.sizes().connections);
            if left > 0 {
                let (node, count) = (i as u32 + 1, left as u64);
                return Err(Violation::TooMuch { node, what: "connections after the end", count, bound: 0 });
            }
        }
        for (id, stream) in self.streams.iter().enumerate() {
            check_complete(id as u32, stream)?;
            check_acknowledged(id as u32, stream)?;
        }
        for (job, state) in self.jobs.iter().enumerate() {
            if state.stored != state.plan.total {
                return Err(Violation::ReceiptFalse { job, receipt: state.receipted, stored: state.stored });
            }
        }
        self.check_worth()
    }

    /// The world was worth running.
    fn check_worth(&self) -> Result<(), Violation> {
        let kinds = Kind::ALL.iter().filter(|k| self.net.stats.hits[**k as usize] > 0).count();
        // Where streams between reference nodes are left out, a fault may find nothing to disturb.
        let mixed = (0..self.nodes.len()).any(|n| self.plan.reference(n));
        let few = !self.plan.calm && !mixed && kinds < MIN_KINDS;
        if few || self.report.bytes < MIN_BYTES || self.streams.len() < MIN_STREAMS {
            let (streams, bytes) = (self.streams.len(), self.report.bytes);
            return Err(Violation::Idle { kinds, streams, bytes });
        }
        Ok(())
    }
}

/// A stream that both sides ended in order must have delivered everything.
fn check_complete(id: u32, stream: &Stream) -> Result<(), Violation> {
    let in_order = stream.sides.iter().all(|s| s.closed == Some(CloseReason::Closed) && !s.lost);
    if stream.plan.ending != Ending::HalfClose || !in_order || stream.complete() {
        return Ok(());
    }
    let direction = usize::from(stream.sides[1].delivered == stream.plan.bytes[0]);
    Err(Violation::Incomplete {
        stream: id,
        direction,
        delivered: stream.sides[1 - direction].delivered,
        sent: stream.plan.bytes[direction],
    })
}

/// What the receiving process acknowledged its application got, unless that process died or its application did not
/// want it.
fn check_acknowledged(id: u32, stream: &Stream) -> Result<(), Violation> {
    for direction in 0..2 {
        let (sender, receiver) = (&stream.sides[direction], &stream.sides[1 - direction]);
        let unwanted = receiver.aborted
            || (matches!(stream.plan.ending, Ending::Close | Ending::Answered) && direction == 1);
        if receiver.lost || receiver.conn.is_none() || unwanted {
            continue;
        }
        let (acknowledged, delivered) = (sender.acknowledged, receiver.delivered);
        if delivered < acknowledged {
            return Err(Violation::AcknowledgedLost { stream: id, direction, acknowledged, delivered });
        }
    }
    Ok(())
}
