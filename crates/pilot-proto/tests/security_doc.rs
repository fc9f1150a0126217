//! What docs/security.md says is true of the tree: the tests it names exist, and secrets have no weak source.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `[`name`](../path)` of a line.
fn links(line: &str) -> Vec<(&str, &str)> {
    let parts = line.split("[`").skip(1);
    parts
        .filter_map(|part| {
            part.split_once("`](../").and_then(|(name, rest)| Some((name, rest.split_once(')')?.0)))
        })
        .collect()
}

#[test]
fn every_attack_has_a_test_and_every_test_named_exists() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let (_, tables) = text.split_once("## Attacks and the tests that make them").unwrap();
    let (tables, _) = tables.split_once("\n## ").unwrap();
    let (mut rows, mut named) = (0, 0);
    for line in tables.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |")) {
        rows += 1;
        let links = links(line);
        assert!(!links.is_empty(), "no test is named: {line}");
        for (name, path) in links {
            named += 1;
            let source = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            let (before, _) =
                source.split_once(&format!("fn {name}(")).unwrap_or_else(|| panic!("{path} has no {name}"));
            // The attribute stands right before it: comments, other attributes and words of the signature may come between.
            let head = before.rsplit("}\n").next().unwrap_or_default();
            assert!(head.contains("#[test]") || head.contains("#[tokio::test"), "{path}: {name} is no test");
        }
    }
    // The attack cases and the history that must be covered.
    assert!(rows >= 34 && named >= rows, "{rows} rows, {named} tests");
}

#[test]
fn no_product_crate_depends_on_a_weak_generator() {
    let development_only =
        ["pilot-sim", "pilot-fuzz", "pilot-netlab", "pilot-flood", "pilot-refmodel", "xtask"];
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap();
        if development_only.contains(&dir.file_name().to_str().unwrap()) {
            continue;
        }
        let Ok(manifest) = std::fs::read_to_string(dir.path().join("Cargo.toml")) else { continue };
        seen += 1;
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let weak = [
                "rand",
                "fastrand",
                "oorandom",
                "nanorand",
                "tinyrand",
                "rand_xorshift",
                "rand_pcg",
                "wyrand",
            ];
            let product = section.ends_with("dependencies]")
                && !section.contains("dev-")
                && !section.contains("build-");
            assert!(!(product && weak.contains(&name)), "{}: {line}", dir.path().display());
        }
    }
    assert!(seen >= 6, "{seen} crates");
}
