//! After a restart: peers of the earlier life learn of this process at once, instead of by their timers.

use crate::command::Command;
use crate::shared::Shared;
use crate::unix_now;

/// Peers seen this long before the start may still hold a session with the process before.
const RECENT_SECS: u64 = 600;
/// Peers greeted; four tries of one or two frames for each address and the relay.
const MAX_GREETED: usize = 128;

impl Shared {
    /// Sends this process's key to the peers it had before.
    pub(crate) fn greet_recent_peers(&self) {
        let recent = self.peers.recent(unix_now().saturating_sub(RECENT_SECS));
        for (node, peer) in recent.into_iter().take(MAX_GREETED) {
            // With the registry, whoever wants to talk asks where the other is; without it, every address is tried.
            let mut ways = peer.ways();
            if !self.registry_away() {
                ways.truncate(peer.endpoints.len());
            }
            self.command(Command::Greet(node, ways));
        }
    }
}
