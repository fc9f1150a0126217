//! One of two beacons is killed under a stream.

use crate::agents::{Agent, Net};
use crate::flow::Flow;
use crate::probe::{Way, node_id, way};
use crate::{alone, runtime, start_anew};
use pilot_ipc::Client;
use pilot_netlab::Site;
use pilot_proto::NodeId;
use serde_json::Value;
use std::time::{Duration, Instant};

const MBIT: u64 = 8;
const PORT: u16 = 2000;
/// What flows before and after.
const STEADY: u64 = MBIT * 125_000 / 2;
const LIMIT: Duration = Duration::from_secs(30);
/// Relayed traffic is at the second beacon within this time.
const MOVES: Duration = Duration::from_secs(5);
/// A direct path does not notice; a busy machine may.
const NONE: Duration = Duration::from_secs(1);
/// How long paths and lists may take to be as they must.
const PATIENCE: Duration = Duration::from_secs(40);
const TICK: Duration = Duration::from_millis(50);

async fn beacons(client: &Client) -> Vec<Value> {
    let info = client.info().await.expect("the daemon answers");
    info["beacons"].as_array().expect("a list").clone()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    while !holds().await {
        tick.tick().await;
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
    }
}

/// The beacon this daemon sends the frames for a peer through, while it is relayed; else the chosen one.
async fn in_use(client: &Client, peer: NodeId) -> String {
    let info = client.info().await.expect("the daemon answers");
    let peers = info["peer_list"].as_array().expect("a list");
    let relayed = peers.iter().find(|p| p["node_id"] == peer && p["path"] == "relay");
    let chosen = || info["beacons"].as_array()?.iter().find(|b| b["chosen"] == true)?["address"].as_str();
    relayed.and_then(|p| p["endpoint"].as_str()).or_else(chosen).expect("a beacon").to_owned()
}

/// The longest silence of a stream under which the beacon in use was killed.
async fn kill_one(seed: u64, sites: [Site; 2], wanted: &str) -> Duration {
    // The registry's own beacon, and another.
    let mut net = Net::apart(seed);
    let at = |port: u16| format!("{}:{port}", net.public.v4());
    let all = [at(9101), at(9001)];
    let mut agents = [net.agent(sites[0], "a", 1), net.agent(sites[1], "b", 2)];
    agents.iter_mut().for_each(|agent: &mut Agent| agent.beacons = Some(all.join(",")));
    start_anew(&mut agents);
    agents[0].trust(&agents[1]).expect("trust");
    let clients = [agents[0].client().await, agents[1].client().await];
    let ids = [node_id(&clients[0]).await, node_id(&clients[1]).await];
    for client in &clients {
        until("both beacons answer", async || {
            let found = beacons(client).await;
            found.len() == 2 && found.iter().all(|b| b["ok"] == true && b["registered"] == true)
        })
        .await;
    }
    let flow = Flow::start(&clients[0], &clients[1], "b", PORT, MBIT).await.expect("the stream opens");
    until(&format!("the way is {wanted}"), async || {
        let ways =
            [way(&clients[0], ids[1]).await, way(&clients[1], ids[0]).await].map(Option::unwrap_or_default);
        ways.iter().all(|way: &Way| way.path == wanted)
    })
    .await;
    flow.carries(STEADY, LIMIT).await.expect("before");

    let lost = in_use(&clients[0], ids[1]).await;
    let other = all.iter().find(|beacon| **beacon != lost).expect("another one").clone();
    let victim = usize::from(lost == all[1]);
    let killed = Instant::now();
    drop(net.rendezvous.remove(victim));
    flow.carries(STEADY, LIMIT).await.unwrap_or_else(|e| panic!("after {lost} was killed: {e}"));
    let silence = flow.longest_silence_since(killed);
    println!("{wanted}: {lost} killed, nothing arrived for {} ms", silence.as_millis());
    until("the other beacon is chosen and the lost one is said to be lost", async || {
        let found = beacons(&clients[0]).await;
        let of = |addr: &str| found.iter().find(|b| b["address"] == addr).cloned().unwrap_or_default();
        let (lost, other) = (of(&lost), of(&other));
        lost["ok"] == false && lost["chosen"] == false && other["ok"] == true && other["chosen"] == true
    })
    .await;
    flow.finish().await.expect("what arrived is what was sent");
    silence
}

#[test]
fn a_direct_stream_does_not_notice_that_one_of_two_beacons_is_killed() {
    let _alone = alone();
    let silence = runtime().block_on(kill_one(91, [Site::PortRestricted; 2], "direct"));
    assert!(silence < NONE, "{silence:?}");
}

#[test]
fn a_relayed_stream_moves_to_the_other_of_two_beacons_within_5_s() {
    let _alone = alone();
    let silence = runtime().block_on(kill_one(92, [Site::Symmetric; 2], "relay"));
    assert!(silence < MOVES, "{silence:?}");
}
