//! One upgraded session: a key per direction, a counter, a replay window, and when all of it ends (docs/extensions.md,
//! "Session upgrade").
//!
//! No frame that does not open changes anything here, whatever it claims.

use super::noise::{Keys, nonce};
use crate::NodeId;
use crate::crypto::SessionKey;
use crate::wire::frame::{PILS_HEADER_LEN, Pilu};
use std::time::{Duration, Instant};

/// Counters a window remembers up to and including the highest one.
pub const WINDOW: u64 = 8192;
/// Age at which a session in use is replaced.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Frames sealed after which a session is replaced.
pub const REKEY_FRAMES: u64 = 1 << 22;
/// Frames sealed after which a session refuses to seal. AES-GCM stays within its confidentiality bound for 2^23 packets of
/// up to 2^16 bytes (RFC 9001 section 6.6 and appendix B.1).
pub const MAX_FRAMES: u64 = 1 << 23;
/// Age at which a session neither seals nor opens any more, and is dropped.
pub const MAX_AGE: Duration = Duration::from_secs(240);

/// Words of the ring: one more than the window needs, so that a word can be cleared as a whole when it is entered.
const WORDS: u64 = WINDOW / 64 + 1;

/// Why a frame did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The tag is wrong.
    Tag,
    /// Authenticated, but the counter was used before.
    Replay,
    /// Authenticated, but 8,192 or more behind.
    Outside,
    /// The session is too old.
    Expired,
}

/// The counters seen: the one after the highest, and a ring of bits.
#[derive(Debug, Clone)]
pub struct Window {
    next: u64,
    seen: Box<[u64; WORDS as usize]>,
}

impl Default for Window {
    fn default() -> Window {
        Window { next: 0, seen: Box::new([0; WORDS as usize]) }
    }
}

impl Window {
    /// Records an authenticated frame's counter. True: it is the highest so far. Counter `u64::MAX` is never used and never
    /// accepted.
    ///
    /// # Errors
    /// [`Refused::Replay`], [`Refused::Outside`].
    pub fn record(&mut self, counter: u64) -> Result<bool, Refused> {
        let highest = counter >= self.next;
        if highest {
            let after = counter.checked_add(1).ok_or(Refused::Outside)?;
            // Every word entered since the highest counter so far is cleared, at most the whole ring.
            let (from, to) = (self.next.div_ceil(64), counter / 64 + 1);
            for word in from.max(to.saturating_sub(WORDS))..to {
                self.seen[(word % WORDS) as usize] = 0;
            }
            self.next = after;
        } else if self.next - counter > WINDOW {
            return Err(Refused::Outside);
        }
        let (word, bit) = (&mut self.seen[(counter / 64 % WORDS) as usize], 1 << (counter % 64));
        if *word & bit != 0 {
            return Err(Refused::Replay);
        }
        *word |= bit;
        Ok(highest)
    }
}

/// A session agreed by a handshake of [`super::noise`].
#[derive(Debug)]
pub struct Upgraded {
    send: SessionKey,
    receive: SessionKey,
    /// Our name for it, in frames to us.
    pub local: u32,
    /// The peer's name for it, in frames to the peer.
    pub remote: u32,
    /// The peer's static X25519 key: another one means that the peer is another process.
    pub peer_static: [u8; 32],
    /// When it was agreed.
    pub installed: Instant,
    /// When a frame last opened under it.
    pub heard: Option<Instant>,
    sealed: u64,
    window: Window,
}

impl Upgraded {
    /// A session with the keys of a finished handshake.
    pub fn new(keys: Keys, local: u32, remote: u32, peer_static: [u8; 32], now: Instant) -> Upgraded {
        let Keys { send, receive, .. } = keys;
        Upgraded {
            send,
            receive,
            local,
            remote,
            peer_static,
            installed: now,
            heard: None,
            sealed: 0,
            window: Window::default(),
        }
    }

    /// Turns `frame[start..]`, which is 20 bytes of room and a packet, into a PILU frame: fills in the header,
    /// encrypts in place and appends the tag. False: the session is used up or the cipher refused, and the caller drops
    /// the packet.
    pub fn seal(&mut self, node: NodeId, frame: &mut Vec<u8>, start: usize) -> bool {
        let Some(body) = frame.get_mut(start..).filter(|b| b.len() >= PILS_HEADER_LEN) else { return false };
        if self.sealed >= MAX_FRAMES {
            return false;
        }
        let header = Pilu { node, session: self.remote, counter: self.sealed }.header();
        // Counted before the cipher runs: whatever happens, this nonce is not used again.
        self.sealed += 1;
        let (head, text) = body.split_at_mut(PILS_HEADER_LEN);
        head.copy_from_slice(&header);
        let Some(tag) = self.send.seal(nonce(self.sealed - 1), &header, text) else { return false };
        frame.extend_from_slice(&tag);
        true
    }

    /// Opens ciphertext and tag in place; true with the plaintext: no frame with a higher counter came before.
    ///
    /// # Errors
    /// The frame is not taken and nothing has changed.
    pub fn open<'a>(
        &mut self,
        now: Instant,
        header: &Pilu,
        text: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), Refused> {
        if self.expired(now) {
            return Err(Refused::Expired);
        }
        let plain = self.receive.open(nonce(header.counter), &header.header(), text).ok_or(Refused::Tag)?;
        let highest = self.window.record(header.counter)?;
        self.heard = Some(now);
        Ok((plain, highest))
    }

    /// Frames sealed so far.
    pub fn sealed(&self) -> u64 {
        self.sealed
    }

    /// It may seal another frame.
    pub fn usable(&self, now: Instant) -> bool {
        self.sealed < MAX_FRAMES && !self.expired(now)
    }

    /// Too old to seal or open.
    pub fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.installed) >= MAX_AGE
    }

    /// Counts as if `count` frames had been sealed; for tests of what happens at the bounds.
    #[doc(hidden)]
    pub fn skip_to(&mut self, count: u64) {
        self.sealed = self.sealed.max(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(now: Instant) -> (Upgraded, Upgraded) {
        let key = |n: u8| SessionKey::from_bytes(&[n; 32]).unwrap();
        let keys = |send, receive| Keys { send: key(send), receive: key(receive), hash: [0; 32] };
        let a = Upgraded::new(keys(1, 2), 11, 22, [0; 32], now);
        let b = Upgraded::new(keys(2, 1), 22, 11, [0; 32], now);
        (a, b)
    }

    fn sealed(session: &mut Upgraded, text: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; PILS_HEADER_LEN];
        frame.extend_from_slice(text);
        assert!(session.seal(7, &mut frame, 0));
        frame
    }

    fn open(session: &mut Upgraded, now: Instant, frame: &[u8]) -> Result<(Vec<u8>, bool), Refused> {
        let Ok(crate::wire::frame::Frame::Pilu(header)) = crate::wire::frame::Frame::parse(frame) else {
            panic!("no PILU frame")
        };
        let mut text = frame[PILS_HEADER_LEN..].to_vec();
        session.open(now, &header, &mut text).map(|(plain, highest)| (plain.to_vec(), highest))
    }

    #[test]
    fn frames_open_once_in_any_order_and_only_unchanged() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let frames: Vec<_> = (0..4u8).map(|n| sealed(&mut a, &[n; 5])).collect();
        assert_eq!(&frames[0][..20], &[b"PILU".as_slice(), &[0, 0, 0, 7, 0, 0, 0, 22], &[0; 8]].concat()[..]);
        assert_eq!(open(&mut b, now, &frames[2]), Ok((vec![2; 5], true)));
        assert_eq!(open(&mut b, now, &frames[0]), Ok((vec![0; 5], false)));
        assert_eq!(open(&mut b, now, &frames[2]), Err(Refused::Replay));
        for bit in 0..frames[1].len() * 8 {
            let mut changed = frames[1].clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if changed[..4] == frames[1][..4] {
                assert_eq!(open(&mut b, now, &changed), Err(Refused::Tag), "bit {bit}");
            }
        }
        assert_eq!(open(&mut b, now, &frames[1]), Ok((vec![1; 5], false)));
        assert_eq!(
            open(&mut a, now, &frames[3]),
            Err(Refused::Tag),
            "a frame is not taken by its own sender"
        );
        assert_eq!(open(&mut b, now, &frames[3]), Ok((vec![3; 5], true)));
    }

    #[test]
    fn a_forged_huge_counter_does_not_move_the_window() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let first = sealed(&mut a, b"x");
        let mut forged = first.clone();
        forged[12..20].copy_from_slice(&(u64::MAX - 1).to_be_bytes());
        assert_eq!(open(&mut b, now, &forged), Err(Refused::Tag));
        assert!(open(&mut b, now, &first).is_ok());
    }

    #[test]
    fn the_session_stops_sealing_at_its_bound_and_everything_at_its_age() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let early = sealed(&mut a, b"x");
        a.sealed = MAX_FRAMES - 1;
        assert!(a.usable(now));
        sealed(&mut a, b"the last one");
        let mut frame = vec![0; 40];
        assert!(!a.seal(7, &mut frame, 0));
        assert_eq!(frame, [0; 40], "nothing was written");
        assert!(!a.usable(now));
        assert!(!b.expired(now + MAX_AGE - Duration::from_millis(1)));
        assert_eq!(open(&mut b, now + MAX_AGE, &early), Err(Refused::Expired));
    }

    #[test]
    fn the_window_is_8192_wide_whatever_is_skipped() {
        let mut w = Window::default();
        assert_eq!(w.record(0), Ok(true));
        assert_eq!(w.record(0), Err(Refused::Replay));
        assert_eq!(w.record(u64::MAX), Err(Refused::Outside));
        assert_eq!(w.record(20_000), Ok(true));
        assert_eq!(w.record(20_000 - 8191), Ok(false));
        assert_eq!(w.record(20_000 - 8192), Err(Refused::Outside));
        assert_eq!(w.record(u64::MAX - 1), Ok(true));
        assert_eq!(w.record(u64::MAX - 8192), Ok(false));
        assert_eq!(w.record(u64::MAX - 8193), Err(Refused::Outside));
        assert_eq!(w.record(u64::MAX), Err(Refused::Outside));
    }

    /// Against a set: jumps of all sizes around words and the window's width, forwards and back.
    #[test]
    fn the_window_agrees_with_a_set_of_everything_seen() {
        let (mut w, mut seen, mut highest) =
            (Window::default(), std::collections::BTreeSet::new(), None::<u64>);
        let mut x = 1u64;
        for round in 0..60_000u64 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let reach = [3, 64, 130, 8192, 8300, 20_000][(x >> 40) as usize % 6];
            let at = highest.unwrap_or(0);
            let step = (x >> 20) % reach;
            let counter = if round % 3 == 0 { at + step } else { at.saturating_sub(step) };
            let expected = match highest {
                Some(h) if counter <= h && h - counter >= WINDOW => Err(Refused::Outside),
                _ if !seen.insert(counter) => Err(Refused::Replay),
                h => Ok(h.is_none_or(|h| counter > h)),
            };
            assert_eq!(w.record(counter), expected, "round {round}, counter {counter}, highest {highest:?}");
            highest = Some(at.max(counter));
        }
    }
}
