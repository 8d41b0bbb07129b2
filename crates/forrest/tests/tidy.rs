//! House rules, enforced like any other property.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The most lines of a source file: beyond that it holds more than one thing.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The workspace's own crates that a crate depends on, tests aside.
fn dependencies(crate_dir: &str) -> Vec<String> {
    let manifest = root().join("crates").join(crate_dir).join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    let section = text.split("[dependencies]").nth(1).expect("dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| name.starts_with("forrest") || *name == "github-sim")
        .map(str::to_owned)
        .collect()
}

#[test]
fn dependencies_go_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("core", &[] as &[&str]),
        ("config", &["forrest-core"]),
        ("github", &["forrest-core"]),
        ("images", &["forrest-core"]),
        ("confine", &["forrest-core"]),
        ("vm", &["forrest-core", "forrest-confine"]),
        (
            "daemon",
            &[
                "forrest-core",
                "forrest-config",
                "forrest-confine",
                "forrest-github",
                "forrest-images",
                "forrest-vm",
            ],
        ),
        ("forrest", &["forrest-core", "forrest-config", "forrest-daemon"]),
        ("github-sim", &[]),
    ]
    .into();
    for (name, allowed) in allowed {
        for dependency in dependencies(name) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not know {dependency}");
        }
    }
}

#[test]
fn the_core_is_pure() {
    let mut files = Vec::new();
    sources(&root().join("crates/core/src"), &mut files);
    let impure = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "SystemTime",
        "Instant",
        "tokio",
        "HashMap",
        "HashSet",
        "std::env",
        "std::io",
    ];
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let found = impure.iter().find(|word| line.contains(*word));
            assert!(found.is_none(), "{}: {:?} in the core: {line}", file.display(), found);
        }
    }
}

#[test]
fn files_hold_one_thing_each() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let vague = ["util", "utils", "common", "helpers", "misc"];
        assert!(!vague.contains(&name), "{}: what does it hold?", file.display());
    }
}

#[test]
fn lints_are_expected_not_allowed() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    let attribute = ["#[", "allow("].concat();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        assert!(!text.contains(&attribute), "{}: use #[expect(…)]", file.display());
    }
}
