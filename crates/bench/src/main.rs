//! `make bench`: Forrest's figures, measured in one run on one machine.
//!
//! Nothing is asserted here: these machines are noisy. The table names each figure's goal beside what was
//! measured, and `target/bench/report.json` has the same for programs.

mod clones;
mod compile;
mod containment;
mod daemon;
mod figures;
mod forks;
mod guests;
mod webhooks;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use figures::Figures;

/// Measures Forrest's figures, and says beside each what its goal is.
///
/// Measure on a quiet machine: whatever else it does shows in the figures.
#[derive(Debug, Parser)]
#[command(version, after_help = "Examples:\n  make bench\n  make bench ONLY=\"guests clones\"")]
struct Args {
    /// What to measure; everything, where nothing is named
    parts: Vec<Part>,
}

/// A part that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Decisions a second, with 10,000 jobs
    Core,
    /// Forks of disk images, with each storage driver
    Forks,
    /// From a webhook to QEMU's start, and what the daemon and the supervisors take
    Daemon,
    /// Webhooks a second
    Webhooks,
    /// Cold and restored starts, stage by stage
    Guests,
    /// 20 clones of one snapshot at once
    Clones,
    /// The same work in a cold and in a restored guest
    Compile,
    /// Start times and throughput with the filter and without
    Containment,
}

fn main() -> ExitCode {
    let Args { parts } = Args::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let measured =
        runtime.context("could not start the asynchronous runtime").and_then(|runtime| {
            let measured = runtime.block_on(measure(&parts));
            runtime.shutdown_background();
            measured
        });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(parts: &[Part]) -> Result<()> {
    let place = Place::find()?;
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let mut figures = Figures::default();
    if wanted(Part::Core) {
        figures.merge(core(&place)?);
    }
    if wanted(Part::Forks) {
        forks::measure(&place, &mut figures)?;
    }
    if wanted(Part::Daemon) {
        daemon::measure(&place, &mut figures).await?;
    }
    if wanted(Part::Webhooks) {
        webhooks::measure(&place, &mut figures).await?;
    }
    if wanted(Part::Guests) {
        guests::measure(&place, &mut figures).await?;
    }
    if wanted(Part::Clones) {
        clones::measure(&place, &mut figures).await?;
    }
    if wanted(Part::Compile) {
        compile::measure(&place, &mut figures).await?;
    }
    if wanted(Part::Containment) {
        containment::measure(&place, &mut figures).await?;
    }
    let path = place.dir.join("report.json");
    figures.write(&path)?;
    println!("\n{}", figures.table());
    println!("The same for programs: {}", path.display());
    Ok(())
}

/// Where things are.
#[derive(Debug)]
pub struct Place {
    /// Forrest's source.
    pub root: PathBuf,
    /// For reports and scratch files.
    pub dir: PathBuf,
    /// The `forrest` that was built together with this program.
    pub forrest: PathBuf,
}

impl Place {
    fn find() -> Result<Self> {
        let root = std::env::current_dir()
            .ok()
            .filter(|dir| dir.join("contrib/templates/generic").is_dir())
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        let dir = root.join("target/bench");
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("could not create {}", dir.display()))?;
        let own = std::env::current_exe().context("where is this program?")?;
        let forrest = own.with_file_name("forrest");
        ensure!(forrest.is_file(), "{} is missing: build it, too", forrest.display());
        Ok(Self { root, dir, forrest })
    }

    /// An empty directory for one measurement.
    ///
    /// # Errors
    /// Where it cannot be emptied or made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// The core's figures, which the simulation measures.
fn core(place: &Place) -> Result<Figures> {
    println!("The core ...");
    let program = place.forrest.with_file_name("forrest-simulate");
    let output = std::process::Command::new(&program)
        .arg("bench")
        .output()
        .with_context(|| format!("could not run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let values: std::collections::BTreeMap<String, f64> = serde_json::from_slice(&output.stdout)?;
    let mut figures = Figures::default();
    for (name, value) in values {
        figures.add(&name, value);
    }
    Ok(figures)
}
