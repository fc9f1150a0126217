//! What becomes of a stream while the network changes under it: what arrives is what was sent, and how long nothing came.

use crate::agents::{Agent, Net, wait_until};
use crate::flow::Flow;
use crate::probe::{Way, node_id, way};
use crate::{alone, runtime, start_anew};
use pilot_ipc::Client;
use pilot_netlab::{Firewall, Site};
use pilot_proto::NodeId;
use std::time::{Duration, Instant};

/// Rate of the stream unless `PILOT_STREAM_MBIT` says another: what a build without optimisation and the laboratory carry on
/// two cores with room to spare.
const MBIT: u64 = 20;
/// Port of the application.
const PORT: u16 = 2000;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long paths may take to be as they must.
const PATIENCE: Duration = Duration::from_secs(40);
/// Longest silence while an event is dealt with.
const STALL: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(20);

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn mbit() -> u64 {
    setting("PILOT_STREAM_MBIT", MBIT)
}

/// What flows before an event, and after it before the stream ends.
fn steady() -> u64 {
    mbit() * 125_000 / 2
}

/// Two agents with a stream from the first to the second.
struct Pair {
    net: Net,
    agents: [Agent; 2],
    clients: [Client; 2],
    ids: [NodeId; 2],
    flow: Flow,
}

impl Pair {
    async fn start(net: Net, sites: [Site; 2]) -> Pair {
        let mut agents = [net.agent(sites[0], "a", 1), net.agent(sites[1], "b", 2)];
        start_anew(&mut agents);
        agents[0].trust(&agents[1]).expect("trust");
        let clients = [agents[0].client().await, agents[1].client().await];
        let ids = [node_id(&clients[0]).await, node_id(&clients[1]).await];
        let flow = Flow::start(&clients[0], &clients[1], "b", PORT, mbit()).await.expect("the stream opens");
        Pair { net, agents, clients, ids, flow }
    }

    async fn ways(&self) -> [Way; 2] {
        let [a, b] = &self.clients;
        [way(a, self.ids[1]).await, way(b, self.ids[0]).await].map(Option::unwrap_or_default)
    }

    /// Waits until both see their way to the other so.
    async fn until(&self, what: &str, holds: impl Fn(&Way) -> bool) -> Duration {
        let start = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let ways = self.ways().await;
            if ways.iter().all(&holds) {
                return start.elapsed();
            }
            let stalled = self.flow.longest_silence_since(start);
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: still {ways:?} after {PATIENCE:?}; stalled for {stalled:?}"
            );
        }
    }

    async fn steady(&self, when: &str) {
        self.flow.carries(steady(), LIMIT).await.unwrap_or_else(|e| panic!("{when}: {e}"));
    }

    /// The silence since an event, once the stream is steady again.
    async fn stall_since(&self, event: &str, at: Instant) -> Duration {
        self.steady(&format!("after {event}")).await;
        let stall = self.flow.longest_silence_since(at);
        println!("{event}: nothing arrived for {} ms", stall.as_millis());
        stall
    }

    async fn end(self) {
        let bytes = self.flow.finish().await.expect("what arrived is what was sent");
        println!("{bytes} bytes, hash equal");
    }
}

fn on<T>(sites: [Site; 2], net: Net, f: impl AsyncFnOnce(Pair) -> T) -> T {
    runtime().block_on(async { f(Pair::start(net, sites).await).await })
}

const HOMES: [Site; 2] = [Site::PortRestricted, Site::PortRestricted];

#[test]
fn a_stream_moves_to_the_relay_when_its_path_is_blocked_and_back_when_it_is_open() {
    let _alone = alone();
    on(HOMES, Net::new(71), async |pair| {
        pair.until("before", Way::direct).await;
        pair.steady("before").await;
        let [a, b] = [0, 1].map(|n| pair.agents[n].place.router.clone().expect("a router"));
        let at = Instant::now();
        a.set_firewall(Firewall::stateful().block([b.v4().into()]));
        pair.until("blocked", |way| way.path == "relay").await;
        let stall = pair.stall_since("direct path blocked", at).await;
        assert!(stall < STALL, "{stall:?}");
        let at = Instant::now();
        a.set_firewall(Firewall::stateful());
        let after = pair.until("open again", Way::direct).await;
        println!("direct again after {} ms", after.as_millis());
        let stall = pair.stall_since("direct path open again", at).await;
        assert!(stall < STALL, "{stall:?}");
        pair.end().await;
    });
}

#[test]
fn a_stream_survives_that_the_senders_nat_forgets() {
    let _alone = alone();
    on(HOMES, Net::new(72), async |pair| forget(pair, &[0], "the sender's NAT forgets its mappings").await);
}

#[test]
fn a_stream_survives_that_both_nats_forget() {
    let _alone = alone();
    on(HOMES, Net::new(77), async |pair| forget(pair, &[0, 1], "both NATs forget their mappings").await);
}

async fn forget(pair: Pair, sides: &[usize], event: &str) {
    pair.until("before", Way::direct).await;
    pair.steady("before").await;
    let at = Instant::now();
    for n in sides {
        pair.agents[*n].place.router.as_ref().expect("a router").forget_mappings();
    }
    let stall = pair.stall_since(event, at).await;
    assert!(stall < STALL, "{stall:?}");
    pair.until("afterwards", Way::direct).await;
    pair.end().await;
}

#[test]
fn a_stream_survives_a_new_address_of_the_senders_nat() {
    let _alone = alone();
    on(HOMES, Net::new(73), async |pair| new_address(pair, 0, "the sender's NAT changes its address").await);
}

#[test]
fn a_stream_survives_a_new_address_of_the_receivers_nat() {
    let _alone = alone();
    on(HOMES, Net::new(78), async |pair| {
        new_address(pair, 1, "the receiver's NAT changes its address").await
    });
}

async fn new_address(pair: Pair, side: usize, event: &str) {
    pair.until("before", Way::direct).await;
    pair.steady("before").await;
    let at = Instant::now();
    pair.agents[side].place.router.as_ref().expect("a router").change_address();
    let stall = pair.stall_since(event, at).await;
    assert!(stall < STALL, "{stall:?}");
    pair.until("afterwards", Way::direct).await;
    pair.end().await;
}

#[test]
fn a_stream_survives_a_new_address_of_the_host() {
    let _alone = alone();
    on([Site::Public, Site::PortRestricted], Net::new(74), async |pair| {
        pair.until("before", Way::direct).await;
        pair.steady("before").await;
        let at = Instant::now();
        pair.agents[0].place.host.change_address(0).expect("a new address");
        let stall = pair.stall_since("the sender's host changes its address", at).await;
        assert!(stall < STALL, "{stall:?}");
        pair.until("afterwards", Way::direct).await;
        pair.end().await;
    });
}

#[test]
fn a_stream_survives_that_the_receiver_sleeps() {
    let _alone = alone();
    on(HOMES, Net::new(79), async |pair| sleep(pair, 1, "the receiver wakes up").await);
}

#[test]
fn a_stream_survives_that_the_sender_sleeps() {
    let _alone = alone();
    on(HOMES, Net::new(80), async |pair| sleep(pair, 0, "the sender wakes up").await);
}

/// Seconds of sleep unless `PILOT_SLEEP` says others: long enough to be noticed as sleep.
const SLEEP: u64 = 12;

async fn sleep(pair: Pair, side: usize, event: &str) {
    pair.until("before", Way::direct).await;
    pair.steady("before").await;
    pair.agents[side].freeze(true);
    tokio::time::sleep(Duration::from_secs(setting("PILOT_SLEEP", SLEEP))).await;
    // What it had mapped is forgotten by then.
    pair.agents[side].place.router.as_ref().expect("a router").forget_mappings();
    pair.agents[side].freeze(false);
    let at = Instant::now();
    // More than waits in the socket's buffer of a daemon that was away.
    pair.flow.carries(8 * steady(), LIMIT).await.unwrap_or_else(|e| panic!("after {event}: {e}"));
    let stall = pair.flow.silence_from(at);
    println!("{event}: nothing arrived for {} ms", stall.as_millis());
    assert!(stall < STALL, "{stall:?}");
    pair.until("afterwards", Way::direct).await;
    pair.end().await;
}

#[test]
fn a_stream_survives_the_registry() {
    let _alone = alone();
    on(HOMES, Net::apart(75), async |mut pair| {
        pair.until("before", Way::direct).await;
        pair.steady("before").await;
        let at = Instant::now();
        pair.net.rendezvous.remove(0);
        wait_until("the registry is gone", || {
            let to = (pair.net.public.v4(), 9000);
            pair.net.public.run(|| std::net::TcpStream::connect(to).is_err()).expect("the host's network")
        });
        let stall = pair.stall_since("the registry is killed", at).await;
        assert!(stall < STALL, "{stall:?}");
        pair.end().await;
    });
}

#[test]
fn a_stream_survives_a_path_that_becomes_narrower_without_a_word() {
    let _alone = alone();
    on(HOMES, Net::new(76), async |pair| {
        pair.until("before", Way::direct).await;
        pair.steady("before").await;
        let at = Instant::now();
        let router = pair.agents[0].place.router.as_ref().expect("a router");
        let link = router.link();
        router.set_link(pilot_netlab::Duplex {
            up: link.up.black_hole_mtu(1280),
            down: link.down.black_hole_mtu(1280),
        });
        let stall = pair.stall_since("the path's MTU falls to 1280 without ICMP", at).await;
        assert!(stall < STALL, "{stall:?}");
        pair.until("afterwards", Way::direct).await;
        pair.end().await;
    });
}
