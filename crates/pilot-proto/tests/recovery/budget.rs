//! What recovery costs: with a dead peer, and when a stranger provokes it.

use crate::support::{Sent, addr_of, beacon_addr, ms};
use crate::world::{Peer, Way, World};
use crate::{busy, connect};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Times of key exchange frames from node 1 to an address.
fn exchanges(world: &World, to: SocketAddr, since: Instant) -> Vec<Instant> {
    let mine = |s: &&Sent| s.from == addr_of(1) && s.to == to && s.at >= since;
    let exchange = |s: &&Sent| s.kind().ends_with("PILA") || s.kind().ends_with("PILK");
    world.log.iter().filter(mine).filter(exchange).map(|s| s.at).collect()
}

/// Most of them in any second.
fn most_per_second(times: &[Instant]) -> usize {
    let second = Duration::from_secs(1);
    let within = |start: Instant| times.iter().filter(|t| **t >= start && **t - start < second).count();
    times.iter().map(|start| within(*start)).max().unwrap_or(0)
}

#[test]
fn a_dead_peer_costs_little() {
    for way in [Way::Direct, Way::Relay] {
        let (mut world, conn) = busy(Peer::Model, way, true, 1);
        world.mute = Some(2);
        world.log.clear();
        let start = world.now;
        for _ in 0..600 {
            world.write(1, conn, &b"x"[..]);
            world.run(ms(100));
        }
        let relayed = exchanges(&world, beacon_addr(), start);
        let direct = exchanges(&world, addr_of(2), start);
        for times in [&relayed, &direct] {
            println!("{way:?}: {} frames, {} in a second", times.len(), most_per_second(times));
            assert!(most_per_second(times) <= 5, "as many as a receiver takes");
            assert!(times.len() <= 70, "{}", times.len());
        }
        assert!(!relayed.is_empty());
        world.run(Duration::from_secs(60));
        world.log.clear();
        let later = world.now;
        world.run(Duration::from_secs(60));
        assert_eq!(exchanges(&world, beacon_addr(), later), [], "the stream is given up, and so is the peer");
    }
}

#[test]
fn forged_frames_buy_no_more_than_the_budget_and_nothing_for_a_third_party() {
    let victim = SocketAddr::from(([192, 0, 2, 66], 4000));
    for peer in [Peer::Own, Peer::Model] {
        let (mut world, _) = busy(peer, Way::Direct, false, 1);
        world.run(Duration::from_secs(20));
        let pils = |s: &&Sent| s.from == addr_of(2) && s.kind() == "PILS";
        let real = world.log.iter().rev().find(pils).unwrap().bytes.clone();
        world.log.clear();
        let start = world.now;
        for n in 0..5000u32 {
            let mut forged = real.clone();
            *forged.last_mut().unwrap() ^= 1 | (n as u8) << 1;
            world.inject(victim, addr_of(1), forged);
            world.run(ms(2));
        }
        for to in [addr_of(2), beacon_addr()] {
            let times = exchanges(&world, to, start);
            println!("{peer:?}: {} to {to} in 10 s", times.len());
            assert!(most_per_second(&times) <= 5 && times.len() <= 24, "{}", times.len());
        }
        assert_eq!(exchanges(&world, victim, start), [], "the peer is asked where it is, nobody else");
        let conn = connect(&mut world, 1, crate::PROMISE).expect("the session lives");
        assert!(crate::echo(&mut world, 1, conn, crate::PROMISE).is_some());
    }
}

#[test]
fn unreadable_frames_of_strangers_send_a_third_party_little() {
    let victim = SocketAddr::from(([192, 0, 2, 66], 4000));
    let mut world = World::new(Peer::Model, Way::Direct, true);
    world.log.clear();
    let start = world.now;
    for n in 0..5000u32 {
        let mut frame = b"PILS".to_vec();
        frame.extend((100 + n).to_be_bytes());
        frame.resize(60, 7);
        world.inject(victim, addr_of(1), frame);
        world.run(ms(2));
    }
    let sent = world.log.iter().filter(|s| s.from == addr_of(1) && s.to == victim && s.at >= start);
    let bytes: usize = sent.map(|s| s.bytes.len()).sum();
    println!("{bytes} bytes in 10 s");
    // A key exchange with a greeting, 232 bytes, and a key request, 40.
    assert!(bytes <= 55 * 272, "five answers a second: {bytes}");
}
