//! Builds every broken build of the product and runs worlds until an invariant notices.
//!
//! `pilot-sim-mutants [NAME...]`: those whose names contain one of the texts, or all. The copy of the source and its
//! build are below the target directory, in `mutants/`. Exit code 1 if one survives.

use pilot_sim::mutants::{Mutant, all, root};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Seeds within which a mutant must be noticed.
const SEEDS: u64 = 2000;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(survivors) => {
            println!("{survivors} broken builds were not noticed as they should be");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("pilot-sim-mutants: {why}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<usize, String> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut mutants = all()?;
    mutants.retain(|m| wanted.is_empty() || wanted.iter().any(|text| m.name.contains(text)));
    if mutants.is_empty() {
        return Err(format!("no mutant is called like {wanted:?}"));
    }
    let base = target()?.join("mutants");
    let copy = base.join("source");
    let _ = std::fs::remove_dir_all(&copy);
    copy_tree(&root(), &copy)?;
    let mut survivors = 0;
    for mutant in &mutants {
        let path = copy.join(&mutant.file);
        let source = read(&path)?;
        std::fs::write(&path, mutant.apply(&source)?).map_err(|e| format!("{}: {e}", path.display()))?;
        let begun = Instant::now();
        let verdict = build(&copy, &base).and_then(|binary| try_seeds(&binary));
        std::fs::write(&path, source).map_err(|e| format!("{}: {e}", path.display()))?;
        let verdict = verdict.map_err(|e| format!("mutant {}: {e}", mutant.name))?;
        survivors += usize::from(!report(mutant, verdict, begun));
    }
    println!("{} broken builds, {survivors} not noticed within {SEEDS} seeds", mutants.len());
    Ok(survivors)
}

/// Prints what became of a mutant; false: it survived, or something else noticed it than what should.
fn report(mutant: &Mutant, verdict: Option<(u64, String, String)>, begun: Instant) -> bool {
    let took = begun.elapsed().as_secs();
    match verdict {
        Some((seed, violation, text)) => {
            let right = mutant.violates.contains(&violation);
            let note = if right { "" } else { " (NOT what should notice it)" };
            println!("{}: seed {seed} of 0..{SEEDS}, {violation}{note}: {text} ({took} s)", mutant.name);
            right
        }
        None => {
            println!("{}: SURVIVED ({took} s)", mutant.name);
            false
        }
    }
}

/// The target directory this binary lies in: `target/release/pilot-sim-mutants`.
fn target() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("where this binary is: {e}"))?;
    own.ancestors().nth(2).map(Path::to_owned).ok_or_else(|| "not in a target directory".to_owned())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Copies manifests and sources.
fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |what: &Path, e: std::io::Error| format!("{}: {e}", what.display());
    std::fs::create_dir_all(to.join("crates")).map_err(|e| failed(to, e))?;
    for file in ["Cargo.toml", "Cargo.lock"] {
        std::fs::copy(from.join(file), to.join(file)).map_err(|e| failed(&from.join(file), e))?;
    }
    copy_folder(&from.join("crates"), &to.join("crates"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", from.display());
    std::fs::create_dir_all(to).map_err(|e| format!("{}: {e}", to.display()))?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

/// Builds the simulation of the copy; quick to build rather than quick to run.
fn build(copy: &Path, base: &Path) -> Result<PathBuf, String> {
    let target = base.join("build");
    let status = Command::new(env!("CARGO"))
        .current_dir(copy)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--offline",
            "--release",
            "-p",
            "pilot-sim",
            "--bin",
            "pilot-sim",
        ])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("RUSTFLAGS", "-A warnings")
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if status.success() { Ok(target.join("release/pilot-sim")) } else { Err("does not build".into()) }
}

/// Runs seeds until a violation: the seed, the violation's name, and its text.
fn try_seeds(binary: &Path) -> Result<Option<(u64, String, String)>, String> {
    let out = Command::new(binary)
        .args(["--seeds", &format!("0..{SEEDS}"), "--first"])
        .output()
        .map_err(|e| format!("{}: {e}", binary.display()))?;
    let out = String::from_utf8_lossy(&out.stdout);
    let Some(line) = out.lines().find_map(|line| line.strip_prefix("FIRST ")) else {
        return if out.contains(&format!("{SEEDS} seeds, 0 failed")) {
            Ok(None)
        } else {
            Err("the run was cut short".into())
        };
    };
    let mut parts = line.splitn(3, ' ');
    let seed = parts.next().and_then(|s| s.parse().ok()).ok_or("no seed")?;
    let (name, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Ok(Some((seed, name.to_owned(), text.to_owned())))
}
