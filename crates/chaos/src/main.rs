//! `make chaos`: jobs on real virtual machines, while GitHub misbehaves and daemons and supervisors are
//! killed. Afterwards: was a job lost, killed, or run twice? Is a machine image damaged?
//!
//! A `round` is played per way to fork disks (`ground`): `jobs` says what is queued and what became of
//! it, `weather` spoils GitHub, `victims` are processes, `images` looks into every image that is left,
//! `report` adds it all up.

mod dice;
mod ground;
mod images;
mod jobs;
mod report;
mod round;
mod victims;
mod weather;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::dice::Dice;
use crate::ground::{Driver, Ground};
use crate::report::Report;

/// The most jobs: the simulator forgets finished ones beyond that.
const JOBS_MAX: u64 = 10_000;

/// Runs jobs while everything around them goes wrong, and checks that nothing is lost.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many jobs to run.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=JOBS_MAX))]
    jobs: u64,
    /// Decides what goes wrong, and when. Processes and networks have a pace of their own, so that a
    /// seed makes the same kind of trouble again, not the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How disks are forked; both, one after the other, where not given.
    #[arg(long)]
    driver: Option<Driver>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("could not start the asynchronous runtime").and_then(|runtime| {
        let result = runtime.block_on(async {
            // Whatever ends it, what it has started ends with it: see `Ground`.
            tokio::select! {
                report = play(&arguments) => report,
                signal = interrupted() => Err(signal),
            }
        });
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(report) if report.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits until somebody wants it to end.
async fn interrupted() -> anyhow::Error {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return anyhow!("could not ask for signals");
    };
    let name = tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    };
    anyhow!("interrupted by {name}: its daemon and its guests were ended")
}

async fn play(arguments: &Arguments) -> Result<Report> {
    let root = forrest_testbed::repository_root();
    let dir = root.join("target/chaos");
    std::fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    let forrest = forrest_testbed::forrest_program()?;
    let bar = ProgressBar::new(arguments.jobs);
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} {msg}")
    {
        bar.set_style(style);
    }
    let path = dir.join("report.json");
    // Whatever is there afterwards is of this time.
    let _ = std::fs::remove_file(&path);
    let mut report = Report::new(arguments.seed);
    let grounds = grounds(&dir, arguments.driver)?;
    let count = grounds.len() as u64;
    for (number, ground) in grounds.into_iter().enumerate() {
        let number = number as u64;
        // What does not divide goes to the first.
        let jobs = arguments.jobs / count + u64::from(number < arguments.jobs % count);
        let dice = Dice::new(arguments.seed.wrapping_mul(count).wrapping_add(number));
        if jobs > 0 {
            report.add(round::play(&root, &ground, &forrest, jobs, dice, &bar).await?);
            report.write(&path)?;
        }
    }
    bar.finish_and_clear();
    println!("{report}");
    println!("The same for programs: {}", path.display());
    println!("The daemons' logs: {}", dir.join("*/daemon.log").display());
    Ok(report)
}

/// Where to play: on both drivers, or on the one that is asked for.
fn grounds(dir: &Path, driver: Option<Driver>) -> Result<Vec<Ground>> {
    let drivers = driver.map_or_else(|| vec![Driver::Overlay, Driver::Reflink], |one| vec![one]);
    let mut grounds = Vec::new();
    for one in drivers {
        match Ground::prepare(dir, one) {
            Ok(ground) => grounds.push(ground),
            // Half of it is better than nothing, unless just this half was asked for.
            Err(error) if driver.is_none() && std::env::var_os("CI").is_none() => {
                eprintln!("NOT TESTED: {one:?}: {error:#}");
            }
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(!grounds.is_empty(), "there is no file system to play on");
    Ok(grounds)
}
