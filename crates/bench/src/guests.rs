//! Real guests: from the webhook to the first line of the job's step, cold and restored, with the same
//! image and template in the same run, and what building the snapshot costs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use forrest_core::model::{Bytes, Timestamp};
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use forrest_vm::Outcome;
use forrest_vm::run_dir::read_outcome;
use github_sim::model::Moment;

use crate::Place;
use crate::figures::{Figures, percentile};

const COLD: &str = "bench/guests/cold";
const RESTORED: &str = "bench/guests/restored";
/// Jobs per figure, one after the other; the variables `JOBS` and, for cold starts alone, `COLD_JOBS`
/// change that.
const JOBS: usize = 10;
/// How long one job may take.
pub const JOB: Duration = Duration::from_secs(10 * 60);

/// The stages of a job's way, in the order in which they end.
const STAGES: [&str; 6] =
    ["to_shim", "to_vm", "to_go", "to_runner_started", "to_online", "to_first_line"];

/// One job's way, in seconds.
#[derive(Debug)]
pub struct Way {
    /// From its webhook until the first line of its step.
    pub whole: f64,
    stages: [f64; STAGES.len()],
    /// From the guest's first instruction until it was ready.
    boot: f64,
}

/// Runs jobs one after the other, first cold, then restored.
///
/// # Errors
/// Where a job does not run.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Guests, cold and restored ...");
    let dir = place.scratch("guests")?;
    let plan = Plan::new(&place.root, &dir, &place.forrest)
        .with(MachinePlan::new(COLD))
        .with(MachinePlan::new(RESTORED).with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await?;
    snapshot_is_ready(&testbed, RESTORED).await?;

    let jobs = jobs("JOBS").unwrap_or(JOBS);
    let cold = ways(&testbed, COLD, self::jobs("COLD_JOBS").unwrap_or(jobs)).await?;
    let restored = ways(&testbed, RESTORED, jobs).await?;
    let p50 = |ways: &[Way], part: &dyn Fn(&Way) -> f64| {
        percentile(&mut ways.iter().map(part).collect::<Vec<_>>(), 0.5)
    };
    let (slow, fast) = (p50(&cold, &|way| way.whole), p50(&restored, &|way| way.whole));
    figures.add("queued_to_step_cold_s_p50", slow);
    figures.add("queued_to_step_restored_s_p50", fast);
    figures.add("queued_to_step_cold_over_restored", slow / fast);
    for (kind, ways) in [("cold", &cold), ("restored", &restored)] {
        for (index, stage) in STAGES.iter().enumerate() {
            figures.add(&format!("{kind}_{stage}_s_p50"), p50(ways, &|way| way.stages[index]));
        }
    }
    let (took, ram) = of_snapshot(&testbed.plan().base_dir())?;
    figures.add("snapshot_adds_s", took - p50(&cold, &|way| way.boot));
    figures.add("snapshot_ram_file_mib", ram.0 as f64 / f64::from(1 << 20));
    testbed.stop_daemon().await
}

/// Waits until the machine type's snapshot can be used.
///
/// # Errors
/// Where it cannot be built.
pub async fn snapshot_is_ready(testbed: &Testbed, machine: &str) -> Result<()> {
    let built = |status: &Status| {
        let of = status.view.machines.iter().find(|m| m.name.to_string() == machine)?;
        let snapshot = of.snapshot.as_ref()?;
        match (&snapshot.state, &snapshot.trouble) {
            (SnapshotState::Ready, _) => Some(Ok(())),
            (_, Some(trouble)) => Some(Err(anyhow::anyhow!("no snapshot: {trouble}"))),
            _ => None,
        }
    };
    testbed.wait(JOB, "the snapshot", built).await?
}

/// A number of jobs in a variable of the environment.
fn jobs(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok().filter(|jobs| *jobs > 0)
}

async fn ways(testbed: &Testbed, machine: &str, jobs: usize) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for index in 0..jobs {
        ways.push(way(testbed, machine, index).await?);
    }
    Ok(ways)
}

/// Runs one job to its end.
///
/// # Errors
/// Where it does not run.
pub async fn way(testbed: &Testbed, machine: &str, index: usize) -> Result<Way> {
    let job =
        testbed.queue(machine, QueuedJob::push(&format!("job {index}"), &["echo first line"]))?;
    let run = testbed.finished(job, JOB).await?;
    let dir = run_dir(&testbed.plan().base_dir(), machine, run.runner.as_str());
    let vm = read_outcome(&dir).context("the record of a virtual machine")?.times;
    let job = testbed.sim.job(job)?.times;
    let own = |moment: Option<Timestamp>| moment.map(Timestamp::as_secs_f64);
    let sim = |moment: Option<Moment>| moment.map(Moment::as_secs_f64);
    let moments: Option<Vec<f64>> = [
        sim(job.queued),
        own(Some(vm.shim_started_at)),
        own(vm.vm_started_at),
        own(vm.go_sent_at),
        own(vm.runner_started_at),
        sim(job.runner_online),
        sim(job.first_log_line),
    ]
    .into_iter()
    .collect();
    let moments = moments.context("a time is missing")?;
    let boot = own(vm.ready_at).zip(own(vm.vm_started_at)).map(|(ready, vm)| ready - vm);
    Ok(Way {
        whole: moments[STAGES.len()] - moments[0],
        stages: std::array::from_fn(|stage| moments[stage + 1] - moments[stage]),
        boot: boot.context("a time is missing")?,
    })
}

/// Where a run's files are. The last part of a machine type's name is a directory of its own.
pub fn run_dir(base_dir: &Path, machine: &str, runner: &str) -> PathBuf {
    base_dir.join("runs").join(machine).join(runner)
}

/// How long the snapshot's guest took from its first instruction until it was saved and gone, in
/// seconds, and the room that its RAM file takes.
fn of_snapshot(base_dir: &Path) -> Result<(f64, Bytes)> {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(base_dir.join("snapshots")).context("no snapshots")?;
    for entry in entries {
        let dir = entry?.path();
        let Ok(Outcome { times, .. }) = read_outcome(&dir) else { continue };
        let (began, ended) =
            times.vm_started_at.zip(times.ended_at).context("a time is missing")?;
        let ram = std::fs::metadata(dir.join(forrest_images::snapshots::RAM))?;
        return Ok((ended.as_secs_f64() - began.as_secs_f64(), Bytes(ram.blocks() * 512)));
    }
    anyhow::bail!("no snapshot is there")
}
