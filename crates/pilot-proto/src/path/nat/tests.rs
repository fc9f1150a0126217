use super::*;

fn beacon(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], port))
}
fn seen(port: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], port))
}
fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A NAT seen by as many destinations as there are ports, one after the other.
fn nat(ports: &[u16]) -> (Nat, Instant) {
    let start = Instant::now();
    let mut nat = Nat::default();
    nat.set_local_port(4000);
    for (n, port) in ports.iter().enumerate() {
        nat.observe(start + ms(n as u64), beacon(1, 9001 + n as u16), seen(*port), None);
    }
    (nat, start)
}

fn predictable(stride: i16, last: u16) -> NatClass {
    NatClass::PerDestination { ports: Ports::Predictable { stride, last } }
}

#[test]
fn one_destination_says_nothing_and_two_say_whether_each_has_a_port_of_its_own() {
    assert_eq!(Nat::default().class(), NatClass::Unknown);
    assert_eq!(nat(&[5000]).0.class(), NatClass::Unknown);
    assert_eq!(nat(&[5000, 5000]).0.class(), NatClass::EndpointIndependent);
    assert_eq!(nat(&[5000, 5001]).0.class(), predictable(1, 5001));
    assert_eq!(nat(&[5000, 5000, 5001]).0.class(), predictable(1, 5001), "one that differs is enough");
    let random = NatClass::PerDestination { ports: Ports::Random };
    assert_eq!(nat(&[5000, 23_456]).0.class(), random);
    assert_eq!(nat(&[5000, 23_456]).0.predicted(), None);
}

#[test]
fn an_address_of_our_own_is_no_nat() {
    let (mut nat, start) = nat(&[]);
    nat.set_own(&[seen(4000)]);
    nat.observe(start, beacon(1, 9001), seen(4000), None);
    assert_eq!(nat.class(), NatClass::None);
    nat.observe(start, beacon(1, 9002), seen(4000), None);
    assert_eq!(nat.class(), NatClass::None);
    assert_eq!(nat.keeps_port(), Some(true));
    nat.set_own(&[]);
    assert_eq!(nat.class(), NatClass::EndpointIndependent);
    nat.set_own(&[seen(4000)]);
    assert_eq!(nat.class(), NatClass::None, "also when it is known only afterwards");
}

#[test]
fn the_step_may_be_negative_or_a_multiple_because_others_take_ports_too() {
    assert_eq!(nat(&[5000, 4998]).0.class(), predictable(-2, 4998));
    assert_eq!(nat(&[5000, 5004, 5006, 5012]).0.class(), predictable(2, 5012));
    // One leap among steps: somebody took many ports at once.
    assert_eq!(nat(&[5000, 5001, 5102, 5103]).0.class(), predictable(1, 5103));
    let random = NatClass::PerDestination { ports: Ports::Random };
    assert_eq!(nat(&[5000, 5001, 9102, 30_103]).0.class(), random, "one close pair among many is chance");
}

#[test]
fn a_port_kept_for_the_first_destination_says_nothing_about_the_next() {
    let random = NatClass::PerDestination { ports: Ports::Random };
    assert_eq!(nat(&[4000, 4007]).0.class(), random);
    assert_eq!(nat(&[4000, 20_000, 20_001]).0.class(), predictable(1, 20_001));
    assert_eq!(nat(&[4000, 20_000]).0.keeps_port(), Some(true));
    assert_eq!(nat(&[20_000]).0.keeps_port(), Some(false));
    assert_eq!(Nat::default().keeps_port(), None);
}

#[test]
fn replies_may_overtake_each_other() {
    let (mut nat, start) = nat(&[]);
    nat.observe(start + ms(2), beacon(1, 9003), seen(5002), None);
    nat.observe(start, beacon(1, 9001), seen(5000), None);
    nat.observe(start + ms(1), beacon(1, 9002), seen(5001), None);
    assert_eq!(nat.class(), predictable(1, 5002));
}

#[test]
fn of_questions_of_one_instant_the_order_counts() {
    let start = Instant::now();
    let mut nat = Nat::default();
    let to = [beacon(1, 9001), beacon(1, 9002), beacon(2, 9001)];
    to.iter().for_each(|to| nat.asking(start, *to));
    nat.asking(start + ms(200), to[0]); // a copy
    for n in [1, 2, 0] {
        nat.observe(start, to[n], seen(5000 + n as u16), None);
    }
    assert_eq!(nat.class(), predictable(1, 5002));
    (0..500).for_each(|n| nat.asking(start, beacon(3, n)));
    assert_eq!(nat.turns.len(), MAX_VIEWS);
}

#[test]
fn the_range_begins_behind_the_port_given_last_and_stays_among_the_ports_there_are() {
    let (nat_, start) = nat(&[5000, 5002]);
    let range = nat_.predicted().unwrap();
    assert_eq!((range.first, range.stride, range.count), (5004, 2, PREDICTED_PORTS));
    assert_eq!(range.since, start + ms(1));
    assert_eq!(range.addresses().take(2).collect::<Vec<_>>(), [seen(5004), seen(5006)]);
    assert_eq!(range.addresses().count(), usize::from(PREDICTED_PORTS));
    let end = nat(&[65_520, 65_530]).0.predicted();
    assert_eq!(end, None, "behind 65,530 there is no port at that distance");
    let end = nat(&[65_500, 65_510]).0.predicted().unwrap();
    assert_eq!(end.addresses().collect::<Vec<_>>(), [seen(65_520), seen(65_530)]);
    let low = nat(&[25, 20]).0.predicted().unwrap();
    assert_eq!(low.addresses().map(|a| a.port()).collect::<Vec<_>>(), [15, 10, 5]);
    assert_eq!(nat(&[10, 5]).0.predicted(), None);
}

#[test]
fn a_later_port_moves_the_range_and_views_of_different_times_do_not_make_a_nat_symmetric() {
    let (mut nat_, start) = nat(&[5000, 5001]);
    let later = start + Duration::from_secs(40);
    nat_.observe(later, beacon(1, 9002), seen(5090), Some(Duration::from_secs(40)));
    assert_eq!(nat_.class(), predictable(1, 5090), "the stride stays as it was measured");
    assert_eq!(nat_.predicted().unwrap().first, 5091);
    assert_eq!(nat_.lifetime(), (Duration::ZERO, Some(Duration::from_secs(40))));

    let (mut cone, start) = nat(&[5000, 5000]);
    let later = start + Duration::from_secs(40);
    cone.observe(later, beacon(1, 9001), seen(7000), Some(Duration::from_secs(40)));
    assert_eq!(cone.class(), NatClass::EndpointIndependent, "the mapping was renewed; the other view is old");
    cone.observe(later, beacon(1, 9002), seen(7000), Some(Duration::from_secs(40)));
    assert_eq!(cone.class(), NatClass::EndpointIndependent);
    cone.observe(later + Duration::from_secs(25), beacon(1, 9001), seen(7000), Some(Duration::from_secs(25)));
    assert_eq!(cone.lifetime(), (Duration::from_secs(25), Some(Duration::from_secs(40))));
}

#[test]
fn another_outside_address_is_another_network() {
    let (mut nat_, start) = nat(&[5000, 5001]);
    let later = start + Duration::from_secs(1);
    let elsewhere = |port| SocketAddr::from(([198, 51, 100, 7], port));
    nat_.observe(later, beacon(1, 9001), elsewhere(6000), None);
    assert_eq!((nat_.class(), nat_.predicted()), (NatClass::Unknown, None));
    nat_.observe(later, beacon(1, 9002), elsewhere(6000), None);
    assert_eq!(nat_.class(), NatClass::EndpointIndependent);
    nat_.reset();
    assert_eq!(nat_.class(), NatClass::Unknown);
}

#[test]
fn everything_that_is_remembered_is_bounded_and_addresses_without_meaning_are_not() {
    let (mut nat, start) = nat(&[]);
    for n in 0..500u16 {
        nat.observe(start + ms(n.into()), beacon(2, n + 1), seen(1000 + n), None);
    }
    assert_eq!((nat.views.len(), nat.given.len()), (MAX_VIEWS, MAX_GIVEN));
    assert_eq!(nat.class(), predictable(1, 1499));
    let (mut nat, start) = (Nat::default(), start);
    nat.observe(start, beacon(1, 1), seen(0), None);
    nat.observe(start, beacon(1, 1), SocketAddr::from(([0, 0, 0, 0], 7)), None);
    assert!(nat.views.is_empty());
}

#[test]
fn of_ipv6_views_only_the_address_counts_and_ipv4_comes_first() {
    let (mut nat, start) = nat(&[]);
    let six = |n| SocketAddr::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(), 4000);
    nat.set_own(&[six(1)]);
    nat.observe(start, six(9), six(1), None);
    assert_eq!(nat.class(), NatClass::None);
    nat.observe(start, beacon(1, 9001), seen(5000), None);
    assert_eq!(nat.class(), NatClass::Unknown, "over IPv4 there is a NAT");
    nat.observe(start, beacon(1, 9002), seen(5001), None);
    assert_eq!(nat.class(), predictable(1, 5001));
}
