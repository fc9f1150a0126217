//! Path MTU discovery between two engines: links of many sizes, black holes in the middle of a stream, what routers and the
//! system say, loss and reordering.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod support;

use bytes::Bytes;
use pilot_proto::engine::{Engine, SendError};
use pilot_proto::path::Candidate;
use pilot_proto::stream::ConnId;
use pilot_proto::{Addr, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use support::*;

/// What every path is trusted with: 1,152 bytes in a frame, direct and relayed.
const DIRECT: usize = 1222;
const RELAYED: usize = 1231;

/// Bytes written every 5 ms: 16 Mbit/s.
const RATE: u64 = 10_000;

/// A stream between two nodes, and what of its data has arrived.
struct Flow {
    from: (NodeId, ConnId),
    to: (NodeId, ConnId),
    sent: u64,
    got: u64,
    /// Longest time without a byte.
    stall: Duration,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

impl Flow {
    fn open(net: &mut Net, from: NodeId, to: NodeId) -> Flow {
        net.engine(to).listen(7);
        let now = net.now;
        let ours = net.engine(from).dial(now, Addr::backbone(to), 7).unwrap();
        net.run(ms(500));
        let status =
            |engine: &Engine| engine.connections().into_iter().map(|c| (ConnId(c.id), c.state)).next();
        assert_eq!(status(net.engine(from)), Some((ours, "ESTABLISHED")), "{:?}", net.drops(from));
        let (theirs, _) = status(net.engine(to)).unwrap();
        Flow { from: (from, ours), to: (to, theirs), sent: 0, got: 0, stall: Duration::ZERO }
    }

    /// Sends for this time.
    fn run(&mut self, net: &mut Net, time: Duration) {
        let end = net.now + time;
        let mut last = net.now;
        while net.now < end {
            let now = net.now;
            let data: Vec<u8> = (self.sent..self.sent + RATE).map(byte).collect();
            let rest = net.engine(self.from.0).write(now, self.from.1, Bytes::from(data)).unwrap();
            self.sent += RATE - rest.len() as u64;
            net.run(ms(5));
            if self.read(net) {
                last = net.now;
            }
            self.stall = self.stall.max(net.now - last);
        }
    }

    /// Takes what has arrived and compares it.
    fn read(&mut self, net: &mut Net) -> bool {
        let (to, conn) = self.to;
        let now = net.now;
        let mut any = false;
        while let Some(bytes) = net.engine(to).read(conn) {
            net.engine(to).consumed(now, conn, bytes.len());
            for b in bytes {
                assert!(b == byte(self.got), "byte {} differs", self.got);
                self.got += 1;
            }
            any = true;
        }
        any
    }

    /// Waits until everything has arrived.
    fn drain(&mut self, net: &mut Net) {
        let end = net.now + 30 * SECOND;
        while self.got < self.sent {
            assert!(
                net.now < end,
                "{} of {} bytes arrived: {:?}",
                self.got,
                self.sent,
                net.engine(self.from.0).connections()
            );
            net.run(ms(5));
            self.read(net);
        }
    }
}

/// Datagrams up to this size pass; the number can be changed.
fn limit(net: &mut Net, size: usize) -> Rc<Cell<usize>> {
    let mtu = Rc::new(Cell::new(size));
    let of = mtu.clone();
    net.filter = Box::new(move |sent| sent.bytes.len() <= of.get());
    mtu
}

fn mtu(net: &mut Net, id: NodeId, peer: NodeId) -> usize {
    net.engine(id).peers().into_iter().find(|p| p.node_id == peer).unwrap().mtu
}

/// Everything that was larger than what the path was known to carry was a probe.
fn only_probes_are_too_large(net: &mut Net) {
    for id in [1, 2] {
        let probes = net.engine(id).counters().mtu_probes;
        let oversize = net.hosts[&id].oversize;
        assert!(
            oversize <= probes,
            "{oversize} datagrams of node {id} were too large, {probes} of them probes"
        );
    }
}

#[test]
fn links_of_every_size_are_used_as_they_are() {
    for (carries, at_least) in
        [(1222, 1222), (1232, 1222), (1252, 1252), (1372, 1372), (1410, 1392), (1472, 1472)]
    {
        let mut net = Net::pair();
        net.watch_sizes = true;
        let _limit = limit(&mut net, carries);
        let mut flow = Flow::open(&mut net, 1, 2);
        assert_eq!(mtu(&mut net, 1, 2), DIRECT);
        flow.run(&mut net, 6 * SECOND);
        flow.drain(&mut net);
        let found = mtu(&mut net, 1, 2);
        assert!(found >= at_least && found <= carries, "{found} on a path of {carries}");
        assert_eq!(mtu(&mut net, 2, 1), DIRECT, "who sends nothing large does not ask");
        assert!(flow.stall < ms(100), "{carries}: {:?}", flow.stall);
        only_probes_are_too_large(&mut net);
    }
}

#[test]
fn a_common_path_is_found_within_a_round_trip_of_the_first_full_packet() {
    let mut net = Net::pair();
    let _limit = limit(&mut net, 1472);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, ms(25));
    assert_eq!(mtu(&mut net, 1, 2), 1472);
    flow.drain(&mut net);
    assert!(net.log.iter().any(|s| s.bytes.len() == 1472 && s.from == addr_of(1)));
}

#[test]
fn jumbo_frames_are_used_where_they_fit() {
    let mut net = Net::pair();
    let _limit = limit(&mut net, 8972);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, SECOND);
    flow.drain(&mut net);
    assert_eq!(mtu(&mut net, 1, 2), 8972);
}

#[test]
fn the_answer_to_a_probe_is_small() {
    let mut net = Net::pair();
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, SECOND);
    flow.drain(&mut net);
    assert_eq!(mtu(&mut net, 1, 2), 8972);
    let largest = net.log.iter().filter(|s| s.from == addr_of(2)).map(|s| s.bytes.len()).max();
    assert!(largest < Some(600), "{largest:?}");
}

#[test]
fn a_short_exchange_sends_no_probe() {
    let mut net = Net::pair();
    let flow = Flow::open(&mut net, 1, 2);
    let now = net.now;
    net.engine(1).write(now, flow.from.1, Bytes::from(vec![7; 1000])).unwrap();
    net.run(60 * SECOND);
    assert_eq!(net.engine(1).counters().mtu_probes + net.engine(2).counters().mtu_probes, 0);
}

#[test]
fn a_black_hole_in_the_middle_of_a_stream_stalls_it_for_less_than_a_second() {
    for (before, after) in [(1472, 1252), (8972, 1472), (1472, DIRECT)] {
        let mut net = Net::pair();
        net.watch_sizes = true;
        let limit = limit(&mut net, before);
        let mut flow = Flow::open(&mut net, 1, 2);
        flow.run(&mut net, 3 * SECOND);
        assert_eq!(mtu(&mut net, 1, 2), before);
        (flow.stall, net.log) = (Duration::ZERO, Vec::new());
        limit.set(after);
        flow.run(&mut net, 5 * SECOND);
        flow.drain(&mut net);
        assert_eq!(mtu(&mut net, 1, 2), after);
        assert!(flow.stall < SECOND, "{before} to {after}: {:?}", flow.stall);
        println!("{before} to {after}: stalled for {:?}", flow.stall);
        only_probes_are_too_large(&mut net);
    }
}

#[test]
fn after_an_outage_a_path_is_used_as_before() {
    let mut net = Net::pair();
    let limit = limit(&mut net, 1472);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, 3 * SECOND);
    limit.set(0);
    flow.run(&mut net, 2 * SECOND);
    limit.set(1472);
    flow.run(&mut net, 5 * SECOND);
    flow.drain(&mut net);
    assert_eq!(mtu(&mut net, 1, 2), 1472);
}

#[test]
fn loss_and_reordering_are_not_taken_for_a_black_hole() {
    let seed = 5;
    let mut net = Net::pair();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    net.filter = Box::new(move |sent| sent.bytes.len() <= 1472 && rng.next_u32() % 100 >= 5);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, SECOND);
    assert_eq!(mtu(&mut net, 1, 2), 1472, "seed {seed}");
    let mut held = Vec::new();
    for n in 0..100 {
        flow.run(&mut net, ms(100));
        assert_eq!(mtu(&mut net, 1, 2), 1472, "seed {seed}, after {n} tenths");
        // A frame of now arrives again much later.
        if let Some(sent) = net.log.last() {
            held.push(sent.clone());
        }
        if held.len() > 3 {
            let late = held.remove(0);
            net.inject(late.from, late.to, &late.bytes);
        }
        net.log.clear();
    }
    flow.drain(&mut net);
}

#[test]
fn a_router_that_names_a_size_is_believed_after_a_probe_and_a_forger_is_not() {
    let mut net = Net::pair();
    let limit = limit(&mut net, 1472);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, 3 * SECOND);
    let now = net.now;
    net.engine(1).handle_mtu_hint(now, addr_of(2), 68);
    assert_eq!(mtu(&mut net, 1, 2), DIRECT);
    flow.run(&mut net, ms(100));
    assert_eq!(mtu(&mut net, 1, 2), 1472, "it was a lie");
    flow.run(&mut net, SECOND);
    limit.set(1312);
    flow.stall = Duration::ZERO;
    let now = net.now;
    net.engine(1).handle_mtu_hint(now, addr_of(2), 1340);
    flow.run(&mut net, ms(100));
    assert_eq!(mtu(&mut net, 1, 2), 1312);
    flow.run(&mut net, SECOND);
    flow.drain(&mut net);
    assert!(flow.stall < ms(500), "{:?}", flow.stall);
    // Nobody asked about these.
    let stranger = SocketAddr::from(([203, 0, 113, 1], 1));
    let now = net.now;
    net.engine(1).handle_mtu_hint(now, stranger, 68);
    net.engine(1).handle_too_big(now, stranger, 1300);
    assert_eq!(mtu(&mut net, 1, 2), 1312);
}

#[test]
fn what_the_system_refuses_is_cut_anew_at_once() {
    let mut net = Net::pair();
    let limit = limit(&mut net, 1472);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, 3 * SECOND);
    limit.set(1372);
    flow.stall = Duration::ZERO;
    net.run(ms(1));
    let now = net.now;
    net.engine(1).handle_too_big(now, addr_of(2), 1472);
    flow.run(&mut net, SECOND);
    flow.drain(&mut net);
    assert!(flow.stall < ms(100), "{:?}", flow.stall);
    assert_eq!(mtu(&mut net, 1, 2), 1372);
}

#[test]
fn direct_and_relayed_path_have_sizes_of_their_own() {
    let mut net = Net::pair_with_beacon();
    net.watch_sizes = true;
    let direct = Rc::new(Cell::new(0));
    let open = direct.clone();
    let relayed = |s: &Sent| s.from == beacon_addr() || s.to == beacon_addr();
    net.filter = Box::new(move |s| s.bytes.len() <= if relayed(s) { 1400 } else { open.get() });
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, 5 * SECOND);
    assert_eq!(net.relayed(1, 2), Some(true));
    let found = mtu(&mut net, 1, 2);
    assert!((1372..=1400).contains(&found) && found > RELAYED, "{found} through the relay");
    direct.set(1472);
    flow.stall = Duration::ZERO;
    flow.run(&mut net, 30 * SECOND);
    assert_eq!((net.relayed(1, 2), mtu(&mut net, 1, 2)), (Some(false), 1472));
    assert!(flow.stall < ms(200), "the move to direct: {:?}", flow.stall);
    direct.set(0);
    flow.run(&mut net, 10 * SECOND);
    assert_eq!(net.relayed(1, 2), Some(true));
    let again = mtu(&mut net, 1, 2);
    assert!((1372..=1400).contains(&again), "{again} through the relay again");
    flow.drain(&mut net);
    only_probes_are_too_large(&mut net);
}

#[test]
fn a_peer_without_the_upgrade_is_never_probed_nor_sent_more_than_a_reference_sends() {
    let mut net = Net::plain_pair();
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, 3 * SECOND);
    flow.drain(&mut net);
    assert_eq!(mtu(&mut net, 1, 2), DIRECT);
    assert_eq!(net.engine(1).counters().mtu_probes, 0);
    let largest = net.log.iter().map(|s| s.bytes.len()).max();
    assert_eq!(largest, Some(DIRECT));
}

#[test]
fn a_datagram_larger_than_the_path_is_refused_once_that_is_known() {
    let mut net = Net::pair();
    let _limit = limit(&mut net, 1372);
    let mut flow = Flow::open(&mut net, 1, 2);
    let now = net.now;
    net.engine(1).send_datagram(now, Addr::backbone(2), 9, &[7; 2000]).unwrap();
    flow.run(&mut net, 6 * SECOND);
    flow.drain(&mut net);
    let now = net.now;
    let refused = net.engine(1).send_datagram(now, Addr::backbone(2), 9, &[7; 2000]).unwrap_err();
    let SendError::TooLong(2000, most) = refused else { panic!("{refused:?}") };
    assert!((1302..1322).contains(&most), "{most} bytes in a frame of 1,372");
    net.take_events(2);
    net.engine(1).send_datagram(now, Addr::backbone(2), 9, &[7; 1302]).unwrap();
    net.run(SECOND);
    assert_eq!(net.datagrams(2), [vec![7; 1302]]);
}

#[test]
fn loopback_falls_back_when_the_system_refuses_its_size() {
    let mut net = Net::new();
    for id in [1, 2] {
        let mut cfg = config(id as u8);
        cfg.loopback_payload = 60_000;
        net.add(id, cfg);
        let addr = SocketAddr::from(([127, 0, 0, 1], 4000 + id as u16));
        net.hosts.get_mut(&id).unwrap().addr = addr;
        net.routes.get_mut(&id).unwrap().direct = vec![Candidate::guessed(addr)];
    }
    let limit = limit(&mut net, 65_507);
    let mut flow = Flow::open(&mut net, 1, 2);
    flow.run(&mut net, SECOND);
    assert_eq!(mtu(&mut net, 1, 2), 60_070);
    limit.set(1472);
    let (now, to) = (net.now, net.hosts[&2].addr);
    net.engine(1).handle_too_big(now, to, 60_070);
    flow.run(&mut net, 5 * SECOND);
    flow.drain(&mut net);
    assert_eq!(mtu(&mut net, 1, 2), 1472);
}
