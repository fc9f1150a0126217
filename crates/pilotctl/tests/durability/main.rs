//! Nothing acknowledged is lost when a process is killed at a random moment. 50 kills of the rendezvous and 20 of a
//! daemon are among the normal tests; `PILOT_KILLS=500 cargo test --release -p pilotctl --test durability` makes it 500
//! and 200 (docs/verification.md). `PILOT_SEED` repeats a run's choices; the moment of a kill is as exact as the clock.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod client;
mod daemon;
mod disk;
mod load;
mod process;
mod rendezvous;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// Another generator, the same for the same state of this one.
    pub fn branch(&mut self) -> Random {
        Random(self.next_u64())
    }
}

/// The seed of this run, printed.
pub fn seed() -> Random {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = match std::env::var("PILOT_SEED") {
        Ok(text) => text.parse().expect("PILOT_SEED is a number"),
        Err(_) => now().subsec_nanos().into(),
    };
    println!("PILOT_SEED={seed}");
    Random(seed)
}

/// `PILOT_KILLS`, scaled: `normal` of 50.
pub fn kills(normal: usize) -> usize {
    let kills =
        std::env::var("PILOT_KILLS").map_or(50, |text| text.parse().expect("PILOT_KILLS is a number"));
    kills * normal / 50
}
