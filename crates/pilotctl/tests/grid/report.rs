//! The grid as a page of the documentation.

use pilot_netlab::Site;
use std::fmt;
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

const OURS: &str = "# Which networks connect

Written by `cargo xtask netlab grid`; do not edit. Our daemon on both sides; towards a reference 1.18.0:
[nat-grid-reference.md](nat-grid-reference.md).
";

const REFERENCE: &str = "# Which networks connect our daemon to a reference 1.18.0

Written by `cargo xtask netlab grid --reference`; do not edit. Our daemon asks (row), a reference daemon answers (column);
among ours: [nat-grid.md](nat-grid.md).
";

const METHOD: &str = "
A rendezvous of ours on the Internet, 10 ms from each place to the Internet (40 ms there and back between two places). Trust is in
place; there is no tunnel, and no NAT has a mapping. The row asks, the column answers: `pilotctl ping NAME --count 1` opens a
stream to the echo service.

Each cell: the time from the start of that command to its end with the first answer, and the path; `direct after` is the time
until a later ping came directly; `relay` means that none did within 5 s. The build is unoptimised, and a new process
starts for each ping.
";

/// Writes docs/nat-grid.md: our daemons among themselves, and in special places.
pub fn write_ours(kinds: &[Site], grid: &[Vec<Cell>], special: &[(&str, Cell)]) {
    let mut page = format!("{OURS}{METHOD}{}", table(kinds, grid));
    page.push_str("\nPlaces that are more than a NAT:\n\n| pair | result |\n|---|---|\n");
    special.iter().for_each(|(name, cell)| page.push_str(&format!("| {name} | {cell} |\n")));
    page.push_str("\nThe kinds:\n\n");
    kinds.iter().for_each(|k| page.push_str(&format!("- {}: {}\n", k.name(), k.description())));
    write("nat-grid.md", &page);
}

/// Writes docs/nat-grid-reference.md: our daemon asking a reference.
pub fn write_reference(kinds: &[Site], grid: &[Vec<Cell>]) {
    write("nat-grid-reference.md", &format!("{REFERENCE}{METHOD}{}", table(kinds, grid)));
}

fn write(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    std::fs::write(&path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn table(kinds: &[Site], grid: &[Vec<Cell>]) -> String {
    let names = kinds.iter().map(|k| format!(" {} |", k.name())).collect::<String>();
    let mut table = format!("\n| from \\ to |{names}\n|---|{}\n", "---|".repeat(kinds.len()));
    for (kind, row) in kinds.iter().zip(grid) {
        let cells = row.iter().map(|cell| format!(" {cell} |")).collect::<String>();
        table.push_str(&format!("| {} |{cells}\n", kind.name()));
    }
    table
}
