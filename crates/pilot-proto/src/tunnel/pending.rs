//! Packets that wait for a session (spec 02 section 12).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets per peer.
pub const MAX_PACKETS: usize = 64;
/// Peers with waiting packets.
pub const MAX_PEERS: usize = 256;
/// Age of the oldest packet at which the whole queue is dropped.
pub const MAX_AGE: Duration = Duration::from_secs(120);
/// Plaintexts a salvage ring holds.
const SALVAGE: usize = 4;
/// Datagrams of a peer remembered.
const TAKEN: usize = 4 * SALVAGE;
/// Age from which a salvaged plaintext is worthless.
const SALVAGE_AGE: Duration = Duration::from_secs(5);
/// Age from which nobody repeats a packet: salvage, and the time an exchange may take.
const REPEATED_AGE: Duration = Duration::from_secs(15);

/// One peer's waiting packets, oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    packets: VecDeque<Vec<u8>>,
    since: Option<Instant>,
}

impl Queue {
    /// Appends a packet. False: full; the new packet is the one refused, because the head of the queue is what
    /// opens the conversation.
    pub fn push(&mut self, packet: Vec<u8>, now: Instant) -> bool {
        if self.packets.len() >= MAX_PACKETS {
            return false;
        }
        self.since.get_or_insert(now);
        self.packets.push_back(packet);
        true
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When the queue is too old to be of use.
    pub fn expires(&self) -> Option<Instant> {
        self.since.map(|since| since + MAX_AGE)
    }

    /// Empties the queue.
    pub fn take(&mut self) -> VecDeque<Vec<u8>> {
        self.since = None;
        std::mem::take(&mut self.packets)
    }
}

/// The last packets sent under a session, to be sent again if the peer turns out to have lost it. Stream packets
/// repair themselves and stay out.
#[derive(Debug, Default)]
pub struct Salvage {
    packets: VecDeque<(Instant, Vec<u8>)>,
}

impl Salvage {
    /// Remembers a sent packet.
    pub fn push(&mut self, packet: &[u8], now: Instant) {
        if self.packets.len() >= SALVAGE {
            self.packets.pop_front();
        }
        self.packets.push_back((now, packet.to_vec()));
    }

    /// The packets young enough to be worth repeating.
    pub fn take(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.packets
            .drain(..)
            .filter(|(sent, _)| now.saturating_duration_since(*sent) <= SALVAGE_AGE)
            .map(|(_, packet)| packet)
            .collect()
    }
}

/// Source port, destination port and CRC-32 of the payload tell a datagram from its neighbours: each gets the next
/// source port.
pub type Datagram = (u16, u16, u32);

/// What a packet came under: a session's replay window keeps its own packets from coming twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Under {
    /// No session.
    Nothing,
    /// A session of the peer with this nonce prefix.
    Prefix([u8; 4]),
    /// An upgraded session; our name for it.
    Session(u32),
}

/// The last datagrams taken from a peer: what its [`Salvage`] repeats when it sees us under another tunnel key, and what
/// may overtake that on the way.
/// A process that restarted has taken none of them; one that only lost the session must not take them twice.
///
/// Which session is the newest says nothing about a datagram: the first copy may arrive late, when the session that the
/// second one comes under is known already.
#[derive(Debug, Default)]
pub struct Taken {
    datagrams: VecDeque<(Instant, Datagram, Under)>,
}

impl Taken {
    /// Whether this datagram is news.
    pub fn take(&mut self, now: Instant, datagram: Datagram, under: Under) -> bool {
        let repeated = |(at, taken, before): &(Instant, Datagram, Under)| {
            *taken == datagram && *before != under && now.saturating_duration_since(*at) < REPEATED_AGE
        };
        if self.datagrams.iter().any(repeated) {
            return false;
        }
        if self.datagrams.len() >= TAKEN {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back((now, datagram, under));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: Datagram = (49_152, 7, 0xABCD);

    #[test]
    fn a_datagram_repeated_under_another_session_is_taken_once_whichever_copy_comes_first() {
        let now = Instant::now();
        for (first, second) in [
            (Under::Prefix([1; 4]), Under::Session(1)),
            (Under::Session(1), Under::Prefix([1; 4])),
            (Under::Session(2), Under::Session(1)),
        ] {
            let mut taken = Taken::default();
            assert!(taken.take(now, DATAGRAM, first));
            assert!(!taken.take(now, DATAGRAM, second), "{first:?}, then {second:?}");
        }
    }

    #[test]
    fn equal_datagrams_of_one_session_are_all_taken_and_old_ones_hold_up_nothing() {
        let now = Instant::now();
        let mut taken = Taken::default();
        assert!(taken.take(now, DATAGRAM, Under::Session(1)));
        assert!(
            taken.take(now, DATAGRAM, Under::Session(1)),
            "the replay window of the session has checked it"
        );
        assert!(taken.take(now + REPEATED_AGE, DATAGRAM, Under::Session(2)));
    }
}
