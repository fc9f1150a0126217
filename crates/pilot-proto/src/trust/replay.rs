//! The replay set of handshake messages (spec 06 section 2.3).

use crate::NodeId;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Entries in total.
pub const MAX_ENTRIES: usize = 8192;
/// Entries per claimed sender.
pub const MAX_PER_NODE: usize = 256;
/// Age at which the periodic job removes an entry, seconds.
pub const LIFETIME_SECS: u64 = 600;

/// Keys of messages seen lately, oldest first.
#[derive(Debug, Default)]
pub(super) struct ReplaySet {
    /// Insertion number -> entry; the numbers order entries by age.
    by_age: BTreeMap<u64, ([u8; 32], NodeId, u64)>,
    by_key: HashMap<[u8; 32], u64>,
    by_node: HashMap<NodeId, VecDeque<u64>>,
    next: u64,
}

impl ReplaySet {
    pub(super) fn contains(&self, key: &[u8; 32]) -> bool {
        self.by_key.contains_key(key)
    }

    /// Never fails: over a limit the oldest entry gives way.
    pub(super) fn record(&mut self, now_unix: u64, node: NodeId, key: [u8; 32]) {
        if self.by_key.contains_key(&key) {
            return;
        }
        if let Some(list) = self.by_node.get(&node)
            && list.len() >= MAX_PER_NODE
            && let Some(oldest) = list.front().copied()
        {
            self.remove(oldest);
        }
        if self.by_age.len() >= MAX_ENTRIES {
            self.expire(now_unix);
        }
        if self.by_age.len() >= MAX_ENTRIES
            && let Some(oldest) = self.by_age.keys().next().copied()
        {
            self.remove(oldest);
        }
        let number = self.next;
        self.next += 1;
        self.by_age.insert(number, (key, node, now_unix));
        self.by_key.insert(key, number);
        self.by_node.entry(node).or_default().push_back(number);
    }

    pub(super) fn expire(&mut self, now_unix: u64) {
        while let Some((&number, &(_, _, at))) = self.by_age.first_key_value()
            && now_unix.saturating_sub(at) > LIFETIME_SECS
        {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some((key, node, _)) = self.by_age.remove(&number) else { return };
        self.by_key.remove(&key);
        if let Some(list) = self.by_node.get_mut(&node) {
            // Entries leave oldest first, so it is the first one of its node.
            list.retain(|n| *n != number);
            if list.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.by_age.len(), self.by_key.len());
        assert_eq!(self.by_age.len(), self.by_node.values().map(VecDeque::len).sum::<usize>());
        self.by_age.len()
    }
}
