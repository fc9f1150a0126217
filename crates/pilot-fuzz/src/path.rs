//! The way to one peer against any order of events: frames, answers late and forged, lists of addresses from the peer itself,
//! sends, errors, network changes; and the message the lists come in.

use crate::input::Input;
use pilot_proto::path::candidates::acceptable;
use pilot_proto::path::message::Message;
use pilot_proto::path::peer::{Arrival, MAX_ADDRESSES};
use pilot_proto::path::{Candidate, CandidateKind, Choice, Path, Tick};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Operations of one input.
const MAX_OPS: usize = 400;
/// Runs of the timer at one time.
const MAX_RUNS: usize = 50;
/// Probes of one address that may be sent within a second: a race's and those of a check.
const MAX_PROBES: usize = 24;

fn addr(n: u8) -> SocketAddr {
    match n % 3 {
        0 => SocketAddr::from(([192, 168, 1, n], 4000)),
        1 => SocketAddr::from(([198, 51, 100, n], 4000)),
        _ => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()], 4000)),
    }
}

struct Rig {
    now: Instant,
    path: Path,
    tokens: u64,
    /// Probes sent: token, address, when.
    sent: Vec<(u64, SocketAddr, Instant)>,
    /// Addresses that answered or spoke; nothing else may be in use.
    live: BTreeMap<SocketAddr, Instant>,
    active: bool,
    relay: bool,
}

impl Rig {
    fn probe(&mut self, all: bool) {
        for to in self.path.targets(all) {
            self.tokens += 1;
            self.path.probed(self.now, to, self.tokens);
            self.sent.push((self.tokens, to, self.now));
            let second = self.now.checked_sub(Duration::from_secs(1));
            let recent = |s: &&(u64, SocketAddr, Instant)| s.1 == to && second.is_none_or(|t| s.2 > t);
            assert!(self.sent.iter().filter(recent).count() <= MAX_PROBES, "a flood of probes to {to}");
        }
    }

    fn run_timers(&mut self) {
        let mut runs = 0;
        while self.path.deadline(self.active).is_some_and(|at| at <= self.now) {
            match self.path.tick(self.now, self.active, self.relay) {
                Some(Tick::Check { .. }) => self.probe(false),
                Some(Tick::Probe) => self.probe(true),
                Some(Tick::Lost) => assert!(self.relay && !self.path.proven(), "only for a relay"),
                Some(Tick::Lull) => assert!(!self.path.proven(), "a direct path is probed instead"),
                Some(Tick::Punch) => assert!(!self.path.proven() && !self.path.relay_only),
                None => {}
            }
            runs += 1;
            assert!(runs < MAX_RUNS, "the timer runs all the time");
        }
    }

    fn check(&self) {
        assert!(self.path.addresses().count() <= MAX_ADDRESSES);
        if self.path.proven() {
            let direct = self.path.direct().expect("what is proven is known");
            assert!(self.live.contains_key(&direct), "{direct} showed no life");
            assert!(self.path.book().get(direct).is_some(), "what is in use is in the book");
        }
        match self.path.choose(self.relay, false) {
            Choice::Direct(_) => assert!(!self.path.relay_only && (self.path.proven() || !self.relay)),
            Choice::Relay => assert!(self.relay),
            Choice::None => assert!(!self.relay),
        }
    }
}

/// A series of operations on one path.
pub fn path(input: &[u8]) {
    if let Some(message) = Message::parse(input) {
        assert_eq!(
            Message::parse(&message.to_bytes()).as_ref(),
            Some(&message),
            "what is read can be written"
        );
        let own = [Candidate::new(addr(0), CandidateKind::Lan)];
        assert!(message.candidates.iter().filter(|c| acceptable(c, &own)).all(|c| c.addr.port() != 0));
    }
    let mut input = Input::new(input);
    let flags = input.u8();
    let mut rig = Rig {
        now: Instant::now(),
        path: Path::default(),
        tokens: 0,
        sent: Vec::new(),
        live: BTreeMap::new(),
        active: flags & 1 == 0,
        relay: flags & 2 == 0,
    };
    rig.path.relay_only = flags & 28 == 28;
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        let (op, pick) = (input.u8(), input.u8());
        let (now, at) = (rig.now, addr(pick));
        match op % 12 {
            0 => rig.now += Duration::from_millis(u64::from(pick) * 8),
            1 => rig.now += Duration::from_secs(u64::from(pick)),
            2 => {
                let arrival = Arrival { fresh: op & 16 != 0, probe: op & 32 != 0, fallback: rig.relay };
                rig.live.insert(at, now);
                rig.path.direct_in(now, at, arrival);
            }
            3 => {
                let back = usize::from(pick) + 1;
                if let Some((token, to, _)) = rig.sent.len().checked_sub(back).map(|at| rig.sent[at]) {
                    rig.live.insert(to, now);
                    rig.path.pong(now, token, (op & 16 != 0).then_some(to));
                }
            }
            4 => drop(rig.path.pong(now, u64::MAX - u64::from(pick), Some(at))),
            5 => drop(rig.path.sent_directly(now)),
            6 => match op & 48 {
                0 => rig.path.relayed_in(now),
                16 => drop(rig.path.unheard(now)),
                32 => rig.path.doubt(now),
                _ => rig.path.reset(),
            },
            7 => drop(rig.path.unreachable(now)),
            8 => {
                let list: Vec<Candidate> = (0..op / 12).map(|n| Candidate::guessed(addr(pick ^ n))).collect();
                if op & 16 == 0 { rig.path.set_routes(&list) } else { rig.path.set_candidates(&list) }
            }
            9 => match op & 16 {
                0 => rig.path.contacted_by_relay(now),
                _ => {
                    rig.live.insert(at, now);
                    rig.path.contacted_directly(now, at);
                }
            },
            10 => match op & 48 {
                0 => rig.path.changed(now),
                16 => rig.path.race(now),
                32 => rig.path.race_after(now, Duration::from_millis(pick.into())),
                _ => rig.active = pick & 1 == 0,
            },
            _ => rig.path.learn(at),
        }
        rig.run_timers();
        rig.check();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilot_proto::path::predict::{PeerNat, Range};

    #[test]
    fn a_message_of_the_corpus_is_read() {
        let message = Message {
            answer: false,
            deaf: true,
            round: 1,
            generation: 2,
            nat: PeerNat::Predictable,
            range: Some(Range { first: 40_000, count: 64, stride: 1 }),
            candidates: (0..3).map(|n| Candidate::new(addr(n), CandidateKind::Lan)).collect(),
        };
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/path/message");
        assert_eq!(std::fs::read(file).ok(), Some(message.to_bytes()));
    }
}
