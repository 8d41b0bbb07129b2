//! Real guests: from the webhook to the first line of the job's step, cold and restored, with the same
//! image and template in the same run.

use std::time::Duration;

use anyhow::{Context, Result};
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};

use crate::Place;
use crate::figures::{Figures, percentile};

const COLD: &str = "bench/guests/cold";
const RESTORED: &str = "bench/guests/restored";
/// Jobs per figure. Cold ones take half a minute each under emulation.
const COLD_JOBS: usize = 3;
const RESTORED_JOBS: usize = 10;
/// How long one job may take.
const JOB: Duration = Duration::from_secs(10 * 60);

/// One job's way, in seconds.
struct Way {
    to_step: f64,
    to_vm: f64,
    vm_to_runner: f64,
    runner_to_step: f64,
}

/// Runs jobs one after the other, first cold, then restored.
///
/// # Errors
/// Where a job does not run.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Guests ...");
    let dir = place.scratch("guests")?;
    let plan = Plan::new(&place.root, &dir, &place.forrest)
        .with(MachinePlan::new(COLD))
        .with(MachinePlan::new(RESTORED).with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await?;
    let built = |status: &Status| {
        let snapshot = status.view.machines.iter().find_map(|m| m.snapshot.clone())?;
        match (&snapshot.state, &snapshot.trouble) {
            (SnapshotState::Ready, _) => Some(Ok(())),
            (_, Some(trouble)) => Some(Err(anyhow::anyhow!("no snapshot: {trouble}"))),
            _ => None,
        }
    };
    testbed.wait(JOB, "the snapshot", built).await??;

    let cold = ways(&testbed, COLD, COLD_JOBS).await?;
    let restored = ways(&testbed, RESTORED, RESTORED_JOBS).await?;
    let p50 = |ways: &[Way], part: fn(&Way) -> f64| {
        percentile(&mut ways.iter().map(part).collect::<Vec<_>>(), 0.5)
    };
    let (slow, fast) = (p50(&cold, |way| way.to_step), p50(&restored, |way| way.to_step));
    figures.add("queued_to_step_cold_s_p50", slow);
    figures.add("queued_to_step_restored_s_p50", fast);
    figures.add("queued_to_step_cold_over_restored", slow / fast);
    for (name, ways) in [("cold", &cold), ("restored", &restored)] {
        figures.add(&format!("{name}_queued_to_vm_s_p50"), p50(ways, |way| way.to_vm));
        figures.add(&format!("{name}_vm_to_runner_s_p50"), p50(ways, |way| way.vm_to_runner));
        figures.add(&format!("{name}_runner_to_step_s_p50"), p50(ways, |way| way.runner_to_step));
    }
    testbed.stop_daemon().await
}

async fn ways(testbed: &Testbed, machine: &str, jobs: usize) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for index in 0..jobs {
        let job = testbed
            .queue(machine, QueuedJob::push(&format!("job {index}"), &["echo first line"]))?;
        let run = testbed.finished(job, JOB).await?;
        let times = testbed.sim.job(job)?.times;
        let at = |moment: Option<github_sim::model::Moment>| {
            moment.map(github_sim::model::Moment::as_secs_f64).context("a time is missing")
        };
        let (queued, online) = (at(times.queued)?, at(times.runner_online)?);
        let step = at(times.first_log_line)?;
        let vm = run.times.vm_started.context("no virtual machine")?.as_secs_f64();
        ways.push(Way {
            to_step: step - queued,
            to_vm: vm - queued,
            vm_to_runner: online - vm,
            runner_to_step: step - online,
        });
    }
    Ok(ways)
}
