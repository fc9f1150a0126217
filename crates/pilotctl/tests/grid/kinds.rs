//! The grid: every kind of NAT towards every other, in both directions.

use crate::agents::{Agent, Make, Net};
use crate::probe::{Found, Way, measure};
use crate::{alone, report, runtime, start_anew};
use pilot_netlab::Site;
use std::time::Duration;

/// The kinds of NAT in the grid.
pub const KINDS: [Site; 7] = [
    Site::Public,
    Site::FullCone,
    Site::AddressRestricted,
    Site::PortRestricted,
    Site::Symmetric,
    Site::Predictable,
    Site::Carrier,
];

/// Which path a pair must end up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Direct,
    /// What is direct here by luck would say that the laboratory is wrong.
    Relay,
    /// At least the relay.
    Either,
}

use Path::{Direct as D, Either as E, Relay as R};

/// The row asks, the column answers; both in the order of [`KINDS`]. A symmetric NAT's random port cannot be known to whoever
/// lets in known ports only. Where both sides guess, each guess moves what the other one guesses.
pub const EXPECTED: [[Path; 7]; 7] = [
    //                       public, full cone, address-, port-restricted, symmetric, predictable, carrier
    /* public             */
    [D, D, D, D, D, D, D],
    /* full cone          */ [D, D, D, D, D, D, D],
    /* address-restricted */ [D, D, D, D, D, D, D],
    /* port-restricted    */ [D, D, D, D, R, D, D],
    /* symmetric          */ [D, D, D, R, R, R, R],
    /* predictable        */ [D, D, D, D, R, E, D],
    /* carrier            */ [D, D, D, D, R, D, D],
];

/// How long a pair may take to leave the relay before the relay is its path.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same for a pair that must leave it: another matter than the time it is meant to take.
const DIRECT_PATIENCE: Duration = Duration::from_secs(20);
/// From a place to the beacon, on to another place, and back.
const ROUND_TRIP: Duration = Duration::from_millis(40);
/// First byte: name, key exchange, stream (docs/nat-grid.md).
const FIRST_BYTE: Duration = Duration::from_millis(4 * 40);
/// What a loaded machine and a build without optimisation may add in the middle of all cells. A timer in the way, of
/// 250 ms or more, shows nevertheless.
const ALLOWANCE: Duration = Duration::from_millis(150);
/// Directly within this time, wherever no side is symmetric.
const DIRECT: Duration = Duration::from_secs(1);

pub type Cell = Result<Found, String>;

#[test]
fn every_pair_of_nats_connects_on_the_path_it_can_have() {
    let _alone = alone();
    let jobs = KINDS.len();
    let cells = grid(62, Make::Ours, jobs);
    print!("{}", report::table(&KINDS, &cells));
    assert_paths(&cells);
    let first = median(cells.iter().flatten().flatten().map(|f| f.first_byte));
    assert!(first <= FIRST_BYTE + ALLOWANCE, "half of the first bytes took more than {first:?}");
    let direct = median(cones(&cells).filter_map(|f| f.wanted));
    assert!(direct <= DIRECT, "half of the cones took more than {direct:?} to be direct");
}

#[test]
#[ignore = "writes docs/nat-grid.md: cargo xtask netlab grid"]
fn the_grid_written_down() {
    let _alone = alone();
    let cells = grid(62, Make::Ours, 1);
    let places = crate::places::all(1);
    report::write_ours(&KINDS, &cells, &places);
    assert_paths(&cells);
    crate::places::check(&places);
    for found in cells.iter().flatten().flatten() {
        assert!(found.first_byte <= FIRST_BYTE, "{:?} is more than 4 round trips", found.first_byte);
    }
    for found in cones(&cells) {
        assert!(found.wanted.is_some_and(|t| t <= DIRECT), "{found:?}");
    }
}

#[test]
#[ignore = "needs the reference; writes docs/nat-grid-reference.md: cargo xtask netlab grid --reference"]
fn the_grid_with_a_reference_written_down() {
    let _alone = alone();
    let cells = grid(64, Make::Reference, 1);
    report::write_reference(&KINDS, &cells);
    assert_connected(&cells);
}

/// Two references connect in every cell (spec 04 section 20.1), so one of ours and a reference must.
#[cfg(feature = "interop")]
#[test]
fn every_pair_of_nats_connects_with_a_reference_on_one_side() {
    let _alone = alone();
    let cells = grid(64, Make::Reference, KINDS.len());
    print!("{}", report::table(&KINDS, &cells));
    assert_connected(&cells);
}

fn assert_connected(cells: &[Vec<Cell>]) {
    let failed: Vec<_> = cells.iter().flatten().filter_map(|c| c.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

fn assert_paths(cells: &[Vec<Cell>]) {
    let mut wrong = Vec::new();
    for ((row, expected), a) in cells.iter().zip(EXPECTED).zip(KINDS) {
        for ((cell, expected), b) in row.iter().zip(expected).zip(KINDS) {
            let right = match (cell, expected) {
                (Ok(found), Path::Direct) => found.wanted.is_some(),
                (Ok(found), Path::Relay) => found.wanted.is_none(),
                (Ok(_), Path::Either) => true,
                (Err(_), _) => false,
            };
            if !right {
                wrong.push(format!("{} to {}, {expected:?}: {cell:?}", a.name(), b.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), KINDS.len().pow(2), wrong.join("\n"));
}

/// Pairs in which nobody is symmetric.
fn cones(cells: &[Vec<Cell>]) -> impl Iterator<Item = &Found> {
    let cone = |kind: &Site| !matches!(kind, Site::Symmetric | Site::Predictable);
    let rows = cells.iter().zip(KINDS).filter(move |(_, a)| cone(a));
    let pairs = rows.flat_map(move |(row, _)| row.iter().zip(KINDS).filter(move |(_, b)| cone(b)));
    pairs.filter_map(|(cell, _)| cell.as_ref().ok())
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().expect("some cells connected")
}

/// Our daemon behind every kind of NAT asks a daemon of that make behind every kind, so many pairs at a time.
fn grid(seed: u64, make: Make, jobs: usize) -> Vec<Vec<Cell>> {
    assert!(ROUND_TRIP == 4 * crate::agents::UPLINK.delay);
    let net = Net::new(seed);
    let mut agents = Vec::new();
    for (side, make, first) in [("a", Make::Ours, 0), ("b", make, 100)] {
        for (site, n) in KINDS.into_iter().zip(first..) {
            agents.push(net.agent_of(make, site, &format!("{side}-{}", site.name()), n));
        }
    }
    start_anew(&mut agents);
    let (left, right) = agents.split_at(KINDS.len());
    // All ask first: a reference takes up to a minute to answer.
    for a in left {
        right.iter().for_each(|b| a.ask_for_trust(b));
    }
    for a in left {
        for b in right {
            a.trust(b).unwrap_or_else(|e| panic!("{} and {}: {e}", a.name, b.name));
        }
    }
    start_anew(&mut agents);
    let (left, right) = agents.split_at(KINDS.len());

    let runtime = runtime();
    let mut cells: Vec<Vec<Option<Cell>>> = KINDS.map(|_| KINDS.map(|_| None).to_vec()).to_vec();
    for round in 0..KINDS.len() {
        // No agent is in two pairs at a time.
        let pairs: Vec<_> = (0..KINDS.len()).map(|row| (row, (row + round) % KINDS.len())).collect();
        for chunk in pairs.chunks(jobs) {
            std::thread::scope(|scope| {
                let running: Vec<_> = chunk
                    .iter()
                    .map(|&(row, column)| {
                        let (a, b, runtime) = (&left[row], &right[column], &runtime);
                        let expected = EXPECTED[row][column];
                        let run = move || runtime.block_on(cell(a, b, row as u16, make, expected));
                        (row, column, scope.spawn(run))
                    })
                    .collect();
                for (row, column, cell) in running {
                    let cell = cell.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    cells[row][column] = Some(cell);
                }
            });
        }
    }
    cells.into_iter().map(|row| row.into_iter().flatten().collect()).collect()
}

async fn cell(a: &Agent, b: &Agent, row: u16, make: Make, expected: Path) -> Cell {
    let patience = match (make, expected) {
        (Make::Ours, Path::Direct) => DIRECT_PATIENCE,
        _ => PATIENCE,
    };
    // How a reference sees its way is not for us to ask.
    let direct = |ways: &[Way; 2]| ways[0].direct() && (make == Make::Reference || ways[1].direct());
    measure(a, b, 2000 + row, direct, patience).await
}
