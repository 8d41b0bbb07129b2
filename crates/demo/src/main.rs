//! `make demo`: the README's diagram, played with real virtual machines against the GitHub simulator.
//!
//! The `story` queues the jobs and checks that each went as the diagram says, `stage` shows it live,
//! `report` keeps what happened, `diagram` draws it.

mod diagram;
mod report;
mod stage;
mod story;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

/// Plays the README's diagram with real virtual machines, against a stand-in for GitHub on loopback.
///
/// It takes about a minute under emulation, and needs no account. What it leaves is in target/demo.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("could not start the asynchronous runtime").and_then(|runtime| {
        let result = runtime.block_on(play());
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play() -> Result<()> {
    let root = forrest_testbed::repository_root();
    let dir = root.join("target/demo");
    let forrest = forrest_testbed::forrest_program()?;
    let report = story::play(&root, &dir, &forrest).await?;
    let path = dir.join("report.json");
    report.write(&path)?;
    println!("\n{}", diagram::draw(&report));
    println!("{}", report.table());
    println!("The same for programs: {}", relative(&path));
    println!("The daemon's log: {}", relative(&dir.join("daemon.log")));
    Ok(())
}

fn relative(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
