//! Getting a tunnel back: whatever half of a session is lost, and however, traffic flows again within two seconds on a
//! loss-free path, because our side drives it. Node 1 is ours; its peer is ours or behaves like 1.18.0.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod loss;
mod readers;
mod restart;
mod world;

use pilot_proto::NodeId;
use std::time::Duration;
use support::ms;
use world::{Peer, Seen, Way, World};

/// What is promised.
pub const PROMISE: Duration = Duration::from_secs(2);

/// Every combination of peer and way; with our own peer also with and without the session upgrade.
pub fn cases() -> Vec<(Peer, Way, bool)> {
    let ways = [Way::Direct, Way::Relay];
    let peers = [(Peer::Own, true), (Peer::Own, false), (Peer::Model, true)];
    peers.iter().flat_map(|(peer, upgrade)| ways.map(|way| (*peer, way, *upgrade))).collect()
}

/// Dials and waits. Returns the connection's number at the dialler.
pub fn connect(world: &mut World, from: NodeId, limit: Duration) -> Option<u32> {
    let conn = world.dial(from, 3 - from);
    let connected = Seen::Connected(conn);
    world.run_until(limit, |w| w.host(from).seen.contains(&connected)).then_some(conn)
}

/// The time until bytes written every 50 ms come back; `None`: not within `limit`.
pub fn echo(world: &mut World, from: NodeId, conn: u32, limit: Duration) -> Option<Duration> {
    let start = world.now;
    while world.now - start < limit {
        let before = world.host(from).received.get(&conn).copied().unwrap_or(0);
        world.write(from, conn, &b"twenty bytes to echo"[..]);
        let back = |w: &mut World| w.host(from).received.get(&conn).copied().unwrap_or(0) > before;
        if world.run_until(ms(50), back) {
            return Some(world.now - start);
        }
    }
    None
}

/// Connected, and traffic for some seconds.
pub fn busy(peer: Peer, way: Way, upgrade: bool, dialler: NodeId) -> (World, u32) {
    println!("{peer:?} {way:?} upgrade {upgrade}, node {dialler} dials");
    let mut world = World::new(peer, way, upgrade);
    world.host(dialler).echoes = false;
    let conn = connect(&mut world, dialler, Duration::from_secs(5)).expect("connected");
    for _ in 0..80 {
        assert!(echo(&mut world, dialler, conn, Duration::from_secs(1)).is_some(), "traffic flows");
        world.run(ms(50));
    }
    (world, conn)
}
