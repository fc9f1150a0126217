//! One side loses its half of a session while both processes live.

use crate::support::{Sent, addr_of, ms};
use crate::world::{Peer, Way, World};
use crate::{PROMISE, busy, cases, connect, echo};
use pilot_proto::NodeId;
use pilot_proto::crypto::TunnelSecret;
use pilot_proto::tunnel::session::Session;
use pilot_proto::wire::addr::Addr;
use pilot_proto::wire::frame::PILS_HEADER_LEN;
use pilot_proto::wire::packet::{Header, protocol};
use std::time::Duration;

/// The tunnel key a node announced last.
fn announced(world: &World, node: NodeId) -> [u8; 32] {
    let mine = |s: &&Sent| s.from == addr_of(node) && s.kind().ends_with("PILA");
    let pila = world.log.iter().rev().find(mine).expect("an exchange");
    let at = if pila.bytes[0] == 5 { 9 } else { 0 };
    pila.bytes[at + 8..at + 40].try_into().unwrap()
}

/// A node of ours loses its half: its peer derives its own again and again, with the keys unchanged, until the session
/// takes no further nonce prefix (spec 02 section 9) and is dropped. Both are in their first session with each other.
fn lose_by_epochs(world: &mut World, node: NodeId) {
    let peer = 3 - node;
    let secret = TunnelSecret::from_bytes(&[peer as u8; 32]).unwrap();
    let public = announced(world, node);
    let header = Header { protocol: protocol::CONTROL, src: Addr::backbone(peer), ..Header::default() };
    for n in 0..1100u32 {
        let prefix = (0xEE00_0000 | n).to_be_bytes();
        let key = secret.session_key(&public).unwrap();
        let mut session = Session::new(key, public, true, prefix, world.now);
        let mut frame = vec![0; PILS_HEADER_LEN];
        header.emit(&[], &mut frame).unwrap();
        assert!(session.seal(peer, &mut frame, 0));
        let mut bytes = frame;
        let from = match world.way {
            Way::Direct => addr_of(peer),
            Way::Relay => {
                bytes = [&[6][..], &peer.to_be_bytes(), &bytes].concat();
                crate::support::beacon_addr()
            }
        };
        world.inject(from, addr_of(node), bytes);
    }
    let lost = |w: &mut World| w.engine(node).drops().too_many_epochs > 0;
    assert!(world.run_until(ms(20), lost), "the session is lost");
}

/// A 1.18.0 node drops its half after five frames that do not open (spec 02 section 10).
fn lose_by_forgery(world: &mut World) {
    let way = if world.way == Way::Relay { "relay PILS" } else { "PILS" };
    let pils = |s: &&Sent| s.from == addr_of(1) && s.kind() == way;
    let mut forged = world.log.iter().rev().find(pils).expect("an encrypted packet").bytes.clone();
    let from = if forged[0] == 5 {
        forged.splice(..9, [6, 0, 0, 0, 1]);
        crate::support::beacon_addr()
    } else {
        addr_of(1)
    };
    *forged.last_mut().unwrap() ^= 1;
    for _ in 0..5 {
        world.inject(from, addr_of(2), forged.clone());
    }
    let dropped = |w: &mut World| w.host(2).dropped > 0;
    assert!(world.run_until(ms(20), dropped), "the session is lost");
}

#[test]
fn streams_go_on_when_our_half_is_lost() {
    for (peer, way, _) in cases()
        .into_iter()
        .filter(|(_, _, upgrade)| !upgrade)
        .chain([(Peer::Model, Way::Direct, true), (Peer::Model, Way::Relay, true)])
    {
        for dialler in [1, 2] {
            let (mut world, conn) = busy(peer, way, false, dialler);
            lose_by_epochs(&mut world, 1);
            let took = echo(&mut world, dialler, conn, PROMISE);
            println!("  {took:?}");
            assert!(took.is_some(), "within {PROMISE:?}: {:?}", world.engine(1).drops().nonzero());
            assert_ne!(
                announced(&world, 1),
                *TunnelSecret::from_bytes(&[1; 32]).unwrap().public_key(),
                "a fresh key"
            );
        }
    }
}

#[test]
fn streams_go_on_when_the_half_of_a_peer_of_ours_is_lost() {
    for way in [Way::Direct, Way::Relay] {
        for dialler in [1, 2] {
            let (mut world, conn) = busy(Peer::Own, way, false, dialler);
            lose_by_epochs(&mut world, 2);
            assert!(echo(&mut world, dialler, conn, PROMISE).is_some());
        }
    }
}

#[test]
fn streams_go_on_when_the_half_of_a_reference_peer_is_lost() {
    for way in [Way::Direct, Way::Relay] {
        for dialler in [1, 2] {
            let (mut world, conn) = busy(Peer::Model, way, true, dialler);
            lose_by_forgery(&mut world);
            let took = echo(&mut world, dialler, conn, PROMISE);
            println!("  {took:?}");
            assert!(took.is_some());
        }
    }
}

/// What the operator's word ends (untrust) on one side: everything about the peer, which keeps its half.
#[test]
fn a_new_stream_is_up_at_once_after_one_side_has_forgotten_the_other() {
    for (peer, way, upgrade) in cases() {
        for (dialler, forgets) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            if forgets == 2 && peer == Peer::Model {
                continue;
            }
            let (mut world, _) = busy(peer, way, upgrade, dialler);
            let now = world.now;
            world.engine(forgets).forget_peer(now, 3 - forgets);
            let conn = connect(&mut world, dialler, PROMISE).expect("connected in time");
            let left = PROMISE - (world.now - now);
            assert!(echo(&mut world, dialler, conn, left).is_some(), "node {forgets} forgot");
        }
    }
}

#[test]
fn five_percent_loss_both_ways_costs_seconds_at_most() {
    for (peer, way, upgrade) in cases() {
        for seed in 0..4u64 {
            let (mut world, conn) = busy(peer, way, upgrade, 1);
            world.seed(seed);
            if peer == Peer::Model {
                lose_by_forgery(&mut world);
            }
            world.loss = 50;
            for _ in 0..20 {
                let took = echo(&mut world, 1, conn, Duration::from_secs(5));
                assert!(took.is_some(), "seed {seed}: traffic flows");
            }
        }
    }
}
