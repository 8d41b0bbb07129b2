//! What people do: to jobs on GitHub, and to runs on the host.

use forrest_core::event::EndReason;
use forrest_core::view::{JobWait, Waiting};
use forrest_daemon::control::Status;
use forrest_testbed::Testbed;

use crate::scene::{BUILD, STEP, booting, end, machine, plan, polled, queue, run, testbed};

/// Another machine type.
const OTHER: &str = "umbrella/gadgets/other";

#[tokio::test]
async fn stop_ends_a_run_and_the_job_is_served_again() {
    let Some(testbed) = testbed("stop").await else { return };
    queue(&testbed, BUILD, "patient");
    let first = booting(&testbed, BUILD).await;
    let config = testbed.config();
    let output = run(&["stop", first.as_str(), "--yes", "--config", &config.to_string_lossy()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stopped = |status: &Status| {
        let over = status.view.finished.iter().find(|over| over.runner == first)?;
        Some((over.end, over.result))
    };
    let over = testbed.wait(STEP, "the end of the run", stopped).await.expect("it ends");
    assert_eq!(over, (EndReason::Killed, None));
    let second = booting(&testbed, BUILD).await;
    assert_ne!(first, second);
    assert!(testbed.sim.runners().iter().all(|runner| runner.name != first.as_str()));
    end(testbed).await;
}

#[tokio::test]
async fn drain_holds_runs_back_and_resume_lets_them_start() {
    let Some(testbed) = testbed("drain").await else { return };
    let base_dir = testbed.plan().base_dir();
    let base_dir = base_dir.to_string_lossy();
    assert!(run(&["drain", "--base-dir", &base_dir]).status.success());
    queue(&testbed, BUILD, "patient");
    let drained = |status: &Status| {
        let waits = status.view.jobs.first()?.waits_for.as_ref()?;
        (*waits == JobWait::Start(Waiting::Drained)).then_some(status.view.runs.len())
    };
    let runs = testbed.wait(STEP, "a job that is held back", drained).await.expect("it waits");
    assert_eq!(runs, 0);
    assert!(testbed.sim.runners().is_empty());
    assert!(run(&["resume", "--base-dir", &base_dir]).status.success());
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

/// Its runner is taken away from GitHub before its guest is ended: else it might get another job at
/// the last moment, which would be lost.
#[tokio::test]
async fn a_run_whose_job_is_cancelled_is_deregistered_before_it_is_ended() {
    let Some(mut plan) = plan("cancelled") else { return };
    // Room for one guest only.
    plan.ram = "400M".to_owned();
    let testbed = Testbed::start(plan.with(machine(OTHER))).await.expect("the testbed starts");
    polled(&testbed).await;
    let job = queue(&testbed, BUILD, "not wanted after all");
    let runner = booting(&testbed, BUILD).await;
    let run = testbed.sim.job(job).expect("a job").run_id;
    testbed.sim.cancel(run, false).expect("cancelled");
    // As long as nobody wants its room, it is kept for jobs to come. Somebody does.
    queue(&testbed, OTHER, "in need of room");
    let over = |status: &Status| {
        let over = status.view.finished.iter().find(|over| over.runner == runner)?;
        Some((over.end, over.times.vm_exited))
    };
    let (reason, exited) = testbed.wait(STEP, "the end of the run", over).await.expect("it ends");
    assert_eq!(reason, EndReason::Killed);
    let requests = testbed.sim.requests();
    let deleted = requests
        .iter()
        .find(|one| one.method == "DELETE" && one.status == Some(204))
        .expect("the runner was deregistered");
    let exited = exited.expect("the guest ended");
    assert!(deleted.at.0 / 1000 <= exited.0, "deleted at {:?}, ended at {exited:?}", deleted.at);
    booting(&testbed, OTHER).await;
    end(testbed).await;
}
