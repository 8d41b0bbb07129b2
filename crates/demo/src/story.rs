//! The three jobs of the diagram, and what has to be true of them afterwards.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use forrest_core::model::ImageRef;
use forrest_core::run::FinishedRun;
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{KEEP_DISK, MachinePlan, Plan, QueuedJob, Testbed};

use crate::report::{JobReport, Report};
use crate::stage::Stage;

/// The machine type of the diagram.
const BUILD: &str = "acme/widgets/build";
/// A machine type whose base is the machine image of [`BUILD`].
const TEST: &str = "acme/widgets/test";
/// How long one job may take, its virtual machine's boot under emulation included.
const JOB_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long a snapshot may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Plays the story in `dir`, which is emptied first.
///
/// # Errors
/// Where something could not be started, took too long, or went another way than the diagram says.
pub async fn play(root: &Path, dir: &Path, forrest: &Path) -> Result<Report> {
    let stage = Stage::open();
    if dir.exists() {
        std::fs::remove_dir_all(dir)
            .with_context(|| format!("could not empty {}", dir.display()))?;
    }
    let plan = Plan::new(root, dir, forrest)
        .with(MachinePlan::new(BUILD).with("snapshot: true"))
        .with(MachinePlan::based_on(TEST, BUILD).with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await?;
    let daemon = testbed.client().status().await?.daemon;
    stage.say(&format!(
        "A stand-in for GitHub and Forrest {} serve on loopback (guests: {}, disks: {}).",
        daemon.version, daemon.accel, daemon.fork
    ));

    let mut report = Report::default();
    let prepare = perform(
        &testbed,
        &stage,
        "a",
        BUILD,
        QueuedJob::push(
            "prepare",
            &[
                "echo \"Installing a tool\"\n\
                 printf '#!/bin/sh\\necho I was left by job a\\n' | sudo tee /usr/local/bin/tool\n\
                 sudo chmod +x /usr/local/bin/tool",
                KEEP_DISK,
            ],
        ),
    )
    .await?;
    report.jobs.push(prepare);
    wait_for_snapshots(&testbed, &stage).await?;

    let pull_request = perform(
        &testbed,
        &stage,
        "b",
        BUILD,
        QueuedJob::pull_request("pull-request", &["tool", KEEP_DISK]),
    )
    .await?;
    report.jobs.push(pull_request);
    let derived =
        perform(&testbed, &stage, "c", TEST, QueuedJob::push("derived", &["tool"])).await?;
    report.jobs.push(derived);
    stage.close();
    testbed.stop_daemon().await?;
    check(&report)?;
    Ok(report)
}

/// Queues a job, shows it, and reports how it went.
async fn perform(
    testbed: &Testbed,
    stage: &Stage,
    letter: &'static str,
    machine: &'static str,
    job: QueuedJob<'_>,
) -> Result<JobReport> {
    let line = stage.job(letter, job.name, machine, job.event);
    let id = testbed.queue(machine, job)?;
    let wanted = |status: &Status| {
        let of_job = |run: &&FinishedRun| run.job.as_ref().is_some_and(|job| job.id.0 == id.0);
        let finished = status.view.finished.iter().find(of_job).cloned();
        match (&finished, status.view.runs.iter().find(|run| run.machine.to_string() == machine)) {
            (Some(run), _) => line.reached(&run.times, run.restored),
            (None, Some(run)) => line.reached(&run.times, run.restored),
            (None, None) => {}
        }
        finished
    };
    let run = testbed.wait(JOB_TIMEOUT, &format!("the end of job ({letter})"), wanted).await?;
    let log = testbed.sim.job_log(id)?;
    let report = JobReport::new(letter, job.event, run, testbed.sim.job(id)?, &log)?;
    line.over(&report);
    Ok(report)
}

/// Waits until both machine types' guests can be restored. Where that does not come about, the
/// following jobs start cold, and the report says so.
async fn wait_for_snapshots(testbed: &Testbed, stage: &Stage) -> Result<()> {
    let line = stage.work("Forrest boots the new image once and takes snapshots of the guests");
    let settled = |status: &Status| {
        let snapshots = || status.view.machines.iter().filter_map(|m| m.snapshot.as_ref());
        let ready = snapshots().filter(|s| s.state == SnapshotState::Ready).count();
        let failed = snapshots().find_map(|s| s.trouble.clone().filter(|_| s.failures > 0));
        line.progress(ready, snapshots().count());
        match failed {
            Some(trouble) => Some(Some(trouble)),
            None => (ready == snapshots().count()).then_some(None),
        }
    };
    match testbed.wait(SNAPSHOT_TIMEOUT, "the snapshots", settled).await? {
        None => line.done("Forrest has snapshots of the booted guests"),
        Some(trouble) => line.done(&format!("no snapshots, jobs start cold: {trouble}")),
    }
    Ok(())
}

/// Whether everything went as the diagram says.
fn check(report: &Report) -> Result<()> {
    let [prepare, pull_request, derived] = report.jobs.as_slice() else {
        anyhow::bail!("there should be three jobs");
    };
    for job in &report.jobs {
        ensure!(job.conclusion == "success", "job {} ended with {}", job.name, job.conclusion);
    }
    ensure!(prepare.start_image.stage == "src", "job (a) did not start from src");
    let Some(result) = &prepare.result_image else {
        anyhow::bail!("the disk of job (a) did not become the machine image");
    };
    for (letter, job) in [("b", pull_request), ("c", derived)] {
        ensure!(
            job.start_image.stage == "machine" && job.start_image.generation == result.generation,
            "job ({letter}) did not start from what job (a) left behind"
        );
        ensure!(job.result_image.is_none(), "the disk of job ({letter}) was kept");
        ensure!(job.found_tool, "job ({letter}) did not find what job (a) had installed");
    }
    let of_build = ImageRef::Machine {
        machine: BUILD.parse().context("the demo's own machine type")?,
        generation: forrest_core::model::Generation(result.generation.unwrap_or_default()),
    };
    ensure!(
        derived.started_from == of_build,
        "job (c) started from {}, not from {of_build}",
        derived.started_from
    );
    Ok(())
}
