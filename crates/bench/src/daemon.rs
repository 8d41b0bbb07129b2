//! The daemon's own share of a job's way, and how much memory it and its supervisors hold.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use forrest_core::model::RunnerName;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed, processes};

use crate::Place;
use crate::figures::{Figures, percentile};

const MACHINE: &str = "bench/daemon/machine";
/// Jobs whose way is measured.
const JOBS: usize = 15;
/// How long any step may take.
const STEP: Duration = Duration::from_secs(60);

/// Measures with guests that do nothing.
///
/// # Errors
/// Where the daemon does not do what it should.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("The daemon ...");
    let mut testbed = Testbed::start(plan(place, "daemon")?).await?;
    let polled = |status: &Status| {
        status
            .view
            .repositories
            .iter()
            .all(|repo| repo.polled_at.is_some())
            .then_some(status.daemon.pid)
    };
    let pid = testbed.wait(STEP, "the first poll", polled).await?;
    figures.add("daemon_rss_mib", rss_mib(pid)?);

    let mut samples = Vec::new();
    for index in 0..JOBS {
        let (ms, shim_mib) = one_job(&testbed, index).await?;
        samples.push(ms);
        if index == 0 {
            figures.add("shim_rss_mib", shim_mib);
        }
    }
    figures.add("webhook_to_qemu_ms_p50", percentile(&mut samples, 0.5));
    figures.add("webhook_to_qemu_ms_p90", percentile(&mut samples, 0.9));
    figures.add("daemon_rss_after_jobs_mib", rss_mib(pid)?);
    testbed.stop_daemon().await
}

/// A testbed with one machine type, whose image hangs at once.
///
/// # Errors
/// Where its files cannot be written.
pub fn plan(place: &Place, name: &str) -> Result<Plan> {
    let dir = place.scratch(name)?;
    let mut plan = Plan::new(&place.root, &dir, &place.forrest).with(MachinePlan::new(MACHINE));
    plan.guest_image = dir.join("hangs.raw");
    std::fs::write(&plan.guest_image, forrest_testbed::hanging_image())?;
    Ok(plan)
}

/// From the webhook of one job to QEMU's start, in milliseconds; and its supervisor's memory.
///
/// # Errors
/// Where the run does not begin or end.
pub async fn one_job(testbed: &Testbed, index: usize) -> Result<(f64, f64)> {
    let job = testbed.queue(MACHINE, QueuedJob::push(&format!("job {index}"), &["true"]))?;
    let booting = |status: &Status| {
        let run = status.view.runs.iter().find(|run| run.state == "booting")?;
        Some(run.runner.clone())
    };
    let runner = testbed.wait(STEP, "a booting guest", booting).await?;
    let shim_mib = rss_mib(shim_of(testbed, &runner)?)?;
    let queued = testbed.sim.job(job)?;
    let queued_at = queued.times.queued.context("the job was not queued")?;
    testbed.sim.cancel(queued.run_id, true)?;
    // Until the daemon has heard of that, it would begin another run for the job.
    let nothing_to_do = |status: &Status| {
        status.view.machines.iter().all(|machine| machine.queued == 0).then_some(())
    };
    testbed.wait(STEP, "the end of the job", nothing_to_do).await?;
    testbed.client().stop(&runner).await?;
    let settled = |status: &Status| status.view.runs.is_empty().then_some(());
    testbed.wait(STEP, "the end of the run", settled).await?;
    let outcome = testbed
        .plan()
        .base_dir()
        .join("runs")
        .join(MACHINE)
        .join(runner.as_str())
        .join("outcome.json");
    let outcome: serde_json::Value = serde_json::from_slice(&std::fs::read(&outcome)?)?;
    let started = outcome["times"]["qemu_started_at"].as_f64().context("QEMU was not started")?;
    Ok((started - queued_at.as_secs_f64() * 1e3, shim_mib))
}

fn shim_of(testbed: &Testbed, runner: &RunnerName) -> Result<u32> {
    let mut ours = processes::of(&testbed.plan().base_dir())?.into_iter();
    ours.find(|process| process.is_shim() && process.arguments.contains(runner.as_str()))
        .map(|shim| shim.pid)
        .context("the supervisor is not to be found")
}

/// A process's resident memory.
///
/// # Errors
/// Where it is gone.
pub fn rss_mib(pid: u32) -> Result<f64> {
    kib_of(&Path::new("/proc").join(pid.to_string()).join("status"), "VmRSS:")
}

/// A value in KiB of a file of `/proc`, in MiB.
///
/// # Errors
/// Where the file or the value is not there.
pub fn kib_of(path: &Path, name: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib: f64 = line
        .and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok())
        .with_context(|| format!("{name} is not in {}", path.display()))?;
    Ok(kib / 1024.0)
}
