//! Which beacons this node has: those the operator named, else the registry's own one, and those the registry lists (spec
//! 04 section 7); while it says nothing, those it named last. Names are looked up again when the network changes, and
//! when nobody answers at their addresses. The engine registers with up to four of them and chooses (docs/extensions.md).

mod cache;
mod table;

pub use table::BeaconSource;

use crate::command::{Command, Control};
use crate::config::{Transport, split_host_port};
use crate::local::near;
use crate::lock;
use crate::shared::Shared;
use cache::Saved;
use pilot_proto::engine::BeaconStatus;
use pilot_proto::path::beacons::MAX_KNOWN;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use table::{MAX_ADDRESSES, Table};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// UDP port of a beacon that nobody named.
const BEACON_PORT: u16 = 9001;
/// Wait for a beacon's view of our socket before registering: all of them on this host or network, or elsewhere.
const DISCOVER: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(1));
/// The registry's list is asked for after at most this time, then so often.
const LIST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// Distance of looks at whether the beacons answer.
const LOOK: Duration = Duration::from_secs(10);
/// Time for looking up a name.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Distance of look-ups while a beacon does not answer.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(30);
/// Empty lists in a row that are believed; a registry that was restarted knows none for up to 30 s.
const EMPTY: u32 = 3;
/// The file is written again after this time, so that a reference that reads it believes it.
const SAVE_AGAIN: Duration = Duration::from_secs(1800);
/// Longest name of a beacon, bytes.
const MAX_NAME: usize = 261;

/// One beacon of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Beacon {
    /// `host:port` as it was named.
    pub name: String,
    /// Who named it.
    pub source: BeaconSource,
    /// `None`: its name has no address.
    pub status: Option<BeaconStatus>,
}

/// What a node knows of its beacons.
#[derive(Debug, Default)]
pub(crate) struct Beacons {
    known: Mutex<Known>,
    path: Option<PathBuf>,
    /// A registration was answered.
    pub(crate) registered: Notify,
}

#[derive(Debug, Default)]
struct Known {
    table: Table,
    /// What the registry said in this run, or in an earlier one.
    said: Saved,
    /// ... in this one.
    fresh: bool,
    empty: u32,
    saved: Option<Instant>,
    /// What the engine was told last.
    told: Vec<SocketAddr>,
    probes: Vec<SocketAddr>,
}

impl Beacons {
    pub(crate) fn load(identity_path: Option<&std::path::Path>, registry: &str) -> Beacons {
        let path = cache::path(identity_path);
        let said = path.as_deref().map(|path| cache::load(path, registry)).unwrap_or_default();
        Beacons { known: Mutex::new(Known { said, ..Known::default() }), path, registered: Notify::new() }
    }
}

/// The addresses of a beacon that there is a way to. IPv4 first: behind a NAT the beacon's view is worth most there,
/// while IPv6 addresses are mostly what they seem.
async fn resolve_host(address: &str) -> Result<Vec<SocketAddr>, String> {
    let looked_up = timeout(LOOK_UP, tokio::net::lookup_host(address)).await;
    let all = looked_up
        .map_err(|_| format!("beacon {address}: the name was not looked up within {} s", LOOK_UP.as_secs()))?
        .map_err(|e| format!("beacon {address}: {e}"))?;
    let (v4, v6): (Vec<_>, Vec<_>) = all.partition(SocketAddr::is_ipv4);
    let all: Vec<SocketAddr> = v4.into_iter().chain(v6).take(MAX_ADDRESSES).collect();
    let first = *all.first().ok_or_else(|| format!("beacon {address}: no address"))?;
    let mut routed: Vec<SocketAddr> = all.into_iter().filter(|at| has_route(*at)).collect();
    if routed.is_empty() {
        // The network may come later.
        routed.push(first);
    }
    Ok(routed)
}

/// The system knows a way there. Nothing is sent.
pub(crate) fn has_route(to: SocketAddr) -> bool {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    std::net::UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(to)).is_ok()
}

/// The beacons in a `beacon_list_ok`, sorted; what only a neighbour of the registry's could use is left out.
pub(crate) fn listed(answer: &Value) -> Vec<String> {
    let usable = |text: &&str| {
        text.len() <= MAX_NAME
            && split_host_port(text).is_ok_and(|(host, port)| {
                port != 0 && !host.parse().is_ok_and(|ip: IpAddr| near(SocketAddr::new(ip, port)))
            })
    };
    let entries = answer["beacons"].as_array().into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry["addr"].as_str()).filter(usable).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names.truncate(MAX_KNOWN);
    names
}

impl Shared {
    fn with_beacons<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        f(&mut lock(&self.beacons.known))
    }

    /// Asks the configured beacons, or those of an earlier run, how they see our socket, and takes the first answer.
    pub(crate) async fn discover(&self, questions: &mut mpsc::Receiver<Control>) {
        if self.config.transport == Transport::Compat {
            return;
        }
        let own = self.with_beacons(|known| known.said.own.clone()).map(|own| (own, BeaconSource::Cache));
        self.name_beacons(own);
        let configured = |name: &String| self.config.beacons.contains(name);
        for (_, error) in self.look_up(false).await.into_iter().filter(|(name, _)| configured(name)) {
            self.warn(error);
        }
        for _ in 0..MAX_ADDRESSES {
            let beacons = self.tell_beacons();
            if beacons.is_empty() {
                return;
            }
            let limit = if beacons.iter().all(|at| near(*at)) { DISCOVER.0 } else { DISCOVER.1 };
            let answer = async {
                while let Some(question) = questions.recv().await {
                    if let Control::Observed(at) = question {
                        return Some(at);
                    }
                }
                None
            };
            if let Ok(Some(at)) = timeout(limit, answer).await {
                return self.state(|s| s.observed = Some(at));
            }
            if !self.with_beacons(|known| known.table.next(|_| true)) {
                break;
            }
        }
        for name in &self.config.beacons {
            self.warn(silent(name));
        }
    }

    /// The node is registered, or starts without: what there is to know of the beacons for now is known.
    pub(crate) async fn settle_beacons(&self) {
        if self.config.transport == Transport::Compat {
            return;
        }
        let (name, source) = self.own_beacon();
        if self.config.beacons.is_empty() {
            self.state(|s| s.beacon.clone_from(&name));
        }
        self.name_beacons(Some((name.clone(), source)));
        for (failed, error) in self.look_up(false).await {
            if failed == name {
                self.warn(error);
            }
        }
        // The family in which the registry was reached works.
        let reached = self.registry.reached();
        self.with_beacons(|known| known.table.prefer(&name, |at| Some(at.ip()) == reached));
        self.tell_beacons();
        self.ask_about_nat().await;
    }

    /// The registry's own beacon: as it says, or said, or where one usually is.
    fn own_beacon(&self) -> (String, BeaconSource) {
        let registered = self.state(|s| s.registry_ok);
        let said = self.with_beacons(|known| known.said.own.clone());
        if let Some(own) = said.filter(|_| !registered) {
            return (own, BeaconSource::Cache);
        }
        let own =
            with_port(self.registry.host(), self.registry.features().beacon_port.unwrap_or(BEACON_PORT));
        if registered {
            self.with_beacons(|known| known.said.own = Some(own.clone()));
        }
        (own, BeaconSource::Registry)
    }

    /// Puts the names together; `own` is the registry's beacon.
    fn name_beacons(&self, own: Option<(String, BeaconSource)>) {
        let configured = self.config.beacons.iter().map(|name| (name.clone(), BeaconSource::Configured));
        let own = own.filter(|_| self.config.beacons.is_empty());
        self.with_beacons(|known| {
            let source = if known.fresh { BeaconSource::Registry } else { BeaconSource::Cache };
            let listed: Vec<_> = known.said.listed.iter().map(|name| (name.clone(), source)).collect();
            known.table.set(configured.chain(own).chain(listed));
        });
    }

    /// Looks up all names, or those without an address; says which could not be.
    async fn look_up(&self, all: bool) -> Vec<(String, String)> {
        let mut running = JoinSet::new();
        for name in self.with_beacons(|known| known.table.names(all)) {
            running.spawn(async move { (resolve_host(&name).await, name) });
        }
        let mut failed = Vec::new();
        while let Some(done) = running.join_next().await {
            match done {
                Ok((Ok(addresses), name)) => self.with_beacons(|known| known.table.found(&name, addresses)),
                Ok((Err(error), name)) => failed.push((name, error)),
                Err(_) => {}
            }
        }
        failed
    }

    /// Tells the engine of the beacons' addresses, if they are others than before.
    fn tell_beacons(&self) -> Vec<SocketAddr> {
        let (addresses, news) = self.with_beacons(|known| {
            let addresses = known.table.addresses();
            let news = known.told != addresses;
            known.told.clone_from(&addresses);
            (addresses, news)
        });
        if news {
            self.command(Command::Beacons(addresses.clone()));
        }
        addresses
    }

    /// Has the ports of the registry's beacon asked what our NAT does.
    async fn ask_about_nat(&self) {
        let ports = self.registry.features().beacon_ports;
        let probes = match ports.first().filter(|_| ports.len() > 1) {
            Some(port) => match self.beacon_of_registry(*port).await {
                Some(ip) => ports.iter().map(|port| SocketAddr::new(ip, *port)).collect(),
                None => Vec::new(),
            },
            None => Vec::new(),
        };
        if self.with_beacons(|known| std::mem::replace(&mut known.probes, probes.clone()) != probes) {
            self.command(Command::NatProbes(probes));
        }
    }

    /// Where the registry's beacon is, at the address in use if it is one of ours.
    async fn beacon_of_registry(&self, port: u16) -> Option<IpAddr> {
        let (host, reached) = (self.registry.host(), self.registry.reached());
        let ours = self.with_beacons(|known| {
            let at = |entry: &table::Entry| {
                let same = split_host_port(&entry.name).is_ok_and(|(named, _)| named == host);
                entry.address().filter(|at| at.port() == port && (same || Some(at.ip()) == reached))
            };
            known.table.entries().iter().find_map(at)
        });
        match ours {
            Some(at) => Some(at.ip()),
            None => resolve_host(&with_port(host, port))
                .await
                .ok()
                .and_then(|all| all.first().map(SocketAddr::ip)),
        }
    }

    /// Takes the registry's list.
    async fn refresh_beacons(&self) {
        let Ok(answer) = self.registry.request(json!({"type": "beacon_list"})).await else { return };
        let listed = listed(&answer);
        let save = self.with_beacons(|known| {
            known.empty = if listed.is_empty() { known.empty + 1 } else { 0 };
            let believed = !listed.is_empty() || known.empty >= EMPTY || known.said.listed.is_empty();
            let news = believed && (known.said.listed != listed || !known.fresh);
            if believed {
                known.said.listed = listed;
                known.fresh = true;
            }
            let due = news || known.saved.is_none_or(|at| at.elapsed() >= SAVE_AGAIN);
            due.then(|| {
                known.saved = Some(Instant::now());
                known.said.clone()
            })
        });
        if let (Some(said), Some(path)) = (save, self.beacons.path.clone()) {
            cache::save(&self.config.disk, path, &said, self.registry.address()).await;
        }
    }

    /// Follows the registry's list, and the addresses of names (spec 04 section 7).
    pub(crate) async fn keep_beacons(self: std::sync::Arc<Self>) {
        if self.config.transport == Transport::Compat {
            return;
        }
        // All nodes of a registry that was restarted register at once; they need not all ask for its list as well.
        let some_time = || Instant::now() + (crate::jitter(LIST.0) - LIST.0) * 2;
        let mut network = self.network.subscribe();
        let mut list = some_time();
        let mut looked_up = Instant::now();
        loop {
            let (mut registered, mut moved) = (false, false);
            tokio::select! {
                () = sleep_until(list.min(Instant::now() + LOOK)) => {}
                () = self.beacons.registered.notified() => registered = true,
                changed = network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    moved = true;
                }
            }
            if registered {
                list = list.min(some_time());
                self.settle_beacons().await;
            } else if list <= Instant::now() {
                list = Instant::now() + LIST.1;
                self.refresh_beacons().await;
                let own = self.own_beacon();
                self.name_beacons(Some(own));
                self.look_up(false).await;
            }
            let Some(status) = self.ask(Command::BeaconStatus).await else { return };
            let silent: Vec<SocketAddr> =
                status.iter().filter(|beacon| beacon.state == "down").map(|beacon| beacon.addr).collect();
            self.answering(&status);
            if moved || !silent.is_empty() && looked_up.elapsed() >= LOOK_UP_AGAIN {
                looked_up = Instant::now();
                for (_, error) in self.look_up(true).await {
                    tracing::debug!("{error}");
                }
                if !moved {
                    self.with_beacons(|known| known.table.next(|at| silent.contains(&at)));
                }
                self.ask_about_nat().await;
            }
            self.tell_beacons();
        }
    }

    /// What was said of beacons that could not be used is over for those that answer.
    fn answering(&self, status: &[BeaconStatus]) {
        let names: Vec<String> = self.with_beacons(|known| {
            let up = |entry: &&table::Entry| {
                status.iter().any(|beacon| beacon.state == "up" && Some(beacon.addr) == entry.address())
            };
            known.table.entries().iter().filter(up).map(|entry| entry.name.clone()).collect()
        });
        let over = |warning: &String| {
            names
                .iter()
                .any(|name| *warning == silent(name) || warning.starts_with(&format!("beacon {name}: ")))
        };
        self.state(|s| s.warnings.retain(|warning| !over(warning)));
    }

    /// The beacons with what the engine says of them.
    pub(crate) fn beacons(&self, status: &[BeaconStatus]) -> Vec<Beacon> {
        let of = |entry: &table::Entry| Beacon {
            name: entry.name.clone(),
            source: entry.source,
            status: status.iter().find(|beacon| Some(beacon.addr) == entry.address()).cloned(),
        };
        self.with_beacons(|known| known.table.entries().iter().map(of).collect())
    }
}

pub(crate) fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn silent(name: &str) -> String {
    format!("beacon {name} does not answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_list_is_sorted_and_without_what_leads_nowhere() {
        let list = |addrs: &[&str]| {
            let entries: Vec<Value> = addrs.iter().map(|addr| json!({"id": 1, "addr": addr})).collect();
            listed(&json!({"type": "beacon_list_ok", "beacons": entries}))
        };
        let some = ["b.example:9001", "198.51.100.7:9001", "a.example:9001", "198.51.100.7:9001"];
        assert_eq!(list(&some), ["198.51.100.7:9001", "a.example:9001", "b.example:9001"]);
        let local = ["", "10.0.0.1:9001", "127.0.0.1:9001", "[::1]:9001", "[fe80::1]:9001", "0.0.0.0:9001"];
        assert!(list(&local).is_empty());
        assert!(list(&["nowhere", "a.example:0", "::1:9001", &format!("{}:1", "x".repeat(300))]).is_empty());
        let many: Vec<String> = (0..100).map(|n| format!("b{n:03}.example:1")).collect();
        assert_eq!(list(&many.iter().map(String::as_str).collect::<Vec<_>>()).len(), MAX_KNOWN);
        assert!(listed(&json!({"beacons": [7, {"addr": 7}, null]})).is_empty());
        assert!(listed(&json!({})).is_empty());
    }
}
