//! `--name value` pairs, and random numbers without a dependency.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// Longest job, seconds: whatever goes wrong, a flood ends.
const MAX_SECS: u64 = 900;

pub struct Options(BTreeMap<String, String>);

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut found = BTreeMap::new();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").ok_or_else(|| format!("{arg:?} is no --name"))?;
            let value = args.next().ok_or_else(|| format!("--{name} needs a value"))?;
            found.insert(name.to_owned(), value);
        }
        Ok(Options(found))
    }

    pub fn get<T: FromStr>(&self, name: &str) -> Result<T, String> {
        let text = self.0.get(name).ok_or_else(|| format!("--{name} is missing"))?;
        text.parse().map_err(|_| format!("--{name}: {text:?} is not understood"))
    }

    pub fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        if self.0.contains_key(name) { self.get(name) } else { Ok(default) }
    }

    pub fn secs(&self) -> Result<Duration, String> {
        Ok(Duration::from_secs(self.get::<u64>("secs")?.min(MAX_SECS)))
    }
}

/// xorshift64*: floods need many different bytes, not unpredictable ones.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.next().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}
