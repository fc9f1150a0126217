//! Readers that pause. A pair of 1.18.0 nodes stands still for good afterwards (spec 03 section 12.1).

use crate::connect;
use crate::support::ms;
use crate::world::{Peer, Way, World};
use pilot_proto::NodeId;
use std::time::Duration;

const OFFERED: usize = 8 << 20;

/// Node `sender` offers 8 MiB to a reader that pauses after the first bytes. The time everything takes from then on.
fn paused(peer: Peer, way: Way, sender: NodeId, pause: Duration, loss: u32) -> Duration {
    println!("{peer:?} {way:?}, node {sender} sends, pause {pause:?}, loss {loss}/1000");
    let mut world = World::new(peer, way, true);
    let reader = 3 - sender;
    world.keep_log = false;
    world.host(1).echoes = false;
    world.host(2).echoes = false;
    let conn = connect(&mut world, sender, Duration::from_secs(5)).unwrap();
    world.loss = loss;
    world.host(reader).paused = true;
    world.write(sender, conn, vec![7; OFFERED]);
    world.run(pause);
    world.resume(reader);
    let start = world.now;
    let all = |w: &mut World| w.host(reader).received.values().sum::<usize>() >= OFFERED;
    assert!(world.run_until(Duration::from_secs(120), all), "{:?}", world.host(reader).received);
    println!("  {:?}", world.now - start);
    world.now - start
}

#[test]
fn our_reader_resumes_after_a_minute_whoever_sends() {
    for peer in [Peer::Own, Peer::Model] {
        for way in [Way::Direct, Way::Relay] {
            for loss in [0, 20] {
                let took = paused(peer, way, 2, Duration::from_secs(60), loss);
                let limit = if loss == 0 { 5 } else { 60 };
                assert!(took < Duration::from_secs(limit), "{took:?}");
            }
        }
    }
}

#[test]
fn a_reference_reader_resumes_after_eight_seconds() {
    for way in [Way::Direct, Way::Relay] {
        for loss in [0, 20] {
            let took = paused(Peer::Model, way, 1, Duration::from_secs(8), loss);
            let limit = if loss == 0 { 5 } else { 60 };
            assert!(took < Duration::from_secs(limit), "{took:?}");
        }
    }
}

#[test]
fn a_reader_that_pauses_holds_up_no_other_stream_of_our_nodes() {
    let mut world = World::new(Peer::Own, Way::Direct, true);
    world.host(1).echoes = false;
    let slow = connect(&mut world, 1, Duration::from_secs(5)).unwrap();
    let quick = connect(&mut world, 1, Duration::from_secs(5)).unwrap();
    world.host(1).paused = true;
    world.write(1, slow, vec![7; OFFERED]);
    world.run(Duration::from_secs(20));
    // What comes back for the slow stream waits; the other one is as fast as ever.
    let before = world.now;
    world.write(1, quick, &b"ping"[..]);
    assert!(world.run_until(ms(100), |w| w.host(1).waiting(quick)), "{:?}", world.now - before);
}
