//! The grid as pages of the documentation.

use crate::kinds::Cell;
use crate::places::Outcome;
use pilot_netlab::Site;
use std::path::Path;

const OURS: &str = "# Which networks connect

Written by `cargo xtask netlab grid`; do not edit. Our daemon on both sides; towards a reference 1.18.0:
[nat-grid-reference.md](nat-grid-reference.md).
";

const REFERENCE: &str = "# Which networks connect our daemon to a reference 1.18.0

Written by `cargo xtask netlab grid --reference`; do not edit. Our daemon asks (row), a reference daemon answers (column);
among ours: [nat-grid.md](nat-grid.md).
";

const METHOD: &str = "
A rendezvous of ours on the Internet, 10 ms from each place to the Internet: 20 ms there and back from a place to registry and
beacon, 40 ms between two places, directly or relayed. Trust is in place; there is no tunnel, and no name is cached. The row
asks, the column answers: a client asks its daemon for the address of a name, opens a stream to an application there, and writes;
from then on both sides talk every 25 ms.

Each cell: the time from the question for the name to the first byte at the other application (4 round trips are 160 ms);
the path, and the time, from the same beginning, until both daemons had it: looked at every 25 ms. `relay`: neither left it
within 4 s. Names in brackets: from where the direct address in use is known, first how the row sees the column. Starting
`pilotctl` is not included. Unless the command says otherwise the build is unoptimised, and one pair is measured at a time.
";

/// Writes docs/nat-grid.md: our daemons among themselves, and in special places.
pub fn write_ours(kinds: &[Site], grid: &[Vec<Cell>], places: &[Outcome]) {
    let mut page = format!("{OURS}{METHOD}{}", table(kinds, grid));
    page.push_str("\nPlaces that are more than a NAT:\n\n| pair | result |\n|---|---|\n");
    places.iter().for_each(|o| page.push_str(&format!("| {} | {} |\n", o.name, place(&o.cell))));
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

/// The grid as a table in Markdown.
pub fn table(kinds: &[Site], grid: &[Vec<Cell>]) -> String {
    let names = kinds.iter().map(|k| format!(" {} |", k.name())).collect::<String>();
    let mut table = format!("\n| from \\ to |{names}\n|---|{}\n", "---|".repeat(kinds.len()));
    for (kind, row) in kinds.iter().zip(grid) {
        let cells = row.iter().map(|cell| format!(" {} |", short(cell))).collect::<String>();
        table.push_str(&format!("| {} |{cells}\n", kind.name()));
    }
    table
}

fn short(cell: &Cell) -> String {
    match cell {
        Ok(found) => {
            let first = found.first_byte.as_millis();
            match found.wanted {
                Some(direct) => format!("{first} ms, direct after {} ms", direct.as_millis()),
                None => format!("{first} ms, {}", found.ways[0].path),
            }
        }
        Err(why) => format!("**no**: {}", why.replace('|', "/").replace('\n', " ")),
    }
}

/// A cell with the addresses that won.
pub fn place(cell: &Cell) -> String {
    let Ok(found) = cell else { return short(cell) };
    let [here, there] = found.ways.each_ref().map(|way| way.kind.clone().unwrap_or_else(|| way.path.clone()));
    format!("{} ({here}, {there})", short(cell))
}
