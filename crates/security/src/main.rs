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
use forrest_testbed::{MachinePlan, Plan, Testbed};

use report::Report;

/// How long each parser is fuzzed where nothing else is said, in seconds.
const FUZZ_S: u32 = 10;
/// The parts, in the order in which they are made.
const PARTS: &[&str] = &["binary", "fuzz", "webhook", "guests", "egress"];

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let inside = parts == [egress::INSIDE];
    let unknown = parts.iter().find(|part| !PARTS.contains(&part.as_str()));
    if let Some(unknown) = unknown.filter(|_| !inside) {
        eprintln!("security: {unknown:?} is none of: {}", PARTS.join(" "));
        return ExitCode::from(64);
    }
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
async fn attack(parts: &[String]) -> Result<usize> {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let root = forrest_testbed::repository_root();
    let forrest = forrest_testbed::forrest_program()?;
    let path = root.join("target/security/report.json");
    let mut report = Report::default();
    let result = async {
        if wanted("binary") {
            program::hardening(&mut report, &forrest);
        }
        if wanted("fuzz") {
            program::fuzz(&mut report, &root, fuzz_seconds()?)?;
        }
        if wanted("webhook") || wanted("guests") {
            live(&mut report, &root, &forrest, wanted("webhook"), wanted("guests")).await?;
        }
        if wanted("egress") {
            egress::attack(&mut report, &root)?;
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
