//! What waits for one WebSocket: bounded in messages and bytes, and in bytes over all of them. The beacon never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// Messages that wait for one connection.
const MESSAGES: usize = 1024;
/// Bytes that wait for one connection: half a second at 16 Mbit/s. A slow receiver loses what comes beyond.
const BYTES: usize = 1 << 20;
/// Bytes that wait for all connections together.
const TOTAL: usize = 256 << 20;

/// Bytes that wait, of all connections.
pub(crate) type Total = Arc<AtomicUsize>;

/// The beacon's end. When it is dropped, the connection closes as replaced.
#[derive(Debug)]
pub(crate) struct Outlet {
    messages: mpsc::Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    total: Total,
}

/// The connection's end.
#[derive(Debug)]
pub(crate) struct Inlet {
    messages: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    total: Total,
}

/// A queue for one connection.
pub(crate) fn queue(total: Total) -> (Outlet, Inlet) {
    let (tx, rx) = mpsc::channel(MESSAGES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let inlet = Inlet { messages: rx, waiting: waiting.clone(), total: total.clone() };
    (Outlet { messages: tx, waiting, total }, inlet)
}

impl Outlet {
    /// Queues a message; false: there is no room, and the message is lost.
    pub fn push(&self, message: &[u8]) -> bool {
        let len = message.len();
        // The beacon alone adds, so what is read here can only shrink meanwhile.
        let room = self.waiting.load(Ordering::Relaxed) + len <= BYTES
            && self.total.load(Ordering::Relaxed) + len <= TOTAL;
        let Some(permit) = room.then(|| self.messages.try_reserve().ok()).flatten() else { return false };
        self.waiting.fetch_add(len, Ordering::Relaxed);
        self.total.fetch_add(len, Ordering::Relaxed);
        permit.send(message.to_vec());
        true
    }
}

impl Inlet {
    /// The next messages, at most `limit`. None: the connection was replaced.
    pub async fn take(&mut self, into: &mut Vec<Vec<u8>>, limit: usize) {
        self.messages.recv_many(into, limit).await;
        self.gone(into.iter().map(Vec::len).sum());
    }

    fn gone(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            self.gone(message.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_is_bounded_in_bytes_and_messages_and_gives_its_room_back() {
        let total = Total::default();
        let (outlet, mut inlet) = queue(total.clone());
        let fitted = (0..100).filter(|_| outlet.push(&[7; 65_536])).count();
        assert_eq!((fitted, total.load(Ordering::Relaxed)), (16, 1 << 20));
        let mut taken = Vec::new();
        inlet.take(&mut taken, 10).await;
        assert_eq!((taken.len(), total.load(Ordering::Relaxed)), (10, 6 * 65_536));
        let small = (0..2000).filter(|_| outlet.push(&[7])).count();
        assert_eq!(small, MESSAGES - 6);
        drop(inlet);
        assert_eq!(total.load(Ordering::Relaxed), 0);
        assert!(!outlet.push(&[7]), "the connection has gone");
    }

    #[tokio::test]
    async fn without_the_beacons_end_the_queue_ends() {
        let (outlet, mut inlet) = queue(Total::default());
        outlet.push(b"last");
        drop(outlet);
        let mut taken = Vec::new();
        inlet.take(&mut taken, 8).await;
        assert_eq!(taken, [b"last".to_vec()]);
        taken.clear();
        inlet.take(&mut taken, 8).await;
        assert!(taken.is_empty());
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let total = Total::new(AtomicUsize::new(TOTAL - 10));
        let (outlet, _inlet) = queue(total);
        assert!(outlet.push(&[0; 10]) && !outlet.push(&[0]));
    }
}
