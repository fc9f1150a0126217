//! When datagrams to the beacon go over UDP, and when over a WebSocket. No I/O; the clock is passed in.
//!
//! UDP is left when the beacons are silent: none answers what was sent, or one of three probes. A network may still let UDP
//! through to others (a LAN does), so the beacons' answers alone count. It is taken again when two probes in a row are
//! answered, and the longer avoided the sooner it failed the last time. On another network all of that begins anew, at once.
//! Several beacons count as one here: which of them is used is the engine's choice.

use crate::config::Transport;
use std::time::{Duration, Instant};

/// A beacon that answers nothing for this long is asked with probes.
const SUSPECT: Duration = Duration::from_millis(800);
/// Between such probes, and how many there are.
const PROBE_PAUSE: Duration = Duration::from_millis(500);
const PROBES: u32 = 3;
/// While a WebSocket is in use, UDP is tried this often at first, and at most this rarely.
const RETURN_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// The same while the WebSocket is broken.
const BROKEN_PAUSE: Duration = Duration::from_secs(2);
/// So many times the latter counts on another network, too.
const EAGER: u32 = 3;
/// UDP that fails again within this time of its return is tried more rarely.
const RELAPSE: Duration = Duration::from_secs(60);
/// After the return to UDP the WebSocket stays open for this long: frames are under way.
const LINGER: Duration = Duration::from_secs(3);
/// UDP datagrams of others within this time show that only the way to the beacon is blocked.
const ALIVE: Duration = Duration::from_secs(30);

/// What carries datagrams to the beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Udp,
    WebSocket,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Ask the beacon over UDP.
    Probe,
    /// Open a WebSocket, and keep it open.
    Connect,
    /// Close it.
    Disconnect,
    /// Use this from now on. `direct`: UDP still reaches others.
    Use { way: Way, direct: bool },
}

/// The choice.
#[derive(Debug)]
pub(super) struct Auto {
    transport: Transport,
    way: Way,
    /// A WebSocket was asked for; it is open.
    wanted: bool,
    open: bool,
    /// When the first datagram was sent that the beacon has not answered.
    unanswered: Option<Instant>,
    /// Probes sent in this silence.
    probes: u32,
    next_probe: Option<Instant>,
    /// Answers in a row while the WebSocket is in use.
    answers: u32,
    /// Probes still to be sent soon after one another.
    eager: u32,
    pause: Duration,
    returned: Option<Instant>,
    close_at: Option<Instant>,
    others: Option<Instant>,
}

impl Auto {
    pub fn new(transport: Transport) -> Auto {
        Auto {
            transport,
            way: if transport == Transport::Compat { Way::WebSocket } else { Way::Udp },
            wanted: false,
            open: false,
            unanswered: None,
            probes: 0,
            next_probe: None,
            answers: 0,
            eager: 0,
            pause: RETURN_PAUSE.0,
            returned: None,
            close_at: None,
            others: None,
        }
    }

    pub fn way(&self) -> Way {
        self.way
    }

    /// A datagram was sent to the beacon over UDP.
    pub fn sent(&mut self, now: Instant) {
        if self.transport == Transport::Auto && self.way == Way::Udp && self.unanswered.is_none() {
            self.unanswered = Some(now);
            self.probes = 0;
            self.next_probe = Some(now + SUSPECT);
        }
    }

    /// The beacon sent something over UDP; `reply`: to a Discover.
    pub fn heard(&mut self, now: Instant, reply: bool) {
        match self.way {
            Way::Udp => {
                self.unanswered = None;
                self.next_probe = None;
                if self.wanted && self.close_at.is_none() {
                    self.close_at = Some(now);
                }
            }
            Way::WebSocket if reply => {
                self.answers += 1;
                // The next one at once.
                self.next_probe = Some(now);
            }
            Way::WebSocket => {}
        }
    }

    /// Somebody else sent something over UDP.
    pub fn heard_others(&mut self, now: Instant) {
        self.others = Some(now);
    }

    /// The node is on another network: what is known of UDP is of the old one.
    pub fn network_changed(&mut self, now: Instant) {
        if self.transport != Transport::Auto {
            return;
        }
        (self.returned, self.others, self.pause) = (None, None, RETURN_PAUSE.0);
        (self.probes, self.next_probe) = (0, Some(now));
        match self.way {
            Way::Udp => drop(self.unanswered.get_or_insert(now)),
            Way::WebSocket => (self.answers, self.eager) = (0, EAGER),
        }
    }

    /// The WebSocket opened or closed.
    pub fn socket(&mut self, now: Instant, open: bool) {
        self.open = open;
        if !open && self.way == Way::WebSocket && self.transport == Transport::Auto {
            self.next_probe = Some(now);
        }
    }

    fn silent(&self) -> bool {
        self.unanswered.is_some() && self.probes > PROBES
    }

    /// What is to be done now; call it until there is nothing.
    pub fn poll(&mut self, now: Instant) -> Option<Act> {
        if self.transport == Transport::Udp {
            return None;
        }
        if self.transport == Transport::Compat {
            return (!std::mem::replace(&mut self.wanted, true)).then_some(Act::Connect);
        }
        if self.close_at.is_some_and(|at| at <= now) {
            self.close_at = None;
            self.wanted = false;
            return Some(Act::Disconnect);
        }
        match self.way {
            Way::Udp => self.poll_udp(now),
            Way::WebSocket => self.poll_socket(now),
        }
    }

    fn poll_udp(&mut self, now: Instant) -> Option<Act> {
        if self.next_probe.is_some_and(|at| at <= now) {
            self.probes += 1;
            self.next_probe = (self.probes <= PROBES).then_some(now + PROBE_PAUSE);
            if self.probes <= PROBES {
                return Some(Act::Probe);
            }
        }
        if !self.silent() {
            return None;
        }
        self.close_at = None;
        if !self.wanted {
            self.wanted = true;
            return Some(Act::Connect);
        }
        if !self.open {
            return None;
        }
        let relapsed = self.returned.is_some_and(|at| now.saturating_duration_since(at) < RELAPSE);
        self.pause = if relapsed { (self.pause * 2).min(RETURN_PAUSE.1) } else { RETURN_PAUSE.0 };
        self.way = Way::WebSocket;
        (self.answers, self.eager) = (0, 0);
        self.next_probe = Some(now + self.pause);
        let direct = self.others.is_some_and(|at| now.saturating_duration_since(at) < ALIVE);
        Some(Act::Use { way: Way::WebSocket, direct })
    }

    fn poll_socket(&mut self, now: Instant) -> Option<Act> {
        if self.answers >= 2 {
            self.way = Way::Udp;
            self.returned = Some(now);
            (self.unanswered, self.next_probe, self.probes) = (None, None, 0);
            self.close_at = Some(now + LINGER);
            return Some(Act::Use { way: Way::Udp, direct: true });
        }
        if self.next_probe.is_none_or(|at| at > now) {
            return None;
        }
        // The second question follows the first answer; without its answer all begins again.
        let pause = match (self.answers, self.open) {
            (0, true) if self.eager == 0 => self.pause,
            _ => BROKEN_PAUSE,
        };
        self.eager = self.eager.saturating_sub(1);
        if self.answers == 1 && self.probes == 1 {
            self.probes = 2;
        } else {
            self.answers = 0;
            self.probes = 1;
        }
        self.next_probe = Some(now + pause);
        Some(Act::Probe)
    }

    /// When [`Auto::poll`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        [self.next_probe, self.close_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        auto: Auto,
        now: Instant,
        udp: bool,
        socket: bool,
        acts: Vec<(u64, Act)>,
        start: Instant,
    }

    impl World {
        fn new(transport: Transport) -> World {
            let now = Instant::now();
            World { auto: Auto::new(transport), now, udp: true, socket: true, acts: Vec::new(), start: now }
        }

        fn act(&mut self) {
            while let Some(act) = self.auto.poll(self.now) {
                self.acts.push((self.now.duration_since(self.start).as_millis() as u64, act));
                match act {
                    Act::Probe if self.udp => self.auto.heard(self.now, true),
                    Act::Connect if self.socket => self.auto.socket(self.now, true),
                    Act::Disconnect => self.auto.socket(self.now, false),
                    _ => {}
                }
                assert!(self.acts.len() < 1000, "it stops");
            }
        }

        /// Runs for a while; a datagram goes to the beacon each second.
        fn run(&mut self, seconds: u64) -> Vec<(u64, Act)> {
            self.acts.clear();
            for _ in 0..seconds {
                if self.auto.way() == Way::Udp {
                    self.auto.sent(self.now);
                    if self.udp {
                        self.auto.heard(self.now, false);
                    }
                }
                let end = self.now + Duration::from_secs(1);
                loop {
                    self.act();
                    match self.auto.deadline().filter(|at| *at < end) {
                        Some(at) => self.now = at.max(self.now),
                        None => break,
                    }
                }
                self.now = end;
            }
            std::mem::take(&mut self.acts)
        }
    }

    fn without_probes(acts: Vec<(u64, Act)>) -> Vec<(u64, Act)> {
        acts.into_iter().filter(|(_, act)| *act != Act::Probe).collect()
    }

    const TO_SOCKET: Act = Act::Use { way: Way::WebSocket, direct: false };
    const TO_UDP: Act = Act::Use { way: Way::Udp, direct: true };

    #[test]
    fn udp_that_answers_is_never_left_nor_probed() {
        let mut w = World::new(Transport::Auto);
        assert_eq!(w.run(600), []);
        assert_eq!(w.auto.deadline(), None, "an idle node has no timer of this");
    }

    #[test]
    fn a_silent_beacon_is_left_within_three_seconds_and_taken_again_when_it_answers() {
        let mut w = World::new(Transport::Auto);
        w.udp = false;
        assert_eq!(
            w.run(5),
            [
                (800, Act::Probe),
                (1300, Act::Probe),
                (1800, Act::Probe),
                (2300, Act::Connect),
                (2300, TO_SOCKET)
            ]
        );
        w.run(60);
        w.udp = true;
        let back = without_probes(w.run(20));
        assert!(
            matches!(back[..], [(at, TO_UDP), (closed, Act::Disconnect)] if closed == at + 3000),
            "{back:?}"
        );
        assert_eq!(without_probes(w.run(60)), []);
    }

    #[test]
    fn udp_that_comes_and_goes_is_tried_more_and_more_rarely() {
        let mut w = World::new(Transport::Auto);
        w.udp = false;
        w.run(10);
        let mut returns = Vec::new();
        for _ in 0..5 {
            w.udp = true;
            let began = w.now.duration_since(w.start).as_millis() as u64;
            while w.auto.way() == Way::WebSocket {
                w.run(1);
            }
            returns.push(w.now.duration_since(w.start).as_millis() as u64 - began);
            w.udp = false;
            while w.auto.way() == Way::Udp {
                w.run(1);
            }
        }
        assert!(returns[4] > 4 * returns[0] && returns[4] <= 300_000, "{returns:?}");
    }

    #[test]
    fn a_websocket_that_cannot_be_had_changes_nothing() {
        let mut w = World::new(Transport::Auto);
        (w.udp, w.socket) = (false, false);
        assert_eq!(without_probes(w.run(30)), [(2300, Act::Connect)]);
        w.udp = true;
        assert_eq!(without_probes(w.run(5)), [(30_000, Act::Disconnect)]);
    }

    #[test]
    fn a_broken_websocket_makes_udp_tried_sooner() {
        let mut w = World::new(Transport::Auto);
        w.udp = false;
        w.run(400);
        w.auto.socket(w.now, false);
        w.udp = true;
        assert!(matches!(w.run(1)[..], [(_, Act::Probe), (_, Act::Probe), (_, TO_UDP), ..]));
    }

    #[test]
    fn on_another_network_udp_is_tried_at_once_and_some_times_more() {
        let mut w = World::new(Transport::Auto);
        w.udp = false;
        w.run(400);
        w.auto.network_changed(w.now);
        let probes: Vec<_> = w.run(20).into_iter().map(|(at, _)| at - 400_000).collect();
        assert_eq!(probes, [0, 2_000, 4_000, 6_000, 16_000]);
        w.udp = true;
        w.auto.network_changed(w.now);
        assert!(matches!(
            w.run(1)[..],
            [(420_000, Act::Probe), (420_000, Act::Probe), (420_000, TO_UDP), ..]
        ));
    }

    #[test]
    fn on_another_network_a_silent_beacon_is_left_without_waiting_for_a_datagram() {
        let mut w = World::new(Transport::Auto);
        w.run(60);
        w.udp = false;
        w.auto.network_changed(w.now);
        let acts: Vec<_> = without_probes(w.run(3)).into_iter().map(|(at, act)| (at - 60_000, act)).collect();
        assert_eq!(acts, [(1_500, Act::Connect), (1_500, TO_SOCKET)]);
        // Where it answers nothing comes of it.
        let mut w = World::new(Transport::Auto);
        w.auto.network_changed(w.now);
        w.act();
        assert_eq!(std::mem::take(&mut w.acts), [(0, Act::Probe)]);
        assert_eq!(w.run(60), []);
        for chosen in [Transport::Udp, Transport::Compat] {
            let mut w = World::new(chosen);
            w.run(1);
            w.auto.network_changed(w.now);
            assert_eq!(w.run(60), []);
        }
    }

    #[test]
    fn where_udp_reaches_others_it_is_kept_for_them() {
        let mut w = World::new(Transport::Auto);
        w.udp = false;
        w.auto.heard_others(w.now);
        let acts = w.run(3);
        assert!(acts.contains(&(2300, Act::Use { way: Way::WebSocket, direct: true })), "{acts:?}");
    }

    #[test]
    fn what_was_decided_by_the_operator_stays() {
        let mut w = World::new(Transport::Compat);
        assert_eq!(w.run(300), [(0, Act::Connect)]);
        let mut w = World::new(Transport::Udp);
        w.udp = false;
        assert_eq!(w.run(300), []);
    }
}
