use super::*;
use std::collections::BTreeMap;

fn beacon(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}
fn outside() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], 4000))
}
fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Beacons that answer after a time, or not at all, on a virtual clock.
struct World {
    start: Instant,
    now: Instant,
    beacons: Beacons,
    rtt: BTreeMap<SocketAddr, u64>,
    flying: Vec<(Instant, SocketAddr)>,
    asked: Vec<(u128, Ask)>,
    /// When another one was chosen, and which.
    chosen: Vec<(u128, SocketAddr)>,
    /// Frames are relayed through the chosen one this often.
    traffic: Option<Duration>,
}

impl World {
    fn new(beacons: &[(u16, Option<u64>)]) -> World {
        let now = Instant::now();
        let list: Vec<SocketAddr> = beacons.iter().map(|(n, _)| beacon(*n)).collect();
        let rtt = beacons.iter().filter_map(|(n, rtt)| Some((beacon(*n), (*rtt)?))).collect();
        let mut world = World {
            start: now,
            now,
            beacons: Beacons::default(),
            rtt,
            flying: Vec::new(),
            asked: Vec::new(),
            chosen: Vec::new(),
            traffic: None,
        };
        world.beacons.set(now, &list, 0);
        world
    }

    fn set_rtt(&mut self, n: u16, rtt: Option<u64>) {
        match rtt {
            Some(rtt) => self.rtt.insert(beacon(n), rtt),
            None => self.rtt.remove(&beacon(n)),
        };
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut traffic = self.traffic.map(|_| self.now);
        for round in 0.. {
            assert!(round < 100_000, "the clock stands still");
            let reply = self.flying.iter().map(|(at, _)| *at).min();
            let next = [self.beacons.deadline(), reply, traffic].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            let before = self.beacons.chosen();
            if let (Some(at), Some(every)) = (&mut traffic, self.traffic)
                && *at <= now
            {
                *at = now + every;
                let chosen = self.beacons.chosen().unwrap();
                self.beacons.relaying(now, chosen);
            }
            let arrived: Vec<_> = self.flying.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, from) in arrived {
                self.beacons.replied(now, from, outside());
            }
            let mut asks = Vec::new();
            self.beacons.tick(now, &mut asks);
            for ask in asks {
                self.asked.push(((now - self.start).as_millis(), ask));
                if let Some(rtt) = self.rtt.get(&ask.to) {
                    self.flying.push((now + ms(*rtt), ask.to));
                }
            }
            if self.beacons.chosen() != before {
                self.chosen.push(((now - self.start).as_millis(), self.beacons.chosen().unwrap()));
            }
        }
        self.now = end;
    }

    fn asked(&self, n: u16) -> usize {
        self.asked.iter().filter(|(_, ask)| ask.to == beacon(n)).count()
    }
}

#[test]
fn the_pick_of_the_reference_is_its_hash_of_the_key() {
    // FNV-1a of 32 zero bytes: each step multiplies by the prime, so 0x811C9DC5 * 0x01000193^32 mod 2^32.
    let hash = (0..32).fold(0x811c_9dc5_u32, |hash, _| hash.wrapping_mul(0x0100_0193)) as usize;
    for count in 1..=16 {
        assert_eq!(reference_pick(&[0; 32], count), hash % count);
    }
    assert_eq!(reference_pick(&[0; 32], 0), 0);
}

#[test]
fn a_node_begins_with_its_pick_and_goes_where_the_first_answer_comes_from() {
    let mut world = World::new(&[(1, Some(80)), (2, Some(20)), (3, None)]);
    assert_eq!(world.beacons.chosen(), Some(beacon(1)));
    world.run(ms(1_000));
    assert_eq!(world.chosen, [(20, beacon(2))]);
    let mut beacons = Beacons::default();
    beacons.set(world.now, &[beacon(1), beacon(2), beacon(3)], 2);
    assert_eq!(beacons.chosen(), Some(beacon(3)));
}

#[test]
fn every_beacon_in_use_is_asked_so_that_each_knows_the_node() {
    let mut world = World::new(&[(1, Some(80)), (2, Some(20)), (3, Some(10)), (4, Some(10)), (5, Some(50))]);
    world.run(ms(60_000));
    for n in 1..=4 {
        assert!((3..=8).contains(&world.asked(n)), "{n}: {}", world.asked(n));
    }
    let fifth: Vec<_> = world.asked.iter().filter(|(_, ask)| ask.to == beacon(5)).collect();
    assert!(!fifth.is_empty() && fifth[0].0 < 1_000);
    assert!(world.asked.iter().all(|(at, ask)| ask.register || (ask.to == beacon(5) && *at < 10)));
}

#[test]
fn while_traffic_is_relayed_the_loss_of_the_chosen_beacon_moves_it_within_four_seconds() {
    for every in [10, 500, 900] {
        let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
        world.run(ms(40_000));
        world.chosen.clear();
        world.traffic = Some(ms(every));
        world.set_rtt(1, None);
        world.run(ms(10_000));
        let [(at, to)] = world.chosen[..] else { panic!("{:?}", world.chosen) };
        assert_eq!(to, beacon(2));
        assert!(at - 40_000 < 4_000, "traffic every {every} ms: moved after {} ms", at - 40_000);
    }
}

/// A path that is lost has the beacons asked anew, and that again and again while nothing gets through.
#[test]
fn a_lost_beacon_is_left_however_often_it_is_asked_anew_meanwhile() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(40))]);
    world.traffic = Some(ms(50));
    world.run(ms(40_000));
    world.chosen.clear();
    world.set_rtt(1, None);
    for _ in 0..16 {
        world.run(ms(250));
        let now = world.now;
        world.beacons.ask_all(now);
    }
    let [(at, other)] = world.chosen[..] else { panic!("{:?}", world.chosen) };
    assert!(other == beacon(2) && at - 40_000 < 4_000, "{at}");
}

#[test]
fn without_traffic_the_loss_is_noticed_at_the_next_discover() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(1_000));
    world.chosen.clear();
    world.set_rtt(1, None);
    world.run(ms(40_000));
    let [(at, to)] = world.chosen[..] else { panic!("{:?}", world.chosen) };
    assert_eq!(to, beacon(2));
    assert!(at <= 25_000 + 3_200, "{at}");
}

#[test]
fn a_beacon_that_answers_is_not_left_because_traffic_is_one_way_or_a_reply_is_lost() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(1_000));
    world.chosen.clear();
    world.traffic = Some(ms(10));
    let before = world.asked(1);
    world.run(ms(60_000));
    assert_eq!(world.chosen, []);
    assert!(world.asked(1) - before <= 60, "not more than one question each second: {}", world.asked(1));
    world.set_rtt(1, None);
    world.run(ms(1_500));
    world.set_rtt(1, Some(20));
    world.run(ms(60_000));
    assert_eq!(world.chosen, [], "a later copy was answered");
}

#[test]
fn a_faster_beacon_is_taken_only_when_it_has_been_clearly_faster_for_some_time() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(60_000));
    world.chosen.clear();
    // Not clearly.
    world.set_rtt(1, Some(70));
    world.run(ms(400_000));
    assert_eq!(world.chosen, []);
    world.set_rtt(2, Some(30));
    let from = (world.now - world.start).as_millis();
    world.run(ms(400_000));
    let [(at, to)] = world.chosen[..] else { panic!("{:?}", world.chosen) };
    assert_eq!(to, beacon(2));
    assert!(at - from >= 30_000, "after {} ms", at - from);
}

#[test]
fn a_beacon_that_comes_back_must_stay_before_it_is_preferred_and_longer_each_time() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(60_000));
    world.traffic = Some(ms(100));
    let mut waits = Vec::new();
    for _ in 0..4 {
        world.chosen.clear();
        world.set_rtt(1, None);
        world.run(ms(10_000));
        world.set_rtt(1, Some(20));
        let back = (world.now - world.start).as_millis();
        world.run(ms(1_000_000));
        let [(_, first), (at, second)] = world.chosen[..] else { panic!("{:?}", world.chosen) };
        assert_eq!((first, second), (beacon(2), beacon(1)));
        waits.push(at - back);
    }
    assert!(waits[0] >= 60_000 && waits.windows(2).all(|w| w[1] > w[0] + w[0] / 2), "{waits:?}");
}

#[test]
fn flapping_moves_traffic_no_oftener_than_the_beacon_is_lost() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(60_000));
    world.traffic = Some(ms(100));
    world.chosen.clear();
    for _ in 0..60 {
        world.set_rtt(1, None);
        world.run(ms(10_000));
        world.set_rtt(1, Some(20));
        world.run(ms(10_000));
    }
    assert_eq!(world.chosen.len(), 1, "once away, and not back before it is steady: {:?}", world.chosen);
}

#[test]
fn lost_beacons_are_asked_less_and_less_while_another_answers_and_every_five_seconds_if_none_does() {
    let mut world = World::new(&[(1, Some(20)), (2, None)]);
    world.run(ms(600_000));
    assert!((40..80).contains(&world.asked(2)), "{}", world.asked(2));
    let mut world = World::new(&[(1, None), (2, None)]);
    world.run(ms(80_000));
    assert_eq!((world.asked(1), world.asked(2)), (50, 50));
    assert_eq!(world.beacons.chosen(), Some(beacon(1)), "there is nothing better");
}

#[test]
fn a_reply_nobody_asked_for_and_one_of_a_stranger_change_nothing() {
    let mut world = World::new(&[(1, None), (2, None)]);
    let now = world.now;
    assert_eq!(world.beacons.replied(now, beacon(2), outside()), None);
    world.run(ms(10));
    let now = world.now;
    assert_eq!(world.beacons.replied(now, beacon(7), outside()), None);
    assert_eq!(world.beacons.replied(now + ms(2_500), beacon(2), outside()), None);
    assert_eq!(world.beacons.chosen(), Some(beacon(1)));
    let status = world.beacons.status();
    assert!(status.iter().all(|s| s.observed.is_none() && s.state == State::Unknown));
}

#[test]
fn a_measured_beacon_stands_in_for_one_that_is_lost_for_long() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(30)), (3, Some(30)), (4, None), (5, Some(40))]);
    world.run(ms(200_000));
    let used: Vec<_> = world.beacons.status().iter().filter(|s| s.in_use).map(|s| s.addr.port()).collect();
    assert_eq!(used, [1, 2, 3, 5]);
    assert!(world.asked.iter().any(|(_, ask)| *ask == Ask { to: beacon(5), register: true }));
}

#[test]
fn a_measured_beacon_twice_as_fast_comes_into_use_and_is_chosen_when_it_has_proved_itself() {
    let mut world =
        World::new(&[(1, Some(100)), (2, Some(120)), (3, Some(150)), (4, Some(110)), (5, Some(20))]);
    world.run(ms(120_000));
    let used: Vec<_> = world.beacons.status().iter().filter(|s| s.in_use).map(|s| s.addr.port()).collect();
    assert_eq!(used, [1, 2, 4, 5]);
    assert_eq!(world.beacons.chosen(), Some(beacon(5)));
    let [(at, _), ..] = world.chosen[..] else { panic!() };
    assert!(world.chosen.len() == 1 || at < 200, "{:?}", world.chosen);
}

#[test]
fn a_new_list_keeps_what_is_known_of_those_that_stay_and_at_most_sixteen_count() {
    let mut world = World::new(&[(1, Some(20)), (2, Some(60))]);
    world.run(ms(1_000));
    world.set_rtt(3, Some(20));
    world.asked.clear();
    let now = world.now;
    world.beacons.set(now, &[beacon(3), beacon(2), beacon(1)], 0);
    assert_eq!(world.beacons.chosen(), Some(beacon(1)));
    world.run(ms(1_000));
    assert_eq!((world.asked(1), world.asked(2), world.asked(3)), (0, 0, 1));
    let now = world.now;
    world.beacons.set(now, &[beacon(2)], 0);
    assert_eq!(world.beacons.chosen(), Some(beacon(2)));
    assert!(!world.beacons.contains(beacon(1)));
    world.beacons.set(now, &[], 0);
    assert_eq!((world.beacons.chosen(), world.beacons.deadline()), (None, None));
    let many: Vec<SocketAddr> = (0..100).map(beacon).collect();
    world.beacons.set(now, &many, 50);
    assert_eq!(world.beacons.status().len(), MAX_KNOWN);
    assert_eq!(world.beacons.status().iter().filter(|s| s.in_use).count(), MAX_IN_USE);
}

#[test]
fn the_side_that_follows_goes_at_once_and_the_one_that_leads_when_the_other_does_not_come() {
    let now = Instant::now();
    let (one, two) = (beacon(1), beacon(2));
    let mut leader = Via::default();
    let mut follower = Via::default();
    // Both chose their own, and both send at the same time.
    assert!(leader.heard(now, two, Some(one), true), "nothing says that its own works for the other");
    assert!(follower.heard(now, one, Some(two), false));
    // Both went, and now change places; the one that leads stays.
    assert!(!leader.heard(now, one, Some(two), true));
    assert!(follower.heard(now, two, Some(one), false));
    assert!(!leader.heard(now + ms(10), two, Some(two), true));
    assert!(!leader.heard(now + ms(2_000), one, Some(two), true), "not for one straggler");
    assert!(!leader.heard(now + ms(2_500), one, Some(two), true));
    assert!(leader.heard(now + ms(3_000), one, Some(two), true), "the other one stays there");
    assert_eq!(leader.through(), Some(one));
}
