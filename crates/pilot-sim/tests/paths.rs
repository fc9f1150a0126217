//! Small worlds for the way between nodes. The gate runs 10,000 (`scripts/test.sh`).

use pilot_sim::paths;

/// Seeds of every kind of world, and those that once found something: a path that worked one way only (8, 109), a relayed node
/// whose NAT forgot it while it only listened (6, 10, 161), a peer that was called too late (300), losses that probes hid from the
/// sender (348, 1028, 3744, 3932), an address that changed after the beacon had been asked for it (6215).
const SEEDS: [u64; 35] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 37, 38, 39, 44, 47, 93, 109, 161,
    209, 300, 348, 1028, 3744, 3932, 6215,
];

#[test]
fn nodes_connect_go_direct_and_come_back() {
    let mut failed = Vec::new();
    for seed in SEEDS {
        if let (_, Err(why)) = paths::run(seed, false) {
            failed.push(format!("seed {seed}: {why}; replay: pilot-sim --paths --seed {seed} --trace"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_seed_is_one_world_to_the_byte() {
    assert_eq!(paths::run(109, false), paths::run(109, false));
}
