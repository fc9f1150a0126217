//! The memory that keeps a repeated message from being stored twice (spec 06 section 5.4).

use super::frame::FrameType;
use super::message::Tag;
use crate::Addr;
use aws_lc_rs::digest;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a stored message is remembered.
pub const LIFETIME: Duration = Duration::from_secs(600);
/// Remembered messages; the oldest is forgotten first.
pub const MAX_ENTRIES: usize = 8192;

/// Identifies a message.
pub type Key = [u8; 32];

/// The key of a message, or `None` if it has no id and is therefore never suppressed. `name`: of a file, else empty.
pub fn key(from: Addr, ty: FrameType, name: &str, tag: &Tag, payload: &[u8]) -> Option<Key> {
    let id = tag.message_id.as_deref()?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    field(from.to_string().as_bytes());
    field(&ty.0.to_be_bytes());
    field(name.as_bytes());
    field(id.as_bytes());
    field(tag.reply_to.as_deref().unwrap_or("").as_bytes());
    field(payload);
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    Some(out)
}

/// What [`Duplicates::claim`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nobody stored or stores it: do so, then call [`Duplicates::stored`] or [`Duplicates::failed`].
    New,
    /// Another connection is storing it: wait for that to end, then claim again.
    InProgress,
    /// It is stored; the text of the first acknowledgement.
    Duplicate(String),
}

/// Messages stored lately or being stored.
#[derive(Debug, Default)]
pub struct Duplicates {
    /// `None`: being stored.
    entries: HashMap<Key, Option<(Instant, String)>>,
    /// Stored ones, oldest first.
    order: VecDeque<(Instant, Key)>,
}

impl Duplicates {
    /// Nothing is known.
    pub fn new() -> Duplicates {
        Duplicates::default()
    }

    /// Asks for the right to store a message. Claims in progress are bounded by the connections that hold them.
    pub fn claim(&mut self, now: Instant, key: Key) -> Claim {
        self.expire(now);
        match self.entries.get(&key) {
            None => {
                self.entries.insert(key, None);
                Claim::New
            }
            Some(None) => Claim::InProgress,
            Some(Some((_, ack))) => Claim::Duplicate(ack.clone()),
        }
    }

    /// The claimed message is stored and was acknowledged with this text.
    pub fn stored(&mut self, now: Instant, key: Key, ack: &str) {
        self.entries.insert(key, Some((now, ack.to_owned())));
        self.order.push_back((now, key));
        while self.order.len() > MAX_ENTRIES {
            self.forget_oldest();
        }
    }

    /// The claimed message could not be stored: a retry is processed.
    pub fn failed(&mut self, key: Key) {
        if self.entries.get(&key) == Some(&None) {
            self.entries.remove(&key);
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= LIFETIME) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.entries.remove(&key);
        }
    }
}
