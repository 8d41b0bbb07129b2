//! Attacks that need no guest: fuzzed parsers, and what the binary itself offers to an attacker.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::report::Report;

/// Whether the program is built so that a memory error is hard to make use of.
pub fn hardening(report: &mut Report, forrest: &Path) {
    report.add_result("binary: code at fixed places, writable tables", elf(forrest));
}

fn elf(forrest: &Path) -> Result<(bool, String)> {
    let read = |flag: &str| -> Result<String> {
        let output = Command::new("readelf")
            .args([flag, "--wide"])
            .arg(forrest)
            .output()
            .context("readelf is missing (Debian: binutils)")?;
        ensure!(output.status.success(), "readelf cannot read {}", forrest.display());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (header, segments, dynamic) = (read("-h")?, read("-l")?, read("-d")?);
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap_or_default();
    let wx = segments.lines().filter(|line| line.contains("LOAD") && line.contains("RWE")).count();
    let facts = [
        ("PIE", header.contains("DYN (Position-Independent Executable file)")),
        ("RELRO", segments.contains("GNU_RELRO")),
        ("bound at start", dynamic.contains("BIND_NOW") || dynamic.contains("NOW")),
        ("no executable stack", stack.contains("RW ") && !stack.contains("RWE")),
        ("nothing both writable and executable", wx == 0),
    ];
    let missing: Vec<&str> = facts.iter().filter(|fact| !fact.1).map(|fact| fact.0).collect();
    let evidence = match missing.as_slice() {
        [] => facts.map(|fact| fact.0).join(", "),
        missing => format!("missing: {}", missing.join(", ")),
    };
    Ok((missing.is_empty(), evidence))
}

/// Every parser of strangers' bytes, for some seconds each.
///
/// # Errors
/// Where the fuzzer cannot be built or started.
pub fn fuzz(report: &mut Report, root: &Path, seconds: u32) -> Result<()> {
    eprintln!("Every parser is fuzzed for {seconds} s ...");
    let output = Command::new(root.join("tools/fuzz"))
        .args(["--seconds", &seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("could not start tools/fuzz")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut total = 0_u64;
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (target, runs) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let coverage = fields.next().unwrap_or_default();
        let runs: u64 = runs.parse().unwrap_or_default();
        let found = std::fs::read_dir(root.join("target/fuzz/found").join(target));
        let found = found.map_or(0, Iterator::count);
        total += runs;
        let evidence = format!("{runs} inputs, {found} did harm ({coverage})");
        report.add(format!("fuzz: {target}"), found == 0 && runs > 0, evidence);
    }
    ensure!(total > 0, "tools/fuzz fuzzed nothing ({})", output.status);
    eprintln!("    {total} inputs in all");
    Ok(())
}
