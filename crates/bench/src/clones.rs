//! Many runs restored at once from one snapshot: how long until all of them work, and the memory that each
//! takes beyond what they share.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use forrest_vm::ShimClient;
use github_sim::model::{JobId, Moment};

use crate::Place;
use crate::figures::{Figures, percentile};
use crate::guests::{JOB, run_dir, snapshot_is_ready};

const MACHINE: &str = "bench/clones/machine";
const CLONES: usize = 20;
/// What each job does: say that it runs, and then nothing until all have been looked at.
const STEP: &str = "echo running; sleep 45";
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Queues the jobs at once, and waits until each has said that it runs.
///
/// # Errors
/// Where a job does not run, or one of them was not restored.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Clones of one snapshot ...");
    let dir = place.scratch("clones")?;
    // Admission counts the disk and the RAM of each of them in full, with what QEMU may take besides.
    let machine = MachinePlan::new(MACHINE).with("snapshot: true").with("disk: 2560M");
    let mut plan = Plan::new(&place.root, &dir, &place.forrest).with(machine);
    plan.ram = "22G".to_owned();
    let mut testbed = Testbed::start(plan).await?;
    snapshot_is_ready(&testbed, MACHINE).await?;

    let names: Vec<String> = (0..CLONES).map(|index| format!("clone {index}")).collect();
    let jobs: Vec<JobId> = names
        .iter()
        .map(|name| testbed.queue(MACHINE, QueuedJob::push(name, &[STEP])))
        .collect::<Result<_>>()?;
    let running = all_running(&testbed, &jobs);
    let took = tokio::time::timeout(JOB, running).await.context("not all of the jobs ran")??;
    figures.add("restore20_s", took);
    figures.add("clone_pss_mib", beyond_template(&testbed).await?);
    for job in jobs {
        testbed.finished(job, JOB).await?;
    }
    let status = testbed.client().status().await?;
    let snapshot = status.view.machines.iter().find_map(|m| m.snapshot.as_ref());
    let restored = snapshot.map_or(0, |snapshot| snapshot.restored);
    ensure!(restored == CLONES as u64, "only {restored} of {CLONES} runs were restored");
    testbed.stop_daemon().await
}

/// Seconds from the first job's queueing until the last one's first line.
async fn all_running(testbed: &Testbed, jobs: &[JobId]) -> Result<f64> {
    loop {
        let times: Vec<_> =
            jobs.iter().map(|job| Ok(testbed.sim.job(*job)?.times)).collect::<Result<_>>()?;
        let lines: Option<Vec<Moment>> = times.iter().map(|times| times.first_log_line).collect();
        let queued = times.iter().filter_map(|times| times.queued).min();
        if let (Some(last), Some(queued)) =
            (lines.and_then(|lines| lines.into_iter().max()), queued)
        {
            return Ok(last.as_secs_f64() - queued.as_secs_f64());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// MiB that a clone takes beyond the template's RAM: the median.
async fn beyond_template(testbed: &Testbed) -> Result<f64> {
    let status = testbed.client().status().await?;
    let base_dir = testbed.plan().base_dir();
    let mut all = Vec::new();
    for run in &status.view.runs {
        let dir = run_dir(&base_dir, MACHINE, run.runner.as_str());
        let state = ShimClient::connect(&dir).await?.status().await?;
        let pid = state.qemu_pid.context("QEMU is gone already")?;
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        all.push(own_kib(&smaps, Path::new(forrest_images::snapshots::RAM)) as f64 / 1024.0);
    }
    ensure!(all.len() == CLONES, "{} clones are left of {CLONES}", all.len());
    Ok(percentile(&mut all, 0.5))
}

/// The proportional share of everything but the template's RAM, and of that the pages that were copied,
/// in KiB. See proc_pid_smaps(5).
fn own_kib(smaps: &str, ram: &Path) -> u64 {
    let mut of_template = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let (field, value) = line.split_once(' ').unwrap_or((line, ""));
        let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        match field {
            "Pss:" if !of_template => sum += kib(),
            "Anonymous:" if of_template => sum += kib(),
            // A mapping begins with its range of addresses.
            range if !range.ends_with(':') => {
                of_template = value.rsplit(' ').next().is_some_and(|path| {
                    Path::new(path).file_name() == ram.file_name() && path.starts_with('/')
                });
            }
            _ => {}
        }
    }
    sum
}
