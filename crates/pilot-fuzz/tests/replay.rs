//! Replays every corpus through its target.

use std::path::Path;

#[test]
fn every_target_survives_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in pilot_fuzz::TARGETS {
        let dir = corpus.join(name);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut count = 0;
        for file in files {
            let path = file.expect("directory entry").path();
            let input = std::fs::read(&path).expect("corpus file");
            println!("{}", path.display());
            target(&input);
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_target_survives_mutations_of_its_corpus() {
    // A cheap stand-in for the fuzzer that runs everywhere: flips, cuts and splices, from a fixed seed.
    const SEED: u64 = 0x5EED_0001;
    let mut state = SEED;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    println!("seed {SEED:#x}");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in pilot_fuzz::TARGETS {
        let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(corpus.join(name))
            .expect("corpus directory")
            .map(|f| std::fs::read(f.expect("directory entry").path()).expect("corpus file"))
            .collect();
        inputs.sort();
        // State machines take longer than parsers.
        let rounds = if ["stream", "engine", "registry"].contains(name) { 300 } else { 2_000 };
        for _ in 0..rounds {
            let mut input = inputs[next() % inputs.len()].clone();
            for _ in 0..1 + next() % 4 {
                match next() % 4 {
                    _ if input.is_empty() => input.push(next() as u8),
                    0 => {
                        let at = next() % input.len();
                        input[at] ^= 1 << (next() % 8);
                    }
                    1 => input.truncate(next() % input.len()),
                    2 => {
                        let at = next() % input.len();
                        input[at] = [0, 0xFF, 0x7F, 0x80][next() % 4];
                    }
                    _ => {
                        let other = &inputs[next() % inputs.len()];
                        let at = next() % (other.len() + 1);
                        input.extend_from_slice(&other[at..]);
                    }
                }
            }
            target(&input);
        }
    }
}
