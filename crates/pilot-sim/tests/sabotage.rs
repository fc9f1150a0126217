//! A harness that lies is found out, and by the invariant that is meant to notice.

use pilot_sim::{Sabotage, Violation, run, run_sabotaged};

/// Seeds tried per lie: not every world gives an occasion for each.
const SEEDS: u64 = 30;

fn noticed(lie: Sabotage, violation: &Violation) -> bool {
    match lie {
        Sabotage::DeliverTwice | Sabotage::LoseChunk => {
            // The lost chunk may be the last one: then the end comes too early.
            let lost = lie == Sabotage::LoseChunk && matches!(violation, Violation::Incomplete { .. });
            matches!(violation, Violation::NotAPrefix { .. }) || lost
        }
        Sabotage::EarlyEnd => matches!(violation, Violation::Incomplete { .. }),
        Sabotage::ReuseNonce => matches!(violation, Violation::NonceRepeated { .. }),
        Sabotage::AcceptReplay => matches!(violation, Violation::FrameTwice { .. }),
        Sabotage::RepeatDatagram => matches!(violation, Violation::DatagramTwice { .. }),
        Sabotage::AlterDatagram => matches!(violation, Violation::DatagramAltered { .. }),
        Sabotage::SecretAbort => {
            matches!(violation, Violation::UnprovokedReset { .. } | Violation::FailedInCalm { .. })
        }
        Sabotage::SwallowClosed => matches!(violation, Violation::NeverEnded { .. }),
        Sabotage::KeepConnections => matches!(violation, Violation::TooMuch { .. }),
        Sabotage::NeverMend => matches!(violation, Violation::Unreachable { .. }),
    }
}

#[test]
fn each_lie_is_noticed_by_the_invariant_it_breaks() {
    for lie in Sabotage::ALL {
        let found = (0..SEEDS).find_map(|seed| run_sabotaged(seed, lie).1.err().map(|v| (seed, v)));
        let Some((seed, violation)) = found else { panic!("{lie:?}: not noticed within {SEEDS} seeds") };
        assert!(noticed(lie, &violation), "{lie:?}, seed {seed}: noticed as '{violation}'");
        assert_eq!(run(seed).1, Ok(()), "without the lie seed {seed} holds");
    }
}
