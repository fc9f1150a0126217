//! After a restart: peers of the earlier life learn of this process at once, instead of by their timers.

use crate::command::Command;
use crate::shared::Shared;
use crate::unix_now;
use pilot_proto::path::{Candidate, CandidateKind};

/// Peers seen this long before the start may still hold a session with the process before.
const RECENT_SECS: u64 = 600;
/// Peers greeted; four tries of one or two frames for each address and the relay.
const MAX_GREETED: usize = 128;

impl Shared {
    /// Sends this process's key to the peers it had before.
    pub(crate) fn greet_recent_peers(&self) {
        let recent = self.peers.recent(unix_now().saturating_sub(RECENT_SECS));
        for (node, peer) in recent.into_iter().take(MAX_GREETED) {
            let last = peer.endpoints.into_iter().map(|at| Candidate::new(at, CandidateKind::Learnt));
            self.command(Command::Greet(node, last.collect()));
        }
    }
}
