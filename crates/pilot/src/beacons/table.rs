//! The beacons by name: who named them, which addresses their names have, and which of these is used.

use pilot_proto::path::beacons::MAX_KNOWN;
use std::net::SocketAddr;

/// Addresses of one beacon's name that are tried.
pub(crate) const MAX_ADDRESSES: usize = 4;

/// Who named a beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeaconSource {
    /// The operator.
    Configured,
    /// The registry: its own one, or from its list.
    Registry,
    /// The registry, in an earlier run of this node.
    Cache,
}

impl BeaconSource {
    /// As status output names it.
    pub fn name(self) -> &'static str {
        match self {
            BeaconSource::Configured => "configured",
            BeaconSource::Registry => "registry",
            BeaconSource::Cache => "cache",
        }
    }
}

/// One beacon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `host:port`.
    pub(crate) name: String,
    pub(crate) source: BeaconSource,
    /// At most [`MAX_ADDRESSES`], the preferred one first; empty: not looked up yet, or without success.
    addresses: Vec<SocketAddr>,
    /// Index of the one in use.
    at: usize,
}

impl Entry {
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.addresses.get(self.at).copied()
    }
}

/// At most [`MAX_KNOWN`] beacons, in the order in which a reference node counts them (spec 04 section 7).
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// These are the beacons now. What is known of names that stay, stays. A name counts where it comes first.
    pub(crate) fn set(&mut self, names: impl IntoIterator<Item = (String, BeaconSource)>) {
        let mut before = std::mem::take(&mut self.entries);
        for (name, source) in names {
            if self.entries.len() == MAX_KNOWN || self.entries.iter().any(|entry| entry.name == name) {
                continue;
            }
            let known = before.iter().position(|entry| entry.name == name).map(|at| before.swap_remove(at));
            self.entries.push(match known {
                Some(entry) => Entry { source, ..entry },
                None => Entry { name, source, addresses: Vec::new(), at: 0 },
            });
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The names to look up: all of them, or only those without an address.
    pub(crate) fn names(&self, all: bool) -> Vec<String> {
        let wanted = self.entries.iter().filter(|entry| all || entry.addresses.is_empty());
        wanted.map(|entry| entry.name.clone()).collect()
    }

    /// A name was looked up. The address in use stays in use if the name still has it.
    pub(crate) fn found(&mut self, name: &str, addresses: Vec<SocketAddr>) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) else { return };
        let used = entry.address();
        entry.addresses = addresses;
        entry.addresses.truncate(MAX_ADDRESSES);
        entry.at = entry.addresses.iter().position(|addr| Some(*addr) == used).unwrap_or(0);
    }

    /// The name's address, if it has this one, is this one.
    pub(crate) fn prefer(&mut self, name: &str, wanted: impl Fn(SocketAddr) -> bool) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name)
            && let Some(at) = entry.addresses.iter().position(|addr| wanted(*addr))
        {
            entry.at = at;
        }
    }

    /// Nobody answers at these addresses: their names' next ones are used. True: there are others.
    pub(crate) fn next(&mut self, silent: impl Fn(SocketAddr) -> bool) -> bool {
        let mut any = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.addresses.len() > 1) {
            if entry.address().is_some_and(&silent) {
                entry.at = (entry.at + 1) % entry.addresses.len();
                any = true;
            }
        }
        any
    }

    /// The addresses in use, in order.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.entries.iter().filter_map(Entry::address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> Table {
        let mut table = Table::default();
        table.set(names.iter().map(|name| ((*name).to_owned(), BeaconSource::Configured)));
        table
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_counts_once_where_it_comes_first_and_keeps_its_addresses() {
        let mut table = table(&["a:1", "b:1", "a:1"]);
        assert_eq!(table.names(true), ["a:1", "b:1"]);
        table.found("b:1", vec![addr("192.0.2.2:1")]);
        assert_eq!(table.names(false), ["a:1"]);
        let cached = |name: &str| (name.to_owned(), BeaconSource::Cache);
        table.set([cached("c:1"), cached("b:1")]);
        assert_eq!(table.addresses(), [addr("192.0.2.2:1")]);
        assert_eq!(table.entries()[1].source, BeaconSource::Cache);
        table.set((0..100).map(|n| cached(&format!("x:{n}"))));
        assert_eq!(table.entries().len(), MAX_KNOWN);
    }

    #[test]
    fn the_address_in_use_stays_until_it_is_gone_or_silent() {
        let (one, two) = (addr("192.0.2.1:1"), addr("192.0.2.2:1"));
        let mut table = table(&["a:1", "b:1"]);
        table.found("a:1", vec![one, two]);
        table.found("b:1", vec![one]);
        assert!(table.next(|addr| addr == one), "b has no other");
        assert_eq!(table.addresses(), [two, one]);
        table.found("a:1", vec![one, two]);
        assert_eq!(table.addresses(), [two, one], "the same as before");
        table.found("a:1", vec![one]);
        assert_eq!(table.addresses(), [one, one]);
        assert!(!table.next(|_| true));
        table.found("a:1", vec![one, two]);
        table.prefer("a:1", |addr| addr == two);
        assert_eq!(table.addresses(), [two, one]);
    }
}
