//! `make security`: attacks on a real Forrest, from inside real guests and from outside.
//!
//! Each row of the table is an attack that was really made, with what the host saw of it. `guests` has
//! those by root in a guest (the scripts are in `attacks/`), `egress` what a guest reaches over the network,
//! `endpoint` attacks by strangers on the network, `program` those that need neither, `aftermath` looks at
//! what is left; `measure` is the host's view.

mod aftermath;
mod egress;
mod endpoint;
mod guests;
mod measure;
mod program;
mod report;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use forrest_testbed::{MachinePlan, Plan, Testbed};

use report::Report;

/// How long each parser is fuzzed where nothing else is said, in seconds.
const FUZZ_S: u32 = 10;

/// Attacks a real Forrest, from inside real guests and from outside, and says what came of each.
///
/// Exits with 1 where an attack was not contained.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  make security\n  make security PARTS=\"webhook guests\""
)]
struct Args {
    /// What to attack; everything, where nothing is named
    parts: Vec<Part>,
}

/// A part that can be attacked by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How the program is built
    Binary,
    /// Every parser of foreign bytes, for FUZZ_SECONDS (10) each
    Fuzz,
    /// The webhook endpoint
    Webhook,
    /// Floods and hostile disks by root in a guest
    Guests,
    /// What a guest reaches over the network
    Egress,
    /// What a whole demo leaves behind
    Demo,
    /// The part of `egress` that has a network of its own
    #[value(name = egress::INSIDE, hide = true)]
    Inside,
}

fn main() -> ExitCode {
    let Args { parts } = Args::parse();
    let inside = parts == [Part::Inside];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("could not start the asynchronous runtime").and_then(|runtime| {
        let result = runtime.block_on(async {
            // What was seen in there is told by who has started it.
            if inside { egress::inside().await.map(|()| 0) } else { attack(&parts).await }
        });
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(harm) => {
            eprintln!("security: {harm} attacks were NOT contained");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("security: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the attacks of these parts, or all; returns how many did harm.
async fn attack(parts: &[Part]) -> Result<usize> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let root = forrest_testbed::repository_root();
    let forrest = forrest_testbed::forrest_program()?;
    let path = root.join("target/security/report.json");
    let mut report = Report::default();
    let result = async {
        if wanted(Part::Binary) {
            program::hardening(&mut report, &forrest);
        }
        if wanted(Part::Fuzz) {
            program::fuzz(&mut report, &root, fuzz_seconds()?)?;
        }
        if wanted(Part::Webhook) || wanted(Part::Guests) {
            live(&mut report, &root, &forrest, wanted(Part::Webhook), wanted(Part::Guests)).await?;
        }
        if wanted(Part::Egress) {
            egress::attack(&mut report, &root)?;
        }
        if wanted(Part::Demo) {
            aftermath::of_demo(&mut report, &root, &forrest);
        }
        Ok(())
    }
    .await;
    // Also where it broke off: what was seen until then was seen.
    report.write(&path)?;
    println!("\n{}", report.table());
    println!("The same for programs: {}", path.display());
    result.map(|()| report.harm())
}

fn fuzz_seconds() -> Result<u32> {
    match std::env::var("FUZZ_SECONDS") {
        Err(_) => Ok(FUZZ_S),
        Ok(text) => text.parse().with_context(|| format!("FUZZ_SECONDS={text} is no number")),
    }
}

/// Attacks on a running daemon.
async fn live(
    report: &mut Report,
    root: &Path,
    forrest: &Path,
    webhook: bool,
    from_guests: bool,
) -> Result<()> {
    let dir = root.join("target/security/forrest");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("could not empty {}", dir.display()))?;
    }
    let victim = |name: &str| {
        MachinePlan::new(name).with(&format!("disk: {}", guests::DISK)).with("snapshot: true")
    };
    let short = victim(guests::SHORT).with(&format!("job_timeout: {}", guests::SHORT_TIMEOUT));
    let mut plan = Plan::new(root, &dir, forrest);
    if from_guests {
        plan = plan.with(victim(guests::VICTIM)).with(short);
        if !plan.guest_image.is_file() {
            bail!("{} is missing: `make image` builds it", plan.guest_image.display());
        }
    } else {
        // No guest of it is ever started.
        plan = plan.with(MachinePlan::new(guests::VICTIM));
        plan.guest_image = dir.with_file_name("hangs.raw");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(&plan.guest_image, forrest_testbed::hanging_image())?;
    }
    let mut testbed = Testbed::start(plan).await?;
    if webhook {
        endpoint::attack(report, &testbed).await;
    }
    if from_guests {
        guests::wait_for_snapshots(&testbed).await?;
        guests::floods(report, &testbed).await?;
        guests::hostile_disks(report, &testbed, root).await?;
        aftermath::look(report, &testbed).await;
    }
    testbed.stop_daemon().await
}
