//! A process ends without a word and another takes its place.

use crate::support::ms;
use crate::world::{Peer, Seen, World};
use crate::{PROMISE, busy, cases, connect, echo};
use pilot_proto::NodeId;
use pilot_proto::stream::CloseReason;

/// How the stream of `node` ended, if it did.
fn ended(world: &mut World, node: NodeId) -> Option<Option<CloseReason>> {
    world.host(node).seen.iter().find_map(|seen| match seen {
        Seen::Ended(_, reason) => Some(*reason),
        _ => None,
    })
}

/// Restarts `node` in a busy world. The other side's stream must end with the cause, and a new one from `dialler` must
/// carry traffic, both in time.
fn restarted(peer: Peer, way: crate::Way, upgrade: bool, node: NodeId, dialler: NodeId) {
    let (mut world, conn) = busy(peer, way, upgrade, dialler);
    println!("  node {node} restarts");
    let other = 3 - node;
    world.restart(node);
    let start = world.now;
    if other == dialler {
        world.write(other, conn, &b"is anybody there"[..]);
    }
    let over = world.run_until(PROMISE, |w| ended(w, other).is_some());
    println!("  ended after {:?}: {:?}", world.now - start, ended(&mut world, other));
    assert!(over, "the stream ends in time");
    if let Some(Some(reason)) = ended(&mut world, other) {
        assert_eq!(reason, CloseReason::PeerRestarted);
    }
    let start = world.now;
    let conn = connect(&mut world, dialler, PROMISE).expect("connected in time");
    let left = PROMISE - (world.now - start);
    assert!(echo(&mut world, dialler, conn, left).is_some(), "traffic flows");
}

#[test]
fn our_side_restarts() {
    for (peer, way, upgrade) in cases() {
        for dialler in [1, 2] {
            // The stream of a reference node that only listens is not asked for; see below.
            if peer == Peer::Own || dialler == 2 {
                restarted(peer, way, upgrade, 1, dialler);
            }
        }
    }
}

#[test]
fn their_side_restarts() {
    for (peer, way, upgrade) in cases() {
        for dialler in [1, 2] {
            // A reference node that has restarted says nothing; our side asks when it has something to send.
            if peer == Peer::Own || dialler == 1 {
                restarted(peer, way, upgrade, 2, dialler);
            }
        }
    }
}

#[test]
fn a_restarted_node_is_dialled_and_dials_within_the_promise() {
    for (peer, way, upgrade) in cases() {
        for (node, dialler) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let (mut world, _) = busy(peer, way, upgrade, 1);
            world.host(dialler).echoes = false;
            world.host(3 - dialler).echoes = true;
            world.restart(node);
            let start = world.now;
            let conn = connect(&mut world, dialler, PROMISE).expect("connected in time");
            let left = PROMISE - (world.now - start);
            assert!(
                echo(&mut world, dialler, conn, left).is_some(),
                "node {node} restarted, node {dialler} dials"
            );
        }
    }
}

/// Without a byte to send, the side that lives learns of the end all the same, and so does one that only reads.
#[test]
fn idle_streams_of_a_restarted_peer_of_ours_end_at_once() {
    for (peer, way, upgrade) in cases().into_iter().filter(|(peer, ..)| *peer == Peer::Own) {
        for dialler in [1, 2] {
            let (mut world, _) = busy(peer, way, upgrade, dialler);
            world.run(ms(20_000));
            world.restart(2);
            assert!(world.run_until(PROMISE, |w| ended(w, 1).is_some()), "the stream ends in time");
            assert_eq!(ended(&mut world, 1), Some(Some(CloseReason::PeerRestarted)));
        }
    }
}
