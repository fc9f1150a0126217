//! Broken builds of the product: a set of small changes to its source, each of which some invariant must notice.
//!
//! They lie in `mutants/`, one file each:
//!
//! ```text
//! file: crates/pilot-proto/src/tunnel/replay.rs
//! violates: FrameTwice
//! --- found
//! the text to replace, which occurs once
//! --- replaced by
//! the other text
//! ```

use std::path::{Path, PathBuf};

/// One broken build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// Its name: that of its file.
    pub name: String,
    /// The source file it changes, from the root of the repository.
    pub file: PathBuf,
    /// The invariants that may notice it first: names of [`crate::Violation`].
    pub violates: Vec<String>,
    found: String,
    replaced: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All mutants, by name.
///
/// # Errors
/// A file that cannot be read or understood; the text names it.
pub fn all() -> Result<Vec<Mutant>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    let list = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(path: &Path) -> Result<Mutant, String> {
    let wrong = |what: &str| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
    let (head, rest) = text.split_once("\n--- found\n").ok_or_else(|| wrong("no '--- found'"))?;
    let (found, replaced) =
        rest.split_once("\n--- replaced by\n").ok_or_else(|| wrong("no '--- replaced by'"))?;
    let field = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.ok_or_else(|| wrong(&format!("no '{name}:'")))
    };
    Ok(Mutant {
        name: path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default(),
        file: field("file")?.into(),
        violates: field("violates")?.split(", ").map(str::to_owned).collect(),
        found: found.to_owned(),
        replaced: replaced.trim_end_matches('\n').to_owned(),
    })
}

impl Mutant {
    /// The changed content of its file.
    ///
    /// # Errors
    /// The text to replace does not occur exactly once.
    pub fn apply(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.found).count() {
            1 => Ok(source.replace(&self.found, &self.replaced)),
            n => Err(format!("mutant {}: its text occurs {n} times in {}", self.name, self.file.display())),
        }
    }
}
