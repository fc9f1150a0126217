//! The broken builds still can be made: `cargo run --release -p pilot-sim --bin pilot-sim-mutants` makes and runs them.

use pilot_sim::mutants::{all, root};

#[test]
fn the_text_of_every_mutant_occurs_once_in_the_file_it_changes() {
    let mutants = all().unwrap_or_else(|why| panic!("{why}"));
    assert!(mutants.len() >= 10, "only {} mutants", mutants.len());
    for mutant in &mutants {
        let path = root().join(&mutant.file);
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let changed = mutant.apply(&source).unwrap_or_else(|why| panic!("{why}"));
        assert_ne!(changed, source, "mutant {} changes nothing", mutant.name);
    }
}
