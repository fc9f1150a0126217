//! The grid as a page of the documentation.

use pilot_netlab::Site;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

/// What a pair achieved.
#[derive(Debug)]
pub enum Cell {
    /// It connected.
    Connected {
        /// From the start of the command to its end with the first answer of the peer's echo service.
        first_byte: Duration,
        /// The same until an answer came over the direct path.
        direct: Option<Duration>,
    },
    /// It did not, and why.
    Failed(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Connected { first_byte, direct: Some(direct) } if direct == first_byte => {
                write!(f, "{} ms, direct", first_byte.as_millis())
            }
            Cell::Connected { first_byte, direct: Some(direct) } => {
                write!(f, "{} ms, direct after {} ms", first_byte.as_millis(), direct.as_millis())
            }
            Cell::Connected { first_byte, direct: None } => write!(f, "{} ms, relay", first_byte.as_millis()),
            Cell::Failed(why) => write!(f, "**no**: {}", why.replace('|', "/").replace('\n', " ")),
        }
    }
}

const INTRODUCTION: &str = "# Which networks connect

Written by `cargo xtask netlab grid`; do not edit. Our daemon on both sides, a rendezvous on the Internet, 10 ms from
each place to the Internet (40 ms there and back between two places). Trust is in place; there is no tunnel, and no NAT has a
mapping. The row asks, the column answers: `pilotctl ping NAME --count 1` opens a stream to the echo service.

Each cell: the time from the start of that command to its end with the first answer, and the path; `direct after` is the time
until a later ping came directly; `relay` means that none did within 5 s. The build is unoptimised, and a new process
starts for each ping.
";

/// Writes docs/nat-grid.md.
pub fn write(kinds: &[Site], grid: &[Vec<Cell>], special: &[(&str, Cell)]) {
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n| from \\ to |");
    kinds.iter().for_each(|k| write!(page, " {} |", k.name()).expect("a string takes all"));
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(kinds.len()));
    for (kind, row) in kinds.iter().zip(grid) {
        write!(page, "\n| {} |", kind.name()).expect("a string takes all");
        row.iter().for_each(|cell| write!(page, " {cell} |").expect("a string takes all"));
    }
    page.push_str("\n\nPlaces that are more than a NAT:\n\n| pair | result |\n|---|---|\n");
    for (name, cell) in special {
        writeln!(page, "| {name} | {cell} |").expect("a string takes all");
    }
    page.push_str("\nThe kinds:\n\n");
    kinds
        .iter()
        .for_each(|k| writeln!(page, "- {}: {}", k.name(), k.description()).expect("a string takes all"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/nat-grid.md");
    std::fs::write(&path, page).expect("docs/nat-grid.md can be written");
}
