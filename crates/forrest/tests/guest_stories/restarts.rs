//! The daemon goes away while a job runs, and comes back.

use std::time::Duration;

use forrest_core::event::EndReason;
use forrest_core::model::Generation;
use forrest_testbed::processes::{self, Process};
use forrest_testbed::{KEEP_DISK, QueuedJob};
use github_sim::model::{WebhookEffect, WebhookFault, When};

use crate::scene::{GUEST_LIFE, assert_clean, debian};

const BUILD: &str = "acme/widgets/build";

/// Long enough for a daemon to die and come back meanwhile.
const LONG_JOB: &str = "sleep 8; echo slept well";

/// Killed in the middle of a job: the job ends as if nothing had happened, and its disk is kept.
#[tokio::test]
async fn a_job_outlives_a_killed_daemon() {
    let Some(mut testbed) = debian("killed-daemon", &[BUILD]).await else { return };
    let job =
        testbed.queue(BUILD, QueuedJob::push("long", &[LONG_JOB, KEEP_DISK])).expect("queued");
    testbed
        .sim
        .wait_for(job, GUEST_LIFE, |job| job.times.picked_up.is_some())
        .await
        .expect("the job runs");

    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.start_daemon().await.expect("it starts again");

    let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    assert_eq!((run.end, run.result), (EndReason::GuestShutdown, Some(Generation(1))));
    assert!(testbed.sim.job_log(job).expect("a log").contains("slept well"));
    assert_clean(&testbed).await;
}

/// Killed while a runner waits for a job: GitHub gives it one while no daemon is there, and the next daemon
/// takes over the guest that has it.
#[tokio::test]
async fn an_idle_runner_outlives_a_killed_daemon() {
    let Some(mut testbed) = debian("killed-idle", &[BUILD]).await else { return };
    let unneeded = testbed.queue(BUILD, QueuedJob::push("unneeded", &["true"])).expect("queued");
    let run_of = |state: &'static str| {
        move |status: &forrest_daemon::control::Status| {
            let run = status.view.runs.iter().find(|run| run.state == state)?;
            Some(run.runner.clone())
        }
    };
    let runner =
        testbed.wait(GUEST_LIFE, "a booting guest", run_of("booting")).await.expect("it boots");
    // The job is gone before the guest is there, and nobody hears of it.
    testbed.sim.webhook_fault(WebhookFault::new("*", WebhookEffect::Forget, When::Always));
    let of = testbed.sim.job(unneeded).expect("the job").run_id;
    testbed.sim.cancel(of, true).expect("cancelled");
    let idle = testbed.wait(GUEST_LIFE, "an idle runner", run_of("idle")).await.expect("it waits");
    assert_eq!(idle, runner);

    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let steps = [LONG_JOB, KEEP_DISK];
    let job = testbed.queue(BUILD, QueuedJob::push("late", &steps)).expect("queued");
    testbed
        .sim
        .wait_for(job, GUEST_LIFE, |job| job.times.picked_up.is_some())
        .await
        .expect("the job runs");
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");

    let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    assert_eq!((run.runner, run.result), (runner, Some(Generation(1))));
    assert!(testbed.sim.job_log(job).expect("a log").contains("slept well"));
    let made = testbed.client().status().await.expect("a status").view.finished.len();
    assert_eq!(made, 1, "another run was made");
    assert_clean(&testbed).await;
}

/// Stopped in order while a guest boots: the run is taken over and its job runs once.
#[tokio::test]
async fn a_booting_guest_outlives_an_upgrade() {
    let Some(mut testbed) = debian("upgrade", &[BUILD]).await else { return };
    let job = testbed.queue(BUILD, QueuedJob::push("first", &["echo ran"])).expect("queued");
    let booting = |status: &forrest_daemon::control::Status| {
        status.view.runs.iter().any(|run| run.state == "booting").then_some(())
    };
    testbed.wait(GUEST_LIFE, "a booting guest", booting).await.expect("it boots");

    testbed.stop_daemon().await.expect("stopped");
    testbed.start_daemon().await.expect("it starts again");

    testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    let made = testbed.client().status().await.expect("a status").view.finished.len();
    assert_eq!(made, 1, "another run was made for the same job");
    assert_clean(&testbed).await;
}

/// A supervisor that is killed takes only its own guest down; the job, not yet taken, is served again.
#[tokio::test]
async fn a_killed_supervisor_costs_one_run_only() {
    let Some(testbed) = debian("killed-shim", &[BUILD]).await else { return };
    let job = testbed.queue(BUILD, QueuedJob::push("first", &["echo ran"])).expect("queued");
    let booting = |status: &forrest_daemon::control::Status| {
        let run = status.view.runs.iter().find(|run| run.state == "booting")?;
        Some(run.runner.clone())
    };
    let runner = testbed.wait(GUEST_LIFE, "a booting guest", booting).await.expect("it boots");
    kill_shim_of(&testbed, runner.as_str());

    let done = testbed.sim.wait_completed(job, GUEST_LIFE + Duration::from_secs(60)).await;
    assert_eq!(
        done.expect("the job ends").runner_name.map(|name| name == runner.as_str()),
        Some(false)
    );
    let run = testbed.finished(job, GUEST_LIFE).await.expect("its run ends");
    assert_eq!(run.end, EndReason::GuestShutdown);
    let lost = testbed.client().status().await.expect("a status").view.finished;
    assert_eq!(lost.first().map(|run| run.end), Some(EndReason::SupervisorLost));
    assert_clean(&testbed).await;
}

/// Kills the supervisor whose run directory ends with the runner's name.
fn kill_shim_of(testbed: &forrest_testbed::Testbed, runner: &str) {
    let all = processes::of(&testbed.plan().base_dir()).expect("processes");
    let ours = |process: &Process| process.is_shim() && process.arguments.contains(runner);
    let shims: Vec<u32> = all.into_iter().filter(ours).map(|shim| shim.pid).collect();
    assert_eq!(shims.len(), 1, "the supervisor of {runner} is not to be found: {shims:?}");
    let pid = rustix::process::Pid::from_raw(i32::try_from(shims[0]).expect("a pid"));
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL)
        .expect("killed");
}
