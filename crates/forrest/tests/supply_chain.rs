//! Where dependencies come from, under which licences, and which are not wanted. `deny.toml` says the
//! same for cargo-deny.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Licences under which Forrest may be given away together with a dependency.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    // notify, which a watch on the configuration needs: a dedication to the public.
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that are not wanted, and why.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "rustls with aws-lc is the one TLS library"),
    ("native-tls", "rustls with aws-lc is the one TLS library"),
    ("serde_yaml", "no longer maintained"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What Cargo knows of this platform, with the lock file of this package or workspace as it is.
fn metadata(directory: &str, further: &[&str]) -> Value {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .args(further)
        .current_dir(root().join(directory))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{directory}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// All packages that are built on this platform.
fn packages() -> Vec<Value> {
    metadata("", &["--offline"])["packages"].as_array().expect("packages").clone()
}

/// The fuzzing engine is a package of its own: a new dependency of a crate that it fuzzes belongs into its
/// lock file, too, or `tools/fuzz` builds nothing. `cargo metadata` in its directory brings that up to date.
#[test]
fn the_fuzzing_engines_lock_file_is_up_to_date() {
    metadata("crates/fuzz/engine", &[]);
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// Whether a licence expression (SPDX) can be satisfied: one of the alternatives of each part.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let alternatives = |part: &str| part.split(" OR ").any(|one| LICENCES.contains(&one.trim()));
    // "A AND (B OR C)" and "(A OR B) AND C": each part by itself. "A OR B AND C" is judged too strictly.
    plain.split(" AND ").all(alternatives)
}

#[test]
fn licences_sources_and_bans() {
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let mut wrong = Vec::new();
    for package in &packages {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        if !is_allowed(text(package, "license")) {
            wrong.push(format!("{name}: licence {:?}", text(package, "license")));
        }
        match package["source"].as_str() {
            None => assert!(
                text(package, "manifest_path").contains("/crates/"),
                "{name} is no crate of ours"
            ),
            Some(source) if source.starts_with("registry+") => {}
            Some(source) => {
                wrong.push(format!("{name}: comes from {source}, not from the registry"))
            }
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == text(package, "name")) {
            wrong.push(format!("{name} is not wanted: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn licence_expressions_are_understood() {
    for allowed in
        ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0"]
    {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "AGPL-3.0 OR GPL-2.0"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

/// Every package of the lock file is pinned by what it contains.
#[test]
fn every_dependency_has_a_checksum() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    for package in lock.split("[[package]]").skip(1) {
        let external = package.contains("\nsource = ");
        assert!(!external || package.contains("\nchecksum = "), "{package}");
    }
}

#[test]
fn the_release_profile_is_hardened_and_unsafe_code_forbidden() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let release = manifest.split("[profile.release]").nth(1).expect("a release profile");
    let release = release.split("\n[").next().unwrap_or_default();
    assert!(release.contains("overflow-checks = true"), "{release}");
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    for entry in std::fs::read_dir(root().join("crates")).expect("crates").flatten() {
        let path = entry.path().join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("a manifest");
        assert!(text.contains("[lints]\nworkspace = true"), "{}", path.display());
    }
}
