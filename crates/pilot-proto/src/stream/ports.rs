//! Ephemeral ports (spec 03 section 4).

use crate::wire::packet::port::EPHEMERAL_FIRST;

/// Ephemeral ports: 49152 to 65535.
const COUNT: usize = 16_384;

/// Which ports are taken. Allocation goes round, from a random start.
#[derive(Debug)]
pub(super) struct Ports {
    taken: Vec<u64>,
    next: usize,
}

impl Ports {
    pub(super) fn new(random: u32) -> Ports {
        Ports { taken: vec![0; COUNT / 64], next: random as usize % COUNT }
    }

    /// Takes the next free port.
    pub(super) fn take(&mut self) -> Option<u16> {
        for step in 0..COUNT {
            let index = (self.next + step) % COUNT;
            let (word, bit) = (index / 64, 1u64 << (index % 64));
            if self.taken[word] & bit == 0 {
                self.taken[word] |= bit;
                self.next = (index + 1) % COUNT;
                return Some(EPHEMERAL_FIRST + index as u16);
            }
        }
        None
    }

    pub(super) fn release(&mut self, port: u16) {
        if let Some(index) = port.checked_sub(EPHEMERAL_FIRST).map(usize::from) {
            self.taken[index / 64] &= !(1 << (index % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_goes_round_and_ends_when_all_are_taken() {
        let mut ports = Ports::new(COUNT as u32 * 7 + 16_383);
        assert_eq!(ports.take(), Some(65_535));
        assert_eq!(ports.take(), Some(49_152));
        for _ in 2..COUNT {
            assert!(ports.take().is_some());
        }
        assert_eq!(ports.take(), None);
        ports.release(50_000);
        assert_eq!(ports.take(), Some(50_000));
    }
}
