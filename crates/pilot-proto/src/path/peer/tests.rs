use super::*;

const FIRST: Tick = Tick::Check { again: false };
const AGAIN: Tick = Tick::Check { again: true };
const FRESH: Arrival = Arrival { fresh: true, probe: false, fallback: true };

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}
fn at(n: u16) -> Candidate {
    Candidate::guessed(addr(n))
}
fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Runs the timers up to `until` and returns what they asked for, with the time since `start` in ms.
fn run(path: &mut Path, start: Instant, until: Duration) -> Vec<(u128, Tick)> {
    let mut out = Vec::new();
    while let Some(at) = path.deadline(true).filter(|at| *at <= start + until) {
        if let Some(tick) = path.tick(at, true, true) {
            out.push(((at - start).as_millis(), tick));
        }
    }
    out
}

/// Sends a probe to each address and has each answered after its time.
fn answer(path: &mut Path, now: Instant, answers: &[(u16, u64)]) -> Vec<bool> {
    for addr in path.targets(true) {
        path.probed(now, addr, u64::from(addr.port()));
    }
    let mut answers = answers.to_vec();
    answers.sort_by_key(|(_, after)| *after);
    answers.iter().map(|(n, after)| path.pong(now + ms(*after), u64::from(*n), Some(addr(*n)))).collect()
}

#[test]
fn a_silent_direct_path_is_probed_and_left_for_the_relay_within_two_seconds_of_its_death() {
    let t = Instant::now();
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
    assert!(!p.sent_directly(t));
    assert!(!p.sent_directly(t + QUIET));
    let start = t + QUIET + ms(1);
    assert!(p.sent_directly(start));
    let ticks = run(&mut p, start, ms(900));
    assert_eq!(ticks[..3], [(0, FIRST), (300, AGAIN), (600, AGAIN)]);
    assert_eq!(ticks[3], (900, Tick::Lost));
    assert_eq!(p.choose(true, false), Choice::Relay);
    assert_eq!(p.choose(false, false), Choice::Direct(addr(1)), "without a relay there is nothing better");
}

#[test]
fn a_listener_whose_flow_breaks_off_probes_the_path_and_leaves_it_if_nothing_answers() {
    let t = Instant::now();
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    let heard = |p: &mut Path, at: u64| p.direct_in(t + ms(at), addr(1), FRESH);
    (0..100).for_each(|n| assert!(!heard(&mut p, 10 * n)));
    let ticks = run(&mut p, t, ms(3_000));
    let ticks: Vec<_> = ticks.into_iter().filter(|(_, tick)| *tick != Tick::Probe).collect();
    assert_eq!(ticks[..4], [(1_590, FIRST), (1_890, AGAIN), (2_190, AGAIN), (2_490, Tick::Lost)]);

    // A pong ends it, and what comes now and then is no flow.
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    (0..100).for_each(|n| assert!(!heard(&mut p, 10 * n)));
    assert_eq!(p.tick(t + ms(1_590), true, true), Some(FIRST));
    p.probed(t + ms(1_590), addr(1), 9);
    p.pong(t + ms(1_630), 9, Some(addr(1)));
    (2..100).for_each(|n| assert!(!heard(&mut p, 1_000 * n)));
    assert_eq!(run(&mut p, t, ms(20_000)), []);
}

#[test]
fn a_flow_through_the_relay_that_breaks_off_is_told_once() {
    let t = Instant::now();
    let mut p = Path::default();
    (0..100).for_each(|n| p.relayed_in(t + ms(10 * n)));
    assert_eq!(run(&mut p, t, ms(20_000)), [(1_590, Tick::Lull)]);
}

#[test]
fn an_answered_probe_keeps_the_direct_path() {
    let t = Instant::now();
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    p.sent_directly(t);
    assert!(p.sent_directly(t + ms(1_001)));
    assert_eq!(p.tick(t + ms(1_001), true, true), Some(FIRST));
    assert_eq!(p.targets(false), [addr(1)]);
    p.probed(t + ms(1_001), addr(1), 77);
    assert!(!p.pong(t + ms(1_050), 78, None));
    assert!(!p.pong(t + ms(1_050), 77, None), "nothing changed: it stays direct");
    assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
    assert_eq!(p.rtt(), Some(ms(49)));
    assert_eq!(run(&mut p, t, ms(30_000)), [], "and is left alone");
}

#[test]
fn the_checks_of_a_slow_path_leave_it_time_to_answer() {
    let t = Instant::now();
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    answer(&mut p, t, &[(1, 600)]);
    p.sent_directly(t);
    p.sent_directly(t + ms(1_001));
    let ticks = run(&mut p, t + ms(1_001), ms(3_000));
    assert_eq!(ticks.iter().map(|(at, _)| *at).take(4).collect::<Vec<_>>(), [0, 900, 1_800, 2_700]);
}

#[test]
fn a_path_that_failed_comes_back_only_by_an_answered_probe() {
    let t = Instant::now();
    let mut p = Path::default();
    p.contacted_directly(t, addr(1));
    for _ in 0..2 {
        assert!(!p.unreachable(t));
    }
    assert!(p.unreachable(t));
    assert_eq!(p.choose(true, false), Choice::Relay);
    assert!(!p.direct_in(t, addr(1), FRESH), "the peer's frames arrive, ours may still not");
    assert_eq!(p.choose(true, false), Choice::Relay);
    assert_eq!(p.tick(t, true, true), Some(Tick::Probe));
    assert_eq!(answer(&mut p, t, &[(1, 20)]), [true]);
    assert_eq!(p.choose(true, false), Choice::Direct(addr(1)));
}

#[test]
fn a_relayed_peer_is_probed_at_once_on_every_address_and_then_more_and_more_rarely() {
    let t = Instant::now();
    let mut p = Path::default();
    p.set_routes(&[at(1), at(2)]);
    p.contacted_by_relay(t);
    let ticks = run(&mut p, t, ms(130_000));
    let of = |tick| ticks.iter().filter(|(_, t)| *t == tick).map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!(of(Tick::Probe), [0, 100, 300, 600, 1_000, 2_000]);
    assert_eq!(of(Tick::Punch), [2_000, 6_000, 14_000, 29_000, 44_000, 74_000, 104_000]);
    assert_eq!(p.targets(true), [addr(1), addr(2)]);
    assert_eq!(answer(&mut p, t, &[(2, 20)]), [true]);
    assert_eq!(p.choose(true, false), Choice::Direct(addr(2)));
}

#[test]
fn the_first_to_answer_takes_over_and_only_a_clearly_faster_one_follows() {
    let t = Instant::now();
    let mut p = Path::default();
    p.set_routes(&[at(1), at(2), at(3)]);
    p.contacted_by_relay(t);
    // All in one race: 20 ms, 21 ms.
    assert_eq!(answer(&mut p, t, &[(1, 20), (2, 21)]), [true, false]);
    assert_eq!(p.direct(), Some(addr(1)));
    // A look for something better, a minute later.
    let ticks = run(&mut p, t + ms(20), ms(60_000));
    assert_eq!(ticks.last(), Some(&(60_000, Tick::Probe)));
    let t = t + ms(60_020);
    assert_eq!(
        answer(&mut p, t, &[(1, 20), (3, 4)]),
        [false, true],
        "decided when the one in use has answered"
    );
    assert_eq!(p.direct(), Some(addr(3)));
}

#[test]
fn among_equals_the_neighbour_is_preferred() {
    let t = Instant::now();
    let mut p = Path::default();
    let lan = SocketAddr::from(([192, 168, 1, 9], 4000));
    p.set_routes(&[at(1), Candidate::guessed(lan)]);
    p.contacted_by_relay(t);
    p.probed(t, addr(1), 1);
    p.probed(t, lan, 2);
    assert!(p.pong(t + ms(10), 1, Some(addr(1))));
    assert!(p.pong(t + ms(11), 2, Some(lan)));
    assert_eq!(p.direct(), Some(lan));
    assert_eq!(p.kind(), Some(CandidateKind::Lan));
}

#[test]
fn frames_from_another_known_address_move_nothing_while_the_one_in_use_lives() {
    let t = Instant::now();
    let mut p = Path::default();
    p.set_routes(&[at(1), at(2)]);
    p.contacted_by_relay(t);
    answer(&mut p, t, &[(1, 20), (2, 20)]);
    for n in 0..100 {
        let now = t + ms(20 + n * 10);
        assert!(!p.direct_in(now, addr(1), FRESH));
        assert!(!p.direct_in(now, addr(2), FRESH));
    }
    assert_eq!(p.direct(), Some(addr(1)));
    assert!(
        p.direct_in(t + ms(1_050), addr(9), FRESH),
        "a NAT that forgot its mapping gives it another address"
    );
    assert_eq!(p.direct(), Some(addr(9)));
    let probe = Arrival { probe: true, ..FRESH };
    assert!(!p.direct_in(t + ms(1_060), addr(10), probe), "the peer tries another way");
    assert_eq!(p.direct(), Some(addr(9)));
}

#[test]
fn an_address_that_died_gives_way_to_one_that_speaks_and_answers() {
    let t = Instant::now();
    let mut p = Path::default();
    p.set_routes(&[at(1), at(2)]);
    p.contacted_by_relay(t);
    answer(&mut p, t, &[(1, 20), (2, 20)]);
    let t = t + ms(5_000);
    assert!(!p.direct_in(t, addr(2), FRESH));
    assert_eq!(p.tick(t, true, true), Some(Tick::Probe), "all are probed at once");
    assert_eq!(answer(&mut p, t + ms(40), &[(2, 20)]), [true]);
    assert_eq!(p.direct(), Some(addr(2)));
}

#[test]
fn addresses_are_bounded_and_relay_only_never_goes_direct() {
    let mut p = Path::default();
    let many: Vec<_> = (1..40).map(at).collect();
    p.set_routes(&many);
    p.set_candidates(&(41..80).map(at).collect::<Vec<_>>());
    for n in 100..120 {
        p.learn(addr(n));
    }
    assert_eq!(p.addresses().count(), MAX_ADDRESSES);
    p.relay_only = true;
    assert_eq!(p.choose(true, false), Choice::Relay);
    assert_eq!(p.choose(false, false), Choice::None);
}

#[test]
fn a_network_change_probes_everything_at_once_and_leaves_a_dead_path_within_a_second() {
    let t = Instant::now();
    let mut p = Path::default();
    p.set_routes(&[at(1), at(2)]);
    p.contacted_directly(t, addr(1));
    let t = t + ms(10_000);
    p.changed(t);
    let ticks = run(&mut p, t, ms(1_000));
    assert!(ticks.contains(&(0, Tick::Probe)) && ticks.contains(&(0, FIRST)), "{ticks:?}");
    assert!(ticks.contains(&(900, Tick::Lost)), "{ticks:?}");
}
